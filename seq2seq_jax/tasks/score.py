"""Scoring: how probable a model finds given translations, token by token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seq2seq_jax.data.pipeline import length_batches, tag_ids
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, Vocabs
from seq2seq_jax.interfaces import Array, Batch, PyTree
from seq2seq_jax.parallel.log_probs import token_log_probs
from seq2seq_jax.tasks.loss import make_runner


def make_scores(model: nn.Module, *, chunk: int) -> Callable[[PyTree, Batch], Array]:
    """Builds `scores(params, batch) -> log-probabilities [B, T] of target_out`, float32, 0 where masked."""

    def scores(params: PyTree, batch: Batch) -> Array:
        run, _ = make_runner(model, params, None, train=False)
        memory = run("encode", None, batch.source, batch.source_mask)
        hidden = run("decode", None, batch.target_in, memory).hidden
        kernel, bias = model.apply({"params": params}, method="softmax_weights")
        split, size = model.execution.vocabulary, model.config.target_vocab
        found = token_log_probs(hidden, kernel, bias, batch.target_out, chunk=chunk, split=split, vocab_size=size)
        return jnp.where(batch.target_mask, found, 0.0)

    return scores


@dataclasses.dataclass(frozen=True)
class PairScore:
    """What a model makes of one pair."""

    pieces: list[str]  # of the target, eos last
    log_probs: list[float]  # of each
    note: str = ""  # why there is no score

    @property
    def log_prob(self) -> float:
        """Of the whole target, eos included."""
        return math.fsum(self.log_probs)


class Scorer:
    """Scores pairs of sentences; holds the compiled programs, one a shape.

    Args:
        scores: see `make_scores`, jitted.
        vocabs: of both sides.
        rows: pairs scored at a time.
        max_len: tokens with eos; a pair with a longer side gets no score.
        tags: names of the tokens put before every source.
    """

    def __init__(
        self,
        scores: Callable[[PyTree, Batch], Array],
        vocabs: Vocabs,
        *,
        rows: int,
        max_len: int,
        tags: Sequence[str] = (),
    ):
        self._scores, self._vocabs, self._rows, self._max_len = scores, vocabs, rows, max_len
        self._before = tag_ids(vocabs.source, tags)

    def score(self, params: PyTree, sources: Sequence[str], targets: Sequence[str]) -> list[PairScore]:
        """Scores pairs, in their order."""
        done: list[PairScore | None] = [None] * len(sources)
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        encoded = zip(
            self._vocabs.source.encode_many(list(sources)), self._vocabs.target.encode_many(list(targets)), strict=True
        )
        for n, (source, target) in enumerate(encoded):
            pair = np.concatenate([self._before, source, [EOS_ID]]), np.append(target, EOS_ID)
            pairs.append((pair[0].astype(np.int32), pair[1].astype(np.int32)))
            longest = max(map(len, pair))
            if not len(source) or not len(target):
                done[n] = PairScore([], [], f"blank {'target' if len(source) else 'source'}")
            elif longest > self._max_len:
                done[n] = PairScore([], [], f"too long: {longest} tokens, at most {self._max_len}")
        waiting = [n for n, item in enumerate(done) if item is None]
        lengths = [max(map(len, pairs[n])) for n in waiting]
        for ids, length in length_batches(lengths, rows=self._rows, max_len=self._max_len):
            rows = [waiting[n] if n >= 0 else -1 for n in ids]
            batch = _fill([pairs[n] if n >= 0 else None for n in rows], length)
            found = np.asarray(jax.device_get(self._scores(params, batch)))
            for row, n in enumerate(rows):
                if n >= 0:
                    target = pairs[n][1]
                    done[n] = PairScore(self._vocabs.target.pieces(target), found[row, : len(target)].tolist())
        return [item for item in done if item is not None]


def _fill(pairs: Sequence[tuple[np.ndarray, np.ndarray] | None], length: int) -> Batch:
    """A batch with both sides padded to one length; None only fills."""
    source, target_in, target_out = (np.zeros((len(pairs), length), np.int32) for _ in range(3))
    source_lengths, target_lengths = (np.zeros((len(pairs), 1), np.int32) for _ in range(2))
    for row, pair in enumerate(pairs):
        if pair is not None:
            source_lengths[row], target_lengths[row] = map(len, pair)
            source[row, : len(pair[0])], target_out[row, : len(pair[1])] = pair
            target_in[row, : len(pair[1])] = np.insert(pair[1][:-1], 0, BOS_ID)
    row_mask = np.array([pair is not None for pair in pairs])
    fields: dict[str, Any] = {
        "source": source,
        "source_mask": np.arange(length) < source_lengths,
        "target_in": target_in,
        "target_out": target_out,
        "target_mask": np.arange(length) < target_lengths,
        "example_ids": np.where(row_mask, np.arange(len(pairs)), -1).astype(np.int32),
        "row_mask": row_mask,
    }
    return Batch(**fields)
