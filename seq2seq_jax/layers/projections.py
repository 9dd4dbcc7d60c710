"""Tables of token vectors: embeddings, and the output projection that may share one of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.initializers import table_gain, table_initializer
from seq2seq_jax.layers.parameters import declare


class Embedding(nn.Module):
    """A table of V vectors of width D.

    Attributes:
        vocab_size: V.
        features: D.
        dtype: dtype of what `__call__` returns.
        init_scale: see `seq2seq_jax.layers.initializers`.
        look_up: `look_up(table, tokens) -> vectors`; another one where devices hold parts of the table.
    """

    vocab_size: int
    features: int
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.04
    look_up: Callable[[Array, Array], Array] = functools.partial(jnp.take, axis=0)

    def setup(self) -> None:
        init = table_initializer(self.init_scale)
        self.table = declare(self, "table", init, (self.vocab_size, self.features), ("vocab", "embed"))

    def __call__(self, tokens: Array) -> Array:
        """Tokens `[...]` int32 to vectors `[..., D]`."""
        vectors = self.look_up(self.table, tokens) * table_gain(self.init_scale, self.features)
        return vectors.astype(self.dtype)


class Softmax(nn.Module):
    """The output projection, kernel `[V, D]` and bias `[V]`; the kernel may be an embedding's table.

    Attributes:
        vocab_size: V.
        features: D.
        own_kernel: False where the kernel is shared and given by the caller.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    vocab_size: int
    features: int
    own_kernel: bool = True
    init_scale: float = 0.04

    def setup(self) -> None:
        if self.own_kernel:
            init = table_initializer(self.init_scale)
            self.kernel = declare(self, "kernel", init, (self.vocab_size, self.features), ("vocab", "embed"))
        self.bias = declare(self, "bias", nn.initializers.zeros, (self.vocab_size,), ("vocab",))

    def __call__(self, hidden: Array, shared: Array | None = None) -> Array:
        """Hidden states `[..., D]` to logits `[..., V]` float32; products in the dtype of `hidden`."""
        kernel, bias = self.weights(shared)
        kernel = kernel.astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, kernel, preferred_element_type=jnp.float32) + bias

    def weights(self, shared: Array | None = None) -> tuple[Array, Array]:
        """Kernel `[V, D]` and bias `[V]`, float32."""
        return (self.kernel if shared is None else shared), self.bias
