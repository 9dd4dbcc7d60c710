"""Word and character error rates of transcripts, and the alignments that they are counted from.

An alignment turns a reference into a hypothesis by as few substitutions S, deletions D and insertions I of words as
can be (Levenshtein 1966); H words are hit:

    WER = 100 (S + D + I) / (S + D + H)             S + D + H words in the reference

over the whole corpus, not a mean over utterances. CER is the same of characters, blanks between words included. Both
are counted by jiwer. Where a reference is empty (nobody speaks), all words of the hypothesis are insertions; where all
references are, jiwer's WER is the count of insertions, here times 100 like any other.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import itertools
import types
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from seq2seq_jax.errors import UserError

Step = tuple[str, str | None, str | None]
"""One step of an alignment: "hit", "substitution", "deletion" or "insertion", the word of the reference, and that of
the hypothesis; a deletion has none of the hypothesis, an insertion none of the reference."""

KINDS = {"equal": "hit", "substitute": "substitution", "delete": "deletion", "insert": "insertion"}

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060\uff07", "'"))


def normalise(text: str) -> str:
    """The text as words that can be spoken: what `normaliser="words"` counts.

    In this order: typographic apostrophes become `'`; Unicode NFKC; lower case; marks that take no room (soft hyphens,
    joiners) are dropped; punctuation, symbols and control characters become blanks, all but an apostrophe between two
    letters or digits; blanks are squeezed to one. Accents and letters of all scripts stay; numbers are not spelled out.

    >>> normalise("  Don’t — “STOP”, twenty-one!")
    "don't stop twenty one"
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    text = unicodedata.normalize("NFKC", text.lower()).translate(_APOSTROPHES)
    text = unicodedata.normalize("NFKC", "".join(c for c in text if unicodedata.category(c) != "Cf"))
    kept = [c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text]
    for n, c in enumerate(kept):
        if c == "'" and not (0 < n < len(kept) - 1 and _is_spoken(kept[n - 1]) and _is_spoken(kept[n + 1])):
            kept[n] = " "
    return " ".join("".join(kept).split())


def _is_spoken(c: str) -> bool:
    return c not in " '"


def keep_text(text: str) -> str:
    """The text as it is, but for blanks: what `normaliser="none"` counts."""
    return " ".join(text.split())


NORMALISERS: dict[str, Callable[[str], str]] = {"words": normalise, "none": keep_text}


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One reference, aligned with what was recognised.

    Attributes:
        number: its place in the corpus, from 0.
        steps: the alignment, from left to right.
    """

    number: int
    steps: tuple[Step, ...]

    def count(self, kind: str) -> int:
        """How many steps are of a kind."""
        return sum(step[0] == kind for step in self.steps)

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return len(self.steps) - self.count("hit")

    @property
    def words(self) -> int:
        """Words of the reference."""
        return len(self.steps) - self.count("insertion")

    @property
    def wer(self) -> float:
        """In percent; 100 for each inserted word where the reference is empty, as jiwer counts."""
        return 100.0 * self.errors / max(1, self.words)


def speech_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, normaliser: str = "words"
) -> dict[str, float | int | str]:
    """Scores a whole corpus of transcripts against one reference each.

    Args:
      hypotheses: Transcripts as plain text, one an utterance; may be empty.
      references: As many references; may be empty.
      normaliser: A key of `NORMALISERS`: what both sides go through before they are compared.

    Returns:
      `wer`, `cer` and `sentence_error_rate` in percent; the counts `substitutions`, `deletions`, `insertions`, `hits`
      of words, `words` of the references, `character_errors`, `characters` and `sentences`; and `signature`, how they
      were computed.

    Raises:
      ValueError: if the counts differ, there are no lines, or there is no such normaliser.
      UserError: if jiwer is not installed.
    """
    jiwer = load_jiwer()
    hypotheses, references = _prepare(hypotheses, references, normaliser)
    words = jiwer.process_words(references, hypotheses)
    letters = jiwer.process_characters(references, hypotheses)
    wrong = sum(told != wanted for told, wanted in zip(hypotheses, references, strict=True))
    return {
        "wer": 100.0 * words.wer,
        "cer": 100.0 * letters.cer,
        "sentence_error_rate": 100.0 * wrong / len(references),
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "hits": words.hits,
        "words": words.hits + words.substitutions + words.deletions,
        "character_errors": letters.substitutions + letters.deletions + letters.insertions,
        "characters": letters.hits + letters.substitutions + letters.deletions,
        "sentences": len(references),
        "signature": f"normaliser:{normaliser}|jiwer:{importlib.metadata.version('jiwer')}",
    }


def align_words(hypotheses: Sequence[str], references: Sequence[str], *, normaliser: str = "words") -> list[Utterance]:
    """Aligns the words of each transcript with those of its reference, as `speech_scores` counts them.

    Args and errors: those of `speech_scores`.
    """
    jiwer = load_jiwer()
    result = jiwer.process_words(*reversed(_prepare(hypotheses, references, normaliser)))
    rows = zip(result.references, result.hypotheses, result.alignments, strict=True)
    return [Utterance(n, _list_steps(*row)) for n, row in enumerate(rows)]


def worst(utterances: Sequence[Utterance], count: int | None = None) -> list[Utterance]:
    """The utterances with the most errors, at most `count`; of equally many those with the higher rate first."""
    return sorted(utterances, key=lambda one: (-one.errors, -one.wer, one.number))[:count]


def count_confusions(
    utterances: Sequence[Utterance], count: int | None = None
) -> dict[str, list[tuple[str, str, int]]]:
    """What is mistaken most often.

    Returns:
      "substitution", "deletion", "insertion" → at most `count` rows (word of the reference, word of the hypothesis,
      times), the most frequent first; a word that is not there is "".
    """
    rows: dict[str, list[tuple[str, str, int]]] = {}
    for kind in ("substitution", "deletion", "insertion"):
        tally = collections.Counter(
            (wanted or "", told or "") for one in utterances for name, wanted, told in one.steps if name == kind
        )
        ranked = sorted(tally.items(), key=lambda item: (-item[1], item[0]))[:count]
        rows[kind] = [(*pair, times) for pair, times in ranked]
    return rows


def find_interval(utterances: Sequence[Utterance], *, resamples: int = 1000, seed: int = 1) -> float:
    """Half of the 95 % confidence interval of the WER, in percent: utterances drawn with replacement.

    Bisani & Ney 2004, Bootstrap Estimates for Confidence Intervals in ASR Performance Evaluation. Utterances count as
    independent: those of one speaker are less so than that, and the true interval is wider.
    """
    errors = np.array([one.errors for one in utterances], dtype=np.float64)
    words = np.array([one.words for one in utterances], dtype=np.float64)
    draw = np.random.default_rng(seed)
    rates = np.empty(resamples)
    for n in range(resamples):  # one at a time: a large corpus stays small in memory
        chosen = draw.integers(len(errors), size=len(errors))
        rates[n] = 100.0 * errors[chosen].sum() / max(1.0, words[chosen].sum())
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(high - low) / 2


def load_jiwer() -> types.ModuleType:
    """The library that counts.

    Raises:
        UserError: it is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise UserError(
            "WER and CER need jiwer, which is not installed: run `pip install 'seq2seq_jax[speech]'`."
        ) from error
    return jiwer


def _prepare(hypotheses: Sequence[str], references: Sequence[str], normaliser: str) -> tuple[list[str], list[str]]:
    """Both sides as they are compared: hypotheses, then references."""
    if len(hypotheses) != len(references):
        raise ValueError(
            f"`hypotheses` and `references` must be equally many lines, "
            f"but are {len(hypotheses)} and {len(references)} instead."
        )
    if not references:
        raise ValueError("`references` must hold at least one line, but is empty instead.")
    if normaliser not in NORMALISERS:
        raise ValueError(f"`normaliser` must be one of {', '.join(NORMALISERS)}, but is {normaliser!r} instead.")
    apply = NORMALISERS[normaliser]
    return [apply(line) for line in hypotheses], [apply(line) for line in references]


def _list_steps(wanted: Sequence[str], told: Sequence[str], chunks: Sequence[Any]) -> tuple[Step, ...]:
    """jiwer's runs of equal kind, word by word."""
    steps: list[Step] = []
    for chunk in chunks:
        before = wanted[chunk.ref_start_idx : chunk.ref_end_idx]
        after = told[chunk.hyp_start_idx : chunk.hyp_end_idx]
        steps += [(KINDS[chunk.type], *pair) for pair in itertools.zip_longest(before, after)]
    return tuple(steps)
