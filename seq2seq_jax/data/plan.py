"""Decides which examples form global batch n, from lengths, seed and n alone.

A plan has a small table of shapes (each is one compilation of the train step) and puts every example into
the cheapest shape that holds it. An epoch is the same for every number of hosts, devices and threads; the
only state of the data is how many batches (or examples) have been used, so that resuming is arithmetic.

Every epoch has the same number of batches and holds every kept example exactly once:

    lengths ── choose_shapes ──▶ table of shapes ── settle leftovers ──▶ batches a shape, fixed
    (seed, epoch) ──▶ who sits in which batch, and the order of the batches
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from seq2seq_jax.data.shapes import Shape, choose_shapes, count_slots, settle_leftovers
from seq2seq_jax.errors import UserError

_EPOCHS_KEPT = 2  # while an epoch ends, readers ahead of the others are in the next one


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Who is in a batch: `example_ids` [rows] int64, -1 for a row that only fills, last."""

    shape: Shape
    example_ids: np.ndarray
    epoch: int


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of all epochs; make it with `make_plan`.

    Attributes:
        shapes: the table of shapes in order of size; a batch has one of them.
        seed: of the order.
        shuffle: False keeps the order of the corpus within a shape, and the shapes in order of size.
        batches_per_epoch, examples_per_epoch: the same for every epoch.
        pad_share: padded slots of source and target over all slots, rows that only fill included.
        too_long, too_short: ids of the examples that no batch holds.
    """

    shapes: tuple[Shape, ...]
    seed: int
    shuffle: bool
    batches_per_epoch: int
    examples_per_epoch: int
    pad_share: float
    too_long: np.ndarray  # [N] int64
    too_short: np.ndarray  # [N] int64
    _members: tuple[np.ndarray, ...]  # a shape: ids in order of the corpus
    _promote: tuple[int, ...]  # a shape: the shape that takes its leftovers, or -1
    _epochs: dict[int, _Epoch] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def dropped(self) -> np.ndarray:
        """Ids of the examples that no batch holds, `[N]` int64, ascending."""
        return np.sort(np.concatenate([self.too_long, self.too_short]))

    def batch(self, n: int) -> PlannedBatch:
        """Global batch `n`, counted from 0 over all epochs."""
        epoch, place = self._split(n)
        order = self._order(epoch)
        shape = self.shapes[order.shape_of[place]]
        start, count = order.starts[place], order.counts[place]
        ids = np.full(shape.rows, -1, np.int64)
        ids[:count] = order.ids[start : start + count]
        return PlannedBatch(shape, ids, epoch)

    def examples_before(self, n: int) -> int:
        """How many examples the batches 0..n-1 hold; filling rows do not count."""
        epoch, place = self._split(n)
        return epoch * self.examples_per_epoch + (int(self._order(epoch).before[place]) if place else 0)

    def batch_index(self, examples: int) -> int:
        """The batch that comes after `examples` examples: the inverse of `examples_before`.

        Raises:
            ValueError: no batch ends there (another corpus, seed or batch size).
        """
        if examples < 0:
            raise ValueError(f"`examples` must not be negative, but is {examples} instead.")
        epoch, inside = divmod(examples, self.examples_per_epoch)
        place = 0
        if inside:
            before = self._order(epoch).before
            place = int(np.searchsorted(before, inside))
            if before[place] != inside:
                near = epoch * self.examples_per_epoch + int(before[place])
                raise ValueError(
                    f"`examples` must be where a batch ends, but is {examples} instead (the next end is at {near}); "
                    "the corpus, the seed or the batch size is not what it was."
                )
        return epoch * self.batches_per_epoch + place

    def describe(self) -> str:
        """One line for the log."""
        told = f"{self.examples_per_epoch} examples in {self.batches_per_epoch} batches an epoch, "
        told += f"{len(self.shapes)} shapes, {self.pad_share:.1%} padding"
        for ids, why in ((self.too_long, "too long"), (self.too_short, "empty")):
            if len(ids):
                first = ", ".join(str(i) for i in ids[:5]) + (", ..." if len(ids) > 5 else "")
                told += f"; {len(ids)} examples are {why} and left out (ids {first})"
        return told

    def __getstate__(self) -> dict:
        """Without the cached epochs."""
        return self.__dict__ | {"_epochs": {}}

    def _split(self, n: int) -> tuple[int, int]:
        if n < 0:
            raise ValueError(f"`n` must not be negative, but is {n} instead.")
        return divmod(int(n), self.batches_per_epoch)

    def _order(self, epoch: int) -> _Epoch:
        """The epoch from the cache; two threads may both make it, and make the same."""
        order = self._epochs.get(epoch)
        if order is None:
            order = self._make_epoch(epoch)
            self._epochs[epoch] = order
            for old in sorted(self._epochs)[:-_EPOCHS_KEPT]:
                self._epochs.pop(old, None)
        return order

    def _make_epoch(self, epoch: int) -> _Epoch:
        incoming: list[list[np.ndarray]] = [[] for _ in self.shapes]
        parts, counts, shape_of = [], [], []
        for k, shape in enumerate(self.shapes):
            ids = np.concatenate([self._members[k], *incoming[k]])
            if self.shuffle:
                ids = ids[permute(len(ids), self.seed, epoch, k)]
            full, left = divmod(len(ids), shape.rows)
            if left and self._promote[k] >= 0:
                incoming[self._promote[k]].append(ids[full * shape.rows :])
                ids, left = ids[: full * shape.rows], 0
            parts.append(ids)
            counts += [shape.rows] * full + [left] * (left > 0)
            shape_of += [k] * (full + (left > 0))
        sizes = np.array(counts, np.int64)
        starts = np.cumsum(sizes) - sizes
        order = np.arange(len(sizes))
        if self.shuffle:
            order = permute(len(sizes), self.seed, epoch, len(self.shapes))
        before = np.concatenate([[0], np.cumsum(sizes[order])])
        return _Epoch(np.concatenate(parts), np.array(shape_of)[order], starts[order], sizes[order], before)


@dataclasses.dataclass(frozen=True, eq=False)
class _Epoch:
    """The order of one epoch; arrays over its batches, except `ids` over its examples."""

    ids: np.ndarray  # examples, batch after batch in the order of the shapes
    shape_of: np.ndarray  # index into the table of shapes
    starts: np.ndarray  # where the batch begins in `ids`
    counts: np.ndarray  # examples in the batch
    before: np.ndarray  # examples in all batches before, one more entry for the end


def make_plan(
    source_lengths: Sequence[int] | np.ndarray,
    target_lengths: Sequence[int] | np.ndarray,
    *,
    seed: int,
    tokens_per_batch: int | None = None,
    rows: int | None = None,
    max_shapes: int = 12,
    rows_multiple: int = 8,
    max_source_len: int = 256,
    max_target_len: int = 256,
    min_source_len: int = 2,
    min_target_len: int = 2,
    shuffle: bool = True,
) -> BatchPlan:
    """Plans all batches of a corpus; O(N) in numpy, a pure function of its arguments.

    Args:
        source_lengths, target_lengths: `[N]` as the model is fed them, eos included.
        seed: of the order; not negative.
        tokens_per_batch: slots of source and target in a batch: rows * (S + T) stays at or below it.
        rows: rows of every batch; instead of `tokens_per_batch`.
        max_shapes: at most so many shapes (compilations); fewer where more would not save padding.
        rows_multiple: rows divide by it, so that they divide among devices.
        max_source_len, max_target_len, min_source_len, min_target_len: longer and shorter examples are left
            out; a minimum of 2 leaves out texts that hold nothing but eos.
        shuffle: False for an order that a person can follow.

    Raises:
        UserError: nothing is left, or `tokens_per_batch` is too small for the longest examples.
    """
    source, target = np.asarray(source_lengths), np.asarray(target_lengths)
    _check(source, target, seed, tokens_per_batch, rows, max_shapes, rows_multiple)
    long = (source > max_source_len) | (target > max_target_len)
    short = ~long & ((source < min_source_len) | (target < min_target_len))
    kept = np.flatnonzero(~(long | short))
    if not len(kept):
        raise UserError(_tell_nothing_left(int(long.sum()), int(short.sum()), max_source_len, max_target_len))
    source, target = source[kept], target[kept]
    shapes, shape_of = choose_shapes(
        source, target, tokens_per_batch=tokens_per_batch, rows=rows, max_shapes=max_shapes, rows_multiple=rows_multiple
    )
    # A stable sort of one-byte keys is a radix sort: O(N), and the order of the corpus within a shape.
    order = np.argsort(shape_of, kind="stable")
    sizes = np.bincount(shape_of, minlength=len(shapes))
    promote = settle_leftovers(shapes, sizes.tolist())
    batches, slots = count_slots(shapes, sizes.tolist(), promote)
    ids = kept.astype(np.min_scalar_type(-len(long)))[order]
    return BatchPlan(
        shapes=shapes,
        seed=int(seed),
        shuffle=shuffle,
        batches_per_epoch=batches,
        examples_per_epoch=len(kept),
        pad_share=1.0 - (int(source.sum(dtype=np.int64)) + int(target.sum(dtype=np.int64))) / slots,
        too_long=np.flatnonzero(long),
        too_short=np.flatnonzero(short),
        _members=tuple(np.split(ids, np.cumsum(sizes)[:-1])),
        _promote=promote,
    )


def _check(
    source: np.ndarray,
    target: np.ndarray,
    seed: int,
    tokens: int | None,
    rows: int | None,
    max_shapes: int,
    rows_multiple: int,
) -> None:
    if source.shape != target.shape or source.ndim != 1:
        raise ValueError(f"lengths must be two equal vectors, but are {source.shape} and {target.shape} instead.")
    if (tokens is None) == (rows is None):
        raise ValueError("Exactly one of `tokens_per_batch` and `rows` must be given.")
    for name, value, least in (("seed", seed, 0), ("max_shapes", max_shapes, 1), ("rows_multiple", rows_multiple, 1)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, but is {value} instead.")
    if rows is not None and (rows < 1 or rows % rows_multiple):
        raise UserError(f"`rows` must be a positive multiple of {rows_multiple} (devices), but is {rows}.")


def _tell_nothing_left(long: int, short: int, max_source_len: int, max_target_len: int) -> str:
    return (
        f"No example is left to plan: of {long + short}, {long} are longer than config.data.max_source_len = "
        f"{max_source_len} or config.data.max_target_len = {max_target_len}, {short} are empty."
    )


def permute(count: int, *key: int) -> np.ndarray:
    """A permutation of `range(count)`, drawn from integers; the same in every version of numpy.

    numpy promises the raw stream of Philox (Salmon et al. 2011) and SeedSequence for good, but not what
    `Generator.permutation` makes of it: a resumed run must find the order it left.
    """
    raw = np.random.Philox(np.random.SeedSequence(list(key))).random_raw(count)
    return np.argsort(raw, kind="stable")
