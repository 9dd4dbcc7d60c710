"""A process that draws spoiled files of one family and reads them: a crash of it, or a hang, is the reader's.

Reads numbers of cases from standard input, a line each, and answers each with a line of JSON. Says "ready" first.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import sys
import traceback
from pathlib import Path

MOST_MEMORY = 6 << 30


def run_numbers(module: str, name: str, seed: int, folder: Path) -> None:
    """Answers every number on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    from boundary import run_case

    stock = folder / "stock"
    shutil.rmtree(stock, ignore_errors=True)
    stock.mkdir(parents=True)
    family = getattr(importlib.import_module(module), name)(stock)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        number = int(line)
        place = folder / f"case-{number}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            case = family.draw(random.Random(f"{seed}/{name}/{number}"), place)
            told = run_case(case)
        except Exception:  # of the check itself
            told = {"kind": "?", "problem": f"the case could not be made: {traceback.format_exc()[-1000:]}"}
        shutil.rmtree(place, ignore_errors=True)
        print(json.dumps({"number": number, **told}), file=answers, flush=True)


if __name__ == "__main__":
    run_numbers(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
