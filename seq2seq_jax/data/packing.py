"""Puts several short examples into a row, so that nearly none of a batch is padding.

Which *lengths* share a row is decided once, from how many examples have them; which *examples* fill these places is
drawn anew in every epoch. So every epoch has the same number of rows and holds every example exactly once, in other
company each time (but for lengths that one example alone has), and the plan stays a function of lengths, seed and n.

    lengths ── count ──▶ (source, target): examples ── fit, longest first ──▶ rows of places, fixed
    (seed, epoch) ──▶ who of each length takes which place, and the order of the rows

After Krell et al. 2021 (arXiv:2107.02027), whose fit over a histogram costs by the lengths that there are and not by
examples; here a row has two sides, and an example takes of both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from seq2seq_jax.data.mixture import Part, mix
from seq2seq_jax.data.plan import BatchPlan, Epoch, Lengths, find_kept, permute
from seq2seq_jax.data.shapes import Shape
from seq2seq_jax.errors import UserError

_TRIES = (
    (0.01, 0.03),
    (0.03, 0.1),
    (0.1, 0.03),
)  # see `_Holes.find`; together the best on Multi30k, rows of 130 to 520
_ENOUGH = 1.02  # times the least rows that there could be: no more is tried


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of every epoch as places for lengths; makes an epoch's order of a seed.

    Attributes:
        starts: `[rows + 1]` int64: the places of row i are `starts[i]` to `starts[i + 1]`.
        members: `[examples]` ids of the examples.
        cells: `[examples]` which lengths each of them has, as a number.
        places: `[examples]` the place that the i-th example takes when all are in order of their cells.
        rows: of a batch.
        seed, shuffle: see `make_packed_plan`.
    """

    starts: np.ndarray
    members: np.ndarray
    cells: np.ndarray
    places: np.ndarray
    rows: int
    seed: int
    shuffle: bool

    @functools.cached_property
    def widest(self) -> int:
        """Most examples in a row."""
        return int(np.diff(self.starts).max())

    def make_epoch(self, epoch: int) -> Epoch:
        """Who sits in which row, and the order of the rows; the last batch may have rows that only fill."""
        count, total = len(self.starts) - 1, len(self.members)
        drawn = permute(total, self.seed, epoch, 0) if self.shuffle else np.arange(total)
        ids = np.empty_like(self.members)
        ids[self.places] = self.members[drawn[np.argsort(self.cells[drawn], kind="stable")]]
        order = permute(count, self.seed, epoch, 1) if self.shuffle else np.arange(count)
        sizes = np.diff(self.starts)[order]
        ends = np.cumsum(sizes)
        row_starts = np.concatenate([np.zeros(1, np.int64), ends])
        ids = ids[np.arange(total) + np.repeat(self.starts[order] - row_starts[:-1], sizes)]
        starts = np.arange(0, count, self.rows)
        counts = np.minimum(self.rows, count - starts)
        before = row_starts[np.append(starts, count)]
        return Epoch(ids, np.zeros(len(starts), np.int64), starts, counts, before, row_starts)


def make_packed_plan(
    source_lengths: Lengths,
    target_lengths: Lengths,
    *,
    seed: int,
    tokens_per_batch: int,
    rows_multiple: int = 8,
    max_source_len: int = 256,
    max_target_len: int = 256,
    min_source_len: int = 2,
    min_target_len: int = 2,
    shuffle: bool = True,
    parts: Sequence[Part] = (),
) -> BatchPlan:
    """Plans all batches of a corpus with several examples a row; all batches have one shape.

    As many rows as have room for the longest sides within `tokens_per_batch` share all of it, and each row is split
    between source and target as the corpus' tokens are.

    Args:
        source_lengths, target_lengths, seed, rows_multiple, shuffle, parts: see `plan.make_plan`.
        tokens_per_batch: slots of source and target in a batch.
        max_source_len, max_target_len, min_source_len, min_target_len: what is longer or shorter is left out.

    Raises:
        UserError: nothing is left, `tokens_per_batch` is too small, or parts of a mixture come more or less often
            than their size says: a packed epoch has every example once.
    """
    source, target = np.asarray(source_lengths), np.asarray(target_lengths)
    limits = (max_source_len, max_target_len, min_source_len, min_target_len)
    kept, long, short = find_kept(source, target, *limits)
    members = np.flatnonzero(kept).astype(np.min_scalar_type(-len(kept)))
    mixture = mix(parts or [Part(len(kept), 1.0)], (members,))
    if (mixture.counts != np.diff(mixture.borders, axis=1)).any():
        raise UserError(
            "config.data.pack must be False with corpora that have weights, or config.data.temperature other than 1: a "
            "packed epoch has every pair exactly once."
        )
    rows = tokens_per_batch // (max_source_len + max_target_len) // rows_multiple * rows_multiple
    if rows == 0:
        least = rows_multiple * (max_source_len + max_target_len)
        raise UserError(
            f"config.data.tokens_per_batch = {tokens_per_batch} is too small: {rows_multiple} rows of "
            f"{max_source_len} source + {max_target_len} target tokens need {least}; raise it, or lower "
            "config.data.max_source_len and config.data.max_target_len."
        )
    source, target = source[kept], target[kept]
    sums = int(source.sum(dtype=np.int64)), int(target.sum(dtype=np.int64))
    room = tokens_per_batch // rows
    source_room = round(room * sums[0] / sum(sums))
    source_room = min(max(source_room, int(source.max())), room - int(target.max()))
    shape = Shape(rows, source_room, room - source_room)
    starts, cells, places = pack_lengths(source, target, *shape[1:])
    packed = PackedRows(starts, members, cells, places, rows, int(seed), shuffle)
    batches = -(-(len(starts) - 1) // rows)
    return BatchPlan(
        shapes=(shape,),
        seed=int(seed),
        shuffle=shuffle,
        batches_per_epoch=batches,
        examples_per_epoch=len(members),
        pad_share=1.0 - sum(sums) / (batches * shape.slots),
        too_long=np.flatnonzero(long),
        too_short=np.flatnonzero(short),
        parts=tuple(parts),
        shares=tuple(mixture.shares.tolist()),
        curriculum_epochs=0,
        _members=(members,),
        _promote=(-1,),
        _mixture=mixture,
        _lengths=None,
        _packed=packed,
    )


def pack_lengths(
    source: np.ndarray, target: np.ndarray, source_room: int, target_room: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts pairs of lengths into rows with so much room on both sides.

    Args:
        source, target: `[N]` lengths, none of them longer than the room.
        source_room, target_room: of a row.

    Returns:
        `starts`, `cells` and `places` of `PackedRows`.
    """
    pairs, cells, counts = np.unique(
        source.astype(np.int64) * (target_room + 1) + target, return_inverse=True, return_counts=True
    )
    lengths = np.stack(np.divmod(pairs, target_room + 1), axis=1)
    room = (source_room, target_room)
    least = int(np.ceil((lengths * counts[:, None]).sum(axis=0) / room).max())
    found: list[list[tuple[list[int], int]]] = []
    for shrink, small in _TRIES:
        found.append(_fill_rows(lengths, counts, room, least, shrink, small))
        if _count(found[-1]) <= _ENOUGH * least:
            break
    rows = min(found, key=_count)
    sizes = np.concatenate([np.full(count, len(held)) for held, count in rows])
    of_place = np.concatenate([np.tile(np.array(held), count) for held, count in rows])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    narrow = np.min_scalar_type(len(pairs))
    return starts, cells.astype(narrow), np.argsort(of_place.astype(narrow), kind="stable")


def _count(rows: list[tuple[list[int], int]]) -> int:
    return sum(count for _, count in rows)


class _Holes:
    """The rows that are being filled, those with the same room left together: (rows, what they hold)."""

    def __init__(self, room: tuple[int, int]) -> None:
        self.room = room
        self.groups: dict[tuple[int, int], list[tuple[int, tuple]]] = {}
        self._left = np.zeros((64, 2), np.int64)  # room left on both sides, of the groups in `_order`
        self._order: list[tuple[int, int]] = []

    def add(self, left: tuple[int, int], rows: int, held: tuple) -> None:
        """Puts rows with so much room left to their like."""
        if left not in self.groups:
            self.groups[left] = []
            if len(self._order) == len(self._left):
                self._left = np.concatenate([self._left, self._left])
            self._left[len(self._order)] = left
            self._order.append(left)
        self.groups[left].append((rows, held))

    def take(self, place: int) -> tuple[tuple[int, int], int, tuple]:
        """Takes out the rows that came last to a group: their room, how many they are, and what they hold."""
        left = self._order[place]
        rows, held = self.groups[left].pop()
        if not self.groups[left]:  # the last group takes its place
            del self.groups[left]
            self._order[place], self._left[place] = self._order[-1], self._left[len(self._order) - 1]
            self._order.pop()
        return left, rows, held

    def find(self, source: int, target: int, shrink: float, small: float) -> int | None:
        """The group in which these lengths leave the most useful hole; None: they fit nowhere.

        A hole is of use where it has the shape of the whole row (what is left of one side alone holds nobody), the more
        so the smaller it is, by `shrink`; and of two alike the smaller one is better, by `small`.
        """
        left = self._left[: len(self._order)] - (source, target)
        fits = np.flatnonzero(left.min(axis=1, initial=source + target) >= 0)
        if not len(fits):
            return None
        x, y = (left[fits] / self.room).T
        return int(fits[np.argmin(np.abs(x - y) / (x + y + shrink) + small * (x + y))])


def _fill_rows(
    lengths: np.ndarray, counts: np.ndarray, room: tuple[int, int], least: int, shrink: float, small: float
) -> list[tuple[list[int], int]]:
    """Rows as (cells that share a row, how many rows are so).

    As many rows are opened as there must be at least. The longest lengths come first, each to rows that `_Holes.find`
    says, with those two numbers.
    """
    holes = _Holes(room)
    holes.add(room, least, ())
    for cell in np.argsort(-(lengths / room).sum(axis=1), kind="stable").tolist():
        (source, target), waiting = lengths[cell].tolist(), int(counts[cell])
        while waiting:
            place = holes.find(source, target, shrink, small)
            left, rows, held = (room, waiting, ()) if place is None else holes.take(place)
            filled = min(rows, waiting)
            if rows > filled:
                holes.add(left, rows - filled, held)
            holes.add((left[0] - source, left[1] - target), filled, (held, cell))
            waiting -= filled
    return [(_list_cells(held), rows) for group in holes.groups.values() for rows, held in group if held]


def _list_cells(held: tuple) -> list[int]:
    """The cells of a row in the order they came, from nested (before, cell)."""
    cells = []
    while held:
        held, cell = held
        cells.append(cell)
    return cells[::-1]


def place_segments(flat: np.ndarray, lengths: np.ndarray, held: np.ndarray, room: int) -> tuple[np.ndarray, ...]:
    """Lays sequences side by side in rows.

    Args:
        flat: `[all tokens]` of the sequences, one after the other, in the order of `held`'s places row by row.
        lengths: `[N]` of them.
        held: `[R, P]` bool: which places have a sequence; the first places of a row do.
        room: tokens in a row.

    Returns:
        Tokens, segments (1, 2, ...; 0 where there is nothing) and positions within each, all `[R, room]` int32, zero
        where padded.

    Raises:
        ValueError: a row has not the room.
    """
    sizes = np.zeros(held.shape, np.int64)
    sizes[held] = lengths
    if sizes.sum(axis=1).max(initial=0) > room:
        raise ValueError(f"`room` must be at least {sizes.sum(axis=1).max()} to hold the longest row, but is {room}.")
    begins = np.cumsum(sizes, axis=1) - sizes
    row, place = np.nonzero(held)
    positions = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.repeat(row, lengths), np.repeat(begins[held], lengths) + positions
    placed = []
    for values in (flat, np.repeat(place + 1, lengths), positions):
        filled = np.zeros((len(held), room), np.int32)
        filled[at] = values
        placed.append(filled)
    return tuple(placed)
