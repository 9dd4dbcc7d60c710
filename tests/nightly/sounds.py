"""Spoiled recordings: F4 of the catalogue."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from boundary import Case, require
from spoiling import make_wav, spoil_bytes, spoil_place

from seq2seq_jax.data.audio import parse_clip, probe_clip, read_clip
from seq2seq_jax.data.audio_pairs import make_audio_pairs
from seq2seq_jax.data.utterances import index_durations, read_utterances
from seq2seq_jax.data.vocab_training import train_vocabs

RATE, HOP = 16_000, 160
FORMATS = {
    "plain.wav": {"subtype": "PCM_16"},
    "float.wav": {"subtype": "FLOAT"},
    "wide.wav": {"subtype": "PCM_24"},
    "adpcm.wav": {"subtype": "IMA_ADPCM"},
    "a.flac": {},
    "vorbis.ogg": {"subtype": "VORBIS"},
    "opus.ogg": {"subtype": "OPUS"},
    "a.mp3": {},
    "a.aiff": {},
    "a.au": {},
    "a.sph": {"format": "NIST"},
}


def _floats(*values: float, count: int = 1600) -> bytes:
    samples = np.zeros(count, "<f4")
    samples[: len(values)] = values
    return samples.tobytes()


TONE = (np.sin(np.arange(1600) / 7) * 9000).astype("<i2").tobytes()

FORGED: dict[str, tuple[Callable[[], bytes], bool]] = {
    # name: (the file, whether it must be refused)
    "rate 0": (lambda: make_wav(TONE, rate=0), True),
    "rate 1": (lambda: make_wav(TONE, rate=1), True),
    "rate 3999": (lambda: make_wav(TONE, rate=3999), True),
    "rate 4000": (lambda: make_wav(TONE, rate=4000), False),
    "rate 383999": (lambda: make_wav(TONE, rate=383_999), False),
    "rate 2^31": (lambda: make_wav(TONE, rate=2**31), True),
    "rate 2^32-1": (lambda: make_wav(TONE, rate=2**32 - 1), True),
    "0 s": (lambda: make_wav(b""), True),
    "1 sample": (lambda: make_wav(b"\x10\x10"), False),
    "0 channels": (lambda: make_wav(TONE, channels=0), True),
    "9 channels": (lambda: make_wav(TONE[:1800], channels=9), True),
    "64 channels": (lambda: make_wav(TONE[:1280], channels=64), True),
    "65535 channels": (lambda: make_wav(TONE, channels=65535), True),
    "NaN": (lambda: make_wav(_floats(0.5, np.nan), bits=32, form=3), True),
    "infinite": (lambda: make_wav(_floats(0.5, np.inf), bits=32, form=3), True),
    "far too loud": (lambda: make_wav(_floats(0.5, 3e38), bits=32, form=3), True),
    "32-bit numbers as floats": (lambda: make_wav(_floats(2.0**31, -(2.0**31)), bits=32, form=3), False),
    "hardly any": (lambda: make_wav(_floats(1e-40, -1e-40), bits=32, form=3), False),
    "silence": (lambda: make_wav(bytes(3200)), False),
    "direct current": (lambda: make_wav(b"\xff\x7f" * 1600), False),
    "claims hours": (lambda: make_wav(TONE, claimed=2_000_000_000), True),
    "claims 4 GiB": (lambda: make_wav(TONE, claimed=0xFFFFFFFE), False),  # as of a pipe: what is there
    "claims less": (lambda: make_wav(TONE, claimed=100), False),
    "0 bits": (lambda: make_wav(TONE, bits=0), True),
    "7 bits": (lambda: make_wav(TONE, bits=7), False),
    "unknown form": (lambda: make_wav(TONE, form=0x7777), True),
    "no samples' chunk": (lambda: make_wav(TONE)[:36], True),
    "empty": (lambda: b"", True),
    "text": (lambda: b"this is no sound\n" * 50, True),
    "a riff in a riff": (lambda: make_wav(make_wav(TONE)), False),
    "zero chunks": (lambda: make_wav(b"")[:12] + bytes(1 << 16), True),
}
PARTS = ("", "", "", "#0.01-0.05", "#0.02-", "#5-6", "#0.05-0.01", "#0-0", "#" + "9" * 400 + "-", "#0.0999999-0.1")


class Sounds:
    """Recordings of every format that is read."""

    def __init__(self, folder: Path) -> None:
        self.good = {}
        samples = np.sin(np.arange(4800) / 9) * 0.4 + np.random.default_rng(0).normal(0, 0.02, 4800)
        for name, keys in FORMATS.items():
            soundfile.write(folder / name, samples, RATE, **keys)
            self.good[name] = (folder / name).read_bytes()
        stereo = np.stack([samples, -samples], 1)
        soundfile.write(folder / "stereo.flac", stereo, 44_100)
        self.good["stereo.flac"] = (folder / "stereo.flac").read_bytes()
        self.vocab = train_vocabs([], ["hello"], kind="char", joint=True, size=12).target

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled recording, read as it is, as a part, or by a manifest."""
        refused = False
        if draw.random() < 0.1:
            kind = draw.choice(list(FORGED))
            path = place / "forged.wav"
            path.write_bytes(FORGED[kind][0]())
            refused = FORGED[kind][1]
        else:
            name = draw.choice(list(self.good))
            path = place / (name if draw.random() < 0.95 else f"a{draw.choice(('.wav', '.mp3', '.txt', '', '.raw'))}")
            if draw.random() < 0.02:
                kind, refused = spoil_place(path, draw)
            else:
                kind, data = spoil_bytes(self.good[name], draw)
                path.write_bytes(data)
            kind = f"{name}: {kind}"
        size = path.stat().st_size if path.is_file() else 0
        if draw.random() < 0.25:
            return Case(f"manifest: {kind}", lambda: self._list(path, size), [path.name], refused)
        clip = f"{path}{'' if refused else draw.choice(PARTS)}"  # a part may lie beside what is wrong
        return Case(kind, lambda: self._read(clip, size), [path.name], refused)

    def _read(self, name: str, size: int) -> None:
        seconds = probe_clip(name)
        samples = read_clip(name, rate=RATE)
        require(samples.dtype == np.float32 and samples.ndim == 1 and len(samples) > 0, "no samples")
        require(bool(np.isfinite(samples).all()), "samples that are no numbers")
        require(len(samples) <= 400 * size + 4 * RATE, f"{len(samples)} samples of {size} bytes")
        slack = 0.5 + 0.05 * seconds if Path(parse_clip(name).path).suffix == ".mp3" else 0.01
        require(abs(len(samples) / RATE - seconds) < slack, f"{len(samples) / RATE} s, {seconds} s by the header")

    def _list(self, path: Path, size: int) -> None:
        """As a training reads: by a manifest, in 16 bits."""
        page = path.parent / "list.tsv"
        page.write_text(f"audio\ttext\n{path.name}\thello\n")
        text = read_utterances(page)
        seconds = index_durations(text, cache=None, strict=True)
        pairs = make_audio_pairs(text, self.vocab, rate=RATE, hop=HOP, seconds=seconds, strict=True)
        sources, targets = pairs.read(np.array([0]))
        require(bool(np.isfinite(sources.flat).all()) and len(sources.flat) > 0, "frames that are no numbers")
        require(len(sources.flat) <= pairs.frames[0] and len(targets.flat) == 5, "other frames than planned")
        require(sources.flat.size <= 400 * size + 4 * RATE, f"{sources.flat.size} samples of {size} bytes")
