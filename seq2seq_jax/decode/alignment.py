"""When each label of a known output was said: the best of the CTC paths that spell it, and its frames.

Viterbi over blank, label, blank, label, ..., blank: from one frame to the next a path stays, goes on, or skips the
blank between two labels that differ (Graves et al. 2006, section 4.1, with the largest in the place of the sum).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from seq2seq_jax.decode.ctc import BLANK
from seq2seq_jax.interfaces import Array


def align(
    log_probs: Float[Array, "B S V"],
    mask: Bool[Array, "B S"],
    labels: Int[Array, "B N"],
    label_mask: Bool[Array, "B N"],
) -> Int[Array, "B N 2"]:
    """First and last frame of each label on the best path, int32; -1 for padding, and in rows that have no path.

    Args:
        log_probs: `[B, S, V]`, as of `ctc.frame_log_probs`.
        mask: `[B, S]` bool, True for real frames; those come first.
        labels: `[B, N]` int32, none of them the blank.
        label_mask: `[B, N]` bool, True where a label is real; those come first.
    """
    rows, most = labels.shape
    if not mask.shape[1] or not most:
        return jnp.full_like(labels, -1, jnp.int32, shape=(rows, most, 2))
    count = jnp.sum(label_mask, axis=-1, dtype=jnp.int32)
    states = jnp.full_like(labels, BLANK, shape=(rows, 2 * most + 1)).at[:, 1::2].set(labels)
    path, possible = _find_path(log_probs, mask, states, count)
    frames = jnp.arange(mask.shape[1], dtype=jnp.int32)
    here = (path[:, None, :] == 2 * jnp.arange(most)[:, None] + 1) & mask[:, None, :]  # [B, N, S]
    first = jnp.min(jnp.where(here, frames, mask.shape[1]), axis=-1)
    last = jnp.max(jnp.where(here, frames, -1), axis=-1)
    known = (label_mask & possible[:, None])[:, :, None]
    return jnp.where(known, jnp.stack([first, last], axis=-1), -1).astype(jnp.int32)


def _find_path(log_probs: Array, mask: Array, states: Array, count: Array) -> tuple[Array, Array]:
    """The best path as places `[B, S]` in `states [B, 2 N + 1]`, and whether there is any; `count [B]` labels."""
    places = jnp.arange(states.shape[1])
    emitted = jnp.take_along_axis(log_probs, states[:, None, :].astype(jnp.int32), axis=2)  # [B, S, 2 N + 1]
    emitted = jnp.where(mask[:, :, None], emitted.astype(jnp.float32), 0.0)
    skips = (states != BLANK) & (states != _shift(states, 2, BLANK))

    def forward(best: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        now, real = frame
        ways = [best, _shift(best, 1, -jnp.inf), jnp.where(skips, _shift(best, 2, -jnp.inf), -jnp.inf)]
        arrived = jnp.stack(ways)
        moves = jnp.where(real[:, None], jnp.argmax(arrived, axis=0), 0).astype(jnp.int8)
        return jnp.where(real[:, None], jnp.max(arrived, axis=0) + now, best), moves

    # Before the first frame, at the first blank's place: staying leads to it and going on to the first label; it
    # cannot skip to what follows, as the blank after the first label lies two places on.
    start = jnp.where(places == 0, jnp.zeros_like(emitted[:, 0]), -jnp.inf)
    best, moves = lax.scan(forward, start, (jnp.moveaxis(emitted, 1, 0), mask.T))
    ends = jnp.stack([2 * count, jnp.maximum(2 * count - 1, 0)], axis=1)  # [B, 2]: in the last blank or label
    scores = jnp.take_along_axis(best, ends, axis=1)
    place = jnp.take_along_axis(ends, jnp.argmax(scores, axis=1, keepdims=True), axis=1)[:, 0]

    def back(place: Array, moves: Array) -> tuple[Array, Array]:
        return place - jnp.take_along_axis(moves, place[:, None], axis=1)[:, 0], place

    _, path = lax.scan(back, place, moves, reverse=True)
    return path.T, jnp.max(scores, axis=1) > -jnp.inf


def _shift(x: Array, by: int, fill: float | int) -> Array:
    """Every place's `[B, J]` value so many places before it."""
    return jnp.pad(x[:, :-by], ((0, 0), (by, 0)), constant_values=fill)
