"""`--mode=compare`: two runs or two files of translations beside each other, or one alone; in words or as a page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import default_config, flatten, load_config, require_search
from seq2seq_jax.corpora import find_prepared, open_splits
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.compare import System, compare_systems
from seq2seq_jax.evaluate.report import METRICS, RunFacts, render_page, tell_verdict
from seq2seq_jax.modes.lines import read_input
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.provenance import versions
from seq2seq_jax.train.writers import format_duration
from seq2seq_jax.workdir import Folder

MOST_LINES = 500_000
"""Of a longer training text, so many lines spread evenly are counted."""

MOST_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The newest translations of the test set in a run's folder.

    Attributes:
        root: the run's folder.
        place: where results.json and outputs/ lie: the run's folder, or `evaluation` in it.
        config: of the run.
        results: what results.json says.
        sides: "hypotheses", "source", "references" → lines.
    """

    root: Path
    place: Folder
    config: ConfigDict
    results: dict[str, Any]
    sides: dict[str, list[str]]

    @property
    def digest(self) -> str:
        """sha256 of the test set."""
        text = json.dumps([self.sides["source"], self.sides["references"]], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came of it: the values, JSON-ready, and what a page shows of the runs besides."""

    report: dict[str, Any]
    runs: tuple[RunFacts, ...] = ()

    def make_page(self) -> str:
        """One self-contained HTML file."""
        made_by = ", ".join(f"{name} {version}" for name, version in versions().items())
        return render_page(self.report, self.runs, keys=self.report["config"], made_by=f"Made with {made_by}.")


def compare_files(first: str, second: str | None, reference: str | None, source: str | None) -> Comparison:
    """Compares files of translations, a sentence a line, by sacreBLEU's default tokenizer (13a).

    Args:
        first, second: the translations; the second may be None.
        reference: as many references.
        source: the sentences that were translated, where they are at hand.

    Raises:
        UserError: there are no references, or the files have different numbers of lines.
    """
    if reference is None:
        raise UserError("--reference is missing: name the file of references that belong to --input.")
    names = [name for name in (first, second, reference, source) if name is not None]
    files = {name: list(read_input(name)) for name in names}
    if len({len(lines) for lines in files.values()}) > 1 or not files[reference]:
        told = ", ".join(f"{name} has {len(lines)}" for name, lines in files.items())
        raise UserError(f"--input={first}: all files must have equally many lines, at least one, but {told}.")
    paths = [Path(first), *([Path(second)] if second is not None else [])]
    systems = [System(name, files[str(path)]) for name, path in zip(_tell_apart(paths), paths, strict=True)]
    found = compare_systems(systems, files[reference], sources=files[source] if source is not None else None)
    return Comparison({**found, "config": {}})


def compare_runs(root: Path, other: Path | None) -> Comparison:
    """Compares the newest test translations of two runs, or looks at those of one.

    Args:
        root: the folder of a run.
        other: that of another.

    Raises:
        UserError: a run was not evaluated, or the two have translated different test sets.
    """
    runs = _find_same([list_evaluated(path) for path in (root, other) if path is not None])
    names = _tell_apart([run.root for run in runs])
    first = runs[0]
    found = compare_systems(
        [System(name, run.sides["hypotheses"]) for name, run in zip(names, runs, strict=True)],
        first.sides["references"],
        sources=first.sides["source"],
        training=_read_training(first.root, first.config),
        target=first.config.data.target,
    )
    keys = _compare_keys([run.config for run in runs])
    facts = tuple(_tell_run(name, run) for name, run in zip(names, runs, strict=True))
    return Comparison({**found, "config": keys}, facts)


def _find_same(found: Sequence[Sequence[Evaluated]]) -> list[Evaluated]:
    """Of each run the newest translations, of the same test set."""
    first, *others = found
    for run in first:
        same = [next((that for that in those if that.digest == run.digest), None) for those in others]
        if None not in same:
            return [run, *(that for that in same if that is not None)]
    other = others[0][0]
    raise UserError(
        f"--against={other.root}: has translated another test set (digest {other.digest[:12]}) than {first[0].root} "
        f"({first[0].digest[:12]}); evaluate both on the same: --mode=evaluate --config.data.test=PREFIX."
    )


def list_evaluated(root: Path) -> list[Evaluated]:
    """The translations that a training and a later `--mode=evaluate` left, the newer ones first.

    Raises:
        UserError: there are none, or files are missing.
    """
    folder = Folder(root)
    config = load_config(folder.config)
    require_search(config, f"--mode=compare: {root}")
    places = [place for place in (folder, Folder(folder.evaluation)) if place.results.exists()]
    places = [place for place in places if (place.outputs / "test.hypotheses.txt").is_file()]
    if not places:
        raise UserError(f"{root}: has no translations of a test set yet; run --workdir={root} --mode=evaluate first.")
    places.sort(key=lambda place: place.results.stat().st_mtime, reverse=True)
    return [_read_evaluated(root, place, config) for place in places]


def _read_evaluated(root: Path, place: Folder, config: ConfigDict) -> Evaluated:
    names = ("hypotheses", "source", "references")
    sides = {name: list(read_input(str(place.outputs / f"test.{name}.txt"))) for name in names}
    if len({len(lines) for lines in sides.values()}) > 1:
        raise UserError(f"{place.outputs}: the files of the test set differ in length; run --mode=evaluate again.")
    try:
        results = json.loads(place.results.read_text(encoding="utf-8"))
        return Evaluated(root, place, config, dict(results), sides)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{place.results}: cannot be read ({error}); run --mode=evaluate again.") from error


def render(report: dict[str, Any]) -> str:
    """The comparison as people read it in a terminal; the page shows more."""
    names = report["systems"]
    lines = [f"{report['sentences']:,} sentences: {' against '.join(names)}"]
    for row in report["scores"]:
        scores = "   ".join(f"{system['score']:6.2f} ± {system['interval']:.2f}" for system in row["systems"])
        verdict = "" if row["p_value"] is None else f"   p = {row['p_value']:.4f}: {tell_verdict(row, names)}"
        lines.append(f"  {METRICS.get(row['name'], row['name']):6s} {scores}{verdict}")
        lines.append(f"         {row['signature']}")
    lengths, words = report["lengths"], report["words"]
    lines.append(f"BLEU by length of the {lengths['of']} in {lengths['unit']}:")
    for row in lengths["buckets"]:
        lines.append(f"  {row['label']:>8s} {_decimals(row['bleu'])}   {row['sentences']:,} sentences")
    lines.append(f"F1 of words by their count in the {words['counted_in']}:")
    for row in words["buckets"]:
        lines.append(f"  {row['label']:>8s} {_decimals(row['f1'])}   {row['words']:,} words")
    for name, rows in zip(names, report["differences"], strict=False):
        lines += [f"{name} is better in:"] if rows else []
        for row in rows[:3]:
            lines.append(f"  {row['number']:,}. {row['reference']}")
            lines += [f"     {score:5.1f} {said}" for score, said in zip(row["chrf"], row["hypotheses"], strict=True)]
    if report["config"]:
        lines.append("config:")
        lines += [f"  {key}: {' | '.join(map(str, values))}" for key, values in report["config"].items()]
    return "\n".join(lines)


def _tell_apart(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that differ; a path compared with itself is numbered."""
    if len(paths) == 1:
        return [paths[0].name]
    parts = [path.parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({n})" for n, path in enumerate(paths, start=1)]


def _read_training(root: Path, config: ConfigDict) -> list[str] | None:
    """The target side of the training text where it can be had, else None; a prepared corpus is read in tokens."""
    try:
        prepared = find_prepared(config, root, check=False)
        if prepared is None:
            text = open_splits(config).train
            lines = text.target if isinstance(text, ParallelText) else None
            return None if lines is None else lines[:: -(-len(lines) // MOST_LINES) or 1]
        vocab = Vocabs.load(Folder(root).vocab).target
        ids = np.arange(0, len(prepared), -(-len(prepared) // MOST_LINES) or 1)
        parts = (prepared.read(ids[start : start + 10_000])[1] for start in range(0, len(ids), 10_000))
        return [vocab.decode(part[n]) for part in parts for n in range(len(part))]
    except UserError as error:
        say(f"words are counted in the references: {error}")
        return None


def _compare_keys(configs: Sequence[ConfigDict]) -> dict[str, list[Any]]:
    """Keys with their values: those that differ between two runs, or from the defaults of one."""
    flat = [flatten(config) for config in configs]
    if len(flat) == 1:
        defaults = flatten(default_config(configs[0].model.name))
        return {key: [value] for key, value in sorted(flat[0].items()) if value != defaults.get(key)}
    keys = sorted(set().union(*flat))
    return {key: [one.get(key, "") for one in flat] for key in keys if len({repr(one.get(key)) for one in flat}) > 1}


def _tell_run(name: str, run: Evaluated) -> RunFacts:
    """What a page says of a run.

    Raises:
        UserError: its results are not what an evaluation writes.
    """
    try:
        facts = _list_facts(run)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        why = f"not what --mode=evaluate writes ({type(error).__name__}: {error})"
        raise UserError(f"{run.place.results}: {why}; run --mode=evaluate again.") from error
    return RunFacts(name, facts, _read_curves(Folder(run.root).metrics), _read_pictures(run))


def _list_facts(run: Evaluated) -> dict[str, str]:
    results, scores = run.results, run.results.get("test", {})
    facts = {
        "model": run.config.model.name,
        "languages": f"{run.config.data.source}-{run.config.data.target}",
        "parameters": f"{results.get('parameters', 0):,}",
        "step of the checkpoint": f"{scores.get('step', 0):,}",
        "search": str(scores.get("search", f"beam {scores.get('beam_size', '?')}")),
        "evaluated by": "--mode=evaluate" if run.place.root != run.root else "training",
    }
    if "wall_seconds" in results:
        facts["time of training"] = format_duration(results["wall_seconds"])
    if "devices" in results:
        facts["devices"] = ", ".join(f"{results['devices'].count(d)} x {d}" for d in dict.fromkeys(results["devices"]))
    for part, digest in results.get("corpus_sha256", {}).items():
        facts[f"sha256 of {part}"] = digest[:16]
    facts["vocabulary"] = str(results.get("vocab_sha256", "?"))[:16]
    return facts | {package: str(version) for package, version in results.get("versions", {}).items()}


def _read_curves(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of what metrics.jsonl holds; a line that a crash tore off is left out."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            continue
        for key in ("loss", "dev_loss", "dev_bleu"):
            if type(record.get(key)) in (int, float) and abs(record[key]) < math.inf:
                steps, values = curves.setdefault(key, ([], []))
                steps.append(record["step"])
                values.append(record[key])
    return curves


def _read_pictures(run: Evaluated) -> list[tuple[str, bytes]]:
    """Title and PNG of the first few attention maps."""
    found = []
    for path in sorted(run.place.outputs.glob("attention_*.png"))[:MOST_PICTURES]:
        number = int(path.stem.rpartition("_")[2])
        if number < len(run.sides["source"]):
            found.append((f"sentence {number + 1}: {run.sides['source'][number]}", path.read_bytes()))
    return found


def _decimals(values: Sequence[float]) -> str:
    return " ".join(f"{value:6.1f}" for value in values)
