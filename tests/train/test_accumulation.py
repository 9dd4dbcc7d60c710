"""Updates from several batches: what they come to is that of one batch with all the rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.config import default_config
from seq2seq_jax.experiment import make_training
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.parallel.shard import place_batch
from seq2seq_jax.train.accumulation import AccumulatedStep, Groups, make_add
from seq2seq_jax.train.freezing import name_of
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.step import Total, init_state, make_train_step, make_update

VOCAB, ROWS = 20, 8


def squares(params, batch, key, step):
    """Weighted squared distance of a line; draws a number, so that keys can be seen."""
    del step
    error = batch.source * params["slope"] - batch.target_in
    loss = jnp.sum(batch.target_mask * error**2)
    return loss, {"loss": loss, "weight": jnp.sum(batch.target_mask), "draw": jax.random.uniform(key)}


def make_points(rows: int, length: int, *, bad: bool = False) -> Batch:
    generator = np.random.default_rng(length)
    x, y = generator.normal(size=(2, rows, length)).astype(np.float32)
    weight = generator.integers(0, 3, (rows, length)).astype(np.float32)
    y[0, 0], weight[0, 0] = (np.nan if bad else y[0, 0]), 1.0
    return Batch(x, weight > 0, y, y, weight, np.arange(rows), np.ones(rows, bool))


def make_step(optimizer, accumulate: int, *, tell=lambda line: None, ema_decay=0.0):
    gradient = jax.value_and_grad(squares, has_aux=True)

    def begin():  # every number has a buffer of its own: they are donated
        zero = lambda: jnp.zeros([], jnp.float32)  # noqa: E731
        return Total(zero(), {"loss": zero(), "weight": zero(), "draw": zero()}, {"slope": zero()})

    add = make_add(gradient, seed=3, accumulate=accumulate)
    update = make_update(optimizer, ema_decay=ema_decay, loss_per="token")
    return AccumulatedStep(begin, jax.jit(add, donate_argnums=0), jax.jit(update), shapes=2, tell=tell)


def test_the_mean_is_taken_once_over_batches_of_different_shapes():
    """Weights differ between the batches: the mean of their means would be another number."""
    optimizer = make_optimizer("sgd", lambda n: 0.5)
    batches = [make_points(2, 3), make_points(4, 5), make_points(2, 7)]
    state, sums = make_step(optimizer, 3)(init_state({"slope": jnp.float32(2.0)}, optimizer), batches)
    x, y, w = (
        np.concatenate([np.float64(getattr(b, name)).ravel() for b in batches])
        for name in ("source", "target_in", "target_mask")
    )
    error = 2.0 * x - y
    assert float(sums["loss"]) == pytest.approx((w * error**2).sum(), rel=1e-6)
    assert float(sums["weight"]) == w.sum()
    assert float(state.params["slope"]) == pytest.approx(2.0 - 0.5 * (w * 2 * error * x).sum() / w.sum(), rel=1e-6)
    assert float(sums["grad_norm"]) == pytest.approx(abs((w * 2 * error * x).sum() / w.sum()), rel=1e-6)
    assert int(state.step) == 1 and float(sums["finite"]) == 1.0


def test_draws_are_keyed_by_the_number_of_the_global_batch():
    optimizer = make_optimizer("sgd", lambda n: 0.0)
    start = init_state({"slope": jnp.float32(2.0)}, optimizer)
    plain = jax.jit(make_train_step(jax.value_and_grad(squares, has_aux=True), optimizer, seed=3))
    by_number = [float(plain(start.replace(step=jnp.int32(n)), make_points(2, 3))[1]["draw"]) for n in range(4)]
    step, state = make_step(optimizer, 2), start
    for first in (0, 2):
        state, sums = step(state, [make_points(2, 3)] * 2)
        assert float(sums["draw"]) == pytest.approx(by_number[first] + by_number[first + 1])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_batch_skips_the_whole_update(place):
    optimizer = make_optimizer("adam", lambda n: 0.1)
    step = make_step(optimizer, 3, ema_decay=0.9)
    state, _ = step(init_state({"slope": jnp.float32(2.0)}, optimizer, ema_decay=0.9), [make_points(2, 3)] * 3)
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema))]
    state, sums = step(state, [make_points(2, 3, bad=n == place) for n in range(3)])
    after = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema))]
    assert before == after
    assert (float(sums["finite"]), int(state.skipped), int(state.step)) == (0.0, 1, 2)
    state, sums = step(state, [make_points(2, 3)] * 3)  # nothing of it is left
    assert (float(sums["finite"]), int(state.skipped)) == (1.0, 0)


def test_one_program_a_shape_and_one_for_the_update():
    told: list[str] = []
    optimizer = make_optimizer("sgd", lambda n: 0.5)
    step, state = make_step(optimizer, 2, tell=told.append), init_state({"slope": jnp.float32(2.0)}, optimizer)
    for lengths in ((3, 5), (5, 3), (3, 3)):
        state, _ = step(state, [make_points(2, length) for length in lengths])
    assert [line.split(" in ")[0] for line in told] == [
        "compiled the step for 2 rows of 3 + 3 tokens",
        "compiled the step for 2 rows of 5 + 5 tokens",
        "compiled the update from 2 batches",
    ]
    assert step.seconds > 0


def test_groups_are_whole_or_not_given_out():
    closed = []

    class Reader:
        def __init__(self):
            self.numbers = iter(range(7))

        def __next__(self):
            return next(self.numbers)

        def __iter__(self):
            return self

        def close(self):
            closed.append(True)

    groups = Groups(Reader(), 3)
    assert list(groups) == [(0, 1, 2), (3, 4, 5)]
    groups.close()
    assert closed == [True]


# --- a model, on one device and in shards --------------------------------------------------------


def make_tokens(seed: int, rows: int, length: int) -> Batch:
    generator = np.random.default_rng(seed)
    mask = np.arange(length) < generator.integers(2, length + 1, rows)[:, None]
    source, target = generator.integers(4, VOCAB, (2, rows, length), dtype=np.int32) * mask
    target_in = (np.roll(target, 1, axis=1) * mask).astype(np.int32)
    ids = np.arange(rows, dtype=np.int32)
    return Batch(source, mask, target_in, target, mask, ids, np.ones(rows, bool))


def join(batches: list[Batch]) -> Batch:
    """All rows in one batch, padded to the longest."""
    longest = max(batch.source.shape[1] for batch in batches)
    fill = lambda x: np.pad(x, [(0, 0), (0, longest - x.shape[1])]) if x.ndim == 2 else x  # noqa: E731
    return jax.tree.map(lambda *parts: np.concatenate([fill(part) for part in parts]), *batches)


@functools.cache
def train(fsdp: int, accumulate: int):
    config = default_config("lstm")
    config.model.update(features=8, layers=1, dropout=0.0)
    config.train.update(optimizer="sgd", schedule="constant", learning_rate=1.0, warmup_steps=0, clip_norm=0.5)
    config.train.update(accumulate=accumulate, ema_decay=0.5, freeze="encoder.*bias")
    config.parallel.update(data=1, fsdp=fsdp)
    return make_training(config, VOCAB, VOCAB)


def take_updates(fsdp: int, groups):
    """The state after an update from every group of batches."""
    training = train(fsdp, len(groups[0]))
    begin, add, update = training.accumulated_step()
    step = AccumulatedStep(begin, add, update, shapes=2, tell=lambda line: None)
    state, losses = training.init(), []
    for group in groups:
        state, sums = step(state, tuple(place_batch(batch, training.mesh) for batch in group))
        losses.append(float(sums["loss"] / sums["weight"]))
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(training.abstract_state()), strict=True):
        assert leaf.sharding.is_equivalent_to(place.sharding, leaf.ndim)
    return state, losses


def assert_same(found, wanted, rtol=2e-5):
    for (path, want), got in zip(
        jax.tree_util.tree_leaves_with_path((wanted.params, wanted.ema)),
        jax.tree.leaves((found.params, found.ema)),
        strict=True,
    ):
        want, got = np.asarray(want), np.asarray(got)
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max(), err_msg=str(path))


def test_two_batches_are_one_with_all_rows_and_shards_change_nothing():
    groups = [[make_tokens(2 * n, ROWS, 4), make_tokens(2 * n + 1, ROWS, 5)] for n in range(2)]
    state, losses = take_updates(1, groups)
    training = train(1, 1)
    whole, step = training.init(), training.train_step()
    start = jax.tree.map(np.asarray, whole.params)
    for n, group in enumerate(groups):
        whole, sums = step(whole, join(group))
        assert losses[n] == pytest.approx(float(sums["loss"] / sums["weight"]), rel=1e-5)
    assert_same(state, whole)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(state.params), strict=True):
        assert np.array_equal(old, new) == (name_of(path) in training.frozen), name_of(path)
    assert 0 < len(training.frozen) < len(jax.tree.leaves(start))
    if len(jax.devices()) == 8:
        assert_same(take_updates(8, groups)[0], state)
