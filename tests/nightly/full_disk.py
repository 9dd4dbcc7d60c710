"""C5: disks that are full: training goes on, it is told within a step, older steps stay, and later saves succeed.

A disk is made full by a small file system in memory (which root may mount), by a limit on the size of files, and by a
failpoint; at so many bytes of a save that they are spread over the whole of it; saving in the background and at once.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nursery import Nursery
from rows import Job, Row
from small_disks import count_blocks, fail_at, leave_bytes, limit_files, measure, mount_memory, try_save
from small_runs import LSTM, Running, finish, list_steps, read_outcome, write_text

from seq2seq_jax.train.manifest import Standing, verify_manifest

RUN = ("--config.train.steps=800", "--config.train.save_every=160", "--config.train.evaluate_every=800",
       "--config.train.decay_steps=800", "--config.train.keep_last=9")  # fmt: skip
SAVES = 160


def try_run(nursery: Nursery, arguments: tuple[str, ...], root: Path, left: int, step: int) -> tuple[str, Running]:
    """Fills the disk of a whole run before the save of a step, and frees it once that has failed."""
    running = Running(nursery, arguments, root)
    whole = root / "checkpoints" / str(step - SAVES) / "manifest.json"
    if not running.wait_until(whole.exists):
        return f"it ended before step {step}: {running.said()[-300:]}", running
    with leave_bytes(root, left):
        if not running.wait_until(lambda: f"checkpoint of step {step}" in running.said(), seconds=60):
            running.process.kill()
            running.end()
            return f"nothing is told: {running.said()[-300:]}", running
    code = running.end()
    said = running.said()
    if code or "Traceback" in said:
        return f"exit code {code}: {said[-1500:]}", running
    told = re.findall(r"^.*(?:not saved|no manifest|as soon as).*$", said, re.M)
    if len([line for line in told if "checkpoint" in line]) > 2:  # the disk may be full for two saves of a busy machine
        return f"told more than was wrong: {told}", running
    steps = list_steps(root)
    if any(verify_manifest(root / "checkpoints" / str(n), step=n).standing is not Standing.VERIFIED for n in steps):
        return f"not all of {steps} are verified", running
    return "", running


def fill_disk(job: Job) -> list[Row]:
    """C5, by every means; `job.count` sizes each."""
    draw, rows = random.Random(job.seed), list[Row]()
    size = measure(job.folder / "size")
    offsets = [(n + draw.random()) / job.count for n in range(job.count)]
    means: dict[str, Callable[[Path, float], Callable[[], Any]]] = {
        "a full file system": lambda folder, part: lambda: leave_bytes(folder.parent, int(part * size)),
        "a limit on files": lambda folder, part: lambda: limit_files(int(part * size * 0.95)),
        "a failpoint": lambda folder, part: lambda: fail_at("save" if part < 0.5 else "manifest"),
    }
    for mean, fill in means.items():
        for asynchronous in (True, False):
            problems = list[str]()
            for number, part in enumerate(offsets):
                with contextlib.ExitStack() as closing:
                    home = job.folder / f"{mean}-{asynchronous}-{number}"
                    try:
                        if mean == "a full file system":
                            closing.enter_context(mount_memory(home, 8 * size))
                        problem = try_save(home / "run", fill(home / "run", part), asynchronous=asynchronous)
                    except Exception as error:
                        problem = f"{type(error).__name__}: {error}"
                    if problem:
                        problems.append(f"at {part:.2f} of a save: {problem}")
                        job.tell(problems[-1])
            how = "in the background" if asynchronous else "at once"
            rows.append(_make_row(f"{mean}, saving {how}", job, problems))
            job.tell(f"{rows[-1].name}: {rows[-1].got}")
    rows.append(_try_runs(job, offsets))
    return rows


def _try_runs(job: Job, offsets: list[float]) -> Row:
    """The same with whole runs, whose folder lies in the full file system with all that is in it."""
    arguments = (*LSTM, *RUN, *write_text(job.folder / "corpus", job.seed))
    problems = list[str]()
    with Nursery() as nursery:
        finish(nursery, arguments, job.folder / "alone")
        wanted = read_outcome(job.folder / "alone")
        size = count_blocks(job.folder / "alone" / "checkpoints" / "800")
        for number, part in enumerate(offsets):
            home, step = job.folder / f"disk{number}", SAVES * (2 + number % 3)
            with mount_memory(home / "run", 64 * 2**20):
                problem, _ = try_run(nursery, arguments, home / "run", int(part * size), step)
                if not problem and (found := read_outcome(home / "run")).state != wanted.state:
                    problem = f"another state: {found.state} instead of {wanted.state}"
                if not problem and found.losses != wanted.losses:
                    problem = f"lines of metrics.jsonl are missing or others: {sorted(found.losses)}"
            if problem:
                problems.append(f"run, at {part:.2f} of a save: {problem}")
                job.tell(problems[-1])
            job.tell(f"{number + 1} of {len(offsets)} runs, {len(problems)} wrong")
    return _make_row("whole runs in a full file system; they end bit-equal, exit code 0", job, problems)


def _make_row(name: str, job: Job, problems: list[str]) -> Row:
    got = f"{job.count - len(problems)} of {job.count}"
    return Row(f"disk full: {name}", "all", got, not problems, {"problems": problems[:10]})
