"""Scores of given pairs: those of the search for what it found, of the whole softmax, and of the loss on dev."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.data.pipeline import tokenise
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.experiment import Experiment, build
from seq2seq_jax.modes.score import render
from seq2seq_jax.tasks.score import PairScore

SOURCES = ["abc de", "fa", "gedab", "b", "abcd efg gfe dc"]
TARGETS = [line.upper() for line in SOURCES]


@functools.cache
def make_experiment(**parallel: int | str) -> Experiment:
    config = default_config("gnmt")
    config.model.update(features=32, encoder_layers=1, attention_features=32, share_embeddings="none")
    config.decode.update(beam_size=8, length_factor=1.0, length_extra=2, rows=4, max_source_len=20)
    config.parallel.update({"data": 1} | parallel)
    return build(config, train_vocabs(SOURCES, TARGETS, joint=False, kind="char", size=40))


@functools.cache
def start():
    """Parameters large enough for outputs to differ; numpy arrays."""
    generator, shapes = np.random.default_rng(5), nn.meta.unbox(make_experiment().training.boxed_state).params
    return jax.tree.map(lambda x: generator.normal(0, 0.4, x.shape).astype(x.dtype), shapes)


@functools.cache
def make_scorer(**parallel: int | str):
    return make_experiment(**parallel).scorer()


def test_scores_are_the_search_s_for_what_it_found():
    found = make_experiment().translator().translate(start(), SOURCES)
    given = [(n, candidate) for n, item in enumerate(found) for candidate in item.candidates if candidate.finished]
    given = [(n, candidate) for n, candidate in given if _spells(candidate)]
    assert len(given) > 3
    scores = make_scorer().score(start(), [SOURCES[n] for n, _ in given], [candidate.text for _, candidate in given])
    np.testing.assert_allclose(
        [item.log_prob for item in scores], [candidate.log_prob for _, candidate in given], rtol=1e-4
    )
    assert [len(item.pieces) for item in scores] == [len(candidate.tokens) for _, candidate in given]


def _spells(candidate) -> bool:
    """Whether its text has its tokens: not where it holds an unknown one or a space that text does not keep."""
    vocab = make_experiment().vocabs.target
    return candidate.tokens == [*vocab.encode_many([candidate.text])[0].tolist(), vocab.eos_id] and candidate.text != ""


def test_scores_are_those_of_the_whole_softmax_and_add_up_to_the_loss():
    experiment, model = make_experiment(), make_experiment().training.model
    scores = make_scorer().score(start(), SOURCES, TARGETS)
    pairs, eos = tokenise(make_text(SOURCES, TARGETS, name="x"), experiment.vocabs), experiment.vocabs.target.eos_id
    apply = jax.jit(model.apply)
    for n, item in enumerate(scores):
        source, target = (side[n].tolist() for side in (pairs.source, pairs.target))
        full = np.array([source + [0] * (20 - len(source))])
        before = np.array([[2, *target, *[0] * (19 - len(target))]])
        logits = np.asarray(apply({"params": start()}, full, jnp.asarray(np.arange(20)[None] < len(source)), before)[0])
        logits = logits.astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        wanted = [log_probs[t, token] for t, token in enumerate([*target, eos])]
        np.testing.assert_allclose(item.log_probs, wanted, rtol=1e-4, atol=1e-5)
        assert "".join(item.pieces[:-1]).replace("▁", " ").strip() == TARGETS[n] and item.note == ""
    assert len({len(item.pieces) for item in scores}) > 3


def test_the_loss_on_dev_is_the_sum_of_the_scores():
    from seq2seq_jax.data.pipeline import build_batch
    from seq2seq_jax.data.plan import make_plan

    experiment = make_experiment()
    pairs = tokenise(make_text(SOURCES, TARGETS, name="x"), experiment.vocabs)
    plan = make_plan(pairs.source_lengths, pairs.target_lengths, seed=0, max_shapes=1, shuffle=False,
                     rows_multiple=8, tokens_per_batch=400, max_source_len=20, max_target_len=20)  # fmt: skip
    sums = experiment.training.dev_sums()(start(), build_batch(pairs, plan.batch(0)))
    scores = make_scorer().score(start(), SOURCES, TARGETS)
    assert float(sums["nll"]) == pytest.approx(-sum(item.log_prob for item in scores), rel=1e-5)
    assert float(sums["weight"]) == sum(len(item.pieces) for item in scores)


def test_eight_devices_and_a_split_vocabulary_give_the_same_scores():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    wanted = make_scorer().score(start(), SOURCES, TARGETS)
    found = make_scorer(stage=4, tensor=2).score(start(), SOURCES, TARGETS)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, rtol=1e-4, atol=1e-5)


def test_pairs_without_a_score_are_told_in_their_place():
    found = make_scorer().score(start(), ["abc", "", "fa", "b" * 30, "b"], ["ABC", "FA", " ", "B", "B"])
    notes = ["", "blank source", "blank target", "too long: 31 tokens, at most 20", ""]
    assert [item.note for item in found] == notes
    alone = make_scorer().score(start(), ["b"], ["B"])[0]
    np.testing.assert_allclose(found[4].log_probs, alone.log_probs, rtol=1e-5)


def test_a_line_says_the_sum_the_mean_and_every_token():
    record = json.loads(render(7, PairScore(["▁ä", "</s>"], [-1.0, -0.5])))
    assert record["line"] == 7 and record["log_prob"] == -1.5 and record["tokens"] == 2
    assert record["normalised"] == -0.75 and record["perplexity"] == pytest.approx(np.exp(0.75), abs=1e-6)
    assert (record["pieces"], record["log_probs"]) == (["▁ä", "</s>"], [-1.0, -0.5])
    blank = json.loads(render(8, PairScore([], [], "blank source")))
    assert blank == {"line": 8, "log_prob": None, "note": "blank source"}
