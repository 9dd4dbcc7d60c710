"""From a config to its corpora: texts, vocabularies, tokens and the plan of their batches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.data.clean import CleanRules, clean_texts
from seq2seq_jax.data.mixture import Part, share_parts
from seq2seq_jax.data.packing import make_packed_plan
from seq2seq_jax.data.pipeline import Pairs, Redraw, join_pairs, tokenise
from seq2seq_jax.data.plan import BatchPlan, make_plan
from seq2seq_jax.data.prepare import read_held_out
from seq2seq_jax.data.recipe import check_files, describe_content, find_files, refuse_other_recipe
from seq2seq_jax.data.sampling import PairSampler
from seq2seq_jax.data.sources import ParallelText, hold_out, open_split
from seq2seq_jax.data.spec import CorpusSpec, name_target, parse_corpora
from seq2seq_jax.data.store import INDEX, Index, PreparedPairs, is_complete
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_files import digest_files
from seq2seq_jax.errors import UserError
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.speech_corpora import (
    count_frames_of_ctc,
    join_speech,
    make_pairs,
    make_speeds,
    read_speech,
    tell_set_aside,
)
from seq2seq_jax.workdir import Folder

PHRASEBOOK_SIZES = {"dev": 500, "test": 1000}
DEV_SHAPES = 3


@dataclasses.dataclass(frozen=True)
class Splits:
    """The corpora of a run.

    Attributes:
        train: all training corpora, one after the other; or prepared ones, whose text is not here.
        dev, test: one each.
        texts: the training corpora, each with its tags; none where they are prepared.
        parts: their sizes, and what each has of an epoch.
    """

    train: ParallelText | PreparedPairs
    dev: ParallelText
    test: ParallelText
    texts: tuple[ParallelText, ...]
    parts: tuple[Part, ...]

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of each corpus."""
        return {name: getattr(self, name).digest for name in ("train", "dev", "test")}


def open_splits(
    config: ConfigDict, *, prepared: PreparedPairs | None = None, report_path: Path | None = None
) -> Splits:
    """Reads or makes the corpora of a config.

    "auto" is the phrasebook's own split, or, for corpora from files, sentences held out of the first one of
    `data.train`. Then the training corpora are cleaned as `config.clean` says; dev and test never are.

    Args:
        config: its keys `data` and `clean`.
        prepared: the training corpora as --mode=prepare has made them: no training text is read.
        report_path: of a sample of what cleaning left out, as JSON Lines.
    """
    data = config.data
    specs = list_specs(config, "train")
    if prepared is not None:
        dev, test = (_open_held_out(config, name, prepared.folder, prepared.index) for name in ("dev", "test"))
        return Splits(prepared, dev, test, (), _share_parts(config, specs, prepared.part_sizes))
    texts = [_read(config, "train", spec) for spec in specs]
    wanted = {name: holds_out(config, name) for name in ("dev", "test")}
    held = None
    if any(wanted.values()):
        pairs = min(data.held_out_pairs, max(1, len(texts[0]) // 20))
        held = hold_out(texts[0], dev=pairs * wanted["dev"], test=pairs * wanted["test"])
        texts[0] = held[0]
    dev, test = (
        held[n] if held and wanted[name] else _read_all(config, name) for n, name in enumerate(("dev", "test"), start=1)
    )
    if reads_speech(config.model):
        return Splits(_join(texts), dev, test, tuple(texts), _share_parts(config, specs, [len(text) for text in texts]))
    languages = [(spec.source, spec.target) for spec in specs]
    texts = clean_texts(texts, CleanRules(**config.clean.to_dict()), languages, report_path)
    dev, test, *texts = _turn(config, [dev, test, *texts])
    parts = _share_parts(config, specs, [len(text) for text in texts])
    return Splits(_join(texts), dev, test, tuple(texts), parts)


def _share_parts(config: ConfigDict, specs: Sequence[CorpusSpec], sizes: Sequence[int]) -> tuple[Part, ...]:
    weights, names = [spec.weight for spec in specs], [spec.name for spec in specs]
    if len(set(names)) < len(names):  # one corpus in several languages
        names = [f"{spec.name} {spec.source}-{spec.target}" for spec in specs]
    return share_parts(sizes, weights, names, temperature=config.data.temperature)


def find_prepared(config: ConfigDict, root: Path, *, check: bool = True) -> PreparedPairs | None:
    """The prepared corpus that a training is to use, or None where it reads text into memory.

    Args:
        config: `data.prepared` says where, the other keys what must be in it.
        root: the run's folder.
        check: compare the digests of all shards; of several hosts one is enough.

    Raises:
        UserError: there is none where the config names a folder, it is damaged, of another config, or of files that
            were changed since.
    """
    folder = prepared_folder(config, root)
    if folder is None or (config.data.prepared == "auto" and not folder.exists()):
        return None
    if config.data.prepared == "auto" and not is_complete(folder):
        raise UserError(
            f"{folder}: this preparation is not finished; run --mode=prepare again, which goes on with it, or set "
            'config.data.prepared="" to read the text into memory.'
        )
    prepared = PreparedPairs.open(folder, check=check)
    known = {key: value for key, value in prepared.index.recipe.items() if key not in ("shard_pairs", "vocab_sha256")}
    refuse_other_recipe(folder, known, describe_prepared(config))
    check_files(folder / INDEX, prepared.index.files, find_files(list_specs(config, "train")))
    return prepared


def prepared_folder(config: ConfigDict, root: Path) -> Path | None:
    """Where a run's prepared corpus is, or would be; None where it shall have none."""
    name = config.data.prepared
    return {"auto": Folder(root).prepared, "": None}.get(name, Path(name))


def holds_out(config: ConfigDict, split: str) -> bool:
    """Whether dev or test are sentences held out of the first training corpus."""
    return config.data[split] == "auto" and list_specs(config, "train")[0].name != "phrasebook"


def describe_prepared(config: ConfigDict) -> dict[str, Any]:
    """What decides the content of a prepared corpus, but for the bytes of its files."""
    content = describe_content(
        list_specs(config, "train"),
        CleanRules(**config.clean.to_dict()),
        phrasebook_pairs=config.data.phrasebook_pairs,
        held_out_pairs=config.data.held_out_pairs,
        hold_dev=holds_out(config, "dev"),
        hold_test=holds_out(config, "test"),
        turned=config.data.reversed,
    )
    return content | {"vocab": _describe_vocabs(config)}


def takes_vocabulary(config: ConfigDict) -> bool:
    """Whether the vocabulary is that of the run whose parameters are the start."""
    return bool(config.train.init_from and config.vocab.from_init and not config.vocab.file)


def _describe_vocabs(config: ConfigDict) -> dict[str, Any]:
    """What decides the vocabularies but for the text; None for a digest of what is gone.

    train.seed is not in it: SentencePiece reads all lines that it is given, so nothing is drawn.
    """
    if takes_vocabulary(config):
        try:
            return {"init_from": Vocabs.load(Folder(Path(config.train.init_from)).vocab).digest}
        except UserError:
            return {"init_from": None}
    left = ("file", "from_init", "tags", *([] if config.vocab.target_size else ["target_size"]))
    own = {key: value for key, value in config.vocab.to_dict().items() if key not in left}
    if config.vocab.file:
        own = {key: own[key] for key in ("kind", "joint", "normalization")}
        own["file"] = [digest or None for digest in digest_files(config.vocab.file)]
    return own | {"tags": ", ".join(list_tags(config))}


def _open_held_out(config: ConfigDict, split: str, folder: Path, index: Index) -> ParallelText:
    """Dev or test of a run with a prepared corpus."""
    spec = list_specs(config, split)[0]
    if not holds_out(config, split):
        return _turn(config, [_read(config, split, spec)])[0]
    if split not in index.held_out:
        raise UserError(f"{folder}: no {split} sentences were held out of it; name a file in config.data.{split}.")
    text = read_held_out(folder, split, index)
    return _turn(config, [dataclasses.replace(text, tags=spec.tags, languages=(spec.source, spec.target))])[0]


def open_test(config: ConfigDict, folder: Path | None = None) -> ParallelText:
    """The test corpus alone, where it can be had without the others: so where the training corpus is in `folder`."""
    if folder is not None and is_complete(folder):
        return _open_held_out(config, "test", folder, Index.load(folder))
    if holds_out(config, "test"):
        return open_splits(config).test
    return _turn(config, [_read_all(config, "test")])[0]


def list_specs(config: ConfigDict, split: str) -> tuple[CorpusSpec, ...]:
    """The corpora that a config names for a split, as their files are; "auto" is taken for the first one of train.

    Raises:
        UserError: the line says something that is not known, or names several corpora for dev or test.
    """
    data = config.data
    line, key = data[split], f"data.{split}"
    if split != "train" and line == "auto":
        return list_specs(config, "train")[:1]
    source, target = (data.target, data.source) if data.reversed else (data.source, data.target)
    tagged = data.target_tag and not data.reversed
    specs = parse_corpora(line, source=source, target=target, target_tag=tagged, key=key)
    if data.target_tag and data.reversed:
        specs = tuple(dataclasses.replace(spec, tags=(name_target(spec.source), *spec.tags)) for spec in specs)
    several = split == "train" or (split == "test" and reads_speech(config.model))
    if len(specs) > 1 and not several:
        raise UserError(f"config.{key} must name one corpus, but names {len(specs)}: {line}.")
    return specs


def list_tags(config: ConfigDict) -> tuple[str, ...]:
    """Every tag that a vocabulary of this config must have, without brackets."""
    specs = [spec for split in ("train", "dev", "test") for spec in list_specs(config, split)]
    more = [tag.strip() for tag in config.vocab.tags.split(",") if tag.strip()]
    return tuple(dict.fromkeys([*(tag for spec in specs for tag in spec.tags), *more]))


def _read_all(config: ConfigDict, split: str) -> ParallelText:
    """Dev or test, which of speech may be several, to be scored together and apart."""
    specs = list_specs(config, split)
    texts = [_read(config, split, spec) for spec in specs]
    if len(texts) == 1:
        return texts[0]
    return dataclasses.replace(join_speech(texts, [spec.name for spec in specs]), languages=texts[0].languages)


def _read(config: ConfigDict, split: str, spec: CorpusSpec) -> ParallelText:
    if reads_speech(config.model):
        return dataclasses.replace(read_speech(config, spec.name, split), languages=(spec.source, spec.target))
    size = PHRASEBOOK_SIZES.get(split, config.data.phrasebook_pairs)
    text = open_split(spec.name, split=split, source=spec.source, target=spec.target, phrasebook_pairs=size)
    return dataclasses.replace(text, tags=spec.tags, languages=(spec.source, spec.target))


def _turn(config: ConfigDict, texts: Sequence[ParallelText]) -> list[ParallelText]:
    """With `data.reversed` corpora whose sides have changed places; else the same."""
    if not config.data.reversed:
        return list(texts)
    return [
        dataclasses.replace(
            text,
            source=text.target or [],
            target=text.source,
            digest=hashlib.sha256(f"reversed {text.digest}".encode()).hexdigest(),
            languages=text.languages[::-1],
        )
        for text in texts
    ]


def _join(texts: Sequence[ParallelText]) -> ParallelText:
    """Corpora one after the other; one alone stays as it is."""
    if len(texts) == 1:
        return texts[0]
    source, target = [], []
    for text in texts:
        source += text.source
        target += text.target or []
    digest = hashlib.sha256(" ".join(text.digest for text in texts).encode()).hexdigest()
    return ParallelText(source, target, ", ".join(text.name for text in texts), digest)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Train and dev as tokens, and the plan of their batches.

    Attributes:
        pairs, plan: of train.
        dev, dev_plan: of dev.
        redraw: draws other segmentations of train's pairs, where `data.subword_sampling` says so.
    """

    pairs: Pairs
    plan: BatchPlan
    dev: Pairs
    dev_plan: BatchPlan
    redraw: Redraw | None = None

    @classmethod
    def make(cls, config: ConfigDict, vocabs: Vocabs, splits: Splits) -> Corpus:
        """Tokenises both and plans the batches."""
        if reads_speech(config.model):
            return cls._make_speech(config, vocabs, splits)
        data, seed = config.data, config.train.seed
        pairs: Pairs
        if isinstance(splits.train, PreparedPairs):
            pairs = splits.train
        else:
            pairs = join_pairs([tokenise(text, vocabs, text.tags) for text in splits.texts])
        dev = tokenise(splits.dev, vocabs, splits.dev.tags)
        sizes, redraw, lengths = _batch_sizes(data), None, (pairs.source_lengths, pairs.target_lengths)
        if data.subword_sampling:
            redraw = PairSampler(vocabs, data.subword_sampling, data.subword_sides, seed)
            lengths = redraw.plan_lengths(pairs, max_source_len=data.max_source_len, max_target_len=data.max_target_len)
        if data.pack:
            plan = make_packed_plan(*lengths, seed=seed, parts=splits.parts, **sizes)
        else:
            plan = make_plan(
                *lengths,
                seed=seed,
                max_shapes=data.max_shapes,
                parts=splits.parts,
                curriculum_epochs=data.curriculum_epochs,
                **sizes,
            )
        return cls(pairs, plan, dev, plan_in_order(config, dev), redraw)

    @classmethod
    def _make_speech(cls, config: ConfigDict, vocabs: Vocabs, splits: Splits) -> Corpus:
        """The same of clips and transcripts, planned by frames and tokens."""
        if not isinstance(splits.train, ParallelText):
            raise UserError("config.data.prepared: audio is not prepared; leave it at 'auto' in a new --workdir.")
        pairs = make_pairs(config, splits.train, vocabs.target, reduction=count_frames_of_ctc(config))
        dev, speeds, lengths = make_pairs(config, splits.dev, vocabs.target), make_speeds(config), pairs.source_lengths
        if speeds is not None:
            lengths = speeds.plan_lengths(lengths)
        plan = make_plan(
            lengths,
            pairs.target_lengths,
            seed=config.train.seed,
            max_shapes=config.data.max_shapes,
            parts=splits.parts,
            curriculum_epochs=config.data.curriculum_epochs,
            **_batch_sizes(config.data),
        )
        tell_set_aside(splits.train, plan.too_long, why="longer than config.data.max_source_len or max_target_len")
        return cls(pairs, plan, dev, plan_in_order(config, dev), speeds)


def plan_in_order(config: ConfigDict, pairs: Pairs) -> BatchPlan:
    """The batches of dev or test, of few shapes."""
    sizes = {"max_shapes": DEV_SHAPES, "shuffle": False, **_batch_sizes(config.data)}
    return make_plan(pairs.source_lengths, pairs.target_lengths, seed=config.train.seed, **sizes)


def _batch_sizes(data: ConfigDict) -> dict[str, Any]:
    fixed, tokens = {"rows": data.sentences_per_batch}, {"tokens_per_batch": data.tokens_per_batch}
    size = fixed if data.sentences_per_batch else tokens
    return size | {name: data[name] for name in ("rows_multiple", "max_source_len", "max_target_len")}
