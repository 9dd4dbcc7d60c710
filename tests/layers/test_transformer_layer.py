"""One layer of a Transformer: where its sums and its normalisation are."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.transformer_layer import NORMS, TransformerLayer, list_parameters, run_layer
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
