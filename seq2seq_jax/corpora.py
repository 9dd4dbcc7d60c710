"""From a config to its corpora: texts, vocabularies, tokens and the plan of their batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict

from seq2seq_jax.data.pipeline import TokenPairs, tokenise
from seq2seq_jax.data.plan import BatchPlan, make_plan
from seq2seq_jax.data.sources import ParallelText, hold_out, open_split
from seq2seq_jax.data.vocab import Vocabs, train_vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.train.writers import write_json

PHRASEBOOK_SIZES = {"dev": 500, "test": 1000}
DEV_SHAPES = 3


@dataclasses.dataclass(frozen=True)
class Splits:
    """The corpora of a run."""

    train: ParallelText
    dev: ParallelText
    test: ParallelText

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of each corpus."""
        return {name: getattr(self, name).digest for name in ("train", "dev", "test")}


def open_splits(config: ConfigDict) -> Splits:
    """Reads or makes the three corpora of a config.

    "auto" is the phrasebook's own split, or, for a corpus from files, sentences held out of train.
    """
    data = config.data

    def read(split: str, spec: str) -> ParallelText:
        size = PHRASEBOOK_SIZES.get(split, data.phrasebook_pairs)
        return open_split(spec, split=split, source=data.source, target=data.target, phrasebook_pairs=size)

    train = read("train", data.train)
    wanted = {name: data[name] == "auto" and data.train != "phrasebook" for name in ("dev", "test")}
    pairs = min(data.held_out_pairs, max(1, len(train) // 20))
    held = hold_out(train, dev=pairs * wanted["dev"], test=pairs * wanted["test"]) if any(wanted.values()) else None
    parts = {
        name: held[n] if held and wanted[name] else read(name, "phrasebook" if data[name] == "auto" else data[name])
        for n, name in enumerate(("dev", "test"), start=1)
    }
    return Splits(train=held[0] if held else train, **parts)


def open_test(config: ConfigDict) -> ParallelText:
    """The test corpus alone, where it can be had without the others."""
    data = config.data
    if data.test == "auto" and data.train != "phrasebook":
        return open_splits(config).test
    spec = "phrasebook" if data.test == "auto" else data.test
    size = PHRASEBOOK_SIZES["test"]
    return open_split(spec, split="test", source=data.source, target=data.target, phrasebook_pairs=size)


def obtain_vocabs(config: ConfigDict, folder: Path, text: ParallelText | None, *, keep: bool = True) -> Vocabs:
    """The run's vocabularies: read from `folder`, or trained on `text` and kept there.

    Args:
        config: its keys `vocab` and seed say how to train them.
        folder: theirs.
        text: the training corpus; None where they must be there.
        keep: take those in the folder as they are. Without, they are trained again where they come of
            another recipe or text: a start that was refused or killed leaves nothing that binds the next.

    Raises:
        UserError: there are none and no text to train them on, or they are damaged.
    """
    recipe = {**config.vocab.to_dict(), "seed": config.train.seed, "text": text.digest if text else ""}
    note = folder / "recipe.json"
    found = (folder / "vocabs.json").exists()
    if found and (keep or (note.exists() and json.loads(note.read_text()) == recipe)):
        return Vocabs.load(folder)
    if text is None or text.target is None:
        raise UserError(f"{folder}: there is no vocabulary here; train a model in this --workdir first.")
    note.unlink(missing_ok=True)
    keys = config.vocab
    vocabs = train_vocabs(
        text.source,
        text.target,
        joint=keys.joint,
        kind=keys.kind,
        size=keys.size,
        model=keys.model,
        character_coverage=keys.character_coverage,
        normalization=keys.normalization,
        byte_fallback=keys.byte_fallback,
        seed=config.train.seed,
    )
    vocabs.save(folder)
    write_json(note, recipe)
    return vocabs


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Train and dev as tokens, and the plan of their batches."""

    pairs: TokenPairs
    plan: BatchPlan
    dev: TokenPairs
    dev_plan: BatchPlan

    @classmethod
    def make(cls, config: ConfigDict, vocabs: Vocabs, splits: Splits) -> Corpus:
        """Tokenises both and plans the batches."""
        data, seed = config.data, config.train.seed
        pairs = tokenise(splits.train, vocabs)
        dev = tokenise(splits.dev, vocabs)
        sizes = {"rows_multiple": data.rows_multiple, "tokens_per_batch": data.tokens_per_batch}
        sizes |= {"max_source_len": data.max_source_len, "max_target_len": data.max_target_len}
        plan = make_plan(pairs.source_lengths, pairs.target_lengths, seed=seed, max_shapes=data.max_shapes, **sizes)
        dev_plan = make_plan(
            dev.source_lengths, dev.target_lengths, seed=seed, max_shapes=DEV_SHAPES, shuffle=False, **sizes
        )
        return cls(pairs, plan, dev, dev_plan)
