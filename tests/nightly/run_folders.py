"""Spoiled folders of runs, of models to give away and of prepared corpora: F5, F6, F7 and F9 of the catalogue."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from boundary import Case, require
from rows import ROOT, environment
from safetensors.numpy import load_file, save_file
from spoiling import STILL, VALUES, spoil_bytes, spoil_json, spoil_place

import seq2seq_jax
from seq2seq_jax.config import check_config, default_config, load_config
from seq2seq_jax.corpora import find_prepared
from seq2seq_jax.data import phrasebook
from seq2seq_jax.data.prepare import read_held_out
from seq2seq_jax.data.store import PreparedPairs
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import build
from seq2seq_jax.modes.average import _read_corpora
from seq2seq_jax.modes.compare import _read_curves, _tell_run, list_evaluated
from seq2seq_jax.modes.export import _describe_corpora, _find_scores, name_tensors, ship_config
from seq2seq_jax.modes.members import _list_digests, _read_finished
from seq2seq_jax.modes.weights import match_weights, read_weights
from seq2seq_jax.serve.model_folder import _hash, write_model
from seq2seq_jax.train.manifest import MANIFEST, Standing, verify_manifest, write_manifest
from seq2seq_jax.train.writers import MetricsFile, write_json
from seq2seq_jax.workdir import Folder, list_members


def tiny_config() -> Any:
    """Of a model that is built in no time."""
    config = default_config("lstm")
    config.vocab.kind, config.vocab.size = "word", 60
    config.model.update(features=8)
    config.decode.update(beam_size=2, rows=8, max_source_len=16)
    config.data.update(tokens_per_batch=256, max_shapes=1)
    config.parallel.data = 1
    return config


def tiny_model(folder: Path) -> None:
    """An exported model with weights that were drawn."""
    config = tiny_config()
    source, target = phrasebook.pairs("train", source="en", target="de", size=100, seed=3)
    vocabs = train_vocabs(source, target, kind="word", size=60)
    experiment, numbers = build(config, vocabs), np.random.default_rng(0)
    abstract = experiment.training.abstract_state().params
    params = jax.tree.map(lambda leaf: numbers.normal(0, 0.1, leaf.shape).astype(np.float32), abstract)
    folder.mkdir()
    write_model(
        folder, config=ship_config(config), vocabs=vocabs, tensors=name_tensors(params), metadata={"step": "8"},
        card="---\n---\n# A model\n",
    )  # fmt: skip


class _Canary:
    """What is unpickled makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Folders:
    """F5, F6: models to give away, with weights, pages and names that were made wrong on purpose."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        tiny_model(self.model)
        self.weights = (self.model / "model.safetensors").read_bytes()
        self.tensors = load_file(self.model / "model.safetensors")
        size = struct.unpack("<Q", self.weights[:8])[0]
        self.header, self.data = json.loads(self.weights[8 : 8 + size]), self.weights[8 + size :]

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled model's folder."""
        folder = place / "model"
        shutil.copytree(self.model, folder)
        makers: tuple[Callable[..., tuple[str, bool]], ...] = (
            self._spoil_weights, self._spoil_header, self._forge, self._pickle, self._pickle, self._spoil_page,
            self._spoil_card,
        )  # fmt: skip
        kind, refused = draw.choice(makers)(draw, folder)
        canary = place / "canary"
        foreign = [path for path in folder.parent.iterdir() if path.name.startswith("weights.")]
        named = foreign[0] if foreign else folder

        def read() -> None:
            try:
                model = seq2seq_jax.load(named)
            finally:
                require(not canary.exists(), "the canary was executed")
            leaves = jax.tree.leaves(model._own_params)
            require(all(bool(np.isfinite(leaf).all()) for leaf in leaves), "weights that are no numbers")
            require(not model.config["decode"]["ensemble"], "other models")

        return Case(kind, read, [str(named), "model.safetensors", "README.md"], refused)

    def _spoil_weights(self, draw: random.Random, folder: Path) -> tuple[str, bool]:
        if draw.random() < 0.1:
            kind, _ = spoil_place(folder / "model.safetensors", draw)
            return f"weights: {kind}", True
        kind, data = spoil_bytes(self.weights, draw)
        (folder / "model.safetensors").write_bytes(data)
        return f"weights: {kind}", data != self.weights and kind != "append"

    def _spoil_header(self, draw: random.Random, folder: Path) -> tuple[str, bool]:
        """Overlapping and endless offsets, huge shapes, other types, names that lead elsewhere."""
        header = json.loads(json.dumps(self.header))
        name = draw.choice([key for key in header if key != "__metadata__"])
        kind = draw.choice(("offsets", "shape", "dtype", "name", "value", "length"))
        if kind == "offsets":
            header[name]["data_offsets"] = draw.choice(([0, 2**62], [0, 4], [8, 0], [-1, 4], [0, 0], [2**64, 2**64]))
        elif kind == "shape":
            header[name]["shape"] = draw.choice(([2**31, 2**31], [10**9], [1] * 1000, [-1, 8], [], [0]))
        elif kind == "dtype":
            header[name]["dtype"] = draw.choice(("F64", "BF16", "F8_E4M3", "BOOL", "I64", "OBJECT", ""))
        elif kind == "name":
            header[draw.choice(("../../../etc/passwd", "", "\0", "a" * 10_000, "a.b.c"))] = header.pop(name)
        elif kind == "value":
            header[name] = draw.choice(VALUES)
        text = json.dumps(header).encode()
        size = draw.choice((0, 2**63, 2**32, len(text) * 100, 1)) if kind == "length" else len(text)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + self.data)
        return f"header: {kind}", kind != "name"

    def _forge(self, draw: random.Random, folder: Path) -> tuple[str, bool]:
        """Weights by someone who makes all digests fit."""
        kind = draw.choice(("step", "step", "nan", "shape", "nested", "float64", "less", "more"))
        tensors, header = dict(self.tensors), dict(self.header["__metadata__"])
        name = draw.choice(sorted(tensors))
        if kind == "step":
            header["step"] = draw.choice(("x", "-1", "9" * 30, "1e3", "", "9" * 5000))
        elif kind == "nan":
            tensors[name] = np.full_like(tensors[name], draw.choice((np.nan, np.inf)))
        elif kind == "shape":
            tensors[name] = np.zeros((*tensors[name].shape, 2), np.float32)
        elif kind == "nested":
            tensors[f"{name}.more"] = np.zeros(2, np.float32)
        elif kind == "float64":
            tensors[name] = tensors[name].astype(np.float64)
        elif kind == "less":
            del tensors[name]
        else:
            tensors["more"] = np.zeros(2, np.float32)
        from seq2seq_jax.serve.model_folder import hash_tensors

        header["parameters_sha256"] = hash_tensors(tensors)
        header.pop("header_sha256", None)
        save_file(tensors, folder / "model.safetensors", metadata={**header, "header_sha256": _hash(header)})
        return f"forged: {kind}", True

    def _pickle(self, draw: random.Random, folder: Path) -> tuple[str, bool]:
        """Pickles under many names; reading one makes the canary."""
        canary = _Canary(folder.parent / "canary")
        kind = draw.choice((".safetensors", ".safetensors", ".pt", ".bin", ".pkl", ".npz", ".pth", "vocab", "array"))
        if kind == "vocab":
            (folder / "vocab" / "vocab.model").write_bytes(pickle.dumps(canary))
            return "pickle: vocab", True
        path = folder / "model.safetensors" if kind == ".safetensors" else folder.parent / f"weights{kind}"
        if kind == ".npz" or (kind == ".safetensors" and draw.random() < 0.3):
            with open(path, "wb") as file:
                np.savez(file, weights=np.array([canary], dtype=object))
        elif kind == "array":
            path = folder / "model.safetensors"
            with open(path, "wb") as file:
                np.save(file, np.array([canary], dtype=object))
        else:
            path.write_bytes(pickle.dumps({"weights": canary}, protocol=draw.choice((0, 2, 4, 5))))
        return f"pickle: {kind}", True

    def _spoil_page(self, draw: random.Random, folder: Path) -> tuple[str, bool]:
        """config.json and the pages of the vocabularies, with names that lead elsewhere, too."""
        path = draw.choice((folder / "config.json", folder / "config.json", *sorted((folder / "vocab").glob("*.json"))))
        page = json.loads(path.read_bytes())
        if path.name == "config.json" and draw.random() < 0.4:
            key = draw.choice(("ngram", "ensemble", "language_model"))
            page["decode"][key] = draw.choice(("../../../etc/passwd", "/etc", "/dev/zero", str(folder.parent)))
            path.write_text(json.dumps(page))
            return f"page: leads elsewhere: {key}", True
        kind, data = spoil_json(page, draw)
        path.write_bytes(data)
        return f"page: {path.name}: {kind}", False

    def _spoil_card(self, draw: random.Random, folder: Path) -> tuple[str, bool]:
        kind, data = spoil_bytes((folder / "README.md").read_bytes(), draw)
        (folder / "README.md").write_bytes(data + draw.choice((b"", b"\xff\xfe")))
        return f"card: {kind}", False


class Pages:
    """F7: the JSON that runs keep."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.run.mkdir()
        config = tiny_config()
        config.data.update(train="phrasebook", dev="phrasebook", test="phrasebook", source="en", target="de")
        write_json(self.run / "config.json", config.to_dict())
        (self.run / "outputs").mkdir()
        lines = "".join(f"der Hund {n}\n" for n in range(5))
        for name in ("hypotheses", "source", "references"):
            (self.run / "outputs" / f"test.{name}.txt").write_text(lines)
        scores = {"bleu": 12.5, "bleu_signature": "nrefs:1|bs:1000", "chrf": 30.0, "step": 8, "sentences": 5}
        results = {
            "test": {**scores, "search": "beam 2", "seconds": 1.5, "samples": []},
            "parameters": 1234,
            "versions": {"jax": "0.10.2", "seq2seq_jax": "0.1"},
            "corpus_sha256": {"train": "a" * 64, "dev": "b" * 64, "test": "c" * 64},
            "corpus_pairs": {"train": 120, "dev": 8, "test": 5},
            "vocab_sha256": "d" * 64,
            "parameters_sha256": "e" * 64,
            "wall_seconds": 12.5,
            "steps": 8,
            "devices": ["cpu", "cpu"],
            "config": config.to_dict(),
        }
        write_json(self.run / "results.json", results)
        write_json(self.run / "average.json", {"step": 8, "sources": [{"step": 6}, {"step": 8}], "corpora": {}})
        write_json(self.run / "members.json", {"members": 2})
        records = [
            {"step": n, "loss": 5.0 / n, "dev_bleu": 1.5 * n, "source_tokens_per_second": 1e4} for n in range(1, 9)
        ]
        (self.run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        models = {"run": {"path": "/a/run", "step": 8}}
        write_json(
            self.run / "weights.json", {"weights": {"LM0": [0.5], "TM": [1.0, -2.0], "run": [0.3]}, "models": models}
        )
        step = self.run / "checkpoints" / "8"
        step.mkdir(parents=True)
        (step / "arrays").write_bytes(bytes(1000))
        write_manifest(step, step=8, record={"meta": {"examples": 5}, "metrics": {"dev_loss": 1.5}})
        shutil.copytree(self.run, folder / "prepared")
        self.prepared = _prepare(folder / "prepared")
        self.readers: tuple[tuple[str, Callable[[Path], object]], ...] = (
            ("config.json", self._load_config),
            ("config.json", self._load_config),
            ("results.json", self._compare),
            ("results.json", self._export),
            ("results.json", self._finish),
            ("average.json", self._export),
            ("members.json", self._members),
            ("metrics.jsonl", self._metrics),
            ("metrics.jsonl", lambda root: _read_curves(root / "metrics.jsonl")),
            ("weights.json", self._weights),
            (f"checkpoints/8/{MANIFEST}", self._manifest),
            ("prepared/index.json", self._index),
            ("prepared/index.json", self._index),
            ("prepared/dev.json", self._index),
        )

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled page, by one that reads it."""
        name, read = draw.choice(self.readers)
        root = place / "run"
        shutil.copytree(self.prepared if name.startswith("prepared") else self.run, root)
        path = root / name
        if path.suffix == ".jsonl":
            lines = path.read_bytes().splitlines()
            at = draw.randrange(len(lines))
            kind, data = spoil_json(json.loads(lines[at]), draw)
            lines[at] = data if draw.random() < 0.2 else b" ".join(data.split(b"\n"))
            path.write_bytes(b"\n".join(lines) + b"\n" * draw.choice((0, 1)))
        elif draw.random() < 0.03:
            kind, _ = spoil_place(path, draw, STILL)
        else:
            kind, data = spoil_json(json.loads(path.read_bytes()), draw)
            path.write_bytes(data)
        if name == "config.json" and draw.random() < 0.15:
            arguments = [f"--workdir={root}", "--mode=describe", "--json"]
            return Case(f"describe: {kind}", None, ["config"], False, arguments)
        return Case(f"{name}: {kind}", lambda: read(root), [path.name, "config."])

    def _load_config(self, root: Path) -> None:
        config = load_config(root / "config.json")
        check_config(config)
        build_ready = config.to_dict()
        require(json.loads(json.dumps(build_ready)) is not None, "no JSON")

    def _compare(self, root: Path) -> None:
        for run in list_evaluated(root):
            facts = _tell_run("run", run)
            require(all(isinstance(value, str) for value in facts.facts.values()), "facts that are no text")

    def _export(self, root: Path) -> None:
        folder, config = Folder(root), load_config(root / "config.json")
        scores = _find_scores(folder, 8)
        require(isinstance(scores, dict), "no scores")
        write_json(root / "card.json", [_describe_corpora(config, folder), scores, _read_corpora(folder)])

    def _finish(self, root: Path) -> None:
        found = _read_finished(load_config(root / "config.json"), Folder(root), None)
        if found is not None:
            require(all(isinstance(value, str) for value in _list_digests(found).values()), "no digests")

    def _members(self, root: Path) -> None:
        require(len(list_members(root)) in (0, *range(2, 1001)), "members")

    def _metrics(self, root: Path) -> None:
        with MetricsFile(root / "metrics.jsonl") as file:
            file.truncate_after(5)
            file.follow(lambda record: require(isinstance(record, dict), "no record"))

    def _weights(self, root: Path) -> None:
        given, columns = read_weights(root / "weights.json"), [("LM0", 0), ("TM", 0), ("TM", 1), ("run", 0)]
        weights = match_weights(given, columns, file=str(root / "weights.json"), lists="lists.txt")
        require(weights.dtype == np.float64 and bool(np.isfinite(weights).all()), "weights that are no numbers")

    def _manifest(self, root: Path) -> None:
        verdict = verify_manifest(root / "checkpoints" / "8", step=8)
        if verdict.standing is not Standing.VERIFIED:
            raise UserError(f"{root / 'checkpoints' / '8' / MANIFEST}: {verdict.reason}")

    def _index(self, root: Path) -> None:
        pairs = PreparedPairs.open(root / "prepared")
        source, target = pairs.read(np.arange(len(pairs)))
        require(len(source) == len(target) == len(pairs) > 0, "no pairs")
        text = read_held_out(root / "prepared", "dev", pairs.index)
        require(len(text.source) == len(text.target or []), "sides of different lengths")
        find_prepared(load_config(root / "config.json"), root)


def _prepare(root: Path) -> Path:
    """A run's folder with a prepared corpus in several shards, with dev and test held out."""
    shutil.rmtree(root / "checkpoints", ignore_errors=True)
    source, target = phrasebook.pairs("train", source="en", target="de", size=400, seed=3)
    for name, lines in (("en", source), ("de", target)):
        (root / f"corpus.{name}").write_text("".join(line + "\n" for line in lines))
    config = load_config(root / "config.json")
    config.data.update(train=str(root / "corpus"), dev="auto", test="auto", held_out_pairs=20, shard_pairs=100)
    config.vocab.kind = "byte"
    write_json(root / "config.json", config.to_dict())
    (root / "members.json").unlink()
    command = [sys.executable, "-m", "seq2seq_jax.main", f"--workdir={root}", "--mode=prepare", "--workers=1"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the good corpus could not be prepared: {done.stderr}")
    return root


class Shards:
    """F9: prepared corpora whose shards are cut, gone, garbled or exchanged."""

    def __init__(self, folder: Path, run: Path | None = None) -> None:
        """Makes a corpus, or takes that of a run."""
        if run is None:
            run = folder / "run"
            run.mkdir()
            write_json(run / "config.json", tiny_config().to_dict())
            write_json(run / "members.json", {})
            _prepare(run)
        self.run = run

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled shard, or its table of lengths; before or after the corpus is opened."""
        root = place / "prepared"
        shutil.copytree(self.run / "prepared", root)
        files = sorted((root / "shards").iterdir())
        path = draw.choice([file for file in files if file.suffix in (".array_record", ".npy")])
        late, check = draw.random() < 0.4, draw.random() < 0.5
        whole = path.read_bytes()

        def spoil() -> str:
            kind = draw.choice(("spoiled", "spoiled", "gone", "folder", "cut", "other", "same size"))
            path.unlink()
            if kind == "spoiled":
                path.write_bytes(spoil_bytes(whole, draw)[1])
            elif kind == "folder":
                path.mkdir()
            elif kind == "cut":
                path.write_bytes(whole[: draw.randrange(len(whole))])
            elif kind == "other":
                shutil.copy(draw.choice([file for file in files if file != path]), path)
            elif kind == "same size":
                path.write_bytes(draw.randbytes(len(whole)))
            return kind

        def read() -> None:
            early = PreparedPairs.open(root, check=check) if late else None
            wanted = early.read(np.arange(len(early))) if early is not None and draw.random() < 0.5 else None
            if late:
                spoil()
            pairs = early or PreparedPairs.open(root, check=check)
            found = pairs.read(np.arange(len(pairs)))
            require(all(0 <= side.flat.min() <= side.flat.max() < 260 for side in found), "tokens of no vocabulary")
            if wanted is not None:
                same = all(np.array_equal(a.flat, b.flat) for a, b in zip(found, wanted, strict=True))
                require(same, "other tokens")

        kind = "late" if late else spoil()
        return Case(f"{kind}, {path.suffix}, {'checked' if check else 'by size'}", read, [path.name, str(root)])
