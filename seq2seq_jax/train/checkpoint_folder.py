"""The folder of a run's checkpoints on disk: which steps it holds, and how steps leave it.

Every move is one rename, so that a kill at any moment leaves each step whole or gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from seq2seq_jax.errors import UserError
from seq2seq_jax.failpoints import reach

QUARANTINE = "quarantine"
_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's name for a step that is not committed yet
_REMOVED = ".removed"  # a step on its way out
_STEP = re.compile("0|[1-9][0-9]{0,17}")  # as this package writes the name of a step
_MOST = 1000  # numbers that hosts agree on at a time, letters that they say


def is_primary() -> bool:
    """True on the one host that writes manifests and moves folders."""
    return jax.process_index() == 0


def prepare_folder(directory: str | os.PathLike[str], *, read_only: bool) -> Path:
    """The absolute path of the folder, which is then there, writable and clean of what killed runs left.

    Raises:
      UserError: it is a URL, cannot be written to, or (`read_only`) is not there.
    """
    if "://" in os.fspath(directory):
        raise UserError(f"the checkpoint folder must be a local path, but is {directory}; mount it first (gcsfuse)")
    path = Path(directory).absolute()
    if read_only and not path.is_dir():
        raise UserError(f"there is no checkpoint folder {path}; train first, or name the folder of a run")
    if not read_only and is_primary():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {path}: {error.strerror}; choose another folder") from error
        _delete(path / name for name in os.listdir(path) if _UNFINISHED in name or name.endswith(_REMOVED))
    if not read_only and (problem := try_to_write(path)):  # better now than after the first thousand steps
        raise UserError(f"cannot write checkpoints to {path}: {problem}; choose another folder")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint folder")
    return path


def try_to_write(folder: Path) -> str:
    """Why the first host cannot make a folder and write a file there; "" if it can. All hosts hear it."""
    problem = ""
    if is_primary():
        try:
            with tempfile.TemporaryDirectory(dir=folder, suffix=_UNFINISHED) as made:
                (Path(made) / "file").write_bytes(bytes(4096))
        except OSError as error:
            problem = error.strerror or str(error)
    return next(filter(None, hear_all(problem)), "")


def list_steps(folder: Path) -> list[int]:
    """The committed steps, oldest first; also what bears the name of one and is no folder, for `restore` to find."""
    return sorted(int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name))


def agree_on(numbers: list[int]) -> list[int]:
    """The first host's list, on all hosts: what one of them wrote, a shared disk may show to another only later."""
    if jax.process_count() == 1:
        return numbers
    padded = np.full(_MOST, -1, np.int32)
    padded[: len(numbers)] = numbers[-_MOST:]
    return [int(number) for number in multihost_utils.broadcast_one_to_all(padded) if number >= 0]


def hear_all(text: str) -> list[str]:
    """What every host says, at most some hundred letters."""
    if jax.process_count() == 1:
        return [text]
    said = np.zeros(_MOST, np.uint8)
    letters = np.frombuffer(text.encode(), np.uint8)[:_MOST]
    said[: len(letters)] = letters
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(said)]


def remove_steps(folder: Path, steps: Iterable[int]) -> None:
    """Deletes steps, each renamed first: half a step must never look like a damaged one."""
    doomed = []
    for step in steps:
        doomed.append((folder / str(step)).rename(folder / f"{step}{_REMOVED}"))
        reach("rotate", step)
    _delete(doomed)


def remove_unfinished(folder: Path) -> None:
    """Deletes what failed saves left, to give its space back; not while another is under way."""
    if is_primary():
        _delete(folder.glob(f"*{_UNFINISHED}*"))


def quarantine_step(folder: Path, step: int) -> Path:
    """Moves a damaged step to the quarantine under a name of its own, and returns where it lies.

    Raises:
      UserError: it cannot be moved.
    """
    target = folder / QUARANTINE / str(step)
    reach("quarantine", step)
    if is_primary():
        try:
            target.parent.mkdir(exist_ok=True)
            number = 1
            while os.path.lexists(target):
                number += 1
                target = target.with_name(f"{step}.{number}")
            if os.path.lexists(folder / str(step)):
                (folder / str(step)).rename(target)
        except OSError as error:
            raise UserError(
                f"{folder / str(step)} is damaged and cannot be moved to {target}: {error.strerror}; move it yourself"
            ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"quarantine {step}")
    return target


def describe_error(error: BaseException) -> str:
    """The gist of an error, since TensorStore's messages run to pages."""
    text = str(error).strip()
    code = re.search(r"os_error_code='(\d+)'", text)
    if code:
        return os.strerror(int(code[1]))
    text = text.split("\n")[0] or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def _delete(paths: Iterable[Path]) -> None:
    """Deletes folders as far as possible; what stays is tried again at the next start."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
