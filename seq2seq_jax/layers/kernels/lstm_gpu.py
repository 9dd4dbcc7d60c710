"""The two loops of the plain LSTM as one launch each on an NVIDIA Hopper GPU (H100, H200), in Pallas for Mosaic GPU.

The recurrent kernel stays in shared memory for the whole sequence, as in the persistent kernels of Diamos et al.
(2016, "Persistent RNNs"), cuDNN and FlashRNN (Poeppel et al. 2024). A program (one multiprocessor) owns 16 hidden
units: all four gates of them, 64 columns of the product, 128 H bytes of bfloat16. The H / 16 programs that share the
rows are a group. A step of a group:

    forward    h of all units from L2 in pieces of 64 (TMA, four in flight) -> wgmma with the 64 columns -> gates, cell
               -> own h to its place in `outputs` (TMA) -> all programs of the group meet
    backward   own dz, four gates, to its place in `dz` -> all meet -> one gate of dz times 64 of the units it reaches,
               [H, 64] as ahead -> the four programs of a quad, one a gate, add their products through L2

A meeting is a counter in global memory: each program adds one (release) and waits for everybody (acquire). What is
exchanged has a fresh place at every step, so that one meeting a step is enough. Groups never wait for one another; a
program with several tiles of 64 rows has one meeting a tile, and works on the next tile while others arrive.

All programs of a launch must be resident at the same time: there are never more of them than multiprocessors. Two
such launches must not run at once on one GPU (XLA has one stream for compute).

The floor of a step, by counting (H = 1024, 128 rows, 128 programs of 132): 1.07 GFLOP are 1.1 us at 990 TFLOP/s; h
read by 64 programs a group is 16 MiB of L2, 3 us at 5.5 TB/s; inputs and results 2.75 MiB of memory, 0.8 us at 3.35
TB/s, beside it; a meeting 1 to 2 us. Backward adds 4 MiB of partial sums and a second meeting, of four. On 512 rows h
is 64 MiB, 12 us: there the product itself, not the launch or the barrier, is the cost. H = 256 with 32 rows: 16
programs, 0.3 us of product, the rest is latency. None of this was measured: the kernels ran in the interpreter, and
were compiled for sm_90a (H = 1024: 162 and 168 KiB of shared memory, 255 registers, no spills with one tile a program;
with two and four tiles there are some).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.kernels.gpu_program import (
    TILE,
    Launch,
    Program,
    Split,
    count_processors,
    make_split,
    pad_rows,
)

SHARED_BYTES = 232_448
"""Shared memory that one block can have on compute capability 9.0."""

_F32 = jnp.float32


def supported(projected: Array, kernel: Array) -> str | None:
    """Why these kernels cannot run a layer, in words that follow "because"; None if they can.

    Args:
        projected: `[T, B, 4H]`.
        kernel: `[H, 4H]`.
    """
    hidden = kernel.shape[0]
    steps, batch, _ = projected.shape
    if projected.dtype != jnp.bfloat16 or kernel.dtype != jnp.bfloat16:
        return f"both arrays must be bfloat16, but are {projected.dtype} and {kernel.dtype}"
    if hidden % TILE or hidden == 0:
        return f"the width must be a multiple of {TILE}, but is {hidden}"
    if steps == 0 or batch == 0:
        return f"there must be a step and a row, but the input is {projected.shape}"
    if (needed := Split(0, 0, 0).count_bytes(hidden)) > SHARED_BYTES:
        return f"a width of {hidden} needs {needed} bytes of shared memory, and a multiprocessor has {SHARED_BYTES}"
    device = jax.devices()[0]
    chip = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or chip != "9.0":
        return f"they need an NVIDIA GPU of compute capability 9.0, and this is {device.device_kind} ({chip or 'none'})"
    if make_split(batch, hidden, count_processors()) is None:
        return f"{batch} rows of width {hidden} do not fit on {count_processors()} multiprocessors at once"
    return None


def run_forward(
    projected: Array,
    kernel: Array,
    mask: Array,
    c0: Array,
    h0: Array,
    reverse: bool,
    *,
    split: Split | None = None,
    interpret: Any = None,
) -> tuple[Array, Array, Array]:
    """The loop ahead of an LSTM; a masked step repeats the state before it.

    Args:
        projected: `[T, B, 4H]` bfloat16, the input's part of the pre-activations of i, f, g, o.
        kernel: `[H, 4H]` bfloat16.
        mask: `[T, B]`, True where a step is real.
        c0, h0: `[B, H]` float32.
        reverse: run from the last step to the first.
        split: how to divide the work; None: over the multiprocessors of the first device.
        interpret: parameters of the interpreter of Mosaic GPU, to run without a GPU, to test.

    Returns:
        The activated gates `[T, B, 4H]`, the cells `[T, B, H]` float32 and the outputs `[T, B, H]`, the first and the
        last in bfloat16.

    Raises:
        ValueError: the rows do not fit, see `supported`.
    """
    launch = Launch.make(projected, kernel, reverse, split, interpret)
    like, (steps, batch, width) = launch.like(projected), projected.shape
    rows, columns, hidden = launch.split.rows, launch.split.width, width // 4
    packed = kernel.reshape(hidden, 4, -1, launch.split.units).transpose(2, 0, 1, 3).reshape(-1, hidden, columns)
    pad = functools.partial(pad_rows, rows=rows)
    results = launch.run(
        _forward_body,
        [like((steps, rows, width)), like((steps, rows, hidden), _F32), like((steps, rows, hidden))],
        (pad(projected, 1), packed, pad(mask.astype(_F32), 1), pad(c0, 0), pad(h0.astype(projected.dtype), 0)),
        exchanged=1,
    )
    gates, cells, outputs = (a[:, :batch] for a in results)
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
    split: Split | None = None,
    interpret: Any = None,
) -> tuple[Array, Array, Array]:
    """The loop back of an LSTM, over what `run_forward` left.

    Args:
        gates, cells: `[T, B, 4H]` and `[T, B, H]`, of `run_forward`.
        c0: `[B, H]` float32.
        mask, kernel, reverse, split, interpret: as for `run_forward`.
        d_outputs: `[T, B, H]`, cotangents of the outputs.
        d_c, d_h: `[B, H]` float32, those of the last state.

    Returns:
        The cotangents of `projected` `[T, B, 4H]` bfloat16, zero where masked, and those of c0 and h0, float32.

    Raises:
        ValueError: the rows do not fit, see `supported`.
    """
    launch = Launch.make(gates, kernel, not reverse, split, interpret)
    like, (steps, batch, width) = launch.like(gates), gates.shape
    rows, columns, hidden = launch.split.rows, launch.split.width, width // 4
    # Program 4n + q of a group multiplies gate q of dz with the columns of quad n's units.
    packed = kernel.reshape(-1, columns, 4, hidden).transpose(0, 2, 3, 1).reshape(-1, hidden, columns)
    pad = functools.partial(pad_rows, rows=rows)
    state = like((rows, hidden), _F32)
    dz, dc0, dh0, _ = launch.run(
        _backward_body,
        [like((steps, rows, width)), state, state, like((4, rows, hidden), _F32)],
        (pad(gates, 1), pad(cells, 1), pad(c0, 0), pad(mask.astype(_F32), 1), packed, pad(d_outputs, 1))
        + (pad(d_c, 0), pad(d_h, 0)),
        exchanged=4,
    )
    return dz[:, :batch], dc0[:batch], dh0[:batch]


def _forward_body(program: Program, x: Any, packed: Any, real: Any, c0: Any, h0: Any, *results: Any) -> None:
    gates, cells, outputs = results
    launch, own, units = program.launch, program.own, program.units
    program.load_weights(packed)

    def step(n: Any, states: Any) -> Any:
        t, before = program.time(n), program.time(n - 1)
        after = []
        for tile, (c, h) in enumerate(states):
            rows = program.rows(tile)

            def fetch(start: int, to: Any, barrier: Any, rows: Any = rows) -> None:
                columns = pl.ds(start, TILE)
                pl.when(n == 0)(lambda: plgpu.copy_gmem_to_smem(h0.at[rows, columns], to, barrier))
                pl.when(n > 0)(lambda: plgpu.copy_gmem_to_smem(outputs.at[before, rows, columns], to, barrier))

            # Read before waiting: these are on their way meanwhile.
            xs = [program.read(x, t, rows, columns).astype(_F32) for columns in program.gates]
            on = program.read_mask(real, t, rows)
            program.wait(tile, n + 1)
            p = program.multiply(fetch)
            z = [xs[gate] + p[:, gate * units : (gate + 1) * units] for gate in range(4)]
            i, f, g, o = jax.nn.sigmoid(z[0]), jax.nn.sigmoid(z[1]), jnp.tanh(z[2]), jax.nn.sigmoid(z[3])
            new = f * c + i * g
            c, h = jnp.where(on, new, c), jnp.where(on, o * jnp.tanh(new), h)
            program.publish([h], [outputs.at[t, rows, own]])
            program.arrive(tile)
            for columns, value in zip(program.gates, (i, f, g, o), strict=True):
                gates[t, rows, columns] = value.astype(gates.dtype)
            cells[t, rows, own] = c
            after.append((c, h))
        return tuple(after)

    tiles = range(launch.split.tiles)
    for tile in tiles:
        program.arrive(tile)
    states = tuple(tuple(program.read_state(a, tile) for a in (c0, h0)) for tile in tiles)
    lax.fori_loop(0, launch.steps, step, states)
    for tile in tiles:
        program.wait(tile, launch.steps + 1)


def _backward_body(
    program: Program,
    acts: Any,
    cells: Any,
    c0: Any,
    real: Any,
    packed: Any,
    d_out: Any,
    d_c: Any,
    d_h: Any,
    *results: Any,
) -> None:
    dz, dc0, dh0, sums = results
    launch, own = program.launch, program.own
    tiles, last = range(launch.split.tiles), launch.steps - 1
    gate, quad = program.part % 4, pl.ds(program.part // 4 * launch.split.width, launch.split.width)
    program.load_weights(packed)

    def differentiate(n: Any, tile: int, dc: Any, dh: Any) -> tuple[Any, Any]:
        t, rows = program.time(n), program.rows(tile)
        i, f, g, o = (program.read(acts, t, rows, columns).astype(_F32) for columns in program.gates)
        c, d_output = program.read(cells, t, rows, own), program.read(d_out, t, rows, own).astype(_F32)
        before = program.read(cells, program.time(jnp.minimum(n + 1, last)), rows, own)
        before = jnp.where(lax.broadcast(n == last, (TILE, program.units)), program.read(c0, rows, own), before)
        on = program.read_mask(real, t, rows)
        dh, tanh_c = dh + d_output, jnp.tanh(c)
        d = dc + dh * o * (1.0 - tanh_c * tanh_c)
        back = [d * g * i * (1.0 - i), d * before * f * (1.0 - f), d * i * (1.0 - g * g), dh * tanh_c * o * (1.0 - o)]
        zero = jnp.zeros((TILE, program.units), _F32)
        program.publish([jnp.where(on, b, zero) for b in back], [dz.at[t, rows, columns] for columns in program.gates])
        program.arrive(tile)
        return jnp.where(on, d * f, dc), jnp.where(on, zero, dh)

    def step(n: Any, states: Any) -> Any:
        states = [differentiate(n, tile, dc, dh) for tile, (dc, dh) in enumerate(states)]
        for tile in tiles:
            rows = program.rows(tile)

            def fetch(start: int, to: Any, barrier: Any, rows: Any = rows) -> None:
                columns = pl.ds(gate * launch.hidden + start, TILE)
                plgpu.copy_gmem_to_smem(dz.at[program.time(n), rows, columns], to, barrier)

            program.wait(tile, n + 1)
            # The quad read its last sums before it arrived at the meeting just waited for: they may be overwritten.
            sums[gate, rows, quad] = program.multiply(fetch)
            program.arrive(tile, of_quad=True)
        after = []
        for tile, (dc, dh) in enumerate(states):
            program.wait(tile, n + 1, of_quad=True)
            for k in range(4):
                dh = dh + program.read(sums, k, program.rows(tile), own)
            after.append((dc, dh))
        return tuple(after)

    states = tuple(tuple(program.read_state(a, tile) for a in (d_c, d_h)) for tile in tiles)
    states = lax.fori_loop(0, launch.steps, step, states)
    for tile, state in enumerate(states):
        for ref, value in zip((dc0, dh0), state, strict=True):
            ref[program.rows(tile), own] = value
