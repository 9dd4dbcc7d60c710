"""One update from several batches: their gradients and sums are added, and the mean is taken once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
from seq2seq_jax.parallel.spread import Gradient
from seq2seq_jax.train.loop import CompiledStep
from seq2seq_jax.train.step import Total, TrainState, make_totals
from seq2seq_jax.train.writers import format_duration


def make_add(
    gradient: Gradient, *, seed: int, accumulate: int
) -> Callable[[Total, PyTree, Array, Array, Batch], Total]:
    """Builds `add(total, params, step, number, batch) -> total`, to be jitted with the total donated.

    Args:
        gradient: of a batch's sums.
        seed: of all random draws, together with the number of the batch.
        accumulate: batches in an update.
    """
    total_of = make_totals(gradient, seed=seed, accumulate=accumulate)

    def add(total: Total, params: PyTree, step: Array, number: Array, batch: Batch) -> Total:
        return jax.tree.map(jnp.add, total, total_of(params, step, number, batch))

    return add


class AccumulatedStep:
    """An update from several batches, with the interface of `CompiledStep`: it is given all of them at once.

    It compiles one program for each shape of batch, and one that makes the update of what they came to.

    Args:
        begin: `begin() -> total` of no batch, jitted.
        add: see `make_add`, jitted.
        update: `update(state, total) -> (state, sums)`, jitted.
        shapes, tell, meet: see `CompiledStep`.
    """

    def __init__(
        self,
        begin: Callable[[], Total],
        add: Any,
        update: Any,
        *,
        shapes: int,
        tell: Callable[[str], None],
        meet: Callable[[], object] = lambda: None,
    ):
        self._begin, self._update, self._tell, self._meet = begin, update, tell, meet
        self._add = CompiledStep(add, shapes=shapes, tell=tell, meet=meet)
        self._compiled: Any = None
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Spent on compiling so far."""
        return self._seconds + self._add.seconds

    def __call__(self, state: TrainState, batches: Sequence[Batch]) -> tuple[TrainState, Sums]:
        """Makes one update."""
        total = self._begin()
        for number, batch in enumerate(batches):
            total = self._add(total, state.params, state.step, jnp.int32(number), batch)
        if self._compiled is None:
            started = time.monotonic()
            self._compiled = self._update.lower(state, total).compile()
            self._meet()
            took = time.monotonic() - started
            self._seconds += took
            self._tell(f"compiled the update from {len(batches)} batches in {format_duration(took)}")
        return self._compiled(state, total)


class Groups:
    """Batches of a reader in groups, one an update; a group that the reader does not fill is not given out.

    Args:
        batches: the reader.
        size: batches in a group.
    """

    def __init__(self, batches: Iterator[Batch], size: int):
        self._batches, self._size = batches, size

    def __iter__(self) -> Groups:
        return self

    def __next__(self) -> tuple[Batch, ...]:
        group = tuple(itertools.islice(self._batches, self._size))
        if len(group) < self._size:
            raise StopIteration
        return group

    def close(self) -> None:
        """Closes the reader."""
        if hasattr(self._batches, "close"):
            self._batches.close()
