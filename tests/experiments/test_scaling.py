"""The scaling study as people run it: one command, its resumption, the notebook; and its curves on made-up points."""

import base64
import contextlib
import csv
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "scaling"
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiles in less time


def load(name):
    """A file of the study; it is no package, its files stand beside each other."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return __import__(name)


TINY = ("--preset", "tiny", "--features", 8)
curves, points, report, run = load("curves"), load("points"), load("report"), load("run")


def make_command(*arguments):
    """The command as a person would start it, and its environment."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": QUICK}
    return [sys.executable, str(FOLDER / "run.py"), *map(str, arguments)], environment


def start(*arguments):
    """Runs it to its end."""
    command, environment = make_command(*arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a finished tiny study, and what the command printed."""
    out = tmp_path_factory.mktemp("scaling") / "study"
    done = start(*TINY, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


class Tags(html.parser.HTMLParser):
    """Checks that every tag is closed in its turn; collects pictures and the cells of tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.rows = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_one_command_measures_fits_plots_and_reports(study):
    out, printed = study
    assert "[2/2]" in printed and "dev loss" in printed
    rows = read_csv(out / "points.csv")
    assert [row["kind"] for row in rows] == ["train", "speed"]
    assert [row["devices"] for row in rows] == ["1", "2"]
    assert 2 < float(rows[0]["dev_loss"]) < np.log(100) + 1  # little trained: about that of chance over characters
    for row in rows:
        assert float(row["tokens_per_second"]) > 0 and float(row["compile_seconds"]) > 0.1
        assert 2**26 < float(row["peak_rss_bytes"]) < 2**36 and float(row["step_bytes_per_device"]) > 1000
    text = (out / "report.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.open and text.startswith("<!DOCTYPE html>") and "5 different points, and there are 1" in text
    assert tags.pictures and all(base64.b64decode(src.partition("base64,")[2])[1:4] == b"PNG" for src in tags.pictures)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)  # one file that asks for no other
    assert len(tags.pictures) == len(list((out / "plots").glob("*.png")))
    assert len({len(row) for row in tags.rows[-3:]}) == 1  # the table of all points: a head and two


@pytest.mark.slow
def test_finished_points_are_not_run_again_and_a_killed_one_is(study):
    out, _ = study
    kept = {path: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}
    (missing,) = (out / "points").glob("train-f8-*.json")
    log = out / "logs" / f"{missing.stem}.log"
    before = json.loads(missing.read_text())
    missing.unlink()
    log.unlink()
    command, environment = make_command(*TINY, "--out", out)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as killed:
        while not log.exists():  # the point has been started
            time.sleep(0.05)
        killed.terminate()
    assert killed.returncode == 143 and not missing.exists()
    once_more = start(*TINY, "--out", out)
    assert once_more.returncode == 0 and "2 points, 1 of them finished before" in once_more.stdout
    now = {path: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}
    assert now.keys() == kept.keys() and [path for path in now if now[path] != kept[path]] == [missing]
    assert json.loads(missing.read_text())["dev_loss"] == pytest.approx(before["dev_loss"], rel=1e-6)


@pytest.mark.slow
def test_other_settings_are_refused_in_the_same_folder(study):
    out, _ = study
    done = start("--preset", "laptop", "--out", out)
    assert done.returncode == 2 and "other settings" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(study, monkeypatch):
    out, _ = study
    notebook = json.loads((FOLDER / "scaling.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    shown = []
    stub = types.ModuleType("IPython.display")
    stub.HTML, stub.Image, stub.display = str, (lambda filename: Path(filename)), shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", stub)
    monkeypatch.setenv("SCALING_PRESET", "tiny")
    monkeypatch.setenv("SCALING_OUT", str(out))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", QUICK)
    monkeypatch.chdir(FOLDER)
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert "3 points, 2 of them finished before" in printed.getvalue()  # and the one more runs
    small, large, _ = read_csv(out / "points.csv")
    assert int(small["parameters"]) < int(large["parameters"]) and float(small["flops"]) < float(large["flops"])
    table, *pictures = shown
    assert table.count("<tr>") == 4 and [path.suffix for path in pictures] == [".png"] * len(pictures) and pictures


def make_results(study_, *, noise=0.0):
    """Made-up results of all points of a study, with laws that are known."""
    machine = {"platform": "cpu", "device_kind": "cpu", "cores": 2, "processor": "P", "memory_bytes": 2**34}
    machine |= {"python": "3", "versions": {"jax": "0"}}
    rng, results = np.random.default_rng(0), []
    for point in points.list_points(study_):
        parameters = 500 * point.features + 10 * point.features**2
        found = {"parameters": parameters, "flops": 6e3 * parameters * point.steps, "epochs": 1.0, "mfu": None}
        found |= {"tokens_per_second": 1000.0 * point.devices**0.5 * (point.rows or 64) / 64, "compilations": 2}
        found |= {"compile_seconds": 3.0, "step_bytes_per_device": 2**20, "peak_rss_bytes": 2**28, "seconds": 5.0}
        if point.kind == "train":
            loss = 1 + 60 * parameters**-0.4 + 20 * point.pairs**-0.5 + 10 / point.steps
            found["dev_loss"] = loss * float(np.exp(noise * rng.standard_normal()))
        results.append({"point": vars(point), **found, "machine": machine})
    return results


def test_laws_are_fitted_to_the_points_that_differ_in_nothing_else():
    rows = curves.flatten(make_results(points.LAPTOP))
    laws = {law.of: law for law in curves.fit_laws(rows, resamples=5)}
    assert laws.keys() == {"parameters", "compute", "data"}
    assert laws["parameters"].fitted.exponent.value == pytest.approx(0.4, rel=0.01)
    assert len(laws["parameters"].x) == len(points.LAPTOP.features)
    assert laws["data"].fitted.exponent.value == pytest.approx(0.5, rel=0.01)
    assert laws["data"].x == tuple(map(float, sorted(points.LAPTOP.pairs)))
    assert list(laws["compute"].loss) == sorted(laws["compute"].loss, reverse=True)


def test_strong_and_weak_scaling_compare_with_the_fewest_devices():
    rows = curves.flatten(make_results(points.LAPTOP))
    strong, weak = curves.find_strong(rows), curves.find_weak(rows)
    assert [(speed.devices, speed.rows) for speed in strong] == [(1, 64), (2, 64), (2, 64), (4, 64), (8, 64)]
    assert {speed.devices: speed.rows for speed in weak} == {1: 8, 2: 16, 4: 32, 8: 64}
    np.testing.assert_allclose([s.efficiency for s in strong], [s.devices**-0.5 for s in strong])  # rate ~ devices^0.5
    np.testing.assert_allclose([s.efficiency for s in weak], [s.devices**0.5 for s in weak])  # rate ~ rows devices^0.5


def test_the_report_says_that_devices_share_cores_and_what_was_left_out(tmp_path):
    results = make_results(points.LAPTOP, noise=0.01)
    path = report.write_report(
        results, tmp_path, command="run.py <x>", left_out=["data=8 needs 8 devices"], resamples=20
    )
    text = path.read_text(encoding="utf-8")
    assert "threads of one CPU with 2 cores: they share these cores" in text
    assert "Left out: data=8 needs 8 devices" in text and "run.py &lt;x&gt;" in text
    tags = Tags(text)
    assert not tags.open and len(tags.pictures) == 6
    (row,) = [row for row in tags.rows if row[0] == "parameters"]
    assert re.fullmatch(r"0\.\d+ \[0\.\d+, 0\.\d+\]", row[4])  # the exponent with its interval
    assert len(read_csv(tmp_path / "points.csv")) == len(results)


@pytest.mark.parametrize("name", points.PRESETS)
def test_a_point_has_a_file_of_its_own_for_every_difference(name, tmp_path):
    study_ = points.PRESETS[name]
    listed = points.list_points(study_)
    files = {points.find_file(tmp_path, point, study_.fixed()) for point in listed}
    assert len(files) == len(listed) == len(set(listed))
    other = points.find_file(tmp_path, listed[0], {**study_.fixed(), "vocab_pairs": 1})
    assert other not in files


def test_a_point_gets_as_many_cpu_devices_as_its_mesh_and_no_cached_compilation():
    given = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8", "X": "y"}
    made = run.make_environment(given, 4)
    assert made["XLA_FLAGS"].split() == ["--a=1", "--xla_force_host_platform_device_count=4"]
    assert made["JAX_ENABLE_COMPILATION_CACHE"] == "false" and made["X"] == "y"


@pytest.mark.parametrize("mesh", ["data", "data=0", "datum=2", "data=2 stage=2", "data=x"])
def test_a_wrong_mesh_is_one_clear_line(mesh, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["run.py", "--preset", "tiny", "--meshes", mesh, "--out", "nowhere"])
    assert stopped.value.code == 2 and repr(mesh) in capsys.readouterr().err and not Path("nowhere").exists()


def test_meshes_are_read():
    assert points.read_mesh("data=2,stage=4") == {"data": 2, "fsdp": 1, "tensor": 1, "stage": 4}
