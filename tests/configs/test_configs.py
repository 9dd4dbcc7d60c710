"""Every config file and preset builds a model, and its docstring tells people how to run it."""

import importlib.util
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from seq2seq_jax import keys
from seq2seq_jax.config import (
    check_config,
    check_resume,
    default_config,
    flatten,
    hash_config,
    load_config,
    with_absolute_prefixes,
)
from seq2seq_jax.corpora import open_splits, open_test
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import count_parameters, make_model, make_training
from seq2seq_jax.train.writers import write_json

ROOT = Path(__file__).resolve().parents[2]
PRESETS = [("gnmt", ""), ("gnmt", "multi30k"), ("gnmt", "paper"), ("lstm", "")]


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
    module, model_config = make_model(config, config.vocab.size, config.vocab.size)
    make_training(config, config.vocab.size, config.vocab.size)
    tokens = jax.ShapeDtypeStruct((1, 2), "int32")
    mask = jax.ShapeDtypeStruct((1, 2), bool)
    shapes = jax.eval_shape(module(model_config).init, jax.random.key(0), tokens, mask, tokens)
    assert count_parameters(shapes) > 100_000


@pytest.mark.parametrize("name", ["gnmt", "lstm"])
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


def test_saved_config_reads_back_equal(tmp_path):
    config = load("gnmt").get_config("multi30k")
    write_json(tmp_path / "config.json", config.to_dict())
    assert load_config(tmp_path / "config.json").to_dict() == config.to_dict()
    (tmp_path / "config.json").write_text("{torn")
    with pytest.raises(UserError, match="not a saved config"):
        load_config(tmp_path / "config.json")


def test_every_number_has_a_rule_and_every_rule_a_key():
    known = {key for model in ("gnmt", "lstm") for key in flatten(default_config(model))}
    assert set(keys.AT_LEAST) <= known and set(keys.CHOICES) <= known
    assert set(keys.SHARES) <= known


@pytest.mark.parametrize("key", sorted(flatten(default_config())))
def test_a_misspelt_key_is_refused_and_the_right_one_named(key):
    config = default_config()
    with config.unlocked():
        section, _, name = key.rpartition(".")
        config[section][name[:-1] + "x"] = config[section][name]
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
