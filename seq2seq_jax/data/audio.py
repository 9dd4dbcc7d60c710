"""Reads clips of audio files as mono waveforms of one rate, and says in one line what is wrong with a file.

    "a/b.flac#1.25-3.5" ── parse_clip ──▶ Clip ── read_clip ──▶ samples [W] ── to_frames ──▶ [S, hop]

A clip is named by its file alone, or by the file and a part of it in seconds; without an end it goes to the file's.
libsndfile decodes (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, NIST SPHERE and others; package `soundfile`, in the
extra [speech]), channels are averaged, and a polyphase filter changes the rate.

What would train a model on the wrong sounds is refused: a file that is cut off (a decoder gives what there is and
says nothing), one whose ending names another format than it has, samples that are no numbers, and silence of no
samples.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from seq2seq_jax.errors import UserError

MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MOST_SECONDS = 1e9
"""No time within a file is later."""
MOST_SAMPLES = 1 << 29
"""Of a clip, at the rate of its file: 2 GiB in memory, 3 hours at 48 kHz."""
MOST_LOUD = 2.0**32
"""Full scale is 1, and 2^31 where floats hold 32-bit numbers; squares of more are no float32."""
FORMATS = {
    ".wav": ("WAV", "WAVEX", "RF64", "NIST"),  # TIMIT's .WAV are SPHERE files
    ".wave": ("WAV", "WAVEX", "RF64"),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".oga": ("OGG",),
    ".opus": ("OGG",),
    ".mp3": ("MP3", "MPEG"),
    ".sph": ("NIST",),
    ".nist": ("NIST",),
    ".aif": ("AIFF",),
    ".aiff": ("AIFF",),
    ".aifc": ("AIFF",),
    ".au": ("AU",),
    ".snd": ("AU",),
    ".caf": ("CAF",),
    ".w64": ("W64",),
}
"""What a file may hold, by its ending, in libsndfile's names."""

_PART = re.compile(r"(?P<path>.*)#(?P<start>\d+(?:\.\d+)?)-(?P<end>\d+(?:\.\d+)?)?", re.DOTALL)
_BLOCK_S = 30  # decoded at once: of many channels only so much is held
_SLACK_S = 0.1  # a part may end so far behind the file's end: lists round
_UNKNOWN_SIZE = 0x7FFFF000  # what programs that write to a pipe put for a size they cannot know, or more
_UNTOLD_FRAMES = 1 << 48  # libsndfile's answer where a header does not know is near 2^63
_OGG_TAIL = 1 << 17  # a page has at most 65,307 bytes


@dataclass(frozen=True)
class Clip:
    """A file, or a part of it.

    Attributes:
        path: of the file.
        start: in seconds.
        end: in seconds; None for the end of the file.
    """

    path: str
    start: float = 0.0
    end: float | None = None


def parse_clip(name: str) -> Clip:
    """Takes a clip's name apart: `PATH`, `PATH#START-END` or `PATH#START-`, in seconds.

    >>> parse_clip("a/b.flac#1.25-3.5")
    Clip(path='a/b.flac', start=1.25, end=3.5)

    Raises:
        UserError: the end is not behind the start.
    """
    found = _PART.fullmatch(name)
    if found is None:
        return Clip(name)
    start = float(found["start"])
    end = None if found["end"] is None else float(found["end"])
    if max(start, end or 0.0) >= MOST_SECONDS:
        raise UserError(f"{name[:200]}: a clip must lie within {MOST_SECONDS:,.0f} seconds; mend start and end.")
    if end is not None and end <= start:
        raise UserError(f"{name}: a clip must end after its start, but goes from {start:g} to {end:g} seconds instead.")
    return Clip(found["path"], start, end)


def name_clip(path: str, start: float = 0.0, end: float | None = None) -> str:
    """The name of a clip; the inverse of `parse_clip`, to a microsecond.

    >>> name_clip("a/b.flac", 1.25, 3.5)
    'a/b.flac#1.25-3.5'
    """
    if not start and end is None:
        return path
    return f"{path}#{_format_seconds(start)}-{'' if end is None else _format_seconds(end)}"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def import_soundfile() -> ModuleType:
    """The package `soundfile`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, libsndfile is not
        raise UserError(
            f"reading audio needs the package soundfile ({error}): pip install 'seq2seq_jax[speech]'"
        ) from error
    return soundfile


def probe_clip(name: str) -> float:
    """The length of a clip in seconds, by the header alone (no sound is decoded).

    Raises:
        UserError: as `read_clip`, as far as the header shows it.
    """
    clip = parse_clip(name)
    with _open_audio(clip.path) as file:
        begin, end = _find_range(clip, file, name)
        return (end - begin) / file.samplerate


def read_clip(name: str, *, rate: int) -> np.ndarray:
    """The samples of a clip, `[W]` float32: the mean of its channels, at `rate` Hz.

    Full scale of files of whole numbers is -1 to 1. The change of rate is `scipy.signal.resample_poly`.

    Args:
        name: see `parse_clip`.
        rate: in Hz.

    Raises:
        UserError: there is no such file, it cannot be decoded, is cut off, has another format than its ending says,
            no samples, too many, or ones that are NaN or far too loud, more than 8 channels, or a rate outside 4 to
            384 kHz; or the clip is not within the file.
    """
    clip = parse_clip(name)
    with _open_audio(clip.path) as file:
        begin, end = _find_range(clip, file, name)
        samples = _decode(file, begin, end, clip.path)
        file_rate = file.samplerate
    sound = np.abs(samples) <= MOST_LOUD  # False for NaN
    if not sound.all():
        at = int(np.argmin(sound))
        what = f"{samples[at]:.3g}, where full scale is 1," if np.isfinite(samples[at]) else "NaN or infinite samples"
        raise UserError(f"{clip.path}: holds {what} (the first at {(begin + at) / file_rate:.3f} s); make it again.")
    return resample(samples, file_rate, rate)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Samples `[W]` float32 at another rate: `[ceil(W * to_rate / from_rate)]` float32."""
    if from_rate == to_rate or not len(samples):
        return samples
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    return resample_poly(samples, to_rate // divisor, from_rate // divisor).astype(np.float32, copy=False)


def count_frames(seconds: np.ndarray | float, *, rate: int, hop: int) -> np.ndarray:
    """How many frames of `hop` samples clips of so many seconds have, int64 of the same shape; 0 where NaN."""
    seconds = np.nan_to_num(np.asarray(seconds, np.float64))
    samples = np.ceil(seconds * rate - 1e-4)  # a float64 of seconds is a little off a whole number of samples
    return np.ceil(samples / hop).astype(np.int64)


def to_frames(samples: np.ndarray, *, hop: int) -> np.ndarray:
    """Cuts samples `[W]` into frames `[S, hop]` of the same dtype; the last one is filled up with zeros."""
    frames = np.zeros((-(-len(samples) // hop), hop), samples.dtype)
    frames.reshape(-1)[: len(samples)] = samples
    return frames


@contextmanager
def _open_audio(path: str) -> Iterator[Any]:
    """An open `soundfile.SoundFile` whose header is sound."""
    soundfile = import_soundfile()
    _check_file(path)
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: an ending .raw asks for a rate
        raise UserError(f"{path}: cannot be read as audio ({_tell(error)}); convert it to FLAC or WAV.") from error
    with file:
        _check_header(file, path)
        try:
            yield file
        except soundfile.SoundFileError as error:
            raise UserError(f"{path}: cannot be decoded ({_tell(error)}); copy or make it again.") from error


def _check_file(path: str) -> None:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(f"{path}: {reason}; mend the path.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise UserError(f"{path}: is {kind}; an audio file is needed.")
    if not found.st_size:
        raise UserError(f"{path}: is empty (0 bytes); copy or make it again.")
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        told = f"ends in {suffix}" if suffix else "has no ending"
        known = ", ".join(sorted(FORMATS))
        raise UserError(f"{path}: {told}, which is no audio that can be read ({known}); convert it to FLAC or WAV.")


def _check_header(file: Any, path: str) -> None:
    suffix = os.path.splitext(path)[1].lower()
    if file.format not in FORMATS[suffix]:
        raise UserError(f"{path}: is a file of format {file.format}, which {suffix} is not the ending of; rename it.")
    if file.channels > MAX_CHANNELS:
        raise UserError(
            f"{path}: must have at most {MAX_CHANNELS} channels, but has {file.channels} instead; mix them."
        )
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        limits = f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
        raise UserError(f"{path}: must have a rate of {limits}, but has {file.samplerate} instead; make it again.")
    if file.frames <= 0:
        raise UserError(f"{path}: holds no samples; leave it out or copy it again.")
    if file.frames >= _UNTOLD_FRAMES:
        raise UserError(f"{path}: its header does not tell how long it is (it was streamed); write the file again.")
    missing = _count_missing(path, file.format)
    if missing:
        raise UserError(f"{path}: is cut off (its header tells of {missing} more bytes); copy it again.")


def _find_range(clip: Clip, file: Any, name: str) -> tuple[int, int]:
    """First sample of the clip in its file, and the one after its last."""
    rate, whole = file.samplerate, file.frames
    begin = round(clip.start * rate)
    end = whole if clip.end is None else round(clip.end * rate)
    if begin >= whole or end > whole + _SLACK_S * rate:
        raise UserError(f"{name}: must lie within its file, which has {whole / rate:.3f} seconds; mend start and end.")
    end = min(end, whole)
    if end - begin > MOST_SAMPLES:
        most = f"{MOST_SAMPLES / rate / 3600:.1f} hours at {rate} Hz"
        raise UserError(f"{name}: must have at most {most}, but has {(end - begin) / rate / 3600:.1f}; cut it.")
    if begin >= end:
        raise UserError(f"{name}: holds no samples at {rate} Hz; mend start and end.")
    return begin, end


def _decode(file: Any, begin: int, end: int, path: str) -> np.ndarray:
    """The mean of the channels of samples begin .. end - 1, `[W]` float32."""
    if begin:
        file.seek(begin)
    parts, done = [], begin
    while done < end:
        block = file.read(min(end - done, _BLOCK_S * file.samplerate), dtype="float32", always_2d=True)
        if not len(block):
            break
        parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32))
        done += len(block)
    lost_s = (end - done) / file.samplerate
    # The header of an MP3 file may only estimate how many samples there are.
    allowed_s = max(0.2, 0.02 * file.frames / file.samplerate) if file.format in ("MP3", "MPEG") else 0.0
    if lost_s > allowed_s or not parts:
        raise UserError(f"{path}: is cut off ({lost_s:.3f} of its seconds are missing); copy it again.")
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _count_missing(path: str, kind: str) -> int:
    """How many bytes the header of a file promises that the file does not have; libsndfile passes over that."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if kind in ("WAV", "WAVEX"):
            return _count_missing_riff(file, size)
        if kind == "AIFF":
            return max(0, struct.unpack(">4sI", file.read(8))[1] + 8 - size)
        if kind == "NIST":
            fields = dict(re.findall(rb"(\w+) -i (\d+)", file.read(1024)))
            counts = (int(fields.get(key, 0)) for key in (b"sample_count", b"channel_count", b"sample_n_bytes"))
            return max(0, 1024 + math.prod(counts) - size)
        if kind == "OGG":
            file.seek(max(0, size - _OGG_TAIL))
            tail = file.read()
            page = tail[max(0, tail.rfind(b"OggS")) :]
            segments = page[26] if len(page) > 26 else 0
            return max(0, 27 + segments + sum(page[27 : 27 + segments]) - len(page))
    return 0


def _count_missing_riff(file: BinaryIO, size: int) -> int:
    """Of the chunk of samples of a WAV file."""
    order = ">" if file.read(12)[:4] == b"RIFX" else "<"
    while len(head := file.read(8)) == 8:
        chunk, length = struct.unpack(f"{order}4sI", head)
        if chunk == b"data":
            return 0 if length >= _UNKNOWN_SIZE else max(0, file.tell() + length - size)
        file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _tell(error: Exception) -> str:
    """libsndfile's words, without the path that stands before them and in one line."""
    words = " ".join(str(getattr(error, "error_string", None) or error).split())
    if "possibly a pipe" in words:  # said of any file without a frame of sound; that it is a file was looked at before
        return "it holds no sound that can be recognised"
    return words.removeprefix("Error : ").rstrip(".")
