"""`--mode=average`: one model from several checkpoints of a run, by the mean of their parameters.

Vaswani et al. 2017, section 6.1 (the last 5 checkpoints); Junczys-Dowmunt et al. 2016 (the best ones by dev score).
What comes out is a run's folder like any other, without a history of its own: its optimizer state, step and place in
the data are those of the newest checkpoint that went in. Where the run keeps a moving average of its parameters
(config.train.ema_decay), the mean of the moving averages is what is evaluated and exported.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import load_config
from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.experiment import build
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.evaluate import best_by
from seq2seq_jax.modes.new_folder import make_folder
from seq2seq_jax.modes.scoring import say, warn
from seq2seq_jax.provenance import hash_parameters, versions
from seq2seq_jax.train.checkpoints import Checkpoints, Restored
from seq2seq_jax.train.manifest import MANIFEST
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.writers import write_json
from seq2seq_jax.vocabularies import obtain_vocabs
from seq2seq_jax.workdir import Folder

SAME = {"vocab_sha256": "vocabulary", "config_sha256": "config", "train_sha256": "training corpus"}
"""What a checkpoint says of itself that must be the same in all of them."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which checkpoints to take: the `last` so many, the `best` so many by dev score, or these `steps`."""

    last: int = 0
    best: int = 0
    steps: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.steps:
            return f"--steps={','.join(map(str, self.steps))}"
        return f"--best={self.best}" if self.best else f"--last={self.last}"

    @property
    def count(self) -> int:
        """How many are wanted."""
        return len(self.steps) or self.best or self.last


def read_choice(last: int | None, best: int | None, steps: str | None) -> Choice:
    """The choice that a command line makes; the last 5 by default.

    Raises:
        UserError: more than one is given, or a value is none.
    """
    given = [name for name, value in (("last", last), ("best", best), ("steps", steps)) if value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other; give one of --last, --best and --steps.")
    if steps is not None:
        try:
            numbers = tuple(sorted({int(part) for part in steps.split(",")}))
        except ValueError as error:
            raise UserError(f"--steps must be numbers separated by commas, but is {steps!r} instead.") from error
        if len(numbers) < 2:
            raise UserError(f"--steps must name at least two checkpoints, but is {steps!r} instead.")
        return Choice(steps=numbers)
    choice = Choice(best=best) if best is not None else Choice(last=5 if last is None else last)
    if (best if best is not None else choice.last) < 2:
        raise UserError(f"--{'last' if best is None else 'best'} must be at least 2, but is {choice.count} instead.")
    return choice


def average(config: ConfigDict, root: Path, choice: Choice, output: str | None) -> dict[str, Any]:
    """Averages checkpoints of the run in `root` into a new run's folder; returns its note (average.json).

    Args:
        config: the run's; says on which devices.
        root: the run's folder, which stays as it is.
        choice: which checkpoints.
        output: the folder to make.

    Raises:
        UserError: there are too few usable checkpoints, they are of different models or not finite, or `output` is
            there.
    """
    folder = Folder(root)
    saved = load_config(folder.config)
    saved.parallel = config.parallel
    with make_folder(output) as made:
        experiment = build(saved, obtain_vocabs(saved, folder.vocab, None))
        abstract = experiment.training.abstract_state()
        with Checkpoints(folder.checkpoints, read_only=True, warn=warn) as checkpoints:
            mean, sources = Mean(), list[dict[str, Any]]()
            newest: Restored | None = None
            for restored in _read(checkpoints, abstract, choice, best_by(saved)):
                if newest is not None:
                    _check_same(newest, restored, folder)
                _check_finite(restored, folder)
                mean.add(_fields(restored.state))
                sources.append(_describe(checkpoints, restored))
                newest = restored if newest is None or restored.step > newest.step else newest
            if newest is None or len(sources) < choice.count:
                raise UserError(_tell_too_few(folder, checkpoints, choice, len(sources)))
        if newest.meta.get("vocab_sha256") != experiment.vocabs.digest:
            raise UserError(f"{folder.vocab}: not the vocabulary of these checkpoints; put the run's own back.")
        # The exact mean, in the shards and type of the newest: what is not averaged comes along with it.
        found = mean.take(like=_fields(newest.state))
        state = dataclasses.replace(newest.state, **found)
        note: dict[str, Any] = {
            "run": str(root),
            "choice": str(choice),
            "sources": sorted(sources, key=lambda source: source["step"]),
            "step": newest.step,
            "corpora": _read_corpora(folder),
            "parameters_sha256": hash_parameters(state.averaged),
            "versions": versions(),
        }
        parts = Folder(made)
        with Checkpoints(parts.checkpoints, asynchronous=False, warn=warn) as target:
            if not target.save(newest.step, state, meta=newest.meta):
                raise UserError(f"--output={output}: the checkpoint could not be saved; see the line above.")
        experiment.vocabs.save(parts.vocab)
        write_json(made / "average.json", note)
        write_json(parts.config, load_config(folder.config).to_dict())
    steps = ", ".join(str(source["step"]) for source in note["sources"])
    say(f"averaged {len(sources)} checkpoints (steps {steps}) into {output}; score it with:")
    say(f"  python -m seq2seq_jax.main --workdir={output} --mode=evaluate")
    return note


class Mean:
    """The mean of trees of arrays: float64 sums on the host, one leaf at a time, divided and cast once."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[np.ndarray] = []

    def add(self, tree: PyTree) -> None:
        """Adds one tree; all must have the same leaves."""
        self.count += 1
        for n, leaf in enumerate(jax.tree.leaves(tree)):
            value = np.asarray(jax.device_get(leaf)).astype(np.float64)
            if self.count == 1:
                self._sums.append(value)
            else:
                self._sums[n] += value

    def take(self, *, like: PyTree) -> PyTree:
        """The mean in the types and shards of `like`; the sums are given back as it goes."""
        leaves, structure = jax.tree.flatten(like)
        means = []
        for n, leaf in enumerate(leaves):
            value = (self._sums[n] / self.count).astype(leaf.dtype)
            self._sums[n] = np.empty(0)
            means.append(jax.device_put(value, leaf.sharding))
        return jax.tree.unflatten(structure, means)


def _read(checkpoints: Checkpoints, abstract: PyTree, choice: Choice, ranking: Mapping[str, Any]) -> Iterator[Restored]:
    """The wanted checkpoints that are whole; of those that are not a line tells, and the next one is taken instead.

    Raises:
        UserError: one that was asked for by its step is not whole.
    """
    taken = 0
    for step in choice.steps or _order(checkpoints, ranking if choice.best else None):
        if not choice.steps and taken == choice.count:
            return
        try:
            place = checkpoints.directory / str(step)
            if place.is_dir() and not (place / MANIFEST).exists():
                warn(f"checkpoint of step {step} has no {MANIFEST} and cannot be verified: left out")
                restored = None
            else:
                restored = checkpoints.restore(abstract, step=step)
        except NoUsableCheckpointError:  # told already
            restored = None
        if restored is not None:
            taken += 1
            yield restored
        elif choice.steps:
            raise UserError(f"{choice}: the checkpoint of step {step} is not as it was written; leave it out.")


def _order(checkpoints: Checkpoints, ranking: Mapping[str, Any] | None) -> list[int]:
    """The newest first, or the best by the run's dev score, and only those that have one."""
    steps = checkpoints.steps()[::-1]
    if ranking is None:
        return steps
    sign = 1.0 if ranking["best_mode"] == "max" else -1.0
    scores = {step: sign * checkpoints.metrics(step).get(ranking["best_metric"], math.nan) for step in steps}
    return sorted((step for step in steps if math.isfinite(scores[step])), key=lambda step: -scores[step])


def _fields(state: TrainState) -> dict[str, PyTree]:
    """What of a state is averaged: the parameters, and their moving average where there is one."""
    return {"params": state.params} | ({} if state.ema is None else {"ema": state.ema})


def _check_same(first: Restored, other: Restored, folder: Folder) -> None:
    for key, what in SAME.items():
        if first.meta.get(key) != other.meta.get(key):
            raise UserError(
                f"{folder.checkpoints}: steps {first.step} and {other.step} were made with another {what} ({key} "
                f"differs): their mean means nothing; choose with --steps those of one training."
            )


def _check_finite(restored: Restored, folder: Folder) -> None:
    """A training saves none such; one from elsewhere would spoil the mean without a word."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(_fields(restored.state)):
        if not bool(jnp.isfinite(leaf).all()):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(
                f"{folder.checkpoints}: {name} of step {restored.step} must be finite, but is not; choose others with "
                "--steps."
            )


def _describe(checkpoints: Checkpoints, restored: Restored) -> dict[str, Any]:
    """What the note says of one that went in."""
    return {
        "step": restored.step,
        "parameters_sha256": hash_parameters(restored.state.averaged),
        "metrics": checkpoints.metrics(restored.step),
    }


def _read_corpora(folder: Folder) -> dict[str, Any]:
    """What the run's results.json says of its corpora, if it is there: the new folder has no results of its own."""
    try:
        results = dict(json.loads(folder.results.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # there are none, or they are damaged
        return {}
    return {key: results[key] for key in ("corpus_sha256", "corpus_pairs") if key in results}


def _tell_too_few(folder: Folder, checkpoints: Checkpoints, choice: Choice, found: int) -> str:
    kind = "usable checkpoints with a dev score" if choice.best else "usable checkpoints"
    return (
        f"{folder.checkpoints}: has {found} {kind}, but {choice} wants {choice.count}; ask for fewer, or train with "
        f"--config.train.keep_last={choice.count} and more checkpoints (config.train.save_every)."
    )
