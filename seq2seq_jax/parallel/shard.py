"""Shardings of states and batches on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.interfaces import Batch, PyTree
from seq2seq_jax.parallel.rules import RULES


def state_shardings(boxed: PyTree, mesh: Mesh, *, strategy: str = "data_parallel") -> PyTree:
    """The sharding of every leaf of an abstract tree whose parameters carry logical axis names."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES[strategy])


def init_sharded(init: Callable[..., PyTree], mesh: Mesh, *args: Any, strategy: str = "data_parallel") -> PyTree:
    """Runs `init(*args)` so that every array is born in its shards, never whole on one device.

    `init` may return boxed parameters (with logical axis names); the result is unboxed.
    """
    shardings = state_shardings(jax.eval_shape(init, *args), mesh, strategy=strategy)

    def unboxed(*args: Any) -> PyTree:
        return nn.meta.unbox(init(*args))

    return jax.jit(unboxed, out_shardings=shardings)(*args)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this host's rows of a batch onto the mesh as their part of the global batch."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
