"""Wherever a run is stopped, what is left of the corpus comes in the order that it would have come in."""

from __future__ import annotations

import numpy as np
import pytest

from seq2seq_jax.data.mixture import share_parts
from seq2seq_jax.data.packing import make_packed_plan
from seq2seq_jax.data.pipeline import Ragged, TokenPairs, batches
from seq2seq_jax.data.plan import make_plan
from seq2seq_jax.train.accumulation import Groups

STOPS, READ = 25, 4  # of each plan; steps whose batches are built after a stop, besides those that are planned
AHEAD = [(0, 0), (1, 1), (1, 4), (2, 3), (4, 16)]  # threads, batches read ahead


def make_pairs(count: int = 300) -> TokenPairs:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, count)
    return TokenPairs(*(Ragged.pack([rng.integers(4, 99, n).astype(np.int32) for n in lengths]) for _ in range(2)))


PAIRS = make_pairs()
LENGTHS = PAIRS.source_lengths, PAIRS.target_lengths
PLANS = {
    "plain": lambda: make_plan(*LENGTHS, seed=5, tokens_per_batch=600),
    "short to long at first": lambda: make_plan(*LENGTHS, seed=5, tokens_per_batch=600, curriculum_epochs=2),
    "of so many rows": lambda: make_plan(*LENGTHS, seed=5, rows=16, max_shapes=2),
    "of two corpora": lambda: make_plan(
        *LENGTHS, seed=5, tokens_per_batch=600, parts=share_parts([200, 100], [1.0, 2.5], ["a", "b"], temperature=2.0)
    ),
    "packed": lambda: make_packed_plan(*LENGTHS, seed=5, tokens_per_batch=600, max_source_len=32, max_target_len=32),
}


def read(plan, start: int, stop: int, *, each: int, threads: int, prefetch: int) -> list[list[int]]:
    """The examples of the steps from `start` to `stop`, read as a run reads them; -1 fills."""
    found = batches(PAIRS, plan, start=start * each, stop=stop * each, threads=threads, prefetch=prefetch)
    steps = found if each == 1 else Groups(found, each)
    try:
        return [
            np.concatenate([tokens_of(batch) for batch in (step if each > 1 else (step,))]).tolist() for step in steps
        ]
    finally:
        found.close()


def list_planned(plan, start: int, stop: int) -> list[list[int]]:
    """The examples of batches, as planned."""
    return [plan.batch(n).example_ids.tolist() for n in range(start, stop)]


def tokens_of(batch) -> np.ndarray:
    """What of a batch tells its examples: their numbers, and all their tokens, which packed ones are known by."""
    return np.concatenate([batch.example_ids.ravel(), batch.source.ravel(), batch.target_out.ravel()])


@pytest.mark.parametrize(("name", "each"), [*((name, 1) for name in PLANS), ("plain", 3)])
def test_after_any_stop_the_rest_is_what_it_would_have_been(name, each):
    plan = PLANS[name]()
    steps = 3 * plan.batches_per_epoch // each + 2
    straight = read(plan, 0, steps, each=each, threads=1, prefetch=4)
    planned = list_planned(plan, 0, steps * each)
    assert len(straight) == steps and straight[0] != straight[1]
    draw = np.random.default_rng(each)
    ends = [epoch * plan.batches_per_epoch // each + offset for epoch in (1, 2, 3) for offset in (-1, 0, 1)]
    stops = [*ends, *draw.integers(1, steps, STOPS - len(ends)).tolist()]
    assert len(stops) == STOPS
    fresh = [PLANS[name]() for _ in range(3)]
    for number, stop in enumerate(stops):
        consumed = plan.examples_before(stop * each)  # all that a checkpoint knows of the place
        again = fresh[number % len(fresh)]
        assert again.batch_index(consumed) == stop * each
        assert list_planned(again, stop * each, steps * each) == planned[stop * each :]
        threads, prefetch = AHEAD[number % len(AHEAD)]
        begin, end = again.batch_index(consumed) // each, min(steps, stop + READ)
        assert read(again, begin, end, each=each, threads=threads, prefetch=prefetch) == straight[stop:end]
