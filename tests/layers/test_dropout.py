"""Dropout: how much it keeps, that its mean is right, and that a draw depends on key, row and time alone."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.layers.dropout import Dropout, drop, dropout_mask, make_places

TIMES, ROWS, WIDTH = 32, 8, 1024
FLOAT32, BFLOAT16 = np.dtype(np.float32), jnp.dtype(jnp.bfloat16)
PLACES = make_places(jnp.arange(ROWS), TIMES)


def test_places_are_row_and_time():
    places = np.asarray(make_places(jnp.array([7, 3]), 3))
    np.testing.assert_array_equal(places, [[[7, t], [3, t]] for t in range(3)])


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9, 0.999])
def test_kept_share_and_scale(rate):
    factors = np.asarray(dropout_mask(jax.random.key(0), rate, PLACES, WIDTH, FLOAT32))
    assert factors.shape == (TIMES, ROWS, WIDTH)
    assert set(np.unique(factors)) == {np.float32(0.0), np.float32(1 / (1 - rate))}
    share = 1 - rate
    deviation = np.sqrt(share * (1 - share) / factors.size)
    assert abs((factors > 0).mean() - share) < 5 * deviation


def test_a_rate_of_zero_keeps_everything():
    factors = dropout_mask(jax.random.key(0), 0.0, PLACES, 30, FLOAT32)
    assert factors.shape == (TIMES, ROWS, 30)
    np.testing.assert_array_equal(factors, 1.0)


def test_times_rows_and_columns_are_not_alike():
    kept = np.asarray(dropout_mask(jax.random.key(1), 0.5, PLACES, WIDTH, FLOAT32)) > 0
    for axis in range(3):
        count = kept.shape[axis]
        assert abs(kept.mean(axis) - 0.5).max() < 6 * 0.5 / np.sqrt(count)
        neighbours = np.take(kept, range(1, count), axis) == np.take(kept, range(count - 1), axis)
        assert abs(neighbours.mean() - 0.5) < 5 * 0.5 / np.sqrt(neighbours.size)


def test_row_and_time_are_not_interchangeable():
    """Row 1 at time 2 and row 2 at time 1 draw for themselves."""
    factors = np.asarray(dropout_mask(jax.random.key(1), 0.5, PLACES, WIDTH, FLOAT32))
    same = factors[:ROWS] == factors[:ROWS].swapaxes(0, 1)
    assert abs(same[~np.eye(ROWS, dtype=bool)].mean() - 0.5) < 0.02


def test_key_and_number_of_the_draw_decide():
    chosen = ((0, 0), (0, 0), (1, 0), (0, 1), (0, 2))
    draws = [
        np.asarray(dropout_mask(jax.random.key(seed), 0.3, PLACES, 40, BFLOAT16, draw=draw)) for seed, draw in chosen
    ]
    assert draws[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(draws[0], draws[1])
    for one, two in itertools.combinations(draws[1:], 2):  # independent: they differ where one of them alone keeps
        assert abs((one != two).mean() - 2 * 0.3 * 0.7) < 0.02


def test_all_bits_are_drawn_alike():
    """Pearson's test that 16 ranges of rates lose equally many elements."""
    lost = [np.asarray(dropout_mask(jax.random.key(4), n / 16, PLACES, 256, FLOAT32) == 0).sum() for n in range(1, 16)]
    counts, expected = np.diff([0, *lost, TIMES * ROWS * 256]), TIMES * ROWS * 256 / 16
    assert 2 < ((counts - expected) ** 2 / expected).sum() < 45  # 15 degrees of freedom: 1e-4 on either side


def test_the_backward_pass_draws_the_same():
    x, key = jnp.ones((TIMES, ROWS, 24)), jax.random.key(5)
    gradient = jax.grad(lambda x: jnp.sum(drop(0.4, x, key, PLACES, 3)))(x)
    np.testing.assert_array_equal(gradient, dropout_mask(key, 0.4, PLACES, 24, FLOAT32, draw=3))


@pytest.mark.parametrize("width", [40, 37])
def test_a_row_draws_the_same_wherever_it_lies_and_however_long_its_batch_is(width):
    whole = np.asarray(dropout_mask(jax.random.key(2), 0.4, PLACES, width, FLOAT32))
    rows, first = np.array([5, 0, 3]), 4
    part = dropout_mask(jax.random.key(2), 0.4, make_places(jnp.asarray(rows), TIMES + 9), width, FLOAT32)
    np.testing.assert_array_equal(part[:TIMES], whole[:, rows])
    piece = dropout_mask(jax.random.key(2), 0.4, PLACES[first : first + 5], width, FLOAT32)
    np.testing.assert_array_equal(piece, whole[first : first + 5])


@pytest.mark.parametrize("axes", [("data", "model"), (None, ("data", "model")), (None, None, "model")])
def test_the_draw_does_not_depend_on_how_it_is_sharded(axes):
    mesh = Mesh(np.array(jax.devices("cpu")[:8]).reshape(4, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    module, key = Dropout(0.3), jax.random.key(3)

    def drop(x, key):
        return module.apply({}, x, PLACES, train=True, rngs={"dropout": key})

    x = np.asarray(jax.random.normal(jax.random.key(4), (TIMES, ROWS, 32)))
    want = jax.jit(drop)(x, key)
    sharded = jax.jit(drop, in_shardings=(sharding, None), out_shardings=sharding)(jax.device_put(x, sharding), key)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, want)
    assert 0.2 < (np.asarray(sharded) == 0).mean() < 0.4


def test_module_scales_what_it_keeps_and_is_nothing_outside_training():
    x = jnp.full((TIMES, ROWS, 64), 3.0)
    module = Dropout(0.5)
    dropped = module.apply({}, x, PLACES, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped)) == {0.0, 6.0}
    np.testing.assert_array_equal(module.apply({}, x, PLACES, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, PLACES, train=True), x)


def test_gradient_passes_where_the_value_did():
    x, key = jax.random.normal(jax.random.key(0), (TIMES, ROWS, 8)), jax.random.key(1)
    run = jax.vjp(lambda x: Dropout(0.4).apply({}, x, PLACES, train=True, rngs={"dropout": key}), x)
    np.testing.assert_allclose(run[1](jnp.ones_like(x))[0], run[0] / x, rtol=1e-6)
