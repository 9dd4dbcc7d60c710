"""Beam search over any step function, as a pure function that can be jitted.

    tokens [B, K] ──▶ step, vmapped over K ──▶ log_probs [B, K, V]
                                                   │ top K + 1 of each beam, then over the beams
                              ┌────────────────────┴───────────────┐
                    ends with eos: into K ended slots,     others: the K live beams of the
                    ranked by the normalised score         next step, caches gathered

Nothing but last steps, beams and back-pointers is kept in the loop; the token sequences (and attention)
of the winners are read off the back-pointers once, at the end.

The score is that of Wu et al. 2016 (Google's Neural Machine Translation System, equation 14):

    score(Y) = log P(Y) / lp(Y) + cp(Y)       lp(Y) = ((5 + |Y|) / 6)^α
    cp(Y) = β Σᵢ log min(Σⱼ pᵢⱼ, 1)           i over source positions, j over target positions, |Y| with eos

Differs from the paper: no pruning by score difference. Live beams are compared by log P alone (they are
all of one length); a source position that never got attention counts as the smallest normal float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.selection import count_tokens, forbid, gather_beams, select_tokens
from seq2seq_jax.interfaces import Array, Cache, Hypotheses, Step, StepResult


@dataclasses.dataclass(frozen=True)
class _Rules:
    """What stays the same during a search."""

    beam_size: int
    max_len: int
    eos_id: int
    forbidden: tuple[int, ...]
    length_penalty: float
    coverage_penalty: float
    early_stop: bool
    vocab_axes: tuple[str, ...]

    @property
    def length_divisors(self) -> Array:
        """lp(Y) by length, `[max_len + 2]` float32; computed once in float64, so monotone in the length."""
        lengths = np.arange(self.max_len + 2)
        return jnp.asarray(((5.0 + lengths) / 6.0) ** self.length_penalty, jnp.float32)


@struct.dataclass
class _Live:
    """The hypotheses that still grow; dead ones have log_probs -inf."""

    tokens: Array  # [B, K] int32, the latest token
    parents: Array  # [B, K] int32, the beam that it grew from
    log_probs: Array  # [B, K] float32
    coverage: Array | None  # [B, K, S] float32, attention summed over the steps so far


@struct.dataclass
class _Ended:
    """The best K hypotheses so far that ended with eos, best first; empty slots have scores -inf."""

    scores: Array  # [B, K] float32
    log_probs: Array  # [B, K] float32
    lengths: Array  # [B, K] int32, eos included
    parents: Array  # [B, K] int32, the beam that predicted the last token


@struct.dataclass
class _Trail:
    """What happened at each step, for reading the sequences off at the end."""

    tokens: Array  # [T, B, K] int32
    parents: Array  # [T, B, K] int32
    attention: Array | None  # [T, B, K, S] float32, of the beams before they were reordered


@struct.dataclass
class _State:
    time: Array  # [] int32
    done: Array  # [B] bool
    cache: Cache  # leaves [B, K, ...]
    live: _Live
    ended: _Ended
    trail: _Trail


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
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    source_mask: Array | None = None,
    early_stop: bool = True,
    row_mask: Array | None = None,
    return_attention: bool = False,
    vocab_axes: tuple[str, ...] = (),
) -> Hypotheses:
    """Finds the K best outputs of each row by beam search; see the module for the score.

    Rows are independent: a row that is done stays as it is, so its result does not depend on its
    neighbours in the batch. `pad_id` and `bos_id` are never predicted (unless they double as eos).

    A hypothesis ends where eos is among the K best of all continuations of its row; at a row's last
    permitted step, where it is among the K best of its own beam. Hypotheses that reach the row's
    maximum length without eos fill what slots are left: they are ranked by the same score, after all
    that ended, with `finished` False.

    Args:
      step_fn: One step of the model over `[B]` rows; called through `jax.vmap` over the beams, so
        whatever it closes over (the memory) is never copied per beam.
      cache: The model's cache before the first step, leaves `[B, ...]`.
      beam_size: K, also the number of hypotheses returned a row. May exceed the vocabulary.
      max_lengths: `[B]` int32, longest output of each row, eos included; cut to `max_len`.
      max_len: T, the number of steps at most (static).
      bos_id: The token that is fed at step 0.
      eos_id: The token that ends a hypothesis.
      pad_id: What fills the output after the end.
      length_penalty: α of the score, 0 for none (static).
      coverage_penalty: β of the score, 0 for none (static); needs `source_mask` and a step with attention.
      source_mask: `[B, S]` bool, True where the source is real.
      early_stop: Stop a row when no live hypothesis can enter its n best any more. This changes no
        result, as long as no step returns log_probs above 0.
      row_mask: `[B]` bool, False for rows that only fill the batch; they come back empty.
      return_attention: Also return the attention, `[B, K, T, S]` float32, zero after the end.
      vocab_axes: Inside `jax.shard_map`, the mesh axes over which the step's vocabulary is split, in parts of one
        width in the order of the tokens; their devices hold the same rows. The result is that of the whole
        vocabulary, on all of them. Columns that only pad the last part are at -inf.

    Returns:
      `Hypotheses`, all K slots sorted best first, without duplicates. A slot without a hypothesis has
      length 0, score and log_prob -inf.

    Raises:
      ValueError: for arguments that contradict each other, or the step.
    """
    _check_sizes(beam_size=beam_size, max_len=max_len, coverage_penalty=coverage_penalty, source_mask=source_mask)
    rules = _Rules(
        beam_size=beam_size,
        max_len=max_len,
        eos_id=eos_id,
        forbidden=tuple({pad_id, bos_id} - {eos_id}),
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        early_stop=early_stop,
        vocab_axes=vocab_axes,
    )
    step = jax.vmap(step_fn, in_axes=(1, None, 1), out_axes=1)
    max_lengths = jnp.minimum(max_lengths, max_len).astype(jnp.int32)
    done = max_lengths <= 0 if row_mask is None else (max_lengths <= 0) | ~row_mask
    cache = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], beam_size) + x.shape[1:]), cache)

    shape = (max_lengths.shape[0], beam_size)
    tokens = jnp.full(shape, bos_id, jnp.int32)
    result = jax.eval_shape(step, tokens, jnp.zeros(shape[:1], jnp.int32), cache)
    _check_step(rules, result, needs_attention=return_attention or bool(coverage_penalty))
    attention_shape = () if result.attention is None else result.attention.shape
    state = _start(rules, tokens, done, cache, attention_shape, return_attention)

    def advance(state: _State) -> _State:
        return _advance(rules, step, state, max_lengths, source_mask)

    state = run_loop(advance, state, max_len)
    return _collect(rules, state, max_lengths, source_mask, row_open=~done, pad_id=pad_id)


def _check_sizes(*, beam_size: int, max_len: int, coverage_penalty: float, source_mask: Array | None) -> None:
    if beam_size < 1:
        raise ValueError(f"`beam_size` must be at least 1, but is {beam_size} instead.")
    if max_len < 1:
        raise ValueError(f"`max_len` must be at least 1, but is {max_len} instead.")
    if coverage_penalty < 0:
        raise ValueError(f"`coverage_penalty` must not be negative, but is {coverage_penalty} instead.")
    if coverage_penalty and source_mask is None:
        raise ValueError("`coverage_penalty` needs `source_mask`: pass the mask, or a penalty of 0.")


def _check_step(rules: _Rules, result: StepResult, *, needs_attention: bool) -> None:
    size, eos = count_tokens(result, rules.vocab_axes), rules.eos_id
    if not 0 <= eos < size:
        raise ValueError(f"`eos_id` must be a token of the step's vocabulary of {size}, but is {eos} instead.")
    if needs_attention and result.attention is None:
        raise ValueError(
            "`coverage_penalty` and `return_attention` need a step that returns attention, but this one returns None."
        )


def _start(
    rules: _Rules, tokens: Array, done: Array, cache: Cache, attention_shape: tuple[int, ...], keep: bool
) -> _State:
    """The state before step 0: one live beam a row, so that no hypothesis appears twice."""
    shape = tokens.shape
    steps = (rules.max_len,) + shape
    impossible = jnp.full(shape, -jnp.inf, jnp.float32)
    zeros = jnp.zeros(shape, jnp.int32)
    return _State(
        time=jnp.zeros((), jnp.int32),
        done=done,
        cache=cache,
        live=_Live(
            tokens=tokens,
            parents=zeros,
            log_probs=impossible.at[:, 0].set(0.0),
            coverage=jnp.zeros(attention_shape, jnp.float32) if rules.coverage_penalty else None,
        ),
        ended=_Ended(scores=impossible, log_probs=impossible, lengths=zeros, parents=zeros),
        trail=_Trail(
            tokens=jnp.zeros(steps, jnp.int32),
            parents=jnp.zeros(steps, jnp.int32),
            attention=jnp.zeros((rules.max_len,) + attention_shape, jnp.float32) if keep else None,
        ),
    )


def _advance(
    rules: _Rules,
    step: Callable[[Array, Array, Cache], StepResult],
    state: _State,
    max_lengths: Array,
    source_mask: Array | None,
) -> _State:
    """One step of every row; rows that are done keep their hypotheses."""
    time = state.time
    result = step(state.live.tokens, jnp.full(state.done.shape, time), state.cache)
    # A beam can fill all K places of the next step, besides its eos: no more than K + 1 tokens matter.
    token_ids = None if result.token_ids is None else result.token_ids[:, 0]  # one copy a beam, from vmap
    log_probs = forbid(result.log_probs, rules.forbidden, token_ids)  # [B, K, V]
    candidates = select_tokens(log_probs, rules.beam_size + 1, token_ids, rules.vocab_axes)  # [B, K, W]
    attention = None if result.attention is None else result.attention.astype(jnp.float32)
    coverage = state.live.coverage
    if coverage is not None and attention is not None:
        coverage = coverage + attention
    penalties = _coverage_penalties(rules, coverage, source_mask)  # [B, K], or 0.0

    last = time + 1 >= max_lengths
    live, ended = _expand(rules, state, candidates, coverage, penalties, last)
    live, ended = jax.tree.map(
        lambda new, old: jnp.where(state.done.reshape((-1,) + (1,) * (new.ndim - 1)), old, new),
        (live, ended),
        (state.live, state.ended),
    )
    history = state.trail.attention
    trail = _Trail(
        tokens=state.trail.tokens.at[time].set(live.tokens),
        parents=state.trail.parents.at[time].set(live.parents),
        attention=None if history is None or attention is None else history.at[time].set(attention),
    )
    cache = result.cache
    if rules.beam_size > 1:
        cache = jax.tree.map(lambda leaf: gather_beams(leaf, live.parents), cache)
    done = state.done | last | _is_settled(rules, live, ended, time, max_lengths)
    return _State(time=time + 1, done=done, cache=cache, live=live, ended=ended, trail=trail)


def _expand(
    rules: _Rules,
    state: _State,
    candidates: tuple[Array, Array],
    coverage: Array | None,
    penalties: Array | float,
    last: Array,
) -> tuple[_Live, _Ended]:
    """Parts the continuations (log-probabilities, tokens `[B, K, W]`) into those that end and the K best that go on."""
    batch, beam = state.live.tokens.shape
    divisor = rules.length_divisors[state.time + 1]
    best, tokens = candidates
    totals = state.live.log_probs[:, :, None] + best
    is_eos = tokens == rules.eos_id
    preferences = totals
    if rules.coverage_penalty:
        # What the last step leaves is final, so it is chosen by score (times lp) and no more by log P.
        preferences = totals + jnp.where(last[:, None], penalties * divisor, 0.0)[:, :, None]

    def flatten(x: Array) -> Array:
        return x.reshape(batch, -1)  # [B, K * W]

    _, winners = lax.top_k(flatten(preferences), beam)
    wins = jnp.zeros(flatten(is_eos).shape, bool).at[jnp.arange(batch)[:, None], winners].set(True)
    among_best = jnp.where(last[:, None, None], jnp.arange(best.shape[-1]) < beam, wins.reshape(is_eos.shape))
    eos_log_probs = jnp.max(jnp.where(is_eos & among_best, totals, -jnp.inf), axis=-1)  # [B, K]
    ended = _merge(state.ended, eos_log_probs, eos_log_probs / divisor + penalties, state.time + 1)

    values, chosen = lax.top_k(flatten(jnp.where(is_eos, -jnp.inf, preferences)), beam)
    parents = chosen // best.shape[-1]
    return _Live(
        tokens=gather_beams(flatten(tokens), chosen),
        parents=parents,
        log_probs=jnp.where(values > -jnp.inf, gather_beams(flatten(totals), chosen), -jnp.inf),
        coverage=None if coverage is None else gather_beams(coverage, parents),
    ), ended


def _merge(ended: _Ended, log_probs: Array, scores: Array, length: Array) -> _Ended:
    """The K best of the ended hypotheses and the new ones, `[B, K]`, one from each beam."""
    beam = scores.shape[-1]
    merged = jax.tree.map(
        lambda old, new: jnp.concatenate([old, jnp.broadcast_to(new, old.shape)], axis=-1),
        ended,
        _Ended(scores=scores, log_probs=log_probs, lengths=length, parents=jnp.arange(beam, dtype=jnp.int32)),
    )
    _, order = lax.top_k(merged.scores, beam)
    return jax.tree.map(lambda x: gather_beams(x, order), merged)


def _is_settled(rules: _Rules, live: _Live, ended: _Ended, time: Array, max_lengths: Array) -> Array:
    """Rows `[B]` where no live hypothesis is left, or none that could still enter the n best.

    A live hypothesis can only lose log-probability and its coverage penalty is at most 0, so log P now
    over the most favourable lp (that of the longest output if α > 0, of the shortest if α < 0) bounds
    its score from above.
    """
    best = jnp.max(live.log_probs, axis=-1)
    settled = best == -jnp.inf
    if rules.early_stop:
        shortest = jnp.minimum(time + 2, max_lengths)
        divisors = rules.length_divisors
        bound = jnp.maximum(best / divisors[shortest], best / divisors[max_lengths])
        settled = settled | (bound <= ended.scores[:, -1])
    return settled


def _coverage_penalties(rules: _Rules, coverage: Array | None, source_mask: Array | None) -> Array | float:
    """cp(Y) of each beam, `[B, K]`; at most 0."""
    if coverage is None or source_mask is None:
        return 0.0
    logs = jnp.log(jnp.clip(coverage, jnp.finfo(jnp.float32).tiny, 1.0))
    return rules.coverage_penalty * jnp.sum(jnp.where(source_mask[:, None, :], logs, 0.0), axis=-1)


def _collect(
    rules: _Rules, state: _State, max_lengths: Array, source_mask: Array | None, *, row_open: Array, pad_id: int
) -> Hypotheses:
    """Ended hypotheses first, then those cut off at the maximum length, each part best first."""
    live, ended = state.live, state.ended
    beam = rules.beam_size
    log_probs = jnp.where(row_open[:, None], live.log_probs, -jnp.inf)
    divisors = rules.length_divisors[jnp.maximum(max_lengths, 0)][:, None]
    scores = log_probs / divisors + _coverage_penalties(rules, live.coverage, source_mask)
    scores, order = lax.top_k(scores, beam)
    cut = _Ended(
        scores=scores,
        log_probs=gather_beams(log_probs, order),
        lengths=jnp.broadcast_to(max_lengths[:, None], scores.shape),
        parents=gather_beams(live.parents, order),
    )
    # A row that stopped early has K ended hypotheses: its live ones, not at their end, take no slot.
    slots = jnp.arange(beam)
    count = jnp.sum(ended.scores > -jnp.inf, axis=-1, keepdims=True)  # [B, 1]
    finished = slots < count
    source = jnp.where(finished, slots, beam + slots - count)
    kept = jax.tree.map(lambda a, b: gather_beams(jnp.concatenate([a, b], axis=-1), source), ended, cut)
    cut_tokens = gather_beams(live.tokens, gather_beams(order, jnp.maximum(slots - count, 0)))
    last_tokens = jnp.where(finished, rules.eos_id, cut_tokens)
    lengths = jnp.where(kept.scores > -jnp.inf, kept.lengths, 0)
    tokens, attention = _read_trail(state.trail, kept.parents, last_tokens, lengths, pad_id)
    return Hypotheses(
        tokens=tokens,
        lengths=lengths,
        scores=kept.scores,
        log_probs=kept.log_probs,
        finished=finished,
        attention=attention,
    )


def _read_trail(
    trail: _Trail, parents: Array, last_tokens: Array, lengths: Array, pad_id: int
) -> tuple[Array, Array | None]:
    """Follows the back-pointers from each hypothesis's last token; `[B, K, T]` and `[B, K, T, S]`."""

    def step_back(beams: Array, inputs: tuple[Array, _Trail]) -> tuple[Array, tuple[Array, Array | None]]:
        time, now = inputs
        inside = time < lengths - 1
        tokens = jnp.where(inside, gather_beams(now.tokens, beams), jnp.where(time == lengths - 1, last_tokens, pad_id))
        beams = jnp.where(inside, gather_beams(now.parents, beams), beams)
        attention = now.attention
        if attention is not None:
            attention = jnp.where((time < lengths)[:, :, None], gather_beams(attention, beams), 0.0)
        return beams, (tokens, attention)

    times = jnp.arange(trail.tokens.shape[0])
    _, sequences = lax.scan(step_back, parents, (times, trail), reverse=True)
    tokens, attention = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), sequences)
    return tokens, attention
