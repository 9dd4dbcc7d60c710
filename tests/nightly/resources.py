"""C10: memory, open files and threads of a long training stay as they are; C12: what verification adds to a save."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rows import Job, Row, start
from small_runs import LSTM, list_steps, read_metrics, write_text

from seq2seq_jax.train import checkpoints as module
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.manifest import Standing, verify_manifest

WARM = 500  # steps after which nothing may grow
MOST_GROWTH = 0.02
BY_NEED = "ts_pool_worker"  # TensorStore's own threads, which it makes when it has work and ends when it has none
MEGABYTES = 400
MOST_SHARE, MOST_SECONDS = 0.10, 1.0  # of a save's time; for a gigabyte


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process holds after a step."""

    step: int
    memory: int  # kB resident
    files: int
    threads: int  # without those BY_NEED


def _name_thread(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:  # it has ended
        return BY_NEED


def take_sample(pid: int, step: int) -> Sample | None:
    """Of a process of Linux; None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
        names = [_name_thread(task) for task in Path(f"/proc/{pid}/task").iterdir()]
        threads = sum(name != BY_NEED for name in names)
        return Sample(step, int(status["VmRSS"]), len(os.listdir(f"/proc/{pid}/fd")), threads)
    except (OSError, KeyError):
        return None


def take_steps(job: Job) -> list[Row]:
    """C10: a real training of so many steps, with checkpoints and evaluations, looked at from outside."""
    root, warm = job.folder / "run", min(WARM, job.count // 4)
    arguments = [
        *LSTM,
        *write_text(job.folder / "corpus", job.seed),
        f"--workdir={root}",
        f"--config.train.steps={job.count}",
        f"--config.train.decay_steps={job.count}",
        "--config.train.save_every=100",
        f"--config.train.evaluate_every={warm // 2}",
        "--config.train.log_every=10",
    ]
    samples = list[Sample]()
    with (job.folder / "log").open("w") as log:
        process, began = start(arguments, log), time.monotonic()
        while process.poll() is None:
            step = max((record["step"] for record in read_metrics(root)[-1:]), default=0)
            if (sample := take_sample(process.pid, step)) and sample.memory and step < job.count:
                samples.append(sample)
            if len(samples) % 60 == 1:
                left = (time.monotonic() - began) / max(step, 1) * (job.count - step)
                job.tell(f"step {step} of {job.count}: {samples[-1]}, {left:.0f} s left")
            time.sleep(0.5)
    if process.returncode or not list_steps(root):
        return [Row("memory over many steps", "", f"the run failed: {(job.folder / 'log').read_text()[-800:]}", False)]
    return _judge_samples(samples, job.count, warm)


def _judge_samples(samples: list[Sample], count: int, warm: int) -> list[Row]:
    """Medians of the first and of the last tenth of the steps after the warm-up."""
    span = (count - warm) // 10
    first = [sample for sample in samples if warm <= sample.step < warm + span]
    last = [sample for sample in samples if sample.step >= count - span]
    rows = []
    for name, field, most in (
        ("resident memory", "memory", MOST_GROWTH),
        ("open files", "files", 0.0),
        ("threads (but TensorStore's workers, which come and go)", "threads", 0.0),
    ):
        before, after = (statistics.median(getattr(sample, field) for sample in part) for part in (first, last))
        told = f"{before / 1024:.1f} to {after / 1024:.1f} MiB" if field == "memory" else f"{before:g} to {after:g}"
        growth = after / before - 1
        rows.append(
            Row(
                f"{name} of a training, steps {warm:,} to {count:,} with a checkpoint every 100",
                f"growth of at most {most:.0%}",
                f"{growth:+.2%} ({told})",
                growth <= most,
                {"samples": [len(first), len(last)], "most": max(getattr(sample, field) for sample in samples)},
            )
        )
    return rows


class Clock:
    """Seconds on the wall, and of the processors, that things take; on a busy machine only the latter mean anything."""

    def __init__(self) -> None:
        self.wall, self.processors = list[float](), list[float]()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed from here on."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.monotonic(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.wall.append(time.monotonic() - began[0])
                self.processors.append(time.process_time() - began[1])

        return timed

    def per(self, gigabytes: float) -> tuple[float, str]:
        """Median seconds for a gigabyte, and both kinds in words."""
        wall, processors = (statistics.median(seconds) / gigabytes for seconds in (self.wall, self.processors))
        return wall, f"{wall:.2f} s/GB ({processors:.2f} s of a processor)"


def time_verification(job: Job) -> list[Row]:
    """C12: seconds that digests add to a save, and that verifying them takes before a checkpoint is read."""
    rows = MEGABYTES * 250_000 // 10 // 1000
    state = {f"layer{n}": jax.random.normal(jax.random.key(n), (rows, 1000)) for n in range(10)}
    jax.block_until_ready(state)
    saving, hashing, verifying, folder = Clock(), Clock(), Clock(), job.folder / "run"
    write, verify = module.write_manifest, verifying(verify_manifest)
    module.write_manifest = hashing(write)
    try:
        with Checkpoints(folder, asynchronous=False, warn=job.tell) as checkpoints:
            save = saving(checkpoints.save)
            for step in range(1, job.count + 1):
                save(step, state, meta={})
                if verify(folder / str(step), step=step).standing is not Standing.VERIFIED:
                    return [Row("verification", "", "a checkpoint could not be verified", False)]
                job.tell(
                    f"{step} of {job.count}: saved in {saving.wall[-1]:.2f} s, {hashing.wall[-1]:.2f} s of it digests"
                )
    finally:
        module.write_manifest = write
    gigabytes = sum(path.stat().st_size for path in (folder / str(job.count)).rglob("*") if path.is_file()) / 1e9
    shares = [
        statistics.median(part / (whole - part) for part, whole in zip(parts, wholes, strict=True))
        for parts, wholes in ((hashing.wall, saving.wall), (hashing.processors, saving.processors))
    ]
    what, most = f"a checkpoint of {gigabytes * 1000:.0f} MB", f"at most {MOST_SECONDS:g} s/GB"
    (hashed, told), (verified, told_too) = hashing.per(gigabytes), verifying.per(gigabytes)
    added = f"{shares[0]:.1%} of its time ({shares[1]:.1%} of the processors')"
    return [
        Row(f"what digests add to a save of {what}", f"at most {MOST_SHARE:.0%}", added, shares[0] <= MOST_SHARE),
        Row(f"digests of {what}, when it is saved", most, told, hashed <= MOST_SECONDS, {"seconds": hashing.wall}),
        Row(f"verification of {what}", most, told_too, verified <= MOST_SECONDS, {"seconds": verifying.wall}),
    ]
