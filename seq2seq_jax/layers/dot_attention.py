"""Scaled dot-product attention with several heads (Vaswani et al. 2017, 1706.03762, section 3.2), batch-major.

    softmax(q . k / sqrt(H) + bias) v        for each head on its own

Queries, keys and values come projected and parted into heads, `[B, T, N, H]`. There are two ways to compute it:

- two products with a float32 softmax between them, whose `[B, N, T, S]` weights exist;
- on NVIDIA GPUs in bfloat16 or float16, cuDNN's flash attention (Dao et al. 2022, 2205.14135), where they do not.
  Padding is told to it as lengths, so that no mask of that size is written either.

A row without anything to attend to gives zeros, never NaN, and its gradients are zeros.

Steps of a search have a cache for every hypothesis, `[B, K, N, R, H]`, and are mapped over K. Left to itself,
`jax.vmap` has the mapped axis first, and with it every step would write each cache anew, several times, in another
order: what touches caches says itself what it is for many hypotheses. Gradients do not pass through steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float, Int

from seq2seq_jax.interfaces import Array

CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
CUDNN_WIDEST_HEAD = 128
"""Widest head that cuDNN has on every GPU."""


def attend_heads(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    *,
    mask: Bool[Array, "B S"] | None,
    causal: bool,
    bias: Float[Array, "#B #N T S"] | None = None,
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
    prefix: Bool[Array, "B S"] | None = None,
    platform: str = "",
) -> Float[Array, "B T N H"]:
    """Attends with every query of every head; scores are scaled by `H^-0.5`.

    Args:
        q: `[B, T, N, H]`.
        k: `[B, S, N, H]`.
        v: `[B, S, N, H]`.
        mask: `[B, S]`, True where a key is real; padding comes after all that is real. None: all are.
        causal: query t sees keys 0 to t only.
        bias: `[B or 1, N or 1, T, S]`, added to the scaled scores; -inf hides a key.
        segments: of queries `[B, T]` and keys `[B, S]`, int32, where rows are packed: a query sees its own segment
            only. 0 is padding, which sees and is seen by nothing.
        prefix: `[B, S]`, keys that `causal` hides from nobody: those of a text that is given as a whole.
        platform: of the devices that this is compiled for, "cpu", "gpu" or "tpu"; "" is that of JAX's default device.

    Returns:
        `[B, T, N, H]`, in the dtype of `v`; zero where a query sees no key.
    """
    if _is_for_cudnn(q, platform) and bias is None and segments is None and prefix is None:
        return _attend_by_cudnn(q, k, v, mask, causal)
    seen = _find_seen(q.shape[1], k.shape[1], mask, causal, segments, prefix)
    # Heads first, once for the products of both passes; and fewer queries are to be scaled than scores.
    q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q * q.shape[-1] ** -0.5, k, v))
    weights = _weigh(jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32), 1, seen, bias)
    return jnp.swapaxes(jnp.einsum("bnts,bnsh->bnth", weights.astype(v.dtype), v), 1, 2)


def attention_weights(
    q: Float[Array, "B T N H"], k: Float[Array, "B S N H"], mask: Bool[Array, "B S"] | None
) -> Float[Array, "B T S"]:
    """What each query attends to, the mean over heads: for pictures, and for searches that watch it.

    It is made from queries and keys alone, apart from `attend_heads`, so that nothing of it is computed where nobody
    reads it.

    Returns:
        `[B, T, S]` float32; rows sum to one, or are zero where there is no key.
    """
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    return jnp.mean(_weigh(scores, q.shape[-1], _find_seen(q.shape[1], k.shape[1], mask, False, None), None), axis=1)


def write_cache(
    cache: Float[Array, "B N R H"], new: Float[Array, "B N H"], step: Int[Array, " B"]
) -> Float[Array, "B N R H"]:
    """The keys (or values) of all steps so far, with those of this step at its place.

    Args:
        cache: `[B, N, R, H]`, with room for R steps.
        new: `[B, N, H]`.
        step: `[B]`, each row's clock; one outside the room writes nothing.
    """
    return _write(cache, new.astype(cache.dtype), step)


def attend_cache(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B N R H"],
    values: Float[Array, "B N R H"],
    mask: Bool[Array, "B R"] | None,
    bias: Float[Array, "#B #N R"] | None = None,
) -> Float[Array, "B N H"]:
    """One query of every head: a step of a search, over its cache or over what was made of the source.

    Keys and values have their heads before their places, so that both products read them as they lie. Under
    `jax.vmap` over the hypotheses of a sentence, with the source's keys not mapped, these are read once for all.

    Args:
        q: `[B, N, H]`.
        keys: `[B, N, R, H]`.
        values: `[B, N, R, H]`.
        mask: `[B, R]`, True where there is something; None: everywhere.
        bias: `[B or 1, N or 1, R]`, added to the scaled scores.

    Returns:
        `[B, N, H]` in the dtype of `values`; zero where there is no key.
    """
    weights = _weigh(_score(q, keys), q.shape[-1], None if mask is None else mask[:, None], bias)
    return _mix(weights.astype(values.dtype), values)


def attend_caches(
    q: Float[Array, "B N H"],
    first: tuple[Float[Array, "B N S H"], Float[Array, "B N S H"], Bool[Array, "B S"]],
    second: tuple[Float[Array, "B N R H"], Float[Array, "B N R H"], Bool[Array, "B R"]],
    bias: Float[Array, "#B #N P"] | None = None,
) -> Float[Array, "B N H"]:
    """One query of every head over two caches as if they were one: what was given as a whole, and the steps since.

    They are not put together: under `jax.vmap` over the hypotheses of a sentence, with the first not mapped, it is
    read once for all.

    Args:
        q: `[B, N, H]`.
        first: keys, values and mask of S places; see `attend_cache`.
        second: likewise, of R places.
        bias: `[B or 1, N or 1, S + R]`, added to the scaled scores.

    Returns:
        `[B, N, H]` in the dtype of the values; zero where there is no key.
    """
    scores = [_score(q, each[0]) for each in (first, second)]
    seen = jnp.concatenate([first[2], second[2]], axis=-1)[:, None]
    weights = _weigh(jnp.concatenate(scores, axis=-1), q.shape[-1], seen, bias).astype(second[1].dtype)
    parts = jnp.split(weights, [first[0].shape[2]], axis=-1)
    return _mix(parts[0], first[1]) + _mix(parts[1], second[1])


def _for_hypotheses(run: Callable[..., Array]) -> Callable[..., Array]:
    """A function of rows, `[B, ...]`, that is given `[B, K, ...]` of what is mapped where it is mapped over K."""
    mapped = custom_vmap(run)

    def map_over(size: int, batched: Sequence[bool], *args: Array) -> tuple[Array, bool]:
        del size
        given = (jnp.moveaxis(x, 0, 1) if own else x for x, own in zip(args, batched, strict=True))
        return jnp.moveaxis(run(*given), 1, 0), True  # both moves are undone by those that vmap makes round this

    mapped.def_vmap(map_over)
    return mapped


def _product(x: Array, y: Array, names: str, dtype: jnp.dtype) -> Array:
    """The einsum `names` of rows, where each array may have K hypotheses; so has the result, if one has."""
    inputs, output = names.split("->")
    each = [
        f"bk{name[1:]}" if array.ndim > len(name) else name
        for array, name in zip((x, y), inputs.split(","), strict=True)
    ]
    if "k" in each[0] and "k" not in each[1]:
        # K rows by a matrix for every head: with K before the heads, CPUs take up to seven times as long.
        made = jnp.einsum(f"{','.join(each)}->bnk{output[2:]}", x, y, preferred_element_type=dtype)
        return made.swapaxes(1, 2)
    output = f"bk{output[1:]}" if any("k" in name for name in each) else output
    return jnp.einsum(f"{','.join(each)}->{output}", x, y, preferred_element_type=dtype)


@_for_hypotheses
def _score(q: Array, keys: Array) -> Array:
    """Products of the queries `[B, N, H]` with all keys `[B, N, R, H]`: `[B, N, R]` float32."""
    return _product(q, keys, "bnh,bnrh->bnr", jnp.float32)


@_for_hypotheses
def _mix(weights: Array, values: Array) -> Array:
    """Weights `[B, N, R]` times values `[B, N, R, H]`: `[B, N, H]`."""
    return _product(weights, values, "bnr,bnrh->bnh", values.dtype)


@_for_hypotheses
def _write(cache: Array, new: Array, step: Array) -> Array:
    """Puts `[B, N, H]` into `[B, N, R, H]` at each row's step."""
    if max(cache.ndim - 4, new.ndim - 3, step.ndim - 1):
        cache, new, step = (x if x.ndim == many else x[:, None] for x, many in ((cache, 5), (new, 4), (step, 2)))
    here = jnp.arange(cache.shape[-2], dtype=step.dtype) == step[..., None]
    return jnp.where(here[..., None, :, None], new[..., None, :], cache)


def _find_seen(
    length: int,
    keys: int,
    mask: Array | None,
    causal: bool,
    segments: tuple[Array, Array] | None,
    prefix: Array | None = None,
) -> Array | None:
    """Which keys each query sees, `[B or 1, 1, T or 1, S]`; None if all see all."""
    seen = None if mask is None else mask[:, None, None]
    if causal:
        past = jnp.tril(jnp.ones((length, keys), bool))[None, None]
        past = past if prefix is None else past | prefix[:, None, None]
        seen = past if seen is None else seen & past
    if segments is not None:
        queries, others = segments[0][:, None, :, None], segments[1][:, None, None, :]
        same = (queries == others) & (others > 0)
        seen = same if seen is None else seen & same
    return seen


def _weigh(scores: Array, width: int, seen: Array | None, bias: Array | None) -> Array:
    """Scores, float32, to weights over their last axis, zeros where nothing is seen; `width` 1 if they are scaled."""
    scores = scores * width**-0.5
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    # A sum, because a select would keep a copy of what it selects from for the backward pass.
    return _softmax(scores if seen is None else scores + jnp.where(seen, 0.0, -jnp.inf))


@jax.custom_jvp
def _softmax(scores: Array) -> Array:
    """Softmax where -inf is no key; written by hand so that its backward pass keeps the weights and nothing else."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    weights = _softmax(*primals)
    change = weights * tangents[0]
    return weights, change - weights * jnp.sum(change, axis=-1, keepdims=True)


def _is_for_cudnn(q: Array, platform: str) -> bool:
    width = q.shape[-1]
    if (platform or jax.default_backend()) != "gpu" or q.dtype not in CUDNN_DTYPES:
        return False
    return width % 8 == 0 and width <= CUDNN_WIDEST_HEAD


def _attend_by_cudnn(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """Padding as lengths; a row without any key is given one, and what that gives is dropped."""
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    contexts = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=jnp.maximum(lengths, 1), implementation="cudnn"
    )
    return jnp.where(lengths[:, None, None, None] > 0, contexts, jnp.zeros((), contexts.dtype))
