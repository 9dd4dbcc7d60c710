"""What is hidden of a text, and the loss of filling it, against plain NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.models.bert import BERT, BERTConfig
from seq2seq_jax.tasks.masked import MASK_ID, MaskRule, hide_tokens, make_masked_loss

ROWS, LENGTH, VOCAB = 400, 27, 50
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do


@functools.cache
def make_text() -> tuple[np.ndarray, np.ndarray]:
    """Rows of all lengths from 0 on, eos last, some tokens unknown."""
    rng = np.random.default_rng(0)
    lengths = np.arange(ROWS) % (LENGTH + 1)
    mask = np.arange(LENGTH) < lengths[:, None]
    tokens = rng.integers(4, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.1] = UNK_ID
    tokens[np.arange(LENGTH) == lengths[:, None] - 1] = EOS_ID
    return np.where(mask, tokens, PAD_ID), mask


hide = jax.jit(hide_tokens, static_argnames=("rule", "vocab_size"), compiler_options=QUICKLY)


@functools.cache
def hidden(seed: int = 0):
    tokens, mask = make_text()
    rows = jnp.arange(ROWS, dtype=jnp.int32)
    return jax.device_get(hide(tokens, mask, jax.random.key(seed), rows, rule=MaskRule(), vocab_size=VOCAB))


def test_as_many_of_every_row_as_the_rule_says():
    (tokens, mask), found = make_text(), hidden()
    ordinary = mask & (tokens >= 4)
    wanted = [min(n, max(1, int(0.15 * n + 0.5))) for n in ordinary.sum(axis=1)]
    np.testing.assert_array_equal(found.weights.sum(axis=1), wanted)
    assert found.places.shape[1] == 4 == max(wanted) == MaskRule().most(LENGTH)
    for row, (places, weights) in enumerate(zip(found.places, found.weights, strict=True)):
        assert len(set(places.tolist())) == len(places)
        assert ordinary[row, places[weights > 0]].all()
        np.testing.assert_array_equal(found.wanted[row], tokens[row, places])


def test_nothing_else_changes_and_the_kinds_have_their_shares():
    (tokens, _), found = make_text(), hidden()
    chosen = np.zeros(tokens.shape, bool)
    for row, (places, weights) in enumerate(zip(found.places, found.weights, strict=True)):
        chosen[row, places[weights > 0]] = True
    np.testing.assert_array_equal(found.tokens[~chosen], tokens[~chosen])
    shown, stood, count = found.tokens[chosen], tokens[chosen], chosen.sum()
    masked, kept = (shown == MASK_ID).sum(), (shown == stood).sum()
    changed = shown[(shown != MASK_ID) & (shown != stood)]
    assert MASK_ID == BOS_ID and not (tokens == BOS_ID).any()
    for seen, share in ((masked, 0.8), (kept, 0.1 + 0.1 / 46), (len(changed), 0.1 - 0.1 / 46)):
        assert abs(seen - share * count) < 4 * (share * (1 - share) * count) ** 0.5  # four standard deviations
    assert changed.min() >= 4 and changed.max() < VOCAB and len(set(changed.tolist())) > 20
    columns = np.nonzero(chosen[27::28])[1]  # of the longest rows
    assert len(set(columns.tolist())) > 18  # 56 draws of 26 places


def test_draws_are_of_key_row_and_column_alone():
    tokens, mask = make_text()
    order = np.random.default_rng(1).permutation(ROWS)
    wide, wide_mask = (np.pad(each[order], ((0, 0), (0, 9))) for each in (tokens, mask))
    moved = jax.device_get(
        hide(wide, wide_mask, jax.random.key(0), order.astype(np.int32), rule=MaskRule(), vocab_size=VOCAB)
    )
    np.testing.assert_array_equal(moved.tokens[:, :LENGTH], hidden().tokens[order])
    np.testing.assert_array_equal(moved.weights.sum(axis=1), hidden().weights.sum(axis=1)[order])
    np.testing.assert_array_equal(hidden(0).tokens, hidden.__wrapped__(0).tokens)
    assert (hidden(1).tokens != hidden(0).tokens).any(axis=1).mean() > 0.8


# --- the loss ------------------------------------------------------------------------------------

CONFIG = BERTConfig(VOCAB, VOCAB, features=8, layers=1, heads=2, feed_forward=12, max_positions=40, dropout=0.0)
RULE = MaskRule(share=0.3)


def make_batch(order: np.ndarray, columns: int = LENGTH) -> Batch:
    """Eight rows of the text, in an order, with so many columns."""
    tokens, mask = (np.pad(each[16:24], ((0, 0), (0, columns - LENGTH)))[order] for each in make_text())
    ids = np.arange(100, 108, dtype=np.int32)[order]
    return Batch(tokens, mask, tokens, tokens, mask, ids, np.ones(8, bool))


@functools.cache
def make_params() -> dict:
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: BERT(CONFIG).init(jax.random.key(0), tokens, tokens > 0)))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), jnp.float32), shapes)


@functools.cache
def make_loss(*, train: bool):
    return jax.jit(
        make_masked_loss(BERT(CONFIG), rule=RULE, label_smoothing=0.0, chunk=16, train=train), compiler_options=QUICKLY
    )


@pytest.mark.parametrize("train", [True, False])
def test_the_loss_is_that_of_the_hidden_tokens(train):
    batch, params, key = make_batch(np.arange(8)), make_params(), jax.random.key(5)
    loss, sums = make_loss(train=train)(params, batch, key, jnp.int32(0))
    draws = jax.random.split(key)[1] if train else jax.random.key(0)
    rows = jnp.arange(8, dtype=jnp.int32) if train else batch.example_ids
    found = jax.device_get(hide(batch.source, batch.source_mask, draws, rows, rule=RULE, vocab_size=VOCAB))
    given = jnp.asarray(found.tokens), jnp.asarray(batch.source_mask)
    logits = np.asarray(BERT(CONFIG).apply({"params": params}, *given), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    wanted = correct = 0.0
    for row, places in enumerate(found.places):
        for place, token, weight in zip(places, found.wanted[row], found.weights[row], strict=True):
            wanted -= weight * log_probs[row, place, token]
            correct += weight * (logits[row, place].argmax() == token)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert sums["nll"] == loss and sums["correct"] == correct and sums["weight"] == found.weights.sum() > 20
    assert sums["source_tokens"] == batch.source_mask.sum() and sums["slots"] == 8 * LENGTH and sums["rows"] == 8


def test_without_a_key_the_same_tokens_are_hidden_wherever_an_example_stands():
    evaluate, params = make_loss(train=False), make_params()
    first = evaluate(params, make_batch(np.arange(8)), None, None)[0]
    other = evaluate(params, make_batch(np.array([3, 0, 7, 1, 2, 6, 5, 4]), LENGTH + 5), None, None)[0]
    np.testing.assert_allclose(other, first, rtol=1e-5)
    strangers = make_batch(np.arange(8)).replace(example_ids=np.arange(8, dtype=np.int32))
    assert abs(evaluate(params, strangers, None, None)[0] - first) > 1e-2


def test_a_step_hides_others_than_the_one_before():
    train, params, batch = make_loss(train=True), make_params(), make_batch(np.arange(8))
    losses = [float(train(params, batch, jax.random.key(seed), jnp.int32(0))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
