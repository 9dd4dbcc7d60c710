"""Choosing among candidates: what is forbidden, which are the largest, and gathering by beam.

A vocabulary may be split over the devices of some mesh axes (`vocab_axes`, inside `jax.shard_map`): parts
of one width, in the order of the token ids. Then each device sends its own few best candidates, never its
log-probabilities, and all of them choose the same from what was sent.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from seq2seq_jax.interfaces import Array, StepResult

_BLOCK = 128  # width of the blocks in `select_largest`
_BLOCKS_FROM = 2048  # axes from this width on are searched in blocks


def gather_beams(x: Array, index: Array) -> Array:
    """`x[b, index[b, j]]`: picks beams (or candidates) `[B, J]` along axis 1 of `[B, K, ...]`."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1, mode="promise_in_bounds")


def count_tokens(result: StepResult, vocab_axes: tuple[str, ...]) -> int:
    """The columns of the whole vocabulary, padding included.

    Raises:
      ValueError: if the step's vocabulary is split and the search's is not, or the other way round.
    """
    if result.token_ids is not None and not vocab_axes:
        raise ValueError("The step returned `token_ids`: name the mesh axes of its split vocabulary as `vocab_axes`.")
    if result.token_ids is None and vocab_axes:
        raise ValueError(f"`vocab_axes` {vocab_axes} need a step over a split vocabulary, with `token_ids`.")
    parts = lax.axis_size(vocab_axes) if vocab_axes else 1
    return result.log_probs.shape[-1] * parts


def forbid(log_probs: Array, tokens: tuple[int, ...], token_ids: Array | None = None) -> Array:
    """`log_probs` `[..., V]` in float32, -inf for the given tokens; column v is token v or `token_ids[v]`."""
    log_probs = log_probs.astype(jnp.float32)
    if token_ids is None:
        return jnp.where(np.isin(np.arange(log_probs.shape[-1]), tokens), -jnp.inf, log_probs)
    return jnp.where(jnp.isin(token_ids, jnp.asarray(tokens, jnp.int32)), -jnp.inf, log_probs)


def select_tokens(
    log_probs: Array, count: int, token_ids: Array | None = None, vocab_axes: tuple[str, ...] = ()
) -> tuple[Array, Array]:
    """The `count` best tokens of the whole vocabulary, the same on all devices that hold a part of it.

    Args:
      log_probs: `[..., V]` float32, or this device's part `[..., V_local]`.
      count: How many; all of them where there are fewer.
      token_ids: `[V_local]` int32, the tokens of this part; None where the vocabulary is whole.
      vocab_axes: The mesh axes over which it is split.

    Returns:
      Their log-probabilities, largest first, and the tokens, both `[..., count]`; ties as in `lax.top_k`, lowest
      token first. A column at -inf of a split vocabulary, as its padding is, comes back as token 0.
    """
    values, index = select_largest(log_probs, min(count, log_probs.shape[-1]))
    if token_ids is None or not vocab_axes:
        return values, index
    # The two travel as one message: as integers, which no device rounds or flushes to zero.
    part = jnp.stack([lax.bitcast_convert_type(values, jnp.int32), token_ids[index]])
    bits, tokens = lax.all_gather(part, vocab_axes, axis=part.ndim - 1, tiled=True, to="invarying")
    values = lax.bitcast_convert_type(bits, jnp.float32)
    values, order = lax.top_k(values, min(count, values.shape[-1]))
    tokens = jnp.take_along_axis(tokens, order, axis=-1)
    # The next step must not look up a padding column: where that gives NaN, it would outdo every other beam.
    return values, jnp.where(values == -jnp.inf, 0, tokens)


def pick_tokens(
    log_probs: Array, tokens: Array, token_ids: Array | None = None, vocab_axes: tuple[str, ...] = ()
) -> Array:
    """The log-probabilities of given tokens, both `[..., C]`; -inf for token -1. The rest as in `select_tokens`."""
    width = log_probs.shape[-1]
    columns = tokens if token_ids is None else tokens - token_ids[0]
    held = (columns >= 0) & (columns < width)
    columns = jnp.where(held, columns, 0)
    if token_ids is not None:
        held &= token_ids[columns] == tokens
    picked = jnp.take_along_axis(log_probs, columns, axis=-1, mode="promise_in_bounds")
    picked = jnp.where(held & (tokens >= 0), picked, -jnp.inf)
    return lax.pmax(picked, vocab_axes) if vocab_axes else picked


def select_in_turn(values: Array, banks: Array | None, count: int) -> Array:
    """Which `count` of the candidates `[B, N]` to take, `[B, count]`: the best of every bank, then the second best, ...

    Post & Vilar 2018 (Fast Lexically Constrained Decoding with Dynamic Beam Allocation): hypotheses that met unlike
    numbers of constraints do not compete. Here the slots go round: by the rank within the bank, the larger bank
    first; what a bank cannot fill goes to the others. Candidates at -inf come last.

    Args:
      values: `[B, N]` float32.
      banks: `[B, N]` int32; None (or all alike) takes the largest values as `lax.top_k` does.
      count: How many, at most N.
    """
    if banks is None:
        return lax.top_k(values, count)[1]
    places = jnp.broadcast_to(jnp.arange(values.shape[-1], dtype=jnp.int32), values.shape)
    impossible = (values == -jnp.inf).astype(jnp.int32)
    banks, _, impossible, order = lax.sort((-banks, -values, impossible, places), num_keys=2, is_stable=True)
    begins = jnp.diff(banks, axis=-1, prepend=banks[:, :1] - 1) != 0
    rank = places - lax.cummax(jnp.where(begins, places, 0), axis=1)
    *_, order = lax.sort((impossible, rank, banks, order), num_keys=3, is_stable=True)
    return order[:, :count]


def select_largest(x: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest of the last axis and where they are, exactly as `lax.top_k`, quicker on wide axes.

    The `count` largest elements lie in the `count` blocks with the largest maxima: only these are sorted.
    With blocks in their order ties are resolved alike, lowest index first.
    """
    if count == 1:
        return jnp.max(x, axis=-1, keepdims=True), jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
    width = x.shape[-1]
    blocks = -(-width // _BLOCK)
    if width < _BLOCKS_FROM or count > blocks // 4:
        return lax.top_k(x, count)
    whole = width - width % _BLOCK
    tops = jnp.max(x[..., :whole].reshape(*x.shape[:-1], -1, _BLOCK), axis=-1)
    if whole < width:
        tops = jnp.concatenate([tops, jnp.max(x[..., whole:], axis=-1, keepdims=True)], axis=-1)
    _, chosen = lax.top_k(tops, count)
    places = (jnp.sort(chosen, axis=-1)[..., None] * _BLOCK + jnp.arange(_BLOCK)).reshape(*chosen.shape[:-1], -1)
    held = jnp.take_along_axis(x, jnp.minimum(places, width - 1), axis=-1, mode="promise_in_bounds")
    values, index = lax.top_k(jnp.where(places < width, held, -jnp.inf), count)
    return values, jnp.minimum(jnp.take_along_axis(places, index, axis=-1), width - 1)  # at -inf it may lie beyond
