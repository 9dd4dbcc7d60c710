"""Lines of text from a file or standard input, and output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TextIO

from seq2seq_jax.errors import UserError


@contextlib.contextmanager
def open_output(target: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when all is written.

    Raises:
        UserError: the file cannot be written.
    """
    if target is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        return
    path = Path(target)
    part = path.with_name(path.name + ".part")
    try:
        output = part.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror}); choose another place.") from error
    try:
        with output:
            yield output
        part.replace(path)  # only whole output gets the name that was asked for
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_input(path: str | None, *, flag: str = "input") -> Generator[str, None, None]:
    """Lines without their ends, from a file or standard input; only "\\n" ends a line.

    Args:
        path: of the file; None is standard input.
        flag: the flag that named it, for messages.

    Raises:
        UserError: the file cannot be read (at once), or is not UTF-8 (at the line).
    """
    if path is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", newline="\n")
        return _lines(sys.stdin, "standard input")
    try:
        file = open(path, encoding="utf-8", newline="\n")  # now: what cannot be read is told before a model is loaded
    except OSError as error:
        raise UserError(f"--{flag}={path}: cannot be read ({error.strerror}).") from error
    lines = _file_lines(file, path)
    next(lines)  # from here on closing the lines closes the file, read or not
    return lines


def count_lines(path: str | None) -> int | None:
    """How many lines a regular file has, as `read_input` reads them; None of a pipe, which is not read twice."""
    if path is None or not Path(path).is_file():
        return None
    count, last = 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _file_lines(file: TextIO, name: str) -> Generator[str, None, None]:
    with file:
        yield ""
        yield from _lines(file, name)


def _lines(stream: TextIO, name: str) -> Generator[str, None, None]:
    number = 0
    try:
        for line in stream:
            number += 1
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: line {number + 1} or one soon after it is not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            "convert the text with iconv."
        ) from error
