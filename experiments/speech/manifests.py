"""Lists of utterances of AN4 and of the Free Spoken Digit Dataset, from their unpacked folders.

    python experiments/speech/manifests.py an4 FOLDER OUT      # train.tsv, dev.tsv and, where there is one, test.tsv
    python experiments/speech/manifests.py digits FOLDER OUT   # SPEAKER.train.tsv and SPEAKER.test.tsv of each speaker

AN4 (CMU): `FOLDER` holds etc/an4_train.transcription and the sounds below wav/, as WAV, SPHERE (.sph) or headerless
(.raw: 16 kHz, 16 bit, big-endian; those are written as WAV files into OUT/wav). Dev is the first 100 training
utterances in order of speaker and name, train the others. Texts are lower-case.

Spoken digits: recordings/DIGIT_SPEAKER_NUMBER.wav. Every speaker in turn is the test, the others are the training; the
text is the digit's name. Sounds stay where they are; the lists name them relative to `OUT`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

DEV_UTTERANCES = 100
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ENDINGS = (".wav", ".sph", ".raw")
AN4_LINE = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\(([^()]+)\)\s*")

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


def make_digits(folder: Path, out: Path) -> dict[str, int]:
    """Writes two lists for every speaker of the spoken digits; returns the number of utterances of each."""
    recordings = find_root(folder, "recordings") / "recordings"
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in recordings.glob("*.wav"):
        digit, speaker, number = path.stem.split("_")
        found.setdefault(speaker, []).append((int(digit), int(number), path))
    written = {}
    for speaker in sorted(found):
        others = [name for name in sorted(found) if name != speaker]
        for split, speakers in (("train", others), ("test", [speaker])):
            rows = [(path, DIGITS[digit]) for name in speakers for digit, _, path in sorted(found[name])]
            written[f"{speaker}.{split}"] = write_manifest(out / f"{speaker}.{split}.tsv", rows)
    return written


def main() -> None:
    """Writes the lists that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=("an4", "digits"))
    parser.add_argument("folder", type=Path, help="the unpacked corpus")
    parser.add_argument("out", type=Path, help="where the lists go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    make = make_an4 if arguments.corpus == "an4" else make_digits
    for name, count in make(arguments.folder, arguments.out).items():
        print(f"{arguments.out / name}.tsv: {count} utterances")


if __name__ == "__main__":
    main()
