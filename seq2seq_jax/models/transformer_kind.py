"""What the layers of a Transformer and its kin are, of a model's Config and of the devices it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from seq2seq_jax.layers.activations import ACTIVATIONS
from seq2seq_jax.layers.linformer import SHARES
from seq2seq_jax.layers.transformer_layer import NORMS, POSITIONS, TransformerLayer
from seq2seq_jax.parallel.layout import Execution

SHARED = ("none", "target", "all")


@runtime_checkable
class LayersConfig(Protocol):
    """The fields of a Config that its layers follow from; see `layers.transformer_layer.TransformerLayer`.

    Attributes:
        max_positions: rows of learned tables of positions.
        dtype: by its name.
    """

    @property
    def features(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def feed_forward(self) -> int: ...
    @property
    def norm(self) -> str: ...
    @property
    def positions(self) -> str: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def init_scale(self) -> float: ...
    @property
    def dtype(self) -> str: ...


@runtime_checkable
class LinformerConfig(Protocol):
    """The fields of a Config whose layers may have Linformer's attention."""

    @property
    def linformer(self) -> int: ...
    @property
    def linformer_share(self) -> str: ...
    @property
    def positions(self) -> str: ...
    @property
    def max_positions(self) -> int: ...


def check_choices(config: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where a field is none of what it may be."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"`{name}` must be one of {known}, but is {getattr(config, name)!r} instead.")


def check_shared(shared: str, source_vocab: int, target_vocab: int) -> None:
    """Raises ValueError where embeddings cannot be shared as `share_embeddings` says."""
    if shared not in SHARED:
        raise ValueError(f"`share_embeddings` must be one of {SHARED}, but is {shared!r} instead.")
    if shared == "all" and source_vocab != target_vocab:
        raise ValueError(
            f"`share_embeddings` 'all' must have one vocabulary for both sides, but the sizes are {source_vocab} and "
            f"{target_vocab} instead; use a joint vocabulary or 'target'."
        )


def check_layers(config: LayersConfig, *, counts: tuple[str, ...]) -> None:
    """Raises ValueError where the fields cannot be, or contradict each other.

    Args:
        config: of a model.
        counts: names of its fields that count layers.
    """
    check_choices(config, {"norm": NORMS, "positions": POSITIONS, "activation": tuple(ACTIVATIONS)})
    for name in ("features", *counts, "heads", "feed_forward", "max_positions"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {getattr(config, name)} instead.")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"`dropout` must be in [0, 1), but is {config.dropout} instead.")
    if config.features % config.heads:
        raise ValueError(f"`heads` must divide features={config.features}, but is {config.heads} instead.")
    halves = {"sinusoidal": 2, "rotary": 2 * config.heads}.get(config.positions, 1)
    if config.features % halves:
        raise ValueError(
            f"`features` must be a multiple of {halves} with `positions` {config.positions!r} and "
            f"heads={config.heads}, but is {config.features} instead."
        )


def check_linformer(config: LinformerConfig) -> None:
    """Raises ValueError where Linformer's attention cannot be."""
    check_choices(config, {"linformer_share": SHARES})
    if config.linformer < 0:
        raise ValueError(f"`linformer` must be at least 0, but is {config.linformer} instead.")
    if config.linformer > config.max_positions:
        raise ValueError(
            f"`linformer` must be at most `max_positions`={config.max_positions}, the places that are mixed, but is "
            f"{config.linformer} instead."
        )
    if config.linformer and config.positions in ("relative", "rotary"):
        raise ValueError(
            "`positions` must be 'sinusoidal' or 'learned' with `linformer`, whose mixtures of keys have no place, "
            f"but is {config.positions!r} instead."
        )


def make_kind(
    config: LayersConfig,
    execution: Execution,
    *,
    causal: bool = False,
    crosses: bool = False,
    linformer: LinformerConfig | None = None,
) -> TransformerLayer:
    """What the layers of a stack have in common.

    Args:
        config: of the model.
        execution: what to know of the devices.
        causal, crosses: see `TransformerLayer`.
        linformer: the Config again, of a stack that follows its fields of Linformer's attention.
    """
    return TransformerLayer(
        features=config.features,
        heads=config.heads,
        feed_forward=config.feed_forward,
        execution=execution,
        norm=config.norm,
        activation=config.activation,
        positions=config.positions,
        causal=causal,
        crosses=crosses,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
        linformer=0 if linformer is None else linformer.linformer,
        linformer_share="none" if linformer is None else linformer.linformer_share,
        longest=config.max_positions,
        init_scale=config.init_scale,
    )
