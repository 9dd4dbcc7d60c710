"""How a Transformer knows where a token stands: three ways to tell, none of which reads anything but numbers.

    sinusoidal    added to the embeddings            (Vaswani et al. 2017, 1706.03762, section 3.5)
    rotary        queries and keys are turned        (Su et al. 2021, 2104.09864, section 3.4.2)
    relative      added to the scores, by distance   (Raffel et al. 2020, 1910.10683, section 2.1)

Positions are arguments, `[B, T]` or `[1, T]` where all rows count alike: packed rows count within each segment, and a
step of a search has its own clock.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from seq2seq_jax.interfaces import Array

LONGEST_WAVE = 10_000.0
"""The longest wave is this many times 2 pi, in positions."""


def sinusoids(positions: Int[Array, "*B"], features: int) -> Float[Array, "*B {features}"]:
    """Sines and cosines of a position, at wave lengths from 2 pi to 10,000 times that (section 3.5 of the paper).

    Sines fill the first half and cosines the second, as in the authors' program; the paper's equation has them in
    turn, which is the same but for the order of features.

    Args:
        positions: `[...]` int32, from 0.
        features: D, even.

    Returns:
        `[..., D]` float32.
    """
    if features % 2:
        raise ValueError(f"the features of sinusoidal positions must be even, but are {features} instead.")
    angles = _angles(positions, features)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x: Float[Array, "B T N H"], positions: Int[Array, "#B T"]) -> Float[Array, "B T N H"]:
    """Turns queries or keys by their position, so that their product knows how far apart they stand, and no more.

    Feature i and feature i + H / 2 are a point in the plane, turned by `position * 10000^(-2i / H)` (equation 34; the
    paper pairs neighbours, which is the same but for the order of features). Angles are float32.

    Args:
        x: `[B, T, N, H]`, H even.
        positions: `[B, T]`, or `[1, T]` for all rows.

    Returns:
        `[B, T, N, H]` in the dtype of `x`.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"the width of a head with rotary positions must be even, but is {width} instead.")
    angles = _angles(positions, width)[:, :, None]
    sines, cosines = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _angles(positions: Array, features: int) -> Array:
    """`position * 10000^(-2i / features)` for i below half the features, float32 `[..., features / 2]`."""
    rates = LONGEST_WAVE ** (-2.0 * np.arange(features // 2) / features)  # float64, rounded once
    return positions[..., None].astype(jnp.float32) * jnp.asarray(rates, jnp.float32)


def make_distances(queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]) -> Int[Array, "#B T S"]:
    """How far each key stands after each query, `[B, T, S]`; negative is before. From positions `[B, T]`, `[B, S]`."""
    return keys[:, None, :] - queries[:, :, None]


def make_buckets(distances: Int[Array, "*B"], *, buckets: int, max_distance: int, both_ways: bool) -> Int[Array, "*B"]:
    """The bucket of a distance: short ones have a bucket each, longer ones share, ever more of them.

    Half of the buckets of a direction are for the distances 0, 1, ...; the other half grows by a constant factor up to
    `max_distance`, and all that is further is in the last one (section 2.1 of Raffel et al. 2020, and their program).
    The bounds are exact integers, so that every platform draws them alike.

    Args:
        distances: key's position less query's, `[...]` int32.
        buckets: of both directions together.
        max_distance: from here on all distances share a bucket.
        both_ways: tell keys after the query apart from those before (the second half of the buckets); False, for a
            decoder: keys after the query, which it sees at most in a given prefix, count as the query itself.

    Returns:
        `[...]` int32, in [0, buckets).
    """
    own = buckets // 2 if both_ways else buckets
    bounds = jnp.asarray(_bounds(own, max_distance), jnp.int32)
    far = jnp.abs(distances) if both_ways else jnp.maximum(-distances, 0)
    bucket = jnp.sum(far[..., None] >= bounds, axis=-1, dtype=jnp.int32)
    return bucket + own * (distances > 0).astype(jnp.int32) if both_ways else bucket


def _bounds(buckets: int, max_distance: int) -> list[int]:
    """The least distance of each bucket but the first, of one direction."""
    exact = buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"relative positions must have 2 buckets a direction at least, and a longest distance above half of them, "
            f"but have {buckets} and {max_distance} instead."
        )
    bounds, shared = list(range(1, exact + 1)), buckets - exact
    for number in range(1, shared):  # least d with log(d / exact) / log(max_distance / exact) * shared >= number
        distance, least = bounds[-1], exact ** (shared - number) * max_distance**number
        while distance**shared < least:
            distance += 1
        bounds.append(distance)
    return bounds


def make_bias(
    table: Float[Array, "R N"], distances: Int[Array, "*B T S"], *, max_distance: int, both_ways: bool
) -> Float[Array, "*B N T S"]:
    """What relative positions add to the scores of every head, made once for all layers that share a table.

    Args:
        table: `[buckets, N]`, learned.
        distances: `[B, T, S]` or `[1, T, S]`; see `make_distances`.
        max_distance: see `make_buckets`, as is `both_ways`.

    Returns:
        `[B, N, T, S]` or `[1, N, T, S]`, in the dtype of the table.
    """
    chosen = make_buckets(distances, buckets=table.shape[0], max_distance=max_distance, both_ways=both_ways)
    return jnp.moveaxis(table[chosen], -1, -3)
