"""`--mode=translate`: lines in, lines out, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ml_collections import ConfigDict

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.serve.translate import moses_nbest, stream
from seq2seq_jax.tasks.translation import Translation
from seq2seq_jax.train.writers import format_duration
from seq2seq_jax.workdir import Folder


def translate(config: ConfigDict, root: Path, lines: Iterator[str], output: TextIO, *, nbest: int) -> int:
    """Translates lines to `output` as they come; with `nbest` in Moses's n-best format. Returns the count."""
    if nbest < 0:
        raise UserError(f"--nbest must be at least 0 (0: the best alone), but is {nbest} instead.")
    folder = Folder(root)
    experiment, chosen = load_run(config, folder)
    translator = experiment.translator(beam_size=max(nbest, config.decode.beam_size))
    params: PyTree = chosen.state.averaged

    def render(number: int, item: Translation) -> str:
        if item.cut:
            say(f"line {number + 1}: longer than config.decode.max_source_len tokens, the rest was cut off")
        return moses_nbest(number, item.candidates[:nbest]) if nbest else item.text + "\n"

    started = time.monotonic()
    count = stream(
        lines, output, translate=lambda group: translator.translate(params, group), render=render, most=translator.rows
    )
    say(f"translated {count} lines in {format_duration(time.monotonic() - started)} (step {chosen.step})")
    return count
