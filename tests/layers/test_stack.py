"""A stack of recurrent layers against single layers one by one, its steps against its sequence, its draws."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.layers import stack as stack_module
from seq2seq_jax.layers.cells import GRUCell, LSTMCell
from seq2seq_jax.layers.dropout import dropout_mask, make_places
from seq2seq_jax.layers.recurrent import LayerKind, Recurrent
from seq2seq_jax.layers.stack import RecurrentStack

L, T, B, H, SIDE = 3, 4, 2, 5, 3
LAYER = LayerKind(H)
PLACES = make_places(jnp.arange(B), T)
KEY = jax.random.key(0)
MASK = jnp.array([[1, 1, 1, 1], [0, 1, 0, 1]], bool).T


def draw_inputs():
    """Input, side input and initial states."""
    rng = np.random.default_rng(0)
    shapes = (T, B, H), (T, B, SIDE), (L, B, H), (L, B, H)
    x, side, c, h = (jnp.asarray(rng.normal(0, 0.7, shape), jnp.float32) for shape in shapes)
    return x, side, (c, h)


def make_stack(kind=LAYER, **options):
    """A stack with a side input, and parameters (biases included)."""
    stack = RecurrentStack(kind, L, SIDE, **options)
    x, side, _ = draw_inputs()
    shapes = nn.meta.unbox(jax.eval_shape(lambda key: stack.init(key, x, side, mask=MASK, places=PLACES), KEY))
    rng = np.random.default_rng(1)
    return stack, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("residual_from", [0, 1, L])
def test_a_stack_is_its_layers_one_by_one(residual_from, reverse):
    stack, variables = make_stack(residual_from=residual_from)
    x, side, initial = draw_inputs()
    found, (c, h) = stack.apply(variables, x, side, mask=MASK, places=PLACES, initial=initial, reverse=reverse)
    layer = Recurrent(LayerKind(H), H + SIDE)
    for n in range(L):
        own = jax.tree.map(lambda leaf, n=n: leaf[n], variables)
        y, last = layer.apply(own, x, side, mask=MASK, initial=(initial[0][n], initial[1][n]), reverse=reverse)
        x = x + y if n >= residual_from else y
        np.testing.assert_allclose((c[n], h[n]), last, atol=2e-6)
    np.testing.assert_allclose(found, x, atol=2e-6)


@pytest.mark.parametrize(
    "kind", [LayerKind(H), LayerKind(H, GRUCell()), LayerKind(H, LSTMCell(peepholes=True), inner=7)], ids=repr
)
def test_steps_equal_the_sequence(kind):
    stack, variables = make_stack(kind, residual_from=1)
    x, side, _ = draw_inputs()
    rng = np.random.default_rng(5)
    initial = tuple(jnp.asarray(rng.normal(0, 0.7, (L, B, width)), jnp.float32) for width in kind.state_widths)
    wanted, last = stack.apply(variables, x, side, mask=None, places=PLACES, initial=initial)
    step = jax.jit(lambda x, side, state: stack.apply(variables, x, side, state=state, method="step"))
    carry = tuple(state.swapaxes(0, 1) for state in initial)  # [B, L, width], as a search keeps it
    for t in range(T):
        y, carry = step(x[t], side[t], carry)
        np.testing.assert_allclose(y, wanted[t], atol=2e-6)
    for ours, theirs in zip(carry, last, strict=True):
        np.testing.assert_allclose(ours.swapaxes(0, 1), theirs, atol=2e-6)


def test_every_layer_is_drawn_for_itself_and_names_its_axes():
    stack = RecurrentStack(LayerKind(H), L)
    x, _, _ = draw_inputs()
    params = jax.jit(lambda key: stack.init(key, x, mask=MASK, places=PLACES))(KEY)["params"]
    assert params["input_kernel"].names == ("layers", "embed", "gates")
    assert params["recurrent_kernel"].names == ("layers", "hidden", "gates") and params["bias"].names[0] == "layers"
    kernel = np.asarray(params["input_kernel"].value)
    assert kernel.shape == (L, H, 4 * H)
    assert len({layer.tobytes() for layer in kernel}) == L


def test_every_layer_and_the_side_input_have_dropout_of_their_own(monkeypatch):
    drawn = []

    def record(*args):
        drawn.append(dropout_mask(*args))
        return drawn[-1]

    monkeypatch.setattr(stack_module, "dropout_mask", record)
    stack, variables = make_stack(dropout=0.5)
    x, side, _ = draw_inputs()

    def run(key, *, train):
        drawn.clear()
        y, _ = stack.apply(variables, x, side, mask=MASK, places=PLACES, train=train, rngs={"dropout": key})
        return y, list(drawn)

    train = jax.jit(functools.partial(run, train=True))
    first, factors = train(KEY)
    assert [each.shape[-1] for each in factors] == [H, SIDE] * L
    assert len({np.asarray(each).tobytes() for each in factors}) == 2 * L
    np.testing.assert_array_equal(first, train(KEY)[0])
    assert (np.asarray(first) != np.asarray(train(jax.random.key(1))[0])).any()
    still, factors = run(KEY, train=False)
    assert not factors and (np.asarray(first) != np.asarray(still)).any()


def test_bfloat16_is_near_float32():
    (low, variables), (full, _) = make_stack(LayerKind(H, dtype=jnp.dtype(jnp.bfloat16))), make_stack()
    x, side, initial = draw_inputs()
    found, carry = low.apply(
        variables, x.astype(jnp.bfloat16), side.astype(jnp.bfloat16), mask=MASK, places=PLACES, initial=initial
    )
    wanted, _ = full.apply(variables, x, side, mask=MASK, places=PLACES, initial=initial)
    assert found.dtype == jnp.bfloat16 and carry[0].dtype == carry[1].dtype == jnp.float32
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.06)
