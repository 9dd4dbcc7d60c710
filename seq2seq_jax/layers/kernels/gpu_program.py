"""What the programs of a persistent kernel for NVIDIA Hopper GPUs share: launch, weights on chip, product, meetings.

`lstm_gpu.py` says how the programs divide the work; here is how one of them does its part of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from seq2seq_jax.interfaces import Array

TILE = 64
"""Rows of a tile, the least that wgmma takes, and the length of a piece of the product's inner dimension."""

TILES_MOST = 4
"""Tiles of one program: their states are in registers."""

_LAYOUT = plgpu.Layout.WGMMA


@dataclasses.dataclass(frozen=True)
class Split:
    """How one launch divides the work.

    Attributes:
        parts: programs of a group: they share its rows and divide the hidden units.
        groups: they divide the rows, and never wait for one another.
        tiles: tiles of 64 rows of a group.
        units: hidden units of one program.
        stages: pieces of the product's left side on their way from L2 at once, 2 or more.
    """

    parts: int
    groups: int
    tiles: int
    units: int = 16
    stages: int = 4

    @property
    def width(self) -> int:
        """Columns of a program's product: four gates of its units ahead, one gate of a quad's units back."""
        return 4 * self.units

    def count_bytes(self, hidden: int) -> int:
        """Shared memory of one program of the backward kernel, the larger; 1 KiB is for barriers and padding."""
        return 2 * (self.width * hidden + self.stages * TILE * TILE + self.width * TILE) + 1024

    @property
    def rows(self) -> int:
        """Rows of all groups, padding included."""
        return self.groups * self.tiles * TILE


def make_split(batch: int, hidden: int, processors: int) -> Split | None:
    """The split with the fewest tiles a program; None if the work does not fit on so many multiprocessors."""
    parts = hidden // Split.units
    most = processors // parts
    tiles = -(-batch // TILE)
    if most == 0 or tiles > most * TILES_MOST:
        return None
    each = -(-tiles // most)
    return Split(parts, -(-tiles // each), each)


def count_processors() -> int:
    """Multiprocessors of the first device."""
    return int(getattr(jax.devices()[0], "core_count", None) or 1)


def pad_rows(a: Array, axis: int, *, rows: int) -> Array:
    """Masked rows of zeros at the end of the batch, up to whole tiles."""
    return jnp.pad(a, [(0, rows - size if n == axis else 0) for n, size in enumerate(a.shape)])


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: its split, its order of steps, and whether the interpreter simulates it.

    On a GPU the programs of a group are blocks of the grid and meet at semaphores. The interpreter runs the blocks of
    a grid one after another and knows no semaphores: there they are the threads of one block, each with its part of
    a larger shared memory, and meet at barriers.
    """

    split: Split
    steps: int
    hidden: int
    descending: bool
    interpret: Any

    @classmethod
    def make(cls, rows: Array, kernel: Array, descending: bool, split: Split | None, interpret: Any) -> Launch:
        hidden = kernel.shape[0]
        split = split or make_split(rows.shape[1], hidden, count_processors())
        if split is None or hidden % TILE or split.parts * split.units != hidden or split.rows < rows.shape[1]:
            raise ValueError(f"{rows.shape[1]} rows of width {hidden} do not fit, see `supported`")
        return cls(split, rows.shape[0], hidden, descending, interpret)

    def like(self, array: Array) -> Callable[..., jax.ShapeDtypeStruct]:
        """Shapes of results, in the dtype of an argument unless told, varying over the mesh axes that it does."""
        kind = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(array).manual_axis_type)
        return lambda shape, dtype=array.dtype: kind(shape, dtype)

    def run(
        self, body: Callable[..., None], results: list[Any], arguments: tuple[Array, ...], *, exchanged: int
    ) -> Any:
        """Runs `body(program, arguments, results, on-chip memory)`; `exchanged`: arrays a program hands over a step."""
        split, dtype = self.split, jnp.bfloat16
        copies = split.parts if self.interpret else 1
        tiled = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))
        scratch: dict[str, Any] = {
            "weights": plgpu.SMEM((copies, self.hidden // TILE, TILE, split.width), dtype, transforms=tiled),
            "ring": plgpu.SMEM((copies, split.stages, TILE, TILE), dtype, transforms=tiled),
            "staged": plgpu.SMEM((copies, exchanged, TILE, split.units), dtype),
            "loaded": plgpu.Barrier(num_arrivals=self.hidden // TILE, num_barriers=copies),
            "arrived": plgpu.Barrier(num_barriers=copies * split.stages),
        }
        if self.interpret:
            scratch["everyone"] = plgpu.Barrier(num_arrivals=split.parts, num_barriers=split.tiles)
            scratch["quad"] = plgpu.Barrier(num_arrivals=4, num_barriers=split.tiles * split.parts // 4)
            mesh: dict[str, Any] = {"num_threads": split.parts, "thread_name": "part"}
            mesh |= {"grid": (split.groups,), "grid_names": ("group",)}
        else:
            mesh = {"grid": (split.groups, split.parts), "grid_names": ("group", "part")}

        def program(*refs: Any, **chip: Any) -> None:
            body(Program(self, chip), *refs)

        return plgpu.kernel(
            program,
            out_type=results,
            scratch_types=scratch,
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
            interpret=self.interpret,
            kernel_name=body.__name__.strip("_").replace("body", "lstm"),
            **mesh,
        )(*arguments)


class Program:
    """One program inside its kernel: where it is, what it owns, and how it talks to the others."""

    def __init__(self, launch: Launch, chip: dict[str, Any]) -> None:
        self.launch, self.chip, split = launch, chip, launch.split
        self.group, self.part = lax.axis_index("group"), lax.axis_index("part")
        self.here = self.part if launch.interpret else 0
        self.units = split.units
        self.own = pl.ds(self.part * self.units, self.units)
        self.gates = [pl.ds(gate * launch.hidden + self.part * self.units, self.units) for gate in range(4)]
        if launch.interpret:
            self.everyone, self.quad = chip["everyone"], chip["quad"]
        else:
            meetings = split.groups * split.tiles
            self.everyone = pl.get_global(plgpu.SemaphoreType.REGULAR((meetings,)))
            self.quad = pl.get_global(plgpu.SemaphoreType.REGULAR((meetings * split.parts // 4,)))

    def rows(self, tile: int) -> Any:
        return pl.ds((self.group * self.launch.split.tiles + tile) * TILE, TILE)

    def time(self, n: Any) -> Any:
        """The place in the sequence of the loop's step n."""
        return self.launch.steps - 1 - n if self.launch.descending else n

    def read(self, ref: Any, *where: Any) -> Any:
        """A tile `[64, 16]` of global memory into registers, spread over the threads as wgmma has its results."""
        return ref[where] if self.launch.interpret else plgpu.load(ref, where, layout=_LAYOUT, optimized=False)

    def read_state(self, ref: Any, tile: int) -> Any:
        """What the loop starts from, float32.

        Inside `shard_map` what is read is marked as varying over mesh axes, but no result of arithmetic in a kernel is.
        """
        return 1.0 * self.read(ref, self.rows(tile), self.own).astype(jnp.float32)

    def read_mask(self, real: Any, t: Any, rows: Any) -> Any:
        """Which rows `[64]` are real at a step, for each unit: `[64, 16]`."""
        if self.launch.interpret:
            on = real[t, rows]
        else:
            on = plgpu.load(real, (t, rows), layout=_LAYOUT.reduce(1), optimized=False)
        return lax.broadcast_in_dim(on, (TILE, self.units), (0,)) > 0

    def _meeting(self, tile: int, of_quad: bool) -> tuple[Any, int]:
        split = self.launch.split
        place = tile if self.launch.interpret else self.group * split.tiles + tile
        if of_quad:
            return self.quad.at[place * (split.parts // 4) + self.part // 4], 4
        return self.everyone.at[place], split.parts

    def arrive(self, tile: int, *, of_quad: bool = False) -> None:
        """Says that what this program wrote may be read; does not wait."""
        meeting, _ = self._meeting(tile, of_quad)
        if self.launch.interpret:
            plgpu.barrier_arrive(meeting)
        else:
            plgpu.semaphore_signal(meeting, memory_scope="gpu")

    def wait(self, tile: int, times: Any, *, of_quad: bool = False) -> None:
        """Waits until all programs have arrived so many times."""
        meeting, members = self._meeting(tile, of_quad)
        if self.launch.interpret:
            plgpu.barrier_wait(meeting)
        else:
            plgpu.semaphore_wait(meeting, value=times * members, decrement=False, memory_scope="gpu")

    def load_weights(self, packed: Any) -> None:
        chip, here = self.chip, self.here
        for k in range(self.launch.hidden // TILE):
            piece = packed.at[self.part, pl.ds(k * TILE, TILE)]
            plgpu.copy_gmem_to_smem(piece, chip["weights"].at[here, k], chip["loaded"].at[here])
        plgpu.barrier_wait(chip["loaded"].at[here])

    def multiply(self, fetch: Callable[[Any, Any, Any], None]) -> Any:
        """A tile `[64, H]` times the weights: `[64, 64]` float32. `fetch(start, to, barrier)` copies `[64, 64]`."""
        chip, here, pieces = self.chip, self.here, self.launch.hidden // TILE
        stages = self.launch.split.stages

        def start(k: int) -> None:
            slot = k % stages
            fetch(k * TILE, chip["ring"].at[here, slot], chip["arrived"].at[here * stages + slot])

        def accumulate(acc: Any) -> Any:
            for k in range(min(stages, pieces)):
                start(k)
            for k in range(pieces):
                plgpu.barrier_wait(chip["arrived"].at[here * stages + k % stages])
                plgpu.wgmma(acc, chip["ring"].at[here, k % stages], chip["weights"].at[here, k])
                plgpu.wgmma_wait(1)  # the product before this one has read its slot
                if k > 0 and k - 1 + stages < pieces:
                    start(k - 1 + stages)
            return acc[...]

        return pl.run_scoped(accumulate, plgpu.ACC((TILE, self.launch.split.width), jnp.float32))

    def publish(self, values: list[Any], places: list[Any]) -> None:
        """Writes tiles `[64, 16]` to global memory; when it returns, others that then meet this program see them."""
        for n, value in enumerate(values):
            self.chip["staged"][self.here, n] = value.astype(self.chip["staged"].dtype)
        plgpu.commit_smem()
        for n, place in enumerate(places):
            plgpu.copy_smem_to_gmem(self.chip["staged"].at[self.here, n], place)
        plgpu.wait_smem_to_gmem(0)
