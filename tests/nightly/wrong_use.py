"""F8: flags and keys used wrongly: thousands of command lines, each refused in one line that names what is wrong.

Most run in a child process by `seq2seq_jax.main.main`, in which what a mode does when all is well is left out: what is
not refused says "accepted". Some run as programs of their own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import ROOT, Job, Row, environment
from wrong_cases import (
    MODEL_KEYS,
    Case,
    draw,
    file_of,
    keys_of,
    misspell_choices,
    misspell_keys,
    set_wrong_values,
    write_saved,
)
from wrong_combinations import break_files, contradict, garble, set_flags
from wrong_runs import need_flags, train_tiny

PARTS = ((30, misspell_keys), (30, set_wrong_values), (9, misspell_choices), (13, set_flags), (3, garble))
PARTS += ((3, break_files), (12, contradict))
LIMIT = 5.0  # seconds of the processor: how long that is by the clock depends on what else the machine does
PATIENCE = 600.0  # by the clock, after which a case counts as hung
ACCEPTED = "accepted"
PROGRAMS = 60
DESCRIBED = 300


def use_wrongly(job: Job) -> list[Row]:
    """Draws the cases, runs them and counts."""
    work = make_workplace(job.folder)
    cases = [*draw(PARTS, job.count, job.seed), *need_flags(train_tiny(work))]
    verdicts = run_cases(cases, work, tell=job.tell)
    rows = [count(cases, verdicts, job), count_suggestions(cases, verdicts)]
    rows.append(run_programs(cases, verdicts, work, job))
    rows.append(describe_drawn(work, job))
    left = sorted(path.name for path in work.iterdir() if path.name not in ("configs", "cases", "tiny"))
    rows.append(Row("folders that refused runs left", "none", ", ".join(left) or "none", not left))
    return rows


def make_workplace(folder: Path) -> Path:
    """A folder like the root of a checkout, where what a case leaves is seen."""
    work = folder / "work"
    work.mkdir()
    (work / "configs").symlink_to(ROOT / "configs")
    return work


def run_cases(cases: Sequence[Case], work: Path, *, tell: Any = lambda text: None) -> list[dict[str, Any]]:
    """What came of each case: `code`, `out`, `err`, `seconds`, and `problem`, "" where it is as it should be."""
    child, verdicts, began = Child(work), [], time.monotonic()
    for number, case in enumerate(cases):
        if number and number % 500 == 0:
            left = (time.monotonic() - began) / number * (len(cases) - number)
            bad = sum(bool(verdict["problem"]) for verdict in verdicts)
            tell(f"{number} of {len(cases)} cases, {bad} not as they should be, eta {left:.0f} s")
        reply = child.ask(place(case, work / "cases"), case.runner)
        verdicts.append({**reply, "problem": judge(case, reply)})
    child.close()
    return verdicts


def place(case: Case, folder: Path) -> list[str]:
    """Writes the files of a case; its arguments, with where they are."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saved = [("run/config.json", write_saved(*case.saved))] if case.saved else []
    for name, content in [*case.files, *saved]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    return [arg.replace("{folder}", str(folder)) for arg in case.args]


def judge(case: Case, reply: dict[str, Any]) -> str:
    """What is wrong with how a case was answered; "" where nothing is."""
    told = [line for line in reply["err"].splitlines() if line.startswith("seq2seq_jax: error: ")]
    if reply["code"] not in (0, 2):
        return f"exit code {reply['code']}"
    if "Traceback" in reply["err"]:
        return "a traceback"
    if reply["seconds"] > LIMIT:
        return f"took {reply['seconds']:.1f} s"
    if not case.wrong:
        return "" if reply["code"] == 0 and not told else "refused, but is right"
    if reply["code"] == 0:
        return "accepted, but is wrong"
    if len(told) != 1:
        return f"{len(told)} lines of errors"
    if reply["err"].strip() != told[0] and case.runner != "real":
        return "more than one line"
    if reply["out"].strip():
        return "something on standard output"
    for name in case.names:
        if not any(" ".join(way.split()) in told[0] for way in name.split("|")):
            return f"does not name {name[:80]}"
    return ""


def suggests(case: Case, reply: dict[str, Any]) -> bool:
    """Whether the error asks for what was meant."""
    found = re.search(r"did you mean (.*?)\?", reply["err"])
    return found is not None and found[1].strip("'\"").removeprefix("--") == case.meant.removeprefix("--")


def count(cases: Sequence[Case], verdicts: Sequence[dict[str, Any]], job: Job) -> Row:
    """The row of all cases, with those that were not as they should be."""
    bad = [
        {"kind": case.kind, "args": list(case.args), "problem": verdict["problem"], "err": verdict["err"][-500:]}
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict["problem"]
    ]
    for one in bad[:200]:
        job.tell(json.dumps(one, ensure_ascii=True)[:700])
    wrong = sum(case.wrong for case in cases)
    slowest = max(verdict["seconds"] for verdict in verdicts)
    got = (
        f"{len(cases) - len(bad)} of {len(cases)} ({wrong} wrong, {len(cases) - wrong} right), slowest {slowest:.1f} s"
    )
    details = {"kinds": dict(Counter(case.kind for case in cases)), "bad": bad[:200]}
    asked = "all: exit code 2, one line that names flag or key and value, no traceback, 5 s; what is right is accepted"
    return Row("command lines", asked, got, not bad, details)


def count_suggestions(cases: Sequence[Case], verdicts: Sequence[dict[str, Any]]) -> Row:
    """The share of words with one edit for which the right one is suggested."""
    found: dict[str, list[bool]] = {}
    missed = []
    for case, verdict in zip(cases, verdicts, strict=True):
        if case.meant and case.wrong:
            right = suggests(case, verdict)
            found.setdefault(case.kind, []).append(right)
            if not right:
                missed.append((case.args[-1], case.meant, verdict["err"][-150:]))
    every = [right for group in found.values() for right in group]
    shares = {kind: f"{sum(group)} of {len(group)}" for kind, group in sorted(found.items())}
    share = sum(every) / max(len(every), 1)
    got = f"{share:.1%}, {sum(every)} of {len(every)} ({'; '.join(f'{kind}: {n}' for kind, n in shares.items())})"
    return Row("one edit: the right word is suggested", "95 %", got, share >= 0.95, {"missed": missed[:100]})


def run_programs(cases: Sequence[Case], verdicts: Sequence[dict[str, Any]], work: Path, job: Job) -> Row:
    """Some of the cases that were refused, as programs of their own, half of them with --debug."""
    rng = random.Random(job.seed)
    refused = [case for case, verdict in zip(cases, verdicts, strict=True) if case.wrong and not verdict["problem"]]
    chosen, bad = rng.sample(refused, min(PROGRAMS, len(refused))), []
    for number, case in enumerate(chosen):
        debug = number % 2 == 1 and "--" not in case.args and not case.args[-1:] == ("--config",)
        args = place(case, work / "cases")
        command = [sys.executable, "-m", "seq2seq_jax.main", *(["--debug"] if debug else []), *args]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=work,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                stdin=subprocess.DEVNULL,
            )
            reply = {"code": done.returncode, "out": done.stdout, "err": done.stderr, "seconds": 0.0}
        except subprocess.TimeoutExpired:
            reply = {"code": -1, "out": "", "err": "", "seconds": time.monotonic() - began}
        traced = "Traceback" in reply["err"]
        if debug:
            reply["err"] = "\n".join(line for line in reply["err"].splitlines() if line.startswith("seq2seq_jax: "))
        problem = judge(case, reply) or ("" if traced == debug else "--debug and no traceback")
        if problem:
            bad.append({"args": args, "problem": problem, "err": reply["err"][-500:]})
            job.tell(f"as a program: {bad[-1]}"[:700])
    got = f"{len(chosen) - len(bad)} of {len(chosen)}"
    return Row("the same as programs; --debug shows the traceback", "all", got, not bad, {"bad": bad})


def describe_drawn(work: Path, job: Job) -> Row:
    """Configs of keys drawn at random within their limits: described by `--mode=describe`, or refused in one line."""
    rng, bad, described = random.Random(job.seed + 1), [], 0
    cases = [draw_right(rng) for _ in range(min(DESCRIBED, max(job.count // 10, 1)))]
    child = Child(work)
    for number, case in enumerate(cases):
        reply = child.ask(place(case, work / "cases"), case.runner)
        told = [line for line in reply["err"].splitlines() if line.strip()]
        one = reply["code"] == 2 and len(told) == 1 and told[0].startswith("seq2seq_jax: error: ")
        described += reply["code"] == 0
        if not (one or reply["code"] == 0) or "Traceback" in reply["err"] or reply["seconds"] > 2 * LIMIT:
            bad.append(
                {"args": case.args, "code": reply["code"], "seconds": reply["seconds"], "err": reply["err"][-900:]}
            )
            job.tell(f"described: {bad[-1]}"[:1500])
        if number % 100 == 99:
            job.tell(f"{number + 1} of {len(cases)} described")
    child.close()
    got = f"{len(cases) - len(bad)} of {len(cases)} ({described} described, the others refused in one line)"
    return Row("values drawn within the limits", "all described or refused in a line", got, not bad, {"bad": bad})


def draw_right(rng: random.Random) -> Case:
    """A config with a few keys at values that each key by itself may have."""
    from seq2seq_jax.keys import AT_LEAST, CHOICES

    model = rng.choice(list(MODEL_KEYS))
    known = {key: value for key, value in keys_of(model).items() if not isinstance(value, str) or key in CHOICES}
    args = [file_of(model), "--mode=describe", "--json"]
    for key in rng.sample(sorted(known), rng.randint(1, 4)):
        default = known[key]
        if isinstance(default, bool):
            value: Any = not default
        elif key in CHOICES:
            value = rng.choice(CHOICES[key])
        elif isinstance(default, int):
            value = rng.choice([int(AT_LEAST.get(key, 1)), default + 1, 2 * abs(default) + 1, rng.randint(1, 40)])
        else:
            value = rng.choice([0.0, 0.5, 0.99, default / 2, 1.0, 2.5])
        args.append(f"--config.{key}={value}")
    return Case("drawn", tuple(args), runner="real")


class Child:
    """A process that runs command lines, one after the other."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._start()

    def _start(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--child"]
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=quiet, cwd=self.work, env=environment(), text=True
        )

    def ask(self, args: Sequence[str], runner: str) -> dict[str, Any]:
        """Runs a command line; exit code -1 where the process died or hung."""
        process = self.process
        if process.stdin is None or process.stdout is None:
            raise ValueError("the child has no pipes")
        began = time.monotonic()
        try:
            process.stdin.write(json.dumps([list(args), runner]) + "\n")
            process.stdin.flush()
            ready = select.select([process.stdout], [], [], PATIENCE)[0]
            line = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        process.kill()
        self._leave()
        self._start()
        return {"code": -1, "out": "", "err": "the process died or hung", "seconds": time.monotonic() - began}

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._leave()

    def _leave(self) -> None:
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def serve(lines: Any, answers: Any) -> None:
    """Runs the command lines that come in, as the child."""
    import jax

    from seq2seq_jax import main
    from seq2seq_jax.modes import describe, start_checks  # noqa: F401  as JAX, once: it is no part of any case

    jax.devices()
    runners = dict(main.RUNNERS)

    def leave_out(given: Any, config: Any, root: Path) -> int:
        return 0

    def check_only(given: Any, config: Any, root: Path) -> int:
        if given.mode in ("train", "evaluate"):
            start_checks.check_start(config, root)
        return 0

    for line in lines:
        args, runner = json.loads(line)
        stub = {"stub": leave_out, "start": check_only}.get(runner)
        main.RUNNERS.update(dict.fromkeys(runners, stub) if stub else runners)
        answers.write(json.dumps(run_one(main, args)) + "\n")
        answers.flush()


def run_one(main: Any, args: Sequence[str]) -> dict[str, Any]:
    """A command line in this process: its exit code and what it said; 1 and a traceback where an exception came out."""
    import traceback

    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    busy, stdin, sys.stdin = time.process_time(), sys.stdin, io.StringIO("")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main.main(["seq2seq_jax.main", *args])
            except BaseException:
                code = 1
                traceback.print_exc()
    finally:
        sys.stdin = stdin
    took = {"seconds": round(time.process_time() - busy, 3), "wall": round(time.monotonic() - began, 3)}
    return {"code": code, "out": out.getvalue()[-2000:], "err": err.getvalue()[-4000:], **took}


if __name__ == "__main__" and "--child" in sys.argv:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    serve(sys.stdin, answers)
