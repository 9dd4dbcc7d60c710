"""Memory of the process and of its devices: what is there, giving it back, and what to say where it is not enough."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

M_ARENA_MAX = -8  # of malloc.h

POOLS = 2
"""glibc makes eight pools of memory for every processor, so that threads seldom wait for each other. With two a
training is no slower (docs/reliability.md)."""


def limit_memory_pools() -> None:
    """Lets a process have few of glibc's pools of memory; to be called before it starts threads.

    Blocks in use here and there keep the free ones between them from being given back, in each pool for itself: with
    many pools a training grows for thousands of steps. Elsewhere, and where the user chose a number, it does nothing.
    """
    chosen = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if not chosen and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(M_ARENA_MAX, POOLS)


def give_back_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc; elsewhere it does nothing.

    Each of glibc's pools keeps what was freed in it, with the threads of XLA and TensorStore a quarter of what a small
    training holds. It takes milliseconds.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def read_memory() -> dict[str, int | None]:
    """Bytes of memory in all and free; of a container, or of a process (`ulimit -v`), where that is less."""
    found = {name: int(size) * 1024 for name, size in re.findall(r"(\w+):\s+(\d+) kB", _read("/proc/meminfo"))}
    total, free = found.get("MemTotal"), found.get("MemAvailable")
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if total is not None and limit.isdecimal() and int(limit) < total:
        total = int(limit)
        cached = re.search(r"^inactive_file (\d+)$", _read("/sys/fs/cgroup/memory.stat"), re.M)  # goes when asked
        free = min(free or total, total - int(used or 0) + (int(cached[1]) if cached else 0))
    addresses = re.search(r"^Max address space +(\d+)", _read("/proc/self/limits"), re.M)
    if total is not None and addresses and int(addresses[1]) < total:
        total = int(addresses[1])
        taken = re.search(r"^VmSize:\s+(\d+) kB", _read("/proc/self/status"), re.M)
        free = min(free or total, total - (int(taken[1]) * 1024 if taken else 0))
    return {"total_bytes": total, "free_bytes": free}


def explain_memory(error: BaseException) -> str:
    """What to do where memory, a device's or the machine's, is not enough."""
    asked, free = re.search(r"(\d+) bytes", str(error)), _find_free(error)
    size = f": {int(asked[1]) / 2**30:,.2f} GiB more were asked for" if asked else ""
    if size and free is not None:
        size += f", {free / 2**30:,.2f} GiB are free"
    return (
        f"memory is not enough{size}. Lower config.data.tokens_per_batch in training, config.decode.rows in a search, "
        "or the model's sizes; or set config.parallel.remat, or use more devices. --mode=plan tells what a step needs; "
        "checkpoints are as they were."
    )


def _find_free(error: BaseException) -> int | None:
    """Bytes free on the fullest device of this host, or on the machine where that is what lacked."""
    if not isinstance(error, MemoryError):  # one of XLA's
        import jax

        told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
        if spaces := [stats["bytes_limit"] - stats["bytes_in_use"] for stats in told if "bytes_limit" in stats]:
            return min(spaces)
    return read_memory()["free_bytes"]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
