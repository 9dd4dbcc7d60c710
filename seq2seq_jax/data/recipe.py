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
from seq2seq_jax.data.streams import find_corpus
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
    """The part of a recipe that says what the text is; weights are not in it."""
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


def find_files(specs: Sequence[CorpusSpec]) -> list[str]:
    """Paths of the corpora's files as they are named now, in order; "" in place of those that are not there."""
    paths: list[str] = []
    for spec in specs:
        if spec.name == "phrasebook" or spec.name.startswith("tfds:"):
            continue
        try:
            paths += find_corpus(spec, phrasebook_pairs=0).paths
        except UserError:
            paths += [""] * (1 if spec.name.endswith((".tsv", ".tsv.gz")) else 2)
    return paths


def check_files(record: Path, files: Sequence[dict[str, Any]], paths: Sequence[str]) -> None:
    """Refuses files that are not what a corpus was prepared from; one that is gone is fine, for it is not needed.

    The size is compared, and the sha256 unless path and time of change are the same as well. While it is not known
    yet, which is until the corpus is finished, the time of change decides.

    Args:
        record: the file of the prepared corpus in which `files` stand.
        files: it was prepared from, as `stat_file` says and with "sha256" where it is known.
        paths: of the files that the config names now, in the same places (`find_files`); a folder may have moved.

    Raises:
        UserError: names the file.
    """
    for known, path in zip(files, paths, strict=False):  # of another number of files the recipe is another
        if not path or not Path(path).exists():
            continue
        now, sha256 = stat_file(path), known.get("sha256")
        same = now["size"] == known["size"]
        if not sha256:
            same = same and now["mtime_ns"] == known["mtime_ns"]
        elif same and now != {key: known[key] for key in now}:
            same = hash_file(Path(path)) == sha256
        if not same:
            fault = f"was changed since {record.parent} was prepared from it"
            if path != known["path"]:
                fault = f"is not the text of {known['path']}, which {record.parent} was prepared from"
            sizes = f"{known['size']} bytes by {record.name}, {now['size']} now"
            raise UserError(
                f"{path}: {fault} ({sizes}); put it back, or remove that folder and run --mode=prepare again."
            )


def refuse_other_recipe(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares what decides the content of a corpus.

    Of files only the last part of the name counts here: `check_files` looks into them. What is None in `wanted` is
    not known any more, as the digest of a file that is gone, and not compared.

    Raises:
        UserError: names every difference.
    """
    then, now = _flatten(known), _flatten(wanted)
    differing = [
        f"{key} (there {then.get(key)!r}, now {now.get(key)!r})"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not (key in now and now[key] is None)
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
