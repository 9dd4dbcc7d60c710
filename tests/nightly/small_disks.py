"""Disks that are full for a while, and whether the checkpoints of a run survive it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from checkpoint_damage import abstract, equal, list_files

from seq2seq_jax import failpoints
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.manifest import Standing, verify_manifest

BLOCK = 4096
TOLD = "No space left|File too large|quota|Stale"  # as systems call it


def make_state(step: int) -> dict[str, Any]:
    """A megabyte that cannot be compressed."""
    one, other = jax.random.split(jax.random.key(step))
    return {"a": jax.random.normal(one, (256, 1024)), "b": jax.random.normal(other, (9,))}


@contextlib.contextmanager
def mount_memory(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes in memory.

    Raises:
        PermissionError: this user may not mount.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError("there is no mount") from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def leave_bytes(folder: Path, left: int) -> Iterator[None]:
    """Fills the file system of `folder` but for so many bytes, for a while."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * BLOCK
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - left, BLOCK) // BLOCK * BLOCK)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def limit_files(left: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, for a while."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def fail_at(place: str, how: str = "enospc") -> Iterator[None]:
    """The next arrival at a failpoint finds the disk full, or failing in another way."""
    os.environ[failpoints.VARIABLE] = f"{place}:*:{how}"
    failpoints.check_environment()
    try:
        yield
    finally:
        del os.environ[failpoints.VARIABLE]
        failpoints.check_environment()


def try_save(folder: Path, full: Callable[[], Any], *, asynchronous: bool) -> str:
    """Saves, saves while the disk is full, and saves again; returns what went wrong, "" if nothing.

    Args:
        folder: of checkpoints.
        full: a context in which the disk is full.
        asynchronous: save in the background.
    """
    warnings: list[str] = []
    target = abstract(make_state(0))
    with Checkpoints(folder, asynchronous=asynchronous, warn=warnings.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), meta={"examples": step})
            checkpoints.wait()
        with full():
            checkpoints.save(3, make_state(3), meta={"examples": 3})
            late = _take_steps(checkpoints, warnings)
        if late > 1 or len(warnings) != 1 or not re.search(TOLD, warnings[0]):
            return f"told after {late} steps: {warnings}"
        if [verify_manifest(folder / str(step), step=step).standing for step in (1, 2)] != [Standing.VERIFIED] * 2:
            return "older steps are not intact"
        if (4 if "no manifest" in warnings[0] else 3) in checkpoints.steps():
            return "a step that was not saved is there"
        checkpoints.save(4, make_state(4), meta={"examples": 4})
        _take_steps(checkpoints, warnings)
        if verify_manifest(folder / "4", step=4).standing is not Standing.VERIFIED or len(warnings) != 1:
            return f"the next save did not succeed: {warnings}"
        restored = checkpoints.restore(target)
        if restored is None or restored.step != 4 or not equal(restored.state, make_state(4)):
            return "the next save does not come back"
    odd = [path.name for path in folder.iterdir() if path.name not in ("2", "3", "4")]
    return f"left over: {odd}" if odd else ""


def _take_steps(checkpoints: Checkpoints, warnings: list[str]) -> int:
    """Polls as a training does until nothing is under way; the steps between the end of a failed save and its line."""
    late, told = 0, len(warnings)
    end = time.monotonic() + 60
    while (checkpoints._saving or checkpoints._hashing) and time.monotonic() < end:
        ended = checkpoints._saving is not None and not checkpoints._manager.is_saving_in_progress()
        ended = ended or (checkpoints._hashing is not None and checkpoints._hashing[1].done())
        checkpoints.poll()
        late += ended and len(warnings) == told and checkpoints._hashing is None
        time.sleep(0.001)
    return late


def measure(folder: Path) -> int:
    """Bytes that a checkpoint takes on a disk."""
    with Checkpoints(folder, asynchronous=False, warn=print) as checkpoints:
        checkpoints.save(1, make_state(1), meta={})
    return count_blocks(folder / "1")


def count_blocks(folder: Path) -> int:
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in list_files(folder))
