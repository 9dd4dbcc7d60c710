"""A command line, processes of several sides in turn, what they measure, what a device could do: for the benchmarks.

Machines drift. So every side runs in processes of its own, one after the other and several times (a round is one
process of each), and minima are compared. A process is this script again with `--side NAME`; its last line on
standard output is its figures as JSON. Nothing here imports jax or torch before it is needed: the process that starts
the others never holds a device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from seq2seq_jax.errors import EXIT_USER, UserError

BLOCK = 10
"""Calls that are waited for together on an accelerator: what launching costs is hidden there, as it is in training."""


# --- the command line -----------------------------------------------------------------------------


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and the default of every argument that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command line whose help shows defaults and whose errors are one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=Formatter)

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message, without the usage."""
        self.exit(EXIT_USER, f"error: {message.removeprefix('argument ')}\n")


def read_whole(text: str, least: int = 1) -> int:
    """An argument that is a whole number of at least `least`."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, but is {text!r}")
    return number


def read_count(text: str) -> int:
    """An argument that is a whole number of at least 0."""
    return read_whole(text, 0)


def read_wholes(text: str) -> list[int]:
    """An argument that is whole numbers of at least 1 by commas."""
    try:
        return [read_whole(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        rule = "must be whole numbers of at least 1, by commas if several (8 or 8,64)"
        raise argparse.ArgumentTypeError(f"{rule}, but is {text!r}") from None


def read_seconds(text: str) -> float:
    """An argument that is a time."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, such as 0.5, but is {text!r}")
    return seconds


def read_cores(text: str) -> int:
    """An argument that is a number of cores: at most those that this process may use, or 0 for all."""
    cores, usable = read_whole(text, 0), len(os.sched_getaffinity(0))
    if cores > usable:
        raise argparse.ArgumentTypeError(f"must be at most {usable}, the cores there are, or 0 for all, but is {cores}")
    return cores


def read_output_file(text: str) -> str:
    """An argument that is a file to write when all is measured."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, but {text!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, but is {text!r}: make {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be a file that can be written, but is {text!r}: choose another place")
    return text


# --- the process that starts the others -----------------------------------------------------------


def warn_if_busy() -> None:
    """Says on standard error that other programs run, which distorts what is measured."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5 * cores:
        print(
            f"the machine is busy (load {load:.1f} on {cores} cores): threads that wait for each other suffer most, "
            "PyTorch's above all; run on an idle machine, or compare the processor time of --cores 1",
            file=sys.stderr,
        )


def require_torch(script: str, cure: str) -> None:
    """Raises UserError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{script} measures against PyTorch, which is not installed: `pip install torch`, or {cure}")


def run_side(side: str, *, cores: int = 0, xla_flags: str = "", arguments: Sequence[str] = ()) -> dict[str, Any]:
    """One process of one side with this process's arguments; its figures.

    Args:
        side: what the process is told to measure.
        cores: keep it to so many; 0 is all.
        xla_flags: are added to those of the environment.
        arguments: for it besides this process's own; later ones win.

    Raises:
        UserError: the process failed.
    """
    # Compiling is timed, and a program from a cache may carry the names of another.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    if xla_flags:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {xla_flags}".strip()
    if cores:
        environment |= {"OMP_NUM_THREADS": str(cores), "PJRT_NPROC": str(cores)}
    command = [sys.executable, *sys.argv, *arguments, f"--side={side}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError(f"the process of {side!r} ended with code {done.returncode}; its message stands above")
    return json.loads(done.stdout.splitlines()[-1])


def run_rounds(
    sides: Sequence[str], *, rounds: int, cores: int = 0, arguments: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """`rounds` processes of every side, in turn. A side whose figures have "skipped" is not asked again."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            if not any("skipped" in run for run in runs[side]):
                runs[side].append(run_side(side, cores=cores, arguments=arguments))
    return runs


# --- a process of one side ------------------------------------------------------------------------


def keep_to_cores(cores: int) -> None:
    """Keeps this process to so many cores; 0 is all."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def print_figures(figures: dict[str, Any]) -> None:
    """Hands the figures of this process to the one that started it, its peak of resident memory with them."""
    print(json.dumps(figures | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


class Stopwatch:
    """Seconds that a `with` block took."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


def time_calls(
    call: Callable[[], Any], wait: Callable[[Any], Any], *, steps: int, warm_up: int, block: int
) -> dict[str, list[float]]:
    """Wall and processor seconds of a call, `steps` measurements.

    Args:
        call: what is measured.
        wait: waits for what `call` gave.
        steps: measurements.
        warm_up: calls before them.
        block: calls in a measurement, waited for together.
    """
    for _ in range(warm_up):
        wait(call())
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(block):
            result = call()
        wait(result)
        seconds.append((time.perf_counter() - start) / block)
        cpu_seconds.append((time.process_time() - cpu_start) / block)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def describe_program(compiled: Any) -> dict[str, float]:
    """MiB that a compiled JAX program needs besides its arguments and results; nothing where a device does not say."""
    try:
        analysis = compiled.memory_analysis()
    except NotImplementedError:
        return {}
    return {} if analysis is None else {"temp_mib": analysis.temp_size_in_bytes / 2**20}


def measure_device(dtype: str) -> dict[str, Any]:
    """The rate of products on JAX's device: published, where its kind is known, and that of one large product here.

    Returns:
        `peak` FLOP/s and where it is from, `measured` FLOP/s of a square product, platform and kind of the device.
    """
    import jax
    import jax.numpy as jnp

    from seq2seq_jax.parallel.roofline import find_hardware

    device = jax.devices()[0]
    width = 2048 if device.platform == "cpu" else 8192
    square = jnp.ones((width, width), dtype)
    product = jax.jit(lambda a: a @ a)
    block = 1 if device.platform == "cpu" else BLOCK
    times = time_calls(lambda: product(square), jax.block_until_ready, steps=5, warm_up=2, block=block)
    measured = 2.0 * width**3 / min(times["seconds"])
    hardware = find_hardware(device)
    figures = {"platform": device.platform, "device": device.device_kind, "measured": measured}
    if hardware is None:
        return figures | {"peak": measured, "source": f"measured: one product of {width} x {width}, {dtype}"}
    share = hardware.float32_share if dtype == "float32" else 1.0
    return figures | {"peak": hardware.peak_flops * share, "source": f"{hardware.source}, {dtype}"}


def join_devices(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of `measure_device` of several processes: the best of what was measured."""
    best = max(runs, key=lambda run: run["measured"])
    return {key: value for key, value in best.items() if key != "peak_mib"}


# --- figures --------------------------------------------------------------------------------------


def join_times(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Minimum and median of the processes of a side, and what does not change from one to the next."""
    import numpy as np

    seconds = [second for run in runs for second in run["seconds"]]
    figures = {
        "ms": 1e3 * min(seconds),
        "median_ms": 1e3 * float(np.median(seconds)),
        "cpu_ms": 1e3 * min(second for run in runs for second in run["cpu_seconds"]),
        "first_seconds": min(run["first_seconds"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
    }
    return figures | {key: runs[0][key] for key in ("temp_mib", "parameters", "device", "version") if key in runs[0]}


def describe_peak(device: dict[str, Any]) -> str:
    """One line: what the share of the peak is of."""
    line = f"{device['device']}: peak {format_rate(device['peak'])}FLOP/s ({device['source']})"
    if device["measured"] != device["peak"]:
        line += f"; one large product here reaches {format_rate(device['measured'])}FLOP/s"
    return line


def format_rate(flops: float) -> str:
    """FLOP/s, in billions or trillions."""
    return f"{flops / 1e12:.2f} T" if flops >= 1e12 else f"{flops / 1e9:.1f} G"


def format_cell(value: Any, digits: int = 0) -> str:
    """A number of a table; "-" where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def write_figures(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Writes the arguments and the figures to the file of --json, if there is one."""
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), **figures}, indent=1), encoding="utf-8")
