"""Lines of text from a file or standard input, and output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TextIO

from seq2seq_jax.errors import UserError

MOST_BYTES = 32 << 20
"""Of a line; what has more is a file of another kind."""


@contextlib.contextmanager
def open_output(target: str | None, *, apart_from: Sequence[str | None] = ()) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when all is written; see `open_whole`."""
    if target is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        return
    with open_whole(target, apart_from=apart_from) as file:
        output = io.TextIOWrapper(file, "utf-8", newline="\n")
        yield output
        output.flush()
        output.detach()  # `open_whole` closes it


@contextlib.contextmanager
def open_whole(target: str, *, apart_from: Sequence[str | None] = ()) -> Iterator[IO[bytes]]:
    """A file that gets its name when all is written; what had that name before stays until then.

    A pipe or device (`/dev/stdout`) is written to as it is.

    Args:
        target: `--output`.
        apart_from: files that are read; the output must be none of them.

    Raises:
        UserError: the file cannot be written, or is one of those.
    """
    path = Path(target)
    if path.is_dir():
        raise UserError(f"--output={target}: is a folder; name a file in it.")
    keep_apart(target, apart_from)
    streamed = path.exists() and not path.is_file()
    part = path if streamed else path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        output = part.open("wb")
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror}); choose another place.") from error
    if streamed:
        with output:
            yield output
        return
    try:
        with output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        part.replace(path)  # only whole output gets the name that was asked for
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def keep_apart(target: str, read: Iterable[str | None]) -> None:
    """Refuses an output that is one of the files that are read.

    Raises:
        UserError: it is.
    """
    if os.path.exists(target) and any(
        name and os.path.exists(name) and os.path.samefile(target, name) for name in read
    ):
        raise UserError(f"--output={target}: is a file that is read, too, and would be lost; name another one.")


def read_input(path: str | None, *, flag: str = "input") -> Generator[str, None, None]:
    """Lines without their ends, from a file or standard input; only "\\n" ends a line.

    Args:
        path: of the file; None is standard input.
        flag: the flag that named it, for messages.

    Raises:
        UserError: the file cannot be read (at once), or a line is not UTF-8, or endless (when it comes to it).
    """
    if path is None:
        typed = getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())
        return _lines(typed, "standard input")
    try:
        file = open(path, "rb")  # now: what cannot be read is told before a model is loaded
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


def _file_lines(file: IO[bytes], name: str) -> Generator[str, None, None]:
    with file:
        yield ""
        yield from _lines(file, name)


def _lines(stream: IO[bytes], name: str) -> Generator[str, None, None]:
    for number, line in enumerate(iter(lambda: stream.readline(MOST_BYTES), b""), start=1):
        if len(line) == MOST_BYTES:
            raise UserError(f"{name}: line {number} has {MOST_BYTES:,} bytes or more; this is no text.")
        try:  # without the mark that some files begin with
            text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}: line {number} is not UTF-8 (byte 0x{error.object[error.start]:02x} at position "
                f"{error.start + 1} of the line); convert the text with iconv."
            ) from error
        yield text.removesuffix("\n").removesuffix("\r")
