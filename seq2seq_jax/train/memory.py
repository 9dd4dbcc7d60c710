"""Memory that was freed and not given back."""

from __future__ import annotations

import ctypes
import os

M_ARENA_MAX = -8  # of malloc.h

POOLS = 2
"""glibc makes eight pools of memory for every processor, so that threads seldom wait for each other. Numbers live in large
blocks outside of them: two are enough."""


def limit_memory_pools() -> None:
    """Lets a process have few of glibc's pools of memory; to be called before it starts threads.

    Blocks in use here and there keep the free ones between them from being given back, in each pool for itself: with
    many pools a training grows for thousands of steps. Elsewhere, and where the user has chosen a number, it does nothing.
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
