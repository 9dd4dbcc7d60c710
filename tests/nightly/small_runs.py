"""Small whole runs for the checks that disturb them: what they train on, how they start, how they are compared."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import numpy as np
from nursery import Forked, Nursery

STEPS, SAVE_EVERY, EVALUATE_EVERY = 100, 10, 20
RATE = 8000
TONES = {"a": 400.0, "b": 800.0, "c": 1600.0, "d": 3000.0}

COMMON = (
    f"--config.train.steps={STEPS}",
    f"--config.train.save_every={SAVE_EVERY}",
    f"--config.train.evaluate_every={EVALUATE_EVERY}",
    "--config.train.log_every=10",
    "--config.train.warmup_steps=10",
    f"--config.train.decay_steps={STEPS}",
    "--config.train.learning_rate=0.01",
    "--config.data.max_shapes=1",
    "--config.evaluate.samples=0",
    "--config.decode.rows=8",
    "--config.decode.beam_size=2",
    "--config.parallel.data=1",
)
TEXT = (
    *COMMON,
    "--config.data.source=x",
    "--config.data.target=y",
    "--config.data.tokens_per_batch=256",
    "--config.vocab.kind=word",
    "--config.vocab.size=30",
    "--config.decode.length_factor=1.0",
    "--config.decode.length_extra=2",
)
LSTM = (
    "--config=configs/lstm.py",
    *TEXT,
    "--config.model.features=16",
    "--config.model.dropout=0.2",
    "--config.train.ema_decay=0.9",
)
TRANSFORMER = (
    "--config=configs/transformer.py",
    *TEXT,
    "--config.model.features=16",
    "--config.model.heads=2",
    "--config.model.feed_forward=32",
    "--config.model.encoder_layers=1",
    "--config.model.decoder_layers=1",
    "--config.model.dropout=0.1",
    "--config.train.accumulate=2",
)
SPEECH = (
    "--config=configs/ctc.py",
    *COMMON,
    "--config.audio.rate=8000",
    "--config.audio.hop=80",
    "--config.audio.window=200",
    "--config.audio.fft=256",
    "--config.audio.mels=20",
    "--config.audio.freq_width=3",
    "--config.audio.time_width=4",
    "--config.model.listener_layers=1",
    "--config.model.listener_features=16",
    "--config.model.channels=4",
    "--config.model.dropout=0.1",
    "--config.train.ema_decay=0.9",
    "--config.data.tokens_per_batch=1200",
    "--config.data.max_source_len=300",
    "--config.decode.ngram=",
)


def write_text(folder: Path, seed: int, *, dev: int = 8, test: int = 12) -> tuple[str, ...]:
    """Sentences of a few words and their copies in other letters; the flags that name them."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", 96), ("dev", dev), ("test", test)):
        lines = [" ".join(draw.choices("abcdefgh", k=draw.randint(3, 7))) for _ in range(count)]
        (folder / f"{split}.x").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{split}.y").write_text("".join(f"{line.upper()}\n" for line in lines))
    return tuple(f"--config.data.{split}={folder / split}" for split in ("train", "dev", "test"))


def write_tones(folder: Path, seed: int) -> tuple[str, ...]:
    """Recordings in which every letter is a tone in noise; the flags that name their manifests."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("dev", 6), ("test", 6)):
        rows = ["audio\ttext"]
        for n in range(count):
            text = "".join(draw.choice(list(TONES), size=draw.integers(2, 6)))
            _write_wave(folder / f"{split}{n}.wav", text, draw)
            rows.append(f"{split}{n}.wav\t{text}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return tuple(f"--config.data.{split}={folder / split}.tsv" for split in ("train", "dev", "test"))


def _write_wave(path: Path, text: str, draw: np.random.Generator) -> None:
    clock, gap = np.arange(int(0.12 * RATE)) / RATE, np.zeros(int(0.04 * RATE))
    parts = [np.concatenate([0.4 * np.sin(2 * np.pi * TONES[letter] * clock), gap]) for letter in text]
    samples = np.concatenate([np.zeros(800), *parts, np.zeros(800)])
    samples = samples + 0.01 * draw.normal(size=len(samples))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


MODELS: dict[str, tuple[tuple[str, ...], Callable[[Path, int], tuple[str, ...]]]] = {
    "LSTM": (LSTM, write_text),
    "Transformer": (TRANSFORMER, write_text),
    "CTC on speech": (SPEECH, write_tones),
}
"""Name → flags, and what writes a corpus and returns the flags that name it."""


class Running:
    """One process of a run in `root`, with what it has said so far.

    Args:
        nursery: where it is started.
        arguments: of the command line.
        root: the run's folder.
        environment: what else is set for it.
    """

    def __init__(self, nursery: Nursery, arguments: Sequence[str], root: Path, **environment: str):
        self.root = root
        root.parent.mkdir(parents=True, exist_ok=True)
        self.log = root.with_name(f"{root.name}.log")
        self.process: Forked = nursery.start([*arguments, f"--workdir={root}"], self.log, **environment)
        self.began = time.monotonic()

    def said(self) -> str:
        """Its standard output and error."""
        return self.log.read_text(errors="replace")

    def has_ended(self) -> bool:
        """Whether the process is over."""
        return self.process.poll() is not None

    def wait_until(self, happened: Callable[[], bool], *, seconds: float = 300.0) -> bool:
        """True once it has happened, False where the process ends (or the time) before."""
        end = time.monotonic() + seconds
        while not happened():
            if self.has_ended() or time.monotonic() > end:
                return happened()
            time.sleep(0.005)
        return True

    def sleep(self, seconds: float) -> None:
        """Waits that long, or until the process has ended."""
        self.wait_until(lambda: False, seconds=seconds)

    def end(self, *, seconds: float = 300.0) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it goes on for longer; it is killed.
        """
        try:
            return self.process.wait(timeout=seconds)
        except TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise TimeoutError(f"{self.root} goes on after {seconds:g} s: {self.said()[-500:]}") from None

    def is_training(self) -> bool:
        """Whether the state is made or read, and the step about to be compiled."""
        return bool(re.search(r"; (starting|resuming at step \d+) after ", self.said()))

    def is_compiled(self) -> bool:
        """Whether the step is compiled."""
        return "compiled the " in self.said()

    def is_testing(self) -> bool:
        """Whether the last evaluation has begun."""
        return bool(re.search(r"^(translating|recognising) \d+ test", self.said(), re.M))

    def is_evaluating(self) -> bool:
        """Whether an evaluation on dev seems to be under way: its step is logged, and not yet its scores."""
        last = (read_metrics(self.root) or [{}])[-1]
        return "loss" in last and last["step"] % EVALUATE_EVERY == 0

    def is_saving(self) -> bool:
        """Whether a checkpoint is unfinished, or has no manifest yet."""
        steps = list_steps(self.root)
        folder = self.root / "checkpoints"
        return any(folder.glob("*orbax-checkpoint-tmp*")) or any(
            not (folder / str(step) / "manifest.json").exists() for step in steps
        )


def finish(nursery: Nursery, arguments: Sequence[str], root: Path, **environment: str) -> Running:
    """Runs to the end.

    Raises:
        RuntimeError: it did not end well.
    """
    running = Running(nursery, arguments, root, **environment)
    if code := running.end():
        raise RuntimeError(f"{root} ended with exit code {code}: {running.said()[-2000:]}")
    return running


def list_steps(root: Path) -> list[int]:
    """The steps of its checkpoints."""
    return sorted(int(path.name) for path in (root / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def read_metrics(root: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = root / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What of a finished run must not depend on what happened to it."""

    state: str  # digest of parameters, optimiser, averages and counters
    parameters: str
    test: Mapping[str, Any]
    examples: int  # consumed
    evaluations: Any
    dev: Mapping[int, Any]
    losses: Mapping[int, float]
    outputs: Mapping[str, bytes]
    steps: Sequence[int]  # that have a checkpoint
    left_over: Sequence[str]  # what a kill left, and what was found damaged


def read_outcome(root: Path) -> Outcome:
    """Of the finished run in `root`."""
    results, records = json.loads((root / "results.json").read_text()), read_metrics(root)
    steps = list_steps(root)
    meta = json.loads((root / "checkpoints" / str(steps[-1]) / "manifest.json").read_text())["meta"]
    dev = {
        record["step"]: {key: value for key, value in record.items() if key.startswith("dev_")}
        for record in records
        if record.get("event") == "dev"
    }
    return Outcome(
        state=results["state_sha256"],
        parameters=results["parameters_sha256"],
        test={key: value for key, value in results["test"].items() if "seconds" not in key and "factor" not in key},
        examples=meta["examples"],
        evaluations=meta["evaluations"],
        dev=dev,
        losses={record["step"]: record["loss"] for record in records if "loss" in record},
        outputs={path.name: path.read_bytes() for path in sorted((root / "outputs").glob("*.txt"))},
        steps=steps,
        left_over=list_left_over(root),
    )


def list_left_over(root: Path) -> list[str]:
    """Temporary files and folders, and what is in quarantine though it has a manifest.

    A run that is killed between a commit and its manifest cannot vouch for that step: it is set aside, and made again.
    """
    names = (str(path.relative_to(root)) for path in root.rglob("*"))
    odd = re.compile(r"orbax-checkpoint-tmp|\.removed$|\.tmp$|quarantine/[^/]*/manifest\.json$")
    return sorted(name for name in names if odd.search(name))


def compare(one: Outcome, other: Outcome) -> list[str]:
    """The names of what differs."""
    fields = (field.name for field in dataclasses.fields(Outcome))
    return [name for name in fields if getattr(one, name) != getattr(other, name)]
