"""Runs pytest in forks of a process that has imported what takes long to import, but no part of the package.

It reads one JSON object a line and answers each with one:

    {"arguments": [...], "seconds": limit of each test, "output": file}
    {"code": exit code, null where a test took too long or too much memory, "test": the last, "seconds": of all}

Seconds are the processor's: a busy machine changes no result. It is a program of its own because jax reads its
environment when it is imported.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

MOST_MEMORY = 6 << 30  # bytes of a process and its children: some mutants ask for all there is


def import_slow_packages() -> None:
    """None of them starts a thread or a backend when it is imported: that would not survive a fork."""
    import beartype  # noqa: F401
    import flax.linen  # noqa: F401
    import grain  # noqa: F401
    import hypothesis  # noqa: F401
    import jax.experimental.pallas  # noqa: F401
    import jaxtyping  # noqa: F401
    import ml_collections  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import pytest  # noqa: F401
    import scipy.special  # noqa: F401


class Limits:
    """A plugin of pytest: every test has so many seconds of the processor, and its name is written down first."""

    def __init__(self, seconds: float, names: Path) -> None:
        self._seconds = seconds
        self._names = names

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._names.write_text(nodeid)
        used = resource.getrusage(resource.RUSAGE_SELF)
        end = math.ceil(used.ru_utime + used.ru_stime + self._seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def run_tests(arguments: list[str], output: Path, *, seconds: float) -> None:
    """In a fork: ends the process with pytest's exit code, or by SIGXCPU where a test takes too long."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        import pytest

        sys.argv = ["pytest", *arguments]
        code = int(pytest.main(arguments, plugins=[Limits(seconds, name_last(output))]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def name_last(output: Path) -> Path:
    """The file with the name of the last test that was begun."""
    return output.with_suffix(".last")


def measure_memory(group: int) -> int:
    """Bytes that the processes of a session hold."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group:
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def wait(process: int, seconds: float, last: Path) -> tuple[int | None, float]:
    """The exit code of a process, negative for a signal, and its seconds; None where it took too long or too much and
    was killed. A test that waits for what never comes takes no processor: it has ten times as long by the clock."""
    code: int | None = None
    polls = 0
    while True:
        done, status, used = os.wait4(process, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            code = None if code == -signal.SIGXCPU else code
            break
        polls += 1
        if polls % 20 == 0 and (
            time.time() > last.stat().st_mtime + 10 * seconds or measure_memory(process) > MOST_MEMORY
        ):
            break
        time.sleep(0.05)
    try:
        os.killpg(process, signal.SIGKILL)  # what it started, too
    except ProcessLookupError:
        pass
    if not done:
        _, _, used = os.wait4(process, 0)
    return code, round(used.ru_utime + used.ru_stime, 1)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    import_slow_packages()
    for line in sys.stdin:
        asked = json.loads(line)
        output = Path(asked["output"])
        last = name_last(output)
        last.write_text("")
        process = os.fork()
        if process == 0:
            run_tests(asked["arguments"], output, seconds=asked["seconds"])
        code, seconds = wait(process, asked["seconds"], last)
        answer = {"code": code, "test": last.read_text(), "seconds": seconds}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
