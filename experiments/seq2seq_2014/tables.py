"""The study's numbers as tables: for tables.json, Markdown and this folder's README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seq2seq_jax.errors import UserError
from seq2seq_jax.train.writers import replace_text

TITLES = {"multi30k": "Multi30k, English to French", "phrasebook": "the phrasebook, English to German"}
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"

VERDICTS = (
    "The effect is the mean over pairs of systems, those of one seed or each with the only one opposite, with the "
    "interval of 95 % and the two-sided p of a paired bootstrap over the test's sentences. Interval and p are of each "
    "claim alone; corrected p allows for the number of claims in this table (Holm). Appeared: as claimed, corrected p "
    "at most 0.05, and in every pair; did not appear: the opposite, shown in the same way; not shown: neither."
)

Table = dict[str, Any]


def make_tables(results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """All tables of the corpora: `key`, `title`, `note`, `columns` and `rows` of strings, numbers or None."""
    found = []
    for corpus, result in results.items():
        tables = (_list_systems, _list_rescorings, _list_perplexities, _list_claims, _list_runs)
        found += [table for make in tables if (table := make(corpus, result))["rows"]]
    return found


def _list_systems(corpus: str, result: Mapping[str, Any]) -> Table:
    """BLEU of models and ensembles beside the papers'."""
    metric = result["metric"]
    rows = [
        [system["label"], len(system["values"]), _spread(system), round(system["interval"], 2), system["paper"]]
        for key, system in result["systems"].items()
        if ":" not in key and key != "oracle"
    ]
    note = (
        f"BLEU of {metric.get('sentences', 0):,} test sentences ({metric['signature']}), mean and standard deviation "
        "over seeds; the interval of 95 % is that of the mean over samples of sentences."
    )
    columns = ["system", "seeds", "BLEU here", "± (95 %)", "BLEU in the papers"]
    return _table(corpus, "systems", "translations", note, columns, rows)


def _list_rescorings(corpus: str, result: Mapping[str, Any]) -> Table:
    """The phrase-based system's lists, chosen from by models."""
    systems, rows = result["systems"], []
    for key, system in systems.items():
        way, _, name = key.partition(":")
        if way == "average":
            tuned = systems.get(f"tuned:{name}")
            told = system["label"].partition("with ")[2]
            rows.append([told, _spread(system), _spread(tuned) if tuned else None, system["paper"]])
    ends = [(key, text) for key, text in (("smt", "nothing: its 1-best"), ("oracle", "the oracle")) if key in systems]
    for key, text in ends if rows else []:
        rows.insert(0 if key == "smt" else len(rows), [text, _spread(systems[key]), None, systems[key]["paper"]])
    note = (
        "The lists' totals with the models' log-probabilities; weights are tuned on val. In the paper: even averages."
    )
    columns = ["phrase-based lists with", "even average", "tuned weights", "BLEU in the paper"]
    return _table(corpus, "rescoring", "rescoring a phrase-based system", note, columns, rows)


def _list_perplexities(corpus: str, result: Mapping[str, Any]) -> Table:
    """Perplexity of the test set's references."""
    rows, tokens = [], 0
    for name, found in result["perplexities"].items():
        run = result["runs"].get(f"{name}-0", {})
        tokens = found["tokens"]
        rows.append([found["label"], run.get("parameters"), _spread(found), found["paper"]])
    note = f"Of {tokens:,} tokens, ends of sentences among them; geometric mean and standard deviation over seeds."
    columns = ["model", "parameters", "perplexity here", "perplexity in the paper"]
    return _table(corpus, "perplexities", "perplexity of the test set", note, columns, rows)


def _list_claims(corpus: str, result: Mapping[str, Any]) -> Table:
    """Every claim, what the papers have for it, and what is found."""
    rows = []
    for claim in result["comparisons"]:
        unit = "" if claim["measure"] == "bleu" else " %"
        low, high = claim["interval"]
        effect = f"{claim['effect']:+.2f}{unit} [{low:+.2f}, {high:+.2f}]"
        sides = f"{claim['before_value']:.2f} → {claim['after_value']:.2f}"
        pairs = f"{sum(pair * claim['effect'] > 0 for pair in claim['pairs'])} of {len(claim['pairs'])}"
        ps = [f"{claim[key]:.4f}" for key in ("p", "p_corrected")]
        rows.append([claim["claim"], claim["paper"] or None, sides, effect, *ps, pairs, claim["verdict"]])
    columns = ["claim", "in the papers", "here", "effect [95 %]", "p", "corrected p", "pairs of its sign", "verdict"]
    return _table(corpus, "claims", "what appeared", VERDICTS, columns, rows)


def _list_runs(corpus: str, result: Mapping[str, Any]) -> Table:
    """Size, time and loss of every run."""
    rows = []
    for label, run in result["runs"].items():
        minutes = None if run["wall_seconds"] is None else round(run["wall_seconds"] / 60, 1)
        rows.append([label, run["parameters"], run["steps"], minutes, run["train_loss"]])
    note = "Time is that of the whole training, with the test set's translation."
    return _table(corpus, "runs", "trainings", note, ["run", "parameters", "steps", "minutes", "training loss"], rows)


def _table(
    corpus: str, key: str, title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> Table:
    title = f"{TITLES.get(corpus, corpus)}: {title}"
    return {"key": f"{corpus}-{key}", "title": title, "note": note, "columns": list(columns), "rows": list(rows)}


def _spread(found: Mapping[str, Any]) -> str:
    """ "7.31 ± 0.20", or "7.31" of one value."""
    return f"{found['mean']:.2f}" + ("" if found["std"] is None else f" ± {found['std']:.2f}")


def render_table(table: Table) -> str:
    """One table in Markdown, with its title and note."""
    lines = [f"### {table['title'][0].upper()}{table['title'][1:]}", ""]
    if table["note"]:
        lines += [table["note"], ""]
    lines.append("| " + " | ".join(table["columns"]) + " |")
    lines.append("|" + "---|" * len(table["columns"]))
    lines += ["| " + " | ".join(render_cell(cell) for cell in row) + " |" for row in table["rows"]]
    return "\n".join([*lines, ""])


def render_cell(cell: object) -> str:
    """A string as it is, numbers with two digits or thousands apart, "–" for nothing."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|")


def render(tables: Sequence[Table], missing: Mapping[str, Sequence[str]]) -> str:
    """All tables in Markdown, and what could not be told."""
    parts = [render_table(table) for table in tables]
    lost = [f"- {corpus}: {text}" for corpus, texts in missing.items() for text in texts]
    if lost:
        parts.append("\n".join(["### Not finished", "", *lost, ""]))
    return "\n".join(parts)


def write_readme(path: Path, text: str) -> None:
    """Puts the tables between the two markers of a README.

    Raises:
        UserError: it has not both, in their order.
    """
    old = path.read_text(encoding="utf-8")
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path}: must have the lines {BEGIN} and {END}, between which the tables go.")
    replace_text(path, f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}")
