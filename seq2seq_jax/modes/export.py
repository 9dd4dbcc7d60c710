"""`--mode=export`: a run's best checkpoint as a folder to give away, with a card."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import default_config, flatten
from seq2seq_jax.corpora import holds_out
from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.new_folder import make_folder
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.provenance import count_parameters, versions
from seq2seq_jax.serve.model_card import CardFacts, write_card
from seq2seq_jax.serve.model_folder import hash_tensors, is_model_folder, write_model
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.vocabularies import AUTO, find_ngram
from seq2seq_jax.workdir import Folder

FORMATS = ("folder",)
SHIPPED = ("model", "vocab", "decode")
"""Sections of the config that go along: the others say how it was trained, and where on which machine."""

PATHS = ("data.train", "data.dev", "data.test", "data.monolingual", "data.prepared", "vocab.file", "train.init_from",
         "decode.ngram")  # fmt: skip
"""Keys whose values may be folders of this machine."""

SECTIONS = ("test", "corpora", "corpus_sha256", "corpus_pairs")
"""Keys of results.json and average.json that the card is made of, which are objects."""

COMPANIONS = ("ensemble", "language_model")
"""Keys of `config.decode` that name other models. They stay here: a folder holds one model."""


def export(config: ConfigDict, root: Path, output: str | None, *, licence: str = "", format: str = "folder") -> Path:
    """Writes the best checkpoint of the run in `root` as a model's folder; see `serve/model_folder.py`.

    Its parameters are those that were evaluated: the moving average where the run keeps one.

    Args:
        config: the run's; its `decode` goes along, without the other models that it may name.
        root: the run's folder.
        output: the folder to make.
        licence: what the card says; unknown if empty.
        format: one of `FORMATS`.

    Raises:
        UserError: there is no trained run, or `output` is there already.
    """
    if format not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}, but is {format!r} instead.")
    folder = Folder(root)
    if is_model_folder(root):
        raise UserError(f"--workdir={root}: is an exported model already; copy the folder.")
    with make_folder(output) as made:
        experiment, chosen = load_run(config, folder)
        if config.decode.ngram.strip():
            _ship_ngram(find_ngram(config, experiment.vocabs, folder), Folder(made).ngram)
        tensors = name_tensors(chosen.state.averaged)
        goal = Path(output or "")
        digests = {"model.safetensors": hash_tensors(tensors), "vocab": experiment.vocabs.digest}
        trained_with = chosen.meta.get("versions") or versions()
        facts = CardFacts(
            name=goal.name,
            model=config.model.name,
            source=config.data.source,
            target=config.data.target,
            parameters=count_parameters(chosen.state.averaged),
            step=chosen.step,
            averaged=_averaged_steps(folder, chosen.step),
            licence=licence,
            corpora=_describe_corpora(config, folder),
            scores=_find_scores(folder, chosen.step),
            changed=_changed_keys(config),
            digests=digests,
            versions=trained_with,
            hears=reads_speech(config.model),
        )
        write_model(
            made,
            config=ship_config(config),
            vocabs=experiment.vocabs,
            tensors=tensors,
            metadata={"step": str(chosen.step), "seq2seq_jax": versions()["seq2seq_jax"], "licence": licence},
            card=write_card(facts),
        )
    left = [f"config.decode.{key}" for key in COMPANIONS if config.decode[key]]
    if left:
        say(f"{' and '.join(left)} left out: the exported model translates alone, not with models of this machine")
    size = sum(path.stat().st_size for path in goal.expanduser().rglob("*") if path.is_file())
    say(f"exported step {chosen.step} to {output} ({size / 2**20:.1f} MiB); its card is {goal / 'README.md'}")
    return goal


def _ship_ngram(path: Path, goal: Path) -> None:
    """Puts an n-gram model, which must be one, beside the exported model, unpacked."""
    read_arpa(path)
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as found, goal.open("wb") as made:
        shutil.copyfileobj(found, made)


def name_tensors(params: PyTree) -> dict[str, np.ndarray]:
    """Dotted parameter path → float32 array on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(jax.device_get(leaf), np.float32)
        for path, leaf in leaves
    }


def ship_config(config: ConfigDict) -> dict[str, Any]:
    """What of a config goes along with a model: no paths of this machine, nothing to train with."""
    kept = {name: config[name].to_dict() for name in SHIPPED}
    kept["vocab"]["file"] = ""
    kept["decode"] |= {**dict.fromkeys(COMPANIONS, ""), "ngram": AUTO if config.decode.ngram.strip() else ""}
    data = config.data
    of_phrasebook = data.test == "phrasebook" or (data.test == "auto" and not holds_out(config, "test"))
    test = "phrasebook" if of_phrasebook else data.test if data.test.startswith("tfds:") else ""
    named = {"source": data.source, "target": data.target, "target_tag": data.target_tag}
    kept["data"] = {**named, "train": "", "dev": "", "test": test}
    return kept


def _find_scores(folder: Folder, step: int) -> dict[str, Any]:
    """The newest scores of this very step on the test set that the card names, or none."""
    named = _read_corpora(folder).get("corpus_sha256", {}).get("test")
    found = [path for path in (folder.results, folder.evaluation / "results.json") if path.exists()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        results = _read(path)
        scores = results.get("test", {})
        tested = results.get("test_sha256") or results.get("corpus_sha256", {}).get("test")
        if named and tested == named and scores.get("step") == step:
            return scores
    return {}


def _describe_corpora(config: ConfigDict, folder: Folder) -> list[dict[str, Any]]:
    """Name, size and digest of the three corpora, as far as the run's results.json tells."""
    results = _read_corpora(folder)
    digests, pairs = results.get("corpus_sha256", {}), results.get("corpus_pairs", {})
    if not digests:
        return []
    return [
        {
            "role": role,
            "name": _name_corpus(config, role),
            "sha256": digests.get(role),
            "pairs": pairs.get(role),
        }
        for role in ("train", "dev", "test")
    ]


def _name_corpus(config: ConfigDict, role: str) -> str:
    if config.data[role] != "auto":
        return _shorten(config.data[role])
    return "held out of train" if holds_out(config, role) else "phrasebook"


def _shorten(spec: str) -> str:
    """Corpora without their folders: where they lay on this machine is nobody's business."""
    parts = [part if part.startswith("tfds:") else part.rsplit("/", 1)[-1] for part in spec.split(",")]
    return ",".join(parts)


def _changed_keys(config: ConfigDict) -> dict[str, Any]:
    """Keys that differ from their defaults, without folders."""
    defaults = flatten(default_config(config.model.name))
    changed = {key: value for key, value in flatten(config).items() if value != defaults.get(key)}
    return {
        key: _shorten(value) if key in PATHS else value
        for key, value in changed.items()
        if not key.startswith("parallel.") and key.removeprefix("decode.") not in COMPANIONS
    }


def _averaged_steps(folder: Folder, step: int) -> list[int]:
    """Steps of the checkpoints whose mean that of `step` is; none where it was trained on from the mean."""
    note = _read(folder.root / "average.json")
    sources = note.get("sources", []) if note.get("step") == step else []
    steps = [source.get("step") if isinstance(source, dict) else None for source in sources]
    return [step for step in steps if isinstance(step, int)]


def _read_corpora(folder: Folder) -> dict[str, Any]:
    """What is known of the corpora of the training: `corpus_sha256` and `corpus_pairs`, of each by its part."""
    return _read(folder.results) or _read(folder.root / "average.json").get("corpora", {})


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    # What is no section is as good as none: a card says what is known.
    return {key: value for key, value in found.items() if key not in SECTIONS or isinstance(value, dict)}
