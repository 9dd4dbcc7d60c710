"""Subsampling: lengths, pairs, and convolutions that do not know how far a recording is padded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.layers.subsampling import Convolutions, convolve, halve_mask, pool_pairs, stack_pairs


def test_frames_are_halved_and_rounded_up():
    lengths = np.arange(8)
    for room in (7, 8):
        mask = jnp.asarray(np.arange(room) < lengths[:, None])
        left = np.asarray(halve_mask(mask))
        assert left.shape == (8, 4)
        np.testing.assert_array_equal(left.sum(1), np.minimum(-(-lengths // 2), 4))
        assert (np.diff(left.astype(int)) <= 0).all()


@pytest.mark.parametrize("length", [4, 5])
def test_pairs_stand_side_by_side(length):
    x = jnp.arange(length * 6.0).reshape(length, 2, 3)
    made = np.asarray(stack_pairs(x))
    padded = np.concatenate([x, np.zeros((1, 2, 3))])
    assert made.shape == (-(-length // 2), 2, 6)
    for s, b in np.ndindex(made.shape[:2]):
        np.testing.assert_array_equal(made[s, b], np.concatenate([padded[2 * s, b], padded[2 * s + 1, b]]))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sizes", [(5, 4), (6, 7), (1, 1)])
def test_a_convolution_is_centred_on_its_place(sizes, stride):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *sizes, 3)), rng.normal(size=(3, 3, 3, 2))
    made = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for s, m in np.ndindex(-(-sizes[0] // stride), -(-sizes[1] // stride)):
        seen = around[:, stride * s : stride * s + 3, stride * m : stride * m + 3]
        np.testing.assert_allclose(made[:, s, m], np.einsum("bijc,ijcd->bd", seen, kernel), atol=1e-5)
    assert made.shape == (2, -(-sizes[0] // stride), -(-sizes[1] // stride), 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sizes", [(5, 4, 3), (6, 7, 3), (1, 1, 3), (4, 6, 1)])
def test_its_gradients_are_those_of_differences(sizes, stride):
    rng = np.random.default_rng(0)
    shapes = ((2, *sizes), (3, 3, sizes[-1], 2)) * 2
    x, kernel, change_x, change_kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    weights = jnp.asarray(rng.normal(size=convolve(x, kernel, stride).shape), jnp.float32)
    gradients = jax.grad(lambda x, kernel: jnp.vdot(weights, convolve(x, kernel, stride)), (0, 1))(x, kernel)
    moved = [
        jnp.vdot(weights, convolve(change_x, kernel, stride)),
        jnp.vdot(weights, convolve(x, change_kernel, stride)),
    ]
    for gradient, change, want in zip(gradients, (change_x, change_kernel), moved, strict=True):  # it is linear in each
        np.testing.assert_allclose(jnp.vdot(gradient, change), want, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_devices_that_share_recordings_find_the_same_gradients(stride):
    """And in bfloat16 nearly the same, that of the kernel in float32."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4, 5, 7, 3), (3, 3, 3, 2)))

    def find(x, kernel):
        return jax.grad(lambda *given: jnp.sum(jnp.tanh(convolve(*given, stride).astype(jnp.float32))), (0, 1))(
            x, kernel
        )

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, shared = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def find_part(x, kernel):
        d_x, d_kernel = find(x, jax.lax.pcast(kernel, "data", to="varying"))
        return d_x, jax.lax.psum(d_kernel, "data")

    spread = jax.shard_map(find_part, mesh=mesh, in_specs=(rows, shared), out_specs=(rows, shared))
    wanted, rough = jax.jit(find)(x, kernel), jax.jit(find)(x.astype(jnp.bfloat16), kernel)
    for found, want in zip(jax.jit(spread)(x, kernel), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert rough[0].dtype == jnp.bfloat16 and rough[1].dtype == jnp.float32
    for found, want in zip(rough, wanted, strict=True):
        assert np.linalg.norm(found.astype(jnp.float32) - want) < 0.05 * np.linalg.norm(want)


def test_pools_take_the_largest_of_what_there_is():
    x = np.abs(np.random.default_rng(0).normal(size=(1, 3, 5, 2)))
    made = pool_pairs(jnp.asarray(x, jnp.float32))
    assert made.shape == (1, 2, 3, 2)
    for s, m in np.ndindex(2, 3):
        want = x[:, 2 * s : 2 * s + 2, 2 * m : 2 * m + 2].max(axis=(1, 2))
        np.testing.assert_allclose(made[:, s, m], want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "vgg"])
@pytest.mark.parametrize("halvings", [0, 2])
def test_padding_and_what_stands_in_it_change_nothing(kind, halvings):
    rng = np.random.default_rng(0)
    module = Convolutions(kind, halvings, mels=5, channels=3, features=4)
    features, mask = jnp.asarray(rng.normal(size=(3, 9, 5)), jnp.float32), jnp.arange(9) < jnp.array([[9], [6], [1]])
    params = nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), features, mask)))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    made, left = module.apply(params, features, mask)
    assert made.shape == (3, -(-9 // 2**halvings), 4)
    wide = jnp.pad(features, ((0, 0), (0, 6), (0, 0)), constant_values=7.0)
    again, _ = module.apply(params, wide, jnp.pad(mask, ((0, 0), (0, 6))))
    np.testing.assert_allclose(again[:, : left.shape[1]], made, atol=1e-5)
    np.testing.assert_array_equal(np.where(left[..., None], 0.0, made), 0.0)
    assert np.abs(made[2, 0]).max() > 0
