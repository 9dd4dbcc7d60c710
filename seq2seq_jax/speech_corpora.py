"""From a config to its corpora of speech: clips and transcripts, how long they are, and the frames of a batch."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.data.audio_pairs import AudioPairs, SpeedPerturbation, impossible, make_audio_pairs
from seq2seq_jax.data.pipeline import Pairs, Ragged
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.spoken import write_spoken
from seq2seq_jax.data.utterances import index_durations, read_utterances
from seq2seq_jax.data.vocab import UNK_ID, Vocab
from seq2seq_jax.errors import UserError
from seq2seq_jax.speech_checks import parse_speeds

SPOKEN_SIZES = {"dev": 100, "test": 200, "test_voice": 100}
SECONDS = 2.0
"""About how long an utterance of the built-in corpus is."""

NAMED = 5
"""Clips that a line about many of them names."""

TOO_SHORT = "too short for their transcripts (CTC has a step for every token)"

_log = logging.getLogger(__name__)


def _say(line: str) -> None:
    """Tells people something, once for all hosts."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where built-in speech and the durations of clips are kept for all runs of a person."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seq2seq_jax"


def read_speech(config: ConfigDict, name: str, split: str) -> ParallelText:
    """A corpus of speech by the name that a config gives it.

    Args:
        config: its keys `audio`.
        name: "phrasebook" for the built-in one, else a manifest or a folder.
        split: "train", "dev" or "test"; of the built-in corpus, the latter is scored in two parts, the second of a
            voice that nothing was trained on.

    Raises:
        UserError: it cannot be read.
    """
    if not name:
        raise UserError(f'config.data.{split} is empty; give a manifest, a folder, or "phrasebook".')
    if name != "phrasebook":
        return read_utterances(name)
    rate = config.audio.rate
    sizes = {**SPOKEN_SIZES, "train": max(1, round(config.audio.spoken_hours * 3600 / SECONDS))}
    folder = cache_folder() / "spoken"
    parts = [split, "test_voice"] if split == "test" else [split]
    texts = [
        read_utterances(write_spoken(folder, split=part, size=sizes[part], seed=0, rate=rate, tell=_say))
        for part in parts
    ]
    if len(texts) == 1:
        return texts[0]
    return join_speech(texts, ("voices of training", "unseen voice"))


def join_speech(texts: Sequence[ParallelText], names: Sequence[str]) -> ParallelText:
    """Corpora one after the other, which are scored apart under these names, too."""
    source = [clip for text in texts for clip in text.source]
    target = [line for text in texts for line in text.target or []]
    digest = hashlib.sha256(" ".join(text.digest for text in texts).encode()).hexdigest()  # wherever the files are
    groups = tuple((name, len(text)) for name, text in zip(names, texts, strict=True))
    return ParallelText(source, target, ", ".join(text.name for text in texts), digest, groups=groups)


def make_pairs(config: ConfigDict, text: ParallelText, vocab: Vocab, *, reduction: int = 0) -> AudioPairs:
    """The clips and transcripts of a corpus as frames and tokens; what cannot be used is named, and has no frames.

    Args:
        config: of the run.
        text: clips and transcripts.
        vocab: of the transcripts.
        reduction: of a corpus to train on: frames a step of what CTC labels, if anything. 0: of one to score, where
            also those count that CTC cannot label.
    """
    keys = config.audio
    cache = cache_folder() / "durations"
    seconds = index_durations(text, cache=cache, strict=keys.strict, tell=_say)
    pairs = make_audio_pairs(
        text, vocab, rate=keys.rate, hop=keys.hop, seconds=seconds, strict=keys.strict, room=keys.cache_mib << 20
    )
    _tell_unknown(text, pairs, vocab)
    if not reduction:
        tell_too_short(text, find_too_short(config, pairs.frames, pairs.target))
        return pairs
    quickest = max((1.0, *parse_speeds(keys.speeds)))
    ids = find_too_short(config, np.maximum(np.floor(pairs.frames / quickest), pairs.frames > 0), pairs.target)
    tell_set_aside(text, ids, why=TOO_SHORT)
    return dataclasses.replace(pairs, frames=np.where(np.isin(np.arange(len(pairs)), ids), 0, pairs.frames))


def count_frames_of_ctc(config: ConfigDict) -> int:
    """Frames a step of what CTC labels while training; 0 where there is no CTC."""
    trains_ctc = config.model.name == "ctc" or config.audio.ctc_weight > 0
    return config.model.reduction if trains_ctc else 0


def find_too_short(config: ConfigDict, frames: np.ndarray, target: Ragged) -> np.ndarray:
    """The utterances, of `frames` `[N]` and with these tokens, that CTC cannot label; not those without any frame."""
    reduction = count_frames_of_ctc(config)
    ids = impossible(frames, target, reduction=reduction) if reduction else np.zeros(0, np.int64)
    return ids[frames[ids] > 0]


def tell_too_short(text: ParallelText, ids: np.ndarray) -> None:
    """Names the first utterances that are scored, though CTC cannot label them: without them a WER would flatter."""
    if len(ids):
        counts = "they count in the error rates, and not in CTC's loss"
        _say(f"{text.name}: {len(ids)} of {len(text)} utterances are {TOO_SHORT}; {counts}: {_name(text, ids)}")


def describe_clips(pairs: Mapping[str, Pairs]) -> dict[str, int | str]:
    """`describe_lengths` of corpora by the names of their splits; nothing of texts, whose digests say it all."""
    return describe_lengths({name: each.frames for name, each in pairs.items() if isinstance(each, AudioPairs)})


def describe_lengths(frames: Mapping[str, np.ndarray]) -> dict[str, int | str]:
    """What all hosts must have found of the clips, for `Hosts.check_same`: they plan the same batches of it.

    Args:
        frames: by the name of a split, `[N]` frames of its clips.
    """
    facts: dict[str, int | str] = {}
    for name, counts in frames.items():
        digest = hashlib.sha256(np.asarray(counts, np.int64).tobytes()).hexdigest()
        facts[f"usable {name} clips"] = int(np.sum(counts > 0))
        facts[f"frames of {name} clips"] = int(np.sum(counts))
        facts[f"lengths of {name} clips with digest"] = digest
    return facts


def make_speeds(config: ConfigDict) -> SpeedPerturbation | None:
    """What plays utterances at other speeds, where the config says so."""
    speeds = parse_speeds(config.audio.speeds)
    return SpeedPerturbation(speeds, config.train.seed, config.audio.hop) if speeds else None


def tell_set_aside(text: ParallelText, ids: np.ndarray, *, why: str) -> None:
    """Names the first utterances that are not trained on."""
    if len(ids):
        _log.warning("%s: %d utterances are %s and set aside: %s", text.name, len(ids), why, _name(text, ids))


def _name(text: ParallelText, ids: np.ndarray) -> str:
    return ", ".join(text.source[n] for n in ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _tell_unknown(text: ParallelText, pairs: AudioPairs, vocab: Vocab) -> None:
    """Names the first transcript that the vocabulary cannot spell."""
    unknown = [n for n in range(len(pairs)) if UNK_ID in pairs.target[n]]
    if not unknown:
        return
    first = unknown[0]
    strange = sorted({char for char in vocab.normalise((text.target or [])[first]) if UNK_ID in vocab.encode(char)})
    _log.warning(
        "%s: %d of %d transcripts have characters outside the vocabulary, such as %s in that of %s; they become <unk>",
        text.name,
        len(unknown),
        len(text),
        ", ".join(map(repr, strange[:NAMED])) or "some",
        text.source[first],
    )
