"""Speaks sentences in a process of its own: espeak-ng's library, by ctypes and the standard library alone.

espeak-ng keeps hidden state from sentence to sentence (the flutter of its voices), so that the same sentence sounds a
little different the second time. A fresh process that is given the same sentences in the same order speaks the same
samples. It reads a job, JSON, from its standard input, and writes for each sentence the number of samples (4 bytes,
little-endian) and the samples (16 bits each, this machine's order), after the rate in Hz (4 bytes).

Started as a file, without the package (`python -I -S spoken_worker.py`): that takes a fiftieth of a second.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from typing import Any

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: the samples go to the callback
_DONT_EXIT = 1 << 15  # espeakINITIALIZE_DONT_EXIT
_UTF8 = 1  # espeakCHARS_UTF8
_BY_CHARACTER = 1  # POS_CHARACTER
_PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}  # espeak_PARAMETER
_BUFFER_MS = 200
_SEED = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(library: str, data: str, sentences: list[dict[str, Any]]) -> None:
    """Writes the rate and the samples of every sentence to the standard output.

    Args:
        library: path of espeak-ng's library.
        data: path of its data.
        sentences: each with text, voice, rate (words a minute), pitch and range (0 to 100).
    """
    espeak = ctypes.CDLL(library)
    espeak.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    espeak.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    espeak.espeak_Synth.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
        *(ctypes.c_void_p, ctypes.c_void_p),
    ]
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, data.encode(), _DONT_EXIT)
    if rate <= 0:
        sys.exit(f"espeak-ng finds no data in {data}")
    parts: list[bytes] = []

    def take(samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _CALLBACK(take)  # a name, so that it lives as long as the library calls it
    espeak.espeak_SetSynthCallback(callback)
    out = sys.stdout.buffer
    out.write(struct.pack("<I", rate))
    for sentence in sentences:
        espeak.espeak_ng_SetRandSeed(_SEED)  # breath is random numbers, otherwise from the clock
        if espeak.espeak_SetVoiceByName(sentence["voice"].encode()):
            sys.exit(f"espeak-ng has no voice {sentence['voice']!r}")
        for name, number in _PARAMETERS.items():
            espeak.espeak_SetParameter(number, int(sentence[name]), 0)
        parts.clear()
        text = sentence["text"].encode()
        failed = espeak.espeak_Synth(text, len(text) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)
        if failed or espeak.espeak_Synchronize():
            sys.exit(f"espeak-ng cannot speak {sentence['text']!r}")
        samples = b"".join(parts)
        out.write(struct.pack("<I", len(samples) // 2))
        out.write(samples)


if __name__ == "__main__":
    job = json.load(sys.stdin)
    speak(job["library"], job["data"], job["sentences"])
