"""The cells: their hand-written backward against autodiff of their own forward, and what they ask of a caller.

(Their values are compared with the papers' equations in `test_recurrence.py`.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.cells import GRUCell, LSTMCell, layer_norm

B, H = 3, 4
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
CELLS = [
    LSTMCell(),
    LSTMCell(peepholes=True),
    LSTMCell(layer_norm=True),
    LSTMCell(peepholes=True, layer_norm=True),
    GRUCell(),
    GRUCell(layer_norm=True),
]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=str)


def draw(cell):
    """x, p, state and vectors."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    z = cell.gates * H
    state = tuple(normal(B, H) for _ in range(cell.states))
    return normal(B, z), normal(B, z), state, {name: value + normal(k) for name, (k, value) in cell.vectors(H).items()}


@every_cell
def test_one_step_back_is_autodiff_of_one_step(cell):
    rng = np.random.default_rng(1)
    d_state = tuple(jnp.asarray(rng.normal(size=(B, H)), jnp.float32) for _ in range(cell.states))

    def by_hand(x, p, state, vectors):
        after, saved = cell.forward(x, p, state, vectors)
        dx, d_before, kept = cell.backward(saved, state, after, d_state, vectors)
        terms = cell.vector_terms(saved, kept, state, after, dx, vectors)
        return dx, cell.through(saved, dx, vectors), d_before, {name: term.sum(0) for name, term in terms.items()}

    def by_autodiff(*own):
        return jax.vjp(lambda *own: cell.forward(*own)[0], *own)[1](d_state)

    got, want = (jax.jit(each, compiler_options=QUICKLY)(*draw(cell)) for each in (by_hand, by_autodiff))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, tuple(want))


@every_cell
def test_what_a_cell_says_of_itself(cell):
    x, p, state, vectors = draw(cell)
    after, saved = cell.forward(x, p, state, vectors)
    assert len(after) == cell.states
    if cell.joins:
        joined, _ = cell.forward(x + p, jnp.zeros([]), state, vectors)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), joined, after)
    if not cell.reads_output:
        again, _ = cell.forward(x, p, (*state[:-1], jnp.full_like(state[-1], jnp.nan)), vectors)
        jax.tree.map(np.testing.assert_array_equal, again, after)
    if isinstance(cell, LSTMCell):
        np.testing.assert_allclose(cell.emit(saved, after[:-1], vectors), after[-1], atol=1e-6)
    assert hash(cell) == hash(type(cell)(**vars(cell)))


def test_layer_norm_is_that_of_flax():
    from flax import linen as nn

    rng = np.random.default_rng(2)
    x, gain = jnp.asarray(rng.normal(2.0, 3.0, (B, 8)), jnp.float32), jnp.asarray(rng.normal(size=8), jnp.float32)
    want = nn.LayerNorm(epsilon=1e-6, use_bias=False).apply({"params": {"scale": gain}}, x)
    np.testing.assert_allclose(layer_norm(x, gain), want, atol=1e-5)


def test_the_gates_of_a_gru_are_normalised_apart_from_its_candidate():
    products, gain = jnp.arange(3.0 * H)[None] ** 2, jnp.full(3 * H, 2.0)
    got = GRUCell(layer_norm=True).normalise(products, {"input_gain": gain})
    for part in (got[:, : 2 * H], got[:, 2 * H :]):
        np.testing.assert_allclose(part.mean(), 0.0, atol=1e-5)
        np.testing.assert_allclose(part.std(), 2.0, rtol=1e-4)


@pytest.mark.parametrize("cell", [LSTMCell(), GRUCell()], ids=str)
def test_without_layer_norm_products_are_left_alone(cell):
    products = jnp.ones((2, 3), jnp.bfloat16)
    assert cell.normalise(products, {}) is products
    assert cell.input_vectors(H) == {}


def test_the_output_of_a_gru_cannot_be_projected():
    with pytest.raises(ValueError, match="projected"):
        GRUCell().emit((), (), {})
