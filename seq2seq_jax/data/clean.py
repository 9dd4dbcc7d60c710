"""Leaves out bad training pairs: too long, unlike in length, copied, in another script or language, repeated.

    lines ── clean_pairs ──▶ a reason for each pair, 0 where it stays
    pairs that stay ── hash_pairs ──▶ 64 bits for each ── mark_duplicates, over all corpora ──▶ the later ones

Everything but duplicates is judged pair by pair, so that a corpus of any size can be cleaned piece by piece.

Sentences a second on one core, pairs of Multi30k (60 characters a side): length, ratio and script together
150 thousand, copies 330, hashes 220, language 2.6 thousand.

The language is judged by py3langid (the extra [clean]; BSD licence, pure Python, 4.5 MB model inside, no network).
Measured on 4,000 lines each, share of lines that pass with a probability of at least 0.1 (0.5) of their own language,
and share of the other side's lines that pass as it: Multi30k en 100.0 % (99.6), of de 0.00 % (0.00); de 100.0 (99.8),
0.00 (0.00); Tatoeba, short colloquial lines, en 99.3 (92.6), 0.13 (0.00); de 99.5 (96.2), 0.03 (0.00). So
`language` = 0.1 is a good value. The others, on the same lines: fastText's lid.176 (18 to 35 thousand lines a second;
its bindings have had no release for two years) 99.7 to 100 %, up to 1.3 % of the other side at 0.1; CLD2 (100
thousand a second) 94.6 to 99.9 %, up to 0.8 %; lingua (50 to 700 a second) 93.6 to 100 %, up to 0.4 %.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seq2seq_jax.data.scripts import measure_lines, name_language, scripts_of, share_of_letters
from seq2seq_jax.data.sources import ParallelText, select_pairs
from seq2seq_jax.data.whole_file import write_whole
from seq2seq_jax.errors import UserError

REASONS = ("kept", "blank", "too long", "ratio", "copy", "script", "language", "duplicate")
KEPT, BLANK, TOO_LONG, RATIO, COPY, SCRIPT, LANGUAGE, DUPLICATE = range(len(REASONS))
SAMPLED = 20  # dropped pairs a reason that a report shows
_LINES_AT_ONCE = 50_000
_JUDGED_CHARACTERS = 200  # of a line, for its language

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleanRules:
    """Which pairs to leave out: the keys of config.clean; 0 and False are off.

    Attributes:
        max_chars: either side has more characters.
        max_ratio: the longer side has more than so many times the characters of the shorter one, where a Han
            character counts 3, kana and Hangul 2 (`scripts.measure_lines`). Of Tatoeba in
            English and German 3 leaves out 0.013 %, 2 leaves out 0.6 %.
        duplicates: the pair was there before, in this or an earlier corpus, and no other rule left it out there.
        copies: both sides are equal.
        letters: least share of the letters of a side that must be of its language's scripts.
        language: least probability that a side is in its language.
    """

    max_chars: int = 0
    max_ratio: float = 0.0
    duplicates: bool = False
    copies: bool = False
    letters: float = 0.0
    language: float = 0.0

    @property
    def active(self) -> bool:
        """Whether any rule is on."""
        return self != CleanRules()


def clean_pairs(
    source_lines: Sequence[str],
    target_lines: Sequence[str],
    rules: CleanRules,
    source_language: str,
    target_language: str,
) -> np.ndarray:
    """Says for each pair why it is left out, by the first rule that it breaks; a blank side always is one.

    Duplicates are not judged here: see `hash_pairs` and `mark_duplicates`.

    Args:
        source_lines, target_lines: in step.
        rules: what to check.
        source_language, target_language: codes. One that is not known turns its check off, with one warning.

    Returns:
        `[N]` int8: places in `REASONS`, 0 for a pair that stays.

    Raises:
        UserError: `rules.language` is set and the extra [clean] is not installed.
    """
    if len(source_lines) != len(target_lines):
        raise ValueError(f"There must be as many sources as targets, but are {len(source_lines)}, {len(target_lines)}.")
    sides = ((source_lines, source_language), (target_lines, target_language))
    parts = [np.zeros(0, np.int8)]
    for begin in range(0, len(source_lines), _LINES_AT_ONCE):
        parts.append(_judge([(lines[begin : begin + _LINES_AT_ONCE], code) for lines, code in sides], rules))
    return np.concatenate(parts)


def hash_pairs(source_lines: Sequence[str], target_lines: Sequence[str]) -> np.ndarray:
    """64 bits of blake2b of each pair, with blanks and the spelling of accents (NFC) evened out.

    Two different pairs among N agree by chance with a probability of about N^2 / 2^65: 3.5e-5 at 36 million.

    Returns:
        `[N]` uint64.
    """
    blake = hashlib.blake2b
    digests = b"".join(
        blake(f"{_even(a)}\n{_even(b)}".encode("utf-8", "replace"), digest_size=8).digest()
        for a, b in zip(source_lines, target_lines, strict=True)
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mark_duplicates(hashes: np.ndarray) -> np.ndarray:
    """True for each hash that was there before; the first of equal ones is False. `[N]` bool."""
    again = np.ones(len(hashes), bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return again


def count_reasons(reasons: np.ndarray) -> dict[str, int]:
    """How many pairs there are of each reason, "kept" first; reasons that do not occur are left out."""
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    return {name: count for name, count in zip(REASONS, counts, strict=True) if count or name == "kept"}


def describe_drops(counts: Mapping[str, int]) -> str:
    """One line of counts, "left out 120 of 29,000 pairs (0.4 %): 80 ratio, 40 duplicate"."""
    total, kept = sum(counts.values()), counts.get("kept", 0)
    if kept == total:
        return f"all {total:,} pairs are kept"
    why = ", ".join(f"{counts[name]:,} {name}" for name in REASONS[1:] if counts.get(name))
    return f"left out {total - kept:,} of {total:,} pairs ({(total - kept) / total:.1%}): {why}"


@dataclass
class DropSample:
    """The first pairs that were left out for each reason, for a person to look at.

    Attributes:
        rows: reason, corpus, number of the line (from 1), source, target.
    """

    rows: list[dict[str, str | int]] = field(default_factory=list)
    _left: np.ndarray = field(default_factory=lambda: np.full(len(REASONS), SAMPLED))

    def add(
        self, reasons: np.ndarray, source: Sequence[str], target: Sequence[str], *, corpus: str, start: int = 0
    ) -> None:
        """Takes from pairs that follow those added before; the first of them is pair `start` of its corpus."""
        for reason in range(1, len(REASONS)):
            for i in np.flatnonzero(reasons == reason)[: self._left[reason]].tolist():
                self._left[reason] -= 1
                place = {"corpus": corpus, "line": start + i + 1}
                self.rows.append({"reason": REASONS[reason], **place, "source": source[i], "target": target[i]})

    def write(self, path: Path) -> None:
        """Writes JSON Lines, in order of reason; the file appears whole."""
        rows = sorted(self.rows, key=lambda row: REASONS.index(str(row["reason"])))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode("utf-8", "replace"))


def clean_text(
    text: ParallelText,
    rules: CleanRules,
    source_language: str,
    target_language: str,
    report_path: Path | None = None,
) -> ParallelText:
    """Cleans one corpus in memory; see `clean_texts`."""
    return clean_texts([text], rules, [(source_language, target_language)], report_path)[0]


def clean_texts(
    texts: Sequence[ParallelText],
    rules: CleanRules,
    languages: Sequence[tuple[str, str]],
    report_path: Path | None = None,
) -> list[ParallelText]:
    """Cleans the training corpora of a run; a pair that an earlier corpus has is a duplicate in a later one.

    Args:
        texts: corpora with both sides, in the order of data.train.
        rules: what to check; with none the texts come back as they are.
        languages: codes of source and target of each.
        report_path: of a sample of what was left out, as JSON Lines; none by default.

    Raises:
        UserError: nothing is left of a corpus.
    """
    if not rules.active:
        return list(texts)
    targets = [text.target if text.target is not None else [] for text in texts]
    reasons = [
        clean_pairs(text.source, target, rules, *codes)
        for text, target, codes in zip(texts, targets, languages, strict=True)
    ]
    if rules.duplicates:
        stay = [np.flatnonzero(why == KEPT) for why in reasons]
        hashes = [
            hash_pairs([text.source[i] for i in places.tolist()], [target[i] for i in places.tolist()])
            for text, target, places in zip(texts, targets, stay, strict=True)
        ]
        again = np.split(mark_duplicates(np.concatenate(hashes)), np.cumsum([len(part) for part in hashes])[:-1])
        for why, places, repeated in zip(reasons, stay, again, strict=True):
            why[places[repeated]] = DUPLICATE
    sample, cleaned = DropSample(), []
    for text, target, why in zip(texts, targets, reasons, strict=True):
        sample.add(why, text.source, target, corpus=text.name)
        told = describe_drops(count_reasons(why))
        kept = np.flatnonzero(why == KEPT)
        _log.log(logging.INFO if len(kept) == len(text) else logging.WARNING, "%s: %s.", text.name, told)
        if not len(kept):
            raise UserError(f"{text.name}: config.clean {told}; nothing is left to train on: loosen its rules.")
        cleaned.append(text if len(kept) == len(text) else select_pairs(text, kept.tolist(), text.name))
    if report_path is not None:
        sample.write(report_path)
    return cleaned


def _judge(sides: Sequence[tuple[Sequence[str], str]], rules: CleanRules) -> np.ndarray:
    """Reasons of one block of pairs; each rule looks only at those that stand."""
    (source, _), (target, _) = sides
    reasons = np.zeros(len(source), np.int8)

    def drop(bad: np.ndarray, reason: int) -> None:
        reasons[(reasons == KEPT) & bad] = reason

    for lines, _ in sides:
        drop(np.fromiter((not line.strip() for line in lines), bool, len(lines)), BLANK)
    if rules.max_chars:
        for lines, _ in sides:
            drop(np.fromiter(map(len, lines), np.int64, len(lines)) > rules.max_chars, TOO_LONG)
    if rules.max_ratio:
        a, b = (measure_lines(lines) for lines, _ in sides)
        drop(np.maximum(a, b) > rules.max_ratio * np.minimum(a, b), RATIO)
    if rules.copies:
        equal = (_even(a) == _even(b) for a, b in zip(source, target, strict=True))
        drop(np.fromiter(equal, bool, len(source)), COPY)
    if rules.letters:
        for lines, code in sides:
            if scripts := _find_scripts(code):
                drop(share_of_letters(lines, scripts) < rules.letters, SCRIPT)
    if rules.language:
        for lines, code in sides:
            if judge := _find_judge(code):
                for i in np.flatnonzero(reasons == KEPT).tolist():
                    if judge(lines[i][:_JUDGED_CHARACTERS]) < rules.language:
                        reasons[i] = LANGUAGE
    return reasons


def _even(line: str) -> str:
    """The line with single blanks, none at its ends, and composed accents."""
    return unicodedata.normalize("NFC", " ".join(line.split()))


@functools.cache
def _find_scripts(code: str) -> tuple[str, ...]:
    scripts = scripts_of(code)
    if not scripts:
        _log.warning("config.clean.letters: it is not known which script %r is written in; not checked.", code)
    return scripts


@functools.cache
def _find_judge(code: str) -> Callable[[str], float] | None:
    """The function that gives the probability of a language, None where the model does not know it."""
    identifier = _load_identifier()
    name = name_language(code)
    if name not in identifier.labels:
        _log.warning("config.clean.language: the model for languages does not know %r; not checked.", code)
        return None
    return lambda line: dict(identifier.rank(line))[name]


@functools.cache
def _load_identifier():  # type: ignore[no-untyped-def]  # a class of an optional package
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        cure = "pip install seq2seq_jax[clean], or set config.clean.language=0"
        raise UserError(
            f"config.clean.language needs py3langid 0.4 or later, which is not installed: {cure}."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
