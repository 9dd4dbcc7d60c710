"""What dropout of a Conformer layer is keyed by; its equations are those of `tests/models/test_ctc.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seq2seq_jax.layers import conformer
from seq2seq_jax.layers.transformer_layer import TransformerLayer
from seq2seq_jax.parallel.layout import ONE_PROGRAM

WIDTH, KERNEL, LAYERS = 4, 3, 3


def test_no_two_sub_layers_of_all_layers_lose_the_same_entries(monkeypatch) -> None:
    drawn = []

    def drop(rate, x, key, places, draw):
        drawn.append(draw)
        return x

    monkeypatch.setattr(conformer, "drop", drop)
    kind = TransformerLayer(WIDTH, 2, 6, ONE_PROGRAM, dropout=0.5)
    own = {name: jnp.ones(shape) for name, (shape, _, _) in conformer.list_layer(kind, KERNEL).items()}
    x, mask = jnp.ones((2, 5, WIDTH)), jnp.ones((2, 5), bool)
    extras = {"places": jnp.zeros((2, 5, 2), jnp.int32), "mask": mask}
    for n in range(LAYERS):
        conformer.run_layer(kind, own, n, x, extras, {"mask": mask}, key=jax.random.key(0), bias=None)
    assert len(set(drawn)) == len(drawn) == 4 * LAYERS
