"""Lines in, lines out, as a link of a pipe: answers come before the input ends, in order."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from seq2seq_jax.interfaces import ScoredText

T = TypeVar("T")

PAUSE = 0.02
"""Seconds that the first line of a group waits for others, at most, where there were others before."""

_END = None


def split(lines: Iterable[str], *, most: int) -> Iterator[list[str]]:
    """Groups of `most` lines; the last has what is left."""
    left = iter(lines)
    while group := list(itertools.islice(left, most)):
        yield group


def gather(lines: Iterable[str], *, most: int) -> Iterator[list[str]]:
    """Groups of lines as they come: whatever is there, at most `most`, at least one.

    A thread reads ahead, so that a slow writer gets each line answered at once and a fast one gets
    full groups. Who writes line by line is not made to wait for more. An error while reading is raised here.
    """
    arrived: queue.Queue[str | BaseException | None] = queue.Queue(maxsize=4 * most)

    def read() -> None:
        try:
            for line in lines:
                arrived.put(line)
            arrived.put(_END)
        except BaseException as error:  # handed over, and raised where the lines are used
            arrived.put(error)

    threading.Thread(target=read, name="read lines", daemon=True).start()
    pause = PAUSE
    while True:
        item = arrived.get()
        group: list[str] = []
        end = time.monotonic() + pause
        while isinstance(item, str):
            group.append(item)
            if len(group) == most:
                break
            try:
                item = arrived.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                item = ""
                break
        if group:
            yield group
            pause = PAUSE if len(group) > 1 else 0.0
        if isinstance(item, BaseException):
            raise item
        if item is _END:
            return


def stream(
    groups: Iterable[list[str]],
    output: TextIO,
    *,
    translate: Callable[[list[str]], Sequence[T]],
    render: Callable[[int, T], str],
) -> int:
    """Translates groups of lines and writes each at once.

    Args:
        groups: the input, lines without their ends; see `gather` and `split`.
        output: where the rendered text goes; flushed after every group.
        translate: a group of lines to as many results.
        render: line number (from 0) and result to what is written, line ends included.

    Returns:
        How many lines were translated.
    """
    count = 0
    for group in groups:
        for result in translate(group):
            output.write(render(count, result))
            count += 1
        output.flush()
    return count


def moses_nbest(number: int, candidates: Sequence[ScoredText]) -> str:
    """An n-best list as Moses writes it: `number ||| text ||| features ||| score`, a line each.

    The feature `LogProb` is the log-probability of what searched (with a language model, the weighted sum); the last
    field is what the search ranked by.
    """
    return "".join(f"{number} ||| {c.text} ||| LogProb= {c.log_prob:.6f} ||| {c.score:.6f}\n" for c in candidates)
