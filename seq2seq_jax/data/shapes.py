"""Chooses the few padded shapes of a corpus' batches, so that little is padding.

Every shape costs a compilation, so there is a bound on their number. Source and target lengths are
bounded separately (a 2-D table): with one common bound the shorter side pays for the longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seq2seq_jax.errors import UserError

_MAX_BORDERS = 64  # candidate lengths a side; the search is quadratic in the product of both sides
_EXAMPLES_AT_ONCE = 1 << 20
_REACH = 11  # candidate target lengths for each source length


class Shape(NamedTuple):
    """What a batch is padded to."""

    rows: int
    source_len: int
    target_len: int

    @property
    def slots(self) -> int:
        """Tokens of both sides that the batch has room for."""
        return self.rows * (self.source_len + self.target_len)


def choose_shapes(
    source: np.ndarray,
    target: np.ndarray,
    *,
    tokens_per_batch: int | None,
    rows: int | None,
    max_shapes: int,
    rows_multiple: int,
) -> tuple[tuple[Shape, ...], np.ndarray]:
    """The table of shapes, and the shape of every example, `[N]` int8 or int16.

    Of the tables with 1, 2, ... `max_shapes` shapes the one
    with fewest slots an epoch is taken, with the rows counted that only fill.

    Args:
        source, target: `[N]` lengths, all to be held.
        tokens_per_batch, rows, max_shapes, rows_multiple: see `plan.make_plan`.

    Raises:
        UserError: `tokens_per_batch` is too small for `rows_multiple` rows of the longest shape.
    """
    (source_borders, source_place), (target_borders, target_place) = _divide(source), _divide(target)

    def find_cells() -> Iterator[tuple[slice, np.ndarray]]:
        """The cell of the length histogram that each example is in, some at a time."""
        for some in _cut(len(source)):
            yield some, source_place[source[some]] * len(target_borders) + target_place[target[some]]

    weight = np.zeros(len(source_borders) * len(target_borders), np.int64)
    for _, cells in find_cells():
        weight += np.bincount(cells, minlength=len(weight))

    def make_shapes(table: list[int]) -> tuple[Shape, ...]:
        lengths = [
            (int(source_borders[c // len(target_borders)]), int(target_borders[c % len(target_borders)])) for c in table
        ]
        lengths.sort(key=lambda pair: (sum(pair), pair))
        return tuple(Shape(_count_rows(s, t, tokens_per_batch, rows, rows_multiple), s, t) for s, t in lengths)

    make_shapes([len(weight) - 1])  # says at once if the longest example does not fit
    found: list[tuple[int, tuple[Shape, ...], np.ndarray]] = []
    for table in _find_tables(source_borders, target_borders, weight, max_shapes):
        shapes = make_shapes(table)
        shape_of_cell = _assign_cells(shapes, source_borders, target_borders)
        sizes = np.bincount(shape_of_cell, weights=weight, minlength=len(shapes)).astype(np.int64).tolist()
        _, slots = count_slots(shapes, sizes, settle_leftovers(shapes, sizes))
        found.append((slots, shapes, shape_of_cell))
    _, shapes, shape_of_cell = min(found, key=lambda entry: entry[0])  # of equals, the fewest shapes
    shape_of = np.empty(len(source), shape_of_cell.dtype)
    for some, cells in find_cells():
        shape_of[some] = shape_of_cell[cells]
    return shapes, shape_of


def settle_leftovers(shapes: Sequence[Shape], sizes: Sequence[int]) -> tuple[int, ...]:
    """Where the examples go that do not fill a batch: to a larger shape, or nowhere (-1).

    Args:
        shapes: in order of size.
        sizes: how many examples each shape has.

    Returns:
        For each shape the index of the one that takes its leftovers; with fewest slots among what
        changing one choice at a time finds.
    """
    count = len(shapes)
    larger = [
        [j for j in range(i + 1, count) if all(a <= b for a, b in zip(shapes[i][1:], shapes[j][1:], strict=True))]
        for i in range(count)
    ]
    found = []
    for start in ([-1] * count, [options[0] if options else -1 for options in larger]):
        promote, least = start, count_slots(shapes, sizes, start)[1]
        improved = True
        while improved:
            improved = False
            for trial in _change_choices(promote, larger):
                slots = count_slots(shapes, sizes, trial)[1]
                if slots < least:
                    promote, least, improved = trial, slots, True
                    break
        found.append((least, tuple(promote)))
    return min(found)[1]


def _change_choices(promote: list[int], larger: list[list[int]]) -> Iterator[list[int]]:
    """The choices that differ in one place."""
    for i, options in enumerate(larger):
        for choice in (-1, *options):
            yield [*promote[:i], choice, *promote[i + 1 :]]


def count_slots(shapes: Sequence[Shape], sizes: Sequence[int], promote: Sequence[int]) -> tuple[int, int]:
    """Batches and slots of an epoch, when leftovers are promoted so."""
    held, batches, slots = list(sizes), 0, 0
    for i, shape in enumerate(shapes):
        full, left = divmod(held[i], shape.rows)
        if left and promote[i] >= 0:
            held[promote[i]] += left
            left = 0
        batches += full + (left > 0)
        slots += (full + (left > 0)) * shape.slots
    return batches, slots


def _divide(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths that shapes may have, ascending, and the index of the one that each length needs, `[longest + 1]`.

    Every length if there are few; long ones are rounded up and thinned out. The last holds all.
    """
    longest = int(lengths.max())
    step = 1 if longest <= 64 else 2 if longest <= 128 else 4 if longest <= 512 else 8 if longest <= 4096 else 64
    counts = np.zeros(-(-longest // step) + 1, np.int64)
    for some in _cut(len(lengths)):
        found = np.bincount(lengths[some])
        np.add.at(counts, -(-np.arange(len(found)) // step), found)
    present = np.flatnonzero(counts)
    if len(present) > _MAX_BORDERS:
        share = np.cumsum(counts[present]) / len(lengths)
        wanted = np.searchsorted(share, np.linspace(0, 1, _MAX_BORDERS // 2 + 1)[1:-1])
        # Half by quantiles, half evenly spread: the long tail is few examples but much padding.
        spread = np.linspace(0, len(present) - 1, _MAX_BORDERS // 2).round().astype(int)
        present = present[np.unique(np.concatenate([wanted, spread]))]
    borders = present * step
    borders[-1] = longest  # not rounded up: no shape exceeds the user's maximum
    return borders, np.searchsorted(borders, np.arange(longest + 1)).astype(np.int32)


def _cut(count: int) -> Iterator[slice]:
    """Ranges of examples: intermediate results of all of them would take several times the memory of their lengths."""
    return (slice(start, start + _EXAMPLES_AT_ONCE) for start in range(0, count, _EXAMPLES_AT_ONCE))


def _count_rows(source_len: int, target_len: int, tokens: int | None, rows: int | None, multiple: int) -> int:
    if rows is not None:
        return rows
    if tokens is None:
        raise ValueError("One of `tokens_per_batch` and `rows` must be given.")
    count = tokens // (source_len + target_len) // multiple * multiple
    if count == 0:
        raise UserError(
            f"config.data.tokens_per_batch = {tokens} is too small: {multiple} rows of the longest shape "
            f"({source_len} source + {target_len} target tokens) need {multiple * (source_len + target_len)}; "
            "raise it, or lower config.data.max_source_len and config.data.max_target_len."
        )
    return count


def _assign_cells(shapes: Sequence[Shape], source_borders: np.ndarray, target_borders: np.ndarray) -> np.ndarray:
    """Index of the cheapest shape that holds each cell of the length histogram, `[cells]`."""
    shape_of = np.full((len(source_borders), len(target_borders)), -1, np.int8 if len(shapes) < 128 else np.int16)
    for k in reversed(range(len(shapes))):  # the cheapest comes last and overwrites
        fits = np.ix_(source_borders <= shapes[k].source_len, target_borders <= shapes[k].target_len)
        shape_of[fits] = k
    return shape_of.ravel()


def _find_tables(
    source_borders: np.ndarray, target_borders: np.ndarray, weight: np.ndarray, max_shapes: int
) -> Iterator[list[int]]:
    """Tables of 1, 2, ... shapes, as indices of cells (the shape's corner); the last cell is in all.

    Lengths of both sides go together, so the best tables are nearly chains: each shape holds the one
    before on both sides. One start is the best chain, the other the table before with one more shape;
    from both, shapes are moved to wherever in the plane they save more.
    """
    cost = source_borders[:, None] + target_borders[None, :]
    grid = weight.reshape(cost.shape)
    ratio = (grid.sum(axis=0) @ target_borders) / (grid.sum(axis=1) @ source_borders)
    chains = _find_chains(grid, cost, _choose_corners(source_borders, target_borders, ratio))
    best = [grid.size - 1]
    yield best
    next(chains)
    for _ in range(1, max_shapes):
        starts = [[*best, _find_addition(grid, cost, best)], next(chains, [])]
        tables = [_move_shapes(grid, cost, start) for start in starts if len(set(start)) == len(best) + 1]
        if not tables:
            return  # nothing is left to save
        best = min(tables, key=lambda table: _count_padded(grid, cost, table))
        yield best


def _find_chains(grid: np.ndarray, cost: np.ndarray, corners: np.ndarray) -> Iterator[list[int]]:
    """The best chains of 1, 2, ... corners, by dynamic programming over where a chain ends."""
    inside = grid.cumsum(axis=0).cumsum(axis=1)  # examples that a shape at the corner holds
    i, j = np.divmod(corners, cost.shape[1])
    holds = (i[:, None] <= i[None, :]) & (j[:, None] <= j[None, :]) & ~np.eye(len(corners), dtype=bool)
    price, count, never = cost[i, j], inside[i, j], np.iinfo(np.int64).max // 4
    # What a corner adds when the chain before it ends at another: [before, corner].
    added = np.where(holds, price[None, :] * (count[None, :] - count[:, None]), never)
    total = price * count
    came_from: list[np.ndarray] = []
    while total[-1] < never:
        table, k = [int(corners[-1])], len(corners) - 1
        for back in reversed(came_from):
            k = back[k]
            table.append(int(corners[k]))
        yield table
        trial = np.minimum(total, never)[:, None] + added
        came_from.append(np.argmin(trial, axis=0))
        total = trial.min(axis=0)


def _choose_corners(source_borders: np.ndarray, target_borders: np.ndarray, ratio: float) -> np.ndarray:
    """Cells near the line target = ratio * source, as ascending indices; the last cell comes last."""
    apart = np.abs(target_borders[None, :] - source_borders[:, None] * ratio)
    nearest = apart.argsort(axis=1, kind="stable")[:, :_REACH]
    cells = (np.arange(len(source_borders))[:, None] * len(target_borders) + nearest).ravel()
    return np.unique(np.append(cells, len(source_borders) * len(target_borders) - 1))


def _move_shapes(grid: np.ndarray, cost: np.ndarray, table: list[int]) -> list[int]:
    """Takes out one shape and puts one where it saves most, as long as that helps; the first stays."""
    least = _count_padded(grid, cost, table)
    improved = True
    while improved:
        improved = False
        for corner in table[1:]:
            rest = [c for c in table if c != corner]
            trial = [*rest, _find_addition(grid, cost, rest)]
            padded = _count_padded(grid, cost, trial)
            if padded < least:
                table, least, improved = trial, padded, True
                break
    return table


def _pay(cost: np.ndarray, table: list[int]) -> np.ndarray:
    """Slots an example of each cell takes: the cost of the cheapest shape that holds it."""
    paid = np.full_like(cost, np.iinfo(cost.dtype).max)
    for corner in table:
        i, j = divmod(corner, cost.shape[1])
        held = paid[: i + 1, : j + 1]
        np.minimum(held, cost[i, j], out=held)
    return paid


def _count_padded(grid: np.ndarray, cost: np.ndarray, table: list[int]) -> int:
    return int((grid * _pay(cost, table)).sum())


def _find_addition(grid: np.ndarray, cost: np.ndarray, table: list[int]) -> int:
    """The cell at which one more shape saves most slots.

    A shape at a cell saves, of every cell it holds, what that one pays above the shape's cost. Cells
    that pay the same are counted together, by a 2-D running sum of their examples.
    """
    paid = _pay(cost, table)
    savings = np.zeros_like(cost)
    for price in np.unique(paid):
        held = np.where(paid == price, grid, 0).cumsum(axis=0).cumsum(axis=1)
        savings += held * np.maximum(price - cost, 0)
    return int(np.argmax(savings))
