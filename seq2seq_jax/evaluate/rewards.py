"""Scores of single sentences, from 0 to 1: what sequence-level training rewards.

- "chrf": chrF2 of sacreBLEU (Popović 2015), from characters alone.
- "bleu": sacreBLEU's BLEU with exponential smoothing, up to the longest n-gram that there is.
- "gleu": Wu et al. 2016, section 5.2: of all n-grams of 1 to 4 words the share that both sides have, of the
  output's or the reference's, whichever is lower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, CHRF

REWARDS = ("chrf", "bleu", "gleu")

Reward = Callable[[str, str], float]
"""`reward(output, reference) -> score` in [0, 1]."""

_LONGEST = 4  # words of GLEU's longest n-grams


def make_reward(name: str, *, target: str) -> Reward:
    """The reward of a name.

    Args:
        name: one of `REWARDS`.
        target: language code, which chooses BLEU's and GLEU's tokenizer as sacreBLEU does.

    Raises:
        ValueError: for another name.
    """
    if name == "chrf":
        chrf = CHRF()
        return lambda output, reference: float(chrf.sentence_score(output, [reference]).score) / 100.0
    metric = BLEU(trg_lang=target.replace("-", "_").split("_")[0].lower(), effective_order=True)
    if name == "bleu":
        return lambda output, reference: float(metric.sentence_score(output, [reference]).score) / 100.0
    if name == "gleu":
        tokenize = metric.tokenizer
        return lambda output, reference: gleu(tokenize(output).split(), tokenize(reference).split())
    raise ValueError(f"`name` must be one of {', '.join(REWARDS)}, but is {name!r} instead.")


def gleu(output: Sequence[str], reference: Sequence[str]) -> float:
    """GLEU of two lists of words, in [0, 1]; 0 where either is empty."""
    ours, theirs = _count_ngrams(output), _count_ngrams(reference)
    most = max(ours.total(), theirs.total())
    return (ours & theirs).total() / most if ours and theirs else 0.0


def _count_ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[begin : begin + size]) for size in range(1, _LONGEST + 1) for begin in range(len(words) - size + 1)
    )
