"""Connectionist temporal classification (Graves et al. 2006): every frame says a label or nothing.

    waveform ► log-mel ► listener ► softmax over labels and blank, at every frame that is left

The blank is token 0. A model's output is the labels that a path over the frames leaves when repeats are merged and
blanks taken out; its probability is the sum over all such paths, see the losses and searches for CTC.
"""

from __future__ import annotations

import dataclasses

from flax import linen as nn
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array, Memory
from seq2seq_jax.layers.frontend import Frontend, LogMel
from seq2seq_jax.layers.projections import Softmax
from seq2seq_jax.models.listener import Listener, check_listener
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """Sizes and choices of one CTC model.

    Attributes:
        target_vocab: labels, the blank (0) among them.
        frontend: what is heard of a waveform.
        source_vocab: not used: a source has no tokens.
        listener: what its layers are, one of `listener.LISTENERS`.
        subsample: how the length is reduced, one of `listener.SUBSAMPLINGS`.
        reduction: how many frames become one, a power of two.
        listener_layers: layers, those of a pyramid included.
        listener_features: D, width of a layer's output, both directions together.
        heads: of a Conformer's attention.
        feed_forward: width of a Conformer's feed-forward layers.
        kernel: frames that a Conformer's convolution sees, odd.
        positions: how a Conformer knows where a frame is: "rotary" or "relative".
        channels: of the convolutions that subsample.
        cell: of recurrent layers: "lstm", "lstm_peephole" or "gru".
        cells: width of a cell, projected to the layer's width; 0 is as wide, without a projection.
        layer_norm: inside the cells.
        dropout: rate on what is not recurrent.
        recurrent_dropout: rate on what a layer gives to its next step, one draw a recording.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0 scales them by
            their inputs, see `seq2seq_jax.layers.initializers`.
        dtype: dtype of the products; parameters and states are float32.
    """

    target_vocab: int
    frontend: Frontend = Frontend()
    source_vocab: int = 0
    listener: str = "lstm"
    subsample: str = "pyramid"
    reduction: int = 4
    listener_layers: int = 3
    listener_features: int = 256
    heads: int = 4
    feed_forward: int = 512
    kernel: int = 15
    positions: str = "rotary"
    channels: int = 32
    cell: str = "lstm"
    cells: int = 0
    layer_norm: bool = False
    dropout: float = 0.1
    recurrent_dropout: float = 0.0
    init_scale: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_listener(self)

    @property
    def features(self) -> int:
        """Width of a layer's output."""
        return self.listener_features


class CTC(nn.Module):
    """A listener and a softmax of its frames; keeps the `Encoder` and `FrameModel` protocols.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: CTCConfig
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        cfg = self.config
        self.frontend = LogMel(cfg.frontend)
        self.listener = Listener(cfg, cfg.frontend.mels, self.execution)
        self.frame_softmax = Softmax(cfg.target_vocab, cfg.listener_features, init_scale=cfg.init_scale)

    def compute_features(self, source: Float[Array, "B S H"], source_mask: Bool[Array, "B S"]) -> Float[Array, "B S M"]:
        """Normalised log-mel features of a waveform cut into frames `[B, S, H]`; float32, zero where masked."""
        return self.frontend(source, source_mask)

    def encode_features(
        self, features: Float[Array, "B S M"], source_mask: Bool[Array, "B S"], *, train: bool
    ) -> Memory:
        """Features `[B, S, M]`, perhaps augmented, to the memory: `[B, ceil(S / reduction), D]`."""
        hidden, mask = self.listener(features, source_mask, train=train)
        return Memory(hidden=hidden, mask=mask)

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """A waveform cut into frames `[B, S, H]` to the memory."""
        return self.encode_features(self.compute_features(source, source_mask), source_mask, train=train)

    def project_frames(self, memory: Memory) -> Array:
        """Logits `[B, S', V]` float32 of every frame of the memory."""
        return self.frame_softmax(memory.hidden)

    def frame_weights(self) -> tuple[Array, Array]:
        """The same projection as its parts: kernel `[V, D]` and bias `[V]`, float32."""
        return self.frame_softmax.weights()

    def __call__(
        self, source: Array, source_mask: Array, target_in: Array | None = None, *, train: bool = False
    ) -> Array:
        """Everything at once, logits `[B, S', V]`: makes the parameters, and serves small studies."""
        del target_in
        return self.project_frames(self.encode(source, source_mask, train=train))
