"""Writes a file so that readers see the old bytes or the new ones, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside the file, flushes to the disk, then renames."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")  # another host may write the same file
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def flush(path: Path) -> None:
    """What was written to a file or folder reaches the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
