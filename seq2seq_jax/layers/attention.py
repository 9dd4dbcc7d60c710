"""Additive attention: the scores are a feed-forward network of query and key.

score(q, k) = v . tanh(Q q + K k + b)          (Bahdanau et al. 2015, section A.1.2)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.initializers import matrix_initializer
from seq2seq_jax.layers.parameters import declare


def masked_softmax(scores: Float[Array, "*B S"], mask: Bool[Array, "*#B S"]) -> Float[Array, "*B S"]:
    """Softmax over the real positions, in float32; a row without any gives zeros, never NaN."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), jax.lax.stop_gradient(top), 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def additive_scores(queries: Float[Array, "B T A"], keys: Float[Array, "B S A"], v: Float[Array, " A"]) -> Array:
    """`v . tanh(q + k)` of every pair, `[B, T, S]` float32, one target step at a time.

    Each step is recomputed in the backward pass, so that `[B, T, S, A]` never exists.
    """

    # One copy a row, so that the loop of the backward pass adds up gradients within a row, and devices that
    # share the rows add theirs once, after the loop.
    rows = jnp.broadcast_to(v, (queries.shape[0], v.shape[0]))

    @jax.checkpoint
    def one(query: Array) -> Array:  # [B, A]
        hidden = jnp.tanh(query[:, None, :] + keys)
        return jnp.einsum("bsa,ba->bs", hidden, rows, preferred_element_type=jnp.float32)

    if queries.shape[1] == 1:
        return one(queries[:, 0])[:, None]
    scores = jax.lax.map(one, queries.swapaxes(0, 1))  # [T, B, S]
    return scores.swapaxes(0, 1)


class AdditiveAttention(nn.Module):
    """The parameters of additive attention. Keys are made once a sentence, by `project_keys`.

    Attributes:
        features: A, width of the hidden layer.
        query_features: width of the queries.
        key_features: width of what is attended to.
        dtype: dtype of the products; the softmax is float32.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    features: int
    query_features: int
    key_features: int
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.04

    def setup(self) -> None:
        init, width = matrix_initializer(self.init_scale), self.features
        self.query_kernel = declare(self, "query_kernel", init, (self.query_features, width), ("embed", "attention"))
        self.key_kernel = declare(self, "key_kernel", init, (self.key_features, width), ("embed", "attention"))
        self.bias = declare(self, "bias", nn.initializers.zeros, (width,), ("attention",))
        self.v = declare(self, "v", init, (width,), ("attention",))

    def project_keys(self, hidden: Array) -> Array:
        """`K k + b` of every source position: `[B, S, D]` to `[B, S, A]`."""
        return hidden.astype(self.dtype) @ self.key_kernel.astype(self.dtype) + self.bias.astype(self.dtype)

    def weights(self) -> tuple[Array, Array]:
        """The query kernel `[D, A]` and `v [A]` in the compute dtype, for use inside a loop."""
        return self.query_kernel.astype(self.dtype), self.v.astype(self.dtype)

    def __call__(self, queries: Array, keys: Array, values: Array, mask: Array) -> tuple[Array, Array]:
        """Attends with every query.

        Args:
            queries: `[B, T, D]`.
            keys: `[B, S, A]`, from `project_keys`.
            values: `[B, S, Dv]`, what the context is made of.
            mask: `[B, S]`, True where real.

        Returns:
            Contexts `[B, T, Dv]` and weights `[B, T, S]` float32.
        """
        kernel, v = self.weights()
        return attend(queries.astype(self.dtype) @ kernel, keys, values, mask, v)


def attend(queries: Array, keys: Array, values: Array, mask: Array, v: Array) -> tuple[Array, Array]:
    """Contexts `[B, T, Dv]` and weights `[B, T, S]` of projected queries `[B, T, A]`."""
    weights = masked_softmax(additive_scores(queries, keys, v), mask[:, None, :])
    return jnp.einsum("bts,bsd->btd", weights.astype(values.dtype), values), weights
