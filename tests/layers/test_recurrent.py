"""The LSTM with its hand-written backward pass against autodiff, a float64 loop, finite differences and flax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from seq2seq_jax.layers.recurrent import LSTM, lstm

T, B, H = 7, 4, 5
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
# Real steps in front, behind, everywhere, and with holes.
MASK = jnp.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1, 0]], bool).T


def draw(seed: int = 0) -> tuple[jax.Array, ...]:
    """Input products, recurrent kernel, first cell and first output."""
    rng = np.random.default_rng(seed)
    shapes = [(T, B, 4 * H), (H, 4 * H), (B, H), (B, H)]
    return tuple(jnp.asarray(rng.normal(0.0, 0.7, shape), jnp.float32) for shape in shapes)


def scan_lstm(projected, kernel, c, h, mask, reverse):
    """The same recurrence for autodiff to differentiate."""

    def step(carry, inputs):
        x, real = inputs
        i, f, g, o = jnp.split(x + carry[1] @ kernel, 4, axis=-1)
        c = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        new = jax.tree.map(lambda a, b: jnp.where(real[:, None], a, b), (c, h), carry)
        return new, jnp.where(real[:, None], new[1], 0.0)

    carry, outputs = jax.lax.scan(step, (c, h), (projected, mask), reverse=reverse)
    return outputs, carry


def loop_lstm(projected, kernel, c, h, mask, reverse):
    """One row at a time over its real steps alone, in float64."""
    projected, kernel, c, h = (np.array(a, np.float64) for a in (projected, kernel, c, h))
    outputs = np.zeros((T, B, H))
    for row in range(B):
        steps = np.flatnonzero(np.asarray(mask)[:, row])
        for t in steps[::-1] if reverse else steps:
            i, f, g, o = np.split(projected[t, row] + h[row] @ kernel, 4)
            c[row] = c[row] / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            h[row] = outputs[t, row] = np.tanh(c[row]) / (1 + np.exp(-o))
    return outputs, (c, h)


def custom_lstm(projected, kernel, c, h, mask, reverse):
    return lstm(projected, kernel, mask, initial=(c, h), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_values_equal_a_float64_loop_over_the_real_steps(reverse):
    args = draw()
    outputs, (c, h) = custom_lstm(*args, MASK, reverse)
    want, (want_c, want_h) = loop_lstm(*args, MASK, reverse)
    np.testing.assert_allclose(outputs, want, atol=2e-6)
    np.testing.assert_allclose(c, want_c, atol=2e-6)
    np.testing.assert_allclose(h, want_h, atol=2e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_autodiff_of_a_scan(reverse):
    args = draw(1)
    rng = np.random.default_rng(2)
    # Every result has a weight of its own, the last state included.
    weights = (rng.normal(size=(T, B, H)), tuple(rng.normal(size=(2, B, H))))

    def objective(function):
        def total(*args):
            results = function(*args, MASK, reverse)
            return sum(jax.tree.leaves(jax.tree.map(lambda w, r: jnp.vdot(w.astype(np.float32), r), weights, results)))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)), compiler_options=QUICKLY)

    value, gradients = objective(custom_lstm)(*args)
    want_value, want = objective(scan_lstm)(*args)
    np.testing.assert_allclose(value, want_value, rtol=1e-5)
    for name, got, expected in zip(("projected", "kernel", "c0", "h0"), gradients, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(np.asarray(gradients[0])[~np.asarray(MASK)], 0.0)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_finite_differences(reverse):
    run = jax.jit(lambda *args: custom_lstm(*args, MASK, reverse))
    check_grads(run, draw(3), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_absent_initial_state_is_zeros():
    projected, kernel, c, h = draw()
    outputs, _ = lstm(projected, kernel, MASK)
    want, _ = loop_lstm(projected, kernel, 0 * c, 0 * h, MASK, False)
    np.testing.assert_allclose(outputs, want, atol=2e-6)


def test_a_row_without_real_steps_keeps_its_state():
    projected, kernel, c, h = draw()
    mask = MASK & (jnp.arange(B) != 1)
    outputs, (last_c, last_h) = lstm(projected, kernel, mask, initial=(c, h))
    np.testing.assert_array_equal(outputs[:, 1], 0.0)
    np.testing.assert_array_equal(last_c[1], c[1])
    np.testing.assert_array_equal(last_h[1], h[1])


def make_layer(dtype=jnp.float32) -> tuple[LSTM, dict, jax.Array, jax.Array]:
    """A layer with an input in two parts, its parameters (bias included) and inputs."""
    layer = LSTM(H, (3, 2), dtype=dtype)
    first, second = jnp.split(jax.random.normal(jax.random.key(1), (T, B, 5)), [3], axis=-1)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: layer.init(jax.random.key(0), first, second, mask=MASK)))
    rng = np.random.default_rng(4)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)
    return layer, variables, first, second


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_flax(reverse):
    layer, variables, first, second = make_layer()
    p = variables["params"]
    cell = {}
    for n, gate in enumerate("ifgo"):
        columns = slice(n * H, (n + 1) * H)
        cell[f"i{gate}"] = {"kernel": p["input_kernel"][:, columns]}
        cell[f"h{gate}"] = {"kernel": p["recurrent_kernel"][:, columns], "bias": p["bias"][columns]}
    rnn = nn.RNN(
        nn.OptimizedLSTMCell(H), time_major=True, return_carry=True, reverse=reverse, keep_order=True, name="rnn"
    )
    inputs = jnp.concatenate([first, second], axis=-1)
    want_carry, want = rnn.apply({"params": {"cell": cell}}, inputs)
    outputs, carry = layer.apply(variables, first, second, mask=jnp.ones((T, B), bool), reverse=reverse)
    np.testing.assert_allclose(outputs, want, atol=2e-6)
    for got, expected in zip(carry, want_carry, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_steps_equal_the_sequence():
    layer, variables, first, second = make_layer()
    outputs, last = layer.apply(variables, first, second, mask=jnp.ones((T, B), bool))
    step = jax.jit(lambda a, b, carry: layer.apply(variables, a, b, carry=carry, method=LSTM.step))
    carry = (jnp.zeros((B, H)), jnp.zeros((B, H)))
    for t in range(T):
        carry = step(first[t], second[t], carry)
        np.testing.assert_allclose(carry[1], outputs[t], atol=2e-6)
    np.testing.assert_allclose(carry[0], last[0], atol=2e-6)


def test_a_part_left_out_can_be_added_later():
    layer, variables, first, second = make_layer()
    whole = layer.apply(variables, first, second, method=LSTM.project)
    rest = layer.apply(variables, first, None, method=LSTM.project)
    kernels = layer.apply(variables, method=LSTM.kernels)
    np.testing.assert_allclose(rest + second @ kernels[1], whole, atol=2e-6)


def test_bfloat16_is_near_float32():
    layer, variables, first, second = make_layer()
    low, *_ = make_layer(jnp.bfloat16)

    def value_and_grad(layer):
        def total(variables):
            outputs, carry = layer.apply(variables, first, second, mask=MASK)
            return jnp.sum(jnp.sin(outputs.astype(jnp.float32))) + jnp.sum(carry[0]), outputs

        return jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=QUICKLY)(variables)

    (_, outputs), gradients = value_and_grad(low)
    (_, want), want_gradients = value_and_grad(layer)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs.astype(jnp.float32), want, atol=0.02)
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert got.dtype == jnp.float32
        assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
