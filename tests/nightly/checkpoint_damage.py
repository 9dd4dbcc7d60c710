"""Ways to damage a checkpoint, and whether a run notices: what `integrity.py` and the tests of checkpoints share.

A case begins with a copy of a folder of whole steps. The newest is damaged; then the newest that is left must come back
bit for bit, with one warning for every step that was given up, which names what is wrong with it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from seq2seq_jax.train.checkpoint_folder import QUARANTINE
from seq2seq_jax.train.checkpoints import Checkpoints

PAGE = 4096
MANIFEST = "manifest.json"
Given_up = Mapping[int, str]
"""What a case expects: the steps that are given up, and what the warning of each names."""


def make_state(step: int) -> dict[str, Any]:
    """A state of which every step has other numbers in every leaf; some 60 kB."""
    kernel = jax.random.normal(jax.random.key(step), (96, 80))
    params = {"kernel": kernel, "bias": jnp.arange(5.0) + step, "table": jnp.full((40, 9), step, jnp.bfloat16)}
    return {"params": params, "moments": {"kernel": -kernel}, "step": jnp.int32(step)}


def abstract(state: Any) -> Any:
    """What to restore to."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def equal(left: Any, right: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    one, other = jax.tree.flatten(left), jax.tree.flatten(right)
    return one[1] == other[1] and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(one[0], other[0], strict=True)
    )


def save_steps(folder: Path, steps: int = 3) -> Path:
    """A folder of the verified steps 1, 2, ..."""
    with Checkpoints(folder, keep_last=steps, warn=_fail) as checkpoints:
        for step in range(1, steps + 1):
            checkpoints.save(step, make_state(step), meta={"examples": step}, metrics={"bleu": float(step)})
    return folder


def _fail(text: str) -> None:
    raise AssertionError(text)


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def judge(folder: Path, given_up: Given_up, *, newest: int = 3) -> str:
    """Restores from a damaged folder; returns what is wrong with what came of it, "" if nothing.

    Args:
        folder: of checkpoints, the steps up to `newest` of `save_steps`.
        given_up: what is to be given up, and why.
        newest: the newest step that was there before; the newest not given up must come back.
    """
    wanted = max(step for step in range(1, newest + 1) if step not in given_up)
    warnings: list[str] = []
    with Checkpoints(folder, keep_last=9, warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0)))
        left = checkpoints.steps()
    if restored is None:
        return "it would start from nothing"
    if not equal(restored.state, make_state(restored.step)):
        return f"SILENT: step {restored.step} came back with other numbers"
    if restored.step != wanted or restored.meta != {"examples": wanted}:
        return f"step {restored.step} came back ({restored.meta}), not {wanted}"
    if len(warnings) != len(given_up):
        return f"{len(warnings)} warnings instead of {len(given_up)}: {warnings}"
    for step, named in given_up.items():
        if not any(f"step {step} " in text and named in text for text in warnings):
            return f"no warning names {named!r} of step {step}: {warnings}"
        if step in left or not os.path.lexists(folder / QUARANTINE / str(step)):
            return f"step {step} is not in quarantine"
    return ""


def flip_bit(step: Path, draw: random.Random) -> str:
    """Flips one bit of the files of a step, every second time of a file drawn without regard to its size."""
    files = [path for path in list_files(step) if path.stat().st_size]
    weights = None if draw.random() < 0.5 else [path.stat().st_size for path in files]
    path = draw.choices(files, weights)[0]
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return path.relative_to(step).as_posix()


def _draw_file(step: Path, draw: random.Random, *, least: int = 1, manifest: bool = True) -> Path:
    files = [path for path in list_files(step) if path.stat().st_size >= least and (manifest or path.name != MANIFEST)]
    weights = None if draw.random() < 0.5 else [path.stat().st_size for path in files]
    return draw.choices(files, weights)[0]


def _name(root: Path, path: Path) -> Given_up:
    """The newest step is given up for this file of its."""
    return {3: path.relative_to(root / "3").as_posix()}


def truncate(root: Path, draw: random.Random) -> Given_up:
    """A file ends too early."""
    path = _draw_file(root / "3", draw)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    return _name(root, path)


def lengthen(root: Path, draw: random.Random) -> Given_up:
    """A file has bytes too many."""
    path = _draw_file(root / "3", draw)
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.randint(1, PAGE)))
    return _name(root, path)


def delete(root: Path, draw: random.Random) -> Given_up:
    """A file is gone."""
    path = draw.choice(list_files(root / "3"))
    path.unlink()
    return _name(root, path)


def delete_manifest(root: Path, draw: random.Random) -> Given_up:
    """The manifest is gone, and at times something else is wrong that could no longer be noticed."""
    (root / "3" / MANIFEST).unlink()
    if draw.random() < 0.5:
        flip_bit(root / "3", draw)
    return {3: f"{MANIFEST} is missing"}


def delete_folder(root: Path, draw: random.Random) -> Given_up:
    """A folder of a step is gone."""
    path = draw.choice(sorted(path for path in (root / "3").rglob("*") if path.is_dir() and list_files(path)))
    shutil.rmtree(path)
    return _name(root, path)


def zero_page(root: Path, draw: random.Random) -> Given_up:
    """A page of a file, or what of it there is, reads as zeros."""
    path = _draw_file(root / "3", draw)
    content = bytearray(path.read_bytes())
    start = draw.randrange(0, len(content), PAGE)
    length = len(content[start : start + PAGE])
    if not any(content[start : start + length]):
        return zero_page(root, draw)
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return _name(root, path)


def shift(root: Path, draw: random.Random) -> Given_up:
    """The bytes of a file are moved along by one from some place on; its size is as it was."""
    path = _draw_file(root / "3", draw, least=2)
    content = path.read_bytes()
    start = draw.randrange(len(content) - 1)
    moved = content[:start] + bytes([content[start] ^ 1]) + content[start:-1]
    path.write_bytes(moved)
    return _name(root, path)


def swap_within(root: Path, draw: random.Random) -> Given_up:
    """Two files of a step have each other's content."""
    one, other = draw.sample(list_files(root / "3"), 2)
    contents = one.read_bytes(), other.read_bytes()
    if contents[0] == contents[1]:
        return swap_within(root, draw)
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    # The sizes are compared first, and files in the order of their names: either may be the one that is named.
    return {3: ""}


def swap_between(root: Path, draw: random.Random) -> Given_up:
    """Files of two steps have each other's content: both steps are lost."""
    one, other = draw.choice(list_files(root / "3")), draw.choice(list_files(root / "2"))
    contents = one.read_bytes(), other.read_bytes()
    if contents[0] == contents[1]:
        return swap_between(root, draw)
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    return {**_name(root, one), 2: other.relative_to(root / "2").as_posix()}


def empty(root: Path, draw: random.Random) -> Given_up:
    """A step is an empty folder."""
    shutil.rmtree(root / "3")
    (root / "3").mkdir()
    return {3: f"{MANIFEST} is missing"}


def rename(root: Path, draw: random.Random) -> Given_up:
    """A step lies under the number of a later one, alone or beside itself."""
    later = draw.randint(4, 99)
    shutil.copytree(root / "3", root / str(later))
    return {later: "is that of step 3"}


def replace(root: Path, draw: random.Random) -> Given_up:
    """A step holds what an older one holds."""
    shutil.rmtree(root / "3")
    older = draw.choice("12")
    shutil.copytree(root / older, root / "3")
    return {3: f"is that of step {older}"}


def replace_by_file(root: Path, draw: random.Random) -> Given_up:
    """A step is a file, or a link to a file, to nothing or to another step."""
    shutil.rmtree(root / "3")
    kind = draw.choice(("file", "link to file", "link to nothing", "link to step"))
    if kind == "file":
        (root / "3").write_bytes(draw.randbytes(draw.randrange(9)))
    elif kind == "link to file":
        (root / "3").symlink_to(root / "2" / MANIFEST)
    elif kind == "link to nothing":
        (root / "3").symlink_to(root / "nowhere")
        return {3: "3 is gone"}
    else:
        (root / "3").symlink_to(root / "2")
        return {3: "is that of step 2"}
    return {3: "is not a folder"}


def replace_file(root: Path, draw: random.Random) -> Given_up:
    """A file is a folder, a link to nothing, or a link to another one."""
    path = _draw_file(root / "3", draw, manifest=False)
    other = draw.choice([file for file in list_files(root / "2") if file.read_bytes() != path.read_bytes()])
    path.unlink()
    kind = draw.choice(("folder", "link to nothing", "link"))
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "link" else root / "nowhere")
    return _name(root, path)


def rewrite_manifest(root: Path, draw: random.Random) -> Given_up:
    """The manifest is other JSON: of other types, without a part, with other values, or of another step."""
    path = root / "3" / MANIFEST
    manifest = json.loads(path.read_text())
    kind = draw.randrange(6)
    if kind == 0:
        text = draw.choice(("", "null", "[]", "{}", '"x"', "3", "[" * 100_000, '{"digest": []}', "{", "\0", "9" * 5000))
    elif kind == 1:  # a part is missing, of another type, or the values are others; and the digest is made to fit
        del manifest["digest"]
        key = draw.choice(sorted(manifest))
        if draw.random() < 0.5:
            del manifest[key]
        else:
            manifest[key] = draw.choice(([], "", None, [[]], "3", {} if key == "step" else 3.5))
        text = _render(manifest)
    elif kind == 2:  # files elsewhere
        del manifest["digest"]
        manifest["files"][draw.choice(("../../2/manifest.json", "/etc/hostname", "a\0b", "state/../../x"))] = [1, "0"]
        text = _render(manifest)
    elif kind == 3:
        text = (root / "2" / MANIFEST).read_text()
    elif kind == 4:
        text = json.dumps(manifest)  # the same content, not as it was written
    else:
        path.unlink()
        path.mkdir()
        return {3: MANIFEST}
    path.write_text(text)
    return {3: MANIFEST}


def _render(manifest: dict[str, Any]) -> str:
    """A manifest with a digest that fits, as one who knows the recipe would write it."""
    digest = xxhash.xxh3_128(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "digest": digest}, indent=1, ensure_ascii=False) + "\n"


def damage_two(root: Path, draw: random.Random) -> Given_up:
    """The two newest steps are damaged."""
    return {step: flip_bit(root / str(step), draw) for step in (2, 3)}


def add_files(root: Path, draw: random.Random) -> Given_up:
    """Files that nobody listed lie in a step: they harm nothing, and it is used."""
    for name in draw.sample((".DS_Store", "notes.txt", "state/x", "state/d/0123", ".nfs00001", "manifest.json.bak"), 3):
        (root / "3" / name).parent.mkdir(exist_ok=True)
        (root / "3" / name).write_bytes(draw.randbytes(99))
    return {}


KINDS: dict[str, Callable[[Path, random.Random], Given_up]] = {
    "truncated": truncate,
    "too long": lengthen,
    "deleted": delete,
    "manifest deleted": delete_manifest,
    "folder deleted": delete_folder,
    "page zeroed": zero_page,
    "bytes shifted": shift,
    "swapped in the step": swap_within,
    "swapped with another step": swap_between,
    "empty folder": empty,
    "copied to a later number": rename,
    "another step's content": replace,
    "a file or link for a step": replace_by_file,
    "a folder or link for a file": replace_file,
    "another manifest": rewrite_manifest,
    "two steps damaged": damage_two,
    "files added": add_files,
}
"""Kinds of damage to the newest of three steps."""


def try_case(whole: Path, root: Path, kind: str, draw: random.Random) -> str:
    """Copies the steps, damages them and restores; what is wrong with what came of it, "" if nothing."""
    shutil.copytree(whole, root)
    given_up = KINDS[kind](root, draw) if kind in KINDS else {3: flip_bit(root / "3", draw)}
    try:
        problem = judge(root, given_up)
    except Exception as error:  # a traceback is what must not be
        problem = f"{type(error).__name__}: {error}"
    shutil.rmtree(root)
    return f"{kind} {dict(given_up)}: {problem}" if problem else ""
