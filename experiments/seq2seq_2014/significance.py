"""Whether one group of systems is better than another on a test set: paired bootstrap over its sentences.

Statistics of sentences add up (see `seq2seq_jax.evaluate.corpus_metric`), so a resampled test set is a row of counts,
and all resamples are one product of matrices (Koehn 2004).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.metrics import BLEU

from seq2seq_jax.evaluate.corpus_metric import CorpusMetric, make_metric

RESAMPLES = 5000
"""So many that the smallest p (1 of 5001) stays below `LEVEL` with room, corrected for some thirty claims."""

SEED = 12345
LEVEL = 0.05
"""Largest p of what counts as shown."""

Score = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a group of systems is better by than another.

    Attributes:
        before, after: mean scores of the two groups on the test set.
        effect: their difference.
        interval: of 95 %: the middle part of the differences on resampled test sets.
        p: how often a difference as large, either way, comes by the choice of sentences alone.
        pairs: the difference of each pair of systems with one seed, or of each system to the one system opposite.
    """

    before: float
    after: float
    effect: float
    interval: tuple[float, float]
    p: float
    pairs: tuple[float, ...]


def draw_counts(sentences: int, *, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each sentence is in each resampled test set: `[resamples, sentences]` float64, rows sum to `sentences`.

    All systems are scored on the same resamples: that is what makes the test a paired one.
    """
    drawn = np.random.default_rng(seed).integers(sentences, size=(resamples, sentences))
    return np.stack([np.bincount(row, minlength=sentences) for row in drawn]).astype(np.float64)


def find_effect(before: Sequence[np.ndarray], after: Sequence[np.ndarray], score: Score, counts: np.ndarray) -> Effect:
    """Compares the mean score of two groups of systems.

    p is two-sided: the share of resamples whose difference is as far from the mean of all of them as the real
    difference is from 0, with 1 added above and below (so that it is never 0). It knows of the test's sentences, not
    of the seeds, which `pairs` tells of.

    Args:
        before, after: of each system its statistics `[N, M]`; equally many systems, or one against several.
        score: sums `[..., M]` to scores `[...]`.
        counts: see `draw_counts`.

    Raises:
        ValueError: a group is empty, or the two have different numbers of systems and neither is of one.
    """
    sizes = (len(before), len(after))
    if 0 in sizes or (sizes[0] != sizes[1] and 1 not in sizes):
        raise ValueError(f"groups must be of equally many systems, or one of a single one, but are of {sizes} instead.")
    ones = np.ones((1, counts.shape[1]))
    sides = [[float(score(ones @ system)[0]) for system in group] for group in (before, after)]
    means = [sum(side) / len(side) for side in sides]
    effect = means[1] - means[0]
    drawn = [sum(score(counts @ system) for system in group) / len(group) for group in (before, after)]
    differences = np.asarray(drawn[1] - drawn[0])
    # A hair's breadth for sums in another order: equal systems have p = 1.
    as_far = np.abs(differences - differences.mean()) >= abs(effect) - 1e-9
    low, high = np.percentile(differences, [2.5, 97.5])
    most = max(sizes)
    first, second = (side * (most // len(side)) for side in sides)
    pairs = tuple(b - a for a, b in zip(first, second, strict=True))
    p = (1 + int(as_far.sum())) / (1 + len(counts))
    return Effect(means[0], means[1], effect, (float(low), float(high)), p, pairs)


def find_interval(systems: Sequence[np.ndarray], score: Score, counts: np.ndarray) -> float:
    """Half the width of the interval that holds 95 % of the resampled mean scores of a group."""
    drawn = sum(score(counts @ system) for system in systems) / len(systems)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(high - low) / 2


def correct(ps: Sequence[float]) -> list[float]:
    """p of several tests together (Holm 1979): the chance that any is shown though there is nothing stays at a level.

    The smallest p counts as many times as there are tests, the next once less, and so on; none is below one before it.
    """
    order = np.argsort(ps, kind="stable")
    scaled = np.asarray(ps, np.float64)[order] * np.arange(len(ps), 0, -1)
    found = np.empty(len(ps))
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in found]


def bound_mean(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """The interval that holds 95 % of the means of a matrix whose rows and columns are both resampled."""
    rng, (rows, columns) = np.random.default_rng(seed), values.shape
    drawn = rng.integers(rows, size=(resamples, rows, 1)), rng.integers(columns, size=(resamples, 1, columns))
    low, high = np.percentile(values[drawn].mean(axis=(1, 2)), [2.5, 97.5])
    return float(low), float(high)


def judge(effect: float, p: float, pairs: Sequence[float], *, wanted: int) -> str:
    """Whether an effect that was claimed is there.

    Args:
        effect: what was found.
        p: of the bootstrap, corrected for the number of claims (`correct`).
        pairs: the effect of each pair of systems.
        wanted: the sign of the effect that was claimed.

    Returns:
        "appeared": of the sign that was claimed, p at most 0.05, and every pair of systems has it.
        "did not appear": the opposite is shown in the same way.
        "not shown": else.
    """
    for sign, verdict in ((wanted, "appeared"), (-wanted, "did not appear")):
        if p <= LEVEL and effect * sign > 0 and all(pair * sign > 0 for pair in pairs):
            return verdict
    return "not shown"


def make_words_metric() -> CorpusMetric:
    """BLEU of text that is tokenised already: words are what stands between blanks, as multi-bleu.perl counts.

    sacreBLEU's own tokenizer would split the text once more: `&apos;` of the Moses tokenizer into `& apos ;`, which
    lifts the score by a third to a half where translations are poor.
    """
    counter = BLEU(tokenize="none", force=True)
    counter.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after scoring

    def count(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return np.array(counter._extract_corpus_statistics(hypotheses, [references]), np.float64)

    signature = str(counter.get_signature())
    return dataclasses.replace(make_metric("bleu"), name="bleu_words", count=count, signature=signature)


def choose_metric(corpus: str) -> CorpusMetric:
    """What a corpus is scored by: words between blanks for Multi30k, sacreBLEU on plain text for the phrasebook."""
    return make_words_metric() if corpus == "multi30k" else make_metric("bleu", target="de")


def score_log_probs(sums: np.ndarray) -> np.ndarray:
    """Sums of `negative log-probability, tokens` to nats a token, whose exponential is the perplexity."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1.0)
