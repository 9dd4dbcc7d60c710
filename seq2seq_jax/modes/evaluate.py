"""`--mode=evaluate`, and how every mode finds a trained run's best checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seq2seq_jax.config import RESUMABLE, check_resume, load_config, with_absolute_prefixes
from seq2seq_jax.corpora import open_test, prepared_folder
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment, build
from seq2seq_jax.modes.scoring import evaluate_test, warn
from seq2seq_jax.parallel.hosts import ALONE, Hosts
from seq2seq_jax.provenance import count_parameters, hash_parameters, versions
from seq2seq_jax.serve.model_folder import WEIGHTS, is_model_folder, nest, read_model
from seq2seq_jax.train.checkpoints import Checkpoints, Restored
from seq2seq_jax.train.manifest import check_leaves
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.stopping import BEST
from seq2seq_jax.train.writers import write_json
from seq2seq_jax.vocabularies import find_ngram, obtain_vocabs
from seq2seq_jax.workdir import Folder, list_members

OF_TRAINING = ("data.", "clean.", "train.", "sequence.")
"""Sections that say how a model came about, and not what it is."""


def evaluate(config: ConfigDict, root: Path, hosts: Hosts = ALONE, *, place: Path | None = None) -> dict[str, Any]:
    """Evaluates a trained run's best checkpoint on `config.data.test`, with the models that search beside it.

    Writes results.json and outputs/ to `place`, by default the folder `evaluation` in that of the run.
    """
    place = place or Folder(root).evaluation
    results = evaluate_into(place, config, root, hosts)
    if hosts.is_primary:
        write_json(place / "results.json", results)
    return results


def evaluate_into(place: Path, config: ConfigDict, root: Path, hosts: Hosts = ALONE) -> dict[str, Any]:
    """What `evaluate` returns; leaves outputs/ in `place`, but no results.json."""
    from seq2seq_jax.modes.ensemble import digest_companions, join_models  # which loads runs by this module

    config = with_absolute_prefixes(config)
    experiment, chosen = load_run(config, Folder(root))
    test = open_test(config, prepared_folder(config, root))
    hosts.check_same("test", {"test corpus with digest": test.digest})
    hosts.primary_first("ngram", lambda: find_ngram(config, experiment.vocabs, Folder(root)))
    if hosts.is_primary:
        make_writable(place)  # before the work
    with StopSignal(hosts.look) as stop:
        models = join_models(experiment, chosen.state.averaged, Folder(root))
        scores = evaluate_test(experiment, chosen, test, Folder(place), stop, hosts, models)
    results = {"test": scores, "parameters": count_parameters(chosen.state.params), "versions": versions()}
    results |= {"test_sha256": test.digest, "vocab_sha256": experiment.vocabs.digest}
    results["parameters_sha256"] = hash_parameters(chosen.state.averaged)
    return {**results, **digest_companions(experiment, models[1], Folder(root))}


def make_writable(place: Path) -> None:
    """Makes a folder where results will be written.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{place}: cannot be written to ({error.strerror}); mend its rights or its disk.") from error


def load_run(config: ConfigDict, folder: Folder) -> tuple[Experiment, Restored]:
    """A trained run and its best checkpoint (by dev score; else the newest), or an exported model.

    Raises:
        UserError: nothing was trained here, or with another model.
    """
    members = list_members(folder.root)
    if members:
        raise UserError(
            f"{folder.root}: is an ensemble of {len(members)} runs, and one is needed here: name {members[0]} or "
            "another of them."
        )
    saved = load_config(folder.config)
    check_resume(config, saved, folder.config, free=(*RESUMABLE, *OF_TRAINING, "decode.", "evaluate."))
    if is_model_folder(folder.root):
        return _load_exported(config, folder)
    if not saved.data.train:  # which a run has
        cure = "copy the folder again, or export it again from its run"
        raise UserError(f"{folder.root / WEIGHTS}: is missing, or no file, of a model made by --mode=export; {cure}.")
    # The state has the shape that its own recipe gave it (optimizer, average), whatever is asked for now.
    config = ConfigDict({**config.to_dict(), "train": saved.train.to_dict()})
    experiment = build(config, obtain_vocabs(config, folder.vocab, None))
    with Checkpoints(folder.checkpoints, read_only=True, warn=warn, **best_by(config)) as checkpoints:
        restored = checkpoints.restore_best(experiment.training.abstract_state())
    if restored is None:
        raise UserError(f"{folder.checkpoints}: no checkpoint yet; train first: --mode=train --workdir={folder.root}.")
    vocab = restored.meta.get("vocab_sha256")
    if vocab != experiment.vocabs.digest:
        raise UserError(
            f"{folder.vocab}: not the vocabulary this model was trained with (digest {experiment.vocabs.digest[:12]}, "
            f"the checkpoint's is {str(vocab)[:12]}); put the run's own vocabulary back."
        )
    return experiment, restored


def best_by(config: ConfigDict) -> dict[str, Any]:
    """How `Checkpoints` are to find the best step of a run with this config."""
    metric = config.train.patience_metric
    return {"best_metric": metric, "best_mode": BEST[metric]}


def _load_exported(config: ConfigDict, folder: Folder) -> tuple[Experiment, Restored]:
    """A model that `--mode=export` wrote; its state has parameters and nothing to train on with."""
    found = read_model(folder.root)
    experiment = build(config, found.vocabs)
    wanted, given = experiment.training.abstract_state().params, nest(found.tensors)
    check_leaves(given, wanted, folder=folder.root)
    params = jax.tree.map(lambda like, array: jax.device_put(array, like.sharding), wanted, given)
    step = int(found.metadata.get("step", 0))
    state = TrainState(step=jnp.int32(step), skipped=jnp.int32(0), params=params, opt_state=())
    return experiment, Restored(step, state, {"vocab_sha256": found.vocabs.digest})
