"""Runs that need more memory than a process may have (`ulimit -v`): one line, and nothing that was saved is lost."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq_jax.main import main

ROOT = Path(__file__).parents[2]
LIMITED = """
import os, resource

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # many cores make many threads, whose stacks need room
import jax
from seq2seq_jax.main import run
from seq2seq_jax.modes import evaluate, start_checks, train

jax.jit(lambda x: x + 1)(1.0).block_until_ready()  # libraries are mapped before there is a limit
taken = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30,) * 2)
run()
"""
ROWS = 4096

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")]


def list_flags(corpus: Path, run: Path) -> list[str]:
    if not corpus.exists():
        corpus.mkdir()
        for split, count in (("train", ROWS), ("dev", 4), ("test", 4)):
            line = " ".join("abcdefgh" * 4)
            for side, text in (("x", line), ("y", line.upper())):
                (corpus / f"{split}.{side}").write_text(f"{text}\n" * count)
    named = [f"--config.data.{split}={corpus / split}" for split in ("train", "dev", "test")]
    chosen = {"data.source": "x", "data.target": "y", "vocab.kind": "word", "vocab.size": 30, "data.max_shapes": 1}
    chosen |= {"model.features": 128, "decode.beam_size": 1, "train.steps": 2, "train.save_every": 1}
    chosen |= {"data.tokens_per_batch": ROWS, "parallel.data": 1}
    return ["--config=configs/lstm.py", *named, *(f"--config.{key}={value}" for key, value in chosen.items())] + [
        f"--workdir={run}"
    ]


def run_limited(flags: list[str]) -> subprocess.CompletedProcess:
    given = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *flags], cwd=ROOT, env=given, capture_output=True, text=True, timeout=300
    )


def hash_files(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_batch_of_64_times_the_size_is_one_line_with_both_sizes(tmp_path):
    flags = list_flags(tmp_path / "corpus", tmp_path / "run")
    done = run_limited([*flags, f"--config.data.tokens_per_batch={64 * ROWS}"])
    assert done.returncode == 2, done.stderr[-2000:]
    told = done.stderr.splitlines()[-1]
    sizes = re.search(r"memory is not enough: ([\d.]+) GiB more were asked for, ([\d.]+) GiB are free\. Lower", told)
    assert sizes and float(sizes[1]) > float(sizes[2]), told
    assert "config.data.tokens_per_batch" in told and "Traceback" not in done.stderr


def test_a_step_that_does_not_fit_leaves_the_run_as_it_was(tmp_path):
    flags = [*list_flags(tmp_path / "corpus", tmp_path / "run"), f"--config.data.tokens_per_batch={32 * ROWS}"]
    assert main(["seq2seq_jax.main", *flags, "--config.train.steps=1"]) == 0
    before = hash_files(tmp_path / "run" / "checkpoints")
    done = run_limited(flags)
    assert done.returncode == 2, done.stderr[-2000:]
    told = done.stderr.splitlines()[-1]
    assert "memory is not enough" in told and "checkpoints are as they were" in told and "Traceback" not in done.stderr
    assert before and hash_files(tmp_path / "run" / "checkpoints") == before
