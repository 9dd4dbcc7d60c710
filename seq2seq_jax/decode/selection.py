"""Choosing among candidates: what is forbidden, which are the largest, and gathering by beam."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from seq2seq_jax.interfaces import Array

_BLOCK = 128  # width of the blocks in `select_largest`
_BLOCKS_FROM = 2048  # axes from this width on are searched in blocks


def gather_beams(x: Array, index: Array) -> Array:
    """`x[b, index[b, j]]`: picks beams (or candidates) `[B, J]` along axis 1 of `[B, K, ...]`."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1, mode="promise_in_bounds")


def forbid(log_probs: Array, tokens: tuple[int, ...]) -> Array:
    """`log_probs` `[..., V]` in float32, -inf for the given tokens."""
    vocab = np.arange(log_probs.shape[-1])
    return jnp.where(np.isin(vocab, tokens), -jnp.inf, log_probs.astype(jnp.float32))


def select_largest(x: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest of the last axis and where they are, exactly as `lax.top_k`, quicker on wide axes.

    The `count` largest elements lie in the `count` blocks with the largest maxima: only these are sorted.
    With blocks in their order ties are resolved alike, lowest index first.
    """
    width = x.shape[-1]
    blocks = -(-width // _BLOCK)
    if width < _BLOCKS_FROM or count > blocks // 4:
        return lax.top_k(x, count)
    fill = [(0, 0)] * (x.ndim - 1) + [(0, blocks * _BLOCK - width)]
    x = jnp.pad(x, fill, constant_values=-jnp.inf).reshape(*x.shape[:-1], blocks, _BLOCK)
    _, chosen = lax.top_k(jnp.max(x, axis=-1), count)
    chosen = jnp.sort(chosen, axis=-1)
    x = jnp.take_along_axis(x, chosen[..., None], axis=-2)
    values, index = lax.top_k(x.reshape(*x.shape[:-2], -1), count)
    return values, jnp.take_along_axis(chosen, index // _BLOCK, axis=-1) * _BLOCK + index % _BLOCK
