"""Dropout keyed by what is dropped: the same draw wherever a row is computed, and however long its batch is padded."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Int

from seq2seq_jax.interfaces import Array


def make_places(rows: Int[Array, " B"], length: int) -> Int[Array, "T B 2"]:
    """(row of the global batch, time) of every element of a time-major sequence."""
    shape = (length, rows.shape[0])
    times = jnp.arange(length, dtype=jnp.int32)[:, None]
    return jnp.stack([jnp.broadcast_to(rows[None, :], shape), jnp.broadcast_to(times, shape)], axis=-1)


def dropout_mask(
    key: Array, rate: float, places: Int[Array, "T B 2"], width: int, dtype: jnp.dtype, *, draw: Array | int = 0
) -> Array:
    """Draws the factors `[T, B, width]` that inverted dropout multiplies by: 0, or 1 / (1 - rate).

    An element's bits are a hash of key, draw, row, time and column, so that another layout of devices, another cut in
    time or more padding draws the same. They are a dozen of integer operations, compiled into the product with what is
    dropped; jax's own generators take longer to compile than the rest of a layer. Words are mixed as in lowbias32
    (Wellons 2018, "Prospecting for hash functions"), here with two words of each vector.

    Args:
        key: a new-style PRNG key, one for each use of dropout in a step.
        rate: share of elements set to zero, in [0, 1).
        places: see `make_places`.
        width: of the vectors.
        dtype: dtype of the result.
        draw: number of this draw among those with one key; it may be traced.
    """
    if rate == 0.0:
        return jnp.ones((*places.shape[:2], width), dtype)
    bits = _draw_bits(jax.random.key_data(key), places, jnp.asarray(draw, jnp.uint32), width)
    kept = min(round((1.0 - rate) * 2**32), 2**32 - 1)
    return jnp.where(bits < jnp.uint32(kept), 1.0 / (1.0 - rate), 0.0).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def drop(rate: float, x: Array, key: Array, places: Int[Array, "T B 2"], draw: Array | int = 0) -> Array:
    """`x` `[T, B, D]` times its factors, which the backward pass draws again; see `dropout_mask`."""
    with jax.named_scope("dropout"):  # a profile knows it by this
        wide = jnp.dtype(jnp.float32)  # 1 / 0.9 is 1.109 in bfloat16
        factors = dropout_mask(key, rate, places, x.shape[-1], wide, draw=draw)
        return (x.astype(wide) * factors).astype(x.dtype)


def _drop_forward(rate: float, x: Array, key: Array, places: Array, draw: Array | int) -> tuple[Array, tuple[Any, ...]]:
    return drop(rate, x, key, places, draw), (key, places, draw)


def _drop_backward(rate: float, saved: tuple[Any, ...], given: Array) -> tuple[Array, None, None, None]:
    return drop(rate, given, *saved), None, None, None


drop.defvjp(_drop_forward, _drop_backward)

_STEP = 0x9E3779B9  # 2^32 over the golden ratio: neighbours come far apart


@functools.partial(jax.jit, static_argnums=3)
def _draw_bits(key: Array, places: Array, draw: Array, width: int) -> Array:
    """Words `[T, B, width]` uint32. All draws of one key share what is mixed before their number."""
    numbers = [*key.reshape(-1), *(places[..., n].astype(jnp.uint32) for n in range(places.shape[-1])), draw]
    first, second = jnp.uint32(0), jnp.uint32(_STEP)
    for number in numbers:
        first, second = _mix(first + number), _mix(second + number)
    columns = jnp.arange(width, dtype=jnp.uint32) * jnp.uint32(_STEP)
    return _mix(first[..., None] + columns, second[..., None])


def _mix(x: Array, more: Array | int = 0) -> Array:
    """Words uint32 to words that look like random ones; the other word enters half-way."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = ((x ^ (x >> 15)) + jnp.asarray(more, jnp.uint32)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) of time-major sequences, drawn from the rng stream `dropout`."""

    rate: float

    def __call__(self, x: Array, places: Array, *, train: bool) -> Array:
        """Returns `x` `[T, B, D]` with a share `rate` of its elements zeroed when training, else `x`."""
        if not train or self.rate == 0.0:
            return x
        return drop(self.rate, x, self.make_rng("dropout"), places)
