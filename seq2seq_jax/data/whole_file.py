"""Writes a file so that readers see the old bytes or the new ones, never a part; reads one that is a file."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside the file, flushes to the disk, then renames."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")  # another host may write the same file
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_whole(path: Path) -> bytes:
    """The bytes of a regular file; of a pipe, on which one may wait for ever, or a device, which may have no end, none.

    Raises:
        OSError: it cannot be read, or is none.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def flush(path: Path) -> None:
    """What was written to a file or folder reaches the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
