"""Freed memory goes back to the system."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from pathlib import Path
from seq2seq_jax.memory import give_back_memory

def measure():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

blocks = [bytes(3000) for _ in range(50_000)]
blocks = blocks[::5000]  # those that stay keep the system from getting the others
before = measure()
give_back_memory()
print(before - measure())
assert all(block == bytes(3000) for block in blocks)
"""


POOLS = """
import ctypes, threading
from seq2seq_jax.memory import limit_memory_pools

limit_memory_pools()
ready, kept = threading.Barrier(8), []

def work():
    ready.wait()
    kept.extend(bytes(1000 + n) for n in range(1000))
    ready.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_info(0, ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stdout"))
"""

needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")


@needs_glibc
@pytest.mark.parametrize(("chosen", "pools"), [({}, 2), ({"MALLOC_ARENA_MAX": "5"}, 5)])
def test_a_process_has_two_pools_of_memory_or_what_its_user_chose(chosen, pools):
    command, root = [sys.executable, "-c", POOLS], Path(__file__).parents[1]
    given = {key: value for key, value in os.environ.items() if key not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**given, **chosen})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<heap nr=") == pools


@needs_glibc
def test_freed_memory_between_blocks_in_use_is_given_back():
    command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 100  # MiB, of 143


def test_elsewhere_nothing_happens(monkeypatch):
    from seq2seq_jax.memory import give_back_memory, limit_memory_pools

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back_memory()
    limit_memory_pools()
