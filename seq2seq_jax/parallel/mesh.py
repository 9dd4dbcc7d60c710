"""The mesh of devices."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data",)


def make_mesh(*, data: int = -1) -> Mesh:
    """A mesh over `data` devices; -1 takes all there are.

    Raises:
        ValueError: `data` is more than the devices there are, or not positive.
    """
    devices = jax.devices()
    size = len(devices) if data == -1 else data
    if not 1 <= size <= len(devices):
        raise ValueError(
            f"`parallel.data` must be between 1 and the {len(devices)} devices there are (or -1 for all), "
            f"but is {data} instead."
        )
    return jax.make_mesh((size,), AXES, devices=devices[:size], axis_types=(AxisType.Auto,))
