"""Recurrent layers: their parameters, and the two ways to run one: over whole sequences, or one step.

Inside, everything is time-major: `[T, B, ...]`. The equations are in `cells`, the loop over time in `recurrence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Int

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.cells import Cell, GRUCell, LSTMCell, State
from seq2seq_jax.layers.dropout import dropout_mask
from seq2seq_jax.layers.initializers import gate_bias_initializer, matrix_initializer, recurrent_initializer
from seq2seq_jax.layers.parameters import declare, stacked
from seq2seq_jax.layers.recurrence import keep_states, recur, recur_both
from seq2seq_jax.layers.runs import Loop, Weights, sum_products

CELLS = ("lstm", "lstm_peephole", "gru")

LayerParameters = Mapping[str, Array]
"""One layer's parameters by name, float32."""

StepWeights = Mapping[str, Array]
"""One layer's parameters in the shapes that single steps are quickest with, see `make_step_weights`."""


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What the recurrent layers of a model have in common.

    Attributes:
        features: P, width of the output.
        cell: the equations of a step.
        inner: H, width of the cell; where it is not P the output is projected from it (Sak et al. 2014).
        recurrent_dropout: rate on the output on its way to the next step, one draw a sequence and layer (Gal and
            Ghahramani 2016).
        dtype: dtype of the products; states are float32.
        init_scale: see `seq2seq_jax.layers.initializers`.
        recurrent_init: of recurrent kernels, "scaled" or "orthogonal"; the same.
        loop: how the layers run over time.
    """

    features: int
    cell: Cell = LSTMCell()
    inner: int = 0
    recurrent_dropout: float = 0.0
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    init_scale: float = 0.04
    recurrent_init: str = "scaled"
    loop: Loop = Loop()

    @property
    def width(self) -> int:
        """H."""
        return self.inner or self.features

    @property
    def state_widths(self) -> tuple[int, ...]:
        """Of every array in the state: the cell's own, then the output."""
        return (self.width,) * (self.cell.states - 1) + (self.features,)

    def zero_state(self, like: Array, shape: tuple[int, ...]) -> State:
        """The state before a first step: `[*shape, width]` each, as much per device as `like`."""
        return tuple(jnp.zeros_like(like, jnp.float32, shape=(*shape, width)) for width in self.state_widths)


def make_cell(name: str, *, layer_norm: bool, features: int, inner: int) -> Cell:
    """The cell of a config.

    Args:
        name: one of `CELLS`.
        layer_norm: with layer normalisation (Ba et al. 2016).
        features: width of a layer's output.
        inner: width of the cell, 0 for the same.

    Raises:
        ValueError: there is no such cell.
    """
    if name not in CELLS:
        raise ValueError(f"`cell` must be one of {CELLS}, but is {name!r} instead.")
    if inner < 0:
        raise ValueError(f"`cells` must be 0 (as many as `features`) or more, but is {inner} instead.")
    if name == "gru":
        if inner not in (0, features):
            raise ValueError(
                f"`cells` must be 0 with `cell` 'gru', which has no projection, but is {inner} instead; use 'lstm'."
            )
        return GRUCell(layer_norm=layer_norm)
    return LSTMCell(peepholes=name == "lstm_peephole", layer_norm=layer_norm)


def declare_layer(module: nn.Module, kind: LayerKind, inputs: int, *, layers: int = 0) -> dict[str, Array]:
    """Declares the parameters of a layer with so many inputs, or of a stack of layers `[L, ...]`."""
    cell, width = kind.cell, kind.cell.gates * kind.width
    matrix = matrix_initializer(kind.init_scale)
    recurrent = recurrent_initializer(kind.recurrent_init, kind.init_scale, gates=cell.gates)
    found: dict[str, tuple[nn.initializers.Initializer, tuple[int, ...], tuple[str, ...]]] = {
        "input_kernel": (matrix, (inputs, width), ("embed", "gates")),
        "recurrent_kernel": (recurrent, (kind.features, width), ("hidden", "gates")),
        "bias": (gate_bias_initializer(kind.init_scale, gates=cell.gates), (width,), ("gates",)),
    }
    if kind.width != kind.features:
        found["projection_kernel"] = (matrix, (kind.width, kind.features), ("hidden", "embed"))
    for name, (size, value) in {**cell.input_vectors(kind.width), **cell.vectors(kind.width)}.items():
        found[name] = (nn.initializers.constant(value), (size,), ("gates" if size == width else "hidden",))
    if not layers:
        return {name: declare(module, name, *each) for name, each in found.items()}
    return {
        name: declare(module, name, stacked(init), (layers, *shape), ("layers", *axes))
        for name, (init, shape, axes) in found.items()
    }


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """`x @ kernel` of `[..., D]` and `[D, Z]` float32 in the dtype of x, with a quicker gradient of the kernel.

    Left to itself, differentiation makes the gradient of the kernel as the transpose of a product of
    transposed copies; here it is one product of what there is, and float32.
    """
    return x @ kernel.astype(x.dtype)


def _product_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel), (x, kernel)


def _product_bwd(saved: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return dz @ kernel.astype(dz.dtype).T, sum_products(x, dz)


product.defvjp(_product_fwd, _product_bwd)


def project(kind: LayerKind, own: LayerParameters, parts: Sequence[Array | None]) -> Array:
    """Input products, `[..., Z]`: all that can be done before the loop but for the bias, which the steps add.

    The input may come in parts (a layer below and an attention context, say), side by side the rows of the one input
    kernel. The last part may be None: its product is then added inside a loop.
    """
    given = [part.astype(kind.dtype) for part in parts if part is not None]
    if not given:
        raise ValueError("`parts` must have a part that is not None.")
    x = given[0] if len(given) == 1 else jnp.concatenate(given, axis=-1)
    products = product(x, own["input_kernel"][: x.shape[-1]])
    return kind.cell.normalise(products, _input_vectors(kind, own)).astype(kind.dtype)


def _input_vectors(kind: LayerKind, own: Mapping[str, Array]) -> dict[str, Array]:
    return {name: own[name] for name in kind.cell.input_vectors(kind.width)}


def make_weights(kind: LayerKind, own: LayerParameters) -> Weights:
    """What the loop multiplies the state with."""
    vectors = {name: own[name] for name in kind.cell.vectors(kind.width)}
    return Weights(own["recurrent_kernel"], own.get("projection_kernel"), vectors, own["bias"])


def draw_noise(kind: LayerKind, key: Array | None, places: Int[Array, "T B 2"]) -> Array | None:
    """Factors `[B, P]` of variational dropout on the outputs of a layer, keyed by row; None without it."""
    if key is None or kind.recurrent_dropout == 0.0:
        return None
    place = places[:1] * jnp.array([1, 0], places.dtype)  # one draw for all times
    return dropout_mask(key, kind.recurrent_dropout, place, kind.features, jnp.dtype(jnp.float32))[0]


def run_layer(
    kind: LayerKind,
    own: LayerParameters,
    parts: Sequence[Array],
    mask: Bool[Array, "T B"] | None,
    *,
    initial: State | None = None,
    noise: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, State]:
    """A layer over whole sequences: parts `[T, B, part]` to outputs `[T, B, P]` and the last state, see `recur`."""

    def run(own: LayerParameters, parts: Sequence[Array], initial: State | None) -> tuple[Array, State]:
        projected, weights = project(kind, own, parts), make_weights(kind, own)
        return recur(kind.cell, projected, weights, mask, initial=initial, noise=noise, reverse=reverse, loop=kind.loop)

    return (keep_states(run) if kind.loop.recompute else run)(own, parts, initial)


def run_both(
    kind: LayerKind,
    ahead: LayerParameters,
    back: LayerParameters,
    x: Array,
    mask: Bool[Array, "T B"] | None,
    *,
    noise: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """Both directions of a layer from zeros, `[T, B, D]` to the outputs side by side, `[T, B, 2P]`."""

    def run(ahead: LayerParameters, back: LayerParameters, x: Array) -> tuple[Array, Array]:
        projected = project(kind, ahead, (x,)), project(kind, back, (x,))
        weights = make_weights(kind, ahead), make_weights(kind, back)
        return recur_both(kind.cell, projected, weights, mask, noise=noise, loop=kind.loop)

    return jnp.concatenate((keep_states(run) if kind.loop.recompute else run)(ahead, back, x), axis=-1)


def make_step_weights(kind: LayerKind, own: LayerParameters) -> StepWeights:
    """The parameters as `run_step` reads them: kernels in the dtype of products with an output a row.

    Where input and state only meet as a sum, their kernels are one: a step is then one product, and a quick one. A
    product with few rows (the beams of one sentence) is the time in which the weights arrive from memory; on CPUs
    XLA reads them at half the speed where the outputs are columns.
    """
    kernels = {name: leaf.T.astype(kind.dtype) for name, leaf in own.items() if name.endswith("_kernel")}
    small = {name: leaf for name, leaf in own.items() if not name.endswith("_kernel")}
    if kind.cell.joins:
        joined = jnp.concatenate([kernels.pop("input_kernel"), kernels.pop("recurrent_kernel")], axis=1)
        kernels["joined_kernel"] = joined
    return {**kernels, **small}


def _apply_rows(kernel: Array, *parts: Array) -> Array:
    """The product `[B, Z]` float32 of parts `[B, part]`, side by side, with a kernel `[Z, parts]`."""
    x = jnp.concatenate([part.astype(kernel.dtype) for part in parts], axis=-1)
    return jnp.einsum("bd,zd->bz", x, kernel, preferred_element_type=jnp.float32)


def run_step(kind: LayerKind, weights: StepWeights, parts: Sequence[Array], state: State) -> State:
    """One step of a layer: the parts of its input `[B, part]` and the old state to the new state."""
    if kind.cell.joins:
        x = _apply_rows(weights["joined_kernel"], *parts, state[-1]) + weights["bias"]
        p = jnp.zeros([], x.dtype)
    else:
        x = kind.cell.normalise(_apply_rows(weights["input_kernel"], *parts), _input_vectors(kind, weights))
        x = x + weights["bias"]
        p = _apply_rows(weights["recurrent_kernel"], state[-1])
    vectors = {name: weights[name] for name in kind.cell.vectors(kind.width)}
    new, _ = kind.cell.forward(x, p, state, vectors)
    if "projection_kernel" in weights:
        new = (*new[:-1], _apply_rows(weights["projection_kernel"], new[-1]))
    return new


class Recurrent(nn.Module):
    """The parameters of one recurrent layer, and the ways to run it.

    Attributes:
        kind: what it shares with the other layers of its model.
        inputs: width of the input, all its parts together.
    """

    kind: LayerKind
    inputs: int

    def setup(self) -> None:
        self.own = declare_layer(self, self.kind, self.inputs)

    def parameters(self) -> dict[str, Array]:
        """The parameters by name, for `run_layer` and `run_both`."""
        return dict(self.own)

    def draw_noise(self, places: Array, *, train: bool) -> Array | None:
        """Factors of variational dropout when training, see `draw_noise`."""
        if not train or self.kind.recurrent_dropout == 0.0:
            return None
        return draw_noise(self.kind, self.make_rng("dropout"), places)

    def __call__(
        self,
        *parts: Array,
        mask: Array | None,
        places: Array | None = None,
        initial: State | None = None,
        reverse: bool = False,
        train: bool = False,
    ) -> tuple[Array, State]:
        """Runs over whole sequences: parts `[T, B, part]` to outputs `[T, B, P]` and the last state.

        With recurrent dropout, training needs `places` `[T, B, 2]`; see `layers.dropout.make_places`.
        """
        if train and self.kind.recurrent_dropout and places is None:
            raise ValueError("`places` must be given in training with recurrent dropout, but is None instead.")
        noise = None if places is None else self.draw_noise(places, train=train)
        return run_layer(self.kind, self.own, parts, mask, initial=initial, noise=noise, reverse=reverse)

    def step_weights(self) -> StepWeights:
        """The layer's parameters as `step` reads them, to be made once, before a loop over steps."""
        return make_step_weights(self.kind, self.own)

    def step(self, *parts: Array, state: State, weights: StepWeights | None = None) -> State:
        """Runs one step: parts `[B, part]` and the old state to the new state."""
        return run_step(self.kind, self.step_weights() if weights is None else weights, parts, state)


def split_layers(stack: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The parameters of every layer of a stack; the gradient is one concatenation, not a sum over layers."""
    count = next(iter(stack.values())).shape[0]
    split = {name: jnp.split(leaf, count) for name, leaf in stack.items()}
    return [{name: parts[n][0] for name, parts in split.items()} for n in range(count)]
