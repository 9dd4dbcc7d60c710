"""The prepared corpus on a disk: tokens that are read example by example, so that no corpus is too large.

    FOLDER/index.json                  written last: a folder without it is not finished
    FOLDER/shards/00000.array_record   a record a pair: source tokens, then target tokens; uint16, or uint32
    FOLDER/shards/00000.lengths.npy    [2, pairs] uint16: lengths as a plan asks for them
    FOLDER/shards/00000.json           what the shard holds and what was left out of it
    FOLDER/vocab/                      the vocabularies that it was tokenised with
    FOLDER/dev.json, test.json         sentences held out of train, where they are
    FOLDER/dropped.jsonl               for every reason some of the pairs that were left out

Resident in memory are the lengths, 4 bytes a pair, and array_record's table of chunks, about 1 byte a pair;
tokens are read with pread, nothing is mapped.

Why array_record (a dependency of TFDS): it is kept, checks a hash of every chunk it reads, and is quick enough. On
two million pairs of 44 tokens in 40 shards, batches of 100 random pairs, one core: 30,000 to 40,000 pairs/s with
64 records in a chunk, uncompressed; plain arrays read with one pread a pair 150,000 to 200,000, without any check.
A training step asks for 300 to 10,000. A chunk a record would cost 45 bytes of memory a pair.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seq2seq_jax.data.whole_file import read_whole, write_whole
from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from seq2seq_jax.data.pipeline import Ragged

INDEX = "index.json"
FORMAT = 1
LONGEST = 65_535
"""Tokens of the longest side that the lengths have room for."""
_WRITE = "group_size:64,uncompressed"
_READ = "readahead_buffer_size:0,max_parallelism:0"  # random access; reading ahead is grain's
_MOST_OPEN = 512  # shards; each is an open file
_BLOCK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """What the index says of a shard; the digests are sha256 of the files, "" where it holds no pair."""

    part: int
    pairs: int
    bytes: int
    sha256: str
    lengths_sha256: str


@dataclasses.dataclass(frozen=True)
class Part:
    """A corpus of data.train in a prepared one."""

    name: str
    source: str
    target: str
    tags: tuple[str, ...]
    pairs: int


@dataclasses.dataclass(frozen=True)
class Index:
    """What is in a prepared corpus.

    Attributes:
        recipe: everything that decides the content.
        recipe_sha256: of it.
        vocab_sha256: digest of the vocabularies.
        dtype: of the tokens, "uint16" or "uint32".
        parts: the corpora in the order of data.train.
        shards: in order; those of a part follow each other.
        files: of the corpora: path, size, mtime_ns and sha256.
        left_out: pairs by reason.
        held_out: digests of dev and test where they were held out of train.
    """

    recipe: dict[str, Any]
    recipe_sha256: str
    vocab_sha256: str
    dtype: str
    parts: tuple[Part, ...]
    shards: tuple[Shard, ...]
    files: tuple[dict[str, Any], ...]
    left_out: dict[str, int]
    held_out: dict[str, str]

    def __len__(self) -> int:
        return sum(shard.pairs for shard in self.shards)

    @property
    def digest(self) -> str:
        """sha256 of everything that a training sees of the corpus."""
        content = [self.vocab_sha256, self.dtype]
        content += [f"{shard.part} {shard.pairs} {shard.sha256} {shard.lengths_sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes FOLDER/index.json, whole or not at all."""
        page = {"format": FORMAT, "pairs": len(self), **dataclasses.asdict(self)}
        write_whole(folder / INDEX, (json.dumps(page, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Reads FOLDER/index.json.

        Raises:
            UserError: it is missing, or is not what `save` writes.
        """
        path = folder / INDEX
        try:
            page = json.loads(read_whole(path))
            if page.pop("format") != FORMAT:
                raise ValueError("another format")
            count = page.pop("pairs")
            page["parts"] = tuple(Part(**{**part, "tags": tuple(part["tags"])}) for part in page["parts"])
            page["shards"] = tuple(Shard(**shard) for shard in page["shards"])
            page["files"] = tuple(page["files"])
            index = cls(**page)
            _check_index(index)
            if count != len(index):
                raise ValueError("its numbers do not agree")
        except FileNotFoundError as error:
            raise UserError(f"{path}: there is no finished corpus here; run --mode=prepare first.") from error
        except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not the index of a prepared corpus ({error}); remove it and {_CURE}.") from error
        return index


def _check_index(index: Index) -> None:
    """Refuses an index with values that cannot be; ValueError and the like."""
    texts = [index.recipe_sha256, index.vocab_sha256, *index.left_out, *index.held_out.values()]
    counts = [*(part.pairs for part in index.parts), *index.left_out.values()]
    for shard in index.shards:
        texts += [shard.sha256, shard.lengths_sha256]
        counts += [shard.pairs, shard.bytes, len(index.parts) - 1 - shard.part, shard.part]
    for part in index.parts:
        texts += [part.name, part.source, part.target, *part.tags]
    for entry in index.files:
        texts += [entry["path"], entry["sha256"]]
        counts += [entry["size"], entry["mtime_ns"]]
    if not all(isinstance(text, str) for text in texts) or not isinstance(index.recipe, dict):
        raise ValueError("a text or the recipe is none")
    if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts):
        raise ValueError("a count is none")
    if index.dtype not in ("uint16", "uint32"):
        raise ValueError(f"its dtype is {index.dtype!r}")
    sizes = [sum(shard.pairs for shard in index.shards if shard.part == n) for n in range(len(index.parts))]
    if sizes != [part.pairs for part in index.parts]:
        raise ValueError("its numbers do not agree")


def is_complete(folder: Path) -> bool:
    """Whether a whole prepared corpus is there."""
    return (folder / INDEX).is_file()


def shard_files(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Paths of a shard: tokens, lengths, note."""
    stem = folder / "shards" / f"{number:05d}"
    return stem.with_suffix(".array_record"), stem.with_suffix(".lengths.npy"), stem.with_suffix(".json")


def write_tokens(path: Path, flat: np.ndarray, lengths: np.ndarray) -> None:
    """Writes one record a pair; the file is not flushed to the disk and not renamed, which is the caller's.

    Args:
        path: of the file.
        flat: `[tokens]`: source and target of the first pair, of the second, ...
        lengths: `[pairs]` int64: tokens of both sides.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    ends = (np.cumsum(lengths) * flat.itemsize).tolist()
    data = flat.tobytes()
    writer = ArrayRecordWriter(str(path), _WRITE)
    try:
        start = 0
        for end in ends:
            writer.write(data[start:end])
            start = end
    finally:
        writer.close()


class PreparedPairs:
    """A prepared corpus, as a plan and its batches ask for it (`pipeline.Pairs`).

    Attributes:
        folder: where it is.
        index: what is in it.
        source_lengths, target_lengths: `[N]` uint16, as in `pipeline.TokenPairs`.
    """

    def __init__(self, folder: Path, index: Index, lengths: Sequence[np.ndarray]) -> None:
        self.folder, self.index = folder, index
        self.source_lengths = _join([table[0] for table in lengths])
        self.target_lengths = _join([table[1] for table in lengths])
        self._starts = np.cumsum([0, *(shard.pairs for shard in index.shards)], dtype=np.int64)
        self._dtype = np.dtype(index.dtype)
        self._open: OrderedDict[int, Any] = OrderedDict()  # array_record's readers, the latest used last
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, *, check: bool = True) -> PreparedPairs:
        """Opens what --mode=prepare has made.

        Args:
            folder: of the prepared corpus.
            check: compare the digests of all shards, too, not only their sizes and lengths. Of several hosts one
                is enough. Besides, array_record checks every chunk that is read.

        Raises:
            UserError: it is not finished, or a shard is missing or damaged.
        """
        index = Index.load(folder)
        lengths = list(_check_shards(folder, index, check))
        return cls(folder, index, lengths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def name(self) -> str:
        """The corpora in it."""
        return f"{self.folder} ({', '.join(part.name for part in self.index.parts)})"

    @property
    def digest(self) -> str:
        """sha256 of everything that a training sees of it."""
        return self.index.digest

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """Pairs of each corpus, in the order of data.train."""
        return tuple(part.pairs for part in self.index.parts)

    def read(self, ids: np.ndarray) -> tuple[Ragged, Ragged]:
        """Sources and targets of the examples `ids`, in that order.

        Raises:
            IndexError: an id is not of this corpus.
            UserError: a shard was damaged since it was opened.
        """
        from seq2seq_jax.data.pipeline import Ragged

        ids = np.asarray(ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"`ids` must be of {len(self)} examples, but are {ids.min()} to {ids.max()} instead.")
        shards = np.searchsorted(self._starts, ids, side="right") - 1
        order = np.argsort(shards, kind="stable")
        records = [b""] * len(ids)
        borders = np.flatnonzero(np.diff(shards[order])) + 1
        for group in np.split(order, borders) if len(ids) else ():
            shard = int(shards[group[0]])
            found = self._read_records(shard, (ids[group] - self._starts[shard]).tolist())
            for place, record in zip(group.tolist(), found, strict=True):
                records[place] = record
        sizes = np.empty(2 * len(ids), np.int64)  # source, target, source, ...
        sizes[0::2], sizes[1::2] = self.source_lengths[ids], self.target_lengths[ids].astype(np.int64) - 1
        flat = np.frombuffer(b"".join(records), self._dtype).astype(np.int32)
        of_source = np.repeat(np.tile([True, False], len(ids)), sizes)
        return (
            Ragged(flat[of_source], np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[0::2])])),
            Ragged(flat[~of_source], np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[1::2])])),
        )

    def _read_records(self, shard: int, places: list[int]) -> list[bytes]:
        """Records of one shard, each of the length that the table of lengths says."""
        path = shard_files(self.folder, shard)[0]
        try:
            found = self._reader(shard, path).read(places)
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"{path}: {_first_line(error)}; {_CURE_SHARD}.") from error
        at = np.array(places) + self._starts[shard]
        wanted = self.source_lengths[at].astype(np.int64) + self.target_lengths[at] - 1
        if [len(record) for record in found] != (wanted * self._dtype.itemsize).tolist():
            raise UserError(f"{path}: its pairs have other lengths than its table says; {_CURE_SHARD}.")
        return found

    def _reader(self, shard: int, path: Path) -> Any:
        """The shard's reader, opened when first asked for; threads share it."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            reader = self._open.get(shard)
            if reader is None:
                reader = self._open[shard] = ArrayRecordReader(str(path), options=_READ)
                if len(self._open) > _MOST_OPEN:  # the file is closed when no thread has it any more
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and locks: every process opens its own."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        again = PreparedPairs.open(state["folder"], check=False)
        self.__dict__.update(again.__dict__)


_CURE = "run --mode=prepare again"
_CURE_SHARD = "remove this shard's files and the index.json of its corpus, and run --mode=prepare again"


def _check_shards(folder: Path, index: Index, check: bool) -> Iterator[np.ndarray]:
    """The tables of lengths, when every shard is as the index says."""
    numbers = [number for number, shard in enumerate(index.shards) if shard.pairs]
    with ThreadPoolExecutor(4) as pool:
        problems = pool.map(lambda number: find_damage(folder, number, index.shards[number], check), numbers)
        for number, problem in zip(numbers, problems, strict=True):
            if problem:
                raise UserError(f"{problem}; {_CURE_SHARD}.")
            yield _read_lengths(shard_files(folder, number)[1])


def find_damage(folder: Path, number: int, shard: Shard, check: bool = True) -> str:
    """What is wrong with a shard's files, as file and reason; "" if nothing is.

    Args:
        folder: of the corpus.
        number: of the shard.
        shard: what it should be.
        check: compare the digest of the tokens, not only their size.
    """
    if not shard.pairs:
        return ""
    tokens, lengths, _ = shard_files(folder, number)
    try:
        size = tokens.stat().st_size
        if size != shard.bytes:
            return f"{tokens}: the shard has {size} bytes, the index says {shard.bytes}"
        if hash_file(lengths) != shard.lengths_sha256:
            return f"{lengths}: the shard's lengths are damaged (digest)"
        if _read_lengths(lengths).shape != (2, shard.pairs):
            return f"{lengths}: the shard's lengths are not of {shard.pairs} pairs"
        if check and hash_file(tokens) != shard.sha256:
            return f"{tokens}: the shard is damaged (digest)"
    except OSError as error:
        return f"{error.filename}: a shard cannot be read ({error.strerror})"
    return ""


def _read_lengths(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def hash_file(path: Path) -> str:
    """sha256 of a file, read block by block."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def choose_dtype(*sizes: int) -> str:
    """The type that holds the ids of vocabularies of these sizes."""
    return "uint16" if max(sizes) <= 1 << 16 else "uint32"


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(arrays) if arrays else np.zeros(0, np.uint16)
    joined.flags.writeable = False
    return joined


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
