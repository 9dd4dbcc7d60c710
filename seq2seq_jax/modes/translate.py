"""`--mode=translate`: lines in, lines out, as they come."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ml_collections import ConfigDict

from seq2seq_jax.decode.guards import count_guards
from seq2seq_jax.errors import UserError
from seq2seq_jax.modes.ensemble import join_models
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.lines import read_input
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.serve.progress import Progress
from seq2seq_jax.serve.translate import gather, moses_nbest, split, stream
from seq2seq_jax.tasks.constraints import Wish, make_wish, parse_wish
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.tasks.methods import check_count
from seq2seq_jax.tasks.translation import Translation
from seq2seq_jax.train.writers import format_duration
from seq2seq_jax.workdir import Folder

PART_LINES = 16384
"""Lines of a file that are in memory at a time."""

GROUP_ROWS = 16
"""Lines of a pipe that are translated together at most: so many batches."""


def translate(
    config: ConfigDict,
    root: Path,
    lines: Iterator[str],
    output: TextIO,
    *,
    nbest: int,
    total: int | None = None,
    constraints: str | None = None,
) -> int:
    """Translates lines to `output`; with `nbest` in Moses's n-best format. Returns the count.

    Args:
        config: the run's.
        root: its folder.
        lines: the input.
        output: where the translations go.
        nbest: candidates of each line; 0 is the best alone, as plain text.
        total: how many lines there are, of a file: it is worked through at once, and people are told how far it is.
            None is a pipe, whose lines are answered as they come.
        constraints: a file with a JSON object for every line of the input; see `tasks.constraints.parse_wish`.

    Raises:
        UserError: what is asked for cannot be.
    """
    if nbest < 0:
        raise UserError(f"--nbest must be at least 0 (0: the best alone), but is {nbest} instead.")
    folder, keys = Folder(root), config.decode
    check_count(keys, nbest, "--nbest")
    wishes = None if constraints is None else _read_wishes(constraints, keys, total)
    experiment, chosen = load_run(config, folder)
    size = nbest if keys.method == "sampling" else max(nbest, keys.beam_size)
    program, params = join_models(experiment, chosen.state.averaged, folder)
    engine = experiment.engine(experiment.training.make_search(size or None), attention="none", program=program)
    translator, guarded = experiment.translator(engine=engine), Counter[str]()
    spelled = None if wishes is None else translator.spell(wishes, where=lambda n: f"{constraints}: line {n + 1}: ")
    tokens = unfinished = begun = 0

    def render(number: int, item: Translation) -> str:
        nonlocal tokens, unfinished
        if item.cut:
            say(f"line {number + 1}: longer than config.decode.max_source_len tokens, the rest was cut off")
        if item.candidates:
            tokens += len(item.candidates[0].tokens)
            guarded.update(count_guards(item.candidates[0].tokens, **engine.guards))
            unfinished += not item.candidates[0].finished
        return moses_nbest(number, item.candidates[:nbest]) if nbest else item.text + "\n"

    def run(group: list[str]) -> Sequence[Translation]:
        nonlocal begun
        first, begun = begun, begun + len(group)
        if wishes is not None and begun > len(wishes):
            raise UserError(f"--constraints={constraints}: has {len(wishes)} lines, but the input has more.")
        return translator.translate(params, group, spelled=spelled, first=first, tell=progress)

    started = time.monotonic()
    progress = Progress(total, stream=sys.stderr, tell=say)
    groups = gather(lines, most=GROUP_ROWS * keys.rows) if total is None else split(lines, most=PART_LINES)
    with progress:
        count = stream(groups, output, translate=run, render=render)
    seconds = time.monotonic() - started
    if wishes is not None and len(wishes) > count:
        say(f"--constraints={constraints}: has {len(wishes)} lines, but the input had only {count}")
    say(f"translated {count} lines in {format_duration(seconds)} (step {chosen.step})")
    say(summarise(engine, count=count, tokens=tokens, unfinished=unfinished, guarded=guarded, seconds=seconds))
    return count


def _read_wishes(path: str, keys: ConfigDict, total: int | None) -> list[Wish]:
    """What a file of constraints asks of each line, on top of what the config asks."""
    default = make_wish(keys)
    lines = enumerate(read_input(path, flag="constraints"), start=1)
    wishes = [parse_wish(line, where=f"{path}: line {number}", default=default) for number, line in lines]
    if total is not None and len(wishes) != total:
        raise UserError(f"--constraints={path}: has {len(wishes)} lines, but the input has {total}.")
    return wishes


def summarise(
    engine: Engine, *, count: int, tokens: int, unfinished: int, guarded: Counter[str], seconds: float
) -> str:
    """One line on what a translation took."""
    tally, parts = engine.tally, [f"{count / seconds:.1f} sentences/s", f"{tokens / seconds:.0f} tokens/s"]
    if tally.row_steps:
        parts.append(f"{tally.live_share:.0%} of the batch at work")
    parts.append(f"{engine.programs} programs compiled (at most {engine.most_programs})")
    if unfinished:
        parts.append(f"{unfinished} outputs cut off at their longest (length_factor, length_extra)")
    parts += [f"{name} acted at {steps} steps" for name, steps in sorted(guarded.items())]
    return ", ".join(parts)
