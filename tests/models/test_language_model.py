"""The language model against its equations in float64, and that it reads no source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.models.language_model import LanguageModelConfig, LSTMLanguageModel

VOCAB, WIDTH, LAYERS, B, T, S = 9, 6, 2, 3, 5, 4


def make(share: str):
    model = LSTMLanguageModel(LanguageModelConfig(7, VOCAB, WIDTH, LAYERS, share, dropout=0.0))
    inputs = (jnp.ones((B, S), jnp.int32), jnp.ones((B, S), bool), jnp.ones((B, T), jnp.int32))
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(params, tokens: np.ndarray, share: str) -> np.ndarray:
    """Zaremba et al. 2014, equations of section 3, as loops; logits `[B, T, V]`."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table, stack = p["target_embedding"]["table"], p["decoder"]
    kernel = table if share == "target" else p["softmax"]["kernel"]
    logits = np.zeros((*tokens.shape, VOCAB))
    for row, line in enumerate(tokens):
        c, h = np.zeros((LAYERS, WIDTH)), np.zeros((LAYERS, WIDTH))
        for t, token in enumerate(line):
            x = table[token]
            for n in range(LAYERS):
                z = x @ stack["input_kernel"][n] + h[n] @ stack["recurrent_kernel"][n] + stack["bias"][n]
                i, f, g, o = np.split(z, 4)
                c[n] = sigmoid(f) * c[n] + sigmoid(i) * np.tanh(g)
                x = h[n] = sigmoid(o) * np.tanh(c[n])
            logits[row, t] = x @ kernel.T + p["softmax"]["bias"]
    return logits


@pytest.mark.parametrize("share", ["target", "none"])
def test_it_is_what_the_paper_says(share):
    model, params = make(share)
    assert ("kernel" in params["softmax"]) == (share == "none")
    rng = np.random.default_rng(1)
    tokens, source = rng.integers(0, VOCAB, (B, T)).astype(np.int32), rng.integers(0, 7, (B, S)).astype(np.int32)
    run = jax.jit(model.apply)
    found = run({"params": params}, source, source > 3, tokens)
    np.testing.assert_allclose(found, reference(params, tokens, share), rtol=1e-4, atol=1e-5)
    other = run({"params": params}, source[:, ::-1] + 90, source < 2, tokens)  # not even tokens that there are
    np.testing.assert_array_equal(other, found)


@pytest.mark.parametrize(
    ("field", "value"),
    [("features", 0), ("layers", 0), ("share_embeddings", "all"), ("dropout", 1.0), ("dropout", -0.1)],
)
def test_wrong_sizes_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        LanguageModelConfig(7, VOCAB, **{field: value})
