"""Sampling: outputs drawn token by token from the model's own distribution, several for each source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.selection import count_tokens, forbid, select_tokens
from seq2seq_jax.interfaces import Array, Cache, Hypotheses, Step, StepResult
from seq2seq_jax.parallel.draws import draw_tokens, keyed_uniform


@struct.dataclass
class _State:
    time: Array  # [] int32
    done: Array  # [B] bool, all samples of the row
    closed: Array  # [B, K] bool
    cache: Cache  # leaves [B, K, ...]
    token: Array  # [B, K] int32, the latest
    log_probs: Array  # [B, K] float32
    finished: Array  # [B, K] bool
    lengths: Array  # [B, K] int32
    tokens: Array  # [B, K, T] int32


@dataclasses.dataclass(frozen=True)
class _Rules:
    """What stays the same while samples are drawn."""

    temperature: float
    top_k: int
    eos_id: int
    pad_id: int
    forbidden: tuple[int, ...]
    vocab_axes: tuple[str, ...]


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
    row_mask: Array | None = None,
    vocab_axes: tuple[str, ...] = (),
) -> Hypotheses:
    """Draws `samples` outputs of each row, independently of each other, until eos or the row's maximum length.

    Every draw is a function of (key, number of the row, number of the sample, time), so that neither the other
    rows of a batch nor the devices change it (but for the rounding of the probabilities).

    Args:
      step_fn: One step of the model over `[B]` rows; called through `jax.vmap` over the samples, so whatever it
        closes over (the memory) is never copied.
      cache: The model's cache before the first step, leaves `[B, ...]`.
      samples: K.
      key: A new-style PRNG key.
      rows: `[B]` int32, what each row's draws are keyed by: its number in the global batch, or its example.
      max_lengths: `[B]` int32, longest output of each row, eos included; cut to `max_len`.
      max_len: T, the number of steps at most (static).
      bos_id: The token that is fed at step 0. Like `pad_id` it is never drawn (unless it is eos too).
      eos_id: The token that ends an output.
      pad_id: What fills the output after the end.
      temperature: The log-probabilities are divided by it; 1 is the model's own distribution.
      top_k: Draw from the so many most probable tokens alone (with their equals); 0 is all of them.
      row_mask: `[B]` bool, False for rows that only fill the batch; they come back empty.
      vocab_axes: The mesh axes over which the step's vocabulary is split; see `beam_search`.

    Returns:
      `Hypotheses` in the order of the draws, not sorted; duplicates stay. `scores` and `log_probs` are both the
      model's own log-probability (of temperature 1 and the whole vocabulary). A row without a possible output
      has length 0 and score -inf.

    Raises:
      ValueError: for arguments out of their range, or a step that is not split as `vocab_axes` say.
    """
    if samples < 1 or max_len < 1 or temperature <= 0 or top_k < 0:
        raise ValueError(
            "`samples` and `max_len` must be at least 1, `temperature` above 0 and `top_k` at least 0, but are "
            f"{samples}, {max_len}, {temperature} and {top_k} instead."
        )
    rules = _Rules(temperature, top_k, eos_id, pad_id, tuple({pad_id, bos_id} - {eos_id}), vocab_axes)
    step = jax.vmap(step_fn, in_axes=(1, None, 1), out_axes=1)
    max_lengths = jnp.minimum(max_lengths, max_len).astype(jnp.int32)
    done = max_lengths <= 0 if row_mask is None else (max_lengths <= 0) | ~row_mask
    shape = (max_lengths.shape[0], samples)
    cache = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], shape + x.shape[1:]), cache)
    closed = jnp.broadcast_to(done[:, None], shape)
    token = jnp.full(shape, bos_id, jnp.int32)
    count_tokens(jax.eval_shape(step, token, jnp.zeros(shape[:1], jnp.int32), cache), vocab_axes)
    state = _State(
        time=jnp.zeros((), jnp.int32),
        done=done,
        closed=closed,
        cache=cache,
        token=token,
        log_probs=jnp.where(closed, -jnp.inf, 0.0).astype(jnp.float32),
        finished=jnp.zeros(shape, bool),
        lengths=jnp.zeros(shape, jnp.int32),
        tokens=jnp.full((*shape, max_len), pad_id, jnp.int32),
    )
    numbers = jnp.arange(samples, dtype=jnp.int32)

    def advance(state: _State) -> _State:
        uniform = keyed_uniform(key, rows[:, None], numbers[None, :], state.time)
        return _advance(rules, step, state, uniform, max_lengths)

    return _as_hypotheses(run_loop(advance, state, max_len), pad_id)


def _advance(
    rules: _Rules,
    step: Callable[[Array, Array, Cache], StepResult],
    state: _State,
    uniform: Array,
    max_lengths: Array,
) -> _State:
    """One step of every sample; those that have ended stay as they are."""
    result = step(state.token, jnp.full(state.done.shape, state.time), state.cache)
    token_ids = None if result.token_ids is None else result.token_ids[:, 0]  # one copy a sample, from vmap
    log_probs = forbid(result.log_probs, rules.forbidden, token_ids)  # [B, K, V]
    token, chosen = _draw(rules, log_probs, token_ids, uniform)
    open_now = ~state.closed & (chosen > -jnp.inf)
    token = jnp.where(open_now, token, rules.pad_id)
    is_eos = open_now & (token == rules.eos_id)
    closed = ~open_now | is_eos | (state.time + 1 >= max_lengths)[:, None]
    return _State(
        time=state.time + 1,
        done=closed.all(axis=-1),
        closed=closed,
        cache=result.cache,
        token=token,
        log_probs=jnp.where(state.closed, state.log_probs, state.log_probs + chosen),
        finished=state.finished | is_eos,
        lengths=state.lengths + open_now,
        tokens=state.tokens.at[:, :, state.time].set(token),
    )


def _draw(rules: _Rules, log_probs: Array, token_ids: Array | None, uniform: Array) -> tuple[Array, Array]:
    """Tokens `[B, K]` and their log-probabilities, from (this device's part of) those of all tokens."""
    axes = rules.vocab_axes
    best, _ = select_tokens(log_probs, max(rules.top_k, 1), token_ids, axes)
    top, kept = best[..., :1], log_probs >= best[..., -1:]
    logits = jnp.where(kept, log_probs, -jnp.inf) if rules.top_k else log_probs
    possible = top > -jnp.inf
    weights = jnp.where(possible, jnp.exp((logits - jnp.where(possible, top, 0.0)) / rules.temperature), 0.0)
    token = draw_tokens(weights, uniform, axes=axes)
    if token_ids is None:
        chosen = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
    else:
        chosen = jnp.max(jnp.where(token_ids == token[..., None], log_probs, -jnp.inf), axis=-1)
        chosen = lax.pmax(chosen, axes)
    return token, jnp.where(possible[..., 0], chosen, -jnp.inf)


def _as_hypotheses(state: _State, pad_id: int) -> Hypotheses:
    """Empties samples that ran into a step where every token is impossible."""
    possible = state.log_probs > -jnp.inf
    return Hypotheses(
        tokens=jnp.where(possible[..., None], state.tokens, pad_id),
        lengths=jnp.where(possible, state.lengths, 0),
        scores=state.log_probs,
        log_probs=state.log_probs,
        finished=state.finished & possible,
    )
