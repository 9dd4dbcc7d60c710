"""From a model to the step function that a search runs, and the model's own score of given outputs.

A `Step` is all that a search knows of a model. The memory (what the encoder made) is closed over: it
is the same at every step and for every beam.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array, Cache, Memory, PyTree, Step, StepResult


def seq2seq_step(model: nn.Module, params: PyTree, memory: Memory) -> Step:
    """The step function of a sequence-to-sequence model for the examples in `memory`.

    Args:
      model: A linen module that keeps the `Seq2Seq` protocol.
      params: Its parameters.
      memory: What its `encode` returned, leaves `[B, ...]`.

    Returns:
      `step(tokens [B], step [B], cache) -> StepResult`; the log-probabilities are taken in float32.
    """
    variables = {"params": params}

    def step_fn(tokens: Array, step: Array, cache: Cache) -> StepResult:
        output: Any = model.apply(variables, tokens, step, memory, cache, method="decode_step")
        logits: Any = model.apply(variables, output.hidden, method="project")
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return StepResult(log_probs=log_probs, attention=output.attention, cache=output.cache)

    return step_fn


def sequence_log_probs(logits: Array, targets: Array, mask: Array) -> Array:
    """The log-probability of given outputs under teacher forcing, summed over each row.

    Equals the `log_probs` of a search whose hypotheses are the targets (eos included).

    Args:
      logits: `[B, T, V]`, position t predicting target t.
      targets: `[B, T]` int32.
      mask: `[B, T]` bool, True where a target counts.

    Returns:
      `[B]` float32.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]  # [B, T]
    return jnp.sum(jnp.where(mask, chosen, 0.0), axis=-1)
