"""What a training tells of itself: as it starts, and at its end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from seq2seq_jax.config import hash_config
from seq2seq_jax.corpora import Corpus, Splits
from seq2seq_jax.data.coverage import Coverage, describe_coverage
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.ensemble import digest_companions
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.provenance import count_parameters, versions
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.writers import format_duration
from seq2seq_jax.workdir import Folder


def tell_coverage(covered: Mapping[str, Mapping[str, Coverage]], vocabs: Vocabs) -> dict[str, Any]:
    """Says what each side's vocabulary knows of the text; returns the counts for the results."""
    for side, found in covered.items():
        say(describe_coverage(side, getattr(vocabs, side), found))
    return {side: {name: dataclasses.asdict(part) for name, part in found.items()} for side, found in covered.items()}


def tell_start(experiment: Experiment, state: TrainState, first: int, seconds: float) -> None:
    """Says what is trained, on what, and from where."""
    devices = experiment.training.mesh.devices
    where = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    kind = f"{devices.size} x {devices.flat[0].device_kind}{where}"
    begin = f"resuming at step {first}" if first else "starting"
    count = count_parameters(state.params)
    frozen = experiment.training.count_frozen()
    trained = f", of which {count - frozen:,} are trained," if frozen else ""
    say(f"{experiment.config.model.name}: {count:,} parameters{trained} on {kind}; {begin} after "
        f"{format_duration(seconds)}")  # fmt: skip
    if first >= experiment.config.train.steps:
        say(f"step {first} is the last one (config.train.steps): nothing left to train, evaluating")


def tell_skipped(corpus: Corpus) -> dict[str, Any]:
    """Says which clips could not be read while training; returns them, and why, for the results."""
    skipped = dict(getattr(corpus.pairs, "skipped", {}))
    if not skipped:
        return {}
    say(f"{len(skipped)} clips could not be read in training and were left out: {', '.join(list(skipped)[:5])}")
    return {"skipped_clips": skipped}


def describe_origin(experiment: Experiment, splits: Splits, folder: Folder, searched: PyTree) -> dict[str, Any]:
    """What a run's results are of: digests of all that went in, versions, devices and the config.

    Args:
        experiment, splits, folder: the run's.
        searched: the parameters that searched, see `ensemble.join_models`.
    """
    try:
        started = dict(json.loads(folder.started.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # there is none, or it is damaged
        started = {}
    kept = ("source", "step", "parameters_sha256")
    return {
        "corpus_sha256": splits.digests,
        "corpus_pairs": {name: len(getattr(splits, name)) for name in splits.digests},
        "vocab_sha256": experiment.vocabs.digest,
        "config_sha256": hash_config(experiment.config),
        **({"init_from": {name: started.get(name) for name in kept}} if started else {}),
        **digest_companions(experiment, searched, folder),
        "versions": versions(),
        "devices": [device.device_kind for device in experiment.training.mesh.devices.flat],
        "config": experiment.config.to_dict(),
    }


def sum_up(path: Path) -> dict[str, Any]:
    """Training speed over the whole run, from its log lines; a run in several parts counts as one.

    A last line that is not whole yet, as the disk was full, is left out.
    """
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    records = [json.loads(line) for line in whole.splitlines()]
    lines = [record for record in records if "source_tokens_per_second" in record]
    last = lines[-1] if lines else {}
    rates = [record["source_tokens_per_second"] + record["target_tokens_per_second"] for record in lines]
    ordered = sorted(rates)
    return {
        "tokens_per_second": round(ordered[len(ordered) // 2], 1) if ordered else 0.0,
        "pad_share": last.get("pad_share"),
        "data_wait_share": last.get("data_wait_share"),
        "train_loss": last.get("loss"),
        "skipped_steps": sum(1 for record in records if record.get("event") == "skipped"),
    }
