"""CTC as a decoder that goes label by label: alone, or joined with an attention decoder over the same memory.

    psi(h) = P(the output begins with h)       P(h) = P(the output is h)

    log p(c | h) = log psi(h c) - log psi(h)       log p(eos | h) = log P(h) - log psi(h)

This is a distribution over the next label, so CTC is a step like any other, and a search knows nothing of frames
(Watanabe et al. 2017, Hybrid CTC/Attention Architecture for End-to-End Speech Recognition, Algorithm 2). The forward
variables of a hypothesis, n[s] and b[s], are the probability that the frames up to s spell it and end with its last
label or with a blank. They are its cache. With n b the two added, or b alone where c repeats the last label of h:

    psi(h c) = sum_s nb[s - 1] p_s(c)          all c by one product of [S] and [S, V]
    n'[s] = (n'[s - 1] + nb[s - 1]) p_s(c)     only for the c that was taken: linear recurrences,
    b'[s] = (b'[s - 1] + n'[s - 1]) p_s(-)     so associative scans where there is much to compute with

Differs from the paper: log-probabilities of labels below about -87 (the smallest float32) come out as about that, so
that no output is impossible.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from seq2seq_jax.decode.ctc import BLANK, frame_log_probs
from seq2seq_jax.decode.steps import Decoder, Inputs, Prepared
from seq2seq_jax.interfaces import Array, Cache, Memory, PyTree, Step, StepResult

_LEAST_LABEL = float(np.log(np.finfo(np.float32).tiny))  # whatever is below may have underflown
_LEAST = -1e4  # of eos


@dataclasses.dataclass(frozen=True)
class Labels:
    """Which columns the frames' projection has.

    Attributes:
      bos_id, eos_id: Tokens that no frame has as its label.
      vocab_axes: The mesh axes over which the projection is split, as in `steps.seq2seq_step`.
      vocab_size: The true number of tokens where the projection has more columns; None if it has not.
    """

    bos_id: int
    eos_id: int
    vocab_axes: tuple[str, ...] = ()
    vocab_size: int | None = None

    def columns(self, width: int) -> Array:
        """The tokens of this device's columns."""
        columns = jnp.arange(width, dtype=jnp.int32)
        return columns + lax.axis_index(self.vocab_axes) * width if self.vocab_axes else columns

    def follows(self, columns: Array) -> Array:
        """Which of them may be next, eos among them."""
        follows = (columns != BLANK) & (columns != self.bos_id)
        return follows if self.vocab_size is None else follows & (columns < self.vocab_size)


@struct.dataclass
class Frames:
    """What CTC reads of a row: the labels' probabilities in every frame."""

    mask: Array  # [B, S] bool
    log_probs: Array  # [B, S, V] float32, all columns; a padded frame is blank for certain
    probs: Array  # [B, S, V] float32, this device's columns


@struct.dataclass
class Prefix:
    """The forward variables of a hypothesis after 0 to S frames, in logs."""

    label: Array  # [B, S + 1] float32, n
    blank: Array  # [B, S + 1] float32, b
    last: Array  # [B] int32, its last token; -1 where it is empty


@struct.dataclass
class Joined:
    """What an attention decoder and CTC hold of a row."""

    held: PyTree
    frames: Frames


def ctc_decoder(model: nn.Module, labels: Labels) -> Decoder:
    """The decoder of one model that keeps the `FrameModel` protocol."""

    def encode(params: PyTree, inputs: Inputs) -> Frames:
        variables = {"params": _plain(params)}
        memory: Any = model.apply(variables, inputs.source, inputs.source_mask, train=False, method="encode")
        return _read_memory(model, params, memory, labels)

    def init_cache(params: PyTree, held: Frames, max_len: int) -> Prefix:
        del params, max_len
        return start_prefix(held)

    def make_step(params: PyTree, held: Frames) -> Step:
        del params
        return prefix_step(held, labels)

    return Decoder(encode, init_cache, make_step)


def join_ctc(decoder: Decoder, model: nn.Module, weight: float, labels: Labels) -> Decoder:
    """Both scores of one encoding: (1 - w) log p_attention + w log p_ctc (Watanabe et al. 2017, section IV-B).

    What a search then calls log-probabilities are these sums, none of them above 0.

    Args:
      decoder: That of the same model (`steps.seq2seq_decoder`), whose memory CTC reads as well.
      model: Keeps `Seq2Seq` and `FrameModel`.
      weight: w, from 0 to 1.
      labels: As in `ctc_decoder`.

    Raises:
      ValueError: the weight is not from 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` must be from 0 to 1, but is {weight} instead.")
    if weight == 0:
        return decoder

    def encode(params: PyTree, inputs: Inputs) -> Joined:
        held = decoder.encode(params, inputs)
        return Joined(held, _read_memory(model, params, held, labels))

    def init_cache(params: PyTree, held: Joined, max_len: int) -> Cache:
        return decoder.init_cache(params, held.held, max_len), start_prefix(held.frames)

    def make_step(params: PyTree, held: Joined) -> Step:
        attend, spell = decoder.make_step(params, held.held), prefix_step(held.frames, labels)

        def step_fn(tokens: Array, step: Array, cache: Cache) -> StepResult:
            own, other = attend(tokens, step, cache[0]), spell(tokens, step, cache[1])
            # A padding column is at -inf in both, and 0 * -inf would be no number.
            possible = (own.log_probs > -jnp.inf) & (other.log_probs > -jnp.inf)
            joint = jnp.where(possible, (1.0 - weight) * own.log_probs + weight * other.log_probs, -jnp.inf)
            return own.replace(log_probs=joint, cache=(own.cache, other.cache))  # type: ignore[attr-defined]

        return step_fn

    return dataclasses.replace(
        decoder,
        encode=encode,
        init_cache=init_cache,
        make_step=make_step,
        attended=lambda held: decoder.attended(held.held),
    )


def _plain(params: PyTree) -> PyTree:
    return params.params if isinstance(params, Prepared) else params


def _read_memory(model: nn.Module, params: PyTree, memory: Memory, labels: Labels) -> Frames:
    logits: Any = model.apply({"params": _plain(params)}, memory, method="project_frames")
    return make_frames(logits, memory.mask, labels)


def make_frames(logits: Array, mask: Array, labels: Labels) -> Frames:
    """What the steps read, from logits `[B, S, V]` (this device's columns) and their mask `[B, S]`."""
    axes = labels.vocab_axes
    forbidden = (labels.bos_id, labels.eos_id)
    own = frame_log_probs(logits, mask, forbidden=forbidden, vocab_axes=axes, vocab_size=labels.vocab_size)
    everything = lax.all_gather(own, axes, axis=2, tiled=True, to="invarying") if axes else own
    return Frames(mask=mask, log_probs=everything, probs=jnp.exp(own))


def start_prefix(frames: Frames) -> Prefix:
    """The cache before the first step: the empty output."""
    blank = jnp.pad(jnp.cumsum(frames.log_probs[:, :, BLANK], axis=1), ((0, 0), (1, 0)))
    return Prefix(
        label=jnp.full_like(blank, -jnp.inf),
        blank=blank,
        last=jnp.full_like(frames.mask, -1, jnp.int32, shape=blank.shape[:1]),
    )


def prefix_step(frames: Frames, labels: Labels) -> Step:
    """The step over the frames' labels; its cache is a `Prefix`."""

    def step_fn(tokens: Array, step: Array, cache: Prefix) -> StepResult:
        cache = _settle(frames, cache)
        taken, begun = _extend(frames, cache, tokens)
        first = step == 0  # the token is bos: nothing was taken yet
        begun = jnp.where(first, 0.0, begun)[:, None]  # log psi
        prefix = jax.tree.map(lambda a, b: jnp.where(first.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), cache, taken)
        columns = labels.columns(frames.probs.shape[-1])

        # 1. Every label, as if it were not the last one again.
        either = jnp.logaddexp(prefix.label, prefix.blank)
        before = either[:, :-1]
        largest = jnp.max(before, axis=1, keepdims=True, initial=-jnp.inf)
        shares = jnp.exp(before - jnp.where(largest > -jnp.inf, largest, 0.0))
        found = jnp.einsum("bs,bsv->bv", shares, frames.probs, precision=lax.Precision.HIGHEST)
        log_probs = jnp.log(found) + _divide(largest, begun, -jnp.inf)

        # 2. That one: a blank must come between.
        again = jax.nn.logsumexp(prefix.blank[:, :-1] + _pick(frames, prefix.last), axis=1, keepdims=True)
        log_probs = jnp.where(columns == prefix.last[:, None], _divide(again, begun, -jnp.inf), log_probs)

        # 3. The end. What no path spells should end.
        over = _divide(either[:, -1:], begun, 0.0)
        log_probs = jnp.where(columns == labels.eos_id, jnp.maximum(over, _LEAST), jnp.maximum(log_probs, _LEAST_LABEL))
        return StepResult(
            log_probs=jnp.where(labels.follows(columns), jnp.minimum(log_probs, 0.0), -jnp.inf),
            attention=None,
            cache=prefix,
            token_ids=columns if labels.vocab_axes else None,
        )

    return step_fn


def _divide(above: Array, below: Array, otherwise: float) -> Array:
    """The quotient, all in logs; `otherwise` where it is 0 / 0."""
    nothing = below == -jnp.inf
    return jnp.where(nothing, otherwise, above - jnp.where(nothing, 0.0, below))


def _settle(frames: Frames, prefix: Prefix) -> Prefix:
    """The forward variables with what stands after the last real frame: nothing is said there any more.

    A batch whose rows come and go (`decode.rolling`) cuts frames off that no row needs, and fills up with zeros.
    """
    real = jnp.pad(frames.mask, ((0, 0), (1, 0)), constant_values=True)
    last = jnp.sum(frames.mask, axis=1, keepdims=True)
    total = jnp.take_along_axis(jnp.logaddexp(prefix.label, prefix.blank), last, axis=1, mode="promise_in_bounds")
    label, blank = jnp.where(real, prefix.label, -jnp.inf), jnp.where(real, prefix.blank, total)
    return Prefix(label=label, blank=blank, last=prefix.last)


def _pick(frames: Frames, tokens: Array) -> Array:
    """The log-probabilities `[B, S]` of a row's token `[B]` in all of its frames, -inf in those that are not real."""
    index = jnp.clip(tokens, 0)[:, None, None]
    picked = jnp.take_along_axis(frames.log_probs, index, axis=2, mode="promise_in_bounds")[:, :, 0]
    return jnp.where(frames.mask, picked, -jnp.inf)


def _extend(frames: Frames, prefix: Prefix, tokens: Array) -> tuple[Prefix, Array]:
    """The hypothesis with one more token, and log psi of it `[B]`."""
    here, blank = _pick(frames, tokens), jnp.where(frames.mask, frames.log_probs[:, :, BLANK], 0.0)
    repeats = (tokens == prefix.last)[:, None]
    before = jnp.where(repeats, prefix.blank, jnp.logaddexp(prefix.label, prefix.blank))[:, :-1]
    # One after the other is the least work; accelerators would wait for every frame.
    label, ended = lax.platform_dependent(here, blank, before, cpu=run_frames, default=associate_frames)
    return Prefix(label=label, blank=ended, last=tokens), jax.nn.logsumexp(before + here, axis=1)


def run_frames(here: Array, blank: Array, before: Array) -> tuple[Array, Array]:
    """The forward variables n' and b' `[B, S + 1]`, frame by frame.

    Args:
      here, blank: `[B, S]`, log-probabilities of the label that is taken and of the blank.
      before: `[B, S]`, nb before each frame.
    """

    def advance(now: tuple[Array, Array], frame: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Any]:
        (label, ended), (here, blank, before) = now, frame
        after = jnp.logaddexp(label, before) + here, jnp.logaddexp(ended, label) + blank
        return after, after

    nothing = jnp.full_like(here[:, 0] + blank[:, 0] + before[:, 0], -jnp.inf)
    _, found = lax.scan(advance, (nothing, nothing), (here.T, blank.T, before.T))
    label, ended = (jnp.pad(x.T, ((0, 0), (1, 0)), constant_values=-jnp.inf) for x in found)
    return label, ended


def associate_frames(here: Array, blank: Array, before: Array) -> tuple[Array, Array]:
    """The same in log S steps."""
    label = _recur(here, before + here)
    return label, _recur(blank, label[:, :-1] + blank)


def _recur(factors: Array, terms: Array) -> Array:
    """x[s] = x[s - 1] factor[s] + term[s] from x[0] = 0 on, all in logs: `[B, S]` to `[B, S + 1]`."""

    def combine(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        return early[0] + late[0], jnp.logaddexp(early[1] + late[0], late[1])

    _, sums = lax.associative_scan(combine, (factors, terms), axis=1)
    return jnp.pad(sums, ((0, 0), (1, 0)), constant_values=-jnp.inf)
