"""Beam search over any step function: exact rules, rows with clocks of their own, one step at a time.

    tokens [B, K] ──▶ step, vmapped over K ──▶ log_probs [B, K, V]
                                                   │ the best of each beam: candidates [B, K, W]
                              ┌────────────────────┴───────────────┐
                    ends with eos: into K ended slots,     others: the K live beams of the
                    ranked by the normalised score         next step, which gathers their caches

Nothing but last steps, beams and back-pointers is kept while the search runs; the token sequences (and attention)
of the winners are read off the back-pointers by `collect`. `ranking.py` says what the score is, what may end, and
when to stop. Live beams are compared by log P alone: they are all of one length.

Also here: diverse beam search (Vijayakumar et al. 2018, Diverse Beam Search), and banks for outputs that must hold
some words (Post & Vilar 2018; `selection.select_in_turn`).

Differs from the paper on diverse beam search: what a token costs decides only the step that takes it, and is not
carried along; log P and scores are those of the model. Outputs that several groups found appear once.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decode.candidates import Candidates, list_candidates
from seq2seq_jax.decode.loop import run_search
from seq2seq_jax.decode.method import Rows, make_rows, over_hypotheses
from seq2seq_jax.decode.ranking import LengthTerms, Ranking
from seq2seq_jax.decode.selection import count_tokens, gather_beams, select_in_turn
from seq2seq_jax.decode.trail import Trail, read_outputs, write_step
from seq2seq_jax.interfaces import Array, Cache, Hypotheses, Step, StepResult


@struct.dataclass
class Live:
    """The hypotheses that still grow; dead ones have log_probs -inf."""

    tokens: Array  # [B, K] int32, the latest token
    parents: Array  # [B, K] int32, the beam that it grew from
    log_probs: Array  # [B, K] float32
    coverage: Array | None  # [B, K, S] float32, attention summed over the steps so far


@struct.dataclass
class Ended:
    """The hypotheses that ended with eos and are kept, K / groups of each group; empty slots have scores -inf."""

    scores: Array  # [B, K] float32
    log_probs: Array  # [B, K] float32
    lengths: Array  # [B, K] int32, eos included
    parents: Array  # [B, K] int32, the beam that predicted the last token


@struct.dataclass
class BeamState:
    """A search under way. Of rows that are done, nothing but `cache` changes any more (and that is of no meaning)."""

    time: Array  # [B] int32, steps taken
    done: Array  # [B] bool
    max_lengths: Array  # [B] int32
    min_lengths: Array  # [B] int32
    longest: LengthTerms  # [B], for an output of the maximum length
    source_mask: Array | None  # [B, S] bool, where coverage counts
    cache: Cache  # leaves [B, K, ...], of the beams that those alive grew from: `live.parents` reorders them
    live: Live
    ended: Ended
    trail: Trail


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search, a `Method`.

    Rows are independent: the result of a row does not depend on its neighbours, nor on when it began. `pad_id` and
    `bos_id` are never predicted (unless they double as eos).

    Attributes:
        size: K, also the number of hypotheses returned a row. May exceed the vocabulary.
        ranking: the rules of score, end and stop.
        bos_id: the token that is fed at step 0.
        eos_id: the token that ends a hypothesis.
        pad_id: what fills the output after the end.
        groups: G, which divides K: so many beams of K / G search one after the other at every step.
        diversity: what a token costs for each live hypothesis of an earlier group that took it in the same step.
        vocab_axes: inside `jax.shard_map`, the mesh axes over which the step's vocabulary is split, in parts of one
            width in the order of the tokens; their devices hold the same rows. The result is that of the whole
            vocabulary, on all of them. Columns that only pad the last part are at -inf.
        return_attention: also return the attention of the hypotheses.
    """

    size: int
    ranking: Ranking
    bos_id: int
    eos_id: int
    pad_id: int
    groups: int = 1
    diversity: float = 0.0
    vocab_axes: tuple[str, ...] = ()
    return_attention: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"The beam's `size` must be at least 1, but is {self.size} instead.")
        if self.groups < 1 or self.size % self.groups:
            raise ValueError(f"`groups` must divide the beam's size of {self.size}, but is {self.groups} instead.")
        if self.diversity < 0:
            raise ValueError(f"`diversity` must not be negative, but is {self.diversity} instead.")

    def start(self, step_fn: Step, cache: Cache, rows: Rows, *, max_len: int) -> BeamState:
        """The state before step 0: one live hypothesis a group, so that none appears twice in it."""
        if max_len < 1:
            raise ValueError(f"`max_len` must be at least 1, but is {max_len} instead.")
        max_lengths = jnp.minimum(rows.max_lengths, max_len).astype(jnp.int32)
        done = ~rows.row_mask | (max_lengths <= 0)
        shape = (done.shape[0], self.size)
        cache = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (*shape, *x.shape[1:])), cache)
        tokens, zeros = jnp.full(shape, self.bos_id, jnp.int32), jnp.zeros(shape, jnp.int32)
        result = jax.eval_shape(over_hypotheses(step_fn), tokens, zeros[:, 0], cache)
        self._check_step(result)
        attended = () if result.attention is None else result.attention.shape[2:]
        impossible = jnp.full(shape, -jnp.inf, jnp.float32)
        first = impossible.at[:, :: self.size // self.groups].set(0.0)
        covers = bool(self.ranking.coverage_penalty)
        history = (shape[0], max_len, self.size)
        return BeamState(
            time=zeros[:, 0],
            done=done,
            max_lengths=max_lengths,
            min_lengths=jnp.minimum(rows.min_lengths, max_lengths).astype(jnp.int32),
            longest=self.ranking.terms(max_len)[jnp.maximum(max_lengths, 0)],
            source_mask=rows.source_mask if covers else None,
            cache=cache,
            live=Live(
                tokens=tokens,
                parents=zeros,
                log_probs=jnp.where(done[:, None], impossible, first),
                coverage=jnp.zeros((*shape, *attended), jnp.float32) if covers else None,
            ),
            ended=Ended(scores=impossible, log_probs=impossible, lengths=zeros, parents=zeros),
            trail=Trail(
                tokens=jnp.zeros(history, jnp.int32),
                parents=jnp.zeros(history, jnp.int32),
                attention=jnp.zeros((*history, *attended), jnp.float32) if self.return_attention else None,
            ),
        )

    def advance(self, step_fn: Step, state: BeamState) -> BeamState:
        """One step of every row that is not done."""
        cache = state.cache
        if self.size > 1:
            # Here and not at the end of the step before: what reorders a cache and what writes into it are then one.
            cache = jax.tree.map(lambda leaf: gather_beams(leaf, state.live.parents), cache)
        result = over_hypotheses(step_fn)(state.live.tokens, state.time, cache)
        attention = None if result.attention is None else result.attention.astype(jnp.float32)
        coverage, penalties = state.live.coverage, jnp.zeros_like(state.live.log_probs)
        if coverage is not None and attention is not None and state.source_mask is not None:
            coverage = coverage + attention
            penalties = self.ranking.penalise_coverage(coverage, state.source_mask)
        candidates = list_candidates(
            result,
            self.ranking,
            eos_id=self.eos_id,
            forbidden=tuple({self.pad_id, self.bos_id} - {self.eos_id}),
            alive=state.live.log_probs > -jnp.inf,
            may_end=state.time + 1 >= state.min_lengths,
            must_end=state.time + 1 >= state.max_lengths,
            vocab_axes=self.vocab_axes,
        )
        live, ended = self._expand(state, candidates, penalties)
        live = dataclasses.replace(live, coverage=None if coverage is None else gather_beams(coverage, live.parents))
        live, ended = jax.tree.map(
            lambda new, old: jnp.where(state.done.reshape((-1,) + (1,) * (new.ndim - 1)), old, new),
            (live, ended),
            (state.live, state.ended),
        )
        time = jnp.where(state.done, state.time, state.time + 1)
        return dataclasses.replace(
            state,
            time=time,
            done=state.done | (time >= state.max_lengths) | self._is_settled(state, live, ended),
            cache=result.cache,
            live=live,
            ended=ended,
            trail=write_step(
                state.trail,
                live.tokens,
                live.parents,
                attention,
                time=jnp.where(state.done, state.trail.tokens.shape[1], state.time),
            ),
        )

    def collect(self, state: BeamState) -> Hypotheses:
        """The n best of each row, best first, without duplicates; of rows that are not done, those that ended so far.

        A slot without a hypothesis has length 0, score and log_prob -inf.
        """
        pool, last_tokens, ended = self._pool(state)
        if self.groups > 1:
            repeated = self._is_repeated(state, pool, last_tokens)
            pool = dataclasses.replace(pool, scores=jnp.where(repeated, -jnp.inf, pool.scores))
        behind = ~ended if self.ranking.unfinished == "last" else jnp.zeros_like(ended)
        order = jnp.lexsort((-pool.scores, behind, pool.scores == -jnp.inf))[:, : self.size]
        pool, last_tokens, ended = jax.tree.map(lambda x: gather_beams(x, order), (pool, last_tokens, ended))
        possible = pool.scores > -jnp.inf
        lengths = jnp.where(possible, pool.lengths, 0)
        tokens, attention = read_outputs(state.trail, pool.parents, last_tokens, lengths, pad_id=self.pad_id)
        return Hypotheses(
            tokens=tokens,
            lengths=lengths,
            scores=pool.scores,
            log_probs=jnp.where(possible, pool.log_probs, -jnp.inf),
            finished=ended & possible,
            attention=attention,
        )

    def _check_step(self, result: StepResult) -> None:
        size, eos = count_tokens(result, self.vocab_axes), self.eos_id
        if not 0 <= eos < size:
            raise ValueError(f"`eos_id` must be a token of the step's vocabulary of {size}, but is {eos} instead.")
        if result.attention is None and (self.return_attention or self.ranking.coverage_penalty):
            raise ValueError(
                "`coverage_penalty` and `return_attention` need a step that returns attention, but this one returns "
                "None."
            )

    def _expand(self, state: BeamState, candidates: Candidates, penalties: Array) -> tuple[Live, Ended]:
        """Parts the candidates, group by group, into those that end and the best that go on (without coverage)."""
        size = self.size // self.groups
        found: list[tuple[Live, Ended]] = []
        for offset in range(0, self.size, size):
            own, log_probs, ended, coverage = jax.tree.map(
                lambda x: x[:, offset : offset + size],  # noqa: B023
                (candidates, state.live.log_probs, state.ended, penalties),
            )
            totals = log_probs[:, :, None] + own.log_probs
            preferences = totals
            if self.diversity:
                for earlier, _ in found:
                    tokens = jnp.where(earlier.log_probs > -jnp.inf, earlier.tokens, -1)[:, None, None, :]
                    times_taken = jnp.sum(own.tokens[..., None] == tokens, axis=-1)  # [B, K / G, W]
                    preferences = preferences - self.diversity * times_taken
            own = own._replace(log_probs=totals)
            found.append(self._expand_group(state, own, preferences, ended, coverage, offset))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *found)

    def _expand_group(
        self,
        state: BeamState,
        candidates: Candidates,
        preferences: Array,
        ended: Ended,
        penalties: Array,
        offset: int,
    ) -> tuple[Live, Ended]:
        """The same for the beams from `offset` on; the candidates' log_probs are totals, as are the preferences."""
        batch, size, width = candidates.tokens.shape
        terms = self._terms(state)[(state.time + 1)[:, None]]
        last = (state.time + 1 >= state.max_lengths)[:, None, None]
        if self.ranking.coverage_penalty:
            # What the last step leaves is final, so it is chosen by score (times lp) and no more by log P.
            preferences = preferences + jnp.where(last, (penalties * terms.divisors)[:, :, None], 0.0)
        is_eos = candidates.tokens == self.eos_id

        def flatten(x: Array) -> Array:
            return x.reshape(batch, -1)  # [B, K * W]

        # 1. Which eos are among the best of all continuations: they end their hypotheses.
        banks = None if candidates.banks is None else flatten(candidates.banks)
        among = min(size * self.ranking.end_among, size * width)
        winners = select_in_turn(flatten(preferences), banks, among)
        wins = jnp.zeros((batch, size * width), bool).at[jnp.arange(batch)[:, None], winners].set(True)
        eos_wins = jnp.where(last, jnp.arange(width) < among, wins.reshape(is_eos.shape))
        log_probs = jnp.max(jnp.where(is_eos & eos_wins, candidates.log_probs, -jnp.inf), axis=-1)  # [B, K]
        ended = self._merge(ended, log_probs, terms.score(log_probs) + penalties, state.time + 1, offset)

        # 2. The best that are not eos: they are the live ones of the next step.
        open_ends = flatten(jnp.where(is_eos, -jnp.inf, preferences))
        chosen = select_in_turn(open_ends, banks, size)
        possible = gather_beams(open_ends, chosen) > -jnp.inf
        return Live(
            tokens=gather_beams(flatten(candidates.tokens), chosen),
            parents=offset + chosen // width,
            log_probs=jnp.where(possible, gather_beams(flatten(candidates.log_probs), chosen), -jnp.inf),
            coverage=None,
        ), ended

    def _merge(self, ended: Ended, log_probs: Array, scores: Array, length: Array, offset: int) -> Ended:
        """The best of the ended hypotheses and the new ones, `[B, K]`, one from each beam."""
        size = scores.shape[-1]
        beams = jnp.arange(offset, offset + size, dtype=jnp.int32)
        new = Ended(scores=scores, log_probs=log_probs, lengths=length[:, None], parents=beams)
        merged = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)], axis=-1), ended, new)
        scores = self.ranking.drop(merged.scores, jnp.max(merged.scores, axis=-1, keepdims=True))
        merged = dataclasses.replace(merged, scores=scores)
        keys = merged.scores
        if self.ranking.stop == "first":  # nothing that came later takes a slot from what is there
            there = (jnp.arange(2 * size) < size) & (keys > -jnp.inf)
            keys = jnp.where(there, jnp.inf, keys)
        order = select_in_turn(keys, None, size)
        return jax.tree.map(lambda x: gather_beams(x, order), merged)

    def _is_settled(self, state: BeamState, live: Live, ended: Ended) -> Array:
        """Rows `[B]` where no group can or may find more."""
        table, length = self._terms(state), state.time + 1
        by_group = (length.shape[0], self.groups, -1)
        settled = self.ranking.is_settled(
            jnp.max(live.log_probs.reshape(by_group), axis=-1),
            ended.scores.reshape(by_group),
            now=table[length[:, None]],
            shortest=table[jnp.minimum(length + 1, state.max_lengths)[:, None]],
            longest=jax.tree.map(lambda x: x[:, None], state.longest),
        )
        return jnp.all(settled, axis=-1)

    def _terms(self, state: BeamState) -> LengthTerms:
        """By length, for all steps that the trail has room for."""
        return self.ranking.terms(state.trail.tokens.shape[1])

    def _pool(self, state: BeamState) -> tuple[Ended, Array, Array]:
        """All that ended, and the live ones that are at their maximum length: with last tokens, and which ended."""
        live, ended = state.live, state.ended
        at_end = (state.time >= state.max_lengths)[:, None]
        log_probs = jnp.where(at_end, live.log_probs, -jnp.inf)
        scores = self._terms(state)[state.time[:, None]].score(log_probs)
        if live.coverage is not None and state.source_mask is not None:
            scores = scores + self.ranking.penalise_coverage(live.coverage, state.source_mask)
        cut = Ended(
            scores=self.ranking.drop(scores, jnp.max(ended.scores, axis=-1, keepdims=True)),
            log_probs=log_probs,
            lengths=jnp.broadcast_to(state.time[:, None], scores.shape),
            parents=live.parents,
        )
        pool = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=-1), ended, cut)
        last_tokens = jnp.concatenate([jnp.full_like(live.tokens, self.eos_id), live.tokens], axis=-1)
        return pool, last_tokens, jnp.broadcast_to(jnp.arange(2 * self.size) < self.size, last_tokens.shape)

    def _is_repeated(self, state: BeamState, pool: Ended, last_tokens: Array) -> Array:
        """Outputs `[B, 2 K]` that are also in a slot before, of another group."""
        lengths = jnp.where(pool.scores > -jnp.inf, pool.lengths, 0)
        trail = dataclasses.replace(state.trail, attention=None)
        tokens, _ = read_outputs(trail, pool.parents, last_tokens, lengths, pad_id=self.pad_id)
        same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (lengths[:, :, None] == lengths[:, None])
        return jnp.any(jnp.tril(same, -1), axis=-1)


def beam_search(
    step_fn: Step,
    cache: Cache,
    *,
    beam_size: int,
    max_lengths: Array,
    max_len: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    ranking: Ranking = Ranking(),  # noqa: B008
    min_lengths: Array | None = None,
    source_mask: Array | None = None,
    row_mask: Array | None = None,
    groups: int = 1,
    diversity: float = 0.0,
    return_attention: bool = False,
    vocab_axes: tuple[str, ...] = (),
) -> Hypotheses:
    """Searches some rows from start to end; see `Beam` and `Rows` for the arguments.

    `step_fn` is one step of the model over `[B]` rows, and `cache` has leaves `[B, ...]`. The step is called through
    `jax.vmap` over the beams, so whatever it closes over (the memory) is never copied per beam.

    Raises:
      ValueError: for arguments that contradict each other, or the step.
    """
    if ranking.coverage_penalty and source_mask is None:
        raise ValueError("`coverage_penalty` needs `source_mask`: pass the mask, or a penalty of 0.")
    method = Beam(
        size=beam_size,
        ranking=ranking,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        groups=groups,
        diversity=diversity,
        vocab_axes=vocab_axes,
        return_attention=return_attention,
    )
    rows = make_rows(max_lengths, source_mask=source_mask, min_lengths=min_lengths, row_mask=row_mask)
    return run_search(method, step_fn, method.start(step_fn, cache, rows, max_len=max_len), max_len)
