"""What the worker processes of --mode=prepare do with a piece of a corpus: judge its pairs, encode and write them.

The functions take one piece and return something small, so that any number of processes can share the work. They
import neither jax nor grain: a process starts in a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.data.clean import BLANK, KEPT, REASONS, CleanRules, DropSample, clean_pairs, hash_pairs
from seq2seq_jax.data.sources import hash_sentences
from seq2seq_jax.data.store import LONGEST, choose_dtype, hash_file, shard_files, write_tokens
from seq2seq_jax.data.streams import Corpus, Piece, read_piece
from seq2seq_jax.data.vocab import EOS_ID, Vocabs
from seq2seq_jax.data.whole_file import flush, write_whole

_PAIRS_AT_ONCE = 10_000  # encoded together; a whole shard of small arrays would take several times its size
HELD_OUT, TOKENS = len(REASONS), len(REASONS) + 1
ALL_REASONS = (*REASONS, "held out", "too many tokens")


@dataclass(frozen=True)
class Work:
    """What every worker knows.

    Attributes:
        folder: of the prepared corpus; its vocabularies are there before the first shard is made.
        corpora: in order.
        rules: which pairs to leave out.
        turned: sides change places once they are judged.
    """

    folder: Path
    corpora: tuple[Corpus, ...]
    rules: CleanRules
    turned: bool = False


@dataclass(frozen=True)
class Marks:
    """What is known of a piece's pairs from having seen all corpora.

    Attributes:
        reasons: `[count]` int8: why each pair is left out, but for what is held out; None where nobody has judged yet.
        dev_border, test_border: hashes up to here are held out, of the first corpus; -1: none is.
    """

    reasons: np.ndarray | None = None
    dev_border: int = -1
    test_border: int = -1

    @property
    def border(self) -> int:
        """The last hash that is held out."""
        return max(self.dev_border, self.test_border)


@dataclass(frozen=True)
class Scanned:
    """Hashes of a piece's pairs, and why each is left out, `[count]` each; None where not asked for."""

    number: int
    part: int
    blank: np.ndarray
    sentences: np.ndarray | None
    pairs: np.ndarray | None
    reasons: np.ndarray | None


def begin_worker(work: Work) -> None:
    """Called once in every worker: it ends with the process that started it, and leaves Ctrl-C to that one."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent cannot tell its workers; they would wait for ever

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


_work: Work | None = None
_vocabs: Vocabs | None = None


def _get_work() -> Work:
    if _work is None:
        raise ValueError("`begin_worker` must be called first.")
    return _work


def _get_vocabs() -> Vocabs:
    global _vocabs
    if _vocabs is None:
        _vocabs = Vocabs.load(_get_work().folder / "vocab")
    return _vocabs


def scan_piece(piece: Piece, sentences: bool, pairs: bool) -> Scanned:
    """Hashes by which sentences are held out (of the first corpus) and duplicates found."""
    work = _get_work()
    corpus = work.corpora[piece.part]
    source, target = read_piece(piece, corpus)
    blank = np.fromiter((not a.strip() or not b.strip() for a, b in zip(source, target, strict=True)), bool)
    return Scanned(
        piece.number,
        piece.part,
        blank,
        hash_sentences(source) if sentences and piece.part == 0 else None,
        hash_pairs(source, target) if pairs else None,
        clean_pairs(source, target, work.rules, corpus.spec.source, corpus.spec.target) if pairs else None,
    )


def sample_piece(piece: Piece, marks: Marks, stride: int) -> tuple[int, int, list[str], list[str]]:
    """Every `stride`-th pair that is kept: number of the piece, stride, sources, targets."""
    source, target, reasons = _judge(piece, marks)
    if _get_work().turned:
        source, target = target, source
    taken = np.flatnonzero(reasons == KEPT)[::stride].tolist()
    return piece.number, stride, [source[i] for i in taken], [target[i] for i in taken]


def _judge(piece: Piece, marks: Marks) -> tuple[list[str], list[str], np.ndarray]:
    """The pairs of a piece, and for each the reason why it is left out, in the order of the path in memory."""
    work = _get_work()
    corpus = work.corpora[piece.part]
    source, target = read_piece(piece, corpus)
    if marks.reasons is not None:
        reasons = marks.reasons.copy()
    else:
        reasons = clean_pairs(source, target, work.rules, corpus.spec.source, corpus.spec.target)
    if piece.part == 0 and marks.border >= 0:
        reasons[(reasons != BLANK) & (hash_sentences(source) <= marks.border)] = HELD_OUT
    return source, target, reasons


def make_shard(piece: Piece, marks: Marks, recipe_sha256: str) -> None:
    """Writes the shard of a piece; its note, which says of which recipe it is, comes last."""
    work = _get_work()
    source, target, reasons = _judge(piece, marks)
    corpus = work.corpora[piece.part]
    kept = np.flatnonzero(reasons == KEPT)
    flat, lengths = _encode(*((target, source) if work.turned else (source, target)), kept, corpus.spec.tags)
    fits = (lengths <= LONGEST).all(axis=0)
    if not fits.all():
        reasons[kept[~fits]] = TOKENS
        sizes = lengths.sum(axis=0) - 1
        flat, lengths = flat[np.repeat(fits, sizes)], lengths[:, fits]
    sample = DropSample()
    sample.add(reasons, source, target, corpus=corpus.spec.name, start=piece.first)
    counts = np.bincount(reasons, minlength=len(ALL_REASONS)).tolist()
    note = {
        "recipe_sha256": recipe_sha256,
        "part": piece.part,
        "first": piece.first,
        "read": piece.count,
        "left_out": {name: n for name, n in zip(ALL_REASONS[1:], counts[1:], strict=True) if n},
        "dropped": sample.rows,
        "held_out": _list_held(source, target, reasons, marks),
        **_write(work.folder, piece.number, flat, lengths),
    }
    write_whole(shard_files(work.folder, piece.number)[2], json.dumps(note).encode())


def _list_held(
    source: list[str], target: list[str], reasons: np.ndarray, marks: Marks
) -> dict[str, list[tuple[str, str]]]:
    held: dict[str, list[tuple[str, str]]] = {"dev": [], "test": []}
    places = np.flatnonzero(reasons == HELD_OUT).tolist()
    for i, value in zip(places, hash_sentences([source[i] for i in places]).tolist(), strict=True):
        held["dev" if value <= marks.dev_border else "test"].append((source[i], target[i]))
    return held


def _encode(
    source: Sequence[str], target: Sequence[str], kept: np.ndarray, tags: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the kept pairs, source then target of each, and lengths `[2, pairs]` int64 as a plan asks for them."""
    vocabs = _get_vocabs()
    dtype = choose_dtype(len(vocabs.source), len(vocabs.target))
    before, eos = vocabs.source.tag_ids(tags) if tags else np.zeros(0, np.int32), np.array([EOS_ID], np.int32)
    flats, tables = [np.zeros(0, dtype)], [np.zeros((2, 0), np.int64)]
    for begin in range(0, len(kept), _PAIRS_AT_ONCE):
        taken = kept[begin : begin + _PAIRS_AT_ONCE].tolist()
        sources = vocabs.source.encode_many([source[i] for i in taken], threads=1)
        targets = vocabs.target.encode_many([target[i] for i in taken], threads=1)
        parts: list[np.ndarray] = []
        for a, b in zip(sources, targets, strict=True):
            parts += (before, a, eos, b) if len(a) else (eos, b)
        flats.append(np.concatenate(parts).astype(dtype))
        sizes = np.fromiter(map(len, sources), np.int64, len(taken))
        sizes += (sizes > 0) * len(before) + 1
        tables.append(np.stack([sizes, np.fromiter(map(len, targets), np.int64, len(taken)) + 1]))
    return np.concatenate(flats), np.concatenate(tables, axis=1)


def _write(folder: Path, number: int, flat: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Tokens and lengths get their names when they are whole and on the disk."""
    if not lengths.shape[1]:
        return {"pairs": 0, "bytes": 0, "sha256": "", "lengths_sha256": ""}
    tokens, table, _ = shard_files(folder, number)
    beside = [path.with_name(f".{path.name}.{secrets.token_hex(6)}") for path in (tokens, table)]
    try:
        write_tokens(beside[0], flat, lengths.sum(axis=0) - 1)
        with open(beside[1], "wb") as file:
            np.save(file, lengths.astype(np.uint16), allow_pickle=False)
        digests = [hash_file(path) for path in beside]
        for path, name in zip(beside, (tokens, table), strict=True):
            flush(path)
            os.replace(path, name)
    finally:
        for path in beside:
            path.unlink(missing_ok=True)
    size = tokens.stat().st_size
    return {"pairs": lengths.shape[1], "bytes": size, "sha256": digests[0], "lengths_sha256": digests[1]}
