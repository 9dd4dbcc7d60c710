"""The loss of a masked language model: some tokens of every row are hidden, and it has to fill them.

Devlin et al. 2019 (1810.04805), section 3.1, task 1; drawn anew at every step, as Liu et al. 2019 (1907.11692) do.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
from seq2seq_jax.parallel.draws import keyed_uniform
from seq2seq_jax.parallel.softmax import cross_entropy
from seq2seq_jax.tasks.loss import Loss, count_examples, make_runner

MASK_ID = BOS_ID
"""The token that hides another: bos, which no source has, so that a vocabulary needs no further one."""

FIRST_ORDINARY_ID = max(PAD_ID, UNK_ID, BOS_ID, EOS_ID) + 1


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """What becomes of a text.

    Attributes:
        share: of a row's tokens that are hidden, rounded, at least one; never padding, unk, bos and eos.
        mask: of these, share that become `MASK_ID`.
        random: share that become any ordinary token. The rest stay as they are; all of them have to be filled.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1

    def most(self, length: int) -> int:
        """The most tokens of a row of so many that are hidden."""
        return max(1, math.floor(self.share * length + 0.5))


class Hidden(NamedTuple):
    """Rows with tokens hidden, K places of each."""

    tokens: Array  # [B, S] int32, what the model reads
    places: Array  # [B, K] int32, columns, all different
    wanted: Array  # [B, K] int32, what stood there
    weights: Array  # [B, K] float32, 0 for a place that a row has no need of


def hide_tokens(tokens: Array, mask: Array, key: Array, rows: Array, *, rule: MaskRule, vocab_size: int) -> Hidden:
    """Hides tokens of every row, by draws that are functions of (key, row, column) alone.

    Args:
        tokens: `[B, S]` int32.
        mask: `[B, S]`, True where real.
        key: of the draws.
        rows: `[B]` int32, what stands for the rows in the draws.
        rule: see `MaskRule`.
        vocab_size: V.
    """
    columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    ordinary = mask & (tokens >= FIRST_ORDINARY_ID)
    order, kind, other = (jax.random.fold_in(key, n) for n in range(3))
    drawn = jnp.where(ordinary, keyed_uniform(order, rows[:, None], columns[None]), 2.0)
    places = jax.lax.top_k(-drawn, min(rule.most(tokens.shape[1]), tokens.shape[1]))[1].astype(jnp.int32)
    candidates = jnp.sum(ordinary, axis=1, dtype=jnp.int32)
    counts = jnp.maximum(1, jnp.floor(rule.share * candidates + 0.5).astype(jnp.int32))
    real = jnp.arange(places.shape[1], dtype=jnp.int32)[None] < jnp.minimum(counts, candidates)[:, None]

    wanted = jnp.take_along_axis(tokens, places, axis=1)
    choice, uniform = (keyed_uniform(each, rows[:, None], places) for each in (kind, other))
    others = (FIRST_ORDINARY_ID + jnp.floor(uniform * (vocab_size - FIRST_ORDINARY_ID))).astype(tokens.dtype)
    shown = jnp.where(choice < rule.mask + rule.random, others, wanted)
    shown = jnp.where(real, jnp.where(choice < rule.mask, MASK_ID, shown), wanted)
    here = jnp.arange(tokens.shape[0])[:, None]
    return Hidden(tokens.at[here, places].set(shown), places, wanted, real.astype(jnp.float32))


def make_masked_loss(
    model: nn.Module, *, rule: MaskRule, label_smoothing: float, chunk: int, train: bool = True
) -> Loss:
    """Builds `loss(params, batch, key, step) -> (objective, sums)` over the source side of batches.

    The logits are those of hidden tokens alone. Without a key the same tokens of an example are hidden every time, so
    that the losses of two evaluations compare.

    Args:
        model: a linen module that keeps the `MaskedModel` protocol.
        rule: what is hidden.
        label_smoothing: see `cross_entropy`.
        chunk: tokens whose logits exist at a time.
        train: False is the loss without dropout; `key` and `step` may then be None.
    """

    def loss(params: PyTree, batch: Batch, key: Array | None, step: Array | None) -> tuple[Array, Sums]:
        del step
        run, keys = make_runner(model, params, key if train else None, train=train, packing=batch.packing)
        if keys[1] is None:
            draws, rows = jax.random.key(0), batch.example_ids
        else:
            draws, rows = keys[1], model.execution.row_numbers(batch.source.shape[0])
        size = model.config.source_vocab
        hidden = hide_tokens(batch.source, batch.source_mask, draws, rows, rule=rule, vocab_size=size)
        memory = run("encode", keys[0], hidden.tokens, batch.source_mask)
        at = jnp.take_along_axis(memory.hidden, hidden.places[..., None], axis=1)
        filled = model.apply({"params": params}, at, method="fill")
        kernel, bias = model.apply({"params": params}, method="softmax_weights")
        sums = cross_entropy(
            filled,
            kernel,
            bias,
            hidden.wanted,
            hidden.weights,
            label_smoothing=label_smoothing,
            chunk=chunk,
            split=model.execution.vocabulary,
            vocab_size=size,
        )
        return sums.loss, {
            "loss": sums.loss,
            "nll": sums.nll,
            "correct": sums.correct,
            "weight": jnp.sum(hidden.weights),
            "slots": jnp.sum(jnp.ones_like(batch.source, jnp.float32)),  # the target's are not read
            "source_tokens": jnp.sum(batch.source_mask.astype(jnp.float32)),
            "rows": count_examples(batch),
        }

    return loss
