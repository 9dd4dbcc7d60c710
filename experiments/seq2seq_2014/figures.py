"""The study's figures: numbers of figures 2 and 3 of the paper, as charts for the page and as PNG files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from analyses import group_runs, read_scores, read_side, read_training, read_vectors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from probes import FORMS, Picture, list_probes
from runs import Run
from scores import COMPARED
from significance import choose_metric

from seq2seq_jax.evaluate.charts import Curve, Point
from seq2seq_jax.evaluate.sentence_space import Distances, Probe, count_words, measure_distances, project
from seq2seq_jax.evaluate.sorted_parts import (
    average_ranks,
    count_lengths,
    measure_perplexity,
    rank_words,
    score_parts,
    split_evenly,
)

PARTS = 8
"""Of the sorted test set: of 1,000 sentences each has 125."""

SHOWN = ("reversed", "forward", "attention")
COLOURS = ("#1f5fbf", "#b3470b", "#1b7a43", "#8a3fa0")


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Scores along a sorted test set.

    Attributes:
        key: "length" or "rarity".
        x_label: what the test set is sorted by.
        ranges: of the key, for each part.
        x: mean key of each part.
        bleu, perplexity: name → `[seeds, parts]`.
    """

    key: str
    x_label: str
    ranges: list[str]
    x: list[float]
    bleu: dict[str, np.ndarray]
    perplexity: dict[str, np.ndarray]

    def list_measures(self) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Both measures with their names."""
        return [("BLEU", self.bleu), ("perplexity", self.perplexity)]

    def make_curves(self, measure: str) -> list[Curve]:
        """Means over seeds (`average`) of a measure, with their standard deviations."""
        measures = dict(self.list_measures())[measure].items()
        return [Curve(name, self.x, average(measure, found).tolist(), spread(found)) for name, found in measures]


def average(measure: str, found: np.ndarray) -> np.ndarray:
    """Means over seeds, the first axis: of perplexities the geometric ones, as in the tables."""
    return np.asarray(np.exp(np.log(found).mean(axis=0)) if measure == "perplexity" else found.mean(axis=0))


def spread(found: np.ndarray) -> list[float]:
    """The standard deviation over seeds, `[parts]`; nothing for one seed."""
    return found.std(axis=0, ddof=1).tolist() if len(found) > 1 else []


def sort_tests(runs: Sequence[Run], corpus: str, out: Path, *, names: Sequence[str] = SHOWN) -> list[Sorted]:
    """Figure 3: BLEU and perplexity by length, and by rarity where the training text can be had."""
    groups = {name: found[:COMPARED] for name, found in group_runs(runs, corpus).items() if name in names}
    if len(groups) < 2:
        return []
    first = next(iter(groups.values()))[0]
    sources, references = (read_side(first, out, side) for side in ("source", "references"))
    training = read_training(runs, corpus, out)
    keys = [("length", "words in the source", count_lengths(sources))]
    if training is not None:
        ranks = average_ranks(sources, rank_words(training))
        keys.append(("rarity", "average frequency rank of the source's words", ranks))
    said = {name: [read_side(run, out, "hypotheses") for run in own] for name, own in groups.items()}
    scores = {name: [read_scores(run, out) for run in own] for name, own in groups.items()}
    found, metric = [], choose_metric(corpus)
    for key, x_label, values in keys:
        parts = split_evenly(values, min(PARTS, len(sources)))
        found.append(
            Sorted(
                key,
                x_label,
                [f"{part.low:,.0f}–{part.high:,.0f}" for part in parts],
                [part.mean for part in parts],
                {
                    name: np.array([score_parts(parts, lines, references, metric) for lines in own])
                    for name, own in said.items()
                },
                {name: np.array([measure_perplexity(parts, *each) for each in own]) for name, own in scores.items()},
            )
        )
    return found


def place_sentences(run: Run, picture: Picture, out: Path) -> tuple[list[Point], np.ndarray]:
    """Figure 2: points of a picture's sentences, and each axis's share of the variance."""
    vectors = read_vectors(run, out)
    points, shares = project(np.array([vectors[text] for text, _ in picture.sentences]))
    labelled = [Point(x, y, text, group) for (x, y), (text, group) in zip(points, picture.sentences, strict=True)]
    return labelled, shares


def list_pairs(corpus: str) -> list[tuple[str, str]]:
    """The plain form with each other form."""
    plain, *others = FORMS[corpus]
    return [(plain, other) for other in others]


def compare_spaces(runs: Sequence[Run], corpus: str, out: Path) -> dict[str, dict[tuple[str, str], list[Distances]]]:
    """Name (and "bag of words") → pair of forms → distances for every seed."""
    probes, found = list_probes(corpus), {}
    for name, own in group_runs(runs, corpus).items():
        spaces = []
        for run in own:
            vectors = read_vectors(run, out)
            spaces.append(np.array([vectors[probe.text] for probe in probes]))
        found[name] = {
            pair: [measure_distances(space, probes, forms=pair) for space in spaces] for pair in list_pairs(corpus)
        }
    # Full stops and commas stand apart in captions; in the phrasebook they would make words of their own.
    bag = count_words([probe.text.replace(".", "").replace(",", "") for probe in probes])
    found["bag of words"] = {pair: [measure_distances(bag, probes, forms=pair)] for pair in list_pairs(corpus)}
    return found


def share_nearer(runs: Sequence[Run], corpus: str, out: Path) -> dict[tuple[str, str], np.ndarray]:
    """Pair of forms → `Distances.nearer` of every seed and scene, `[seeds, scenes]`."""
    probes = list_probes(corpus)
    vectors = [read_vectors(run, out) for run in runs]
    scenes = [[probe for probe in probes if probe.scene == scene] for scene in sorted({each.scene for each in probes})]

    def measure(of: Mapping[str, np.ndarray], own: Sequence[Probe], pair: tuple[str, str]) -> float:
        # Triples are of one scene, but the unit, which does not matter here, asks for two: a copy is the other.
        copy = [dataclasses.replace(probe, scene=-1) for probe in own]
        return measure_distances(np.array([of[each.text] for each in own] * 2), [*own, *copy], forms=pair).nearer

    return {
        pair: np.array([[measure(of, own, pair) for own in scenes] for of in vectors]) for pair in list_pairs(corpus)
    }


def draw_sorted(found: Sequence[Sorted]) -> bytes:
    """Figure 3 as a PNG: BLEU above, perplexity below."""
    figure = Figure(figsize=(4.6 * len(found), 6.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, each in enumerate(found):
        for row, (name, _) in enumerate(each.list_measures()):
            ax = axes[row, column]
            for curve, colour in zip(each.make_curves(name), COLOURS, strict=False):
                ax.errorbar(curve.x, curve.y, curve.spread or None, fmt="o-", ms=4, capsize=2, color=colour,
                            label=curve.name)  # fmt: skip
            ax.set(ylabel=name, xlabel=each.x_label, ylim=(0, None))
            ax.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False)
    return _finish(figure)


def draw_planes(pictures: Sequence[tuple[Picture, Sequence[Point]]]) -> bytes:
    """Figure 2 as a PNG, a picture beside the other."""
    figure = Figure(figsize=(7.5 * len(pictures), 4.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(pictures), squeeze=False)[0]
    for ax, (picture, points) in zip(axes, pictures, strict=True):
        _draw_plane(ax, picture, points)
    return _finish(figure)


def _draw_plane(ax: Axes, picture: Picture, points: Sequence[Point]) -> None:
    for group, name in enumerate(picture.names):
        own = [point for point in points if point.group == group]
        ax.plot([p.x for p in own], [p.y for p in own], "o", color=COLOURS[group], label=name)
    middle = (min(p.x for p in points) + max(p.x for p in points)) / 2
    near = 0.05 * (max(p.y for p in points) - min(p.y for p in points))
    below: dict[bool, float] = {}  # side → height of the label before; one that is near to it goes below its point
    for point in sorted(points, key=lambda point: -point.y):
        side = point.x > middle
        low = -10 if side in below and below[side] - point.y < near else 3
        below[side] = point.y
        ax.annotate(point.label, (point.x, point.y), xytext=(-6 if side else 6, low), textcoords="offset points",
                    ha="right" if side else "left", fontsize=8)  # fmt: skip
    ax.set(title=picture.title, xticks=[], yticks=[])
    ax.margins(0.1)
    ax.legend(frameon=False, loc="best", fontsize=8)


def _finish(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
