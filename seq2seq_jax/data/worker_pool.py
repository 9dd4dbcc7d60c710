"""The worker processes of --mode=prepare, and what people see of their progress."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from seq2seq_jax.data.shard_worker import Work, begin_worker
from seq2seq_jax.data.streams import Corpus, Piece
from seq2seq_jax.errors import UserError

_TELL_EVERY = 5.0  # seconds
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class WorkerPool:
    """Worker processes; results come as they are ready."""

    def __init__(self, workers: int, work: Work) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._most = workers + 1  # one piece waits, read already
        self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=begin_worker, initargs=(work,))

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Piece, Any]]:
        """Runs calls, whose first argument is a piece, few at a time, so that few pieces are in memory.

        Yields:
            Pieces without their text, and what was made of each, as they are ready.

        Raises:
            UserError: a call raised it, or a worker was killed.
        """
        pending: dict[Future[Any], Piece] = {}
        try:
            for function, args in calls:
                pending[self._pool.submit(function, *args)] = dataclasses.replace(args[0], sides=())
                if len(pending) >= self._most:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    yield from ((pending.pop(future), future.result()) for future in done)
            yield from ((piece, future.result()) for future, piece in pending.items())
        except BrokenProcessPool as error:
            raise UserError(
                "--mode=prepare: a worker process was killed, by the system where memory ran out; use fewer "
                "--workers or a smaller config.data.shard_pairs. Finished shards are kept."
            ) from error

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class PoolProgress:
    """A line every few seconds: pairs done, share, rate, and the time that is left."""

    def __init__(self, what: str, corpora: Sequence[Corpus], tell: Callable[[str], None]) -> None:
        weights = [corpus.weight for corpus in corpora]
        self._what, self._tell = what, tell
        self._before = [sum(weights[:part]) for part in range(len(weights))]
        self._total = max(sum(weights), 1)
        self._started = self._told = time.monotonic()
        self._first: float | None = None  # share that was done when the first piece was worked on
        self._share, self._pairs = 0.0, 0

    def skip(self, piece: Piece) -> None:
        """A piece that needs no work: it counts neither for the rate nor for the time that is left."""
        self._share = self._share_of(piece)

    def finish(self, piece: Piece) -> None:
        """A piece is done."""
        if self._first is None:
            self._first = self._share
        self._pairs += piece.count
        self._share = max(self._share, self._share_of(piece))
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY:
            self._told, seconds = now, now - self._started
            left = seconds * (1 - self._share) / max(self._share - self._first, 1e-9)
            rate = f"{self._pairs / seconds:,.0f} pairs/s"
            self._tell(f"prepare: {self._what} {self._share:.1%}, {self._pairs:,} pairs, {rate}, eta {left:.0f}s")

    def _share_of(self, piece: Piece) -> float:
        return min(1.0, (self._before[piece.part] + piece.done) / self._total)
