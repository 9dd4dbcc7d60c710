"""How far a long piece of work is, for people: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines."""


class Progress:
    """Counts what is done.

        with Progress(500, stream=sys.stderr, tell=say) as progress:
            progress(8)

    Args:
        total: how much there is to do; None where nobody knows, and nothing is told.
        stream: where the bar goes if it is a terminal.
        tell: receives the lines where it is none.
        unit: of what is counted.
    """

    def __init__(self, total: int | None, *, stream: TextIO, tell: Callable[[str], None], unit: str = "sentences"):
        self._total, self._tell, self._unit = total, tell, unit
        self._bar = None
        if total is not None and stream.isatty():
            self._bar = tqdm(total=total, file=stream, unit=" " + unit, dynamic_ncols=True)
        self._done, self._started = 0, time.monotonic()
        self._told = self._started

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if self._bar is None and self._total is not None and self._done and now - self._told >= EVERY:
            self._told = now
            left = (self._total - self._done) * (now - self._started) / self._done
            self._tell(f"{self._done} of {self._total} {self._unit} done, about {left:.0f} s left")
