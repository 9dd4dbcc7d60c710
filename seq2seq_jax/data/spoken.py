"""The built-in speech: sentences of the phrasebook, spoken by espeak-ng in several voices, with noise; no download.

    phrasebook ── 2 to 9 words ──▶ espeak-ng ── another rate, level, noise ──▶ FLAC files and a manifest

What an utterance is follows from (split, seed, its number) alone: text, voice, speed, pitch, level, pauses and noise.
Blocks of a hundred are spoken by a fresh process each (see `spoken_worker`), so that the samples do not depend on the
number of processes, and a smaller corpus is the beginning of a larger one.

| split | sentences | voices |
|---|---|---|
| train | of the phrasebook's training | fourteen |
| dev, test | of its dev and test, which hold pairs of words that training never has | the same |
| test_voice | of its test | one that no other split has |

Sentences with a name that the phrasebook has invented are left out: nobody can spell those from their sound. The
wheel `espeakng-loader` (espeak-ng: GPL-3) is in the extra [speech]; it is loaded at run time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.data import phrasebook, spoken_worker
from seq2seq_jax.data import phrasebook_lexicon as lexicon
from seq2seq_jax.data.audio import import_soundfile, resample
from seq2seq_jax.data.whole_file import flush
from seq2seq_jax.errors import UserError

SPLITS = ("train", "dev", "test", "test_voice")
VOICES = (
    *("en-us", "en-us+m1", "en-us+m3", "en-us+m5", "en-us+f1", "en-us+f2", "en-us+f5", "en-us+adam"),
    *("en", "en+m2", "en+m7", "en+f3", "en-gb-x-rp", "en-029"),
)
"""Of train, dev and test, in espeak-ng's names: a language or accent, and a variant of the voice."""
OTHER_VOICE = "en-us+f4"
"""Of test_voice alone."""
MIN_WORDS, MAX_WORDS = 2, 9

_VERSION = 1  # of what an utterance is made of; another one writes all anew
_BLOCK = 100  # utterances of one process
_FOLDER_FILES = 1000
_TRIES = 2000  # sentences looked at for one that is taken, at most
_TELL_EVERY_S = 5.0
_OFFSETS = {"train": 0, "dev": 1, "test": 2, "test_voice": 3}
_NOT_LETTERS = re.compile(r"[^a-z' ]+")


def write_spoken(
    folder: str | os.PathLike,
    *,
    split: str,
    size: int,
    seed: int,
    rate: int = 16_000,
    tell: Callable[[str], object] = print,
) -> Path:
    """Writes a split of the built-in speech, if it is not there yet.

    Args:
        folder: where corpora are kept, each in a folder of its own by what it is made of.
        split: "train", "dev", "test" or "test_voice".
        size: number of utterances, about two seconds each.
        seed: of sentences, voices and noise.
        rate: of the files, in Hz.
        tell: is called with lines of progress.

    Returns:
        The manifest: a .tsv with columns audio, text (lower case, no punctuation) and voice.

    Raises:
        UserError: the extra [speech] is not installed, or espeak-ng does not run.
    """
    if split not in SPLITS or size < 1:
        raise ValueError(
            f"`split` must be one of {', '.join(SPLITS)} and `size` at least 1, but are {split!r}, {size}."
        )
    recipe = {"version": _VERSION, "split": split, "size": size, "seed": seed, "rate": rate} | _find_versions()
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    final = Path(folder) / f"{split}-{size}-{digest}"
    manifest = final / "manifest.tsv"
    if manifest.exists():
        return manifest
    beside = final.with_name(f".{final.name}.{secrets.token_hex(6)}")
    try:
        beside.mkdir(parents=True)
        _write_files(beside, split=split, size=size, seed=seed, rate=rate, tell=tell)
        (beside / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        flush(beside / manifest.name)
        try:
            os.rename(beside, final)
        except OSError:  # another process was first, and wrote the same
            if not manifest.exists():
                raise
    except (OSError, import_soundfile().SoundFileError) as error:
        raise UserError(f"{folder}: the built-in speech cannot be written there ({error}); make room.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def compose_sentences(split: str, *, seed: int) -> Iterator[tuple[str, str]]:
    """Short English sentences of a split without end: with punctuation, and as a transcript; no transcript twice."""
    source = "test" if split == "test_voice" else split
    stream = phrasebook.compose(source, seed=seed + (1_000_003 if split == "test_voice" else 0))
    seen: set[str] = set()
    idle = 0
    for _, english in stream:
        idle += 1
        if idle > _TRIES:
            raise UserError(f"the built-in speech has no more than {len(seen)} sentences of {split}; ask for fewer.")
        words = make_transcript(english).split()
        if MIN_WORDS <= len(words) <= MAX_WORDS and not _has_invented_name(english):
            transcript = " ".join(words)
            if transcript not in seen:
                seen.add(transcript)
                idle = 0
                yield english, transcript


def make_transcript(english: str) -> str:
    """A sentence in lower case without punctuation; apostrophes stay.

    >>> make_transcript("It's seventy-one euros, sir!")
    "it's seventy one euros sir"
    """
    return " ".join(_NOT_LETTERS.sub(" ", english.lower()).split())


@cache
def _invented_names() -> re.Pattern[str]:
    ends = {*lexicon.WOMEN_ENDS, *lexicon.MEN_ENDS, *lexicon.SURNAME_ENDS, *lexicon.TOWN_ENDS}
    starts, middles, ends_ = ("|".join(sorted(parts)) for parts in (lexicon.NAME_STARTS, lexicon.NAME_MIDDLES, ends))
    return re.compile(f"(?:{starts})(?:{middles})?(?:{ends_})")


def _has_invented_name(english: str) -> bool:
    known = {*lexicon.WOMEN, *lexicon.MEN}
    words = (word.removesuffix("'s").removesuffix("'") for word in re.findall(r"[\w']+", english))
    return any(word not in known and _invented_names().fullmatch(word) for word in words)


def draw_manner(split: str, index: int, *, seed: int) -> tuple[dict[str, Any], np.random.Generator]:
    """How utterance `index` is spoken (voice, words a minute, pitch, range), and the generator for its noise."""
    generator = np.random.default_rng([seed % 2**63, _OFFSETS[split], index])
    voice = OTHER_VOICE if split == "test_voice" else VOICES[int(generator.integers(len(VOICES)))]
    speed, pitch, pitch_range = (int(generator.integers(*limits)) for limits in ((140, 206), (35, 66), (35, 66)))
    return {"voice": voice, "rate": speed, "pitch": pitch, "range": pitch_range}, generator


def add_noise(samples: np.ndarray, generator: np.random.Generator, *, rate: int) -> np.ndarray:
    """Speech `[W]` with pauses around it, at another level, in noise: `[W']` float32 within -1 and 1.

    Drawn alike: pauses of 50 to 250 ms, a level of -12 to 0 dB, a signal-to-noise ratio of 10 to 40 dB, and the colour
    of the noise, whose power falls with the frequency to the power of 0 (white) to 1.5 (beyond pink).
    """
    from scipy import fft

    before, after = (round(float(generator.uniform(0.05, 0.25)) * rate) for _ in range(2))
    gain_db, ratio_db, tilt = (float(generator.uniform(*limits)) for limits in ((-12, 0), (10, 40), (0, 1.5)))
    speech = np.pad(samples, (before, after))
    length = fft.next_fast_len(len(speech), real=True)
    spectrum = fft.rfft(generator.standard_normal(length, dtype=np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum), dtype=np.float32), 1) ** np.float32(-tilt / 2)
    noise = fft.irfft(spectrum, length)[: len(speech)]
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    noise *= np.sqrt(power / np.mean(np.square(noise, dtype=np.float64)) * 10 ** (-ratio_db / 10))
    mixed = speech + noise
    peak = max(float(np.abs(mixed).max()), 1e-9)
    return (mixed * (0.9 * 10 ** (gain_db / 20) / peak)).astype(np.float32)


def _write_files(folder: Path, *, split: str, size: int, seed: int, rate: int, tell: Callable[[str], object]) -> None:
    """All audio files of a split, and its manifest."""
    started = told = time.monotonic()
    tell(f"spoken: {size:,} utterances of {split} are being made (once; kept in {folder.parent}) ...")
    pairs = [pair for _, pair in zip(range(size), compose_sentences(split, seed=seed), strict=False)]
    jobs = []
    for index, (english, _) in enumerate(pairs):
        manner, generator = draw_manner(split, index, seed=seed)
        jobs.append((manner | {"text": english}, generator))
    names = [f"audio/{index // _FOLDER_FILES:03}/{index:06}.flac" for index in range(size)]
    for name in sorted({os.path.dirname(name) for name in names}):
        (folder / name).mkdir(parents=True)

    def finish(begin: int) -> int:
        block = range(begin, min(begin + _BLOCK, size))
        file_rate, spoken = _speak([jobs[i][0] for i in block])
        for i, sound in zip(block, spoken, strict=True):
            samples = add_noise(resample(sound, file_rate, rate), jobs[i][1], rate=rate)
            import_soundfile().write(folder / names[i], samples, rate, format="FLAC", subtype="PCM_16")
        return len(block)

    done = 0
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        for count in pool.map(finish, range(0, size, _BLOCK)):
            done += count
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                tell(f"spoken: {done:,} of {size:,} utterances of {split}, {done / (told - started):,.0f} a second")
    rows = zip(names, (text for _, text in pairs), (job["voice"] for job, _ in jobs), strict=True)
    lines = ["audio\ttext\tvoice\n", *("\t".join(row) + "\n" for row in rows)]
    (folder / "manifest.tsv").write_text("".join(lines), encoding="utf-8")
    tell(f"spoken: {size:,} utterances of {split} in {time.monotonic() - started:.0f} s")


def _speak(sentences: list[dict[str, Any]]) -> tuple[int, list[np.ndarray]]:
    """Rate, and the samples `[W]` float32 of each sentence, from a fresh process."""
    loader = _import_loader()
    job = {"library": loader.get_library_path(), "data": loader.get_data_path(), "sentences": sentences}
    command = [sys.executable, "-I", "-S", spoken_worker.__file__]
    done = subprocess.run(command, input=json.dumps(job).encode(), capture_output=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise UserError(f"spoken: espeak-ng ended with code {done.returncode} ({said}); install 'seq2seq_jax[speech]'.")
    rate = struct.unpack_from("<I", done.stdout)[0]
    sounds, place = [], 4
    for _ in sentences:
        count = struct.unpack_from("<I", done.stdout, place)[0]
        numbers = np.frombuffer(done.stdout, np.int16, count, place + 4)
        sounds.append(numbers.astype(np.float32) / 32768)
        place += 4 + 2 * count
    return rate, sounds


def _import_loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            f"the built-in speech needs the package espeakng-loader ({error}): pip install 'seq2seq_jax[speech]'"
        ) from error
    return espeakng_loader


def _find_versions() -> dict[str, str]:
    """What the sounds depend on beside the recipe."""
    _import_loader()
    import_soundfile()
    return {"espeakng-loader": metadata.version("espeakng-loader")}
