"""Recurrent layers: parts of an input, steps against sequences, both directions, dropout between steps, dtypes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.keys import CHOICES
from seq2seq_jax.layers import recurrent
from seq2seq_jax.layers.cells import GRUCell, LSTMCell
from seq2seq_jax.layers.dropout import make_places
from seq2seq_jax.layers.recurrent import LayerKind, Recurrent, make_cell
from seq2seq_jax.layers.runs import Loop, choose_loop

T, B, P = 7, 4, 5
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
# Real steps in front, behind, everywhere, and with holes.
MASK = jnp.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1, 0]], bool).T
PLACES = make_places(jnp.arange(B), T)
KINDS = {
    "lstm": LayerKind(P),
    "projected": LayerKind(P, LSTMCell(peepholes=True), inner=6),
    "normalised": LayerKind(P, LSTMCell(layer_norm=True)),
    "gru": LayerKind(P, GRUCell()),
    "normalised gru": LayerKind(P, GRUCell(layer_norm=True)),
}


def make_layer(kind: LayerKind):
    """A layer with an input in two parts, its parameters (biases and vectors included) and inputs."""
    layer = Recurrent(kind, 5)
    first, second = jnp.split(jax.random.normal(jax.random.key(1), (T, B, 5)), [3], axis=-1)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: layer.init(jax.random.key(0), first, second, mask=MASK)))
    rng = np.random.default_rng(4)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)
    return layer, variables, first, second


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_flax(reverse):
    layer, variables, first, second = make_layer(KINDS["lstm"])
    p = variables["params"]
    cell = {}
    for n, gate in enumerate("ifgo"):
        columns = slice(n * P, (n + 1) * P)
        cell[f"i{gate}"] = {"kernel": p["input_kernel"][:, columns]}
        cell[f"h{gate}"] = {"kernel": p["recurrent_kernel"][:, columns], "bias": p["bias"][columns]}
    rnn = nn.RNN(
        nn.OptimizedLSTMCell(P), time_major=True, return_carry=True, reverse=reverse, keep_order=True, name="rnn"
    )
    inputs = jnp.concatenate([first, second], axis=-1)
    want_state, want = rnn.apply({"params": {"cell": cell}}, inputs)
    outputs, state = layer.apply(variables, first, second, mask=None, reverse=reverse)
    np.testing.assert_allclose(outputs, want, atol=2e-6)
    for got, expected in zip(state, want_state, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("name", KINDS)
def test_steps_equal_the_sequence(name):
    kind = KINDS[name]
    layer, variables, first, second = make_layer(kind)
    outputs, last = layer.apply(variables, first, second, mask=None)
    weights = layer.apply(variables, method=Recurrent.step_weights)
    step = jax.jit(
        lambda a, b, state: layer.apply(variables, a, b, state=state, weights=weights, method=Recurrent.step)
    )
    state = kind.zero_state(first, (B,))
    for t in range(T):
        state = step(first[t], second[t], state)
        np.testing.assert_allclose(state[-1], outputs[t], atol=3e-6)
    for got, expected in zip(state, last, strict=True):
        np.testing.assert_allclose(got, expected, atol=3e-6)


def test_a_part_left_out_can_be_added_later():
    layer, variables, first, second = make_layer(KINDS["lstm"])
    project = functools.partial(recurrent.project, layer.kind, variables["params"])
    later = second @ variables["params"]["input_kernel"][3:]
    np.testing.assert_allclose(project((first, None)) + later, project((first, second)), atol=2e-6)
    with pytest.raises(ValueError, match="`parts` must"):
        project((None,))


@pytest.mark.parametrize("both_at_once", [False, True])
def test_both_directions_are_a_layer_each(both_at_once):
    kind = LayerKind(P, loop=Loop(both_at_once=both_at_once))
    layer, variables, first, second = make_layer(kind)
    x, ahead = jnp.concatenate([first, second], axis=-1), variables["params"]
    back = jax.tree.map(lambda leaf: leaf[::-1] + 0.1, ahead)
    found = recurrent.run_both(kind, ahead, back, x, MASK)
    wanted = [
        layer.apply({"params": own}, x, mask=MASK, reverse=reverse)[0]
        for own, reverse in ((ahead, False), (back, True))
    ]
    np.testing.assert_allclose(found, jnp.concatenate(wanted, axis=-1), atol=2e-6)


def test_dropout_between_steps_is_one_draw_a_row():
    kind = LayerKind(64, recurrent_dropout=0.25)
    key, draw = jax.random.key(3), jax.jit(functools.partial(recurrent.draw_noise, kind))
    noise = np.asarray(draw(key, PLACES))
    assert noise.shape == (B, 64) and set(np.unique(noise)) == {0.0, np.float32(4 / 3)}
    assert len({row.tobytes() for row in noise}) == B
    np.testing.assert_array_equal(draw(key, PLACES[2:, 1:]), noise[1:])  # rows keep theirs wherever they are
    assert recurrent.draw_noise(kind, None, PLACES) is None and recurrent.draw_noise(KINDS["lstm"], key, PLACES) is None


def test_dropout_between_steps_multiplies_what_goes_to_the_next_one():
    kind = LayerKind(P, recurrent_dropout=0.5)
    layer, variables, first, second = make_layer(kind)
    run = functools.partial(layer.apply, variables, first, second, mask=None, places=PLACES)
    outputs, _ = run(train=True, rngs={"dropout": jax.random.key(0)})
    noise = layer.apply(variables, PLACES, train=True, rngs={"dropout": jax.random.key(0)}, method=Recurrent.draw_noise)
    state = kind.zero_state(first, (B,))
    for t in range(T):
        c, h = state
        state = layer.apply(variables, first[t], second[t], state=(c, h * noise), method=Recurrent.step)
        np.testing.assert_allclose(outputs[t], state[1], atol=2e-6)
    still, _ = run(train=False)
    assert np.abs(still - outputs).max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_near_float32(name):
    kind = KINDS[name]
    layer, variables, first, second = make_layer(kind)
    low = Recurrent(LayerKind(P, kind.cell, kind.inner, dtype=jnp.dtype(jnp.bfloat16)), 5)

    def value_and_grad(layer):
        def total(variables):
            outputs, state = layer.apply(variables, first, second, mask=MASK)
            return jnp.sum(jnp.sin(outputs.astype(jnp.float32))) + jnp.sum(state[0]), outputs

        return jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=QUICKLY)(variables)

    (_, outputs), gradients = value_and_grad(low)
    (_, want), want_gradients = value_and_grad(layer)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs.astype(jnp.float32), want, atol=0.06 if kind.cell.gates == 3 else 0.03)
    for path, expected in jax.tree_util.tree_leaves_with_path(want_gradients):
        name = path[-1].key
        got = gradients["params"][name]
        assert got.dtype == jnp.float32
        assert np.linalg.norm(got - expected) < 0.04 * np.linalg.norm(expected), name


def test_the_gradient_of_a_bias_is_summed_in_float32():
    layer, variables, first, second = make_layer(KINDS["lstm"])
    low = Recurrent(LayerKind(P, dtype=jnp.dtype(jnp.bfloat16)), 5)
    long = [jnp.tile(part, (100, 1, 1)) for part in (first, second)]

    def gradient(layer):
        def total(variables):
            return jnp.sum(layer.apply(variables, *long, mask=None)[0].astype(jnp.float32))

        return jax.jit(jax.grad(total), compiler_options=QUICKLY)(variables)["params"]["bias"]

    want = gradient(layer)  # sums of 2,800 terms: in bfloat16 they are off by several percent
    assert np.linalg.norm(gradient(low) - want) < 0.01 * np.linalg.norm(want)


def test_parameters_name_their_axes_and_start_as_the_cell_says():
    layer = Recurrent(LayerKind(P, LSTMCell(peepholes=True, layer_norm=True), inner=6, init_scale=0.0), 3)
    params = jax.jit(lambda key: layer.init(key, jnp.zeros((T, B, 3)), mask=None))(jax.random.key(0))["params"]
    shapes = {name: (box.value.shape, box.names) for name, box in params.items()}
    assert shapes["input_kernel"] == ((3, 24), ("embed", "gates"))
    assert shapes["recurrent_kernel"] == ((P, 24), ("hidden", "gates"))
    assert shapes["projection_kernel"] == ((6, P), ("hidden", "embed"))
    assert shapes["bias"] == ((24,), ("gates",)) and shapes["peephole_i"] == ((6,), ("hidden",))
    np.testing.assert_array_equal(params["recurrent_gain"].value, 1.0)
    np.testing.assert_array_equal(params["bias"].value, np.repeat([0.0, 1.0, 0.0, 0.0], 6))


def test_what_there_is_no_cell_for_is_refused():
    with pytest.raises(ValueError, match="`cell` must be one of"):
        make_cell("rnn", layer_norm=False, features=4, inner=0)
    with pytest.raises(ValueError, match="no projection"):
        make_cell("gru", layer_norm=False, features=4, inner=8)
    with pytest.raises(ValueError, match="`cells` must be 0"):
        make_cell("lstm", layer_norm=False, features=4, inner=-1)


def test_a_config_names_the_cells_that_there_are():
    assert CHOICES["model.cell"] == recurrent.CELLS


def test_training_with_dropout_between_steps_asks_for_places():
    layer, variables, first, second = make_layer(LayerKind(P, recurrent_dropout=0.5))
    with pytest.raises(ValueError, match="`places` must be given"):
        layer.apply(variables, first, second, mask=None, train=True, rngs={"dropout": jax.random.key(0)})


def test_a_loop_follows_its_platform():
    assert choose_loop("cpu") == Loop() and choose_loop("cpu", unroll=3).unroll == 3
    assert choose_loop("gpu").unroll > 1 and choose_loop("gpu").both_at_once
