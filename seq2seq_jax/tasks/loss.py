"""The loss of a batch of translations, by teacher forcing or with some of the decoder's inputs its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.interfaces import Array, Batch, Packing, PyTree, Sums
from seq2seq_jax.parallel.draws import keyed_uniform
from seq2seq_jax.parallel.log_probs import sample_tokens
from seq2seq_jax.parallel.softmax import cross_entropy

Loss = Callable[[PyTree, Batch, Array | None, Array | None], tuple[Array, Sums]]
"""`loss(params, batch, key, step) -> (objective, sums)`; see `parallel.spread`."""

Decoder = Callable[[Array], Array]
"""`decode(target_in [B, T]) -> hidden [B, T, D]`, with the same dropout at every call."""


@dataclasses.dataclass(frozen=True)
class OwnTokens:
    """Scheduled sampling (Bengio et al. 2015): some of the decoder's inputs are what it would predict itself.

    Attributes:
        share: of the inputs after bos, at the end.
        start, steps: the share rises linearly from 0 at step `start` for so many steps.
        passes: decoder passes that make the predictions (Duckworth et al. 2019, parallel scheduled sampling; one
            pass is that of Mihaylova and Martins 2019). T passes make those of the original, step by step.
    """

    share: float
    start: int
    steps: int
    passes: int

    def rate(self, step: Array) -> Array:
        """The share at a training step, `[]` float32."""
        return self.share * jnp.clip((step - self.start) / self.steps, 0.0, 1.0)


def make_loss(
    model: nn.Module, *, label_smoothing: float, chunk: int, train: bool = True, own_tokens: OwnTokens | None = None
) -> Loss:
    """Builds `loss(params, batch, key, step) -> (objective, sums)`; see `Seq2Seq` for what `model` must offer.

    Args:
        model: a linen module that keeps the `Seq2Seq` protocol.
        label_smoothing: see `cross_entropy`.
        chunk: tokens whose logits exist at a time.
        train: False is the loss without dropout; `key` and `step` may then be None.
        own_tokens: scheduled sampling, while training.
    """

    def loss(params: PyTree, batch: Batch, key: Array | None, step: Array | None) -> tuple[Array, Sums]:
        run, keys = make_runner(model, params, key if train else None, train=train, packing=batch.packing)
        memory = run("encode", keys[0], batch.source, batch.source_mask)
        kernel, bias = model.apply({"params": params}, method="softmax_weights")
        shared = {"chunk": chunk, "split": model.execution.vocabulary, "vocab_size": model.config.target_vocab}

        def decode(target_in: Array) -> Array:
            return run("decode", keys[1], target_in, memory).hidden

        target_in = batch.target_in
        if own_tokens is not None and train and key is not None and step is not None:

            def sample(hidden: Array, uniform: Array) -> Array:
                # Neither bos, eos nor padding is ever read after the first step of a search.
                return sample_tokens(hidden, kernel, bias, uniform, forbidden=(BOS_ID, EOS_ID, PAD_ID), **shared)

            rows = model.execution.row_numbers(target_in.shape[0])
            rate, own_key = own_tokens.rate(step), jax.random.fold_in(key, 2)  # 0 and 1 are the two of `make_runner`

            def mix() -> Array:
                return mix_own_tokens(decode, sample, batch, own_key, rows, rate=rate, passes=own_tokens.passes)

            target_in = jax.lax.cond(rate > 0, mix, lambda: batch.target_in)  # before its start it costs nothing
        weights = batch.target_mask.astype(jnp.float32)
        sums = cross_entropy(
            decode(target_in), kernel, bias, batch.target_out, weights, label_smoothing=label_smoothing, **shared
        )
        tokens = jnp.sum(weights)
        return sums.loss, {
            "loss": sums.loss,
            "nll": sums.nll,
            "correct": sums.correct,
            "weight": tokens,
            "target_tokens": tokens,
            "source_tokens": jnp.sum(batch.source_mask.astype(jnp.float32)),
            "rows": count_examples(batch),
        }

    return loss


def count_examples(batch: Batch) -> Array:
    """How many examples a batch has, `[]` float32: its rows, or where they are packed their segments."""
    if batch.target_positions is None:
        return jnp.sum(batch.row_mask.astype(jnp.float32))
    return jnp.sum((batch.target_mask & (batch.target_positions == 0)).astype(jnp.float32))


def make_runner(
    model: nn.Module, params: PyTree, key: Array | None, *, train: bool, packing: Packing | None = None
) -> tuple[Callable[..., Any], tuple[Array | None, Array | None]]:
    """`run(method, key, *args)` of a model, told the `packing` if there is one; and the keys of its two halves."""
    # Two keys: each call of apply counts its draws from zero, and the two halves must not share masks.
    keys = (None, None) if key is None else tuple(jax.random.split(key))

    packed = {} if packing is None else {"packing": packing}  # not all models know of it

    def run(method: str, rng: Array | None, *args: Any) -> Any:
        rngs = {} if rng is None else {"dropout": rng}
        return model.apply({"params": params}, *args, train=train, method=method, rngs=rngs, **packed)

    return run, keys


def mix_own_tokens(
    decode: Decoder,
    sample: Callable[[Array, Array], Array],
    batch: Batch,
    key: Array,
    rows: Array,
    *,
    rate: Array,
    passes: int,
) -> Array:
    """The decoder's inputs `[B, T]`, some of them sampled from its own predictions of the pass before.

    Which inputs are replaced, and the number that a token is drawn by, are functions of (key, row, time), the
    same in every pass: position t is final after t passes, and then all is as if decoded step by step.
    Nothing has a gradient: the passes only choose inputs.

    Args:
        decode: see `Decoder`.
        sample: `sample(hidden [B, T, D], uniform [B, T]) -> tokens [B, T]`.
        batch: `target_in` and its mask; bos and padding stay.
        key: of the draws.
        rows: `[B]` numbers of the rows in the global batch.
        rate: `[]` share of the inputs that are replaced.
        passes: see `OwnTokens`.
    """
    times = jnp.arange(batch.target_in.shape[1], dtype=jnp.int32)
    choice, uniform = (keyed_uniform(jax.random.fold_in(key, n), rows[:, None], times[None, :]) for n in range(2))
    own = (choice < rate) & batch.target_mask & (batch.target_in != BOS_ID)
    mixed = batch.target_in
    for _ in range(passes):
        predicted = sample(jax.lax.stop_gradient(decode(mixed)), uniform)
        mixed = jnp.where(own, jnp.roll(predicted, 1, axis=1), batch.target_in)  # position 0 is bos and stays
    return mixed
