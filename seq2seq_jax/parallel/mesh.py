"""The mesh of devices."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data",)


def make_mesh(*, data: int = -1, rows_multiple: int = 8) -> Mesh:
    """A mesh over `data` devices; -1 takes as many as there are and divide the rows of a batch.

    Args:
        data: devices that share a batch.
        rows_multiple: what the rows of every batch divide by.

    Raises:
        ValueError: `data` is more than the devices there are, not positive, or does not divide the rows.
    """
    devices = jax.devices()
    fitting = [n for n in range(1, len(devices) + 1) if rows_multiple % n == 0]
    size = fitting[-1] if data == -1 else data
    if size in range(1, len(devices) + 1) and size not in fitting:
        raise ValueError(
            f"`parallel.data` must divide {rows_multiple}, as the rows of every batch do, but is {data} instead; "
            f"use one of {', '.join(map(str, fitting))}."
        )
    if not 1 <= size <= len(devices):
        raise ValueError(
            f"`parallel.data` must be between 1 and the {len(devices)} devices there are (or -1 for all), "
            f"but is {data} instead."
        )
    return jax.make_mesh((size,), AXES, devices=devices[:size], axis_types=(AxisType.Auto,))
