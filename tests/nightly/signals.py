"""K3: SIGTERMs in five phases of a run, which must stop with a checkpoint of the step that it is at, and say so.

The steps that were taken are read from metrics.jsonl, which has a line for each; the start after the signal must go on
from that step, and what comes of the run must equal one left alone.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from kills import Durations
from nursery import CACHE, Nursery
from rows import Job, Row
from small_runs import (
    EVALUATE_EVERY,
    LSTM,
    STEPS,
    Outcome,
    Running,
    compare,
    finish,
    list_steps,
    read_metrics,
    read_outcome,
    write_text,
)

PHASES = ("step", "evaluation", "last evaluation", "compilation", "data")
FLAGS = ("--config.train.log_every=1", "--config.train.save_every=1000")  # no save but those of signals and evaluations
FAILPOINT = "SEQ2SEQ_JAX_FAILPOINT"


def stop_by_sigterm(job: Job) -> list[Row]:
    """Stops runs of an LSTM again and again, as often in each phase."""
    with Nursery() as nursery:
        return [_Stops(nursery, job).take()]


class _Stops:
    """What was seen of the signals so far."""

    def __init__(self, nursery: Nursery, job: Job):
        self.nursery, self.job, self.draw = nursery, job, random.Random(job.seed)
        self.arguments = (*LSTM, *FLAGS, *write_text(job.folder / "corpus", job.seed, dev=200, test=200))
        cold = {CACHE: str(job.folder / "compiled")}
        self.cold = Durations(Running(nursery, self.arguments, job.folder / "cold", **cold))
        finish(nursery, self.arguments, job.folder / "warm")
        self.took = Durations(Running(nursery, self.arguments, job.folder / "alone"))
        self.alone: Outcome = read_outcome(job.folder / "alone")
        self.latencies: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.unsaved: list[str] = []
        self.unresumed: list[str] = []
        self.unequal: list[str] = []
        self.expected: int | None = None  # the step that the next start must go on from
        self.runs = 0

    def take(self) -> Row:
        """Sends the signals and says what came of them."""
        phases = [PHASES[n % len(PHASES)] for n in range(self.job.count)]
        self.draw.shuffle(phases)
        began, done = time.monotonic(), 0
        while done < len(phases):
            done += self._stop(self.job.folder / f"run{self.runs}", phases[done])
            if done and done % 10 == 0:
                left = (time.monotonic() - began) / done * (len(phases) - done)
                self.job.tell(f"{done} of {len(phases)} signals, {left / 60:.0f} min to go at most")
        if self.expected is not None:
            running = Running(self.nursery, self.arguments, self.job.folder / f"run{self.runs}")
            self._finish(running)
        return self._sum_up()

    def _stop(self, root: Path, phase: str) -> bool:
        """One signal; False where the run ended before it could meet its phase."""
        more: dict[str, str] = {}
        newest = max(list_steps(root), default=0)
        if phase == "compilation":
            more[CACHE] = str(self.job.folder / "empty")
            shutil.rmtree(self.job.folder / "empty", ignore_errors=True)
        elif phase == "data":
            more[FAILPOINT] = f"batch:{newest + 6}:pause"
        running = Running(self.nursery, self.arguments, root, **more)
        met = self._wait(running, phase, waiting_for=newest + 6)
        sent = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        code = running.end()
        latency = time.monotonic() - sent
        if (root / "results.json").exists():  # it had come to its end
            self._finish(running)
            return False
        self._check_start(running)
        problem = self._find_problem(running, code)
        if problem:
            self.unsaved.append(f"{phase}: {problem}")
        if not met or (phase == "evaluation" and not problem and not _was_cut(root)):
            return False  # it fell elsewhere
        self.latencies[phase].append(latency)
        return True

    def _wait(self, running: Running, phase: str, *, waiting_for: int) -> bool:
        """Waits for the moment of the signal; whether it came before the run's end."""
        if not running.wait_until(running.is_training):
            return False
        if phase == "compilation":
            running.sleep(self.draw.uniform(0.0, 0.8) * self.cold.compilation)
            return not (running.is_compiled() or running.is_testing() or running.has_ended())
        if phase == "last evaluation":
            met = running.wait_until(running.is_testing)
            running.sleep(self.draw.uniform(0.0, 0.7) * self.took.end)
            return met and not running.has_ended()
        if phase == "data":
            met = running.wait_until(lambda: _last_step(running.root) == waiting_for)
            running.sleep(self.draw.uniform(0.2, 1.0))
            return met
        running.wait_until(running.is_compiled)
        running.sleep(self.draw.uniform(0.0, 0.7) * self.took.training)
        met = running.wait_until(running.is_evaluating) if phase == "evaluation" else not running.is_testing()
        running.sleep(self.draw.uniform(0.0, 0.1) if phase == "evaluation" else 0.0)
        return met and not running.has_ended()

    def _check_start(self, running: Running) -> None:
        """The run must go on from where the signal before stopped it."""
        if self.expected is not None and f"resuming at step {self.expected} " not in running.said():
            self.unresumed.append(f"{running.root.name}: not from step {self.expected}")
        self.expected = max(list_steps(running.root), default=None)

    def _find_problem(self, running: Running, code: int) -> str:
        """What is wrong with how a run stopped; nothing if it has saved the step that it was at."""
        said = running.said()
        told = re.search(r"stopped by a signal (?:at|during the evaluation of) step (\d+), which is saved", said)
        step = int(told[1]) if told else STEPS if "during the evaluation on test" in said else None
        newest, taken = max(list_steps(running.root), default=None), _last_step(running.root)
        whole = (running.root / "checkpoints" / str(newest) / "manifest.json").exists()
        if code == 143 and step is not None and step == newest == taken and whole:
            return ""
        last = (said.strip().splitlines() or [""])[-1][:200]
        return f"exit code {code}, said {step}, saved {newest}, took {taken}, whole {whole}: {last}"

    def _finish(self, running: Running) -> None:
        """Compares a run that has come to its end; the next one starts anew."""
        code = running.end()
        self._check_start(running)
        at_exit = code == -signal.SIGTERM  # Python's own last moments, when nothing is left to be saved
        kept = {"steps", "left_over"}  # the signals' own checkpoints are kept a while
        differing = {"exit code"} if code and not at_exit else set()
        differing = differing or set(compare(read_outcome(running.root), self.alone)) - kept
        if differing:
            self.unequal.append(f"{running.root.name}: {', '.join(differing)}")
        self.expected, self.runs = None, self.runs + 1

    def _sum_up(self) -> Row:
        count = self.job.count
        saved, resumed = count - len(self.unsaved), count - len(self.unresumed)
        every = [latency for found in self.latencies.values() for latency in found]
        median = f"{statistics.median(every):.1f}"
        medians = {phase: round(statistics.median(found), 2) for phase, found in self.latencies.items() if found}
        return Row(
            name="SIGTERMs in five phases of a run",
            asked=f"{_share(count)} of {count} with a checkpoint of the current step, {count} of {count} resumable",
            got=f"{saved} of {count} saved, {resumed} of {count} resumed, {median} s in the median",
            passed=saved >= _share(count) and resumed == count and not self.unequal,
            details={
                "signals": {phase: len(found) for phase, found in self.latencies.items()},
                "median_seconds": medians,
                "most_seconds": round(max(every), 2),
                "runs": self.runs,
                "failures": [*self.unsaved, *self.unresumed, *self.unequal],
            },
        )


def _share(count: int) -> int:
    return count - count // 100


def _last_step(root: Path) -> int | None:
    """The last step that was taken, by the log."""
    steps: Sequence[int] = [record["step"] for record in read_metrics(root) if "loss" in record]
    return max(steps, default=None)


def _was_cut(root: Path) -> bool:
    """Whether the newest checkpoint waits for its evaluation."""
    step = max(list_steps(root))
    manifest = json.loads((root / "checkpoints" / str(step) / "manifest.json").read_text())
    return step % EVALUATE_EVERY == 0 and not manifest["meta"]["evaluated"]
