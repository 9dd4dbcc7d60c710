"""Corpora of any size, read once from front to back in pieces of so many pairs.

One process cuts files into pieces, which is quick: it looks for line ends and hashes what it reads. To decode,
split and check them is the work of those that get the pieces.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from seq2seq_jax.data.sources import MAX_LINE_BYTES, decode_block, find_side, refuse_bomb, tell_neighbours
from seq2seq_jax.data.spec import CorpusSpec
from seq2seq_jax.errors import UserError

_BLOCK_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be read in pieces; small, and passed to other processes.

    Attributes:
        spec: what the config says of it.
        paths: of its files: two sides, or one TSV; none for what is made or read by number.
        pairs: how many it has, where that is known before it is read, else 0.
        seed: of the built-in corpus.
    """

    spec: CorpusSpec
    paths: tuple[str, ...]
    pairs: int = 0
    seed: int = 0

    @property
    def weight(self) -> int:
        """Bytes to read, or pairs to make, for the share that is done."""
        return sum(os.path.getsize(path) for path in self.paths) or self.pairs


@dataclass(frozen=True)
class Piece:
    """Some pairs of a corpus that follow each other; the content of a shard before anything is left out.

    Attributes:
        number: over all corpora, from 0.
        part: number of the corpus.
        first: number of the first pair in the corpus, from 0.
        count: how many.
        sides: whole lines of each file, undecoded; none where the pairs are read by number.
        done: bytes or pairs of its corpus that are read when this is.
    """

    number: int
    part: int
    first: int
    count: int
    sides: tuple[bytes, ...]
    done: int


def find_corpus(spec: CorpusSpec, *, phrasebook_pairs: int, seed: int = 0) -> Corpus:
    """Looks for the files of a corpus.

    Raises:
        UserError: one is missing, or is no file.
    """
    name = spec.name
    if name == "phrasebook":
        return Corpus(spec, (), phrasebook_pairs, seed)
    if name.startswith("tfds:"):
        from seq2seq_jax.data.tfds_text import TfdsText

        return Corpus(spec, (), len(TfdsText(name, split="train", source=spec.source, target=spec.target)))
    if name.endswith((".tsv", ".tsv.gz")):
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file; {tell_neighbours(Path(name))}")
        paths = [name]
    else:
        paths = [str(find_side(name, language)) for language in (spec.source, spec.target)]
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path}: is no regular file; a text file is needed.")
    return Corpus(spec, tuple(paths))


def stream(corpora: tuple[Corpus, ...], pairs: int, digests: dict[str, str]) -> Iterator[Piece]:
    """Cuts corpora into pieces of `pairs` pairs; a piece has pairs of one corpus.

    Args:
        corpora: in order.
        pairs: of every piece but the last of each corpus.
        digests: gets path → sha256 of every file that was read to its end.

    Raises:
        UserError: a file cannot be read, is empty, or the sides have different numbers of lines.
    """
    number = 0
    for part, corpus in enumerate(corpora):
        for first, count, sides, done in _cut(corpus, pairs, digests):
            yield Piece(number, part, first, count, sides, done)
            number += 1


def _cut(corpus: Corpus, pairs: int, digests: dict[str, str]) -> Iterator[tuple[int, int, tuple[bytes, ...], int]]:
    if corpus.paths:
        yield from _cut_files(corpus, pairs, digests)
        return
    made = _make_sides(corpus) if corpus.spec.name == "phrasebook" else ()
    for first in range(0, corpus.pairs, pairs):
        count = min(pairs, corpus.pairs - first)
        lines = tuple("".join(line + "\n" for line in side[first : first + count]).encode() for side in made)
        yield first, count, lines, first + count


def _make_sides(corpus: Corpus) -> tuple[list[str], list[str]]:
    from seq2seq_jax.data import phrasebook  # read only where it is asked for

    spec = corpus.spec
    return phrasebook.pairs("train", source=spec.source, target=spec.target, size=corpus.pairs, seed=corpus.seed)


def _cut_files(
    corpus: Corpus, pairs: int, digests: dict[str, str]
) -> Iterator[tuple[int, int, tuple[bytes, ...], int]]:
    files = [LineFile(path) for path in corpus.paths]
    try:
        first = 0
        while True:
            taken = [file.take(pairs) for file in files]
            counts = [count for _, count in taken]
            if len(set(counts)) > 1:
                raise UserError(_tell_mismatch(corpus, files, [first + count for count in counts]))
            if not counts[0]:
                break
            yield first, counts[0], tuple(data for data, _ in taken), sum(file.position for file in files)
            first += counts[0]
        if not first:
            raise UserError(f"{corpus.paths[0]}: is empty; at least one sentence is needed.")
        digests.update((file.path, file.digest) for file in files)
    finally:
        for file in files:
            file.close()


def _tell_mismatch(corpus: Corpus, files: list[LineFile], counts: list[int]) -> str:
    """How many lines each side has; reads the files to their ends."""
    totals = [count + file.count_rest() for file, count in zip(files, counts, strict=True)]
    told = ", ".join(f"{path} has {total}" for path, total in zip(corpus.paths, totals, strict=True))
    return f"{told} lines; from line {min(totals) + 1} on there is only one side. Both must have one line a pair."


class LineFile:
    """A plain or gzipped file, taken some lines at a time, and hashed as it lies on the disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._raw = _Hashed(open(path, "rb", buffering=0))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
        self._file: IO[bytes] = gzip.open(self._raw) if path.endswith(".gz") else self._raw  # type: ignore[assignment]
        self._block, self._ends, self._at = b"", np.zeros(0, np.int64), 0
        self._unpacked = 0

    @property
    def position(self) -> int:
        """Bytes of the file that are read."""
        return self._raw.count

    @property
    def digest(self) -> str:
        """sha256 of the bytes on the disk that are read: of the file, at its end."""
        while self._raw.read(_BLOCK_BYTES):  # what follows a gzip member
            pass
        return self._raw.digest.hexdigest()

    def take(self, lines: int) -> tuple[bytes, int]:
        """The next lines as they are, and how many there are; fewer only at the end of the file."""
        parts, need = [], lines
        open_bytes = 0  # since the last line end
        while need and (self._at < len(self._block) or self._read()):
            place = int(np.searchsorted(self._ends, self._at))
            left = len(self._ends) - place
            cut = int(self._ends[place + need - 1]) + 1 if left >= need else len(self._block)
            parts.append(self._block[self._at : cut])
            open_bytes = open_bytes + len(parts[-1]) if not left else len(self._block) - int(self._ends[-1])
            if open_bytes > MAX_LINE_BYTES:
                rule = f"has a line of more than {MAX_LINE_BYTES >> 20} MiB; not a text with one sentence a line."
                raise UserError(f"{self.path}: {rule}")
            self._at, need = cut, max(0, need - left)
        data = b"".join(parts)
        torn = bool(need and data and not data.endswith(b"\n"))  # the last line of the file may lack its end
        return data, lines - need + torn

    def count_rest(self) -> int:
        """Lines that are left."""
        count = 0
        while taken := self.take(1 << 20)[1]:
            count += taken
        return count

    def _read(self) -> bool:
        try:
            self._block, self._at = self._file.read(_BLOCK_BYTES), 0
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{self.path}: not a whole gzip file ({error}); make or copy it again.") from error
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error}).") from error
        self._unpacked += len(self._block)
        refuse_bomb(self.path, self._raw.count, self._unpacked)
        self._ends = np.flatnonzero(np.frombuffer(self._block, np.uint8) == ord("\n"))
        return bool(self._block)

    def close(self) -> None:
        """Closes the file."""
        self._raw.close()


class _Hashed(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.count = file, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:size])
        self.count += size
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def read_piece(piece: Piece, corpus: Corpus) -> tuple[list[str], list[str]]:
    """The sentences of a piece, both sides.

    Raises:
        UserError: a line is not UTF-8, or a TSV row has not exactly one tab.
    """
    if not piece.sides:
        from seq2seq_jax.data.tfds_text import TfdsText

        spec = corpus.spec
        text = TfdsText(spec.name, split="train", source=spec.source, target=spec.target)
        return text.read(range(piece.first, piece.first + piece.count))
    paths = corpus.paths or ("phrasebook",) * 2
    sides = [_split(data, piece.first, Path(path)) for data, path in zip(piece.sides, paths, strict=True)]
    if len(sides) == 2:
        return sides[0], sides[1]
    source, target = [], []
    for number, line in enumerate(sides[0], piece.first + 1):
        left, tab, right = line.partition("\t")
        if not tab or "\t" in right:
            rule = f"line {number} has {line.count(chr(9))} tabs; every row must be source, one tab, target."
            raise UserError(f"{paths[0]}: {rule}")
        source.append(left)
        target.append(right)
    return source, target


def _split(data: bytes, first: int, path: Path) -> list[str]:
    """Lines without their ends, and without the mark that some files begin with."""
    lines = decode_block(data if first else data.removeprefix(_BOM), first + 1, path).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines] if b"\r" in data else lines
