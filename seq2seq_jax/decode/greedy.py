"""Greedy search: the most probable token at every step. What a beam of one does, for less."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.selection import count_tokens, forbid, select_tokens
from seq2seq_jax.interfaces import Array, Cache, Hypotheses, Step, StepResult


@struct.dataclass
class _State:
    time: Array  # [] int32
    done: Array  # [B] bool
    cache: Cache  # leaves [B, ...]
    token: Array  # [B] int32, the latest
    log_probs: Array  # [B] float32
    finished: Array  # [B] bool
    lengths: Array  # [B] int32
    tokens: Array  # [B, T] int32
    attention: Array | None  # [B, T, S] float32


def greedy_search(
    step_fn: Step,
    cache: Cache,
    *,
    max_lengths: Array,
    max_len: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    row_mask: Array | None = None,
    return_attention: bool = False,
    vocab_axes: tuple[str, ...] = (),
) -> Hypotheses:
    """Takes the most probable token at every step until eos or the row's maximum length.

    Equals `beam_search` with `beam_size=1` and no penalties. Rows are independent.

    Args:
      step_fn: One step of the model.
      cache: The model's cache before the first step, leaves `[B, ...]`.
      max_lengths: `[B]` int32, longest output of each row, eos included; cut to `max_len`.
      max_len: T, the number of steps at most (static).
      bos_id: The token that is fed at step 0. Like `pad_id` it is never predicted (unless it is eos too).
      eos_id: The token that ends a hypothesis.
      pad_id: What fills the output after the end.
      row_mask: `[B]` bool, False for rows that only fill the batch; they come back empty.
      return_attention: Also return the attention, `[B, 1, T, S]` float32, zero after the end.
      vocab_axes: The mesh axes over which the step's vocabulary is split; see `beam_search`.

    Returns:
      `Hypotheses` with K = 1; the score is the log-probability. A row without a possible output has
      length 0 and score -inf.

    Raises:
      ValueError: if the step is not split as `vocab_axes` say, or lacks attention that is asked for.
    """
    if max_len < 1:
        raise ValueError(f"`max_len` must be at least 1, but is {max_len} instead.")
    forbidden = tuple({pad_id, bos_id} - {eos_id})
    max_lengths = jnp.minimum(max_lengths, max_len).astype(jnp.int32)
    done = max_lengths <= 0 if row_mask is None else (max_lengths <= 0) | ~row_mask
    token = jnp.full(max_lengths.shape, bos_id, jnp.int32)
    result: StepResult = jax.eval_shape(step_fn, token, jnp.zeros_like(token), cache)
    count_tokens(result, vocab_axes)
    if return_attention and result.attention is None:
        raise ValueError("`return_attention` needs a step that returns attention, but this one returns None.")

    def advance(state: _State) -> _State:
        result = step_fn(state.token, jnp.full_like(state.token, state.time), state.cache)
        log_probs = forbid(result.log_probs, forbidden, result.token_ids)
        best, token = (x[:, 0] for x in select_tokens(log_probs, 1, result.token_ids, vocab_axes))
        open_rows = ~state.done & (best > -jnp.inf)
        token = jnp.where(open_rows, token, pad_id)
        is_eos = open_rows & (token == eos_id)
        attention = state.attention
        if attention is not None and result.attention is not None:
            rows = jnp.where(open_rows[:, None], result.attention.astype(jnp.float32), 0.0)
            attention = attention.at[:, state.time].set(rows)
        return _State(
            time=state.time + 1,
            done=~open_rows | is_eos | (state.time + 1 >= max_lengths),
            cache=result.cache,
            token=token,
            log_probs=jnp.where(state.done, state.log_probs, state.log_probs + best),
            finished=state.finished | is_eos,
            lengths=state.lengths + open_rows,
            tokens=state.tokens.at[:, state.time].set(token),
            attention=attention,
        )

    source_length = result.attention.shape[-1] if return_attention and result.attention is not None else None
    state = _start(token, done, cache, max_len=max_len, pad_id=pad_id, source_length=source_length)
    return _as_hypotheses(run_loop(advance, state, max_len), pad_id)


def _start(token: Array, done: Array, cache: Cache, *, max_len: int, pad_id: int, source_length: int | None) -> _State:
    """The state before step 0; with a source length there is room for the attention."""
    batch = token.shape[0]
    return _State(
        time=jnp.zeros((), jnp.int32),
        done=done,
        cache=cache,
        token=token,
        log_probs=jnp.where(done, -jnp.inf, 0.0).astype(jnp.float32),
        finished=jnp.zeros((batch,), bool),
        lengths=jnp.zeros((batch,), jnp.int32),
        tokens=jnp.full((batch, max_len), pad_id, jnp.int32),
        attention=None if source_length is None else jnp.zeros((batch, max_len, source_length), jnp.float32),
    )


def _as_hypotheses(state: _State, pad_id: int) -> Hypotheses:
    """Adds the beam axis, and empties rows that ran into a step where every token is impossible."""
    possible = state.log_probs > -jnp.inf
    attention = state.attention
    if attention is not None:
        attention = jnp.where(possible[:, None, None], attention, 0.0)[:, None]
    return Hypotheses(
        tokens=jnp.where(possible[:, None], state.tokens, pad_id)[:, None],
        lengths=jnp.where(possible, state.lengths, 0)[:, None],
        scores=state.log_probs[:, None],
        log_probs=state.log_probs[:, None],
        finished=state.finished[:, None],
        attention=attention,
    )
