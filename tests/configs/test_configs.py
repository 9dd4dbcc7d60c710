"""Every config file and preset builds a model, and its docstring tells people how to run it."""

import functools
import hashlib
import importlib.util
import json
import math
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from seq2seq_jax import keys, model_keys
from seq2seq_jax.config import (
    check_config,
    check_resume,
    default_config,
    flatten,
    hash_config,
    load_config,
    vocab_sizes,
    with_absolute_prefixes,
)
from seq2seq_jax.corpora import open_splits, open_test
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import make_model, make_parameters, make_training
from seq2seq_jax.provenance import count_parameters
from seq2seq_jax.tasks.methods import make_ranking
from seq2seq_jax.train.writers import write_json

ROOT = Path(__file__).resolve().parents[2]
PRESETS = [("gnmt", ""), ("gnmt", "multi30k"), ("gnmt", "paper"), ("language_model", ""), ("lstm", "")]
PRESETS += [("lstm", "small"), ("lstm", "paper"), ("lstm", "paper_eight")]
PRESETS += [("rnnsearch", ""), ("rnnsearch", "small"), ("rnnsearch", "paper")]
PRESETS += [("bert", preset) for preset in ("", "multi30k", "multi30k_cpu", "base")]
PRESETS += [("gpt", preset) for preset in ("", "multi30k", "language_model", "gpt2")]
PRESETS += [("las", preset) for preset in ("", "an4", "paper", "librispeech")]
PRESETS += [("ctc", preset) for preset in ("", "an4", "conformer")]
OF_TRANSFORMER = ("", "small", "multi30k", "multi30k_cpu", "base", "big", "deep_shallow")
PRESETS += [("transformer", preset) for preset in OF_TRANSFORMER]


def load(name):
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_file_is_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {name for name, _ in PRESETS}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_build(name, preset):
    config = load(name).get_config(preset)
    check_config(config)
    module, model_config = make_model(config, *vocab_sizes(config))
    make_training(config, *vocab_sizes(config))
    shapes = jax.eval_shape(functools.partial(make_parameters, module(model_config)), jax.random.key(0))
    assert count_parameters(shapes) > 100_000


@pytest.mark.parametrize("name", sorted({name for name, _ in PRESETS}))
def test_docstrings_show_commands_and_unknown_presets_are_refused(name):
    module = load(name)
    assert f"--config=configs/{name}.py" in module.__doc__ and "arXiv" in module.__doc__
    with pytest.raises(UserError, match="preset"):
        module.get_config("nonsense")


def test_the_paper_says_what_the_paper_says():
    config = load("gnmt").get_config("paper")
    assert (config.model.encoder_layers, config.model.decoder_layers, config.model.features) == (8, 8, 1024)
    assert config.vocab.size == 32_000 and not config.vocab.joint
    assert config.model.attention_from == "previous_step" and config.model.init_scale == 0.04
    assert config.train.clip_norm == 5.0 and config.train.adam_steps == 60_000
    ranking = make_ranking(config.decode)
    assert (ranking.length, ranking.length_penalty, ranking.coverage_penalty) == ("gnmt", 0.2, 0.2)
    assert ranking.prune == 3.0


def test_sutskever_et_al_s_paper_says_what_the_paper_says():
    config = load("lstm").get_config("paper")
    assert vocab_sizes(config) == (160_000, 80_000) and not config.vocab.joint
    training = make_training(config, 160_000, 80_000)
    leaves = jax.tree_util.tree_leaves_with_path(training.abstract_state().params)
    sizes = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size for path, leaf in leaves}
    weights = {name: size for name, size in sizes.items() if not name.endswith("bias")}
    # Two embeddings and a softmax of 1000, and 4 x 1000 gates of 1000 + 1000 inputs in each of 8 layers.
    assert sum(weights.values()) == 384_000_000 == 160_000_000 + 2 * 80_000_000 + 8 * 4_000 * 2_000
    assert sum(sizes.values()) - 384_000_000 == 8 * 4_000 + 80_000
    assert {leaf.dtype for _, leaf in leaves} == {jax.numpy.dtype("float32")} and config.model.dtype == "float32"
    assert jax.tree.leaves(training.abstract_state().opt_state)[0].size == 1  # a counter: there is no momentum
    keys = config.train
    assert (keys.optimizer, keys.momentum, keys.learning_rate, keys.clip_norm) == ("sgd", 0.0, 0.7, 5.0)
    assert (keys.schedule, keys.halve_after_epochs, keys.halve_every_epochs, keys.epochs) == ("halving", 5.0, 0.5, 7.5)
    assert (keys.loss_per, keys.label_smoothing, keys.accumulate, keys.warmup_steps) == ("sentence", 0.0, 1, 0)
    assert (config.data.sentences_per_batch, config.data.curriculum_epochs) == (128, 0)
    assert (config.model.dropout, config.model.init_scale, config.model.reverse_source) == (0.0, 0.08, True)
    ranking = make_ranking(config.decode)
    assert (config.decode.beam_size, ranking.length, ranking.prune) == (12, "none", 0.0)
    assert keys.steps == 7.5 * 12_000_000 / 128  # what describe shows until the corpus is read


@pytest.mark.parametrize(
    ("preset", "sizes", "dropout", "steps", "peak", "averaged", "parameters"),
    [
        ("base", (512, 2048, 8), 0.1, 100_000, 0.000699, 5, 63_119_496),
        ("big", (1024, 4096, 16), 0.3, 300_000, 0.000494, 20, 214_282_376),
    ],
)
def test_vaswani_et_al_s_paper_says_what_the_paper_says(preset, sizes, dropout, steps, peak, averaged, parameters):
    config = load("transformer").get_config(preset)
    assert vocab_sizes(config) == (37_000, 37_000) and config.vocab.joint and config.vocab.model == "bpe"
    model, keys = config.model, config.train
    assert (model.features, model.feed_forward, model.heads, model.dropout) == (*sizes, dropout)
    assert (model.encoder_layers, model.decoder_layers, model.norm, model.positions) == (6, 6, "post", "sinusoidal")
    training = make_training(config, 37_000, 37_000)
    assert count_parameters(training.abstract_state().params) == parameters
    assert (keys.optimizer, keys.b1, keys.b2, keys.eps, keys.clip_norm) == ("adam", 0.9, 0.98, 1e-9, 0.0)
    assert (keys.steps, keys.warmup_steps, keys.label_smoothing, keys.keep_last) == (steps, 4000, 0.1, averaged)
    for n in (1, 100, 4000, 16_000, 100_000):  # equation 3, at step n counted from 1
        wanted = sizes[0] ** -0.5 * min(n**-0.5, n * 4000**-1.5)
        assert float(training.schedule(n - 1)) == pytest.approx(wanted, rel=1e-5)
    assert float(training.schedule(3999)) == pytest.approx(peak, rel=1e-3)
    assert config.data.tokens_per_batch == 25_000 + 25_000
    ranking = make_ranking(config.decode)
    assert (config.decode.beam_size, ranking.length, ranking.length_penalty) == (4, "gnmt", 0.6)
    assert (config.decode.length_factor, config.decode.length_extra) == (1.0, 50)


def test_the_layout_of_2014_is_the_paper_s_recipe_on_eight_devices():
    one, eight = (flatten(load("lstm").get_config(preset)) for preset in ("paper", "paper_eight"))
    wanted = {"parallel.data": 1, "parallel.stage": 4, "parallel.tensor": 2, "parallel.strategy": "exact"}
    assert {key: value for key, value in eight.items() if value != one[key]} == wanted


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.sentences_per_batch": 12}, r"sentences_per_batch must be a multiple of config\.data\.rows_multiple=8"),
        ({"data.sentences_per_batch": -8}, r"data\.sentences_per_batch must be at least 0"),
        ({"train.loss_per": "word"}, r"train\.loss_per must be one of token, sentence"),
        (
            {"train.loss_per": "sentence", "sequence.objective": "minimum_risk"},
            r"train\.loss_per must be 'token' with config\.sequence\.objective='minimum_risk'",
        ),
        ({"train.epochs": -1.0}, r"train\.epochs must be at least 0"),
        ({"train.schedule": "halving", "train.halve_every_epochs": 0.0}, r"halve_every_epochs must be more than 0"),
        ({"train.halve_after_epochs": -0.5}, r"halve_after_epochs must be at least 0"),
        ({"vocab.target_size": 100}, r"vocab\.target_size must be 0 with config\.vocab\.joint=True"),
        ({"vocab.target_size": 4, "vocab.joint": False}, r"vocab\.target_size must be 0 or at least 5"),
    ],
    ids=str,
)
def test_batches_losses_and_epochs_that_cannot_be_are_refused_in_one_line(changes, told):
    config = default_config("lstm")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=told) as refused:
        check_config(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.patience_metric": "bleu"}, r"train\.patience_metric must be 'loss' with config\.model\.name='bert'"),
        ({"train.own_tokens": 0.1}, r"train\.own_tokens must be 0\.0 with .* but is 0\.1"),
        ({"sequence.objective": "minimum_risk"}, r"sequence\.objective must be 'none'"),
        ({"masked.share": 0.0}, r"masked\.share must be more than 0 and less than 1, but is 0\.0"),
        ({"masked.share": 1.0}, r"masked\.share must be more than 0 and less than 1, but is 1\.0"),
        ({"masked.random": 0.3}, r"masked\.random must be at most 1 - config\.masked\.mask=0\.8, but is 0\.3"),
        ({"masked.mask": -0.1}, r"masked\.mask must be at least 0"),
    ],
    ids=str,
)
def test_what_a_masked_language_model_cannot_have_is_refused(changes, told):
    config = load("bert").get_config()
    config.data.target = config.data.source  # text of one language
    check_config(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=told) as refused:
        check_config(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("transformer", {"model.positions": "learned", "model.max_positions": 79}, r"at least 80, .*max_source_len"),
        ("transformer", {"model.linformer": 8, "model.max_positions": 79}, r"at least 80, .*: max_source_len\)"),
        ("gpt", {"model.max_positions": 159}, r"at least 160, .*: max_source_len \+ max_target_len\)"),
        ("gpt", {"model.source": False, "model.max_positions": 79}, r"at least 80, .*: max_target_len\)"),
        ("bert", {"train.patience_metric": "loss", "model.max_positions": 79}, r"at least 80, .*: max_source_len\)"),
    ],
)
def test_texts_have_a_place_in_what_is_learned_for_each(name, changes, told):
    config = default_config(name)
    config.data.update(max_source_len=80, max_target_len=80)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=rf"config\.model\.max_positions must be {told}.*, but is \d+ instead"):
        check_config(config)
    config.model.max_positions += 1
    check_config(config)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gnmt", "layers", "scanned"),
        ("lstm", "remat", "dots"),
        ("transformer", "layers", "wavefront"),
        ("bert", "recurrence", "kernel"),
    ],
)
def test_ways_to_run_layers_that_a_model_does_not_have_are_refused(name, key, value):
    config = default_config(name)
    config.parallel[key] = value
    with pytest.raises(
        UserError, match=rf"config\.parallel\.{key} must be .* with config\.model\.name='{name}', but is"
    ):
        check_config(config)


@pytest.mark.parametrize(
    ("name", "key", "value", "rule"),
    [
        ("gnmt", "decode.ctc_weight", 0.3, r"must be 0 without config\.model\.ctc_head"),
        ("gnmt", "decode.method", "prefix_beam", "must be 'beam' or another"),
        ("gnmt", "train.patience_metric", "wer", "must be 'bleu' or 'loss'"),
        ("las", "train.patience_metric", "bleu", "must be 'wer' or 'loss'"),
        ("las", "audio.ctc_weight", 1.5, "must be at most 1"),
        ("las", "audio.ctc_weight", 1.0, "must be less than 1"),
        ("las", "decode.must", "a", "must be ''"),
        ("las", "decode.method", "minimum_bayes_risk", "must be 'beam' or another"),
        ("las", "clean.copies", True, "must be off"),
        ("las", "data.pack", True, "must be False"),
        ("las", "vocab.joint", False, "must be True"),
        ("las", "audio.speeds", "0.9,fast", "must be numbers from 0.5 to 2"),
        ("las", "audio.window", 1024, "must be at least hop=160 and at most fft=512"),
        ("las", "audio.high", 9000.0, "must be more than low"),
        ("gnmt", "audio.augment", "LB", "must be 'none' with config.model.name='gnmt'"),
        ("las", "parallel.recurrence", "kernel", "must be 'loop'"),
        ("ctc", "train.label_smoothing", 0.1, "must be 0"),
        ("ctc", "train.own_tokens", 0.1, "must be 0"),
        ("ctc", "audio.augment", "XL", "must be one of none, LB, LD, SM, SS, own"),
    ],
)
def test_keys_of_speech_that_do_not_go_together_are_refused(name, key, value, rule):
    config = load(name).get_config()
    section, _, last = key.partition(".")
    config[section][last] = value
    with pytest.raises(UserError, match=rf"config\.{key} {rule}"):
        check_config(config)


def test_a_head_that_is_not_taught_does_not_search():
    config = load("las").get_config()
    config.audio.ctc_weight = 0.0
    with pytest.raises(UserError, match=r"config\.decode\.ctc_weight must be 0 with config\.audio\.ctc_weight=0"):
        check_config(config)


def test_park_et_al_s_listener_says_what_the_paper_says():
    config = load("las").get_config("librispeech")
    model, audio = config.model, config.audio
    assert (model.listener_layers, model.listener_features, model.speller_layers) == (6, 1280, 2)
    assert (model.subsample, model.reduction, audio.augment, config.vocab.size) == ("conv", 4, "LD", 16_000)
    assert (config.train.warmup_steps, config.train.decay_start, config.train.decay_steps) == (1000, 40_000, 160_000)


def test_saved_config_reads_back_equal(tmp_path):
    config = load("gnmt").get_config("multi30k")
    write_json(tmp_path / "config.json", config.to_dict())
    assert load_config(tmp_path / "config.json").to_dict() == config.to_dict()
    (tmp_path / "config.json").write_text("{torn")
    with pytest.raises(UserError, match="not a saved config"):
        load_config(tmp_path / "config.json")


def test_every_number_has_a_rule_and_every_rule_a_key():
    known = {key for model in model_keys.MODEL_KEYS for key in flatten(default_config(model))}
    assert set(keys.AT_LEAST) <= known and set(keys.CHOICES) <= known
    assert set(keys.SHARES) <= known


@pytest.mark.parametrize("key", sorted(flatten(default_config())))
def test_a_misspelt_key_is_refused_and_the_right_one_named(key):
    config = default_config()
    with config.unlocked():
        section, _, name = key.rpartition(".")
        config[section][name + "x"] = config[section][name]
        del config[section][name]
    if key == "model.name":
        with pytest.raises(UserError, match=r"config\.model\.name must be"):
            check_config(config)
        return
    with pytest.raises(UserError, match=f"config.{key}" if len(name) > 3 else "is no key"):
        check_config(config)


def test_resume_allows_cadences_and_names_the_rest(tmp_path):
    saved, now = default_config(), default_config()
    now.train.steps, now.train.save_every, now.parallel.data = 7, 8, 1
    check_resume(now, saved, tmp_path)
    now.train.seed = 5
    with pytest.raises(UserError, match=r"config\.train\.seed \(saved 0, now 5\)"):
        check_resume(now, saved, tmp_path)


def test_types_are_held():
    values = default_config().to_dict()
    values["train"]["steps"] = "many"
    config = ConfigDict(values)
    with pytest.raises(UserError, match=r"config\.train\.steps must be of type int"):
        check_config(config)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": 2}, r"decode\.groups must divide config\.decode\.beam_size=5"),
        ({"groups": 2, "beam_size": 1}, r"decode\.groups must divide config\.decode\.beam_size=1"),
        ({"groups": 2, "method": "greedy"}, r"decode\.groups must be 1 with config\.decode\.method='greedy'"),
        ({"groups": 2, "method": "sampling"}, r"decode\.groups must be 1 with .* only a beam has groups"),
        ({"groups": 2, "method": "minimum_bayes_risk"}, r"decode\.groups must be 1 .*candidates_from='sampling'"),
        (
            {"groups": 3, "method": "minimum_bayes_risk", "candidates_from": "beam", "beam_size": 3},
            r"decode\.groups must divide config\.decode\.candidates=32",
        ),
        ({"method": "minimum_bayes_risk", "temperature": 0.0}, r"decode\.temperature must be more than 0"),
        ({"method": "minimum_bayes_risk", "top_k": 1}, r"decode\.top_k must be 0 or at least 2"),
        ({"min_length_factor": 2.5}, r"decode\.min_length_factor must be at most config\.decode\.length_factor=2\.0"),
        ({"top_p": 0.0}, r"decode\.top_p must be more than 0"),
        ({"top_p": 1.5}, r"decode\.top_p must be .* at most 1"),
        ({"method": "beem"}, r"decode\.method must be one of .* did you mean 'beam'"),
        ({"candidates": 1}, r"decode\.candidates must be at least 2"),
        ({"coverage_penalty": -0.5}, r"decode\.coverage_penalty must be at least 0, or -1 .*preset='default'"),
        ({"prune": -2.0}, r"decode\.prune must be at least 0, or -1 .* but is -2\.0"),
        *(
            ({name: wrong}, rf"decode\.{name} must be a finite number, but is {wrong}")
            for name in ("length_penalty", "word_bonus", "coverage_penalty", "prune")
            for wrong in (math.nan, math.inf, -math.inf)
        ),
    ],
    ids=str,
)
def test_searches_that_contradict_themselves_are_refused(changes, told):
    config = default_config()
    config.decode.update(changes)
    with pytest.raises(UserError, match=told) as refused:
        check_config(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 5},
        {"groups": 2, "beam_size": 4, "method": "beam"},
        {"groups": 4, "method": "minimum_bayes_risk", "candidates_from": "beam"},
        {"method": "greedy", "temperature": 0.0},
        {"method": "sampling", "temperature": 0.0, "top_k": 1},
        {"method": "minimum_bayes_risk", "candidates_from": "beam", "temperature": 0.0},
        {"length_penalty": -0.5, "word_bonus": -2.0, "coverage_penalty": -1, "prune": -1.0},
    ],
    ids=str,
)
def test_searches_that_make_sense_are_taken(changes):
    config = default_config()
    config.decode.update(changes)
    check_config(config)


def test_groups_divide_the_candidates_of_sequence_training():
    config = default_config()
    config.decode.groups = 5
    config.sequence.update(objective="minimum_risk", proposals="nbest", candidates=8)
    with pytest.raises(UserError, match=r"decode\.groups must divide config\.sequence\.candidates=8"):
        check_config(config)
    config.sequence.candidates = 10
    check_config(config)


OLD_DECODE = {
    "beam_size": 5,
    "length_penalty": 0.6,
    "coverage_penalty": 0.2,
    "length_factor": 2.0,
    "length_extra": 10,
    "rows": 64,
    "max_source_len": 256,
}
"""`decode` of runs saved when 0.6 and 0.2 were the defaults, before there were presets."""


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, {}),
        ({"beam_size": 8}, {"beam_size": 8}),
        ({"length_penalty": 0.2}, {"length_penalty": 0.2}),
        ({"coverage_penalty": 0.0}, {"coverage_penalty": 0.0}),
        ({"length_penalty": 1.0, "coverage_penalty": 0.0}, {"length_penalty": 1.0, "coverage_penalty": 0.0}),
    ],
    ids=str,
)
def test_a_run_from_before_presets_goes_on(tmp_path, changed, wanted):
    old = default_config().to_dict() | {"decode": OLD_DECODE | changed}
    write_json(tmp_path / "config.json", old)
    saved, now = load_config(tmp_path / "config.json"), default_config()
    now.decode.update(wanted)
    check_config(saved)
    check_resume(now, saved, tmp_path / "config.json")
    differing = {key: value for key, value in changed.items() if OLD_DECODE[key] != value}
    kept = {f"decode.{key}": value for key, value in sorted(differing.items())} | {"model.name": "gnmt"}
    assert hash_config(saved) == hash_config(now) == hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def test_numbers_that_were_set_beside_a_preset_stay(tmp_path):
    config = default_config()
    config.decode.update(preset="gnmt", length_penalty=0.6, coverage_penalty=0.2)
    write_json(tmp_path / "config.json", config.to_dict())
    assert load_config(tmp_path / "config.json").to_dict() == config.to_dict()


def test_own_text_needs_one_prefix_and_holds_out_the_rest(tmp_path):
    lines = [f"sentence number {n}\n" for n in range(400)]
    (tmp_path / "text.en").write_text("".join(lines))
    (tmp_path / "text.de").write_text("".join(lines))
    config = load("gnmt").get_config("multi30k")
    config.data.train = str(tmp_path / "text")
    splits = open_splits(config)
    sides = [set(split.source) for split in (splits.train, splits.dev, splits.test)]
    assert [len(side) for side in sides] == [360, 20, 20] and len(set.union(*sides)) == 400
    assert open_test(config).digest == splits.test.digest
    config.data.test = str(tmp_path / "text")
    assert len(open_test(config)) == 400


def test_prefixes_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = default_config()
    config.data.dev = "some/dev"
    absolute = with_absolute_prefixes(config)
    assert absolute.data.dev == str(tmp_path / "some" / "dev")
    assert absolute.data.train == "phrasebook" and absolute.data.test == "auto"
    assert hash_config(config) != hash_config(absolute)
    absolute.train.steps += 1
    assert hash_config(absolute) == hash_config(with_absolute_prefixes(config))
