"""BLEU and perplexity along a test set that is sorted by some key: by length, or by how rare its words are.

Sutskever et al. 2014, figure 3: sentences sorted by their length (left), and by the average frequency rank of their
words (right). Here the sorted test set is cut into parts of equal counts, so that every score rests on as many
sentences; `compare.score_lengths` cuts at fixed lengths instead.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from seq2seq_jax.evaluate.corpus_metric import CorpusMetric


@dataclasses.dataclass(frozen=True)
class Part:
    """Some sentences of a test set.

    Attributes:
        ids: their places in it.
        low, high, mean: of their keys.
    """

    ids: np.ndarray
    low: float
    high: float
    mean: float


def count_lengths(lines: Sequence[str]) -> np.ndarray:
    """Words between blanks of each line."""
    return np.array([len(line.split()) for line in lines], np.float64)


def rank_words(lines: Iterable[str]) -> dict[str, int]:
    """Word → its rank by frequency in a text, from 1; of equally frequent ones the first seen comes first."""
    counts = Counter(word for line in lines for word in line.split())
    return {word: rank for rank, (word, _) in enumerate(counts.most_common(), start=1)}


def average_ranks(lines: Sequence[str], ranks: Mapping[str, int]) -> np.ndarray:
    """The mean rank of the words of each line; a word without a rank has the one after the last. 0 for a blank line."""
    last = len(ranks) + 1
    found = [[ranks.get(word, last) for word in line.split()] for line in lines]
    return np.array([np.mean(row) if row else 0.0 for row in found], np.float64)


def split_evenly(keys: np.ndarray, count: int) -> list[Part]:
    """Sentences sorted by their keys and cut into parts whose sizes differ by one at most; equal keys keep their order.

    Raises:
        ValueError: there are fewer sentences than parts.
    """
    if not 1 <= count <= len(keys):
        raise ValueError(f"`count` must be from 1 to the {len(keys)} sentences, but is {count} instead.")
    order = np.argsort(keys, kind="stable")
    return [
        Part(ids, float(keys[ids[0]]), float(keys[ids[-1]]), float(keys[ids].mean()))
        for ids in np.array_split(order, count)
    ]


def score_parts(
    parts: Sequence[Part], hypotheses: Sequence[str], references: Sequence[str], metric: CorpusMetric
) -> np.ndarray:
    """The metric of each part, `[parts]`; a sentence's statistics are counted once however it is cut."""
    statistics = metric.count(hypotheses, references)
    return np.array([float(metric.score(statistics[part.ids].sum(axis=0))) for part in parts])


def measure_perplexity(parts: Sequence[Part], log_probs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """exp(-log-probability of a part / its tokens), `[parts]`; NaN for a part without any score.

    Args:
        parts: of the test set.
        log_probs: of each reference, natural logarithms; NaN where there is no score, which leaves the sentence out.
        tokens: of each, eos included.
    """
    found = []
    for part in parts:
        ids = part.ids[np.isfinite(log_probs[part.ids])]
        total = float(tokens[ids].sum())
        found.append(float(np.exp(-log_probs[ids].sum() / total)) if total else np.nan)
    return np.array(found)
