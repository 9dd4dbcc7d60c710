"""How parameters are drawn: as the recurrent papers did, or so that every layer passes signals on at full size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array


def matrix_initializer(scale: float) -> nn.initializers.Initializer:
    """For matrices `[inputs, outputs]` and vectors.

    Args:
        scale: draw uniformly from [-scale, scale], as Sutskever et al. 2014 and Wu et al. 2016; or 0:
            normal with variance 1 / inputs (LeCun et al. 1998), under which a layer's outputs are as
            large as its inputs. With a small uniform scale a deep stack starts nearly silent, and
            attention takes thousands of steps to find anything in it.
    """
    if scale > 0:
        return _uniform(scale)
    return _by_inputs


def glorot_initializer(scale: float, *, inputs: int, outputs: int) -> nn.initializers.Initializer:
    """For kernels of any shape, by the sizes of what they join.

    Args:
        scale: draw uniformly from [-scale, scale]; 0: from a range whose variance is 2 / (inputs + outputs) (Glorot and
            Bengio 2010), as the authors of the Transformer did.
        inputs: that go into one output.
        outputs: that one input goes into.
    """
    return _uniform(scale if scale > 0 else (6.0 / (inputs + outputs)) ** 0.5)


def table_initializer(scale: float) -> nn.initializers.Initializer:
    """For tables `[vocabulary, D]`: uniform as above; or with `scale` 0 normal with variance 1 / D."""
    if scale > 0:
        return _uniform(scale)
    return nn.initializers.variance_scaling(1.0, "fan_out", "normal")


def table_gain(scale: float, features: int) -> float:
    """What looked-up vectors are multiplied by: with `scale` 0 sqrt(D), so that their entries have variance 1."""
    return 1.0 if scale > 0 else features**0.5


def gate_bias_initializer(scale: float, *, gates: int = 4) -> nn.initializers.Initializer:
    """For the biases of gates: zeros; with `scale` 0, of four gates i, f, g, o, ones for f (Jozefowicz et al. 2015)."""

    def init(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        del key
        width = shape[0] // gates
        bias = jnp.zeros(shape, dtype)
        return bias if scale > 0 or gates != 4 else bias.at[width : 2 * width].set(1.0)

    return init


def recurrent_initializer(name: str, scale: float, *, gates: int) -> nn.initializers.Initializer:
    """For recurrent kernels `[P, gates * H]`: "scaled", as other matrices; or "orthogonal", gate by gate."""
    if name == "scaled":
        return matrix_initializer(scale)
    orthogonal = nn.initializers.orthogonal()

    def init(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        parts = [orthogonal(own, (shape[0], shape[1] // gates), dtype) for own in jax.random.split(key, gates)]
        return jnp.concatenate(parts, axis=-1)

    return init


def _uniform(scale: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return init


def _by_inputs(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
    return jax.random.normal(key, shape, dtype) * shape[0] ** -0.5
