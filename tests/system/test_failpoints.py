"""A run is killed at every place where a failpoint can be, one after the other, and still ends as one left alone."""

from __future__ import annotations

import ast
import signal
import sys
from pathlib import Path

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.failpoints import ACTIONS, PLACES, VARIABLE, check_environment, reach

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "nightly"))

from nursery import Nursery  # noqa: E402
from small_runs import LSTM, Running, compare, finish, list_left_over, read_outcome, write_text  # noqa: E402

ARGS = (
    *LSTM,
    "--config.train.steps=30",
    "--config.train.save_every=5",
    "--config.train.evaluate_every=20",
    "--config.train.log_every=5",
    "--config.train.keep_last=2",
)


def has(pattern):
    return lambda root: any(root.glob(pattern))


def lacks(pattern):
    return lambda root: not any(root.glob(pattern))


DEATHS = (
    # failpoint, what shows that the run has died there, and nowhere else
    ("start", lacks("vocab")),
    ("vocab", lacks("vocab/*.json")),
    ("config", lambda root: has("vocab/vocabs.json")(root) and lacks("config.json")(root)),
    ("compile", lambda root: has("config.json")(root) and "compiled" not in log_of(root)),
    ("step:3", lambda root: "compiled the step" in log_of(root) and lacks("checkpoints/[0-9]*")(root)),
    ("log:5", lambda root: 0 < len((root / "metrics.jsonl").read_text()) and "\n" not in metrics_of(root)),
    ("save:5", lambda root: metrics_of(root).endswith("\n") and lacks("checkpoints/5*")(root)),
    ("arrays:5", has("checkpoints/5.orbax-checkpoint-tmp*")),
    ("commit:5", lambda root: has("checkpoints/5")(root) and lacks("checkpoints/5/*manifest.json*")(root)),
    ("batch:7", lambda root: "resuming at step 5" in log_of(root) and lacks("checkpoints/10*")(root)),
    ("manifest:10", lambda root: has("checkpoints/10/.manifest.json.*")(root) and is_doubtful(root, 10)),
    ("rotate:5", has("checkpoints/5.removed")),
    ("restore", lambda root: "resuming" not in log_of(root)),
    ("quarantine:15", has("checkpoints/15/manifest.json")),
    ("evaluate:20", lambda root: '"step": 20' in metrics_of(root) and "dev_loss" not in metrics_of(root)),
    ("evaluate:20:term", lambda root: "during the evaluation" in log_of(root) or "at step 20" in log_of(root)),
    ("record:20", lambda root: has("checkpoints/20")(root) and "resuming at step 20" in log_of(root)),
    ("test", lambda root: has("outputs/test.hypo*")(root) and lacks("outputs/test.nbest.txt")(root)),
    ("results", lambda root: has("outputs/test.nbest.txt")(root) and lacks("results.json")(root)),
    ("close", has("results.json")),
)


def log_of(root):
    return root.with_name(f"{root.name}.log").read_text()


def metrics_of(root):
    return (root / "metrics.jsonl").read_text()


def is_doubtful(root, step):
    return not (root / "checkpoints" / str(step) / "manifest.json").exists()


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as found:
        yield found


@pytest.fixture(scope="module")
def runs(nursery, tmp_path_factory):
    """The arguments of a run, and one left alone."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = (*ARGS, *write_text(folder / "corpus", 1))
    finish(nursery, arguments, folder / "alone")
    return arguments, folder / "alone"


def flip_last_byte(root, step):
    """Spoils the largest file of a checkpoint."""
    path = max((root / "checkpoints" / str(step)).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.slow
def test_a_run_that_dies_at_every_place_equals_one_left_alone(nursery, runs):
    arguments, alone = runs
    assert {failpoint.split(":")[0] for failpoint, _ in DEATHS} == set(PLACES)
    root = alone.with_name("disturbed")
    for failpoint, shows in DEATHS:
        if failpoint.startswith("quarantine"):
            flip_last_byte(root, 15)
        running = Running(nursery, arguments, root, **{VARIABLE: failpoint})
        assert running.end() == (143 if failpoint.endswith("term") else -signal.SIGKILL), (failpoint, running.said())
        assert shows(root), (failpoint, running.said(), sorted(root.rglob("*")))
    finish(nursery, arguments, root, **{VARIABLE: ""})

    one, other = read_outcome(alone), read_outcome(root)
    assert compare(one, other) == ["left_over"]
    assert other.left_over == ["checkpoints/quarantine/15/manifest.json"]  # the one that was spoiled
    assert one.left_over == [] and len(one.losses) == 6 and len(one.dev) == 2 and len(one.outputs) >= 4


@pytest.mark.slow
def test_ways_out_save_and_failed_saves_do_not_end_a_run(nursery, runs):
    arguments, alone = runs
    root = alone.with_name("failing")
    for failpoint, code, newest in (("step:7:raise", 1, 5), ("step:8:interrupt", 130, 8), ("step:12:term", 143, 12)):
        running = Running(nursery, arguments, root, **{VARIABLE: failpoint})
        assert running.end() == code, (failpoint, running.said())
        assert ("Traceback" in running.said()) == (code == 1)
        assert (root / "checkpoints" / str(newest) / "manifest.json").is_file()
        assert not list_left_over(root)
    for failpoint in ("save:15:enospc", "manifest:30:enospc"):
        running = finish(nursery, arguments, root, **{VARIABLE: failpoint})
        told = [line for line in running.said().splitlines() if "No space left on device" in line]
        step = failpoint.split(":")[1]
        assert len(told) == 1 and f"checkpoint of step {step}" in told[0], running.said()
        if step == "15":
            said = running.said()
            assert said.index(told[0]) < said.index("step 20/30"), "noticed late"
        (root / "results.json").unlink()
        (root / "checkpoints" / "30").rename(root / "checkpoints" / "30.removed")  # its last steps are taken again
    finish(nursery, arguments, root, **{VARIABLE: ""})
    assert read_outcome(root).state == read_outcome(alone).state


def test_every_place_is_somewhere_and_nothing_else_is():
    named = set()
    for path in sorted((ROOT / "seq2seq_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "reach":
                named.add(ast.literal_eval(node.args[0]))
    assert named == set(PLACES) and len(PLACES) >= 12


@pytest.mark.parametrize("text", ["stop", "step:x", "step:-1", "step:3:explode", "step:3:kill:now", ":", "step:²"])
def test_what_is_no_failpoint_is_refused(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UserError, match="must be .*unset it"):
        check_environment()


def test_actions_happen_once_at_their_step(monkeypatch):
    done = []
    monkeypatch.setenv(VARIABLE, "log:3:enospc")
    check_environment()
    reach("log", 2, first=lambda: done.append(2))
    reach("step", 3)
    with pytest.raises(OSError, match="No space left"):
        reach("log", 3, first=lambda: done.append(3))
    reach("log", 3)
    monkeypatch.setenv(VARIABLE, "step:*:raise")
    check_environment()
    with pytest.raises(RuntimeError, match="failpoint step"):
        reach("step", 17)
    monkeypatch.setenv(VARIABLE, "")
    check_environment()
    for name in PLACES:
        reach(name)
    assert done == [3] and set(ACTIONS) >= {"kill", "term", "interrupt", "raise", "enospc", "sleep"}
