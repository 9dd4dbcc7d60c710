"""How a run ends: exit codes, and the errors that carry them.

| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug in seq2seq_jax (traceback) |
| 2 | the user's config, input or environment: one clear line |
| 3 | training diverged (too many non-finite steps in a row) |
| 4 | checkpoints exist, none of them is usable |
| 5 | another host was lost, and with it the run; it resumes |
| 143 | stopped by SIGTERM (or 130, Ctrl-C) after saving |
"""

from __future__ import annotations

import signal

EXIT_USER = 2
EXIT_DIVERGED = 3
EXIT_NO_CHECKPOINT = 4
EXIT_HOST_LOST = 5
EXIT_INTERRUPTED = 128 + signal.SIGINT


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a device's memory, as XLA says it, or the machine's was not enough."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


class UserError(Exception):
    """Something the user can mend: names the file, line or key, the rule, the value and the cure."""

    exit_code = EXIT_USER


class DivergedError(Exception):
    """Too many non-finite steps in a row."""

    exit_code = EXIT_DIVERGED


class NoUsableCheckpointError(Exception):
    """There are checkpoints, and every one is damaged. Never answered by starting from zero."""

    exit_code = EXIT_NO_CHECKPOINT


class Terminated(Exception):
    """SIGTERM or SIGINT (by its `number`) arrived, and what there was to save is saved."""

    def __init__(self, message: str, *, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
