"""Which layers run by a hand-written kernel."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from typing import Protocol

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.cells import Cell, LSTMCell
from seq2seq_jax.layers.runs import Loop, Run


class Kernels(Protocol):
    """The two loops of a plain LSTM; see `lstm_gpu` and `lstm_tpu`."""

    def supported(self, projected: Array, kernel: Array) -> str | None:
        """Why they cannot run a layer; None if they can."""
        ...

    def run_forward(
        self, projected: Array, kernel: Array, mask: Array, c0: Array, h0: Array, reverse: bool
    ) -> tuple[Array, Array, Array]:
        """Gates, cells and outputs of every step."""
        ...

    def run_backward(
        self,
        gates: Array,
        cells: Array,
        c0: Array,
        mask: Array,
        kernel: Array,
        d_outputs: Array,
        d_c: Array,
        d_h: Array,
        reverse: bool,
    ) -> tuple[Array, Array, Array]:
        """Cotangents of the input's part of every step, and of the initial state."""
        ...


MODULES = {"gpu": "seq2seq_jax.layers.kernels.lstm_gpu", "tpu": "seq2seq_jax.layers.kernels.lstm_tpu"}
"""By platform; imported when first wanted, because they load a compiler of their own."""


def load(platform: str) -> Kernels:
    """The kernels of a platform."""
    kernels: Kernels = importlib.import_module(MODULES[platform])
    return kernels


def find_kernels(cell: Cell, loop: Loop, runs: Sequence[Run], like: Array) -> Kernels | None:
    """The kernels that are wanted and can run these, of which `like` `[T, B, 4H]` is what is read at each step.

    Where they are wanted and cannot, the log tells it once, and the loop runs.
    """
    if loop.kernel and loop.kernel not in MODULES:
        _tell(loop.kernel, "there are none: they are for GPUs and TPUs")
    if loop.kernel not in MODULES:
        return None
    kernels = load(loop.kernel)
    weights = runs[0].weights
    if cell != LSTMCell() or weights.projection is not None:
        reason: str | None = "they are for config.model.cell='lstm' with cells=0 and without layer_norm"
    elif loop.recompute or any(run.noise is not None for run in runs):
        reason = "they have neither recompute_gates nor recurrent_dropout"
    else:
        reason = kernels.supported(like, weights.recurrent.astype(like.dtype))
    if reason is not None:
        _tell(loop.kernel, reason)
        return None
    return kernels


@functools.cache
def _tell(platform: str, reason: str) -> None:
    text = "config.parallel.recurrence='kernel': recurrent layers run by their loop, not by %s kernels, because %s"
    logging.getLogger("seq2seq_jax").warning(text, platform, reason)
