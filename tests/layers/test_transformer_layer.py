"""One layer of a Transformer: where its sums and its normalisation are."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.transformer_layer import (
    NORMS,
    TransformerLayer,
    list_parameters,
    make_step_weights,
    run_layer,
    run_step,
)
from seq2seq_jax.parallel.layout import ONE_PROGRAM

WIDTH = 8


def normalise(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gain + bias


@pytest.mark.parametrize("norm", NORMS)
def test_every_sub_layer_is_added_to_its_input(norm: str) -> None:
    """With kernels of zeros a sub-layer gives its last bias, whatever it reads."""
    kind = TransformerLayer(WIDTH, 2, 12, ONE_PROGRAM, norm=norm, activation="relu", crosses=True)
    rng = np.random.default_rng(0)
    own = {}
    for name, (shape, _, _) in list_parameters(kind).items():
        own[name] = np.zeros(shape) if name.endswith("kernel") else rng.normal(size=shape)
    x, memory = rng.normal(size=(2, 5, WIDTH)), rng.normal(size=(2, 3, WIDTH))
    want = x
    for part in ("self", "cross", "mlp"):
        want = want + own[f"{part}_out_bias"]
        if norm == "post":
            want = normalise(want, own[f"{part}_norm_gain"], own[f"{part}_norm_bias"])
    given = {name: jnp.asarray(array, jnp.float32) for name, array in own.items()}
    shared = {"memory": jnp.asarray(memory, jnp.float32), "memory_mask": jnp.ones((2, 3), bool)}
    got = run_layer(kind, given, 0, jnp.asarray(x, jnp.float32), {}, shared)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_steps_that_start_with_whatever_lies_in_the_cache_equal_the_sequence() -> None:
    kind = TransformerLayer(WIDTH, 2, 12, ONE_PROGRAM, causal=True)
    rng, rows, room = np.random.default_rng(0), 3, 5
    own = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, (shape, _, _) in list_parameters(kind).items()
    }
    x = jnp.asarray(rng.normal(size=(rows, room, WIDTH)), jnp.float32)
    want, weights = run_layer(kind, own, 0, x, {}, {}), make_step_weights(kind, own)
    cached = tuple(jnp.full((rows, 2, room, WIDTH // 2), value) for value in (3.0, -5.0))
    for n in range(room):
        seen = jnp.broadcast_to(jnp.arange(room) <= n, (rows, room))
        made, cached, _ = run_step(kind, weights, x[:, n], jnp.full(rows, n), cached, seen=seen, bias=None)
        np.testing.assert_allclose(made, want[:, n], rtol=1e-4, atol=1e-4)
