"""Which tokens would repeat what was said too often, or finish a phrase that may not be said.

Every function lists tokens, -1 for none, and knows only the latest tokens of a hypothesis; `forbid_listed` takes all
lists to the log-probabilities at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from seq2seq_jax.interfaces import Array

LONGEST_PERIOD = 8
"""Tokens in the longest phrase whose repetition in a row is noticed."""


def loop_window(max_loop: int) -> int:
    """The latest tokens that `completes_loop` reads; 0 where it is off."""
    return LONGEST_PERIOD * (max_loop + 2) - 1 if max_loop else 0


def completes_loop(recent: Array, max_loop: int) -> Array:
    """Tokens that would let a phrase of 1 to 8 tokens follow itself more than `max_loop` times in a row.

    A phrase that has followed itself `max_loop` times stands there max_loop + 1 times; the token is forbidden that
    would complete it once more.

    Args:
      recent: `[B, W]` int32, the latest tokens, the last one last; under 0 before the first. W >= `loop_window`.
      max_loop: at least 1.

    Returns:
      `[B, 8]` int32, one for each period; -1 where there is none.
    """
    found = []
    for period in range(1, LONGEST_PERIOD + 1):
        said = recent[:, recent.shape[1] - (period * (max_loop + 2) - 1) :]  # one repetition too many, but for a token
        repeats = jnp.all((said[:, period:] == said[:, :-period]) & (said[:, period:] >= 0), axis=1)
        repeats &= said[:, 0] >= 0
        found.append(jnp.where(repeats, recent[:, -period], -1))
    return jnp.stack(found, axis=1)


def repeats_ngram(history: Array, count: Array, size: int) -> Array:
    """Tokens that would say an n-gram for the second time (Paulus et al. 2017, arXiv:1705.04304, section 2.5).

    Args:
      history: `[B, T]` int32, what was said; anything after that.
      count: `[B]` int32, tokens said.
      size: n, at least 1.

    Returns:
      `[B, T]` int32, -1 where there is none.
    """
    length = history.shape[1]
    ends = jnp.arange(length, dtype=jnp.int32)  # where the last token of an earlier n-gram stands
    same = (ends >= size - 1) & (ends < count[:, None])
    for back in range(1, size):
        last = jnp.take_along_axis(history, jnp.maximum(count - back, 0)[:, None], axis=1)
        same &= jnp.roll(history, back, axis=1) == last
    return jnp.where(same & (count[:, None] >= size - 1), history, -1)


def completes_phrase(recent: Array, heads: Array, lasts: Array) -> Array:
    """Tokens that would finish a phrase whose other tokens were just said.

    Args:
      recent: `[B, W]` int32, the latest tokens, the last one last.
      heads: `[B, N, L - 1]` int32, the phrases without their last token, put to the end; -1 before them. L - 1 <= W.
      lasts: `[B, N]` int32, their last tokens; -1 for no phrase.

    Returns:
      `[B, N]` int32, -1 where there is none.
    """
    if not heads.shape[-1]:
        return lasts
    said = recent[:, None, recent.shape[1] - heads.shape[-1] :]
    return jnp.where(jnp.all((heads < 0) | (heads == said), axis=-1), lasts, -1)


def forbid_listed(log_probs: Array, tokens: Array, token_ids: Array | None = None) -> Array:
    """`log_probs` `[B, V]` with -inf for the tokens listed in `[B, J]`; column v is token v or `token_ids[v]`.

    Over a split vocabulary the columns are consecutive tokens. A token under 0 is none.
    """
    width = log_probs.shape[-1]
    columns = tokens if token_ids is None else tokens - token_ids[0]
    columns = jnp.where((tokens < 0) | (columns < 0), width, columns)
    rows = jnp.arange(log_probs.shape[0])[:, None]
    return log_probs.at[rows, columns].set(-jnp.inf, mode="drop")


def count_guards(tokens: Sequence[int], *, no_repeat_ngram: int, max_loop: int) -> dict[str, int]:
    """At how many steps of one output each guard that is on had a token to forbid.

    Args:
      tokens: the output, with or without eos.
      no_repeat_ngram, max_loop: the settings; 0 is off.

    Returns:
      A count by the name of each setting that is on.
    """
    said, counts = list(tokens), {}
    if no_repeat_ngram:
        head, seen, acted = no_repeat_ngram - 1, set(), 0
        for time in range(head, len(said)):  # what came before, and whether it had come before that
            context = tuple(said[time - head : time])
            acted += context in seen
            seen.add(context)
        counts["no_repeat_ngram"] = acted
    if max_loop:
        counts["max_loop"] = sum(_is_looping(said[:time], max_loop) for time in range(len(said)))
    return counts


def _is_looping(said: Sequence[int], max_loop: int) -> bool:
    """Whether some phrase stands there as often as it may, and once more but for a token."""
    for period in range(1, LONGEST_PERIOD + 1):
        size = period * (max_loop + 2) - 1
        end = list(said[-size:])
        if len(end) == size and end[period:] == end[:-period]:
            return True
    return False
