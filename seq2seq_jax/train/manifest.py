"""What makes a checkpoint trustworthy: its files are as they were written, and it is of this model.

Orbax commits a checkpoint atomically but does not notice later damage to it: a flipped bit in an
array comes back as a wrong number. So every committed step gets a `manifest.json` in its folder,
written whole or not at all, and a step is verified against it before it is restored.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

from seq2seq_jax.errors import UserError
from seq2seq_jax.failpoints import reach
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.train.writers import format_json, write_json

MANIFEST = "manifest.json"
SHOWN = 5  # differences in one message
ALGORITHM = "xxh3_128"  # finds any damage by chance, which is what happens to disks, in a tenth of the time of sha256
ALGORITHMS: dict[str, Callable[[], Any]] = {
    "xxh3_128": xxhash.xxh3_128,
    "blake2b": lambda: hashlib.blake2b(digest_size=32),  # of manifests that do not name theirs: there was no other
}


class Standing(enum.IntEnum):
    """What is known of a committed step."""

    VERIFIED = 0  # every file is as it was written
    UNVERIFIED = 1  # no manifest: the run ended between the commit and the manifest
    BAD = 2  # a file is missing or differs


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The standing of a step, and for a bad one the file and what is wrong with it."""

    standing: Standing
    reason: str = ""


def make_record(meta: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """What stands beside the arrays of a step, as it will be read back."""
    scores = {key: float(value) for key, value in metrics.items()}
    return json.loads(json.dumps({"meta": dict(meta), "metrics": scores}))


def write_manifest(folder: Path, *, step: int, record: Mapping[str, Any]) -> None:
    """Writes the manifest of a committed step.

    Args:
      folder: the step's folder.
      step: its step, so that a folder which was renamed is noticed.
      record: what the run says of itself (examples consumed, digests of config and vocabulary,
        versions, metrics): kept here too, for people and for the choice of the best step.
    """
    files = {}
    for name in _list_files(folder):
        files[name] = (folder / name).stat().st_size, _digest_file(folder / name, ALGORITHM)
    content = {"step": step, **record, "algorithm": ALGORITHM, "files": files}
    content = {**content, "digest": _digest_content(content)}
    write_json(folder / MANIFEST, content, before_rename=lambda: reach("manifest", step))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a step.

    Raises:
      FileNotFoundError: there is none.
      OSError: it cannot be read.
      ValueError: it is damaged.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        manifest = json.loads(text)
        same = text == format_json(manifest)  # the digest is of the content: 1e-05 and 1E-05 are the same to it
        whole = same and manifest.pop("digest") == _digest_content(manifest) and _is_manifest(manifest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged") from error
    if not whole:
        raise ValueError(f"{MANIFEST} is damaged")
    return manifest


def read_records(folder: Path, steps: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The manifests of those of `steps` in the folder of a run that have one of their own, by step."""
    records = {}
    for step in steps:
        try:
            manifest = read_manifest(folder / str(step))
        except (OSError, ValueError):
            continue  # `restore` will say why
        if manifest["step"] == step:
            records[step] = manifest
    return records


def verify_manifest(folder: Path, *, step: int, share: tuple[int, int] = (0, 1)) -> Verdict:
    """Compares every file of a step with its manifest; stops at the first one that differs.

    Sizes are compared before any digest is made. Files that are not listed are ignored.

    Args:
      folder: the step's folder.
      step: its step.
      share: `(i, n)`: read the i-th of n shares of the files, so that n hosts read each file once.
    """
    name = MANIFEST
    try:
        if not folder.is_dir():
            return Verdict(Standing.BAD, f"{folder.name} is {'not a folder' if folder.exists() else 'gone'}")
        manifest = read_manifest(folder)
        if manifest["step"] != step:
            return Verdict(Standing.BAD, f"{MANIFEST} is that of step {manifest['step']}")
        for name, (size, _) in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return Verdict(Standing.BAD, f"{name} is missing")
            if path.stat().st_size != size:
                return Verdict(Standing.BAD, f"{name} has {path.stat().st_size} bytes instead of {size}")
        for name, (_, digest) in list(manifest["files"].items())[share[0] :: share[1]]:
            if _digest_file(folder / name, _name_algorithm(manifest)) != digest:
                return Verdict(Standing.BAD, f"{name} is not what was written (its digest differs)")
    except FileNotFoundError:
        return Verdict(Standing.UNVERIFIED if name == MANIFEST else Standing.BAD, f"{name} is missing")
    except OSError as error:
        return Verdict(Standing.BAD, f"{name} cannot be read ({error.strerror})")
    except ValueError as error:
        return Verdict(Standing.BAD, str(error))
    return Verdict(Standing.VERIFIED)


def _is_manifest(found: Mapping[str, Any]) -> bool:
    """Whether it has the parts of a manifest, of the right types; files in the folder and nowhere else."""
    types = {"step": int, "meta": dict, "metrics": dict, "files": dict}
    return (
        all(isinstance(found[key], kind) for key, kind in types.items())
        and _name_algorithm(found) in ALGORITHMS
        and all(isinstance(score, int | float) for score in found["metrics"].values())
        and all(isinstance(size, int) and isinstance(digest, str) for size, digest in found["files"].values())
        and not any(Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name for name in found["files"])
    )


def _list_files(folder: Path) -> list[str]:
    """All files of a step but the manifest and its temporary ones, by their path in the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [name for name in names if not name.lstrip(".").startswith(MANIFEST)]


def _name_algorithm(manifest: Mapping[str, Any]) -> str:
    return manifest.get("algorithm", "blake2b")


def _digest_file(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, ALGORITHMS[algorithm]).hexdigest()


def _digest_content(manifest: Mapping[str, Any]) -> str:
    digest = ALGORITHMS[_name_algorithm(manifest)]()
    digest.update(json.dumps(manifest, sort_keys=True).encode())
    return digest.hexdigest()


def name_fields(state: PyTree) -> PyTree:
    """A dataclass's fields by name, those left out that are None; anything else as it is.

    A field that came later, and is not used, is then no part of a checkpoint: older ones can still be read.
    """
    if not dataclasses.is_dataclass(state):
        return state
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def take_fields(like: PyTree, found: PyTree) -> PyTree:
    """The inverse of `name_fields`, for a state of the kind of `like`."""
    if not dataclasses.is_dataclass(like) or isinstance(like, type):
        return found
    return dataclasses.replace(like, **found)


def check_leaves(stored: PyTree, wanted: PyTree, *, folder: Path) -> None:
    """Compares names, shapes and types of the leaves of a stored state and of the one to restore to.

    Types too, because Orbax casts them without a word.

    Raises:
      UserError: they differ; names the first few.
    """
    there, here = _describe_leaves(stored), _describe_leaves(wanted)
    differing = (name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    names = sorted(differing, key=lambda name: (not name.startswith("params/"), name))  # what people know comes first
    if not names:
        return
    shown = [f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in names[:SHOWN]]
    if len(names) > SHOWN:
        shown.append(f"and {len(names) - SHOWN} more")
    raise UserError(
        f"the checkpoint {folder} is of another model or optimizer: {'; '.join(shown)}. "
        "Use the config it was trained with, or another folder"
    )


def _describe_leaves(tree: PyTree) -> dict[str, str]:
    """Shape and type of each leaf by its name: `params/encoder/kernel` to `[512, 64] float32`."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))  # as it is stored
        name = "/".join(_key_name(key) for key in path)
        described[name] = f"{list(leaf.shape)} {np.dtype(leaf.dtype).name}"
    return described


def _key_name(key: Any) -> str:
    """The bare name in a jax key path entry."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
