"""Searching many rows in a batch that rolls: rows that are done leave it, rows that wait take their places.

    waiting, longest first ──▶ wave: begun (encoded) together ──┐ enter: into the slots that are free
                                                                ▼
                     ┌────▶ batch [B, ...] ──▶ advance: steps, until some rows are done ──┐
                     └──── resize: cut, grown, shrunk to what is still needed ◀────────── ┴──▶ read: Hypotheses

The work of a search follows its batch, done or not. In a batch that stays as it was put together, rows wait for
the longest output; here they do not. Every leaf of what is held and of the state leads with the rows, and every
row has its own clock, so gathering rows is all that leaving and entering take.

Shapes come from a `Table`, so that the programs that are compiled are few and can be told beforehand: sizes of the
batch (it shrinks when nothing waits), source lengths (all is cut when the rows that are left are shorter) and, where
a cache grows with the output, its room (it grows as the oldest row needs it). Which axes follow what is not written
down anywhere: a leaf is brought to the shape that it would have been born with (`fit`).

What is decided follows from lengths and clocks alone, which all hosts see alike.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes

from seq2seq_jax.interfaces import Array, Hypotheses, PyTree

STEPS = 32
"""Steps between two looks of the host, at most: how soon a signal is answered, and results are passed on."""

SHARE = 8
"""The batch is refilled when one of so many slots is free: fewer looks of the host against fuller batches."""

LEAST_STEPS = 8
"""Room is made for so many steps at least."""


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """The sizes that a batch is compiled for.

    Attributes:
        rows: B.
        source: S.
        room: steps that trails and caches have room for.
    """

    rows: int
    source: int
    room: int


@dataclasses.dataclass(frozen=True)
class Table:
    """All shapes there are.

    Attributes:
        rows: sizes of the batch, ascending.
        sources: source lengths, ascending.
        longest: the longest output for a source of so many tokens; never less for a longer source.
        grows: whether a cache has an axis that follows the output.
    """

    rows: tuple[int, ...]
    sources: tuple[int, ...]
    longest: Callable[[int], int]
    grows: bool = False

    def round_rows(self, count: int) -> int:
        """The smallest batch for so many rows, or the largest there is."""
        return next((size for size in self.rows if size >= count), self.rows[-1])

    def round_source(self, length: int) -> int:
        """The smallest source length for so many tokens."""
        return next((size for size in self.sources if size >= length), self.sources[-1])

    def rooms(self, source: int) -> tuple[int, ...]:
        """The rooms of a batch of this source length, ascending; the last one is enough for every output."""
        longest, smaller, size = self.longest(source), [], 16
        while self.grows and size < longest:
            smaller.append(size)
            size += size // 2 if not size & (size - 1) else size // 3  # 16, 24, 32, 48, 64, ...
        return (*smaller, longest)

    def round_room(self, source: int, steps: int) -> int:
        """The smallest room for so many steps."""
        rooms = self.rooms(source)
        return next((room for room in rooms if room >= steps), rooms[-1])

    def count_shapes(self) -> int:
        """How many shapes a batch may have."""
        return len(self.rows) * sum(len(self.rooms(source)) for source in self.sources)

    def count_programs(self) -> int:
        """How many programs are compiled at most by rolling, whatever is searched."""
        sources, shapes = len(self.sources), self.count_shapes()
        full = shapes // len(self.rows)
        begun, resized = sources * len(self.rows), (4 if self.grows else 2) * shapes
        return begun + shapes + (shapes + full) + full * sources + resized  # begin, advance, read, enter, resize


class Programs(Protocol):
    """What is compiled; a batch is whatever `begin` returns: what is held and the state, leaves `[B, ...]`."""

    @property
    def table(self) -> Table:
        """The shapes."""
        ...

    def begin(self, rows: Sequence[int], shape: Shape) -> PyTree:
        """A batch of the rows (numbers of the input; -1 only fills) before their first step."""
        ...

    def advance(self, batch: PyTree, steps: int, leave: int, shape: Shape) -> tuple[PyTree, Array]:
        """At most so many steps, until `leave` rows more are done; also the clocks `[B]`, see `read_clocks`.

        The batch that is given may not be used again.
        """
        ...

    def enter(
        self, batch: PyTree, wave: PyTree, slots: np.ndarray, rows: np.ndarray, shapes: Sequence[Shape]
    ) -> PyTree:
        """The batch with rows of the wave in its slots; a slot beyond the batch takes none. Shapes: batch's, wave's.

        The batch that is given may not be used again.
        """
        ...

    def resize(self, batch: PyTree, rows: np.ndarray, shape: Shape, wanted: Shape) -> PyTree:
        """The batch with these of its rows, cut or grown to another shape."""
        ...

    def read(self, batch: PyTree, rows: np.ndarray, shape: Shape) -> Hypotheses:
        """What was found for these rows of the batch."""
        ...


@dataclasses.dataclass
class Tally:
    """What rolling has cost, added up.

    Attributes:
        rows: that came to their end.
        segments: times that the host looked.
        row_steps: steps times the rows of the batch.
        live_row_steps: those of rows that were not done.
    """

    rows: int = 0
    segments: int = 0
    row_steps: int = 0
    live_row_steps: int = 0

    @property
    def live_share(self) -> float:
        """The share of the work that was for rows that were not done."""
        return self.live_row_steps / max(self.row_steps, 1)


# --- what is done to batches, to be compiled ------------------------------------------------------


def write_clocks(time: Array, done: Array) -> Array:
    """Clocks and whether rows are done, in one array `[B]` int32."""
    return jnp.where(done, -1 - time, time)


def read_clocks(clocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The clocks and whether rows are done, both `[B]`."""
    done = clocks < 0
    return np.where(done, -1 - clocks, clocks), done


def take(tree: PyTree, index: Array) -> PyTree:
    """The rows `[N]` of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)


def put(tree: PyTree, slots: Array, new: PyTree) -> PyTree:
    """Every leaf with new rows `[N, ...]` in its slots `[N]`; a slot beyond the last row takes none."""

    def put_rows(x: Array, rows: Array) -> Array:
        if dtypes.issubdtype(x.dtype, dtypes.prng_key):
            bits = jax.random.key_data(x).at[slots].set(jax.random.key_data(rows), mode="drop")
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))
        return x.at[slots].set(rows, mode="drop")

    return jax.tree.map(put_rows, tree, new)


def fit(tree: PyTree, born: PyTree) -> PyTree:
    """Every leaf cut off at its end, or filled up with zeros, to the shape that it would have been born with.

    Args:
        tree: leaves `[B, ...]`.
        born: shapes; their rows do not matter.
    """

    def fit_leaf(x: Array, wanted: Any) -> Array:
        sizes = wanted.shape[1:]
        if x.shape[1:] == sizes:
            return x
        x = x[(slice(None), *(slice(0, size) for size in sizes))]
        return jnp.pad(x, [(0, 0), *((0, size - has) for size, has in zip(sizes, x.shape[1:], strict=True))])

    return jax.tree.map(fit_leaf, tree, born)


# --- the loop of the host -------------------------------------------------------------------------


def roll(
    programs: Programs,
    lengths: Sequence[int],
    *,
    poll: Callable[[], None] = lambda: None,
    tally: Tally | None = None,
    steps: int = STEPS,
    share: int = SHARE,
) -> Iterator[tuple[int, Hypotheses]]:
    """Searches all rows of an input.

    Args:
        programs: what is compiled.
        lengths: source tokens of each row.
        poll: called before every segment; may raise to stop.
        tally: is added to.
        steps: of a segment, at most.
        share: the batch is refilled when one of so many slots is free.

    Yields:
        Numbers of rows and what was found for each, NumPy arrays `[K, ...]`, as they come to their end.
    """
    rolling = _Rolling(programs, lengths, steps, share, Tally() if tally is None else tally)
    while rolling.live:
        poll()
        clocks = rolling.advance()
        yield from rolling.hand_out()  # what the segment before has brought, while this one runs
        rolling.look(np.asarray(jax.device_get(clocks)))
        rolling.refill()
        rolling.reshape()
    yield from rolling.hand_out()


class _Rolling:
    """A batch on its way: what is in its slots, and what waits."""

    def __init__(self, programs: Programs, lengths: Sequence[int], steps: int, share: int, tally: Tally):
        self._programs, self._lengths, self._tally = programs, lengths, tally
        self._steps = steps
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        self._waiting = deque(order)
        self._size = programs.table.round_rows(len(order))
        self._quota = max(1, programs.table.rows[-1] // share)
        self._wave: deque[int] = deque()  # begun, and not in the batch yet
        self._found: list[tuple[list[int], Hypotheses]] = []
        self._slots: list[int] = []
        if order:
            self._begin_wave()
            self._batch, self._shape = self._wave_batch, self._wave_shape
            self._slots = [*self._wave, *[-1] * (self._size - len(self._wave))]
            self._wave.clear()
        self._times = np.zeros(len(self._slots), np.int64)

    @property
    def live(self) -> int:
        """Rows of the batch that are not done."""
        return sum(row >= 0 for row in self._slots)

    @property
    def _left(self) -> int:
        """Rows that are not in the batch yet."""
        return len(self._wave) + len(self._waiting)

    def _begin_wave(self) -> None:
        table = self._programs.table
        rows = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        source = table.round_source(self._lengths[rows[0]])
        self._wave_shape = Shape(self._size, source, table.rooms(source)[0])
        self._wave_batch = self._programs.begin([*rows, *[-1] * (self._size - len(rows))], self._wave_shape)
        self._wave, self._wave_rows = deque(rows), {row: place for place, row in enumerate(rows)}

    def advance(self) -> Array:
        """Starts a segment; its clocks, when they are there."""
        live, smaller = self.live, [size for size in self._programs.table.rows if size < len(self._slots)]
        leave = self._quota if self._left else live - smaller[-1] if smaller and live > smaller[-1] else live
        steps = self._steps
        if self._shape.room < self._programs.table.rooms(self._shape.source)[-1]:
            steps = min(steps, self._shape.room - self._oldest())
        self._batch, clocks = self._programs.advance(self._batch, steps, min(leave, live), self._shape)
        return clocks

    def _oldest(self) -> int:
        return max((int(self._times[slot]) for slot, row in enumerate(self._slots) if row >= 0), default=0)

    def look(self, clocks: np.ndarray) -> None:
        """Sees to the rows that a segment has brought to their end."""
        times, done = read_clocks(clocks)
        there = np.array(self._slots) >= 0
        taken = (times - self._times)[there]
        self._tally.segments += 1
        self._tally.row_steps += int(taken.max(initial=0)) * len(self._slots)
        self._tally.live_row_steps += int(taken.sum())
        self._times = times
        ended = np.flatnonzero(there & done)
        self._tally.rows += len(ended)
        for begin in range(0, len(ended), self._quota):
            slots = ended[begin : begin + self._quota]
            index = np.resize(slots, self._quota).astype(np.int32)  # filled up with what it has
            found = self._programs.read(self._batch, index, self._shape)
            self._found.append(([self._slots[slot] for slot in slots], found))
        for slot in ended:
            self._slots[slot] = -1

    def hand_out(self) -> Iterator[tuple[int, Hypotheses]]:
        """Brings what was found to the host, once."""
        found, self._found = self._found, []
        for rows, hypotheses in found:
            here = jax.device_get(hypotheses)
            for place, row in enumerate(rows):
                yield row, jax.tree.map(lambda x, place=place: x[place], here)

    def refill(self) -> None:
        """Lets rows that wait into the slots that are free."""
        free = deque(slot for slot, row in enumerate(self._slots) if row < 0)
        while free and self._left:
            if not self._wave:
                self._begin_wave()
            slots = np.full(self._quota, len(self._slots), np.int32)
            rows = np.zeros(self._quota, np.int32)
            for place in range(min(self._quota, len(free), len(self._wave))):
                slot, row = free.popleft(), self._wave.popleft()
                slots[place], rows[place] = slot, self._wave_rows[row]
                self._slots[slot], self._times[slot] = row, 0
            shapes = self._shape, self._wave_shape
            self._batch = self._programs.enter(self._batch, self._wave_batch, slots, rows, shapes)

    def reshape(self) -> None:
        """Cuts the batch to what is needed, or makes room: one axis and one size at a time, for few programs."""
        if not self.live:
            return
        table = self._programs.table
        live = [slot for slot, row in enumerate(self._slots) if row >= 0]
        size = len(self._slots) if self._left else table.round_rows(len(live))
        for rows in [rows for rows in reversed(table.rows) if size <= rows < len(self._slots)]:
            free = [slot for slot, row in enumerate(self._slots) if row < 0]
            self._resize([*live, *free][:rows], dataclasses.replace(self._shape, rows=rows))
            live = list(range(len(live)))
        left = [*self._wave, *self._waiting][:1]  # longest first: the first is the longest
        longest = max(self._lengths[row] for row in [*left, *(self._slots[slot] for slot in live)])
        everyone = range(len(self._slots))
        while (source := table.round_source(longest)) < self._shape.source:
            source = table.sources[table.sources.index(self._shape.source) - 1]
            room = table.round_room(source, min(self._shape.room, table.longest(source)))
            self._resize(everyone, Shape(self._shape.rows, source, room))
        wanted = table.round_room(self._shape.source, self._oldest() + LEAST_STEPS)
        rooms = table.rooms(self._shape.source)
        while self._shape.room != wanted:
            step = 1 if wanted > self._shape.room else -1
            room = rooms[rooms.index(self._shape.room) + step]
            self._resize(everyone, dataclasses.replace(self._shape, room=room))

    def _resize(self, slots: Sequence[int], wanted: Shape) -> None:
        index = np.array(slots, np.int32)
        self._batch = self._programs.resize(self._batch, index, self._shape, wanted)
        self._slots = [self._slots[slot] for slot in slots]
        self._times, self._shape = self._times[index], wanted
