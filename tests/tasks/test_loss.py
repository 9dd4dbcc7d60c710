"""Scheduled sampling: a decoder that reads its own tokens, against one that goes step by step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.parallel.draws import keyed_uniform
from seq2seq_jax.parallel.shard import place_batch
from seq2seq_jax.tasks.loss import OwnTokens, make_loss

VOCAB, ROWS, SOURCE, TARGET = 19, 8, 4, 6
QUICKLY = {"xla_backend_optimization_level": 0}
SOME = OwnTokens(share=0.6, start=10, steps=20, passes=1)


@functools.cache
def train(own: OwnTokens | None = None, dropout: float = 0.0, **parallel: int) -> Training:
    config = default_config("lstm")
    config.model.update(features=8, layers=1, dropout=dropout)
    config.parallel.update({"data": 1} | parallel)
    config.train.label_smoothing = 0.0
    if own is not None:
        config.train.update(own_tokens=own.share, own_tokens_start=own.start)
        config.train.update(own_tokens_steps=own.steps, own_tokens_passes=own.passes)
    return make_training(config, VOCAB, VOCAB)


@functools.cache
def start():
    """Parameters large enough for predictions to differ; numpy arrays."""
    generator, params = np.random.default_rng(1), nn.meta.unbox(train().boxed_state).params
    return jax.tree.map(lambda x: generator.normal(0, 1.5, x.shape).astype(x.dtype), params)


def make_batch() -> Batch:
    generator = np.random.default_rng(0)
    source_mask = np.arange(SOURCE) < np.array([4, 2, 3, 1, 4, 4, 2, 0])[:, None]
    target_mask = np.arange(TARGET) < np.array([6, 3, 5, 1, 6, 2, 4, 0])[:, None]
    target = np.where(target_mask, generator.integers(4, VOCAB, target_mask.shape), PAD_ID)
    return Batch(
        source=np.where(source_mask, generator.integers(4, VOCAB, source_mask.shape), 0).astype(np.int32),
        source_mask=source_mask,
        target_in=np.where(target_mask, np.insert(target, 0, BOS_ID, axis=1)[:, :-1], PAD_ID).astype(np.int32),
        target_out=target.astype(np.int32),
        target_mask=target_mask,
        example_ids=np.arange(ROWS, dtype=np.int32),
        row_mask=target_mask.any(axis=1),
    )


@functools.cache
def find_gradient(own: OwnTokens | None, step: int = 100, dropout: float = 0.0, **parallel: int):
    """As a run computes it: objective, sums and gradients."""
    training = train(own, dropout, **parallel)
    gradient = jax.jit(training.gradient(), compiler_options=QUICKLY)
    batch = place_batch(make_batch(), training.mesh)
    params = jax.device_put(start(), jax.tree.map(lambda x: x.sharding, training.abstract_state().params))
    return jax.device_get(gradient(params, batch, jax.random.key(7), jnp.int32(step)))


@functools.cache
def find_loss(own: OwnTokens | None, step: int = 100, dropout: float = 0.0) -> float:
    """The objective alone, on one device."""
    loss = make_loss(train(dropout=dropout).model, label_smoothing=0.0, chunk=16, own_tokens=own)
    batch = jax.tree.map(jnp.asarray, make_batch())
    return float(jax.jit(loss, compiler_options=QUICKLY)(start(), batch, jax.random.key(7), jnp.int32(step))[0])


def decode_step_by_step(rate: float) -> np.ndarray:
    """The decoder's inputs as the original makes them: each token is drawn after those before it are known."""
    batch, model, key = make_batch(), train().model, jax.random.fold_in(jax.random.key(7), 2)
    rows, times = jnp.arange(ROWS)[:, None], jnp.arange(TARGET)[None, :]
    choice, uniform = (np.asarray(keyed_uniform(jax.random.fold_in(key, n), rows, times)) for n in range(2))
    logits_of = jax.jit(model.apply)
    inputs = batch.target_in.copy()
    for t in range(1, TARGET):
        logits = np.asarray(logits_of({"params": start()}, batch.source, jnp.asarray(batch.source_mask), inputs))
        logits = logits[:, t - 1].astype(np.float64)
        logits[:, [PAD_ID, BOS_ID, EOS_ID]] = -np.inf
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        cumulated = np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True)
        drawn = (cumulated > uniform[:, t - 1, None]).argmax(axis=1)
        own = (choice[:, t] < rate) & batch.target_mask[:, t]
        inputs[:, t] = np.where(own, drawn, inputs[:, t])
    return inputs


def nll_of(inputs: np.ndarray) -> float:
    """The loss of given decoder inputs, by plain teacher forcing."""
    batch = jax.tree.map(jnp.asarray, make_batch().replace(target_in=inputs))
    loss = make_loss(train().model, label_smoothing=0.0, chunk=512, train=False)
    return float(jax.jit(loss)(start(), batch, None, None)[0])


def test_as_many_passes_as_steps_are_the_sequential_original():
    wanted, plain = nll_of(decode_step_by_step(0.8)), nll_of(make_batch().target_in)
    assert find_loss(OwnTokens(0.8, 0, 1, TARGET)) == pytest.approx(wanted, rel=1e-5)
    once = find_loss(OwnTokens(0.8, 0, 1, 1))  # what it predicts for the reference is something else
    assert min(abs(wanted - plain), abs(once - wanted), abs(once - plain)) > 0.1


def test_the_share_rises_from_its_start_and_before_it_all_is_as_without():
    rates = [float(SOME.rate(jnp.int32(step))) for step in (0, 10, 15, 30, 1000)]
    np.testing.assert_allclose(rates, [0, 0, 0.15, 0.6, 0.6], rtol=1e-6)
    without = find_loss(None, dropout=0.3)
    assert find_loss(SOME, step=10, dropout=0.3) == without != find_loss(SOME, step=30, dropout=0.3)


def test_a_split_vocabulary_draws_the_same():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    own = OwnTokens(0.7, 0, 1, 2)
    (wanted, _), slope = find_gradient(own, dropout=0.3)
    (value, _), found = find_gradient(own, dropout=0.3, tensor=8)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5 * max(np.abs(theirs).max(), 1e-3))


def test_without_own_tokens_no_draw_is_made():
    loss = make_loss(train(dropout=0.0).model, label_smoothing=0.0, chunk=512)
    given = start(), make_batch(), jax.random.key(0), jnp.int32(5)
    drawing = make_loss(train(dropout=0.0).model, label_smoothing=0.0, chunk=512, own_tokens=OwnTokens(0.7, 0, 1, 1))
    draws = ["random_bits" in str(jax.make_jaxpr(each)(*given)) for each in (loss, drawing)]
    assert draws == [False, True]
