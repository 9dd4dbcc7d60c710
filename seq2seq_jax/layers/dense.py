"""A plain layer of sums, and the readouts that are made of one."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.initializers import matrix_initializer
from seq2seq_jax.layers.parameters import declare
from seq2seq_jax.layers.recurrent import product


class Dense(nn.Module):
    """A kernel `[inputs, features]` and a bias.

    Attributes:
        inputs: width of the input, all its parts together.
        features: width of the output.
        dtype: dtype of the product.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    inputs: int
    features: int
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.04

    def setup(self) -> None:
        init = matrix_initializer(self.init_scale)
        self.kernel = declare(self, "kernel", init, (self.inputs, self.features), ("embed", "hidden"))
        self.bias = declare(self, "bias", nn.initializers.zeros, (self.features,), ("hidden",))

    def __call__(self, *parts: Array) -> Array:
        """Parts `[..., part]`, side by side the rows of the kernel, to `[..., features]` float32."""
        x = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)
        return product(x, self.kernel).astype(jnp.float32) + self.bias


def maxout(x: Float[Array, "*B two_l"]) -> Float[Array, "*B l"]:
    """The larger of every two (Goodfellow et al. 2013, 1302.4389): of element j and element l + j of 2l.

    Neighbours would be the same network with its units in another order, and slower.
    """
    ahead, back = jnp.split(x, 2, axis=-1)
    return jnp.maximum(ahead, back)
