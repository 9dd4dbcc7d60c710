"""The baseline: an LSTM and a GRU as `lax.scan` has them, input products before the loop, differentiated by JAX.

What anyone would write first. The gradient of such a loop adds to the gradient of the recurrent kernel at every step
and keeps what JAX finds it needs; `seq2seq_jax.layers` is measured against it. The precision is the same: products in
the kernel's dtype with float32 sums, states float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.cells import Cell, LSTMCell, State
from seq2seq_jax.layers.runs import Loop, Weights


def scan_lstm(
    projected: Array,
    recurrent_kernel: Array,
    mask: Array | None = None,
    *,
    initial: State | None = None,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Array, State]:
    """An LSTM over pre-activations.

    Args:
        projected: `[T, B, 4H]`, input products with the bias; gates in the order i, f, g, o.
        recurrent_kernel: `[H, 4H]`.
        mask: `[T, B]`, True where a step is real: others keep the state and give zeros. None: all are.
        initial: cell and output `[B, H]` float32; zeros if absent.
        reverse: from the last step to the first.
        unroll: steps in an iteration of the loop.

    Returns:
        Outputs `[T, B, H]` float32, and the last state.
    """

    def step(carry: State, inputs: tuple[Array, Array | None]) -> Any:
        c, h = carry
        x, real = inputs
        z = x + jnp.dot(h.astype(recurrent_kernel.dtype), recurrent_kernel, preferred_element_type=jnp.float32)
        i, f, g, o = jnp.split(z, 4, axis=-1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        if real is None:
            return (new_c, new_h), new_h
        real = real[:, None]
        return (jnp.where(real, new_c, c), jnp.where(real, new_h, h)), jnp.where(real, new_h, 0.0)

    zeros = jnp.zeros_like(projected, jnp.float32, shape=(projected.shape[1], recurrent_kernel.shape[0]))
    start = (zeros, zeros) if initial is None else initial
    carry, outputs = jax.lax.scan(step, start, (projected, mask), reverse=reverse, unroll=unroll)
    return outputs, carry


def scan_layer(
    cell: Cell,
    projected: Array,
    weights: Weights,
    mask: Array | None = None,
    *,
    initial: State | None = None,
    noise: Array | None = None,
    reverse: bool = False,
    loop: Loop | None = None,
) -> tuple[Array, State]:
    """The same with the arguments and results of `seq2seq_jax.layers.recurrence.recur`, of plain LSTMs alone."""
    del loop
    if cell != LSTMCell() or noise is not None or weights.projection is not None:
        raise ValueError("The baseline must be given an LSTM without more, but has a cell or weights that it lacks.")
    kernel = weights.recurrent.astype(projected.dtype)
    if weights.bias is not None:
        projected = (projected + weights.bias).astype(kernel.dtype)
    outputs, last = scan_lstm(projected, kernel, mask, initial=initial, reverse=reverse)
    return outputs.astype(projected.dtype), last


def scan_both(
    cell: Cell, projected: Any, weights: Any, mask: Array | None = None, *, noise: Any = (None, None), loop: Any = None
) -> tuple[Array, Array]:
    """Likewise of `recur_both`: one direction after the other."""
    del loop
    each = zip(projected, weights, noise, (False, True), strict=True)
    ahead, back = (scan_layer(cell, p, w, mask, noise=n, reverse=turned)[0] for p, w, n, turned in each)
    return ahead, back


def scan_gru(projected: Array, recurrent_kernel: Array, candidate_bias: Array, *, unroll: int = 1) -> Array:
    """A GRU whose reset gate meets the recurrent product and its bias `[H]` (cuDNN's), gates in the order r, z, n.

    Takes `[T, B, 3H]` and `[H, 3H]`, gives `[T, B, H]` float32.
    """

    def step(h: Array, x: Array) -> tuple[Array, Array]:
        p = jnp.dot(h.astype(recurrent_kernel.dtype), recurrent_kernel, preferred_element_type=jnp.float32)
        x_r, x_z, x_n = jnp.split(x.astype(jnp.float32), 3, axis=-1)
        p_r, p_z, p_n = jnp.split(p, 3, axis=-1)
        r, z = jax.nn.sigmoid(x_r + p_r), jax.nn.sigmoid(x_z + p_z)
        h = (1.0 - z) * jnp.tanh(x_n + r * (p_n + candidate_bias)) + z * h
        return h, h

    zeros = jnp.zeros_like(projected, jnp.float32, shape=(projected.shape[1], recurrent_kernel.shape[0]))
    return jax.lax.scan(step, zeros, projected, unroll=unroll)[1]


def replace_loops() -> None:
    """From here on the recurrent layers of this process are these scans."""
    from seq2seq_jax.layers import recurrent

    recurrent.recur, recurrent.recur_both = scan_layer, scan_both  # type: ignore[assignment]
