"""The loop of a search, on its own or inside `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from seq2seq_jax.decode.method import Method
from seq2seq_jax.interfaces import Array, Hypotheses, Step
from seq2seq_jax.parallel.varying import vary_over


class Progress(Protocol):
    """What the loop knows of a search's state."""

    @property
    def done(self) -> Array:
        """Rows that are done, `[B]` bool."""
        ...


State = TypeVar("State", bound=Progress)


def run_loop(
    advance: Callable[[State], State], state: State, steps: int | Array, *, leave: Array | int | None = None
) -> State:
    """Repeats `advance` while any row is open, `steps` times at most.

    Inside `shard_map` every device loops until its own rows are done. So `advance` may only talk among
    devices that hold the same rows, which then loop equally often; others may stop sooner or later.

    Args:
      advance: One step of every row that is not done.
      state: Where the search stands.
      steps: The most steps; an int, or `[]` int32 that need not be known when the program is compiled.
      leave: `[]` int32, stop sooner: once so many rows have become done since the loop began. None waits for all.

    Returns:
      The state after the last step.
    """
    done_before = jnp.sum(state.done)

    def is_unfinished(carry: tuple[Array, State]) -> Array:
        count, now = carry
        going = (count < steps) & ~jnp.all(now.done)
        return going if leave is None else going & (jnp.sum(now.done) - done_before < leave)

    def step(carry: tuple[Array, State]) -> tuple[Array, State]:
        count, now = carry
        return count + 1, advance(now)

    start = (jnp.zeros((), jnp.int32), state)
    axes = _find_varying_axes(advance, state)
    if not axes:
        return lax.while_loop(is_unfinished, step, start)[1]

    def vary(carry: tuple[Array, State]) -> tuple[Array, State]:
        return jax.tree.map(lambda x: vary_over(x, axes), carry)

    # A loop's state must keep its type: all of it varies over whatever any part of it varies over.
    return lax.while_loop(is_unfinished, lambda carry: vary(step(carry)), vary(start))[1]


def run_search(method: Method, step_fn: Step, state: Any, steps: int) -> Hypotheses:
    """Advances a search that was started until all its rows are done, and reads off what was found."""
    return method.collect(run_loop(lambda now: method.advance(step_fn, now), state, steps))


def _find_varying_axes(advance: Callable[[State], State], state: State) -> frozenset[str]:
    """The mesh axes over which any part of the state differs, before or after a step.

    There are none outside `shard_map`, and none are told where it runs with `check_vma=False`.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return frozenset()
    leaves = jax.tree.leaves(jax.eval_shape(lambda now: (now, advance(now)), state))
    types = [leaf.manual_axis_type for leaf in leaves]
    return frozenset().union(*(each.varying for each in types if each is not None))
