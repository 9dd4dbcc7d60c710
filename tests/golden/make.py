"""Makes the runs of this folder: what a release wrote, for later ones to read.

    python tests/golden/make.py 0.1.0           makes tests/golden/0.1.0/gnmt, ... with the package as it is now

Run it once a release, before the release, and keep what it wrote for good: `tests/train/test_golden.py` asks every
later version to read these runs, to go on with them, and to find the same numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMON = {
    "data.phrasebook_pairs": 200,
    "data.max_shapes": 1,
    "data.tokens_per_batch": 1024,
    "data.max_source_len": 40,
    "data.max_target_len": 40,
    "vocab.size": 150,
    "vocab.normalization": "identity",  # whose table is none; that of nmt_nfkc is most of a small vocabulary
    "decode.beam_size": 1,
    "decode.length_factor": 0.5,
    "decode.length_extra": 3,
    "decode.rows": 256,
    "evaluate.samples": 0,
    "evaluate.dev_sentences": 8,
    "parallel.data": 1,
    "train.steps": 30,
    "train.save_every": 30,
    "train.evaluate_every": 30,
    "evaluate.dev_beam_size": 1,
    "train.warmup_steps": 5,
    "train.learning_rate": 0.01,
    "model.features": 8,
}
RECIPES: dict[str, dict[str, Any]] = {
    "gnmt": {"model.encoder_layers": 2, "model.decoder_layers": 2, "model.attention_features": 8}
    | {"train.ema_decay": 0.9},
    "transformer": {"model.encoder_layers": 1, "model.decoder_layers": 1, "model.heads": 2, "model.feed_forward": 16},
}
"""Name of a config file → what differs from it."""
KEPT = ("config.json", "vocab", "checkpoints")


def make(release: str) -> None:
    """Trains every recipe and keeps what a later version is to read."""
    sys.path.insert(0, str(ROOT))
    from seq2seq_jax.main import main

    os.chdir(ROOT)
    for name, recipe in RECIPES.items():
        goal = HERE / release / name
        if goal.exists():
            raise SystemExit(f"{goal}: is there already, and is to stay as it is")
        with tempfile.TemporaryDirectory() as folder:
            given = [f"--config.{key}={value}" for key, value in (COMMON | recipe).items()]
            code = main(["seq2seq_jax.main", f"--config=configs/{name}.py", f"--workdir={folder}/run", *given])
            if code:
                raise SystemExit(code)
            goal.mkdir(parents=True)
            for part in KEPT:
                source = Path(folder) / "run" / part
                (shutil.copytree if source.is_dir() else shutil.copy)(source, goal / part)
        forget_path(goal / "checkpoints" / str(COMMON["train.steps"]))
        found = describe(goal)
        (goal / "expected.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def forget_path(step: Path) -> None:
    """Takes the path of the folder that a checkpoint was written in out of it: Orbax notes it, and nothing reads it."""
    from seq2seq_jax.train.manifest import read_manifest, write_manifest

    for path in step.rglob("commit_success.txt"):
        path.write_text("committed\n", encoding="utf-8")
    told = read_manifest(step)
    write_manifest(step, step=told["step"], record={key: told[key] for key in ("meta", "metrics")})


def describe(run: Path) -> dict[str, Any]:
    """What the run's model computes, and which examples come next.

    Returns:
        `logits` `[B, T, V]` of sentences that follow from the vocabulary's size alone, as nested lists;
        `parameters_sha256`; `next`, the examples of the next three batches.
    """
    import jax

    from seq2seq_jax.config import load_config
    from seq2seq_jax.corpora import Corpus, open_splits
    from seq2seq_jax.modes.evaluate import load_run
    from seq2seq_jax.provenance import hash_parameters
    from seq2seq_jax.workdir import Folder

    config = load_config(Folder(run).config)
    experiment, restored = load_run(config, Folder(run))
    sizes = len(experiment.vocabs.source), len(experiment.vocabs.target)
    source, target = (4 + (7 * np.arange(12).reshape(2, 6) + side) % (size - 4) for side, size in enumerate(sizes))
    mask = np.arange(6) < np.array([[6], [4]])
    given = (source.astype(np.int32), mask, target.astype(np.int32))
    apply = jax.jit(experiment.training.model.apply, compiler_options={"xla_backend_optimization_level": 0})
    logits = apply({"params": restored.state.averaged}, *given)
    corpus = Corpus.make(config, experiment.vocabs, open_splits(config))
    first = corpus.plan.batch_index(restored.meta["examples"])
    return {
        "logits": np.asarray(logits, np.float64).round(8).tolist(),
        "parameters_sha256": hash_parameters(restored.state.params),
        "next": [corpus.plan.batch(first + n).example_ids.tolist() for n in range(3)],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make(sys.argv[1])
