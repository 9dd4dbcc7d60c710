"""The step of sequence-level training: candidates are proposed, judged on the host, and learnt from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
from seq2seq_jax.train.loop import CompiledStep, Step
from seq2seq_jax.train.step import TrainState


def batch_key(seed: int, number: Array) -> Array:
    """The key of the draws of a global batch's candidates: apart from the one its dropout is drawn by."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), 1)


class SequenceStep:
    """A step around another: it gives the other one batches with candidates and their rewards.

    All hosts judge all candidates, so that nothing but tokens is sent. Everything is a function of (seed, number
    of the batch, row), so that a resumed run goes on as it would have.

    Args:
        propose: `propose(params, number, batch) -> arrays`, jitted: what `judge` takes, on all hosts alike.
        judge: `judge(*arrays) -> (candidates, lengths, rewards)`, NumPy arrays of all rows of the batch.
        place: puts such an array onto the devices as the rows of a batch lie.
        step: takes the update.
        accumulate: batches in an update.
        shapes, tell, meet: see `CompiledStep`.
    """

    def __init__(
        self,
        propose: Any,
        judge: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]],
        place: Callable[[np.ndarray], Array],
        step: Step,
        *,
        accumulate: int,
        shapes: int,
        tell: Callable[[str], None],
        meet: Callable[[], object] = lambda: None,
    ):
        self._judge, self._place, self._step, self._accumulate = judge, place, step, accumulate
        self._propose = CompiledStep(propose, shapes=shapes, tell=tell, meet=meet, name="proposals")

    @property
    def seconds(self) -> float:
        """Spent on compiling so far."""
        return self._propose.seconds + self._step.seconds

    def __call__(self, state: TrainState, given: Any) -> tuple[TrainState, Sums]:
        """One update; the sums get the seconds that proposing and judging took."""
        batches, spent = given if self._accumulate > 1 else (given,), np.zeros(2)
        first = np.int32(int(state.step) * self._accumulate)
        judged = [self._prepare(state.params, first + np.int32(n), batch, spent) for n, batch in enumerate(batches)]
        state, sums = self._step(state, tuple(judged) if self._accumulate > 1 else judged[0])
        return state, {**sums, "propose_seconds": spent[0], "judge_seconds": spent[1]}

    def _prepare(self, params: PyTree, number: np.int32, batch: Batch, spent: np.ndarray) -> Batch:
        """The batch with candidates and rewards; `spent` grows."""
        compiling, started = self._propose.seconds, time.monotonic()
        proposals = jax.device_get(self._propose(params, number, batch))
        proposed = time.monotonic()
        candidates, lengths, rewards = (self._place(array) for array in self._judge(*proposals))
        spent += proposed - started - (self._propose.seconds - compiling), time.monotonic() - proposed
        return dataclasses.replace(batch, candidates=candidates, candidate_lengths=lengths, rewards=rewards)
