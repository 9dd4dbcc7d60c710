"""Command lines with a spoiled file each, as people call them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from run_folders import tiny_config, tiny_model
from spoiling import make_wav, spoil_bytes, spoil_json, spoil_lines

from seq2seq_jax.data import phrasebook
from seq2seq_jax.train.writers import write_json

Call = tuple[str, list[str], list[str]]
"""What was done, the arguments, and names of which one must be in the message."""


class Commands:
    """Draws them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        source, target = phrasebook.pairs("train", source="en", target="de", size=30, seed=3)
        self.source, self.target = ("".join(f"{line}\n" for line in lines).encode() for lines in (source, target))
        self.lists = "".join(f"{n} ||| {line} ||| LM= -{n} ||| -{n}\n" for n, line in enumerate(target)).encode()
        self.model = folder / "model"
        tiny_model(self.model)
        self.makers: tuple[Callable[[random.Random, Path], Call], ...] = (
            self._compare, self._rescore, self._describe, self._translate, self._prepare, self._give,
        )  # fmt: skip

    def draw(self, draw: random.Random, place: Path) -> Call:
        """A command line whose files are in the folder `place`."""
        return draw.choice(self.makers)(draw, place)

    def _compare(self, draw: random.Random, place: Path) -> Call:
        kind, data = spoil_lines(self.target, draw)
        (place / "one.txt").write_bytes(data)
        (place / "two.txt").write_bytes(self.target)
        flags = [f"--input={place / 'one.txt'}", f"--against={place / 'two.txt'}", f"--reference={place / 'two.txt'}"]
        return f"compare: {kind}", ["--mode=compare", *flags], ["one.txt"]

    def _rescore(self, draw: random.Random, place: Path) -> Call:
        lists, weights = place / "lists.txt", place / "weights.json"
        lists.write_bytes(self.lists)
        write_json(weights, {"weights": {"LM": [0.5]}})
        if draw.random() < 0.5:
            kind, data = spoil_lines(self.lists, draw)
            lists.write_bytes(data)
        else:
            kind, data = spoil_json({"weights": {"LM": [0.5]}, "models": {}}, draw)
            weights.write_bytes(data)
        flags = [f"--input={lists}", f"--weights={weights}", "--models=", f"--output={place / 'new.txt'}"]
        return f"rescore: {kind}", ["--mode=rescore", *flags], [lists.name, weights.name]

    def _describe(self, draw: random.Random, place: Path) -> Call:
        kind, data = spoil_json(tiny_config().to_dict(), draw)
        (place / "config.json").write_bytes(data)
        return f"describe: {kind}", ["--mode=describe", f"--workdir={place}"], ["config"]

    def _translate(self, draw: random.Random, place: Path) -> Call:
        folder = shutil.copytree(self.model, place / "model")
        path = draw.choice([folder / "model.safetensors", *sorted((folder / "vocab").iterdir())])
        path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
        (place / "input.txt").write_bytes(self.source)
        flags = [f"--workdir={folder}", f"--input={place / 'input.txt'}", f"--output={place / 'out.txt'}"]
        return f"translate: {path.name} cut", ["--mode=translate", *flags], [str(folder)]

    def _prepare(self, draw: random.Random, place: Path) -> Call:
        kind, data = spoil_lines(self.target, draw)
        (place / "corpus.de").write_bytes(data)
        (place / "corpus.en").write_bytes(self.source)
        keys = {"data.train": place / "corpus", "data.dev": "phrasebook", "data.test": "phrasebook"}
        keys |= {"vocab.kind": "byte"}
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        arguments = ["--config=configs/gnmt.py", f"--workdir={place / 'run'}", "--mode=prepare", "--workers=1", *flags]
        return f"prepare: {kind}", arguments, ["corpus"]

    def _give(self, draw: random.Random, place: Path) -> Call:
        """A file of another program where a run is meant, or a recording that cannot be where sound is heard."""
        if draw.random() < 0.5:
            path = place / f"weights{draw.choice(('.pt', '.bin', '.pkl', '.npz', '.safetensors'))}"
            path.write_bytes(draw.randbytes(100))
            arguments = ["--config=configs/gnmt.py", f"--workdir={place / 'run'}", f"--init_from={path}"]
            return f"init_from: {path.suffix}", arguments, [path.name]
        path = place / "vocab.model"
        kind, data = spoil_bytes(make_wav(bytes(100)), draw)
        path.write_bytes(data)
        flags = [f"--config.vocab.file={path}", "--config.data.phrasebook_pairs=100", "--mode=prepare", "--workers=1"]
        return f"vocab.file: {kind}", ["--config=configs/gnmt.py", f"--workdir={place / 'run'}", *flags], [path.name]
