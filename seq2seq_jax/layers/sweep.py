"""Loops over time that keep what their steps give.

A sweep works on one run, whose arrays are `[B, ...]` at a step, or on two at once, joined as `[2, B, ...]`; everything
between reading and writing is the same for both. What steps give is kept in arrays `[T, B, ...]` of each run, several
steps at a time: on a GPU every write is a kernel of its own, and what runs between two products is what a recurrent
layer waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from seq2seq_jax.interfaces import Array, PyTree

Step = Callable[[Array, Sequence[Array], PyTree, Any], tuple[PyTree, PyTree]]
"""`step(n, at, carry, x) -> (carry, given)`: step n of a sweep, which works on time `at[r]` of run r; all joined."""


def join(parts: Sequence[PyTree]) -> PyTree:
    """What belongs to each run, as what a sweep works on."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def split(joined: PyTree, runs: int) -> tuple[PyTree, ...]:
    """The inverse of `join`."""
    return (joined,) if runs == 1 else tuple(jax.tree.map(lambda leaf, n=n: leaf[n], joined) for n in range(runs))


def read(arrays: Sequence[PyTree], at: Sequence[Array]) -> PyTree:
    """Time `at[r]` of the arrays `[T, ...]` of run r, joined."""
    times = [
        jax.tree.map(lambda a, t=t: lax.dynamic_index_in_dim(a, t, keepdims=False), tree)
        for tree, t in zip(arrays, at, strict=True)
    ]
    return join(times)


def sweep(
    step: Step,
    carry: PyTree,
    *,
    length: int,
    turned: Sequence[bool],
    unroll: int,
    like: Array,
    inputs: Sequence[Array] | None = None,
) -> tuple[PyTree, tuple[PyTree, ...]]:
    """Runs all steps and keeps what they give.

    Args:
        step: one step; what it gives has leaves `[B, k]` (joined) in the dtypes they are kept in.
        carry: before the first step.
        length: T.
        turned: for every run, whether it begins at the last time.
        unroll: steps that are compiled as one and written at once, at most.
        like: `[T, B, ...]`, any array of a run (inside `shard_map` all that is made varies as it does).
        inputs: `[T, B, k]` of every run, whose time is the x of a step. What the steps give of the same width and dtype
            is written over them, where they are of no use afterwards: one large array less.

    Returns:
        The carry after the last step, and for every run what its steps gave, `[T, B, k]`, each at its time.
    """
    if length == 0:
        raise ValueError("a recurrent layer must have at least one step, but the sequences have none.")
    size = -(-length // -(-length // unroll))  # blocks of one size as far as it goes
    count, rest = divmod(length, size)

    def block(first: Array | int, steps: int, state: tuple[PyTree, tuple[PyTree, ...]]) -> tuple[PyTree, Any]:
        carry, kept = state
        given = []
        xs = inputs if place is None else [jax.tree.leaves(own)[place] for own in kept]
        for n in range(steps):
            number = jnp.asarray(first + n, jnp.int32)
            at = [length - 1 - number if back else number for back in turned]
            carry, new = step(number, at, carry, None if xs is None else read(xs, at))
            given.append(split(new, len(turned)))
        runs = zip(kept, zip(*given, strict=True), turned, strict=True)
        return carry, tuple(_write(own, new, first, length, back) for own, new, back in runs)

    at = [jnp.int32(0)] * len(turned)
    x = None if inputs is None else read(inputs, at)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda carry, x: step(at[0], at, carry, x)[1], carry, x))
    same = [n for n, a in enumerate(leaves) if x is not None and (a.shape, a.dtype) == (x.shape, x.dtype)]
    place = same[0] if same else None
    batch = like.shape[1]
    empty = [jnp.zeros_like(like, a.dtype, shape=(length, batch, a.shape[-1])) for a in leaves]
    starts = [list(empty) for _ in turned]
    if inputs is not None and place is not None:
        for own, over in zip(starts, inputs, strict=True):
            own[place] = over
    state = carry, tuple(jax.tree.unflatten(tree, own) for own in starts)
    state = lax.fori_loop(0, count, lambda n, state: block(n * size, size, state), state)
    return block(count * size, rest, state) if rest else state


def _write(kept: PyTree, given: Sequence[PyTree], first: Array | int, length: int, turned: bool) -> PyTree:
    """The arrays with what the steps from `first` on gave, in their places."""
    start = length - first - len(given) if turned else first

    def put(array: Array, *values: Array) -> Array:
        rows = jnp.stack(values[::-1] if turned else values)
        return lax.dynamic_update_slice_in_dim(array, rows, start, 0)

    return jax.tree.map(put, kept, *given)
