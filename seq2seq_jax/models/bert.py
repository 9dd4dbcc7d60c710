"""BERT: a Transformer's encoder that learns to fill what is hidden from it (Devlin et al. 2019, arXiv 1810.04805).

    the [mask] sat on [mask] mat ─► embedding + positions ─► L layers: self-attention, feed-forward
                                                                  │ of the hidden tokens alone
                                                                  ▼
                                                     dense, gelu, norm ─► softmax ─► cat, the

It reads text of one language, the source's, both ways. Its use here is a start for an encoder: parameters have the
names that those of `models/transformer.py` have, so that `--init_from` takes them over where the sizes are the same;
the head and the bias of its softmax stay behind. What is hidden, and how, says `tasks/masked.py`.

Differs from the paper: no second sentence, and so no segment embeddings and no loss for the next sentence (as in
RoBERTa, Liu et al. 2019, 1907.11692); gelu by tanh; dropout on embeddings and on the output of every sub-layer, not on
attention weights. All else is the paper's: with its sizes the parameters are those of its masked language model
but for the table of two segments.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from seq2seq_jax.interfaces import Array, Memory, Packing
from seq2seq_jax.layers.activations import ACTIVATIONS
from seq2seq_jax.layers.dropout import Dropout, make_places
from seq2seq_jax.layers.initializers import glorot_initializer
from seq2seq_jax.layers.parameters import declare
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.transformer import Norm, Positions, TransformerStack
from seq2seq_jax.layers.transformer_layer import fan_out
from seq2seq_jax.models.transformer_kind import check_layers, check_linformer, make_kind
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution


@dataclasses.dataclass(frozen=True)
class BERTConfig:
    """Sizes and choices of one BERT; by default those of the paper's base model.

    Attributes:
        source_vocab: tokens in the vocabulary of the text.
        target_vocab: tokens in the target vocabulary; nothing depends on it.
        features: D, width of embeddings and layers.
        layers: L.
        heads: N, which divide D.
        feed_forward: F, width inside the feed-forward layers.
        norm: layer normalisation after each sub-layer's sum, "post" (paper), or before each sub-layer, "pre".
        embedding_norm: layer normalisation of the embeddings (paper). An encoder of a Transformer has none: without
            it, it starts with exactly what was trained.
        positions: "learned" (paper), "sinusoidal", "relative" or "rotary".
        max_positions: rows of learned tables of positions and of Linformer's; no text may be longer.
        activation: of the feed-forward layers: "gelu" (paper; here by tanh), "relu", "swish" or "swiglu".
        head: a dense layer, gelu and layer normalisation before the softmax (paper).
        linformer: rank that keys and values of self-attention are mixed down to; 0: they are not. See
            `models/transformer.py`.
        linformer_share: what shares these mixtures: "none", "heads", "kv" or "layers".
        dropout: rate on embeddings and on the output of every sub-layer.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0: as `models/transformer.py`.
        dtype: dtype of the products and of what runs through the layers; parameters are float32.
    """

    source_vocab: int
    target_vocab: int
    features: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    norm: str = "post"
    embedding_norm: bool = True
    positions: str = "learned"
    max_positions: int = 512
    activation: str = "gelu"
    head: bool = True
    linformer: int = 0
    linformer_share: str = "none"
    dropout: float = 0.1
    init_scale: float = 0.02 * 3**0.5
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_layers(self, counts=("layers",))
        check_linformer(self)


class Head(nn.Module):
    """What is between the stack and the softmax: a dense layer, gelu and layer normalisation."""

    features: int
    init_scale: float = 0.0

    def setup(self) -> None:
        draw = glorot_initializer(self.init_scale, inputs=self.features, outputs=self.features)
        self.kernel = declare(self, "kernel", draw, (self.features, self.features), ("embed", None))
        self.bias = declare(self, "bias", nn.initializers.zeros, (self.features,), ("embed",))
        self.norm = Norm(self.features)

    def __call__(self, x: Array) -> Array:
        """`[..., D]` to `[..., D]`."""
        return self.norm(ACTIVATIONS["gelu"](fan_out(x, self.kernel, self.bias)))


class BERT(nn.Module):
    """An encoder and the projection of its hidden tokens; keeps the `MaskedModel` protocol.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: BERTConfig
    execution: Execution = ONE_PROGRAM

    packs = True  # no field: it can read packed rows, see `interfaces.Packing`

    def setup(self) -> None:
        cfg = self.config
        width, dtype, scale, look_up = cfg.features, jnp.dtype(cfg.dtype), cfg.init_scale, self.execution.look_up
        self.source_embedding = Embedding(cfg.source_vocab, width, dtype, scale, look_up)
        self.source_positions = Positions(cfg.positions, width, cfg.max_positions, scale)
        self.head_softmax = Softmax(cfg.source_vocab, width, own_kernel=False, init_scale=scale)
        self.encoder_stack = TransformerStack(make_kind(cfg, self.execution, linformer=cfg), cfg.layers)
        if cfg.embedding_norm:
            self.embedding_norm = Norm(width)
        if cfg.norm == "pre":
            self.encoder_norm = Norm(width)
        if cfg.head:
            self.head = Head(width, scale)
        self.dropout = Dropout(cfg.dropout)

    def encode(self, source: Array, source_mask: Array, *, train: bool, packing: Packing | None = None) -> Memory:
        """Tokens `[B, S]` to hidden states that have seen all of their text."""
        cfg = self.config
        places = make_places(self.execution.row_numbers(source.shape[0]), source.shape[1]).swapaxes(0, 1)
        x = self.source_embedding(source.T).swapaxes(0, 1)  # looked up time-major: rows of a group meet on axis 1
        x = self.source_positions(x, None if packing is None else packing.source_positions)
        x = self.embedding_norm(x) if cfg.embedding_norm else x
        x, _ = self.encoder_stack(
            self.dropout(x, places, train=train),
            source_mask,
            segments=None if packing is None else packing.source_segments,
            places=places,
            train=train,
        )
        x = self.encoder_norm(x) if cfg.norm == "pre" else x
        return Memory(hidden=x * source_mask[..., None].astype(x.dtype), mask=source_mask)

    def fill(self, hidden: Array) -> Array:
        """What `project` reads of hidden tokens, `[..., D]`, from the encoder's output there."""
        return self.head(hidden) if self.config.head else hidden

    def softmax_weights(self) -> tuple[Array, Array]:
        """Kernel `[V, D]` (the embedding's table) and bias `[V]` of the output projection, float32."""
        return self.head_softmax.weights(self.source_embedding.table)

    def project(self, hidden: Array) -> Array:
        """What `fill` gave, `[..., D]`, to logits `[..., V]` float32."""
        return self.head_softmax(hidden, self.source_embedding.table)

    def __call__(self, source: Array, source_mask: Array, *, train: bool = False) -> Array:
        """Everything at once, logits `[B, S, V]`: makes the parameters, and serves small studies."""
        return self.project(self.fill(self.encode(source, source_mask, train=train).hidden))
