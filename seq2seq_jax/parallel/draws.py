"""Random draws keyed by what is drawn for, and tokens drawn by them from a vocabulary, whole or split.

A token is found where a uniform number falls in the cumulated probabilities: one random number a token,
not one for every entry of the vocabulary. The search goes from parts (devices) to blocks to columns, so
that only sums of parts are sent, and no long array is cumulated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from seq2seq_jax.interfaces import Array

_BLOCK = 128  # columns in a block


def keyed_uniform(key: Array, *numbers: Array) -> Array:
    """Draws from [0, 1), float32, one for every place of the numbers' common shape and a function of them alone.

    Args:
        key: a new-style PRNG key.
        *numbers: int32 arrays that broadcast to one shape, such as rows `[B, 1]` and times `[T]`.
    """
    together = jnp.broadcast_arrays(*numbers)

    def draw(*place: Array) -> Array:
        own = key
        for number in place:
            own = jax.random.fold_in(own, number)
        return jax.random.uniform(own)

    return jax.vmap(draw)(*(number.reshape(-1) for number in together)).reshape(together[0].shape)


def draw_tokens(weights: Array, uniform: Array, *, axes: tuple[str, ...] = (), idle: str | None = None) -> Array:
    """The token whose share of the cumulated weights holds a number of [0, 1).

    A token of weight zero is never drawn, as long as any weight is positive. Over a split vocabulary all
    devices draw the same token, that of the whole vocabulary up to the rounding of sums.

    Args:
        weights: `[..., V]` float32, not negative, of any sum; or this device's part of them.
        uniform: `[...]` in [0, 1).
        axes: inside `jax.shard_map`, the mesh axes over which the vocabulary is split, in the order of the tokens.
        idle: a mesh axis of which only one device has weights, the others zeros.

    Returns:
        `[...]` int32.
    """
    if not axes:
        return _pick_in_blocks(weights, uniform * jnp.sum(weights, axis=-1))
    own = jnp.sum(weights, axis=-1)
    part_total = lax.psum(own, idle) if idle else own
    totals = lax.all_gather(part_total[..., None], axes, axis=own.ndim, tiled=True)  # [..., parts]
    part, rest = _pick(totals, uniform * jnp.sum(totals, axis=-1))
    token = lax.axis_index(axes) * weights.shape[-1] + _pick_in_blocks(weights, rest)
    mine = (part == lax.axis_index(axes)) & (own > 0)
    return lax.psum(jnp.where(mine, token, 0), axes + ((idle,) if idle else ()))


def _pick(weights: Array, point: Array) -> tuple[Array, Array]:
    """The first entry `[...]` int32 whose cumulated weight is above `point` `[...]`, and what is left of the point."""
    cumulated, positive = jnp.cumsum(weights, axis=-1), weights > 0
    hit = (cumulated > point[..., None]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)  # where rounding left the point outside
    index = jnp.where(hit.any(axis=-1), jnp.argmax(hit, axis=-1), last).astype(jnp.int32)
    before = jnp.take_along_axis(cumulated - weights, index[..., None], axis=-1)[..., 0]
    return index, jnp.maximum(point - before, 0.0)


def _pick_in_blocks(weights: Array, point: Array) -> Array:
    """As `_pick`, over a long axis."""
    width = weights.shape[-1]
    blocks = -(-width // _BLOCK)
    fill = [(0, 0)] * (weights.ndim - 1) + [(0, blocks * _BLOCK - width)]
    weights = jnp.pad(weights, fill).reshape(*weights.shape[:-1], blocks, _BLOCK)
    block, rest = _pick(jnp.sum(weights, axis=-1), point)
    chosen = jnp.take_along_axis(weights, block[..., None, None], axis=-2)[..., 0, :]
    return block * _BLOCK + _pick(chosen, rest)[0]
