"""Google's Neural Machine Translation system (Wu et al. 2016, arXiv 1609.08144).

              context a_t ────────────┬──────────┬───────── ... to every decoder layer
                   ▲                  ▼          ▼
    encoder ──► attention        decoder 1 ► decoder 2 ► decoder 3 (+) ... ► softmax
       ▲           ▲                  │
     L ... (+)     └── query ─────────┘   residual connections (+) from the third layer on
     3 (+)
     2
     1 both directions
       ▲
     source

`attention_from="previous_step"` is the paper (section 3, equation 4): the bottom decoder layer's
output of the step before asks, and the answer is fed to every decoder layer, the bottom one
included, so that the bottom layer and the attention are one loop over the target.
`attention_from="current_step"` is the variant that NVIDIA trains: the bottom layer runs over the
whole target first and without a context, all its outputs ask at once, and the layers above get the
answers. Every layer then runs over whole sequences.

Differs from the paper: dropout on every non-recurrent connection (Zaremba et al. 2014), the top
output included; no clipping of the accumulators (section 6). The decoder starts from zeros, as the
paper has it. Layers of one shape are one stack, `encoder_stack` and `decoder_stack`, which runs over the
devices of a mesh as `execution` says; the layers below them run by rows.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, PyTree, StepOutput
from seq2seq_jax.layers.attending import Asking, Attended, recur_attending
from seq2seq_jax.layers.attention import ATTENTION, make_attention
from seq2seq_jax.layers.cells import State
from seq2seq_jax.layers.dropout import Dropout, dropout_mask, make_places
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.recurrent import Recurrent, make_weights, project
from seq2seq_jax.layers.stack import RecurrentStack, run_in_order
from seq2seq_jax.models.both_directions import run_directions
from seq2seq_jax.models.layer_kind import check_layers, make_kind
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution

ATTENTION_FROM = ("previous_step", "current_step")
SHARED = ("none", "target", "all")


@dataclasses.dataclass(frozen=True)
class GNMTConfig:
    """Sizes and choices of one GNMT.

    Attributes:
        source_vocab: tokens in the source vocabulary.
        target_vocab: tokens in the target vocabulary.
        features: D, width of embeddings, layers and attention values.
        encoder_layers: layers of the encoder, the bottom one running in both directions.
        decoder_layers: layers of the decoder.
        attention_features: A, width of additive attention's hidden layer.
        attention_from: whose output asks: "previous_step" (paper) or "current_step" (NVIDIA).
        share_embeddings: "none" (three tables), "target" (target embedding = softmax kernel) or
            "all" (one table; needs one vocabulary for both sides).
        attention: how a query scores the source: "additive" (paper), "dot" or "general" (Luong et al. 2015).
        cell: of the layers: "lstm", "lstm_peephole" or "gru".
        cells: width of a cell, projected to D; 0 is D without a projection.
        layer_norm: inside the cells.
        dropout: rate on every non-recurrent connection.
        recurrent_dropout: rate on what a layer gives to its next step, one draw a sentence.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0 scales them by
            their inputs, see `seq2seq_jax.layers.initializers`.
        dtype: dtype of the products, "float32" or "bfloat16"; parameters and states are float32.
    """

    source_vocab: int
    target_vocab: int
    features: int = 1024
    encoder_layers: int = 8
    decoder_layers: int = 8
    attention_features: int = 1024
    attention_from: str = "previous_step"
    share_embeddings: str = "none"
    attention: str = "additive"
    cell: str = "lstm"
    cells: int = 0
    layer_norm: bool = False
    dropout: float = 0.2
    recurrent_dropout: float = 0.0
    init_scale: float = 0.04
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.attention_from not in ATTENTION_FROM:
            raise ValueError(
                f"`attention_from` must be one of {ATTENTION_FROM}, but is {self.attention_from!r} instead."
            )
        if self.attention not in ATTENTION:
            raise ValueError(f"`attention` must be one of {ATTENTION}, but is {self.attention!r} instead.")
        if self.share_embeddings not in SHARED:
            raise ValueError(f"`share_embeddings` must be one of {SHARED}, but is {self.share_embeddings!r} instead.")
        if self.share_embeddings == "all" and self.source_vocab != self.target_vocab:
            raise ValueError(
                f"`share_embeddings` 'all' must have one vocabulary for both sides, but the sizes are "
                f"{self.source_vocab} and {self.target_vocab} instead; use a joint vocabulary or 'target'."
            )
        for name in ("features", "encoder_layers", "decoder_layers", "attention_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        if self.attention_from == "current_step" and self.decoder_layers < 2:
            raise ValueError(
                "`decoder_layers` must be at least 2 with `attention_from` 'current_step', whose bottom layer has no "
                f"context, but is {self.decoder_layers} instead."
            )
        check_layers(self)
        if self.layer_norm and self.attention_from == "previous_step":
            raise ValueError(
                "`layer_norm` must be False with `attention_from` 'previous_step', whose bottom layer has its input "
                "products inside the loop; use 'current_step'."
            )


@struct.dataclass
class GNMTCache:
    """The states of every decoder layer; the bottom one's output is also what the paper's attention is asked with."""

    states: State  # [B, L, width] float32 each, the output last


class GNMT(nn.Module):
    """Encoder, attention and decoder of GNMT; keeps the `Seq2Seq` protocol.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: GNMTConfig
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        cfg = self.config
        dtype, scale = jnp.dtype(cfg.dtype), cfg.init_scale
        width, context = cfg.features, self.memory_features
        look_up = self.execution.look_up
        run = self.execution.stack_runner() or run_in_order

        self.kind = make_kind(cfg, self.execution)

        def layer(inputs: int) -> Recurrent:
            return Recurrent(self.kind, inputs)

        def stack(layers: int, residual_from: int, side: int = 0) -> RecurrentStack:
            return RecurrentStack(self.kind, layers, side, residual_from, cfg.dropout, run)

        self.target_embedding = Embedding(cfg.target_vocab, width, dtype, scale, look_up)
        self.source_embedding = (
            self.target_embedding
            if cfg.share_embeddings == "all"
            else Embedding(cfg.source_vocab, width, dtype, scale, look_up)
        )
        self.softmax = Softmax(cfg.target_vocab, width, own_kernel=cfg.share_embeddings == "none", init_scale=scale)
        self.encoder_bottom_forward = layer(width)
        self.encoder_bottom_backward = layer(width)
        if cfg.encoder_layers > 1:
            self.encoder_second = layer(2 * width)
        if cfg.encoder_layers > 2:
            self.encoder_stack = stack(cfg.encoder_layers - 2, 0)
        self.decoder_bottom = layer(width + (context if cfg.attention_from == "previous_step" else 0))
        if cfg.decoder_layers > 1:
            self.decoder_stack = stack(cfg.decoder_layers - 1, 1, context)
        self.attention = make_attention(
            cfg.attention,
            features=cfg.attention_features,
            query_features=width,
            key_features=context,
            dtype=dtype,
            init_scale=scale,
        )
        self.dropout = Dropout(cfg.dropout)

    @property
    def memory_features(self) -> int:
        """Width of the encoder's output: D, or 2D where the bidirectional layer is the only one."""
        return self.config.features * (2 if self.config.encoder_layers == 1 else 1)

    def _places(self, tokens: Array) -> Array:
        """What dropout is keyed by, `[T, B, 2]`, for tokens `[B, T]`."""
        return make_places(self.execution.row_numbers(tokens.shape[0]), tokens.shape[1])

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """Source tokens `[B, S]` to the memory that the decoder attends to."""
        mask, places = source_mask.T, self._places(source)
        x = self.dropout(self.source_embedding(source.T), places, train=train)  # [S, B, D]
        x = self._bottom(x, mask, places, train=train)
        if self.config.encoder_layers > 1:
            x = self.dropout(x, places, train=train)
            x, _ = self.encoder_second(x, mask=mask, places=places, train=train)
        if self.config.encoder_layers > 2:
            x, _ = self.encoder_stack(x, mask=mask, places=places, train=train)
        x = self.dropout(x, places, train=train)
        hidden = x.swapaxes(0, 1) * source_mask[..., None].astype(x.dtype)
        return Memory(hidden=hidden, mask=source_mask, projected=self.attention.project_keys(hidden))

    def _bottom(self, x: Array, mask: Array, places: Array, *, train: bool) -> Array:
        """The bottom encoder layer in both directions, `[S, B, D]` to `[S, B, 2D]`."""
        directions = self.encoder_bottom_forward.parameters(), self.encoder_bottom_backward.parameters()
        key = self.make_rng("dropout") if train and self.kind.recurrent_dropout else None
        return run_directions(self.kind, self.execution, directions, x, mask, places, key=key)

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`. Padding comes last, so that no step needs a mask."""
        places = self._places(target_in)
        x = self.dropout(self.target_embedding(target_in.T), places, train=train)  # [T, B, D]
        if self.config.attention_from == "previous_step":
            x, contexts, weights = self._attending_bottom(x, memory, places, train=train)
        else:
            x, _ = self.decoder_bottom(x, mask=None, places=places, train=train)
            contexts, weights = self.attention(x.swapaxes(0, 1), memory.projected, memory.hidden, memory.mask)
            contexts = contexts.swapaxes(0, 1)
        if self.config.decoder_layers > 1:
            x, _ = self.decoder_stack(x, contexts, mask=None, places=places, train=train)
        hidden = self.dropout(x, places, train=train).swapaxes(0, 1)
        return DecoderOutput(hidden=hidden, attention=weights)

    def _attending_bottom(self, x: Array, memory: Memory, places: Array, *, train: bool) -> tuple[Array, Array, Array]:
        """The paper's bottom decoder layer: one loop over T in which the last output asks first.

        Returns outputs `[T, B, D]`, contexts `[T, B, Dm]` and weights `[B, T, S]`.
        """
        kind, own = self.kind, self.decoder_bottom.parameters()
        rate = self.config.dropout if train else 0.0
        context_noise = None
        if rate:
            context_noise = dropout_mask(self.make_rng("dropout"), rate, places, self.memory_features, x.dtype)
        query, v = self.attention.query_weights()
        asking = Asking(query, v, own["input_kernel"][x.shape[-1] :])
        outputs, contexts, weights = recur_attending(
            kind.cell,
            project(kind, own, (x, None)),
            make_weights(kind, own),
            asking,
            Attended(memory.projected, memory.hidden, memory.mask),
            noise=self.decoder_bottom.draw_noise(places, train=train),
            context_noise=context_noise,
            loop=kind.loop,
        )
        return outputs, contexts, weights.swapaxes(0, 1)

    def init_cache(self, memory: Memory, max_len: int) -> GNMTCache:
        """All states zero; `max_len` is not needed by a recurrent decoder."""
        shape = (memory.mask.shape[0], self.config.decoder_layers)
        return GNMTCache(self.kind.zero_state(memory.hidden, shape))

    def step_weights(self) -> tuple[PyTree, ...]:
        """The weights of the decoder's layers as `decode_step` reads them."""
        above = () if self.config.decoder_layers == 1 else self.decoder_stack.step_weights()
        return self.decoder_bottom.step_weights(), above

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: GNMTCache, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        own = self.step_weights() if weights is None else weights
        del step  # a recurrent decoder's clock is its state
        dtype = jnp.dtype(self.config.dtype)

        def ask(h: Array) -> tuple[Array, Array]:
            contexts, weights = self.attention(h[:, None], memory.projected, memory.hidden, memory.mask)
            return contexts[:, 0], weights[:, 0]

        bottom = tuple(each[:, 0] for each in cache.states)
        x = self.target_embedding(token)
        if self.config.attention_from == "previous_step":
            context, attention = ask(bottom[-1])
            bottom = self.decoder_bottom.step(x, context, state=bottom, weights=own[0])
        else:
            bottom = self.decoder_bottom.step(x, state=bottom, weights=own[0])
            context, attention = ask(bottom[-1])
        x = bottom[-1].astype(dtype)
        states = tuple(each[:, None] for each in bottom)
        if self.config.decoder_layers > 1:
            upper = tuple(each[:, 1:] for each in cache.states)
            x, above = self.decoder_stack.step(x, context, state=upper, weights=own[1])
            states = tuple(jnp.concatenate(each, 1) for each in zip(states, above, strict=True))
        return StepOutput(hidden=x, attention=attention, cache=GNMTCache(states))

    @property
    def _shared(self) -> Array | None:
        """The table that is the softmax's kernel too, where one is."""
        return None if self.config.share_embeddings == "none" else self.target_embedding.table

    def softmax_weights(self) -> tuple[Array, Array]:
        """Kernel `[V, D]` and bias `[V]` of the output projection, float32."""
        return self.softmax.weights(self._shared)

    def project(self, hidden: Array) -> Array:
        """Hidden states `[..., D]` to logits `[..., V]` float32."""
        return self.softmax(hidden, self._shared)

    def __call__(self, source: Array, source_mask: Array, target_in: Array, *, train: bool = False) -> Array:
        """Everything at once, logits `[B, T, V]`: makes the parameters, and serves small studies."""
        memory = self.encode(source, source_mask, train=train)
        return self.project(self.decode(target_in, memory, train=train).hidden)
