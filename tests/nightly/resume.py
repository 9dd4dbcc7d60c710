"""K5: a run that was left and gone on with equals one that ran straight through, for every file of `configs/`.

Each recipe is a config file with a tiny model and, where the model has them, the parts whose state is most easily lost:
moving averages, accumulated batches, drawn segmentations and speeds, scheduled sampling, patience.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROOT, Job, Row, environment

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "red": "rot", "blue": "blau", "cat": "Katze"}
RATE = 8000
TONES = {"a": 400.0, "b": 800.0, "c": 1600.0, "d": 3000.0}
COMMON = {
    "data.tokens_per_batch": 256,
    "data.max_shapes": 1,
    "model.dropout": 0.2,
    "decode.beam_size": 1,
    "decode.rows": 16,
    "decode.length_factor": 0.5,
    "decode.length_extra": 2,
    "evaluate.samples": 0,
    "evaluate.dev_sentences": 4,
    "parallel.data": 1,
    "train.warmup_steps": 3,
    "train.learning_rate": 0.01,
    "train.patience": 50,
    "train.keep_last": 2,
}
OF_TEXT = {"vocab.kind": "word", "vocab.size": 30, "model.features": 8}
IN_ROWS = {"data.max_source_len": 16, "data.max_target_len": 16}  # several pairs in a row
OF_SPEECH = {
    "audio.rate": RATE,
    "audio.hop": 80,
    "audio.window": 200,
    "audio.fft": 256,
    "audio.mels": 8,
    "data.tokens_per_batch": 600,
    "data.max_source_len": 80,
    "model.listener_layers": 1,
    "model.listener_features": 8,
    "model.channels": 2,
    "audio.augment": "own",
    "audio.freq_width": 2,
    "audio.time_width": 3,
    "decode.ngram": "",
    "audio.speeds": "0.9,1.0,1.1",
}
RECIPES: dict[str, dict[str, Any]] = {
    "bert": OF_TEXT | IN_ROWS | {"model.layers": 1, "model.heads": 2, "model.feed_forward": 8, "train.ema_decay": 0.9},
    "ctc": OF_SPEECH | {"audio.normalisation": "global", "decode.beam_size": 1},
    "gnmt": OF_TEXT
    | {"model.encoder_layers": 1, "model.decoder_layers": 2, "model.attention_features": 8}
    | {"train.own_tokens": 0.5, "train.own_tokens_steps": 20, "train.optimizer": "adam_then_sgd"}
    | {"train.adam_steps": 10, "train.adam_learning_rate": 0.01},
    "gpt": OF_TEXT
    | IN_ROWS
    | {"model.layers": 1, "model.heads": 2, "model.feed_forward": 8, "train.optimizer": "adamw"}
    | {"train.weight_decay": 0.1, "train.schedule": "inverse_sqrt"},
    "language_model": OF_TEXT
    | {"model.layers": 1, "train.optimizer": "sgd", "train.momentum": 0.9, "train.learning_rate": 1.0}
    | {"train.accumulate": 2, "train.ema_decay": 0.5}
    | {"train.patience": 4},  # too fast: on dev it gets worse, and the run ends early
    "las": OF_SPEECH
    | {"model.features": 8, "model.attention_features": 8, "model.location_filters": 2, "model.location_width": 5}
    | {"decode.beam_size": 1, "decode.ctc_weight": 0.0, "train.ema_decay": 0.9},
    "lstm": OF_TEXT | {"model.layers": 1, "train.accumulate": 2, "train.ema_decay": 0.9, "train.loss_per": "sentence"},
    "rnnsearch": OF_TEXT
    | {"model.embedding_features": 8, "model.attention_features": 8, "model.readout_features": 8}
    | {"data.curriculum_epochs": 2, "train.optimizer": "adadelta", "train.learning_rate": 1.0},
    "transformer": OF_TEXT
    | {"model.encoder_layers": 1, "model.decoder_layers": 1, "model.heads": 2, "model.feed_forward": 8}
    | {"vocab.kind": "sentencepiece", "vocab.size": 60, "data.subword_sampling": 0.3, "train.schedule": "halving"}
    | {"train.halve_after_epochs": 2.0},
}
"""Name of a config file → what differs from it."""
TIMES = ("tokens_per_second", "seconds", "wait_share", "mfu")
"""What a log line says of the machine, by parts of the keys."""


def write_texts(folder: Path) -> dict[str, Path]:
    """Key → prefix of PREFIX.en and PREFIX.de: words, and each word's translation."""
    made = {}
    for seed, (name, pairs) in enumerate((("train", 120), ("dev", 8), ("test", 6))):
        draw, prefix = random.Random(seed), folder / name
        sources = [draw.choices(list(WORDS), k=draw.randint(1, 7)) for _ in range(pairs)]
        prefix.with_suffix(".en").write_text("".join(" ".join(words) + "\n" for words in sources))
        prefix.with_suffix(".de").write_text("".join(" ".join(WORDS[w] for w in words) + "\n" for words in sources))
        made[f"data.{name}"] = prefix
    return made


def write_speech(folder: Path) -> dict[str, Path]:
    """Key → manifest of recordings in which every letter is a tone."""
    made, rng = {}, np.random.default_rng(0)
    for name, clips in (("train", 24), ("dev", 4), ("test", 4)):
        rows = ["audio\ttext"]
        (folder / f"clips_{name}").mkdir(parents=True)
        for n in range(clips):
            text = "".join(rng.choice(list(TONES), size=rng.integers(2, 5)))
            time = np.arange(RATE // 10) / RATE
            tones = [np.append(0.4 * np.sin(2 * np.pi * TONES[letter] * time), np.zeros(400)) for letter in text]
            samples = np.concatenate(tones) + 0.01 * rng.normal(size=len(text) * (len(time) + 400))
            path = folder / f"clips_{name}" / f"{n}.wav"
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
                file.writeframes((32767 * np.clip(samples, -1, 1)).astype("<i2").tobytes())
            rows.append(f"clips_{name}/{n}.wav\t{text}")
        made[f"data.{name}"] = folder / f"{name}.tsv"
        made[f"data.{name}"].write_text("\n".join(rows) + "\n")
    return made


def write_corpora(folder: Path) -> dict[str, dict[str, Path]]:
    """Kind of corpus → its keys."""
    made = {}
    for kind, write in (("text", write_texts), ("speech", write_speech)):
        (folder / kind).mkdir(parents=True)
        made[kind] = write(folder / kind)
    return made


def train(
    name: str, root: Path, corpora: Mapping[str, Mapping[str, Path]], *, steps: int, every: int, **more: Any
) -> None:
    """Trains or goes on with a recipe, and `more` keys, by the command line in this process."""
    from seq2seq_jax.main import main

    recipe = RECIPES[name]
    keys = COMMON | dict(corpora["speech" if "audio.rate" in recipe else "text"]) | recipe
    keys |= {"train.steps": steps, "train.save_every": every, "train.evaluate_every": every, "train.log_every": 1}
    given = [f"--config.{key}={value}" for key, value in (keys | more).items()]
    with work_in(ROOT):
        code = main(["seq2seq_jax.main", f"--config=configs/{name}.py", f"--workdir={root}", *given])
    if code:
        raise RuntimeError(f"{name}: training ended with {code}")


@contextlib.contextmanager
def work_in(folder: Path) -> Iterator[None]:
    """For a while in another folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def read_log(root: Path) -> list[dict[str, Any]]:
    """The lines of a log, without what tells of the machine."""
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if not any(part in k for part in TIMES)} for one in records]


def read_state(root: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of the newest checkpoint by name, as Orbax itself reads them, and what is remembered beside them."""
    import jax
    import orbax.checkpoint as ocp

    steps = root / "checkpoints"
    newest = max((path for path in steps.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(newest / "state")
    meta = json.loads((newest / "manifest.json").read_text())["meta"]
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}, meta


def find_differences(straight: Path, broken: Path) -> list[str]:
    """What differs between two runs that should be the same, in words."""
    found = []
    logs = read_log(straight), read_log(broken)
    if len(logs[0]) != len(logs[1]):
        found.append(f"{len(logs[0])} and {len(logs[1])} lines in the log")
    for ours, theirs in zip(*logs, strict=False):
        found += [
            f"step {ours.get('step')}: {key} {ours.get(key)} and {theirs.get(key)}"
            for key in {*ours, *theirs}
            if ours.get(key) != theirs.get(key)
        ]
    (arrays, meta), (others, other_meta) = read_state(straight), read_state(broken)
    if arrays.keys() != others.keys():
        found.append(f"leaves {sorted(arrays.keys() ^ others.keys())}")
    found += [f"array {key}" for key in arrays.keys() & others.keys() if arrays[key].tobytes() != others[key].tobytes()]
    found += [key for key in meta if key != "seconds" and meta[key] != other_meta.get(key)]
    results = [json.loads((root / "results.json").read_text()) for root in (straight, broken)]
    for key in ("parameters_sha256", "steps", "stopped_early"):
        if results[0][key] != results[1][key]:
            found.append(f"results: {key} {results[0][key]} and {results[1][key]}")
    if results[0]["test"].get("step") != results[1]["test"].get("step"):
        found.append("the best step")
    return found


def resume_straight(
    name: str,
    folder: Path,
    corpora: Mapping[str, Mapping[str, Path]],
    *,
    until: int,
    steps: int,
    every: int,
    **more: Any,
) -> tuple[list[str], dict[str, Any]]:
    """Trains 0 to `steps`, and 0 to `until` and on to `steps`, with `more` keys.

    Returns:
        What differs, and what the straight run came to.
    """
    straight, broken = folder / f"{name}-straight", folder / f"{name}-broken"
    train(name, straight, corpora, steps=steps, every=every, **more)
    train(name, broken, corpora, steps=until, every=every, **more)
    train(name, broken, corpora, steps=steps, every=every, **more)
    found, log = find_differences(straight, broken), read_log(straight)
    results = json.loads((straight / "results.json").read_text())
    if len([one for one in log if "loss" in one]) != results["steps"] or results["steps"] <= until:
        raise RuntimeError(f"{name}: the run that was left alone took {results['steps']} steps, and logged others")
    return found, results


def resume_all(job: Job) -> list[Row]:
    """All recipes, from the first to the one numbered `job.count`, each in a process of its own."""
    missing = {path.stem for path in (ROOT / "configs").glob("*.py")} - RECIPES.keys()
    if missing:
        raise RuntimeError(f"configs/ has files that no recipe is for: {', '.join(sorted(missing))}")
    names, told, early = sorted(RECIPES)[: job.count], {}, 0
    variables = environment(XLA_FLAGS="--xla_backend_optimization_level=0")  # compiling would be nearly all the time
    started = time.monotonic()
    for number, name in enumerate(names, start=1):
        folder = job.folder / name
        folder.mkdir()
        command = [sys.executable, str(Path(__file__).resolve()), name, str(folder), str(job.seed)]
        with open(folder / "log", "w") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=variables, cwd=ROOT, timeout=3600)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {(folder / 'log').read_text()[-2000:]}")
        one = json.loads((folder / "found.json").read_text())
        told[name], early = one["found"], early + one["stopped_early"]
        left = (time.monotonic() - started) / number * (len(names) - number) / 60
        job.tell(
            f"{number} of {len(names)}: {name}: {'; '.join(told[name][:3]) or 'the same'}; {left:.0f} minutes left"
        )
        shutil.rmtree(folder)
    same = sum(not found for found in told.values())
    return [
        Row(
            "K5: 70 steps at once, and 40 and then 30 more, each file of configs/: all that is logged, rates, scores, "
            "patience and arrays equal",
            f"{len(names)} of {len(names)}",
            f"{same} of {len(names)}",
            same == len(names),
            {"differences": told, "stopped_early": early},
        )
    ]


def resume_one(name: str, folder: Path, seed: int) -> None:
    """One recipe; leaves found.json in its folder."""
    corpora = write_corpora(folder / "corpora")
    found, results = resume_straight(name, folder, corpora, until=40, steps=70, every=10, **{"train.seed": seed})
    told = {"found": found, "stopped_early": results["stopped_early"]}
    (folder / "found.json").write_text(json.dumps(told))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    resume_one(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
