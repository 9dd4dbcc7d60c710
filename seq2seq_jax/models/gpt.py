"""GPT: a Transformer's decoder alone (Radford et al. 2018; 2019, GPT-2), which translates or models a language.

    source eos bos target ─► embedding + positions ─► L layers: self-attention of what came before, feed-forward
                                                          │ from bos on
                                                          ▼
                                                       softmax ─► target eos

One stack reads the source and goes on with the target (Wang et al. 2021, arXiv 2107.01499). With `prefix="causal"`
every token sees what came before it; with `prefix="full"` the tokens of the source see all of the source (Dong et al.
2019, 1905.03197; Raffel et al. 2020, section 3.2). Positions of the target are counted on from the end of the source.

Over whole batches source and target are joined, row by row, so that the target follows the source's last token and all
padding comes last. A search reads the source once; its keys and values of every layer are the memory, and each step
attends to them and to those of the steps before.

With `source=False` it is a language model: it keeps the `Seq2Seq` protocol and reads nothing of its source, as
`models/language_model.py` does. With the sizes and choices of a GPT-2 the parameters are that model's.

Differs from the papers: the loss is that of the target alone (Wang et al. also predict the source), every sentence
stands alone, the softmax has a bias, and there is no dropout on attention weights. No attention is returned, so that a
search has no coverage penalty. With `positions="relative"` a token of a full prefix cannot tell how far after it
another one stands: the table has distances to the left.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, Packing, PyTree, StepOutput
from seq2seq_jax.layers.dropout import Dropout, make_places
from seq2seq_jax.layers.joined import join_packed, join_rows, move
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.transformer import Norm, Positions, TransformerStack
from seq2seq_jax.layers.transformer_layer import Cached
from seq2seq_jax.models.transformer_kind import check_choices, check_layers, check_shared, make_kind
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution

PREFIXES = ("causal", "full")


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Sizes and choices of one GPT; by default those of the smallest GPT-2.

    Attributes:
        source_vocab: tokens in the source vocabulary.
        target_vocab: tokens in the target vocabulary.
        features: D, width of embeddings and layers.
        layers: L.
        heads: N, which divide D.
        feed_forward: F, width inside the feed-forward layers.
        source: whether it reads a source; False is a language model.
        prefix: what tokens of the source see: "causal" (those before) or "full" (all of it).
        norm: layer normalisation before each sub-layer, "pre" (GPT-2), or after its sum, "post" (GPT).
        positions: "learned" (GPT), "sinusoidal", "relative" or "rotary".
        max_positions: rows of learned tables; source and target together may be no longer.
        activation: of the feed-forward layers: "gelu" (GPT: by tanh), "relu", "swish" or "swiglu".
        share_embeddings: "all" (one table for both sides and the softmax; needs one vocabulary), "target" (the
            target's embedding and the softmax) or "none".
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
    source: bool = True
    prefix: str = "causal"
    norm: str = "pre"
    positions: str = "learned"
    max_positions: int = 1024
    activation: str = "gelu"
    share_embeddings: str = "all"
    dropout: float = 0.1
    init_scale: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choices(self, {"prefix": PREFIXES})
        check_layers(self, counts=("layers",))
        sizes = (self.source_vocab if self.source else self.target_vocab, self.target_vocab)
        check_shared(self.share_embeddings, *sizes)


@struct.dataclass
class SourceRead:
    """What is made of a source once: None of a language model, and of what devices share in training."""

    embedded: Array | None = None  # [B, S, D], with positions, without dropout: what teacher forcing joins
    layers: tuple[Cached, ...] = ()  # a layer's keys and values [B, N, S, H]: what steps attend to


@struct.dataclass
class GPTCache:
    """Keys and values of the steps so far, of every layer."""

    layers: tuple[Cached, ...]  # a layer's: two arrays [B, N, room, H]


class GPT(nn.Module):
    """One stack over source and target; keeps the `Seq2Seq` protocol.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: GPTConfig
    execution: Execution = ONE_PROGRAM

    packs = True  # no field: it can read packed rows, see `interfaces.Packing`

    def setup(self) -> None:
        cfg = self.config
        width, dtype, scale, look_up = cfg.features, jnp.dtype(cfg.dtype), cfg.init_scale, self.execution.look_up
        self.target_embedding = Embedding(cfg.target_vocab, width, dtype, scale, look_up)
        if cfg.source:
            self.source_embedding = (
                self.target_embedding
                if cfg.share_embeddings == "all"
                else Embedding(cfg.source_vocab, width, dtype, scale, look_up)
            )
        self.positions = Positions(cfg.positions, width, cfg.max_positions, scale)
        self.softmax = Softmax(cfg.target_vocab, width, own_kernel=cfg.share_embeddings == "none", init_scale=scale)
        self.stack = TransformerStack(make_kind(cfg, self.execution, causal=True), cfg.layers)
        if cfg.norm == "pre":
            self.norm = Norm(width)
        self.dropout = Dropout(cfg.dropout)

    def _finish(self, x: Array) -> Array:
        return self.norm(x) if self.config.norm == "pre" else x

    def encode(self, source: Array, source_mask: Array, *, train: bool, packing: Packing | None = None) -> Memory:
        """What the decoder reads of the source `[B, S]`; of a language model the mask alone, which is not read.

        `hidden` is the stack's output over the source. Training does not read it, nor the keys and values.
        """
        del train
        cfg = self.config
        if not cfg.source:
            empty = jnp.zeros_like(source, jnp.dtype(cfg.dtype), shape=(*source.shape, 0))
            return Memory(hidden=empty, mask=source_mask, projected=SourceRead())
        real = source_mask[..., None]
        x = self.source_embedding(source.T).swapaxes(0, 1)  # looked up time-major: rows of a group meet on axis 1
        x = self.positions(x, None if packing is None else packing.source_positions)
        embedded = x * real.astype(x.dtype)
        split = self.execution.stage is not None or self.execution.tensor is not None
        if split or packing is not None:  # where devices have some of the heads or layers, none of them searches
            return Memory(hidden=embedded, mask=source_mask, projected=SourceRead(embedded))
        x, layers = self.stack.read(embedded, source_mask, prefix=source_mask if cfg.prefix == "full" else None)
        hidden = self._finish(x) * real.astype(x.dtype)
        return Memory(hidden=hidden, mask=source_mask, projected=SourceRead(embedded, layers))

    def decode(self, target_in: Array, memory: Memory, *, train: bool, packing: Packing | None = None) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`, joined to the source in one run."""
        cfg = self.config
        x = self.target_embedding(target_in.T).swapaxes(0, 1)
        segments, prefix, joining = None, None, None
        if not cfg.source:
            x = self.positions(x, None if packing is None else packing.target_positions)
            segments = None if packing is None else packing.target_segments
        else:
            joining = join_rows(memory.mask, x.shape[1]) if packing is None else join_packed(packing)
            if packing is None:  # positions of packed rows begin anew with every pair
                self.positions.check(memory.mask.shape[1] + x.shape[1])
            x = self.positions(x, joining.target_positions)
            x = move(jnp.concatenate([memory.projected.embedded, x], axis=1), joining.order, joining.places)
            segments = joining.segments
            prefix = joining.take_source(memory.mask) if cfg.prefix == "full" else None
        rows = self.execution.row_numbers(x.shape[0])
        places = make_places(rows, x.shape[1]).swapaxes(0, 1)
        x = self.dropout(x, places, train=train)
        x, _ = self.stack(x, None, segments=segments, prefix=prefix, places=places, train=train)
        if joining is not None:
            x = move(x, joining.places, joining.order)[:, memory.mask.shape[1] :]
        return DecoderOutput(hidden=self._finish(x))

    def init_cache(self, memory: Memory, max_len: int) -> GPTCache:
        """Keys and values of no steps, with room for `max_len`."""
        self.positions.check(max_len + (memory.mask.shape[1] if self.config.source else 0))
        return GPTCache(self.stack.init_cache(memory.hidden, max_len))

    def step_weights(self) -> tuple[PyTree, ...]:
        """The weights of the layers as `decode_step` reads them."""
        return self.stack.step_weights()

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: GPTCache, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        given: dict[str, Any] = {}
        position = step
        if self.config.source:
            given = {"prefix": memory.projected.layers, "prefix_mask": memory.mask}
            position = step + jnp.sum(memory.mask, axis=-1, dtype=jnp.int32)
        x = self.positions(self.target_embedding(token), position)
        x, layers, _ = self.stack.step(x, step, cache.layers, weights=weights, **given)
        return StepOutput(hidden=self._finish(x), attention=None, cache=GPTCache(layers))

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
