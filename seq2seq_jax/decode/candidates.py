"""The tokens that each hypothesis of a beam search may go on with."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.selection import forbid, pick_tokens, select_tokens
from seq2seq_jax.interfaces import Array, StepResult


class Candidates(NamedTuple):
    """Possible next tokens of each hypothesis: the best ones, best first, then those that it still has to hold."""

    log_probs: Array  # [B, K, W] float32; -inf for what is no candidate
    tokens: Array  # [B, K, W] int32
    banks: Array | None  # [B, K, W] int32, tokens of constraints met; None where there are no constraints


def list_candidates(
    result: StepResult,
    ranking: Ranking,
    *,
    eos_id: int,
    forbidden: tuple[int, ...],
    alive: Array,
    may_end: Array,
    must_end: Array,
    vocab_axes: tuple[str, ...],
) -> Candidates:
    """The candidates of a step.

    Args:
      result: What the step returned, leaves `[B, K, ...]`.
      ranking: The rules.
      eos_id: The token that ends an output.
      forbidden: Tokens that are never predicted.
      alive: `[B, K]` bool, hypotheses that are live.
      may_end: `[B]` bool, rows that are long enough for eos.
      must_end: `[B]` bool, rows at their longest output.
      vocab_axes: The mesh axes over which the vocabulary is split.
    """
    token_ids = None if result.token_ids is None else result.token_ids[:, 0]  # one copy a beam, from vmap
    log_probs = forbid(result.log_probs, forbidden, token_ids)
    # A beam can fill all K places of the next step, besides its eos: no more than K + 1 tokens matter. (Neither do
    # they where earlier groups make tokens dearer: these are no more than K less the size of a group.)
    size = alive.shape[-1]
    best, tokens = select_tokens(log_probs, max(size + 1, size * ranking.end_among), token_ids, vocab_axes)
    best = jnp.where((tokens == eos_id) & ~may_end[:, None, None], -jnp.inf, best)
    if ranking.unfinished == "end":
        eos = pick_tokens(log_probs, jnp.full((*alive.shape, 1), eos_id), token_ids, vocab_axes)
        only_eos = jnp.where(jnp.arange(best.shape[-1]) == 0, eos, -jnp.inf)
        best = jnp.where(must_end[:, None, None], only_eos, best)
        tokens = jnp.where(must_end[:, None, None], eos_id, tokens)
    if ranking.prune:
        top = jnp.max(jnp.where(alive[:, :, None], best, -jnp.inf), axis=(1, 2), keepdims=True)
        best = ranking.drop(best, top)
    if result.wanted is None or result.wanted_met is None or result.met is None:
        return Candidates(best, tokens, None)
    wanted, wanted_met = result.wanted, result.wanted_met  # [B, K, C]
    added = pick_tokens(log_probs, wanted, token_ids, vocab_axes)
    if ranking.unfinished == "end":
        added = jnp.where(must_end[:, None, None], -jnp.inf, added)
    same = tokens[..., :, None] == wanted[..., None, :]  # [B, K, W, C]
    listed = jnp.any(same & (best > -jnp.inf)[..., None], axis=-2)
    repeated = jnp.any(jnp.tril(wanted[..., :, None] == wanted[..., None, :], -1), axis=-1)
    taken = jnp.max(jnp.where(same, wanted_met[..., None, :], 0), axis=-1)
    banks = jnp.where(jnp.any(same, axis=-1), taken, result.met[..., None])
    return Candidates(
        log_probs=jnp.concatenate([best, jnp.where(listed | repeated, -jnp.inf, added)], axis=-1),
        tokens=jnp.concatenate([tokens, jnp.maximum(wanted, 0)], axis=-1),
        banks=jnp.concatenate([banks, wanted_met], axis=-1),
    )
