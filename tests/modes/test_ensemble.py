"""Runs that search together, with a language model trained beside them, through the modes that people call."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

import seq2seq_jax
from seq2seq_jax.config import default_config, load_config, with_absolute_prefixes
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.decode.witten_bell import estimate_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment, build
from seq2seq_jax.loaded_model import LoadedModel
from seq2seq_jax.main import main
from seq2seq_jax.modes.ensemble import join_models
from seq2seq_jax.modes.evaluate import evaluate, load_run
from seq2seq_jax.modes.train import train
from seq2seq_jax.modes.translate import translate
from seq2seq_jax.provenance import hash_parameters
from seq2seq_jax.tasks.search import make_decode
from seq2seq_jax.workdir import Folder

LINES = ["one two cat", "blue", "", "three red four one"]


@pytest.fixture(scope="module")
def language_model(tiny_run):
    """A language model of the German side alone, with the run's own vocabulary."""
    data, folder = tiny_run.parent, tiny_run.parent / "language_model"
    config = {
        **{f"data.{name}": data / name for name in ("train", "dev", "test")},
        "data.source": "de",
        "data.tokens_per_batch": 256,
        "data.max_shapes": 1,
        "vocab.kind": "word",
        "vocab.file": tiny_run / "vocab" / "vocab.json",
        "model.features": 8,
        "model.layers": 1,
        "decode.rows": 8,
        "parallel.data": 1,
        "train.steps": 12,
        "train.warmup_steps": 2,
        "train.learning_rate": 0.03,
        "train.save_every": 6,
        "train.evaluate_every": 6,
        "train.log_every": 6,
    }
    given = [f"--config.{key}={value}" for key, value in config.items()]
    call = ["seq2seq_jax.main", "--config=configs/language_model.py", f"--workdir={folder}", *given]
    assert main(call) == 0
    return folder


def load_with(run, **keys) -> LoadedModel:
    """A run with other keys of `config.decode`."""
    config = load_config(run / "config.json")
    config.parallel.data = 1
    config.decode.update(keys)
    return LoadedModel(run, *load_run(config, Folder(run)))


def test_a_language_model_trains_on_one_side_with_the_run_s_vocabulary(tiny_run, language_model):
    assert Vocabs.load(language_model / "vocab").target.digest == Vocabs.load(tiny_run / "vocab").target.digest
    lines = [json.loads(line) for line in (language_model / "metrics.jsonl").read_text().splitlines()]
    losses = [line["dev_loss"] for line in lines if "dev_loss" in line] or [line["loss"] for line in lines]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("average", ["log", "arithmetic"])
def test_a_run_with_itself_is_the_run(tiny_run, average):
    alone = seq2seq_jax.load(tiny_run)
    twice = load_with(tiny_run, ensemble=f"{tiny_run},{tiny_run}", ensemble_average=average)
    for own, other in zip(alone.translate_nbest(LINES, 2), twice.translate_nbest(LINES, 2), strict=True):
        assert [item.text for item in other] == [item.text for item in own]
        np.testing.assert_allclose([item.score for item in other], [item.score for item in own], rtol=1e-4)


def test_several_folders_are_an_ensemble(tiny_run, averaged_run):
    model, alone = seq2seq_jax.load([tiny_run, averaged_run]), seq2seq_jax.load(tiny_run)
    assert len(model.translate(LINES)) == len(LINES)
    scores = [each.translate_nbest(["one two cat"], 1)[0][0].score for each in (model, alone)]
    assert scores[0] != scores[1]
    with pytest.raises(UserError, match="at least one folder"):
        seq2seq_jax.load([])
    with pytest.raises(UserError, match="a,b: a folder of an ensemble must have no comma"):
        seq2seq_jax.load([tiny_run, tiny_run.parent / "a,b"])


def test_fusion_with_no_weight_is_the_run_and_with_one_it_is_not(tiny_run, language_model):
    def score(**keys):
        return [item[0].score for item in load_with(tiny_run, **keys).translate_nbest(LINES, 1) if item]

    alone, none = score(), score(language_model=str(language_model), language_model_weight=0.0)
    some = score(language_model=str(language_model), language_model_weight=0.5)
    np.testing.assert_allclose(none, alone, rtol=1e-5)
    assert all(b < a - 0.1 for a, b in zip(alone, some, strict=True))  # what is added is a log-probability


def test_translate_uses_all_and_keeps_what_is_asked(tiny_run, language_model, tmp_path):
    config = load_config(tiny_run / "config.json")
    config.parallel.data = 1
    config.decode.update(ensemble=str(tiny_run), language_model=str(language_model), must="Katze", no_repeat_ngram=2)
    wishes = [{"prefix": "rot"}, {"must": ["vier"]}, {}, {"must_not": ["eins", "zwei"]}]
    path = tmp_path / "wishes.jsonl"
    path.write_text("".join(json.dumps(wish) + "\n" for wish in wishes))
    output = io.StringIO()
    assert translate(config, tiny_run, iter(LINES), output, nbest=0, constraints=str(path)) == 4
    lines = output.getvalue().splitlines()
    assert lines[2] == "" and all("Katze" in lines[n] for n in (0, 1, 3))
    assert lines[0].startswith("rot") and "vier" in lines[1] and not {"eins", "zwei"} & set(lines[3].split())


def test_the_test_at_the_end_of_training_searches_as_evaluate_does(tiny_run, language_model, tmp_path):
    config = load_config(tiny_run / "config.json")
    config.vocab.file = str(tiny_run / "vocab" / "vocab.json")
    config.train.update(steps=2, warmup_steps=1, evaluate_every=2, save_every=2)
    config.decode.update(method="minimum_bayes_risk", candidates=3, language_model=str(tmp_path / "missing"))
    with pytest.raises(UserError, match="config.decode.language_model: .*missing has no model"):
        train(config, tmp_path / "run")
    assert not any((tmp_path / "run").glob("checkpoints/[0-9]*"))
    config.decode.update(language_model=str(language_model), ngram="auto", ngram_order=3)
    results, evaluated = train(config, tmp_path / "run"), evaluate(config, tmp_path / "run")
    told = results["companions_sha256"]
    assert told == evaluated["companions_sha256"] and results["config_sha256"] != told["decode.ngram"]
    assert told["decode.ngram"] == hashlib.sha256((tmp_path / "run" / "ngram.arpa").read_bytes()).hexdigest()
    other = load_run(load_config(language_model / "config.json"), Folder(language_model))[1]
    assert told["decode.language_model"] == hash_parameters(other.state.averaged)
    trained, joined = results["test"], evaluated["test"]
    assert {**trained, "seconds": 0} == {**joined, "seconds": 0}
    assert (trained["method"], trained["language_model"]) == ("minimum_bayes_risk", str(language_model))
    assert (tmp_path / "run" / trained["samples"][0]["attention"]).exists()
    texts = [(tmp_path / "run" / name / "test.nbest.txt").read_text() for name in ("outputs", "evaluation/outputs")]
    assert texts[0] == texts[1]


def make_experiment(name: str, vocabs: Vocabs, **parallel) -> Experiment:
    config = default_config(name)
    config.model.update(features=8, dropout=0.0)
    config.parallel.update({"data": 1} | parallel)
    config.decode.update(beam_size=2, length_factor=1.0, length_extra=2, min_length_extra=5)
    config.decode.update(ensemble="other", language_model="text")
    return build(config, vocabs)


def test_models_of_several_kinds_on_several_devices_find_what_they_find_on_one(monkeypatch, tmp_path):
    vocab = train_vocab(["one two three four five six seven"], kind="word", size=13)
    vocabs, draw = Vocabs(vocab, vocab, True), np.random.default_rng(3)

    def start(experiment):
        shapes = nn.meta.unbox(experiment.training.boxed_state).params
        return jax.tree.map(lambda x: draw.normal(0, 1.0, x.shape).astype(x.dtype), shapes)

    names = {"first": "gnmt", "other": "lstm", "text": "language_model"}
    params = {key: start(make_experiment(name, vocabs)) for key, name in names.items()}
    source = draw.integers(4, 11, (4, 5)).astype(np.int32)

    def search(**parallel):
        made = {key: make_experiment(name, vocabs, **parallel) for key, name in names.items()}
        monkeypatch.setattr("seq2seq_jax.modes.ensemble.load_member", lambda name, *_: (made[name], params[name]))
        program, given = join_models(made["first"], params["first"], Folder(tmp_path))
        decode = make_decode(program, made["first"].training.make_search())
        return jax.device_get(decode(given, source, source > 4, np.ones(4, bool), max_len=7))

    wanted, found = search(), search(tensor=2)
    assert wanted.attention is not None and len(np.unique(wanted.scores[:, 0])) == 4
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4)


def test_what_does_not_go_together_is_refused(tiny_run, language_model, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    experiment, chosen = load_run(load_config(tiny_run / "config.json"), Folder(tiny_run))
    keys = experiment.config.decode

    def refuse(match, **given):
        old = {key: keys[key] for key in given}
        keys.update(given)
        try:
            with pytest.raises(UserError, match=match):
                join_models(experiment, chosen.state.averaged, Folder(tmp_path))
        finally:
            keys.update(old)

    refuse("config.decode.ensemble: .*has no model", ensemble=str(tmp_path / "other"))
    refuse("config.decode.language_model: .*has no model", language_model=str(tmp_path / "other"))
    (tmp_path / "ngram.arpa").write_text(estimate_arpa(["ab"], 2))
    refuse("config.decode.ngram_order: must be 2, as .*ngram.arpa is, but is 6", ngram="auto")
    refuse("is a language model", ensemble=str(language_model))
    refuse("'gnmt', which reads a source", language_model=str(tiny_run))
    target, experiment.config.data.target = experiment.config.data.target, "fr"
    refuse(f"must be of fr, which is searched for, but is of {target}", language_model=str(language_model))
    experiment.config.data.target = target
    words = [train_vocab(["a b c"], kind="word", size=20), experiment.vocabs.target]
    for vocabs, side in ((Vocabs(words[1], words[0]), "target"), (Vocabs(words[0], words[1]), "source")):
        other = dataclasses.replace(experiment, vocabs=vocabs)
        monkeypatch.setattr("seq2seq_jax.modes.ensemble.load_member", lambda *given, other=other: (other, {}))
        refuse(f"another {side} vocabulary .*vocab.file", ensemble="other")


def test_paths_of_other_models_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = default_config()
    config.decode.update(ensemble="a, b", language_model="c")
    keys = with_absolute_prefixes(config).decode
    assert keys.ensemble == f"{tmp_path / 'a'},{tmp_path / 'b'}" and keys.language_model == str(tmp_path / "c")
