"""A phrase-based system to rescore: n-best lists with features, made by thot and tuned by minimum error rate training.

    pip install "seq2seq_jax[smt]"
    python experiments/seq2seq_2014/phrase_based.py --data=DIR --out=OUT [--source=en --target=fr --rounds=3]

`DIR` has train, val and test as lower-case words between blanks, a sentence a line (train.en, train.fr, ...). The
parts, most of them in phrase_models.py:

- words are aligned in both directions by thot's fast_align, and the links of both joined (grow-diag-final-and),
- phrases of up to 7 words are counted by thot and smoothed with the words' probabilities,
- the n-gram model is interpolated modified Kneser-Ney, in thot's format,
- thot's stack decoder searches and gives n-best lists from its word graph; a word without a translation is copied,
- weights are tuned on val (Och 2003) by `seq2seq_jax.evaluate.tuning`, on the lists of all rounds so far.

`OUT` gets {val,test}.nbest (Moses's format, the best first, each text once), {val,test}.1best, and last report.json.
All is made in OUT/work, where a stage that is done is kept, and copied at the end; remove OUT/work to have all of it
made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from phrase_models import (
    END,
    MAX_PHRASE,
    Pairs,
    Stages,
    add_end,
    align,
    import_thot,
    read_pairs,
    say,
    watch,
    write_language_model,
    write_phrases,
    write_translation_model,
)
from programs import call
from significance import make_words_metric

from seq2seq_jax.data.nbest import Hypothesis, group_segments, list_columns, make_matrix, read_nbest, render_line
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.corpus_metric import CorpusMetric
from seq2seq_jax.evaluate.tuning import Lists, find_oracle, tune
from seq2seq_jax.train.writers import write_json

FEATURES = ("WordPenalty0", "LM0", "TargetLength0", "Distortion0", "SourceLength0", "TM0", "TM0", "SentenceLength0")
"""Names of thot's eight components, in its order; both phrase probabilities are values of one name, as in Moses."""
COMPONENTS = (*FEATURES[:5], "TM0 target given source", "TM0 source given target", FEATURES[-1])
START = (-0.5, 1.0, -0.5, 0.4, 0.0, 2.0, 0.5, 4.0)
"""Weights of the first round: about what tuning found for Multi30k, from English to French."""
SCALE = 10.0
"""Sum of the weights' absolute values; thot replaces those near 0."""
JOIN = 1.0
"""Weight of the phrases' lengths in the second search, see `join_phrases`."""
SPLITS = ("train", "val", "test")
NUMBERS = {
    "order": (2, 4, "words of the longest n-grams"),
    "rounds": (1, 3, "searches of val; weights are tuned in between"),
    "restarts": (0, 5, "random starts of tuning"),
    "stack": (1, 10, "hypotheses of a stack while tuning"),
    "final_stack": (1, 10, "hypotheses of a stack at the end"),
    "jump": (0, 2, "most words that a jump skips; 0 keeps the order of phrases"),
    "nbest": (1, 1000, "most hypotheses of a final list"),
}
"""Flags with whole numbers: the least, the default, and what they are."""


@dataclasses.dataclass(frozen=True)
class Search:
    """How far thot searches.

    Attributes:
        stack: hypotheses of a stack.
        order: words of the language model's longest n-grams.
        jump: most words that a jump skips.
        options: most translations of a phrase.
        derivations: ways through the word graph that are listed; several may give one text.
        distinct: most texts of a list.
    """

    stack: int
    order: int
    jump: int
    options: int
    derivations: int
    distinct: int


def make_searches(given: argparse.Namespace) -> tuple[Search, Search]:
    """The search of val while tuning, and the one that makes the final lists."""
    quick = Search(given.stack, given.order, given.jump, options=5, derivations=500, distinct=200)
    wide = Search(given.final_stack, given.order, given.jump, 8, derivations=3 * given.nbest, distinct=given.nbest)
    return quick, wide


def write_lists(
    thot: Any, models: Path, sentences: Sequence[Sequence[str]], weights: Sequence[float], search: Search, path: Path
) -> None:
    """Searches all sentences and writes their lists, the best first and each text once, with `FEATURES`."""
    model = thot.translation.SmtModel(thot.alignment.AlignmentModelType.FAST_ALIGN)
    loaded = model.load_translation_model(str(models / "translation_model" / "tm"))
    if not (loaded and model.load_language_model(str(models / "language_model" / "lm"))):
        raise UserError(f"{models}: thot cannot read the models; remove translation_model and language_model there.")
    model.a, model.e, model.heuristic = MAX_PHRASE, 2, 6  # longest phrases, length difference, "local td" of the future
    model.w, model.non_monotonicity = search.options, search.jump
    decoder = thot.translation.SmtDecoder(model)
    decoder.s, decoder.is_breadth_first = search.stack, True
    with path.open("w", encoding="utf-8") as file:
        for number, words in enumerate(watch(sentences, path.name.removesuffix(".part"))):
            text = " ".join(add_end(words, search.order))
            found = []
            for now in (weights, join_phrases(weights)):
                model.weights = list(now)
                found += decoder.translate_n(text, search.derivations) or [decoder.translate(text)]
            shown = [(" ".join(word for word in one.target if word != END), one.score_components) for one in found]
            file.writelines(render_line(item) for item in make_list(number, shown, weights)[: search.distinct])
    decoder.clear()
    model.clear()


def join_phrases(weights: Sequence[float]) -> list[float]:
    """The weights, but with a preference for few phrases.

    Where weights do not mind how a text is cut into phrases, most of the best derivations are one text cut otherwise.
    A second search by these weights brings other texts; their totals are still by the weights that were asked for.
    """
    place = FEATURES.index("TargetLength0")  # about -log(words) for every phrase
    return [max(weight, JOIN) if number == place else weight for number, weight in enumerate(weights)]


def make_list(
    segment: int, derivations: Iterable[tuple[str, Sequence[float]]], weights: Sequence[float]
) -> list[Hypothesis]:
    """Texts and their components as a list: totals by the weights, the best first, of equal texts the best."""
    found: dict[str, Hypothesis] = {}
    for text, components in derivations:
        values = [round(float(value), 6) for value in components]
        features: dict[str, tuple[float, ...]] = {}
        for name, value in zip(FEATURES, values, strict=True):
            features[name] = (*features.get(name, ()), value)
        total = round(float(np.dot(values, weights)), 6)
        if text not in found or found[text].total < total:
            found[text] = Hypothesis(segment, text, features, total)
    return sorted(found.values(), key=lambda item: -item.total)


def count_words(references: Sequence[str], items: Sequence[Hypothesis]) -> tuple[CorpusMetric, np.ndarray]:
    """BLEU of the words as they stand, and the statistics `[N, M]` of hypotheses."""
    metric = make_words_metric()
    return metric, metric.count([item.text for item in items], [references[item.segment] for item in items])


def tune_weights(
    paths: Sequence[Path], references: Sequence[str], weights: Sequence[float], restarts: int, path: Path
) -> None:
    """Weights that choose best from all lists together, beginning with those that the last ones were made by."""
    items = list({(item.segment, item.text): item for name in paths for item in read_nbest(name)}.values())
    items = [items[place] for places in group_segments(items).values() for place in places]
    metric, statistics = count_words(references, items)
    matrix = make_matrix(items, list_columns(items))
    lists = Lists(matrix, statistics, np.array([len(places) for places in group_segments(items).values()]))
    found = tune(
        lists,
        metric.loss,
        np.array(weights),
        restarts=restarts,
        tell=lambda number, loss: say(f"tuning: start {number} of {restarts + 1}, BLEU {-loss:.2f}"),
    )
    before, after = (float(metric.score(lists.add(lists.choose(now)))) for now in (np.array(weights), found.weights))
    kept = [float(f"{value * SCALE:.6g}") for value in found.weights]
    write_json(path, {"weights": kept, "before": before, "after": after, "hypotheses": len(items)})
    say(f"BLEU of the choice from {len(items)} hypotheses: {before:.2f} before, {after:.2f} after")


def judge(path: Path, references: Sequence[str]) -> dict[str, float | int]:
    """BLEU of the first of each list and of the best choice (the oracle), and how long the lists are."""
    items = read_nbest(path)
    groups = group_segments(items)
    metric, statistics = count_words(references, items)
    sizes = np.array([len(places) for places in groups.values()])
    lists = Lists(np.zeros((len(items), 1)), statistics, sizes)
    oracle = find_oracle(lists, metric.loss)
    return {
        "bleu": float(metric.score(lists.add(lists.rows[:, 0]))),
        "oracle": float(metric.score(lists.add(oracle))),
        "sentences": len(groups),
        "hypotheses": len(items),
        "median_hypotheses": float(np.median(sizes)),
        "least_hypotheses": int(sizes.min()),
    }


def write_first(lists: Path, path: Path) -> None:
    """The first text of every list."""
    first = {item.segment: item.text for item in reversed(read_nbest(lists))}
    path.write_text("".join(first[segment] + "\n" for segment in sorted(first)), encoding="utf-8")


def build(thot: Any, stages: Stages, splits: dict[str, Pairs], order: int) -> None:
    """Models for thot, as far as they are not there."""
    alignments = stages.make("work/alignments", lambda path: align(thot, splits["train"], path))
    links = alignments / "links"
    phrases = stages.make("work/phrases", lambda path: write_phrases(thot, splits["train"], links, path))
    sources = [*splits["val"][0], *splits["test"][0]]
    stages.make(
        "work/translation_model", lambda path: write_translation_model(alignments, phrases, sources, order, path)
    )
    targets = [add_end(words, order) for words in splits["train"][1]]
    stages.make("work/language_model", lambda path: write_language_model(targets, order, path))


def tune_rounds(
    thot: Any, stages: Stages, val: Pairs, search: Search, rounds: int, restarts: int
) -> list[dict[str, Any]]:
    """Searches val and tunes, again and again; what each round found: weights, BLEU, and what tuning hoped for.

    Nothing is tuned after the last search, so that every round's weights have been searched with.
    """
    references = [" ".join(words) for words in val[1]]
    models, weights = stages.folder / "work", START
    lists: list[Path] = []
    found: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        lists.append(
            stages.make(
                f"work/round{number}.nbest",
                lambda path, now=weights: write_lists(thot, models, val[0], now, search, path),
            )
        )
        found.append({"weights": list(weights), "bleu": judge(lists[-1], references)["bleu"]})
        say(f"round {number} of {rounds}: BLEU {found[-1]['bleu']:.2f} on val")
        if number < rounds:
            made = stages.make(
                f"work/weights{number}.json",
                lambda path, now=weights: tune_weights(lists, references, now, restarts, path),
            )
            found[-1]["tuned"] = json.loads(made.read_text())
            weights = tuple(found[-1]["tuned"]["weights"])
    return found


def describe_settings(given: argparse.Namespace, splits: dict[str, Pairs]) -> dict[str, Any]:
    """All that the stages depend on: the flags, a digest of the texts, and the numbers that stand in this file."""
    flags = {name: getattr(given, name) for name in NUMBERS}
    data = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    quick, wide = map(dataclasses.asdict, make_searches(given))
    return {**flags, "data": data, "START": list(START), "SCALE": SCALE, "JOIN": JOIN, "quick": quick, "wide": wide}


def check_settings(given: argparse.Namespace, now: dict[str, Any], path: Path) -> bool:
    """Whether there are stages that were made with these settings; refuses those that others made."""
    if not path.exists():
        return False
    before = json.loads(path.read_text())
    for name, value in now.items():
        if before.get(name) != value:
            flag = hasattr(given, name)
            told = f"--{name}={getattr(given, name)}" if flag else f"{name} in phrase_based.py, now {value}"
            shown = "other texts" if name == "data" else before.get(name, "none")
            raise UserError(
                f"{told}: must be what the stages in {path.parent} were made with, but they had {shown}; remove that "
                "folder or choose another --out."
            )
    return True


def run(given: argparse.Namespace) -> dict[str, Any]:
    """All stages; the report."""
    report, work = given.out / "report.json", given.out / "work"
    splits = {name: read_pairs(given.data, getattr(given, name), (given.source, given.target)) for name in SPLITS}
    settings = describe_settings(given, splits)
    kept = check_settings(given, settings, work / "settings.json")
    if kept and report.exists():
        say(f"{report}: is there")
        return dict(json.loads(report.read_text()))
    thot, stages = import_thot(), Stages(given.out)
    if not kept:
        work.mkdir(exist_ok=True)
        write_json(work / "settings.json", settings)
    report.unlink(missing_ok=True)  # of stages that are there no more
    made = make_stages(given, thot, stages, splits)
    for name in ("val.nbest", "test.nbest", "val.1best", "test.1best"):
        part = given.out / f"{name}.part"
        shutil.copy2(work / name, part)  # as old as the stage: what others made of it holds
        part.replace(given.out / name)
    write_json(report, made)
    return made


def make_stages(given: argparse.Namespace, thot: Any, stages: Stages, splits: dict[str, Pairs]) -> dict[str, Any]:
    """Models, weights and lists, as far as they are not there; the report."""
    build(thot, stages, splits, given.order)
    quick, wide = make_searches(given)
    rounds = tune_rounds(thot, stages, splits["val"], quick, given.rounds, given.restarts)
    weights = max(rounds, key=lambda found: found["bleu"])["weights"]
    scores = {}
    for name in ("val", "test"):
        sources, targets = splits[name]
        made = stages.make(
            f"work/{name}.nbest",
            lambda path, sources=sources: write_lists(thot, given.out / "work", sources, weights, wide, path),
        )
        stages.make(f"work/{name}.1best", lambda path, made=made: write_first(made, path))
        scores[name] = judge(made, [" ".join(words) for words in targets])
        say(f"{name}: BLEU {scores[name]['bleu']:.2f}, oracle {scores[name]['oracle']:.2f}")
    return {
        "metric": "BLEU of the words as they stand (sacreBLEU tok:none smooth:exp)",
        "scores": scores,
        "weights": dict(zip(COMPONENTS, weights, strict=True)),
        "rounds": rounds,
        "search": {"tuning": dataclasses.asdict(quick), "final": dataclasses.asdict(wide)},
        "table": count_entries(given.out / "work"),
        "seconds": stages.seconds,
        "versions": {name: importlib.metadata.version(name) for name in ("sil-thot", "sacrebleu", "numpy")},
    }


def count_entries(models: Path) -> dict[str, int]:
    """Lines of the tables."""
    found = {}
    for name in ("phrases", "translation_model/tm.ttable", "language_model/lm"):
        with (models / name).open(encoding="utf-8") as lines:
            found[name] = sum(1 for _ in lines)
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test in both languages")
    parser.add_argument("--out", type=Path, required=True, help="gets the lists and the report")
    for name in SPLITS:
        parser.add_argument(f"--{name}", default=name, help=f"file name of {name} without its language (%(default)s)")
    parser.add_argument("--source", default="en", help="ending of the source's files (%(default)s)")
    parser.add_argument("--target", default="fr", help="ending of the target's files (%(default)s)")
    for name, (least, value, text) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text}; at least {least} (%(default)s)")
    given = parser.parse_args(arguments)
    for name, (least, _, _) in NUMBERS.items():
        if getattr(given, name) < least:
            parser.error(f"--{name} must be at least {least}, but is {getattr(given, name)} instead.")
    return given


def main() -> int:
    """Runs the command; the exit code."""
    print(json.dumps(run(parse())["scores"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(call("phrase_based.py", main))
