"""Shardings of states and batches on a mesh, and the way from what is at rest to what the step computes with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.interfaces import Array, Batch, PyTree
from seq2seq_jax.parallel.layout import Layout
from seq2seq_jax.parallel.mesh import AXES
from seq2seq_jax.parallel.rules import NAMES, RULES, Rule

Split = tuple[tuple[str, ...], ...]
"""Mesh axes of every axis of an array: `(("stage",), (), ("fsdp",))`."""


def split_axes(
    names: tuple[str | None, ...], shape: tuple[int, ...], rules: tuple[Rule, ...], sizes: Mapping[str, int]
) -> Split:
    """Which mesh axes an array is split over: rules from the top, each mesh axis once, only where it divides.

    Raises:
        ValueError: a name that `rules.NAMES` does not hold.
    """
    unknown = [name for name in names if name is not None and name not in NAMES]
    if unknown:
        raise ValueError(f"the logical axis must be one of {', '.join(NAMES)}, but is {unknown[0]!r} instead.")
    chosen: list[tuple[str, ...]] = [()] * len(names)
    used: set[str] = set()
    for name, axes in rules:
        wanted = tuple(axis for axis in axes if sizes[axis] > 1 and axis not in used)
        for n, (own, length) in enumerate(zip(names, shape, strict=True)):
            ways = math.prod(sizes[axis] for axis in (*chosen[n], *wanted))
            if own == name and wanted and length % ways == 0:
                chosen[n] = (*chosen[n], *wanted)
                used.update(wanted)
                break
    return tuple(chosen)


def to_spec(split: Split) -> PartitionSpec:
    """The same as a PartitionSpec."""
    return PartitionSpec(*(axes or None for axes in split))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter: its logical axes, its whole shape, and where it is split.

    Attributes:
        names: logical axes.
        shape: of the whole array.
        at_rest: mesh axes of every axis between steps.
        compute: the same inside the step; an axis they do not divide is padded there.
    """

    names: tuple[str | None, ...]
    shape: tuple[int, ...]
    at_rest: Split
    compute: Split


def plan_leaves(boxed: PyTree, layout: Layout, *, layers_here: bool = False) -> PyTree:
    """A `Leaf` for every array of a tree whose parameters carry logical axis names.

    Args:
        boxed: the tree.
        layout: its mesh and strategy.
        layers_here: compute with all layers, their heads and columns on every device, as a search does.
    """
    table, sizes = RULES[layout.strategy], layout.mesh.shape
    kept = tuple(rule for rule in table.compute if not (layers_here and rule[0] in ("layers", "heads", "mlp")))

    def plan(box: Any) -> Leaf:
        named = isinstance(box, nn.LogicallyPartitioned)
        shape = tuple((box.value if named else box).shape)
        names = tuple(box.names) if named else (None,) * len(shape)
        compute = tuple(_compute_axes(name, kept, sizes) for name in names)
        return Leaf(names, shape, split_axes(names, shape, table.at_rest, sizes), compute)

    return jax.tree.map(plan, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def _compute_axes(name: str | None, rules: tuple[Rule, ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
    return next((tuple(axis for axis in axes if sizes[axis] > 1) for own, axes in rules if own == name), ())


def arrange(leaf: Leaf, part: Array) -> Array:
    """Inside `shard_map`: this device's part at rest to its part for the step.

    What is split along another axis at rest moves by an all-to-all, all else is gathered;
    differentiation gives the way back (all-to-all, reduce-scatter). Where the parts of an axis would not
    be equal it is padded with zeros at its end.
    """
    due: dict[int, list[str]] = {}  # axis of the array -> mesh axes that it has yet to be split over, in order
    for n, axes in enumerate(leaf.compute):
        if leaf.at_rest[n][: len(axes)] != axes:
            due[n] = list(axes)
            fill = [(0, 0)] * part.ndim
            fill[n] = (0, -part.shape[n] % math.prod(lax.axis_size(axis) for axis in axes))
            part = jnp.pad(part, fill)
    for n, axes in enumerate(leaf.at_rest):
        for axis in reversed(axes):  # the inmost split is undone first
            if axis in leaf.compute[n] and n not in due:
                continue
            m = next((m for m, waiting in due.items() if waiting[:1] == [axis]), None)
            if m is None or m == n:
                part = lax.all_gather(part, axis, axis=n, tiled=True)
            else:
                part = lax.all_to_all(part, axis, split_axis=m, concat_axis=n, tiled=True)
                due[m].pop(0)
    for n, waiting in due.items():
        for axis in waiting:
            size = part.shape[n] // lax.axis_size(axis)
            part = lax.dynamic_slice_in_dim(part, lax.axis_index(axis) * size, size, axis=n)
    return part


def state_shardings(boxed: PyTree, layout: Layout) -> PyTree:
    """The sharding of every leaf of an abstract state whose parameters carry logical axis names.

    A leaf without names that has the name and shape of a parameter lies as that does: an optimizer's moments,
    averages. Every other one is whole on every device: counters, and Adafactor's sums over rows and columns, which are
    small. A leaf's name is the end of its place in the tree, from the last attribute or position on: that of
    `opt_state[0].mu["encoder"]["kernel"]` is ("encoder", "kernel").
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_named)
    plans = [plan_leaves(leaf, layout) for _, leaf in leaves]
    parameters = {_end_of(path): plan for (path, leaf), plan in zip(leaves, plans, strict=True) if _is_named(leaf)}

    def place(path: Any, plan: Leaf) -> NamedSharding:
        like = parameters.get(_end_of(path))
        split = like.at_rest if like is not None and like.shape == plan.shape else plan.at_rest
        return NamedSharding(layout.mesh, to_spec(split))

    return jax.tree.unflatten(structure, [place(path, plan) for (path, _), plan in zip(leaves, plans, strict=True)])


def _is_named(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def _end_of(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The keys of dicts at the end of a place in a tree."""
    keys: list[Any] = []
    for entry in reversed(path):
        if not isinstance(entry, jax.tree_util.DictKey):
            break
        keys.insert(0, entry.key)
    return tuple(keys)


def init_sharded(init: Callable[..., PyTree], layout: Layout, *args: Any) -> PyTree:
    """Runs `init(*args)` so that every array is born in its shards, never whole on one device.

    `init` may return boxed parameters (with logical axis names); the result is unboxed.
    """
    shardings = state_shardings(jax.eval_shape(init, *args), layout)

    def unboxed(*args: Any) -> PyTree:
        return nn.meta.unbox(init(*args))

    return jax.jit(unboxed, out_shardings=shardings)(*args)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all axes."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def rows_here(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a global batch that this host's devices hold, in order: all that it has to read."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    held = {row for index in places if index is not None for row in range(*index[0].indices(rows))}
    return np.array(sorted(held), np.int64)


def place_batch(batch: Batch, mesh: Mesh, *, rows: int | None = None) -> Batch:
    """Puts this host's rows (`rows_here`) of a batch of `rows` onto the mesh as their part of the global batch."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    count = rows if rows is not None else len(batch.row_mask) * mesh.size // len(mesh.local_devices)
    held = rows_here(mesh, count)

    def place(array: Any) -> Array:
        def read(index: tuple[slice, ...] | None) -> Any:
            wanted = np.arange(*index[0].indices(count)) if index else held
            return array[np.searchsorted(held, wanted)]

        return jax.make_array_from_callback((count, *array.shape[1:]), sharding, read)

    return jax.tree.map(place, batch)
