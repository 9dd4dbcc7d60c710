"""What `--mode=doctor` tells of a run's folder: its config, every checkpoint, the newest results. Changes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seq2seq_jax.config import check_config, load_config
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.train.checkpoint_folder import QUARANTINE, list_steps
from seq2seq_jax.train.manifest import Standing, verify_manifest
from seq2seq_jax.workdir import Folder, list_members

PATIENCE = 30.0
"""Seconds that reading checkpoints may take; the older ones are left out."""
SCORES = ("bleu", "chrf", "wer", "cer", "loss", "perplexity", "accuracy")


def examine_run(root: Path) -> dict[str, Any]:
    """A run's folder, or that of an ensemble with its members, JSON-ready; `problems` have `what` and `cure`.

    Args:
        root: the folder, which may be broken in any way, or not be there.
    """
    report: dict[str, Any] = {"folder": str(root), "members": [], "config": "", "checkpoints": [], "quarantine": []}
    problems: list[dict[str, str]] = []
    report |= {"results": None, "problems": problems}
    folder = Folder(root)
    if not root.is_dir():
        problems.append({"what": f"{root} is no folder", "cure": "name that of a run, or leave --workdir out"})
        return report
    try:
        members = list_members(root)
    except UserError as error:
        members = []
        problems.append(_explain(error))
    try:
        check_config(load_config(folder.config))
        report["config"] = "valid"
    except (UserError, RecursionError) as error:
        report["config"] = str(error)
        problems.append(_explain(error))
    if not members:
        _examine_checkpoints(folder, report)
        problems += _examine_files(folder)
    report["results"] = _read_results(folder)
    for member in members:
        report["members"].append(own := examine_run(member))
        problems += own["problems"]
    return report


def _examine_files(folder: Folder) -> list[dict[str, str]]:
    """What is wrong with what lies beside the checkpoints of a run that has begun."""
    problems = []
    if folder.has_begun():
        try:
            Vocabs.load(folder.vocab)
        except UserError as error:
            problems.append(_explain(error))
    for path, by_line in ((folder.metrics, True), (folder.results, False)):
        try:
            content = path.read_bytes()
            for text in content[: content.rfind(b"\n") + 1].splitlines() if by_line else [content]:
                dict(json.loads(text))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, RecursionError):
            problems.append({"what": f"{path} is damaged", "cure": "restore it, or move it away"})
    return problems


def _explain(error: Exception) -> dict[str, str]:
    """A refusal as a problem; its cure is in its words."""
    what, _, cure = str(error).partition("; ")
    return {"what": what, "cure": cure or "see docs/reliability.md"}


def _examine_checkpoints(folder: Folder, report: dict[str, Any]) -> None:
    """Adds the standing of every step, what is in the quarantine, and what is wrong with them."""
    began, found, problems = time.monotonic(), report["checkpoints"], report["problems"]
    if not folder.checkpoints.is_dir():
        return
    try:
        steps = sorted(list_steps(folder.checkpoints), reverse=True)
        report["quarantine"] = sorted(path.name for path in (folder.checkpoints / QUARANTINE).glob("*"))
    except OSError as error:
        cure = "look at its permissions and at its disk"
        problems.append({"what": f"{folder.checkpoints} cannot be read ({error.strerror})", "cure": cure})
        return
    for step in steps:
        if time.monotonic() - began > PATIENCE:
            found.append({"step": step, "standing": "not looked at", "reason": "reading them takes long"})
            continue
        verdict = verify_manifest(folder.checkpoints / str(step), step=step)
        if not os.path.lexists(folder.checkpoints / str(step)):
            continue  # a training is under way, and it was an old one
        found.append({"step": step, "standing": verdict.standing.name.lower(), "reason": verdict.reason})
        if verdict.standing is Standing.BAD:
            what = f"{folder.checkpoints / str(step)} is damaged: {verdict.reason}"
            cure = "look at the disk; the next start moves it to quarantine/ and takes the one before"
            problems.append({"what": what, "cure": cure})
    if found and all(one["standing"] == "bad" for one in found):
        cure = "put a copy of one back, or start anew with --fresh, which moves this run aside"
        problems.append({"what": f"{folder.checkpoints}: no checkpoint is usable", "cure": cure})


def _read_results(folder: Folder) -> dict[str, Any] | None:
    """The newest scores on the test split: file, step and scores; None where there are none, or none to be read."""
    paths = [path for path in (folder.results, folder.evaluation / "results.json") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            test = json.loads(path.read_bytes())["test"]
            scores = {name: float(test[name]) for name in SCORES if name in test}
            return {"file": str(path), "step": int(test["step"]), "scores": scores}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    return None


def render_run(report: Mapping[str, Any]) -> list[str]:
    """The lines that people read."""
    lines = [f"run: {report['folder']}: config {'valid' if report['config'] == 'valid' else 'not usable'}"]
    for one in report["checkpoints"]:
        lines.append(f"  step {one['step']}: {one['standing']}" + (f" ({one['reason']})" if one["reason"] else ""))
    if report["quarantine"]:
        lines.append(f"  in quarantine/, which nothing reads: {', '.join(report['quarantine'])}")
    if report["results"]:
        scores = ", ".join(f"{name} {score:.2f}" for name, score in report["results"]["scores"].items())
        lines.append(f"  test at step {report['results']['step']}: {scores} ({report['results']['file']})")
    for member in report["members"]:
        lines += [f"  {line}" for line in render_run(member)]
    return lines
