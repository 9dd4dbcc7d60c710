"""Recordings in, transcripts out: cut at silences, recognised in groups across files, told in order."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from seq2seq_jax.errors import UserError
from seq2seq_jax.serve.silences import Span, cut_at_silences
from seq2seq_jax.serve.subtitles import Segment

Recognise = Callable[[list[np.ndarray]], Sequence[Segment]]
"""Waveforms `[W]` of any lengths to as many results, whose times count from the waveform's own start."""

READ_AHEAD = 2
"""Recordings that are read while others are recognised."""


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        name: of its file.
        duration: of the whole recording in seconds.
        segments: in order; none where nobody speaks.
        error: why it could not be read; empty if it could.
    """

    name: str
    duration: float = 0.0
    segments: tuple[Segment, ...] = ()
    error: str = ""


@dataclasses.dataclass
class Tally:
    """What `transcribe_files` has done so far.

    Attributes:
        recordings: how many were given out, those that could not be read among them.
        failed: how many could not be read.
        pieces: how many waveforms were recognised.
        audio: seconds of sound, silences included.
        spent: seconds that it took.
    """

    recordings: int = 0
    failed: int = 0
    pieces: int = 0
    audio: float = 0.0
    spent: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of sound; below 1 is faster than it was said."""
        return self.spent / self.audio if self.audio else 0.0

    def summarise(self) -> str:
        """One line for people."""
        told = f"transcribed {self.recordings - self.failed} recordings, {self.audio:.1f} s of audio in {self.pieces}"
        speed = f"{self.spent:.1f} s: real-time factor {self.real_time_factor:.3f}"
        return f"{told} pieces, in {speed}" + (f"; {self.failed} could not be read" if self.failed else "")

    def check(self) -> None:
        """To be called when all output is written.

        Raises:
            UserError: a recording could not be read; exit code 2.
        """
        if self.failed:
            raise UserError(f"{self.failed} of {self.recordings} recordings could not be read: see the lines above.")


@dataclasses.dataclass
class _Pending:
    """A recording of which some pieces are not recognised yet."""

    name: str
    duration: float = 0.0
    pieces: int = 0
    error: str = ""
    segments: list[Segment] = dataclasses.field(default_factory=list)


def transcribe_files(
    names: Iterable[str],
    *,
    read: Callable[[str], np.ndarray],
    recognise: Recognise,
    rate: int,
    longest_s: float,
    tell: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
    most: int = 64,
    tally: Tally | None = None,
) -> Iterator[Transcript]:
    """Transcribes recordings, many pieces of many files at a time.

    A recording that cannot be read is told in one line and given out with its `error`; the others go on.

    Args:
      names: of the files.
      read: a name to its samples `[W]` at `rate`; raises UserError if it cannot. Runs in a thread of its own, ahead of
        what is recognised.
      recognise: up to `most` waveforms to as many results.
      rate: samples a second.
      longest_s: longer recordings are cut, by `cut_at_silences`; others are recognised whole, or not at all where
        nobody speaks.
      tell: receives lines for people.
      progress: is told how many more seconds of sound are done, as `Progress(total, unit="s of audio")`.
      most: waveforms that are recognised together at most.
      tally: is kept up to date.

    Yields:
      One transcript for each name, in order, as soon as all of it and of those before it is done.
    """
    tally = Tally() if tally is None else tally
    pending: collections.deque[_Pending] = collections.deque()
    waiting: list[tuple[_Pending, float, np.ndarray]] = []
    count = _count_seconds(progress)
    started = time.monotonic()

    def work(group: list[tuple[_Pending, float, np.ndarray]]) -> None:
        results = recognise([samples for _, _, samples in group])
        for (file, start, samples), result in zip(group, results, strict=True):
            moved = result.move(start)
            file.segments.append(dataclasses.replace(moved, start=start, end=start + len(samples) / rate))
            count(len(samples) / rate)
        tally.pieces += len(group)

    def finish() -> Iterator[Transcript]:
        while pending and len(pending[0].segments) == pending[0].pieces:
            file = pending.popleft()
            tally.recordings += 1
            tally.failed += bool(file.error)
            tally.audio += file.duration
            tally.spent = time.monotonic() - started
            yield Transcript(file.name, file.duration, tuple(file.segments), file.error)

    for name, samples, error in _read_ahead(names, read):
        if samples is None:
            tell(error)
            pending.append(_Pending(name, error=error))
        else:
            spans = cut_recording(samples, rate=rate, longest_s=longest_s)
            file = _Pending(name, duration=len(samples) / rate, pieces=len(spans))
            pending.append(file)
            waiting += [(file, start / rate, samples[start:end]) for start, end in spans]
            count((len(samples) - sum(end - start for start, end in spans)) / rate)
        while len(waiting) >= most:
            group, waiting = waiting[:most], waiting[most:]
            work(group)
        yield from finish()
    if waiting:
        work(waiting)
    yield from finish()


def cut_recording(samples: np.ndarray, *, rate: int, longest_s: float) -> list[Span]:
    """First sample and the one after the last of each piece: a short recording is one, or none where nobody speaks."""
    spans = cut_at_silences(samples, rate=rate, longest_s=longest_s)
    return [(0, len(samples))] if spans and len(samples) <= longest_s * rate else spans


def _read_ahead(
    names: Iterable[str], read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """Name, samples and "", or name, None and why it cannot be read."""

    def try_read(name: str) -> tuple[str, np.ndarray | None, str]:
        try:
            return name, read(name), ""
        except UserError as error:
            return name, None, str(error)

    left = iter(names)
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="read recordings") as pool:
        begun = collections.deque(pool.submit(try_read, name) for name in itertools.islice(left, READ_AHEAD))
        try:
            while begun:
                done = begun.popleft().result()
                begun.extend(pool.submit(try_read, name) for name in itertools.islice(left, 1))
                yield done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _count_seconds(progress: Callable[[int], None] | None) -> Callable[[float], None]:
    """Whole seconds for a progress that counts in ones; what is left over waits for more."""
    kept = 0.0

    def count(seconds: float) -> None:
        nonlocal kept
        kept += seconds
        whole = int(kept + 1e-6)
        if progress is not None and whole:
            kept -= whole
            progress(whole)

    return count
