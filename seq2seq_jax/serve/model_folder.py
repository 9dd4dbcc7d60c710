"""A trained model as a folder to give away: weights, vocabularies, the keys that matter, and a card.

    config.json         what the model is and how it searches
    vocab/              its vocabularies
    model.safetensors   float32, named by the dotted paths of the parameters; no pickle
    ngram.arpa          the n-gram model that searches with it, where there is one
    README.md           the card

The header of `model.safetensors` holds digests of the weights, of the vocabularies and of `config.model`, which are
compared when the folder is read: a model whose files were mixed up or damaged says so and translates nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.whole_file import read_whole
from seq2seq_jax.errors import UserError

WEIGHTS = "model.safetensors"
CARD = "README.md"
FORMAT = "seq2seq_jax-1"
OUTSIDE = ("ensemble", "language_model", "ngram")
"""Keys of `decode` that name files, which in a folder from others they must not."""
_CURE = "copy the folder again, or export it again from its run"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """What was read from a model's folder.

    Attributes:
        config: config.json.
        vocabs: the vocabularies.
        tensors: dotted parameter path → float32 array.
        metadata: text by name: digests, step, versions.
        card: README.md; empty where it was removed.
    """

    config: dict[str, Any]
    vocabs: Vocabs
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    card: str


def is_model_folder(folder: Path) -> bool:
    """Whether it holds an exported model."""
    return (folder / WEIGHTS).is_file()


def write_model(
    folder: Path,
    *,
    config: Mapping[str, Any],
    vocabs: Vocabs,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    card: str,
) -> None:
    """Writes a model's folder; see `ModelFolder`.

    Args:
        folder: is there, and empty.
        config: with a section `model`.
        vocabs: of both sides.
        tensors: dotted parameter path → array; written as float32.
        metadata: more to put in the header of the weights; the digests are added.
        card: the text of README.md.
    """
    from safetensors.numpy import save_file

    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    header = {**metadata, **_digests(config, vocabs, weights), "format": FORMAT}
    save_file(weights, folder / WEIGHTS, metadata={**header, "header_sha256": _hash(header)})
    vocabs.save(folder / "vocab")
    for name, text in (("config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n"), (CARD, card)):
        (folder / name).write_text(text, encoding="utf-8")


def read_model(folder: Path) -> ModelFolder:
    """Reads a model's folder and compares its parts with the digests in the weights' header.

    Nothing in the folder can name a file outside of it.

    Raises:
        UserError: a file is missing or unreadable, or is not what was written.
    """
    metadata, tensors = _read_weights(folder / WEIGHTS)
    if metadata.pop("header_sha256", "") != _hash(metadata) or metadata.get("format") != FORMAT:
        raise UserError(f"{folder / WEIGHTS}: its header is not that of an exported model ({FORMAT}); {_CURE}.")
    step = metadata.get("step", "0")
    if not (step.isascii() and step.isdecimal() and len(step) < 19 and int(step) < 2**31):
        raise UserError(f"{folder / WEIGHTS}: its step must be a whole number, but is {step[:40]!r}; {_CURE}.")
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f"{folder / WEIGHTS}: {name[:80]} holds NaN or infinite numbers; {_CURE}.")
    config = _read_config(folder / "config.json")
    vocabs = Vocabs.load(folder / "vocab")
    found = _digests(config, vocabs, tensors)
    places = {"parameters_sha256": WEIGHTS, "vocab_sha256": "vocab", "model_sha256": "config.json"}
    for key, digest in found.items():
        if metadata.get(key) != digest:
            raise UserError(
                f"{folder / places[key]}: not what was exported (its {key} is {digest[:12]}, the header of {WEIGHTS} "
                f"says {str(metadata.get(key))[:12]}); {_CURE}."
            )
    return ModelFolder(config, vocabs, tensors, metadata, read_card(folder))


def read_card(folder: Path) -> str:
    """The text of README.md, whatever people have put there; empty where there is none."""
    path = folder / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_config(page: Path) -> dict[str, Any]:
    """The folder's config, which names no other file."""
    try:
        config = json.loads(read_whole(page))
        decode = dict(config.get("decode", {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{page}: cannot be read ({error}); {_CURE}.") from error
    for key in OUTSIDE:
        if decode.get(key, "") not in ("", *(("auto",) if key == "ngram" else ())):
            raise UserError(
                f"{page}: decode.{key} must name nothing in a model's folder, but is {decode[key]!r}; {_CURE}. "
                f"--config.decode.{key} names other models."
            )
    return config


def hash_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over the names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def nest(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Dotted paths to a tree of dicts: `{"a.b": x}` to `{"a": {"b": x}}`.

    Raises:
        UserError: a path goes on behind another one's end.
    """
    tree: dict[str, Any] = {}
    for name, array in sorted(tensors.items()):  # "a" before "a.b"
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"{WEIGHTS}: {name[:80]!r} goes on behind the name of another parameter; {_CURE}.")
        place[last] = array
    return tree


def _digests(config: Mapping[str, Any], vocabs: Vocabs, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {
        "parameters_sha256": hash_tensors(tensors),
        "vocab_sha256": vocabs.digest,
        "model_sha256": _hash(config.get("model")),
    }


def _hash(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_weights(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not whole ({error}); {_CURE}.") from error
