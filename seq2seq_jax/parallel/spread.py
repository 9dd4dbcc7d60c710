"""A loss and its gradient on a mesh: by `shard_map`, which sends what is written here, or by `jit`, which decides.

Inside `shard_map` a loss is one device's program over its own rows and its own parts of the parameters.
What crosses the mesh: parameters on their way from where they rest to where they are used
(`shard.arrange`) and their gradients back, each once a step; and what `pipeline` and `softmax` send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
from seq2seq_jax.parallel.layout import Layout
from seq2seq_jax.parallel.shard import Leaf, arrange, plan_leaves, to_spec
from seq2seq_jax.parallel.varying import vary_over

Loss = Callable[[PyTree, Batch, Array | None, Array | None], tuple[Array, Sums]]
"""`loss(params, batch, key, step) -> (objective, sums)`: sums over the rows it is given.

`step` is the number of the training step, `[]` int32; where nothing is trained, `key` and `step` are None.
"""

Gradient = Callable[[PyTree, Batch, Array, Array], tuple[tuple[Array, Sums], PyTree]]
"""`gradient(params, batch, key, step) -> ((objective, sums), gradients)` of the whole batch."""


def spread_gradient(loss: Loss, layout: Layout, boxed: PyTree) -> Gradient:
    """The gradient of a loss on the mesh.

    Args:
        loss: a sum over rows.
        layout: where everything lives.
        boxed: the abstract parameters with the names of their axes.
    """
    if layout.step == "jit":
        return jax.value_and_grad(loss, has_aux=True)
    leaves = plan_leaves(boxed, layout)
    specs = specs_at_rest(leaves)

    def local(params: PyTree, batch: Batch, key: Array, step: Array) -> Any:
        def total(params: PyTree) -> tuple[Array, Sums]:
            return add_up(loss(take_parts(leaves, params, layout.rows), batch, key, step), layout.rows)

        # The loss is a sum over all devices and replicated parameters are marked as such, so that their
        # gradients come out summed: adding them up here would count them once for every device.
        return jax.value_and_grad(total, has_aux=True)(params)

    whole, rows = PartitionSpec(), PartitionSpec(layout.rows)
    given = specs, rows, whole, whole
    return jax.shard_map(local, mesh=layout.mesh, in_specs=given, out_specs=((whole, whole), specs))


def spread_sums(loss: Loss, layout: Layout, boxed: PyTree) -> Callable[[PyTree, Batch], Sums]:
    """The sums of a loss that draws nothing, on the mesh."""
    if layout.step == "jit":
        return lambda params, batch: loss(params, batch, None, None)[1]
    leaves = plan_leaves(boxed, layout)
    specs = specs_at_rest(leaves)

    def local(params: PyTree, batch: Batch) -> Sums:
        return add_up(loss(take_parts(leaves, params, layout.rows), batch, None, None)[1], layout.rows)

    rows = PartitionSpec(layout.rows)
    return jax.shard_map(local, mesh=layout.mesh, in_specs=(specs, rows), out_specs=PartitionSpec())


def spread_rows(make: Callable[[PyTree, Batch], PyTree], layout: Layout, boxed: PyTree) -> Any:
    """What `make(params, batch)` makes of each row, leaves `[B, ...]`, on the mesh."""
    if layout.step == "jit":
        return make
    leaves = plan_leaves(boxed, layout)
    specs = specs_at_rest(leaves)

    def local(params: PyTree, batch: Batch) -> PyTree:
        return make(take_parts(leaves, params, layout.rows), batch)

    rows = PartitionSpec(layout.rows)
    return jax.shard_map(local, mesh=layout.mesh, in_specs=(specs, rows), out_specs=rows)


def specs_at_rest(leaves: PyTree) -> PyTree:
    """How `shard_map` is to hand every parameter over: as it rests."""
    return jax.tree.map(lambda leaf: to_spec(leaf.at_rest), leaves, is_leaf=lambda x: isinstance(x, Leaf))


def take_parts(leaves: PyTree, params: PyTree, axes: tuple[str, ...]) -> PyTree:
    """Every parameter as the step computes with it, marked as this device's own."""

    def take(leaf: Leaf, part: Array) -> Array:
        # Marked before any loop: the gradients of all devices are then added once, at the end, not at every step.
        return vary_over(arrange(leaf, part), axes)

    return jax.tree.map(take, leaves, params, is_leaf=lambda x: isinstance(x, Leaf))


def add_up(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    """Sums over all devices."""
    return jax.tree.map(lambda x: lax.psum(x, axes), tree) if axes else tree
