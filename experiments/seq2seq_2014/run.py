"""Sutskever, Vinyals and Le 2014 at the size of two cores: every claim of the paper, trained, tested and told.

    python experiments/seq2seq_2014/run.py --data=DIR [--out=runs/seq2seq_2014] [--only=multi30k,phrasebook] [--jobs=2]

`DIR` holds Multi30k's tokenised files, DIR/multi30k/tok/train.lc.norm.tok.en and so on. The command trains what is
missing, translates, scores, rescores the lists of a phrase-based system, and writes OUT/tables.json, OUT/tables.md and
OUT/report.html. Killed at any point, it goes on where it was; one OUT is for one run.py at a time.

    --list         prints what there is to do, and does nothing
    --no_training  evaluates the runs that are finished
    --skip_smt     neither makes the phrase-based system nor rescores its lists
    --skip_report  tables alone
    --readme       writes the tables into this folder's README.md, and does nothing else
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from claims import find_results
from jobs import Job, Pool, Times, hold, sum_up
from programs import call
from runs import CORPORA, ROOT, check_run, copy_texts, list_runs, make_job, name_job, read_seconds
from scores import list_rescoring_jobs, list_score_jobs
from tables import make_tables, render, write_readme

from seq2seq_jax.errors import UserError
from seq2seq_jax.provenance import versions
from seq2seq_jax.train.writers import format_duration, replace_text, write_json

HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str]) -> int:
    """Runs the command line; 0 when all is done, 2 for what the user can mend, 1 for other failures."""
    given = parse(argv[1:])
    return call("run.py", lambda: run_study(given))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/seq2seq_2014"))
    parser.add_argument("--only", default=",".join(CORPORA))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, each with its own cores")
    for name in ("list", "no_training", "skip_smt", "skip_report", "readme"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(argv)


def run_study(given: argparse.Namespace) -> int:
    """Does what the flags ask for.

    Raises:
        UserError: a flag, a file or a folder is not what it should be.
    """
    out, corpora = given.out.expanduser().absolute(), read_corpora(given.only)
    if given.jobs < 1:
        raise UserError(f"--jobs must be at least 1, but is {given.jobs} instead.")
    if given.readme:
        return fill_readme(out)
    for run in list_runs(corpora):
        check_run(run, out)
    if given.list:
        jobs = list_jobs(corpora, out, training=not given.no_training, smt=not given.skip_smt)
        print(describe(jobs, read_times(corpora, out), workers=given.jobs))
        return 0
    with hold(out) as lock:
        return do_jobs(given, corpora, out, lock)


def do_jobs(given: argparse.Namespace, corpora: Sequence[str], out: Path, lock: int) -> int:
    """Runs what is missing and tells of it; the exit code. Processes inherit the lock, see `jobs.hold`."""
    if "multi30k" in corpora:
        find_texts(given.data, out)
    jobs = list_jobs(corpora, out, training=not given.no_training, smt=not given.skip_smt)
    times = read_times(corpora, out)
    failures = Pool(jobs, workers=given.jobs, times=times, folder=ROOT, inherited=(lock,)).run()
    for failure in [each for each in failures if each.code]:
        print(f"not done: {failure.job.name}: {failure.problem}; see {failure.job.log}", file=sys.stderr)
    if left_out := [each.job.name for each in failures if not each.code]:
        print(f"left out, because they need one of these: {len(left_out)} jobs, {left_out[0]} ...", file=sys.stderr)
    write_tables(corpora, out)
    if not given.skip_report:
        report = Job(
            "report",
            "report",
            (sys.executable, str(HERE / "report.py"), f"--out={out}"),
            out / "report.html",
            out / "logs" / "report.log",
            120.0,
        )
        report.makes.unlink(missing_ok=True)  # made anew from whatever there is now
        failures += Pool([report], workers=1, times=times, folder=ROOT, inherited=(lock,)).run()
    return sum_up(failures)


def read_times(corpora: Sequence[str], out: Path) -> Times:
    """How long jobs of the study took."""
    return Times(out / "logs" / "times.json", read_seconds(list_runs(corpora), out))


def read_corpora(only: str) -> tuple[str, ...]:
    """`--only` as the names of corpora.

    Raises:
        UserError: one is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in only.split(",") if name.strip()))
    if not names or set(names) - set(CORPORA):
        raise UserError(f"--only must name some of {', '.join(CORPORA)}, but is {only!r} instead.")
    return names


def find_texts(data: Path | None, out: Path) -> None:
    """Sees to it that Multi30k is in OUT/text.

    Raises:
        UserError: it is neither there nor in `data`.
    """
    if data is not None:
        copy_texts(data.expanduser().absolute(), out)
    elif not (out / "text" / "multi30k" / "test.fr").exists():
        raise UserError("--data is missing: name the folder that holds multi30k/tok, or give --only=phrasebook.")


def list_jobs(corpora: Sequence[str], out: Path, *, training: bool = True, smt: bool = True) -> list[Job]:
    """Everything that the study does, in its order: trainings, evaluations, rescoring.

    Args:
        corpora: some of `CORPORA`.
        out: folder of the study.
        training: False takes the runs that are finished, and leaves out what needs others.
        smt: whether to make and rescore the lists of the phrase-based system.
    """
    runs = list_runs(corpora)
    jobs = [make_job(run, out) for run in runs]
    for corpus in corpora:
        jobs += list_score_jobs(corpus, out)
    if smt and "multi30k" in corpora:
        lists = make_smt_job(out)
        jobs += [lists, *list_rescoring_jobs(out, smt=lists)]
    if not training:
        lost = {name_job(run) for run in runs if not run.find_folder(out).results.exists()}
        while more := {job.name for job in jobs if lost.intersection(job.needs)} - lost:
            lost |= more
        jobs = [job for job in jobs if job.name not in lost]
    return jobs


def make_smt_job(out: Path) -> Job:
    """The phrase-based system on Multi30k and its n-best lists."""
    command = (
        sys.executable,
        str(HERE / "phrase_based.py"),
        f"--data={out / 'text' / 'multi30k'}",
        f"--out={out / 'smt'}",
    )
    log = out / "logs" / "phrase_based.log"
    return Job("phrase-based system", "phrase-based system", command, out / "smt" / "report.json", log, 900.0)


def describe(jobs: Sequence[Job], times: Times, *, workers: int) -> str:
    """What is done and what is not, with the time that it is likely to take."""
    seconds = times.estimate(jobs)
    lines = [f"{'done' if job.done else format_duration(seconds[job.name]):>8s}  {job.name}" for job in jobs]
    left = sum(seconds[job.name] for job in jobs if not job.done)
    done = sum(job.done for job in jobs)
    return "\n".join(
        [*lines, f"{done} of {len(jobs)} jobs are done; the others take {format_duration(left / workers)}"]
    )


def write_tables(corpora: Sequence[str], out: Path) -> None:
    """Makes tables.json and tables.md from what is finished; a corpus that was left out keeps what was told of it."""
    path = out / "tables.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("corpora", {}) if path.exists() else {}
    found |= {corpus: find_results(corpus, out) for corpus in corpora}
    found = {corpus: found[corpus] for corpus in CORPORA if corpus in found}
    tables = make_tables(found)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"made_with": versions(), "tables": tables, "corpora": found})
    text = render(tables, {corpus: result["missing"] for corpus, result in found.items()})
    replace_text(out / "tables.md", text)
    print(text)
    print(f"tables: {path}, {out / 'tables.md'}")


def fill_readme(out: Path) -> int:
    """Writes the tables of a study into this folder's README.md."""
    path = out / "tables.md"
    if not path.exists():
        raise UserError(f"{path}: is not there yet; run the study first, or name its folder by --out.")
    write_readme(HERE / "README.md", path.read_text(encoding="utf-8"))
    print(f"written: {HERE / 'README.md'}")
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # the pool ends its processes, which save what they have


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(sys.argv))
