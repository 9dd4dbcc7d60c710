"""The README.md of an exported model: what it is, what made it, how good it is, and how to use it.

After Mitchell et al. 2019, Model Cards for Model Reporting. What is not known is said to be unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from seq2seq_jax.serve.model_folder import WEIGHTS

UNKNOWN = "unknown"
SCORES = {"bleu": "BLEU", "chrf": "chrF", "bleu_tokenized_lowercase": "BLEU, tokenised and lower-case"}
SCORES |= {"wer": "WER in percent", "cer": "CER in percent"}


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        name: of the folder.
        model: kind of model, such as "gnmt".
        source, target: language codes.
        parameters: how many.
        step: of training.
        averaged: steps of the checkpoints whose mean it is; empty if it is none.
        licence: as given; empty if none was.
        corpora: one for each: role, name, pairs and sha256, where they are known.
        scores: `test` of a run's results.json, or empty.
        changed: config keys that differ from their defaults.
        digests: name → sha256, of what is in the folder.
        versions: package → version.
        hears: whether its sources are audio.
    """

    name: str
    model: str
    source: str
    target: str
    parameters: int
    step: int
    averaged: Sequence[int]
    licence: str
    corpora: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Any]
    changed: Mapping[str, Any]
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    hears: bool = False


def write_card(facts: CardFacts) -> str:
    """The card as Markdown, with the header that model hubs read."""
    head = [
        "---",
        f"license: {_quote(facts.licence or UNKNOWN)}",
        "language:",
        *(f"- {_quote(code)}" for code in (facts.source, facts.target)[facts.hears :]),
        "library_name: seq2seq_jax",
        f"pipeline_tag: {'automatic-speech-recognition' if facts.hears else 'translation'}",
        "---",
    ]
    parts = [_introduce(facts), _tell_use(facts), _tell_scores(facts), _tell_data(facts), _tell_making(facts)]
    return "\n".join(head) + "\n\n" + "\n\n".join([*parts, _tell_limits(facts), _tell_contents(facts)]) + "\n"


def _introduce(facts: CardFacts) -> str:
    mean = f", the mean of the checkpoints of steps {', '.join(map(str, facts.averaged))}" if facts.averaged else ""
    source, target = _plain(facts.source), _plain(facts.target)
    does = f"Writes down speech in `{target}`." if facts.hears else f"Translates from `{source}` to `{target}`."
    return (
        f"# {_plain(facts.name)}\n\n{does} "
        f"A `{_plain(facts.model)}` model of {facts.parameters:,} parameters, trained with seq2seq_jax for "
        f"{facts.step:,} steps{mean}.\n\nLicence: {_plain(facts.licence) or UNKNOWN}."
    )


def _tell_use(facts: CardFacts) -> str:
    if facts.hears:
        return f"""## How to use it

```python
import seq2seq_jax
model = seq2seq_jax.load({facts.name!r})
print(model.transcribe(["a.wav", "b.flac"]))
```

Or on the command line, as text, JSON with times, SRT or VTT:

```bash
python -m seq2seq_jax.main --workdir={facts.name} --mode=transcribe --input=a.wav --format=srt
```"""
    return f"""## How to use it

```python
import seq2seq_jax
model = seq2seq_jax.load({facts.name!r})
print(model.translate(["A sentence.", "Another one."]))
```

Or on the command line, a sentence a line:

```bash
python -m seq2seq_jax.main --workdir={facts.name} --mode=translate < input.txt > output.txt
```"""


def _tell_scores(facts: CardFacts) -> str:
    if not facts.scores:
        return "## Scores\n\nUnknown: it was not evaluated on the test set of its training before it was exported."
    scores = facts.scores
    rows = [
        f"| {title} | {scores[key]:.2f} | `{_cell(scores.get(key + '_signature', scores.get('signature', '')))}` |"
        for key, title in SCORES.items()
        if key in scores
    ]
    search = (
        scores["search"] if "search" in scores else f"beam {scores['beam_size']}"
    )  # earlier versions had beams alone
    by = "jiwer" if facts.hears else "sacreBLEU"
    how = f"On the test set below ({scores['sentences']:,} sentences), {_cell(search)}, by {by}."
    return "\n".join(["## Scores", "", how, "", "| metric | score | signature |", "|---|---|---|", *rows])


def _tell_data(facts: CardFacts) -> str:
    if not facts.corpora:
        return "## Data\n\nUnknown: the run left no results.json."
    rows = []
    for corpus in facts.corpora:
        pairs = corpus.get("pairs")
        size = f"{pairs:,}" if isinstance(pairs, int) else UNKNOWN
        digest = f"`{corpus['sha256']}`" if corpus.get("sha256") else UNKNOWN
        rows.append(f"| {corpus['role']} | {_cell(corpus['name'])} | {size} | {digest} |")
    note = "The sha256 is that of the sentences of both sides as they were read."
    return "\n".join(["## Data", "", "| part | corpus | pairs | sha256 |", "|---|---|---|---|", *rows, "", note])


def _tell_making(facts: CardFacts) -> str:
    flags = [f"    --config.{key}={_shell(value)}" for key, value in facts.changed.items()]
    command = " \\\n".join([f"python -m seq2seq_jax.main --config=configs/{facts.model}.py", *flags])
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"## How it was made\n\nThis trains one like it, on the corpora above:\n\n```bash\n{command}\n```\n\n"
        f"Versions: {_plain(versions) or UNKNOWN}."
    )


def _tell_limits(facts: CardFacts) -> str:
    return (
        "## Intended use and limits\n\n"
        "For research, and for drafts that somebody who reads both languages looks over. It translates single "
        "sentences like those it was trained on: text of another kind, whole paragraphs, names and numbers come out "
        "worse than the scores suggest. It can leave things out, make things up, and repeat what is wrong or unfair "
        "in its training data. It was not tested for medical, legal or other use where an error does harm. "
        "Its licence says nothing about the rights in the training data."
    )


def _tell_contents(facts: CardFacts) -> str:
    rows = "\n".join(f"- `{name}`: `{digest}`" for name, digest in facts.digests.items())
    return (
        f"## What is in the folder\n\n`{WEIGHTS}` (float32, names are the paths of the parameters), `vocab/`, "
        f"`config.json` and this card. Loading compares these digests with the files:\n\n{rows}"
    )


def _plain(text: str) -> str:
    """One line without what Markdown or HTML would act on."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "'")


def _cell(text: Any) -> str:
    """For a cell of a table, whose columns a "|" would end."""
    return _plain(str(text)).replace("|", "\\|")


def _quote(text: str) -> str:
    """A YAML string that cannot be read as anything else."""
    return '"' + " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shell(value: Any) -> str:
    text = str(value)
    safe = text and all(c.isalnum() or c in "_-./:,=" for c in text)
    return text if safe else "'" + text.replace("'", "'\\''") + "'"
