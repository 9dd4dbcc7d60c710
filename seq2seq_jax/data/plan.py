"""Decides which examples form global batch n, from lengths, seed and n alone.

A plan has a small table of shapes (each is one compilation of the train step) and puts every example into
the cheapest shape that holds it. An epoch is the same for every number of hosts, devices and threads; the
only state of the data is how many batches (or examples) have been used, so that resuming is arithmetic.

Every epoch has the same number of batches and holds every kept example exactly once (of a mixture of
corpora: the same number of examples of each, see `mixture`):

    lengths ── choose_shapes ──▶ table of shapes ── settle leftovers ──▶ batches a shape, fixed
    (seed, epoch) ──▶ who sits in which batch, and the order of the batches

The first epochs may go from short sentences to long ones (a curriculum: Kocmi and Bojar 2017, arXiv:1707.09533;
Platanios et al. 2019, arXiv:1903.09848): within a shape, examples are in order of their length (source plus
target, equal ones shuffled), and batches are in order of the mean length of their examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from seq2seq_jax.data.mixture import WALK, Mixture, Part, describe_shares, mix
from seq2seq_jax.data.shapes import Shape, choose_shapes, count_slots, settle_leftovers
from seq2seq_jax.errors import UserError

Lengths = Sequence[int] | np.ndarray
_EPOCHS_KEPT = 2  # while an epoch ends, readers ahead of the others are in the next one


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Who is in a batch: `example_ids` int64, `[rows]`, or of packed rows `[rows, most examples in a row]`.

    -1 is nobody, and comes last: in a row that only fills, and in a packed row after its examples.
    """

    shape: Shape
    example_ids: np.ndarray
    epoch: int


class Packed(Protocol):
    """Rows of several examples; see `packing.PackedRows`."""

    @property
    def widest(self) -> int: ...

    def make_epoch(self, epoch: int) -> Epoch: ...


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of all epochs; make it with `make_plan`, or with `packing.make_packed_plan`.

    Attributes:
        shapes: the table of shapes in order of size; a batch has one of them.
        seed: of the order.
        shuffle: False keeps the order of the corpus within a shape, and the shapes in order of size.
        batches_per_epoch, examples_per_epoch: the same for every epoch.
        pad_share: padded slots of source and target over all slots, rows that only fill included; of a mixture
            the mean over epochs.
        parts: the corpora of a mixture, or none.
        shares: what each of them has of an epoch, in examples.
        curriculum_epochs: the first so many epochs go from short to long.
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
    parts: tuple[Part, ...]
    shares: tuple[float, ...]
    curriculum_epochs: int
    _members: tuple[np.ndarray, ...]  # a shape: ids in order of the corpus
    _promote: tuple[int, ...]  # a shape: the shape that takes its leftovers, or -1
    _mixture: Mixture
    _lengths: np.ndarray | None  # [all examples] source plus target, for a curriculum
    _packed: Packed | None = None
    _epochs: dict[int, Epoch] = dataclasses.field(default_factory=dict, repr=False)

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
        if self._packed is not None and order.row_starts is not None:
            ends = order.row_starts[start : start + count + 1]
            held = np.arange(self._packed.widest) < np.diff(ends)[:, None]
            ids = np.full((shape.rows, self._packed.widest), -1, np.int64)
            ids[:count][held] = order.ids[ends[0] : ends[-1]]
            return PlannedBatch(shape, ids, epoch)
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
        if self._packed is not None:
            told += f", up to {self._packed.widest} packed into a row"
        if self.curriculum_epochs:
            told += f", from short to long in the first {self.curriculum_epochs} epochs"
        if len(self.parts) > 1:
            told += f"; shares: {describe_shares(self.parts, self.shares)}"
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

    def _order(self, epoch: int) -> Epoch:
        """The epoch from the cache; two threads may both make it, and make the same."""
        order = self._epochs.get(epoch)
        if order is None:
            order = self._make_epoch(epoch)
            self._epochs[epoch] = order
            for old in sorted(self._epochs)[:-_EPOCHS_KEPT]:
                self._epochs.pop(old, None)
        return order

    def _make_epoch(self, epoch: int) -> Epoch:
        if self._packed is not None:
            return self._packed.make_epoch(epoch)
        incoming: list[list[np.ndarray]] = [[] for _ in self.shapes]
        parts, counts, shape_of = [], [], []
        ordered = self.shuffle and epoch < self.curriculum_epochs
        for k, shape in enumerate(self.shapes):
            ids = np.concatenate([self._take(k, epoch), *incoming[k]])
            if self.shuffle:
                ids = ids[permute(len(ids), self.seed, epoch, k)]
            if ordered:
                ids = ids[np.argsort(self._lengths_of(ids), kind="stable")]
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
        ids = np.concatenate(parts)
        if ordered:
            means = np.add.reduceat(self._lengths_of(ids), starts) / sizes
            order = order[np.argsort(means[order], kind="stable")]
        before = np.concatenate([[0], np.cumsum(sizes[order])])
        return Epoch(ids, np.array(shape_of)[order], starts[order], sizes[order], before)

    def _take(self, k: int, epoch: int) -> np.ndarray:
        """The examples of shape k in an epoch, in the order of the corpora."""

        def walk(count: int, round_: int, corpus: int, shape: int) -> np.ndarray:
            return permute(count, self.seed, WALK, round_, corpus, shape)

        return self._mixture.take(self._members[k], k, epoch, walk if self.shuffle else None)

    def _lengths_of(self, ids: np.ndarray) -> np.ndarray:
        if self._lengths is None:
            raise ValueError("`_lengths` must be there for a curriculum, but is None instead.")
        return self._lengths[ids].astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Epoch:
    """The order of one epoch; arrays over its batches, except `ids` over its examples and `row_starts` over its rows.

    Where rows are packed, `starts` and `counts` are of rows instead of examples.
    """

    ids: np.ndarray  # examples, batch after batch in the order of the shapes
    shape_of: np.ndarray  # index into the table of shapes
    starts: np.ndarray  # where the batch begins in `ids`
    counts: np.ndarray  # examples in the batch
    before: np.ndarray  # examples in all batches before, one more entry for the end
    row_starts: np.ndarray | None = None  # where each packed row begins in `ids`, one more entry for the end


def make_plan(
    source_lengths: Lengths,
    target_lengths: Lengths,
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
    parts: Sequence[Part] = (),
    curriculum_epochs: int = 0,
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
        parts: the corpora of a mixture, whose examples follow each other; none: all examples are of one. The
            shapes are those that suit the corpora as they are, whatever their shares.
        curriculum_epochs: the first so many epochs go from short to long.

    Raises:
        UserError: nothing is left, or `tokens_per_batch` is too small for the longest examples.
    """
    source, target = np.asarray(source_lengths), np.asarray(target_lengths)
    _check(source, target, seed, tokens_per_batch, rows, max_shapes, rows_multiple)
    kept, long, short = find_kept(source, target, max_source_len, max_target_len, min_source_len, min_target_len)
    shapes, of_kept = choose_shapes(
        source[kept],
        target[kept],
        tokens_per_batch=tokens_per_batch,
        rows=rows,
        max_shapes=max_shapes,
        rows_multiple=rows_multiple,
    )
    # A pass a shape over small integers, and ids as narrow as they can be: of 36 million examples every byte counts.
    shape_of = np.full(len(long), -1, np.int16 if len(shapes) > 127 else np.int8)
    shape_of[kept] = of_kept
    narrow = np.min_scalar_type(-len(long))
    members = tuple(np.flatnonzero(shape_of == k).astype(narrow) for k in range(len(shapes)))
    mixture = mix(parts or [Part(len(long), 1.0)], members)
    sizes = mixture.counts.sum(axis=1).tolist()
    promote = settle_leftovers(shapes, sizes)
    batches, slots = count_slots(shapes, sizes, promote)
    return BatchPlan(
        shapes=shapes,
        seed=int(seed),
        shuffle=shuffle,
        batches_per_epoch=batches,
        examples_per_epoch=sum(sizes),
        pad_share=1.0 - _count_tokens(mixture, members, source_lengths, target_lengths) / slots,
        too_long=np.flatnonzero(long),
        too_short=np.flatnonzero(short),
        parts=tuple(parts),
        shares=tuple(mixture.shares.tolist()),
        curriculum_epochs=curriculum_epochs,
        _members=members,
        _promote=promote,
        _mixture=mixture,
        _lengths=_add_lengths(source_lengths, target_lengths) if curriculum_epochs and shuffle else None,
    )


def find_kept(
    source: np.ndarray,
    target: np.ndarray,
    max_source_len: int,
    max_target_len: int,
    min_source_len: int,
    min_target_len: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the lengths `[N]` are within the limits, which are too long, and which too short.

    Raises:
        UserError: none is within.
    """
    long = (source > max_source_len) | (target > max_target_len)
    short = ~long & ((source < min_source_len) | (target < min_target_len))
    kept = ~(long | short)
    if not kept.any():
        raise UserError(_tell_nothing_left(int(long.sum()), int(short.sum()), max_source_len, max_target_len))
    return kept, long, short


def _add_lengths(source_lengths: Lengths, target_lengths: Lengths) -> np.ndarray:
    """`[all examples]`: source plus target, in two bytes; what is longer is not in the plan."""
    total = np.asarray(source_lengths).astype(np.int32) + np.asarray(target_lengths)
    return np.minimum(total, np.iinfo(np.uint16).max).astype(np.uint16)


def _count_tokens(
    mixture: Mixture, members: Sequence[np.ndarray], source_lengths: Lengths, target_lengths: Lengths
) -> float:
    """Tokens of both sides in an epoch; of a mixture the mean over epochs."""
    total, source, target = 0.0, np.asarray(source_lengths), np.asarray(target_lengths)
    for ids, borders, counts in zip(members, mixture.borders, mixture.counts, strict=True):
        for start, stop, count in zip(borders[:-1], borders[1:], counts.tolist(), strict=True):
            if count:
                cell = ids[start:stop]
                tokens = int(source[cell].sum(dtype=np.int64)) + int(target[cell].sum(dtype=np.int64))
                total += tokens * (count / len(cell))
    return total


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
