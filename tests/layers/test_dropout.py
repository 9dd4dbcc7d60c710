"""Dropout: how much it keeps, that its mean is right, and that its draws depend on the key alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.layers.dropout import Dropout, dropout_mask

SHAPE = (256, 1024)


@pytest.mark.parametrize(("rate", "kept"), [(0.1, 230), (0.2, 205), (0.5, 128), (0.9, 26), (0.999, 1)])
def test_kept_share_and_scale(rate, kept):
    factors = np.asarray(dropout_mask(jax.random.key(0), rate, SHAPE, jnp.float32))
    # Kept elements have one value, such that the mean over all 256 bytes is exactly one.
    assert set(np.unique(factors)) == {np.float32(0.0), np.float32(256 / kept)}
    assert abs(kept / 256 - (1 - rate)) <= 1 / 256
    share = kept / 256
    deviation = np.sqrt(share * (1 - share) / factors.size)
    assert abs((factors > 0).mean() - share) < 5 * deviation


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_a_rate_below_half_a_byte_keeps_everything(rate):
    np.testing.assert_array_equal(dropout_mask(jax.random.key(0), rate, (4, 300), jnp.float32), 1.0)


def test_rows_and_columns_are_not_alike():
    kept = np.asarray(dropout_mask(jax.random.key(1), 0.5, SHAPE, jnp.float32)) > 0
    for axis in (0, 1):
        count = SHAPE[axis]
        assert abs(kept.mean(axis) - 0.5).max() < 6 * 0.5 / np.sqrt(count)
        neighbours = np.take(kept, range(1, count), axis) == np.take(kept, range(count - 1), axis)
        assert abs(neighbours.mean() - 0.5) < 5 * 0.5 / np.sqrt(neighbours.size)


def test_the_key_decides():
    draws = [np.asarray(dropout_mask(jax.random.key(seed), 0.3, SHAPE, jnp.bfloat16)) for seed in (0, 0, 1)]
    assert draws[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).mean() > 0.3


@pytest.mark.parametrize("axes", [("data", "model"), (("data", "model"), None), (None, "model")])
def test_the_draw_does_not_depend_on_how_it_is_sharded(axes):
    mesh = Mesh(np.array(jax.devices("cpu")[:8]).reshape(4, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    module, key = Dropout(0.3), jax.random.key(3)

    def drop(x, key):
        return module.apply({}, x, train=True, rngs={"dropout": key})

    x = np.asarray(jax.random.normal(jax.random.key(4), (64, 32)))
    want = jax.jit(drop)(x, key)
    sharded = jax.jit(drop, in_shardings=(sharding, None), out_shardings=sharding)(jax.device_put(x, sharding), key)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, want)
    assert 0.2 < (np.asarray(sharded) == 0).mean() < 0.4


def test_module_scales_what_it_keeps_and_is_nothing_outside_training():
    x = jnp.full((64, 64), 3.0)
    module = Dropout(0.5)
    dropped = module.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped)) == {0.0, 6.0}
    np.testing.assert_array_equal(module.apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_gradient_passes_where_the_value_did():
    x, key = jax.random.normal(jax.random.key(0), (32, 8)), jax.random.key(1)
    run = jax.vjp(lambda x: Dropout(0.4).apply({}, x, train=True, rngs={"dropout": key}), x)
    np.testing.assert_allclose(run[1](jnp.ones_like(x))[0], run[0] / x, rtol=1e-6)
