"""LAS and its listeners against a float64 reference written from the papers' equations, and what a config must be."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import FrameModel, Seq2Seq
from seq2seq_jax.layers.frontend import Frontend
from seq2seq_jax.models.las import LAS, LASConfig

_SPEC = importlib.util.spec_from_file_location("speech_reference", Path(__file__).with_name("speech_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

VOCAB, MELS = 9, 5
FRONTEND = Frontend(rate=800, hop=8, window=20, fft=32, mels=MELS, low=0.0)
SIZES = LASConfig(
    VOCAB,
    FRONTEND,
    listener_features=6,
    listener_layers=3,
    channels=3,
    features=4,
    attention_features=5,
    location_filters=2,
    location_width=3,
    dropout=0.0,
)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
LENGTHS = (11, 6, 1)
TARGETS = jnp.array([[2, 6, 7, 8, 4], [2, 5, 5, 3, 3], [2, 8, 3, 3, 3]])
CASES = {
    "pyramid": {},
    "pyramid, by content": {"attention": "content", "speller_layers": 2},
    "pyramid, one layer above": {"reduction": 2},
    "convolutions": {"subsample": "conv", "listener_layers": 2},
}


def draw(config, seed=0):
    """A model, its parameters (biases included), and features of recordings of `LENGTHS`."""
    model, rng = LAS(config), np.random.default_rng(seed)
    frames = jnp.zeros((1, 4, FRONTEND.hop)), jnp.ones((1, 4), bool), jnp.zeros((1, 2), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *frames)))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32), shapes)
    features = jnp.asarray(rng.normal(size=(len(LENGTHS), max(LENGTHS), MELS)), jnp.float32)
    return model, params, features, jnp.arange(max(LENGTHS)) < jnp.array(LENGTHS)[:, None]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_equations(case):
    config = dataclasses.replace(SIZES, **CASES[case])
    model, params, features, mask = draw(config)

    def run(model, features):
        memory = model.encode_features(features, mask, train=False)
        return memory, model.decode(TARGETS, memory, train=False)

    apply = jax.jit(lambda params, x: model.apply({"params": params}, x, method=run), compiler_options=QUICKLY)
    memory, output = apply(params, features)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, length in enumerate(LENGTHS):
        how = {"kind": "lstm", "subsample": config.subsample, "halvings": config.reduction.bit_length() - 1}
        want = reference.listen(exact["listener"], np.asarray(features[row, :length], np.float64), **how)
        left = -(-length // config.reduction)
        assert memory.mask[row].sum() == left == len(want)
        np.testing.assert_allclose(memory.hidden[row, :left], want, atol=2e-6)
        np.testing.assert_array_equal(memory.hidden[row, left:], 0.0)
        hidden, weights = reference.spell(exact, want, np.asarray(TARGETS[row]))
        np.testing.assert_allclose(output.attention[row, :, :left], weights, atol=5e-6)
        np.testing.assert_allclose(output.hidden[row], hidden, atol=5e-6)


def test_a_search_reads_a_memory_of_its_own_length():
    """The memory is shorter than the source, and everything a step has is as long as the memory."""
    model, params, features, mask = draw(SIZES)

    def run(model):
        memory = model.encode_features(features, mask, train=False)
        cache = model.init_cache(memory, 7)
        return cache, model.decode_step(TARGETS[:, 0], TARGETS[:, 0], memory, cache)

    cache, after = jax.eval_shape(lambda: model.apply({"params": params}, method=run))
    assert after.attention.shape == cache.weights.shape == (3, 3)
    assert after.cache == cache


def test_frames_are_projected_where_there_is_a_head():
    model, params, features, mask = draw(dataclasses.replace(SIZES, ctc_head=True))

    def run(model):
        return model.project_frames(model.encode_features(features, mask, train=False))

    assert isinstance(model, Seq2Seq) and isinstance(model, FrameModel)
    assert jax.eval_shape(lambda: model.apply({"params": params}, method=run)).shape == (3, 3, VOCAB)
    kernel, bias = model.apply({"params": params}, method=LAS.frame_weights)
    assert (kernel.shape, bias.shape) == ((VOCAB, 6), (VOCAB,))
    del params["frame_softmax"]
    with pytest.raises(UserError, match="config.model.ctc_head must be True"):
        jax.eval_shape(lambda: LAS(SIZES).apply({"params": params}, method=run))


def test_attention_of_a_row_without_frames_is_nothing():
    model, params, features, mask = draw(SIZES)

    def loss(params):
        def run(model):
            memory = model.encode_features(features, mask & (jnp.arange(3) != 1)[:, None], train=False)
            return model.decode(TARGETS, memory, train=False)

        output = model.apply({"params": params}, method=run)
        return jnp.sum(output.hidden), output.attention

    (_, attention), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)(params)
    np.testing.assert_array_equal(attention[1], 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "dot"}, "`attention` must be one of"),
        ({"listener": "gru"}, "`listener` must be one of"),
        ({"subsample": "none"}, "`subsample` must be one of"),
        ({"positions": "learned"}, "`positions` must be one of"),
        ({"reduction": 3}, "`reduction` must be a power of two, but is 3"),
        ({"listener_layers": 2}, "`listener_layers` must be at least 3 with `subsample` 'pyramid'"),
        ({"listener_features": 7}, "`listener_features` must be even"),
        ({"location_width": 4}, "`location_width` must be odd"),
        ({"speller_layers": 0}, "`speller_layers` must be at least 1"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"cell": "gru", "recurrent_dropout": 0.1}, "`recurrent_dropout` must be 0 with `cell` 'gru'"),
        ({"listener": "conformer"}, "`subsample` must be 'conv' or 'vgg'"),
        ({"listener": "conformer", "subsample": "conv", "heads": 4}, "multiple of 8 with `heads`=4"),
        ({"listener": "conformer", "subsample": "conv", "heads": 3, "kernel": 2}, "`kernel` must be odd"),
    ],
)
def test_a_config_that_contradicts_itself_says_so(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SIZES, **changes)


def test_the_paper_s_size():
    """Chan et al. 2016, section 4: 3 pyramid layers on a bottom one, 256 a direction; a speller of 2 x 512."""
    frontend = dataclasses.replace(Frontend(), mels=40)
    config = LASConfig(
        32, frontend, reduction=8, listener_layers=4, listener_features=512, features=512, speller_layers=2,
        attention="content", attention_features=512,
    )  # fmt: skip
    inputs = jnp.zeros((1, 16, 160)), jnp.ones((1, 16), bool), jnp.zeros((1, 2), jnp.int32)
    params = nn.meta.unbox(jax.eval_shape(lambda: LAS(config).init(jax.random.key(0), *inputs)))["params"]

    def lstm(inputs, width):
        return (inputs + width + 1) * 4 * width

    listener = 2 * lstm(40, 256) + 3 * 2 * lstm(2 * 512, 256)
    speller = lstm(512 + 512, 512) + lstm(512, 512) + 2 * 512 * 512 + 2 * 512
    rest = 32 * 512 + (1024 + 1) * 512 + 33 * 512 - 512 + 32
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == listener + speller + rest
