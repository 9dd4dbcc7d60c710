"""Logits of frames over a split vocabulary, and their gradients, against the plain product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.parallel.frame_logits import frame_logits
from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.parallel.softmax import VocabularySplit

ROWS, FRAMES, WIDTH, VOCAB = 16, 5, 6, 19
SHAPES = {
    "stage x tensor": {"data": 1, "stage": 4, "tensor": 2},
    "stage, rows over data too": {"data": 2, "stage": 4, "tensor": 1},
    "tensor": {"data": 2, "stage": 1, "tensor": 4},
    "data alone": {"data": 8, "stage": 1, "tensor": 1},
    "exact": {"data": 1, "stage": 4, "tensor": 2, "strategy": "exact"},
}


def make_inputs():
    """Hidden states, kernel, bias, and the weights of a sum of logits."""
    generator = np.random.default_rng(0)
    shapes = (ROWS, FRAMES, WIDTH), (VOCAB, WIDTH), (VOCAB,), (ROWS, FRAMES, VOCAB)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


def test_on_one_device_it_is_the_product():
    hidden, kernel, bias, _ = make_inputs()
    wanted = np.asarray(hidden, np.float64) @ np.asarray(kernel).T + bias
    np.testing.assert_allclose(frame_logits(hidden, kernel, bias), wanted, rtol=1e-5, atol=1e-5)
    rounded = frame_logits(hidden.astype(jnp.bfloat16), kernel, bias, vocab_size=VOCAB - 2)
    assert rounded.dtype == jnp.float32 and rounded.shape == (ROWS, FRAMES, VOCAB - 2)
    np.testing.assert_allclose(rounded, wanted[..., :-2], atol=0.1)


@pytest.mark.parametrize("name", SHAPES)
def test_a_split_vocabulary_gives_the_same_with_gradients(name):
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    layout = make_layout(**{"fsdp": 1} | SHAPES[name])
    split = layout.execution.vocabulary
    hidden, kernel, bias, weights = make_inputs()
    missing = -VOCAB % int(np.prod([layout.mesh.shape[axis] for axis in split.axes]))
    padded = jnp.pad(kernel, ((0, missing), (0, 0)), constant_values=3.0), jnp.pad(bias, (0, missing))
    rows, columns = PartitionSpec(layout.rows), PartitionSpec(split.axes)

    def local(hidden, kernel, bias, weights):
        def total(hidden, kernel, bias):
            logits = frame_logits(hidden, kernel, bias, split=split, vocab_size=VOCAB)
            return jnp.sum(jnp.sin(logits) * weights), logits

        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(hidden, kernel, bias)

    def whole(hidden, kernel, bias):
        return jnp.sum(jnp.sin(hidden @ kernel.T + bias) * weights)

    specs = {"in_specs": (rows, columns, columns, rows), "out_specs": ((rows, columns, columns), rows)}
    run = jax.jit(jax.shard_map(local, mesh=layout.mesh, **specs))
    (d_hidden, d_kernel, d_bias), logits = run(hidden, *padded, weights)
    np.testing.assert_allclose(logits, hidden @ kernel.T + bias, rtol=1e-5, atol=1e-5)
    wanted = jax.grad(whole, argnums=(0, 1, 2))(hidden, kernel, bias)
    for ours, theirs in zip((d_hidden, d_kernel[:VOCAB], d_bias[:VOCAB]), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(d_kernel[VOCAB:], 0.0)


def test_devices_of_a_search_that_hold_the_same_rows_get_all_columns():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    hidden, kernel, bias, _ = make_inputs()
    layout = make_layout(data=2, fsdp=1, stage=4, tensor=1)
    padded = jnp.pad(kernel, ((0, 1), (0, 0))), jnp.pad(bias, (0, 1))
    rows, columns = PartitionSpec("data"), PartitionSpec("stage")

    def local(hidden, kernel, bias):
        logits = frame_logits(hidden, kernel, bias, split=VocabularySplit(("stage",)), vocab_size=VOCAB)
        return jax.lax.pmax(logits, "stage")

    run = jax.jit(jax.shard_map(local, mesh=layout.mesh, in_specs=(rows, columns, columns), out_specs=rows))
    np.testing.assert_allclose(run(hidden, *padded), hidden @ kernel.T + bias, rtol=1e-5, atol=1e-5)
