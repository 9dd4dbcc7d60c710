"""The ways to run a stack of recurrent layers in JAX that `recurrent.py` compares: a function and weights for each.

Weights are float32 numpy arrays: for every layer its directions ("forward", and "backward" where there are two), for
each of them `input_kernel` `[D, Z]`, `recurrent_kernel` `[P, Z]`, `bias` `[Z]`, and what the cell has besides. Z is 4H
with the gates in the order i, f, g, o, or 3H of r, z, n. Every function is `run(weights, x [T, B, D]) -> y [T, B, P]`,
its products in the dtype of x.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from plain_scan import scan_gru, scan_lstm

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.cells import Cell, GRUCell, LSTMCell
from seq2seq_jax.layers.recurrent import LayerKind, run_both, run_layer
from seq2seq_jax.layers.runs import Loop, choose_loop
from seq2seq_jax.parallel.pipeline import batched_wavefront

KEEP = 0.8
"""Share of the outputs that recurrent dropout keeps."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a measurement: layers, steps, rows, width of the input and of the layers, and of a projection."""

    layers: int
    length: int
    rows: int
    features: int
    projection: int
    chunk: int


Run = Callable[[PyTree, Array], Array]
"""`run(weights, x) -> y`."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run a stack.

    Attributes:
        peer: PyTorch's module that does the same, or the nearest that there is.
        build: the function for given sizes; raises UserError where this device or these sizes are not for it.
        kind: what its layers are, a key of `CELLS`.
        primitives: the traced function has one of these, or this device or these sizes are not for it.
    """

    peer: str
    build: Callable[[Sizes], Run]
    kind: str = "lstm"
    primitives: tuple[str, ...] = ()


def prepare(variant: Variant, sizes: Sizes, weights: PyTree, x: Array) -> Run:
    """The function of a variant.

    Raises:
        UserError: this device or these sizes are not for it.
    """
    run = variant.build(sizes)
    if variant.primitives:
        traced = str(jax.make_jaxpr(run)(weights, x))
        if not any(name in traced for name in variant.primitives):
            raise UserError("there is none for this device or these sizes")
    return run


# --- weights --------------------------------------------------------------------------------------


def draw_weights(kind: str, sizes: Sizes, seed: int = 0) -> list[dict[str, dict[str, np.ndarray]]]:
    """Random weights of a kind of layer, see `Variant.kind`."""
    generator = np.random.default_rng(seed)
    width = sizes.features
    cell, gates = CELLS[kind], CELLS[kind].gates
    outputs = sizes.projection if "projection" in kind else width
    directions = ("forward", "backward") if kind == "bidirectional" else ("forward",)

    def draw(*shape: int, scale: float = 0.0) -> np.ndarray:
        limit = scale or shape[0] ** -0.5
        return generator.uniform(-limit, limit, shape).astype(np.float32)

    def make(inputs: int) -> dict[str, np.ndarray]:
        arrays = {
            "input_kernel": draw(inputs, gates * width),
            "recurrent_kernel": draw(outputs, gates * width),
            "bias": draw(gates * width, scale=0.1),
        }
        for name, (size, start) in {**cell.input_vectors(width), **cell.vectors(width)}.items():
            arrays[name] = (start + draw(size, scale=0.1)).astype(np.float32)
        if outputs != width:
            arrays["projection_kernel"] = draw(width, outputs)
        if kind == "noise":
            kept = generator.random((sizes.rows, width)) < KEEP
            arrays["noise"] = (kept / KEEP).astype(np.float32)
        return arrays

    inputs = [width] + [outputs * len(directions)] * (sizes.layers - 1)
    return [{direction: make(size) for direction in directions} for size in inputs]


@functools.cache
def count_flops(kind: str, sizes: Sizes) -> float:
    """Operations of the products of forward and backward pass; nothing that is recomputed counts."""
    one = dataclasses.replace(sizes, rows=1)
    kernels = ("input_kernel", "recurrent_kernel", "projection_kernel")
    numbers = sum(
        int(arrays[name].size)
        for layer in draw_weights(kind, one)
        for arrays in layer.values()
        for name in kernels
        if name in arrays
    )
    return 3.0 * 2.0 * sizes.length * sizes.rows * numbers


# --- the baselines --------------------------------------------------------------------------------


def multiply_inputs(w: PyTree, x: Array) -> Array:
    """The input products of all steps with the bias, `[T, B, Z]`."""
    z = jnp.einsum("tbd,dz->tbz", x, w["input_kernel"].astype(x.dtype), preferred_element_type=jnp.float32)
    return (z + w["bias"]).astype(x.dtype)


def build_scan(sizes: Sizes, *, unroll: int = 1) -> Run:
    """`lax.scan` and its own gradient."""

    def run(weights: PyTree, x: Array) -> Array:
        for layer in weights:
            w = layer["forward"]
            outputs, _ = scan_lstm(multiply_inputs(w, x), w["recurrent_kernel"].astype(x.dtype), unroll=unroll)
            x = outputs.astype(x.dtype)
        return x

    return run


def build_scan_gru(sizes: Sizes) -> Run:
    """The same of a GRU."""

    def run(weights: PyTree, x: Array) -> Array:
        for layer in weights:
            w = layer["forward"]
            outputs = scan_gru(multiply_inputs(w, x), w["recurrent_kernel"].astype(x.dtype), w["candidate_bias"])
            x = outputs.astype(x.dtype)
        return x

    return run


def build_flax(sizes: Sizes) -> Run:
    """`flax.linen.RNN` over `OptimizedLSTMCell`."""

    def run(weights: PyTree, x: Array) -> Array:
        layer = nn.RNN(nn.OptimizedLSTMCell(sizes.features, dtype=x.dtype, param_dtype=jnp.float32), time_major=True)
        for each in weights:
            w = each["forward"]
            # The bias is on the recurrent products there.
            cell = {
                name + gate: {"kernel": kernel} | ({"bias": bias} if name == "h" else {})
                for name, array in (("i", "input_kernel"), ("h", "recurrent_kernel"))
                for gate, kernel, bias in zip(
                    "ifgo", jnp.split(w[array], 4, axis=1), jnp.split(w["bias"], 4), strict=True
                )
            }
            x = layer.apply({"params": {"cell": cell}}, x)
        return x

    return run


# --- ours -----------------------------------------------------------------------------------------


def describe_layer(kind: str, sizes: Sizes, dtype: jnp.dtype, loop: Loop) -> LayerKind:
    """A layer of ours."""
    projected = "projection" in kind
    return LayerKind(
        features=sizes.projection if projected else sizes.features,
        inner=sizes.features if projected else 0,
        cell=CELLS[kind],
        dtype=jnp.dtype(dtype),
        loop=loop,
    )


def build_ours(
    sizes: Sizes, *, kind: str = "lstm", unroll: int = 0, recompute: bool = False, kernel: bool = False
) -> Run:
    """`seq2seq_jax.layers.recurrent.run_layer`, layer after layer; `unroll` 0 is what it chooses for the device."""
    loop = choose_loop(jax.default_backend(), unroll=unroll, recompute=recompute, kernel=kernel)
    if unroll and loop == choose_loop(jax.default_backend()):
        raise UserError("on this device that is what ours is anyway")

    def run(weights: PyTree, x: Array) -> Array:
        layer = describe_layer(kind, sizes, x.dtype, loop)
        for each in weights:
            own = each["forward"]
            x, _ = run_layer(layer, own, [x], None, noise=own.get("noise"))
        return x

    return run


def build_both(sizes: Sizes, *, both_at_once: bool) -> Run:
    """`run_both`: both directions of every layer, in one loop or in two."""

    def run(weights: PyTree, x: Array) -> Array:
        loop = dataclasses.replace(choose_loop(jax.default_backend()), both_at_once=both_at_once)
        layer = describe_layer("bidirectional", sizes, x.dtype, loop)
        for each in weights:
            x = run_both(layer, each["forward"], each["backward"], x, None)
        return x

    return run


def build_kernel(sizes: Sizes) -> Run:
    """The loops as hand-written kernels, where there are some for this device and these sizes."""
    if jax.default_backend() == "cpu":
        raise UserError("kernels are for GPUs and TPUs")
    return build_ours(sizes, kernel=True)


def build_wavefront(sizes: Sizes) -> Run:
    """All layers at once, each at its own chunk of time: one batched product a step."""
    if sizes.layers < 2:
        raise UserError("a wavefront needs at least 2 layers")
    chunks = -(-sizes.length // sizes.chunk)

    def run(weights: PyTree, x: Array) -> Array:
        kind = describe_layer("lstm", sizes, x.dtype, choose_loop(jax.default_backend()))

        def layer(own: PyTree, n: Any, state: Any, x: Array, mask: Array) -> tuple[Any, Array]:
            y, state = run_layer(kind, own, [x], mask, initial=state)
            return state, y

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(each["forward"] for each in weights))
        mask = jnp.ones(x.shape[:2], bool)
        y, _ = batched_wavefront(layer, stacked, None, x, mask, widths=kind.state_widths, reverse=False, chunks=chunks)
        return y

    return run


# --- all of them ----------------------------------------------------------------------------------

CELLS: dict[str, Cell] = {
    "lstm": LSTMCell(),
    "bidirectional": LSTMCell(),
    "noise": LSTMCell(),
    "layer norm": LSTMCell(layer_norm=True),
    "projection": LSTMCell(),
    "peepholes, projection": LSTMCell(peepholes=True),
    "gru": GRUCell(),
}
"""The cell of every kind of layer."""

VARIANTS: dict[str, Variant] = {
    "scan": Variant("torch", build_scan),
    "scan, unroll 10": Variant("torch", functools.partial(build_scan, unroll=10)),
    "flax": Variant("torch", build_flax),
    "ours": Variant("torch", build_ours),
    "ours, unroll 1": Variant("torch", functools.partial(build_ours, unroll=1)),
    "ours, unroll 10": Variant("torch", functools.partial(build_ours, unroll=10)),
    "ours, gates recomputed": Variant("torch", functools.partial(build_ours, recompute=True)),
    "kernel": Variant("torch", build_kernel, primitives=("pallas_call", "core_map", "mpmd_map")),
    "wavefront": Variant("torch", build_wavefront),
    "recurrent dropout": Variant("torch", functools.partial(build_ours, kind="noise"), "noise"),
    "layer norm": Variant("torch", functools.partial(build_ours, kind="layer norm"), "layer norm"),
    "projection": Variant("torch projection", functools.partial(build_ours, kind="projection"), "projection"),
    "peepholes, projection": Variant(
        "torch projection", functools.partial(build_ours, kind="peepholes, projection"), "peepholes, projection"
    ),
    "both directions, one loop": Variant(
        "torch bidirectional", functools.partial(build_both, both_at_once=True), "bidirectional"
    ),
    "both directions, two loops": Variant(
        "torch bidirectional", functools.partial(build_both, both_at_once=False), "bidirectional"
    ),
    "scan GRU": Variant("torch GRU", build_scan_gru, "gru"),
    "GRU": Variant("torch GRU", functools.partial(build_ours, kind="gru"), "gru"),
}
"""All variants, in the order of the table."""

PEERS: dict[str, str] = {
    "torch": "lstm",
    "torch projection": "projection",
    "torch bidirectional": "bidirectional",
    "torch GRU": "gru",
}
"""The kind of weights of every peer."""
