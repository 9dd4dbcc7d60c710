"""What decides the content of a prepared corpus, written down beside it and compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seq2seq_jax.data.clean import CleanRules
from seq2seq_jax.data.spec import CorpusSpec
from seq2seq_jax.data.store import hash_file
from seq2seq_jax.errors import UserError


def describe_content(
    specs: Sequence[CorpusSpec],
    rules: CleanRules,
    *,
    phrasebook_pairs: int,
    held_out_pairs: int,
    hold_dev: bool,
    hold_test: bool,
    turned: bool,
) -> dict[str, Any]:
    """The part of a recipe that a training compares with its own config; weights and vocabulary are not in it."""
    corpora = []
    for spec in specs:
        entry: dict[str, Any] = {"name": spec.name, "source": spec.source, "target": spec.target}
        entry["tags"] = list(spec.tags)
        corpora.append(entry | ({"pairs": phrasebook_pairs} if spec.name == "phrasebook" else {}))
    held = {"pairs": held_out_pairs, "dev": hold_dev, "test": hold_test} if hold_dev or hold_test else {}
    return {"corpora": corpora, "clean": asdict(rules), "held_out": held, "reversed": turned}


def hash_recipe(recipe: dict[str, Any]) -> str:
    """sha256 of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def stat_file(path: str) -> dict[str, Any]:
    """What is quickly known of a file: path, size and time of change."""
    found = os.stat(path)
    return {"path": path, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def check_files(folder: Path, files: tuple[dict[str, Any], ...] | list[dict[str, Any]]) -> None:
    """Refuses files that were changed since a corpus was prepared from them; one that is gone is fine.

    Size and time of change are compared; where they differ, the sha256 decides if it is known.

    Raises:
        UserError: names the file.
    """
    for known in files:
        path = Path(known["path"])
        if not path.exists():
            continue
        now = stat_file(known["path"])
        if now == {key: known[key] for key in now}:
            continue
        if now["size"] != known["size"] or not known.get("sha256") or hash_file(path) != known["sha256"]:
            raise UserError(
                f"{path}: was changed since {folder} was prepared from it ({known['size']} bytes then, {now['size']} "
                "now); put it back, or remove that folder and run --mode=prepare again."
            )


def refuse_other_recipe(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares what decides the content of a corpus; of files the last part of the name counts.

    Raises:
        UserError: names every difference.
    """
    then, now = _flatten(known), _flatten(wanted)
    differing = [
        f"{key} (there {then.get(key)!r}, now {now.get(key)!r})"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    if differing:
        raise UserError(
            f"{folder}: was prepared with another config: {'; '.join(differing)}; set that back, name another folder "
            "in config.data.prepared, or remove this one."
        )


def _flatten(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat |= _flatten({str(n): item for n, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            moved = key == "name" and not str(value).startswith("tfds:")
            flat[prefix + key] = str(value).rpartition("/")[2] if moved else value
    return flat
