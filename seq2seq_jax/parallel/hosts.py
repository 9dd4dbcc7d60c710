"""Several hosts as one run: how they find each other, agree, and end together.

    join ──▶ Hosts ── check_same: same versions, config and data on all, or exit 2 naming the one that differs
               │   ── gather, share, primary_first: who does what once, and who waits
               │   ── watch: a host that dies or hangs ends the others, with its name and exit code 5
               └────▶ leave: all together; one that fails tells the others why

All of it goes through the key-value store of JAX's coordination service, never through the devices: it works before
they are there, with other versions, and while a collective waits for a host that will never come. The store
lives in host 0.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import importlib.util
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax

from seq2seq_jax.errors import EXIT_HOST_LOST, EXIT_USER, UserError, is_out_of_memory
from seq2seq_jax.parallel.watch import GRACE, SUSPICION, Lost, Watch

TIMEOUT = 60.0
"""Seconds without a sign of life after which a host counts as lost."""
PATIENCE = 300
"""Seconds that hosts wait for each other at the start."""
FAREWELL = 10.0
"""Seconds that a host which fails waits for the others to hear of it."""

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Place:
    """One host among several.

    Attributes:
        coordinator: HOST:PORT of host 0.
        count: how many hosts there are.
        index: which of them this is, from 0.
    """

    coordinator: str
    count: int
    index: int


def find_place(
    coordinator: str | None, count: int | None, index: int | None, environ: Mapping[str, str]
) -> Place | None:
    """The place that flags, or else JAX's own environment variables, give this host; None where they say nothing.

    Raises:
        UserError: they say only a part of it, or what cannot be.
    """
    said = {
        "--coordinator (JAX_COORDINATOR_ADDRESS)": coordinator or environ.get("JAX_COORDINATOR_ADDRESS"),
        "--hosts (JAX_NUM_PROCESSES)": count if count is not None else environ.get("JAX_NUM_PROCESSES"),
        "--host (JAX_PROCESS_ID)": index if index is not None else environ.get("JAX_PROCESS_ID"),
    }
    missing = [name for name, value in said.items() if value is None]
    if len(missing) == len(said) or (not coordinator and count is None and index is None and finds_cluster(environ)):
        return None
    if missing:
        raise UserError(f"{missing[0]} is missing: a run on several hosts needs {', '.join(said)}; or give none.")
    address, many, which = (str(value) for value in said.values())
    if not (many.isdecimal() and which.isdecimal() and 0 <= int(which) < int(many)):
        raise UserError(f"--host must be 0 to --hosts - 1, but --hosts is {many} and --host is {which}.")
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator must be HOST:PORT of host 0, but is {address!r} instead.")
    return Place(address, int(many), int(which))


def finds_cluster(environ: Mapping[str, str]) -> bool:
    """Whether JAX can see by itself that this process is one of several: Slurm, Open MPI, a TPU pod."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm) and environ.get("SLURM_NTASKS", "1") != "1":
        return True
    if environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return True
    if environ.get("JAX_PLATFORMS", "tpu").find("tpu") < 0:
        return False
    pod = "," in environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environ
    chips = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))  # of the older and the newer TPUs
    # On a TPU machine only its metadata server knows of others: JAX asks it.
    return pod or (chips and importlib.util.find_spec("libtpu") is not None)


def join(
    *,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout: float = TIMEOUT,
    patience: int = PATIENCE,
    environ: Mapping[str, str] = os.environ,
) -> Hosts:
    """Joins the other hosts, if there are any; before anything else asks for the devices.

    Args:
        coordinator: HOST:PORT of host 0; None: by the environment.
        count, index: how many hosts there are and which this is; None: by the environment.
        timeout: seconds after which a host of which nothing is heard is lost.
        patience: seconds to wait for the others.
        environ: the environment.

    Raises:
        UserError: the flags contradict each other, or the others did not come.
    """
    if timeout < 1:
        raise UserError(f"--host_timeout must be at least 1 second, but is {timeout} instead.")
    place = find_place(coordinator, count, index, environ)
    if place is not None and place.count == 1 or place is None and not finds_cluster(environ):
        return Hosts(0, 1)
    given: dict[str, Any] = {}
    if place is not None:
        given = {"coordinator_address": place.coordinator, "num_processes": place.count, "process_id": place.index}
        given["cluster_detection_method"] = "deactivate"  # it would give each process of a Slurm task one device
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away from us, and knows no Ctrl-C
    where = f"host {place.index} of {place.count}, coordinator {place.coordinator}" if place else "found by the cluster"
    cure = "start all of them at about the same time, each with its own --host, and open the coordinator's port"
    problem = f"the hosts did not come together within {patience} s ({where}); {cure}."
    _on_abort(lambda: _end(problem, EXIT_USER))  # JAX aborts the process if they do not
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=patience,
            # Far beyond our own limit: JAX ends a process without a word of which host was lost.
            heartbeat_timeout_seconds=math.ceil(4 * timeout) + 20,
            shutdown_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        if place is None and "coordinator_address should be defined" in str(error):
            return Hosts(0, 1)  # a TPU machine of its own
        raise UserError(f"{problem} JAX says: {str(error).strip().splitlines()[0]}") from error
    _free_stdout()
    return Hosts(_state().process_id, _state().num_processes, timeout=timeout)


def _free_stdout() -> None:
    """Standard output is for results: what Gloo prints there of every connection it makes goes to standard error."""
    try:
        if sys.stdout.fileno() != 1:
            return
    except (OSError, ValueError):  # somebody has put something else in its place
        return
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)


def _state() -> Any:
    """What JAX knows of the hosts. It has no public name for its key-value store: this is the one private one here."""
    from jax._src import distributed

    return distributed.global_state


class Store:
    """One folder of the key-value store."""

    def __init__(self, folder: str):
        self._folder = f"seq2seq_jax/{folder}/"

    def put(self, key: str, value: str) -> None:
        """Writes, over what stands there."""
        _state().client.key_value_set(self._folder + key, value, allow_overwrite=True)

    def read(self, folder: str) -> dict[str, str]:
        """All that was written as `folder/key`, by its key."""
        prefix = f"{self._folder}{folder}/" if folder else self._folder
        return {key.removeprefix(prefix): value for key, value in _state().client.key_value_dir_get(prefix)}


class Hosts:
    """The hosts of this run. With one host everything here is done at once.

    Use it as a context manager: at its end all hosts leave together, and one that fails tells the others.

    Attributes:
        index: which this is.
        count: how many there are.
        saved_step: returns the step that a new start would go on from, for messages; None where there is none.
    """

    def __init__(self, index: int, count: int, *, timeout: float = TIMEOUT):
        self.index, self.count = index, count
        self.saved_step: Callable[[], int | None] = lambda: None
        self._rounds: collections.Counter[str] = collections.Counter()
        self._names = [""] * count
        self._leaving: tuple[int, str] | None = None
        self._watch: Watch | None = None
        if count > 1:
            self._store = Store("said")
            self._watch = Watch(Store("watch"), index=index, count=count, limit=timeout)
            self._names = self.gather("name", f"{socket.gethostname()}, process {os.getpid()}")
            self._watch.start(self._end_with)
            _on_abort(self._explain_abort)

    @property
    def is_primary(self) -> bool:
        """True on the one host that writes."""
        return self.index == 0

    def gather(self, name: str, value: str = "") -> list[str]:
        """What all hosts say under this name, in their order; waits for the last one."""
        if self.count == 1:
            return [value]
        self._rounds[name] += 1
        folder, pause = f"{name}.{self._rounds[name]}", 0.001
        self._store.put(f"{folder}/{self.index}", value)
        while len(found := self._store.read(folder)) < self.count:
            time.sleep(pause)  # not in the store's own call: a signal must get through to us
            pause = min(2 * pause, 0.1)
        return [found[str(host)] for host in range(self.count)]

    def share(self, name: str, make: Callable[[], Result]) -> Result:
        """Makes something on the first host alone, and gives it to all; JSON."""
        if self.count == 1:
            return make()
        return json.loads(self.gather(name, json.dumps(make()) if self.is_primary else "")[0])

    def primary_first(self, name: str, do: Callable[[], Result]) -> Result:
        """Does something on the first host, then on the others: they find what it left in a shared folder."""
        done = do() if self.is_primary else None
        self.gather(name)
        return done if self.is_primary and done is not None else do()

    def check_same(self, name: str, facts: Mapping[str, Any]) -> None:
        """Compares facts of all hosts.

        Args:
            name: of this comparison.
            facts: as JSON: what must be the same everywhere.

        Raises:
            UserError: on all hosts, if one differs; names it and what differs.
        """
        everywhere = [json.loads(said) for said in self.gather(name, json.dumps(facts))]
        problem = find_difference(everywhere, self._names)
        if problem:
            raise UserError(f"{problem}; start all hosts with the same flags, data and versions.")

    def look(self, number: int | None) -> int | None:
        """Whether all hosts stop now, and for which signal; see `Watch.look`."""
        return number if self._watch is None else self._watch.look(number)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is None:
            return
        code, words = 0, "done"
        if error is not None:
            of_user = isinstance(error, OSError) or is_out_of_memory(error)
            known = 130 if isinstance(error, KeyboardInterrupt) else EXIT_USER if of_user else 1
            code, words = getattr(error, "exit_code", known), str(error) or type(error).__name__
        if code == 1:  # a collective that fails tells of another host's death in its own words
            self._end_if_lost()
            traceback.print_exception(error)
        self._leaving = code, words
        together = self._watch.leave(code, words, patience=FAREWELL if code else math.inf)
        self._watch.stop()
        if not together or code == 1:
            _end(words, code)
        try:
            jax.distributed.shutdown()
        except RuntimeError:  # one died on its last metres: nothing of the run is lost
            _end(words, code)

    def _end_if_lost(self) -> None:
        """Waits as long as it takes to say that a host is lost; returns if none is."""
        if self._watch is None:
            return
        self._watch.suspect()
        until = time.monotonic() + min(self._watch.limit, SUSPICION) + GRACE
        while time.monotonic() < until:
            lost = self._watch.find_lost()
            if lost is not None:
                self._end_with(lost)
            time.sleep(0.1)

    def _explain_abort(self) -> None:
        """JAX aborts the process, without a name, as soon as host 0 is gone: first say so."""
        if self._leaving is not None:
            _end(self._leaving[1], self._leaving[0])
        if threading.current_thread() is not threading.main_thread():
            self._end_if_lost()

    def _end_with(self, lost: Lost) -> None:
        """Ends the process with a host that is lost: the main thread may be waiting for it for ever."""
        words = f"host {lost.host} ({self._names[lost.host]}) {lost.problem}"
        if lost.code is None:
            step = self.saved_step()
            place = f" to resume from step {step}" if step else ""
            words += f"; stopped. Start all hosts again with the same command{place}."
        code = lost.code if lost.code and lost.code > 1 else EXIT_HOST_LOST
        if self._watch is not None and lost.host:  # the store ends with host 0: all must have read which one it was
            self._watch.leave(code, words, patience=0.5 if self.index else 2 * self._watch.period + 0.5)
        _end(words, code)


ALONE = Hosts(0, 1)
"""One host, which has nobody to ask."""


def find_difference(everywhere: list[Mapping[str, Any]], names: list[str]) -> str:
    """The first fact that is not the same on all hosts, and the host that has it against most others; or "".

    >>> find_difference([{"jax": "0.10.2"}, {"jax": "0.11.2"}], ["a", "b"])
    'host 1 (b) has jax 0.11.2, host 0 has 0.10.2'
    """
    for fact in dict.fromkeys(name for facts in everywhere for name in facts):
        values = [json.dumps(facts.get(fact, "none")).strip('"') for facts in everywhere]
        usual = collections.Counter(values).most_common(1)[0][0]
        for host, value in enumerate(values):
            if value != usual:
                return f"host {host} ({names[host]}) has {fact} {value}, host {values.index(usual)} has {usual}"
    return ""


_HANDLERS: list[Any] = []


def _on_abort(explain: Callable[[], None]) -> None:
    """Calls `explain` in the thread that aborts the process, before it does.

    Python's own handlers do not do: they run later and in the main thread.
    """

    def handle(number: int) -> None:
        del number
        explain()

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    _HANDLERS.append(handler)  # nobody else holds it
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_ENDING = threading.Lock()


def _end(words: str, code: int) -> None:
    """Ends the process at once, without JAX's own farewell, which waits for all hosts."""
    if not _ENDING.acquire(blocking=False):
        time.sleep(60)  # another thread is about to
    if code > 1:
        print(f"\nseq2seq_jax: error: {' '.join(words.split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
