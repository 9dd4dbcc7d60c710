"""Cross-entropy that never holds the logits of a whole batch, with label smoothing.

loss = -sum_n w_n [(1 - e) log p(y_n) + e / V sum_v log p(v)]          (Szegedy et al. 2016, section 7)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from seq2seq_jax.interfaces import Array


@struct.dataclass
class CrossEntropy:
    """Sums over the tokens of a batch, float32 scalars."""

    loss: Array  # with label smoothing: what is minimised
    nll: Array  # without: exp(nll / weight) is the perplexity
    correct: Array  # weight of the tokens whose target has the highest probability


def cross_entropy(
    hidden: Float[Array, "*B T D"],
    kernel: Float[Array, "V D"],
    bias: Float[Array, " V"],
    targets: Int[Array, "*B T"],
    weights: Float[Array, "*B T"],
    *,
    label_smoothing: float = 0.0,
    chunk: int = 512,
) -> CrossEntropy:
    """Sums of the cross-entropy of a batch, a few time steps of all its rows at a time.

    When differentiated, the gradients are made in the same pass as the loss: the logits of a chunk
    are used for both and forgotten, and no product is made twice. Rows are never cut apart, so that
    devices which share them each work on their own.

    Args:
        hidden: `[B, T, D]` (or `[T, D]`); its dtype is the one that products are made in; logits are float32.
        kernel: `[V, D]` float32.
        bias: `[V]` float32.
        targets: `[B, T]` int32.
        weights: `[B, T]` float32, 0 for padding.
        label_smoothing: e in [0, 1).
        chunk: tokens at a time, about; bounds the memory to chunk x V floats.
    """
    length, width = hidden.shape[-2:]
    hidden = hidden.reshape(-1, length, width)
    rows = hidden.shape[0]
    count = -(-length // max(1, chunk // rows))  # chunks
    steps = -(-length // count)  # time steps in each

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * steps - length)) + ((0, 0),) * (x.ndim - 2))
        parts = padded.reshape(rows, count, steps, *x.shape[2:]).swapaxes(0, 1)
        return parts.reshape(count, rows * steps, *x.shape[2:])

    cuts = cut(hidden), cut(targets.reshape(rows, length)), cut(weights.reshape(rows, length))
    loss, nll, correct = _chunked(label_smoothing, cuts[0], kernel, bias, *cuts[1:])
    return CrossEntropy(loss=loss, nll=nll, correct=correct)


def _chunk_sums(smoothing: float, logits: Array, targets: Array, weights: Array) -> Any:
    """Sums over one chunk, and the log of each row's normaliser `[C]`."""
    log_total = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    nll = log_total - target
    smooth = (1.0 - smoothing) * nll + smoothing * (log_total - logits.mean(axis=-1))
    correct = target >= logits.max(axis=-1)
    return (weights @ smooth, weights @ nll, weights @ correct.astype(jnp.float32)), log_total


def _logits(hidden: Array, kernel: Array, bias: Array) -> Array:
    kernel = kernel.astype(hidden.dtype)
    return jnp.einsum("cd,vd->cv", hidden, kernel, preferred_element_type=jnp.float32) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(smoothing: float, hidden: Array, kernel: Array, bias: Array, targets: Array, weights: Array) -> Any:
    def body(total: Any, chunk: tuple[Array, Array, Array]) -> Any:
        h, y, w = chunk
        sums, _ = _chunk_sums(smoothing, _logits(h, kernel, bias), y, w)
        return jax.tree.map(jnp.add, total, sums), None

    return jax.lax.scan(body, (jnp.float32(0),) * 3, (hidden, targets, weights))[0]


def _chunked_fwd(smoothing: float, hidden: Array, kernel: Array, bias: Array, targets: Array, weights: Array) -> Any:
    vocab = kernel.shape[0]

    def body(total: Any, chunk: tuple[Array, Array, Array]) -> Any:
        sums, d_kernel, d_bias = total
        h, y, w = chunk
        logits = _logits(h, kernel, bias)
        new, log_total = _chunk_sums(smoothing, logits, y, w)
        d = jnp.exp(logits - log_total[:, None]) - smoothing / vocab
        hit = jnp.arange(vocab)[None, :] == y[:, None]
        d = ((d - jnp.where(hit, 1.0 - smoothing, 0.0)) * w[:, None]).astype(h.dtype)
        d_hidden = d @ kernel.astype(h.dtype)
        d_kernel = d_kernel + jnp.einsum("cv,cd->vd", d, h, preferred_element_type=jnp.float32)
        d_bias = d_bias + d.astype(jnp.float32).sum(axis=0)
        return (jax.tree.map(jnp.add, sums, new), d_kernel, d_bias), d_hidden

    zeros = ((jnp.float32(0),) * 3, jnp.zeros(kernel.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32))
    (sums, d_kernel, d_bias), d_hidden = jax.lax.scan(body, zeros, (hidden, targets, weights))
    return sums, (d_hidden, d_kernel, d_bias)


def _chunked_bwd(smoothing: float, saved: tuple[Array, Array, Array], cotangents: tuple[Array, ...]) -> Any:
    scale = cotangents[0]  # nll and correct are for the log line only: nothing flows through them
    d_hidden, d_kernel, d_bias = saved
    return (d_hidden * scale).astype(d_hidden.dtype), d_kernel * scale, d_bias * scale, None, None


_chunked.defvjp(_chunked_fwd, _chunked_bwd)
