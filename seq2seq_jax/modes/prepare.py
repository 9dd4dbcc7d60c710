"""`--mode=prepare`: cleans and tokenises the training corpora to a disk, once for all trainings and hosts."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.config import with_absolute_prefixes
from seq2seq_jax.corpora import describe_prepared, holds_out, list_specs, prepared_folder, takes_vocabulary
from seq2seq_jax.data.clean import CleanRules
from seq2seq_jax.data.prepare import prepare as prepare_corpora
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.streams import find_corpus
from seq2seq_jax.data.survey import Order
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.train.writers import format_duration
from seq2seq_jax.vocabularies import obtain_vocabs
from seq2seq_jax.workdir import Folder


def prepare(config: ConfigDict, root: Path, *, workers: int, host: int = 0, hosts: int = 1) -> dict[str, Any]:
    """Prepares the corpora of `config.data.train` in `config.data.prepared`, or goes on where it was stopped.

    Args:
        config: what to prepare.
        root: the run's folder; WORKDIR/prepared is used where the config names no other.
        workers: processes; 0 is one a core.
        host, hosts: this one makes every `hosts`-th shard, from `host` on.

    Returns:
        What is there now: folder, pairs, shards, left_out, and whether all of it is finished.

    Raises:
        UserError: see `data.prepare.prepare`.
    """
    if workers < 0 or hosts < 1 or not 0 <= host < hosts:
        raise UserError(
            "--workers must be at least 0, --hosts at least 1 and --host from 0 to hosts - 1, but are "
            f"{workers}, {hosts} and {host}."
        )
    started = time.monotonic()
    config = with_absolute_prefixes(config)
    folder = prepared_folder(config, root) or Folder(root).prepared
    data = config.data
    specs = list_specs(config, "train")
    order = Order(
        folder=folder,
        corpora=tuple(find_corpus(spec, phrasebook_pairs=data.phrasebook_pairs) for spec in specs),
        rules=CleanRules(**config.clean.to_dict()),
        held_out_pairs=data.held_out_pairs,
        hold_dev=holds_out(config, "dev"),
        hold_test=holds_out(config, "test"),
        turned=data.reversed,
        needs_sample=not (config.vocab.file or config.vocab.kind == "byte" or takes_vocabulary(config)),
        shard_pairs=data.shard_pairs,
        workers=workers or count_cores(),
        host=host,
        hosts=hosts,
        tell=_say,
    )

    def obtain(text: ParallelText | None) -> Vocabs:
        return obtain_vocabs(config, folder / "vocab", text, keep=text is None)

    index = prepare_corpora(order, describe_prepared(config), obtain)
    if index is None:
        return {"folder": str(folder), "finished": False}
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in index.left_out.items()) or "none"
    _say(
        f"prepare: {folder}: {len(index):,} pairs in {len(index.shards)} shards, left out: {left_out}; "
        f"{format_duration(time.monotonic() - started)}"
    )
    return {
        "folder": str(folder),
        "finished": True,
        "pairs": len(index),
        "parts": [dataclasses.asdict(part) for part in index.parts],
        "shards": len(index.shards),
        "left_out": index.left_out,
        "held_out": index.held_out,
        "sha256": index.digest,
        "vocab_sha256": index.vocab_sha256,
    }


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
