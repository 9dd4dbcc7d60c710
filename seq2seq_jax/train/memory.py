"""Memory that was freed and not given back."""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc; elsewhere it does nothing.

    Each of glibc's many pools keeps what was freed in it. With the threads of XLA and TensorStore that is a quarter of
    what a small training holds, and it grows for thousands of steps. It takes milliseconds.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
