"""From a model to the step function that a search runs, and the model's own score of given outputs.

A `Step` is all that a search knows of a model. The memory (what the encoder made) is closed over: it
is the same at every step and for every beam.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from seq2seq_jax.interfaces import Array, Cache, Memory, PyTree, Step, StepResult


def seq2seq_step(
    model: nn.Module,
    params: PyTree,
    memory: Memory,
    *,
    vocab_axes: tuple[str, ...] = (),
    vocab_size: int | None = None,
) -> Step:
    """The step function of a sequence-to-sequence model for the examples in `memory`.

    Args:
      model: A linen module that keeps the `Seq2Seq` protocol.
      params: Its parameters; with `vocab_axes` the output projection's are this device's part.
      memory: What its `encode` returned, leaves `[B, ...]`.
      vocab_axes: The mesh axes over which the output projection is split, in parts of one width, in the
        order of the tokens; for a search inside `jax.shard_map`.
      vocab_size: The true number of tokens where the projection has more columns; None if it has not.

    Returns:
      `step(tokens [B], step [B], cache) -> StepResult`; the log-probabilities are taken in float32.
    """
    variables = {"params": params}

    def step_fn(tokens: Array, step: Array, cache: Cache) -> StepResult:
        output: Any = model.apply(variables, tokens, step, memory, cache, method="decode_step")
        logits: Any = model.apply(variables, output.hidden, method="project")
        logits = logits.astype(jnp.float32)
        width, parts = logits.shape[-1], 1
        columns = jnp.arange(width, dtype=jnp.int32)
        if vocab_axes:
            parts = lax.axis_size(vocab_axes)
            columns = columns + lax.axis_index(vocab_axes) * width
        if vocab_size is not None and vocab_size < parts * width:
            logits = jnp.where(columns < vocab_size, logits, -jnp.inf)
        return StepResult(
            log_probs=_normalise(logits, vocab_axes),
            attention=output.attention,
            cache=output.cache,
            token_ids=columns if vocab_axes else None,
        )

    return step_fn


def _normalise(logits: Array, vocab_axes: tuple[str, ...]) -> Array:
    """The log-softmax of `[B, V]` over a vocabulary that may be split over mesh axes."""
    if not vocab_axes:
        return jax.nn.log_softmax(logits, axis=-1)
    # The largest is only a shift: without its gradient the result has the same one.
    largest = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)), vocab_axes)
    shifted = logits - largest
    return shifted - jnp.log(lax.psum(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True), vocab_axes))


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
