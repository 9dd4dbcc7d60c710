"""What a release has written is read by every later one: the same numbers, and the run can be gone on with."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax.config import check_resume, hash_config, load_config
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.experiment import build
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.workdir import Folder

GOLDEN = Path(__file__).parents[1] / "golden"
_SPEC = importlib.util.spec_from_file_location("golden", GOLDEN / "make.py")
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

RUNS = sorted(path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("*/*/expected.json"))


def test_there_are_runs_of_a_release():
    assert {run.partition("/")[2] for run in RUNS} >= set(golden.RECIPES)
    sizes = {run: sum(path.stat().st_size for path in (GOLDEN / run).rglob("*") if path.is_file()) for run in RUNS}
    assert max(sizes.values()) < 400_000, sizes


@pytest.fixture(params=RUNS)
def run(request, tmp_path):
    """A copy of one: nothing is written beside the kept one."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "run"))


def test_an_old_run_computes_what_it_did(run):
    wanted, found = json.loads((run / "expected.json").read_text(encoding="utf-8")), golden.describe(run)
    logits, old = np.array(found.pop("logits")), np.array(wanted.pop("logits"))
    assert logits.shape == old.shape and np.abs(old).max() > 0.5
    np.testing.assert_allclose(logits, old, rtol=0, atol=1e-6 * max(1.0, np.abs(old).max()))
    assert found == wanted


def test_an_old_run_can_be_gone_on_with(run):
    folder = Folder(run)
    config = load_config(folder.config)
    check_resume(config, load_config(folder.config), folder.config)
    training = build(config, Vocabs.load(folder.vocab)).training
    with Checkpoints(folder.checkpoints, warn=pytest.fail) as checkpoints:  # of old manifests, too, nothing is amiss
        restored = checkpoints.restore(training.abstract_state())
    assert restored.step == 30 == int(restored.state.step)
    assert restored.meta["config_sha256"] == hash_config(config)
    assert restored.meta["vocab_sha256"] == Vocabs.load(folder.vocab).digest
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.state))
