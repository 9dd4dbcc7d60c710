"""What a recurrence is given: how its loop runs, its weights, and what it reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.cells import Cell, State


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a recurrence is run; never what it computes, but for rounding.

    Attributes:
        unroll: steps that are compiled as one, at most, and written at once.
        both_at_once: the two directions of a layer share a loop, their products batched.
        recompute: save the states and the inputs alone, and make the gates again in the backward pass, by one product
            of all steps; with `keep_states` around the layer not even the inputs. (XLA merges for CPUs what is made
            again with what was made before: there it saves nothing.)
        kernel: "gpu" or "tpu": the loop is one hand-written kernel where there is one for the layer; "": none.
    """

    unroll: int = 1
    both_at_once: bool = False
    recompute: bool = False
    kernel: str = ""


PLAIN_LOOP = Loop()
"""One step after the other, gates saved."""

STATES = "recurrent states"
"""The name of what `Loop.recompute` keeps, for the policies of `jax.checkpoint`."""

UNROLL = {"gpu": 10}
"""Steps compiled as one, by platform, 1 elsewhere.

On an H200, whose few small kernels a step wait for each other, 10 took 19.0 ms instead of 26.0 for 8 layers of 1024
over 128 rows and 50 steps (plain scans, bfloat16). On CPUs it never helped. For TPUs XLA counts more cycles
with 2, 5 and 10 at H = 1024 (v5p: 4.7, 5.9, 5.1, 4.9 million), and 12 % smaller with 10 for a long narrow layer.
"""


def choose_loop(platform: str, *, unroll: int = 0, recompute: bool = False, kernel: bool = False) -> Loop:
    """The loop for a platform ("cpu", "gpu", "tpu").

    The two directions of a layer share a loop on GPUs: 7.5 kernels a step for both instead of 11.8 (XLA's text for an
    H100). Elsewhere they take turns: on a CPU a batched product of two has half the rate of one after the other, and
    for TPUs XLA counts 8 to 13 % more cycles.

    Args:
        platform: of the devices.
        unroll: 0 is by platform.
        recompute: as in `Loop`.
        kernel: use that platform's kernels.
    """
    steps = unroll or UNROLL.get(platform, 1)
    return Loop(unroll=steps, both_at_once=platform == "gpu", recompute=recompute, kernel=platform if kernel else "")


@struct.dataclass
class Weights:
    """What a recurrence multiplies its state with, float32.

    With a projection (Sak et al. 2014, section 2) the output is `m W` of what the cell gives, and P wide, else P = H.
    """

    recurrent: Array  # [P, Z]
    projection: Array | None = None  # [H, P]
    vectors: dict[str, Array] = struct.field(default_factory=dict)  # [k] each, see Cell.vectors
    bias: Array | None = None  # [Z]: a step adds it, where it costs nothing


@struct.dataclass
class Run:
    """One direction of a layer over a batch: what its loop reads."""

    projected: Array  # [T, B, Z]: the input's part of all pre-activations
    weights: Weights
    initial: State | None = None  # [B, H] ..., [B, P], float32; None is zeros
    noise: Array | None = None  # [B, P]: what the output is multiplied by on its way to the next step


def add_bias(x: Array, bias: Array | None) -> Array:
    """The input's part of a step's pre-activations, float32."""
    x = x.astype(jnp.float32)
    return x if bias is None else x + bias


def multiply(a: Array, kernel: Array) -> Array:
    """A product in the kernel's dtype that adds up in float32; of joined runs a product each."""
    return jnp.matmul(a.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def as_float(tree: PyTree) -> Any:
    """All arrays in float32."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def sum_products(a: Array, d: Array) -> Array:
    """The gradient `[j, k]` float32 of a kernel that meets `[..., j]`, whose products' cotangents are `[..., k]`.

    Axes are not merged first: rows that the compiler has spread over devices would be gathered for it.
    """
    return jnp.einsum("...j,...k->jk", a.astype(d.dtype), d, preferred_element_type=jnp.float32)


def zero_state(cell: Cell, weights: Weights, like: Array) -> State:
    """The state before a first step, `[B, width]` each; `like` is any array of the run, `[T, B, ...]`."""
    outputs, gates = weights.recurrent.shape
    widths = [gates // cell.gates] * (cell.states - 1) + [outputs]
    return tuple(jnp.zeros_like(like, jnp.float32, shape=(like.shape[1], width)) for width in widths)
