"""Filters over attention's weights against sums in float64, and attention a row at a time against all rows at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.layers.recurrent import LayerKind
from seq2seq_jax.layers.speller import FILTERED, Speller, filter_places, spread_filter


@pytest.mark.parametrize("width", [1, 5, FILTERED + 1, 2 * FILTERED + 5])
@pytest.mark.parametrize("length", [1, 7, FILTERED, 2 * FILTERED + 3])
def test_a_filter_is_centred_on_its_place(length, width):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, length)), rng.normal(size=(width, 4))
    padded = np.pad(x, ((0, 0), (width // 2, width // 2)))
    wanted = np.stack([padded[:, s : s + width] @ kernel for s in range(length)], axis=1)
    spread = spread_filter(jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(filter_places(jnp.asarray(x, jnp.float32), spread, width), wanted, atol=1e-4)


@pytest.mark.parametrize("attention", ["content", "location"])
@pytest.mark.parametrize("beams", [0, 3])
def test_a_row_at_a_time_is_as_all_rows_at_once(beams, attention):
    """Also where `jax.vmap` adds hypotheses to the state, and not to the memory."""
    rng = np.random.default_rng(0)
    speller = Speller(LayerKind(6), 1, 5, 4, attention, 8, 3, 5, 0.0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    values, keys, mask = draw(4, 9, 4), draw(4, 9, 8), jnp.arange(9) < jnp.array([9, 1, 5, 8])[:, None]
    params = speller.init(jax.random.key(0), draw(2, 4, 5), keys, values, mask, jnp.zeros((2, 4, 2), int), train=False)
    bound = speller.bind(nn.unbox(params))
    own, start = bound.step_weights(), bound.start(values, mask)
    if attention == "location":  # filtered before the first step: all on the first frame
        np.testing.assert_array_equal(start.weights, np.eye(9)[[0] * 4])
    state = jax.tree.map(lambda x: draw(*x.shape, *[beams] * bool(beams)), start)

    def step(by_row):
        run = lambda x, state: bound.step(own, x, state, keys, values, mask, None, by_row=by_row)  # noqa: E731
        given = jnp.ones((4, 5, *[beams] * bool(beams)))
        return jax.jit(jax.vmap(run, in_axes=-1, out_axes=-1) if beams else run)(given, state)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step(True), step(False))
