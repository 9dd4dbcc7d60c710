"""A bidirectional recurrent layer of a model: where there are two devices for a row, a direction on each."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.recurrent import LayerKind, LayerParameters, draw_noise, run_both, run_layer
from seq2seq_jax.parallel.layout import Execution


def run_directions(
    kind: LayerKind,
    execution: Execution,
    directions: tuple[LayerParameters, LayerParameters],
    x: Array,
    mask: Array,
    places: Array,
    *,
    key: Array | None,
) -> Array:
    """Runs both directions of a layer over whole sequences, from zeros.

    Args:
        kind: of both.
        execution: what to know of the devices.
        directions: the parameters of the layer ahead in time, and of the one backwards.
        x: `[S, B, D]`.
        mask: `[S, B]`, True where real.
        places: `[S, B, 2]`, what dropout is keyed by.
        key: of recurrent dropout; None is without.

    Returns:
        The outputs side by side, `[S, B, 2P]`, zero where masked.
    """

    def noise(direction: Array | int, places: Array) -> Array | None:
        return draw_noise(kind, None if key is None else jax.random.fold_in(key, direction), places)

    def run(own: tuple[LayerParameters, Array], x: Array, extras: tuple[Array, Array]) -> Array:
        mask, places = extras
        return run_layer(kind, own[0], (x,), mask, noise=noise(own[1], places))[0]

    ahead, back = directions
    both = execution.both_directions(run, (ahead, jnp.int32(0)), (back, jnp.int32(1)), x, (mask, places))
    if both is not None:
        return both
    return run_both(kind, ahead, back, x, mask, noise=(noise(0, places), noise(1, places)))
