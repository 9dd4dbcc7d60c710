"""How every program of the study ends: with one line about what its user can mend, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from seq2seq_jax.errors import EXIT_USER, UserError


def call(program: str, work: Callable[[], int]) -> int:
    """Does the work of a program; its exit code, 2 for what the user can mend, 130 where it was interrupted."""
    try:
        return work()
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{program}: error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        return 130
