"""Lists of utterances of AN4 and of the Free Spoken Digit Dataset, from their unpacked folders.

    python experiments/speech/manifests.py an4 FOLDER OUT      # train.tsv, dev.tsv and, where there is one, test.tsv
    python experiments/speech/manifests.py digits FOLDER OUT   # SPEAKER.train.tsv and SPEAKER.test.tsv of each speaker
    python experiments/speech/manifests.py heard FOLDER OUT    # heard.tsv: the same recordings as heard elsewhere
    python experiments/speech/manifests.py spoken OUT 4000     # spoken.tsv: so many digits of a synthesiser

AN4 (CMU): `FOLDER` holds etc/an4_train.transcription and the sounds below wav/, as WAV, SPHERE (.sph) or headerless
(.raw: 16 kHz, 16 bit, big-endian; those are written as WAV files into OUT/wav). Dev is the first 100 training
utterances in order of speaker and name, train the others. Texts are lower-case.

Spoken digits: recordings/DIGIT_SPEAKER_NUMBER.wav. Every speaker in turn is the test, the others are the training; the
text is the digit's name; `--speakers` names those that count, here and of `heard`, all by default. Sounds stay where
they are; the lists name them relative to `OUT`.

As heard elsewhere: every recording once more in OUT/heard, half of them in a room, all with a frequency response,
noise and level drawn for them.

Digits of a synthesiser: espeak-ng (wheel `espeakng-loader`, of 'seq2seq_jax[speech]') in 85 voices and eight accents of
English, each with a speed, pitch, room, response, noise and level of its own; 8 kHz WAV files in OUT/spoken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

DEV_UTTERANCES = 100
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ENDINGS = (".wav", ".sph", ".raw")
AN4_LINE = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\(([^()]+)\)\s*")

SPOKEN_RATE = 8000
SPOKEN_BLOCK = 200  # of one process: espeak-ng's sounds depend a little on what it said before
ACCENTS = (
    *("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "en-us-nyc",
)
VOICES = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "adam", "Alex", "Alicia"),
    *("Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco"),
    *("Mario", "Michael", "Mike", "Nguyen", "Reed", "RicishayMax", "RicishayMax2", "RicishayMax3", "anika"),
    *("announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "edward2"),
    *("grandma", "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt"),
    *("klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "linda", "marcelo", "max", "michel", "miguel", "mike2"),
    *("norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph2"),
    *("steph3", "travis", "victor", "zac"),
)

Utterance = tuple[Path, str]


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> int:
    """Writes a list with columns audio and text; returns how many utterances it has."""
    folder = path.parent.resolve()
    lines = [f"{os.path.relpath(audio.resolve(), folder)}\t{text}\n" for audio, text in utterances]
    path.write_text("audio\ttext\n" + "".join(lines), encoding="utf-8")
    return len(lines)


def find_root(folder: Path, part: str) -> Path:
    """The folder that holds `part`, at or below `folder`."""
    found = sorted(folder.glob(f"**/{part}"), key=lambda path: len(path.parts))
    if not found:
        sys.exit(f"{folder}: holds no {part}; give the folder that the archive was unpacked to.")
    return found[0].parents[len(Path(part).parts) - 1]


def as_readable(audio: Path, out: Path) -> Path:
    """The file itself, or a WAV file in `out` of a headerless one."""
    if audio.suffix.lower() != ".raw":
        return audio
    written = out / "wav" / f"{audio.stem}.wav"
    if not written.exists():
        written.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(written, np.fromfile(audio, ">i2").astype(np.int16), 16_000)
    return written


def read_an4(root: Path, split: str, out: Path) -> list[Utterance]:
    """The utterances of a split, in order of speaker and name."""
    transcripts = root / "etc" / f"an4_{split}.transcription"
    audio = {path.stem: path for path in sorted(root.glob("wav/**/*")) if path.suffix.lower() in ENDINGS}
    utterances = []
    for number, line in enumerate(transcripts.read_text(encoding="utf-8").splitlines(), 1):
        found = AN4_LINE.fullmatch(line)
        if found is None:
            sys.exit(f"{transcripts}: line {number} is not `<s> WORDS </s> (NAME)`, but {line!r}.")
        text, name = found[1].lower(), found[2]
        if name not in audio:
            sys.exit(f"{transcripts}: line {number}: there is no {name}{'/'.join(ENDINGS)} below {root / 'wav'}.")
        speaker = name.split("-")[1] if name.count("-") > 1 else audio[name].parent.name
        utterances.append((speaker, name, text))
    return [(as_readable(audio[name], out), text) for _, name, text in sorted(utterances)]


def make_an4(folder: Path, out: Path) -> dict[str, int]:
    """Writes the lists of AN4; returns the number of utterances of each."""
    root = find_root(folder, "etc/an4_train.transcription")
    train = read_an4(root, "train", out)
    lists = {"train": train[DEV_UTTERANCES:], "dev": train[:DEV_UTTERANCES]}
    if (root / "etc" / "an4_test.transcription").exists():
        lists["test"] = read_an4(root, "test", out)
    return {name: write_manifest(out / f"{name}.tsv", utterances) for name, utterances in lists.items()}


def find_recordings(folder: Path, speakers: Sequence[str] = ()) -> dict[str, list[tuple[int, int, Path]]]:
    """Digit, number and file of the spoken digits, by speaker, in order: of all, or of `speakers`."""
    recordings = find_root(folder, "recordings") / "recordings"
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in recordings.glob("*.wav"):
        digit, speaker, number = path.stem.split("_")
        found.setdefault(speaker, []).append((int(digit), int(number), path))
    unknown = sorted(set(speakers) - set(found))
    if unknown:
        sys.exit(f"{recordings}: has no speaker {unknown[0]!r}; it has {', '.join(sorted(found))}.")
    return {speaker: sorted(found[speaker]) for speaker in sorted(set(speakers) or found)}


def make_digits(folder: Path, out: Path, speakers: Sequence[str] = ()) -> dict[str, int]:
    """Writes two lists for every speaker of the spoken digits, or of `speakers`; returns how long each is."""
    found = find_recordings(folder, speakers)
    written = {}
    for speaker in found:
        others = [name for name in found if name != speaker]
        for split, chosen in (("train", others), ("test", [speaker])):
            rows = [(path, DIGITS[digit]) for name in chosen for digit, _, path in found[name]]
            written[f"{speaker}.{split}"] = write_manifest(out / f"{speaker}.{split}.tsv", rows)
    return written


def make_heard(folder: Path, out: Path, speakers: Sequence[str] = ()) -> dict[str, int]:
    """Writes every recording, of all speakers or of these, as another microphone may have heard it, and their list."""
    found = find_recordings(folder, speakers)
    (out / "heard").mkdir(parents=True, exist_ok=True)
    rows = []
    for index, path in enumerate(sorted(path for each in found.values() for _, _, path in each)):
        samples, rate = soundfile.read(path)
        if rate != SPOKEN_RATE:
            sys.exit(f"{path}: must have {SPOKEN_RATE} samples a second, but has {rate}.")
        heard = as_heard(samples, np.random.default_rng([19, index])).astype(np.float32)
        soundfile.write(out / "heard" / path.name, heard, SPOKEN_RATE, subtype="PCM_16")
        rows.append((out / "heard" / path.name, DIGITS[int(path.stem.split("_")[0])]))
    return {"heard": write_manifest(out / "heard.tsv", rows)}


def make_spoken(out: Path, size: int) -> dict[str, int]:
    """Writes `size` digits of a synthesiser and their list; fewer are the first ones of more, in whole blocks."""
    from seq2seq_jax.data.audio import resample

    (out / "spoken").mkdir(parents=True, exist_ok=True)
    rows = []
    for begin in range(0, size, SPOKEN_BLOCK):
        block = range(begin, min(size, begin + SPOKEN_BLOCK))
        rate, sounds = speak([draw_manner(index) for index in block])
        for index, sound in zip(block, sounds, strict=True):
            path = out / "spoken" / f"{index:05}.wav"
            generator = np.random.default_rng([18, index])
            heard = as_heard(resample(sound, rate, SPOKEN_RATE), generator)
            soundfile.write(path, heard.astype(np.float32), SPOKEN_RATE, subtype="PCM_16")
            rows.append((path, DIGITS[index % 10]))
    return {"spoken": write_manifest(out / "spoken.tsv", rows)}


def draw_manner(index: int) -> dict[str, Any]:
    """Text, voice, words a minute, pitch and its range of a digit of the synthesiser."""
    generator = np.random.default_rng([17, index])
    voice = f"{ACCENTS[generator.integers(len(ACCENTS))]}+{VOICES[generator.integers(len(VOICES))]}"
    rate, pitch, reach = (int(generator.integers(*limits)) for limits in ((110, 230), (10, 85), (20, 80)))
    return {"text": DIGITS[index % 10], "voice": voice, "rate": rate, "pitch": pitch, "range": reach}


def speak(sentences: list[dict[str, Any]]) -> tuple[int, list[np.ndarray]]:
    """Rate, and the samples `[W]` float32 of each sentence, from a fresh process."""
    import espeakng_loader

    from seq2seq_jax.data import spoken_worker

    job = {"library": espeakng_loader.get_library_path(), "data": espeakng_loader.get_data_path()}
    given = json.dumps(job | {"sentences": sentences}).encode()
    done = subprocess.run([sys.executable, "-I", "-S", spoken_worker.__file__], input=given, stdout=-1, check=True)
    sounds, place = [], 4
    for _ in sentences:
        count = struct.unpack_from("<I", done.stdout, place)[0]
        sounds.append(np.frombuffer(done.stdout, np.int16, count, place + 4).astype(np.float32) / 32768)
        place += 4 + 2 * count
    return struct.unpack_from("<I", done.stdout)[0], sounds


def as_heard(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Speech `[W]` trimmed, and as a microphone may have it: `[W']` float64 within -1 and 1.

    Drawn alike: silence of up to 50 ms around it; for one in two a room (noise that decays by 60 dB in 40 to 300 ms, 0
    to 12 dB below the direct sound); a response that walks by 3 dB every 500 Hz; noise 15 to 55 dB below, white to
    falling by its frequency to the power of 1.5; a level of -15 to 0 dB.
    """
    power = np.convolve(samples**2, np.ones(80) / 80, "same")
    loud = np.nonzero(power > power.max() * 10 ** (-3.5 + generator.uniform(-0.7, 0.7)))[0]
    before, after = generator.integers(0, 400, 2)
    heard = samples[max(0, loud[0] - before) : loud[-1] + after]
    if generator.random() < 0.5:
        size = int(SPOKEN_RATE * (decay := generator.uniform(0.04, 0.3)))
        room = generator.normal(size=size) * 10 ** (-3 * np.arange(size) / (SPOKEN_RATE * decay))
        room *= 10 ** (-generator.uniform(0, 12) / 20) / np.sqrt((room**2).sum())
        room[0] = 1
        heard = np.convolve(heard, room)[: len(heard) + 400]
    length = len(heard) + 512
    spectrum = np.fft.rfft(heard, length)
    response = np.cumsum(generator.normal(0, 3, 9))
    response -= response.mean()
    decibels = np.interp(np.linspace(0, 8, len(spectrum)), np.arange(9), response)
    heard = np.fft.irfft(spectrum * 10 ** (decibels / 20), length)[: len(heard)]
    colour = np.fft.rfft(generator.normal(size=length))
    colour *= np.maximum(np.arange(len(colour)), 1) ** -generator.uniform(0, 0.75)
    noise = np.fft.irfft(colour, length)[: len(heard)]
    noise *= np.sqrt((heard**2).mean() / (noise**2).mean() * 10 ** (-generator.uniform(15, 55) / 10))
    heard = heard + noise
    return heard * 10 ** (-generator.uniform(0, 15) / 20) * 0.9 / np.abs(heard).max()


def main() -> None:
    """Writes the lists that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="corpus", required=True)
    for name in ("an4", "digits", "heard"):
        kind = kinds.add_parser(name)
        kind.add_argument("folder", type=Path, help="the unpacked corpus")
        kind.add_argument("out", type=Path, help="where the lists go")
        if name != "an4":
            kind.add_argument("--speakers", default="", help="separated by commas; all by default")
    kind = kinds.add_parser("spoken")
    kind.add_argument("out", type=Path, help="where the sounds and the list go")
    kind.add_argument("size", type=int, help="number of digits")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.corpus == "an4":
        made = make_an4(arguments.folder, arguments.out)
    elif arguments.corpus == "spoken":
        made = make_spoken(arguments.out, arguments.size)
    else:
        make = make_digits if arguments.corpus == "digits" else make_heard
        made = make(arguments.folder, arguments.out, arguments.speakers.split(",") if arguments.speakers else ())
    for name, count in made.items():
        print(f"{arguments.out / name}.tsv: {count} utterances")


if __name__ == "__main__":
    main()
