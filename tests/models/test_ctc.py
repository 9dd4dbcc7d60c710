"""The CTC model against a float64 reference written from the papers' equations: all its listeners."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.interfaces import Encoder, FrameModel, Seq2Seq
from seq2seq_jax.layers.frontend import Frontend
from seq2seq_jax.models.ctc import CTC, CTCConfig

_SPEC = importlib.util.spec_from_file_location("speech_reference", Path(__file__).with_name("speech_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

VOCAB, MELS = 7, 5
FRONTEND = Frontend(rate=800, hop=8, window=20, fft=32, mels=MELS, low=0.0)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
LENGTHS = (10, 5, 1)
CASES = {
    "pyramid": {},
    "vgg": {"subsample": "vgg"},
    "conformers on convolutions": {"listener": "conformer", "subsample": "conv", "listener_layers": 2},
    "conformers on vgg": {"listener": "conformer", "subsample": "vgg", "reduction": 2, "listener_layers": 1},
}


def draw(changes):
    """A model, its parameters (biases included), and features of recordings of `LENGTHS`."""
    sizes = {"listener_features": 8, "channels": 3, "heads": 2, "feed_forward": 7, "kernel": 3, "dropout": 0.0}
    model, rng = CTC(CTCConfig(VOCAB, FRONTEND, **(sizes | changes))), np.random.default_rng(0)
    inputs = jnp.zeros((1, 4, FRONTEND.hop)), jnp.ones((1, 4), bool)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs)))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32), shapes)
    features = jnp.asarray(rng.normal(size=(len(LENGTHS), max(LENGTHS), MELS)), jnp.float32)
    return model, params, features, jnp.arange(max(LENGTHS)) < jnp.array(LENGTHS)[:, None]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_equations(case):
    model, params, features, mask = draw(CASES[case])
    config = model.config

    def run(model, features):
        memory = model.encode_features(features, mask, train=False)
        return memory, model.project_frames(memory)

    apply = jax.jit(lambda params, x: model.apply({"params": params}, x, method=run), compiler_options=QUICKLY)
    memory, logits = apply(params, features)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, length in enumerate(LENGTHS):
        how = {"kind": config.listener, "subsample": config.subsample, "halvings": config.reduction.bit_length() - 1}
        want = reference.listen(exact["listener"], np.asarray(features[row, :length], np.float64), **how)
        left = -(-length // config.reduction)
        assert memory.mask[row].sum() == left == len(want)
        np.testing.assert_allclose(memory.hidden[row, :left], want, atol=1e-5)
        np.testing.assert_array_equal(memory.hidden[row, left:], 0.0)
        frames = want @ exact["frame_softmax"]["kernel"].T + exact["frame_softmax"]["bias"]
        np.testing.assert_allclose(logits[row, :left], frames, atol=2e-5)


def test_it_encodes_and_labels_frames_and_decodes_nothing():
    model, params, _, _ = draw({})
    assert isinstance(model, Encoder) and isinstance(model, FrameModel) and not isinstance(model, Seq2Seq)
    source, mask = jnp.zeros((2, 9, FRONTEND.hop)), jnp.ones((2, 9), bool)
    logits = jax.eval_shape(lambda: model.apply({"params": params}, source, mask))
    assert (logits.shape, logits.dtype) == ((2, 3, VOCAB), jnp.float32)


def test_features_are_those_of_the_front_end_and_what_is_encoded():
    model, params, _, _ = draw({})
    rng = np.random.default_rng(3)
    source, mask = jnp.asarray(rng.normal(size=(2, 6, FRONTEND.hop)), jnp.float32), jnp.ones((2, 6), bool)

    def run(model):
        apart = model.encode_features(model.compute_features(source, mask), mask, train=False)
        return model.encode(source, mask, train=False).hidden, apart.hidden

    apply = jax.jit(lambda params: model.apply({"params": params}, method=run), compiler_options=QUICKLY)
    whole, parts = apply(params)
    np.testing.assert_array_equal(whole, parts)
