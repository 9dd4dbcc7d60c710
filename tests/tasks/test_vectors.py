"""Sentence vectors: against the states of the model run by itself, in any batch and on any mesh."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.experiment import Experiment, build
from seq2seq_jax.tasks.vectors import SentenceEncoder, name_kind

LINES = ["abc de", "fa", "", "abcdef fedcb", "fa", "b", "cba ed", "gedab", "abc de", "de abc"]
MODELS = {
    "lstm": {"features": 8, "layers": 2},
    "gnmt": {"features": 8, "encoder_layers": 2, "decoder_layers": 2, "attention_features": 8},
}
LIMIT = 16


@functools.cache
def make_experiment(name: str, **parallel: int) -> Experiment:
    config = default_config(name)
    config.model.update(MODELS[name])
    config.parallel.update({"data": 1} | parallel)
    return build(config, train_vocabs(LINES, LINES, joint=False, kind="char", size=40))


@functools.cache
def make_parameters(name: str):
    generator, shapes = np.random.default_rng(3), nn.meta.unbox(make_experiment(name).training.boxed_state).params
    return jax.tree.map(lambda x: generator.normal(0, 0.5, x.shape).astype(x.dtype), shapes)


@functools.cache
def make_encoder(name: str, rows: int = 4, **parallel: int) -> SentenceEncoder:
    experiment = make_experiment(name, **parallel)
    training = experiment.training
    return SentenceEncoder(training.program, training.model, experiment.vocabs, rows=rows, max_len=LIMIT)


@functools.cache
def encode(name: str):
    return make_encoder(name).encode(make_parameters(name), LINES)


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_what_the_encoder_says_of_a_sentence_alone(name):
    experiment, (found, cut) = make_experiment(name), encode(name)
    model, vocab = experiment.training.model, experiment.vocabs.source
    run = jax.jit(
        lambda params, tokens: model.apply({"params": params}, tokens, tokens > 0, train=False, method="encode")
    )
    for n in (2, 3):
        tokens = np.append(vocab.encode_many([LINES[n]])[0], vocab.eos_id)[None].astype(np.int32)
        assert tokens.min() > 0 and tokens.size <= LIMIT
        memory = run(make_parameters(name), tokens)
        if name == "lstm":  # the outputs, not the cells, of each layer; the top one's is the last it gave for a token
            _, outputs = memory.projected.states
            wanted = np.concatenate([outputs[0, layer] for layer in range(2)])
            reversed_top = np.asarray(memory.hidden[0, 0])  # read from the end, the last one read is the first
            np.testing.assert_allclose(found[n, -8:], reversed_top, atol=1e-6)
        else:
            wanted = np.asarray(memory.hidden)[0].mean(axis=0)
        np.testing.assert_allclose(found[n], wanted, atol=1e-6)
    assert found.dtype == np.float32 and cut == []
    assert name_kind(model) == {"lstm": "final state", "gnmt": "mean"}[name]


@pytest.mark.parametrize("name", MODELS)
def test_equal_sentences_have_equal_vectors_in_any_batch(name):
    found, _ = encode(name)
    np.testing.assert_allclose(found[0], found[8], atol=1e-6)
    np.testing.assert_allclose(found[1], found[4], atol=1e-6)
    assert np.abs(found[0] - found[9]).max() > 1e-3  # the same words in another order
    order = [9, 3, 0, 5, 1]
    again, _ = make_encoder(name).encode(make_parameters(name), [LINES[n] for n in order])
    np.testing.assert_allclose(again, found[order], atol=1e-6)


def test_long_sentences_are_cut_and_told_and_no_lines_have_no_vectors():
    encoder, params = make_encoder("lstm"), make_parameters("lstm")
    found, cut = encoder.encode(params, ["a" * 30, "b", "a" * (LIMIT - 1)])
    assert cut == [0] and np.isfinite(found).all()
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    found, cut = encoder.encode(params, [])
    assert (found.shape, cut) == ((0, 0), [])


@pytest.mark.parametrize("parallel", [{"stage": 2, "tensor": 4}, {"data": 4, "fsdp": 2}], ids=str)
def test_eight_devices_make_the_same_vectors(parallel):
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    found, _ = make_encoder("lstm", rows=8, **parallel).encode(make_parameters("lstm"), LINES)
    np.testing.assert_allclose(found, encode("lstm")[0], atol=1e-5)
