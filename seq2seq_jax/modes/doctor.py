"""`--mode=doctor`: versions, devices, memory, disk and the run in --workdir, and what is wrong with any of it.

It reads and changes nothing: a test file on the disk has no name, and nothing is written to the folder of the run.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seq2seq_jax.memory import read_memory
from seq2seq_jax.modes.run_health import examine_run, render_run
from seq2seq_jax.provenance import PACKAGES
from seq2seq_jax.workdir import find_compiled

EXTRAS = {
    "clean": "which language a line is in (config.clean.language)",
    "cuda": "an NVIDIA card with CUDA 12",
    "cuda13": "an NVIDIA card with CUDA 13",
    "plan": "plans for TPUs that are not there (--mode=plan --topology)",
    "speech": "audio files, WER and CER, the built-in speech",
    "tensorboard": "config.train.tensorboard",
    "tpu": "TPUs",
}
"""The extras of setup.cfg that people use, and what for."""

VARIABLES = (
    "JAX_PLATFORMS", "XLA_FLAGS", "PJRT_NPROC", "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_X64", "JAX_DISABLE_JIT",
    "JAX_DEBUG_NANS", "JAX_DEFAULT_MATMUL_PRECISION", "LIBTPU_INIT_ARGS", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "SEQ2SEQ_JAX_DATA", "SEQ2SEQ_JAX_FAILPOINT",
)  # fmt: skip
"""Variables of the environment that change what a run does."""

PATIENCE = 60.0
"""Seconds that JAX may take to find its devices."""
TESTED = 2**23
"""Bytes that the disk is tried with."""
LEAST_DISK, LEAST_MEMORY = 2**30, 2**30
"""Bytes that should be free."""

NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What file systems say that have no files without a name, as NFS has none."""

LOOK = """
import json, sys
import jax
def memory(device):
    try:
        stats = device.memory_stats() or {}
    except Exception:
        stats = {}
    return {"memory_bytes": stats.get("bytes_limit"), "used_bytes": stats.get("bytes_in_use")}
found = [{"platform": d.platform, "kind": d.device_kind, **memory(d)} for d in jax.local_devices()]
print("devices", json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong, and what mends it."""

    what: str
    cure: str


def examine(root: Path | None) -> dict[str, Any]:
    """Everything that there is to tell, JSON-ready; `problems` is empty where all is well.

    Args:
        root: the folder of a run, absolute; None: there is none to look at.
    """
    looking = subprocess.Popen(  # in a process of its own, which may hang or die; meanwhile all else is looked at
        [sys.executable, "-c", LOOK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    report |= {"versions": list_versions(), "extras": list_extras()}
    report["environment"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    report |= {"cpu": describe_cpu(), "memory": read_memory()}
    report |= {"disk": try_disk(root or Path.cwd()), "cache": describe_cache(find_compiled())}
    report["run"] = examine_run(root) if root is not None else None
    report["devices"], report["devices_error"] = read_devices(looking)
    report["problems"] = [dataclasses.asdict(problem) for problem in find_problems(report)]
    return report


def list_versions() -> dict[str, str | None]:
    """Versions of this package and of those that it needs; None: it is not there."""
    from seq2seq_jax import __version__

    names = dict.fromkeys([*PACKAGES, *(name for name, _, extra in list_requirements() if not extra)])
    return {"seq2seq_jax": __version__} | {name: find_version(name) for name in names}


def find_version(name: str) -> str | None:
    """A package's, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def list_requirements() -> list[tuple[str, str, str]]:
    """What setup.cfg asks for: name, least version ("" is any) and extra ("" is none)."""
    try:
        lines = importlib.metadata.requires("seq2seq_jax") or []
    except importlib.metadata.PackageNotFoundError:  # a tree that is not installed
        return []
    found = []
    for line in lines:
        asked, _, condition = line.partition(";")
        name = re.split(r"[\[<>=!~ ]", asked.strip())[0]
        least = re.search(r">=\s*([\w.]+)", asked)
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", condition)
        found.append((name, least[1] if least else "", extra[1] if extra else ""))
    return found


def list_extras() -> dict[str, bool]:
    """Extra → whether what it installs is there."""
    plugins = {"cuda": ["jax-cuda12-plugin"], "cuda13": ["jax-cuda13-plugin"], "plan": ["libtpu"], "tpu": ["libtpu"]}
    needs = {extra: [name for name, _, of in list_requirements() if of == extra] for extra in EXTRAS} | plugins
    return {extra: bool(needs[extra]) and all(map(find_version, needs[extra])) for extra in EXTRAS}


def describe_cpu() -> dict[str, Any]:
    """The processor's name, its cores, and those that this process may use."""
    info = _read(Path("/proc/cpuinfo"))
    named = re.search(r"model name\s*:\s*(.*)", info)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"kind": named[1] if named else platform.machine(), "cores": os.cpu_count(), "usable_cores": usable}


def try_disk(folder: Path) -> dict[str, Any]:
    """Of the disk that a folder is on, or would be: space, whether it can be written to, and how quick that is."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    usage = shutil.disk_usage(there)
    found: dict[str, Any] = {"folder": str(folder), "total_bytes": usage.total, "free_bytes": usage.free}
    found |= {"writable": os.access(there, os.W_OK | os.X_OK), "bytes_per_second": None}
    if found["writable"] and hasattr(os, "O_TMPFILE"):
        try:
            began, handle = time.monotonic(), os.open(there, os.O_TMPFILE | os.O_RDWR, 0o600)  # it never has a name
            try:
                os.write(handle, os.urandom(TESTED))
                os.fsync(handle)
            finally:
                os.close(handle)
            found["bytes_per_second"] = round(TESTED / (time.monotonic() - began))
        except OSError as error:
            if error.errno not in NO_UNNAMED:
                found["error"] = error.strerror
    return found


def describe_cache(place: str) -> dict[str, Any]:
    """Where compiled programs are kept, how many they are, and whether more can be; of a URL nothing is known."""
    if "://" in place:
        return {"folder": place, "files": 0, "bytes": None, "writable": True}
    folder, sizes = Path(place), []
    if folder.is_dir():
        for path in folder.iterdir():
            try:
                sizes.append(path.stat().st_size)
            except OSError:
                continue  # it went away
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes), "writable": os.access(there, os.W_OK)}


def read_devices(looking: subprocess.Popen) -> tuple[list[dict[str, Any]], str]:
    """The devices that JAX finds; and why it finds none, in a line."""
    try:
        out, err = looking.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        looking.kill()
        looking.communicate()
        return [], f"JAX did not find its devices within {PATIENCE:.0f} s"
    lines = [line for line in out.splitlines() if line.startswith("devices ")]
    if looking.returncode == 0 and lines:
        return json.loads(lines[-1].removeprefix("devices ")), ""
    last = next((line for line in reversed(err.splitlines()) if line.strip()), "it said nothing")
    return [], f"JAX ended with code {looking.returncode}: {last.strip()[:300]}"


def find_problems(report: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong, by a report."""
    yield from _find_in_packages(report)
    yield from _find_in_devices(report)
    disk, memory, environment = report["disk"], report["memory"], report["environment"]
    if not disk["writable"] or "error" in disk:
        why = disk.get("error", "no permission")
        yield Problem(f"{disk['folder']} cannot be written to ({why})", "choose another --workdir, or mend its rights")
    if disk["free_bytes"] < LEAST_DISK:
        free = f"{disk['free_bytes'] / 2**30:.2f} GiB"
        yield Problem(f"the disk of {disk['folder']} is nearly full ({free} free)", "make room: checkpoints need it")
    if memory["free_bytes"] is not None and memory["free_bytes"] < LEAST_MEMORY:
        free = f"{memory['free_bytes'] / 2**20:.0f} MiB"
        yield Problem(f"little memory is free ({free})", "end other programs, or use a machine with more")
    if not report["cache"]["writable"]:
        cure = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written to"
        yield Problem(f"compiled programs cannot be kept in {report['cache']['folder']}", cure)
    if environment.get("JAX_DISABLE_JIT", "").lower() in ("1", "true"):
        yield Problem("JAX_DISABLE_JIT is set: nothing is compiled, and all is slow", "unset it")
    if environment.get("SEQ2SEQ_JAX_FAILPOINT"):
        yield Problem("SEQ2SEQ_JAX_FAILPOINT is set: a run will be made to fail", "unset it")
    for problem in (report["run"] or {}).get("problems", []):
        yield Problem(**problem)


def _find_in_packages(report: Mapping[str, Any]) -> Iterator[Problem]:
    for name, least, extra in list_requirements():
        version = report["versions"].get(name) if not extra else find_version(name)
        if version is None and not extra:
            yield Problem(f"the package {name} is missing", "pip install -c constraints.txt seq2seq_jax")
        elif version is not None and least and number(version) < number(least):
            yield Problem(f"{name} must be at least {least}, but is {version}", f"pip install '{name}>={least}'")


def _find_in_devices(report: Mapping[str, Any]) -> Iterator[Problem]:
    environment, platforms = report["environment"], {device["platform"] for device in report["devices"]}
    if report["devices_error"]:
        cure = "see whether JAX_PLATFORMS=cpu works, and install the extra that fits the hardware (cuda, cuda13, tpu)"
        yield Problem(report["devices_error"], cure)
    elif platforms == {"cpu"} and has_nvidia() and "cpu" not in environment.get("JAX_PLATFORMS", ""):
        cure = "pip install 'seq2seq_jax[cuda]', or [cuda13] with newer drivers"
        yield Problem("there is an NVIDIA card, but JAX uses the CPU alone", cure)
    asked = re.search(r"xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", ""))
    threads = environment.get("PJRT_NPROC", str(report["cpu"]["usable_cores"]))
    if asked and "cpu" in platforms and threads.isdecimal() and int(threads) < int(asked[1]):
        cure = f"set PJRT_NPROC={max(16, 2 * int(asked[1]))}: with too few threads they wait for each other for ever"
        yield Problem(f"XLA_FLAGS makes {asked[1]} devices of a CPU with {threads} threads", cure)


def has_nvidia() -> bool:
    """Whether an NVIDIA card's driver is there."""
    return Path("/proc/driver/nvidia/gpus").is_dir() or Path("/dev/nvidia0").exists()


def number(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.10.2.dev3" is (0, 10, 2)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # type: ignore[index]


def render(report: Mapping[str, Any]) -> str:
    """The report as people read it; what is wrong comes last."""
    cpu, memory, disk, cache = (report[name] for name in ("cpu", "memory", "disk", "cache"))
    lines = [f"Python {report['python']} on {report['platform']}"]
    versions = (f"{name} {version or 'missing'}" for name, version in report["versions"].items())
    lines.append("versions: " + ", ".join(versions))
    lines.append("extras:")
    lines += [f"  {name:12s}{'there' if there else '-':7s}{EXTRAS[name]}" for name, there in report["extras"].items()]
    lines.append("devices:" if report["devices"] else f"devices: none ({report['devices_error']})")
    for device in report["devices"]:
        size = f", {_tell_bytes(device['memory_bytes'])}" if device["memory_bytes"] else ""
        lines.append(f"  {device['platform']}: {device['kind']}{size}")
    lines.append(f"CPU: {cpu['kind']}, {cpu['usable_cores']} of {cpu['cores']} cores")
    lines.append(f"memory: {_tell_bytes(memory['free_bytes'])} free of {_tell_bytes(memory['total_bytes'])}")
    speed = f", {disk['bytes_per_second'] / 1e6:,.0f} MB/s written through" if disk["bytes_per_second"] else ""
    room = f"{_tell_bytes(disk['free_bytes'])} free of {_tell_bytes(disk['total_bytes'])}"
    lines.append(f"disk: {disk['folder']}: {room}, {'writable' if disk['writable'] else 'not writable'}{speed}")
    lines.append(f"compiled programs: {cache['folder']}: {cache['files']:,} files, {_tell_bytes(cache['bytes'])}")
    lines += [f"{name}={value}" for name, value in report["environment"].items()]
    if report["run"] is not None:
        lines += render_run(report["run"])
    lines.append("what is wrong:" if report["problems"] else "nothing is wrong")
    lines += [f"  {problem['what']}\n    cure: {problem['cure']}" for problem in report["problems"]]
    return "\n".join(lines)


def _tell_bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
