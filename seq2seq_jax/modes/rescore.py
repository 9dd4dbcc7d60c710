"""`--mode=rescore`: n-best lists of any system, with models' log-probabilities as features, and new weights.

The weights are tuned, read from a file, or those of an even average of two scores (Sutskever et al. 2014,
arXiv:1409.3215, section 3.2): half the list's own total, half the log-probability of the model. Several models are an
ensemble: its log-probability is the mean of theirs.

An n-gram model over a run's pieces (`config.decode.ngram`) is one more feature: a second pass.

Models of the other direction say how well a hypothesis explains its source. With a language model and a model of this
direction beside them that is a noisy channel (Yee et al. 2019, arXiv:1908.05731).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import load_config, takes_source
from seq2seq_jax.data.nbest import TOTAL, Hypothesis, group_segments, list_columns, make_matrix, read_nbest, render_line
from seq2seq_jax.data.sources import read_lines
from seq2seq_jax.data.spec import name_target
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.corpus_metric import CorpusMetric, make_metric
from seq2seq_jax.evaluate.tuning import RESTARTS, Lists, cross_validate, find_oracle, fit_totals, tune
from seq2seq_jax.modes.ensemble import match_pieces
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.lines import open_output
from seq2seq_jax.modes.rescore_request import AVERAGE, Request, find_languages
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.modes.weights import match_weights, name_feature, name_models, read_weights
from seq2seq_jax.tasks.score import Scorer
from seq2seq_jax.train.writers import format_duration, write_json
from seq2seq_jax.vocabularies import spell_pieces
from seq2seq_jax.workdir import Folder

GROUP = 8
"""Batches of pairs that are scored between two looks at the clock."""

PAUSE = 10.0
"""Seconds between lines about how far the work is."""


def rescore(config: ConfigDict | None, request: Request) -> dict[str, Any]:
    """Rescores lists and writes them, sorted by their new totals, with the new 1-best.

    Args:
        config: of the command line; its limits of decoding are those of every model. None: each model's own.
        request: files and choices.

    Returns:
        The report, JSON-ready: `scores` ("before", "after", "cross_validated", "oracle"; empty without references),
        `weights` by feature, what is to be told of each model, and the files.

    Raises:
        UserError: a file is missing or not what it should be, or nothing can be scored.
    """
    items, sources, references = _read_texts(request)
    averages = request.weights == AVERAGE
    given = None if request.weights is None or averages else read_weights(Path(request.weights))
    metric = make_metric(request.metric, target=_find_target(config, request))  # refuses before the work
    items, total = name_total(items) if averages else (items, None)
    own = list_columns(items)
    models: dict[str, dict[str, Any]] = {}
    taken = {name for name, _ in own}
    every = [*request.ngrams, *request.models, *request.channel]  # the quick one first
    named = name_models(every, given, taken, weights=request.weights, lists=request.lists)
    for name, path in named.items():
        if path in request.ngrams:
            items, models[name] = add_ngram(items, path, request.ngrams[path], name)
            continue
        items, models[name] = add_scores(items, sources, path, config, name, channel=path in request.channel)
    columns = [*own, *((name, 0) for name in models)]
    weights = None if given is None else match_weights(given, columns, file=request.weights, lists=request.lists)
    if averages:
        half = {total: 0.5} | dict.fromkeys(models, 0.5 / len(models))
        weights = np.array([half.get(name, 0.0) for name, _ in columns])
    report: dict[str, Any] = {"metric": metric.name, "signature": metric.signature}
    report |= {"segments": len(group_segments(items)), "hypotheses": len(items), "models": models, "scores": {}}
    if references is not None:
        lists, totals = _count(items, columns, references, metric)
        if weights is None:
            weights = _tune(lists, totals, len(own), metric, report)
        _judge(lists, weights, metric, report)
    if weights is None:
        raise ValueError("`request` must have a reference or weights; `check` sees to it.")
    report["weights"] = _name_weights(columns, weights)
    _write(items, columns, weights, report, request, max(len(sources), len(references or ())))
    return report


def _read_texts(request: Request) -> tuple[list[Hypothesis], list[str], list[str] | None]:
    """Hypotheses in ascending order of their segments, sources ([] where none are named) and references."""
    items = read_nbest(Path(request.lists))
    groups = group_segments(items)
    last = max(groups)
    sides: list[list[str] | None] = []
    for flag, name in (("--source", request.source), ("--reference", request.reference)):
        lines = None if name is None else list(read_lines(Path(name)))
        if lines is not None and len(lines) <= last:
            raise UserError(
                f"{flag}={name}: has {len(lines)} lines, but {request.lists} has hypotheses of segment {last} (counted "
                "from 0); it must have a line for every segment."
            )
        sides.append(lines)
    return [items[place] for places in groups.values() for place in places], sides[0] or [], sides[1]


def _find_target(config: ConfigDict | None, request: Request) -> str:
    """The target language, by which BLEU splits words; "" where nobody says."""
    if config is not None:
        return str(config.data.target)
    if request.models:
        return find_languages(request.models[0])[1]
    return find_languages(request.channel[0])[0] if request.channel else ""


def name_total(items: Sequence[Hypothesis]) -> tuple[list[Hypothesis], str]:
    """The hypotheses with the total that the system ranked by as a feature, and its name."""
    if all(item.features.get(TOTAL) == (item.total,) for item in items):
        return list(items), TOTAL
    name = name_feature(Path(TOTAL), {name for item in items for name in item.features})
    return [dataclasses.replace(item, features=item.features | {name: (item.total,)}) for item in items], name


def add_scores(
    items: Sequence[Hypothesis],
    sources: Sequence[str],
    model: Path,
    config: ConfigDict | None,
    name: str,
    *,
    channel: bool = False,
) -> tuple[list[Hypothesis], dict[str, Any]]:
    """The hypotheses with a model's log-probabilities as the feature `name`, and what is to be told of them.

    They are those of the hypothesis, or with `channel` those of its source given the hypothesis.

    Each pair of source and text is scored once. What the model cannot score (a blank or too long text) gets the lowest
    value that it gave to any other.
    """
    kept = load_config(model / "config.json")
    if config is not None:
        kept.decode.update(rows=config.decode.rows, max_source_len=config.decode.max_source_len)
    experiment, chosen = load_run(kept, Folder(model))
    tags = (name_target(kept.data.target),) if kept.data.target_tag else ()
    reads = takes_source(kept.model)
    of_items = [(sources[item.segment] if reads else item.text, item.text) for item in items]
    of_items = [pair[::-1] for pair in of_items] if channel else of_items
    pairs = list(dict.fromkeys(of_items))
    started = time.monotonic()
    found = score_pairs(
        experiment.scorer(tags=tags), chosen.state.averaged, pairs, group=GROUP * kept.decode.rows, name=name
    )
    log_probs = [value for value, _ in found.values() if value is not None]
    notes = [note for value, note in found.values() if value is None]
    if not log_probs:
        raise UserError(
            f"{model}: scores none of the {len(pairs)} pairs of source and hypothesis (the first: {notes[0]}); the "
            "texts must look like those it was trained on, and config.decode.max_source_len says how long they may be."
        )
    floor = min(log_probs)
    values = [found[pair][0] for pair in of_items]
    told = {"path": str(model), "step": chosen.step, "pairs": len(pairs), "unscored": len(notes), "floor": floor}
    seconds = max(time.monotonic() - started, 1e-9)
    say(f"{name} (step {chosen.step}): {len(pairs)} pairs in {format_duration(seconds)}, {len(pairs) / seconds:.1f}/s")
    if notes:
        told_floor = f"get the lowest of the others, {floor:.6g}"
        say(f"{name}: pairs without a score: {len(notes)} (the first: {notes[0]}) {told_floor}")
    added = [
        dataclasses.replace(item, features=item.features | {name: (floor if value is None else value,)})
        for item, value in zip(items, values, strict=True)
    ]
    return added, told


def add_ngram(items: Sequence[Hypothesis], file: Path, run: Path, name: str) -> tuple[list[Hypothesis], dict[str, Any]]:
    """The hypotheses with the log-probability of their pieces and the end by an n-gram model as the feature `name`.

    It is what a search adds of the same model, before it is weighed. And what is to be told of it.

    Args:
        items: hypotheses.
        file: the model, an ARPA file over the target vocabulary of the run in `run`.
        run: a folder.
        name: of the feature.

    Raises:
        UserError: the model cannot be read, or lists none of the vocabulary's pieces.
    """
    arpa, vocab = read_arpa(file), Vocabs.load(Folder(run).vocab).target
    match_pieces(arpa, vocab)
    texts = list(dict.fromkeys(item.text for item in items))
    tokens = vocab.encode_many(texts)
    found = {
        text: round(arpa.score_words(spell_pieces(vocab, ids)), 6) for text, ids in zip(texts, tokens, strict=True)
    }
    added = [dataclasses.replace(item, features=item.features | {name: (found[item.text],)}) for item in items]
    return added, {"path": str(file), "order": arpa.order, "texts": len(texts)}


def score_pairs(
    scorer: Scorer, params: Any, pairs: Sequence[tuple[str, str]], *, group: int, name: str
) -> dict[tuple[str, str], tuple[float | None, str]]:
    """Log-probability of every pair, or None and why there is none; tells how far it is, now and then.

    The longest come first, so that memory runs out at once or never, and batches hold pairs of like length.
    """
    lengths = [max(map(len, pair)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda n: -lengths[n])
    found: dict[tuple[str, str], tuple[float | None, str]] = {}
    started = told = time.monotonic()
    total, done = sum(lengths), 0
    for begin in range(0, len(order), group):
        here = order[begin : begin + group]
        scores = scorer.score(params, [pairs[n][0] for n in here], [pairs[n][1] for n in here])
        for n, item in zip(here, scores, strict=True):
            found[pairs[n]] = (None, item.note) if item.note else (round(item.log_prob, 6), "")
        done += sum(lengths[n] for n in here)
        now = time.monotonic()
        if now - told > PAUSE and done:
            told, left = now, (now - started) * (total - done) / done
            say(f"{name}: {begin + len(here)} of {len(pairs)} pairs scored, eta {format_duration(left)}")
    return found


def _count(
    items: Sequence[Hypothesis], columns: Sequence[tuple[str, int]], references: Sequence[str], metric: CorpusMetric
) -> tuple[Lists, np.ndarray]:
    """The lists as arrays, and their totals; a segment without a list counts as one with a blank hypothesis."""
    groups = group_segments(items)
    missing = [n for n in range(len(references)) if n not in groups]
    if missing:
        say(f"{len(missing)} of {len(references)} segments have no list and count as blank (the first: {missing[0]})")
    every = [*items, *(Hypothesis(n, "", {}, 0.0) for n in missing)]
    sizes = np.array([*(len(places) for places in groups.values()), *(1 for _ in missing)])
    statistics = metric.count([item.text for item in every], [references[item.segment] for item in every])
    return Lists(make_matrix(every, columns), statistics, sizes), np.array([item.total for item in every])


def _tune(lists: Lists, totals: np.ndarray, own: int, metric: CorpusMetric, report: dict[str, Any]) -> np.ndarray:
    """Tuned weights; the start is what the totals were made of, as far as the lists' own features say it."""
    start = np.zeros(lists.features.shape[1])
    start[:own] = fit_totals(dataclasses.replace(lists, features=lists.features[:, :own]), totals)
    begun = told = time.monotonic()

    def tell(number: int, loss: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > PAUSE:
            told = now
            left = (now - begun) / number * (RESTARTS + 1 - number)
            say(f"tuning: start {number} of {RESTARTS + 1}, {metric.name} {abs(loss):.2f}, eta {format_duration(left)}")

    tuned = tune(lists, metric.loss, start, tell=tell)
    if len(lists.sizes) > 1:
        say(f"tuned in {format_duration(time.monotonic() - begun)}; now on each half for the other")
        report["scores"]["cross_validated"] = abs(cross_validate(lists, metric.loss, start))
    return tuned.weights


def _judge(lists: Lists, weights: np.ndarray, metric: CorpusMetric, report: dict[str, Any]) -> None:
    """Adds the scores of the system's own choice (the first of each list), of the new one, and of the best one."""
    chosen = lists.choose(weights)
    for name, rows in (
        ("before", lists.rows[:, 0]),
        ("after", chosen),
        ("oracle", find_oracle(lists, metric.loss, start=chosen)),
    ):
        report["scores"][name] = float(metric.score(lists.add(rows)))


def _name_weights(columns: Sequence[tuple[str, int]], weights: np.ndarray) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for (name, _), weight in zip(columns, weights, strict=True):
        found.setdefault(name, []).append(float(weight))
    return found


def _write(
    items: Sequence[Hypothesis],
    columns: Sequence[tuple[str, int]],
    weights: np.ndarray,
    report: dict[str, Any],
    request: Request,
    lines: int,
) -> None:
    """The lists by their new totals, the best of each, and weights that were tuned."""
    totals = make_matrix(items, columns) @ weights
    groups = group_segments(items)
    best = [""] * max(lines, max(groups) + 1)
    read = (request.lists, request.source, request.reference, request.weights)
    best_name = f"{request.output}.1best"
    with open_output(request.output, apart_from=read) as output, open_output(best_name, apart_from=read) as first:
        for segment, places in groups.items():
            ranked = sorted(places, key=lambda place: -totals[place])  # of equal ones the system's order
            best[segment] = items[ranked[0]].text
            for place in ranked:
                output.write(render_line(dataclasses.replace(items[place], total=round(float(totals[place]), 9))))
        first.writelines(line + "\n" for line in best)
    report["files"] = [request.output, best_name]
    if request.weights is None:
        kept = ("metric", "signature", "scores", "weights", "models")
        write_json(f"{request.output}.weights.json", {name: report[name] for name in kept})
        report["files"].append(f"{request.output}.weights.json")


def render(report: dict[str, Any]) -> str:
    """The report in words: the 1-best's score before and after, the best possible one, and the weights."""
    lines = [f"{report['segments']} segments, {report['hypotheses']} hypotheses"]
    named = {
        "before": "before (first of each list)",
        "after": "after",
        "cross_validated": "after, weights of the other half",
        "oracle": "oracle (best choice)",
    }
    if report["scores"]:
        lines.append(f"{report['metric']} of the 1-best ({report['signature']}):")
        lines += [f"  {text:34s}{report['scores'][n]:7.2f}" for n, text in named.items() if n in report["scores"]]
    lines.append("weights:")
    for name, values in report["weights"].items():
        lines.append(f"  {name or '(no name)':34s}" + " ".join(f"{value:8.4f}" for value in values))
    return "\n".join([*lines, "written: " + ", ".join(report["files"])])
