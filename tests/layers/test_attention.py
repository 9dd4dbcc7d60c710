"""Additive attention against its formula in float64, and its behaviour on masked positions."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from seq2seq_jax.layers import attention
from seq2seq_jax.layers.attention import AdditiveAttention, DotAttention, masked_softmax

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


@pytest.mark.parametrize(("projected", "width"), [(True, M), (False, D), (False, 2 * D)])
def test_products_equal_the_formulas_of_luong(projected, width):
    module = DotAttention(D, width, projected)
    rng = np.random.default_rng(0)
    queries, values = (rng.normal(size=(B, length, size)).astype(np.float32) for length, size in ((T, D), (S, width)))
    kernel = rng.normal(size=(width, D)).astype(np.float32)
    params = {"params": {"key_kernel": kernel}} if projected else {}
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), queries, values, MASK, method=run)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    contexts, weights = module.apply(params, queries, values, MASK, method=run)
    queries, values = np.asarray(queries, np.float64), np.asarray(values, np.float64)
    for b in range(B):
        real = np.flatnonzero(MASK[b])
        for t in range(T):
            keys = [values[b, s] @ kernel if projected else values[b, s].reshape(-1, D).sum(0) for s in real]
            scores = np.array([queries[b, t] @ key for key in keys])
            want = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            np.testing.assert_allclose(weights[b, t, real], want, atol=1e-5)
            np.testing.assert_allclose(contexts[b, t], want @ values[b, real], atol=1e-5)


def test_a_product_needs_widths_that_agree():
    module = DotAttention(D, M, False)
    with pytest.raises(ValueError, match=f"is {M} for queries of {D}"):
        module.init(jax.random.key(0), jnp.zeros((B, T, D)), jnp.zeros((B, S, M)), MASK, method=run)


# --- the backward pass that is written by hand -----------------------------------------------------------------------


def plain(queries, keys, values, mask, v):
    """The formula with the hidden layer of all pairs, for automatic differentiation."""
    scores = jnp.tanh(queries[:, :, None] + keys[:, None]) @ v
    weights = masked_softmax(scores, mask[:, None])
    return weights @ values, weights


def draw(batch: int, length: int) -> tuple[jax.Array, ...]:
    """Queries, keys, values and v; a mask that leaves the last row of the batch empty; and cotangents."""
    rng = np.random.default_rng(3)
    shapes = (batch, length, A), (batch, S, A), (batch, S, D), (A,), (batch, length, D), (batch, length, S)
    queries, keys, values, v, *cotangents = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    mask = (rng.random((batch, S)) < 0.7) & (np.arange(batch) < batch - 1)[:, None]
    return queries, keys, values, jnp.asarray(mask), v, *cotangents


def differentiate(function):
    """Builds `(queries, ..., d_contexts, d_weights)` to contexts, weights and the gradients of all but the mask."""

    def gradients(queries, keys, values, mask, v, *cotangents):
        outputs, pull = jax.vjp(lambda q, k, x, v: function(q, k, x, mask, v), queries, keys, values, v)
        cotangents = (c.astype(o.dtype) for c, o in zip(cotangents, outputs, strict=True))
        return outputs, pull(tuple(cotangents))

    return gradients


def compile_quickly(function, *arguments):
    return jax.jit(function).lower(*arguments).compile(compiler_options=QUICKLY)


def compile_for_others(monkeypatch):
    """From here on this CPU computes as an accelerator would be told to."""
    monkeypatch.setattr(attention.lax, "platform_dependent", lambda *args, default, **others: default(*args))


@pytest.mark.parametrize("platform", ["cpu", "others"])
@pytest.mark.parametrize("at_a_time", [1, 2, 5])  # 2 of 5: the last part is filled up
def test_gradients_equal_those_of_the_formula(at_a_time, platform, monkeypatch):
    arguments = draw(B, 5)
    if platform == "others":
        compile_for_others(monkeypatch)
    monkeypatch.setattr(attention, "PAIRED", dict.fromkeys(attention.PAIRED, at_a_time * B * S * A))
    compiled = compile_quickly(differentiate(attention.attend), *arguments)
    assert ("while" in compiled.as_text()) == (at_a_time < 5)
    wanted = jax.tree.leaves(compile_quickly(differentiate(plain), *arguments)(*arguments))
    for found, want in zip(jax.tree.leaves(compiled(*arguments)), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6)
        assert np.abs(want).max() > 0.1


def test_bfloat16_is_rounded_at_the_ends_only(monkeypatch):
    monkeypatch.setattr(attention, "PAIRED", dict.fromkeys(attention.PAIRED, 1))
    exact = draw(B, T)
    rounded = [x if x.dtype == bool else x.astype(jnp.bfloat16) for x in exact]
    found = compile_quickly(differentiate(attention.attend), *rounded)(*rounded)
    lifted = [x if x.dtype == bool else x.astype(jnp.float32) for x in rounded]
    wanted = compile_quickly(differentiate(plain), *lifted)(*lifted)
    assert [x.dtype for x in jax.tree.leaves(found)] == [jnp.bfloat16, jnp.float32] + [jnp.bfloat16] * 4
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=0.02 * np.abs(want).max())


def count_elements(text: str) -> set[int]:
    """The sizes of all arrays of a compiled program."""
    shapes = re.findall(r"\b(?:f32|bf16|f16|pred)\[([\d,]+)\]", text)
    return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}


def test_the_hidden_layer_of_all_pairs_never_exists(monkeypatch):
    monkeypatch.setattr(attention, "PAIRED", dict.fromkeys(attention.PAIRED, 1))
    arguments = draw(B, T)
    pairs = B * T * S * A
    assert max(count_elements(compile_quickly(differentiate(plain), *arguments).as_text())) >= pairs
    sizes = count_elements(jax.jit(differentiate(attention.attend)).lower(*arguments).compile().as_text())
    assert B * S * A in sizes and max(sizes) < pairs


def test_a_step_of_a_search_has_no_loop(monkeypatch):
    monkeypatch.setattr(attention, "PAIRED", dict.fromkeys(attention.PAIRED, 1))
    text = [compile_quickly(attention.attend, *draw(B, length)[:5]).as_text() for length in (1, 2)]
    assert ["while" in each for each in text] == [False, True]


def test_devices_add_up_the_gradient_of_v_once_after_the_loop(monkeypatch):
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    monkeypatch.setattr(attention, "PAIRED", dict.fromkeys(attention.PAIRED, 1))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments, rows, whole = draw(8, 3), P("data"), P()

    def own(queries, keys, values, mask, v, *cotangents):
        def shared(queries, keys, values, mask, v):
            return attention.attend(queries, keys, values, mask, jax.lax.pcast(v, "data", to="varying"))

        return differentiate(shared)(queries, keys, values, mask, v, *cotangents)

    inputs = (rows, rows, rows, rows, whole, rows, rows)
    outputs = ((rows, rows), (rows, rows, rows, whole))
    split = compile_quickly(jax.shard_map(own, mesh=mesh, in_specs=inputs, out_specs=outputs), *arguments)
    wanted = jax.tree.leaves(compile_quickly(differentiate(plain), *arguments)(*arguments))
    for found, want in zip(jax.tree.leaves(split(*arguments)), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=5e-6)
    inner, entry = split.as_text().split("\nENTRY")
    assert "while" in entry and entry.count(" all-reduce(") == 1 and " all-reduce(" not in inner
