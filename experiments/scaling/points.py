"""What a scaling study consists of: points, each one training of a few steps, and the presets that list them.

A point is measured by `measure.py` in a process of its own and kept as one JSON file, whose name follows from
everything that was asked: a point whose file is there is finished, and is not run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

AXES = ("data", "fsdp", "tensor", "stage")


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        kind: "train" for a loss at the end of a training on planned batches, "speed" for a few steps of one shape.
        features: width of the model.
        pairs: sentence pairs in the training corpus.
        steps: optimizer steps; the learning rate decays over just these.
        mesh: sizes of the mesh's axes that are not 1, such as "data=4,stage=2", or "data=1".
        rows: rows of every global batch ("speed"), or 0: planned by tokens ("train").
        seed: of parameters, dropout and the order of the data.
    """

    kind: str
    features: int
    pairs: int
    steps: int
    mesh: str
    rows: int
    seed: int

    @property
    def axes(self) -> dict[str, int]:
        """Size of every axis of the mesh."""
        return read_mesh(self.mesh)

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return math.prod(self.axes.values())

    def describe(self) -> str:
        """A few words for a log line."""
        size = f"{self.rows} rows" if self.rows else f"{self.pairs:,} pairs"
        return f"{self.kind} {self.features} wide, {size}, {self.steps} steps, {self.mesh}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What is swept, and what stays as it is.

    Attributes:
        settings: config keys with their values, the same for every point.
        vocab_pairs: corpus size that the one vocabulary of all points is trained on; losses a token can only be
            compared where the tokens are the same.
        features, steps: every pair of them is trained on all the data: loss against parameters and compute.
        pairs: corpus sizes; the middle width is trained on each for the most steps: loss against data.
        seeds: every training is repeated with each.
        meshes: measured twice each: with the same global batch (strong scaling) and with `rows_per_device` rows a
            device (weak scaling). The global batch of the former is that of the largest mesh of the latter.
        mesh_features, mesh_steps, rows_per_device: of these measurements.
    """

    settings: Mapping[str, Any]
    vocab_pairs: int
    features: tuple[int, ...]
    steps: tuple[int, ...]
    pairs: tuple[int, ...]
    seeds: tuple[int, ...]
    meshes: tuple[str, ...]
    mesh_features: int
    mesh_steps: int
    rows_per_device: int

    def fixed(self) -> dict[str, Any]:
        """What every finished point of a folder must share."""
        return {"settings": dict(self.settings), "vocab_pairs": self.vocab_pairs}


def list_points(study: Study) -> list[Point]:
    """Every point once: the quick ones first, so that a first report comes soon."""
    return list(dict.fromkeys([*_list_meshes(study), *_list_trainings(study)]))


def _list_trainings(study: Study) -> Iterator[Point]:
    most, longest = max(study.pairs), max(study.steps)
    middle = sorted(study.features)[len(study.features) // 2]
    for seed in study.seeds:
        for steps in sorted(study.steps):
            for features in sorted(study.features):
                yield Point("train", features, most, steps, "data=1", 0, seed)
        for pairs in sorted(study.pairs):
            yield Point("train", middle, pairs, longest, "data=1", 0, seed)


def _list_meshes(study: Study) -> Iterator[Point]:
    if not study.meshes:
        return
    most = max(math.prod(read_mesh(mesh).values()) for mesh in study.meshes)
    for mesh in study.meshes:
        devices = math.prod(read_mesh(mesh).values())
        for rows in (study.rows_per_device * most, study.rows_per_device * devices):
            yield Point("speed", study.mesh_features, max(study.pairs), study.mesh_steps, mesh, rows, study.seeds[0])


def read_mesh(text: str) -> dict[str, int]:
    """Sizes of all axes from "data=4,stage=2".

    Raises:
        ValueError: an unknown axis, or a size that is no positive number.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"a mesh is written like data=4,stage=2 with axes of {', '.join(AXES)}, but is {text!r}.")
        sizes[axis] = int(size)
    return sizes


def find_file(folder: Path, point: Point, study_fixed: Mapping[str, Any]) -> Path:
    """Where a point's result is kept; the name follows from the point and all that is fixed."""
    asked = json.dumps({**dataclasses.asdict(point), **study_fixed}, sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()[:10]
    mesh = point.mesh.replace("=", "").replace(",", "-")
    name = f"{point.kind}-f{point.features}-p{point.pairs}-s{point.steps}-{mesh}-r{point.rows}-seed{point.seed}"
    return folder / "points" / f"{name}-{digest}.json"


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All finished points of a folder, in order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "points").glob("*.json"))]


_MODEL = {"model.dropout": 0.0, "train.label_smoothing": 0.0, "train.warmup_steps": 40}

TINY = Study(
    settings={
        **_MODEL,
        "model.encoder_layers": 1,
        "model.decoder_layers": 1,
        "model.attention_from": "previous_step",
        "vocab.kind": "char",
        "vocab.size": 100,
        "data.max_source_len": 160,
        "data.max_target_len": 160,
        "data.tokens_per_batch": 2560,
        "data.max_shapes": 1,
    },
    vocab_pairs=200,
    features=(8, 12),
    steps=(4,),
    pairs=(200,),
    seeds=(0,),
    meshes=("data=2",),
    mesh_features=8,
    mesh_steps=3,
    rows_per_device=8,
)
"""To see that everything works; the numbers mean nothing."""

LAPTOP = Study(
    settings={**_MODEL, "vocab.size": 1000, "data.tokens_per_batch": 1024, "data.max_shapes": 1},
    vocab_pairs=8000,
    features=(16, 24, 32, 48, 64, 96, 128),
    steps=(200, 600),
    pairs=(250, 500, 1000, 2000, 4000, 8000),
    seeds=(0,),
    meshes=("data=1", "data=2", "data=4", "data=8", "stage=2"),
    mesh_features=64,
    mesh_steps=20,
    rows_per_device=8,
)
"""Minutes on a few CPU cores."""

COLAB = Study(
    settings={**_MODEL, "vocab.size": 4000, "data.tokens_per_batch": 4096, "data.max_shapes": 3},
    vocab_pairs=64_000,
    features=(32, 64, 128, 192, 256, 384, 512),
    steps=(500, 1000, 2000),
    pairs=(1000, 2000, 4000, 8000, 16_000, 32_000, 64_000),
    seeds=(0, 1),
    meshes=("data=1", "data=2", "data=4", "data=8"),
    mesh_features=256,
    mesh_steps=50,
    rows_per_device=64,
)
"""For an accelerator; meshes that need more devices than there are, are left out and named."""

PRESETS = {"tiny": TINY, "laptop": LAPTOP, "colab": COLAB}


def override(study: Study, name: str, values: Sequence[Any] | None) -> Study:
    """The study with one of its lists replaced, unless the values are None."""
    return study if values is None else dataclasses.replace(study, **{name: tuple(dict.fromkeys(values))})
