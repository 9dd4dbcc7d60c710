"""The two loops of the plain LSTM as one TPU kernel each: weights and state stay in the chip's own memory (VMEM).

    x_t [B, 4H] ────►┌────────────────────────┐────► gates_t, cells_t, outputs_t
    U [H, 4H] ══════►│ x_t + h U ─► gates     │
    c, h [B, H] ════►│            ─► c', h'   │════► c, h of the next step
                     └────────────────────────┘        ─ streamed    ═ stays

The kernel's grid is (parts of the batch, time) and its time is walked in order. What the next steps read arrives while
a step computes, and what it made leaves while the next one computes; U arrives once and the state never leaves. A
sequence that runs backwards is read through its index alone: nothing is copied. The equations are those of
`layers.cells.LSTMCell`, without peepholes or layer normalisation.

Where the chip is two cores under one name (v4, v5p), each core takes half of the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seq2seq_jax.interfaces import Array

LANES = 128
"""Columns of a TPU's vector register; H must be a multiple."""

VMEM_BYTES = 56 * 2**20
"""What a kernel may take of the 64 MiB of a v5p's core; v5e and v6e have 128. (A v4 has 16, and refuses to compile.)"""

_ROWS = 16  # of a tile of bfloat16
_STEPS = (8, 4, 2, 1)
_FETCH = 8 * 2**20  # bytes of one block of steps: more would only be waited for at the start
_SLACK = 4 * 2**20  # what the compiler keeps of a step

_Index = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sequence is cut.

    Attributes:
        rows: of the batch, that a core runs through all of time before it takes others.
        steps: of time, that are fetched and written together.
        columns: of H, that are computed together.
        vmem: bytes that this takes, of the backward loop: the larger.
    """

    rows: int
    steps: int
    columns: int
    vmem: int


def make_plan(shape: tuple[int, ...], dtype: jnp.dtype, cores: int = 1) -> Plan | None:
    """Cuts `[T, B, 4H]` into parts that VMEM holds, as large as can be; None if it does not hold the smallest."""
    length, batch, gates = shape
    width, size = gates // 4, jnp.dtype(dtype).itemsize
    columns = 2 * LANES if width % (2 * LANES) == 0 else LANES
    parts = [n for n in (1, 2, 4, 8, 16, 32) if n == 1 or batch % (n * _ROWS) == 0]
    for part in sorted(parts, key=lambda n: (n < cores, n)):  # first such that all cores have some
        rows = -(-batch // part // _ROWS) * _ROWS
        step = rows * width * (2 * 4 * size + 2 * 4 + size)  # gates, dz, cells, a mask at most, d_outputs
        fixed = gates * width * size + 9 * rows * width * 4 + _SLACK  # U, nine states
        for steps in _STEPS:
            vmem = fixed + 2 * steps * step
            if (steps == 1 or steps * step <= _FETCH) and vmem <= VMEM_BYTES:
                return Plan(batch // part, min(steps, length), columns, vmem)
    return None


def supported(projected: Array, kernel: Array) -> str | None:
    """Why these kernels cannot run a layer, in words that follow "because"; None if they can.

    Args:
        projected: `[T, B, 4H]`.
        kernel: `[H, 4H]`.
    """
    width = kernel.shape[0]
    if kernel.dtype not in (jnp.bfloat16, jnp.float32) or projected.dtype != kernel.dtype:
        return f"both arrays must be bfloat16 or both float32, but are {projected.dtype} and {kernel.dtype}"
    if width % LANES:
        return f"the width must be a multiple of {LANES}, but is {width}"
    if projected.shape[0] == 0 or projected.shape[1] == 0:
        return f"there must be a step and a row, but the input is {projected.shape}"
    if (chip := jax.devices()[0].device_kind) == "TPU v4":
        return f"they need {VMEM_BYTES / 2**20:.0f} MiB of VMEM, more than a {chip} has"
    if make_plan(projected.shape, projected.dtype) is None:
        size = 4 * width * width * kernel.dtype.itemsize / 2**20
        return f"a kernel of {size:.0f} MiB and the state do not fit into {VMEM_BYTES / 2**20:.0f} MiB of VMEM"
    return None


def count_cores() -> int:
    """Cores that one device of this process stands for: 2 on a v4 or v5p."""
    return int(getattr(jax.devices()[0], "num_cores", None) or 1)


def run_forward(
    projected: Array,
    kernel: Array,
    mask: Array,
    c0: Array,
    h0: Array,
    reverse: bool,
    *,
    cores: int | None = None,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """The loop ahead of an LSTM; a masked step repeats the state before it.

    Args:
        projected: `[T, B, 4H]`, the input's part of the pre-activations of i, f, g, o.
        kernel: `[H, 4H]`, in the same dtype.
        mask: `[T, B]`, True where a step is real.
        c0, h0: `[B, H]` float32.
        reverse: run from the last step to the first.
        cores: that share the batch; None: as many as the device has.
        interpret: run without a TPU, to test.

    Returns:
        The activated gates `[T, B, 4H]`, the cells `[T, B, H]` float32 and the outputs `[T, B, H]`, the first and the
        last in the dtype of `projected`.

    Raises:
        ValueError: `supported` says no.
    """
    cut = _Cut.make(projected, kernel, cores, ahead=not reverse)
    body = functools.partial(_forward_body, cut=cut)
    width, kind = kernel.shape[0], _kind(projected)
    rows = (cut.plan.rows, width)
    gates, cells, outputs = pl.pallas_call(
        body,
        name="lstm_forward",
        grid=cut.grid,
        in_specs=[cut.streamed(4 * width), cut.mask(), cut.kept(kernel.shape), cut.state(width), cut.state(width)],
        out_specs=[cut.streamed(4 * width), cut.streamed(width), cut.streamed(width)],
        out_shape=[
            kind(projected.shape, projected.dtype),
            kind((*projected.shape[:2], width), jnp.float32),
            kind((*projected.shape[:2], width), projected.dtype),
        ],
        scratch_shapes=[pltpu.VMEM(rows, jnp.float32), pltpu.VMEM(rows, jnp.float32), pltpu.VMEM(rows, kernel.dtype)],
        input_output_aliases={0: 0},  # the gates take the place of what they were made from
        cost_estimate=cut.estimate(projected, read=4 * width, written=4 * width),
        compiler_params=cut.options(),
        interpret=interpret,
    )(projected, cut.turn_mask(mask), kernel, c0, h0)
    return gates, cells, outputs


def run_backward(
    gates: Array,
    cells: Array,
    c0: Array,
    mask: Array,
    kernel: Array,
    d_outputs: Array,
    d_c: Array,
    d_h: Array,
    reverse: bool,
    *,
    cores: int | None = None,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """The loop back of an LSTM, over what `run_forward` left.

    Args:
        gates, cells: `[T, B, 4H]` and `[T, B, H]`, of `run_forward`.
        c0: `[B, H]` float32.
        mask, kernel, reverse, cores, interpret: as for `run_forward`.
        d_outputs: `[T, B, H]`, cotangents of the outputs.
        d_c, d_h: `[B, H]` float32, those of the last state.

    Returns:
        The cotangents of `projected` `[T, B, 4H]` in the dtype of the gates, zero where masked, and those of c0 and h0.

    Raises:
        ValueError: `supported` says no.
    """
    cut = _Cut.make(gates, kernel, cores, ahead=reverse)
    width, kind = kernel.shape[0], _kind(gates)
    rows = (cut.plan.rows, width)
    dz, dc0, dh0 = pl.pallas_call(
        functools.partial(_backward_body, cut=cut),
        name="lstm_backward",
        grid=cut.grid,
        in_specs=[cut.streamed(4 * width), cut.streamed(width), cut.edge(width), cut.state(width), cut.mask(),
                  cut.kept(kernel.shape[::-1]), cut.streamed(width), cut.state(width), cut.state(width)],
        out_specs=[cut.streamed(4 * width), cut.state(width), cut.state(width)],
        out_shape=[kind(gates.shape, gates.dtype), kind(c0.shape, jnp.float32), kind(c0.shape, jnp.float32)],
        scratch_shapes=[pltpu.VMEM(rows, jnp.float32), pltpu.VMEM(rows, jnp.float32)],
        input_output_aliases={0: 0},  # and their cotangents that of the gates
        cost_estimate=cut.estimate(gates, read=7 * width, written=4 * width),
        compiler_params=cut.options(),
        interpret=interpret,
    )(gates, cells, cells, c0, cut.turn_mask(mask), kernel.T, d_outputs, d_c, d_h)  # fmt: skip
    return dz, dc0, dh0


def _kind(like: Array) -> Callable[..., jax.ShapeDtypeStruct]:
    """Shapes of results that vary over the mesh axes that an argument varies over, inside `shard_map`."""
    return functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(like).manual_axis_type)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A plan for one sequence: which block of every array a place in the grid works on.

    Attributes:
        plan: see there.
        length, batch: T and B.
        ahead: blocks, and steps in a block, go from the first to the last; else from the last to the first.
    """

    plan: Plan
    length: int
    batch: int
    ahead: bool

    @classmethod
    def make(cls, streamed: Array, kernel: Array, cores: int | None, *, ahead: bool) -> _Cut:
        """For a loop that walks ahead in time, or back, over `[T, B, 4H]`."""
        reason = supported(streamed, kernel)
        plan = make_plan(streamed.shape, streamed.dtype, count_cores() if cores is None else cores)
        if reason is not None or plan is None:
            raise ValueError(f"the LSTM kernel for TPUs cannot run this layer, because {reason}")
        return cls(plan, streamed.shape[0], streamed.shape[1], ahead)

    @property
    def blocks(self) -> int:
        return -(-self.length // self.plan.steps)

    @property
    def grid(self) -> tuple[int, int]:
        return self.batch // self.plan.rows, self.blocks

    def block(self, n: Any) -> Any:
        """The block of time that is the n-th to be worked on."""
        return n if self.ahead else self.blocks - 1 - n

    def streamed(self, width: int) -> pl.BlockSpec:
        """Of an array `[T, B, width]`, whose last block may be cut short by the end of the sequence."""
        shape = (self.plan.steps, self.plan.rows, width)
        return pl.BlockSpec(shape, lambda b, n: (self.block(n), b, 0))

    def edge(self, width: int) -> pl.BlockSpec:
        """Of the one step of `[T, B, width]` that is next to the block, where the walk goes to."""
        steps, last = self.plan.steps, self.length - 1

        def index(b: Any, n: Any) -> tuple[Any, Any, int]:
            first = self.block(n) * steps
            return (jnp.minimum(first + steps, last) if self.ahead else jnp.maximum(first - 1, 0)), b, 0

        return pl.BlockSpec((1, self.plan.rows, width), index)

    def mask(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.plan.steps, 1, self.plan.rows), lambda b, n: (b, self.block(n), 0, 0))

    def turn_mask(self, mask: Array) -> Array:
        """`[T, B]` as float32 `[B / rows, T, 1, rows]`: blocks of whole last axes, whatever their size."""
        parts = mask.astype(jnp.float32).reshape(self.length, self.grid[0], 1, self.plan.rows)
        return parts.transpose(1, 0, 2, 3)

    def state(self, width: int) -> pl.BlockSpec:
        """Of an array `[B, width]` that is read or written once."""
        return pl.BlockSpec((self.plan.rows, width), lambda b, n: (b, 0), pipeline_mode=pl.Buffered(1))

    def kept(self, shape: tuple[int, ...]) -> pl.BlockSpec:
        """Of a matrix that is read once, by each core, and stays."""
        return pl.BlockSpec(shape, lambda b, n: (0, 0), pipeline_mode=pl.Buffered(1))

    def options(self) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=self.plan.vmem)

    def estimate(self, streamed: Array, *, read: int, written: int) -> pl.CostEstimate:
        """What a loop does, for those who read the compiled program; `read` and `written` are values a row and step."""
        steps, gates, size = self.length * self.batch, streamed.shape[-1], streamed.dtype.itemsize
        return pl.CostEstimate(
            flops=2 * steps * gates * gates // 4,
            transcendentals=steps * gates * 5 // 4,
            bytes_accessed=steps * (read + written) * size + gates * gates // 4 * size,
        )

    def walk(self, step: Callable[[Any], None]) -> None:
        """Runs the steps of the block at hand, by their place in it, leaving out those behind the end."""
        here = jnp.minimum(self.plan.steps, self.length - self.block(pl.program_id(1)) * self.plan.steps)
        lax.fori_loop(0, here, lambda k, _: step(k if self.ahead else here - 1 - k), None)

    def each_part(self, width: int, work: _Index) -> None:
        """Runs `work(start)` for every slice of H that is computed together."""
        columns = self.plan.columns
        lax.fori_loop(0, width // columns, lambda n, _: work(pl.multiple_of(n * columns, columns)), None)

    def slices(self, start: Any, width: int) -> Iterator[Any]:
        """The columns of i, f, g and o that belong to the columns of H from `start` on."""
        columns = self.plan.columns
        return (pl.ds(pl.multiple_of(gate * width + start, columns), columns) for gate in range(4))


def _forward_body(
    x: Any, mask: Any, kernel: Any, c0: Any, h0: Any, gates: Any, cells: Any, outputs: Any, c: Any, h: Any, h_in: Any,
    *, cut: _Cut,
) -> None:  # fmt: skip
    """One block of the loop ahead: `c` and `h` go from block to block, `h_in` is what a step starts from."""
    width = c.shape[-1]

    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
        c[...] = c0[...]
        h[...] = h0[...]

    def step(s: Any) -> None:
        h_in[...] = h[...].astype(h_in.dtype)
        real = mask[s].T > 0.0  # [rows, 1]

        def part(start: Any) -> None:
            own, places = pl.ds(start, cut.plan.columns), list(cut.slices(start, width))
            z = [
                x[s, :, at].astype(jnp.float32) + jnp.dot(h_in[...], kernel[:, at], preferred_element_type=jnp.float32)
                for at in places
            ]
            i, f, g, o = jax.nn.sigmoid(z[0]), jax.nn.sigmoid(z[1]), jnp.tanh(z[2]), jax.nn.sigmoid(z[3])
            for at, gate in zip(places, (i, f, g, o), strict=True):
                gates[s, :, at] = gate.astype(gates.dtype)
            new = f * c[:, own] + i * g
            c[:, own] = jnp.where(real, new, c[:, own])
            h[:, own] = jnp.where(real, o * jnp.tanh(new), h[:, own])
            cells[s, :, own] = c[:, own]
            outputs[s, :, own] = h[:, own].astype(outputs.dtype)

        cut.each_part(width, part)

    cut.walk(step)


def _backward_body(
    gates: Any, cells: Any, edge: Any, c0: Any, mask: Any, kernel_t: Any, d_outputs: Any, d_c: Any, d_h: Any,
    dz: Any, dc0: Any, dh0: Any, dc: Any, dh: Any, *, cut: _Cut,
) -> None:  # fmt: skip
    """One block of the loop back: `dc` and `dh` go from block to block."""
    width, steps = dc.shape[-1], cut.plan.steps
    block, turn = cut.block(pl.program_id(1)), 1 if cut.ahead else -1

    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
        dc[...] = d_c[...]
        dh[...] = d_h[...]

    def step(s: Any) -> None:
        real = mask[s].T > 0.0  # [rows, 1]
        first = block * steps + s == (cut.length - 1 if cut.ahead else 0)  # of the loop ahead
        outside = (s + turn < 0) | (s + turn >= steps)
        inside = jnp.clip(s + turn, 0, steps - 1)

        def part(start: Any) -> None:
            own, places = pl.ds(start, cut.plan.columns), list(cut.slices(start, width))
            i, f, g, o = (gates[s, :, at].astype(jnp.float32) for at in places)
            before = jnp.where(outside, edge[0, :, own], cells[inside, :, own])
            before = jnp.where(first, c0[:, own], before)
            tanh_c = jnp.tanh(cells[s, :, own])
            d_out = dh[:, own] + d_outputs[s, :, own].astype(jnp.float32)
            d_cell = dc[:, own] + d_out * o * (1.0 - tanh_c * tanh_c)
            made = (d_cell * g * i * (1.0 - i), d_cell * before * f * (1.0 - f), d_cell * i * (1.0 - g * g),
                    d_out * tanh_c * o * (1.0 - o))  # fmt: skip
            for at, one in zip(places, made, strict=True):
                dz[s, :, at] = jnp.where(real, one, 0.0).astype(dz.dtype)
            dc[:, own] = jnp.where(real, d_cell * f, dc[:, own])
            dh[:, own] = jnp.where(real, 0.0, d_out)

        def product(start: Any) -> None:
            own = pl.ds(start, cut.plan.columns)
            dh[:, own] += jnp.dot(dz[s], kernel_t[:, own], preferred_element_type=jnp.float32)

        cut.each_part(width, part)
        cut.each_part(width, product)

    cut.walk(step)

    @pl.when(pl.program_id(1) == cut.blocks - 1)
    def _end() -> None:
        dc0[...] = dc[...]
        dh0[...] = dh[...]
