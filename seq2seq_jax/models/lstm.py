"""Sequence to sequence learning with an LSTM and no attention (Sutskever et al. 2014, arXiv 1409.3215).

    source (reversed) ─► LSTM x L ─── last state of every layer ───► LSTM x L ─► softmax
                                                                     ▲
                                                                  target

The last state of the encoder is all that the decoder knows of its source. Deep layers are stacked
plainly, without residual connections.

Differs from the paper: dropout is available (the paper uses none); the vocabularies are whatever
the config gives (the paper: 160,000 and 80,000 words).
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
class LSTMConfig:
    """Sizes and choices.

    Attributes:
        source_vocab: tokens in the source vocabulary.
        target_vocab: tokens in the target vocabulary.
        features: D, width of embeddings and layers.
        layers: L, layers on each side.
        reverse_source: read the source from its end (the paper's best trick).
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
    features: int = 1000
    layers: int = 4
    reverse_source: bool = True
    cell: str = "lstm"
    cells: int = 0
    layer_norm: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    init_scale: float = 0.08
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("features", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        check_layers(self)


@struct.dataclass
class LSTMState:
    """The states of every layer: the encoder's last ones (as memory) or the decoder's (as cache)."""

    states: State  # [B, L, width] float32 each, the output last


class LSTMSeq2Seq(nn.Module):
    """Two stacks of LSTMs joined by a state; keeps the `Seq2Seq` protocol."""

    config: LSTMConfig
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        cfg = self.config
        dtype, scale, look_up = jnp.dtype(cfg.dtype), cfg.init_scale, self.execution.look_up
        run, kind = self.execution.stack_runner() or run_in_order, make_kind(cfg, self.execution)

        def stack() -> RecurrentStack:
            return RecurrentStack(kind, cfg.layers, residual_from=cfg.layers, dropout=cfg.dropout, run=run)

        self.source_embedding = Embedding(cfg.source_vocab, cfg.features, dtype, scale, look_up)
        self.target_embedding = Embedding(cfg.target_vocab, cfg.features, dtype, scale, look_up)
        self.encoder, self.decoder = stack(), stack()
        self.softmax = Softmax(cfg.target_vocab, cfg.features, init_scale=scale)
        self.dropout = Dropout(cfg.dropout)

    def _places(self, tokens: Array) -> Array:
        """What dropout is keyed by, `[T, B, 2]`, for tokens `[B, T]`."""
        return make_places(self.execution.row_numbers(tokens.shape[0]), tokens.shape[1])

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """Source tokens `[B, S]` to the last state of every layer, in `Memory.projected`."""
        x, states = self.encoder(
            self.source_embedding(source.T),
            mask=source_mask.T,
            places=self._places(source),
            reverse=self.config.reverse_source,
            train=train,
        )
        last = LSTMState(tuple(each.swapaxes(0, 1) for each in states))
        return Memory(hidden=x.swapaxes(0, 1), mask=source_mask, projected=last)

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`."""
        places = self._places(target_in)
        x, _ = self.decoder(
            self.target_embedding(target_in.T),
            mask=None,  # padding comes last
            places=places,
            initial=tuple(each.swapaxes(0, 1) for each in memory.projected.states),
            train=train,
        )
        return DecoderOutput(hidden=self.dropout(x, places, train=train).swapaxes(0, 1))

    def init_cache(self, memory: Memory, max_len: int) -> LSTMState:
        """The encoder's last state; `max_len` is not needed by a recurrent decoder."""
        return memory.projected

    def sentence_vectors(self, memory: Memory) -> Array:
        """The outputs of all layers at the end of the source, `[B, L x D]`, bottom first: the states of figure 2.

        The cells beside them (the paper's other 4,000 of 8,000 numbers a sentence) are not bounded: a few large ones
        would decide every distance.
        """
        outputs = memory.projected.states[-1]
        return outputs.reshape(outputs.shape[0], -1)

    def step_weights(self) -> tuple[PyTree, ...]:
        """The weights of the decoder's layers as `decode_step` reads them."""
        return self.decoder.step_weights()

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: LSTMState, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        del step, memory
        x, states = self.decoder.step(self.target_embedding(token), state=cache.states, weights=weights)
        return StepOutput(hidden=x, attention=None, cache=LSTMState(states))

    def softmax_weights(self) -> tuple[Array, Array]:
        """Kernel `[V, D]` and bias `[V]` of the output projection, float32."""
        return self.softmax.weights()

    def project(self, hidden: Array) -> Array:
        """Hidden states `[..., D]` to logits `[..., V]` float32."""
        return self.softmax(hidden)

    def __call__(self, source: Array, source_mask: Array, target_in: Array, *, train: bool = False) -> Array:
        """Everything at once, logits `[B, T, V]`: makes the parameters, and serves small studies."""
        memory = self.encode(source, source_mask, train=train)
        return self.project(self.decode(target_in, memory, train=train).hidden)
