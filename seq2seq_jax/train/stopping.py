"""Early stopping: the dev scores of a run so far, and whether they have stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

BEST: dict[str, Literal["max", "min"]] = {"bleu": "max", "loss": "min", "wer": "min"}
"""The scores that can rank steps, and which end of each is the good one."""


class Evaluations:
    """What every evaluation of a run came to; travels in its checkpoints, so that kills change nothing.

    Args:
        metric: key of `BEST`.
        patience: evaluations in a row without a better score that end the training; 0: it is never ended.
        past: what `record` of an earlier part of the run said, if there was one.
    """

    def __init__(self, metric: str = "bleu", *, patience: int = 0, past: Mapping[str, Any] | None = None):
        self.metric, self.patience = metric, patience
        found = past or {}
        self._scores: list[dict[str, float]] = [dict(scores) for scores in found.get("scores", ())]
        self._since = int(found.get("since", 0))

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        """Notes the scores of a step."""
        self._scores.append({"step": step, **{name: float(scores[name]) for name in BEST if name in scores}})

    def record(self) -> dict[str, Any]:
        """All of it, as JSON; scores that are not finite are left out."""
        finite = [{name: value for name, value in s.items() if math.isfinite(value)} for s in self._scores]
        return {"scores": finite, "since": self._since}

    def be_patient_again(self, step: int) -> None:
        """Counts from `step` on: a run that was ended, and is to take more steps, is given the chance to."""
        self._since = step

    def is_over(self) -> bool:
        """Whether training is to end."""
        return 0 < self.patience <= self._count_worse()

    def describe(self) -> str:
        """Why it is over."""
        best = self.best()
        sought = f"better than {best[1]:.3f} of step {best[0]}" if best else "finite"
        return f"{self.metric} on dev was not {sought} in {self._count_worse()} evaluations (config.train.patience)"

    def best(self) -> tuple[int, float] | None:
        """Step and value of the best score; the first one of equals."""
        return find_best(self._scores, self.metric)

    def _count_worse(self) -> int:
        """Evaluations after the best one, in those that count."""
        best = self.best()
        last = max(self._since, best[0] if best else 0)
        return sum(1 for scores in self._scores if scores["step"] > last)


def find_best(scores: Sequence[Mapping[str, float]], metric: str) -> tuple[int, float] | None:
    """Step and value of the best of some scores; the first one of equals, None where none is finite."""
    sign = 1.0 if BEST[metric] == "max" else -1.0
    finite = [(s["step"], s[metric]) for s in scores if math.isfinite(s.get(metric, math.nan))]
    best = max(finite, key=lambda item: (sign * item[1], -item[0]), default=None)
    return (int(best[0]), best[1]) if best else None
