"""Damaged checkpoints, and configs of another model, at the level of commands: a line, an exit code, nothing lost."""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import pytest

import seq2seq_jax
from seq2seq_jax.errors import NoUsableCheckpointError
from seq2seq_jax.main import main
from seq2seq_jax.modes import evaluate as evaluating

_PATH = Path(__file__).parents[1] / "nightly" / "checkpoint_damage.py"
_SPEC = importlib.util.spec_from_file_location("checkpoint_damage", _PATH)
damage = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(damage)

READING = {
    "evaluate": ("--mode=evaluate",),
    "translate": ("--mode=translate", "--input={folder}/in", "--output={folder}/out"),
    "export": ("--mode=export", "--output={folder}/model"),
    "average": ("--mode=average", "--last=2", "--output={folder}/mean"),
}
"""Modes that read checkpoints and leave them as they are."""


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A copy of the run, whose steps are 4, 6 and 8, to be damaged."""
    (tmp_path / "in").write_text("one red cat\n")
    return shutil.copytree(tiny_run, tmp_path / "copy")


def call(copy, *args):
    """The exit code of a command on it."""
    return main(["seq2seq_jax.main", f"--workdir={copy}", *(arg.format(folder=copy.parent) for arg in args)])


def flip(copy, step):
    """Flips a bit; the name of the file."""
    return damage.flip_bit(copy / "checkpoints" / str(step), random.Random(step))


def list_all(copy):
    return sorted(path.relative_to(copy) for path in (copy / "checkpoints").rglob("*"))


@pytest.mark.parametrize("mode", READING)
def test_modes_that_read_use_another_step_and_move_nothing(copy, mode, capsys):
    best = max((4, 8), key=lambda step: read_bleu(copy, step))
    step = 8 if mode == "average" else best
    name, before = flip(copy, step), list_all(copy)
    assert call(copy, *READING[mode]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1 and f"step {step} " in told[0] and name in told[0] and "skipped" in told[0]
    assert list_all(copy) == before


def read_bleu(copy, step):
    """The score that a step's manifest holds; the newer of equals is the better."""
    return json.loads((copy / "checkpoints" / str(step) / "manifest.json").read_text())["metrics"]["bleu"], step


@pytest.mark.parametrize("mode", [*READING, "train"])
def test_where_all_are_damaged_the_code_is_4_and_nothing_is_gone(copy, mode, capsys):
    names, before = {step: flip(copy, step) for step in (4, 6, 8)}, len(list_all(copy))
    asked = READING.get(mode, ("--mode=train", "--config.train.steps=20"))
    code = call(copy, *asked)
    error = capsys.readouterr().err
    if mode == "average":  # asks for so many whole ones
        assert code == 2 and "has 0 usable checkpoints" in error
    else:
        assert code == 4 and "never restarts from step 0" in error.splitlines()[-1]
        assert all(f"step {step}: {name}" in error.splitlines()[-1] for step, name in names.items())
    assert "Traceback" not in error
    moved = 1 if mode == "train" else 0  # the folder of the quarantine
    assert len(list_all(copy)) == before + moved
    if mode == "train":
        assert call(copy, *asked) == 4, "nor at the next start"
        config = (copy / "config.json").read_bytes()
        assert call(copy, *asked, "--config.model.features=16") == 2, "whose config is still that of the run"
        assert (copy / "config.json").read_bytes() == config


def test_a_program_of_one_s_own_hears_of_it_too(copy):
    for step in (4, 6, 8):
        flip(copy, step)
    with pytest.raises(NoUsableCheckpointError, match="no checkpoint in .* is usable"):
        seq2seq_jax.load(copy)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("encoder_layers", 2, ("absent there",)),
        ("features", 12, ("[8, ", "[12, ")),
        ("attention_features", 9, ("attention",)),
    ],
)
def test_a_config_of_another_model_is_refused_by_leaf(copy, key, value, named, capsys):
    """One that was changed in the run's folder: what is given on the command line is refused before."""
    config = json.loads((copy / "config.json").read_text())
    config["model"][key] = value
    (copy / "config.json").write_text(json.dumps(config))
    for mode in (("--mode=evaluate",), ("--mode=train", "--config.train.steps=20")):
        before = list_all(copy)
        assert call(copy, *mode) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "is of another model" in error and all(name in error for name in named) and "params/" in error
        assert list_all(copy) == before


def test_another_vocabulary_is_refused(copy, capsys):
    """A token of a vocabulary's file is another one."""
    paths = [path for path in sorted((copy / "vocab").rglob("*")) if path.is_file() and b"red" in path.read_bytes()]
    assert paths, sorted((copy / "vocab").rglob("*"))
    paths[0].write_bytes(paths[0].read_bytes().replace(b"red", b"der", 1))
    for mode in (("--mode=evaluate",), ("--mode=train", "--config.train.steps=20")):
        assert call(copy, *mode) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "vocab" in error and "Traceback" not in error


def test_fewer_steps_than_were_taken_are_refused_before_anything_is_written(copy, capsys):
    before = (copy / "config.json").read_bytes()
    assert call(copy, "--config.train.steps=3") == 2
    assert "config.train.steps must be at least 8" in capsys.readouterr().err
    assert (copy / "config.json").read_bytes() == before


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_whose_checkpoints_are_gone_does_not_start_from_step_0(copy, ended, capsys):
    shutil.rmtree(copy / "checkpoints")
    if not ended:
        (copy / "results.json").unlink()
        with (copy / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": 99, "loss": 1.0}) + "\n")
    before = (copy / "metrics.jsonl").read_bytes()
    assert call(copy) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has no checkpoint, though this run has come to step" in error and "--fresh" in error
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_config_that_is_gone_is_to_be_put_back(copy, capsys):
    config = (copy / "config.json").rename(copy.parent / "config.json")
    args = ["--config=configs/gnmt.py", f"--workdir={copy}", "--config.data.phrasebook_pairs=300"]
    assert main(["seq2seq_jax.main", *args]) == 2
    assert "config.json: is missing, though" in capsys.readouterr().err
    assert config.exists() and not (copy / "config.json").exists()


def test_a_folder_of_checkpoints_is_no_place_for_a_run(copy, capsys):
    before = list_all(copy)
    assert main(["seq2seq_jax.main", "--config=configs/gnmt.py", f"--workdir={copy / 'checkpoints'}"]) == 2
    assert f"name the run itself, {copy}." in capsys.readouterr().err
    assert list_all(copy) == before


def test_results_that_cannot_be_written_are_told_before_the_work(copy, capsys, monkeypatch):
    (copy / "evaluation").write_text("a file")
    monkeypatch.setattr(evaluating, "evaluate_test", lambda *args: pytest.fail("began to search"))
    assert call(copy, "--mode=evaluate") == 2
    assert "evaluation: cannot be written to (File exists)" in capsys.readouterr().err
