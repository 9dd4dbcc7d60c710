"""What a single key's value must be, whatever the others are: its type, its limits, its choices."""

from __future__ import annotations

import math
import re
from typing import Any

from seq2seq_jax.errors import UserError
from seq2seq_jax.keys import AT_LEAST, AT_MOST, CHOICES, MOST, MOST_WHOLE, SHARES
from seq2seq_jax.suggestions import suggest

_LANGUAGE = re.compile(r"[^\s,/?&=]+")
_LEFT_OVER = ("parallel.data", "parallel.fsdp", "parallel.stage", "parallel.tensor")


def check_value(key: str, value: Any, default: Any) -> None:
    """Refuses a value that the key cannot have.

    Args:
        key: `section.key`.
        value: what it is.
        default: the key's, of the type that it must have; a whole number will do for another one.

    Raises:
        UserError: names the key, the rule and the value.
    """
    numbers = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not type(default) and not numbers:
        kind = type(default).__name__
        raise UserError(f"config.{key} must be of type {kind} (like {default!r}), but is {value!r} instead.")
    if isinstance(value, str):
        _check_text(key, value)
    elif not isinstance(value, bool):
        _check_number(key, value, whole=isinstance(default, int))


def _check_text(key: str, value: str) -> None:
    if key in CHOICES and value not in CHOICES[key]:
        hint = suggest(value, CHOICES[key], form="{!r}")
        raise UserError(f"config.{key} must be one of {', '.join(CHOICES[key])}, but is {value!r} instead{hint}")
    if key in ("data.source", "data.target") and not _LANGUAGE.fullmatch(value):
        raise UserError(f"config.{key} must be the code of a language, such as 'en', but is {value!r} instead.")
    if "\0" in value or not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"config.{key} must be text in UTF-8 without NUL, but is {value!r} instead.")


def _check_number(key: str, value: float, *, whole: bool) -> None:
    if not whole and not abs(value) < math.inf:  # also of a whole number that no float holds
        raise UserError(f"config.{key} must be a finite number, but is {value} instead.")
    least, most = AT_LEAST.get(key), AT_MOST.get(key, MOST_WHOLE if whole else MOST)
    rule = ""
    if key in SHARES and not 0 <= value < 1:
        rule = "at least 0 and less than 1"
    elif key in _LEFT_OVER and value < 1 and value != -1:
        rule = "at least 1, or -1 for what is left of the devices"
    elif key == "vocab.character_coverage" and not 0.9 <= value <= 1:
        rule = "between 0.9 and 1"
    elif key == "decode.top_p" and not 0 < value <= 1:
        rule = "more than 0 and at most 1"
    elif key == "train.learning_rate" and not 0 < value <= most:
        rule = f"more than 0 and at most {most:g}"
    elif least is not None and not value >= least:
        rule = f"at least {least}"
    elif value > most:
        rule = f"at most {most:,}" if whole else f"at most {most:g}"
    elif value < -most:
        rule = f"at least -{most:,}" if whole else f"at least -{most:g}"
    if rule:
        raise UserError(f"config.{key} must be {rule}, but is {value} instead.")
