"""The built-in corpus: English, French and German sentences from a synchronous grammar, any number, no download.

A sentence is composed once, as meaning, and rendered three times, so that agreement, word order, cases and the senses
of ambiguous words come out right in each language. The same arguments give the same text on every machine.

The splits differ by what is combined, not by which words occur. Pairs of words (a subject and its verb, a verb and its
object, an adjective and its noun) are dealt to the splits by a hash: no training sentence holds a pair of dev or test,
and every sentence of dev and test holds at least one pair of its own. Sentences of dev and test are longer, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache

from seq2seq_jax.data import phrasebook_english, phrasebook_french, phrasebook_german
from seq2seq_jax.data.phrasebook_composer import Composer
from seq2seq_jax.data.phrasebook_words import Sentence
from seq2seq_jax.errors import UserError

LANGUAGES = ("en", "fr", "de")
SPLITS = ("train", "dev", "test")
MAX_WORDS = {"train": 22, "dev": 26, "test": 26}
"""The longest sentence of a split, in English words."""

_RENDERERS = {"en": phrasebook_english.render, "fr": phrasebook_french.render, "de": phrasebook_german.render}
_SUBORDINATION = {"train": 0.52, "dev": 0.85, "test": 0.85}  # how often a sentence has more than one clause


@cache
def split_of_pair(pair: tuple[str, str]) -> str:
    """The split that owns a pair of words: a tenth of all pairs each for dev and test."""
    digest = hashlib.blake2b("|".join(pair).encode(), digest_size=4).digest()
    share = int.from_bytes(digest, "big") % 10
    return "dev" if share == 0 else "test" if share == 1 else "train"


def _belongs(pairs: list[tuple[str, str]], split: str) -> bool:
    """Whether a sentence with these pairs may stand in a split."""
    own = split == "train"
    for pair in pairs:
        owner = split_of_pair(pair)
        if owner == split:
            own = True
        elif owner != "train":
            return False
    return own


def compose(split: str, *, seed: int = 0) -> Iterator[tuple[Sentence, str]]:
    """Sentences of a split without end, each with its English text; no English text comes twice."""
    key = hashlib.blake2b(f"{split}:{seed}".encode(), digest_size=8).digest()
    composer = Composer(int.from_bytes(key, "big"), subordination=_SUBORDINATION[split])
    seen: set[str] = set()
    while True:
        sentence, pairs = composer.compose()
        if not _belongs(pairs, split):
            continue
        english = phrasebook_english.render(sentence)
        if english in seen or english.count(" ") >= MAX_WORDS[split]:
            continue
        seen.add(english)
        yield sentence, english


def _check(split: str, languages: tuple[str, ...], size: int) -> None:
    if split not in SPLITS:
        raise UserError(f"phrasebook: split must be one of {', '.join(SPLITS)}, not {split!r}")
    for language in languages:
        if language not in LANGUAGES:
            raise UserError(f"phrasebook: language must be one of {', '.join(LANGUAGES)}, not {language!r}")
    if len(set(languages)) < len(languages):
        raise UserError(f"phrasebook: source and target are both {languages[0]!r}; choose two languages")
    if size < 0:
        raise UserError(f"phrasebook: size must be zero or more, not {size}")


def _render(split: str, languages: tuple[str, ...], size: int, seed: int) -> Iterator[tuple[str, ...]]:
    for _, (sentence, english) in zip(range(size), compose(split, seed=seed), strict=False):
        yield tuple(english if language == "en" else _RENDERERS[language](sentence) for language in languages)


def sentences(split: str, *, size: int, seed: int = 0) -> list[dict[str, str]]:
    """The first `size` sentences of a split in all three languages.

    Args:
        split: train, dev or test.
        size: How many; a smaller size gives a prefix of a larger one.
        seed: Another seed gives other sentences. Which pairs a split owns does not depend on it.

    Returns:
        Records from language to text, without two of the same English text.

    Raises:
        UserError: For an unknown split or a negative size.
    """
    _check(split, LANGUAGES, size)
    return [dict(zip(LANGUAGES, texts, strict=True)) for texts in _render(split, LANGUAGES, size, seed)]


def pairs(split: str, *, source: str, target: str, size: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """The first `size` sentences of a split in two languages.

    Args:
        split: train, dev or test.
        source: The language to translate from: en, fr or de.
        target: The language to translate to.
        size: How many; a smaller size gives a prefix of a larger one.
        seed: As for `sentences`.

    Returns:
        Source texts and target texts, in step.

    Raises:
        UserError: For an unknown split or language, equal languages or a negative size.
    """
    _check(split, (source, target), size)
    rows = list(_render(split, (source, target), size, seed))
    return [row[0] for row in rows], [row[1] for row in rows]
