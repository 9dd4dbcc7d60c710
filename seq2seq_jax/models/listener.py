"""The listener of a speech model: features to hidden vectors, fewer of them.

    "pyramid"   features ► layer 1 ► pairs ► layer 2 ► pairs ► layer 3 ► layers of one shape ...
    "conv", "vgg"   features ► convolutions ► layers of one shape ...

"lstm": recurrent layers run in both directions, half of the width each (Chan et al. 2016, 1508.01211, section 3.1: the
bottom layer at the full rate, then layers that read pairs of what is below). "conformer": the layers above convolutions
are Conformer layers (Gulati et al. 2020; `layers.conformer`).

Layers of one shape are one stack: its parameters lie on the logical axis "layers", and over the devices of `stage` it
runs as `execution.layer_runner` has it, some rows at a time. What is below it runs by rows, both directions on two
devices where there are pairs.

Differs from the paper: dropout on the input of every layer but the bottom one's, and on the output of the top one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.conformer import POSITIONS, ConformerStack
from seq2seq_jax.layers.dropout import Dropout, drop, make_places
from seq2seq_jax.layers.recurrent import LayerKind, Recurrent, declare_layer, draw_noise, run_both
from seq2seq_jax.layers.subsampling import Convolutions, halve_mask, stack_pairs
from seq2seq_jax.layers.transformer_layer import TransformerLayer
from seq2seq_jax.models.both_directions import run_directions
from seq2seq_jax.models.layer_kind import RecurrentConfig, check_layers, make_kind
from seq2seq_jax.parallel.layout import Execution

LISTENERS = ("lstm", "conformer")
SUBSAMPLINGS = ("pyramid", "conv", "vgg")


@runtime_checkable
class ListenerConfig(RecurrentConfig, Protocol):
    """The fields of a Config that its listener follows from.

    Attributes:
        listener: what the layers are, one of `LISTENERS`.
        subsample: how the length is reduced, one of `SUBSAMPLINGS`.
        reduction: how many frames become one, a power of two.
        listener_layers: layers, those of a pyramid included.
        listener_features: D, width of a layer's output, both directions together.
        heads: of a Conformer's attention.
        feed_forward: width of a Conformer's feed-forward layers.
        kernel: frames that a Conformer's convolution sees, odd.
        positions: how a Conformer knows where a frame is, one of `conformer.POSITIONS`.
        channels: of the convolutions that subsample.
    """

    @property
    def listener(self) -> str: ...
    @property
    def subsample(self) -> str: ...
    @property
    def reduction(self) -> int: ...
    @property
    def listener_layers(self) -> int: ...
    @property
    def listener_features(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def feed_forward(self) -> int: ...
    @property
    def kernel(self) -> int: ...
    @property
    def positions(self) -> str: ...
    @property
    def channels(self) -> int: ...


def count_halvings(config: ListenerConfig) -> int:
    """How often the length is halved."""
    return config.reduction.bit_length() - 1


def check_listener(config: ListenerConfig) -> None:
    """Raises ValueError where the fields contradict each other."""
    for name, known in (("listener", LISTENERS), ("subsample", SUBSAMPLINGS), ("positions", POSITIONS)):
        if getattr(config, name) not in known:
            raise ValueError(f"`{name}` must be one of {known}, but is {getattr(config, name)!r} instead.")
    for name in ("listener_layers", "listener_features", "channels"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {getattr(config, name)} instead.")
    if config.reduction < 1 or config.reduction & (config.reduction - 1):
        raise ValueError(f"`reduction` must be a power of two, but is {config.reduction} instead.")
    if config.subsample == "pyramid" and config.listener_layers <= count_halvings(config):
        raise ValueError(
            f"`listener_layers` must be at least {count_halvings(config) + 1} with `subsample` 'pyramid' and "
            f"`reduction`={config.reduction}, but is {config.listener_layers} instead."
        )
    if config.listener == "conformer":
        _check_conformer(config)
    if config.listener_features % 2:
        raise ValueError(
            f"`listener_features` must be even, half for each direction, but is {config.listener_features} instead."
        )
    check_layers(config)


def _check_conformer(config: ListenerConfig) -> None:
    if config.subsample == "pyramid":
        raise ValueError(
            "`subsample` must be 'conv' or 'vgg' with `listener` 'conformer', whose layers all have one shape, but is "
            "'pyramid' instead."
        )
    for name in ("heads", "feed_forward"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {getattr(config, name)} instead.")
    step = 2 * config.heads if config.positions == "rotary" else config.heads
    if config.listener_features % step:
        raise ValueError(
            f"`listener_features` must be a multiple of {step} with `heads`={config.heads} and `positions` "
            f"{config.positions!r}, but is {config.listener_features} instead."
        )
    if config.kernel < 1 or config.kernel % 2 == 0:
        raise ValueError(f"`kernel` must be odd, as many frames on both sides, but is {config.kernel} instead.")


class StackedParameters(nn.Module):
    """The parameters of one direction of L layers, `[L, ...]`.

    Attributes:
        kind: what the layers share.
        inputs: width of their input.
        layers: L.
    """

    kind: LayerKind
    inputs: int
    layers: int

    def setup(self) -> None:
        self.own = declare_layer(self, self.kind, self.inputs, layers=self.layers)

    def parameters(self) -> dict[str, Array]:
        """By name."""
        return dict(self.own)


class BidirectionalStack(nn.Module):
    """L recurrent layers of one shape, both directions of each side by side.

    Attributes:
        kind: what the layers share; its `features` are half of D.
        layers: L.
        dropout: rate on the input of every layer.
        execution: what to know of the devices.
    """

    kind: LayerKind
    layers: int
    dropout: float
    execution: Execution

    def setup(self) -> None:
        inputs = 2 * self.kind.features
        self.ahead = StackedParameters(self.kind, inputs, self.layers)
        self.back = StackedParameters(self.kind, inputs, self.layers)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], places: Array, *, train: bool
    ) -> Float[Array, "B S D"]:
        """Runs over whole sequences; `places` `[B, S, 2]` is what dropout is keyed by."""
        kind, rate = self.kind, self.dropout if train else 0.0
        key = self.make_rng("dropout") if rate else None
        recurrent_key = self.make_rng("dropout") if train and kind.recurrent_dropout else None

        def layer(own: PyTree, n: Any, x: Array, extras: PyTree, shared: PyTree) -> Array:
            del shared
            lost = x if key is None else drop(rate, x, key, extras["places"], n)
            times = extras["places"].swapaxes(0, 1)
            ways = [None if recurrent_key is None else jax.random.fold_in(recurrent_key, 2 * n + k) for k in range(2)]
            noise = draw_noise(kind, ways[0], times), draw_noise(kind, ways[1], times)
            y = run_both(kind, own["ahead"], own["back"], lost.swapaxes(0, 1), extras["mask"].T, noise=noise)
            return y.swapaxes(0, 1).astype(x.dtype)

        run = self.execution.layer_runner()
        own = {"ahead": self.ahead.parameters(), "back": self.back.parameters()}
        return run(layer, own, x, {"mask": mask, "places": places}, {}, layers=self.layers)[0]


class Listener(nn.Module):
    """Features to the memory's hidden vectors.

    Attributes:
        config: sizes and choices.
        mels: M, width of the features.
        execution: what to know of the devices it runs on.
    """

    config: Any  # keeps ListenerConfig
    mels: int
    execution: Execution

    def setup(self) -> None:
        cfg = self.config
        width, halvings = cfg.listener_features, count_halvings(cfg)
        kind = make_kind(cfg, self.execution)
        self.kind = dataclasses.replace(kind, features=width // 2, inner=0 if cfg.cell == "gru" else cfg.cells)
        above = cfg.listener_layers
        if cfg.subsample == "pyramid":
            inputs = [self.mels] + [2 * width] * halvings
            self.lower_ahead = [Recurrent(self.kind, size) for size in inputs]
            self.lower_back = [Recurrent(self.kind, size) for size in inputs]
            above -= len(inputs)
        else:
            dtype = jnp.dtype(cfg.dtype)
            sizes = (cfg.subsample, halvings, self.mels, cfg.channels, width)
            self.subsampling = Convolutions(*sizes, dtype, cfg.init_scale)
        if cfg.listener == "conformer":
            self.stack = ConformerStack(self._layer(), above, cfg.kernel)
        elif above:
            self.stack = BidirectionalStack(self.kind, above, cfg.dropout, self.execution)
        self.above = above
        self.dropout = Dropout(cfg.dropout)

    def _layer(self) -> TransformerLayer:
        """What a Conformer's layers share with a Transformer's."""
        cfg = self.config
        return TransformerLayer(
            cfg.listener_features,
            cfg.heads,
            cfg.feed_forward,
            self.execution,
            norm="pre",
            activation="swish",
            positions=cfg.positions,
            dropout=cfg.dropout,
            dtype=jnp.dtype(cfg.dtype),
            init_scale=cfg.init_scale,
        )

    def _places(self, x: Array, *, time_axis: int) -> Array:
        """What dropout is keyed by, time-major `[S, B, 2]`, for `[S, B, ...]` or `[B, S, ...]`."""
        return make_places(self.execution.row_numbers(x.shape[1 - time_axis]), x.shape[time_axis])

    def __call__(
        self, features: Float[Array, "B S M"], mask: Bool[Array, "B S"], *, train: bool
    ) -> tuple[Float[Array, "B R D"], Bool[Array, "B R"]]:
        """Features `[B, S, M]` to vectors `[B, R, D]`, zero where masked, and their mask `[B, R]`."""
        if self.config.subsample == "pyramid":
            x, mask = self._climb(features, mask, train=train)
        else:
            x, mask = self.subsampling(features, mask)
        places = self._places(x, time_axis=1)
        if self.config.listener == "conformer":
            x = self.dropout(x.swapaxes(0, 1), places, train=train).swapaxes(0, 1)
        if self.above:
            x = self.stack(x, mask, places.swapaxes(0, 1), train=train)
        x = self.dropout(x.swapaxes(0, 1), places, train=train).swapaxes(0, 1)
        return x * mask[..., None].astype(x.dtype), mask

    def _climb(self, features: Array, mask: Array, *, train: bool) -> tuple[Array, Array]:
        """The layers of a pyramid, `[B, S, M]` to `[B, R, D]`."""
        x = features.astype(self.config.dtype).swapaxes(0, 1)  # [S, B, M]
        for number, (ahead, back) in enumerate(zip(self.lower_ahead, self.lower_back, strict=True)):
            places = self._places(x, time_axis=0)
            if number:
                x, mask = stack_pairs(self.dropout(x, places, train=train)), halve_mask(mask)
                places = self._places(x, time_axis=0)
            key = self.make_rng("dropout") if train and self.kind.recurrent_dropout else None
            own = ahead.parameters(), back.parameters()
            x = run_directions(self.kind, self.execution, own, x, mask.T, places, key=key)
        return x.swapaxes(0, 1), mask
