"""K10: damaged entries of the compilation cache. A run must start all the same, compute the same, and warn once.

Entries are truncated, deleted, emptied, garbled or have a bit flipped, one or all of them; or the run that writes them
is killed while it does, and the next one meets what it left.
"""

from __future__ import annotations

import collections
import random
import shutil
import signal
import time
from pathlib import Path

from nursery import CACHE, Nursery
from rows import Job, Row
from small_runs import LSTM, Running, compare, finish, read_outcome, write_text

KINDS = ("killed while writing", "truncated", "deleted", "garbled", "flipped", "emptied")
FLAGS = ("--config.train.steps=20", "--config.train.evaluate_every=20")


def damage_cache(job: Job) -> list[Row]:
    """Starts runs on damaged caches; every other case damages all entries."""
    with Nursery() as nursery:
        return [_damage(nursery, job)]


def _damage(nursery: Nursery, job: Job) -> Row:
    arguments = (*LSTM, *FLAGS, *write_text(job.folder / "corpus", job.seed))
    warm = job.folder / "compiled"
    began = time.monotonic()
    finish(nursery, arguments, job.folder / "alone", **{CACHE: str(warm)})
    cold = time.monotonic() - began
    alone = read_outcome(job.folder / "alone")
    draw, failed, counts = random.Random(job.seed), [], collections.Counter()
    for n in range(job.count):
        kind, cache, root = KINDS[n % len(KINDS)], job.folder / f"cache{n}", job.folder / f"run{n}"
        if kind == "killed while writing":
            _kill_writer(nursery, arguments, root, cache, draw, cold)
        else:
            shutil.copytree(warm, cache)
            entries = sorted(path for path in cache.iterdir() if path.name.endswith("-cache"))
            for path in entries if n // len(KINDS) % 2 else [draw.choice(entries)]:
                _spoil(path, kind, draw)
        running = Running(nursery, arguments, root, **{CACHE: str(cache)})
        code = running.end()
        lines = [line for line in running.said().splitlines() if "cache" in line.lower()]
        problems = ["exit code"] if code else compare(read_outcome(root), alone)
        problems += [f"{len(lines)} warnings"] if len(lines) > 1 else []
        again = Running(nursery, arguments, root.with_name(f"{root.name}again"), **{CACHE: str(cache)})
        again_code = again.end()
        problems += [] if again_code == 0 and "cache" not in again.said().lower() else ["the damage stays"]
        counts[kind] += not problems
        if problems:
            failed.append(f"{n} {kind}: {', '.join(problems)} (exit code {code}; {' | '.join(lines)[:300]})")
        job.tell(f"{n + 1} of {job.count}: {kind}: {', '.join(problems) or 'fine'}")
        shutil.rmtree(cache, ignore_errors=True)
    passed = sum(counts.values())
    return Row(
        name="damaged compilation caches",
        asked=f"{job.count} of {job.count} start, with at most one warning and the same results",
        got=f"{passed} of {job.count}",
        passed=passed == job.count,
        details={"passed": dict(counts), "failures": failed},
    )


def _kill_writer(
    nursery: Nursery, arguments: tuple[str, ...], root: Path, cache: Path, draw: random.Random, cold: float
) -> None:
    """Kills a run that fills an empty cache as soon as an entry is begun; which one, is drawn."""
    running = Running(nursery, arguments, root, **{CACHE: str(cache)})
    wanted = draw.randint(1, 4)
    running.wait_until(lambda: cache.is_dir() and sum(1 for _ in cache.iterdir()) >= wanted, seconds=4 * cold)
    running.process.send_signal(signal.SIGKILL)
    running.end()


def _spoil(path: Path, kind: str, draw: random.Random) -> None:
    """Damages one file."""
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: draw.randrange(1, len(content))])
    elif kind == "deleted":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "garbled":
        begin = draw.randrange(len(content))
        path.write_bytes(content[:begin] + draw.randbytes(min(4096, len(content) - begin)) + content[begin + 4096 :])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
