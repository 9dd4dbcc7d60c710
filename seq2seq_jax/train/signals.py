"""SIGTERM and SIGINT as a flag that every loop polls; with several hosts, one flag for all of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from seq2seq_jax.errors import Terminated


class StopSignal:
    """Turns the first SIGTERM or SIGINT into `requested`; a second SIGINT interrupts at once.

    Use as a context manager in the main thread; the old handlers are put back at the end.

    Args:
        agree: turns the number of the signal that has arrived here, or None, into that for which all hosts stop
            now. All of them must ask equally often (`requested` and `check` each ask once): they do, as what
            each answer leads to is the same on all.
    """

    def __init__(self, agree: Callable[[int | None], int | None] = lambda number: number) -> None:
        self.number: int | None = None
        self._agree = agree
        self._old: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self._agree(self.number) is not None

    def check(self, where: str) -> None:
        """Raises `Terminated` once a signal has arrived; `where` says what it ended."""
        number = self._agree(self.number)
        if number is not None:
            raise Terminated(f"stopped by a signal {where}; resume with the same command", number=number)

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is None:
            self.number = number
        elif self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
