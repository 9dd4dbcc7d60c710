"""Which checkpoints of a run stay: the newest, the best, and one for every so many hours of training.

All of it follows from what the verified steps on the disk say of themselves, so that a run which was interrupted keeps
the same ones as a run that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from seq2seq_jax.errors import UserError

Records = Mapping[int, Mapping[str, Any]]
"""Step to what was saved beside its arrays (`meta`, `metrics`), of the steps that have a manifest."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """What to keep.

    Attributes:
        last: how many of the newest verified steps.
        best: how many of the best by `metric` besides.
        hours: and the first step of every so many hours of training; 0 is none.
        metric: the key in `metrics` that ranks steps.
        mode: whether a large ("max") or a small ("min") value is good.
    """

    last: int = 2
    best: int = 1
    hours: float = 0.0
    metric: str = "bleu"
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError(f"keep_last must be at least 1, but is {self.last}: a run could not resume")

    def rank(self, records: Records) -> list[int]:
        """The steps that have a finite score, the best first, the newer one of equals before the older."""
        scores = {step: record["metrics"].get(self.metric, math.nan) for step, record in records.items()}
        finite = [step for step, score in scores.items() if math.isfinite(score)]
        sign = 1.0 if self.mode == "max" else -1.0
        return sorted(finite, key=lambda step: (sign * scores[step], step), reverse=True)

    def find_old(self, steps: Sequence[int], records: Records) -> list[int]:
        """Which of `steps` can go: older than the newest verified ones, not among the best, first of no hours."""
        verified = sorted(records)
        if len(verified) < self.last:
            return []
        kept = {*self.rank(records)[: self.best], *self._find_firsts(records)}
        return [step for step in steps if step < verified[-self.last] and step not in kept]

    def _find_firsts(self, records: Records) -> set[int]:
        """The first step after each `hours` of training."""
        if not self.hours:
            return set()
        firsts: dict[float, int] = {}
        for step in sorted(records):
            seconds = records[step]["meta"].get("seconds")
            if isinstance(seconds, int | float) and math.isfinite(seconds):
                firsts.setdefault(seconds // (3600 * self.hours), step)
        return {step for number, step in firsts.items() if number > 0}
