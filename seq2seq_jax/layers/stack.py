"""A stack of LSTM layers of one shape, its parameters stacked, run in order or as its runner has it.

    x ─► dropout ─► LSTM l ─► (+) ─► layer l + 1 ...        (+) adds the layer's input, from `residual_from` on
          side ─► dropout ─┘         to its output

The side input (an attention context, say) goes to every layer, with dropout of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.dropout import dropout_mask
from seq2seq_jax.layers.initializers import gate_bias_initializer, matrix_initializer
from seq2seq_jax.layers.parameters import declare, stacked
from seq2seq_jax.layers.recurrent import Carry, StepWeights, join_kernels, lstm, lstm_step, product

Layer = Callable[[PyTree, Any, Carry | None, Array, PyTree], tuple[Carry, Array]]
"""`layer(parameters, n, carry, x [T, B, D], extras) -> (carry, x)`: layer n over a piece; no carry is zeros."""

Run = Callable[..., tuple[Array, Carry]]
"""`run(layer, parameters, carry, x, extras, *, width, reverse) -> (x, carry)`: how a stack is run.

Parameters lead with L, the carry (None is zeros) is `([L, B, H], [L, B, H])`, the extras are `[T, B, ...]`.
"""


def run_in_order(
    layer: Layer, parameters: PyTree, carry: Carry | None, x: Array, extras: PyTree, *, width: int, reverse: bool
) -> tuple[Array, Carry]:
    """One layer after the other, each over the whole sequence."""
    del width, reverse  # the layer knows
    count = jax.tree.leaves(parameters)[0].shape[0]
    split = [jnp.split(leaf, count) for leaf in parameters]  # transposes to one concatenation, not to L additions
    states = []
    for n, parts in enumerate(zip(*split, strict=True)):
        own = tuple(part[0] for part in parts)
        state, x = layer(own, n, None if carry is None else (carry[0][n], carry[1][n]), x, extras)
        states.append(state)
    return x, (jnp.stack([c for c, _ in states]), jnp.stack([h for _, h in states]))


class LSTMStack(nn.Module):
    """The parameters of L layers and the ways to run them: whole sequences, or one step.

    Attributes:
        layers: L.
        features: H, width of the input, of the output and of all between.
        side_features: width of the side input, 0 for none.
        residual_from: the first layer (from 0) whose input is added to its output; `layers` for none.
        dropout: rate on the input and the side input of every layer.
        dtype: dtype of the products; states stay float32.
        init_scale: see `seq2seq_jax.layers.initializers`.
        run: how a stack runs over whole sequences.
    """

    layers: int
    features: int
    side_features: int = 0
    residual_from: int = 0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.04
    run: Run = run_in_order

    def setup(self) -> None:
        matrix = stacked(matrix_initializer(self.init_scale))
        bias = stacked(gate_bias_initializer(self.init_scale))
        count, width = self.layers, 4 * self.features
        inputs = self.features + self.side_features
        self.input_kernel = declare(self, "input_kernel", matrix, (count, inputs, width), ("layers", "embed", "gates"))
        self.recurrent_kernel = declare(
            self, "recurrent_kernel", matrix, (count, self.features, width), ("layers", "hidden", "gates")
        )
        self.bias = declare(self, "bias", bias, (count, width), ("layers", "gates"))

    def __call__(
        self,
        x: Array,
        side: Array | None = None,
        *,
        mask: Array,
        places: Array,
        initial: Carry | None = None,
        reverse: bool = False,
        train: bool = False,
    ) -> tuple[Array, Carry]:
        """Runs over whole sequences.

        Args:
            x: `[T, B, H]`.
            side: `[T, B, side_features]`, where the stack has a side input.
            mask: `[T, B]`, True where a step is real.
            places: `[T, B, 2]`, what dropout is keyed by; see `layers.dropout.make_places`.
            initial: states before the first step, `([L, B, H], [L, B, H])` float32; zeros if absent.
            reverse: run from the last step to the first.
            train: with dropout.

        Returns:
            The top layer's output `[T, B, H]`, and the states after the last real step.
        """
        key = self.make_rng("dropout") if train and self.dropout else None
        parameters = (self.input_kernel, self.recurrent_kernel, self.bias)
        extras = {"mask": mask, "places": places} | ({} if side is None else {"side": side})
        rate, dtype, width = self.dropout, self.dtype, self.features
        residual_from = self.residual_from

        def drop(x: Array, places: Array, draw: Any) -> Array:
            if key is None:
                return x
            return x * dropout_mask(jax.random.fold_in(key, draw), rate, places, x.shape[-1], x.dtype)

        def layer(own: PyTree, n: Any, carry: Carry | None, x: Array, extras: PyTree) -> tuple[Carry, Array]:
            kernel, recurrent, bias = (part.astype(dtype) for part in own)
            projected = bias + product(drop(x, extras["places"], 2 * n), kernel[:width])
            if "side" in extras:
                projected = projected + product(drop(extras["side"], extras["places"], 2 * n + 1), kernel[width:])
            y, carry = lstm(projected, recurrent, extras["mask"], initial=carry, reverse=reverse)
            y = y.astype(x.dtype)
            if isinstance(n, int):
                return carry, y + x if n >= residual_from else y
            # A runner that needs equal shares fills the stack up with layers of zeros: these pass their input on.
            return carry, jnp.where(n >= residual_from, y + x, y)

        return self.run(layer, parameters, initial, x, extras, width=width, reverse=reverse)

    def step_weights(self) -> tuple[StepWeights, ...]:
        """The parameters of every layer as `step` reads them, to be made once, before a loop over steps."""
        layers = zip(self.input_kernel, self.recurrent_kernel, self.bias, strict=True)
        return tuple(join_kernels(kernel, recurrent, bias, self.dtype) for kernel, recurrent, bias in layers)

    def step(
        self, x: Array, side: Array | None = None, *, carry: Carry, weights: tuple[StepWeights, ...] | None = None
    ) -> tuple[Array, Carry]:
        """Runs one step: `[B, H]`, the side input `[B, side_features]` and states `[B, L, H]` to output and states."""
        states = []
        for n, own in enumerate(self.step_weights() if weights is None else weights):
            states.append(lstm_step(own, (x,) if side is None else (x, side), (carry[0][:, n], carry[1][:, n])))
            y = states[-1][1].astype(x.dtype)
            x = y + x if n >= self.residual_from else y
        return x, (jnp.stack([c for c, _ in states], 1), jnp.stack([h for _, h in states], 1))
