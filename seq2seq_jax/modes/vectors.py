"""`--mode=vectors`: one vector for each line, as a NumPy file."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import takes_source
from seq2seq_jax.data.spec import name_target
from seq2seq_jax.errors import UserError
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.lines import open_whole
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.tasks.vectors import SentenceEncoder, name_kind
from seq2seq_jax.train.writers import format_duration
from seq2seq_jax.workdir import Folder

GROUP_LINES = 4096
"""Lines that are sorted by length at a time."""


def write_vectors(
    config: ConfigDict, root: Path, lines: Iterator[str], output: str | None, *, apart_from: str | None = None
) -> tuple[int, int]:
    """Writes the vectors of all lines into one file for `numpy.load`, which appears when it is whole.

    The file holds `vectors` `[lines, D]` float32, in the lines' order; `kind` ("final state" or "mean", see
    `tasks.vectors.SentenceEncoder`) and `step`. All vectors are in memory at once: 1 KB a line at a width of 256.

    Args:
        config: the run's.
        root: its folder.
        lines: sentences in the language that the model reads.
        output: the file to write.
        apart_from: where the lines are read, which it must not be.

    Returns:
        The shape of `vectors`.

    Raises:
        UserError: there is no trained run, or it reads no sentences; or the file cannot be written.
    """
    if not takes_source(config.model):
        raise UserError(f"--workdir={root}: a language model reads no source and has no vectors; name another run.")
    if not output:
        raise UserError("--output is missing: name the file of vectors to write (--output=vectors.npz).")
    with open_whole(output, apart_from=(apart_from,)) as file:
        experiment, chosen = load_run(config, Folder(root))
        tags = (name_target(config.data.target),) if config.data.target_tag else ()
        training, limits = experiment.training, {"rows": config.decode.rows, "max_len": config.decode.max_source_len}
        encoder = SentenceEncoder(training.program, training.model, experiment.vocabs, **limits)
        started, parts, count = time.monotonic(), [], 0
        while group := list(itertools.islice(lines, GROUP_LINES)):
            found, cut = encoder.encode(chosen.state.averaged, group, tags=tags)
            for n in cut:
                say(f"line {count + n + 1}: longer than config.decode.max_source_len tokens, the rest was cut off")
            parts.append(found)
            count += len(group)
        vectors, kind = np.concatenate(parts or [np.zeros((0, 0), np.float32)]), name_kind(training.model)
        np.savez(file, vectors=vectors, kind=np.array(kind), step=np.array(chosen.step))
    took = format_duration(time.monotonic() - started)
    say(f"{count} vectors of {vectors.shape[1]} numbers ({kind}) to {output} in {took} (step {chosen.step})")
    return count, vectors.shape[1]
