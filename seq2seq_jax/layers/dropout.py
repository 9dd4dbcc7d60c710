"""Dropout keyed by what is dropped: the same draw wherever a row is computed, and however long its batch is padded."""

from __future__ import annotations

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


def dropout_mask(key: Array, rate: float, places: Int[Array, "T B 2"], width: int, dtype: jnp.dtype) -> Array:
    """Draws the factors `[T, B, width]` that inverted dropout multiplies by: 0, or 1 / keep.

    Every vector has a key of its own, folded from its row and time, so that another layout of devices,
    another cut in time or more padding draws the same. One random byte an element instead of a 32-bit
    word: threefry is a visible share of a step on CPUs. The kept share is therefore a multiple of 1/256,
    and the scale is exact for that share.

    Args:
        key: a new-style PRNG key, one for each use of dropout in a step.
        rate: share of elements set to zero, in [0, 1).
        places: see `make_places`.
        width: of the vectors.
        dtype: dtype of the result.
    """
    kept = max(1, round((1.0 - rate) * 256))
    if kept == 256:
        return jnp.ones((*places.shape[:2], width), dtype)

    def draw(place: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, place[0]), place[1])
        return jax.random.bits(own, (-(-width // 4),), jnp.uint32)

    words = jax.vmap(jax.vmap(draw))(places)  # [T, B, width / 4]
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8)  # [T, B, width / 4, 4]
    octets = octets.reshape(*places.shape[:2], -1)[..., :width]
    return jnp.where(octets < kept, 256.0 / kept, 0.0).astype(dtype)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) of time-major sequences, drawn from the rng stream `dropout`."""

    rate: float

    def __call__(self, x: Array, places: Array, *, train: bool) -> Array:
        """Returns `x` `[T, B, D]` with a share `rate` of its elements zeroed when training, else `x`."""
        if not train or self.rate == 0.0:
            return x
        return x * dropout_mask(self.make_rng("dropout"), self.rate, places, x.shape[-1], x.dtype)
