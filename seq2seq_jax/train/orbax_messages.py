"""What Orbax says of failed reads and writes beside raising them, which people then are told once, in a line."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any


def silence_orbax() -> None:
    """From here on Orbax's tracebacks of errors that it raises as well are left out; may be called again."""
    logging.getLogger("absl").addFilter(_is_news)  # adding it again does nothing
    logging.getLogger("asyncio").addFilter(_is_of_others)
    if getattr(sys.unraisablehook, "__name__", "") != _Hook.__name__:
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    """A log filter. One failed write is logged with its traceback four times.

    And it warns of keys that it does not know in a step's metadata before anyone has asked for the step.
    """
    least = logging.WARNING if "metadata" in record.pathname else logging.ERROR
    return record.levelno < least or "orbax" not in record.pathname


def _is_of_others(record: logging.LogRecord) -> bool:
    """A log filter. When one of many writes fails, nobody retrieves the errors of the others."""
    trace = record.exc_info[2] if record.exc_info else None
    return not any("orbax" in frame.filename for frame in traceback.extract_tb(trace))


class _Hook:
    """The same of writes that end after the loop which waited for them."""

    def __init__(self, before: Any):
        self.__name__, self._before = type(self).__name__, before

    def __call__(self, unraisable: Any) -> None:
        text = str(unraisable.exc_value)
        if unraisable.object is None and (text == "Event loop is closed" or "tensorstore_spec" in text):
            return
        self._before(unraisable)
