"""Accumulation, average, frozen parameters, early stopping and TensorBoard in one run: stopped, resumed, unbroken."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax.config import load_config
from seq2seq_jax.main import main
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.tasks.translation import Translator
from seq2seq_jax.workdir import Folder

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--config=configs/gnmt.py",
    "--config.data.phrasebook_pairs=300",
    "--config.data.max_shapes=1",
    "--config.data.tokens_per_batch=2048",
    "--config.data.max_source_len=120",
    "--config.data.max_target_len=120",
    "--config.vocab.kind=char",
    "--config.vocab.size=100",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=1",
    "--config.decode.length_factor=0.1",
    "--config.decode.length_extra=6",
    "--config.decode.rows=256",
    "--config.evaluate.dev_sentences=8",
    "--config.evaluate.samples=0",
    "--config.train.log_every=5",
    "--config.train.save_every=4",
    "--config.train.warmup_steps=2",
    "--config.train.decay_steps=1000",
    "--config.parallel.data=1",
)
# At this rate the first updates help and the later ones do not: the run is bound to stop.
RECIPE = (
    "--config.train.steps=1000",
    "--config.train.evaluate_every=6",
    "--config.train.accumulate=2",
    "--config.train.ema_decay=0.5",
    "--config.train.freeze=embedding,attention",
    "--config.train.patience=2",
    "--config.train.patience_metric=loss",
    "--config.train.learning_rate=1.0",
    "--config.train.optimizer=nadam",
    "--config.train.clip_norm=0.0",
)
BOARD = importlib.util.find_spec("tensorboardX") is not None
BOARD_KEY = f"--config.train.tensorboard={BOARD}"


def call(*args):
    return main(["seq2seq_jax.main", *args])


def read_records(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


def read_scores(root: Path) -> list[tuple]:
    return [(r["step"], r["dev_loss"], r["dev_bleu"]) for r in read_records(root) if r.get("event") == "dev"]


def stop_after(root: Path, step: int, *args: str) -> int:
    """Starts the run in a process of its own, and stops it once that step is saved; its exit code."""
    command = [sys.executable, "-m", "seq2seq_jax.main", *TINY, *RECIPE, *args, f"--workdir={root}"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not (root / "checkpoints" / str(step)).is_dir() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=120)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run with every recipe that nobody disturbed, and what it told."""
    root, told = tmp_path_factory.mktemp("runs") / "alone", io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stderr(told):
        assert call(*TINY, *RECIPE, BOARD_KEY, "--config.train.profile_steps=2:3", f"--workdir={root}") == 0
    return root, told.getvalue()


@pytest.mark.slow
def test_a_run_with_every_recipe_keeps_what_each_promises(alone):
    root, told = alone
    results, scores = json.loads((root / "results.json").read_text()), read_scores(root)
    steps, losses = [score[0] for score in scores], [score[1] for score in scores]
    best = int(np.argmin(losses))
    assert steps == list(range(6, 6 * len(steps) + 1, 6)) and len(steps) == best + 3 < 100  # two that were no better
    assert results["stopped_early"] is True and results["steps"] == steps[-1] < 1000
    assert results["test"]["step"] == steps[best]
    assert f"stopped early at step {steps[-1]}: loss on dev was not better than {losses[best]:.3f}" in told
    assert "of which" in told and "are trained" in told
    assert "profiled the steps 2 to 3" in told and list((root / "profile").rglob("*.xplane.pb"))
    assert told.count("compiled the step for") == 1 and told.count("compiled the update from 2 batches") == 1


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    root, broken = alone[0], tmp_path / "broken"
    assert stop_after(broken, 4, BOARD_KEY) == 143
    assert not (broken / "results.json").exists()
    assert call(*TINY, *RECIPE, BOARD_KEY, f"--workdir={broken}") == 0
    results = [json.loads((folder / "results.json").read_text()) for folder in (root, broken)]
    for key in ("parameters_sha256", "steps", "stopped_early"):
        assert results[1][key] == results[0][key], key
    assert read_scores(broken) == read_scores(root)
    logged = [[r["step"] for r in read_records(folder) if "loss" in r] for folder in (root, broken)]
    assert logged[0] == logged[1] and logged[0][-1] == results[0]["steps"]
    outputs = [(folder / "outputs" / "test.nbest.txt").read_bytes() for folder in (root, broken)]
    assert outputs[0] == outputs[1]
    if BOARD:
        assert list((broken / "tensorboard").glob("events.out.tfevents.*"))
    # With more patience it goes on from where it stopped.
    assert call(*TINY, *RECIPE, BOARD_KEY, "--config.train.patience=3", f"--workdir={broken}") == 0
    assert len(read_scores(broken)) > len(read_scores(root))


@pytest.mark.slow
def test_translation_reads_the_average(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    root, lines = alone[0], ["A house.", "Two dogs sleep."]
    config = load_config(Folder(root).config)
    config.train.ema_decay, config.train.optimizer = 0.0, "sgd"  # what was trained decides, not what is asked for
    experiment, chosen = load_run(config, Folder(root))
    state = chosen.state
    assert state.averaged is state.ema
    moved = jax.tree.map(lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max()), state.ema, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-4 and moved["attention"]["query_kernel"] == 0.0  # that one is frozen
    wanted = [found.text for found in experiment.translator().translate(state.ema, lines)]
    seen = []
    take = Translator.translate
    monkeypatch.setattr(Translator, "translate", lambda self, params, *a, **k: seen.append(params) or take(
        self, params, *a, **k))  # fmt: skip
    (tmp_path / "in.txt").write_text("".join(line + "\n" for line in lines))
    files = f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'out.txt'}"
    assert call(f"--workdir={root}", "--mode=translate", *files) == 0
    assert (tmp_path / "out.txt").read_text().splitlines() == wanted
    for read, mean in zip(jax.tree.leaves(seen[0]), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(read, mean)


def test_what_cannot_be_is_refused_in_one_line_before_anything_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for change, rule in (
        ("--config.train.profile_steps=5:2000", "config.train.profile_steps must be FIRST:LAST"),
        ("--config.train.freeze=nothing_of_that_name", "is in no parameter's name; they begin with attention, "),
        ("--config.train.freeze=.", "must leave something to train"),
        ("--config.train.weight_decay=0.1", "config.train.weight_decay must be 0 with the optimizer 'adam'"),
    ):
        root = tmp_path / change[15:25].strip("=.")
        assert call(*TINY, "--config.train.steps=20", change, f"--workdir={root}") == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert rule in told[-1] and not (root / "config.json").exists()
