"""Cross-entropy and look-ups over a vocabulary that is split across devices, or whole on one.

loss = -sum_n w_n [(1 - e) log p(y_n) + e / V sum_v log p(v)]          (Szegedy et al. 2016, section 7)

The logits of a whole batch never exist, let alone travel: a few time steps at a time, devices gather the
hidden states, each makes the logits of its own part of the vocabulary, and the maximum, the sum of
exponentials, the target's logit and the mean logit are put together by collectives of one number a token.
The gradients are made in the same pass, so that no product is made twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Float, Int

from seq2seq_jax.interfaces import Array
from seq2seq_jax.parallel.varying import vary_over, varying_axes


@struct.dataclass
class CrossEntropy:
    """Sums over the tokens of a batch (of this device's rows inside `shard_map`), float32 scalars."""

    loss: Array  # with label smoothing: what is minimised
    nll: Array  # without: exp(nll / weight) is the perplexity
    correct: Array  # weight of the tokens whose target has the highest probability


@dataclasses.dataclass(frozen=True)
class VocabularySplit:
    """How devices share a vocabulary; the default is one device that has all of it.

    Attributes:
        axes: mesh axes over which the vocabulary is split, its parts in their order.
        gather: mesh axes over which the rows of the group are split.
        idle: a mesh axis of `gather` whose devices hold the same part, of which only the last computes.
    """

    axes: tuple[str, ...] = ()
    gather: tuple[str, ...] = ()
    idle: str | None = None

    @property
    def sums(self) -> tuple[str, ...]:
        """The axes that statistics are summed over."""
        return self.axes + ((self.idle,) if self.idle else ())

    def first(self, size: int) -> Array | int:
        """The first token of this device's part of so many."""
        return lax.axis_index(self.axes) * size if self.axes else 0

    def rows(self, x: Array) -> Array:
        """Rows of the whole group, of `[N, ...]` of this device."""
        return lax.all_gather(x, self.gather, axis=0, tiled=True) if self.gather else x

    def scatter(self, x: Array) -> Array:
        """The sum over the parts of the vocabulary, of this device's rows alone."""
        return lax.psum_scatter(x, self.gather, scatter_dimension=0, tiled=True) if self.gather else x

    def own(self, x: Array) -> Array:
        """This device's rows of `[N, ...]` of the whole group."""
        if not self.gather:
            return x
        size = x.shape[0] // math.prod(lax.axis_size(axis) for axis in self.gather)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.gather) * size, size)

    def where_working(self, make: Callable[..., Array], *args: Array) -> Array:
        """`make(*args)`, or zeros on a device that has no part in it."""
        if self.idle is None:
            return make(*args)
        shape = jax.eval_shape(make, *args)
        working = lax.axis_index(self.idle) == lax.axis_size(self.idle) - 1
        axes = frozenset[str]().union(*map(varying_axes, args))

        def nothing(*args: Array) -> Array:
            return vary_over(jnp.zeros(shape.shape, shape.dtype), axes)

        return lax.cond(working, make, nothing, *args)


WHOLE = VocabularySplit()


def cross_entropy(
    hidden: Float[Array, "*B T D"],
    kernel: Float[Array, "V D"],
    bias: Float[Array, " V"],
    targets: Int[Array, "*B T"],
    weights: Float[Array, "*B T"],
    *,
    label_smoothing: float = 0.0,
    chunk: int = 512,
    split: VocabularySplit = WHOLE,
    vocab_size: int | None = None,
) -> CrossEntropy:
    """Sums of the cross-entropy of a batch, a few time steps of all its rows at a time.

    Rows are never cut apart, so that devices which share them each work on their own. Inside
    `shard_map`, with a `split`, everything is this device's: its rows, and its part of the kernel.

    Args:
        hidden: `[B, T, D]` (or `[T, D]`); its dtype is the one that products are made in; logits are float32.
        kernel: `[V, D]` float32, or this device's part, the last one filled up with anything.
        bias: `[V]` float32, likewise.
        targets: `[B, T]` int32.
        weights: `[B, T]` float32, 0 for padding.
        label_smoothing: e in [0, 1).
        chunk: tokens of all devices of the group at a time, about; bounds the memory to chunk x V floats.
        split: how devices share the vocabulary.
        vocab_size: of the whole vocabulary, where the kernel may be filled up.
    """
    length, width = hidden.shape[-2:]
    hidden = hidden.reshape(-1, length, width)
    rows = hidden.shape[0]
    cut = make_cut(rows, length, chunk=chunk, split=split)
    cuts = cut(hidden), cut(targets.reshape(rows, length)), cut(weights.reshape(rows, length))
    rule = _Rule(label_smoothing, split, vocab_size or kernel.shape[0], kernel.shape[0] * _parts(split))
    loss, nll, correct = _chunked(rule, cuts[0], kernel, bias, *cuts[1:])
    return CrossEntropy(loss=loss, nll=nll, correct=correct)


def make_cut(rows: int, length: int, *, chunk: int, split: VocabularySplit) -> Callable[[Array], Array]:
    """Builds `cut(x [B, T, ...]) -> [chunks, B * steps, ...]`: a few time steps of all rows at a time.

    Args:
        rows, length: B and T.
        chunk: tokens of all devices of the group at a time, about.
        split: how devices share the vocabulary.
    """
    group = math.prod(lax.axis_size(axis) for axis in split.gather)
    count = -(-length // max(1, chunk // (rows * group)))  # chunks
    steps = -(-length // count)  # time steps in each

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * steps - length)) + ((0, 0),) * (x.ndim - 2))
        parts = padded.reshape(rows, count, steps, *x.shape[2:]).swapaxes(0, 1)
        return parts.reshape(count, rows * steps, *x.shape[2:])

    return cut


def _parts(split: VocabularySplit) -> int:
    return math.prod(lax.axis_size(axis) for axis in split.axes)


@dataclasses.dataclass(frozen=True)
class _Rule:
    smoothing: float
    split: VocabularySplit
    vocab: int  # real tokens
    filled: int  # columns, those that only fill up included

    def columns(self, size: int) -> Array:
        """Token of each of this device's columns."""
        return self.split.first(size) + jnp.arange(size)


def _reduce(split: VocabularySplit, reduce: Callable[..., Array], x: Array) -> Array:
    return reduce(x, split.sums) if split.sums else x


def _statistics(rule: _Rule, h: Array, kernel: Array, bias: Array, y: Array, w: Array) -> Any:
    """Sums over this device's rows; and logits `[C, V]` (-inf in columns that fill up) and their log-normaliser."""
    split = rule.split

    def project(h: Array, kernel: Array, bias: Array) -> Array:
        return jnp.einsum("cd,vd->cv", h, kernel.astype(h.dtype), preferred_element_type=jnp.float32) + bias

    logits = split.where_working(project, h, kernel, bias)
    ids = rule.columns(kernel.shape[0])
    real = None if rule.filled == rule.vocab else ids < rule.vocab
    if split.idle:
        working = lax.axis_index(split.idle) == lax.axis_size(split.idle) - 1
        real = working if real is None else real & working
    shown = logits if real is None else jnp.where(real, logits, -jnp.inf)
    hit = ids[None, :] == y[:, None]
    top = _reduce(split, lax.pmax, jnp.max(shown, axis=-1))
    parts = [jnp.sum(jnp.exp(shown - top[:, None]), axis=-1), jnp.sum(jnp.where(hit, shown, 0.0), axis=-1)]
    if split.idle:
        parts[1] = jnp.where(working, parts[1], 0.0)
    if rule.smoothing:
        parts.append(jnp.sum(logits if real is None else jnp.where(real, logits, 0.0), axis=-1))
    total, target, *rest = _reduce(split, lax.psum, jnp.stack(parts))  # one message for all
    log_total = jnp.log(total) + top
    nll = log_total - target
    smooth = (1.0 - rule.smoothing) * nll + (rule.smoothing * (log_total - rest[0] / rule.vocab) if rest else 0.0)
    correct = (target >= top).astype(jnp.float32)
    own = split.own(w)
    sums = own @ split.own(smooth), own @ split.own(nll), own @ split.own(correct)
    return sums, (shown, log_total, hit, real)


def _group(rule: _Rule, chunk: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    h, y, w = chunk
    return rule.split.rows(h), rule.split.rows(y), rule.split.rows(w)


def _zero_sums(hidden: Array) -> tuple[Array, Array, Array]:
    zero = jnp.zeros_like(hidden, jnp.float32, shape=())
    return zero, zero, zero


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(rule: _Rule, hidden: Array, kernel: Array, bias: Array, targets: Array, weights: Array) -> Any:
    def body(total: Any, chunk: tuple[Array, Array, Array]) -> Any:
        h, y, w = _group(rule, chunk)
        sums, _ = _statistics(rule, h, kernel, bias, y, w)
        return jax.tree.map(jnp.add, total, sums), None

    return lax.scan(body, _zero_sums(hidden), (hidden, targets, weights))[0]


def _chunked_fwd(rule: _Rule, hidden: Array, kernel: Array, bias: Array, targets: Array, weights: Array) -> Any:
    split = rule.split

    def body(total: Any, chunk: tuple[Array, Array, Array]) -> Any:
        sums, d_kernel, d_bias = total
        h, y, w = _group(rule, chunk)
        new, (logits, log_total, hit, real) = _statistics(rule, h, kernel, bias, y, w)
        d = jnp.exp(logits - log_total[:, None]) - rule.smoothing / rule.vocab
        d = (d - jnp.where(hit, 1.0 - rule.smoothing, 0.0)) * w[:, None]
        d = (d if real is None else jnp.where(real, d, 0.0)).astype(h.dtype)
        d_hidden = split.scatter(split.where_working(jnp.matmul, d, kernel.astype(h.dtype)))

        def weigh(d: Array, h: Array) -> Array:
            return jnp.einsum("cv,cd->vd", d, h, preferred_element_type=jnp.float32)

        d_kernel = d_kernel + split.where_working(weigh, d, h)
        d_bias = d_bias + d.astype(jnp.float32).sum(axis=0)
        return (jax.tree.map(jnp.add, sums, new), d_kernel, d_bias), d_hidden

    zeros = [jnp.zeros_like(hidden, jnp.float32, shape=x.shape) for x in (kernel, bias)]
    (sums, d_kernel, d_bias), d_hidden = lax.scan(body, (_zero_sums(hidden), *zeros), (hidden, targets, weights))
    return sums, (d_hidden, d_kernel, d_bias)


def _chunked_bwd(rule: _Rule, saved: tuple[Array, Array, Array], cotangents: tuple[Array, ...]) -> Any:
    # nll and correct are for the log line only: nothing flows through them. A loss is the sum over all devices,
    # so that the cotangent is the same on each, and may scale what was summed over the group's rows.
    scale = cotangents[0]
    d_hidden, d_kernel, d_bias = saved
    return (d_hidden * scale).astype(d_hidden.dtype), d_kernel * scale, d_bias * scale, None, None


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


def look_up(table: Array, tokens: Array, *, split: VocabularySplit) -> Array:
    """Rows of a table whose parts lie on different devices.

    Args:
        table: `[V, D]`, this device's part.
        tokens: `[...]` or, where rows of a group are gathered, `[T, B]` time-major, this device's rows.
        split: how devices share the vocabulary.

    Returns:
        Vectors `[..., D]` of the same tokens.
    """
    if not split.axes:
        return jnp.take(table, tokens, axis=0)
    gather = tuple(axis for axis in split.gather if axis != split.idle)
    if gather:
        tokens = lax.all_gather(tokens, gather, axis=1, tiled=True)
    local = tokens - split.first(table.shape[0])
    here = (local >= 0) & (local < table.shape[0])
    vectors = jnp.take(table, jnp.where(here, local, 0), axis=0)
    vectors = jnp.where(here[..., None], vectors, 0.0)
    if gather:
        return lax.psum_scatter(vectors, gather, scatter_dimension=1, tiled=True)
    return lax.psum(vectors, split.axes)
