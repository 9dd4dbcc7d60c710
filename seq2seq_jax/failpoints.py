"""Places where a run can be made to fail on purpose, so that every moment in which a kill may come can be tested.

    SEQ2SEQ_JAX_FAILPOINT=commit:8:kill seq2seq-jax --config=configs/gnmt.py

kills the run once the checkpoint of step 8 is committed and before it has its manifest. `NAME:STEP:ACTION`: a name of
`PLACES`, a step (or `*`: whichever comes first there) and one of `ACTIONS` (`kill` where none is named). Unset, as it
is for everyone else, `reach` returns at once.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from seq2seq_jax.errors import UserError

VARIABLE = "SEQ2SEQ_JAX_FAILPOINT"

PLACES = {
    "start": "the folder is claimed, nothing is read yet",
    "vocab": "the vocabularies are trained and not yet written",
    "config": "the config is about to be written",
    "compile": "a step, or the loss on dev, is about to be compiled",
    "batch": "a batch is about to be built, ahead of the step that takes it; counted from 0",
    "step": "a step was sent to the devices",
    "log": "half of a line of metrics.jsonl is written",
    "save": "a checkpoint is about to be saved",
    "arrays": "the arrays of a checkpoint are being written",
    "commit": "a checkpoint is committed and has no manifest yet",
    "manifest": "the manifest is written under another name and not yet renamed",
    "rotate": "an old checkpoint is renamed and not yet deleted",
    "quarantine": "a damaged checkpoint is about to be moved",
    "restore": "a checkpoint was read, nothing is trained yet",
    "evaluate": "an evaluation on dev is half done: the loss is known, nothing was searched",
    "record": "the scores of an evaluation made late are about to be written",
    "test": "the last evaluation is half done: some of its files are written",
    "results": "results.json is about to be written",
    "close": "all is written, the run is about to end",
}
"""Where a failpoint can be, and what has happened there."""

ACTIONS = {
    "kill": "SIGKILL",
    "term": "SIGTERM to itself, and go on",
    "interrupt": "SIGINT to itself, as Ctrl-C sends it, and go on",
    "raise": "a RuntimeError, as a bug would",
    "enospc": "the OSError of a full disk",
    "edquot": "the OSError of a quota that is used up",
    "estale": "the OSError of a network disk that has lost a file",
    "pause": "stand still for four seconds",
    "sleep": "stand still for an hour, or until killed",
}
"""What can happen there."""


class _Failpoint(NamedTuple):
    name: str
    step: int | None
    action: str


def check_environment() -> None:
    """Reads the environment, once, at the start of a program.

    Raises:
        UserError: the variable does not name a place, a step and an action.
    """
    global _wanted
    _wanted = _read(os.environ.get(VARIABLE, ""))


def reach(name: str, step: int | None = None, *, first: Callable[[], object] = lambda: None) -> None:
    """Says that the program has come to a place; does what the environment asks for there.

    Args:
        name: one of `PLACES`.
        step: the step that it is about, where there is one.
        first: what is done before that, and only then.
    """
    global _wanted
    if _wanted is None or _wanted.name != name or _wanted.step not in (None, step):
        return
    action, _wanted = _wanted.action, None  # once
    first()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action in ("term", "interrupt"):
        os.kill(os.getpid(), signal.SIGTERM if action == "term" else signal.SIGINT)
    elif action in ("enospc", "edquot", "estale"):
        number = getattr(errno, action.upper())
        raise OSError(number, os.strerror(number))
    elif action in ("pause", "sleep"):
        time.sleep(4 if action == "pause" else 3600)
    else:
        raise RuntimeError(f"failpoint {name}")


def _read(text: str) -> _Failpoint | None:
    if not text:
        return None
    name, step, action = (*text.split(":"), "", "")[:3]
    action, known = action or "kill", f"one of {', '.join(PLACES)}"
    rules = (
        (text.count(":") <= 2, "NAME:STEP:ACTION", text),
        (name in PLACES, known, name),
        (step in ("", "*") or step.isdecimal(), "a step or *", step),
        (action in ACTIONS, f"one of {', '.join(ACTIONS)}", action),
    )
    for holds, rule, value in rules:
        if not holds:
            raise UserError(f"{VARIABLE}={text}: must be {rule}, but is {value!r} instead; unset it to run as usual.")
    return _Failpoint(name, int(step) if step.isdecimal() else None, action)


_wanted: _Failpoint | None = None
