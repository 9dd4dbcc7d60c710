"""The scaling study, one command: sweeps model size, data, compute and mesh; fits, plots, reports.

    python experiments/scaling/run.py --preset laptop --out runs/scaling

Every point runs in a process of its own and is kept in OUT/points as soon as it is finished: the same command again
runs only what is missing. OUT/points.csv, OUT/plots and OUT/report.html are made anew from the finished points.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from points import PRESETS, Point, Study, find_file, list_points, load_results, override, read_mesh
from report import write_report

DEVICES_FLAG = "--xla_force_host_platform_device_count"


def main(argv: Sequence[str]) -> int:
    """Runs the command line; 0 when every point is measured or was left out for want of devices."""
    given = _parse(argv[1:])
    out = given.out or Path("runs") / f"scaling-{given.preset}"
    study = _choose_study(given)
    words = [word for word in argv[1:] if word != "--report"]
    command = shlex.join(["python", "experiments/scaling/run.py", *words])
    left_out: list[str] = []
    failed = 0
    if not given.report:
        _claim(out, study)
        signal.signal(signal.SIGTERM, _stop)
        left_out, failed = run_points(study, out)
    results = load_results(out)
    if not results:
        print(f"{out}: no point is finished, nothing to report.", file=sys.stderr)
        return 2
    path = write_report(results, out, command=command, left_out=left_out)
    print(f"{len(results)} points: {path}")
    return 1 if failed else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="laptop", help="what is measured; see points.py")
    parser.add_argument("--out", type=Path, help="folder of the study (default: runs/scaling-PRESET)")
    parser.add_argument("--report", action="store_true", help="run nothing, make the report of what is finished")
    parser.add_argument("--features", type=int, nargs="+", metavar="N", help="model widths, instead of the preset's")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="training lengths")
    parser.add_argument(
        "--pairs", type=int, nargs="+", metavar="N", help="corpus sizes (the longest is for all widths)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="every training with each of these")
    parser.add_argument(
        "--meshes", nargs="*", metavar="MESH", help="such as data=1 data=2 data=2,stage=2; none: no meshes"
    )
    return parser.parse_args(argv)


def _choose_study(given: argparse.Namespace) -> Study:
    study = PRESETS[given.preset]
    for name in ("features", "steps", "pairs", "seeds", "meshes"):
        study = override(study, name, getattr(given, name))
    try:
        for mesh in study.meshes:
            read_mesh(mesh)
    except ValueError as error:
        _refuse(f"--meshes: {error}")
    return study


def _refuse(problem: str) -> NoReturn:
    print(f"run.py: error: {problem}", file=sys.stderr)
    sys.exit(2)


def _claim(out: Path, study: Study) -> None:
    """Refuses a folder whose points were made with other settings: their losses cannot be compared."""
    note, fixed = out / "study.json", study.fixed()
    (out / "points").mkdir(parents=True, exist_ok=True)
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != fixed:
        _refuse(f"{out} holds a study with other settings ({note}); choose another --out.")
    note.write_text(json.dumps(fixed, indent=1) + "\n", encoding="utf-8")


def run_points(study: Study, out: Path) -> tuple[list[str], int]:
    """Measures what is missing. Returns what was left out, in words, and how many points failed."""
    points = list_points(study)
    missing = [point for point in points if not find_file(out, point, study.fixed()).exists()]
    print(f"{len(points)} points, {len(points) - len(missing)} of them finished before", flush=True)
    left_out, failed = [], 0
    for number, point in enumerate(missing, start=1):
        started = time.monotonic()
        path = find_file(out, point, study.fixed())
        code, last = run_point(point, study, out, path)
        told = f"[{number}/{len(missing)}] {point.describe()}"
        if code == 0:
            told += f": {_sum_up(path)}, {time.monotonic() - started:.0f} s"
        elif code == 2:  # the machine or the settings do not allow it
            left_out.append(f"{point.describe()}: {last}")
            told += f": left out: {last}"
        else:
            failed += 1
            told += f": FAILED with exit code {code}: {last} (all of it: {_log_of(out, path)})"
        print(told, flush=True)
    return left_out, failed


def run_point(point: Point, study: Study, out: Path, path: Path) -> tuple[int, str]:
    """Measures one point in a process of its own. Returns its exit code and the last line it wrote."""
    request = {"point": vars(point), "fixed": study.fixed(), "vocab": str((out / "vocab").absolute())}
    log = _log_of(out, path)
    log.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as asked, log.open("wb") as written:
        json.dump(request, asked)
        asked.flush()
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("measure.py")), asked.name, str(path.absolute())],
            env=make_environment(os.environ, point.devices),
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return done.returncode, lines[-1] if lines else "no output"


def make_environment(environment: Mapping[str, str], devices: int) -> dict[str, str]:
    """The environment of a point: as many CPU devices as its mesh has, and compilation times that are no cache's."""
    flags = [flag for flag in environment.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICES_FLAG)]
    return {
        **environment,
        "XLA_FLAGS": " ".join([*flags, f"{DEVICES_FLAG}={devices}"]),  # ignored where there is an accelerator
        "PJRT_NPROC": environment.get("PJRT_NPROC", "16"),  # fewer threads than devices can wait for each other
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_TRACEBACK_FILTERING": "off",  # or the last line of a log says nothing of the error
    }


def _log_of(out: Path, path: Path) -> Path:
    return out / "logs" / f"{path.stem}.log"


def _sum_up(path: Path) -> str:
    found = json.loads(path.read_text(encoding="utf-8"))
    loss = f"dev loss {found['dev_loss']:.3f}, " if "dev_loss" in found else ""
    return f"{loss}{found['tokens_per_second']:,.0f} tokens/s, compiled in {found['compile_seconds']:.1f} s"


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # ends the point that is running, too; it is run again next time


if __name__ == "__main__":
    sys.exit(main(sys.argv))
