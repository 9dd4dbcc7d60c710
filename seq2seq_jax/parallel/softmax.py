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
from typing import Any, NamedTuple

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


def choose_chunk(vocab_size: int, width: int, *, platform: str) -> int:
    """Tokens whose logits should exist at a time; see `cross_entropy`.

    A chunk costs 8 bytes for each of the V D weights, since the sum over chunks of the kernel's gradient is read and
    written, and about 22 for each of its C V logits: as many passes over memory as the compiled text for an H100 in
    bfloat16 has. So C of 4 D or more keeps the sum's part below a tenth. Beyond that a chunk is what fits into 1 GiB:
    8,388 tokens of a vocabulary of 32,000, a whole batch of small vocabularies. CPUs are quickest with 512 tokens
    (measured with 512, 1,024 and 2,048 at V = 32,320, D = 512).

    Args:
        vocab_size: V.
        width: D.
        platform: of the devices, as jax names it: "cpu", "gpu" or "tpu".
    """
    return 512 if platform == "cpu" else max(2**28 // vocab_size, 4 * width)


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
        chunk: tokens of all devices of the group at a time, about; see `choose_chunk`. It bounds the memory to
            chunk x V floats, and as many for the larger of chunk x V and V x D: the gradient of the logits takes
            their place, that of the kernel is added to the sum over chunks.
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


class _Softmax(NamedTuple):
    """What is made once for all chunks, of this device's columns.

    Attributes:
        kernel: `[V, D]` in the dtype of the products.
        bias: `[V]`.
        real: None, or True in columns that count (`[V]`, or for all of them): they fill nothing up, on no idle device.
        sums: of the kernel's rows `[D]` and of the bias, over those; float32.
    """

    kernel: Array
    bias: Array
    real: Array | None
    sums: tuple[Array, Array]


def _prepare(rule: _Rule, kernel: Array, bias: Array, dtype: jnp.dtype) -> _Softmax:
    split, kernel = rule.split, kernel.astype(dtype)
    real = None if rule.filled == rule.vocab else rule.columns(bias.size) < rule.vocab
    if split.idle:
        working = lax.axis_index(split.idle) == lax.axis_size(split.idle) - 1
        real = working if real is None else real & working
    weights = jnp.ones_like(bias) if real is None else jnp.where(real, jnp.ones_like(bias), 0.0)
    return _Softmax(kernel, bias, real, (_sum_rows(kernel, weights), jnp.vdot(weights, bias)))


def _statistics(rule: _Rule, softmax: _Softmax, h: Array, y: Array, w: Array) -> Any:
    """Sums over this device's rows; and logits `[C, V]` (-inf in columns that fill up) and their log-normaliser."""
    split, (kernel, bias, real, row_sums) = rule.split, softmax

    def project(h: Array, kernel: Array, bias: Array) -> Array:
        return jnp.einsum("cd,vd->cv", h, kernel, preferred_element_type=jnp.float32) + bias

    logits = split.where_working(project, h, kernel, bias)
    logits = logits if real is None else jnp.where(real, logits, -jnp.inf)
    hit = rule.columns(bias.size)[None, :] == y[:, None]
    top = _reduce(split, lax.pmax, jnp.max(logits, axis=-1))
    target = _pick(logits, hit, y - split.first(bias.size))
    target = target if real is None else jnp.where(jnp.any(real), target, 0.0)  # where all is -inf: another's
    parts = [jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), target]
    if rule.smoothing:  # the sum of a token's logits, without reading them
        parts.append(jnp.sum(h.astype(jnp.float32) * row_sums[0], axis=-1) + row_sums[1])
    total, target, *rest = _reduce(split, lax.psum, jnp.stack(parts))  # one message for all
    log_total = jnp.log(total) + top
    nll = log_total - target
    smooth = (1.0 - rule.smoothing) * nll + (rule.smoothing * (log_total - rest[0] / rule.vocab) if rest else 0.0)
    correct = (target >= top).astype(jnp.float32)
    own = split.own(w)
    sums = own @ split.own(smooth), own @ split.own(nll), own @ split.own(correct)
    return sums, (logits, log_total, hit)


def _pick(logits: Array, hit: Array, place: Array) -> Array:
    """The logit `[C]` of each row's target, 0 where its column is another device's.

    Args:
        logits: `[C, V]`.
        hit: `[C, V]`, True in the target's column.
        place: `[C]`, that column; others' are out of range.
    """

    def compare(logits: Array, hit: Array, place: Array) -> Array:
        del place
        return jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)

    def gather(logits: Array, hit: Array, place: Array) -> Array:
        del hit
        here = (place >= 0) & (place < logits.shape[1])
        found = jnp.take_along_axis(logits, jnp.where(here, place, 0)[:, None], axis=1, mode="promise_in_bounds")
        return jnp.where(here, found[:, 0], 0.0)

    # A few numbers out of many: TPUs look them up one by one, and compare in the pass that they make for the maximum;
    # others would read all logits once more.
    return lax.platform_dependent(logits, hit, place, tpu=compare, default=gather)


def _sum_rows(x: Array, weights: Array) -> Array:
    """The sum `[N]` over rows of `[M, N]`, each times its weight `[M]` (0 or 1), float32."""

    def add(x: Array, weights: Array) -> Array:
        return jnp.sum(x.astype(jnp.float32) * weights[:, None], axis=0)

    def multiply(x: Array, weights: Array) -> Array:
        ones = weights.astype(x.dtype)
        return jnp.einsum("m,mn->n", ones, x, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)

    # Accelerators add in the pass that makes x. The CPU's sum of long rows takes half as long as the gradient's whole
    # product; this one a fiftieth.
    return lax.platform_dependent(x, weights, cpu=multiply, default=add)


def _group(rule: _Rule, chunk: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    h, y, w = chunk
    return rule.split.rows(h), rule.split.rows(y), rule.split.rows(w)


def _zero_sums(hidden: Array) -> tuple[Array, Array, Array]:
    zero = jnp.zeros_like(hidden, jnp.float32, shape=())
    return zero, zero, zero


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(rule: _Rule, hidden: Array, kernel: Array, bias: Array, targets: Array, weights: Array) -> Any:
    softmax = _prepare(rule, kernel, bias, hidden.dtype)

    def body(total: Any, chunk: tuple[Array, Array, Array]) -> Any:
        h, y, w = _group(rule, chunk)
        sums, _ = _statistics(rule, softmax, h, y, w)
        return jax.tree.map(jnp.add, total, sums), None

    return lax.scan(body, _zero_sums(hidden), (hidden, targets, weights))[0]


def _chunked_fwd(rule: _Rule, hidden: Array, kernel: Array, bias: Array, targets: Array, weights: Array) -> Any:
    split, softmax = rule.split, _prepare(rule, kernel, bias, hidden.dtype)
    real = softmax.real

    def body(total: Any, chunk: tuple[Array, Array, Array]) -> Any:
        sums, d_kernel, d_bias = total
        h, y, w = _group(rule, chunk)
        new, (logits, log_total, hit) = _statistics(rule, softmax, h, y, w)
        d = jnp.exp(logits - log_total[:, None]) - rule.smoothing / rule.vocab
        d = (d - jnp.where(hit, 1.0 - rule.smoothing, 0.0)) * w[:, None]
        d = (d if real is None else jnp.where(real, d, 0.0)).astype(h.dtype)
        d_hidden = split.scatter(split.where_working(jnp.matmul, d, softmax.kernel))

        def weigh(d: Array, h: Array) -> Array:
            return jnp.einsum("cv,cd->vd", d, h, preferred_element_type=jnp.float32)

        d_kernel = d_kernel + split.where_working(weigh, d, h)
        d_bias = d_bias + _sum_rows(d, jnp.ones_like(d, jnp.float32, shape=d.shape[:1]))
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
