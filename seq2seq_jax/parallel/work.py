"""What a compiled program does in one run on one device: products, bytes moved, collectives, loop by loop.

The walk starts at the entry and multiplies by the trips of every loop on the way. Of a conditional the
branch with more work counts. What lives in a TPU's VMEM moves no bytes of HBM.
"""

from __future__ import annotations

import dataclasses
import math
import re

from seq2seq_jax.parallel.program import Buffer, Computation, Op, Program, count_trips

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
               "collective-broadcast", "ragged-all-to-all")  # fmt: skip
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
         "copy-done", "slice-done", "async-done", "async-update", "domain", "opt-barrier", "get-dimension-size",
         "add-dependency", "iota", "send-done", "recv-done", "while", "conditional", "call")  # fmt: skip
_SLOW = ("tanh", "exponential", "logistic", "log", "exponential-minus-one", "log-plus-one", "sine", "cosine", "power",
         "rsqrt", "sqrt", "erf", "divide")  # fmt: skip
_PASSES = {"highest": 6, "high": 3}


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """One operation that the device runs as a whole.

    Attributes:
        name: where it comes from in the model (jax's `op_name`), or XLA's name for it.
        times: runs in one run of the program.
        flops: of matrix products and convolutions in one run, 2 for a multiplication and an addition.
        flops32: those of them whose operands are float32, times the passes that the asked precision takes.
        bytes: read from and written to the device's memory in one run.
        elements: made by element-wise arithmetic in one run.
        slow: those of `elements` made by tanh, exp, division and the like.
        cycles: what the compiler says one run takes, where it says so.
    """

    name: str
    times: float
    flops: float = 0.0
    flops32: float = 0.0
    bytes: float = 0.0
    elements: float = 0.0
    slow: float = 0.0
    cycles: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One collective operation in the text.

    Attributes:
        kind: one of `COLLECTIVES`.
        times: runs in one run of the program.
        bytes: its whole payload on one device in one run: what an all-reduce sums, what an all-gather
            leaves, what a reduce-scatter starts from, what an all-to-all or a permute sends away.
        attributes: its line, for the devices that take part.
        asynchronous: whether the compiler starts it early and waits for it later.
    """

    kind: str
    times: float
    bytes: float
    attributes: str
    asynchronous: bool


@dataclasses.dataclass
class Work:
    """Everything of one run.

    Attributes:
        kernels, calls: see there.
        trips: iterations of all loops together: what a latency per iteration multiplies.
        unbounded: loops whose number of trips the text does not tell; they are counted once.
    """

    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    calls: list[Call] = dataclasses.field(default_factory=list)
    trips: float = 0.0
    unbounded: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Work) -> None:
        self.kernels += other.kernels
        self.calls += other.calls
        self.trips += other.trips
        self.unbounded += other.unbounded

    @property
    def flops(self) -> float:
        return sum(kernel.times * kernel.flops for kernel in self.kernels)

    @property
    def bytes(self) -> float:
        return sum(kernel.times * kernel.bytes for kernel in self.kernels)

    @property
    def cycles(self) -> float:
        return sum(kernel.times * kernel.cycles for kernel in self.kernels)


def count_work(program: Program) -> Work:
    """The work of one run of a program on one device."""
    work = Work()
    _walk(program, program.computations[program.entry], 1.0, work)
    return work


def _walk(program: Program, computation: Computation, times: float, work: Work) -> None:
    seen: set[str] = set()
    for op in computation.ops.values():
        if op.opcode == "while":
            trips = count_trips(program, computation, op)
            if trips is None:
                work.unbounded.append(_label(op))
            work.trips += times * (trips or 1)
            for key in ("body", "condition"):
                if inner := program.called(op, key):
                    _walk(program, inner, times * (1 if trips is None else trips), work)
        elif op.opcode == "conditional":
            found = []
            for branch in program.branches(op):
                found.append(Work())
                _walk(program, branch, times, found[-1])
            if found:
                work.add(max(found, key=lambda one: (one.flops, one.bytes)))
        elif op.opcode == "call" or (op.opcode == "async-start" and not _is_collective(program, op)):
            if inner := program.called(op, "to_apply") or program.called(op):
                _walk(program, inner, times, work)
        else:
            work.calls += _collectives(program, op, times, seen)
            if op.opcode not in _FREE and _kind(op.opcode) is None and not op.opcode.endswith("-done"):
                work.kernels.append(_kernel(program, computation, op, times))


def _kind(opcode: str) -> str | None:
    plain = opcode.removesuffix("-start")
    return plain if plain in COLLECTIVES else None


def _is_collective(program: Program, op: Op) -> bool:
    inner = program.called(op)
    return inner is not None and any(_kind(one.opcode) for one in inner.ops.values())


def _collectives(program: Program, op: Op, times: float, seen: set[str]) -> list[Call]:
    """The collectives in one operation of a computation.

    A TPU's compiler wraps some in fusions: an all-reduce whose result is sliced at once is a
    reduce-scatter; an asynchronous one appears in the fusion that starts it, in those that push it on
    and in the one that waits for it, every time with the same channel: `seen` counts it once.
    """
    if kind := _kind(op.opcode):
        return [Call(kind, times, _payload(kind, op, None), op.attributes, op.opcode.endswith("-start"))]
    inner = program.called(op) if op.opcode in ("fusion", "async-start") else None
    if inner is None:
        return []
    calls = []
    sliced = "all-reduce-scatter" in inner.name
    for one in inner.ops.values():
        if one.opcode in ("fusion", "async-start"):
            calls += _collectives(program, one, times, seen)
        elif kind := _kind(one.opcode):
            channel = one.find("channel_id") or one.name
            if channel in seen:
                continue
            seen.add(channel)
            waits = op.opcode == "async-start" or any("AsyncCollectiveStart" in other.attributes
                                                      for other in inner.ops.values())  # fmt: skip
            kind = "reduce-scatter" if sliced and kind == "all-reduce" else kind
            calls.append(Call(kind, times, _payload(kind, one, inner), one.attributes, waits))
    return calls


def _payload(kind: str, op: Op, inner: Computation | None) -> float:
    results = list(op.results)
    if op.opcode.endswith("-start") and op.opcode != "all-reduce-start":
        # (inputs..., outputs..., scalars): the outputs
        arrays = [one for one in results if one.dims or one.dtype not in ("u32", "s32")]
        results = arrays[len(arrays) // 2 :]
    size = sum(result.size for result in results)
    if kind == "reduce-scatter" and op.opcode.startswith("reduce-scatter"):
        size *= group_size(op.attributes)
    return size


def group_size(attributes: str) -> int:
    """Devices in one group of a collective; 1 if its line does not say."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found.group(2))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", found.group(1)))
        parts = re.findall(r"'?([\w.]+)'?(?::\(\d+\)(\d+))?(?:,|$)", found.group(2))
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return 1


def _kernel(program: Program, computation: Computation, op: Op, times: float) -> Kernel:
    arithmetic = _Arithmetic(program)
    arithmetic.count(computation, op)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', op.attributes)
    return Kernel(
        name=_label(op),
        times=times,
        flops=arithmetic.flops,
        flops32=arithmetic.flops32,
        bytes=_count_bytes(program, computation, op),
        elements=arithmetic.elements,
        slow=arithmetic.slow,
        cycles=float(cycles.group(1)) if cycles else 0.0,
    )


def _label(op: Op) -> str:
    found = re.search(r'op_name="([^"]*)"', op.attributes)
    return found.group(1) if found else op.name


class _Arithmetic:
    """Adds up the arithmetic of an operation and of everything fused into it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.flops = self.flops32 = self.elements = self.slow = 0.0

    def count(self, computation: Computation, op: Op) -> None:
        if op.opcode in ("fusion", "async-start", "call"):
            inner = self.program.called(op) or self.program.called(op, "to_apply")
            for one in inner.ops.values() if inner else ():
                self.count(inner, one)  # type: ignore[arg-type]
            return
        flops = count_flops(computation, op)
        self.flops += flops
        if flops and _operand(computation, op, 0).dtype == "f32":
            asked = re.search(r"operand_precision=\{(\w+)", op.attributes)
            self.flops32 += flops * _PASSES.get(asked.group(1) if asked else "", 1)
        elif op.opcode in ("reduce", "reduce-window", "scatter", "sort", "map"):
            self.elements += _operand(computation, op, 0).elements
        elif not flops and op.opcode not in _FREE and op.results:
            self.elements += op.results[0].elements
            self.slow += op.results[0].elements if op.opcode in _SLOW else 0


def count_flops(computation: Computation, op: Op) -> float:
    """Multiplications and additions of a product or convolution, 2 M N K for `[M, K] @ [K, N]`; 0 for all else."""
    if op.opcode == "dot":
        left = _operand(computation, op, 0)
        return 2.0 * op.results[0].elements * math.prod(left.dims[n] for n in op.find_sizes("lhs_contracting_dims"))
    if op.opcode == "convolution":
        return _convolution_flops(computation, op)
    if op.opcode == "custom-call":
        stated = re.search(r'"flops":"?(\d+)', op.attributes)  # what a Pallas kernel says of itself
        contracted = re.search(r'lhs_contracting_dimensions":\["?([\d",]+)\]', op.attributes)  # a library's product
        if stated:
            return float(stated.group(1))
        if contracted and op.results:
            left = _operand(computation, op, 0)
            places = [int(n) for n in re.findall(r"\d+", contracted.group(1))]
            return 2.0 * op.results[0].elements * math.prod(left.dims[n] for n in places)
    return 0.0


def _convolution_flops(computation: Computation, op: Op) -> float:
    """Only places where the window meets a real element count: a TPU writes batched products as dilated windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    if not labels:
        return 0.0
    left, right, out = (_operand(computation, op, 0), _operand(computation, op, 1), op.results[0])
    left_labels, right_labels, out_labels = labels.groups()
    window = _parse_window(op.attributes)
    groups = re.search(r"batch_group_count=(\d+)", op.attributes)
    pairs = 1.0
    for n, label in enumerate(sorted(label for label in out_labels if label.isdigit())):
        pairs *= _count_pairs(
            left.dims[left_labels.index(label)],
            right.dims[right_labels.index(label)],
            out.dims[out_labels.index(label)],
            {key: values[n] for key, values in window.items() if n < len(values)},
        )
    rows = left.dims[left_labels.index("b")] / (int(groups.group(1)) if groups else 1)
    features = right.dims[right_labels.index("i")] * right.dims[right_labels.index("o")]
    return 2.0 * pairs * rows * features


def _parse_window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    pairs = (part.partition("=") for part in found.group(1).split()) if found else ()
    return {key: value.split("x") for key, _, value in pairs}


def _count_pairs(size: int, width: int, places: int, window: dict[str, str]) -> int:
    """Pairs of (place of the result, place in the window) that meet an element, along one dimension."""
    stride, dilate = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    spread = int(window.get("rhs_dilate", 1))
    last = (size - 1) * dilate
    count = 0
    for k in range(width):
        for place in range(places):
            at = place * stride - low + k * spread
            count += 0 <= at <= last and at % dilate == 0
    return count


_NOTHING = Buffer("opaque", ())


def _operand(computation: Computation, op: Op, n: int) -> Buffer:
    source = computation.ops.get(op.operands[n]) if n < len(op.operands) else None
    return source.results[0] if source and source.results else _NOTHING


def _count_bytes(program: Program, computation: Computation, op: Op) -> float:
    """Bytes of memory that one operation reads and writes: slices by their own size, updates in place."""
    sources = [computation.ops.get(name) for name in op.operands]
    total = 0.0
    for place, source in enumerate(sources):
        if source is not None and source.opcode != "constant":
            slow = sum(one.size for one in source.results if not one.fast)
            total += min(slow, _read(program, op, place, slow))
    return total + _written(program, computation, op)


def _read(program: Program, op: Op, place: int, whole: float) -> float:
    """Bytes that `op` reads of its operand number `place`."""
    if op.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
        return op.size
    if op.opcode in ("dynamic-update-slice", "scatter") and place == 0:
        return 0.0
    if op.opcode in ("copy-start", "slice-start"):
        return whole if op.opcode == "copy-start" else op.results[-2].size if len(op.results) > 1 else whole
    inner = program.called(op) if op.opcode == "fusion" else None
    if inner is None or place not in inner.parameters:
        return whole
    return _read_inside(program, inner, inner.parameters[place].name, whole)


def _read_inside(program: Program, inner: Computation, name: str, whole: float) -> float:
    total = 0.0
    for user, place in inner.users.get(name, []):
        if user.opcode == "bitcast":
            total += _read_inside(program, inner, user.name, whole)
        else:
            total += _read(program, user, place, whole)
    return min(total, whole)


def _written(program: Program, computation: Computation, op: Op) -> float:
    if op.opcode in ("copy-start", "slice-start"):
        made = op.results[:1] if op.opcode == "copy-start" else op.results[-2:-1]  # behind the operand
        return sum(one.size for one in made if not one.fast)
    if op.opcode == "dynamic-update-slice":
        return 0.0 if op.results[0].fast else _operand(computation, op, 1).size
    slow = [one for one in op.results if not one.fast]
    inner = program.called(op) if op.opcode == "fusion" else None
    if inner is None:
        return sum(one.size for one in slow)
    root = inner.ops.get(inner.root)
    makers = [root] if root is None or root.opcode != "tuple" else [inner.ops.get(name) for name in root.operands]
    total = 0.0
    for result, maker in zip(op.results, makers, strict=False):
        while maker is not None and maker.opcode in ("bitcast", "copy", "convert") and maker.operands:
            below = inner.ops.get(maker.operands[0])
            if below is None or below.opcode not in ("bitcast", "copy", "convert", "dynamic-update-slice"):
                break
            maker = below
        in_place = maker is not None and maker.opcode == "dynamic-update-slice"
        size = _operand(inner, maker, 1).size if in_place and maker is not None else result.size
        total += 0.0 if result.fast else size
    return total
