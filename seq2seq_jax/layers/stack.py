"""A stack of recurrent layers of one shape, its parameters stacked, run in order or as its runner has it.

    x ─► dropout ─► layer l ─► (+) ─► layer l + 1 ...        (+) adds the layer's input, from `residual_from` on
          side ─► dropout ─┘           to its output

The side input (an attention context, say) goes to every layer, with dropout of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.cells import State
from seq2seq_jax.layers.dropout import dropout_mask
from seq2seq_jax.layers.recurrent import (
    LayerKind,
    StepWeights,
    declare_layer,
    draw_noise,
    make_step_weights,
    run_layer,
    run_step,
    split_layers,
)

Layer = Callable[[PyTree, Any, State | None, Array, PyTree], tuple[State, Array]]
"""`layer(parameters, n, state, x [T, B, P], extras) -> (state, x)`: layer n over a piece; no state is zeros."""

Runner = Callable[..., tuple[Array, State]]
"""`run(layer, parameters, state, x, extras, *, widths, reverse) -> (x, state)`: how a stack is run.

Parameters lead with L, the state (None is zeros) is `[L, B, width]` of each of its `widths`, the extras `[T, B, ...]`.
"""

RECURRENT_DRAWS = 1 << 20  # draws of dropout below it are those on inputs


def run_in_order(
    layer: Layer,
    parameters: PyTree,
    state: State | None,
    x: Array,
    extras: PyTree,
    *,
    widths: tuple[int, ...],
    reverse: bool,
) -> tuple[Array, State]:
    """One layer after the other, each over the whole sequence."""
    del widths, reverse  # the layer knows
    states = []
    for n, own in enumerate(split_layers(parameters)):
        last, x = layer(own, n, None if state is None else tuple(each[n] for each in state), x, extras)
        states.append(last)
    return x, tuple(jnp.stack(each) for each in zip(*states, strict=True))


class RecurrentStack(nn.Module):
    """The parameters of L layers and the ways to run them: whole sequences, or one step.

    Attributes:
        kind: what a layer is; its `features` P are the width of the input, of the output and of all between.
        layers: L.
        side_features: width of the side input, 0 for none.
        residual_from: the first layer (from 0) whose input is added to its output; `layers` for none.
        dropout: rate on the input and the side input of every layer.
        run: how a stack runs over whole sequences.
    """

    kind: LayerKind
    layers: int
    side_features: int = 0
    residual_from: int = 0
    dropout: float = 0.0
    run: Runner = run_in_order

    def setup(self) -> None:
        inputs = self.kind.features + self.side_features
        self.own = declare_layer(self, self.kind, inputs, layers=self.layers)

    def __call__(
        self,
        x: Array,
        side: Array | None = None,
        *,
        mask: Array | None,
        places: Array,
        initial: State | None = None,
        reverse: bool = False,
        train: bool = False,
    ) -> tuple[Array, State]:
        """Runs over whole sequences.

        Args:
            x: `[T, B, P]`.
            side: `[T, B, side_features]`, where the stack has a side input.
            mask: `[T, B]`, True where a step is real; None: all are.
            places: `[T, B, 2]`, what dropout is keyed by; see `layers.dropout.make_places`.
            initial: states before the first step, `[L, B, width]` float32 each; zeros if absent.
            reverse: run from the last step to the first.
            train: with dropout.

        Returns:
            The top layer's output `[T, B, P]`, and the states after the last real step.
        """
        kind, rate, residual_from = self.kind, self.dropout, self.residual_from
        key = self.make_rng("dropout") if train and (rate or kind.recurrent_dropout) else None
        if mask is None and self.run is not run_in_order:  # others may fill sequences up with steps that are not real
            mask = jnp.ones_like(places[..., 0], bool)
        given = {"mask": mask, "places": places, "side": side}
        extras = {name: each for name, each in given.items() if each is not None}

        def drop(x: Array, places: Array, draw: Any) -> Array:
            if key is None or not rate:
                return x
            return x * dropout_mask(jax.random.fold_in(key, draw), rate, places, x.shape[-1], x.dtype)

        def layer(own: PyTree, n: Any, state: State | None, x: Array, extras: PyTree) -> tuple[State, Array]:
            places = extras["places"]
            parts = [drop(x, places, 2 * n)]
            if "side" in extras:
                parts.append(drop(extras["side"], places, 2 * n + 1))
            noise = draw_noise(kind, None if key is None else jax.random.fold_in(key, RECURRENT_DRAWS + n), places)
            y, state = run_layer(kind, own, parts, extras.get("mask"), initial=state, noise=noise, reverse=reverse)
            if isinstance(n, int):
                return state, y + x if n >= residual_from else y
            # A runner that needs equal shares fills the stack up with layers of zeros: these pass their input on.
            return state, jnp.where(n >= residual_from, y + x, y)

        return self.run(layer, dict(self.own), initial, x, extras, widths=kind.state_widths, reverse=reverse)

    def step_weights(self) -> tuple[StepWeights, ...]:
        """The parameters of every layer as `step` reads them, to be made once, before a loop over steps."""
        return tuple(make_step_weights(self.kind, own) for own in split_layers(self.own))

    def step(
        self, x: Array, side: Array | None = None, *, state: State, weights: tuple[StepWeights, ...] | None = None
    ) -> tuple[Array, State]:
        """Runs one step: `[B, P]`, the side input `[B, side_features]`, states `[B, L, width]` to output and states."""
        states = []
        for n, own in enumerate(self.step_weights() if weights is None else weights):
            parts = (x,) if side is None else (x, side)
            states.append(run_step(self.kind, own, parts, tuple(each[:, n] for each in state)))
            y = states[-1][-1].astype(x.dtype)
            x = y + x if n >= self.residual_from else y
        return x, tuple(jnp.stack(each, 1) for each in zip(*states, strict=True))
