"""What the recurrent layers of a model are, of its Config and of the devices it runs on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from seq2seq_jax.layers.recurrent import LayerKind, make_cell
from seq2seq_jax.layers.runs import choose_loop
from seq2seq_jax.parallel.layout import Execution


@runtime_checkable
class RecurrentConfig(Protocol):
    """The fields of a Config that its recurrent layers follow from.

    Attributes:
        features: width of a layer's output.
        cell: "lstm", "lstm_peephole" or "gru".
        cells: width of a cell, whose output is projected to `features`; 0: as wide, without a projection.
        layer_norm: layer normalisation inside the cell.
        dropout: rate on what is not recurrent.
        recurrent_dropout: rate on a layer's output on its way to its next step.
        init_scale: see `seq2seq_jax.layers.initializers`.
        dtype: dtype of the products.
    """

    @property
    def features(self) -> int: ...
    @property
    def cell(self) -> str: ...
    @property
    def cells(self) -> int: ...
    @property
    def layer_norm(self) -> bool: ...
    @property
    def dropout(self) -> float: ...
    @property
    def recurrent_dropout(self) -> float: ...
    @property
    def init_scale(self) -> float: ...
    @property
    def dtype(self) -> str: ...


def check_layers(config: RecurrentConfig) -> None:
    """Raises ValueError where the fields contradict each other."""
    make_cell(config.cell, layer_norm=config.layer_norm, features=config.features, inner=config.cells)
    for name, rate in (("dropout", config.dropout), ("recurrent_dropout", config.recurrent_dropout)):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"`{name}` must be in [0, 1), but is {rate} instead.")


def make_kind(config: RecurrentConfig, execution: Execution) -> LayerKind:
    """What a model's recurrent layers have in common."""
    loop = choose_loop(
        execution.platform or jax.default_backend(),
        unroll=execution.unroll,
        recompute=execution.recompute_gates,
        kernel=execution.kernels,
    )
    return LayerKind(
        features=config.features,
        cell=make_cell(config.cell, layer_norm=config.layer_norm, features=config.features, inner=config.cells),
        inner=config.cells,
        recurrent_dropout=config.recurrent_dropout,
        dtype=jnp.dtype(config.dtype),
        init_scale=config.init_scale,
        loop=loop,
    )
