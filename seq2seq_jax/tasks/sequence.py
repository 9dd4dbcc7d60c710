"""Sequence-level training of translation: what is proposed, how it is judged, and the loss whose gradient is exact.

- "minimum_risk" (Shen et al. 2016, equations 7 to 9): a distribution Q over a set of candidates Y_k, sharpened by
  alpha, and its expected risk, which is here 1 - reward:

      Q_k ∝ p(Y_k | X)^alpha          risk = Σ_k Q_k (1 - r_k)

      d risk = -Σ_k alpha Q_k (r_k - r̄) d log p(Y_k | X),     r̄ = Σ_j Q_j r_j

- "reinforce" (Wu et al. 2016, equation 8): the expected reward of the model's own samples, with their mean as
  the baseline:

      d risk = -1/(K - 1) Σ_k (r_k - r̄) d log p(Y_k | X),     r̄ = 1/K Σ_j r_j

  Differs from the paper: 1/(K - 1) instead of 1/K, which makes up for r_k being in its own baseline, so that the
  estimate has no bias.

Either may be mixed with the likelihood of the reference (Wu et al. 2016, equation 9), its weight per sentence:

      objective = risk - likelihood * log p(reference | X)

So every candidate's log-probability has a known weight, and one pass of the cross-entropy with these weights gives
the exact gradient: the logits of all candidates never exist at once. What it needs first, log p(Y_k | X), comes
from the same hidden states, chunk by chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from seq2seq_jax.data.vocab import BOS_ID, PAD_ID, Vocab
from seq2seq_jax.interfaces import Array, Batch, Hypotheses, PyTree, Sums
from seq2seq_jax.parallel.log_probs import token_log_probs
from seq2seq_jax.parallel.softmax import cross_entropy
from seq2seq_jax.tasks.loss import Loss, make_runner


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is followed; see the module.

    Attributes:
        kind: "minimum_risk" or "reinforce".
        sharpness: alpha of Q, "minimum_risk" only.
        reference: the reference is a candidate too, "minimum_risk" only.
        likelihood: weight of the likelihood of the reference.
    """

    kind: str
    sharpness: float
    reference: bool
    likelihood: float

    @property
    def merges(self) -> bool:
        """Whether candidates form a set; samples of "reinforce" count as often as they are drawn."""
        return self.kind == "minimum_risk"


def longest_candidate(target_len: int) -> int:
    """The longest candidate beside references of so many tokens: a quarter longer; longer outputs are cut there."""
    return target_len + max(4, target_len // 4)


def weigh_candidates(
    objective: Objective,
    log_probs: Float[Array, "B G"],
    rewards: Float[Array, "B G"],
    there: Bool[Array, "B G"],
) -> tuple[Float[Array, "B G"], Float[Array, " B"]]:
    """What the objective's gradient multiplies -log p of each candidate by, and the expected reward.

    Args:
        objective: what is followed.
        log_probs: of the reference (first) and the candidates; no gradient flows here.
        rewards: theirs.
        there: False for slots without a candidate.
    """
    first = jnp.arange(there.shape[1]) == 0
    counted = there & (~first | (objective.reference and objective.merges))
    if objective.kind == "minimum_risk":
        scores = jnp.where(counted, objective.sharpness * log_probs, -jnp.inf)
        top = jnp.max(scores, axis=-1, keepdims=True)
        unnormalised = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))
        share = unnormalised / jnp.maximum(jnp.sum(unnormalised, axis=-1, keepdims=True), 1e-30)
        factor = objective.sharpness * share
    else:
        count = jnp.sum(counted, axis=-1, keepdims=True).astype(jnp.float32)
        share = counted / jnp.maximum(count, 1.0)
        factor = counted / jnp.maximum(count - 1.0, 1.0)
    expected = jnp.sum(share * rewards, axis=-1)
    weights = factor * (rewards - expected[:, None])
    return weights + jnp.where(first & there, objective.likelihood, 0.0), expected


def make_sequence_loss(model: nn.Module, objective: Objective, *, chunk: int) -> Loss:
    """Builds `loss(params, batch, key, step)` of batches that carry judged candidates.

    Its sums count sentences (`weight`); `loss` is the objective above, `nll` that of the references over their tokens
    (`nll_weight`), `reward` what is expected, and `best_reward` that of the best candidate, the reference aside.
    """

    def loss(params: PyTree, batch: Batch, key: Array | None, step: Array | None) -> tuple[Array, Sums]:
        del step
        if batch.candidates is None or batch.candidate_lengths is None or batch.rewards is None:
            raise ValueError("a batch of sequence-level training needs `candidates`, their lengths and `rewards`.")
        run, keys = make_runner(model, params, key, train=True)
        count, length = batch.candidates.shape[1:]
        tokens, lengths = batch.candidates.reshape(-1, length), batch.candidate_lengths.reshape(-1)
        mask = jnp.arange(length) < lengths[:, None]
        target_in = jnp.concatenate([jnp.full_like(tokens[:, :1], BOS_ID), tokens[:, :-1]], axis=1)
        memory = run("encode", keys[0], batch.source, batch.source_mask)
        memory = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), memory)  # encoded once
        hidden = run("decode", keys[1], jnp.where(mask, target_in, PAD_ID), memory).hidden
        kernel, bias = model.apply({"params": params}, method="softmax_weights")
        shared = {"chunk": chunk, "split": model.execution.vocabulary, "vocab_size": model.config.target_vocab}
        each = token_log_probs(hidden, kernel, bias, tokens, **shared)
        log_probs = jnp.sum(jnp.where(mask, each, 0.0), axis=-1).reshape(-1, count)
        there = batch.candidate_lengths > 0
        weights, expected = weigh_candidates(objective, log_probs, batch.rewards, there)
        weights = jax.lax.stop_gradient(weights.reshape(-1, 1) * mask)
        surrogate = cross_entropy(hidden, kernel, bias, tokens, weights, **shared).loss
        here = there[:, 0]  # rows that do not only fill
        nll = -jnp.sum(log_probs[:, 0])
        value = jnp.sum(jnp.where(here, 1.0 - expected, 0.0)) + objective.likelihood * nll
        best = jnp.max(jnp.where(there[:, 1:], batch.rewards[:, 1:], 0.0), axis=-1)
        sums = _sum_up(batch, here, expected, best) | {"loss": value, "nll": nll}
        return surrogate + jax.lax.stop_gradient(value - surrogate), sums

    return loss


def _sum_up(batch: Batch, here: Array, expected: Array, best: Array) -> dict[str, Array]:
    """What is logged of a batch besides its losses."""
    rows = jnp.sum(here.astype(jnp.float32))
    tokens = jnp.sum(batch.target_mask.astype(jnp.float32))
    return {
        "reward": jnp.sum(jnp.where(here, expected, 0.0)),
        "best_reward": jnp.sum(jnp.where(here, best, 0.0)),
        "weight": rows,
        "rows": rows,
        "nll_weight": tokens,
        "target_tokens": tokens,
        "source_tokens": jnp.sum(batch.source_mask.astype(jnp.float32)),
    }


Proposals = tuple[Int[Array, "B K T"], Int[Array, "B K"], Int[Array, "B U"], Int[Array, " B"]]
"""Candidates and their lengths, references and theirs; on all hosts alike."""


def make_propose(search: Callable[..., Hypotheses]) -> Callable[[PyTree, Batch, Array], Proposals]:
    """Builds `propose(params, batch, key) -> Proposals`, to be jitted.

    Args:
        search: `search(params, source, source_mask, row_mask, rows, key, *, max_len)`; see `search.make_decode`.
    """

    def propose(params: PyTree, batch: Batch, key: Array) -> Any:
        rows = jnp.arange(batch.source.shape[0], dtype=jnp.int32)
        longest = longest_candidate(batch.target_out.shape[1])
        found = search(params, batch.source, batch.source_mask, batch.row_mask, rows, key, max_len=longest)
        return found.tokens, found.lengths, batch.target_out, jnp.sum(batch.target_mask, axis=-1)

    return propose


class Judge:
    """Reads candidates as text and rewards them.

    The reference's text is that of its tokens, which is what a model can say.

    Args:
        vocab: of the target.
        reward: see `evaluate.rewards`.
        objective: says whether equal candidates are one.
    """

    def __init__(self, vocab: Vocab, reward: Callable[[str, str], float], objective: Objective):
        self._vocab, self._reward, self._objective = vocab, reward, objective

    def __call__(
        self, tokens: np.ndarray, lengths: np.ndarray, references: np.ndarray, reference_lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Proposals to `Batch.candidates`, `candidate_lengths` and `rewards`: the reference comes first.

        A candidate that is there twice keeps its first slot where candidates form a set.
        """
        rows, count, length = tokens.shape
        candidates = np.full((rows, count + 1, length), PAD_ID, np.int32)
        kept = np.zeros((rows, count + 1), np.int32)
        rewards = np.zeros((rows, count + 1), np.float32)
        for row in np.flatnonzero(reference_lengths):
            given = [references[row, : reference_lengths[row]].tolist()]
            given += [tokens[row, k, : lengths[row, k]].tolist() for k in range(count)]
            texts = [self._vocab.decode(ids) for ids in given]
            known: dict[str, float] = {}
            seen = {tuple(given[0])} if self._objective.reference else set()
            for slot, (ids, text) in enumerate(zip(given, texts, strict=True)):
                if not ids or (slot and self._objective.merges and tuple(ids) in seen):
                    continue
                seen.update([tuple(ids)] if slot else [])
                if text not in known:
                    known[text] = self._reward(text, texts[0])
                candidates[row, slot, : len(ids)], kept[row, slot] = ids, len(ids)
                rewards[row, slot] = known[text]
        return candidates, kept, rewards
