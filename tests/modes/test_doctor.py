"""`--mode=doctor` tells what is there and what is wrong, changes nothing, and stands any folder of a run."""

import errno
import json
import shutil
import subprocess
import sys

import pytest

from seq2seq_jax import main
from seq2seq_jax.config import default_config
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.modes import doctor, run_health
from seq2seq_jax.train.manifest import verify_manifest, write_manifest
from seq2seq_jax.workdir import find_compiled


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """One device, as many threads as there are."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def run(tmp_path):
    """A run's folder with three checkpoints that are whole, and the scores of its test."""
    root = tmp_path / "run"
    root.mkdir()
    (root / "config.json").write_text(json.dumps(default_config().to_dict()))
    for step in (4, 8, 12):
        add_step(root, step)
    lines = ["one red cat", "two blue dogs"]
    train_vocabs(lines, lines, kind="word", size=20).save(root / "vocab")
    results = {"test": {"step": 12, "bleu": 31.25, "chrf": 50.5, "samples": []}}
    (root / "results.json").write_text(json.dumps(results))
    return root


def add_step(root, step):
    """A committed step, as Orbax leaves it, with its manifest."""
    folder = root / "checkpoints" / str(step)
    (folder / "default").mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    (folder / "default" / "data").write_bytes(bytes(range(256)) * 40)
    write_manifest(folder, step=step, record={"meta": {"examples": step}, "metrics": {}})


def take_picture(root):
    """Everything that can be seen of a folder: names, contents, and when they were changed."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in (root, *root.rglob("*"))
    }


def call(*args):
    return main.main(["seq2seq_jax.main", "--mode=doctor", *args])


def test_a_healthy_machine_and_run(run, capsys):
    before = take_picture(run)
    assert call("--json", f"--workdir={run}") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == [] and report["run"]["config"] == "valid"
    assert (
        report["versions"]["sentencepiece"] and report["versions"]["jax"] and report["python"] == sys.version.split()[0]
    )
    assert [device["platform"] for device in report["devices"]] == ["cpu"]
    assert report["memory"]["total_bytes"] > report["memory"]["free_bytes"] > 0 and report["cpu"]["usable_cores"] >= 1
    assert report["disk"]["writable"] and report["disk"]["free_bytes"] > 0
    assert [(one["step"], one["standing"]) for one in report["run"]["checkpoints"]] == [
        (12, "verified"), (8, "verified"), (4, "verified")]  # fmt: skip
    assert report["run"]["results"]["scores"] == {"bleu": 31.25, "chrf": 50.5}
    assert take_picture(run) == before


def test_in_words_it_ends_with_what_is_wrong_and_the_cure(run, capsys):
    (run / "checkpoints" / "12" / "default" / "data").write_bytes(b"short")
    before = take_picture(run)
    assert call(f"--workdir={run}") == 2
    told = capsys.readouterr()
    assert "step 12: bad (default/data has 5 bytes instead of 10240)" in told.out and "step 8: verified" in told.out
    assert told.out.split("what is wrong:")[1].count("cure: ") == 1
    assert told.err.count("\n") == 1 and told.err.startswith("seq2seq_jax: error: --mode=doctor found 1")
    assert take_picture(run) == before


def test_every_step_s_standing_is_told(run):
    steps = run / "checkpoints"
    flipped = bytearray((steps / "12" / "default" / "data").read_bytes())
    flipped[77] ^= 4
    (steps / "12" / "default" / "data").write_bytes(flipped)
    (steps / "8" / "manifest.json").unlink()
    (steps / "4" / "manifest.json").write_text("{torn")
    (steps / "quarantine" / "2").mkdir(parents=True)
    report = run_health.examine_run(run)
    assert {one["step"]: one["standing"] for one in report["checkpoints"]} == {12: "bad", 8: "unverified", 4: "bad"}
    assert report["quarantine"] == ["2"]
    told = " ".join(problem["what"] for problem in report["problems"])
    assert "12 is damaged: default/data is not what was written" in told and "4 is damaged: manifest.json" in told
    assert len(report["problems"]) == 2 and "quarantine/" in run_health.render_run(report)[-2]
    (steps / "8" / "manifest.json").write_text("null")
    assert "no checkpoint is usable" in run_health.examine_run(run)["problems"][-1]["what"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{torn"),
        ("config.json", "[" * 100_000),
        ("config.json", '{"model": {"name": "gnmt"}, "train": {"steps": null}}'),
        ("config.json", "\0"),
        ("members.json", "5"),
        ("members.json", '{"members": 2}'),
    ],
)
def test_a_broken_folder_is_told_and_does_not_break_the_doctor(name, content, run):
    (run / name).write_text(content)
    report = run_health.examine_run(run)
    assert report["problems"] and all(problem["what"] and problem["cure"] for problem in report["problems"])
    assert run_health.render_run(report)


@pytest.mark.parametrize("content", ["", "{torn", "[]", '{"test": 5}', '{"test": {"step": "x"}}', "[" * 100_000])
def test_results_that_cannot_be_read_are_none(content, run):
    (run / "results.json").write_text(content)
    report = run_health.examine_run(run)
    assert report["results"] is None
    assert all(problem["what"].endswith("results.json is damaged") for problem in report["problems"])


def test_the_newest_results_count(run):
    import os

    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps({"test": {"step": 8, "bleu": 1.0}}))
    os.utime(run / "results.json", (1, 1))
    assert run_health.examine_run(run)["results"]["step"] == 8


def test_no_folder_at_all(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file", tmp_path):
        assert run_health.examine_run(path)["problems"]
    (tmp_path / "checkpoints").write_text("no folder")
    assert run_health.examine_run(tmp_path)["problems"]


HEALTHY = {
    "versions": {"jax": "0.10.2", "sentencepiece": "0.2.3"},
    "devices": [{"platform": "cpu", "kind": "cpu", "memory_bytes": None}],
    "devices_error": "",
    "environment": {},
    "cpu": {"usable_cores": 4},
    "memory": {"free_bytes": 8 * 2**30},
    "disk": {"folder": "/x", "writable": True, "free_bytes": 8 * 2**30},
    "cache": {"folder": "/y", "writable": True},
    "run": None,
}


@pytest.mark.parametrize(
    ("changes", "told", "cure"),
    [
        (
            {"versions": {"jax": "0.10.2", "sentencepiece": "0.2.1"}},
            "sentencepiece must be at least 0.2.3",
            "pip install",
        ),
        ({"versions": {"jax": "0.9.10", "sentencepiece": "0.2.3"}}, "jax must be at least 0.10, but is 0.9.10", "pip"),
        ({"versions": {"jax": "0.10.2", "sentencepiece": None}}, "sentencepiece is missing", "pip install"),
        ({"devices": [], "devices_error": "JAX ended with code 1: no TPU"}, "no TPU", "JAX_PLATFORMS=cpu"),
        ({"disk": {"folder": "/x", "writable": True, "free_bytes": 2**20}}, "nearly full (0.00 GiB free)", "make room"),
        ({"disk": {"folder": "/x", "writable": False, "free_bytes": 2**40}}, "/x cannot be written to", "--workdir"),
        ({"memory": {"free_bytes": 2**28}}, "little memory is free (256 MiB)", "end other programs"),
        ({"cache": {"folder": "/y", "writable": False}}, "cannot be kept in /y", "JAX_COMPILATION_CACHE_DIR"),
        ({"environment": {"JAX_DISABLE_JIT": "1"}}, "JAX_DISABLE_JIT is set", "unset"),
        ({"environment": {"SEQ2SEQ_JAX_FAILPOINT": "step:1"}}, "SEQ2SEQ_JAX_FAILPOINT is set", "unset"),
        (
            {"environment": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}},
            "8 devices of a CPU with 4 threads",
            "PJRT_NPROC=16",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(changes, told, cure, monkeypatch):
    asked = [("jax", "0.10", ""), ("sentencepiece", "0.2.3", ""), ("nothing_like_it", "3", "speech")]
    monkeypatch.setattr(doctor, "list_requirements", lambda: asked)
    monkeypatch.setattr(doctor, "has_nvidia", lambda: False)
    assert list(doctor.find_problems(HEALTHY)) == []
    (problem,) = doctor.find_problems(HEALTHY | changes)
    assert told in problem.what and cure in problem.cure


def test_a_card_that_jax_does_not_use(monkeypatch):
    monkeypatch.setattr(doctor, "list_requirements", list)
    monkeypatch.setattr(doctor, "has_nvidia", lambda: True)
    (problem,) = doctor.find_problems(HEALTHY)
    assert "NVIDIA" in problem.what and "seq2seq_jax[cuda]" in problem.cure
    asked = HEALTHY | {"environment": {"JAX_PLATFORMS": "cpu"}}  # as it was asked to
    used = HEALTHY | {"devices": [{"platform": "gpu", "kind": "H200", "memory_bytes": 1}]}
    assert not list(doctor.find_problems(asked)) and not list(doctor.find_problems(used))


def test_an_accelerator_that_fails_is_a_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    devices, error = doctor.read_devices(look(doctor.LOOK))
    assert devices == [] and "\n" not in error and "nonsense" in error and "code 1" in error


def test_an_accelerator_that_hangs_or_dies_is_a_line(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    assert doctor.read_devices(look("import time; time.sleep(60)"))[1] == "JAX did not find its devices within 0 s"
    monkeypatch.setattr(doctor, "PATIENCE", 60)
    assert "code -6: it said nothing" in doctor.read_devices(look("import os; os.abort()"))[1]


def look(program):
    """A process like the doctor's own."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True)


def test_what_setup_cfg_asks_for_is_read_from_the_package(monkeypatch):
    lines = [
        "jax>=0.10",
        "sentencepiece>=0.2.3",
        'py3langid>=0.4; extra == "clean"',
        'jax[cuda12]; extra == "cuda"',
        "rich",
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    assert doctor.list_requirements() == [
        ("jax", "0.10", ""), ("sentencepiece", "0.2.3", ""), ("py3langid", "0.4", "clean"), ("jax", "", "cuda"),
        ("rich", "", "")]  # fmt: skip
    assert doctor.number("0.10.2.dev3") == (0, 10, 2) and doctor.number("0.9") < doctor.number("0.10")
    assert doctor.list_extras()["speech"] is False


def test_a_disk_that_cannot_be_written_to_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found = doctor.try_disk(tmp_path / "not" / "there")
    assert not found["writable"] and found["bytes_per_second"] is None and found["free_bytes"] > 0


def test_a_file_system_without_files_that_have_no_name_is_not_wrong(tmp_path, monkeypatch):
    def refuse(path, flags, mode):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(doctor.os, "open", refuse)
    found = doctor.try_disk(tmp_path)
    assert found["writable"] and found["bytes_per_second"] is None and "error" not in found


def test_a_cache_elsewhere_is_named_as_it_is(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    found = doctor.describe_cache(find_compiled())
    assert found["folder"] == "gs://bucket/cache" and found["writable"] and found["bytes"] is None


def test_a_step_that_a_training_removes_meanwhile_is_not_wrong(run, monkeypatch):
    def verify(folder, *, step):
        if step == 4:
            shutil.rmtree(folder)
        return verify_manifest(folder, step=step)

    monkeypatch.setattr(run_health, "verify_manifest", verify)
    found = run_health.examine_run(run)
    assert [one["step"] for one in found["checkpoints"]] == [12, 8] and found["problems"] == []


@pytest.mark.parametrize("name", ["vocab/vocabs.json", "metrics.jsonl", "results.json"])
def test_damage_beside_the_checkpoints_is_told(run, name):
    (run / name).write_bytes(b"{}x\n")
    found = run_health.examine_run(run)
    assert any(name in problem["what"] and problem["cure"] for problem in found["problems"]), found["problems"]
