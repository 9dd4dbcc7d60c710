"""Profiles of a few steps, for TensorBoard, Perfetto or xprof."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax


def parse_profile_steps(text: str, steps: int) -> range:
    """The steps "FIRST:LAST", both included and counted from 1; none for "".

    Raises:
        ValueError: they are not steps of a training of so many.
    """
    if not text:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= steps):
        raise ValueError(
            f"`train.profile_steps` must be FIRST:LAST with 1 <= FIRST <= LAST <= train.steps={steps}, such as "
            f"'10:15', but is {text!r} instead."
        )
    return range(int(first), int(last) + 1)


class Profile:
    """Traces the steps of a range while they are taken; one that is begun ends with the training at the latest.

    Args:
        steps: to trace; an empty range traces nothing.
        folder: the trace lies in it.
        tell: receives one line once the trace is there.
    """

    def __init__(self, steps: range = range(0), folder: Path = Path(), tell: Callable[[str], None] = print):
        self._steps, self._folder, self._tell = steps, folder, tell
        self._first: int | None = None  # step that the trace under way began with
        self._last = 0

    def enter(self, step: int, settle: Callable[[], None]) -> float:
        """To be called before a step; returns the seconds that tracing took of it.

        Args:
            step: the one to come.
            settle: waits for the steps before it: what the device does meanwhile is no part of the trace.
        """
        if step not in self._steps or self._first is not None:
            return 0.0
        settle()
        started = time.monotonic()
        jax.profiler.start_trace(self._folder)
        self._first = step
        return time.monotonic() - started

    def leave(self, step: int, settle: Callable[[], None]) -> float:
        """The same, to be called after a step; `settle` waits for that, too."""
        if self._first is None:
            return 0.0
        self._last = step
        if step + 1 in self._steps:
            return 0.0
        settle()
        started = time.monotonic()
        self.close()
        return time.monotonic() - started

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._first is not None:
            jax.profiler.stop_trace()
            self._tell(f"profiled the steps {self._first} to {self._last}: {self._folder}")
            self._first = None
