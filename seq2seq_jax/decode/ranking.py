"""How a beam search ranks hypotheses, and when it has seen enough: rules by name, and those of other projects.

The score of an output Y, of |Y| tokens with eos, is

    score(Y) = log P(Y) / lp(|Y|) + γ |Y| + cp(Y)

    lp(n) = 1                    "none", "bonus"
            ((5 + n) / 6)^α      "gnmt"      Wu et al. 2016 (Google's Neural Machine Translation System), equation 14
            n^α                  "average"   of log-probabilities a token, where α = 1
    γ     word bonus, the rule of "bonus" (He et al. 2016, Improved NMT with SMT Features); may go with the others
    cp(Y) = β Σᵢ log min(Σⱼ pᵢⱼ, 1)   i over source positions, j over target positions: their attention (Wu et al.)

A source position that never got attention counts as the smallest normal float32. docs/search.md compares the
rules with those of other projects.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.interfaces import Array

Length = Literal["none", "gnmt", "average", "bonus"]
Stop = Literal["exact", "first", "heuristic", "never"]
Unfinished = Literal["last", "compete", "end"]


@struct.dataclass
class LengthTerms:
    """What the lengths of outputs do to their scores."""

    divisors: Array  # [...] float32, lp
    bonuses: Array  # [...] float32, γ |Y|

    def __getitem__(self, lengths: Array) -> LengthTerms:
        """Of a table, the entries for some lengths; beyond its end the last one."""
        return LengthTerms(self.divisors[lengths], self.bonuses[lengths])

    def score(self, log_probs: Array) -> Array:
        """The score without the coverage penalty."""
        return log_probs / self.divisors + self.bonuses


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What is best, what may end, and when to stop.

    Attributes:
        length: the rule lp by name; see the module.
        length_penalty: α of "gnmt" and "average"; above 0 it favours long outputs, below 0 short ones.
        word_bonus: γ, added for every token.
        coverage_penalty: β, 0 for none; needs a step with attention.
        prune: the beamsize of Wu et al. 2016, section 7, 0 for none: a token is dropped if its log-probability is
            so far below that of the best token of the same step and row, and an output if its score is so far below
            the best score of those that ended.
        stop: when a row is done before its longest output:
            "exact": when no live hypothesis can enter the n best any more. Changes no result, as long as no step
                returns log_probs above 0;
            "first": when as many have ended as there are beams; those that ended first stay;
            "heuristic": when so many have ended and the best live one, scored at its present length, is no better
                than the worst of them;
            "never": only when no live hypothesis is left.
        unfinished: what becomes of hypotheses at the longest output of their row:
            "last": they come after all that ended, in the slots that are left;
            "compete": they are ranked among those that ended;
            "end": there are none, as nothing but eos can be the last token.
        end_among: a hypothesis ends where its eos is among so many times the beam's size of best continuations of
            its row. (At the longest output, among so many of its own continuations.)
    """

    length: Length = "none"
    length_penalty: float = 0.0
    word_bonus: float = 0.0
    coverage_penalty: float = 0.0
    prune: float = 0.0
    stop: Stop = "exact"
    unfinished: Unfinished = "last"
    end_among: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("length", Length), ("stop", Stop), ("unfinished", Unfinished)):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise ValueError(f"`{name}` must be one of {get_args(kind)}, but is {value!r} instead.")
        for name in ("coverage_penalty", "prune"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but is {getattr(self, name)} instead.")
        if self.end_among < 1:
            raise ValueError(f"`end_among` must be at least 1, but is {self.end_among} instead.")

    def terms(self, max_len: int) -> LengthTerms:
        """What lengths 0 to max_len + 1 do to a score: a table, so that no batch or device rounds them differently."""
        lengths = np.arange(max_len + 2, dtype=np.float64)
        powers = {"gnmt": (5.0 + lengths) / 6.0, "average": np.maximum(lengths, 1.0)}
        divisors = powers[self.length] ** self.length_penalty if self.length in powers else np.ones_like(lengths)
        bonuses = self.word_bonus * lengths
        return LengthTerms(jnp.asarray(divisors, jnp.float32), jnp.asarray(bonuses, jnp.float32))

    def penalise_coverage(self, coverage: Array, source_mask: Array) -> Array:
        """cp(Y), at most 0, `[B, K]`, from the attention `[B, K, S]` summed over the steps."""
        logs = jnp.log(jnp.clip(coverage, jnp.finfo(jnp.float32).tiny, 1.0))
        return self.coverage_penalty * jnp.sum(jnp.where(source_mask[:, None, :], logs, 0.0), axis=-1)

    def drop(self, scores: Array, best: Array) -> Array:
        """The scores, -inf where they lie too far below the best one."""
        return jnp.where(scores < best - self.prune, -jnp.inf, scores) if self.prune else scores

    def is_settled(
        self, best: Array, ended: Array, *, now: LengthTerms, shortest: LengthTerms, longest: LengthTerms
    ) -> Array:
        """Where no live hypothesis is left, or none that matters by the rule of `stop`.

        A live hypothesis can only lose log-probability, and its coverage penalty is at most 0. So log P now, over
        the most favourable lp and with the most favourable bonus that may still come, bounds its score from above.
        Both are monotone in the length: the shortest or the longest is the most favourable.

        Args:
          best: `[B, G]` float32, the largest log P of the live hypotheses; -inf where none is left.
          ended: `[B, G, K]` float32, the scores of those that ended; -inf for empty slots.
          now: `[B, 1]`, for the length that all live hypotheses have.
          shortest: `[B, 1]`, for the shortest output that may still come.
          longest: `[B, 1]`, for the longest.

        Returns:
          `[B, G]` bool.
        """
        settled = best == -jnp.inf
        if self.stop == "never":
            return settled
        worst, top = jnp.min(ended, axis=-1), jnp.max(ended, axis=-1)
        bound = jnp.maximum(best / shortest.divisors, best / longest.divisors)
        bound = bound + jnp.maximum(shortest.bonuses, longest.bonuses)
        if self.prune:
            settled |= bound < top - self.prune
        if self.stop == "first":
            return settled | (worst > -jnp.inf)
        if self.stop == "heuristic":
            bound = now.score(best)
        return settled | ((bound <= worst) & (worst > -jnp.inf))


PRESETS: dict[str, Ranking] = {
    "default": Ranking(length="gnmt", length_penalty=0.6, coverage_penalty=0.2),
    "gnmt": Ranking(length="gnmt", length_penalty=0.2, coverage_penalty=0.2, prune=3.0),
    "fairseq": Ranking(length="average", length_penalty=1.0, stop="first", unfinished="end"),
    "tensor2tensor": Ranking(length="gnmt", length_penalty=0.6, end_among=2),
    "huggingface": Ranking(length="average", length_penalty=1.0, stop="heuristic", unfinished="compete"),
}
"""The rules of other projects, with the numbers that they set themselves; docs/search.md compares them."""
