"""One self-contained HTML page about transcripts: what was said against what was recognised, word by word."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from seq2seq_jax.evaluate.charts import draw_bars
from seq2seq_jax.evaluate.markup import Content, Markup, element, join, table
from seq2seq_jax.evaluate.report import frame_page
from seq2seq_jax.evaluate.speech import Utterance, count_confusions, find_interval, worst

NOTHING = "∗∗∗"
"""What stands in the place of a word that is not there."""

LENGTHS = (1, 2, 3, 5, 8, 12, 20, 40)
"""Where the groups of utterances by words of the reference begin."""


def render_speech_page(
    utterances: Sequence[Utterance],
    scores: Mapping[str, float | int | str],
    *,
    names: Sequence[str],
    title: str = "Transcripts",
    facts: Mapping[str, str] | None = None,
    pictures: Sequence[tuple[str, bytes]] = (),
    most: int = 500,
    top: int = 20,
    made_by: str = "",
) -> str:
    """The page: scores, what is confused, and the utterances, those with the most errors first.

    Args:
        utterances: what `align_words` returned.
        scores: what `speech_scores` returned for the same.
        names: audio file of each utterance, by its number.
        title: its heading.
        facts: what → value of the run, both as people read them.
        pictures: title and PNG of spectrograms with attention.
        most: utterances that are shown at most.
        top: rows of the tables of confusions at most.
        made_by: versions, for the foot of the page.

    Raises:
        ValueError: there are not as many names as utterances.
    """
    if len(names) != len(utterances):
        raise ValueError(f"`names` must be as many as `utterances`, {len(utterances)}, but are {len(names)} instead.")
    sections: list[tuple[str, str, Markup | None]] = [
        ("scores", "Scores", _show_scores(scores, utterances)),
        ("lengths", "By length", _show_lengths(utterances)),
        ("confusions", "Confusions", _show_confusions(utterances, top)),
        ("utterances", "Utterances", _show_utterances(utterances, names, most)),
        ("attention", "Attention", _show_pictures(pictures)),
        ("run", "Run", _show_facts(facts)),
    ]
    return frame_page(title, f"{len(utterances):,} utterances.", sections, made_by=made_by)


def show_alignment(utterance: Utterance) -> Markup:
    """The words in order; where the two differ, the word of the reference stands over what was recognised."""
    parts: list[Content] = []
    for kind, wanted, told in utterance.steps:
        parts.append(" " if parts else None)
        if kind == "hit":
            parts.append(wanted)
            continue
        above, below = element("span", wanted or NOTHING), element("span", told or NOTHING)
        shown = {"class": f"step {kind}", "title": f"{kind}: {wanted or NOTHING} → {told or NOTHING}"}
        parts.append(element("span", above, below, attributes=shown))
    return element("p", *(parts or [element("em", "(empty)")]), attributes={"class": "aligned"})


def _show_scores(scores: Mapping[str, float | int | str], utterances: Sequence[Utterance]) -> Markup:
    errors = sum(int(scores[kind]) for kind in ("substitutions", "deletions", "insertions"))
    wrong = sum(one.errors > 0 for one in utterances)
    rates: list[list[Content]] = [
        [
            "WER: words",
            f"{scores['wer']:.2f} ± {find_interval(utterances):.2f}",
            f"{errors:,}",
            f"{scores['words']:,}",
        ],
        ["CER: characters", f"{scores['cer']:.2f}", f"{scores['character_errors']:,}", f"{scores['characters']:,}"],
        ["SER: utterances", f"{scores['sentence_error_rate']:.2f}", f"{wrong:,}", f"{scores['sentences']:,}"],
    ]
    kinds: list[list[Content]] = []
    for kind in ("hits", "substitutions", "deletions", "insertions"):
        share = 100.0 * int(scores[kind]) / max(1, int(scores["words"]))
        kinds.append([kind, f"{scores[kind]:,}", f"{share:.2f}"])
    how = "Error rates in percent; ± is half of the 95 % confidence interval, by bootstrap over utterances."
    return join(
        table(["", "error rate", "wrong", "of"], rates, caption=how),
        table(["words", "count", "% of the reference"], kinds, caption="What became of the words"),
        element("p", "Signature: ", element("code", str(scores["signature"]))),
    )


def _show_lengths(utterances: Sequence[Utterance]) -> Markup | None:
    labels: list[str] = []
    rates: list[list[float]] = []
    rows: list[list[Content]] = []
    for n, low in enumerate(LENGTHS):
        high = LENGTHS[n + 1] - 1 if n + 1 < len(LENGTHS) else None
        group = [one for one in utterances if one.words >= low and (high is None or one.words <= high)]
        if not group:
            continue
        errors, words = sum(one.errors for one in group), sum(one.words for one in group)
        labels.append(f"{low}+" if high is None else str(low) if high == low else f"{low}-{high}")
        rates.append([100.0 * errors / words])
        rows.append([labels[-1], f"{len(group):,}", f"{words:,}", f"{rates[-1][0]:.1f}"])
    if not labels:
        return None
    title = "WER by words of the reference"
    chart = draw_bars(labels, rates, ["WER"], title=title, x_label="words", y_label="WER")
    told = table(["words", "utterances", "words in all", "WER"], rows, caption=title)
    return join(element("div", chart, attributes={"class": "charts"}), told)


def _show_confusions(utterances: Sequence[Utterance], top: int) -> Markup | None:
    heads: dict[str, tuple[str, list[Content]]] = {
        "substitution": ("Taken for another word", ["said", "recognised", "times"]),
        "deletion": ("Not recognised", ["said", "times"]),
        "insertion": ("Recognised, but not said", ["recognised", "times"]),
    }
    tables = []
    for kind, rows in count_confusions(utterances, top).items():
        caption, head = heads[kind]
        lines: list[list[Content]] = [[*(word for word in row[:2] if word), f"{row[2]:,}"] for row in rows]
        tables.append(table(head, lines, caption=caption, numbers=len(head) - 1) if lines else None)
    return element("div", *tables, attributes={"class": "charts"}) if any(tables) else None


def _show_utterances(utterances: Sequence[Utterance], names: Sequence[str], most: int) -> Markup:
    shown = worst(utterances, most)
    which = (
        "All" if len(shown) == len(utterances) else f"The {len(shown):,} of {len(utterances):,} with the most errors"
    )
    note = f"{which}, those with the most errors first. Above stands what was said, below what was recognised."
    legend = []
    for kind, wanted, told in (
        ("substitution", "said", "recognised"),
        ("deletion", "said", NOTHING),
        ("insertion", NOTHING, "recognised"),
    ):
        sample = element("span", element("span", wanted), element("span", told), attributes={"class": f"step {kind}"})
        legend.append(element("span", sample, f" {kind}", attributes={"class": "entry"}))
    articles = []
    for one in shown:
        counts = ", ".join(f"{one.count(kind)} {kind}s" for kind in ("substitution", "deletion", "insertion"))
        told = f"{one.errors} errors in {one.words} words ({counts}), WER {one.wer:.1f}"
        head = element("h4", names[one.number])
        articles.append(element("article", head, element("p", told, attributes={"class": "note"}), show_alignment(one)))
    return join(element("p", note, attributes={"class": "note"}), element("p", *legend), *articles)


def _show_pictures(pictures: Sequence[tuple[str, bytes]]) -> Markup | None:
    figures = []
    for title, picture in pictures:
        data = "data:image/png;base64," + base64.b64encode(picture).decode()
        shown = {"src": data, "alt": f"Spectrogram and attention of {title}", "loading": "lazy"}
        figures.append(element("figure", element("img", attributes=shown), element("figcaption", title)))
    return element("div", *figures, attributes={"class": "charts planes"}) if figures else None


def _show_facts(facts: Mapping[str, str] | None) -> Markup | None:
    lines: list[list[Content]] = [[name, value] for name, value in (facts or {}).items()]
    return table(["", "value"], lines, caption="What the run says of itself", numbers=99) if lines else None
