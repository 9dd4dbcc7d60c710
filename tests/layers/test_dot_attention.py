"""Scaled dot-product attention against torch's, its steps against all of them at once, and cuDNN's arguments."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from seq2seq_jax.layers.dot_attention import attend_cache, attend_caches, attend_heads, attention_weights, write_cache

B, T, S, N, H, K = 3, 4, 5, 2, 8, 2
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
SEGMENTS = (np.array([[1, 1, 2, 2], [1, 2, 3, 0], [1, 1, 1, 1]]), np.array([[1, 1, 2, 2, 2], [1, 3, 3, 0, 0], [1] * 5]))


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def attend_by_hand(q, k, v, seen, bias):
    """One query, one head at a time, in float64; `seen` is `[B, T, S]`, `bias` `[B, N, T, S]`."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
    contexts, weights = np.zeros(q.shape), np.zeros((*q.shape[:3], k.shape[1]))
    for b, t, n in np.ndindex(*q.shape[:3]):
        real = np.flatnonzero(seen[b, t])
        if real.size:
            scores = k[b, real, n] @ q[b, t, n] / np.sqrt(q.shape[-1]) + bias[b, n, t, real]
            weights[b, t, n, real] = np.exp(scores) / np.exp(scores).sum()
            contexts[b, t, n] = weights[b, t, n] @ v[b, :, n]
    return contexts, weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_torch_in_values_and_gradients(causal, biased):
    torch = pytest.importorskip("torch")
    q, k, v, weigh, bias = draw((B, S, N, H), (B, S, N, H), (B, S, N, H), (B, S, N, H), (1, N, S, S))
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in (q, k, v, bias)]
    seen = torch.tensor(MASK)[:, None, None] & (torch.ones(S, S).tril() > 0 if causal else torch.tensor(True))
    mixed = torch.where(seen, leaves[3] if biased else 0.0, -torch.inf).expand(B, N, S, S)
    heads = [x.transpose(1, 2) for x in leaves[:3]]
    want = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mixed).transpose(1, 2)
    (want * torch.tensor(np.asarray(weigh))).sum().backward()

    def total(q, k, v, bias):
        out = attend_heads(q, k, v, mask=jnp.asarray(MASK), causal=causal, bias=bias if biased else None)
        return jnp.vdot(weigh, out), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    np.testing.assert_allclose(out, want.detach().numpy(), atol=2e-6)
    for got, leaf in zip(gradients, leaves[: 3 + biased], strict=False):
        np.testing.assert_allclose(got, leaf.grad.numpy(), atol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_segments_keep_apart_and_equal_the_formula(dtype):
    q, k, v, bias = draw((B, T, N, H), (B, S, N, H), (B, S, N, H), (B, 1, T, S))
    segments = (jnp.asarray(SEGMENTS[0]), jnp.asarray(SEGMENTS[1]))
    seen = (SEGMENTS[0][:, :, None] == SEGMENTS[1][:, None]) & (SEGMENTS[1][:, None] > 0) & np.tri(T, S, dtype=bool)
    want, _ = attend_by_hand(q, k, v, seen, np.repeat(bias, N, axis=1))
    low = [jnp.asarray(x, dtype) for x in (q, k, v)]
    attend = jax.jit(attend_heads, static_argnames="causal")
    out = attend(*low, mask=None, causal=True, bias=bias, segments=segments)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), want, atol=3e-6 if dtype == jnp.float32 else 0.04)
    assert not seen[1, 1].any()  # its second segment has no key at all
    np.testing.assert_array_equal(np.asarray(out[1, 1], np.float32), 0.0)


def test_a_prefix_is_seen_by_all_and_the_rest_by_what_comes_after_it():
    q, k, v = draw((B, S, N, H), (B, S, N, H), (B, S, N, H))
    prefix = np.arange(S) < np.array([2, 3, 0])[:, None]
    seen = MASK[:, None] & (prefix[:, None] | np.tri(S, dtype=bool))
    want, _ = attend_by_hand(q, k, v, seen, np.zeros((B, N, S, S)))
    attend = jax.jit(attend_heads, static_argnames=("causal", "platform"))
    for platform in ("cpu", "gpu"):
        made = attend(q, k, v, mask=jnp.asarray(MASK), causal=True, prefix=jnp.asarray(prefix), platform=platform)
        np.testing.assert_allclose(made, want, atol=3e-6)


def test_a_row_without_keys_gives_zeros_and_gives_no_gradients():
    q, k, v = draw((B, T, N, H), (B, S, N, H), (B, S, N, H))
    mask = jnp.asarray(MASK).at[1].set(False)

    def total(q, k, v):
        out = attend_heads(q, k, v, mask=mask, causal=False)
        return jnp.sum(out**2) + jnp.sum(attention_weights(q, k, mask) ** 2), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    np.testing.assert_array_equal(out[1], 0.0)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[1], 0.0)
        assert np.abs(gradient[0]).max() > 0


def test_what_stands_in_masked_places_does_not_matter():
    q, k, v = draw((B, T, N, H), (B, S, N, H), (B, S, N, H))
    mask, junk = jnp.asarray(MASK), jnp.where(MASK[..., None, None], 0.0, 1e4)
    attend = jax.jit(attend_heads, static_argnames="causal")
    want = attend(q, k, v, mask=mask, causal=False)
    np.testing.assert_array_equal(attend(q, k + junk, v - junk, mask=mask, causal=False), want)
    minus = jnp.broadcast_to(jnp.where(mask, 0.0, -jnp.inf)[:, None, None], (B, 1, T, S))
    np.testing.assert_array_equal(attend(q, k, v, mask=None, causal=False, bias=minus), want)


def test_weights_are_the_mean_over_heads():
    q, k = draw((B, T, N, H), (B, S, N, H))
    seen = np.broadcast_to(MASK[:, None], (B, T, S))
    _, want = attend_by_hand(q, k, k, seen, np.zeros((B, N, T, S)))
    weigh = jax.jit(attention_weights)
    made = weigh(q, k, jnp.asarray(MASK))
    np.testing.assert_allclose(made, want.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(np.sum(made, -1), 1.0, atol=1e-6)
    np.testing.assert_allclose(weigh(q, k, None), weigh(q, k, jnp.ones((B, S), bool)), atol=1e-6)


def test_steps_of_hypotheses_equal_all_steps_at_once():
    """Beams are mapped over axis 1, as a search does; every row has its own clock, and the second starts later."""
    q, k, v, bias = draw((B, K, T, N, H), (B, K, T, N, H), (B, K, T, N, H), (1, N, T, T))
    late = jnp.array([0, 2, 0])

    def one(cache, new, step):
        place = jnp.clip(step, 0, T - 1)
        q, k, v = (x[jnp.arange(B), place] for x in new)
        keys, values = write_cache(cache[0], k, step), write_cache(cache[1], v, step)
        past = jnp.arange(T) <= step[:, None]
        return (keys, values), attend_cache(q, keys, values, past, bias[0][:, place].swapaxes(0, 1))

    steps = jax.jit(jax.vmap(one, in_axes=(1, 1, None), out_axes=1))
    attend = jax.jit(jax.vmap(lambda q, k, v: attend_heads(q, k, v, mask=None, causal=True, bias=bias), 1, 1))
    caches, want = (jnp.full((B, K, N, T, H), 7.0),) * 2, np.asarray(attend(q, k, v))
    for clock in range(T + 2):
        caches, out = steps(caches, (q, k, v), clock - late)
        for b, place in enumerate(clock - np.asarray(late)):
            if 0 <= place < T:
                np.testing.assert_allclose(out[b], want[b, :, place], atol=2e-6)


def test_a_sentence_is_read_once_for_all_its_hypotheses():
    """Nothing as large as the keys of every hypothesis exists, forwards."""
    q, k, v = draw((B, K, N, H), (B, N, 16, H), (B, N, 16, H))
    attend = jax.jit(attend_cache)
    step = jax.vmap(lambda q: attend_cache(q, k, v, jnp.ones((B, 16), bool)), in_axes=1, out_axes=1)
    out = jax.jit(step)(q)
    for beam in range(K):
        np.testing.assert_allclose(out[:, beam], attend(q[:, beam], k, v, None), atol=2e-6)
    program = jax.make_jaxpr(step)(q)
    largest = max(x.aval.size for line in program.eqns for x in line.outvars)
    assert largest < B * K * N * 16 * H


def test_a_step_of_hypotheses_brings_no_cache_into_another_order():
    """What a compiled step makes as large as the cache is the cache with this step's keys (or values), once each."""
    room = 16

    def one(caches, new, step):
        caches = [write_cache(cache, new, step) for cache in caches]
        return caches, attend_cache(new, *caches, jnp.arange(room) <= step[:, None])

    step = jax.jit(jax.vmap(one, in_axes=(1, 1, None), out_axes=1), donate_argnums=0)
    caches = [jax.ShapeDtypeStruct((B, K, N, room, H), jnp.float32)] * 2
    like = jax.ShapeDtypeStruct((B, K, N, H), jnp.float32), jax.ShapeDtypeStruct((B,), jnp.int32)
    entry = step.lower(caches, *like).compile().as_text().split("ENTRY")[1]
    made = re.findall(rf"= f32\[((?:{B},{K}|{K},{B}),{N},{room},{H})\]\S* (\S+)\(", entry)
    assert [name for _, name in made if name not in ("parameter", "copy")] == ["fusion"] * 2
    assert len([name for _, name in made if name == "copy"]) <= 2  # of arguments, where donation is not to be had


def test_steps_run_on_parts_of_the_rows_and_hypotheses():
    """As a search over several devices has them: rows split, hypotheses mapped, the source's keys not."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    q, k, v = draw((4, K, N, H), (4, N, 5, H), (4, N, 5, H))

    def one(cache, q, k, v):
        cache = write_cache(cache, q, jnp.zeros(q.shape[0], jnp.int32))
        return attend_cache(q, cache, cache, None) + attend_cache(q, k, v, None)

    every = jax.vmap(one, in_axes=(1, 1, None, None), out_axes=1)
    parts = jax.shard_map(
        lambda q, k, v: every(jnp.zeros_like(q, shape=(*q.shape[:3], 5, H)), q, k, v),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    want = jax.jit(every)(jnp.zeros((4, K, N, 5, H)), q, k, v)
    np.testing.assert_allclose(jax.jit(parts)(q, k, v), want, atol=2e-6)


def test_two_caches_are_attended_to_as_if_they_were_one():
    q, k, v, bias = draw((B, K, N, H), (B, N, 9, H), (B, N, 9, H), (B, 1, 9))
    mask = jnp.asarray(np.random.default_rng(1).random((B, 9)) < 0.7).at[1, :].set(False)

    def both(q):
        first, second = ((k[:, :, part], v[:, :, part], mask[:, part]) for part in (slice(5), slice(5, None)))
        return attend_caches(q, first, second, bias), attend_cache(q, k, v, mask, bias)

    made, want = jax.jit(jax.vmap(both, in_axes=1, out_axes=1))(q)
    np.testing.assert_allclose(made, want, atol=2e-6)
    assert not np.any(made[1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_is_told_padding_as_lengths(causal, masked, monkeypatch):
    """Its kernel is replaced by XLA's products, which take the same arguments."""
    told = []

    def replace(q, k, v, *, implementation, **more):
        told.append((implementation, more))
        wide = (x.astype(jnp.float32) for x in (q, k, v))  # CPUs have no product of halves
        return by_xla(*wide, implementation="xla", **more).astype(q.dtype)

    by_xla = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", replace)
    arrays = [x.astype(jnp.float16) for x in draw((B, S, N, H), (B, S, N, H), (B, S, N, H))]
    mask = jnp.asarray(MASK).at[1].set(False) if masked else None

    def total(platform, *arrays):
        out = attend_heads(*arrays, mask=mask, causal=causal, platform=platform)
        return jnp.sum(out.astype(jnp.float32) ** 2), out

    run = jax.jit(jax.value_and_grad(total, (1, 2, 3), has_aux=True), static_argnums=0)
    (_, want), wanted = run("cpu", *arrays)
    assert not told
    (_, out), found = run("gpu", *arrays)
    assert {name for name, _ in told} == {"cudnn"}
    assert all(more["is_causal"] == causal and not {"mask", "bias"} & set(more) for _, more in told)
    for got, truth in zip((out, *found), (want, *wanted), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), truth.astype(jnp.float32), atol=0.02)
        assert not masked or not np.any(got[1])


@pytest.mark.parametrize("reason", ["dtype", "width", "bias", "segments", "prefix"])
def test_what_cudnn_cannot_goes_by_two_products(reason, monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", None)
    width = 12 if reason == "width" else H
    dtype = jnp.float32 if reason == "dtype" else jnp.bfloat16
    q, k, v = (x.astype(dtype) for x in draw((B, T, N, width), (B, S, N, width), (B, S, N, width)))
    bias = jnp.zeros((1, 1, T, S)) if reason == "bias" else None
    segments = tuple(map(jnp.asarray, SEGMENTS)) if reason == "segments" else None
    more = {"causal": True, "prefix": jnp.arange(S)[None] < jnp.full((B, 1), 2)} if reason == "prefix" else {}
    given = {"mask": None, "causal": False, "bias": bias, "segments": segments} | more
    runs = [attend_heads(q, k, v, **given, platform=platform) for platform in ("gpu", "cpu")]
    np.testing.assert_array_equal(*(np.asarray(run, np.float32) for run in runs))


@pytest.mark.parametrize("mapped", [(1, None, None), (None, 1, None), (None, None, 1), (1, 1, 1)])
def test_whatever_differs_between_hypotheses_is_written_for_each(mapped):
    shapes = (B, N, T, H), (B, N, H), (B,)
    own = [(K,) * (axis is not None) for axis in mapped]
    given = draw(*(shape[:1] + more + shape[1:] for shape, more in zip(shapes, own, strict=True)))
    cache, new, _ = given
    step = jnp.arange(given[2].size).reshape(given[2].shape) % T
    found = jax.vmap(write_cache, in_axes=mapped, out_axes=1)(cache, new, step)
    for beam in range(K):
        args = zip((cache, new, step), mapped, strict=True)
        cache_k, new_k, step_k = (np.asarray(x if axis is None else x[:, beam]) for x, axis in args)
        want = np.array(cache_k)
        for row in range(B):
            want[row, :, step_k[row]] = new_k[row]
        np.testing.assert_array_equal(found[:, beam], want)
