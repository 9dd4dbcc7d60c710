"""Inside `shard_map`, every value is known to be alike on the devices of some mesh axes and to vary over others."""

from __future__ import annotations

import jax
from jax import lax

from seq2seq_jax.interfaces import Array


def varying_axes(x: Array) -> frozenset[str]:
    """The mesh axes that a value varies over; none outside `shard_map`."""
    return jax.typeof(x).manual_axis_type.varying


def vary_over(x: Array, axes: frozenset[str] | tuple[str, ...]) -> Array:
    """The same value, marked as varying over some axes too: what a loop's carry needs if its body makes it so.

    The gradient of what is marked here is summed over these axes here.
    """
    missing = tuple(sorted(set(axes) - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x
