"""Source and target of every row as one text without a gap: real tokens first, all padding last.

    [s1 s2 s3 .  .  | t1 t2 .]  ─►  [s1 s2 s3 t1 t2 .  .  . ]

Where rows are packed, the sides of each example come together: [s1 t1 s2 t2 ...]. A joining is a permutation of the
columns of [source | target], row by row. It is moved by and back by look-ups alone, in the backward pass, too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int

from seq2seq_jax.interfaces import Array, Packing


@struct.dataclass
class Joining:
    """How the columns of [source | target] come together; P = S + T.

    Attributes:
        order: `[B, P]` int32: which column comes to each place.
        places: `[B, P]` int32: the place that each column comes to.
        target_positions: `[B, T]` int32, counted from the beginning of the source that each target follows.
        segments: `[B, P]` int32 in joined order, 0 for padding; None where each row is one example.
    """

    order: Array
    places: Array
    target_positions: Array
    segments: Array | None = None

    def take_source(self, mask: Bool[Array, "B S"]) -> Bool[Array, "B P"]:
        """Which places are of the source and real."""
        wide = jnp.pad(mask, ((0, 0), (0, self.order.shape[1] - mask.shape[1])))
        return jnp.take_along_axis(wide, self.order, axis=1)


def join_rows(source_mask: Bool[Array, "B S"], target_length: int) -> Joining:
    """The joining of rows of one example each, whose padding comes last."""
    room, lengths = source_mask.shape[1], jnp.sum(source_mask, axis=-1, dtype=jnp.int32)[:, None]
    columns = jnp.arange(room + target_length, dtype=jnp.int32)
    source, target = columns[None, :room], columns[None, :target_length]
    # What pads the source goes behind all of the target.
    places = jnp.concatenate([source + jnp.where(source < lengths, 0, target_length), lengths + target], axis=1)
    behind = jnp.where(columns < lengths + target_length, columns - lengths + room, columns - target_length)
    return Joining(jnp.where(columns < lengths, columns, behind), places, lengths + target)


def join_packed(packing: Packing) -> Joining:
    """The joining of rows of several examples."""
    source, target = packing.source_segments, packing.target_segments
    columns = jnp.concatenate([2 * source, 2 * target + 1], axis=1)  # the order of all, each in its own order
    real = jnp.concatenate([source, target], axis=1) > 0
    order = jnp.argsort(jnp.where(real, columns, jnp.iinfo(jnp.int32).max), axis=1, stable=True).astype(jnp.int32)
    places = jnp.argsort(order, axis=1).astype(jnp.int32)
    lengths = jnp.sum(source[:, None, :] == target[:, :, None], axis=-1, dtype=jnp.int32)  # [B, T]
    segments = jnp.take_along_axis(jnp.concatenate([source, target], axis=1), order, axis=1)
    positions = jnp.where(target > 0, lengths + packing.target_positions, 0)
    return Joining(order, places, positions, segments)


@jax.custom_vjp
def move(x: Float[Array, "B P D"], order: Int[Array, "B P"], places: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Row by row the columns `order` of `x`; `places` is the permutation back, by which gradients go."""
    del places
    return jnp.take_along_axis(x, order[..., None], axis=1)


def _move_forward(x: Array, order: Array, places: Array) -> tuple[Array, tuple[Array, Array]]:
    return move(x, order, places), (order, places)


def _move_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    order, places = saved
    return move(gradient, places, order), None, None


move.defvjp(_move_forward, _move_backward)
