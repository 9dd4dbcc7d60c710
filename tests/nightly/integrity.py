"""C1, C2: damaged checkpoints are noticed, told and survived; C5: so are full disks."""

from __future__ import annotations

import random
import time
from collections import Counter

from checkpoint_damage import KINDS, save_steps, try_case
from rows import Job, Row


def flip_bits(job: Job) -> list[Row]:
    """C1: one bit anywhere in the newest step."""
    problems = _try_all(job, ["one bit"] * job.count)
    right = job.count - len(problems)
    return [
        Row(
            "one bit of the newest checkpoint flipped: noticed, file named, the step before restored bit for bit",
            "all",
            f"{right:,} of {job.count:,}; silent {sum('SILENT' in text for text in problems)}",
            not problems,
            {"problems": problems[:20]},
        )
    ]


def damage_files(job: Job) -> list[Row]:
    """C2: files and folders of the newest steps damaged in every way."""
    kinds = [list(KINDS)[n % len(KINDS)] for n in range(job.count)]
    problems = _try_all(job, kinds)
    right = job.count - len(problems)
    return [
        Row(
            f"checkpoints damaged in {len(KINDS)} ways: noticed, told, the newest whole one restored bit for bit",
            "all, no traceback",
            f"{right:,} of {job.count:,}; silent {sum('SILENT' in text for text in problems)}",
            not problems,
            {"kinds": dict(Counter(kinds)), "problems": problems[:20]},
        )
    ]


def _try_all(job: Job, kinds: list[str]) -> list[str]:
    whole, draw = save_steps(job.folder / "whole"), random.Random(job.seed)
    problems, started = list[str](), time.monotonic()
    for number, kind in enumerate(kinds, 1):
        if problem := try_case(whole, job.folder / str(number), kind, draw):
            problems.append(problem)
            job.tell(problem)
        if number % 50 == 0:
            left = (time.monotonic() - started) / number * (len(kinds) - number)
            job.tell(f"{number} of {len(kinds)}, {len(problems)} wrong, {left:.0f} s left")
    return problems
