"""CTC by its definition, in float64: every path is listed. And the published logits of a line of handwriting."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np

CHARACTERS = " !\"#&'()*+,-./0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Of the line: character n is token n + 1, as the blank is token 0."""


def normalise(logits):
    """The log-softmax, float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def collapse(path):
    """What a path of frames spells: repeats merged, blanks away."""
    return tuple(label for label, _ in itertools.groupby(path) if label)


def list_paths(log_probs):
    """Every path of `[S, V]` and its probability."""
    frames, size = log_probs.shape
    for path in itertools.product(range(size), repeat=frames):
        yield path, float(np.exp(log_probs[np.arange(frames), list(path)].sum()))


def list_outputs(log_probs):
    """The probability of everything that can be spelt, by output."""
    found: dict[tuple[int, ...], float] = {}
    for path, probability in list_paths(log_probs):
        output = collapse(path)
        found[output] = found.get(output, 0.0) + probability
    return found


def read_archive(data_folder, folder):
    """The folder of published logits, unpacked."""
    unpack = data_folder / "unpack"
    subprocess.run([sys.executable, str(unpack), str(folder), "ctc_fixtures"], check=True, capture_output=True)
    return folder / "ctc_fixtures" / "ctc_fixtures"


def read_line(data_folder, folder):
    """Logits `[100, 80]` of the line, the blank first."""
    path = read_archive(data_folder, folder) / "CTCDecoder" / "data" / "line" / "rnnOutput.csv"
    rows = [[float(number) for number in line.strip(";").split(";")] for line in path.read_text().split()]
    return np.roll(np.array(rows, np.float32), 1, axis=1)
