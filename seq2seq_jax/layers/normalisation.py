"""Layer normalisation (Ba et al. 2016, 1607.06450), with a gradient written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from seq2seq_jax.interfaces import Array

NORM_EPSILON = 1e-5
"""Added to the variance, as fairseq, Marian and PyTorch have it."""


@jax.custom_vjp
def normalise(x: Float[Array, "*B D"], gain: Array, bias: Array) -> Float[Array, "*B D"]:
    """Features `[..., D]` with mean 0 and variance 1, times a gain plus a bias, in float32; in the dtype of `x`.

    The backward pass keeps the input and two numbers a row, where differentiation would keep three float32 arrays of
    the input's size.
    """
    return _normalise_forward(x, gain, bias)[0]


def _normalise_forward(x: Array, gain: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    with jax.named_scope("norm"):
        wide = x.astype(jnp.float32)
        mean = wide.mean(axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + NORM_EPSILON)
        return ((wide - mean) * scale * gain + bias).astype(x.dtype), (x, mean, scale, gain)


def _normalise_backward(saved: tuple[Array, ...], given: Array) -> tuple[Array, Array, Array]:
    x, mean, scale, gain = saved
    with jax.named_scope("norm"):
        given, normal = given.astype(jnp.float32), (x.astype(jnp.float32) - mean) * scale
        change, rows = given * gain, tuple(range(x.ndim - 1))
        along = normal * (change * normal).mean(axis=-1, keepdims=True)
        change = scale * (change - change.mean(axis=-1, keepdims=True) - along)
        return change.astype(x.dtype), jnp.sum(given * normal, axis=rows), jnp.sum(given, axis=rows)


normalise.defvjp(_normalise_forward, _normalise_backward)
