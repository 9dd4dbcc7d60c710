"""K1: SIGKILLs over whole runs. Every run is started again with the same command until it ends by itself.

Some kills are aimed at a phase, the others fall anywhere; what they met is read from what the run left. What comes of a
run that was killed again and again must equal one left alone: parameters, optimiser, averages and counters bit for bit,
and every score and output.
"""

from __future__ import annotations

import collections
import random
import re
import shutil
import signal
import time
from pathlib import Path

from nursery import CACHE, Nursery
from rows import Job, Row
from small_runs import MODELS, Running, compare, finish, list_steps, read_outcome

AIMS = {"start-up": 0.1, "compilation": 0.1, "save": 0.2, "evaluation": 0.1, "end": 0.1, "anywhere": 0.4}
"""The share of the kills that is aimed at each phase."""


def kill_lstm(job: Job) -> list[Row]:
    """Kills runs of an LSTM."""
    return [_kill(job, "LSTM")]


def kill_transformer(job: Job) -> list[Row]:
    """Kills runs of a Transformer."""
    return [_kill(job, "Transformer")]


def kill_speech(job: Job) -> list[Row]:
    """Kills runs of a recogniser."""
    return [_kill(job, "CTC on speech")]


class Durations:
    """Seconds of the phases of a run left alone."""

    def __init__(self, running: Running):
        running.wait_until(running.is_training)
        self.start = time.monotonic() - running.began
        running.wait_until(running.is_compiled)
        self.compilation = time.monotonic() - running.began - self.start
        running.wait_until(running.is_testing)
        self.training = time.monotonic() - running.began - self.start - self.compilation
        if code := running.end():
            raise RuntimeError(f"a run left alone ended with exit code {code}: {running.said()[-2000:]}")
        self.whole = time.monotonic() - running.began
        self.end = self.whole - self.start - self.compilation - self.training


def _kill(job: Job, name: str) -> Row:
    with Nursery() as nursery:
        return _kill_in(nursery, job, name)


def _kill_in(nursery: Nursery, job: Job, name: str) -> Row:
    flags, write_corpus = MODELS[name]
    arguments = (*flags, *write_corpus(job.folder / "corpus", job.seed))
    cold = Durations(Running(nursery, arguments, job.folder / "cold", **{CACHE: str(job.folder / "compiled")}))
    finish(nursery, arguments, job.folder / "warm")
    took = Durations(Running(nursery, arguments, job.folder / "alone"))
    alone = read_outcome(job.folder / "alone")
    if differing := compare(read_outcome(job.folder / "warm"), alone):
        raise RuntimeError(f"two runs left alone differ: {', '.join(differing)}")
    job.tell(f"a run left alone takes {took.whole:.1f} s; it starts in {took.start:.1f} s")
    aims = _draw_aims(job)
    draw, began, deaths = random.Random(job.seed), time.monotonic(), []
    runs, kills, unequal, failed = [job.folder / "run0"], [], [], []
    while len(deaths) < job.count:
        root, aim = runs[-1], aims[len(deaths)]
        more = {CACHE: str(job.folder / f"empty{len(deaths)}")} if aim == "compilation" else {}
        running = Running(nursery, arguments, root, **more)
        _wait(running, aim, draw, took, cold)
        newest = max(list_steps(root), default=0)
        running.process.send_signal(signal.SIGKILL)
        code = running.end()
        if code == -signal.SIGKILL:
            deaths.append(_name_phase(running))
            kills.append(root)
            if max(list_steps(root), default=0) < newest:
                failed.append(f"{root.name}: a checkpoint was lost")
            if len(deaths) % 10 == 0 or len(deaths) == job.count:
                left = (time.monotonic() - began) / len(deaths) * (job.count - len(deaths))
                job.tell(f"{len(deaths)} of {job.count} kills, {len(runs)} runs, {left / 60:.0f} min to go")
        else:
            _close(root, code, running, alone, unequal, failed)
            runs.append(root.with_name(f"run{len(runs)}"))
        for path in job.folder.glob("empty*"):
            shutil.rmtree(path, ignore_errors=True)
    if kills[-1] == runs[-1]:
        running = Running(nursery, arguments, runs[-1])
        _close(runs[-1], running.end(), running, alone, unequal, failed)
    equal = sum(root not in unequal for root in kills)
    phases = dict(collections.Counter(deaths).most_common())
    seconds = (time.monotonic() - began) / job.count
    return Row(
        name=f"SIGKILLs over whole runs, {name}",
        asked=f"{job.count} of {job.count} bit-equal, no manual step",
        got=f"{equal} of {job.count} bit-equal ({', '.join(f'{phase} {n}' for phase, n in phases.items())})",
        passed=equal == job.count and not failed,
        details={"phases": phases, "runs": len(set(kills)), "seconds_a_kill": round(seconds, 1), "failures": failed},
    )


def _draw_aims(job: Job) -> list[str]:
    """As many of each as its share asks for, in a random order."""
    aims = [aim for aim, share in AIMS.items() for _ in range(round(share * job.count))]
    aims = (aims + ["anywhere"] * job.count)[: job.count]
    random.Random(job.seed).shuffle(aims)
    return aims


def _wait(running: Running, aim: str, draw: random.Random, took: Durations, cold: Durations) -> None:
    """Waits until the moment of the kill, or until the run has ended."""
    if aim == "anywhere":
        running.sleep(draw.uniform(0.02, 1.0) * took.whole)
    elif aim == "start-up":
        running.sleep(draw.uniform(0.02, 1.0) * took.start)
    elif aim == "compilation":
        running.wait_until(running.is_training)
        running.sleep(draw.uniform(0.0, 0.9) * cold.compilation)
    elif aim == "end":
        running.wait_until(running.is_testing)
        running.sleep(draw.uniform(0.0, 1.0) * took.end)
    else:
        running.wait_until(running.is_compiled)
        running.sleep(draw.uniform(0.0, 0.8) * took.training)
        running.wait_until(running.is_saving if aim == "save" else running.is_evaluating)
        running.sleep(draw.uniform(0.0, 0.02))


def _name_phase(running: Running) -> str:
    """What the kill met, by what the process has said and left."""
    if (running.root / "results.json").exists():
        return "shutdown"
    if running.is_testing():
        return "last evaluation"
    if not running.is_training():
        return "start-up"
    if running.is_saving():
        return "save"
    if not running.is_compiled():
        return "compilation"
    return "evaluation" if running.is_evaluating() else "step"


def _close(root: Path, code: int, running: Running, alone: object, unequal: list[Path], failed: list[str]) -> None:
    """Compares a run that has come to its end."""
    differing = ["exit code"] if code else compare(read_outcome(root), alone)
    if re.search(r"Traceback|is damaged", running.said()):
        differing.append("messages")
    if differing:
        unequal.append(root)
        last = (running.said().strip().splitlines() or [""])[-1]
        failed.append(f"{root.name}: {', '.join(differing)} (exit code {code}; {last[:200]})")
    else:
        shutil.rmtree(root)
