"""Draws another segmentation of every training sentence in every epoch.

Unigram models: subword regularisation (Kudo 2018, arXiv:1804.10959), with l = infinity: a segmentation x has the
probability p(x)^alpha / sum over all of them, drawn exactly by forward filtering and backward sampling. BPE models:
BPE-dropout (Provilkov 2020, arXiv:1910.13267): each merge that could be made next is dropped with probability p.

Pieces do not reach over blanks, so that words are drawn one by one, and what a word needs is computed once:

    tokens ── cut before "▁" ──▶ words ── lattice of pieces (kept) ──▶ draws ──▶ tokens
                                          or merges, while none is dropped that the best segmentation made

No text is kept for this: the pieces of the best segmentation spell it. Unknown pieces, bytes
and pieces that a model's author defined stay as they are, and what is between them is drawn.

The draws follow from (seed, epoch, example, side, word) alone, by the hash SplitMix64 (Steele 2014): they are the same
for any number of hosts and threads, and after a resume. SentencePiece draws itself, but from one seed for all
threads, so that what it draws depends on what was drawn before.

A sampled sentence is longer than the best one, which its batch was planned for. So the plan is made with
`plan_lengths`, the best lengths times the measured mean growth; where a drawn sentence still has no place in the
shape of its batch, words of it, drawn at random, get their best segmentation back until it has.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from seq2seq_jax.data.model_proto import LEARNED, parse_model
from seq2seq_jax.data.pipeline import Pairs, Ragged
from seq2seq_jax.data.plan import PlannedBatch
from seq2seq_jax.data.vocab import Vocab, Vocabs
from seq2seq_jax.errors import UserError

SIDES = ("both", "source", "target")
_BLANK = "▁"
_WORDS_KEPT = 50_000  # lattices, about 3 kB each
_MEASURED = 1000  # sentences that the growth is measured on
_NO_ROOM_LIMIT = np.iinfo(np.int64).max

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

Lattice = tuple[tuple[tuple[float, ...], tuple[tuple[int, int], ...]], ...]


def mix(state: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """SplitMix64's output for `state` plus `number` steps: 64 bits that look independent, as uint64."""
    z = state + (np.atleast_1d(np.asarray(number, np.uint64)) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _to_uniform(bits: np.ndarray) -> np.ndarray:
    """The upper 53 bits as a float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class SubwordSampler:
    """Draws segmentations by one vocabulary."""

    def __init__(self, vocab: Vocab, strength: float) -> None:
        """Args:
            vocab: of kind "sentencepiece", unigram or BPE.
            strength: alpha (unigram), or the probability of dropping a merge (BPE).

        Raises:
            UserError: the vocabulary has nothing to draw.
        """
        if vocab.kind != "sentencepiece" or vocab.algorithm not in ("unigram", "bpe"):
            kind = vocab.algorithm or vocab.kind
            raise UserError(
                'config.data.subword_sampling needs config.vocab.kind="sentencepiece" with config.vocab.model '
                f'"unigram" or "bpe", but the vocabulary is of kind {kind!r}; set it to 0.'
            )
        self._strength = strength
        self._sample_word = self._walk if vocab.algorithm == "unigram" else self._merge
        self._is_bpe = vocab.algorithm == "bpe"
        self._pieces = vocab.pieces(range(vocab.size))
        self._lengths = np.array([len(piece) for piece in self._pieces], np.int64)
        scores, normal = _read_pieces(vocab)
        self._scores = dict(zip(np.flatnonzero(normal).tolist(), scores[normal].tolist(), strict=True))
        self._ids = {self._pieces[i]: i for i in self._scores}
        self._longest = max(map(len, self._ids), default=1)
        self._odd = ~normal
        # A model whose pieces hold blanks inside is drawn a sentence at a time.
        crossing = any(_BLANK in piece.strip(_BLANK) or piece.rstrip(_BLANK) != piece != _BLANK for piece in self._ids)
        begins = np.array([piece.startswith(_BLANK) for piece in self._pieces])
        self._begins = (begins & (not crossing)) | self._odd
        self._lattices: dict[tuple[int, ...], Lattice] = {}

    def sample(self, ragged: Ragged, keys: np.ndarray, room: np.ndarray) -> Ragged:
        """Draws a segmentation of each sequence.

        Args:
            ragged: N sequences, the best segmentations; tags before and eos after them stay.
            keys: `[N]` uint64, one key a sequence; equal keys draw equally.
            room: `[N]` most tokens.

        Returns:
            As many sequences of the same text. One that has no room gets back the best segmentation of
            some words, or of all; it is never longer than both `room` and its best segmentation.
        """
        flat = ragged.flat
        if not len(flat):
            return ragged
        words = self._cut(ragged)
        key = mix(keys[words.row], words.number)
        drawn = self._draw(flat, words, key)
        gain = np.zeros(len(words.begin), np.int64)
        for i, ids in drawn.items():
            gain[i] = len(ids) - (words.end[i] - words.begin[i])
        total = ragged.lengths + np.bincount(words.row, gain, len(ragged)).astype(np.int64)
        for row in np.flatnonzero(total > np.maximum(room, ragged.lengths)).tolist():
            own = np.arange(*np.searchsorted(words.row, [row, row + 1]))
            own = own[gain[own] > 0]
            for i in own[np.argsort(key[own], kind="stable")].tolist():
                del drawn[i]
                total[row] -= gain[i]
                if total[row] <= room[row]:
                    break
        return _replace(ragged, words, drawn, total)

    def _cut(self, ragged: Ragged) -> _Words:
        """Words begin with "▁"; tags, eos and other odd pieces stand alone."""
        flat, offsets = ragged.flat, ragged.offsets
        begins = self._begins[flat]
        begins[1:] |= self._odd[flat[:-1]]
        begins[offsets[:-1][ragged.lengths > 0]] = True
        begin = np.flatnonzero(begins)
        end = np.append(begin[1:], len(flat))
        row = np.searchsorted(offsets, begin, side="right") - 1
        first = np.searchsorted(row, row)
        characters = np.add.reduceat(self._lengths[flat], begin)
        return _Words(
            begin, end, row, np.arange(len(begin)) - first, characters, self._odd[flat[begin]] | (characters < 2)
        )

    def _draw(self, flat: np.ndarray, words: _Words, key: np.ndarray) -> dict[int, list[int]]:
        """The words that come out otherwise than they are: number of the word → ids."""
        todo = np.flatnonzero(~words.fixed)
        if self._is_bpe:
            # Up to the first merge that is dropped all goes as in the best segmentation, which made
            # characters - tokens of them; most words end there.
            made = (words.characters - (words.end - words.begin))[todo]
            _, draws = _ragged_uniforms(key[todo], made)
            hits = np.concatenate([np.zeros(1, np.int64), np.cumsum(draws < self._strength)])
            ends = np.cumsum(made)
            todo = todo[hits[ends] > hits[ends - made]]
        # Three numbers a character are enough: a word of n has at most 3n pairs that may come to a decision.
        counts = words.characters[todo] * (3 if self._is_bpe else 1)
        starts, draws = _ragged_uniforms(key[todo], counts)
        numbers, tokens = draws.tolist(), flat.tolist()
        drawn = {}
        begin, end = words.begin.tolist(), words.end.tolist()
        for i, start, count in zip(todo.tolist(), starts.tolist(), counts.tolist(), strict=True):
            old = tokens[begin[i] : end[i]]
            new = self._sample_word(old, numbers[start : start + count])
            if new != old:
                drawn[i] = new
        return drawn

    def _walk(self, word: list[int], draws: list[float]) -> list[int]:
        """Backward sampling: the last piece by its share of all ways to its end, then the one before it."""
        lattice = self._lattices.get(tuple(word))
        if lattice is None:
            if len(self._lattices) >= _WORDS_KEPT:
                self._lattices.clear()
            lattice = self._lattices[tuple(word)] = self._filter("".join(self._pieces[i] for i in word))
        found, place = [], len(lattice) - 1
        for u in draws:
            shares, arcs = lattice[place]
            place, piece = arcs[bisect_right(shares, u)]
            found.append(piece)
            if not place:
                break
        return found[::-1]

    def _filter(self, text: str) -> Lattice:
        """Forward filtering: for each end the cumulated shares of the pieces that end there, and (start, piece)."""
        logs = [0.0]
        lattice: list[tuple[tuple[float, ...], tuple[tuple[int, int], ...]]] = [((), ())]
        for end in range(1, len(text) + 1):
            arcs, weights = [], []
            for start in range(max(0, end - self._longest), end):
                piece = self._ids.get(text[start:end])
                if piece is not None and logs[start] > -math.inf:
                    arcs.append((start, piece))
                    weights.append(logs[start] + self._strength * self._scores[piece])
            top = max(weights, default=-math.inf)
            shares = np.cumsum([math.exp(weight - top) for weight in weights])
            logs.append(top + math.log(shares[-1]) if arcs else -math.inf)
            # The last share is left out: what a number of [0, 1) is not below belongs to the last piece.
            lattice.append((tuple((shares[:-1] / shares[-1]).tolist()) if arcs else (), tuple(arcs)))
        return tuple(lattice)

    def _merge(self, word: list[int], draws: list[float]) -> list[int]:
        """Merges the best pair, the left one of equals, again and again; a dropped pair is not asked again."""
        symbols = list("".join(self._pieces[i] for i in word))
        none = -math.inf

        def rate(i: int) -> float:
            piece = self._ids.get(symbols[i] + symbols[i + 1])
            return none if piece is None else self._scores[piece]

        rates = [rate(i) for i in range(len(symbols) - 1)]
        for u in draws:
            best = max(rates, default=none)
            if best == none:
                break
            i = rates.index(best)
            if u < self._strength:
                rates[i] = none
                continue
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            del rates[i]
            if i:
                rates[i - 1] = rate(i - 1)
            if i < len(rates):
                rates[i] = rate(i)
        ids = [self._ids.get(symbol) for symbol in symbols]
        return word if None in ids else [i for i in ids if i is not None]  # a model may not know a letter alone


def _read_pieces(vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """Scores (log-probability, or minus the rank of the merge), `[size]` float64, and which pieces were learned."""
    pieces = parse_model(vocab.model).pieces
    return np.array([piece.score for piece in pieces]), np.array([piece.type == LEARNED for piece in pieces])


@dataclass(frozen=True, eq=False)
class _Words:
    """Words of some sequences, all arrays `[W]`."""

    begin: np.ndarray  # in the flat tokens
    end: np.ndarray
    row: np.ndarray  # the sequence
    number: np.ndarray  # of the word in its sequence
    characters: np.ndarray
    fixed: np.ndarray  # nothing to draw


def _ragged_uniforms(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the numbers of each key start, and the first `counts` numbers in [0, 1) of each, one after the other."""
    starts = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) - np.repeat(starts, counts)
    return starts, _to_uniform(mix(np.repeat(keys, counts), places))


def _replace(ragged: Ragged, words: _Words, drawn: dict[int, list[int]], lengths: np.ndarray) -> Ragged:
    """The sequences with some words put in other ids."""
    parts, done = [], 0
    for i in sorted(drawn):
        parts += [ragged.flat[done : words.begin[i]], np.array(drawn[i], np.int32)]
        done = words.end[i]
    flat = np.concatenate([*parts, ragged.flat[done:]])
    return Ragged(flat, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


@dataclass(frozen=True, eq=False)
class PairSampler:
    """Draws the segmentations of a batch's pairs.

    Attributes:
        vocabs: of both sides.
        strength: see `SubwordSampler`.
        sides: "both", "source" or "target".
        seed: of the draws.
    """

    vocabs: Vocabs
    strength: float
    sides: str
    seed: int

    @cached_property
    def _samplers(self) -> tuple[SubwordSampler | None, SubwordSampler | None]:
        source, target = (
            SubwordSampler(vocab, self.strength) if self.sides in ("both", side) else None
            for side, vocab in (("source", self.vocabs.source), ("target", self.vocabs.target))
        )
        return source, target

    def __call__(
        self, sources: Ragged, targets: Ragged, ids: np.ndarray, planned: PlannedBatch
    ) -> tuple[Ragged, Ragged]:
        """Other segmentations of the examples `ids` of a batch, that have room in its shape.

        Args:
            sources, targets: N each, as `Pairs.read` gives them.
            ids: `[N]` examples.
            planned: the batch, which says the epoch and the shape.
        """
        shape = planned.shape
        return self.draw(sources, targets, ids, planned.epoch, (shape.source_len, shape.target_len - 1))

    def draw(
        self, sources: Ragged, targets: Ragged, ids: np.ndarray, epoch: int, rooms: tuple[int, int]
    ) -> tuple[Ragged, Ragged]:
        """See `__call__`; `rooms` are the most tokens of a source and of a target (without bos or eos)."""
        state = mix(mix(np.array([self.seed], np.uint64), 0), epoch)
        drawn = []
        for side, (sampler, ragged, room) in enumerate(zip(self._samplers, (sources, targets), rooms, strict=True)):
            keys = mix(mix(state, side), ids.astype(np.uint64))
            drawn.append(ragged if sampler is None else sampler.sample(ragged, keys, np.full(len(ragged), room)))
        return drawn[0], drawn[1]

    def plan_lengths(self, pairs: Pairs, *, max_source_len: int, max_target_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target lengths for a plan: the best ones times their mean growth, but within the limits.

        The growth is measured on a thousand evenly spread sentences of the first epoch. What the limits leave out
        is what they leave out of the best segmentations.
        """
        ids = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MEASURED)).astype(np.int64))
        best = pairs.read(ids)
        drawn = self.draw(*best, ids, 0, (_NO_ROOM_LIMIT, _NO_ROOM_LIMIT))
        planned = []
        lengths = (pairs.source_lengths, pairs.target_lengths)
        for before, after, side, limit in zip(best, drawn, lengths, (max_source_len, max_target_len), strict=True):
            growth = max(1.0, len(after.flat) / max(1, len(before.flat)))
            grown = np.minimum(np.ceil(np.asarray(side) * np.float32(growth)), limit).astype(np.int32)
            planned.append(np.where(np.asarray(side) > limit, side, grown))
        return planned[0], planned[1]
