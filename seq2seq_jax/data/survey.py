"""What only a look at all corpora shows, before the first shard is made: what is held out, duplicates, a sample."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seq2seq_jax.data.clean import DUPLICATE, KEPT, CleanRules, mark_duplicates
from seq2seq_jax.data.shard_worker import Marks, Scanned, sample_piece, scan_piece
from seq2seq_jax.data.sources import ParallelText, find_borders, make_text
from seq2seq_jax.data.streams import Corpus, stream
from seq2seq_jax.data.worker_pool import Call, PoolProgress, WorkerPool
from seq2seq_jax.errors import UserError

SAMPLED_PAIRS = 1_000_000
"""Most pairs that a vocabulary is made of: two million lines."""


@dataclass(frozen=True)
class Order:
    """What is to be prepared, and by whom.

    Attributes:
        folder: where it goes.
        corpora: in the order of data.train.
        rules: which pairs to leave out.
        held_out_pairs: most pairs of dev and of test that are held out of the first corpus.
        hold_dev, hold_test: whether they are.
        turned: sides change places once they are judged.
        needs_sample: the vocabularies are made of the text.
        shard_pairs: pairs of a shard, before any is left out.
        workers: processes.
        host, hosts: this one makes the shards host, host + hosts, ...
        tell: says a line to people.
    """

    folder: Path
    corpora: tuple[Corpus, ...]
    rules: CleanRules
    held_out_pairs: int
    hold_dev: bool
    hold_test: bool
    turned: bool
    needs_sample: bool
    shard_pairs: int
    workers: int
    host: int
    hosts: int
    tell: Callable[[str], None]


@dataclass
class Findings:
    """What a scan of all corpora has found: the marks of every piece.

    Attributes:
        dev_border, test_border: see `shard_worker.Marks`.
        reasons: number of a piece → why its pairs are left out; none where duplicates stay.
    """

    dev_border: int = -1
    test_border: int = -1
    reasons: dict[int, np.ndarray] = field(default_factory=dict)

    def marks(self, number: int) -> Marks:
        """Those of one piece."""
        return Marks(self.reasons.get(number), self.dev_border, self.test_border)

    def save(self, path: Path, key: str) -> None:
        """Keeps them for a preparation that goes on; `key` says of what they are."""
        borders = np.array([str(self.dev_border), str(self.test_border)])
        part = path.with_name(f".{path.name}.part")
        with open(part, "wb") as file:
            arrays = {str(number): reasons for number, reasons in self.reasons.items()}
            np.savez(file, key=np.array(key), borders=borders, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path, key: str) -> Findings | None:
        """What `save` kept under this key; None where there is nothing, or it is damaged: a scan makes it again."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
                if str(kept["key"]) != key:
                    return None
                reasons = {int(name): kept[name] for name in kept.files if name.isdigit()}
                dev, test = (int(border) for border in kept["borders"])
                return cls(dev, test, reasons)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            return None


def scan(order: Order, key: str, pool: WorkerPool) -> Findings:
    """Finds the borders of what is held out, and duplicates.

    Args:
        order: what is prepared.
        key: digest of it.
        pool: the workers.

    Raises:
        UserError: a text cannot be read, or has too few sentences to hold any out.
    """
    sentences, pairs = order.hold_dev or order.hold_test, order.rules.duplicates
    if not sentences and not pairs:
        return Findings()
    cache = order.folder / f"scan-{order.host}.npz"
    if known := Findings.load(cache, key):
        return known
    progress = PoolProgress("scan", order.corpora, order.tell)
    found: dict[int, Scanned] = {}
    pieces = stream(order.corpora, order.shard_pairs, {})
    for piece, scanned in pool.run((scan_piece, (piece, sentences, pairs)) for piece in pieces):
        found[piece.number] = scanned
        progress.finish(piece)
    in_order = [found[number] for number in sorted(found)]
    findings = _find_borders(order, in_order) if sentences else Findings()
    if pairs:
        findings.reasons = _find_again(in_order, findings)
    findings.save(cache, key)
    return findings


def _find_borders(order: Order, pieces: list[Scanned]) -> Findings:
    """The hashes up to which sentences of the first corpus are held out; see `sources.hold_out`."""
    ranked = np.sort(np.concatenate([p.sentences[~p.blank] for p in pieces if p.sentences is not None]))
    pairs = min(order.held_out_pairs, max(1, len(ranked) // 20))
    dev, test = pairs * order.hold_dev, pairs * order.hold_test
    name = order.corpora[0].spec.name
    if 2 * (dev + test) > len(ranked):
        raise UserError(f"{name}: cannot hold out {dev} dev and {test} test pairs of {len(ranked)}; give files.")
    dev_end, test_end = find_borders(ranked, dev=dev, test=test)
    if test_end == len(ranked) or (test and test_end == dev_end):
        raise UserError(f"{name}: too few distinct source sentences to hold out dev and test; give files.")
    return Findings(int(ranked[dev_end - 1]) if dev else -1, int(ranked[test_end - 1]) if test else -1)


def _find_again(pieces: list[Scanned], findings: Findings) -> dict[int, np.ndarray]:
    """Why the pairs of each piece are left out; only those that are else kept count as duplicates, or as seen."""
    border = findings.marks(0).border
    judged = [
        (piece, piece.pairs, piece.reasons.copy())
        for piece in pieces
        if piece.pairs is not None and piece.reasons is not None
    ]
    hashes, counted = [np.zeros(0, np.uint64)], []
    for piece, pairs, reasons in judged:
        counts = reasons == KEPT
        if piece.sentences is not None and border >= 0:
            counts &= piece.sentences > border
        hashes.append(pairs[counts])
        counted.append(counts)
    repeated = np.split(mark_duplicates(np.concatenate(hashes)), np.cumsum([len(part) for part in hashes])[:-1])
    for (_, _, reasons), counts, marks in zip(judged, counted, repeated[1:], strict=True):
        reasons[np.flatnonzero(counts)[marks]] = DUPLICATE
    return {piece.number: reasons for piece, _, reasons in judged}


def sample(order: Order, findings: Findings, pool: WorkerPool) -> ParallelText:
    """Pairs to make a vocabulary of: all that are kept, or of many every second, fourth, ... of each piece."""
    progress = PoolProgress("sample", order.corpora, order.tell)
    found: dict[int, tuple[int, list[str], list[str]]] = {}
    stride = 1

    def call() -> Iterator[Call]:
        for piece in stream(order.corpora, order.shard_pairs, {}):
            yield sample_piece, (piece, findings.marks(piece.number), stride)

    for piece, (number, used, source, target) in pool.run(call()):
        found[number] = (used, source, target)
        while True:
            # Where pieces fell into step earlier than others does not matter: every stride divides the next.
            found = {n: (stride, a[:: stride // was], b[:: stride // was]) for n, (was, a, b) in found.items()}
            if sum(len(a) for _, a, _ in found.values()) <= SAMPLED_PAIRS:
                break
            stride *= 2
        progress.finish(piece)
    pieces = [found[number] for number in sorted(found)]
    source = [line for _, lines, _ in pieces for line in lines]
    target = [line for _, _, lines in pieces for line in lines]
    return make_text(source, target, name=", ".join(corpus.spec.name for corpus in order.corpora))
