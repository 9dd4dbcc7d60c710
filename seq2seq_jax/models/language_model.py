"""A language model of LSTMs (Mikolov et al. 2010; Zaremba et al. 2014, arXiv 1409.2329): how probable a text is.

    bos w1 w2 ... ─► embedding ─► dropout ─► LSTM x L ─► dropout ─► softmax ─► w1 w2 ... eos

It keeps the `Seq2Seq` protocol and reads nothing of its source: its memory is empty but for the mask, its states begin
at zero. So all that trains, saves, scores and searches with a translation model does so with it, on the target side
of any corpus; with the same file on both sides it is a language model of that file. Its use here is shallow fusion
(`decode.steps.fuse`; Gulcehre et al. 2015, 1503.03535).

Differs from the paper: every sentence begins with a zero state (Zaremba et al. go on where the last one ended); the
softmax may share the table of the embedding (Press and Wolf 2017, 1608.05859).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, PyTree, StepOutput
from seq2seq_jax.layers.cells import State
from seq2seq_jax.layers.dropout import Dropout, make_places
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.stack import RecurrentStack, run_in_order
from seq2seq_jax.models.layer_kind import check_layers, make_kind
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes and choices; by default the medium model of Zaremba et al.

    Attributes:
        source_vocab: tokens in the source vocabulary; nothing depends on it.
        target_vocab: tokens in the vocabulary of the text.
        features: D, width of the embedding and of the layers.
        layers: L.
        share_embeddings: "target" (one table for embedding and softmax) or "none" (two).
        cell: of the layers: "lstm", "lstm_peephole" or "gru".
        cells: width of a cell, projected to D; 0 is D without a projection.
        layer_norm: inside the cells.
        dropout: rate on every non-recurrent connection.
        recurrent_dropout: rate on what a layer gives to its next step, one draw a sentence.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0 scales them by
            their inputs, see `seq2seq_jax.layers.initializers`.
        dtype: dtype of the products; parameters and states are float32.
    """

    source_vocab: int
    target_vocab: int
    features: int = 650
    layers: int = 2
    share_embeddings: str = "none"
    cell: str = "lstm"
    cells: int = 0
    layer_norm: bool = False
    dropout: float = 0.5
    recurrent_dropout: float = 0.0
    init_scale: float = 0.05
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("features", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        if self.share_embeddings not in ("none", "target"):
            raise ValueError(
                f"`share_embeddings` must be 'none' or 'target', but is {self.share_embeddings!r} instead."
            )
        check_layers(self)


@struct.dataclass
class LanguageModelState:
    """The states of every layer."""

    states: State  # [B, L, width] float32 each, the output last


class LSTMLanguageModel(nn.Module):
    """A stack of LSTMs over a text; keeps the `Seq2Seq` protocol, without a source."""

    config: LanguageModelConfig
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        cfg = self.config
        dtype, scale, look_up = jnp.dtype(cfg.dtype), cfg.init_scale, self.execution.look_up
        run = self.execution.stack_runner() or run_in_order
        self.target_embedding = Embedding(cfg.target_vocab, cfg.features, dtype, scale, look_up)
        kind = make_kind(cfg, self.execution)
        self.decoder = RecurrentStack(kind, cfg.layers, residual_from=cfg.layers, dropout=cfg.dropout, run=run)
        self.softmax = Softmax(
            cfg.target_vocab, cfg.features, own_kernel=cfg.share_embeddings == "none", init_scale=scale
        )
        self.dropout = Dropout(cfg.dropout)

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """A memory of no width: of the source `[B, S]` only its mask is kept, and not read."""
        del train
        dtype = jnp.dtype(self.config.dtype)
        return Memory(hidden=jnp.zeros_like(source, dtype, shape=(*source.shape, 0)), mask=source_mask)

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`."""
        del memory
        places = make_places(self.execution.row_numbers(target_in.shape[0]), target_in.shape[1])
        x, _ = self.decoder(
            self.target_embedding(target_in.T),
            mask=None,
            places=places,
            train=train,  # padding comes last
        )
        return DecoderOutput(hidden=self.dropout(x, places, train=train).swapaxes(0, 1))

    def init_cache(self, memory: Memory, max_len: int) -> LanguageModelState:
        """Zeros; `max_len` is not needed by a recurrent model."""
        del max_len
        shape = (memory.mask.shape[0], self.config.layers)
        return LanguageModelState(make_kind(self.config, self.execution).zero_state(memory.mask, shape))

    def step_weights(self) -> tuple[PyTree, ...]:
        """The weights of the decoder's layers as `decode_step` reads them."""
        return self.decoder.step_weights()

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: LanguageModelState, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        del step, memory
        x, states = self.decoder.step(self.target_embedding(token), state=cache.states, weights=weights)
        return StepOutput(hidden=x, attention=None, cache=LanguageModelState(states))

    def _shared(self) -> Array | None:
        """The table that is the softmax's kernel too, where it is."""
        return None if self.config.share_embeddings == "none" else self.target_embedding.table

    def softmax_weights(self) -> tuple[Array, Array]:
        """Kernel `[V, D]` and bias `[V]` of the output projection, float32."""
        return self.softmax.weights(self._shared())

    def project(self, hidden: Array) -> Array:
        """Hidden states `[..., D]` to logits `[..., V]` float32."""
        return self.softmax(hidden, self._shared())

    def __call__(self, source: Array, source_mask: Array, target_in: Array, *, train: bool = False) -> Array:
        """Everything at once, logits `[B, T, V]`: makes the parameters, and serves small studies."""
        memory = self.encode(source, source_mask, train=train)
        return self.project(self.decode(target_in, memory, train=train).hidden)
