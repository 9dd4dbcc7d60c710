"""SIGTERM and SIGINT as a flag that every loop polls."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from seq2seq_jax.errors import Terminated


class StopSignal:
    """Turns the first SIGTERM or SIGINT into `requested`; a second SIGINT interrupts at once.

    Use as a context manager in the main thread; the old handlers are put back at the end.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._old: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.number is not None

    def check(self, where: str) -> None:
        """Raises `Terminated` once a signal has arrived; `where` says what it ended."""
        if self.number is not None:
            raise Terminated(f"stopped by a signal {where}; start again to go on", number=self.number)

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
