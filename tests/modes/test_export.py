"""A model to give away: what is in the folder, that it translates alike, and that damage is seen."""

import gzip
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import seq2seq_jax
from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.decode.witten_bell import estimate_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import build
from seq2seq_jax.main import main
from seq2seq_jax.modes import export as exports
from seq2seq_jax.modes.translate import translate
from seq2seq_jax.serve.model_folder import write_model
from seq2seq_jax.workdir import Folder

ROOT = Path(__file__).resolve().parents[2]
LINES = ["one red cat", "", "two two blue cat four", "  ", "nobody knows these words", "three"]


def call(*args):
    """Runs a command line in this process; the exit code."""
    return main(["seq2seq_jax.main", *args])


@pytest.fixture(scope="module")
def exported(tiny_run):
    """The model of the tiny run, to read."""
    goal = tiny_run.parent / "model"
    assert call(f"--workdir={tiny_run}", "--mode=export", f"--output={goal}", "--licence=cc-by-4.0") == 0
    return goal


@pytest.fixture(scope="module")
def translations(tiny_run):
    """What `--mode=translate` of the run makes of LINES."""
    source, target = tiny_run.parent / "in.txt", tiny_run.parent / "out.txt"
    source.write_text("".join(line + "\n" for line in LINES))
    assert call(f"--workdir={tiny_run}", "--mode=translate", f"--input={source}", f"--output={target}") == 0
    return target.read_text().split("\n")[:-1]


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(exported, tmp_path / "copy")


def test_the_folder_holds_the_averaged_parameters_and_nothing_to_train_with(tiny_run, exported):
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert names == {"README.md", "config.json", "model.safetensors", "vocab/vocab.json", "vocab/vocab.model"} | {
        "vocab/vocabs.json"
    }
    assert all(stat.S_IMODE((exported / name).stat().st_mode) & 0o444 == 0o444 for name in names)
    step = json.loads((tiny_run / "results.json").read_text())["test"]["step"]
    tree = ocp.StandardCheckpointer().restore(tiny_run / "checkpoints" / str(step) / "state")["ema"]
    found = load_file(exported / "model.safetensors")
    assert all(array.dtype == np.float32 for array in found.values())
    for name, array in found.items():
        leaf = tree
        for part in name.split("."):
            leaf = leaf[part]
        np.testing.assert_array_equal(array, np.asarray(leaf))
    config = (exported / "config.json").read_text()
    assert str(tiny_run.parent) not in config and set(json.loads(config)) == {"model", "vocab", "decode", "data"}


def test_the_card_says_what_is_known(tiny_run, exported):
    card, results = (exported / "README.md").read_text(), json.loads((tiny_run / "results.json").read_text())
    head = card.split("---\n")[1]
    assert 'license: "cc-by-4.0"' in head and '- "en"\n- "de"' in head
    for key in ("bleu", "chrf", "bleu_tokenized_lowercase"):
        assert f"| {results['test'][key]:.2f} |" in card
        assert results["test"][f"{key}_signature"].replace("|", "\\|") in card
    assert all(digest in card for digest in results["corpus_sha256"].values())
    assert re.search(r"\| train \| train \| 120 \|", card) and re.search(r"\| test \| test \| 24 \|", card)
    assert f"{results['parameters']:,} parameters" in card and results["versions"]["jax"] in card
    assert str(tiny_run.parent) not in card, "folders of this machine stay here"


def test_the_licence_is_unknown_unless_given(averaged_run, tmp_path):
    assert call(f"--workdir={averaged_run}", "--mode=export", f"--output={tmp_path / 'm'}") == 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert 'license: "unknown"' in card and "Licence: unknown." in card
    assert "the mean of the checkpoints of steps 4, 6, 8" in card and "| train | train | 120 |" in card


def test_loaded_translations_are_those_of_the_run(tiny_run, exported, translations):
    model = seq2seq_jax.load(exported)
    assert model.translate(LINES) == translations and len(translations) == len(LINES)
    assert translations[1] == translations[3] == "" and any(translations)
    assert model.translate("one red cat") == translations[:1]
    assert model.card.startswith("---\n") and model.config["model"]["features"] == 8
    assert "gnmt, en-de" in repr(model) and str(exported) in repr(model)
    run = seq2seq_jax.load(str(tiny_run))
    assert run.translate(LINES) == translations and run.card == "" and run.step == model.step


def test_nbest_is_best_first_and_greedy_is_one_more_search(exported, translations):
    model = seq2seq_jax.load(exported)
    found = model.translate_nbest(LINES, 2)
    assert [item[0].text if item else "" for item in found] == translations
    assert all(1 <= len(item) <= 2 for item, line in zip(found, LINES, strict=True) if line.strip())
    scores = [[(candidate.finished, candidate.score) for candidate in item] for item in found]
    assert any(len(item) == 2 for item in scores) and scores == [sorted(item, reverse=True) for item in scores]
    assert found[1] == [] and len(model.translate(LINES[:2], beam_size=1)) == 2
    for wrong in (lambda: model.translate([1]), lambda: model.translate_nbest("x", 0)):
        with pytest.raises(UserError):
            wrong()


def test_modes_take_the_folder_as_workdir(exported, translations, tmp_path, capsys):
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    args = (f"--workdir={exported}", "--mode=translate", f"--input={tmp_path / 'in'}")
    assert call(*args, f"--output={tmp_path / 'out'}") == 0
    assert (tmp_path / "out").read_text().split("\n")[:-1] == translations
    assert call(f"--workdir={exported}", "--mode=evaluate") == 2, "it does not know the test set"
    assert call(f"--workdir={exported}") == 2, "it is not trained further by mistake"
    assert not (exported / "checkpoints").exists()


def test_evaluating_the_folder_gives_the_scores_of_the_run(tiny_run, copy, capsys):
    test = tiny_run.parent / "test"
    assert call(f"--workdir={copy}", "--mode=evaluate", f"--config.data.test={test}", "--json") == 0
    found = json.loads(capsys.readouterr().out)["test"]
    wanted = json.loads((tiny_run / "results.json").read_text())["test"]
    assert (found["bleu"], found["chrf"]) == (wanted["bleu"], wanted["chrf"])


def test_three_lines_in_a_fresh_process_without_configs(exported, translations, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "seq2seq_jax").symlink_to(ROOT / "seq2seq_jax")
    example = re.search(r"        import seq2seq_jax\n.*\n.*\n", seq2seq_jax.load.__doc__)[0]
    program = "import sys\n" + example.replace("        ", "").replace("my_model", str(exported))
    program = program.replace("import seq2seq_jax\n", "import seq2seq_jax\nassert 'jax' not in sys.modules\n")
    program = program.replace('"The cat sleeps."', '"one red cat", "two two blue cat four"')
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([translations[0], translations[2]])


@pytest.mark.parametrize("where", [0.02, 0.5, 0.99])
def test_a_flipped_bit_is_refused(copy, where):
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"model\.safetensors: (not whole|its header is not|not what was exported)"):
        seq2seq_jax.load(copy)


def test_files_of_another_model_are_refused(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["attention_from"] = "current_step"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json: not what was exported"):
        seq2seq_jax.load(copy)
    save_file({"a": np.zeros(2, np.float32)}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its header is not that of an exported model"):
        seq2seq_jax.load(copy)
    with pytest.raises(UserError, match="there is no model here"):
        seq2seq_jax.load(tmp_path)


def test_an_export_that_fails_leaves_nothing(tiny_run, tmp_path, capsys):
    args = (f"--workdir={tiny_run}", "--mode=export")
    assert call(*args, f"--output={tmp_path / 'a'}", "--format=zip") == 2
    (tmp_path / "b").mkdir()
    assert call(*args, f"--output={tmp_path / 'b'}") == 2
    empty = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert call(f"--workdir={empty}", "--mode=export", f"--output={tmp_path / 'c'}") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "run"]
    assert capsys.readouterr().err.count("seq2seq_jax: error:") == 3


def test_scores_of_another_test_set_are_not_taken_for_those_of_the_card_s(tmp_path):
    folder = Folder(tmp_path)
    folder.evaluation.mkdir()
    scores = {"step": 8, "bleu": 20.0}
    evaluated = {"test": scores, "test_sha256": "other"}
    trained = {"test": {"step": 4, "bleu": 10.0}, "corpus_sha256": {"test": "own"}}
    folder.results.write_text(json.dumps(trained))
    (folder.evaluation / "results.json").write_text(json.dumps(evaluated))
    assert exports._find_scores(folder, 8) == {}
    assert exports._find_scores(folder, 4) == trained["test"]
    (folder.evaluation / "results.json").write_text(json.dumps({**evaluated, "test_sha256": "own"}))
    assert exports._find_scores(folder, 8) == scores


def test_a_model_trained_on_from_a_mean_is_none_itself(tmp_path):
    note = {"sources": [{"step": 4}, {"step": 6}], "step": 6}
    (tmp_path / "average.json").write_text(json.dumps(note))
    assert exports._averaged_steps(Folder(tmp_path), 6) == [4, 6]
    assert exports._averaged_steps(Folder(tmp_path), 10) == []


def test_the_phrasebook_is_known_as_such_in_a_mixture(tmp_path):
    config, folder = default_config("gnmt"), Folder(tmp_path)
    folder.results.write_text(json.dumps({"corpus_sha256": {"train": "a", "dev": "b", "test": "c"}}))
    config.data.update(dev="auto", test="auto")
    for train, name, shipped in (
        ("phrasebook, other?weight=2", "phrasebook", "phrasebook"),
        ("other?weight=2, phrasebook", "held out of train", ""),
    ):
        config.data.train = train
        assert [corpus["name"] for corpus in exports._describe_corpora(config, folder)][1:] == [name, name]
        assert exports.ship_config(config)["data"]["test"] == shipped


def test_a_multilingual_model_translates_to_the_language_asked_for(tmp_path):
    config = default_config("lstm")
    config.data.update(target_tag=True)
    config.model.update(features=8, layers=1)
    config.decode.update(rows=8, beam_size=2, length_factor=1.0, length_extra=2)
    config.parallel.data = 1
    vocabs = train_vocabs(LINES, LINES, joint=True, kind="word", size=40, tags=("2de", "2fr", "bt"))
    experiment = build(config, vocabs)
    params = experiment.training.init().params
    shipped = exports.ship_config(config)
    write_model(
        tmp_path, config=shipped, vocabs=vocabs, tensors=exports.name_tensors(params), metadata={"step": "1"}, card=""
    )
    model, line = seq2seq_jax.load(tmp_path), LINES[0]
    assert model.targets == ("de", "fr")
    found = {}
    for tags, given in ((["2de"], {}), (["2fr"], {"target": "fr"}), (["2fr", "bt"], {"target": "fr", "tags": ["bt"]})):
        (wanted,) = experiment.translator(tags=tags).translate(params, [line])
        assert model.translate(line, **given) == [wanted.text]
        (candidates,) = model.translate_nbest(line, 1, **given)
        assert candidates[0].log_prob == pytest.approx(wanted.candidates[0].log_prob)
        found[tuple(tags)] = candidates[0].log_prob
    assert len(set(found.values())) == 3, "each tag must reach the model"
    assert model.translate(line, target="de") == model.translate(line)
    for given, rule in (({"target": "es"}, "one of de, fr, but is 'es'"), ({"tags": ["xy"]}, "has no tag <xy>")):
        with pytest.raises(UserError, match=rule):
            model.translate(line, **given)


def test_a_model_of_one_language_takes_no_other_and_no_beam_of_nothing(exported):
    model = seq2seq_jax.load(exported)
    assert model.targets == ("de",)
    for given in ({"target": "fr"}, {"beam_size": 0}, {"tags": "bt"}):
        with pytest.raises(UserError, match=f"{next(iter(given))} must be"):
            model.translate("one", **given)
    with pytest.raises(UserError, match="beam_size must be at least 1"):
        model.translate_nbest("one", 1, beam_size=0)


def test_each_sentence_may_wish_for_something_of_its_own(exported, translations):
    model = seq2seq_jax.load(exported)
    begin = translations[2].split()[0]
    lines, wishes = [LINES[0], LINES[2]], [{"prefix": begin}, None]
    found = model.translate(lines, wishes=wishes)
    assert found[0].startswith(begin) and found[1] == translations[2]
    for wrong, words in (([{}], "one for each of 2"), ([None, {"most": "x"}], r"wishes\[1\]: .*'most'")):
        with pytest.raises(UserError, match=words):
            model.translate(lines, wishes=wrong)


def test_the_models_beside_it_stay_here(tiny_run, tmp_path, capsys):
    config = load_config(tiny_run / "config.json")
    config.parallel.data = 1
    others = {"ensemble": str(tmp_path / "other"), "language_model": str(tmp_path / "text")}
    pieces = Vocabs.load(tiny_run / "vocab").target.pieces(range(10, 16))
    own = estimate_arpa([pieces], 2)
    with gzip.open(tmp_path / "own.arpa.gz", "wt", encoding="utf-8") as file:
        file.write(own)
    config.decode.update(others | {"ngram": str(tmp_path / "missing.arpa")})
    with pytest.raises(UserError, match="missing.arpa: cannot be read"):
        exports.export(config, tiny_run, str(tmp_path / "model"))
    config.decode.ngram = str(tmp_path / "own.arpa.gz")
    exports.export(config, tiny_run, str(tmp_path / "model"))
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "ensemble" in line]
    assert "config.decode.ensemble and config.decode.language_model left out" in told
    decode = json.loads((tmp_path / "model" / "config.json").read_text())["decode"]
    assert decode == config.decode.to_dict() | {"ensemble": "", "language_model": "", "ngram": "auto"}
    assert (tmp_path / "model" / "ngram.arpa").read_text() == own, "it goes along, unpacked"
    card = (tmp_path / "model" / "README.md").read_text()
    assert str(tmp_path) not in card and "decode.ensemble" not in card
    assert config.decode.ensemble == others["ensemble"], "the run's own config is as it was"
    assert seq2seq_jax.load(tmp_path / "model").translate("one red cat")


def test_methods_without_a_beam_refuse_its_size_and_more_outputs_than_they_find(exported):
    model = seq2seq_jax.load(exported)
    for method in ("greedy", "sampling", "minimum_bayes_risk"):
        model.config["decode"]["method"] = method
        for ask in (lambda: model.translate("one", beam_size=3), lambda: model.translate_nbest("one", 1, beam_size=3)):
            with pytest.raises(UserError, match=rf"beam_size must not be .*decode\.method='{method}'"):
                ask()
    model.config["decode"].update(method="greedy")
    with pytest.raises(UserError, match="nbest must be at most 1"):
        model.translate_nbest("one", 2)


def test_nbest_of_greedy_search_is_refused(tmp_path):
    config, output = default_config(), io.StringIO()
    config.decode.method = "greedy"
    with pytest.raises(UserError, match="--nbest must be at most 1"):
        translate(config, tmp_path, iter(["one"]), output, nbest=2)
    assert not output.getvalue()
