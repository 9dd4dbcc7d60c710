"""The Transformer: attention is all you need (Vaswani et al. 2017, arXiv 1706.03762).

    source ─► embedding + positions ─► L layers ─────────► memory
                                       self-attention         │ every decoder layer attends to it
                                       feed-forward           ▼
    target ─► embedding + positions ─► L layers: self-attention (of the past), cross-attention, feed-forward ─► softmax

Embeddings are multiplied by sqrt(D) (for `init_scale` 0). One table may serve both sides and the softmax.

Variants: layer normalisation before the sub-layers (`norm="pre"`, with one more after the last layer); positions
learned (Gehring et al. 2017), relative (Raffel et al. 2020) or rotary (Su et al. 2021) in the place of sinusoids; other
activations; encoders deeper than decoders (Kasai et al. 2021, 2006.10369); Linformer's attention in the encoder (Wang
et al. 2020, 2006.04768).

Differs from the paper: the attention's products have biases, and so has the softmax, as in most programs since
(fairseq, Marian); the authors' own had none in the attention. Dropout where the paper has it, and nowhere else: on
embeddings and on the output of every sub-layer, not on attention weights or within the feed-forward layer.

What a search needs of the source, keys and values of every decoder layer, is made with the memory; training makes them
layer by layer, and what it does not read is not computed.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, Packing, PyTree, StepOutput
from seq2seq_jax.layers.dropout import Dropout, make_places
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.transformer import Norm, Positions, TransformerStack
from seq2seq_jax.layers.transformer_layer import Cached
from seq2seq_jax.models.transformer_kind import check_layers, check_linformer, check_shared, make_kind
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of one Transformer; by default the paper's base model.

    Attributes:
        source_vocab: tokens in the source vocabulary.
        target_vocab: tokens in the target vocabulary.
        features: D, width of embeddings and layers.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        heads: N, of every attention; they divide D.
        feed_forward: F, width inside the feed-forward layers.
        norm: layer normalisation after each sub-layer's sum, "post" (paper), or before each sub-layer, "pre".
        positions: "sinusoidal" (paper), "learned", "relative" or "rotary".
        max_positions: rows of learned tables of positions and of Linformer's; no text may be longer.
        activation: of the feed-forward layers: "relu" (paper), "gelu", "swish" or "swiglu".
        share_embeddings: "none" (three tables), "target" (target embedding = softmax kernel) or
            "all" (one table; needs one vocabulary for both sides).
        linformer: rank that keys and values of the encoder's self-attention are mixed down to, so that its cost grows
            with the length and not with its square (Wang et al. 2020, 2006.04768); 0: they are not.
        linformer_share: what shares these mixtures: "none", "heads", "kv" or "layers", see `layers.linformer`.
        dropout: rate on embeddings and on the output of every sub-layer.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0: tables normal with variance 1 / D,
            kernels by Glorot and Bengio (2010), see `seq2seq_jax.layers.initializers`.
        dtype: dtype of the products and of what runs through the layers; parameters are float32.
    """

    source_vocab: int
    target_vocab: int
    features: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    feed_forward: int = 2048
    norm: str = "post"
    positions: str = "sinusoidal"
    max_positions: int = 1024
    activation: str = "relu"
    share_embeddings: str = "all"
    linformer: int = 0
    linformer_share: str = "none"
    dropout: float = 0.1
    init_scale: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_layers(self, counts=("encoder_layers", "decoder_layers"))
        check_linformer(self)
        check_shared(self.share_embeddings, self.source_vocab, self.target_vocab)


@struct.dataclass
class TransformerCache:
    """Keys and values of the steps so far, of every decoder layer."""

    layers: tuple[Cached, ...]  # a layer's: two arrays [B, N, room, H]


class Transformer(nn.Module):
    """Encoder and decoder of a Transformer; keeps the `Seq2Seq` protocol.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: TransformerConfig
    execution: Execution = ONE_PROGRAM

    packs = True  # no field: it can read packed rows, see `interfaces.Packing`

    def setup(self) -> None:
        cfg = self.config
        width, dtype, scale, look_up = cfg.features, jnp.dtype(cfg.dtype), cfg.init_scale, self.execution.look_up

        def positions() -> Positions:
            return Positions(cfg.positions, width, cfg.max_positions, scale)

        self.target_embedding = Embedding(cfg.target_vocab, width, dtype, scale, look_up)
        self.source_embedding = (
            self.target_embedding
            if cfg.share_embeddings == "all"
            else Embedding(cfg.source_vocab, width, dtype, scale, look_up)
        )
        self.source_positions, self.target_positions = positions(), positions()
        self.softmax = Softmax(cfg.target_vocab, width, own_kernel=cfg.share_embeddings == "none", init_scale=scale)
        encoder = make_kind(cfg, self.execution, linformer=cfg)
        decoder = make_kind(cfg, self.execution, causal=True, crosses=True)
        self.encoder_stack = TransformerStack(encoder, cfg.encoder_layers)
        self.decoder_stack = TransformerStack(decoder, cfg.decoder_layers)
        if cfg.norm == "pre":
            self.encoder_norm, self.decoder_norm = Norm(width), Norm(width)
        self.dropout = Dropout(cfg.dropout)

    def _places(self, tokens: Array) -> Array:
        """What dropout is keyed by, `[B, T, 2]`, for tokens `[B, T]`."""
        return make_places(self.execution.row_numbers(tokens.shape[0]), tokens.shape[1]).swapaxes(0, 1)

    def encode(self, source: Array, source_mask: Array, *, train: bool, packing: Packing | None = None) -> Memory:
        """Source tokens `[B, S]` to the memory that the decoder attends to."""
        places = self._places(source)
        x = self.source_embedding(source.T).swapaxes(0, 1)  # looked up time-major: rows of a group meet on axis 1
        x = self.source_positions(x, None if packing is None else packing.source_positions)
        x, _ = self.encoder_stack(
            self.dropout(x, places, train=train),
            source_mask,
            segments=None if packing is None else packing.source_segments,
            places=places,
            train=train,
        )
        x = self.encoder_norm(x) if self.config.norm == "pre" else x
        hidden = x * source_mask[..., None].astype(x.dtype)
        # Where devices have some of the decoder's heads or layers only, none of them searches.
        split = self.execution.stage is not None or self.execution.tensor is not None
        projected = None if split else self.decoder_stack.project_memory(hidden)
        return Memory(hidden=hidden, mask=source_mask, projected=projected)

    def decode(self, target_in: Array, memory: Memory, *, train: bool, packing: Packing | None = None) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`. Padding comes last, so that no step needs a mask."""
        places = self._places(target_in)
        x = self.target_embedding(target_in.T).swapaxes(0, 1)
        x = self.target_positions(x, None if packing is None else packing.target_positions)
        x, below = self.decoder_stack(
            self.dropout(x, places, train=train),
            None,
            memory=memory.hidden,
            memory_mask=memory.mask,
            segments=None if packing is None else packing.target_segments,
            memory_segments=None if packing is None else packing.source_segments,
            places=places,
            train=train,
        )
        attention = None
        if below is not None and packing is None and self.execution.tensor is None:
            attention = self.decoder_stack.top_attention(below, memory.hidden, memory.mask)
        return DecoderOutput(hidden=self.decoder_norm(x) if self.config.norm == "pre" else x, attention=attention)

    def init_cache(self, memory: Memory, max_len: int) -> TransformerCache:
        """Keys and values of no steps, with room for `max_len`."""
        self.target_positions.check(max_len)
        return TransformerCache(self.decoder_stack.init_cache(memory.hidden, max_len))

    def step_weights(self) -> tuple[PyTree, ...]:
        """The weights of the decoder's layers as `decode_step` reads them."""
        return self.decoder_stack.step_weights()

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: TransformerCache, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        x = self.target_positions(self.target_embedding(token), step)
        x, layers, attention = self.decoder_stack.step(
            x, step, cache.layers, memory.projected, memory.mask, weights=weights
        )
        x = self.decoder_norm(x) if self.config.norm == "pre" else x
        return StepOutput(hidden=x, attention=attention, cache=TransformerCache(layers))

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
