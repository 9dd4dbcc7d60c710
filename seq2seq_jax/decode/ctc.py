"""Outputs of frames by connectionist temporal classification: what a path of labels spells, and the best path.

A path has a label or a blank a frame; repeats are merged, then blanks go (Graves et al. 2006). The blank is token 0,
the padding token, which no output has. `ctc_beam` searches frame by frame, `ctc_prefix` label by label.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from seq2seq_jax.decode.steps import normalise_logits
from seq2seq_jax.interfaces import Array, Hypotheses

BLANK = 0


def frame_log_probs(
    logits: Float[Array, "B S V"],
    mask: Bool[Array, "B S"],
    *,
    forbidden: tuple[int, ...] = (),
    vocab_axes: tuple[str, ...] = (),
    vocab_size: int | None = None,
) -> Float[Array, "B S V"]:
    """The log-softmax of every frame, float32; a padded frame is blank for certain, so that it spells nothing.

    Args:
        logits: `[B, S, V]`, or this device's columns.
        mask: `[B, S]` bool, True for real frames.
        forbidden: tokens that no frame has, such as bos and eos: their share goes to the others.
        vocab_axes: the mesh axes over which the columns are split, in parts of one width, in the order of the tokens.
        vocab_size: the true number of tokens where there are more columns; None if there are not.
    """
    width = logits.shape[-1]
    columns = jnp.arange(width) + (lax.axis_index(vocab_axes) * width if vocab_axes else 0)
    allowed = ~jnp.isin(columns, jnp.asarray(forbidden, jnp.int32))
    if vocab_size is not None:
        allowed &= columns < vocab_size
    log_probs = normalise_logits(jnp.where(allowed, logits.astype(jnp.float32), -jnp.inf), vocab_axes)
    return jnp.where(mask[:, :, None], log_probs, jnp.where(columns == BLANK, 0.0, -jnp.inf))


def best_path(
    log_probs: Float[Array, "B S V"], mask: Bool[Array, "B S"], *, eos_id: int
) -> tuple[Hypotheses, Int[Array, "B K T 2"]]:
    """What the most probable path spells, and when (Graves et al. 2006, section 3.2).

    Args:
        log_probs: `[B, S, V]`, as of `frame_log_probs`.
        mask: `[B, S]` bool, True for real frames.
        eos_id: the token written after the last label.

    Returns:
        One hypothesis a row, of T = S + 1 tokens at most, whose score is the path's log-probability: that of the
        output is above it, as other paths spell it too. And first and last frame of every label, -1 elsewhere.
    """
    path = jnp.where(mask, jnp.argmax(log_probs, axis=-1), BLANK).astype(jnp.int32)
    best = jnp.sum(jnp.where(mask, jnp.max(log_probs, axis=-1), 0.0), axis=-1)[:, None]
    begins = (path != BLANK) & (path != jnp.pad(path[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK))
    ends = (path != BLANK) & (path != jnp.pad(path[:, 1:], ((0, 0), (0, 1)), constant_values=BLANK))
    frames = jnp.broadcast_to(jnp.arange(path.shape[1], dtype=jnp.int32), path.shape)
    tokens, lengths = _write(path, begins, eos_id)
    first, last = (_pack(frames, here, -1)[0] for here in (begins, ends))
    found = Hypotheses(
        tokens=tokens[:, None],
        lengths=lengths[:, None],
        scores=best,
        log_probs=best,
        finished=jnp.ones_like(best, bool),
    )
    return found, jnp.stack([first, last], axis=-1)[:, None]


def spell(emitted: Int[Array, "*B S"], eos_id: int) -> tuple[Int[Array, "*B T"], Int[Array, "*B"]]:
    """The outputs `[..., S + 1]` of labels each at its frame, blank at others, and their lengths, eos included."""
    return _write(emitted, emitted != BLANK, eos_id)


def _write(labels: Array, here: Array, eos_id: int) -> tuple[Array, Array]:
    tokens, count = _pack(labels, here, BLANK)
    return jnp.where(jnp.arange(tokens.shape[-1]) == count[..., None], eos_id, tokens), count + 1


def _pack(values: Array, here: Array, fill: int) -> tuple[Array, Array]:
    """The values `[..., S]` where `here`, moved to the front of `[..., S + 1]`; and how many there are."""
    frames = values.shape[-1]
    flat_values, flat_here = values.reshape(-1, frames), here.reshape(-1, frames)
    places = jnp.where(flat_here, jnp.cumsum(flat_here, axis=-1) - 1, frames + 1)  # beyond the end: dropped
    packed = jnp.full_like(flat_values, fill, shape=(len(flat_values), frames + 1))
    packed = packed.at[jnp.arange(len(packed))[:, None], places].set(flat_values, mode="drop")
    count = jnp.sum(flat_here, axis=-1, dtype=jnp.int32)
    return packed.reshape(*values.shape[:-1], frames + 1), count.reshape(values.shape[:-1])
