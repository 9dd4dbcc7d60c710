"""`--mode=score`: how probable a trained run finds given translations, one JSON object a pair."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

from ml_collections import ConfigDict

from seq2seq_jax.config import with_absolute_prefixes
from seq2seq_jax.corpora import open_test, prepared_folder
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.scoring import get_references, say
from seq2seq_jax.tasks.score import PairScore
from seq2seq_jax.workdir import Folder

GROUP = 64
"""Batches of pairs that are sorted by length, and written, at a time."""


def score(config: ConfigDict, root: Path, output: TextIO, *, pairs: str | None = None) -> dict[str, Any]:
    """Writes a line for each pair, in their order, and tells the sums; see `render` for what is in a line.

    Args:
        config: the run's.
        root: its folder.
        output: receives the lines.
        pairs: a corpus as in `config.data.test`, which is read where there is none.

    Raises:
        UserError: there is no trained run, or no such corpus.
    """
    folder = Folder(root)
    config = with_absolute_prefixes(config)
    if pairs is not None:
        config.data.test = pairs
        config = with_absolute_prefixes(config)
    text = open_test(config, None if pairs is not None else prepared_folder(config, root))
    references = get_references(text)  # refuses before the work
    experiment, chosen = load_run(config, folder)
    scorer = experiment.scorer(tags=text.tags)
    started, log_prob, tokens, scored = time.monotonic(), 0.0, 0, 0
    step = GROUP * config.decode.rows
    for begin in range(0, len(text), step):
        group = slice(begin, begin + step)
        found = scorer.score(chosen.state.averaged, text.source[group], references[group])
        for number, item in enumerate(found, start=begin + 1):
            output.write(render(number, item))
            if item.note:
                say(f"line {number}: no score ({item.note})")
            else:
                log_prob, tokens, scored = log_prob + item.log_prob, tokens + len(item.pieces), scored + 1
    seconds = max(time.monotonic() - started, 1e-9)
    total = {
        "sentences": len(text),
        "scored": scored,
        "tokens": tokens,
        "log_prob": log_prob,
        "perplexity": _perplexity(log_prob, tokens),
    }
    say(
        f"{text.name}: {scored} of {len(text)} pairs scored, {tokens} tokens, log-probability {log_prob:.3f}, "
        f"perplexity {total['perplexity']:.4f}, {scored / seconds:.1f} sentences/s (step {chosen.step})"
    )
    return total


def render(number: int, item: PairScore) -> str:
    """One pair as a line of JSON: its number from 1, and its score or, under `note`, why there is none.

    `log_prob` is the sum over the target's tokens with eos, `normalised` that over their number, `log_probs` those
    of each of the `pieces`; natural logarithms.
    """
    if item.note:
        return json.dumps({"line": number, "log_prob": None, "note": item.note}) + "\n"
    count = len(item.pieces)
    record = {
        "line": number,
        "log_prob": round(item.log_prob, 6),
        "tokens": count,
        "normalised": round(item.log_prob / count, 6),
        "perplexity": round(_perplexity(item.log_prob, count), 6),
        "pieces": item.pieces,
        "log_probs": [round(value, 6) for value in item.log_probs],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _perplexity(log_prob: float, tokens: int) -> float:
    return math.exp(min(-log_prob / max(tokens, 1), 50.0))
