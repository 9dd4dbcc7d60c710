"""The loop of a search, on its own or inside `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from seq2seq_jax.interfaces import Array
from seq2seq_jax.parallel.varying import vary_over


class Progress(Protocol):
    """What the loop knows of a search's state."""

    @property
    def time(self) -> Array:
        """Steps taken, `[]` int32."""
        ...

    @property
    def done(self) -> Array:
        """Rows that are done, `[B]` bool."""
        ...


State = TypeVar("State", bound=Progress)


def run_loop(advance: Callable[[State], State], state: State, max_len: int) -> State:
    """Repeats `advance` until all rows are done, `max_len` times at most.

    Inside `shard_map` every device loops until its own rows are done. So `advance` may only talk among
    devices that hold the same rows, which then loop equally often; others may stop sooner or later.
    """

    def unfinished(state: State) -> Array:
        return (state.time < max_len) & ~jnp.all(state.done)

    axes = _find_varying_axes(advance, state)
    if not axes:
        return lax.while_loop(unfinished, advance, state)

    def vary(state: State) -> State:
        return jax.tree.map(lambda x: vary_over(x, axes), state)

    # A loop's state must keep its type: all of it varies over whatever any part of it varies over.
    return lax.while_loop(unfinished, lambda now: vary(advance(now)), vary(state))


def _find_varying_axes(advance: Callable[[State], State], state: State) -> frozenset[str]:
    """The mesh axes over which any part of the state differs, before or after a step.

    There are none outside `shard_map`, and none are told where it runs with `check_vma=False`.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return frozenset()
    leaves = jax.tree.leaves(jax.eval_shape(lambda now: (now, advance(now)), state))
    types = [leaf.manual_axis_type for leaf in leaves]
    return frozenset().union(*(each.varying for each in types if each is not None))
