"""Sampling: outputs drawn token by token from the model's own distribution, several for each source; and greedy search.

    log_probs [B, K, V] ──▶ / temperature ──▶ top_k ──▶ top_p ──▶ weights ──▶ one uniform number a sample ──▶ token

The order is that of Hugging Face's `generate`: the temperature comes first, then the `top_k` most probable tokens are
kept, and of what these have among them the nucleus (Holtzman et al. 2020, The Curious Case of Neural Text
Degeneration, section 3.1): the fewest tokens whose probability sums to at least `top_p`. A temperature of 0 takes the
most probable token: greedy search, which is what a beam of one does.

Every draw is a function of (key of the row, number of the row, number of the sample, time), so that neither the other
rows of a batch nor the devices change it (but for the rounding of the probabilities).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from seq2seq_jax.decode.loop import run_search
from seq2seq_jax.decode.method import Rows, make_rows, over_hypotheses
from seq2seq_jax.decode.selection import count_tokens, forbid, select_tokens
from seq2seq_jax.interfaces import Array, Cache, Hypotheses, Step, StepResult
from seq2seq_jax.parallel.draws import draw_tokens, keyed_uniform


@struct.dataclass
class DrawState:
    """What `Draws` knows of each row; K samples, T steps at most."""

    time: Array  # [B] int32, each row's own clock
    done: Array  # [B] bool, all samples of the row are closed
    closed: Array  # [B, K] bool
    cache: Cache  # leaves [B, K, ...]
    token: Array  # [B, K] int32, the latest
    log_probs: Array  # [B, K] float32, -inf where no token was possible
    finished: Array  # [B, K] bool
    lengths: Array  # [B, K] int32
    tokens: Array  # [B, T, K] int32
    attention: Array | None  # [B, T, K, S] float32
    max_lengths: Array  # [B] int32
    min_lengths: Array  # [B] int32
    keys: Array | None  # [B, K] PRNG keys, one a sample; None where nothing is drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Draws outputs of each row independently of each other, until eos or the row's maximum length: a `Method`.

    Hypotheses come in the order of the draws, not sorted; duplicates stay. Their `scores` and `log_probs` are both
    the model's own log-probability (of temperature 1 and the whole vocabulary). A sample that met a step at which no
    token was possible is empty: length 0, score -inf.

    Attributes:
        samples: K, outputs of each row.
        bos_id: the token that is fed at step 0. Like `pad_id` it is never drawn (unless it is eos too).
        eos_id: the token that ends an output.
        pad_id: what fills the output after the end.
        temperature: the log-probabilities are divided by it; 1 is the model's own distribution, 0 takes the most
            probable token, the lowest of equal ones.
        top_k: draw from the so many most probable tokens alone (with their equals); 0 is all of them.
        top_p: draw from the fewest tokens that have so much probability together, the lowest of equal ones; 1 is all.
        vocab_axes: inside `jax.shard_map`, the mesh axes over which the step's vocabulary is split, in parts of one
            width in the order of the tokens.
        return_attention: keep the attention, zero after the end.

    Raises:
        ValueError: for a number out of its range.
    """

    samples: int
    bos_id: int
    eos_id: int
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    vocab_axes: tuple[str, ...] = ()
    return_attention: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "`samples` must be at least 1, `temperature` and `top_k` at least 0 and `top_p` above 0 and at most 1, "
                f"but are {self.samples}, {self.temperature}, {self.top_k} and {self.top_p} instead."
            )

    def start(self, step_fn: Step, cache: Cache, rows: Rows, *, max_len: int) -> DrawState:
        """The state before step 0.

        Raises:
            ValueError: for rows without keys that need them, or a step that is not split as `vocab_axes` say or lacks
                attention that is asked for.
        """
        if max_len < 1:
            raise ValueError(f"`max_len` must be at least 1, but is {max_len} instead.")
        if self.temperature and rows.keys is None:
            raise ValueError("`rows.keys` are None, but a temperature above 0 draws by them: give a key for every row.")
        max_lengths = jnp.minimum(rows.max_lengths, max_len).astype(jnp.int32)
        done = (max_lengths <= 0) | ~rows.row_mask
        shape = (done.shape[0], self.samples)
        cache = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], shape + x.shape[1:]), cache)
        closed = jnp.broadcast_to(done[:, None], shape)
        time, token = jnp.zeros_like(max_lengths), jnp.full_like(closed, self.bos_id, jnp.int32)
        result: StepResult = jax.eval_shape(lambda *given: _take_step(step_fn, *given), token, time, cache)
        count_tokens(result, self.vocab_axes)
        attention = None
        if self.return_attention:
            if result.attention is None:
                raise ValueError("`return_attention` needs a step that returns attention, but this one returns None.")
            room = (shape[0], max_len, self.samples, result.attention.shape[-1])
            attention = jnp.zeros_like(closed, jnp.float32, shape=room)
        keys = None
        if self.temperature and rows.keys is not None:
            keys = _key_samples(rows.keys, rows.numbers, self.samples)
        return DrawState(
            time=time,
            done=done,
            closed=closed,
            cache=cache,
            token=token,
            log_probs=jnp.where(closed, -jnp.inf, 0.0).astype(jnp.float32),
            finished=jnp.zeros_like(closed),
            lengths=jnp.zeros_like(token),
            tokens=jnp.full_like(token, self.pad_id, shape=(shape[0], max_len, self.samples)),
            attention=attention,
            max_lengths=max_lengths,
            min_lengths=rows.min_lengths.astype(jnp.int32),
            keys=keys,
        )

    def advance(self, step_fn: Step, state: DrawState) -> DrawState:
        """One step of every sample that is open; what closed ones found stays (their caches may not)."""
        result = _take_step(step_fn, state.token, state.time, state.cache)
        token_ids = None if result.token_ids is None else result.token_ids[:, 0]  # one copy a sample, from vmap
        log_probs = forbid(result.log_probs, tuple({self.pad_id, self.bos_id} - {self.eos_id}), token_ids)
        early = (state.time + 1 < state.min_lengths)[:, None, None]
        log_probs = jnp.where(early, forbid(log_probs, (self.eos_id,), token_ids), log_probs)  # [B, K, V]
        token, chosen = self._choose(log_probs, token_ids, state)
        went_on = ~state.closed & (chosen > -jnp.inf)
        token = jnp.where(state.closed, state.token, jnp.where(went_on, token, self.pad_id))
        is_eos = went_on & (token == self.eos_id)
        closed = ~went_on | is_eos | (state.time + 1 >= state.max_lengths)[:, None]
        rows = jnp.arange(state.done.shape[0])
        place = jnp.where(state.done, state.tokens.shape[1], state.time)  # out of range: nothing is written
        trail = jnp.where(went_on, token, self.pad_id)
        attention = state.attention
        if attention is not None and result.attention is not None:
            seen = jnp.where(went_on[..., None], result.attention.astype(jnp.float32), 0.0)
            attention = attention.at[rows, place].set(seen, mode="drop")
        return dataclasses.replace(
            state,
            time=state.time + ~state.done,
            done=closed.all(axis=-1),
            closed=closed,
            cache=result.cache,
            token=token,
            log_probs=jnp.where(state.closed, state.log_probs, state.log_probs + chosen),
            finished=state.finished | is_eos,
            lengths=state.lengths + went_on,
            tokens=state.tokens.at[rows, place].set(trail, mode="drop"),
            attention=attention,
        )

    def collect(self, state: DrawState) -> Hypotheses:
        """The samples in the order of their numbers; those that ran into a step without a possible token are empty."""
        possible = state.log_probs > -jnp.inf
        lengths = jnp.where(possible, state.lengths, 0)
        tokens = jnp.swapaxes(state.tokens, 1, 2)
        there = jnp.arange(tokens.shape[-1]) < lengths[..., None]  # [B, K, T]
        attention = state.attention
        if attention is not None:
            attention = jnp.where(there[..., None], jnp.swapaxes(attention, 1, 2), 0.0)
        return Hypotheses(
            tokens=jnp.where(there, tokens, self.pad_id),
            lengths=lengths,
            scores=state.log_probs,
            log_probs=state.log_probs,
            finished=state.finished & possible,
            attention=attention,
        )

    def _choose(self, log_probs: Array, token_ids: Array | None, state: DrawState) -> tuple[Array, Array]:
        """Tokens `[B, K]` and their log-probabilities, from (this device's part of) those of all tokens."""
        axes = self.vocab_axes
        best, tokens = select_tokens(log_probs, max(self.top_k, 1), token_ids, axes)
        if state.keys is None:
            return tokens[..., 0], best[..., 0]
        top = best[..., :1]
        possible = top > -jnp.inf
        kept = log_probs >= (best[..., -1:] if self.top_k else -jnp.inf)
        weights = jnp.exp((log_probs - jnp.where(possible, top, 0.0)) / self.temperature)
        weights = jnp.where(possible & kept, weights, 0.0)
        if self.top_p < 1:
            weights = keep_nucleus(weights, self.top_p, token_ids, axes)
        uniform = jax.vmap(keyed_uniform)(state.keys.reshape(-1), jnp.repeat(state.time, self.samples))
        token = draw_tokens(weights, uniform.reshape(state.closed.shape), axes=axes)
        if token_ids is None:
            chosen = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
        else:
            chosen = jnp.max(jnp.where(token_ids == token[..., None], log_probs, -jnp.inf), axis=-1)
            chosen = lax.pmax(chosen, axes)
        return token, jnp.where(possible[..., 0], chosen, -jnp.inf)


def _take_step(step_fn: Step, tokens: Array, time: Array, cache: Cache) -> StepResult:
    """The step over samples `[B, K]`; whatever it closes over (the memory) is never copied a sample."""
    if tokens.shape[1] > 1:
        return over_hypotheses(step_fn)(tokens, time, cache)
    result = step_fn(tokens[:, 0], time, jax.tree.map(lambda x: x[:, 0], cache))
    return jax.tree.map(lambda x: x[:, None], result)


def _key_samples(keys: Array, numbers: Array, samples: int) -> Array:
    """A key for every sample, `[B, K]`, from the row's key, its number and the sample's."""

    def fold(key: Array, row: Array) -> Any:
        own = jax.random.fold_in(key, row)
        return jax.vmap(lambda sample: jax.random.fold_in(own, sample))(jnp.arange(samples, dtype=jnp.int32))

    return jax.vmap(fold)(keys, numbers)


def keep_nucleus(
    weights: Array, top_p: float, token_ids: Array | None = None, vocab_axes: tuple[str, ...] = ()
) -> Array:
    """Zeros all but the heaviest weights of each row: the fewest that sum to at least `top_p` of the whole.

    Of equal weights the lowest tokens are kept, as after sorting. Nothing is sorted: the smallest weight that stays
    is found bit by bit (the bits of floats that are not negative are in their order), and of those equal to it the
    highest token that stays. So devices that share a vocabulary only send sums.

    Args:
        weights: `[..., V]` float32, not negative, or this device's part of them.
        top_p: above 0 and below 1.
        token_ids: `[V_local]` int32, the tokens of this part; None where the vocabulary is whole.
        vocab_axes: the mesh axes over which it is split.
    """

    def add_up(x: Array) -> Array:
        total = jnp.sum(x, axis=-1)
        return lax.psum(total, vocab_axes) if vocab_axes else total

    bits = lax.bitcast_convert_type(weights, jnp.int32)
    wanted = top_p * add_up(weights)
    at_least = _find_largest(lambda x: add_up(jnp.where(bits >= x[..., None], weights, 0.0)) >= wanted, wanted, 31)
    smallest = lax.bitcast_convert_type(at_least, jnp.float32)
    at_least = at_least[..., None]
    above = add_up(jnp.where(bits > at_least, weights, 0.0))
    equals = jnp.ceil((wanted - above) / jnp.maximum(smallest, jnp.finfo(jnp.float32).tiny))
    tied = bits == at_least
    ids = jnp.arange(weights.shape[-1], dtype=jnp.int32) if token_ids is None else token_ids
    width = weights.shape[-1] * (lax.axis_size(vocab_axes) if vocab_axes else 1)
    last = _find_largest(
        lambda x: add_up((tied & (ids < x[..., None])).astype(jnp.float32)) < equals, wanted, width.bit_length()
    )
    return jnp.where((bits > at_least) | (tied & (ids <= last[..., None])), weights, 0.0)


def _find_largest(holds: Callable[[Array], Array], like: Array, bits: int) -> Array:
    """The largest number of so many bits of which something holds that holds up to some number, and of 0.

    Args:
        holds: numbers, int32 of the shape of `like`, to booleans.
        like: an array of that shape, which varies over the same mesh axes.
        bits: 31 at most.
    """

    def decide(n: Array, found: Array) -> Array:
        candidate = found | lax.shift_left(jnp.int32(1), bits - 1 - n)
        return jnp.where(holds(candidate), candidate, found)

    return lax.fori_loop(0, bits, decide, jnp.zeros_like(like, jnp.int32))


def greedy_search(
    step_fn: Step,
    cache: Cache,
    *,
    max_lengths: Array,
    max_len: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    min_lengths: Array | None = None,
    row_mask: Array | None = None,
    return_attention: bool = False,
    vocab_axes: tuple[str, ...] = (),
) -> Hypotheses:
    """Takes the most probable token at every step until eos or the row's maximum length, in one loop.

    Equals `beam_search` with `beam_size=1` and no penalties.

    Args:
      step_fn: One step of the model.
      cache: The model's cache before the first step, leaves `[B, ...]`.
      max_lengths: `[B]` int32, longest output of each row, eos included; cut to `max_len`.
      max_len: T, the number of steps at most (static).
      bos_id, eos_id, pad_id, return_attention, vocab_axes: See `Draws`.
      min_lengths: `[B]` int32, shortest output of each row, eos included; None is no limit.
      row_mask: `[B]` bool, False for rows that only fill the batch; they come back empty.

    Returns:
      `Hypotheses` with K = 1; the score is the log-probability.

    Raises:
      ValueError: if the step is not split as `vocab_axes` say, or lacks attention that is asked for.
    """
    method = Draws(
        samples=1,
        temperature=0.0,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        vocab_axes=vocab_axes,
        return_attention=return_attention,
    )
    rows = make_rows(max_lengths, min_lengths=min_lengths, row_mask=row_mask)
    return run_search(method, step_fn, method.start(step_fn, cache, rows, max_len=max_len), max_len)


def sample(
    step_fn: Step,
    cache: Cache,
    *,
    samples: int,
    key: Array,
    rows: Array,
    max_lengths: Array,
    max_len: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_lengths: Array | None = None,
    row_mask: Array | None = None,
    vocab_axes: tuple[str, ...] = (),
) -> Hypotheses:
    """Draws `samples` outputs of each row in one loop; see `Draws`.

    Args:
      step_fn: One step of the model over `[B]` rows; called through `jax.vmap` over the samples, so whatever it
        closes over (the memory) is never copied.
      cache: The model's cache before the first step, leaves `[B, ...]`.
      samples, bos_id, eos_id, pad_id, temperature, top_k, top_p, vocab_axes: See `Draws`.
      key: A new-style PRNG key, the same for all rows.
      rows: `[B]` int32, what each row's draws are keyed by: its number in the global batch, or its example.
      max_lengths: `[B]` int32, longest output of each row, eos included; cut to `max_len`.
      max_len: T, the number of steps at most (static).
      min_lengths: `[B]` int32, shortest output of each row, eos included; None is no limit.
      row_mask: `[B]` bool, False for rows that only fill the batch; they come back empty.

    Returns:
      `Hypotheses` in the order of the draws.

    Raises:
      ValueError: for arguments out of their range, or a step that is not split as `vocab_axes` say.
    """
    method = Draws(
        samples=samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        vocab_axes=vocab_axes,
    )
    told = make_rows(max_lengths, min_lengths=min_lengths, row_mask=row_mask)
    told = dataclasses.replace(told, numbers=rows, keys=jnp.broadcast_to(key, rows.shape))
    return run_search(method, step_fn, method.start(step_fn, cache, told, max_len=max_len), max_len)
