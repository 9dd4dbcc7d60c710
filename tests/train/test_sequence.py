"""Sequence-level training: the gradient of a risk, known by enumeration; and a model that learns what is rewarded."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.parallel.shard import place_batch
from seq2seq_jax.parallel.spread import spread_gradient
from seq2seq_jax.tasks.methods import IDS
from seq2seq_jax.tasks.search import make_decode
from seq2seq_jax.tasks.sequence import (
    Judge,
    Objective,
    longest_candidate,
    make_propose,
    make_sequence_loss,
    weigh_candidates,
)
from seq2seq_jax.train.loop import CompiledStep
from seq2seq_jax.train.sequence import SequenceStep, batch_key
from seq2seq_jax.train.step import init_state, make_train_step

VOCAB, ROWS, SOURCE, TARGET, COUNT = 11, 8, 3, 4, 3
LENGTH = longest_candidate(TARGET)
QUICKLY = {"xla_backend_optimization_level": 0}
RISK = Objective("minimum_risk", sharpness=0.4, reference=True, likelihood=0.0)
MIXED = Objective("minimum_risk", sharpness=0.4, reference=False, likelihood=0.3)
SAMPLES = Objective("reinforce", sharpness=0.0, reference=True, likelihood=0.2)


@functools.cache
def train(dropout: float = 0.0, data: int = 1) -> Training:
    config = default_config("lstm")
    config.model.update(features=8, layers=1, dropout=dropout)
    config.parallel.update(data=data)
    config.data.rows_multiple = ROWS
    config.decode.update(length_factor=1.0, length_extra=LENGTH)
    return make_training(config, VOCAB, VOCAB)


@functools.cache
def start():
    """Parameters large enough for candidates to differ; numpy arrays."""
    generator, params = np.random.default_rng(1), nn.meta.unbox(train().boxed_state).params
    return jax.tree.map(lambda x: generator.normal(0, 0.5, x.shape).astype(x.dtype), params)


def make_batch() -> Batch:
    """Sentences with judged candidates; slots are missing here and there, and two rows only fill."""
    generator = np.random.default_rng(0)
    row_mask = np.array([True, True, True, False, True, True, True, False])
    source_mask = (np.arange(SOURCE) < np.array([3, 1, 2, 0, 3, 2, 1, 0])[:, None]) & row_mask[:, None]
    target_mask = (np.arange(TARGET) < np.array([2, 4, 3, 0, 1, 4, 2, 0])[:, None]) & row_mask[:, None]
    lengths = generator.integers(1, LENGTH + 1, (ROWS, COUNT + 1)) * row_mask[:, None]
    lengths[:, 0] = target_mask.sum(axis=-1)
    lengths[1, 2] = 0
    candidates = generator.integers(3, VOCAB, (ROWS, COUNT + 1, LENGTH))
    candidates = np.where(np.arange(LENGTH) < lengths[..., None], candidates, 0).astype(np.int32)
    target = candidates[:, 0, :TARGET]
    return Batch(
        source=np.where(source_mask, generator.integers(4, VOCAB, source_mask.shape), 0).astype(np.int32),
        source_mask=source_mask,
        target_in=np.where(target_mask, np.insert(target, 0, BOS_ID, axis=1)[:, :-1], 0).astype(np.int32),
        target_out=target,
        target_mask=target_mask,
        example_ids=np.where(row_mask, np.arange(ROWS), -1).astype(np.int32),
        row_mask=row_mask,
        candidates=candidates,
        candidate_lengths=lengths.astype(np.int32),
        rewards=generator.uniform(size=(ROWS, COUNT + 1)).astype(np.float32),
    )


def candidate_log_probs(params):
    """log p of the reference and each candidate `[B, G]`, each with a source of its own, by the whole softmax."""
    batch = make_batch()
    source, mask = (jnp.repeat(x, COUNT + 1, axis=0) for x in (batch.source, batch.source_mask))
    tokens, lengths = batch.candidates.reshape(-1, LENGTH), batch.candidate_lengths.reshape(-1, 1)
    logits = train().model.apply({"params": params}, source, mask, np.insert(tokens, 0, BOS_ID, axis=1)[:, :-1])
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(np.arange(LENGTH) < lengths, each, 0.0), axis=-1).reshape(ROWS, COUNT + 1)


def risk_by_hand(log_probs, batch: Batch, objective: Objective):
    """The objective of minimum risk as its formula stands, differentiable as a whole."""
    total = 0.0
    for row in np.flatnonzero(batch.row_mask):
        slots = [n for n in range(COUNT + 1) if batch.candidate_lengths[row, n] and (n or objective.reference)]
        share = jax.nn.softmax(objective.sharpness * log_probs[row, jnp.array(slots)])
        total += 1.0 - jnp.sum(share * batch.rewards[row, np.array(slots)])
        total -= objective.likelihood * log_probs[row, 0]
    return total


@functools.cache
def find_gradient(objective: Objective, dropout: float = 0.0, data: int = 1):
    training = train(dropout, data)
    loss = make_sequence_loss(training._spread_model, objective, chunk=16)
    gradient = jax.jit(spread_gradient(loss, training.layout, training.boxed_state.params), compiler_options=QUICKLY)
    batch = place_batch(make_batch(), training.mesh)
    return jax.device_get(gradient(start(), batch, jax.random.key(0), jnp.int32(0)))


def assert_close(found, wanted) -> None:
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert largest > 1e-3
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


# --- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [RISK, MIXED], ids=["reference", "mixed"])
def test_the_gradient_of_minimum_risk_is_that_of_its_formula(objective):
    batch = make_batch()

    def whole(params):
        return risk_by_hand(candidate_log_probs(params), batch, objective)

    wanted, slope = jax.jit(jax.value_and_grad(whole), compiler_options=QUICKLY)(start())
    (value, sums), found = find_gradient(objective)
    assert float(value) == float(sums["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert_close(found, slope)
    assert (sums["weight"], sums["nll_weight"]) == (6, 16)
    best = np.where(batch.candidate_lengths[:, 1:] > 0, batch.rewards[:, 1:], 0.0).max(axis=-1)
    assert float(sums["best_reward"]) == pytest.approx(best.sum(), rel=1e-5)


@pytest.mark.parametrize("objective", [RISK, MIXED, SAMPLES], ids=lambda objective: objective.kind)
def test_weights_are_finite_differences_of_the_expected_risk(objective):
    """In float64 by hand: what the gradient multiplies log p by, without any model."""
    generator = np.random.default_rng(2)
    log_probs, rewards = generator.normal(-5, 2, (1, 4)), generator.uniform(size=(1, 4))
    there = np.array([[True, True, False, True]])
    weights, expected = weigh_candidates(objective, *map(jnp.float32, (log_probs, rewards)), jnp.asarray(there))

    def risk(log_probs):
        if objective.kind == "reinforce":  # of K = 2 samples: half of each one's excess over the other
            return -0.5 * (rewards[0, 1] - rewards[0, 3]) * (log_probs[1] - log_probs[3])
        slots = [n for n in range(4) if there[0, n] and (n or objective.reference)]
        share = np.exp(objective.sharpness * log_probs[slots])
        return 1.0 - (share / share.sum()) @ rewards[0, slots]

    def at(n, h):
        moved = log_probs[0].copy()
        moved[n] += h
        return risk(moved) - objective.likelihood * moved[0]

    slopes = [(at(n, 1e-5) - at(n, -1e-5)) / 2e-5 for n in range(4)]
    np.testing.assert_allclose(-np.asarray(weights[0]), slopes, rtol=1e-4, atol=1e-6)
    if objective.kind == "minimum_risk":
        assert float(expected[0]) == pytest.approx(1.0 - risk(log_probs[0]), rel=1e-5)


def test_samples_weigh_so_that_their_mean_gradient_is_that_of_the_expected_reward():
    """Over all pairs of samples of a distribution of three outputs, exactly."""
    logits, rewards = np.array([0.3, -1.0, 0.5]), np.array([0.9, 0.1, 0.4])
    share = np.exp(logits) / np.exp(logits).sum()
    mean = np.zeros(3)
    for pair in itertools.product(range(3), repeat=2):
        given = np.array([[0.5, *rewards[list(pair)]]])
        weights, _ = weigh_candidates(
            Objective("reinforce", 0.0, True, 0.0), jnp.zeros((1, 3)), jnp.float32(given), jnp.ones((1, 3), bool)
        )
        slope = np.eye(3)[list(pair)] - share  # of log p, with respect to the logits
        mean += share[pair[0]] * share[pair[1]] * (np.asarray(weights[0, 1:], np.float64) @ slope)
    np.testing.assert_allclose(mean, share * (rewards - share @ rewards), atol=1e-6)


def test_rows_on_several_devices_give_the_same_gradient():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    objective = RISK
    (value, sums), found = find_gradient(objective, dropout=0.3, data=8)
    (wanted, wanted_sums), slope = find_gradient(objective, dropout=0.3)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    assert {name: pytest.approx(float(x), rel=1e-5) for name, x in wanted_sums.items()} == sums
    assert_close(found, slope)
    assert float(wanted) != float(find_gradient(objective)[0][0])  # dropout took part


# --- judging -------------------------------------------------------------------------------------


class Letters:
    """A vocabulary whose token n is the n-th letter."""

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids if i != EOS_ID)


def count_shared(output: str, reference: str) -> float:
    return len(set(output) & set(reference)) / 10


def judge(objective: Objective):
    tokens = np.array([[[4, 5, EOS_ID], [4, 6, EOS_ID], [4, 6, EOS_ID]], [[7, 0, 0], [7, 7, 7], [0, 0, 0]]])
    lengths, references = np.array([[3, 3, 3], [1, 3, 0]]), np.array([[4, 5, EOS_ID, 0], [7, EOS_ID, 0, 0]])
    return Judge(Letters(), count_shared, objective)(tokens, lengths, references, np.array([3, 2]))


def test_equal_candidates_are_one_in_a_set_and_several_among_samples():
    candidates, lengths, rewards = judge(RISK)
    np.testing.assert_array_equal(lengths, [[3, 0, 3, 0], [2, 1, 3, 0]])
    np.testing.assert_array_equal(candidates[0, 2], [4, 6, EOS_ID])
    np.testing.assert_allclose(rewards, [[0.2, 0, 0.1, 0], [0.1, 0.1, 0.1, 0]])
    np.testing.assert_array_equal(judge(MIXED)[1], [[3, 3, 3, 0], [2, 1, 3, 0]])
    np.testing.assert_array_equal(judge(SAMPLES)[1], [[3, 3, 3, 3], [2, 1, 3, 0]])


# --- a whole step --------------------------------------------------------------------------------


def share_of_fives(output: str, reference: str) -> float:
    return output.count("f") / LENGTH  # token 5, whatever the reference says


@functools.cache
def make_programs():
    training, objective = train(), Objective("reinforce", 0.0, False, 0.0)
    search = dataclasses.replace(training.make_search(), method=Draws(samples=8, **IDS))
    propose = make_propose(make_decode(training.program, search, attention=False))
    optimizer = optax.adam(0.05)
    gradient = spread_gradient(
        make_sequence_loss(training.model, objective, chunk=256), training.layout, training.boxed_state.params
    )
    numbered = jax.jit(lambda params, number, batch: propose(params, batch, batch_key(0, number)))
    return objective, optimizer, numbered, jax.jit(make_train_step(gradient, optimizer, seed=0))


def take_steps(state, count: int):
    """Steps on one batch; the state and the mean reward of each."""
    objective, _, propose, update = make_programs()
    step = SequenceStep(
        propose,
        Judge(Letters(), share_of_fives, objective),
        jnp.asarray,
        CompiledStep(update, shapes=1, tell=lambda line: None),
        accumulate=1,
        shapes=1,
        tell=lambda line: None,
    )
    batch, rewards = jax.device_put(make_batch().replace(candidates=None, candidate_lengths=None, rewards=None)), []
    for _ in range(count):
        state, sums = step(state, batch)
        rewards.append(float(sums["reward"] / sums["weight"]))
        assert sums["propose_seconds"] > 0 and sums["judge_seconds"] > 0
    return state, rewards


def test_what_is_rewarded_is_learnt_and_a_resumed_run_goes_on_alike():
    begin = init_state(jax.tree.map(jnp.asarray, start()), make_programs()[1])
    half, first = take_steps(begin, 20)
    whole, rewards = take_steps(half, 20)
    assert np.mean(first[:5]) < 0.3 and np.mean(rewards[-5:]) > np.mean(first[:5]) + 0.3
    again, same = take_steps(jax.tree.map(jnp.asarray, jax.device_get(half)), 20)
    assert same == rewards
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_compiling_proposals_and_the_update_is_time_spent_on_compiling():
    class Update:
        seconds = 3.0

        def __call__(self, state, batch):
            return state, {}

    tell = lambda line: None  # noqa: E731
    step = SequenceStep(make_programs()[2], None, None, Update(), accumulate=1, shapes=1, tell=tell)
    assert step.seconds == 3.0
