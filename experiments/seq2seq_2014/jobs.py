"""Processes of a study: several at a time, each with its own cores, gone on with after a kill, with the time left.

A job is done when its file is there and no older than what it is made of; the file is written last, as one step. So a
study that was killed at any point goes on with what is missing, and makes anew what belongs to a run that was trained
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from seq2seq_jax.errors import EXIT_USER
from seq2seq_jax.train.writers import format_duration, write_json
from seq2seq_jax.workdir import hold_lock

SHOWN = 4
"""Lines of a failed job's log that people are shown."""

PAUSE = 60.0
"""Seconds between lines about what is running."""

LOOK = 0.1
"""Seconds between looks at the processes."""

LOCK = "lock"
"""File in the folder of a study."""

PATIENCE = 60.0
"""Seconds that a process has to save its work and end."""


def is_newer(path: Path, made_of: Iterable[Path]) -> bool:
    """Whether a file is there and no older than each of those that it is made of, which must be there, too."""
    try:
        made = path.stat().st_mtime_ns
        return all(made >= each.stat().st_mtime_ns for each in made_of)
    except (FileNotFoundError, NotADirectoryError):
        return False


@dataclasses.dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: of this job alone.
        kind: jobs of one kind take about as long.
        command: program and arguments.
        makes: the file by which it is known to be done.
        log: receives what the process tells; begun anew every time.
        guess: seconds, for as long as no job of its kind has finished.
        needs: names of jobs that have to be done before.
        made_of: files that what it makes must not be older than.
        also: other files that it leaves, before `makes`.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    makes: Path
    log: Path
    guess: float
    needs: tuple[str, ...] = ()
    made_of: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        """Whether its files are there, made of what is there now."""
        return all(is_newer(path, self.made_of) for path in (self.makes, *self.also))


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a job is not done: in words, and the exit code of its process (0: it was not begun)."""

    job: Job
    problem: str
    code: int


class Times:
    """How long finished jobs took, kept in a file, and how long others will take by that."""

    def __init__(self, path: Path, known: Mapping[str, float] | None = None):
        """Reads the file, if there is one.

        Args:
            path: the file.
            known: seconds that are known better: a training's own count has the parts before an interruption.
        """
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._path, self._seconds = path, {**found, **(known or {})}

    def add(self, job: Job, seconds: float) -> None:
        """Notes and keeps the time of a job that is done."""
        self._seconds[job.name] = round(seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._seconds)

    def estimate(self, jobs: Sequence[Job]) -> dict[str, float]:
        """Seconds of each job: the mean of its kind; else its guess, scaled by how far off other guesses were."""
        known = [job for job in jobs if job.name in self._seconds]
        kinds: dict[str, list[float]] = {}
        for job in known:
            kinds.setdefault(job.kind, []).append(self._seconds[job.name])
        guessed = sum(job.guess for job in known)
        scale = sum(self._seconds[job.name] for job in known) / guessed if guessed else 1.0
        return {
            job.name: sum(kinds[job.kind]) / len(kinds[job.kind]) if job.kind in kinds else job.guess * scale
            for job in jobs
        }


def share_cores(workers: int) -> list[set[int] | None]:
    """As many cores for every worker, where the system can bind processes to cores (Linux); else None for each."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[number::workers]) or set(cores) for number in range(workers)]


@contextlib.contextmanager
def hold(out: Path) -> Iterator[int]:
    """Keeps the folder of a study for one `run.py`; gives the descriptor of its lock.

    Processes that inherit the descriptor hold the folder, too: those of a `run.py` that was killed may still write.

    Raises:
        UserError: the folder is held by others, or cannot be written to.
    """
    busy = (
        "another run.py, or a process that one has left behind, is at work in this folder; wait for it, end it "
        f"(`fuser {out / LOCK}` tells its number), or choose another folder."
    )
    with hold_lock(out, flag="--out", busy=busy, name=LOCK) as handle:
        yield handle


@dataclasses.dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    worker: int
    started: float


class Pool:
    """Runs jobs, as soon as what they need is done, and tells how far it is."""

    def __init__(
        self, jobs: Sequence[Job], *, workers: int, times: Times, folder: Path, inherited: tuple[int, ...] = ()
    ):
        """Takes the jobs of a study.

        Args:
            jobs: in the order in which they are to begin.
            workers: processes at a time.
            times: how long jobs took.
            folder: processes start here.
            inherited: descriptors that processes keep open, see `hold`.
        """
        names = [job.name for job in jobs]
        unknown = {need for job in jobs for need in job.needs} - set(names)
        if len(set(names)) < len(names) or unknown:
            raise ValueError(f"jobs must have names of their own, and need none but each other: {sorted(unknown)}.")
        self._jobs, self._times, self._folder, self._inherited = list(jobs), times, folder, inherited
        self._cores = share_cores(workers)
        self._running: list[_Running] = []
        self._failures: dict[str, Failure] = {}
        self._done: set[str] = set()
        for job in jobs:
            if job.done and self._done.issuperset(job.needs):
                self._done.add(job.name)
        self._waiting = [job for job in jobs if job.name not in self._done]

    def run(self) -> list[Failure]:
        """Runs everything that is missing; returns what could not be done. Ends its processes if it is stopped."""
        told = time.monotonic()
        self._say(f"{len(self._done)} of {len(self._jobs)} jobs were finished before")
        try:
            while self._waiting or self._running:
                self._start_ready()
                self._collect()
                if time.monotonic() - told > PAUSE and self._running:
                    told = time.monotonic()
                    self._say("running: " + ", ".join(each.job.name for each in self._running))
                time.sleep(LOOK)
        finally:
            self._end_processes()
        return list(self._failures.values())

    def _start_ready(self) -> None:
        """Gives free workers the first jobs that can begin; leaves out those that never will."""
        for job in list(self._waiting):
            lost = [need for need in job.needs if need in self._failures]
            if self._done.union(lost).issuperset(job.needs) and job.done:  # what it needs has left its files alone
                self._waiting.remove(job)
                self._done.add(job.name)
            elif lost and not job.done:
                self._waiting.remove(job)
                self._failures[job.name] = Failure(job, f"needs {', '.join(lost)}", 0)
        free = [n for n in range(len(self._cores)) if n not in {each.worker for each in self._running}]
        for job in [job for job in self._waiting if self._done.issuperset(job.needs)][: len(free)]:
            self._waiting.remove(job)
            self._start(job, free.pop(0))

    def _start(self, job: Job, worker: int) -> None:
        for path in (job.log, job.makes):
            path.parent.mkdir(parents=True, exist_ok=True)
        # On an accelerator, one process would else take all of its memory from the other.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        with job.log.open("wb") as log:
            process = subprocess.Popen(
                job.command,
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self._inherited,
            )
        cores = self._cores[worker]
        if cores is not None:
            try:
                os.sched_setaffinity(process.pid, cores)  # before it has threads, which inherit it
            except ProcessLookupError:  # has ended already: `_collect` tells
                pass
        self._running.append(_Running(job, process, worker, time.monotonic()))

    def _collect(self) -> None:
        """Tells of the processes that have ended."""
        for each in list(self._running):
            code = each.process.poll()
            if code is None:
                continue
            self._running.remove(each)
            took = time.monotonic() - each.started
            if code == 0 and each.job.done:
                self._done.add(each.job.name)
                self._times.add(each.job, took)
                self._say(f"{each.job.name}: {format_duration(took)}")
            else:
                problem = f"exit code {code}" if code else f"left no new {each.job.makes}"
                self._failures[each.job.name] = Failure(each.job, problem, code or 1)
                self._say(f"{each.job.name}: FAILED, {problem}; the end of {each.job.log}:\n{read_end(each.job.log)}")

    def _say(self, text: str) -> None:
        head = f"[{len(self._done)}/{len(self._jobs)}]"
        left = "" if not (self._waiting or self._running) else f"; eta {format_duration(self.tell_left())}"
        print(f"{head} {text}{left}" if "\n" not in text else f"{head} {text}", file=sys.stderr, flush=True)

    def tell_left(self) -> float:
        """Seconds until all is done, if the workers are busy until then."""
        seconds, now = self._times.estimate(self._jobs), time.monotonic()
        left = [max(seconds[each.job.name] - (now - each.started), 0.0) for each in self._running]
        left += [seconds[job.name] for job in self._waiting]
        return max(sum(left) / len(self._cores), max(left, default=0.0))

    def _end_processes(self) -> None:
        """Ends what still runs: trainings save their state when they are told to end."""
        for each in self._running:
            each.process.terminate()
        for each in self._running:
            try:
                each.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()


def read_end(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-SHOWN:]
    return "\n".join(f"    {line[:400]}" for line in lines) or "    (nothing)"


def sum_up(failures: Sequence[Failure]) -> int:
    """The exit code of a study: 0, or 2 where a job ended by what a user can mend, or 1."""
    codes = {failure.code for failure in failures if failure.code}
    return EXIT_USER if EXIT_USER in codes else 1 if failures else 0
