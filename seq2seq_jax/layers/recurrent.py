"""Long short-term memory over whole sequences, with a backward pass written by hand.

    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)     g = tanh(z_g)     z = x W + h U + b
    c' = f c + i g                                          h' = o tanh(c')

(Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates in the order
i, f, g, o.) Inside, everything is time-major: `[T, B, ...]`.

What makes it fast: the input products of all steps are one product before the loop; the loop of
the backward pass carries dh and dc only, and the gradient of U is one product after it, where
`grad(lax.scan)` would add to it at every step.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.initializers import gate_bias_initializer, matrix_initializer
from seq2seq_jax.layers.parameters import declare

Carry = tuple[Array, Array]
"""Cell and output, `(c [B, H], h [B, H])`, both float32."""


def lstm_gates(z: Array) -> tuple[Array, Array, Array, Array]:
    """Splits pre-activations `[..., 4H]` into the activated gates i, f, g, o."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def lstm_cell(z: Array, c: Array) -> Carry:
    """One step from the pre-activations `[B, 4H]` and the old cell `[B, H]` to `(c', h')`."""
    i, f, g, o = lstm_gates(z)
    c = f * c + i * g
    return c, o * jnp.tanh(c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _lstm(projected: Array, kernel: Array, mask: Array, c0: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Cells and outputs of every step, `[T, B, H]` each; a masked step repeats the state before it."""
    (_, cells, outputs), _ = _lstm_forward(projected, kernel, mask, c0, h0, reverse)
    return cells, outputs


def _lstm_forward(projected: Array, kernel: Array, mask: Array, c0: Array, h0: Array, reverse: bool) -> Any:
    def step(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, tuple[Array, Array, Array]]:
        c, h = carry
        x, real = inputs
        z = x.astype(jnp.float32) + jnp.dot(h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        gates = jnp.concatenate(lstm_gates(z), axis=-1)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        new_c = f * c + i * g
        c = jnp.where(real[:, None], new_c, c)
        h = jnp.where(real[:, None], o * jnp.tanh(new_c), h)
        return (c, h), (gates.astype(projected.dtype), c, h)

    _, saved = jax.lax.scan(step, (c0, h0), (projected, mask), reverse=reverse)
    return saved, (kernel, mask, c0, h0)


def _lstm_fwd(projected: Array, kernel: Array, mask: Array, c0: Array, h0: Array, reverse: bool) -> Any:
    (gates, cells, outputs), rest = _lstm_forward(projected, kernel, mask, c0, h0, reverse)
    return (cells, outputs), (gates, cells, outputs, *rest)


def _before(states: Array, initial: Array, reverse: bool) -> Array:
    """The state each step started from, `[T, B, H]`."""
    if reverse:
        return jnp.concatenate([states[1:], initial[None]])
    return jnp.concatenate([initial[None], states[:-1]])


def _lstm_bwd(reverse: bool, saved: tuple[Array, ...], cotangents: tuple[Array, Array]) -> Any:
    gates, cells, outputs, kernel, mask, c0, h0 = saved
    kernel_t = kernel.T

    def step(carry: Carry, inputs: tuple[Array, ...]) -> tuple[Carry, Array]:
        dc, dh = carry
        act, c, c_before, real, dc_out, dh_out = inputs
        i, f, g, o = jnp.split(act.astype(jnp.float32), 4, axis=-1)
        dc, dh = dc + dc_out, dh + dh_out
        tanh_c = jnp.tanh(c)
        d = dc + dh * o * (1.0 - tanh_c * tanh_c)
        dz = jnp.concatenate(
            [d * g * i * (1.0 - i), d * c_before * f * (1.0 - f), d * i * (1.0 - g * g), dh * tanh_c * o * (1.0 - o)],
            axis=-1,
        )
        real = real[:, None]
        dz = jnp.where(real, dz, 0.0).astype(kernel.dtype)
        dh = jnp.dot(dz, kernel_t, preferred_element_type=jnp.float32) + jnp.where(real, 0.0, dh)
        return (jnp.where(real, d * f, dc), dh), dz.astype(gates.dtype)

    xs = (gates, cells, _before(cells, c0, reverse), mask, *cotangents)
    (dc0, dh0), dz = jax.lax.scan(step, (jnp.zeros_like(c0), jnp.zeros_like(h0)), xs, reverse=not reverse)
    h_before = _before(outputs, h0, reverse).astype(kernel.dtype)
    d_kernel = jnp.einsum("tbh,tbz->hz", h_before, dz.astype(kernel.dtype), preferred_element_type=jnp.float32)
    return dz, d_kernel.astype(kernel.dtype), None, dc0, dh0


_lstm.defvjp(_lstm_fwd, _lstm_bwd)


def lstm(
    projected: Float[Array, "T B Z"],
    recurrent_kernel: Float[Array, "H Z"],
    mask: Bool[Array, "T B"],
    *,
    initial: Carry | None = None,
    reverse: bool = False,
) -> tuple[Float[Array, "T B H"], Carry]:
    """Runs an LSTM over time-major sequences of different lengths.

    A masked step leaves the state as it was and gives a zero output, so that padding before, after
    or between the real steps changes nothing, in either direction.

    Args:
        projected: `[T, B, 4H]`, input products of all steps with the bias added.
        recurrent_kernel: `[H, 4H]`; its dtype is the one that products are made in.
        mask: `[T, B]`, True where a step is real.
        initial: state before the first step; zeros if absent.
        reverse: run from the last step to the first; outputs stay where their inputs are.

    Returns:
        The outputs `[T, B, H]` float32 (zero where masked), and the state after the last real step.
    """
    batch, width = projected.shape[1], recurrent_kernel.shape[0]
    zeros = jnp.zeros_like(projected, jnp.float32, shape=(batch, width))
    c0, h0 = initial if initial is not None else (zeros, zeros)
    cells, outputs = _lstm(projected, recurrent_kernel, mask, c0, h0, reverse)
    last = 0 if reverse else -1
    return jnp.where(mask[..., None], outputs, 0.0), (cells[last], outputs[last])


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """`x @ kernel` of `[..., D]` and `[D, Z]`, with a quicker gradient of the kernel.

    Left to itself, differentiation makes the gradient of the kernel as the transpose of a product of
    transposed copies; here it is one product of what there is.
    """
    return x @ kernel


def _product_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_bwd(saved: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return dz @ kernel.T, jnp.einsum("...d,...z->dz", x, dz)


product.defvjp(_product_fwd, _product_bwd)


def run_lstm(parameters: tuple[Array, Array, Array], x: Array, mask: Array) -> Array:
    """One layer from zeros over `x` `[T, B, D]`: outputs `[T, B, H]` in its dtype.

    The parameters are input kernel `[D, 4H]`, recurrent kernel `[H, 4H]` and bias `[4H]`.
    """
    kernel, recurrent, bias = parameters
    outputs, _ = lstm(bias + product(x, kernel), recurrent, mask)
    return outputs.astype(x.dtype)


StepWeights = tuple[Array, Array]
"""One layer's joined kernel `[4H, inputs + H]` and bias `[4H]` in the compute dtype, see `join_kernels`."""


def join_kernels(input_kernel: Array, recurrent_kernel: Array, bias: Array, dtype: jnp.dtype) -> StepWeights:
    """Input and recurrent kernel as one, an output a row: a step is then one product, and a quick one.

    A product with few rows (the beams of one sentence) is the time in which the weights arrive from memory. On CPUs
    XLA reads them at half the speed where the outputs are columns.
    """
    joined = jnp.concatenate([input_kernel.T, recurrent_kernel.T], axis=1)
    return joined.astype(dtype), bias.astype(dtype)


def lstm_step(weights: StepWeights, parts: tuple[Array, ...], carry: Carry) -> Carry:
    """One step of a layer: the parts of its input `[B, part]` and the old state to the new state."""
    kernel, bias = weights
    c, h = carry
    x = jnp.concatenate([part.astype(kernel.dtype) for part in (*parts, h)], axis=-1)
    z = jnp.einsum("bd,zd->bz", x, kernel, preferred_element_type=jnp.float32)
    return lstm_cell(z + bias, c)


class LSTM(nn.Module):
    """The parameters of one LSTM layer, and the two ways to run it: a whole sequence, or one step.

    The input may come in parts (a layer below and an attention context, say): each part meets its
    own rows of the one input kernel and nothing is concatenated.

    Attributes:
        features: H, width of the output.
        input_features: widths of the parts of the input.
        dtype: dtype of the products; the state stays float32.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    features: int
    input_features: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.04

    def setup(self) -> None:
        init, bias = matrix_initializer(self.init_scale), gate_bias_initializer(self.init_scale)
        width = 4 * self.features
        inputs = sum(self.input_features)
        self.input_kernel = declare(self, "input_kernel", init, (inputs, width), ("embed", "gates"))
        self.recurrent_kernel = declare(self, "recurrent_kernel", init, (self.features, width), ("hidden", "gates"))
        self.bias = declare(self, "bias", bias, (width,), ("gates",))

    def kernels(self) -> list[Array]:
        """The rows of the input kernel that belong to each part, `[part, 4H]`, in the compute dtype."""
        ends = [sum(self.input_features[: n + 1]) for n in range(len(self.input_features))]
        return jnp.split(self.input_kernel.astype(self.dtype), ends[:-1])

    def parameters(self) -> tuple[Array, Array, Array]:
        """Input kernel, recurrent kernel and bias in the compute dtype, for `run_lstm`."""
        own = (self.input_kernel, self.recurrent_kernel, self.bias)
        return own[0].astype(self.dtype), own[1].astype(self.dtype), own[2].astype(self.dtype)

    def project(self, *parts: Array | None) -> Array:
        """Input products plus bias, `[..., 4H]`: all that can be done before the loop.

        A part that is None is left out (its product can be added later, inside a loop).
        """
        projected = self.bias.astype(self.dtype)
        for part, kernel in zip(parts, self.kernels(), strict=True):
            if part is not None:
                projected = projected + product(part.astype(self.dtype), kernel)
        return projected

    def __call__(
        self, *parts: Array, mask: Array, initial: Carry | None = None, reverse: bool = False
    ) -> tuple[Array, Carry]:
        """Runs over whole sequences: parts `[T, B, part]` to outputs `[T, B, H]` and the last state."""
        kernel = self.recurrent_kernel.astype(self.dtype)
        outputs, carry = lstm(self.project(*parts), kernel, mask, initial=initial, reverse=reverse)
        return outputs.astype(self.dtype), carry

    def step_weights(self) -> StepWeights:
        """The layer's parameters as `step` reads them, to be made once, before a loop over steps."""
        return join_kernels(self.input_kernel, self.recurrent_kernel, self.bias, self.dtype)

    def step(self, *parts: Array, carry: Carry, weights: StepWeights | None = None) -> Carry:
        """Runs one step: parts `[B, part]` and the old state to the new state."""
        return lstm_step(self.step_weights() if weights is None else weights, parts, carry)
