"""What outputs must and must not say: a step around a step, for any model and any way of searching.

| asked for             | what the step does                                                                   |
|-----------------------|--------------------------------------------------------------------------------------|
| `prefix`              | only its next token is possible, with the model's own log-probability                |
| `must`                | eos is impossible until all phrases were said; tells which tokens would get on with   |
|                       | them; where no more than they still fits, nothing else is possible                   |
| `must_not`            | the token is impossible that would finish a phrase                                   |
| `no_repeat_ngram` = n | the token is impossible that would say an n-gram for the second time                 |
| `max_loop` = m        | the token is impossible that would let a phrase follow itself more than m times       |

The prefix goes before all others, and what must be said before the two guards against repetition. What is left is
not normalised again: scores stay those of the model. The first three differ by row, the last two are settings of the
search; what is not asked for is not in the compiled program.

How far a phrase has been said is kept in the cache, as the state of an automaton (Knuth, Morris and Pratt 1977) that
reads all tokens, the prefix's too: phrases may overlap. The search fills its beam by how much was said ("banks", Post
and Vilar 2018, arXiv:1804.06609), from `StepResult.wanted`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decode.guards import (
    completes_loop,
    completes_phrase,
    forbid_listed,
    loop_window,
    repeats_ngram,
)
from seq2seq_jax.decode.steps import Constraints, Decoder, Inputs
from seq2seq_jax.interfaces import Array, Cache, PyTree, Step, StepResult


@struct.dataclass
class _Phrases:
    """Phrases that must be said."""

    tokens: Array  # [B, C, M] int32, -1 after the end
    lengths: Array  # [B, C] int32
    matches: Array  # [B, C, M + 1] int32: how many tokens from d on are those from 0 on


@struct.dataclass
class _Held:
    """What is read and not rewritten; None for what no row was asked."""

    inner: PyTree
    rows: Array  # [B] int32 zeros
    prefix: Array | None  # [B, P] int32, -1 after the end
    must: _Phrases | None
    heads: Array | None  # [B, N, L - 1] int32, see `guards.completes_phrase`
    lasts: Array | None  # [B, N] int32
    limits: Array | None  # [B] int32, longest output


@struct.dataclass
class _Said:
    """What a hypothesis remembers; None for what is not needed."""

    inner: Cache
    recent: Array | None  # [B, W] int32, the latest tokens, the last one last; -1 before the first
    history: Array | None  # [B, T] int32, all tokens
    progress: Array | None  # [B, C] int32, tokens of each phrase


def constrain(decoder: Decoder, *, eos_id: int, no_repeat_ngram: int = 0, max_loop: int = 0) -> Decoder:
    """Puts `inputs.constraints` and the guards against repetition around a decoder; the parameters stay as they are.

    A hypothesis may be left without any possible token (what it must say next is what it must not say, or does not
    fit): then all its log-probabilities are -inf, and a search drops it.

    Args:
      decoder: of a model, an ensemble, a fusion.
      eos_id: the token that ends an output.
      no_repeat_ngram: n, tokens that may not come twice in this order; 0 is off.
      max_loop: how often a phrase of 1 to 8 tokens may follow itself in a row; 0 is off.

    Raises:
      ValueError: a setting is under 0.
    """
    if no_repeat_ngram < 0 or max_loop < 0:
        raise ValueError(
            f"`no_repeat_ngram` and `max_loop` must be at least 0, but are {no_repeat_ngram} and {max_loop} instead."
        )

    def encode(params: PyTree, inputs: Inputs) -> _Held:
        return _hold(decoder.encode(params, inputs), inputs)

    def init_cache(params: PyTree, held: _Held, max_len: int) -> _Said:
        window = max(loop_window(max_loop), 0 if held.heads is None else held.heads.shape[-1])
        empty = held.rows[:, None]
        progress = None if held.must is None else jnp.zeros_like(held.must.lengths)
        return _Said(
            inner=decoder.init_cache(params, held.inner, max_len),
            recent=jnp.broadcast_to(empty - 1, (empty.shape[0], window)) if window else None,
            history=jnp.broadcast_to(empty, (empty.shape[0], max_len)) if no_repeat_ngram else None,
            progress=progress,
        )

    def make_step(params: PyTree, held: _Held) -> Step:
        inner = decoder.make_step(params, held.inner)

        def step_fn(tokens: Array, step: Array, cache: _Said) -> StepResult:
            result = inner(tokens, step, cache.inner)
            said = _remember(held, cache, tokens, step)
            guarded = [] if said.history is None else [repeats_ngram(said.history, step, no_repeat_ngram)]
            if max_loop and said.recent is not None:
                guarded.append(completes_loop(said.recent, max_loop))
            result = _restrict(held, result, said, step, guarded, eos_id)
            return result.replace(cache=said.replace(inner=result.cache))  # type: ignore[attr-defined]

        return step_fn

    return dataclasses.replace(
        decoder,
        encode=encode,
        init_cache=init_cache,
        make_step=make_step,
        attended=lambda held: decoder.attended(held.inner),
    )


def _hold(inner: PyTree, inputs: Inputs) -> _Held:
    """The constraints as the step reads them; what has no width is left out."""
    asked, rows = inputs.constraints, jnp.zeros_like(inputs.source_mask[:, 0], jnp.int32)
    held = _Held(inner, rows, None, None, None, None, inputs.max_lengths)
    if asked is None:
        return held
    prefix, must = asked.prefix, None
    if asked.must.shape[1]:
        tokens = _end_at(asked.must, asked.must_lengths)
        must = _Phrases(tokens, asked.must_lengths, _match_beginnings(tokens))
    heads, lasts = None, None
    if asked.must_not.shape[1]:
        heads, lasts = _split_phrases(asked.must_not, asked.must_not_lengths)
    return held.replace(  # type: ignore[attr-defined]
        prefix=_end_at(prefix, asked.prefix_lengths) if prefix.shape[1] else None, must=must, heads=heads, lasts=lasts
    )


def _end_at(tokens: Array, lengths: Array) -> Array:
    """`[..., L]` with -1 after the end."""
    return jnp.where(jnp.arange(tokens.shape[-1]) < lengths[..., None], tokens, -1)


def _split_phrases(tokens: Array, lengths: Array) -> tuple[Array, Array]:
    """Phrases `[B, N, L]` as heads, put to the end, and last tokens; see `guards.completes_phrase`."""
    size = tokens.shape[-1]
    source = jnp.arange(size) - (size - lengths[..., None])  # the same phrases, all ending at L - 1
    moved = jnp.where(source >= 0, jnp.take_along_axis(tokens, jnp.maximum(source, 0), axis=-1), -1)
    return moved[..., :-1], moved[..., -1]


def _match_beginnings(tokens: Array) -> Array:
    """How many tokens of a phrase `[B, C, M]` from d on are those from 0 on: `[B, C, M + 1]` int32, for d = 0 ... M.

    The Z function (Gusfield 1997, section 1.3): the first i tokens are the last i of the first j if the match at j - i
    is i or longer.
    """
    size = tokens.shape[-1]
    d, r = np.ogrid[: size + 1, : size + 1]
    same = tokens[..., None, np.minimum(r[0], size - 1)] == tokens[..., np.minimum(d + r, size - 1)]
    return jnp.argmin(same & (d + r < size), axis=-1).astype(jnp.int32)  # the first place that differs


def _remember(held: _Held, cache: _Said, tokens: Array, step: Array) -> _Said:
    """What was said, with the token that came before this step; there is none before step 0."""
    recent, history, progress = cache.recent, cache.history, cache.progress
    began = step > 0
    if recent is not None:
        latest = jnp.where(began, tokens, -1)[:, None]
        recent = jnp.concatenate([recent[:, 1:], latest], axis=1)
    if history is not None:
        at = jnp.where(began, step - 1, history.shape[1])
        history = history.at[jnp.arange(tokens.shape[0]), at].set(tokens, mode="drop")
    if progress is not None and held.must is not None:
        after = _move(held.must, progress, tokens[:, None])[:, 0]
        progress = jnp.where(began[:, None], after, progress)
    return _Said(inner=None, recent=recent, history=history, progress=progress)


def _move(phrases: _Phrases, progress: Array, tokens: Array) -> Array:
    """How much of each phrase has been said after each of some tokens, `[B, J]`: `[B, J, C]`; all of it stays all."""
    size = phrases.tokens.shape[-1]
    kept = np.arange(size, dtype=np.int32)  # so many of the latest tokens stay the beginning of the phrase
    begin = progress[:, :, None] - kept
    matches = jnp.take_along_axis(phrases.matches, jnp.maximum(begin, 0), axis=-1)  # [B, C, M]
    stays = (begin >= 0) & (matches >= kept)
    goes_on = stays[:, None] & (phrases.tokens[:, None] == tokens[:, :, None, None])  # [B, J, C, M]
    after = jnp.max(jnp.where(goes_on, np.arange(1, size + 1, dtype=np.int32), 0), axis=-1)
    done = progress == phrases.lengths
    return jnp.where(done[:, None], phrases.lengths[:, None], after)


def _count_met(phrases: _Phrases, progress: Array) -> Array:
    """Tokens `[...]` of the phrases that were said, and of the one that most was said of: progress is `[..., C]`.

    The others have to be said from their beginning: two phrases that begin alike are not said at once.
    """
    lengths = phrases.lengths.reshape(phrases.lengths.shape[:1] + (1,) * (progress.ndim - 2) + (-1,))
    done = progress == lengths
    return jnp.sum(jnp.where(done, lengths, 0), axis=-1) + jnp.max(jnp.where(done, 0, progress), axis=-1)


def _restrict(
    held: _Held, result: StepResult, said: _Said, step: Array, guarded: list[Array], eos_id: int
) -> StepResult:
    """The step's result with -inf for what is not possible, and what phrases want."""
    plain = result.log_probs
    columns = jnp.arange(plain.shape[-1], dtype=jnp.int32) if result.token_ids is None else result.token_ids
    listed = list(guarded)
    wanted = None
    if held.must is not None and said.progress is not None:
        following = jnp.take_along_axis(
            held.must.tokens, jnp.minimum(said.progress, held.must.tokens.shape[-1] - 1)[..., None], axis=-1
        )
        wanted = jnp.where(said.progress < held.must.lengths, following[..., 0], -1)  # [B, C]
        listed = [jnp.where(jnp.any(x[..., None] == wanted[:, None], axis=-1), -1, x) for x in listed]
    if held.lasts is not None and held.heads is not None:
        recent = held.lasts[:, :0] if said.recent is None else said.recent
        listed.append(completes_phrase(recent, held.heads, held.lasts))
    log_probs = plain
    if listed:
        log_probs = forbid_listed(plain, jnp.concatenate(listed, axis=1), result.token_ids)
    if wanted is not None and held.must is not None and said.progress is not None:
        result = result.replace(log_probs=log_probs)  # type: ignore[attr-defined]
        log_probs, wanted, more = _demand(held, said.progress, wanted, result, step, eos_id)
        result = result.replace(wanted_met=more[0], met=more[1])  # type: ignore[attr-defined]
    if held.prefix is not None:
        place = jnp.minimum(step, held.prefix.shape[1] - 1)[:, None]
        due = jnp.where(step < held.prefix.shape[1], jnp.take_along_axis(held.prefix, place, axis=1)[:, 0], -1)
        only = jnp.where(columns == due[:, None], plain, -jnp.inf)
        log_probs = jnp.where(due[:, None] >= 0, only, log_probs)
        wanted = None if wanted is None else jnp.where(due[:, None] >= 0, -1, wanted)
    return result.replace(log_probs=log_probs, wanted=wanted)  # type: ignore[attr-defined]


def _demand(
    held: _Held, progress: Array, wanted: Array, result: StepResult, step: Array, eos_id: int
) -> tuple[Array, Array, tuple[Array, Array]]:
    """No eos while a phrase is left to say, and nothing else where no more than the phrases fits.

    Returns the log-probabilities, the wanted tokens that are possible, and the counts of `StepResult`.
    """
    phrases = held.must
    if phrases is None:
        raise ValueError("There are no phrases.")
    total = jnp.sum(phrases.lengths, axis=-1)  # [B]
    wanted_met = _count_met(phrases, _move(phrases, progress, wanted))  # [B, C]
    met = jnp.sum(jnp.where(progress == phrases.lengths, phrases.lengths, 0), axis=-1)
    left = total > met
    log_probs = forbid_listed(result.log_probs, jnp.where(left, eos_id, -1)[:, None], result.token_ids)
    if held.limits is not None:
        room = (held.limits - step - 2)[:, None]  # after this token, and before eos
        fits = (wanted >= 0) & (total[:, None] - wanted_met <= room)  # [B, C]
        tight = left[:, None] & (total[:, None] - met[:, None] > room) & jnp.any(fits, axis=-1, keepdims=True)
        known = phrases.tokens.reshape(phrases.tokens.shape[0], -1)  # other tokens of the phrases may get on, too
        known_met = _count_met(phrases, _move(phrases, progress, known))
        known = jnp.where(total[:, None] - known_met <= room, known, -1)
        useful = forbid_listed(jnp.zeros_like(log_probs), known, result.token_ids) < 0  # [B, V]
        log_probs = jnp.where(tight & ~useful, -jnp.inf, log_probs)
        wanted = jnp.where(tight & ~fits, -1, wanted)
    return log_probs, wanted, (wanted_met, met)


@dataclasses.dataclass(frozen=True)
class Widths:
    """The shapes of packed constraints, without the rows; a width of 0 asks nothing.

    Attributes:
        prefix: tokens of a prefix.
        must, must_not: phrases of a row, and tokens of a phrase.
    """

    prefix: int
    must: tuple[int, int]
    must_not: tuple[int, int]

    def __bool__(self) -> bool:
        return bool(self.prefix or self.must[0] or self.must_not[0])


def measure_constraints(
    prefixes: Sequence[Sequence[int]],
    must: Sequence[Sequence[Sequence[int]]],
    must_not: Sequence[Sequence[Sequence[int]]],
) -> Widths:
    """The widths that hold all of these rows, each of 0, 2, 8, 16, 32, 64, ...: few programs for all.

    Args:
      prefixes, must, must_not: see `pack_constraints`.
    """
    phrases = [_keep_whole(must), _keep_each(must_not)]
    sizes = [(_round_up(map(len, rows)), _round_up(len(each) for row in rows for each in row)) for rows in phrases]
    return Widths(_round_up(map(len, prefixes)), *sizes)


def pack_constraints(
    prefixes: Sequence[Sequence[int]],
    must: Sequence[Sequence[Sequence[int]]],
    must_not: Sequence[Sequence[Sequence[int]]],
    *,
    widths: Widths | None = None,
) -> Constraints:
    """Token lists of N rows as numpy arrays `[N, ...]`.

    Args:
      prefixes: the tokens that each output begins with.
      must: the phrases that each has; one that is part of another is left out: it is said with it.
      must_not: the phrases that none has.
      widths: of these rows among others; by default those of `measure_constraints`.

    Raises:
      ValueError: a phrase has no tokens, or the three are not of one length.
    """
    for phrase in itertools.chain.from_iterable(itertools.chain(must, must_not)):
        if not len(phrase):
            raise ValueError("A phrase must have at least one token, but one has none.")
    if not len(prefixes) == len(must) == len(must_not):
        raise ValueError(f"There are {len(prefixes)} prefixes, {len(must)} rows of `must`, {len(must_not)} of others.")
    widths = widths or measure_constraints(prefixes, must, must_not)
    said = _pack_phrases(_keep_whole(must), *widths.must)
    unsaid = _pack_phrases(_keep_each(must_not), *widths.must_not)
    arrays: list[Any] = [*_pack_lists(prefixes, widths.prefix), *said, *unsaid]
    return Constraints(*arrays)


Phrases = list[list[Sequence[int]]]


def _keep_each(rows: Sequence[Sequence[Sequence[int]]]) -> Phrases:
    """Each phrase of a row once."""
    return [list(dict.fromkeys(tuple(phrase) for phrase in row)) for row in rows]


def _keep_whole(rows: Sequence[Sequence[Sequence[int]]]) -> Phrases:
    """The same without those that are part of another one."""
    return [[phrase for phrase in row if not any(_is_within(phrase, each) for each in row)] for row in _keep_each(rows)]


def _is_within(phrase: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a phrase is a part of a longer one."""
    size, starts = len(phrase), range(len(other) - len(phrase) + 1)
    return size < len(other) and any(list(other[at : at + size]) == list(phrase) for at in starts)


def _pack_phrases(rows: Phrases, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Phrases as `[N, C, M]`, and their lengths `[N, C]`."""
    flat, lengths = _pack_lists([phrase for row in rows for phrase in (*row, *[()] * (count - len(row)))], width)
    return flat.reshape(len(rows), count, width), lengths.reshape(len(rows), count)


def _pack_lists(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as `[N, width]` and their lengths `[N]`, int32."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), width), np.int32)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    return tokens, lengths


def _round_up(counts: Iterable[int]) -> int:
    """The least of 0, 2, 8, 16, 32, 64, ... that is enough for all."""
    count = max(counts, default=0)
    return next(size for size in itertools.chain((0, 2), (8 << n for n in itertools.count())) if size >= count)
