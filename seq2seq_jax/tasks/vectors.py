"""Sentence vectors: what an encoder makes of a sentence, as one row of numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seq2seq_jax.data.pipeline import length_batches, tag_ids
from seq2seq_jax.data.vocab import EOS_ID, Vocabs
from seq2seq_jax.decode.steps import Decoder, Inputs
from seq2seq_jax.interfaces import Array, PyTree, SentenceVectors
from seq2seq_jax.tasks.search import Program


def name_kind(model: nn.Module) -> str:
    """What the vectors of a model are: "final state", or "mean" where the decoder attends to every position."""
    return "final state" if isinstance(model, SentenceVectors) else "mean"


class SentenceEncoder:
    """Makes vectors of sentences; holds the compiled programs, one for each padded length.

    The vector of a model without attention is all that its decoder starts from of the encoder's outputs: those of all
    layers at the end of the source, bottom layer first (Sutskever et al. 2014, figure 2). A model with attention has
    no such state; its vector is the mean of the encoder's outputs over the source's tokens.

    Args:
        program: of one model, not of an ensemble.
        model: the model of that program.
        vocabs: of both sides.
        rows: sentences encoded at a time.
        max_len: tokens of a source with its tags and eos; the rest is cut off.
    """

    def __init__(self, program: Program, model: nn.Module, vocabs: Vocabs, *, rows: int, max_len: int):
        self._vocabs, self._rows, self._max_len = vocabs, rows, max_len
        self._encode = jax.jit(functools.partial(_encode, program, model), out_shardings=program.place())

    def encode(self, params: PyTree, lines: Sequence[str], *, tags: Sequence[str] = ()) -> tuple[np.ndarray, list[int]]:
        """Vectors of sentences, in their order.

        Args:
            params: of the program.
            lines: the sentences; a blank one is encoded as eos alone.
            tags: names of the tokens put before every source.

        Returns:
            `[N, D]` float32 (`[0, 0]` without lines), and the places of sentences that were cut off.
        """
        before = tag_ids(self._vocabs.source, tags)
        limit = self._max_len - 1 - len(before)
        encoded = self._vocabs.source.encode_many(list(lines))
        sources = [np.concatenate([before, ids[:limit], [EOS_ID]]).astype(np.int32) for ids in encoded]
        vectors: np.ndarray | None = None
        for ids, length in length_batches([len(ids) for ids in sources], rows=self._rows, max_len=self._max_len):
            rows = ids[ids >= 0]
            found = np.asarray(jax.device_get(self._encode(params, _pad([sources[n] for n in rows], ids.size, length))))
            if vectors is None:
                vectors = np.zeros((len(sources), found.shape[1]), np.float32)
            vectors[rows] = found[: len(rows)]
        cut = [n for n, ids in enumerate(encoded) if len(ids) > limit]
        return np.zeros((0, 0), np.float32) if vectors is None else vectors, cut


def _encode(program: Program, model: nn.Module, params: PyTree, inputs: Inputs) -> Array:
    """Vectors `[B, D]` float32 of a batch."""

    def run(decoder: Decoder, params: PyTree, inputs: Inputs, whole: PyTree) -> Array:
        memory = decoder.encode(params, inputs)
        if isinstance(model, SentenceVectors):
            return model.sentence_vectors(memory).astype(jnp.float32)
        real = memory.mask[..., None].astype(jnp.float32)
        return (memory.hidden * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1.0)

    return program.spread(run, params, inputs)


def _pad(sources: Sequence[np.ndarray], rows: int, length: int) -> Inputs:
    """A batch of so many rows, of which the last may only fill it."""
    tokens: Any = np.zeros((rows, length), np.int32)
    mask: Any = np.zeros(tokens.shape, bool)
    for row, source in enumerate(sources):
        tokens[row, : len(source)], mask[row, : len(source)] = source, True
    return Inputs(tokens, mask)
