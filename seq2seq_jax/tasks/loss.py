"""The loss of a batch of translations, by teacher forcing or with some of the decoder's inputs its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.interfaces import Array, Batch, Memory, Packing, PyTree, Sums
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
        own = own_tokens if train else None
        sums = spell(
            run, memory, batch, keys[1], key, step, label_smoothing=label_smoothing, chunk=chunk, own_tokens=own
        )
        return sums["loss"], {
            **sums,
            "source_tokens": jnp.sum(batch.source_mask.astype(jnp.float32)),
            "rows": count_examples(batch),
        }

    return loss


def spell(
    run: Runner,
    memory: Memory,
    batch: Batch,
    dropout: Array | None,
    key: Array | None,
    step: Array | None,
    *,
    label_smoothing: float,
    chunk: int,
    own_tokens: OwnTokens | None = None,
) -> dict[str, Array]:
    """What a decoder makes of its memory under teacher forcing: sums of the cross-entropy of a batch's targets.

    Args:
        run: see `make_runner`.
        memory: of the batch's sources.
        batch: its targets.
        dropout: key of the decoder's dropout.
        key, step: of the training step; None where nothing is trained.
        label_smoothing, chunk, own_tokens: see `make_loss`.
    """
    model = run.model
    kernel, bias = run.get("softmax_weights")
    shared = {"chunk": chunk, "split": model.execution.vocabulary, "vocab_size": model.config.target_vocab}

    def decode(target_in: Array) -> Array:
        return run("decode", dropout, target_in, memory).hidden

    target_in = batch.target_in
    if own_tokens is not None and key is not None and step is not None:

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
    return {
        "loss": sums.loss,
        "nll": sums.nll,
        "correct": sums.correct,
        "weight": tokens,
        "target_tokens": tokens,
    }


def count_examples(batch: Batch) -> Array:
    """How many examples a batch has, `[]` float32: its rows, or where they are packed their segments."""
    if batch.target_positions is None:
        return jnp.sum(batch.row_mask.astype(jnp.float32))
    return jnp.sum((batch.target_mask & (batch.target_positions == 0)).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Runner:
    """A model with its parameters, for one batch of a loss.

    Attributes:
        model: the linen module.
        params: its parameters.
        train: with dropout.
        packed: what its methods are told besides; not all models know of packing.
    """

    model: nn.Module
    params: PyTree
    train: bool
    packed: Mapping[str, Packing]

    def __call__(self, method: str, key: Array | None, *args: Any) -> Any:
        """Runs a method that has dropout, drawn by `key`."""
        rngs = {} if key is None else {"dropout": key}
        given = {"train": self.train, "rngs": rngs, **self.packed}
        return self.model.apply({"params": self.params}, *args, method=method, **given)

    def get(self, method: str, *args: Any) -> Any:
        """Runs a method that draws nothing."""
        return self.model.apply({"params": self.params}, *args, method=method)


def make_runner(
    model: nn.Module, params: PyTree, key: Array | None, *, train: bool, packing: Packing | None = None
) -> tuple[Runner, tuple[Array | None, Array | None]]:
    """The runner of a model, told the `packing` if there is one; and the keys of its two halves."""
    # Two keys: each call of apply counts its draws from zero, and the two halves must not share masks.
    keys = (None, None) if key is None else tuple(jax.random.split(key))
    return Runner(model, params, train, {} if packing is None else {"packing": packing}), keys


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
