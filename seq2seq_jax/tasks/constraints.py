"""What outputs must and must not say, as text: from words to the tokens that `decode.constraints` reads.

A prefix and phrases that must be said are cut as the vocabulary cuts them at the beginning of a text: as whole words,
but for their end: a phrase that ends with "cat" may go on as "cats".

A phrase that may not be said is forbidden in every way that its characters can be put together from the pieces of the
vocabulary, fewest pieces first, `MOST_SPELLINGS` at most; with a blank before it, and after opening signs such as a
bracket. Its end is open as well: without "cat" there are no "cats", where they are cut there. A vocabulary of
characters or bytes knows no words: there it is forbidden wherever it stands. Case counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from seq2seq_jax.data.vocab import UNK_ID, Vocab
from seq2seq_jax.decode.constraints import Widths, measure_constraints, pack_constraints
from seq2seq_jax.decode.steps import Constraints
from seq2seq_jax.errors import UserError

MOST_SPELLINGS = 32
"""Ways to spell a phrase from pieces that are forbidden."""

MOST_AFTER_SIGNS = 4
"""Ways to spell it after each opening sign."""

_BLANK = "▁"  # SentencePiece's sign for a blank
_OPENING = ("Ps", "Pi", "Pd")  # categories of Unicode: brackets, quotation marks, dashes; and those on keyboards:
_OPENING_SIGNS = "\"'/„"


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked of one output.

    Attributes:
        prefix: text that it begins with.
        must: words or phrases that it has.
        must_not: words or phrases that it has not.
    """

    prefix: str = ""
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prefix or self.must or self.must_not)


def split_phrases(text: str) -> tuple[str, ...]:
    """The phrases between "|" of a config's key, those that are blank left out."""
    return tuple(phrase.strip() for phrase in text.split("|") if phrase.strip())


def make_wish(keys: Mapping[str, Any]) -> Wish:
    """What `config.decode` asks of every output."""
    return Wish(keys["prefix"], split_phrases(keys["must"]), split_phrases(keys["must_not"]))


def parse_wish(line: str, *, where: str, default: Wish = Wish()) -> Wish:
    """Reads a line of a file of constraints: a JSON object, `{"prefix": "...", "must": [...], "must_not": [...]}`.

    Args:
        line: blank asks nothing of its own.
        where: file and line, for messages.
        default: what is asked of all outputs; a key that the line has replaces it, phrases come on top.

    Raises:
        UserError: it is no such object.
    """
    if not line.strip():
        return default
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not JSON ({error}); write an object such as {{"must": ["word"]}}.') from error
    if not isinstance(found, dict):
        raise UserError(f'{where}: must be a JSON object, such as {{"must": ["word"]}}, but is {line.strip()[:40]!r}.')
    return read_wish(found, where=where, default=default)


def read_wish(found: Mapping[str, Any], *, where: str, default: Wish = Wish()) -> Wish:
    """The same from the object itself.

    Raises:
        UserError: a key is unknown, or a value is none for it.
    """
    for key, value in found.items():
        if key not in ("prefix", "must", "must_not"):
            raise UserError(f"{where}: knows prefix, must and must_not, but not {key!r}.")
        if key == "prefix" and not isinstance(value, str):
            raise UserError(f"{where}: prefix must be a string, but is {value!r} instead.")
        if key != "prefix" and not (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)):
            raise UserError(f"{where}: {key} must be a list of strings, but is {value!r} instead.")
    phrases = {key: (*getattr(default, key), *found.get(key, ())) for key in ("must", "must_not")}
    return Wish(found.get("prefix", default.prefix), **phrases)


@dataclasses.dataclass(frozen=True)
class Spelled:
    """What is asked of N outputs as tokens; see `spell_wishes`.

    Attributes:
        kinds: prefix, `must` and `must_not` of every different wish; the first asks nothing.
        rows: the kind of each output.
        widths: of all kinds together.
    """

    kinds: Sequence[tuple[Any, Any, Any]]
    rows: Sequence[int]
    widths: Widths

    def __bool__(self) -> bool:
        return bool(self.widths)

    def pack(self, rows: Sequence[int]) -> Constraints:
        """Constraints of some of the outputs as numpy arrays `[len(rows) + 1, ...]`, their shapes the same for any.

        The last row asks nothing, for rows that only fill.
        """
        kinds, places = np.unique([*(self.rows[row] for row in rows), 0], return_inverse=True)
        prefixes, must, must_not = zip(*(self.kinds[kind] for kind in kinds), strict=True)
        packed = pack_constraints(prefixes, must, must_not, widths=self.widths)
        return jax.tree.map(lambda leaf: leaf[places], packed)


def spell_wishes(
    wishes: Sequence[Wish | None], vocab: Vocab, *, where: Callable[[int], str] = lambda row: f"wishes[{row}]: "
) -> Spelled:
    """Spells what is asked of N outputs.

    Args:
        wishes: one each; None asks nothing.
        vocab: of the target side.
        where: from a row to what stands before "prefix", "must" or "must_not" in a message about it.

    Raises:
        UserError: a phrase has no tokens or unknown ones, or an output cannot have all that is asked of it.
    """
    speller, rows = Speller(vocab), []
    spelled: list[tuple[Any, Any, Any]] = [([], [], [])]
    places = {Wish(): 0}
    for row, wish in enumerate(wishes):
        wish = wish or Wish()
        if wish not in places:
            places[wish] = len(spelled)
            spelled.append(_spell_wish(wish, speller, where(row)))
        rows.append(places[wish])
    prefixes, must, must_not = zip(*spelled, strict=True)
    return Spelled(spelled, rows, measure_constraints(prefixes, must, must_not))


def least_length(constraints: Constraints) -> np.ndarray:
    """Tokens `[N]` that an output needs room for: its prefix, each phrase after the other, and eos."""
    return np.asarray(constraints.prefix_lengths) + np.asarray(constraints.must_lengths).sum(axis=-1) + 1


def _spell_wish(wish: Wish, speller: Speller, where: str) -> tuple[list[int], list[list[int]], list[tuple[int, ...]]]:
    """Prefix, `must` and `must_not` as tokens."""
    prefix = speller.say(wish.prefix, f"{where}prefix") if wish.prefix.strip() else []
    must = [speller.say(phrase, f"{where}must") for phrase in wish.must]
    ways = [speller.list_ways(phrase, f"{where}must_not") for phrase in wish.must_not]
    must_not = [way for found in ways for way in found]
    for said, name in [(prefix, "prefix"), *((phrase, "must") for phrase in must)]:
        for phrase in must_not:
            size = len(phrase)
            if any(tuple(said[at : at + size]) == phrase for at in range(len(said) - size + 1)):
                text, wrong = speller.vocab.decode(said), speller.vocab.decode(phrase)
                raise UserError(f"{where}{name} asks for {text!r}, but must_not forbids {wrong!r} in it.")
    return prefix, must, must_not


class Speller:
    """From phrases to the tokens of a vocabulary of any kind; what was spelled once is remembered."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self._found: dict[str, list[tuple[int, ...]]] = {}

    def say(self, text: str, name: str) -> list[int]:
        """Tokens of a text that is to be said.

        Raises:
            UserError: there are none, or the vocabulary does not know all of it; the message begins with the name.
        """
        tokens = self.vocab.encode(text)
        if not tokens:
            raise UserError(f"{name} has a phrase without any token: {text!r}; leave it out.")
        if UNK_ID in tokens:
            pieces = self.vocab.pieces(tokens)
            raise UserError(f"{name} has {text!r}, which the vocabulary cannot spell ({pieces}).")
        return tokens

    def list_ways(self, phrase: str, name: str) -> list[tuple[int, ...]]:
        """The ways to say a phrase from the beginning of a word on; see the module.

        A vocabulary of words or bytes has one way at most. There is none for what the vocabulary cannot spell: that is
        never said.

        Raises:
            UserError: the phrase is blank; the message begins with the name.
        """
        text = self.vocab.normalise(phrase).strip()
        if not text:
            raise UserError(f"{name} has a phrase without any token: {phrase!r}; leave it out.")
        if text not in self._found:
            self._found[text] = self._spell(text)
        return self._found[text]

    def _spell(self, text: str) -> list[tuple[int, ...]]:
        own = tuple(self.vocab.encode(text))
        found = [] if UNK_ID in own else [own]
        if self.vocab.kind != "sentencepiece":
            return found
        joined = text.replace(" ", _BLANK)
        found += _segment(_BLANK + joined, self._table, self._longest)
        after_signs = _segment(joined, self._table, self._longest)[:MOST_AFTER_SIGNS]
        found += [(sign, *way) for way in after_signs for sign in self._openers]
        return list(dict.fromkeys(found))

    @functools.cached_property
    def _table(self) -> dict[str, int]:
        first = self.vocab.first_id
        return {piece: first + n for n, piece in enumerate(self.vocab.pieces(range(first, self.vocab.size)))}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._table), default=0)

    @functools.cached_property
    def _openers(self) -> list[int]:
        return [number for piece, number in self._table.items() if _opens(piece)]


def _opens(piece: str) -> bool:
    """Whether a piece ends with a sign after which a word begins without a blank."""
    last = piece[-1:]
    return bool(last) and (last in _OPENING_SIGNS or unicodedata.category(last) in _OPENING)


def _segment(text: str, table: dict[str, int], longest: int) -> list[tuple[int, ...]]:
    """Ways to cut a text into pieces of a table, fewest pieces first, `MOST_SPELLINGS` at most for every prefix."""
    ways: list[list[tuple[int, ...]]] = [[()], *([] for _ in text)]
    for end in range(1, len(text) + 1):
        found = [
            (*way, table[text[begin:end]])
            for begin in range(max(0, end - longest), end)
            if text[begin:end] in table
            for way in ways[begin]
        ]
        ways[end] = sorted(found, key=len)[:MOST_SPELLINGS]
    return ways[-1]
