"""A run goes on with other devices, another mesh, another strategy: the same data, the same losses but for rounding."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from seq2seq_jax.config import RESUMABLE, default_config, is_free
from seq2seq_jax.data.pipeline import Ragged, TokenPairs, batches
from seq2seq_jax.data.plan import make_plan
from seq2seq_jax.experiment import make_training
from seq2seq_jax.parallel.shard import place_batch, rows_here
from seq2seq_jax.train.checkpoints import Checkpoints

VOCAB, SAVED, STEPS, B1 = 20, 3, 6, 0.9
ELSEWHERE = {
    "stages_and_tensor": {"data": 1, "stage": 4, "tensor": 2, "strategy": "balanced"},
    "fsdp": {"data": 1, "fsdp": 8},
    "one_device": {"data": 1},
}


@dataclasses.dataclass
class Log:
    """What a run went through: the examples, the loss and the gradient of every step."""

    examples: list[list[int]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    gradients: list[np.ndarray] = dataclasses.field(default_factory=list)


def make(**parallel):
    config = default_config("lstm")
    config.model.update({"features": 8, "layers": 4})
    config.train.update({"warmup_steps": 2, "learning_rate": 0.01, "b1": B1, "clip_norm": 0.0})
    config.parallel.update(parallel)
    return make_training(config, VOCAB, VOCAB)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 8, 40)
    return TokenPairs(*(Ragged.pack([rng.integers(4, VOCAB, n).astype(np.int32) for n in lengths]) for _ in range(2)))


def run(training, state, pairs, *, until):
    """Steps from the state's own to `until`, over the batches that follow from the seed alone."""
    plan = make_plan(
        pairs.source_lengths, pairs.target_lengths, seed=1, tokens_per_batch=128, rows_multiple=8, max_shapes=1
    )
    log, step, mesh = Log(), training.train_step(), training.mesh
    reader = batches(pairs, plan, start=int(state.step), stop=until, threads=0, rows_of=lambda n: rows_here(mesh, n))
    for batch in reader:
        log.examples.append(batch.example_ids.tolist())
        before = find_moment(state)
        state, sums = step(state, place_batch(batch, mesh))
        log.gradients.append((find_moment(state) - B1 * before) / (1 - B1))
        log.losses.append(float(sums["loss"]) / float(sums["weight"]))
    return state, log


def find_moment(state) -> np.ndarray:
    """Adam's mean of the gradients, m. The next is b1 m + (1 - b1) g, which gives away the gradient g of a step."""
    parts = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    leaves = jax.tree.leaves([part.mu for part in parts if hasattr(part, "mu")])
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


@pytest.fixture(scope="module")
def straight(pairs, tmp_path_factory):
    """Six steps on eight devices that share a batch, saved after three."""
    folder = tmp_path_factory.mktemp("checkpoints")
    training = make(data=8)
    state, before = run(training, training.init(), pairs, until=SAVED)
    saved = jax.tree.map(np.array, state)  # copies: the next step may write over what there is
    with Checkpoints(folder, warn=pytest.fail) as checkpoints:
        checkpoints.save(SAVED, state, meta={})
    _, after = run(training, state, pairs, until=STEPS)
    assert len(before.losses) == len(after.losses) == STEPS - SAVED
    assert after.losses[-1] < before.losses[0] - 0.02, "the steps must change something"
    return folder, saved, after


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_run_goes_on_elsewhere_as_it_would_have_gone_on(straight, pairs, parallel):
    folder, saved, expected = straight
    training = make(**parallel)
    with Checkpoints(folder, read_only=True, warn=pytest.fail) as checkpoints:
        restored = checkpoints.restore(training.abstract_state())
    for leaf, abstract in zip(jax.tree.leaves(restored.state), jax.tree.leaves(training.abstract_state()), strict=True):
        assert leaf.sharding == abstract.sharding  # each part went where it belongs, none by way of a whole
    for leaf, old in zip(jax.tree.leaves(restored.state), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(leaf, old)
    _, log = run(training, restored.state, pairs, until=STEPS)
    assert log.examples == expected.examples
    np.testing.assert_allclose(log.losses, expected.losses, rtol=1e-4)
    got, wanted = log.gradients[0], expected.gradients[0]
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_where_a_run_goes_on_is_free_but_what_its_batches_are_is_not():
    assert is_free("parallel.x", RESUMABLE) and not is_free("data.rows_multiple", RESUMABLE)
    assert is_free("train.patience", RESUMABLE) and not is_free("train.patience_metric", RESUMABLE)
