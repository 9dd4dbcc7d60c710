"""Log-probabilities and draws of tokens, chunked and over a split vocabulary, against float64."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.parallel.layout import Layout, make_layout
from seq2seq_jax.parallel.log_probs import sample_tokens, token_log_probs
from seq2seq_jax.parallel.softmax import WHOLE

ROWS, TIME, WIDTH, VOCAB = 16, 5, 6, 19
SHAPES = {
    "stage x tensor": {"data": 1, "stage": 4, "tensor": 2},
    "stage, rows over data too": {"data": 2, "stage": 4, "tensor": 1},
    "exact": {"data": 1, "stage": 4, "tensor": 2, "strategy": "exact"},
}


def make_inputs():
    """Hidden states, kernel, bias, targets, uniform numbers."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(ROWS, TIME, WIDTH)).astype(np.float32)
    kernel = generator.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    bias = generator.normal(size=VOCAB).astype(np.float32)
    targets = generator.integers(0, VOCAB, (ROWS, TIME), dtype=np.int32)
    return hidden, kernel, bias, targets, generator.uniform(size=(ROWS, TIME)).astype(np.float32)


@functools.cache
def find_wanted():
    """Log-probabilities of the targets, and the tokens drawn where 0 and 2 are forbidden; float64."""
    hidden, kernel, bias, targets, uniform = make_inputs()
    logits = hidden.astype(np.float64) @ kernel.T.astype(np.float64) + bias
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    share = np.exp(logits)
    share[..., [0, 2]] = 0.0
    cumulated = np.cumsum(share, axis=-1) / share.sum(axis=-1, keepdims=True)
    drawn = (cumulated > uniform[..., None]).argmax(axis=-1)
    return np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0], drawn


def find(chunk: int, layout: Layout | None = None):
    """The same by our functions."""
    split = layout.execution.vocabulary if layout else WHOLE
    hidden, kernel, bias, targets, uniform = make_inputs()
    shared = {"chunk": chunk, "split": split, "vocab_size": VOCAB}

    def local(hidden, kernel, bias, targets, uniform):
        drawn = sample_tokens(hidden, kernel, bias, uniform, forbidden=(0, 2), **shared)
        return token_log_probs(hidden, kernel, bias, targets, **shared), drawn

    if layout is None:
        return jax.jit(local)(hidden, kernel, bias, targets, uniform)
    missing = -VOCAB % (4 if split.idle else int(np.prod([layout.mesh.shape[axis] for axis in split.axes])))
    kernel = np.pad(kernel, ((0, missing), (0, 0)), constant_values=3.0)
    rows, columns = PartitionSpec(layout.rows), PartitionSpec(split.axes)
    specs = {"in_specs": (rows, columns, columns, rows, rows), "out_specs": rows}
    run = jax.jit(jax.shard_map(local, mesh=layout.mesh, **specs))
    return run(hidden, kernel, np.pad(bias, (0, missing), constant_values=3.0), targets, uniform)


@pytest.mark.parametrize("chunk", [1, 33, 1000])
def test_values_and_draws_are_those_of_the_formula(chunk):
    log_probs, drawn = find(chunk)
    np.testing.assert_allclose(log_probs, find_wanted()[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(drawn, find_wanted()[1])
    assert len(np.unique(drawn)) > 10 and not np.isin(drawn, [0, 2]).any()


@pytest.mark.parametrize("name", SHAPES)
def test_a_split_vocabulary_gives_the_same(name):
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    log_probs, drawn = find(40, make_layout(**{"fsdp": 1} | SHAPES[name]))
    np.testing.assert_allclose(log_probs, find_wanted()[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(drawn, find_wanted()[1])
