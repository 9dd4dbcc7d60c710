"""A run that goes by epochs, in batches of so many sentences: its steps, its rates, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seq2seq_jax.main import main

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "red": "rot", "blue": "blau"}
PAIRS = 100  # of one length: batches of 16 make 7 an epoch, and two an update make 3.5 updates
KEYS = {
    "data.sentences_per_batch": 16,
    "data.max_shapes": 1,
    "vocab.kind": "word",
    "vocab.joint": False,
    "vocab.size": 9,
    "vocab.target_size": 7,
    "model.features": 8,
    "model.layers": 1,
    "parallel.data": 1,
    "train.accumulate": 2,
    "train.loss_per": "sentence",
    "train.optimizer": "sgd",
    "train.learning_rate": 0.64,
    "train.warmup_steps": 0,
    "train.schedule": "halving",
    "train.halve_after_epochs": 0.5,  # 1.75 updates
    "train.halve_every_epochs": 0.25,  # 0.875
    "train.log_every": 1,
    "evaluate.samples": 0,
    "decode.beam_size": 1,
    "decode.rows": 8,
    "decode.length_factor": 1.0,
    "decode.length_extra": 1,
}
RATES = [0.64, 0.64, 0.32, 0.16, 0.08, 0.04, 0.02]  # halved before updates 1.75, 2.625, 3.5, 4.375, 5.25 (from 0)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Prefixes of tiny corpora, as arguments."""
    root, words = tmp_path_factory.mktemp("texts"), list(WORDS)
    for name, count in (("train", PAIRS), ("dev", 8), ("test", 8)):
        lines = [[words[n // 5**k % 5] for k in range(4)] for n in range(count)]
        (root / f"{name}.en").write_text("".join(" ".join(line) + "\n" for line in lines))
        (root / f"{name}.de").write_text("".join(" ".join(WORDS[word] for word in line) + "\n" for line in lines))
    return [f"--config.data.{name}={root / name}" for name in ("train", "dev", "test")]


def call(root, texts, **changes):
    """Runs the recipe, and returns the results of the run."""
    keys = KEYS | {name.replace("__", "."): value for name, value in changes.items()}
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    assert main(["seq2seq_jax.main", "--config=configs/lstm.py", f"--workdir={root}", *texts, *given]) == 0
    return json.loads((root / "results.json").read_text())


def read_rates(root):
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["learning_rate"] for record in records if "learning_rate" in record}


@pytest.mark.slow
def test_a_run_by_epochs_is_resumed_with_more_of_them(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    first = call(tmp_path / "broken", texts, train__epochs=1.0)
    assert first["steps"] == 4 == first["config"]["train"]["steps"]  # 3.5 updates, and no batch is left out
    assert "config.train.epochs=1 of 3.5 updates: 4 steps" in capsys.readouterr().err
    second = call(tmp_path / "broken", texts, train__epochs=2.0)
    assert "resuming at step 4" in capsys.readouterr().err
    straight = call(tmp_path / "straight", texts, train__epochs=2.0, train__steps=1000)  # which does not count
    assert second["steps"] == straight["steps"] == 7
    assert second["parameters_sha256"] == straight["parameters_sha256"] != first["parameters_sha256"]
    assert read_rates(tmp_path / "broken") == read_rates(tmp_path / "straight")
    assert list(read_rates(tmp_path / "straight").values()) == pytest.approx(RATES, rel=1e-6)
    saved = json.loads((tmp_path / "straight" / "config.json").read_text())
    assert (saved["train"]["steps"], saved["train"]["epochs"]) == (7, 2.0)
    # Without its corpus a run by epochs is described and evaluated like any other.
    run = f"--workdir={tmp_path / 'straight'}"
    assert main(["seq2seq_jax.main", run, "--mode=describe"]) == 0
    assert "training: 2 epochs (7 steps" in capsys.readouterr().out
    assert main(["seq2seq_jax.main", run, "--mode=evaluate"]) == 0


def test_steps_to_profile_are_compared_with_those_that_epochs_make(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    keys = KEYS | {"train.epochs": 1.0, "train.profile_steps": "3:5"}
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    root = tmp_path / "run"
    assert main(["seq2seq_jax.main", "--config=configs/lstm.py", f"--workdir={root}", *texts, *given]) == 2
    assert "<= train.steps=4" in capsys.readouterr().err.splitlines()[-1] and not (root / "config.json").exists()
