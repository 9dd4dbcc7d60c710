"""Declaring parameters, so that a module also runs on one device's part of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array


def declare(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
) -> Array:
    """A parameter of a linen module, with the logical names of its axes.

    Like `module.param`, but what is given is taken as it is: inside `shard_map` that is this device's
    part, which is smaller than `shape`.

    Args:
        module: whose parameter it is; call this in its `setup`.
        name: in the module's tree.
        init: `init(key, shape)`.
        shape: of the whole parameter.
        axes: logical axes, one name for each axis; see `seq2seq_jax.parallel.rules`. None: it is never split.
    """
    if module.has_variable("params", name):
        return nn.meta.unbox(module.get_variable("params", name))
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


def stacked(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """The initializer of a stack `[L, ...]`: `init` for every layer, each with a key of its own."""

    def init_stack(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return init_stack
