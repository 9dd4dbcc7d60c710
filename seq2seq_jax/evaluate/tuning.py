"""Minimum error rate training: weights of features that choose from n-best lists with the least error (Och 2003).

A hypothesis scores `weights . features`. Along a line `weights + step * direction` the score of every hypothesis is
a straight line, the best one of a list is the upper envelope of its lines, and so the corpus error is a step function
of `step` that changes only at the envelopes' corners. `search_line` finds all corners of all lists, adds up the
statistics of every interval between them, and takes the best interval: the exact minimum on the line. `tune` repeats
that along features and random directions, from several starts (Powell's way).

Och 2003, Minimum Error Rate Training in Statistical Machine Translation; Cer et al. 2008 on random directions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

Loss = Callable[[np.ndarray], np.ndarray]
"""Sums of statistics `[..., M]` to what is to be small, `[...]`."""

RESTARTS = 20
_MOST_PASSES = 30
_SCALE_FLOOR = 1e-9  # of a feature that hardly varies within a list
_NARROWEST = 1e-9  # of an interval of steps, relative: what is narrower is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Lists:
    """N-best lists as arrays. The hypotheses of a list follow each other, and no list is empty.

    Attributes:
        features: `[N, D]` float64.
        statistics: `[N, M]` float64, see `evaluate.corpus_metric`.
        sizes: `[G]` hypotheses of every list.
    """

    features: np.ndarray
    statistics: np.ndarray
    sizes: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.statistics) == self.sizes.sum() or (self.sizes < 1).any():
            raise ValueError(
                f"`sizes` must be at least 1 and sum to the rows, but there are {len(self.features)} of features, "
                f"{len(self.statistics)} of statistics, and sizes sum to {self.sizes.sum()}, the least being "
                f"{self.sizes.min(initial=0)}."
            )

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Rows `[G, K]` of the arrays; where a list has fewer than K hypotheses, its first one again."""
        first = (np.cumsum(self.sizes) - self.sizes)[:, None]
        places = np.arange(self.sizes.max(initial=1))
        return np.where(places < self.sizes[:, None], first + places, first)

    def choose(self, weights: np.ndarray) -> np.ndarray:
        """The row `[G]` of the best hypothesis of every list; of equal ones the first."""
        best = (self.features @ weights)[self.rows].argmax(axis=1)
        return self.rows[np.arange(len(self.rows)), best]

    def add(self, rows: np.ndarray) -> np.ndarray:
        """Sums `[M]` of the statistics of some rows."""
        return self.statistics[rows].sum(axis=0)

    def take(self, which: np.ndarray) -> Lists:
        """The lists of these numbers."""
        rows = np.concatenate([self.rows[n, : self.sizes[n]] for n in which]) if len(which) else np.zeros(0, int)
        return Lists(self.features[rows], self.statistics[rows], self.sizes[which])


@dataclasses.dataclass(frozen=True, eq=False)
class Tuned:
    """Weights `[D]` whose absolute values sum to 1, and their loss on the lists they were tuned on."""

    weights: np.ndarray
    loss: float


def tune(
    lists: Lists,
    loss: Loss,
    start: np.ndarray,
    *,
    restarts: int = RESTARTS,
    seed: int = 0,
    tell: Callable[[int, float], None] | None = None,
) -> Tuned:
    """Weights of the least loss that was found; not worse than `start`.

    Args:
        lists: what to choose from.
        loss: of the sums over the chosen hypotheses.
        start: `[D]` weights to begin with.
        restarts: random starts besides.
        seed: of starts and directions.
        tell: receives the number of starts done and the least loss, after each.
    """
    generator = np.random.default_rng(seed)
    # In units of how much a feature varies within a list, so that random directions mean something.
    first = np.cumsum(lists.sizes) - lists.sizes
    means = np.add.reduceat(lists.features, first) / lists.sizes[:, None]
    deviations = lists.features - np.repeat(means, lists.sizes, axis=0)
    scale = np.sqrt((deviations**2).mean(axis=0))
    free = scale > _SCALE_FLOOR
    unit = np.where(free, scale, 1.0)
    scaled = Lists(deviations / unit * free, lists.statistics, lists.sizes).take(np.flatnonzero(lists.sizes > 1))
    settled = lists.add(first[lists.sizes == 1])  # there is no choice in lists of one hypothesis
    best, least = start, float(loss(lists.add(lists.choose(start))))
    for number in range(restarts + 1 if free.any() else 0):
        weights = start * unit if number == 0 else generator.normal(size=len(start)) * free
        found = _descend(scaled, lambda sums: loss(sums + settled), weights, free, generator) / unit
        reached = float(loss(lists.add(lists.choose(found))))  # by the features as they are
        if reached < least:
            best, least = found, reached
        if tell is not None:
            tell(number + 1, least)
    return Tuned(_normalise(best), least)


def _normalise(weights: np.ndarray) -> np.ndarray:
    total = np.abs(weights).sum()
    return weights / total if total > 0 else weights


def _descend(
    lists: Lists, loss: Loss, weights: np.ndarray, free: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Line searches along every feature and as many random directions, until none of them helps."""
    weights, reached = weights.copy(), float(loss(lists.add(lists.choose(weights))))
    axes = np.eye(len(weights))[free]
    for _ in range(_MOST_PASSES):
        before = reached
        random = generator.normal(size=(len(axes), len(axes))) @ axes
        for direction in np.concatenate([generator.permutation(axes), random]):
            step, _ = search_line(lists, loss, weights, direction)
            moved = weights + step * direction
            now = float(loss(lists.add(lists.choose(moved))))
            if now < reached:  # counted again: an interval may be as narrow as rounding
                weights, reached = moved, now
                weights = weights / max(np.abs(weights).max(), _SCALE_FLOOR)
        if reached >= before:
            break
    return weights


def search_line(lists: Lists, loss: Loss, weights: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """The best step along a line, exactly.

    Returns:
        The middle of the interval of steps with the least loss, and that loss. Of equal intervals the one that holds
        0, else the widest; an open one is entered by 1, or by its end's size.
    """
    corners, changes, sums = find_corners(lists, weights, direction)
    order = np.argsort(corners, kind="stable")
    corners = corners[order]
    sums = sums + np.concatenate([np.zeros((1, changes.shape[1])), np.cumsum(changes[order], axis=0)])
    low, high = np.append(-np.inf, corners), np.append(corners, np.inf)
    size = np.maximum(1.0, np.minimum(np.abs(low), np.abs(high)))
    wide = high - low > _NARROWEST * np.where(np.isfinite(size), size, 1.0)
    losses = np.where(wide, loss(sums), np.inf)
    best = np.flatnonzero(losses == losses.min())
    holds = best[(low[best] < 0) & (high[best] > 0)]
    chosen = int(holds[0] if len(holds) else best[np.argmax(high[best] - low[best])])
    if len(holds):
        return 0.0, float(losses[chosen])
    left, right = float(low[chosen]), float(high[chosen])
    if np.isinf(left) or np.isinf(right):
        step = right - max(1.0, abs(right)) if np.isinf(left) else left + max(1.0, abs(left))
    else:
        step = (left + right) / 2
    return step, float(losses[chosen])


def find_corners(lists: Lists, weights: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the upper envelopes of all lists turn, along a line.

    From the left, each list begins with its flattest line, the one of the least slope; the next is that which cuts it
    first, and so on, for all lists at once.

    Returns:
        The steps `[E]` of all corners, in no order; the changes `[E, M]` of the sums there; and the sums `[M]` at the
        far left.
    """
    slopes, heights = (lists.features @ direction)[lists.rows], (lists.features @ weights)[lists.rows]
    rows, places = lists.rows, np.arange(len(lists.rows))
    flattest = slopes == slopes.min(axis=1, keepdims=True)
    now = np.where(flattest, heights, -np.inf).argmax(axis=1)
    begin = lists.add(rows[places, now])
    corners, changes = [np.zeros(0)], [np.zeros((0, lists.statistics.shape[1]))]
    while len(rows):
        rise = slopes - slopes[places, now][:, None]
        steeper = rise > 0
        steps = np.where(steeper, (heights[places, now][:, None] - heights) / np.where(steeper, rise, 1.0), np.inf)
        nearest = steps.min(axis=1)
        after = np.where(steps == nearest[:, None], slopes, -np.inf).argmax(axis=1)  # of lines that meet: the steepest
        turns = np.isfinite(nearest)
        corners.append(nearest[turns])
        changes.append((lists.statistics[rows[places, after]] - lists.statistics[rows[places, now]])[turns])
        slopes, heights, rows, now = slopes[turns], heights[turns], rows[turns], after[turns]
        places = np.arange(len(rows))
    return np.concatenate(corners), np.concatenate(changes), begin


def find_oracle(lists: Lists, loss: Loss, *, start: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Rows `[G]` of the choice with the least loss that exchanges of single hypotheses reach.

    For errors that are a sum over sentences (WER, CER) that is the best choice there is; for BLEU and chrF, which are
    not, it may be a little worse than the best.

    Args:
        lists: what to choose from.
        loss: of the sums over the chosen hypotheses.
        start: rows to begin with; the first of every list by default.
    """
    chosen = lists.rows[:, 0].copy() if start is None else np.array(start)
    sums = lists.add(chosen)
    least = float(loss(sums))
    open_lists = np.flatnonzero(lists.sizes > 1)
    for _ in range(_MOST_PASSES):
        before = least
        for n in open_lists:
            rows = lists.rows[n, : lists.sizes[n]]
            tried = sums - lists.statistics[chosen[n]] + lists.statistics[rows]
            losses = loss(tried)
            place = int(losses.argmin())
            if losses[place] < least:
                chosen[n], sums, least = rows[place], tried[place], float(losses[place])
        if least >= before:
            break
    return chosen


def fit_totals(lists: Lists, totals: np.ndarray) -> np.ndarray:
    """Weights `[D]` by which the totals `[N]` of each list follow from its features, up to a constant of the list.

    Least squares; exact where a system has written all of its features, and a start for `tune` in any case.
    """
    first = np.cumsum(lists.sizes) - lists.sizes
    sides = []
    for side in (lists.features, totals[:, None]):
        means = np.add.reduceat(side, first) / lists.sizes[:, None]
        sides.append(side - np.repeat(means, lists.sizes, axis=0))
    return np.linalg.lstsq(sides[0], sides[1][:, 0], rcond=None)[0]


def cross_validate(lists: Lists, loss: Loss, start: np.ndarray, *, restarts: int = RESTARTS, seed: int = 0) -> float:
    """The loss where every list is chosen from by weights that were tuned on other lists.

    The lists are halved, even numbers and odd ones; each half is tuned on, and its weights choose in the other.
    """
    sums = np.zeros(lists.statistics.shape[1])
    for half in range(2):
        here, there = (lists.take(np.arange(begin, len(lists.sizes), 2)) for begin in (half, 1 - half))
        tuned = tune(here, loss, start, restarts=restarts, seed=seed)
        sums += there.add(there.choose(tuned.weights))
    return float(loss(sums))
