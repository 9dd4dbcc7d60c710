"""What a misspelt word was meant to be: the same answer for keys, flags, values, presets and files."""

from __future__ import annotations

import os
from collections.abc import Iterable


def find_nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is the fewest edits from `word`; "" where none is near.

    An edit is a letter more, a letter less, another letter, or two neighbours that changed places; case counts for
    nothing. Of equally near words the one that begins like `word` for longest is taken, then the first.

    Args:
        word: as it was written.
        known: all that it may be.
    """
    from rapidfuzz.distance import OSA  # only once something is wrong: a command that is right starts without it

    def count_edits(name: str) -> tuple[int, int]:
        alike = len(os.path.commonprefix([word.lower(), name.lower()]))
        return OSA.distance(word.lower(), name.lower()), -alike

    best = min(known, key=count_edits, default="")
    return best if best and count_edits(best)[0] <= max(1, len(word) // 3) else ""


def suggest(word: str, known: Iterable[str], *, form: str = "{}") -> str:
    """The end of a message: "; did you mean X?", or "." where no known word is near.

    Args:
        word, known: see `find_nearest`.
        form: how X is written: "{!r}", "--{}".
    """
    near = find_nearest(word, known)
    return f"; did you mean {form.format(near)}?" if near else "."
