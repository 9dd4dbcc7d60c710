"""One self-contained HTML page about one or two systems: nothing in it is fetched, all text in it is escaped."""

from __future__ import annotations

import base64
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from seq2seq_jax.evaluate.charts import Curve, draw_bars, draw_curves
from seq2seq_jax.evaluate.markup import Content, Markup, element, join, table
from seq2seq_jax.evaluate.report_style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Even a browser that found an address in the page would not go there."""

METRICS = {"BLEU": "BLEU", "chrF2": "chrF"}
SURE = 0.05


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a report tells of a run besides its translations.

    Attributes:
        name: as in the comparison.
        facts: what → value, both as people read them.
        curves: "loss", "dev_loss", "dev_bleu" → steps and values; empty where nothing was logged.
        pictures: title and PNG of the attention over some sentences.
    """

    name: str
    facts: Mapping[str, str]
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    pictures: Sequence[tuple[str, bytes]]


def render_page(
    comparison: Mapping[str, Any],
    runs: Sequence[RunFacts] = (),
    *,
    keys: Mapping[str, Sequence[Any]] | None = None,
    made_by: str = "",
) -> str:
    """The page.

    Args:
        comparison: what `compare_systems` returned.
        runs: of the systems, in their order; empty for plain files.
        keys: config key → its value in each run, those worth showing.
        made_by: versions, for the foot of the page.
    """
    names = comparison["systems"]
    title = " against ".join(names) if len(names) > 1 else f"Translations of {names[0]}"
    sections: list[tuple[str, str, Markup | None]] = [
        ("scores", "Scores", _show_scores(comparison)),
        ("training", "Training", _show_training(runs)),
        ("buckets", "By length and by word frequency", _show_buckets(comparison)),
        ("differences", "Where they differ most", _show_differences(comparison)),
        ("worst", "Worst sentences", _show_worst(comparison)),
        ("ngrams", "N-grams", _show_ngrams(comparison)),
        ("attention", "Attention", _show_attention(runs)),
        ("config", "Config" if len(names) == 1 else "Config: what differs", _show_keys(keys, names)),
        ("runs", "Runs", _show_runs(runs)),
    ]
    return frame_page(title, f"{comparison['sentences']:,} sentences.", sections, made_by=made_by)


def frame_page(title: str, note: str, sections: Sequence[tuple[str, str, Markup | None]], *, made_by: str = "") -> str:
    """A page of sections, with links to them.

    Args:
        title: its heading.
        note: a line below it.
        sections: of each the anchor, the heading and what is in it; None is left out.
        made_by: versions, for the foot of the page.
    """
    kept = [(key, name, body) for key, name, body in sections if body is not None]
    links = [element("li", element("a", name, attributes={"href": f"#{key}"})) for key, name, _ in kept]
    parts = [element("section", element("h2", name), body, attributes={"id": key}) for key, name, body in kept]
    head = join(
        element("meta", attributes={"charset": "utf-8"}),
        element("meta", attributes={"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("a", f"Skip to {kept[0][1]}", attributes={"class": "skip", "href": f"#{kept[0][0]}"}),
        element("h1", title),
        element("p", note, attributes={"class": "note"}),
        element("nav", element("ul", *links), attributes={"aria-label": "Sections"}),
        element("main", *parts),
        element("footer", element("p", made_by, attributes={"class": "note"})),
    )
    return "<!DOCTYPE html>\n" + element("html", element("head", head), body, attributes={"lang": "en"}) + "\n"


def tell_verdict(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """What the test of one metric says, in words; empty for one system."""
    if row["p_value"] is None:
        return ""
    first, second = (system["score"] for system in row["systems"])
    if row["p_value"] >= SURE or first == second:
        return "no difference shown"
    return f"{names[second > first]} is better"


def _show_scores(comparison: Mapping[str, Any]) -> Markup:
    names, rows = comparison["systems"], comparison["scores"]
    paired = len(names) > 1
    lines: list[list[Content]] = []
    for row in rows:
        cells: list[Content] = [METRICS.get(row["name"], row["name"])]
        cells += [f"{system['score']:.2f} ± {system['interval']:.2f}" for system in row["systems"]]
        lines.append(cells + ([f"{row['p_value']:.4f}", tell_verdict(row, names)] if paired else []))
    head: list[Content] = ["metric", *names, *(["p", "verdict"] if paired else [])]
    how = "± is half of the 95 % confidence interval, by bootstrap resampling."
    if paired:
        how += f" p is that of the paired test; below {SURE} a difference counts as shown."
    signatures = [element("li", element("code", row["signature"])) for row in rows]
    return join(table(head, lines, caption=how), element("p", "Signatures:"), element("ul", *signatures))


def _show_training(runs: Sequence[RunFacts]) -> Markup | None:
    charts = []
    wanted = {"loss": "Training loss", "dev_loss": "Loss on dev", "dev_bleu": "BLEU on dev"}
    for key, title in wanted.items():
        curves = [Curve(run.name, *run.curves[key]) for run in runs if key in run.curves]
        label = "BLEU" if key == "dev_bleu" else "loss"
        charts.append(draw_curves(curves, title=title, x_label="step", y_label=label))
    return element("div", *charts, attributes={"class": "charts"}) if any(charts) else None


def _show_buckets(comparison: Mapping[str, Any]) -> Markup:
    names, lengths, words = comparison["systems"], comparison["lengths"], comparison["words"]
    by_length = f"BLEU by length of the {lengths['of']}"
    by_count = f"F1 of words by their count in the {words['counted_in']}"
    charts = [
        draw_bars(
            [row["label"] for row in lengths["buckets"]],
            [row["bleu"] for row in lengths["buckets"]],
            names,
            title=by_length,
            x_label=lengths["unit"],
            y_label="BLEU",
        ),
        draw_bars(
            [row["label"] for row in words["buckets"]],
            [row["f1"] for row in words["buckets"]],
            names,
            title=by_count,
            x_label="count",
            y_label="F1",
        ),
    ]
    tables = [
        table(
            [lengths["unit"], "sentences", *names],
            [[row["label"], f"{row['sentences']:,}", *_decimals(row["bleu"])] for row in lengths["buckets"]],
            caption=by_length,
        ),
        table(
            ["count", "words", *names],
            [[row["label"], f"{row['words']:,}", *_decimals(row["f1"])] for row in words["buckets"]],
            caption=by_count,
        ),
    ]
    return join(
        element("div", *charts, attributes={"class": "charts"}),
        element("details", element("summary", "The same as tables"), *tables),
    )


def _show_differences(comparison: Mapping[str, Any]) -> Markup | None:
    names = comparison["systems"]
    if not any(comparison["differences"]):
        return None
    note = "Words that the reference does not have in that place are marked; sentences are ranked by chrF."
    parts = [element("p", note, attributes={"class": "note"})]
    for name, rows in zip(names, comparison["differences"], strict=True):
        if rows:
            parts += [element("h3", f"{name} is better"), *(_show_sentence(row, names) for row in rows)]
    return join(*parts)


def _show_worst(comparison: Mapping[str, Any]) -> Markup:
    names = comparison["systems"]
    parts = []
    for name, rows in zip(names, comparison["worst"], strict=True):
        summary = element("summary", f"The {len(rows)} sentences of the lowest chrF of {name}")
        parts.append(element("details", summary, *(_show_sentence(row, names) for row in rows)))
    return join(*parts)


def _show_sentence(row: Mapping[str, Any], names: Sequence[str]) -> Markup:
    parts: list[Content] = []
    if row["source"] is not None:
        parts += [element("dt", "source"), element("dd", row["source"])]
    parts += [element("dt", "reference"), element("dd", row["reference"])]
    for name, text, score in zip(names, row["hypotheses"], row["chrf"], strict=True):
        told = mark_words(text, row["reference"]) if text.strip() else element("em", "(empty)")
        parts += [element("dt", f"{name} ({score:.1f})"), element("dd", told)]
    return element("article", element("h4", f"Sentence {row['number']:,}"), element("dl", *parts))


def mark_words(text: str, reference: str) -> Markup:
    """The text with `<mark>` around runs of words that the reference does not have in that place."""
    words, wanted = text.split(), reference.split()
    parts: list[Content] = []
    for kind, start, stop, _, _ in difflib.SequenceMatcher(None, words, wanted, autojunk=False).get_opcodes():
        if stop > start:
            piece = " ".join(words[start:stop])
            parts += [" " if parts else None, piece if kind == "equal" else element("mark", piece)]
    return join(*parts)


def _show_ngrams(comparison: Mapping[str, Any]) -> Markup:
    names, grams = comparison["systems"], comparison["ngrams"]
    parts = []
    for name, over, under in zip(names, grams["over"], grams["under"], strict=True):
        parts.append(_list_ngrams(f"{name} says too often", over))
        parts.append(_list_ngrams(f"{name} says too seldom", under))
    for name, rows in zip(names, grams["better"], strict=False):
        lines: list[list[Content]] = [[row["ngram"], *map(str, row["counts"])] for row in rows]
        parts.append(table(["n-gram", *names], lines, caption=f"{name} gets right more often") if lines else None)
    return element("div", *parts, attributes={"class": "charts"})


def _list_ngrams(caption: str, rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    lines: list[list[Content]] = [[row["ngram"], f"{row['count']:,}"] for row in rows]
    return table(["n-gram", "times"], lines, caption=caption) if lines else None


def _show_attention(runs: Sequence[RunFacts]) -> Markup | None:
    figures = []
    for run in runs:
        for title, picture in run.pictures:
            data = "data:image/png;base64," + base64.b64encode(picture).decode()
            told = f"{run.name}: {title}"
            image = element("img", attributes={"src": data, "alt": f"Attention of {told}", "loading": "lazy"})
            figures.append(element("figure", image, element("figcaption", told)))
    return element("div", *figures, attributes={"class": "charts"}) if figures else None


def _show_keys(keys: Mapping[str, Sequence[Any]] | None, names: Sequence[str]) -> Markup | None:
    if not keys:
        return None
    lines: list[list[Content]] = [[element("code", key), *map(str, values)] for key, values in keys.items()]
    caption = "Keys that differ from their defaults" if len(names) == 1 else "Keys that differ between the two"
    return table(["config", *names], lines, caption=caption, numbers=99)


def _show_runs(runs: Sequence[RunFacts]) -> Markup | None:
    if not runs:
        return None
    rows = list(dict.fromkeys(name for run in runs for name in run.facts))
    lines: list[list[Content]] = [[name, *(run.facts.get(name, "?") for run in runs)] for name in rows]
    return table(["", *(run.name for run in runs)], lines, caption="What the runs say of themselves", numbers=99)


def _decimals(values: Sequence[float]) -> list[str]:
    return [f"{value:.1f}" for value in values]
