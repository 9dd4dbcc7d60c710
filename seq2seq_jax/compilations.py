"""The cache of compiled programs on the disk: what is damaged in it is removed, and told once.

JAX writes an entry in place, so that a kill can leave half of one. It warns of each entry that it cannot read, compiles
that program, and leaves the entry as it is: every later start would do the same again.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import jax

DAMAGED = "Error reading persistent compilation cache entry"


def heal_cache() -> None:
    """From now on removes damaged entries as soon as JAX meets one, with one line about it in place of its warnings."""
    show = warnings.showwarning
    if getattr(show, "heals", False):
        return
    looked = set[str]()

    def heal(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        folder, count = jax.config.values["jax_compilation_cache_dir"], 0
        if folder and "://" not in folder and folder not in looked and str(message).startswith(DAMAGED):
            looked.add(folder)  # once: all are read
            count = remove_damaged(Path(folder))
        if count:
            told = f"{count} damaged entries of the compilation cache in {folder} were removed and are compiled anew"
            print(f"seq2seq_jax: {told}", file=sys.stderr, flush=True)
        else:
            show(message, category, filename, lineno, file, line)

    replacement: Any = heal
    replacement.heals = True
    warnings.showwarning = replacement


def remove_damaged(folder: Path) -> int:
    """Removes the entries that cannot be unpacked, and says how many there were."""
    try:
        from jax._src.compilation_cache import decompress_executable  # JAX has no public way to read an entry
    except ImportError:
        return 0
    count = 0
    for path in folder.glob("*-cache"):
        try:
            packed = path.read_bytes()
        except OSError:
            continue
        try:
            decompress_executable(packed)
        except Exception:  # what the unpacker in use raises is its own
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
    return count
