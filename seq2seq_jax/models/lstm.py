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

from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, StepOutput
from seq2seq_jax.layers.dropout import Dropout
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.recurrent import LSTM


@dataclasses.dataclass(frozen=True)
class LSTMConfig:
    """Sizes and choices.

    Attributes:
        source_vocab: tokens in the source vocabulary.
        target_vocab: tokens in the target vocabulary.
        features: D, width of embeddings and layers.
        layers: L, layers on each side.
        reverse_source: read the source from its end (the paper's best trick).
        dropout: rate on every non-recurrent connection.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0 scales them by
            their inputs, see `seq2seq_jax.layers.initializers`.
        dtype: dtype of the products; parameters and states are float32.
    """

    source_vocab: int
    target_vocab: int
    features: int = 1000
    layers: int = 4
    reverse_source: bool = True
    dropout: float = 0.0
    init_scale: float = 0.08
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("features", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1), but is {self.dropout} instead.")


@struct.dataclass
class LSTMState:
    """The state of every layer: the encoder's last one (as memory) or the decoder's (as cache)."""

    c: Array  # [B, L, D] float32
    h: Array  # [B, L, D] float32


class LSTMSeq2Seq(nn.Module):
    """Two stacks of LSTMs joined by a state; keeps the `Seq2Seq` protocol."""

    config: LSTMConfig

    def setup(self) -> None:
        cfg = self.config
        dtype, scale = jnp.dtype(cfg.dtype), cfg.init_scale
        self.source_embedding = Embedding(cfg.source_vocab, cfg.features, dtype, scale)
        self.target_embedding = Embedding(cfg.target_vocab, cfg.features, dtype, scale)
        self.encoder = [LSTM(cfg.features, (cfg.features,), dtype, scale) for _ in range(cfg.layers)]
        self.decoder = [LSTM(cfg.features, (cfg.features,), dtype, scale) for _ in range(cfg.layers)]
        self.softmax = Softmax(cfg.target_vocab, cfg.features, init_scale=scale)
        self.dropout = Dropout(cfg.dropout)

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """Source tokens `[B, S]` to the last state of every layer, in `Memory.projected`."""
        mask = source_mask.T
        x = self.source_embedding(source.T)
        states = []
        for layer in self.encoder:
            x, state = layer(self.dropout(x, train=train), mask=mask, reverse=self.config.reverse_source)
            states.append(state)
        last = LSTMState(c=jnp.stack([c for c, _ in states], 1), h=jnp.stack([h for _, h in states], 1))
        return Memory(hidden=x.swapaxes(0, 1), mask=source_mask, projected=last)

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`."""
        mask = jnp.ones(target_in.T.shape, bool)
        x = self.target_embedding(target_in.T)
        for n, layer in enumerate(self.decoder):
            initial = (memory.projected.c[:, n], memory.projected.h[:, n])
            x, _ = layer(self.dropout(x, train=train), mask=mask, initial=initial)
        return DecoderOutput(hidden=self.dropout(x, train=train).swapaxes(0, 1))

    def init_cache(self, memory: Memory, max_len: int) -> LSTMState:
        """The encoder's last state; `max_len` is not needed by a recurrent decoder."""
        return memory.projected

    def decode_step(self, token: Array, step: Array, memory: Memory, cache: LSTMState) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        del step, memory
        x, states = self.target_embedding(token), []
        for n, layer in enumerate(self.decoder):
            states.append(layer.step(x, carry=(cache.c[:, n], cache.h[:, n])))
            x = states[-1][1].astype(x.dtype)
        new = LSTMState(c=jnp.stack([c for c, _ in states], 1), h=jnp.stack([h for _, h in states], 1))
        return StepOutput(hidden=x, attention=None, cache=new)

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
