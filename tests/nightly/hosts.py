"""K9: one of two hosts is killed or stopped. The other must end by itself and soon, and the run resume bit-equal."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from rows import Job, Row, start
from small_runs import LSTM, STEPS, Outcome, compare, list_steps, read_outcome, write_text

MOST_SECONDS = 120
TIMEOUT = 10  # seconds of silence after which a host is lost, in these runs
FATES = [(victim, number) for number in (signal.SIGKILL, signal.SIGSTOP) for victim in (0, 1)]


def lose_one_of_two(job: Job) -> list[Row]:
    """Loses each host in both ways in turn, at random steps."""
    flags = [flag for flag in LSTM if flag != "--config.parallel.data=1"]
    corpus = write_text(job.folder / "corpus", job.seed, dev=8, test=16)
    arguments = [*flags, *corpus, "--config.parallel.data=2", f"--host_timeout={TIMEOUT}"]
    alone = _finish(arguments, job.folder / "alone")
    draw, failed, seconds = random.Random(job.seed), [], []
    for n in range(job.count):
        victim, number = FATES[n % len(FATES)]
        root, step = job.folder / f"run{n}", 10 * draw.randint(1, STEPS // 10 - 3)
        problems, took = _lose(arguments, root, victim, number, step)
        seconds.append(took)
        if not problems:
            problems = compare(_finish(arguments, root), alone)
        told = f"host {victim}, {signal.Signals(number).name} after step {step}"
        job.tell(f"{n + 1} of {job.count}: {told}: the other ended in {took:.0f} s, {', '.join(problems) or 'equal'}")
        failed += [f"{told}: {', '.join(problems)}"] if problems else []
    passed = job.count - len(failed)
    return [
        Row(
            name="one of two hosts is lost",
            asked=f"{job.count} of {job.count} others end within {MOST_SECONDS} s, and resume bit-equal",
            got=f"{passed} of {job.count}, at most {max(seconds):.0f} s",
            passed=passed == job.count,
            details={"seconds": [round(took, 1) for took in seconds], "failures": failed},
        )
    ]


def _start(arguments: list[str], root: Path) -> list[subprocess.Popen]:
    """Two hosts with a device each; their output goes to files beside the run's folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = [f"--workdir={root}", f"--coordinator=127.0.0.1:{probe.getsockname()[1]}", "--hosts=2"]
    processes = []
    for host in (0, 1):
        with root.with_name(f"{root.name}.{host}.log").open("w") as log:
            processes.append(start([*arguments, *where, f"--host={host}"], log))
    return processes


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _finish(arguments: list[str], root: Path) -> Outcome:
    """Runs to the end.

    Raises:
        RuntimeError: it did not end well.
    """
    processes = _start(arguments, root)
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        _end(processes)
    if any(codes):
        said = [root.with_name(f"{root.name}.{host}.log").read_text()[-1000:] for host in (0, 1)]
        raise RuntimeError(f"{root} ended with exit codes {codes}: {said}")
    return read_outcome(root)


def _lose(arguments: list[str], root: Path, victim: int, number: int, step: int) -> tuple[list[str], float]:
    """Problems, and the seconds from the loss of a host until the other has ended."""
    processes = _start(arguments, root)
    other = processes[1 - victim]
    try:
        end = time.monotonic() + 900
        while max(list_steps(root), default=0) < step:
            if time.monotonic() > end or other.poll() is not None:
                return ["it does not get to that step"], 0.0
            time.sleep(0.01)
        processes[victim].send_signal(number)
        lost = time.monotonic()
        try:
            code = other.wait(timeout=2 * MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return ["the other goes on"], time.monotonic() - lost
        took = time.monotonic() - lost
        problems = [] if code else ["the other ended as if all were well"]
        return problems + (["too late"] if took > MOST_SECONDS else []), took
    finally:
        _end(processes)
