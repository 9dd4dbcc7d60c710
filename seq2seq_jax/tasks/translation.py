"""Translation: sentences in, n-best lists out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from seq2seq_jax.data.pipeline import tag_ids
from seq2seq_jax.data.vocab import Vocab, Vocabs
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.steps import Constraints
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Hypotheses, PyTree
from seq2seq_jax.tasks.constraints import Spelled, Wish, least_length, spell_wishes
from seq2seq_jax.tasks.engine import Engine


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One entry of an n-best list."""

    text: str
    tokens: list[int]
    score: float
    log_prob: float
    finished: bool
    attention: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    """[T, S] float32, where the model attends and it was asked for."""

    @property
    def alignment(self) -> list[int] | None:
        """For each token the source position with the most weight."""
        return None if self.attention is None else self.attention.argmax(axis=-1).tolist()


@dataclasses.dataclass(frozen=True)
class Translation:
    """What came of one sentence, best first. A blank sentence has no candidates."""

    source_pieces: list[str]
    candidates: list[Candidate]
    cut: bool  # the source was longer than allowed

    @property
    def text(self) -> str:
        """The best candidate's text; empty for a blank sentence."""
        return self.candidates[0].text if self.candidates else ""

    @property
    def attention(self) -> np.ndarray | None:
        """Of the best candidate, `[T, S]`, where the model attends and it was asked for."""
        return self.candidates[0].attention if self.candidates else None


class Translator:
    """Translates sentences with a model.

    Args:
        engine: what searches; holds the compiled programs.
        vocabs: of both sides.
        tags: names of the tokens put before every source, such as ("2de",).
        rank: puts the candidates of a sentence, all with attention or none, into an order of its own, best first.
        wish: what `config.decode` asks of every output for which nothing of its own is asked.

    Raises:
        UserError: the vocabulary cannot spell the wish, or the search cannot grant it.
    """

    def __init__(
        self,
        engine: Engine,
        vocabs: Vocabs,
        *,
        tags: Sequence[str] = (),
        rank: Callable[[list[Candidate]], list[Candidate]] | None = None,
        wish: Wish | None = None,
    ):
        self.engine, self.vocabs = engine, vocabs
        self._before = tag_ids(vocabs.source, tags)
        self._rank, self.wish = rank, wish or Wish()
        self._spelled = self.spell([self.wish], where=lambda row: "config.decode.")

    def spell(
        self, wishes: Sequence[Wish | None], *, where: Callable[[int], str] = lambda row: f"wishes[{row}]: "
    ) -> Spelled:
        """What is asked of the outputs of some lines, for `translate`.

        Args:
            wishes: one each; None is what is asked of all.
            where: from a row to what stands before "prefix", "must" or "must_not" in a message about it.

        Raises:
            UserError: the vocabulary cannot spell a wish, or the search cannot grant it.
        """
        asked = [self.wish if wish is None else wish for wish in wishes]
        if not isinstance(self.engine.search.method, Beam):
            for row, wish in enumerate(asked):
                if wish.must:
                    raise UserError(
                        f"{where(row)}must needs a beam, but this search is greedy or draws its outputs; use "
                        "config.decode.method='beam' and a beam size of 2 or more (config.decode.beam_size; on dev "
                        "config.evaluate.dev_beam_size)."
                    )
        return spell_wishes(asked, self.vocabs.target, where=where)

    def translate(
        self,
        params: PyTree,
        lines: Sequence[str],
        *,
        wishes: Sequence[Wish | None] | None = None,
        spelled: Spelled | None = None,
        first: int = 0,
        poll: Callable[[], None] = lambda: None,
        tell: Callable[[int], None] = lambda count: None,
    ) -> list[Translation]:
        """Translates sentences, in their order.

        Args:
            params: of the model.
            lines: the sentences.
            wishes: what is asked of the output of each; None is what is asked of all.
            spelled: the same of all lines from number 0 on, as `spell` made it: groups of lines share programs.
            first: the number of the first one, by which draws are keyed.
            poll: called between parts of the work; may raise to stop.
            tell: receives how many sentences more are done.
        """
        eos, limit = self.vocabs.source.eos_id, self.engine.max_source_len - 1 - len(self._before)
        encoded = self.vocabs.source.encode_many(list(lines))
        blank = [not line.strip() or not len(ids) for line, ids in zip(lines, encoded, strict=True)]
        done = [Translation([], [], False) for _ in lines]
        rows = [n for n, is_blank in enumerate(blank) if not is_blank]
        sources = [np.concatenate([self._before, encoded[n][:limit], [eos]]).astype(np.int32) for n in rows]
        constraints = self._pack(rows, first, wishes, spelled)
        tell(len(lines) - len(rows))
        found = self.engine.run(
            params,
            sources,
            numbers=[first + n for n in rows],
            constraints=constraints,
            least=None if constraints is None else least_length(constraints).tolist(),
            poll=poll,
        )
        for place, hypotheses in found:
            n = rows[place]
            done[n] = self._read(hypotheses, sources[place], cut=len(encoded[n]) > limit)
            tell(1)
        return done

    def _pack(
        self, rows: Sequence[int], first: int, wishes: Sequence[Wish | None] | None, spelled: Spelled | None
    ) -> Constraints | None:
        """The constraints of some of the lines; None where nothing is asked of any line."""
        if spelled is not None:
            rows = [first + n for n in rows]
        elif wishes is not None:
            spelled = self.spell(wishes)
        else:
            rows, spelled = [0] * len(rows), self._spelled
        return spelled.pack(rows) if spelled else None

    def _read(self, found: Hypotheses, source: np.ndarray, *, cut: bool) -> Translation:
        """What was found for one source as text."""
        candidates = read_candidates(found, self.vocabs.target, len(source))
        if self._rank is not None and candidates:
            candidates = self._rank(candidates)
        return Translation(self.vocabs.source.pieces(source), candidates, cut)


def read_candidates(found: Hypotheses, vocab: Vocab, steps: int) -> list[Candidate]:
    """The hypotheses of one source as text, best first.

    Args:
        found: leaves `[K, ...]`, NumPy arrays.
        vocab: of the target.
        steps: how many of what the attention is over are real.
    """
    candidates = []
    for n, length in enumerate(found.lengths.tolist()):
        if length > 0:
            tokens = found.tokens[n, :length].tolist()
            text = " ".join(vocab.decode(tokens).splitlines())  # bytes can spell a line end: one line stays one
            attention = None
            if found.attention is not None and n < len(found.attention):
                attention = np.array(found.attention[n, :length, :steps])
            score, log_prob = float(found.scores[n]), float(found.log_probs[n])
            candidates.append(Candidate(text, tokens, score, log_prob, bool(found.finished[n]), attention))
    return candidates
