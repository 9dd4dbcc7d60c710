"""The gradient that is clipped and followed, per token and per sentence, on one device and on eight.

The reference is written down from the paper (Sutskever et al. 2014, section 3.4): the gradient of the summed
log-probability, by autodiff of a plain log-softmax, divided by what is counted, and rescaled where it is too long.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.parallel.shard import place_batch
from seq2seq_jax.train.accumulation import AccumulatedStep

VOCAB, ROWS, SOURCE, TARGET = 50, 8, 5, 4
LIMIT = 0.3  # between the norms of the two means
QUICKLY = {"xla_backend_optimization_level": 0}
ONE = {"data": 1}
MESHES = {
    "one": ONE,
    "data": {"data": 8},
    "fsdp": ONE | {"fsdp": 8},
    "exact": ONE | {"stage": 4, "tensor": 2, "strategy": "exact"},
}


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")


def make(mesh: str, *, loss_per: str, clip_norm: float, accumulate: int = 1) -> Training:
    """A tiny training as the paper has it; the rate is 1, so that a step is minus the gradient."""
    config = default_config("lstm")
    config.model.update(features=8, layers=4, dropout=0.0)
    config.train.update(optimizer="sgd", schedule="halving", learning_rate=1.0, warmup_steps=0, label_smoothing=0.0)
    config.train.update(loss_per=loss_per, clip_norm=clip_norm, accumulate=accumulate)
    config.parallel.update(MESHES[mesh])
    return make_training(config, VOCAB, VOCAB, updates_per_epoch=100.0)


def make_batch(seed: int) -> Batch:
    """Sentences of uneven lengths; the last rows only fill the batch, more of them in a batch of an odd seed."""
    generator = np.random.default_rng(seed)
    row_mask = np.arange(ROWS) < ROWS - 1 - 2 * (seed % 2)

    def mask(length: int) -> np.ndarray:
        return (np.arange(length) < generator.integers(2, length + 1, ROWS)[:, None]) & row_mask[:, None]

    source_mask, target_mask = mask(SOURCE), mask(TARGET)
    tokens = generator.integers(4, VOCAB, (ROWS, SOURCE + TARGET), dtype=np.int32)
    source, target = np.split(tokens, [SOURCE], axis=1)
    return Batch(
        source=np.where(source_mask, source, 0),
        source_mask=source_mask,
        target_in=np.where(target_mask, np.roll(target, 1, axis=1), 0),
        target_out=np.where(target_mask, target, 0),
        target_mask=target_mask,
        example_ids=np.where(row_mask, np.arange(ROWS), -1).astype(np.int32),
        row_mask=row_mask,
    )


@functools.cache
def start():
    """Parameters before the step, large enough for every part to matter; numpy arrays."""
    training = make("one", loss_per="token", clip_norm=0.0)
    generator, params = np.random.default_rng(1), nn.meta.unbox(training.boxed_state).params
    return jax.tree.map(lambda x: generator.normal(0, 0.4, x.shape).astype(x.dtype), params)


@functools.cache
def sum_up(seed: int):
    """Of a batch: minus its summed log-probability and the gradient of that, its tokens and its sentences."""
    batch, model = jax.tree.map(jnp.asarray, make_batch(seed)), make("one", loss_per="token", clip_norm=0.0).model

    def negative(params):
        logits = model.apply({"params": params}, batch.source, batch.source_mask, batch.target_in)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.target_out[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(batch.target_mask, found, 0.0))

    loss, grads = jax.jit(jax.value_and_grad(negative))(start())
    return float(loss), jax.tree.map(np.asarray, grads), int(batch.target_mask.sum()), int(batch.row_mask.sum())


def expect(seeds: tuple[int, ...], *, loss_per: str, clip_norm: float):
    """Parameters after one step, the norm before clipping, and the loss per token; in float64."""
    found = [sum_up(seed) for seed in seeds]
    count = sum(tokens if loss_per == "token" else sentences for _, _, tokens, sentences in found)
    grads = jax.tree.map(
        lambda *leaves: sum(leaf.astype(np.float64) for leaf in leaves) / count, *(f[1] for f in found)
    )
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    factor = clip_norm / norm if 0 < clip_norm < norm else 1.0
    params = jax.tree.map(lambda old, g: old - factor * g, start(), grads)
    return params, norm, sum(f[0] for f in found) / sum(f[2] for f in found)


def take(training: Training, seeds: tuple[int, ...]):
    """One step from these batches."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), training.abstract_state())
    places = jax.tree.map(lambda x: x.sharding, training.abstract_state())
    state = jax.device_put(zeros.replace(params=start()), places)
    batches = tuple(place_batch(make_batch(seed), training.mesh) for seed in seeds)
    if len(seeds) > 1:
        return AccumulatedStep(*training.accumulated_step(), shapes=1, tell=lambda line: None)(state, batches)
    step = training.train_step().lower(state, *batches).compile(compiler_options=QUICKLY)
    return step(state, *batches)


@pytest.mark.parametrize(
    ("mesh", "loss_per", "clip_norm", "seeds"),
    [
        ("one", "token", LIMIT, (0,)),
        ("one", "sentence", LIMIT, (0,)),
        ("data", "sentence", 0.0, (0, 1)),
        ("fsdp", "sentence", LIMIT, (1,)),
        ("exact", "sentence", LIMIT, (0,)),
    ],
)
def test_a_step_follows_the_clipped_mean_of_summed_log_probabilities(mesh, loss_per, clip_norm, seeds):
    wanted, norm, loss = expect(seeds, loss_per=loss_per, clip_norm=clip_norm)
    assert (norm > LIMIT) == (loss_per == "sentence")  # it is the mean that is asked for whose norm is limited
    training = make(mesh, loss_per=loss_per, clip_norm=clip_norm, accumulate=len(seeds))
    state, sums = take(training, seeds)
    assert float(sums["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert float(sums["loss"]) / float(sums["weight"]) == pytest.approx(loss, rel=1e-5)  # logged per token in any case
    assert float(sums["rows"]) == sum(sum_up(seed)[3] for seed in seeds)
    named = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, want), got, old in zip(named, jax.tree.leaves(state.params), jax.tree.leaves(start()), strict=True):
        moved = np.abs(want - old).max()
        assert moved > 0
        np.testing.assert_allclose(
            np.asarray(got), want, rtol=0, atol=1e-3 * moved + 5e-7 * np.abs(want).max(),
            err_msg=jax.tree_util.keystr(path),
        )  # fmt: skip


def test_the_two_means_differ_by_tokens_over_sentences():
    """So that the test above could not pass with one for the other: clip_norm=5 means another thing for each."""
    norms = [expect((0,), loss_per=per, clip_norm=0.0)[1] for per in ("token", "sentence")]
    _, _, tokens, sentences = sum_up(0)
    assert norms[1] / norms[0] == pytest.approx(tokens / sentences) and tokens > 2 * sentences
