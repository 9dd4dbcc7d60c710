"""Makes padded batches of a tokenised corpus, read ahead while the device computes.

    ParallelText ── tokenise ──▶ TokenPairs ── batches(plan) ──▶ Batch n, n + 1, ...

Batch n is a function of the corpus and the plan: to resume is to start at another n, and every host
reads its own rows of the same global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import grain
import numpy as np

from seq2seq_jax.data.packing import place_segments
from seq2seq_jax.data.plan import BatchPlan, PlannedBatch
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID, Vocab, Vocabs
from seq2seq_jax.failpoints import reach
from seq2seq_jax.interfaces import Batch

_LINES_AT_ONCE = 50_000  # tokenised together; a whole corpus of small arrays would take several times its size
_NO_TAGS = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths in one array.

    Attributes:
        flat: all tokens, one sequence after the other, int32; of speech all frames, `[frames, samples]` float32.
        offsets: `[N + 1]` int64; sequence i is `flat[offsets[i]:offsets[i + 1]]`.
    """

    flat: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"`i` must be an index of {len(self)} sequences, but is {i} instead.")
        i %= len(self)
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """`[N]` int64."""
        return np.diff(self.offsets)

    @classmethod
    def pack(cls, sequences: Sequence[np.ndarray]) -> Ragged:
        """Puts sequences of int32 into one array."""
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(s) for s in sequences], out=offsets[1:])
        flat = np.concatenate(sequences).astype(np.int32, copy=False) if len(sequences) else np.zeros(0, np.int32)
        return cls(flat, offsets)


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """A tokenised corpus. Sources end with eos; targets are stored without bos and eos."""

    source: Ragged
    target: Ragged

    def __len__(self) -> int:
        return len(self.source)

    def read(self, ids: np.ndarray) -> tuple[Ragged, Ragged]:
        """Sources and targets of the examples `ids`, in that order."""
        return take(self.source, ids), take(self.target, ids)

    @property
    def source_lengths(self) -> np.ndarray:
        """`[N]` as fed to the model, eos included: what a plan asks for."""
        return self.source.lengths

    @property
    def target_lengths(self) -> np.ndarray:
        """`[N]` as the decoder sees them, eos (or bos) included: what a plan asks for."""
        return self.target.lengths + 1


class Pairs(Protocol):
    """A tokenised corpus, in memory or on a disk: what a plan and its batches need of it."""

    def __len__(self) -> int: ...

    @property
    def source_lengths(self) -> np.ndarray: ...

    @property
    def target_lengths(self) -> np.ndarray: ...

    def read(self, ids: np.ndarray) -> tuple[Ragged, Ragged]: ...


class Redraw(Protocol):
    """Gives the examples `ids` of a batch another segmentation, drawn by the batch's epoch, with room in its shape."""

    def __call__(
        self, sources: Ragged, targets: Ragged, ids: np.ndarray, planned: PlannedBatch
    ) -> tuple[Ragged, Ragged]: ...


def take(ragged: Ragged, ids: np.ndarray) -> Ragged:
    """The sequences `ids`, in that order."""
    lengths = ragged.offsets[ids + 1] - ragged.offsets[ids]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    places = np.arange(offsets[-1]) + np.repeat(ragged.offsets[ids] - offsets[:-1], lengths)
    return Ragged(ragged.flat[places], offsets)


def tokenise(text: ParallelText, vocabs: Vocabs, tags: Sequence[str] = ()) -> TokenPairs:
    """Encodes both sides of a corpus. Without a target side the targets are empty.

    Args:
        text: the corpus.
        vocabs: of both sides.
        tags: names of the tokens put before every source that is not blank, such as ("2de", "bt").

    Raises:
        UserError: the source vocabulary has no such tag.
    """
    source = _encode(text.source, vocabs.source, append_eos=True, before=tag_ids(vocabs.source, tags))
    if text.target is None:
        return TokenPairs(source, Ragged(np.zeros(0, np.int32), np.zeros(len(source) + 1, np.int64)))
    return TokenPairs(source, _encode(text.target, vocabs.target, append_eos=False))


def build_batch(
    pairs: Pairs, planned: PlannedBatch, *, rows: np.ndarray | None = None, redraw: Redraw | None = None
) -> Batch:
    """Pads the planned examples to the batch's shape; leaves are numpy arrays.

    Args:
        pairs: the corpus.
        planned: which examples, and the shape.
        rows: read only these rows of the global batch (a host's share).
        redraw: draws other segmentations; the stored ones by default.
    """
    ids = planned.example_ids if rows is None else planned.example_ids[rows]
    if ids.ndim == 2:
        return _build_packed(pairs, planned, ids)
    real = ids >= 0
    places = np.where(real, np.cumsum(real) - 1, -1)  # of the rows in what is read
    sources, targets = pairs.read(ids[real])
    if redraw is not None:
        sources, targets = redraw(sources, targets, ids[real], planned)
    speech = sources.flat.ndim > 1
    if speech:  # what could not be read has no frames: its row only fills
        found = np.flatnonzero(real)[sources.lengths > 0]
        real = np.isin(np.arange(len(ids)), found)
        ids = np.where(real, ids, -1)
        places = np.where(real, places, -1)
    source, source_mask = pad_rows(sources, places, planned.shape.source_len)
    body, body_mask = pad_rows(targets, places, planned.shape.target_len)
    lengths = body_mask.sum(axis=1)
    target_mask = (np.arange(planned.shape.target_len) <= lengths[:, None]) & real[:, None]
    target_in = np.full_like(body, PAD_ID)
    target_in[:, 1:] = body[:, :-1]
    target_in[real, 0] = BOS_ID
    target_out = body
    target_out[real, lengths[real]] = EOS_ID
    leaves: dict[str, Any] = {  # numpy's, until they are put on devices
        "source": source,
        "source_mask": source_mask,
        "target_in": target_in,
        "target_out": target_out,
        "target_mask": target_mask,
        "example_ids": ids.astype(np.int32),
        "row_mask": real,
    }
    if speech:
        leaves["epochs"] = np.full(len(ids), planned.epoch, np.int32)
    return Batch(**leaves)


def _build_packed(pairs: Pairs, planned: PlannedBatch, ids: np.ndarray) -> Batch:
    """A batch of several examples a row: `ids` `[rows, most examples in a row]`, -1 for none."""
    held = ids >= 0
    sources, targets = pairs.read(ids[held])
    lengths = targets.lengths + 1
    source = place_segments(sources.flat, sources.lengths, held, planned.shape.source_len)
    target_in, segments, positions = place_segments(
        np.insert(targets.flat, targets.offsets[:-1], BOS_ID), lengths, held, planned.shape.target_len
    )
    ended = np.insert(targets.flat, targets.offsets[1:], EOS_ID)
    leaves: dict[str, Any] = {  # numpy's, until they are put on devices
        "source": source[0],
        "source_mask": source[1] > 0,
        "target_in": target_in,
        "target_out": place_segments(ended, lengths, held, planned.shape.target_len)[0],
        "target_mask": segments > 0,
        "example_ids": ids[:, 0].astype(np.int32),
        "row_mask": held[:, 0],
        "source_segments": source[1],
        "source_positions": source[2],
        "target_segments": segments,
        "target_positions": positions,
    }
    return Batch(**leaves)


def pad_rows(ragged: Ragged, ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences `ids` (-1 for none) side by side: `[rows, length, ...]`, zero where padded, and the mask.

    Raises:
        ValueError: a sequence is longer than `length`.
    """
    at = np.maximum(ids, 0) if len(ragged) else np.zeros_like(ids)
    starts = ragged.offsets[at]
    lengths = np.where(ids >= 0, ragged.offsets[np.minimum(at + 1, len(ragged))] - starts, 0)
    if lengths.max(initial=0) > length:
        raise ValueError(f"`length` must be at least {lengths.max()} to hold the longest row, but is {length} instead.")
    positions = np.arange(length)
    mask = positions < lengths[:, None]  # [rows, length]
    tokens = np.full((*mask.shape, *ragged.flat.shape[1:]), PAD_ID, ragged.flat.dtype)
    tokens[mask] = ragged.flat[(starts[:, None] + positions)[mask]]
    return tokens, mask


class BatchReader:
    """Iterator over batches that are built ahead in threads; ends its threads on `close` or at a `with`'s end."""

    def __init__(self, source: _PlannedBatches, *, threads: int, prefetch: int) -> None:
        ahead = threads > 0 and prefetch > 0
        options = grain.ReadOptions(num_threads=threads if ahead else 0, prefetch_buffer_size=prefetch if ahead else 0)
        self._iterator: grain.DatasetIterator | None = None
        if len(source):
            self._iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))

    def __iter__(self) -> BatchReader:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Drops what was read ahead; the iterator has ended."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def batches(
    pairs: Pairs,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    rows_of: Callable[[int], np.ndarray] | None = None,
    redraw: Redraw | None = None,
    threads: int = 1,
    prefetch: int = 4,
) -> BatchReader:
    """Yields batches n = start .. stop - 1 in order, this host's rows of each.

    Args:
        pairs: the corpus that the plan was made for.
        plan: see `plan.make_plan`.
        start, stop: range of n, over all epochs.
        rows_of: `rows_of(rows)` are the numbers of the rows that this host reads of a batch of so many; all
            of them by default.
        redraw: draws other segmentations in every epoch, such as `sampling.PairSampler`.
        threads: that build batches ahead; 0 builds each when it is asked for.
        prefetch: how many batches to build ahead.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"`start` and `stop` must be 0 <= start <= stop, but are {start} and {stop} instead.")
    source = _PlannedBatches(pairs, plan, start, stop, rows_of, redraw)
    return BatchReader(source, threads=threads, prefetch=prefetch)


@dataclass(frozen=True, eq=False)
class _PlannedBatches:
    """Random access by number, as grain asks for it."""

    pairs: Pairs
    plan: BatchPlan
    start: int
    stop: int
    rows_of: Callable[[int], np.ndarray] | None
    redraw: Redraw | None

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> Batch:
        reach("batch", self.start + i)
        planned = self.plan.batch(self.start + i)
        rows = None if self.rows_of is None else self.rows_of(planned.shape.rows)
        return build_batch(self.pairs, planned, rows=rows, redraw=self.redraw)


def length_batches(
    lengths: np.ndarray | Sequence[int], *, rows: int, multiple: int = 8, max_len: int | None = None
) -> list[tuple[np.ndarray, int]]:
    """Groups texts of like length for decoding, so that few shapes are compiled and little is padded.

    Args:
        lengths: `[N]` source lengths, eos included.
        rows: of every batch; the last is filled up with -1.
        multiple: padded lengths are this times a power of two or one and a half of one (8, 16, 24, 32, 48, ...),
            at most about twenty up to thousands of tokens.
        max_len: cut-off; longer texts are grouped as if they had this length (the caller truncates).

    Returns:
        Batches `(ids [rows] int64 with -1 for filling, padded length)`, longest first: memory runs out at
        once or never.
    """
    if rows < 1 or multiple < 1:
        raise ValueError(f"`rows` and `multiple` must be at least 1, but are {rows} and {multiple} instead.")
    needed = np.maximum(np.asarray(lengths, np.int64), 1)
    if max_len is not None:
        needed = np.minimum(needed, max_len)
    order = np.argsort(-needed, kind="stable")
    grouped = []
    for begin in range(0, len(order), rows):
        ids = np.full(rows, -1, np.int64)
        taken = order[begin : begin + rows]
        ids[: len(taken)] = taken
        padded = _round_up(int(needed[taken[0]]), multiple)
        grouped.append((ids, padded if max_len is None else min(padded, max_len)))
    return grouped


def _round_up(length: int, multiple: int) -> int:
    power = multiple
    while power < length:
        if power % 2 == 0 and power > multiple and length <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power


def _encode(lines: Sequence[str], vocab: Vocab, *, append_eos: bool, before: np.ndarray = _NO_TAGS) -> Ragged:
    eos = np.array([EOS_ID], np.int32)
    parts = []
    for begin in range(0, len(lines), _LINES_AT_ONCE):
        encoded = vocab.encode_many(lines[begin : begin + _LINES_AT_ONCE])
        if append_eos:
            encoded = [np.concatenate([before, ids, eos] if len(ids) else [ids, eos]) for ids in encoded]
        parts.append(Ragged.pack(encoded))
    return _join(parts)


def tag_ids(vocab: Vocab, tags: Sequence[str]) -> np.ndarray:
    """The ids of tags, `[number of tags]` int32."""
    return vocab.tag_ids(tags) if tags else _NO_TAGS


def join_pairs(pairs: Sequence[TokenPairs]) -> TokenPairs:
    """Corpora one after the other."""
    if len(pairs) == 1:
        return pairs[0]
    return TokenPairs(_join([part.source for part in pairs]), _join([part.target for part in pairs]))


def _join(parts: Sequence[Ragged]) -> Ragged:
    if not parts:
        return Ragged.pack([])
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Ragged(np.concatenate([part.flat for part in parts]), offsets)
