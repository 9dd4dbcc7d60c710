"""Attention, by how a query q scores what it may attend to.

    additive    v . tanh(Q q + K k + b)     (Bahdanau et al. 2015, 1409.0473, section A.1.2)
    general     q . (K k)                   (Luong et al. 2015, 1508.04025, section 3.1)
    dot         q . k                       (the same)

Additive attention's hidden layer of all pairs of a query and a key, `[B, T, S, A]`, never exists: it is made for a few
queries at a time, and once more in the backward pass, which is written by hand. What that pass keeps is
no larger than the sentences, each pair's tanh is made twice and no more, and all that is a product of
whole sequences (contexts, and the gradients of weights and values) stays outside the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.initializers import matrix_initializer
from seq2seq_jax.layers.parameters import declare

ATTENTION = ("additive", "dot", "general")

PAIRED = {"cpu": 2**18, "default": 2**27}
"""Numbers of the hidden layer that are made at a time, about, by platform; one query of each sentence is the least.

On CPUs 1 MiB, which stays in a processor's cache. Elsewhere every sum over the hidden layer makes it as it goes, in
registers, so that this bounds what would exist if the compiler ever wrote it.
"""


def masked_softmax(scores: Float[Array, "*B S"], mask: Bool[Array, "*#B S"]) -> Float[Array, "*B S"]:
    """Softmax over the real positions, in float32; a row without any gives zeros, never NaN."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), jax.lax.stop_gradient(top), 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def softmax_gradient(weights: Float[Array, "*B S"], d_weights: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
    """The cotangent of the scores that `masked_softmax` made into weights; zero where masked."""
    return weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))


def make_hidden(queries: Float[Array, "B t A"], keys: Float[Array, "B S A"]) -> Float[Array, "B t S A"]:
    """`tanh(q + k)` of every pair, float32: for a few queries at a time only."""
    return jnp.tanh(queries[:, :, None].astype(jnp.float32) + keys[:, None].astype(jnp.float32))


def make_scores(
    queries: Float[Array, "B t A"], keys: Float[Array, "B S A"], v: Float[Array, " A"]
) -> Float[Array, "B t S"]:
    """`v . tanh(q + k)` of every pair, float32: for a few queries at a time only."""

    def by_product(queries: Array, keys: Array, v: Array) -> Array:
        return jnp.einsum("btsa,a->bts", make_hidden(queries, keys), v)

    def by_sum(queries: Array, keys: Array, v: Array) -> Array:  # a product would have the hidden layer written first
        return jnp.sum(make_hidden(queries, keys) * v, axis=-1)

    return lax.platform_dependent(queries, keys, v.astype(jnp.float32), cpu=by_product, default=by_sum)


def score_gradients(
    queries: Float[Array, "B t A"], keys: Float[Array, "B S A"], d_scores: Float[Array, "B t S"]
) -> tuple[Float[Array, "B t A"], Float[Array, "B S A"], Float[Array, "B A"]]:
    """Cotangents of queries and keys, both still to be multiplied by v, and of v for each row; float32.

    The hidden layer is made again: on a CPU once, elsewhere once for each of the three sums, which is less than writing
    and reading it. v's is kept apart by rows, so that devices which share the rows need not speak inside a loop: they
    add theirs once, after it.
    """

    def share(queries: Array, keys: Array, d_scores: Array) -> tuple[Array, Array, Array]:
        hidden = make_hidden(queries, keys)
        slopes = d_scores[..., None] * (1.0 - hidden * hidden)
        return slopes.sum(axis=2), slopes.sum(axis=1), jnp.einsum("bts,btsa->ba", d_scores, hidden)

    def make_each(queries: Array, keys: Array, d_scores: Array) -> tuple[Array, Array, Array]:
        again = lax.optimization_barrier(queries)  # what goes through a barrier is another array to the compiler
        first, second = make_hidden(queries, keys), make_hidden(again, keys)
        third, weight = make_hidden(lax.optimization_barrier(again), keys), d_scores[..., None]
        return (
            jnp.sum(weight * (1.0 - first * first), axis=2),
            jnp.sum(weight * (1.0 - second * second), axis=1),
            jnp.sum(weight * third, axis=(1, 2)),
        )

    return lax.platform_dependent(queries, keys, d_scores, cpu=share, default=make_each)


def attend(
    queries: Float[Array, "B T A"],
    keys: Float[Array, "B S A"],
    values: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    v: Float[Array, " A"],
) -> tuple[Float[Array, "B T D"], Float[Array, "B T S"]]:
    """Attends with queries and keys that are projected.

    Args:
        queries: `[B, T, A]`, `Q q`.
        keys: `[B, S, A]`, `K k + b`.
        values: `[B, S, D]`, what the contexts are made of; their dtype is the one of that product.
        mask: `[B, S]`, True where real.
        v: `[A]`.

    Returns:
        Contexts `[B, T, D]` and weights `[B, T, S]` float32, both zero for a row without any real position.
    """
    return _attend(queries, keys, values, mask, v)


@jax.custom_vjp
def _attend(queries: Array, keys: Array, values: Array, mask: Array, v: Array) -> tuple[Array, Array]:
    weights = masked_softmax(_by_platform(_all_scores, queries, keys, v), mask[:, None])
    return jnp.einsum("bts,bsd->btd", weights.astype(values.dtype), values), weights


def _attend_fwd(queries: Array, keys: Array, values: Array, mask: Array, v: Array) -> Any:
    contexts, weights = _attend(queries, keys, values, mask, v)
    return (contexts, weights), (queries, keys, values, weights, v)


def _attend_bwd(saved: tuple[Array, ...], cotangents: tuple[Array, Array]) -> Any:
    queries, keys, values, weights, v = saved
    d_contexts, d_weights = cotangents
    d_values = jnp.einsum("bts,btd->bsd", weights.astype(values.dtype), d_contexts, preferred_element_type=jnp.float32)
    d_weights += jnp.einsum("btd,bsd->bts", d_contexts, values, preferred_element_type=jnp.float32)
    d_scores = softmax_gradient(weights, d_weights)
    d_queries, d_keys, d_v = _by_platform(_all_score_gradients, queries, keys, d_scores)
    slope = v.astype(jnp.float32)
    return (
        (d_queries * slope).astype(queries.dtype),
        (d_keys * slope).astype(keys.dtype),
        d_values.astype(values.dtype),
        None,
        d_v.sum(axis=0).astype(v.dtype),
    )


_attend.defvjp(_attend_fwd, _attend_bwd)


def _by_platform(run: Callable[..., Any], *args: Array) -> Any:
    """`run(*args, paired)` with the bound of the platform that the program is compiled for."""
    each = {name: functools.partial(run, paired=paired) for name, paired in PAIRED.items()}
    return lax.platform_dependent(*args, **each)


def _cut(queries: Array, keys: Array, paired: int) -> tuple[int, int]:
    """How many parts the T queries are cut into, and how many queries are in each; the last part may be shorter."""
    length = queries.shape[1]
    most = max(1, paired // max(1, queries.shape[0] * keys.shape[1] * keys.shape[2]))
    parts = -(-length // most)
    return parts, -(-length // max(1, parts))


def _lengthen(x: Array, length: int) -> Array:
    """`[B, T, ...]` with zeros after it."""
    return x if x.shape[1] == length else jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0)))


def _part(x: Array, number: Array, steps: int) -> Array:
    return lax.dynamic_slice_in_dim(x, number * steps, steps, axis=1)


def _put(x: Array, part: Array, number: Array, steps: int) -> Array:
    return lax.dynamic_update_slice_in_dim(x, part, number * steps, axis=1)


def _all_scores(queries: Array, keys: Array, v: Array, *, paired: int) -> Array:
    """`[B, T, S]` float32, a few queries at a time."""
    parts, steps = _cut(queries, keys, paired)
    if parts <= 1:
        return make_scores(queries, keys, v)
    padded = _lengthen(queries, parts * steps)

    def one(number: Array, scores: Array) -> Array:
        return _put(scores, make_scores(_part(padded, number, steps), keys, v), number, steps)

    shape = (*padded.shape[:2], keys.shape[1])
    return lax.fori_loop(0, parts, one, jnp.zeros_like(queries, jnp.float32, shape=shape))[:, : queries.shape[1]]


def _all_score_gradients(queries: Array, keys: Array, d_scores: Array, *, paired: int) -> tuple[Array, Array, Array]:
    """`score_gradients` of all queries, a few at a time."""
    parts, steps = _cut(queries, keys, paired)
    if parts <= 1:
        return score_gradients(queries, keys, d_scores)
    # Queries that only fill up have no gradient, and give none to the keys.
    padded, d_padded = _lengthen(queries, parts * steps), _lengthen(d_scores, parts * steps)

    def one(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_queries, d_keys, d_v = sums
        new = score_gradients(_part(padded, number, steps), keys, _part(d_padded, number, steps))
        return _put(d_queries, new[0], number, steps), d_keys + new[1], d_v + new[2]

    zeros = [jnp.zeros_like(queries, jnp.float32, shape=x) for x in (padded.shape, keys.shape, keys[:, 0].shape)]
    d_queries, d_keys, d_v = lax.fori_loop(0, parts, one, tuple(zeros))
    return d_queries[:, : queries.shape[1]], d_keys, d_v


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
        keys = hidden.astype(self.dtype) @ self.key_kernel.astype(self.dtype)
        return (keys.astype(jnp.float32) + self.bias).astype(self.dtype)  # the bias's gradient is summed in float32

    def query_weights(self) -> tuple[Array, Array]:
        """The query kernel `[D, A]` and `v [A]`, float32: what queries meet."""
        return self.query_kernel, self.v

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
        kernel, v = (leaf.astype(self.dtype) for leaf in self.query_weights())
        return attend(queries.astype(self.dtype) @ kernel, keys, values, mask, v)


class DotAttention(nn.Module):
    """Attention whose score is a product of query and key (Luong et al. 2015, section 3.1); it is not scaled.

    Without a projection the widths of queries and of what is attended to must agree; where the latter are the two
    directions of a layer side by side, and so twice as wide, the key of a position is the sum of both.

    Attributes:
        query_features: width of the queries.
        key_features: width of what is attended to.
        projected: score "general", with a kernel on the keys; False is "dot", without parameters.
        dtype: dtype of the products; the softmax is float32.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    query_features: int
    key_features: int
    projected: bool
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.04

    def setup(self) -> None:
        if self.projected:
            init, shape = matrix_initializer(self.init_scale), (self.key_features, self.query_features)
            self.key_kernel = declare(self, "key_kernel", init, shape, ("embed", "attention"))
        elif self.key_features not in (self.query_features, 2 * self.query_features):
            raise ValueError(
                f"what 'dot' attends to must be as wide as queries, or twice as wide, but is {self.key_features} "
                f"for queries of {self.query_features} instead; use 'general'."
            )

    def project_keys(self, hidden: Array) -> Array:
        """The keys of every source position: `[B, S, D]` to `[B, S, Dq]`."""
        hidden = hidden.astype(self.dtype)
        if self.projected:
            return hidden @ self.key_kernel.astype(self.dtype)
        if self.key_features == self.query_features:
            return hidden
        ahead, back = jnp.split(hidden, 2, axis=-1)
        return ahead + back

    def query_weights(self) -> tuple[None, None]:
        """There are none: queries ask as they are."""
        return None, None

    def __call__(self, queries: Array, keys: Array, values: Array, mask: Array) -> tuple[Array, Array]:
        """Attends with every query; see `AdditiveAttention`."""
        scores = jnp.einsum("btd,bsd->bts", queries.astype(self.dtype), keys, preferred_element_type=jnp.float32)
        weights = masked_softmax(scores, mask[:, None])
        return jnp.einsum("bts,bsd->btd", weights.astype(values.dtype), values), weights


def make_attention(
    name: str, *, features: int, query_features: int, key_features: int, dtype: jnp.dtype, init_scale: float
) -> AdditiveAttention | DotAttention:
    """The attention of a config; `name` is one of `ATTENTION`, `features` the width of additive attention's layer."""
    if name == "additive":
        return AdditiveAttention(features, query_features, key_features, dtype, init_scale)
    return DotAttention(query_features, key_features, name == "general", dtype, init_scale)
