"""Prefix beam search: the most probable outputs of frames, frame by frame.

A prefix keeps two numbers: the probability of the paths that spell it and end with its last label, and with a blank
(Graves 2008, Hannun et al. 2014, First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
Recurrent DNNs, algorithm 1). Where a prefix of the beam grows into another one of the beam, their paths are added.

All rows and prefixes go through a frame at once, in a few array operations:

    K prefixes ──▶ each stays [K], or takes a label [K, M] ──▶ the best K of them
                   M: the 2 K best labels of the frame, for no others can be among the best

Prefixes are told apart by a code of 64 bits, made of their labels: two of a beam of 100 share one by chance once in
10^15 frames. The outputs are read off back-pointers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Bool, Float

from seq2seq_jax.decode.ctc import BLANK, spell
from seq2seq_jax.decode.selection import gather_beams
from seq2seq_jax.interfaces import Array, Hypotheses


@struct.dataclass
class Prefixes:
    """The beam of every row; those that are free have probability 0."""

    label: Array  # [B, K] float32, log-probability of the paths that end with the last label
    blank: Array  # [B, K] float32, with a blank
    last: Array  # [B, K] int32, the last label; BLANK of the empty prefix
    code: Array  # [B, K, 2] uint32, of the labels
    parent: Array  # [B, K, 2] uint32, of all but the last

    @property
    def total(self) -> Array:
        """Log-probability, `[B, K]`."""
        return jnp.logaddexp(self.label, self.blank)


def prefix_beam(
    log_probs: Float[Array, "B S V"],
    mask: Bool[Array, "B S"],
    *,
    size: int,
    eos_id: int,
) -> Hypotheses:
    """The `size` best outputs of every row, best first.

    Scores are log P(output | frames), sums over the paths that were in the beam, so never above the true ones.

    Args:
        log_probs: `[B, S, V]`, as of `ctc.frame_log_probs`, the whole vocabulary.
        mask: `[B, S]` bool, True for real frames.
        size: K.
        eos_id: the token written after the last label.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, but is {size} instead.")
    labels = log_probs.at[:, :, BLANK].set(-jnp.inf)
    best, tokens = lax.top_k(labels, min(log_probs.shape[-1], 2 * size))

    def advance(beam: Prefixes, frame: tuple[Array, ...]) -> tuple[Prefixes, tuple[Array, Array]]:
        now, best, tokens, real = frame
        after, parents, emitted = _take_frame(beam, now, best, tokens.astype(jnp.int32))
        stays = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), parents.shape)
        after = jax.tree.map(lambda a, b: jnp.where(real.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), after, beam)
        real = real[:, None]
        return after, (jnp.where(real, parents, stays), jnp.where(real, emitted, BLANK))

    frames = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (log_probs, best, tokens, mask))
    beam, history = lax.scan(advance, _start(log_probs, size), frames)
    scores, order = lax.top_k(beam.total, size)
    emitted = _trace(order, *history)
    written, lengths = spell(emitted, eos_id)
    possible = scores > -jnp.inf
    return Hypotheses(
        tokens=jnp.where(possible[:, :, None], written, BLANK),
        lengths=jnp.where(possible, lengths, 0),
        scores=scores,
        log_probs=scores,
        finished=possible,
    )


def _start(log_probs: Array, size: int) -> Prefixes:
    """The empty prefix alone."""
    shape = (log_probs.shape[0], size)
    nothing = jnp.full_like(log_probs, -jnp.inf, shape=shape)
    zeros = jnp.zeros_like(log_probs, jnp.uint32, shape=(*shape, 2))
    return Prefixes(
        label=nothing,
        blank=nothing.at[:, 0].set(0.0),
        last=jnp.full_like(log_probs, BLANK, jnp.int32, shape=shape),
        code=zeros,
        parent=zeros,
    )


def _take_frame(beam: Prefixes, now: Array, best: Array, tokens: Array) -> tuple[Prefixes, Array, Array]:
    """The beam after a frame; its parents and what they took, both `[B, K]`.

    Args:
        beam: The beam before.
        now: `[B, V]`, the frame's log-probabilities.
        best, tokens: `[B, M]`, of the labels that prefixes may take.
    """
    rows, size = beam.last.shape
    total = beam.total
    grown = jnp.where(tokens[:, None, :] == beam.last[:, :, None], beam.blank[:, :, None], total[:, :, None])
    grown = grown + best[:, None, :]  # [B, K, M]

    # 1. Prefix i, which takes the last label of prefix j, is prefix j.
    alive = total > -jnp.inf
    same = jnp.all(beam.code[:, :, None] == beam.parent[:, None], axis=-1)
    same &= alive[:, :, None] & (alive & (beam.last != BLANK))[:, None, :]  # [B, i, j]
    again = jnp.take_along_axis(now, beam.last, axis=1)
    arriving = jnp.where(beam.last[:, :, None] == beam.last[:, None, :], beam.blank[:, :, None], total[:, :, None])
    arriving = jnp.max(jnp.where(same, arriving, -jnp.inf), axis=1) + again  # one i at most
    taken = jnp.any(same[..., None] & (beam.last[:, None, :, None] == tokens[:, None, None, :]), axis=2)
    grown = jnp.where(taken, -jnp.inf, grown)

    # 2. Those that stay as they are.
    blank = total + now[:, BLANK, None]
    label = jnp.where(beam.last == BLANK, -jnp.inf, jnp.logaddexp(beam.label + again, arriving))
    stay = jnp.logaddexp(blank, label)

    # 3. The best of all.
    _, chosen = lax.top_k(jnp.concatenate([stay, grown.reshape(rows, -1)], axis=1), size)
    stays = chosen < size
    place = jnp.where(stays, 0, chosen - size)
    parents = jnp.where(stays, chosen, place // grown.shape[-1]).astype(jnp.int32)
    emitted = jnp.where(stays, BLANK, jnp.take_along_axis(tokens, place % grown.shape[-1], axis=1))
    code = gather_beams(beam.code, parents)
    beam = Prefixes(
        label=jnp.where(stays, gather_beams(label, parents), gather_beams(grown.reshape(rows, -1), place)),
        blank=jnp.where(stays, gather_beams(blank, parents), -jnp.inf),
        last=jnp.where(stays, gather_beams(beam.last, parents), emitted),
        code=jnp.where(stays[..., None], code, _add(code, emitted)),
        parent=jnp.where(stays[..., None], gather_beams(beam.parent, parents), code),
    )
    return beam, parents, emitted


def _add(code: Array, token: Array) -> Array:
    """The code of a prefix with one more label."""
    mixed = (code + token[..., None].astype(jnp.uint32) + 1) * jnp.array([0x9E3779B1, 0x85EBCA77], jnp.uint32)
    return mixed ^ (mixed >> jnp.array([15, 13], jnp.uint32))


def _trace(order: Array, parents: Array, emitted: Array) -> Array:
    """The labels `[B, K, S]`, each where it was taken, of the last beam's prefixes `[B, K]`; from `[S, B, K]`."""

    def step_back(beams: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        return gather_beams(now[0], beams), gather_beams(now[1], beams)

    _, labels = lax.scan(step_back, order.astype(jnp.int32), (parents, emitted), reverse=True)
    return jnp.moveaxis(labels, 0, 2)
