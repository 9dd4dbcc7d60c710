"""Log-probabilities of given tokens, and tokens drawn, a few time steps at a time, over a vocabulary whole or split.

As in `softmax`, the logits of a whole batch never exist, let alone travel. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from seq2seq_jax.interfaces import Array
from seq2seq_jax.parallel.draws import draw_tokens
from seq2seq_jax.parallel.softmax import WHOLE, VocabularySplit, make_cut


def token_log_probs(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    bias: Float[Array, " V"],
    targets: Int[Array, "B T"],
    *,
    chunk: int = 512,
    split: VocabularySplit = WHOLE,
    vocab_size: int | None = None,
) -> Float[Array, "B T"]:
    """The log-probability of every target, float32, padding included; see `softmax.cross_entropy` for the arguments."""

    def look(logits: Array, targets: Array) -> Array:
        ids = split.first(kernel.shape[0]) + jnp.arange(kernel.shape[0])
        here = (ids[None, :] == targets[:, None]) & (logits > -jnp.inf)
        top = _reduce(lax.pmax, split, jnp.max(logits, axis=-1))
        total = jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
        target = jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
        total, target = _reduce(lax.psum, split, jnp.stack([total, target]))  # one message for both
        return target - jnp.log(total) - top

    return _over_chunks(look, hidden, kernel, bias, targets, chunk=chunk, split=split, vocab_size=vocab_size)


def sample_tokens(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    bias: Float[Array, " V"],
    uniform: Float[Array, "B T"],
    *,
    forbidden: tuple[int, ...] = (),
    chunk: int = 512,
    split: VocabularySplit = WHOLE,
    vocab_size: int | None = None,
) -> Int[Array, "B T"]:
    """A token drawn from the softmax at every position.

    Args:
        hidden, kernel, bias, chunk, split, vocab_size: see `softmax.cross_entropy`.
        uniform: `[B, T]` draws from [0, 1), of which the tokens are a function.
        forbidden: tokens that are never drawn.
    """

    def draw(logits: Array, uniform: Array) -> Array:
        ids = split.first(kernel.shape[0]) + jnp.arange(kernel.shape[0])
        logits = jnp.where(jnp.isin(ids, jnp.asarray(forbidden, jnp.int32)), -jnp.inf, logits)
        top = _reduce(lax.pmax, split, jnp.max(logits, axis=-1))
        return draw_tokens(jnp.exp(logits - top[:, None]), uniform, axes=split.axes, idle=split.idle)

    return _over_chunks(draw, hidden, kernel, bias, uniform, chunk=chunk, split=split, vocab_size=vocab_size)


def _reduce(reduce: Callable[..., Array], split: VocabularySplit, x: Array) -> Array:
    return reduce(x, split.sums) if split.sums else x


def _over_chunks(
    make: Callable[[Array, Array], Array],
    hidden: Array,
    kernel: Array,
    bias: Array,
    other: Array,
    *,
    chunk: int,
    split: VocabularySplit,
    vocab_size: int | None,
) -> Array:
    """`make(logits [C, V], other [C]) -> [C]` for a few time steps of all rows at a time; `[B, T]`."""
    hidden, kernel, bias = (lax.stop_gradient(x) for x in (hidden, kernel, bias))
    rows, length = other.shape
    cut = make_cut(rows, length, chunk=chunk, split=split)

    def project(h: Array, kernel: Array, bias: Array) -> Array:
        return jnp.einsum("cd,vd->cv", h, kernel.astype(h.dtype), preferred_element_type=jnp.float32) + bias

    def work(parts: tuple[Array, Array]) -> Array:
        h, o = (split.rows(part) for part in parts)
        logits = split.where_working(project, h, kernel, bias)
        real = split.first(kernel.shape[0]) + jnp.arange(kernel.shape[0]) < (vocab_size or logits.shape[-1])
        if split.idle:
            real = real & (lax.axis_index(split.idle) == lax.axis_size(split.idle) - 1)
        return split.own(make(jnp.where(real, logits, -jnp.inf), o))

    done = lax.map(work, (cut(hidden), cut(other)))  # [chunks, B * steps]
    return done.reshape(len(done), rows, -1).swapaxes(0, 1).reshape(rows, -1)[:, :length]
