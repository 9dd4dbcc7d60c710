"""N-gram models estimated from texts that are cut into pieces, as ARPA files.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))         T(h): how many different pieces followed h

(Witten and Bell 1991), each order interpolated with the one below, h' being h without its first piece. A file with
back-off says this exactly: what h does not list gets T(h) / (c(h) + T(h)) of what h' gives it. Nothing is pruned: for
characters, or transcripts of some hours; of larger texts KenLM and SRILM make such files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from seq2seq_jax.decode.arpa import BOS, EOS, UNKNOWN

Gram = tuple[str, ...]


def estimate_arpa(texts: Iterable[Sequence[str]], order: int) -> str:
    """An ARPA file of a model of texts, each of them its pieces without begin and end.

    Args:
      texts: At least one.
      order: The longest n, at least 1.

    Raises:
      ValueError: there is no text, or the order is below 1.
    """
    counts = _count(texts, order)
    if not counts[0]:
        raise ValueError("there must be a text to estimate n-grams from, but there is none")
    probs, left = _estimate(counts)
    unknown = max(1e-7, 1.0 - sum(probs[0].values()))
    tables = [{(UNKNOWN,): unknown, (BOS,): 1e-99, **probs[0]}, *probs[1:]]
    lines = ["\\data\\", *(f"ngram {n}={len(table)}" for n, table in enumerate(tables, 1)), ""]
    for n, table in enumerate(tables, 1):
        lines.append(f"\\{n}-grams:")
        for gram, prob in sorted(table.items()):
            row = f"{max(-99.0, math.log10(prob)):.6f}\t{' '.join(gram)}"
            lines.append(f"{row}\t{math.log10(left[gram]):.6f}" if gram in left else row)
        lines.append("")
    return "\n".join([*lines, "\\end\\", ""])


def _count(texts: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """How often every n-gram occurs, of each order."""
    if order < 1:
        raise ValueError(f"order must be at least 1, but is {order}")
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for text in texts:
        tokens = (BOS, *text, EOS)
        for end in range(1, len(tokens)):
            for length in range(1, min(order, end + 1) + 1):
                counts[length - 1][tokens[end - length + 1 : end + 1]] += 1
    return counts


def _estimate(counts: list[Counter[Gram]]) -> tuple[list[dict[Gram, float]], dict[Gram, float]]:
    """Probabilities of the n-grams of each order, and what every history leaves to the order below."""
    types, total = len(counts[0]), sum(counts[0].values())
    probs = [{gram: (number + types / (types + 1)) / (total + types) for gram, number in counts[0].items()}]
    left: dict[Gram, float] = {}
    for order in range(1, len(counts)):
        seen, kinds = Counter[Gram](), Counter[Gram]()
        for gram, number in counts[order].items():
            seen[gram[:-1]] += number
            kinds[gram[:-1]] += 1
        left |= {history: kinds[history] / (seen[history] + kinds[history]) for history in seen}
        below = probs[order - 1]
        probs.append(
            {
                gram: number / (seen[gram[:-1]] + kinds[gram[:-1]]) + left[gram[:-1]] * below[gram[1:]]
                for gram, number in counts[order].items()
            }
        )
    return probs, left
