"""Activations of feed-forward layers, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seq2seq_jax.interfaces import Array


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0). The backward pass reads what comes out, which the next product keeps anyway."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    made = relu(*primals)
    return made, tangents[0] * (made > 0).astype(made.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,  # Vaswani et al. 2017
    "gelu": functools.partial(jax.nn.gelu, approximate=True),  # Hendrycks and Gimpel 2016, by tanh as GPT-2 has it
    "swish": jax.nn.silu,
    "swiglu": jax.nn.silu,  # of one half of two products, times the other half (Shazeer 2020, 2002.05202)
}
