"""A case with a spoiled file, run behind the command line's own error boundary, and what is to be said of it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from seq2seq_jax import main as command

MOST_SECONDS = 5.0
MOST_GROWTH = 512 << 20
PREFIX = "seq2seq_jax: error: "
NOTES = ("Note: ", "Warning: ", "[src/libmpg123/")
"""How lines begin that libmpg123, which decodes MP3 within libsndfile, writes by itself."""


class Insane(Exception):
    """What was read of an accepted file makes no sense."""


def require(holds: bool, what: str) -> None:
    """Says that what was read makes no sense unless this holds."""
    if not holds:
        raise Insane(what)


@dataclasses.dataclass(frozen=True)
class Case:
    """A spoiled file.

    Attributes:
        kind: what was done to it.
        read: reads it as a mode does, and checks what it got.
        names: one of them must be in the message.
        refused: it cannot be read in any sense.
        arguments: a whole command line in the place of `read`.
    """

    kind: str
    read: Callable[[], object] | None
    names: Sequence[str]
    refused: bool = False
    arguments: Sequence[str] = ()


class Family(Protocol):
    """Files of a kind: makes the good ones in a folder, then a spoiled one after the other."""

    def __init__(self, folder: Path) -> None: ...

    def draw(self, draw: Any, place: Path) -> Case:
        """A case whose files are in the folder `place`."""


def run_case(case: Case) -> dict[str, Any]:
    """Runs a case and judges it; `problem` is "" where it is as it should be."""
    before, started = _peak(), time.process_time()
    with _caught() as said:
        code, fault = _run(case)
    seconds, grown = time.process_time() - started, _peak() - before
    problem = fault or judge(case, code, said.text)
    if not problem and seconds > MOST_SECONDS:
        problem = f"took {seconds:.1f} s"
    if not problem and grown > MOST_GROWTH:
        problem = f"took {grown >> 20} MiB more"
    told = {"kind": case.kind, "code": code, "seconds": round(seconds, 3), "grown_mib": grown >> 20}
    return {**told, "said": said.text[-4000:], "problem": problem}


def judge(case: Case, code: int | None, said: str) -> str:
    """What is wrong with an exit code and the lines on standard error; "" if nothing is."""
    lines = [line for line in said.splitlines() if not line.startswith(NOTES)]
    errors = [line for line in lines if line.startswith(PREFIX)]
    if "Traceback (most recent call last)" in said:
        return f"a traceback: {said[-600:]}"
    if code == 0:
        return "accepted, and must not be" if case.refused else ""
    if code != 2:
        return f"exit code {code}: {said[-600:]}"
    if len(errors) != 1:
        return f"{len(errors)} lines of error: {said[-600:]}"
    if lines[-1] != errors[0] or (not case.arguments and len(lines) != 1):
        return f"more lines than one: {said[-600:]}"
    if len(errors[0]) > 4000 or not errors[0].isprintable():
        return f"a line of {len(errors[0])} characters, {'' if errors[0].isprintable() else 'not '}printable"
    if not any(name in errors[0] for name in case.names):
        return f"names none of {', '.join(case.names)}: {errors[0]}"
    return ""


def _run(case: Case) -> tuple[int | None, str]:
    """The exit code, and what escaped the boundary."""
    try:
        if case.arguments:
            return command.main(["seq2seq_jax.main", *case.arguments]), ""
        kept, read = command._run, case.read

        def enter(argv: list[str]) -> int:
            if read is not None:
                read()
            return 0

        command._run = enter
        try:
            return command.main(["seq2seq_jax.main"]), ""
        finally:
            command._run = kept
    except Insane as error:
        return None, f"insane: {error}"
    except Exception as error:  # what people would see as a traceback
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "seq2seq_jax/" in frame.filename]
        place = ours[-1] if ours else where
        name = f"{Path(place.filename).name}:{place.lineno}"
        return None, f"{type(error).__name__} from {name}: {str(error)[:300]}"


class _Said:
    text = ""


@contextlib.contextmanager
def _caught() -> Iterator[_Said]:
    """What Python and libraries in C write to standard error, in `text` afterwards."""
    said, kept = _Said(), os.dup(2)
    stream = io.StringIO()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()):
                yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.text = file.read().decode("utf-8", "replace") + stream.getvalue()


def _peak() -> int:
    """The most memory that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
