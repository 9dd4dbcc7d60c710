"""Layers over devices: a recurrent stack as a wavefront, and the two directions of a layer on two devices.

    tick        0    1    2    3    4            chunk of time that a stage works on
    stage 0     0    1    2    3                 ─► its output goes to the next stage (ppermute)
    stage 1          0    1    2    3
    stage 2               0    1    2  ...       C chunks over S stages take C + S - 1 ticks

Each layer still sees all its steps in order, so the result is that of one layer after the other, up to
the order of sums. The backward pass is the same wave the other way (differentiation turns the ticks and
the ppermute around). All functions run inside `shard_map`, but for `batched_wavefront`, which is the same
wave on one device: at every tick all layers are one batched product.

Sources: Sutskever et al. 2014, section 3.5; Wu et al. 2016, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.parallel.varying import vary_over, varying_axes

Carry = tuple[Array, ...]
"""The state of a layer (or of a stack, with a leading axis): `[B, width]` each."""

Layer = Callable[[PyTree, Any, Carry, Array, PyTree], tuple[Carry, Array]]
"""`layer(parameters, n, carry, x [K, B, D], extras) -> (carry, x)`: layer n over one chunk; n may be traced."""

CHUNKS_PER_STAGE = 4
"""With four chunks for every stage a stage waits for at most a fifth of the ticks."""


def cut(tree: PyTree, chunks: int) -> tuple[PyTree, int]:
    """Leaves `[T, ...]` as `[C, K, ...]`, padded with zeros (False) at the end; and T."""
    length = jax.tree.leaves(tree)[0].shape[0]
    size = -(-length // chunks)

    def reshape(leaf: Array) -> Array:
        filled = jnp.pad(leaf, ((0, size * chunks - length),) + ((0, 0),) * (leaf.ndim - 1))
        return filled.reshape(chunks, size, *leaf.shape[1:])

    return jax.tree.map(reshape, tree), length


def _zeros(x: Array, layers: int, widths: tuple[int, ...]) -> Carry:
    return tuple(jnp.zeros_like(x, jnp.float32, shape=(layers, x.shape[1], width)) for width in widths)


def count_chunks(length: int, chunks: int, stages: int) -> int:
    """Pieces that a length is cut into where so many are asked for; 0 is `CHUNKS_PER_STAGE` for every stage."""
    wanted = min(length, chunks or CHUNKS_PER_STAGE * stages)
    return -(-length // -(-length // wanted))  # no chunk of padding alone


def wavefront(
    layer: Layer,
    parameters: PyTree,
    carry: Carry | None,
    x: Array,
    extras: PyTree,
    *,
    widths: tuple[int, ...],
    reverse: bool,
    stage: str,
    gather: tuple[str, ...],
    chunks: int,
    working: Callable[[], Array] | None = None,
) -> tuple[Array, Carry]:
    """Runs a stack whose layers lie on the devices of the axis `stage`, one part of it on each.

    Args:
        layer: one layer over one chunk.
        parameters: this device's layers, leaves `[L / stages, ...]`.
        carry: their states before the first step, `[L / stages, B, width]` each, of all rows of the group, or None.
        x: `[T, B, D]`, this device's rows of the input of the first layer.
        extras: leaves `[T, B, ...]`, this device's rows, read by every layer; zeros (False) must mean "not a real
            step".
        widths: of the arrays of a state.
        reverse: time runs backwards.
        stage: mesh axis of the layers.
        gather: mesh axes that the rows of the group are split over, `stage` the last.
        chunks: pieces that the sequence is cut into, at most; 0 is `CHUNKS_PER_STAGE` for every stage.
        working: tells whether this device computes layers at all (inside the program); None: all do.

    Returns:
        The last layer's output, this device's rows `[T, B, D]`, and its own layers' states of all rows of the group.
    """
    stages, own = lax.axis_size(stage), lax.axis_index(stage)
    x, extras = jax.tree.map(lambda a: lax.all_gather(a, gather, axis=1, tiled=True), (x, extras))
    count = count_chunks(x.shape[0], chunks, stages)
    (xs, pieces), length = cut((x, extras), count)
    layers = jax.tree.leaves(parameters)[0].shape[0]
    initial = _zeros(x, layers, widths) if carry is None else carry

    def advance(carry: Carry, h: Array, piece: PyTree) -> tuple[Carry, Array]:
        states = []
        for j in range(layers):
            mine = jax.tree.map(lambda a, j=j: a[j], parameters)
            state, h = layer(mine, own * layers + j, tuple(each[j] for each in carry), h, piece)
            states.append(state)
        return tuple(jnp.stack(each) for each in zip(*states, strict=True)), h

    def tick(state: tuple[Carry, Array], k: Array) -> tuple[tuple[Carry, Array], Array]:
        carry, received = state
        turn = k - own
        live = (turn >= 0) & (turn < count)
        at = jnp.clip(turn, 0, count - 1)
        at = count - 1 - at if reverse else at
        h = jnp.where(own == 0, xs[at], received)
        piece = jax.tree.map(lambda a: a[at], pieces)
        if working is None:  # a conditional would save its weights at every tick; who has no chunk would wait anyway
            new, h = advance(carry, h, piece)
            carry = jax.tree.map(lambda a, b: jnp.where(live, a, b), new, carry)
        else:
            carry, h = lax.cond(live & working(), advance, lambda carry, h, piece: (carry, h), carry, h, piece)
        return (carry, lax.ppermute(h, stage, [(i, i + 1) for i in range(stages - 1)])), h

    start = (initial, jnp.zeros_like(xs[0]))
    start = jax.tree.map(lambda a: vary_over(a, varying_axes(x) | {stage}), start)
    (final, _), hs = lax.scan(tick, start, jnp.arange(count + stages - 1))
    out = hs[stages - 1 :][::-1] if reverse else hs[stages - 1 :]  # the last stage's outputs, chunk by chunk
    out = out.reshape(-1, *out.shape[2:])[:length]
    last = own == stages - 1 if working is None else (own == stages - 1) & working()
    return lax.psum_scatter(jnp.where(last, out, 0), gather, scatter_dimension=1, tiled=True), final


def batched_wavefront(
    layer: Layer, parameters: PyTree, carry: Carry | None, x: Array, extras: PyTree, *, widths: tuple[int, ...],
    reverse: bool, chunks: int,
) -> tuple[Array, Carry]:  # fmt: skip
    """The wavefront on one device: at every tick all L layers, each at its own chunk, as one batched product.

    Arguments and results as of `wavefront`, with all rows and all layers here.
    """
    layers = jax.tree.leaves(parameters)[0].shape[0]
    count = count_chunks(x.shape[0], chunks, layers)
    (xs, pieces), length = cut((x, extras), count)
    initial = _zeros(x, layers, widths) if carry is None else carry
    numbers = jnp.arange(layers)

    def tick(state: tuple[Carry, Array], k: Array) -> tuple[tuple[Carry, Array], Array]:
        carry, below = state  # below: what every layer gave at the tick before
        turn = k - numbers
        live = ((turn >= 0) & (turn < count))[:, None, None]
        at = jnp.clip(turn, 0, count - 1)
        at = count - 1 - at if reverse else at
        h = jnp.concatenate([xs[at[0]][None], below[:-1]])
        new, h = jax.vmap(layer)(parameters, numbers, carry, h, jax.tree.map(lambda a: a[at], pieces))
        carry = jax.tree.map(lambda a, b: jnp.where(live, a, b), new, carry)
        return (carry, h), h[-1]

    start = (initial, jnp.zeros_like(xs, shape=(layers, *xs.shape[1:])))
    (final, _), hs = lax.scan(tick, start, jnp.arange(count + layers - 1))
    out = hs[layers - 1 :][::-1] if reverse else hs[layers - 1 :]
    return out.reshape(-1, *out.shape[2:])[:length], final


def split_directions(
    run: Callable[[PyTree, Array, PyTree], Array],
    forward: PyTree,
    backward: PyTree,
    x: Array,
    extras: PyTree,
    *,
    stage: str,
) -> Array:
    """A bidirectional layer on pairs of neighbours: one runs its own and the other's rows forward, one backward.

    Args:
        run: `run(parameters, x [T, B, D], extras) -> [T, B, H]`, forward in time.
        forward, backward: parameters of the two directions, of one shape.
        x: `[T, B, D]`, this device's rows.
        extras: leaves `[T, B, ...]`, this device's rows: a mask, say.
        stage: mesh axis; its size must be even.

    Returns:
        Both outputs side by side, `[T, B, 2H]`, of this device's rows.
    """
    stages, own = lax.axis_size(stage), lax.axis_index(stage)
    even = own % 2 == 0
    pairs = [(i, i ^ 1) for i in range(stages)]

    def swap(a: Array) -> Array:
        return lax.ppermute(a, stage, pairs)

    def join(a: Array) -> Array:  # rows of the even device, then of the odd one, on both
        other = swap(a)
        return jnp.concatenate([jnp.where(even, a, other), jnp.where(even, other, a)], axis=1)

    def turn(a: Array) -> Array:
        return jnp.where(even, a, a[::-1])

    parameters = jax.tree.map(lambda a, b: jnp.where(even, a, b), forward, backward)
    y = turn(run(parameters, turn(join(x)), jax.tree.map(lambda a: turn(join(a)), extras)))
    first, second = jnp.split(y, 2, axis=1)
    mine, others = jnp.where(even, first, second), swap(jnp.where(even, second, first))
    return jnp.concatenate([jnp.where(even, mine, others), jnp.where(even, others, mine)], axis=-1)
