"""`--mode=backtranslate`: text in the target language becomes training data (Sennrich et al. 2016, arXiv:1511.06709).

    monolingual text ── reverse model ──▶ synthetic sources ── with the corpora of data.train ──▶ model

1. WORKDIR/reverse: a model of the other direction is trained, or one is given by `--reverse`.
2. WORKDIR/synthetic: it translates the monolingual text part by part; the corpus is WORKDIR/synthetic.{source,target}.
3. WORKDIR: the model is trained on data.train and that corpus, whose sources begin with a tag, `<bt>`, so that it
   can tell them from real ones (Caswell et al. 2019, arXiv:1906.06442).

The reverse model searches by `config.decode`, whatever its method, but alone: `decode.ensemble`, `language_model`,
`prefix`, `must` and `must_not` belong to the other direction and are left out.

The same command goes on at whatever stage it was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.config import (
    RESUMABLE,
    check_resume,
    default_config,
    load_config,
    require_search,
    with_absolute_prefixes,
)
from seq2seq_jax.data.sources import read_lines
from seq2seq_jax.data.spec import CorpusSpec, parse_corpora, without_name
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.modes.train import train
from seq2seq_jax.provenance import hash_parameters
from seq2seq_jax.tasks.methods import make_ranking
from seq2seq_jax.tasks.translation import Translation
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.writers import format_duration, replace_text, write_json
from seq2seq_jax.workdir import Folder, claim

PART_LINES = 4096
"""Lines of a part: what a kill loses at most."""

TAG = "bt"
SYNTHETIC = "synthetic"
ONE_DIRECTION = ("ensemble", "language_model", "prefix", "must", "must_not")
"""Keys of `config.decode` that are models or texts of the direction that is trained: the reverse model has none."""

RANKED = ("length_normalisation", "length_penalty", "word_bonus", "coverage_penalty", "prune", "stop", "unfinished")
"""Keys of `config.decode` that are a preset's where they are not set."""

SIZES = ("length_factor", "length_extra", "rows", "max_source_len")
"""Keys of `config.decode` that count for samples of the whole distribution, too."""

KEPT, REASONS = "kept", ("blank", "too long", "empty", "unfinished", "copy")


@dataclasses.dataclass(frozen=True)
class Monolingual:
    """The text to translate: its file and how it is used, how many lines it has, and sha256 over them."""

    spec: CorpusSpec
    count: int
    digest: str

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.spec.name)

    @property
    def options(self) -> str:
        """What data.train says of the synthetic corpus."""
        weight = "" if self.spec.weight == 1 else f"&weight={self.spec.weight:g}"
        return f"tag={'+'.join(self.spec.tags or (TAG,))}{weight}"


def backtranslate(config: ConfigDict, root: Path, *, reverse: str | None = None) -> dict[str, Any]:
    """Does what is left to do of the three stages; the results of the last one, and what became of the lines.

    Args:
        config: of the model; the reverse model has the same, but for the direction.
        root: the run's folder.
        reverse: a run (or an exported model) of the other direction; by default one is trained.

    Raises:
        UserError: something is missing, or is not what it was when the work began.
    """
    if {",", "?"} & set(str(root)):
        raise UserError(f"--workdir={root}: becomes the name of a corpus, which may have no comma and question mark.")
    config = with_absolute_prefixes(config)
    config.data.train = without_name(config.data.train, str(root / SYNTHETIC))  # a saved config names it already
    text = _look_at_text(config)
    if reverse is None:
        source = root / "reverse"
        _train_reverse(config, source)
    else:
        source = Path(reverse).expanduser().absolute()
    counts = _translate_text(config, text, source, root)
    told = ", ".join(f"{counts[reason]} {reason}" for reason in (KEPT, *REASONS))
    config.data.train = f"{config.data.train}, {root / SYNTHETIC}?{text.options}"
    config.data.prepared = ""  # one that was prepared before lacks what has just been translated
    say(f"3 of 3: training {config.data.source}-{config.data.target} on {config.data.train}")
    results = train(config, root)
    say(f"{text.path}: {text.count} lines translated by {source} ({told})")
    return {**results, SYNTHETIC: counts}


def _look_at_text(config: ConfigDict) -> Monolingual:
    """Reads all of it once, so that what is wrong with it is told before days of training."""
    line, data = config.data.monolingual, config.data
    if data.prepared not in ("auto", ""):
        raise UserError(
            f"config.data.prepared = {data.prepared!r}: one folder cannot be that of both directions; leave it 'auto', "
            "which finds WORKDIR/reverse/prepared; the last stage reads its corpora into memory."
        )
    cure = f"give text in {data.target!r}, a sentence a line: --config.data.monolingual=FILE"
    if not line:
        raise UserError(f"config.data.monolingual is empty: {cure}.")
    specs = parse_corpora(line, source=data.source, target=data.target, key="data.monolingual")
    if len(specs) > 1 or (specs[0].source, specs[0].target) != (data.source, data.target):
        raise UserError(f"config.data.monolingual = {line!r}: names one file, with weight and tag: {cure}.")
    path, digest, count = Path(specs[0].name), hashlib.sha256(), 0
    for sentence in read_lines(path):
        digest.update(sentence.encode("utf-8", "replace") + b"\n")
        count += 1
    if not count:
        raise UserError(f"{path}: is empty: {cure}.")
    return Monolingual(specs[0], count, digest.hexdigest())


def reverse_config(config: ConfigDict) -> ConfigDict:
    """The config of the other direction, on the same pairs: what is held out stays held out."""
    turned = ConfigDict(config.to_dict())
    turned.data.source, turned.data.target = config.data.target, config.data.source
    turned.data.reversed = not config.data.reversed
    turned.data.monolingual, turned.data.monolingual_search = "", "beam"
    turned.decode.update({key: "" for key in ONE_DIRECTION})
    other = {"source": "target", "target": "source"}
    turned.data.subword_sides = other.get(config.data.subword_sides, config.data.subword_sides)
    turned.vocab.file = ",".join(reversed(config.vocab.file.split(",")))
    return turned


def _train_reverse(config: ConfigDict, root: Path) -> None:
    """Trains or resumes the reverse model; one that has come to its end is left as it is."""
    if config.train.init_from:
        raise UserError(
            f"config.train.init_from = {config.train.init_from!r} is of this direction, and the reverse model cannot "
            "start from it: train that one by itself and give it with --reverse=RUN."
        )
    turned, folder = reverse_config(config), Folder(root)
    say(f"1 of 3: the reverse model, {turned.data.source}-{turned.data.target}, in {root}")
    if folder.results.exists():
        check_resume(turned, load_config(folder.config), folder.config, free=(*RESUMABLE, "decode.", "evaluate."))
        say("it is trained already")
        return
    with claim(root, fresh=False):
        train(turned, root)


def _translate_text(config: ConfigDict, text: Monolingual, source: Path, root: Path) -> dict[str, int]:
    """Translates what is not translated yet, and joins the parts to a corpus; what became of the lines."""
    experiment, params, recipe = _load_reverse(config, text, source)
    folder, languages = root / SYNTHETIC, (config.data.source, config.data.target)
    folder.mkdir(exist_ok=True)
    _check_recipe(folder, recipe)
    report, goals = folder / "report.json", [root / f"{SYNTHETIC}.{language}" for language in languages]
    if report.exists() and all(goal.exists() for goal in goals):
        say(f"2 of 3: {text.path} is translated already")
        return json.loads(report.read_text())
    say(f"2 of 3: translating {text.count} lines of {text.path} in parts of {PART_LINES} into {folder}")
    translate = _make_translate(experiment, params)
    counts, started, begun, done = Counter[str](), time.monotonic(), None, 0
    with StopSignal() as stop:
        for part, lines in enumerate(_cut(text.path)):
            note = _name(folder, part, "json")
            if not note.exists():
                begun = done if begun is None else begun
                found = translate(part, lines, lambda: stop.check("during the translation; all whole parts are kept"))
                _write_part(folder, part, languages, lines, found, experiment)
            counts.update(json.loads(note.read_text()))
            done += len(lines)
            if begun is not None:
                rate = (done - begun) / max(time.monotonic() - started, 1e-9)
                left = format_duration((text.count - done) / rate)
                say(f"translated {done} of {text.count} lines, {rate:.1f} sentences/s, {left} left")
    if not counts[KEPT]:
        raise UserError(
            f"{text.path}: of {text.count} lines none is left ({dict(counts)}); the reverse model is too weak."
        )
    for goal, language in zip(goals, languages, strict=True):
        _join_parts(folder, -(-text.count // PART_LINES), language, goal)
    told = {reason: counts[reason] for reason in (KEPT, *REASONS)}
    write_json(report, told)
    return told


def _load_reverse(config: ConfigDict, text: Monolingual, source: Path) -> tuple[Experiment, PyTree, dict[str, Any]]:
    """The reverse model, its parameters, and what the translations depend on."""
    saved = load_config(Folder(source).config)
    require_search(saved, f"--reverse={source}")
    direction = (saved.data.source, saved.data.target)
    if direction != (config.data.target, config.data.source):
        raise UserError(
            f"--reverse={source}: translates {'-'.join(direction)}, but {config.data.target}-{config.data.source} is "
            "needed: give a run of the other direction."
        )
    kind, seed = config.data.monolingual_search, saved.train.seed
    saved.decode, saved.parallel = search_keys(config.decode, kind, seed=seed), config.parallel
    saved.data.monolingual_search = kind
    saved.data.rows_multiple = config.data.rows_multiple
    experiment, chosen = load_run(saved, Folder(source))
    params = chosen.state.averaged
    recipe = {
        "monolingual text": text.digest,
        "reverse model": hash_parameters(params),
        "search": {**saved.decode.to_dict(), "kind": kind},
        "lines in a part": PART_LINES,
    }
    return experiment, params, recipe


def search_keys(keys: ConfigDict, kind: str, *, seed: int) -> ConfigDict:
    """`config.decode` of the reverse model.

    Args:
        keys: `config.decode` of the model.
        kind: `config.data.monolingual_search`. "beam" searches as `keys` say, whatever their method is, but alone and
            without texts of the other language. "sampling" draws one output from the whole distribution (Edunov et al.
            2018, arXiv:1808.09381): no token and no repetition is forbidden, and only the longest output is limited.
        seed: of the draws of "sampling".
    """
    if kind == "beam":
        return ConfigDict({**keys.to_dict(), **{key: "" for key in ONE_DIRECTION}})
    own = {"method": "sampling", "seed": seed, **{key: keys[key] for key in SIZES}}
    return ConfigDict({**default_config().decode.to_dict(), **own})


def _settle(search: dict[str, Any]) -> dict[str, Any]:
    """What the translations depend on, of a recipe's search: the same for keys left out, at their default, and spelled
    out, so that a translation begun by an earlier version, which had fewer keys, goes on."""
    keys = {**default_config().decode.to_dict(), **search}
    if search["kind"] == "sampling":
        return {key: keys[key] for key in ("kind", "seed", *SIZES)}
    ranking = dataclasses.asdict(make_ranking(keys))
    drawn = keys["method"] in ("sampling", "minimum_bayes_risk")
    spelled = {"preset", *ONE_DIRECTION, *RANKED} | (set() if drawn else {"seed"})
    return {**{key: value for key, value in keys.items() if key not in spelled}, "ranking": ranking}


def _check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    note = folder / "recipe.json"
    if not note.exists():
        write_json(note, recipe)
        return
    saved = json.loads(note.read_text())
    before, now = ({**each, "search": _settle(each["search"])} for each in (saved, recipe))
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{folder}: was made with another {' and another '.join(changed)}; put it back, or remove the folder to "
            "translate again (and start in a new --workdir where the last stage has begun)."
        )


def _cut(path: Path) -> Iterator[list[str]]:
    lines = read_lines(path)
    while part := list(itertools.islice(lines, PART_LINES)):
        yield part


Translate = Callable[[int, list[str], Callable[[], None]], list[Translation]]


def _make_translate(experiment: Experiment, params: PyTree) -> Translate:
    """Builds `translate(number of the part, lines, poll)`.

    Draws are keyed by the number of their line: a part that is made again comes out the same.
    """
    search = experiment.training.make_search()
    translator = experiment.translator(engine=experiment.engine(search, attention="none"))

    def translate(part: int, lines: list[str], poll: Callable[[], None]) -> list[Translation]:
        return translator.translate(params, lines, first=part * PART_LINES, poll=poll)

    return translate


def judge(line: str, found: Translation, normalised: str) -> str:
    """Why a translation is left out, or "kept".

    Args:
        line: the monolingual sentence.
        found: its translation.
        normalised: the sentence as the vocabulary sees it; a translation that repeats it is a copy.
    """
    if not line.strip():
        return "blank"
    if found.cut:
        return "too long"
    if not found.text.strip():
        return "empty"
    if not found.candidates[0].finished:
        return "unfinished"
    return "copy" if found.text.split() in (line.split(), normalised.split()) else KEPT


def _write_part(
    folder: Path,
    part: int,
    languages: tuple[str, str],
    lines: list[str],
    found: list[Translation],
    experiment: Experiment,
) -> None:
    """Both sides of a part, and then its counts, which say that it is whole."""
    normalise = experiment.vocabs.source.normalise
    reasons = [judge(line, item, normalise(line)) for line, item in zip(lines, found, strict=True)]
    kept = [n for n, reason in enumerate(reasons) if reason == KEPT]
    source, target = languages
    replace_text(_name(folder, part, source), "".join(found[n].text + "\n" for n in kept))
    replace_text(_name(folder, part, target), "".join(lines[n] + "\n" for n in kept))
    write_json(_name(folder, part, "json"), dict(Counter(reasons)))


def _name(folder: Path, part: int, ending: str) -> Path:
    return folder / f"part-{part:05d}.{ending}"


def _join_parts(folder: Path, count: int, language: str, goal: Path) -> None:
    beside = goal.with_name(f".{goal.name}.{os.getpid()}")
    with open(beside, "wb") as output:
        for part in range(count):
            with open(_name(folder, part, language), "rb") as file:
                shutil.copyfileobj(file, output)
        output.flush()
        os.fsync(output.fileno())
    os.replace(beside, goal)
