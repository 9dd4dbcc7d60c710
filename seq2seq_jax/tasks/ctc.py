"""Connectionist temporal classification: the loss of frames that are labelled without being told when.

loss = -log sum over the paths π that spell the labels of prod_s p_s(π_s)       (Graves et al. 2006, equations 3 and 8)

A path has one label or a blank a frame; repeated labels are merged, then blanks go. The blank is token 0, the
padding token, which no output has.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from seq2seq_jax.decode.ctc import BLANK
from seq2seq_jax.interfaces import Array

_IMPOSSIBLE = -1e30  # log 0: below what any path can have, and summed over all frames still a float32
_LARGEST = 1e15  # of a logit: so many frames of them have a finite sum


def count_needed(labels: Int[Array, "B N"], mask: Bool[Array, "B N"]) -> Int[Array, " B"]:
    """The fewest frames that can spell the labels: one each, and a blank between two that are the same.

    Args:
        labels: `[B, N]` int32.
        mask: `[B, N]` bool, True where a label is real; those come first.
    """
    repeats = (labels[:, 1:] == labels[:, :-1]) & mask[:, 1:] & mask[:, :-1]
    return jnp.sum(mask, axis=-1, dtype=jnp.int32) + jnp.sum(repeats, axis=-1, dtype=jnp.int32)


def ctc_losses(
    logits: Float[Array, "B S V"],
    mask: Bool[Array, "B S"],
    labels: Int[Array, "B N"],
    label_mask: Bool[Array, "B N"],
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """The loss of every row, and which rows have a path at all.

    Values and gradients are finite for whatever is finite where the mask is True, and for infinite logits too. A row
    without a path (fewer frames than `count_needed`) has loss 0 and teaches nothing.

    Args:
        logits: `[B, S, V]`, any float; the softmax is taken in float32. Column 0 is the blank.
        mask: `[B, S]` bool, True for real frames.
        labels: `[B, N]` int32, none of them the blank.
        label_mask: `[B, N]` bool, True where a label is real; those come first.

    Returns:
        `[B]` float32 and `[B]` bool.
    """
    possible = count_needed(labels, label_mask) <= jnp.sum(mask, axis=-1)
    label_mask = label_mask & possible[:, None]
    logits = jnp.where(mask[:, :, None], logits.astype(jnp.float32), 0.0)
    if not mask.shape[1]:
        logits, mask = jnp.pad(logits, ((0, 0), (0, 1), (0, 0))), jnp.pad(mask, ((0, 0), (0, 1)))
    if not labels.shape[1]:
        labels, label_mask = jnp.pad(labels, ((0, 0), (0, 1))), jnp.pad(label_mask, ((0, 0), (0, 1)))
    with jax.default_matmul_precision("highest"):  # log-probabilities are picked by a product with ones and zeros
        losses = optax.ctc_loss(
            jnp.clip(logits, -_LARGEST, _LARGEST),
            1.0 - mask.astype(jnp.float32),
            jnp.where(label_mask, labels, BLANK),
            1.0 - label_mask.astype(jnp.float32),
            blank_id=BLANK,
            # As an array made of the logits: inside `shard_map` a loop's state must vary as what it becomes does.
            log_epsilon=jnp.zeros_like(logits, shape=()) + _IMPOSSIBLE,
        )
    return jnp.where(possible, losses, 0.0), possible
