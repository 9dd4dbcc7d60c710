"""How a model is laid out: the mesh, the strategy, and what code that runs on it has to know.

`Layout` is what composes a run; `Execution` is the part of it that goes into a model, and its default is
one device (or `jit`, which spreads a plain program by itself).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.parallel.mesh import AXES, make_mesh
from seq2seq_jax.parallel.microbatches import pipeline, run_layers
from seq2seq_jax.parallel.pipeline import batched_wavefront, split_directions, wavefront
from seq2seq_jax.parallel.softmax import WHOLE, VocabularySplit, look_up


@dataclasses.dataclass(frozen=True)
class Execution:
    """What a model's code has to know of the devices it runs on.

    Attributes:
        rows: mesh axes that this program's rows are split over, where it is one device's (`shard_map`).
        vocabulary: how the devices share vocabularies.
        stage: mesh axis that layers lie on; None: this device has all of them.
        tensor: mesh axis that the heads and feed-forward layers of a Transformer are split over, and rows beside
            them; None: this device has all of them.
        platform: of the devices, "cpu", "gpu" or "tpu"; "" is that of JAX's default device.
        batched: run a stack on one device as a batched wavefront.
        unroll: steps of a recurrence that are compiled as one; 0 is chosen.
        recompute_gates: make the gates of recurrent layers again in the backward pass.
        kernels: run recurrences by hand-written kernels where there are.
        chunks: pieces that a wavefront cuts sequences into; 0 is chosen.
        idle: as in the exact layout of 2014: a mesh axis whose first devices do the layers and whose last the softmax.
        scanned: compile a Transformer's layers as one loop, or one after the other; None is chosen by their number.
        remat: what a Transformer's layer keeps for its backward pass, one of `microbatches.REMAT`.
    """

    rows: tuple[str, ...] = ()
    vocabulary: VocabularySplit = WHOLE
    stage: str | None = None
    tensor: str | None = None
    platform: str = ""
    batched: bool = False
    unroll: int = 0
    recompute_gates: bool = False
    kernels: bool = False
    chunks: int = 0
    idle: str | None = None
    scanned: bool | None = None
    remat: str = "none"

    def row_numbers(self, count: int) -> Array:
        """The numbers in the global batch of this program's rows, `[B]` int32: what random draws are keyed by."""
        first = lax.axis_index(self.rows) * count if self.rows else 0
        return first + jnp.arange(count, dtype=jnp.int32)

    def look_up(self, table: Array, tokens: Array) -> Array:
        """Vectors `[T, B, D]` of tokens `[T, B]` from (this device's part of) a table."""
        return look_up(table, tokens, split=self.vocabulary)

    def stack_runner(self) -> Callable[..., Any] | None:
        """How a stack of recurrent layers runs; None: in order."""
        if self.stage is not None:
            group, working = self._stages(self.stage)
            return functools.partial(wavefront, stage=self.stage, gather=group, chunks=self.chunks, working=working)
        return functools.partial(batched_wavefront, chunks=self.chunks) if self.batched else None

    def layer_runner(self) -> Callable[..., tuple[Array, Array | None]]:
        """How a stack of layers that see whole sequences runs, the same for all; see `microbatches.run_layers`."""
        how: dict[str, Any] = {"gather": self.gather_rows, "scanned": self.scanned, "remat": self.remat}
        if self.stage is None:
            return functools.partial(run_layers, **how)
        group, working = self._stages(self.stage)
        how |= {"stage": self.stage, "group": group, "chunks": self.chunks, "working": working}
        return functools.partial(pipeline, **how)

    def _stages(self, stage: str) -> tuple[tuple[str, ...], Callable[[], Array] | None]:
        """Mesh axes whose rows a stack over stages runs, and whether a device's layers count; None: they do."""
        if self.idle is None:
            return (stage,), None
        return (self.idle, stage), lambda: lax.axis_index(self.idle) == 0

    def gather_rows(self, x: Array, axis: int = 0) -> Array:
        """The rows of all devices that share a layer's heads: what goes into a product with this device's heads."""
        return lax.all_gather(x, self.tensor, axis=axis, tiled=True) if self.tensor else x

    def scatter_rows(self, x: Array) -> Array:
        """The sum over all heads (or all of a feed-forward layer) of this device's rows alone; undoes `gather_rows`."""
        return lax.psum_scatter(x, self.tensor, scatter_dimension=0, tiled=True) if self.tensor else x

    def both_directions(
        self, run: Callable[[PyTree, Array, PyTree], Array], forward: PyTree, backward: PyTree, x: Array, extras: PyTree
    ) -> Array | None:
        """A bidirectional layer on pairs of stages, see `split_directions`; None where there are no pairs."""
        if self.stage is None or lax.axis_size(self.stage) % 2:
            return None
        return split_directions(run, forward, backward, x, extras, stage=self.stage)


ONE_PROGRAM = Execution()
"""One device, or a plain program that `jit` spreads."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything of a training lives.

    Attributes:
        mesh: all devices.
        strategy: key of `rules.RULES`.
        step: "jit" or "shard_map".
        execution: what the model knows of it while training.
    """

    mesh: Mesh
    strategy: str
    step: str
    execution: Execution

    @property
    def rows(self) -> tuple[str, ...]:
        """The mesh axes that rows are split over: all of more than one device."""
        return tuple(axis for axis in AXES if self.mesh.shape[axis] > 1)


def make_layout(
    *,
    data: int,
    fsdp: int,
    stage: int,
    tensor: int,
    strategy: str = "auto",
    step: str = "auto",
    layers: str = "auto",
    chunks: int = 0,
    recurrence: str = "loop",
    unroll: int = 0,
    recompute_gates: bool = False,
    remat: str = "none",
    rows_multiple: int = 8,
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Builds a layout; see `config.parallel` for the arguments.

    Raises:
        ValueError: they contradict each other, or there are not the devices.
    """
    stage, tensor = fill_sizes(strategy, stage=stage, tensor=tensor)
    mesh = make_mesh(data=data, fsdp=fsdp, stage=stage, tensor=tensor, rows_multiple=rows_multiple, devices=devices)
    sizes = dict(mesh.shape)
    spread = sizes["stage"] > 1 or sizes["tensor"] > 1
    if strategy == "auto":
        strategy = "balanced" if spread else "fsdp" if sizes["fsdp"] > 1 else "data_parallel"
    _check(strategy, sizes, step=step, layers=layers)
    if step == "auto":
        step = "shard_map" if mesh.size > 1 else "jit"
    if recurrence == "kernel":
        _check_kernels(mesh.size, sizes["stage"], step=step, layers=layers)
    rows = tuple(axis for axis in AXES if sizes[axis] > 1)
    plain = Execution(
        platform=mesh.devices.flat[0].platform,
        batched=layers == "wavefront",
        unroll=unroll,
        recompute_gates=recompute_gates,
        kernels=recurrence == "kernel",
        chunks=chunks,
        scanned={"scanned": True, "in_order": False}.get(layers),
        remat=remat,
    )
    if step == "jit":
        return Layout(mesh, strategy, step, plain)
    idle = "tensor" if strategy == "exact" else None
    vocabulary = WHOLE
    if spread and strategy in ("balanced", "exact"):
        axes = tuple(axis for axis in ("stage", "tensor") if sizes[axis] > 1 and axis != idle)
        vocabulary = VocabularySplit(axes, tuple(axis for axis in rows if axis in ("stage", "tensor")), idle)
    execution = dataclasses.replace(
        plain,
        rows=rows,
        vocabulary=vocabulary,
        stage="stage" if sizes["stage"] > 1 else None,
        tensor="tensor" if sizes["tensor"] > 1 and idle is None else None,
        idle=idle,
    )
    return Layout(mesh, strategy, step, execution)


def fill_sizes(strategy: str, *, stage: int, tensor: int) -> tuple[int, int]:
    """Stages and tensor shards of a strategy: where "exact" is given neither, the eight devices of 2014."""
    return (4, 2) if strategy == "exact" and (stage, tensor) == (1, 1) else (stage, tensor)


def _check_kernels(devices: int, stages: int, *, step: str, layers: str) -> None:
    if step == "jit" and devices > 1:
        raise ValueError(
            f"`parallel.step` must be 'shard_map' with `parallel.recurrence` 'kernel' on {devices} devices, but is "
            "'jit' instead: a compiler cannot spread a kernel."
        )
    if layers == "wavefront" and stages == 1:
        raise ValueError(
            "`parallel.layers` must be 'in_order' with `parallel.recurrence` 'kernel' and `parallel.stage`=1, but is "
            "'wavefront' instead: a kernel runs one layer."
        )


def _check(strategy: str, sizes: dict[str, int], *, step: str, layers: str) -> None:
    stage, tensor = sizes["stage"], sizes["tensor"]
    if strategy in ("data_parallel", "fsdp") and (stage > 1 or tensor > 1):
        raise ValueError(
            f"`parallel.strategy` must be 'balanced' or 'exact' with stages or tensor shards, but is {strategy!r} with "
            f"stage={stage} and tensor={tensor} instead."
        )
    if strategy == "data_parallel" and sizes["fsdp"] > 1:
        raise ValueError("`parallel.strategy` must not be 'data_parallel' with `parallel.fsdp` above 1; use 'fsdp'.")
    if strategy == "exact" and (stage < 2 or tensor != 2):
        raise ValueError(
            "`parallel.strategy` 'exact' needs `parallel.tensor`=2 (layers on one half of the devices, the softmax on "
            f"the other) and `parallel.stage` of at least 2, but they are {tensor} and {stage} instead."
        )
    if strategy == "exact" and step == "jit":
        raise ValueError("`parallel.step` must be 'shard_map' with `parallel.strategy` 'exact', but is 'jit' instead.")
    if layers == "in_order" and stage > 1 and step != "jit":
        raise ValueError(
            f"`parallel.layers` must be 'auto', 'scanned' or 'wavefront' with `parallel.stage`={stage} and the step "
            "'shard_map', but is 'in_order' instead; set `parallel.step` to 'jit' to let the compiler place layers "
            "that run in order."
        )
