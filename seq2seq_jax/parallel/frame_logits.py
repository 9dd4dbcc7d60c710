"""Logits of frames over all of a vocabulary whose projection is split across devices.

CTC sums over paths: it reads a frame's logits of all labels, a row's frames one after the other. So where `softmax`
never lets logits travel, here they do, once:

    hidden [B, S, D] ──all_gather──▶ [G B, S, D] ──product──▶ [G B, S, V / G] ──all_to_all──▶ [B, S, V]

Every device makes the columns that it has weights for, of the rows of the whole group, and gets those of its own rows
in exchange: as many numbers as it had made.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.parallel.softmax import WHOLE, VocabularySplit
from seq2seq_jax.parallel.varying import vary_over, varying_axes


def frame_logits(
    hidden: Float[Array, "B S D"],
    kernel: Float[Array, "V D"],
    bias: Float[Array, " V"],
    *,
    split: VocabularySplit = WHOLE,
    vocab_size: int | None = None,
) -> Float[Array, "B S _"]:
    """The logits of this device's rows over the whole vocabulary.

    Args:
        hidden: `[B, S, D]`; its dtype is the one that the product is made in.
        kernel: `[V, D]` float32, or this device's part, the last one filled up with anything.
        bias: `[V]` float32, likewise.
        split: how devices share the vocabulary.
        vocab_size: of the whole vocabulary, where the kernel may be filled up.

    Returns:
        `[B, S, vocab_size]` float32; columns that only fill up are gone.
    """

    def project(hidden: Array, kernel: Array, bias: Array) -> Array:
        product = jnp.einsum("bsd,vd->bsv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return product + bias

    given = split.rows(hidden), kernel, bias
    # Gradients are summed over the devices of one part where this is marked: not where only some of them compute.
    axes = frozenset[str]().union(*map(varying_axes, given))
    logits = _exchange(split.where_working(project, *(vary_over(x, axes) for x in given)), split)
    return logits if vocab_size is None else logits[..., :vocab_size]


def _exchange(logits: Array, split: VocabularySplit) -> Array:
    """This device's rows over all columns, of the group's rows over its columns."""
    if not split.gather:
        return lax.all_gather(logits, split.axes, axis=2, tiled=True) if split.axes else logits
    logits = lax.all_to_all(logits, split.gather, split_axis=0, concat_axis=2, tiled=True)
    # The parts arrive in the order of the devices: of those that only differ in where they idle, the last has worked.
    sizes = [lax.axis_size(axis) for axis in split.gather]
    parts = logits.reshape(*logits.shape[:2], *sizes, -1)
    places = {axis: 2 + number for number, axis in enumerate(split.gather)}
    idle = [axis for axis in split.gather if axis not in split.axes]
    for axis in idle:
        parts = lax.slice_in_dim(parts, parts.shape[places[axis]] - 1, None, axis=places[axis])
    order = [places[axis] for axis in (*split.axes, *idle)]
    return parts.transpose(0, 1, *order, parts.ndim - 1).reshape(*logits.shape[:2], -1)
