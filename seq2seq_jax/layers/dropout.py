"""Dropout whose draws cost a quarter of the usual random bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array


def dropout_mask(key: Array, rate: float, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Draws the factors that inverted dropout multiplies by: 0, or 1 / keep.

    One random byte an element instead of a 32-bit word: threefry is a visible share of a step on
    CPUs. The kept share is therefore a multiple of 1/256, and the scale is exact for that share.
    The draw depends on the key and the whole (global) shape alone, not on how it is sharded.

    Args:
        key: a new-style PRNG key.
        rate: share of elements set to zero, in [0, 1).
        shape: shape of the result.
        dtype: dtype of the result.
    """
    kept = max(1, round((1.0 - rate) * 256))
    bits = jax.random.bits(key, shape, jnp.uint8)
    return jnp.where(bits < kept, 256.0 / kept, 0.0).astype(dtype) if kept < 256 else jnp.ones(shape, dtype)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014), drawn from the rng stream `dropout`."""

    rate: float

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns `x` with a share `rate` of its elements zeroed when training, else `x`."""
        if not train or self.rate == 0.0:
            return x
        return x * dropout_mask(self.make_rng("dropout"), self.rate, x.shape, x.dtype)
