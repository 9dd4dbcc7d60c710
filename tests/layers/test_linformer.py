"""Linformer against its equation in float64, its sharing, and its cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.layers.dot_attention import attend_heads
from seq2seq_jax.layers.linformer import SHARES, attend_low_rank, describe_projections, mix_down

B, T, S, N, H, R, K = 3, 4, 6, 2, 4, 9, 3
LENGTHS = np.array([6, 4, 0])
MASK = np.arange(S) < LENGTHS[:, None]
attend = jax.jit(attend_low_rank)


def draw(share, seed=0):
    rng = np.random.default_rng(seed)
    shape, _, _ = describe_projections(share, heads=N, length=R, rank=K, init_scale=0.0)
    shapes = ((B, T, N, H), (B, S, N, H), (B, S, N, H), shape)
    return [jnp.asarray(rng.normal(size=each), jnp.float32) for each in shapes]


@pytest.mark.parametrize("share", SHARES)
def test_equals_equation_7_with_the_first_rows_of_the_projections(share):
    q, k, v, projections = draw(share)
    made = attend(q, k, v, projections, mask=jnp.asarray(MASK))
    q, k, v, p = (np.asarray(x, np.float64) for x in (q, k, v, projections))
    for b, n in np.ndindex(B, N):
        real = LENGTHS[b]
        e, f = (p[0, n], p[1, n]) if share == "none" else (p[0], p[1] if share == "heads" else p[0])
        keys, values = e[:real].T @ k[b, :real, n], f[:real].T @ v[b, :real, n]
        scores = np.exp(q[b, :, n] @ keys.T / np.sqrt(H))
        np.testing.assert_allclose(made[b, :, n], scores / scores.sum(-1, keepdims=True) @ values, atol=5e-6)
    assert not np.any(made[2])  # a row without anything real


@pytest.mark.parametrize("share", ["none", "kv"])
def test_padding_and_what_stands_in_it_change_nothing(share):
    q, k, v, projections = draw(share)
    want = attend(q[:2], k[:2, :4], v[:2, :4], projections, mask=jnp.asarray(MASK[:2, :4]))
    first = jnp.arange(S)[:, None, None] < 4
    junk = [jnp.where(first, x[:2], 1e4) for x in (k, v)]
    made = attend(q[:2], *junk, projections, mask=jnp.broadcast_to(jnp.arange(S) < 4, (2, S)))
    np.testing.assert_allclose(made[1], want[1], atol=1e-6)


def test_gradients_are_those_of_differences_and_masked_places_have_none():
    q, k, v, projections = draw("none")
    weigh = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    @jax.jit
    def total(arrays):
        return jnp.vdot(weigh, attend_low_rank(*arrays, mask=jnp.asarray(MASK)))

    arrays, change = (q, k, v, projections), tuple(draw("none", seed=2))
    gradients = jax.jit(jax.grad(total))(arrays)
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(gradients, change, strict=True))
    up, down = (total(tuple(x + step * d for x, d in zip(arrays, change, strict=True))) for step in (1e-2, -1e-2))
    np.testing.assert_allclose(slope, (up - down) / 2e-2, rtol=2e-3)
    for gradient in gradients[1:3]:
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(np.where(MASK[..., None, None], 0.0, gradient), 0.0)
    np.testing.assert_array_equal(gradients[3][:, :, S:], 0.0)
    assert np.abs(gradients[3][:, :, :S]).min() > 0


def test_a_projection_that_changes_nothing_gives_plain_attention():
    q, k, v, _ = draw("kv")
    want = attend_heads(q, k, v, mask=None, causal=False)
    np.testing.assert_allclose(attend(q, k, v, jnp.eye(R)[None, :, :S], mask=None), want, atol=1e-6)


def test_cost_and_largest_array_grow_with_the_length_alone():
    def measure(length):
        like = jax.ShapeDtypeStruct((1, length, N, H), jnp.float32)
        rows = jax.ShapeDtypeStruct((1, length, K), jnp.float32)

        def total(*arrays):
            return jnp.sum(attend_low_rank(*arrays, mask=jnp.ones((1, length), bool)))

        step = jax.value_and_grad(total, (0, 1, 2, 3))
        cost = jax.jit(step).lower(like, like, like, rows).compile().cost_analysis()
        largest = max(x.aval.size for line in jax.make_jaxpr(step)(like, like, like, rows).eqns for x in line.outvars)
        return cost["flops"], largest

    (short, small), (long, large) = measure(128), measure(512)
    assert 3.5 < long / short < 4.5
    assert large == 4 * small


def test_sharing_decides_how_many_projections_there_are():
    for share, numbers in zip(SHARES, (2 * N, 2, 1, 1), strict=True):
        shape, axes, _ = describe_projections(share, heads=N, length=R, rank=K, init_scale=0.0)
        assert np.prod(shape) == numbers * R * K
        assert len(axes) == len(shape)
        assert (axes[1] == "heads") == (share == "none")
    _, _, init = describe_projections("none", heads=N, length=R, rank=K, init_scale=0.0)
    drawn = np.asarray(init(jax.random.key(0), (30, 2, N, R, K)))
    np.testing.assert_allclose(drawn.var(), 2 / (R + K), rtol=0.1)


def test_sentences_longer_than_the_projections_are_refused():
    q, k, v, projections = draw("kv")
    with pytest.raises(UserError, match=r"config.model.max_positions must be at least 6.*but is 5 instead"):
        attend_low_rank(q, k, v, projections[:, :5], mask=None)


def test_low_precision_stays_low_and_near():
    q, k, v, projections = draw("heads")
    want = attend(q, k, v, projections, mask=jnp.asarray(MASK))
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    made = attend(*low, projections, mask=jnp.asarray(MASK))
    assert made.dtype == jnp.bfloat16
    np.testing.assert_allclose(made.astype(jnp.float32), want, atol=0.15)
    assert mix_down(low[1], projections[0], None).shape == (B, K, N, H)
