"""The loss of a batch of speech: of its spelling, of CTC, or of both.

    waveform ─► features ─► SpecAugment ─► listener ─► memory ─┬─► speller ─► cross-entropy     x (1 - weight)
                                                               └─► softmax of frames ─► CTC     x weight

Joint CTC and attention: Watanabe et al. 2017 (Hybrid CTC/attention architecture, IEEE JSTSP 11), equation 36.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.data.vocab import EOS_ID
from seq2seq_jax.interfaces import Array, Batch, Memory, PyTree, Seq2Seq, Sums
from seq2seq_jax.parallel.frame_logits import frame_logits
from seq2seq_jax.tasks.ctc import ctc_losses
from seq2seq_jax.tasks.loss import Loss, OwnTokens, Runner, count_examples, make_runner, spell


def make_speech_loss(
    model: nn.Module,
    *,
    ctc_weight: float,
    label_smoothing: float,
    chunk: int,
    train: bool = True,
    own_tokens: OwnTokens | None = None,
    augment: Any = None,
) -> Loss:
    """Builds `loss(params, batch, key, step) -> (objective, sums)` of audio and its transcripts.

    Utterances whose labels do not fit into their frames have no CTC loss; they are counted as "impossible".

    Args:
        model: a linen module that keeps the `Listener` protocol, and those of `Seq2Seq`, `FrameModel` or both.
        ctc_weight: share of CTC in the objective of a model that has both.
        label_smoothing, chunk, train, own_tokens: see `tasks.loss.make_loss`.
        augment: `augment(features [B, S, M], mask [B, S], epochs [B], example_ids [B]) -> features`, while training.
    """
    spells = isinstance(model, Seq2Seq)
    weight = ctc_weight if spells else 1.0

    def loss(params: PyTree, batch: Batch, key: Array | None, step: Array | None) -> tuple[Array, Sums]:
        run, keys = make_runner(model, params, key if train else None, train=train)
        features = run.get("compute_features", batch.source, batch.source_mask)
        if train and augment is not None:
            features = augment(features, batch.source_mask, batch.epochs, batch.example_ids)
        memory = run("encode_features", keys[0], features, batch.source_mask)
        tokens = jnp.sum(batch.target_mask.astype(jnp.float32))
        sums: dict[str, Array] = {"weight": tokens, "target_tokens": tokens}
        objective = jnp.float32(0.0)
        if weight < 1:
            own = own_tokens if train else None
            sums = spell(
                run, memory, batch, keys[1], key, step, label_smoothing=label_smoothing, chunk=chunk, own_tokens=own
            )
            objective = (1.0 - weight) * sums["loss"]
        if weight > 0:
            ctc, possible = _sum_ctc(run, memory, batch)
            objective = objective + weight * ctc
            if not spells:  # what no path can say is not part of a mean
                sums["weight"] = jnp.sum((batch.target_mask & possible[:, None]).astype(jnp.float32))
            impossible = jnp.sum((~possible & batch.row_mask).astype(jnp.float32))
            sums = {"nll": ctc, **sums, "ctc": ctc, "impossible": impossible}
        return objective, {
            **sums,
            "loss": objective,
            "slots": sum(jnp.sum(jnp.ones_like(mask, jnp.float32)) for mask in (batch.source_mask, batch.target_mask)),
            "source_tokens": jnp.sum(batch.source_mask.astype(jnp.float32)),
            "rows": count_examples(batch),
        }

    return loss


def _sum_ctc(run: Runner, memory: Memory, batch: Batch) -> tuple[Array, Array]:
    """The CTC loss summed over a batch, and which of its utterances can have one."""
    model = run.model
    kernel, bias = run.get("frame_weights")
    split, size = model.execution.vocabulary, model.config.target_vocab
    logits = frame_logits(memory.hidden, kernel, bias, split=split, vocab_size=size)
    labels = batch.target_mask & (batch.target_out != EOS_ID)
    losses, possible = ctc_losses(logits, memory.mask, batch.target_out, labels)
    return jnp.sum(jnp.where(batch.row_mask, losses, 0.0)), possible
