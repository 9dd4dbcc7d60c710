"""Weighs a phrase-based system's n-best lists with models that have read them, as Sutskever et al. 2014 do.

    python experiments/seq2seq_2014/rescoring.py --out=OUT --name=NAME

`NAME` is one of `scores.MIXES`, or "oracle"; or "cut", which writes the lists that models read, the first
`scores.LIST_LENGTH` of each (OUT/scores/multi30k/lists/{val,test}.nbest). Of every hypothesis there is the system's
total and the log-probability by each model (RUN.{val,test}.nbest beside those lists); several models count as the mean
of theirs, which is an ensemble's log-probability up to what makes it a distribution. Written to OUT/scores/multi30k:

- average-NAME.txt: the best of each test list by the even average of the total and the log-probability, the paper's way
- tuned-NAME.txt: by the two weights that are best on val (minimum error rate training, Och 2003)
- rescored-NAME.json: the weights and the scores on val; the last to be written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from programs import call
from scores import LIST_LENGTH, MIXES, Place, read_lines
from significance import choose_metric

from seq2seq_jax.data.nbest import Hypothesis, group_segments, read_nbest, render_line
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.corpus_metric import CorpusMetric
from seq2seq_jax.evaluate.tuning import Lists, find_oracle, tune
from seq2seq_jax.train.writers import replace_text, write_json

EVEN = np.array([0.5, 0.5])
"""Weights of the system's total and of the models."""


def read_lists(place: Place, labels: Sequence[str], split: str) -> tuple[list[Hypothesis], np.ndarray]:
    """The system's hypotheses, list by list, and their `[N, 2]` totals and mean log-probabilities.

    Without models there are totals alone, `[N, 1]`.

    Raises:
        UserError: a model has read other lists, or its feature is not in them.
    """
    path = place.find_list(split)
    items = read_nbest(path)
    items = [items[n] for places in group_segments(items).values() for n in places]
    columns = []
    for label in labels:
        scored = place.find_scored(label, split)
        # The model's feature is named after its folder and stands behind the system's own; the order is another.
        try:
            found = {(item.segment, item.text): item.features[label][0] for item in read_nbest(scored)}
            columns.append([found[item.segment, item.text] for item in items])
        except KeyError as error:
            raise UserError(f"{scored}: is not of {path}: it has no {error}; remove it and run this again.") from error
    totals = np.array([item.total for item in items])
    return items, np.stack([totals, *([np.mean(columns, axis=0)] if columns else [])], axis=1)


def make_lists(
    items: Sequence[Hypothesis], features: np.ndarray, references: Sequence[str], metric: CorpusMetric
) -> Lists:
    """The lists as arrays that weights are tuned on."""
    sizes = [len(places) for places in group_segments(items).values()]
    statistics = metric.count([item.text for item in items], [references[item.segment] for item in items])
    return Lists(features, statistics, np.array(sizes))


def write_best(items: Sequence[Hypothesis], rows: np.ndarray, lines: int, path: Path) -> None:
    """The chosen hypotheses, a line for each sentence; a sentence without a list has a blank one."""
    best = [""] * lines
    for row in rows:
        best[items[row].segment] = items[row].text
    replace_text(path, "".join(line + "\n" for line in best))


def cut_lists(out: Path) -> None:
    """Writes the first hypotheses of every list."""
    place = Place(out, "multi30k")
    for split in ("val", "test"):
        items = read_nbest(out / "smt" / f"{split}.nbest")
        kept = [items[n] for places in group_segments(items).values() for n in places[:LIST_LENGTH]]
        place.find_list(split).parent.mkdir(parents=True, exist_ok=True)
        replace_text(place.find_list(split), "".join(map(render_line, kept)))


def rescore(out: Path, name: str) -> None:
    """Writes what this file's head says."""
    place, metric = Place(out, "multi30k"), choose_metric("multi30k")
    references = {split: read_lines(out / "text" / "multi30k" / f"{split}.fr") for split in ("val", "test")}
    lines = len(references["test"])
    labels = MIXES.get(name, ())
    items, features = read_lists(place, labels, "test")
    report: dict[str, object] = {"models": list(labels), "metric": metric.signature}
    if not labels:  # "oracle"
        lists = make_lists(items, features, references["test"], metric)
        write_best(items, find_oracle(lists, metric.loss), lines, place.folder / "oracle.txt")
        report["hypotheses"] = len(items) / len(lists.sizes)
    else:
        test = Lists(features, np.zeros((len(items), 1)), np.array([len(p) for p in group_segments(items).values()]))
        write_best(items, test.choose(EVEN), lines, place.folder / f"average-{name}.txt")
        val, held = read_lists(place, labels, "val")
        lists = make_lists(val, held, references["val"], metric)
        tuned = tune(lists, metric.loss, EVEN)
        write_best(items, test.choose(tuned.weights), lines, place.folder / f"tuned-{name}.txt")
        ways = {"before": np.array([1.0, 0.0]), "average": EVEN, "tuned": tuned.weights}
        report["val"] = {way: float(metric.score(lists.add(lists.choose(weights)))) for way, weights in ways.items()}
        report["weights"] = {"total": float(tuned.weights[0]), "models": float(tuned.weights[1])}
    write_json(place.folder / f"rescored-{name}.json", report)


def main() -> int:
    """Weighs one mix; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", choices=("cut", "oracle", *MIXES), required=True)
    given = parser.parse_args()
    if given.name == "cut":
        cut_lists(given.out.absolute())
    else:
        rescore(given.out.absolute(), given.name)
    return 0


if __name__ == "__main__":
    sys.exit(call("rescoring.py", main))
