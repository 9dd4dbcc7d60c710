"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from seq2seq_jax.data.whole_file import flush
from seq2seq_jax.errors import UserError
from seq2seq_jax.train.writers import read_umask


@contextlib.contextmanager
def make_folder(output: str | None) -> Iterator[Path]:
    """A temporary folder beside the goal, which gets the goal's name when the block ends well.

    Args:
        output: `--output`, where nothing may be yet.

    Raises:
        UserError: it is not given, something is there, or it cannot be written.
    """
    if not output:
        raise UserError("--output is missing: name the folder to make (--output=DIR).")
    goal = Path(output).expanduser().absolute()
    if goal.exists() or goal.is_symlink():
        raise UserError(f"--output={output}: is there already; name a new folder.")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=goal.parent, prefix=f".{goal.name}.", suffix=".part"))
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror}); choose another place.") from error
    try:
        yield part
        _sync(part, mask=read_umask())
        if goal.exists():  # it came while we were writing; a rename would replace an empty folder
            raise UserError(f"--output={output}: somebody else made this folder meanwhile; name a new one.")
        part.rename(goal)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    flush(goal.parent)


def _sync(folder: Path, *, mask: int) -> None:
    """Everything in it reaches the disk before it gets its name, with the modes that new files have.

    `mkdtemp` and some libraries make what only their owner can read.
    """
    for path in (*folder.rglob("*"), folder):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        flush(path)
