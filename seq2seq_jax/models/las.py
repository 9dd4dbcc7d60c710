"""Listen, Attend and Spell (Chan et al. 2016, 1508.01211): speech to text by attention.

    waveform ► log-mel ► listener ► h_1 ... h_S' ──┬─► [softmax of frames: CTC, where `ctc_head`]
                                                   ▼
                      y(i-1), c(i-1) ► speller ► s_i ► attention ► c_i ► readout(s_i, c_i) ► softmax

The listener hears fewer and fewer frames a layer up (`models.listener`), the speller writes the text token by token
(`layers.speller`): its bottom layer reads the token and the context of the step before, the newest state of its top
layer asks for a context, and both say the next token. Attention by "content" is the paper's; "location" also knows
where it was (Chorowski et al. 2015, 1506.07503). With `ctc_head` the memory's frames have a softmax of their own, for a
second loss and for joint search (Watanabe et al. 2017, 1610.03022).

Differs from the paper: the scores are additive attention's (v . tanh(W s + V h + b)) in place of a product of two
perceptrons; dropout is available, SpecAugment and label smoothing come from the training.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, PyTree, StepOutput
from seq2seq_jax.layers.dense import Dense
from seq2seq_jax.layers.dropout import Dropout, make_places
from seq2seq_jax.layers.frontend import Frontend, LogMel
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.speller import ATTENTIONS, Speller, SpellerState
from seq2seq_jax.models.layer_kind import make_kind
from seq2seq_jax.models.listener import Listener, check_listener
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution


@dataclasses.dataclass(frozen=True)
class LASConfig:
    """Sizes and choices of one LAS.

    Attributes:
        target_vocab: tokens in the target vocabulary.
        frontend: what is heard of a waveform.
        source_vocab: not used: a source has no tokens.
        listener: what its layers are, one of `listener.LISTENERS`.
        subsample: how the length is reduced, one of `listener.SUBSAMPLINGS`.
        reduction: how many frames become one, a power of two.
        listener_layers: layers, those of a pyramid included.
        listener_features: D, width of a listener layer's output, both directions together.
        heads: of a Conformer's attention.
        feed_forward: width of a Conformer's feed-forward layers.
        kernel: frames that a Conformer's convolution sees, odd.
        positions: how a Conformer knows where a frame is: "rotary" or "relative".
        channels: of the convolutions that subsample.
        features: width of the target embedding, of the speller's states and of the readout.
        speller_layers: layers of the speller.
        attention: "content" (Chan et al. 2016) or "location" (Chorowski et al. 2015).
        attention_features: A, width of additive attention's hidden layer.
        location_filters: number of filters over the weights of the step before.
        location_width: frames of the memory that a filter sees, odd; 51 of 40 ms are a second to each side.
        ctc_head: the memory's frames have a softmax of their own.
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
    features: int = 256
    speller_layers: int = 1
    attention: str = "location"
    attention_features: int = 128
    location_filters: int = 10
    location_width: int = 51
    ctc_head: bool = False
    cell: str = "lstm"
    cells: int = 0
    layer_norm: bool = False
    dropout: float = 0.1
    recurrent_dropout: float = 0.0
    init_scale: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"`attention` must be one of {ATTENTIONS}, but is {self.attention!r} instead.")
        for name in ("features", "speller_layers", "attention_features", "location_filters"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        if self.location_width < 1 or self.location_width % 2 == 0:
            raise ValueError(
                f"`location_width` must be odd, as many frames on both sides, but is {self.location_width} instead."
            )
        if self.cell == "gru" and self.recurrent_dropout:
            raise ValueError(
                "`recurrent_dropout` must be 0 with `cell` 'gru', whose output is its state, but is "
                f"{self.recurrent_dropout} instead; use 'lstm'."
            )
        check_listener(self)


class LAS(nn.Module):
    """Listener, attention and speller; keeps the `Seq2Seq` protocol, and with `ctc_head` that of `FrameModel`.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: LASConfig
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        cfg = self.config
        dtype, scale, width, memory = jnp.dtype(cfg.dtype), cfg.init_scale, cfg.features, cfg.listener_features
        self.frontend = LogMel(cfg.frontend)
        self.listener = Listener(cfg, cfg.frontend.mels, self.execution)
        self.embedding = Embedding(cfg.target_vocab, width, dtype, scale, self.execution.look_up)
        self.speller = Speller(
            make_kind(cfg, self.execution),
            layers=cfg.speller_layers,
            inputs=width,
            memory_features=memory,
            attention=cfg.attention,
            attention_features=cfg.attention_features,
            filters=cfg.location_filters,
            width=cfg.location_width,
            dropout=cfg.dropout,
        )
        self.readout = Dense(width + memory, width, dtype, scale)
        self.softmax = Softmax(cfg.target_vocab, width, init_scale=scale)
        if cfg.ctc_head:
            self.frame_softmax = Softmax(cfg.target_vocab, memory, init_scale=scale)
        self.dropout = Dropout(cfg.dropout)

    def compute_features(self, source: Float[Array, "B S H"], source_mask: Bool[Array, "B S"]) -> Float[Array, "B S M"]:
        """Normalised log-mel features of a waveform cut into frames `[B, S, H]`; float32, zero where masked."""
        return self.frontend(source, source_mask)

    def encode_features(
        self, features: Float[Array, "B S M"], source_mask: Bool[Array, "B S"], *, train: bool
    ) -> Memory:
        """Features `[B, S, M]`, perhaps augmented, to the memory: `[B, ceil(S / reduction), D]`."""
        hidden, mask = self.listener(features, source_mask, train=train)
        return Memory(hidden=hidden, mask=mask, projected=self.speller.project_keys(hidden))

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """A waveform cut into frames `[B, S, H]` to the memory that the speller attends to."""
        return self.encode_features(self.compute_features(source, source_mask), source_mask, train=train)

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`. Padding comes last, so that no step needs a mask."""
        places = make_places(self.execution.row_numbers(target_in.shape[0]), target_in.shape[1])
        x = self.dropout(self.embedding(target_in.T), places, train=train)  # [T, B, E]
        states, contexts, weights = self.speller(x, memory.projected, memory.hidden, memory.mask, places, train=train)
        hidden = self.dropout(self._read_out(states, contexts), places, train=train)
        return DecoderOutput(hidden=hidden.swapaxes(0, 1), attention=weights.swapaxes(0, 1))

    def _read_out(self, states: Array, contexts: Array) -> Array:
        """States `[..., features]` and contexts `[..., D]` to what the softmax reads."""
        return jnp.tanh(self.readout(states, contexts)).astype(self.config.dtype)

    def init_cache(self, memory: Memory, max_len: int) -> SpellerState:
        """The first state; `max_len` is not needed by a recurrent decoder."""
        del max_len
        return self.speller.start(memory.hidden, memory.mask)

    def step_weights(self) -> PyTree:
        """The weights of the speller as `decode_step` reads them."""
        return self.speller.step_weights()

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: SpellerState, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        del step  # a recurrent decoder's clock is its state
        own = self.step_weights() if weights is None else weights
        x = self.embedding(token)
        new, attention = self.speller.step(own, x, cache, memory.projected, memory.hidden, memory.mask, None)
        hidden = self._read_out(new.states[-1][-1].astype(x.dtype), new.context)
        return StepOutput(hidden=hidden, attention=attention, cache=new)

    def softmax_weights(self) -> tuple[Array, Array]:
        """Kernel `[V, D]` and bias `[V]` of the output projection, float32."""
        return self.softmax.weights()

    def project(self, hidden: Array) -> Array:
        """What the readout gave `[..., D]` to logits `[..., V]` float32."""
        return self.softmax(hidden)

    def _require_head(self) -> None:
        if not self.config.ctc_head:
            raise UserError(
                "config.model.ctc_head must be True for a loss or a search of frames (CTC), but is False instead; "
                "train a model that has it."
            )

    def project_frames(self, memory: Memory) -> Array:
        """Logits `[B, S', V]` float32 of every frame of the memory, where `ctc_head`."""
        self._require_head()
        return self.frame_softmax(memory.hidden)

    def frame_weights(self) -> tuple[Array, Array]:
        """The same projection as its parts: kernel `[V, D]` and bias `[V]`, float32."""
        self._require_head()
        return self.frame_softmax.weights()

    def __call__(self, source: Array, source_mask: Array, target_in: Array, *, train: bool = False) -> Array:
        """Everything at once, logits `[B, T, V]`: makes the parameters, and serves small studies."""
        memory = self.encode(source, source_mask, train=train)
        if self.config.ctc_head:
            self.project_frames(memory)
        return self.project(self.decode(target_in, memory, train=train).hidden)
