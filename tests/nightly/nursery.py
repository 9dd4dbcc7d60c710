"""Starts command lines quickly: in forks of a process that has imported other packages, and nothing of this one.

Half of the seconds in which a run starts go into imports that touch no file of the run. A fork is a process of its own,
which can be killed and ends like any other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rows import ROOT, environment

CACHE = "JAX_COMPILATION_CACHE_DIR"


class Forked:
    """A process of a nursery; what `subprocess.Popen` offers of it."""

    def __init__(self, nursery: Nursery, pid: int):
        self._nursery, self.pid, self.returncode = nursery, pid, None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it goes on."""
        if self.returncode is None and (told := self._nursery.hear(0.0)) is not None:
            self.returncode = told["code"]
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on for longer.
        """
        if self.returncode is None:
            told = self._nursery.hear(timeout)
            if told is None:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = told["code"]
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Where command lines are started, one at a time; a context manager.

    Args:
        program: what runs a command line, once `serve` has given it one.
        more: of its environment; see `rows.environment`.
    """

    def __init__(self, *, program: str | Path = __file__, **more: str):
        command = [sys.executable, str(Path(program).resolve())]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(**more), cwd=ROOT)
        self._heard = b""
        self._last: Forked | None = None

    def start(self, arguments: Sequence[str], log: Path, **more: str) -> Forked:
        """Starts `python -m seq2seq_jax.main ARGUMENTS`; `more` is set in its environment."""
        log.write_bytes(b"")  # it can be read at once
        asked = {"arguments": list(arguments), "log": str(log), "environment": more}
        self._server.stdin.write(json.dumps(asked).encode() + b"\n")
        self._server.stdin.flush()
        told = self.hear(300.0)
        if told is None:
            raise RuntimeError("the nursery does not answer")
        self._last = Forked(self, told["pid"])
        return self._last

    def hear(self, seconds: float) -> Mapping[str, int] | None:
        """The next thing that it says; None where it says nothing for so long.

        Raises:
            RuntimeError: it has ended.
        """
        end = time.monotonic() + seconds
        descriptor = self._server.stdout.fileno()
        while b"\n" not in self._heard:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            read = os.read(descriptor, 4096)
            if not read:
                raise RuntimeError("the nursery has ended")
            self._heard += read
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stdin.close()
        try:
            if self._last is not None:
                self._last.kill()
            self._server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server.stdout.close()


def import_packages() -> None:
    """None of them starts a thread or a backend when it is imported: that would not survive a fork."""
    import flax.linen  # noqa: F401
    import grain  # noqa: F401
    import jax.experimental.multihost_utils  # noqa: F401
    import matplotlib.axes  # noqa: F401
    import ml_collections  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import sacrebleu  # noqa: F401
    import sacremoses  # noqa: F401
    import scipy.signal  # noqa: F401
    import sentencepiece  # noqa: F401


def serve() -> list[str]:
    """Forks for every line that it reads, and tells what becomes of them; in a fork it returns the command line."""
    import_packages()
    while line := sys.stdin.readline():
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(asked["log"], asked["environment"])
            return ["seq2seq_jax.main", *asked["arguments"]]
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
    sys.exit(0)


def _become(log: str, more: Mapping[str, str]) -> None:
    """Turns a fork into what was asked for."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(descriptor, target)
    os.environ.update(more)
    sys.path[0] = str(ROOT)  # not this folder
    if CACHE in more:  # jax has read its environment
        import jax

        jax.config.update("jax_compilation_cache_dir", more[CACHE])


if __name__ == "__main__":
    command = serve()
    from seq2seq_jax.main import main

    sys.exit(main(command))
