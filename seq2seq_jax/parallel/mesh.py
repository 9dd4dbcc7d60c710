"""The mesh of devices: four axes, always all of them, some of size one.

| axis     | what is split over it                                                            |
|----------|----------------------------------------------------------------------------------|
| `data`   | rows of a batch; every part has all parameters                                   |
| `fsdp`   | rows of a batch, and with them parameters and optimizer state at rest (ZeRO)     |
| `tensor` | the vocabulary (and, in models that have them, heads and feed-forward layers)    |
| `stage`  | layers; neighbours in the stack are neighbours here, so that is the inmost axis  |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "stage")
"""In the order of the mesh; a batch's rows are split over all of them, in this order, wherever nothing else is."""


def make_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    stage: int = 1,
    tensor: int = 1,
    rows_multiple: int = 8,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over the devices there are (or those given).

    Args:
        data, fsdp, stage, tensor: sizes; one of them may be -1, "what is left": as many as there are
            devices for and the rows of a batch divide by.
        rows_multiple: what the rows of every batch divide by; the mesh's size must divide it.
        devices: to build it of; all there are by default.

    Raises:
        ValueError: the sizes do not fit the devices or the rows.
    """
    found = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "stage": stage}
    said = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "data=1"
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"`parallel.{name}` must be at least 1, or -1 for what is left, but is {size} instead.")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"`parallel.{open_axes[1]}` must be a number where `parallel.{open_axes[0]}` is -1.")
    if open_axes:
        sizes[open_axes[0]] = 1
        fixed = math.prod(sizes.values())
        fitting = [n for n in range(1, len(found) // fixed + 1) if rows_multiple % (fixed * n) == 0]
        sizes[open_axes[0]] = fitting[-1] if fitting else 1
    size = math.prod(sizes.values())
    if size > len(found):
        raise ValueError(
            f"`parallel` asks for {said}: {size} devices or more, but there are {len(found)}; make a size smaller."
        )
    if rows_multiple % size:
        raise ValueError(
            f"`parallel` {said} makes {size} devices, which must divide the rows of every batch, but those are "
            f"multiples of {rows_multiple}; set config.data.rows_multiple to a multiple of {size}."
        )
    if jax.process_count() > 1 and devices is None and size != len(found):
        raise ValueError(
            f"`parallel` {said} makes {size} devices, but with several hosts all {len(found)} must be used; "
            "set config.data.rows_multiple or one axis to -1."
        )
    return Mesh(np.array(found[:size]).reshape([sizes[name] for name in AXES]), AXES, axis_types=(AxisType.Auto,) * 4)
