"""Disks that are full, or may be read only, for a while: as in the nightly check, and fewer."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.modes.summary import sum_up
from seq2seq_jax.train.checkpoints import MAX_FAILED_SAVES, Checkpoints
from seq2seq_jax.train.manifest import Standing, verify_manifest
from seq2seq_jax.train.writers import MetricsFile, print_line

NIGHTLY = Path(__file__).parents[1] / "nightly"


def load(name):
    """A module of the nightly check, which imports others of them by their names."""
    spec = importlib.util.spec_from_file_location(name, NIGHTLY / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


damage = load("checkpoint_damage")
disks = load("small_disks")


@pytest.fixture(scope="module")
def size(tmp_path_factory):
    """Bytes of a checkpoint on a disk."""
    return disks.measure(tmp_path_factory.mktemp("size"))


@pytest.fixture
def memory(tmp_path, size):
    """A small file system of its own, where this user may mount one."""
    try:
        with disks.mount_memory(tmp_path / "memory", 8 * size) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(f"no file system can be mounted: {error}")


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.4, 0.9])
def test_a_limit_on_files_is_told_and_survived(tmp_path, size, part, asynchronous):
    full = lambda: disks.limit_files(int(part * size))  # noqa: E731
    assert disks.try_save(tmp_path / "run", full, asynchronous=asynchronous) == ""


@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
def test_a_full_file_system_is_told_and_survived(memory, size, part):
    full = lambda: disks.leave_bytes(memory, int(part * size))  # noqa: E731
    assert disks.try_save(memory / "run", full, asynchronous=True) == ""


@pytest.mark.parametrize("pages", [2, 3, 4, 5])
def test_a_file_system_with_room_for_the_first_small_files_alone(memory, pages):
    """Several files fail then; the errors of those that Orbax has not yet told must not spoil the next save."""
    full = lambda: disks.leave_bytes(memory, pages * disks.BLOCK)  # noqa: E731
    assert disks.try_save(memory / "run", full, asynchronous=True) == ""


@pytest.mark.parametrize("how", ["enospc", "edquot", "estale"])
@pytest.mark.parametrize("place", ["save", "manifest"])
def test_no_space_no_quota_or_a_lost_file_before_the_arrays_or_after_them(tmp_path, place, how):
    assert disks.try_save(tmp_path / "run", lambda: disks.fail_at(place, how), asynchronous=True) == ""


def test_three_manifests_in_a_row_that_cannot_be_written_end_the_run(tmp_path):
    """Without any, no old step would ever go, and none could be used."""
    warnings: list[str] = []
    with pytest.raises(UserError, match="3 checkpoints in a row .* step 3 is the newest there"):
        with Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
            for step in range(1, 9):
                with disks.fail_at("manifest"):
                    checkpoints.save(step, damage.make_state(step), meta={})
                    checkpoints.wait()
    assert len(warnings) == MAX_FAILED_SAVES - 1 and all("has no manifest" in text for text in warnings)


def test_a_disk_that_can_be_read_only(memory):
    """Refused before the first step; while training it is told, and the third time it ends the run; reading goes on."""

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(memory)], check=True)

    target, warnings = damage.abstract(damage.make_state(0)), list[str]()
    with pytest.raises(UserError, match="3 checkpoints in a row .*Read-only"):
        with Checkpoints(memory / "run", warn=warnings.append) as checkpoints:
            checkpoints.save(1, damage.make_state(1), meta={})
            checkpoints.wait()
            remount("ro")
            for step in range(2, 5):
                checkpoints.save(step, damage.make_state(step), meta={})
    assert len(warnings) == 2 and all("Read-only" in text for text in warnings)
    with pytest.raises(UserError, match="cannot write checkpoints to .*Read-only"):
        Checkpoints(memory / "run", warn=pytest.fail)
    with Checkpoints(memory / "run", read_only=True, warn=pytest.fail) as checkpoints:
        assert damage.equal(checkpoints.restore(target).state, damage.make_state(1))
    remount("rw")
    with Checkpoints(memory / "run", warn=pytest.fail) as checkpoints:
        assert checkpoints.restore(target).step == 1
        checkpoints.save(2, damage.make_state(2), meta={})
    assert verify_manifest(memory / "run" / "2", step=2).standing is Standing.VERIFIED


def test_lines_of_metrics_wait_until_they_can_be_written(tmp_path):
    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    wanted = [{"step": step, "note": "x" * 100} for step in range(40)]
    with MetricsFile(path, warn=warnings.append) as metrics:
        for record in wanted:
            if record["step"] in range(5, 20):
                with disks.limit_files(path.stat().st_size + 30 * (record["step"] == 5)):  # also in the midst of a line
                    metrics.write(record)
            else:
                metrics.write(record)
            if record["step"] == 4:
                assert len(path.read_text().splitlines()) == 5
    assert [json.loads(line) for line in path.read_text().splitlines()] == wanted
    assert len(warnings) == 1 and "File too large" in warnings[0] and str(path) in warnings[0]


def test_lines_that_could_not_be_written_to_the_end_are_counted(tmp_path):
    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    metrics = MetricsFile(path, warn=warnings.append)
    with disks.limit_files(0):
        metrics.write({"step": 1})
        metrics.write({"step": 2})
        metrics.close()
    metrics.close()
    assert warnings[1:] == [f"{path}: 2 lines were not written"] and path.read_text() == ""


def test_a_log_on_a_full_disk_ends_nothing(tmp_path):
    """And what was said in the meantime is written once it can be."""
    log = tmp_path / "log"
    with log.open("w") as stream:
        print_line("one", stream)
        with disks.limit_files(4):
            print_line("two", stream)
        print_line("three", stream)
    assert log.read_text() == "one\ntwo\nthree\n"


def test_errors_that_orbax_tells_late_are_not_those_of_the_next_save(tmp_path, monkeypatch):
    """Two of its writers fail; the second one's error would otherwise be raised again by the save after it."""
    monkeypatch.setattr("seq2seq_jax.train.checkpoints.try_to_write", lambda folder: "")
    assert disks.try_save(tmp_path / "run", lambda: disks.limit_files(0), asynchronous=True) == ""


def test_scores_that_cannot_be_written_later_are_told_and_end_nothing(tmp_path):
    warnings: list[str] = []
    with Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
        checkpoints.save(3, damage.make_state(3), meta={}, metrics={"bleu": 3.0})
        checkpoints.wait()
        with disks.fail_at("record"):
            checkpoints.record_metrics(3, meta={}, metrics={"bleu": 9.0})
        assert checkpoints.metrics(3) == {"bleu": 3.0} and checkpoints.is_whole(3)
    assert warnings == ["checkpoint of step 3 did not get its scores: [Errno 28] No space left on device"]


def test_a_line_of_metrics_that_is_half_written_is_left_out_of_the_sum(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = {"step": 1, "loss": 2.0, "source_tokens_per_second": 3.0, "target_tokens_per_second": 4.0}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"loss": 5.0})[:20])
    assert sum_up(path)["train_loss"] == 2.0 and sum_up(path)["tokens_per_second"] == 7.0
