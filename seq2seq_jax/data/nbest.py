"""N-best lists of any system: Moses's format, a hypothesis a line.

    0 ||| the text of a hypothesis ||| LM0= -37.2 WordPenalty0= -32 TranslationModel0= -5.9 -1.7 ||| -1.80752

The fields are the number of the input line (from 0), the text, named features with one or more values each, and the
total that the system ranked by. What else is read:

- separators without blanks beside them, and values without names, as older versions of Moses wrote them;
- `name:` and `name=value` for `name= value`;
- a total without features (Nematus): the total is the only feature then, under the name `Total`;
- more fields after the total (word alignments), which stay as they are.

Lists are written in the one form of the example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from seq2seq_jax.data.sources import read_lines
from seq2seq_jax.errors import UserError

SEPARATOR = "|||"
UNNAMED = ""
"""The name of values that have none."""
MOST_SEGMENTS = 10_000_000
"""Lines of the input that a list may be of; the number of a line beyond is a slip, and memory for all before it."""
TOTAL = "Total"
"""The name of the total where a list has no other feature."""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One line of an n-best list.

    Attributes:
        segment: number of the input line, from 0.
        text: without blanks at its ends.
        features: values by name, in the order of the line; `UNNAMED` is the name of those without one.
        total: what the system ranked by.
        rest: fields after the total.
    """

    segment: int
    text: str
    features: dict[str, tuple[float, ...]]
    total: float
    rest: tuple[str, ...] = ()


def read_nbest(path: Path) -> list[Hypothesis]:
    """Reads a list, plain or gzipped, in the order of its lines.

    Raises:
        UserError: the file cannot be read or is empty, or a line is not of the format; names file, line and rule.
    """
    found: list[Hypothesis] = []
    counts: dict[str, tuple[int, int]] = {}  # name -> how many values it has, and the line that said so first
    for number, line in enumerate(read_lines(path), start=1):
        try:
            item = parse_line(line)
        except ValueError as error:
            raise UserError(
                f"{path}: line {number} is not of an n-best list: {error}; a line is `N ||| text ||| Name= value ||| "
                "total`."
            ) from error
        for name, values in item.features.items():
            count, first = counts.setdefault(name, (len(values), number))
            if count != len(values):
                named = f"feature {name!r}" if name else "features without a name"
                raise UserError(
                    f"{path}: line {number} has {len(values)} values of {named}, but line {first} has {count}; "
                    "every line must have as many."
                )
        found.append(item)
    if not found:
        raise UserError(f"{path}: is empty; an n-best list has at least one line.")
    return found


def parse_line(line: str) -> Hypothesis:
    """One line as a hypothesis.

    Raises:
        ValueError: says which field breaks which rule.
    """
    fields = [field.strip() for field in line.split(SEPARATOR)]
    if len(fields) < 3:
        raise ValueError(f"it has {len(fields)} fields between ||| and not 4" if line.strip() else "it is blank")
    if not (fields[0].isascii() and fields[0].isdigit()):
        raise ValueError(f"it begins with {fields[0]!r} and not with the number of an input line")
    if len(fields[0]) > 20 or int(fields[0]) >= MOST_SEGMENTS:
        raise ValueError(f"its number must be less than {MOST_SEGMENTS:,}, but is {fields[0][:20]}")
    if len(fields) == 3:
        total = _read_number(fields[2], "the total")
        return Hypothesis(int(fields[0]), fields[1], {TOTAL: (total,)}, total)
    total, features = _read_number(fields[3], "the total"), _read_features(fields[2])
    return Hypothesis(int(fields[0]), fields[1], features or {TOTAL: (total,)}, total, tuple(fields[4:]))


def _read_features(field: str) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    name = UNNAMED
    for token in field.split():
        if token[-1] in "=:":
            name, given = token[:-1], ""
        elif "=" in token:
            name, _, given = token.rpartition("=")
        else:
            given = token
        if token != given:  # a name, perhaps with its first value
            if not name or name in found:
                raise ValueError(f"feature {name!r} is there twice" if name else f"{token!r} names no feature")
            found[name] = []
        if given:
            found.setdefault(name, []).append(_read_number(given, f"a value of feature {name!r}"))
    for name, values in found.items():
        if not values:
            raise ValueError(f"feature {name!r} has no value")
    return {name: tuple(values) for name, values in found.items()}


def _read_number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, but is {text!r} instead")
    return value


def render_line(item: Hypothesis) -> str:
    """A hypothesis as a line with its end; numbers in the fewest digits that read the same again."""
    words = []
    for name, values in item.features.items():
        words += ([f"{name}="] if name else []) + [_write_number(value) for value in values]
    fields = [str(item.segment), item.text, " ".join(words), _write_number(item.total), *item.rest]
    return f" {SEPARATOR} ".join(fields) + "\n"


def _write_number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def group_segments(items: Sequence[Hypothesis]) -> dict[int, list[int]]:
    """Number of every input line, in ascending order → places of its hypotheses in `items`, in their order."""
    found: dict[int, list[int]] = {}
    for place, item in enumerate(items):
        found.setdefault(item.segment, []).append(place)
    return dict(sorted(found.items()))


def list_columns(items: Iterable[Hypothesis]) -> list[tuple[str, int]]:
    """Name and number of every value that any hypothesis has, in the order in which they appear."""
    found: dict[tuple[str, int], None] = {}
    for item in items:
        for name, values in item.features.items():
            for n in range(len(values)):
                found.setdefault((name, n))
    return list(found)


def make_matrix(items: Sequence[Hypothesis], columns: Sequence[tuple[str, int]]) -> np.ndarray:
    """The values `[N, columns]` float64; 0 where a hypothesis lacks a feature (sparse ones say nothing then)."""
    place = {column: n for n, column in enumerate(columns)}
    matrix = np.zeros((len(items), len(columns)))
    for row, item in enumerate(items):
        for name, values in item.features.items():
            for n, value in enumerate(values):
                matrix[row, place[name, n]] = value
    return matrix
