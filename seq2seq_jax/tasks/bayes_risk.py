"""Minimum Bayes risk decoding: of several outputs the one that the others agree with most.

    score(h) = Σᵣ p(r) u(h, r)      over all candidates r, h itself among them; u in [0, 1]

The model's samples stand in for what it expects, and each is judged against all (Eikema & Aziz 2020, Is MAP Decoding
All You Need?, section 4; Freitag et al. 2022, High Quality Rather than High Model Probability). p(r) is how often r
was drawn. Of an n-best list, whose entries were not drawn, p(r) may be the model's probability, normalised over the
list (Kumar & Byrne 2004, Minimum Bayes-Risk Decoding for Statistical Machine Translation).

The utilities are sacreBLEU's of single sentences (`evaluate.rewards`), all pairs at once: the overlap of two texts'
n-grams is a product of matrices, if the second occurrence of an n-gram counts as another n-gram, and so on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from sacrebleu.metrics import BLEU

from seq2seq_jax.interfaces import ScoredText

UTILITIES = ("chrf", "bleu")
WEIGHTS = ("counts", "probabilities")

_CHARACTERS, _BETA, _WORDS = 6, 2.0, 4  # longest n-grams of characters and recall's weight in chrF2, longest of words


class _Output(ScoredText, Protocol):
    """A candidate that is a dataclass."""

    __dataclass_fields__: Any


Output = TypeVar("Output", bound=_Output)


def choose(candidates: Sequence[Output], utility: str, *, target: str = "", weights: str = "counts") -> list[Output]:
    """Ranks outputs of one source by how well they agree with each other.

    Args:
        candidates: samples, or an n-best list; outputs of the same text are one, of their weights together.
        utility: "chrf" or "bleu".
        target: language code, which chooses BLEU's tokenizer as sacreBLEU does.
        weights: "counts" (every candidate counts alike: for samples) or "probabilities" (the model's, normalised over
            the candidates: for an n-best list).

    Returns:
        One candidate for each text, the first of its kind, best first (as given where two are equally good), with
        the expected utility, from 0 to 1, as its score.

    Raises:
        ValueError: for an unknown utility, or unknown weights.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"`weights` must be one of {', '.join(WEIGHTS)}, but is {weights!r} instead.")
    if not candidates:
        return []
    first: dict[str, int] = {}
    for n, candidate in enumerate(candidates):
        first.setdefault(candidate.text, n)
    places = {text: place for place, text in enumerate(first)}
    log_weights = np.array([c.log_prob if weights == "probabilities" else 0.0 for c in candidates], np.float64)
    share = np.exp(log_weights - log_weights.max())
    share = np.bincount([places[c.text] for c in candidates], share / share.sum())
    expected = compare(list(first), utility, target=target) @ share
    chosen = list(first.values())
    order = np.argsort(-expected, kind="stable").tolist()
    return [dataclasses.replace(candidates[chosen[n]], score=float(expected[n])) for n in order]


def compare(texts: Sequence[str], utility: str, *, target: str = "") -> np.ndarray:
    """The utility of every text with every text as its reference, `[N, N]` float64 in [0, 1]; row n judges text n.

    Raises:
        ValueError: for an unknown utility.
    """
    if utility == "chrf":
        return _compare_chrf(["".join(text.split()) for text in texts])
    if utility == "bleu":
        tokenize: Callable[[str], str] = BLEU(trg_lang=target.replace("-", "_").split("_")[0].lower()).tokenizer
        return _compare_bleu([tuple(tokenize(text.rstrip()).split()) for text in texts])
    raise ValueError(f"`utility` must be one of {', '.join(UTILITIES)}, but is {utility!r} instead.")


def _count_matches(texts: Sequence[Sequence[Any]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """N-grams of so many items: how many each pair of texts has in common `[N, N]`, and each text has `[N]`."""
    columns: dict[Any, int] = {}
    found = []
    for text in texts:
        counts = Counter(text[begin : begin + size] for begin in range(len(text) - size + 1))
        each = ((ngram, again) for ngram, count in counts.items() for again in range(count))
        found.append([columns.setdefault(ngram, len(columns)) for ngram in each])
    there = np.zeros((len(texts), len(columns)), np.float32)
    for row, places in enumerate(found):
        there[row, places] = 1.0
    return (there @ there.T).astype(np.float64), np.array([len(places) for places in found], np.float64)


def _compare_chrf(texts: Sequence[str]) -> np.ndarray:
    """chrF2 (Popović 2015): precision and recall are means over the lengths of n-grams that both texts have."""
    precision, recall, lengths = (np.zeros((len(texts), len(texts))) for _ in range(3))
    for size in range(1, _CHARACTERS + 1):
        matches, counts = _count_matches(texts, size)
        counts = np.maximum(counts, 1.0)  # where there is none, there is no match either
        precision += matches / counts[:, None]
        recall += matches / counts[None, :]
        there = np.array([len(text) >= size for text in texts])
        lengths += there[:, None] & there[None, :]
    precision, recall = precision / np.maximum(lengths, 1.0), recall / np.maximum(lengths, 1.0)
    below = _BETA**2 * precision + recall
    return (1.0 + _BETA**2) * precision * recall / np.where(below > 0, below, 1.0)


def _compare_bleu(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """BLEU with exponential smoothing, up to the longest n-gram that the judged text has."""
    lengths = np.array([len(text) for text in texts], np.float64)
    logs, lacking, matched = (np.zeros((len(texts), len(texts))) for _ in range(3))
    for size in range(1, _WORDS + 1):
        matches, counts = _count_matches(texts, size)
        there = (counts > 0)[:, None]
        lacking += there & (matches == 0)
        matched += matches
        precision = np.where(matches > 0, matches, 0.5**lacking) / np.maximum(counts, 1.0)[:, None]
        logs += np.where(there, np.log(precision), 0.0)
    orders = np.clip(lengths, 1, _WORDS)[:, None]
    brevity = np.minimum(0.0, 1.0 - lengths[None, :] / np.maximum(lengths, 1.0)[:, None])
    return np.where(matched > 0, np.exp(brevity + logs / orders), 0.0)
