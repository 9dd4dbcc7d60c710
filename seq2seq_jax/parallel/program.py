"""Reads the text of a compiled program: its computations, their operations, and how often each loop runs.

XLA's own cost analysis counts the body of a loop once, and a recurrent model is loops inside loops. So
the text that `compiled.as_text()` gives is parsed here and walked by `work.py`. Nothing here knows a
model or a machine; what is not understood (a loop without a known end) is reported, never guessed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%?([A-Za-z_][\w.\-]*)$")
_FORWARDS = ("bitcast", "copy", "convert", "reshape", "copy-done", "broadcast")


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """One array of a program, as one device holds it.

    Attributes:
        dtype: XLA's name, such as "f32" or "pred".
        dims: its sizes.
        fast: whether it lives in the chip's own memory (a TPU's VMEM) instead of HBM.
    """

    dtype: str
    dims: tuple[int, ...]
    fast: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def size(self) -> float:
        """Bytes, without the padding of a tiled layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else int(digits.group()) if digits else 0
        return self.elements * (bits or 0) / 8


@dataclasses.dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        name, opcode: as XLA writes them.
        results: what it makes; several arrays if it is a tuple.
        operands: names of what it reads, in order; a constant's literal.
        attributes: the rest of its line.
    """

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def size(self) -> float:
        """Bytes of all results."""
        return sum(result.size for result in self.results)

    def find(self, key: str) -> str | None:
        """A simple attribute's value: `find("index")` of `index=3`."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    def find_sizes(self, key: str) -> tuple[int, ...]:
        """An attribute that lists numbers: `dimensions={0,2}`."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found.group(1).split(",") if n) if found else ()


@dataclasses.dataclass
class Computation:
    """A named list of operations."""

    name: str
    ops: dict[str, Op] = dataclasses.field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, Op]:
        """By number."""
        return {int(op.operands[0]): op for op in self.ops.values() if op.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Op, int]]]:
        """Of every operation: who reads it, and as which operand."""
        found: dict[str, list[tuple[Op, int]]] = {name: [] for name in self.ops}
        for op in self.ops.values():
            for place, name in enumerate(op.operands):
                if name in found:
                    found[name].append((op, place))
        return found


@dataclasses.dataclass
class Program:
    """All computations of a compiled program, by name."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def callers(self) -> dict[str, tuple[Computation, Op]]:
        """Of every body of a loop and every called computation: where that stands."""
        found = {}
        for computation in self.computations.values():
            for op in computation.ops.values():
                if op.opcode in ("while", "call"):
                    name = op.find("body" if op.opcode == "while" else "to_apply") or ""
                    found[name] = (computation, op)
        return found

    def called(self, op: Op, key: str = "calls") -> Computation | None:
        """The computation that an operation names under `calls`, `body`, `condition` or `to_apply`."""
        return self.computations.get(op.find(key) or "")

    def branches(self, op: Op) -> list[Computation]:
        """The branches of a conditional."""
        found = re.search(r"branch_computations=\{([^}]*)\}", op.attributes)
        if found:
            names = [name.strip().lstrip("%") for name in found.group(1).split(",")]
        else:
            names = [op.find("true_computation") or "", op.find("false_computation") or ""]
        return [self.computations[name] for name in names if name in self.computations]


def parse_program(text: str) -> Program:
    """Parses what `compiled.as_text()` returns.

    Raises:
        ValueError: it holds no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", Computation("")
    for line in text.splitlines():
        if line[:1] in ("%", "E") or (line.endswith("{") and line[:1].isalpha()):
            header = _HEADER.match(line)
            if header:
                current = computations[header.group(2)] = Computation(header.group(2))
                entry = header.group(2) if header.group(1) else entry
        elif line.startswith("  "):
            op = _parse_op(line)
            if op is not None:
                current.ops[op.name] = op
                if line.startswith("  ROOT "):
                    current.root = op.name
    if not entry:
        raise ValueError("the text must be a compiled program's with an ENTRY computation, but has none.")
    return Program(computations, entry)


def _parse_op(line: str) -> Op | None:
    start = _LINE.match(line)
    if not start:
        return None
    at = start.end()
    end = _close(line, at) if line[at] == "(" else line.index(" ", at)
    results = tuple(_parse_buffers(line[at:end]))
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _close(line, opcode.end() - 1)
    inside, attributes = line[opcode.end() : close - 1], line[close:]
    if opcode.group(1) in ("constant", "parameter"):
        operands: tuple[str, ...] = (inside,)
    else:
        names = (_NAME.search(part.strip()) for part in _split(inside))
        operands = tuple(name.group(1) for name in names if name)
    return Op(start.group(2), opcode.group(1), results, operands, attributes)


def _parse_buffers(text: str) -> Iterator[Buffer]:
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield Buffer(dtype, sizes, fast=bool(re.search(r"S\([1-9]", layout)))


def _close(line: str, at: int) -> int:
    """Where the bracket that opens at `at` has closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, at):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.end()
    return len(line)


def _split(text: str) -> list[str]:
    """Parts between commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[()\[\]{},]", text):
        mark = found.group()
        if mark == "," and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
        elif mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
    return [*parts, text[start:]]


def count_trips(program: Program, computation: Computation, loop: Op) -> int | None:
    """How often a `while` runs, or at most runs; None if the text does not say.

    XLA writes down what it knows as `known_trip_count`. Elsewhere the condition compares a counter with a
    constant, and the counter starts at a constant and grows by one in the body. A condition that
    also asks for something else (a search that may end early) is bounded by its counter.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    condition, body = program.called(loop, "condition"), program.called(loop, "body")
    if condition is None or body is None:
        return None
    ends = []
    for counter, (kind, limit), direction in _comparisons(program, condition):
        start = _initial_value(program, computation, loop, counter)
        step = _increment(program, body, counter)
        end = limit if kind == "constant" else _initial_value(program, computation, loop, limit)
        if start is None or end is None or not step or (kind == "carried" and not _is_kept(body, limit)):
            continue
        span = end - start + (direction == "LE")
        ends.append(max(0, math.ceil(span / step)))
    return min(ends) if ends else None


def _comparisons(program: Program, condition: Computation) -> Iterator[tuple[int, tuple[str, int], str]]:
    """(index of the carried counter, what it is compared with, "LT" or "LE") of every comparison in a condition."""
    swapped = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}
    for op in condition.ops.values():
        if op.opcode == "compare":
            spots: list[tuple[Computation, Op, dict[int, str]]] = [(condition, op, {})]
        elif op.opcode == "fusion" and (inner := program.called(op)):
            outer = dict(enumerate(op.operands))
            spots = [(inner, one, outer) for one in inner.ops.values() if one.opcode == "compare"]
        else:
            continue
        for where, compare, outer in spots:
            sides = [_resolve(where, name, condition, outer) for name in compare.operands]
            direction = compare.find("direction") or ""
            if direction not in swapped or len(sides) != 2 or None in sides:
                continue
            left, right = sides[0], sides[1]
            if direction in ("GT", "GE"):
                left, right, direction = right, left, swapped[direction]
            if left is not None and right is not None and left[0] == "carried":
                yield left[1], right, direction


def _resolve(where: Computation, name: str, outside: Computation, outer: dict[int, str]) -> tuple[str, int] | None:
    """A scalar as ("constant", its value) or ("carried", its index in the loop's tuple)."""
    op = where.ops.get(name)
    while op is not None:
        if op.opcode == "constant":
            return ("constant", int(op.operands[0])) if re.fullmatch(r"-?\d+", op.operands[0]) else None
        if op.opcode == "get-tuple-element":
            carrier = where.ops.get(op.operands[0])
            given = carrier is not None and carrier.opcode == "parameter"
            return ("carried", int(op.find("index") or 0)) if given else None
        if op.opcode == "parameter":
            name = outer.get(int(op.operands[0]), "")
            return _resolve(outside, name, outside, {}) if name else None
        op = where.ops.get(op.operands[0]) if op.opcode in _FORWARDS and op.operands else None
    return None


def _initial_value(program: Program, computation: Computation, loop: Op, index: int) -> int | None:
    """The constant that a loop's carried scalar starts from, looked for outside of the computation if need be."""
    given = computation.ops.get(loop.operands[0]) if loop.operands else None
    caller, op = program.callers.get(computation.name, (None, None))
    if given is not None and given.opcode == "parameter" and caller and op and op.opcode == "call":
        return _initial_value(program, caller, op, index)
    if given is None or given.opcode != "tuple":
        return None
    kind, value = _resolve(computation, given.operands[index], computation, {}) or ("", 0)
    if kind == "constant":
        return value
    if kind == "carried" and caller and op and op.opcode == "while" and _is_kept(computation, value):
        return _initial_value(program, caller, op, value)
    return None


def _is_kept(body: Computation, index: int) -> bool:
    """Whether the body hands a carried value on as it came."""
    root = body.ops.get(body.root)
    if root is None or root.opcode != "tuple":
        return False
    return _resolve(body, root.operands[index], body, {}) == ("carried", index)


def _increment(program: Program, body: Computation, index: int) -> int | None:
    """What the body adds to a carried counter."""
    root = body.ops.get(body.root)
    if root is None or root.opcode != "tuple":
        return None
    op, where, outer = body.ops.get(root.operands[index]), body, dict[int, str]()
    while op is not None and op.opcode in _FORWARDS:
        op = where.ops.get(op.operands[0])
    if op is not None and op.opcode == "fusion" and (inner := program.called(op)):
        where, outer = inner, dict(enumerate(op.operands))
        op = inner.ops.get(inner.root)
    if op is None or op.opcode != "add":
        return None
    sides = [_resolve(where, name, body, outer) for name in op.operands]
    steps = [side[1] for side in sides if side and side[0] == "constant"]
    return steps[0] if len(steps) == 1 and ("carried", index) in sides else None
