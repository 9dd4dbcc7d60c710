"""A corpus of speech as a plan and its batches see it: frames of samples as sources, tokens as targets.

    ParallelText of clips ── make_audio_pairs ──▶ AudioPairs ── read(ids) ──▶ frames [S, hop], tokens
                                                                 └─ SpeedPerturbation: faster and slower

Sound is decoded when a batch asks for it, and kept as 16-bit numbers while there is room. Every clip goes through
those 16 bits, so that nothing depends on whether it was kept.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from seq2seq_jax.data.audio import count_frames, read_clip, resample, to_frames
from seq2seq_jax.data.pipeline import Ragged
from seq2seq_jax.data.plan import PlannedBatch
from seq2seq_jax.data.sampling import mix
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.vocab import Vocab
from seq2seq_jax.errors import UserError

KEPT_BYTES = 1 << 30
_FULL_SCALE = 1 / 32768
_SILENT = 1e-30  # below, what to divide by is no float32
_QUIET = 1 / 16  # below this peak, or above 1, a clip has a scale of its own
_SLACK_FRAMES = 2  # between what the header says and what is decoded

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class AudioPairs:
    """Clips and their tokens; keeps the protocol `pipeline.Pairs`. Make it with `make_audio_pairs`.

    Attributes:
        names: N clips, see `audio.parse_clip`.
        target: their tokens, without bos and eos.
        frames: `[N]` int64, the length of every clip; 0 for one that cannot be read.
        rate: in Hz.
        hop: samples of a frame.
        strict: a clip that cannot be read ends the run. Else it is an empty sequence, and named in the log once.
        room: how many bytes of decoded sound are kept in memory.
        skipped: the clips that could not be read, and why.
    """

    names: Sequence[str]
    target: Ragged
    frames: np.ndarray
    rate: int
    hop: int
    strict: bool
    room: int = KEPT_BYTES
    skipped: dict[str, str] = field(default_factory=dict)
    _kept: dict[int, tuple[np.ndarray, np.float32]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def source_lengths(self) -> np.ndarray:
        """`[N]` frames: what a plan asks for."""
        return self.frames

    @property
    def target_lengths(self) -> np.ndarray:
        """`[N]` tokens and eos: what a plan asks for."""
        return self.target.lengths + 1

    def read(self, ids: np.ndarray) -> tuple[Ragged, Ragged]:
        """Frames and tokens of the examples `ids`, in that order.

        Returns:
            Sources, whose `flat` is `[frames of all, hop]` float32, and targets. Both are empty for a clip that
            cannot be read.

        Raises:
            UserError: `strict`, and a clip cannot be read.
        """
        sounds = [self._read_frames(i) for i in np.asarray(ids).tolist()]
        targets = [self.target[i] if len(sound) else self.target[i][:0] for i, sound in zip(ids, sounds, strict=True)]
        return pack_frames(sounds, hop=self.hop), Ragged.pack(targets)

    def _read_frames(self, i: int) -> np.ndarray:
        """The clip's frames `[S, hop]` float32, as many as `frames` says or a few less."""
        held = self._kept.get(i)
        if held is None:
            try:
                held = _quantise(self._read_samples(i))
            except UserError as error:
                self._skip(i, error)
                return np.zeros((0, self.hop), np.float32)
            with self._lock:
                if i not in self._kept and held[0].nbytes <= self.room:
                    self.room -= held[0].nbytes
                    self._kept[i] = held
        numbers, scale = held
        return to_frames(numbers, hop=self.hop).astype(np.float32) * scale

    def _read_samples(self, i: int) -> np.ndarray:
        """The clip's samples `[W]`; UserError where it is not as long as its header said when it was indexed."""
        samples = read_clip(self.names[i], rate=self.rate)
        planned = int(self.frames[i])
        extra = -(-len(samples) // self.hop) - planned
        if extra > _SLACK_FRAMES:
            raise UserError(
                f"{self.names[i]}: has {planned + extra} frames, but had {planned} when its length was found; "
                "start again, so that the lengths are found anew."
            )
        return samples[: planned * self.hop]

    def _skip(self, i: int, error: UserError) -> None:
        if self.strict:
            raise error
        with self._lock:
            new = self.names[i] not in self.skipped
            self.skipped[self.names[i]] = str(error)
        if new:
            _log.warning("A clip is left out (%d so far): %s", len(self.skipped), error)


def make_audio_pairs(
    text: ParallelText,
    vocab: Vocab,
    *,
    rate: int,
    hop: int,
    seconds: np.ndarray,
    strict: bool,
    room: int = KEPT_BYTES,
) -> AudioPairs:
    """A corpus of speech for a plan and its batches.

    Args:
        text: clips and transcripts, see `utterances.read_utterances`; without transcripts the targets are empty.
        vocab: of the transcripts.
        rate: of the samples, in Hz.
        hop: samples of a frame.
        seconds: `[N]` lengths of the clips, see `utterances.index_durations`; NaN for one that cannot be read.
        strict: see `AudioPairs`.
        room: how many bytes of decoded sound are kept in memory.
    """
    if len(seconds) != len(text):
        raise ValueError(f"`seconds` must have {len(text)} lengths, but has {len(seconds)} instead.")
    tokens = vocab.encode_many(text.target) if text.target is not None else [np.zeros(0, np.int32)] * len(text)
    frames = count_frames(seconds, rate=rate, hop=hop)
    return AudioPairs(text.source, Ragged.pack(tokens), frames, rate, hop, strict, room)


def pack_frames(sounds: Sequence[np.ndarray], *, hop: int) -> Ragged:
    """Sounds `[S, hop]` float32 one after the other; offsets count frames."""
    offsets = np.zeros(len(sounds) + 1, np.int64)
    np.cumsum([len(sound) for sound in sounds], out=offsets[1:])
    return Ragged(np.concatenate(sounds) if sounds else np.zeros((0, hop), np.float32), offsets)


def impossible(source_lengths: np.ndarray, target: Ragged, *, reduction: int) -> np.ndarray:
    """The examples that CTC cannot label: more labels than encoder steps.

    Equal labels that follow each other need a blank between them (Graves et al. 2006, section 3.1), so that
    N labels with R such repeats need N + R steps; the encoder makes ceil(S / reduction) of S frames.

    Args:
        source_lengths: `[N]` frames.
        target: N sequences of tokens, without bos and eos.
        reduction: frames of an encoder step.

    Returns:
        Their ids, int64, ascending.
    """
    flat, row = target.flat, np.repeat(np.arange(len(target)), target.lengths)
    repeats = np.bincount(row[1:][(flat[1:] == flat[:-1]) & (row[1:] == row[:-1])], minlength=len(target))
    steps = -(-np.asarray(source_lengths, np.int64) // reduction)
    return np.flatnonzero(target.lengths + repeats > steps)


@dataclass(frozen=True, eq=False)
class SpeedPerturbation:
    """Plays every clip of a batch at a speed drawn anew in every epoch; a `pipeline.Redraw`.

    Ko et al. 2015, "Audio augmentation for speech recognition", section 2.2: with 0.9, 1 and 1.1, pitch and tempo
    change together. The draw follows from (seed, epoch, example) alone. What would be longer than its batch's shape
    stays as it is: a plan of `plan_lengths` has room for all.

    Attributes:
        speeds: such as (0.9, 1.0, 1.1), each as likely; between 0.25 and 4.
        seed: of the draws.
        hop: samples of a frame.
    """

    speeds: tuple[float, ...]
    seed: int
    hop: int

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.25 <= speed <= 4 for speed in self.speeds):
            raise ValueError(f"`speeds` must be numbers between 0.25 and 4, but are {self.speeds} instead.")

    def draw(self, ids: np.ndarray, epoch: int) -> np.ndarray:
        """The speed of each of the examples `ids` in an epoch, `[N]` float64."""
        state = mix(mix(np.array([self.seed], np.uint64), 0), epoch)
        drawn = mix(state, np.asarray(ids).astype(np.uint64)) % np.uint64(len(self.speeds))
        return np.array(self.speeds)[drawn.astype(np.int64)]

    def __call__(
        self, sources: Ragged, targets: Ragged, ids: np.ndarray, planned: PlannedBatch
    ) -> tuple[Ragged, Ragged]:
        """The examples `ids` of a batch at their speeds; `targets` stay.

        Args:
            sources, targets: N each, as `AudioPairs.read` gives them.
            ids: `[N]` examples.
            planned: the batch, which says the epoch and the shape.
        """
        sounds = []
        for i, speed in enumerate(self.draw(ids, planned.epoch).tolist()):
            frames = sources[i]
            changed = change_speed(frames, speed) if len(frames) else frames
            sounds.append(changed if len(changed) <= planned.shape.source_len else frames)
        return pack_frames(sounds, hop=self.hop), targets

    def plan_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """The most frames that clips of `lengths` `[N]` frames may come to have, `[N]` int64."""
        ratio = _as_fraction(min(1.0, *self.speeds))
        return -(-np.asarray(lengths, np.int64) * ratio.denominator // ratio.numerator)


def change_speed(frames: np.ndarray, speed: float) -> np.ndarray:
    """Frames `[S, hop]` float32 played `speed` times as fast, `[ceil(S / speed), hop]`."""
    ratio = _as_fraction(speed)
    if ratio == 1:
        return frames
    samples = resample(frames.reshape(-1), ratio.numerator, ratio.denominator)
    most = math.ceil(len(frames) / ratio) * frames.shape[1]
    return to_frames(samples[:most], hop=frames.shape[1])


def _as_fraction(speed: float) -> Fraction:
    return Fraction(speed).limit_denominator(100)


def _quantise(samples: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Samples as 16-bit numbers and what to multiply them by."""
    peak = float(np.max(np.abs(samples), initial=0.0))
    scale = _FULL_SCALE if peak < _SILENT or _QUIET <= peak <= 1 else peak / 32767
    numbers = np.clip(np.rint(samples * np.float32(1 / scale)), -32768, 32767)
    return numbers.astype(np.int16), np.float32(scale)
