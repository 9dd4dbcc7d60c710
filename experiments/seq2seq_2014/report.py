"""The study's report: one self-contained HTML page, and the pictures on it as PNG files.

    python experiments/seq2seq_2014/report.py --out=runs/seq2seq_2014

Reads the finished runs in OUT, and the tables of OUT/tables.json (`tables.make_tables`) where they are there:

    {"tables": [{"key": "beams", "title": "...", "note": "...", "columns": ["system", "BLEU here", ...],
                 "rows": [["5 reversed", 7.31, ...], ...]}, ...]}

Makes what is missing in OUT/scores (`analyses.make_analyses`), and writes OUT/report.html, OUT/figures.json with the
numbers of its charts, and OUT/pictures/*.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from analyses import find_finished, find_rare_words, group_runs, make_analyses, read_curve, read_training
from claims import PERPLEXITIES
from figures import (
    Sorted,
    average,
    compare_spaces,
    draw_planes,
    draw_sorted,
    list_pairs,
    place_sentences,
    share_nearer,
    sort_tests,
)
from probes import PICTURES, Picture, list_probes
from programs import call
from runs import CORPORA, SEEDS, Run
from significance import bound_mean
from tables import TITLES, render_cell

from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.charts import Curve, Point, draw_curves, draw_plane
from seq2seq_jax.evaluate.markup import Content, Markup, element, join, table
from seq2seq_jax.evaluate.report import frame_page
from seq2seq_jax.evaluate.sentence_space import Distances
from seq2seq_jax.provenance import versions
from seq2seq_jax.train.writers import replace_text, write_json

NTH = ("first", "second")
FIRST_SHARE = 10  # of a training loss the first tenth is not drawn: it would leave no room for the rest

Section = tuple[str, str, Markup | None]


def main(argv: Sequence[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/seq2seq_2014"), help="folder of the study")
    out = parser.parse_args(argv[1:]).out

    def work() -> int:
        print(write_report(out))
        return 0

    return call("report.py", work)


def write_report(out: Path) -> Path:
    """Writes the page, its pictures and its numbers; returns the page's path.

    Raises:
        UserError: no run is finished, or tables.json cannot be read.
    """
    runs, tables = find_finished(out), read_tables(out / "tables.json")
    if not runs:
        raise UserError(f"{out}: holds no finished run of the study; make one with run.py, or name its folder (--out).")
    make_analyses(runs, out)
    sections: list[Section] = [("tables", "Beside the paper", _show_tables(tables))]
    numbers: dict[str, Any] = {}
    for corpus in CORPORA:
        if any(run.corpus == corpus for run in runs):
            found, numbers[corpus] = _tell_corpus(runs, corpus, out)
            sections += found
    sections.append(("conditions", "What differs from the paper", _tell_conditions()))
    write_json(out / "figures.json", numbers)
    made_by = ", ".join(f"{name} {version}" for name, version in versions().items())
    note = f"Sutskever, Vinyals and Le 2014 (arXiv 1409.3215) at the size of two CPU cores: {len(runs)} models."
    page = frame_page("Sequence to sequence learning, ten years on", note, sections, made_by=f"Made with {made_by}.")
    replace_text(out / "report.html", page)
    return out / "report.html"


def read_tables(path: Path) -> Mapping[str, Any]:
    """The comparisons; nothing where there is no such file.

    Raises:
        UserError: it is not as the docstring above says.
    """
    if not path.is_file():
        return {"tables": []}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for each in found["tables"]:
            if any(len(row) != len(each["columns"]) for row in each["rows"]):
                raise ValueError(f"a row of {each['title']!r} has not as many cells as columns")
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: must hold tables, but does not ({problem}); let run.py write it again.") from error
    return found


def _show_tables(tables: Mapping[str, Any]) -> Markup | None:
    parts: list[Content] = []
    for each in tables["tables"]:
        parts.append(element("h3", each["title"]))
        parts.append(element("p", each["note"]) if each.get("note") else None)
        rows = [[render_cell(cell) for cell in row] for row in each["rows"]]
        parts.append(table(list(each["columns"]), rows, caption=each["title"]))
    return join(*parts) if parts else None


def _tell_corpus(runs: Sequence[Run], corpus: str, out: Path) -> tuple[list[Section], dict[str, Any]]:
    """The sections of a corpus and their numbers; its pictures are written."""
    groups, title = group_runs(runs, corpus), TITLES[corpus]
    along = sort_tests(runs, corpus, out)
    spaces = compare_spaces(runs, corpus, out)
    nearer = share_nearer(groups.get("reversed", []), corpus, out)
    shown = next((run for run in runs if (run.corpus, run.name) == (corpus, "reversed")), None)
    planes = [] if shown is None else [(each, *place_sentences(shown, each, out)) for each in PICTURES[corpus]]
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    if planes:
        picture = draw_planes([(each, points) for each, points, _ in planes])
        (out / "pictures" / f"vectors_{corpus}.png").write_bytes(picture)
    if along:
        (out / "pictures" / f"lengths_{corpus}.png").write_bytes(draw_sorted(along))
    sections: list[Section] = [
        (f"{corpus}-curves", f"Learning curves: {title}", _show_curves(groups, out)),
        (f"{corpus}-lengths", f"By length and by rarity (the paper's figure 3): {title}", _show_sorted(along)),
        (
            f"{corpus}-vectors",
            f"Sentence vectors (the paper's figure 2): {title}",
            _show_vectors(corpus, shown, planes, spaces, nearer, read_training(runs, corpus, out)),
        ),
    ]
    numbers = {
        "sorted": {each.key: _list_sorted(each) for each in along},
        "distances": {
            name: {" and ".join(pair): [dataclasses.asdict(each) for each in found] for pair, found in pairs.items()}
            for name, pairs in spaces.items()
        },
    }
    return sections, numbers


def _list_sorted(found: Sorted) -> dict[str, Any]:
    measures = {"bleu": found.bleu, "perplexity": found.perplexity}
    listed = {key: {name: values.tolist() for name, values in of.items()} for key, of in measures.items()}
    return {"ranges": found.ranges, "x": found.x, **listed}


def tell_mean(values: Sequence[float] | np.ndarray, measure: str = "") -> str:
    """ "5.05 ± 0.20"; of one value that alone. Of "perplexity" the mean is the geometric one (`figures.average`)."""
    mean = f"{average(measure, np.asarray(values)):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def _show_curves(groups: Mapping[str, Sequence[Run]], out: Path) -> Markup | None:
    charts = []
    wanted = {"loss": ("Training loss", "loss"), "dev_perplexity": ("Perplexity on dev", "perplexity")}
    for key, (title, label) in wanted.items():
        curves = []
        for name in SEEDS:
            found = [read_curve(run, out, key) for run in groups.get(name, ())]
            found = [each for each in found if each[0] and each[0] == found[0][0]]
            if found:
                values = np.array([each[1] for each in found])
                start = values.shape[1] // FIRST_SHARE if key == "loss" else 0
                deviations = values.std(axis=0, ddof=1)[start:].tolist() if len(found) > 1 and key != "loss" else []
                means = average(label, values)[start:].tolist()
                curves.append(Curve(name, found[0][0][start:], means, deviations))
        charts.append(draw_curves(curves, title=f"{title}, mean over seeds", x_label="step", y_label=label))
    return element("div", *charts, attributes={"class": "charts"}) if any(charts) else None


def _show_sorted(along: Sequence[Sorted]) -> Markup | None:
    if not along:
        return None
    charts, tables = [], []
    for each in along:
        for name, measure in each.list_measures():
            title = f"{name} by {each.key}"
            charts.append(draw_curves(each.make_curves(name), title=title, x_label=each.x_label, y_label=name))
            rows: list[list[Content]] = [
                [text, *(tell_mean(found[:, n], name) for found in measure.values())]
                for n, text in enumerate(each.ranges)
            ]
            tables.append(table([each.key, *measure], rows, caption=f"{title}: mean ± standard deviation over seeds"))
    note = (
        "The test set sorted and cut into parts of equal counts; each stands at its mean. Bars are standard "
        "deviations over seeds; means of perplexities are geometric. Rarity is the average frequency rank of a "
        "sentence's words in the training text."
    )
    return join(
        element("p", note),
        element("div", *charts, attributes={"class": "charts"}),
        element("details", element("summary", "The same as tables"), *tables),
    )


def _show_vectors(
    corpus: str,
    run: Run | None,
    planes: Sequence[tuple[Picture, Sequence[Point], np.ndarray]],
    spaces: Mapping[str, Mapping[tuple[str, str], Sequence[Distances]]],
    nearer: Mapping[tuple[str, str], np.ndarray],
    training: Sequence[str] | None,
) -> Markup:
    charts = []
    for picture, points, shares in planes:
        axes = [f"{axis} component ({share:.0%} of the variance)" for axis, share in zip(NTH, shares, strict=True)]
        charts.append(draw_plane(points, picture.names, title=picture.title, x_label=axes[0], y_label=axes[1]))
    parts = [
        element(
            "p",
            "The vector of a sentence is what the encoder's layers put out at its end, all of them side by side; of "
            "the model with attention, which has no such state, the mean of the encoder's outputs. "
            + (f"The pictures are of {run.label}, in two principal components." if run else ""),
        ),
        element("div", *charts, attributes={"class": "charts planes"}) if charts else None,
        _show_distances(corpus, spaces),
        *(element("p", text) for text in tell_spaces(nearer)),
    ]
    if corpus == "phrasebook":
        parts.append(element("p", "The phrasebook has no passive: its sentences say nothing about voice."))
    if training is not None:
        told = ", ".join(f"“{word}” ({count:,})" for word, count in find_rare_words(corpus, training))
        parts.append(element("p", f"The rarest of the sentences' words, with their counts in training: {told}."))
    return join(*parts)


def _show_distances(corpus: str, spaces: Mapping[str, Mapping[tuple[str, str], Sequence[Distances]]]) -> Markup:
    pairs = list_pairs(corpus)
    head: list[Content] = ["vectors of"]
    for _, other in pairs:
        head += [f"same meaning, {other}", "same words, other meaning", f"nearer ({other})"]
    rows: list[list[Content]] = []
    for name in (*SEEDS, "bag of words"):
        if name in spaces:
            cells: list[Content] = [PERPLEXITIES[name][0] if name in PERPLEXITIES else name]
            for pair in pairs:
                found = spaces[name][pair]
                cells += [tell_mean([each.same_meaning for each in found])]
                cells += [tell_mean([each.same_words for each in found])]
                cells += [tell_mean([100 * each.nearer for each in found]) + " %"]
            rows.append(cells)
    caption = (
        f"Distances over {len(list_probes(corpus))} sentences, in units of the mean distance between different scenes. "
        "“Nearer” is how often the other form of the same meaning is nearer than that form's words in another order: "
        "50 % for chance and for a bag of words."
    )
    return table(head, rows, caption=caption)


def tell_spaces(nearer: Mapping[tuple[str, str], np.ndarray]) -> list[str]:
    """What the distances say, for each pair of forms.

    Args:
        nearer: pair of forms → `[seeds, scenes]`, see `figures.share_nearer`.
    """
    told = []
    for (_, other), shares in nearer.items():
        if not shares.size:
            continue
        low, high = bound_mean(shares)
        start = (
            f"Source reversed, {other}: in {shares.mean():.0%} of the cases the same meaning is nearer than the same "
            f"words in another order (95 % over seeds and scenes: {low:.0%} to {high:.0%})"
        )
        if low > 0.5:
            told.append(f"{start}, as in the paper's figure.")
        elif high < 0.5:
            told.append(
                f"{start}, unlike in the paper's figure: the vector follows the order of the nouns more than who does "
                "what."
            )
        else:
            told.append(f"{start}: hardly other than chance.")
    return told


def _tell_conditions() -> Markup:
    points = (
        "12 million pairs of WMT'14 and 384 million weights became thirty thousand pairs and 2,066,336 weights "
        "(Multi30k) or 1,103,836 (the phrasebook): numbers are to be compared within this page, and with the paper's "
        "differences and ratios, not with its scores.",
        "Adam instead of SGD without momentum, and the toolkit's own initialisation: there is time for a few epochs "
        "only. Layers are 128 wide, not 1,000.",
        "BLEU counts words between blanks on Multi30k, as the paper does on newstest2014; on the phrasebook it is "
        "sacreBLEU's own.",
        "Perplexity counts every token of the references with the end of the sentence; rare words are <unk>.",
    )
    return element("ul", *(element("li", point) for point in points))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
