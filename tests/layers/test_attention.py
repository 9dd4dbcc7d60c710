"""Additive attention against its formula in float64, and its behaviour on masked positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.layers.attention import AdditiveAttention, additive_scores, masked_softmax

B, T, S, A, D, M = 3, 4, 5, 7, 6, 8
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
MASK = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], bool)


def make(dtype=jnp.float32) -> tuple[AdditiveAttention, dict, jax.Array, jax.Array]:
    """A module, its parameters (bias included), queries `[B, T, D]` and what is attended to `[B, S, M]`."""
    module = AdditiveAttention(A, D, M, dtype=dtype)
    rng = np.random.default_rng(0)
    queries, values = rng.normal(size=(B, T, D)), rng.normal(size=(B, S, M))
    shapes = {"query_kernel": (D, A), "key_kernel": (M, A), "bias": (A,), "v": (A,)}
    params = {name: jnp.asarray(rng.normal(0.0, 0.7, shape), jnp.float32) for name, shape in shapes.items()}
    return module, {"params": params}, jnp.asarray(queries, jnp.float32), jnp.asarray(values, jnp.float32)


def run(module: AdditiveAttention, queries, values, mask):
    return module(queries, module.project_keys(values), values, mask)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_the_formula(dtype):
    module, variables, queries, values = make(dtype)
    contexts, weights = module.apply(variables, queries, values.astype(dtype), MASK, method=run)
    assert (contexts.dtype, weights.dtype) == (dtype, jnp.float32)

    queries, values = np.asarray(queries, np.float64), np.asarray(values, np.float64)
    p = {name: np.asarray(leaf, np.float64) for name, leaf in variables["params"].items()}
    tolerance = 2e-6 if dtype == jnp.float32 else 0.05
    for b in range(B):
        real = np.flatnonzero(MASK[b])
        for t in range(T):
            query = queries[b, t] @ p["query_kernel"]
            scores = np.array([p["v"] @ np.tanh(query + values[b, s] @ p["key_kernel"] + p["bias"]) for s in real])
            want = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(weights[b, t, real], want, atol=tolerance)
            context = sum(w * values[b, s] for w, s in zip(want, real, strict=True))
            np.testing.assert_allclose(contexts[b, t].astype(jnp.float32), context, atol=tolerance)


def test_parameters_have_the_shapes_of_the_formula():
    module, variables, queries, values = make()
    made = nn.meta.unbox(module.init(jax.random.key(0), queries, values, MASK, method=run))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)
    assert np.abs(made["params"]["key_kernel"]).max() <= 0.04


def test_masked_positions_get_nothing_and_rows_sum_to_one():
    module, variables, queries, values = make()
    _, weights = module.apply(variables, queries, values, MASK, method=run)
    np.testing.assert_array_equal(np.asarray(jnp.where(MASK[:, None], 0.0, weights)), 0.0)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_what_stands_in_masked_positions_does_not_matter():
    module, variables, queries, values = make()
    junk = jnp.where(MASK[..., None], values, 1e4)
    got = module.apply(variables, queries, junk, MASK, method=run)
    want = module.apply(variables, queries, values, MASK, method=run)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_without_real_positions_gives_zeros_and_finite_gradients():
    module, variables, queries, values = make()
    mask = MASK & (jnp.arange(B) != 1)[:, None]

    def total(variables, queries, values):
        contexts, weights = module.apply(variables, queries, values, mask, method=run)
        return jnp.sum(jnp.sin(contexts)) + jnp.sum(weights**2), (contexts, weights)

    graded = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICKLY)
    gradients, (contexts, weights) = graded(variables, queries, values)
    np.testing.assert_array_equal(contexts[1], 0.0)
    np.testing.assert_array_equal(weights[1], 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients[1][1], 0.0)
    np.testing.assert_array_equal(gradients[2][1], 0.0)
    assert np.abs(gradients[1][0]).max() > 0


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_softmax_survives_large_scores(scale):
    scores = jnp.array([[1.0, 2.0, -1.0], [-3.0, -2.0, -2.5]]) * scale
    weights = masked_softmax(scores, jnp.array([[True, False, True], [True, True, False]]))
    np.testing.assert_array_equal(weights, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def test_softmax_of_bfloat16_is_float32():
    scores = jax.random.normal(jax.random.key(0), (2, 9), jnp.bfloat16)
    weights = masked_softmax(scores, jnp.ones((2, 9), bool))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, jax.nn.softmax(scores.astype(jnp.float32)), atol=1e-6)


def draw_scores() -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(2), 3)
    return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, [(B, T, A), (B, S, A), (A,)], strict=True))


def test_one_query_at_a_time_equals_all_at_once():
    queries, keys, v = draw_scores()

    def total(function):
        graded = jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(function(*args))), argnums=(0, 1, 2))
        return jax.jit(graded, compiler_options=QUICKLY)(queries, keys, v)

    def one_by_one(queries, keys, v):
        return jnp.concatenate([additive_scores(queries[:, t : t + 1], keys, v) for t in range(T)], axis=1)

    def plain(queries, keys, v):
        return jnp.tanh(queries[:, :, None] + keys[:, None]) @ v

    for got, expected in zip(jax.tree.leaves(total(additive_scores)), jax.tree.leaves(total(plain)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    want = additive_scores(queries, keys, v)
    np.testing.assert_allclose(one_by_one(queries, keys, v), want, rtol=1e-5, atol=1e-5)


def test_the_hidden_layer_of_all_pairs_never_exists():
    def text(function):
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(*draw_scores()).compile().as_text()

    shapes = (f"[{T},{B},{S},{A}]", f"[{B},{T},{S},{A}]")
    assert any(shape in text(lambda q, k, v: jnp.tanh(q[:, :, None] + k[:, None]) @ v) for shape in shapes)
    assert not any(shape in text(additive_scores) for shape in shapes)
