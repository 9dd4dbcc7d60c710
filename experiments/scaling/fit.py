"""Fits the power law of loss, L(x) = E + A x^-alpha, and says how sure one may be of it.

    log L  ~  logsumexp(log A - alpha log x, log E)

is fitted with a Huber loss on the residuals of log L (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3; the form
goes back to Kaplan et al. 2020, arXiv 2001.08361, without E). Their L-BFGS is replaced by SciPy's trust-region least
squares, which minimises the same sum and converges further.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

HUBER = 1e-3
"""Residuals of log L up to here count squared, larger ones linearly (Hoffmann et al. 2022)."""

MIN_POINTS = 5
"""Three unknowns need more than three points before an interval says anything."""

_STEEPEST = 3.0
_SEEN = 1e-3
_EXPONENTS = (0.1, 0.3, 0.6, 1.0)
_FLOORS = (0.02, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A fitted value and the central share of its bootstrap distribution."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L(x) = floor + scale x^-exponent.

    Attributes:
        floor: E, the loss that more of x does not remove.
        scale: A.
        exponent: alpha.
        points: how many were fitted.
        share: of the bootstrap fits that an interval holds.
        warnings: what makes the fit doubtful, in plain words.
    """

    floor: Interval
    scale: Interval
    exponent: Interval
    points: int
    share: float
    warnings: tuple[str, ...]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The fitted loss, `[N]`."""
        return self.floor.value + self.scale.value * np.asarray(x, float) ** -self.exponent.value


def fit_power_law(
    x: Sequence[float], loss: Sequence[float], *, resamples: int = 200, share: float = 0.9, seed: int = 0
) -> PowerLaw | str:
    """Fits the law, with intervals from a bootstrap over points; or says in a sentence why it cannot.

    Args:
        x: parameters, compute or data, positive.
        loss: nats a token, positive, in step with x.
        resamples: bootstrap fits.
        share: of them that an interval holds.
        seed: of the bootstrap.
    """
    at, seen = np.asarray(x, float), np.asarray(loss, float)
    different = len(np.unique(at))
    if different < MIN_POINTS:
        return f"no fit: three unknowns need at least {MIN_POINTS} different points, and there are {different}"
    if not (np.isfinite(seen).all() and (seen > 0).all() and (at > 0).all()):
        return "no fit: a loss or a size is not a positive number"
    middle = float(np.exp(np.log(at).mean()))  # sizes around 1, so that A and alpha do not pull at each other
    logs, losses = np.log(at / middle), np.log(seen)
    best = _fit_best(logs, losses)
    rng = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < resamples:
        chosen = rng.integers(0, len(logs), len(logs))
        if len(np.unique(logs[chosen])) > 3:  # fewer points than this leave a free unknown
            drawn.append(_fit_from(logs[chosen], losses[chosen], best).x)
    found = _to_numbers(np.stack([best, *drawn]), middle)  # [1 + resamples, 3]
    found[found[:, 0] < _SEEN * seen.min(), 0] = 0.0  # what is left of E at its lower bound
    tails = 50 * (1 - share), 50 * (1 + share)
    low, high = np.percentile(found[1:], tails, axis=0)
    floor, scale, exponent = (Interval(*map(float, row)) for row in zip(found[0], low, high, strict=True))
    return PowerLaw(floor, scale, exponent, len(at), share, _find_doubts(floor, exponent, at, seen))


def find_frontier(compute: Sequence[float], loss: Sequence[float]) -> list[int]:
    """Indices of the points that no cheaper point beats, from cheap to dear: the loss that a budget can buy."""
    order = sorted(range(len(compute)), key=lambda i: (compute[i], loss[i]))
    kept: list[int] = []
    for i in order:
        if not kept or loss[i] < loss[kept[-1]]:
            kept.append(i)
    return kept


def _fit_best(logs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The best of the fits from several starts: the sum has more than one valley."""
    lowest = float(losses.min())
    starts = [
        np.array([losses.max() + math.log(1 - share), exponent, lowest + math.log(share)])
        for exponent in _EXPONENTS
        for share in _FLOORS
    ]
    return min((_fit_from(logs, losses, start) for start in starts), key=lambda found: found.cost).x


def _fit_from(logs: np.ndarray, losses: np.ndarray, start: np.ndarray):  # noqa: ANN202 - SciPy has no types
    """One fit of (log A, alpha, log E)."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.logaddexp(theta[0] - theta[1] * logs, theta[2]) - losses

    def jacobian(theta: np.ndarray) -> np.ndarray:
        power = theta[0] - theta[1] * logs
        weight = np.exp(power - np.logaddexp(power, theta[2]))  # share of the loss that is no floor
        return np.stack([weight, -weight * logs, 1 - weight], axis=1)

    lower, upper = [-60.0, 0.0, float(losses.min()) - 12.0], [60.0, _STEEPEST, float(losses.max())]
    inside = np.clip(start, np.array(lower) + 1e-9, np.array(upper) - 1e-9)
    exact = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}
    return least_squares(
        residuals, inside, jac=jacobian, bounds=(lower, upper), loss="huber", f_scale=HUBER, max_nfev=300, **exact
    )


def _to_numbers(theta: np.ndarray, middle: float) -> np.ndarray:
    """`[N, 3]` (log A, alpha, log E) around 1 to (E, A, alpha) of the sizes themselves."""
    return np.stack([np.exp(theta[:, 2]), np.exp(theta[:, 0] + theta[:, 1] * math.log(middle)), theta[:, 1]], axis=1)


def _find_doubts(floor: Interval, exponent: Interval, x: np.ndarray, loss: np.ndarray) -> tuple[str, ...]:
    doubts = []
    if x.max() < 10 * x.min():
        doubts.append(f"the points span a factor of {x.max() / x.min():.1f} only")
    if exponent.high > 0.98 * _STEEPEST or exponent.low < 0.02:
        doubts.append("the exponent is not held by these points: its interval reaches the end of what is tried")
    if floor.value == 0:
        doubts.append("no floor E can be seen from here: the law without it fits as well")
    if floor.high - floor.low > 0.5 * loss.min():
        doubts.append("the floor E is hardly held by these points; do not read the law beyond them")
    return tuple(doubts)
