"""The LSTM model of 2014 against a float64 loop over single sentences, and its published size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.models.lstm import LSTMConfig, LSTMSeq2Seq

VOCAB, WIDTH = 9, 5
PAIRS = [([4, 8, 5, 3], [2, 6, 7]), ([8, 3], [2, 5, 4, 7, 6])]


def read(layer, words, state):
    """One LSTM over a list of vectors: its outputs and last state, in float64."""
    (c, h), outputs = state, []
    for x in words:
        z = np.concatenate([x, h]) @ np.concatenate([layer["input_kernel"], layer["recurrent_kernel"]]) + layer["bias"]
        i, f, g, o = np.split(z, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        outputs.append(h)
    return outputs, (c, h)


def translate(params, source, target_in, layers, reverse):
    """Logits `[T, V]` of one pair: the decoder starts where the encoder ended."""
    words = [params["source_embedding"]["table"][token] for token in (source[::-1] if reverse else source)]
    states = []
    for n in range(layers):
        words, state = read(
            {name: leaf[n] for name, leaf in params["encoder"].items()}, words, (np.zeros(WIDTH), np.zeros(WIDTH))
        )
        states.append(state)
    words = [params["target_embedding"]["table"][token] for token in target_in]
    for n in range(layers):
        words, _ = read({name: leaf[n] for name, leaf in params["decoder"].items()}, words, states[n])
    return np.stack(words) @ params["softmax"]["kernel"].T + params["softmax"]["bias"]


def example_inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = jnp.ones((1, 2), jnp.int32)
    return tokens, tokens > 0, tokens


@pytest.mark.parametrize(("layers", "reverse"), [(1, False), (3, True)])
def test_padded_batch_equals_a_loop_over_sentences(layers, reverse):
    module = LSTMSeq2Seq(LSTMConfig(VOCAB, VOCAB, features=WIDTH, layers=layers, reverse_source=reverse))
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *example_inputs())))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.6, leaf.shape).astype(np.float32), shapes["params"])
    source = np.full((2, 6), 7, np.int32)  # what stands in the padding must not matter
    mask, target = np.zeros((2, 6), bool), np.full((2, 5), 8, np.int32)
    for row, (words, target_in) in enumerate(PAIRS):
        source[row, : len(words)], mask[row, : len(words)] = words, True
        target[row, : len(target_in)] = target_in
    logits = jax.jit(module.apply)({"params": params}, source, mask, target)

    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    for row, (words, target_in) in enumerate(PAIRS):
        want = translate(exact, words, target_in, layers, reverse)
        np.testing.assert_allclose(logits[row, : len(target_in)], want, rtol=1e-5, atol=1e-5)


def test_published_size():
    """384 million weights: 160,000 and 80,000 words, 4 + 4 layers of 1,000 (Sutskever et al. 2014, section 3.4)."""
    config = LSTMConfig(source_vocab=160_000, target_vocab=80_000)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: LSTMSeq2Seq(config).init(jax.random.key(0), *example_inputs())))
    leaves = jax.tree.leaves_with_path(shapes)
    weights = sum(leaf.size for path, leaf in leaves if path[-1].key != "bias")
    assert weights == 160_000 * 1000 + 2 * 80_000 * 1000 + 8 * 4 * 1000 * (1000 + 1000) == 384_000_000


@pytest.mark.parametrize(("field", "value"), [("features", 0), ("layers", 0), ("dropout", 1.0)])
def test_config_names_the_field_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        LSTMConfig(8, 8, **{field: value})
