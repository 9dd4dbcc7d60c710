"""Translation: sentences in, n-best lists out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from seq2seq_jax.data.pipeline import length_batches, tag_ids
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.interfaces import Hypotheses, PyTree
from seq2seq_jax.tasks.search import Decode, Search


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One entry of an n-best list."""

    text: str
    tokens: list[int]
    score: float
    log_prob: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Translation:
    """What came of one sentence, best first. A blank sentence has no candidates."""

    source_pieces: list[str]
    candidates: list[Candidate]
    attention: np.ndarray | None  # [T, S] of the best candidate, where the model attends
    cut: bool  # the source was longer than allowed

    @property
    def text(self) -> str:
        """The best candidate's text; empty for a blank sentence."""
        return self.candidates[0].text if self.candidates else ""


class Translator:
    """Translates sentences with a model; holds the compiled searches, one a shape.

    Args:
        decode: the jitted search, see `make_decode`.
        vocabs: of both sides.
        search: how it searches.
        rows: sentences decoded at a time.
        max_source_len: tokens with eos; a longer source is cut there.
        tags: names of the tokens put before every source, such as ("2de",).
    """

    def __init__(
        self,
        decode: Decode,
        vocabs: Vocabs,
        search: Search,
        *,
        rows: int,
        max_source_len: int,
        tags: Sequence[str] = (),
    ):
        self._decode, self.vocabs, self.search = decode, vocabs, search
        self.rows, self.max_source_len = rows, max_source_len
        self._before = tag_ids(vocabs.source, tags)

    def translate(
        self, params: PyTree, lines: Sequence[str], *, poll: Callable[[], None] = lambda: None
    ) -> list[Translation]:
        """Translates sentences, in their order; `poll` is called before each batch and may raise to stop."""
        eos = self.vocabs.source.eos_id
        encoded = self.vocabs.source.encode_many(list(lines))
        limit = self.max_source_len - 1 - len(self._before)
        sources = [np.concatenate([self._before, ids[:limit], [eos]]).astype(np.int32) for ids in encoded]
        done: list[Translation | None] = [
            None if line.strip() and len(ids) else Translation([], [], None, False)
            for line, ids in zip(lines, encoded, strict=True)
        ]
        waiting = [n for n, translation in enumerate(done) if translation is None]
        for ids, source_len in self._batches([len(sources[n]) for n in waiting]):
            poll()
            rows = [waiting[n] if n >= 0 else -1 for n in ids]
            found = self._decode_rows(params, [sources[n] if n >= 0 else None for n in rows], source_len)
            for row, n in enumerate(rows):
                if n >= 0:
                    done[n] = self._read(found, row, sources[n], cut=len(encoded[n]) > limit)
        return [translation for translation in done if translation is not None]

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Few sentences are decoded in few rows: an answer to one person must not wait for 63 empty rows."""
        rows = next((n for n in (1, 8) if len(lengths) <= n <= self.rows), self.rows)
        return iter(length_batches(lengths, rows=rows, max_len=self.max_source_len))

    def _decode_rows(self, params: PyTree, sources: Sequence[np.ndarray | None], source_len: int) -> Hypotheses:
        """Pads the rows (None only fills), searches, and brings the result to the host."""
        tokens = np.zeros((len(sources), source_len), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, source in enumerate(sources):
            if source is not None:
                tokens[row, : len(source)] = source
                mask[row, : len(source)] = True
        row_mask = np.array([source is not None for source in sources])
        found = self._decode(params, tokens, mask, row_mask, max_len=self.search.longest(source_len))
        return jax.device_get(found)

    def _read(self, found: Hypotheses, row: int, source: np.ndarray, *, cut: bool) -> Translation:
        """One row of the search's arrays as text."""
        vocab, candidates = self.vocabs.target, []
        for n, length in enumerate(found.lengths[row].tolist()):
            if length > 0:
                tokens = found.tokens[row, n, :length].tolist()
                score, log_prob = float(found.scores[row, n]), float(found.log_probs[row, n])
                text = " ".join(vocab.decode(tokens).splitlines())  # bytes can spell a line end: one line stays one
                candidates.append(Candidate(text, tokens, score, log_prob, bool(found.finished[row, n])))
        attention = None
        if found.attention is not None and candidates:
            attention = np.asarray(found.attention[row, 0, : len(candidates[0].tokens), : len(source)])
        return Translation(self.vocabs.source.pieces(source), candidates, attention, cut)
