"""Files that are not what they should be, by the thousand: each is refused in one line that names it, or read as it is.

A case is a good file that was spoiled in one way, read by the function that a mode reads it with, behind the command
line's own error boundary (`boundary`), in a process for its family (`spoiler`). It counts where the exit code is 2
with one line that names the file, or where it was accepted and what was read makes sense (no exception later, finite
numbers, sizes within bounds); within 5 seconds and 512 MiB; without a traceback, a crash or a hang.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rows import ROOT, Job, Row, environment

FAMILIES = {
    # name: (module, class, cases of 10,000, what)
    "texts": ("texts", "Texts", 2000, "F1: parallel text, TSV, manifests, n-best lists, constraints, lines"),
    "models": ("texts", "Models", 2000, "F2: SentencePiece models"),
    "words": ("texts", "Words", 1000, "F2, F3: lists of words, kept vocabularies"),
    "ngrams": ("texts", "Ngrams", 1000, "F3: ARPA files"),
    "sounds": ("sounds", "Sounds", 2000, "F4: WAV, FLAC, Ogg, MP3, AIFF, AU, SPHERE"),
    "folders": ("run_folders", "Folders", 1000, "F5, F6: models to give away, pickles in disguise"),
    "pages": ("run_folders", "Pages", 1000, "F7: JSON of runs"),
    "shards": ("run_folders", "Shards", 190, "F9: shards of prepared corpora"),
}
OF = 9_000
"""The count of cases that these numbers go with; they come to a little more."""
COMMANDS, KILLS = 100, 10
HANG = 60.0
"""Seconds after which a reader that does not answer is killed."""
START = 300.0
"""Seconds for the good files."""
PROMPT = 10.0
"""Seconds within which a lost worker is told, on a machine that does nothing else."""


def read_malformed(job: Job) -> list[Row]:
    """A row for each family, one for whole command lines, and one for workers that are killed."""
    rows = []
    for family, (module, name, share, what) in FAMILIES.items():
        count, started = math.ceil(job.count * share / OF), time.monotonic()
        found = []
        for answer in run_family(module, name, range(count), seed=job.seed, folder=job.folder / family):
            found.append(answer)
            if len(found) % 100 == 0 or answer["problem"]:
                left = (time.monotonic() - started) / len(found) * (count - len(found))
                job.tell(f"{family}: {len(found)} of {count}, eta {left:.0f}s {answer['problem'][:300]}")
        rows.append(sum_up(what, found))
    rows.append(_call_commands(job, math.ceil(job.count * COMMANDS / OF)))
    rows.append(_kill_workers(job, math.ceil(job.count * KILLS / OF)))
    return rows


def sum_up(what: str, found: list[dict[str, Any]]) -> Row:
    """A row of the table."""
    bad = [answer for answer in found if answer["problem"]]
    codes = collections.Counter(answer.get("code") for answer in found if not answer["problem"])
    slowest = max(answer.get("seconds", 0.0) for answer in found)
    most = max(answer.get("grown_mib", 0) for answer in found)
    told = f"{len(found) - len(bad)} of {len(found)}: {codes[2]} refused, {codes[0]} read as they are"
    problems = [f"{answer['number']}: {answer['kind']}: {answer['problem'][:300]}" for answer in bad[:20]]
    kinds = dict(collections.Counter(answer["kind"] for answer in found).most_common())
    return Row(
        what,
        "all refused in one line that names the file, or read sanely; no traceback, crash or hang",
        f"{told}; slowest {slowest:.1f} s, most {most} MiB",
        not bad,
        {"problems": problems, "kinds": kinds},
    )


def run_family(module: str, name: str, numbers: Iterable[int], *, seed: int, folder: Path) -> Iterable[dict[str, Any]]:
    """Runs cases in a process, which is started again when it crashes or hangs; yields what came of each."""
    folder.mkdir(parents=True, exist_ok=True)
    process: subprocess.Popen[str] | None = None
    command = [sys.executable, str(Path(__file__).with_name("spoiler.py")), module, name, str(seed), str(folder)]
    try:
        for number in numbers:
            if process is None:
                process = _start(command, folder / "log.txt")
            line = _ask(process, number)
            if line:
                yield json.loads(line)
                continue
            hung = process.poll() is None
            process.kill()
            code = process.wait()
            problem = f"no answer in {HANG:.0f} s" if hung else f"the process ended with {code}"
            yield {"number": number, "kind": "?", "problem": f"{problem}; {(folder / 'log.txt').read_text()[-500:]}"}
            process = None
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _start(command: list[str], log: Path) -> subprocess.Popen[str]:
    more = {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "PYTHONFAULTHANDLER": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT,
            env=environment(**more),
        )  # fmt: skip
    if _wait_line(process, START) != "ready\n":
        process.kill()
        raise ValueError(f"{' '.join(command)}: the good files could not be made: {log.read_text()[-2000:]}")
    return process


def _ask(process: subprocess.Popen[str], number: int) -> str:
    """The answer to a case, "" where there is none."""
    if process.stdin is None:
        raise ValueError("the process has no standard input")
    with contextlib.suppress(BrokenPipeError):  # it has crashed, which is seen next
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    return _wait_line(process, HANG)


def _wait_line(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line of the process, "" where there is none in time."""
    if process.stdout is None or not select.select([process.stdout], [], [], seconds)[0]:
        return ""
    return process.stdout.readline()


def _call_commands(job: Job, count: int) -> Row:
    """Whole command lines, each a process: what people see."""
    from boundary import Case, judge
    from commands import Commands

    family, found = Commands(job.folder / "commands"), []
    for number in range(count):
        place, draw = job.folder / f"command-{number}", random.Random(f"{job.seed}/commands/{number}")
        place.mkdir()
        kind, arguments, names = family.draw(draw, place)
        started = time.monotonic()
        command = [sys.executable, "-m", "seq2seq_jax.main", *arguments]
        try:
            done = subprocess.run(
                command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=START,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            problem = judge(Case(kind, None, names, arguments=arguments), done.returncode, done.stderr)
            code = done.returncode
        except subprocess.TimeoutExpired:
            problem, code = f"no end in {START:.0f} s", -1
        seconds = time.monotonic() - started
        found.append({"number": number, "kind": kind, "problem": problem, "code": code, "seconds": round(seconds, 1)})
        if problem or number % 10 == 9:
            job.tell(f"command lines: {number + 1} of {count} {problem[:300]}")
    return sum_up("command lines, a process each", found)


def _kill_workers(job: Job, count: int) -> Row:
    """Kills a worker of --mode=prepare; the run must say so at once, and the next one end well."""
    found = []
    for number in range(count):
        draw, root = random.Random(f"{job.seed}/kills/{number}"), job.folder / f"prepare-{number}"
        command = [
            sys.executable, "-m", "seq2seq_jax.main", "--config=configs/gnmt.py", f"--workdir={root}", "--mode=prepare",
            "--workers=2", "--config.data.phrasebook_pairs=20000", "--config.data.shard_pairs=500",
            "--config.vocab.kind=word",
        ]  # fmt: skip
        with (job.folder / "prepare.txt").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), cwd=ROOT)
            _await(lambda pid=process.pid: _list_workers(pid), process)
            time.sleep(draw.uniform(0, 4))
            if workers := _list_workers(process.pid):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(draw.choice(workers), signal.SIGKILL)
            started = time.monotonic()
            try:
                code = process.wait(timeout=START)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            seconds = time.monotonic() - started
            log.seek(0)
            said = log.read()
        problem = "" if code == 0 or (code == 2 and "a worker process was killed" in said) else f"{code}: {said[-500:]}"
        if "Traceback" in said:
            problem = f"a traceback: {said[-800:]}"
        busy = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
        if code == 2 and seconds > PROMPT * busy:
            problem = problem or f"told after {seconds:.1f} s"
        again = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
        if again.returncode:
            problem = problem or f"the next run ended with {again.returncode}: {again.stderr[-500:]}"
        found.append({"number": number, "kind": "kill", "problem": problem, "code": code, "seconds": round(seconds, 1)})
        job.tell(f"kills of workers: {number + 1} of {count}: exit code {code} after {seconds:.1f} s {problem[:300]}")
    row = sum_up("F9: a worker of --mode=prepare is killed", found)
    killed = sum(answer["code"] == 2 for answer in found)
    got = f"{sum(not answer['problem'] for answer in found)} of {len(found)}: {killed} told it, the others had finished"
    asked = f"told in one line within {PROMPT:.0f} s, and the next run ends well"
    slowest = max(answer["seconds"] for answer in found)
    return Row(row.name, asked, f"{got}; slowest {slowest:.1f} s", row.passed and killed > 0, row.details)


def _list_workers(pid: int) -> list[int]:
    """The worker processes of a program."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        named = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    except OSError:
        return []
    return [child for child, command in named.items() if b"spawn_main" in command]


def _await(look: Callable[[], list[int]], process: subprocess.Popen[bytes]) -> None:
    """Waits until `look` finds something, or the process has ended."""
    until = time.monotonic() + START
    while time.monotonic() < until and process.poll() is None and not look():
        time.sleep(0.02)
