"""Metrics of a corpus as sums over its sentences, so that choosing other hypotheses costs no new counting.

Every metric counts some numbers for a hypothesis against its reference; those of a corpus are the sums, and the score
is a function of the sums. `score` takes the sums of many choices at once.

- "bleu": sacreBLEU's, with its tokenizer and smoothing (Papineni et al. 2002; Post 2018)
- "chrf": sacreBLEU's chrF2 (Popović 2015)
- "wer": word errors: edit distance of the words between blanks over the words of the reference, in per cent
- "cer": the same of characters, blanks included, each run of blanks being one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import CHRF

from seq2seq_jax.evaluate.text import make_bleu

METRICS = ("bleu", "chrf", "wer", "cer")
_ORDERS = 4  # words of BLEU's longest n-grams


@dataclasses.dataclass(frozen=True)
class CorpusMetric:
    """A metric that adds up.

    Attributes:
        name: one of `METRICS`.
        more_is_better: whether the best score is the largest.
        count: hypotheses and as many references to statistics `[N, M]` float64, whole numbers.
        score: sums of statistics `[..., M]` to scores `[...]`, from 0 to 100 (errors may exceed it).
        signature: what the score depends on.
    """

    name: str
    more_is_better: bool
    count: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]
    signature: str

    def loss(self, sums: np.ndarray) -> np.ndarray:
        """The score, or its negative where more is better: what is made small."""
        return -self.score(sums) if self.more_is_better else self.score(sums)


def make_metric(name: str, *, target: str = "") -> CorpusMetric:
    """The metric of a name.

    Args:
        name: one of `METRICS`.
        target: language code, which chooses BLEU's tokenizer as sacreBLEU does.

    Raises:
        ValueError: for another name.
        UserError: if sacreBLEU lacks the tokenizer of the language.
    """
    if name in ("bleu", "chrf"):
        counter = make_bleu(target) if name == "bleu" else CHRF()
        counter.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after scoring
        signature, score = str(counter.get_signature()), _score_bleu if name == "bleu" else _score_chrf

        def count(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
            # What sacreBLEU's own significance tests count from; it has no public name.
            return np.array(counter._extract_corpus_statistics(hypotheses, [references]), np.float64)

        return CorpusMetric(name, True, count, score, signature)
    if name in ("wer", "cer"):
        split: Callable[[str], list[str]] = str.split if name == "wer" else _spell

        def count_errors(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
            sides = [(split(said), split(wanted)) for said, wanted in zip(hypotheses, references, strict=True)]
            return np.array([(Levenshtein.distance(said, wanted), len(wanted)) for said, wanted in sides], np.float64)

        return CorpusMetric(name, False, count_errors, _score_errors, "words" if name == "wer" else "characters")
    raise ValueError(f"`name` must be one of {', '.join(METRICS)}, but is {name!r} instead.")


def _spell(line: str) -> list[str]:
    return list(" ".join(line.split()))


def _score_errors(sums: np.ndarray) -> np.ndarray:
    """Sums of `edit distance, length of the reference` to an error rate in per cent."""
    return 100.0 * sums[..., 0] / np.maximum(sums[..., 1], 1.0)


def _score_bleu(sums: np.ndarray) -> np.ndarray:
    """Sums of `length, reference's length, matches of 1 to 4 words, n-grams of 1 to 4 words` to BLEU.

    sacreBLEU's "exp" smoothing: the first order without a match counts half a match, the next a quarter, ...
    """
    length, wanted = sums[..., 0], sums[..., 1]
    matches, grams = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    halves = np.cumsum(matches == 0, axis=-1)
    precisions = np.where(matches > 0, matches, 0.5**halves) / np.maximum(grams, 1.0)
    brevity = np.exp(np.minimum(0.0, 1.0 - wanted / np.maximum(length, 1.0)))
    found = 100.0 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    return np.where((matches > 0).any(axis=-1) & (grams > 0).all(axis=-1), found, 0.0)


def _score_chrf(sums: np.ndarray) -> np.ndarray:
    """Sums of `n-grams, the reference's, matches` for 1 to 6 characters to chrF2: F2 of mean precision and recall."""
    grams, wanted, matches = (sums[..., start::3] for start in range(3))
    there = (grams > 0) & (wanted > 0)
    orders = np.maximum(there.sum(axis=-1), 1)
    precision = np.where(there, matches / np.maximum(grams, 1.0), 0.0).sum(axis=-1) / orders
    recall = np.where(there, matches / np.maximum(wanted, 1.0), 0.0).sum(axis=-1) / orders
    below = 4.0 * precision + recall
    return np.where(below > 0, 500.0 * precision * recall / np.where(below > 0, below, 1.0), 0.0)
