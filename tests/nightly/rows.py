"""What the parts of the nightly check share: a row of its table, the folder of a case, a program that is started."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of the table.

    Attributes:
        name: what was measured, in words.
        asked: the figure to reach, in words.
        got: what came of it, in words.
        passed: whether it was reached.
        details: what else is worth keeping, as JSON.
    """

    name: str
    asked: str
    got: str
    passed: bool
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a part is called with.

    Attributes:
        count: how many cases.
        seed: of their draws.
        folder: an empty folder to work in.
        tell: prints a line of progress.
    """

    count: int
    seed: int
    folder: Path
    tell: Callable[[str], None]


def environment(**more: str) -> dict[str, str]:
    """Of a program that a case starts: the CPU, one device unless `more` says otherwise, the package from this tree."""
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "SEQ2SEQ_JAX_FAILPOINT")}
    cache = ROOT / ".pytest_cache" / "nightly_compilations"
    given = {
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": "16",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    return {**kept, **given, **more}


def start(arguments: Sequence[str], log: Any, **more: str) -> subprocess.Popen:
    """Starts `python -m seq2seq_jax.main ARGUMENTS` from the tree's root; output goes to the open file `log`."""
    command = [sys.executable, "-m", "seq2seq_jax.main", *arguments]
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment(**more), cwd=ROOT)


def describe_machine() -> str:
    """The processor and the versions that the figures are from."""
    import jax

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}, Python {platform.python_version()}, JAX {jax.__version__}"


def keep(folder: Path, part: str, rows: Sequence[Row], *, job: Job, seconds: float) -> None:
    """Writes what a part came to, for the table."""
    record = {
        "part": part,
        "date": datetime.date.today().isoformat(),
        "count": job.count,
        "seed": job.seed,
        "seconds": round(seconds),
        "machine": describe_machine(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    path.with_suffix(".tmp").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".tmp").replace(path)


def make_table(folder: Path) -> str:
    """The table of all parts that were run, as Markdown."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = [
        "| part | figure | to reach | got | reached | cases, seed | took | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for row in record["rows"]:
            cells = (
                record["part"],
                row["name"],
                row["asked"],
                row["got"],
                "yes" if row["passed"] else "**no**",
                f"{record['count']}, {record['seed']}",
                f"{record['seconds'] // 60} min {record['seconds'] % 60} s",
                record["date"],
            )
            lines.append("| " + " | ".join(cells) + " |")
    machines = sorted({record["machine"] for record in records})
    return "\n".join([f"Measured on {'; '.join(machines)}.", "", *lines, ""])
