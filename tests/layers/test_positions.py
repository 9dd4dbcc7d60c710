"""Positions against their formulas in float64 and against Hugging Face's modules."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.positions import make_bias, make_buckets, make_distances, rotate, sinusoids

BUCKETS = [(32, 128, True), (32, 128, False), (8, 20, True), (7, 30, False), (32, 1000, False), (10, 6, True)]


def test_sinusoids_equal_the_equation_of_the_paper():
    positions = np.array([[0, 1, 2], [7, 100, 1023]])
    made = np.asarray(sinusoids(jnp.asarray(positions), 8))
    for (b, t), position in np.ndenumerate(positions):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            np.testing.assert_allclose(made[b, t, [i, i + 4]], [np.sin(angle), np.cos(angle)], atol=1e-4)
    assert made.shape == (2, 3, 8)
    assert made.dtype == np.float32


def test_sinusoids_equal_those_of_marian():
    marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    want = marian.MarianSinusoidalPositionalEmbedding(50, 16).create_weight().numpy()
    np.testing.assert_allclose(sinusoids(jnp.arange(50), 16), want, atol=1e-5)


def test_rotation_is_a_product_of_complex_numbers():
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 3, 4, 6)), np.array([[0, 1, 2], [5, 90, 700]])
    numbers = x[..., :3] + 1j * x[..., 3:]
    turns = np.exp(1j * positions[:, :, None, None] * 10000.0 ** (-2 * np.arange(3) / 6))
    turned = numbers * turns
    made = rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions))
    np.testing.assert_allclose(made, np.concatenate([turned.real, turned.imag], -1), atol=2e-4)
    low = rotate(jnp.asarray(x, jnp.bfloat16), jnp.asarray(positions))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), made, atol=0.05)


def test_products_of_rotated_vectors_depend_on_distances_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 5, 2, 8)), jnp.float32) for _ in range(2))

    def score(first):
        places = first + jnp.arange(5)[None]
        return jnp.einsum("btnh,bsnh->bnts", rotate(q, places), rotate(k, places))

    np.testing.assert_allclose(score(0), score(37), atol=1e-4)
    assert np.abs(score(0) - jnp.einsum("btnh,bsnh->bnts", q, k)).max() > 0.1


@pytest.mark.parametrize(("buckets", "longest", "both_ways"), BUCKETS)
def test_buckets_equal_the_logarithms_of_the_authors_program(buckets, longest, both_ways):
    distances = np.arange(-1500, 1501)
    made = make_buckets(jnp.asarray(distances), buckets=buckets, max_distance=longest, both_ways=both_ways)
    own = buckets // 2 if both_ways else buckets
    exact = own // 2
    for distance, bucket in zip(distances, np.asarray(made), strict=True):
        far = abs(distance) if both_ways else max(-distance, 0)
        want = far
        if far >= exact:
            share = math.log(far / exact) / math.log(longest / exact)
            want = min(exact + math.floor(share * (own - exact) + 1e-9), own - 1)  # a bound belongs to what it begins
        assert bucket == want + (own if both_ways and distance > 0 else 0), distance


def test_buckets_equal_those_of_t5():
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-1500, 1501)
    for buckets, longest, both_ways in BUCKETS:
        want = t5.T5Attention._relative_position_bucket(torch.tensor(distances), both_ways, buckets, longest)
        made = make_buckets(jnp.asarray(distances), buckets=buckets, max_distance=longest, both_ways=both_ways)
        np.testing.assert_array_equal(made, want.numpy())


@pytest.mark.parametrize("decoder", [False, True])
def test_bias_equals_that_of_t5_and_so_does_its_gradient(decoder):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    config = t5.T5Config(d_model=8, d_kv=4, num_heads=2, is_decoder=decoder, relative_attention_num_buckets=8)
    config.relative_attention_max_distance = 20
    module = t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    weigh = np.random.default_rng(0).normal(size=(1, 2, 30, 30)).astype(np.float32)
    want = module.compute_bias(30, 30)
    (want * torch.tensor(weigh)).sum().backward()
    table = module.relative_attention_bias.weight

    def total(table):
        places = jnp.arange(30)[None]
        bias = make_bias(table, make_distances(places, places), max_distance=20, both_ways=not decoder)
        return jnp.vdot(weigh, bias), bias

    (_, bias), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(table.detach().numpy()))
    np.testing.assert_allclose(bias, want.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(gradient, table.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_distances_are_those_of_the_positions_that_are_given():
    """Of packed rows, positions begin anew in each segment; of a step, there is one query."""
    packed = jnp.array([[0, 1, 0, 1], [0, 1, 2, 0]])
    made = make_distances(packed, packed)
    want = np.asarray(packed)[:, None, :] - np.asarray(packed)[:, :, None]
    np.testing.assert_array_equal(made, want)
    table = jnp.arange(8.0)[:, None] * jnp.ones((8, 3))
    step = make_bias(
        table, make_distances(jnp.array([[2], [0]]), jnp.arange(4)[None]), max_distance=20, both_ways=False
    )
    np.testing.assert_array_equal(step[:, 1, 0], [[2, 1, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sinusoids(jnp.arange(3), 7), "must be even, but are 7"),
        (lambda: rotate(jnp.zeros((1, 2, 1, 5)), jnp.arange(2)[None]), "must be even, but is 5"),
        (lambda: make_buckets(jnp.arange(3), buckets=1, max_distance=9, both_ways=False), "have 1 and 9"),
        (lambda: make_buckets(jnp.arange(3), buckets=32, max_distance=8, both_ways=True), "have 16 and 8"),
    ],
    ids=["features", "head", "buckets", "distance"],
)
def test_sizes_that_cannot_be_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
