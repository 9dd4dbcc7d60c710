"""The runs of the study: which models are trained on which corpora, by which commands, and whether they are done.

A run is a folder OUT/CORPUS/NAME-SEED, made by `python -m seq2seq_jax.main` from a recipe in configs/ and a few keys.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import Job
from ml_collections import ConfigDict

from seq2seq_jax.config import flatten, load_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.workdir import Folder

ROOT = Path(__file__).resolve().parents[2]

SEEDS = {"reversed": 5, "forward": 3, "layers1": 3, "layers4": 3, "attention": 3}
"""Name of a model → how often it is trained."""

KEYS: dict[str, dict[str, Any]] = {
    "reversed": {},
    "forward": {"model.reverse_source": False},
    "layers1": {"model.layers": 1},
    "layers4": {"model.layers": 4},
    "attention": {},
}
"""Name of a model → what it has other than the recipe."""

RECIPES = {name: "rnnsearch" if name == "attention" else "lstm" for name in SEEDS}

OF_CORPUS: dict[str, dict[str, Any]] = {
    "multi30k": {"data.target": "fr"},
    "phrasebook": {
        "model.dropout": 0.0,
        "train.steps": 1000,
        "train.decay_steps": 1000,
        "train.warmup_steps": 100,
        "train.label_smoothing": 0.0,
        "decode.beam_size": 12,
        "decode.length_normalisation": "none",
        "evaluate.dev_sentences": 100,
        "evaluate.samples": 0,
        "train.patience_metric": "loss",
    },
}
"""Corpus → what is set for all of its runs; Multi30k's recipes have the preset `small` besides."""

CORPORA = tuple(OF_CORPUS)
SPLITS = {"train": "train", "val": "dev", "test": "test"}
"""Name of a text → its key in `config.data`."""

FILES = {"train": "train", "val": "val", "test": "test_2016_flickr"}
LANGUAGES = ("en", "fr")

GUESSES = {"reversed": 1.0, "forward": 1.0, "layers1": 0.7, "layers4": 1.7, "attention": 1.6}
"""How long a training takes beside `reversed`."""

BASE_SECONDS = {"multi30k": 430.0, "phrasebook": 330.0}
"""Of `reversed` on one core."""

PATHS = tuple(f"data.{key}" for key in SPLITS.values())


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    corpus: str
    name: str
    seed: int

    @property
    def label(self) -> str:
        """The name of its folder."""
        return f"{self.name}-{self.seed}"

    def find_folder(self, out: Path) -> Folder:
        """Where it is in the folder of a study."""
        return Folder(out / self.corpus / self.label)


def list_runs(corpora: Sequence[str]) -> list[Run]:
    """All runs, those that most comparisons need first: by seeds, and the ensemble's last two members at the end."""
    found = [Run(corpus, name, seed) for corpus in corpora for name, count in SEEDS.items() for seed in range(count)]
    return sorted(found, key=lambda run: (corpora.index(run.corpus), run.seed))


def name_recipe(run: Run) -> str:
    """`--config` of a run, from the root of the repository: a file, with a preset for Multi30k."""
    return f"configs/{RECIPES[run.name]}.py" + (":small" if run.corpus == "multi30k" else "")


def list_keys(run: Run, out: Path) -> dict[str, Any]:
    """What a run sets: key without `config.` → value."""
    texts = {f"data.{key}": str(out / "text" / run.corpus / name) for name, key in SPLITS.items()}
    own = texts if run.corpus == "multi30k" else {}
    return {"train.seed": run.seed, **KEYS[run.name], **own, **OF_CORPUS[run.corpus]}


def make_config(run: Run, out: Path) -> ConfigDict:
    """The whole config of a run, as its command makes it."""
    file, _, preset = name_recipe(run).partition(":")
    spec = importlib.util.spec_from_file_location(f"recipe_{RECIPES[run.name]}", ROOT / file)
    if spec is None or spec.loader is None or not (ROOT / file).is_file():
        raise UserError(f"{ROOT / file}: there is no such recipe; use a whole copy of the repository.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(preset) if preset else module.get_config()
    for key, value in list_keys(run, out).items():
        section, _, name = key.partition(".")
        config[section][name] = value
    return config


def check_run(run: Run, out: Path) -> None:
    """Refuses a folder that was trained by other keys: nothing could be compared with it. Paths of texts may differ.

    Raises:
        UserError: names the keys.
    """
    folder = run.find_folder(out)
    if not folder.config.exists():
        return
    saved, wanted = flatten(load_config(folder.config)), flatten(make_config(run, out))
    other = [key for key in sorted(wanted) if key not in PATHS and saved.get(key) != wanted[key]]
    if other:
        told = ", ".join(f"{key} {saved.get(key)!r}, not {wanted[key]!r}" for key in other[:5])
        raise UserError(f"{folder.root}: was trained with other keys ({told}); move it away, or choose another --out.")


def make_job(run: Run, out: Path) -> Job:
    """The training of a run."""
    folder, keys = run.find_folder(out), list_keys(run, out)
    own = [f"--config.{key}={value}" for key, value in keys.items()]
    command = [f"--config={name_recipe(run)}", f"--workdir={folder.root}", *own]
    return Job(
        name=name_job(run),
        kind=f"train {run.corpus} {run.name}",
        command=(sys.executable, "-m", "seq2seq_jax.main", *command),
        makes=folder.results,
        log=out / "logs" / run.corpus / f"{run.label}.log",
        guess=BASE_SECONDS[run.corpus] * GUESSES[run.name],
    )


def name_job(run: Run) -> str:
    """The name of a run's training among the jobs of the study."""
    return f"train {run.corpus}/{run.label}"


def read_results(run: Run, out: Path) -> dict[str, Any]:
    """results.json of a run that is done."""
    return dict(json.loads(run.find_folder(out).results.read_text(encoding="utf-8")))


def read_seconds(runs: Sequence[Run], out: Path) -> dict[str, float]:
    """How long the trainings took that are done, by their own count: name of the job → seconds."""
    done = [run for run in runs if run.find_folder(out).results.exists()]
    found = {name_job(run): read_results(run, out).get("wall_seconds") for run in done}
    return {name: float(seconds) for name, seconds in found.items() if seconds is not None}


def copy_texts(data: Path, out: Path) -> None:
    """Copies Multi30k's tokenised files to OUT/text/multi30k/{train,val,test}.{en,fr}, those that are not there.

    Raises:
        UserError: one is missing in `data`/multi30k/tok.
    """
    for name, file in FILES.items():
        for language in LANGUAGES:
            to = out / "text" / "multi30k" / f"{name}.{language}"
            if to.exists():
                continue
            source = data / "multi30k" / "tok" / f"{file}.lc.norm.tok.{language}"
            if not source.is_file():
                raise UserError(
                    f"--data={data}: has no multi30k/tok/{source.name}; Multi30k's data/task1/tok has the tokenised "
                    "files. Or leave this corpus out: --only=phrasebook."
                )
            to.parent.mkdir(parents=True, exist_ok=True)
            part = to.with_name(to.name + ".part")
            shutil.copyfile(source, part)
            part.replace(to)
