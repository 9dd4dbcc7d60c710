"""The study of Sutskever et al. 2014: its grid of runs, and how it runs them, fails and goes on."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seq2seq_jax.config import check_config, flatten, load_config
from seq2seq_jax.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "seq2seq_2014"


def load(name):
    """A file of the study; it is no package, its files stand beside each other. Another study has a run.py, too."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if name != "run":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("seq2seq_2014_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


jobs, runs, scores, run = map(load, ("jobs", "runs", "scores", "run"))


# The grid.


@pytest.mark.parametrize("corpus", runs.CORPORA)
def test_every_run_of_the_grid_has_a_config_that_holds_and_differs_by_what_is_studied(corpus, tmp_path):
    found = runs.list_runs((corpus,))
    assert len(found) == len({each.label for each in found}) == 17
    configs = {each.label: flatten(runs.make_config(each, tmp_path)) for each in found}
    for each in found:
        check_config(runs.make_config(each, tmp_path))
    base = configs["reversed-0"]

    def tell(label):
        return {key: value for key, value in configs[label].items() if base.get(key) != value}

    assert tell("forward-0") == {"model.reverse_source": False}
    assert tell("layers1-0") == {"model.layers": 1} and tell("layers4-2") == {"model.layers": 4, "train.seed": 2}
    assert tell("reversed-4") == {"train.seed": 4}
    assert {key.partition(".")[0] for key in tell("attention-0")} == {"model"}
    assert (base["decode.beam_size"], base["decode.length_normalisation"]) == (12, "none")
    assert (base["train.label_smoothing"], base["train.patience_metric"], base["model.layers"]) == (0.0, "loss", 2)


def test_a_command_sets_what_the_config_has(tmp_path):
    """What `make_config` says of a run is what its command line makes."""
    from seq2seq_jax.command_line import parse

    each = runs.Run("multi30k", "forward", 1)
    job = runs.make_job(each, tmp_path)
    given = parse([arg.replace("configs/", f"{runs.ROOT}/configs/") for arg in job.command[2:]])
    assert flatten(given.config) == flatten(runs.make_config(each, tmp_path))
    assert given.workdir == str(tmp_path / "multi30k" / "forward-1") and job.makes == Path(
        given.workdir, "results.json"
    )
    assert given.config.data.test == str(tmp_path / "text" / "multi30k" / "test")


def test_a_run_that_was_trained_otherwise_is_refused_but_texts_may_have_moved(tmp_path):
    each = runs.Run("multi30k", "layers4", 0)
    config = runs.make_config(each, tmp_path / "elsewhere").to_dict()
    folder = tmp_path / "multi30k" / "layers4-0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    runs.check_run(each, tmp_path)
    config["model"]["layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert load_config(folder / "config.json").model.layers == 3
    with pytest.raises(UserError, match=r"layers4-0: was trained with other keys \(model.layers 3, not 4\)"):
        runs.check_run(each, tmp_path)


def test_texts_are_copied_once_and_a_missing_one_is_named(tmp_path):
    tok = tmp_path / "data" / "multi30k" / "tok"
    tok.mkdir(parents=True)
    for file in ("train", "val", "test_2016_flickr"):
        for language in ("en", "fr"):
            (tok / f"{file}.lc.norm.tok.{language}").write_text(f"{file} {language}\n")
    (tmp_path / "out" / "text" / "multi30k").mkdir(parents=True)
    (tmp_path / "out" / "text" / "multi30k" / "val.en").write_text("mine\n")
    runs.copy_texts(tmp_path / "data", tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out" / "text" / "multi30k").iterdir()}
    assert found["test.fr"] == "test_2016_flickr fr\n" and found["val.en"] == "mine\n" and len(found) == 6
    with pytest.raises(UserError, match="has no multi30k/tok/train.lc.norm.tok.en"):
        runs.copy_texts(tmp_path, tmp_path / "other")


def test_jobs_of_the_study_need_each_other_and_only_what_is_trained_is_evaluated(tmp_path):
    found = {job.name: job for job in run.list_jobs(("multi30k",), tmp_path)}
    lists = [job for job in found.values() if job.kind.startswith("lists")]
    assert len(found) == 17 + (3 * 2 + 3 + 1 + 1) + 17 + 1 + 1 + 2 * 11 + 12 and len(lists) == 22
    ensemble = found["translate ensemble5 beam 2 (multi30k)"]
    assert set(ensemble.needs) == {f"train multi30k/reversed-{seed}" for seed in range(5)}
    others = ",".join(str(tmp_path / "multi30k" / f"reversed-{seed}") for seed in range(1, 5))
    assert (
        f"--config.decode.ensemble={others}" in ensemble.command and "--config.decode.beam_size=2" in ensemble.command
    )
    assert set(found["weigh ensemble5 (multi30k)"].needs) > {f"lists val reversed-{n} (multi30k)" for n in range(5)}
    folder = tmp_path / "multi30k" / "forward-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    left = run.list_jobs(("multi30k",), tmp_path, training=False)
    told = [job.name for job in left]
    assert told[:2] == ["train multi30k/forward-0", "score forward-0 (multi30k)"]
    assert "lists test forward-0 (multi30k)" in told and "weigh forward-0 (multi30k)" in told and len(told) == 8


def test_what_was_made_of_a_run_that_is_trained_again_is_not_done(tmp_path):
    found = run.list_jobs(("multi30k",), tmp_path)
    for number, job in enumerate(found):  # in their order: what others are made of is older
        for path in (*job.also, job.makes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            os.utime(path, (number, number))
        for path in [tmp_path / "smt" / f"{split}.nbest" for split in ("val", "test") if job.kind.startswith("phrase")]:
            path.write_text("")
            os.utime(path, (number, number))
    assert all(job.done for job in found) and not scores.list_stale("multi30k", tmp_path)

    def list_undone():
        return {job.name.removesuffix(" (multi30k)") for job in found if not job.done}

    results = tmp_path / "multi30k" / "reversed-1" / "results.json"
    os.utime(results, (999, 999))
    own = {"score reversed-1", "translate reversed-1 beam 1", "translate reversed-1 beam 2", "weigh reversed-1"}
    own |= {f"lists {split} reversed-1" for split in ("val", "test")} | {"weigh ensemble5"}
    own |= {f"translate ensemble{n} beam {beam}" for n, beam in ((5, 1), (5, 2), (5, 12), (3, 12), (2, 12))}
    assert list_undone() == own
    results.unlink()
    assert list_undone() == own | {"train multi30k/reversed-1"}
    results.write_text("")
    os.utime(results, (1, 1))
    (tmp_path / "scores" / "multi30k" / "tuned-forward-0.txt").unlink()
    os.utime(tmp_path / "smt" / "val.nbest", (999, 999))
    runs_read = [f"{name}-{seed}" for name, count in scores.RESCORED.items() for seed in range(count)]
    lists = {"cut lists", *(f"lists {split} {label}" for label in runs_read for split in ("val", "test"))}
    assert list_undone() == lists | {f"weigh {name}" for name in ("oracle", *scores.MIXES)}


# Running and going on.


def make_job(folder, name, code, *, needs=(), kind="k", guess=10.0, made_of=()):
    """A job that runs some Python; `OUT` in it is the file that it makes."""
    makes = folder / f"{name}.done"
    command = (sys.executable, "-S", "-c", code.replace("OUT", repr(str(makes))))
    return jobs.Job(name, kind, command, makes, folder / "logs" / f"{name}.log", guess, needs, tuple(made_of))


MAKE = "import pathlib; p = pathlib.Path(OUT); p.write_text(p.name); print('made')"


def run_pool(folder, given, workers=2):
    times = jobs.Times(folder / "times.json")
    return jobs.Pool(given, workers=workers, times=times, folder=folder).run()


def test_a_failed_job_is_named_with_the_end_of_its_log_and_the_others_go_on(tmp_path, capsys):
    given = [
        make_job(tmp_path, "bad", "import sys; print('lost'); print('in a line'); sys.exit(2)"),
        make_job(tmp_path, "after", MAKE, needs=("bad",)),
        make_job(tmp_path, "idle", "pass"),
        make_job(tmp_path, "good", MAKE),
        make_job(tmp_path, "then", MAKE, needs=("good",)),
        make_job(tmp_path, "last", MAKE, needs=("after",)),
    ]
    failures = run_pool(tmp_path, given)
    assert {each.job.name: each.code for each in failures} == {"bad": 2, "after": 0, "idle": 1, "last": 0}
    assert (tmp_path / "then.done").exists() and not (tmp_path / "after.done").exists()
    told = capsys.readouterr().err
    assert "bad: FAILED, exit code 2" in told and "    lost\n    in a line" in told and "[2/6]" in told
    assert jobs.sum_up(failures) == 2
    assert jobs.sum_up([each for each in failures if each.code != 2]) == 1 and jobs.sum_up([]) == 0
    (tmp_path / "bad.done").write_text("mended")  # what is done is not run again, what was left out is run now
    assert [each.job.name for each in run_pool(tmp_path, given)] == ["idle"]
    assert {*json.loads((tmp_path / "times.json").read_text())} == {"good", "then", "after", "last"}
    with pytest.raises(ValueError, match="need none but each other"):
        run_pool(tmp_path, given[1:2])


def test_a_job_is_done_again_where_what_it_is_made_of_was_made_anew(tmp_path):
    given = [
        make_job(tmp_path, "train", MAKE),
        make_job(tmp_path, "lost", "import sys; sys.exit(1)"),
        make_job(tmp_path, "score", MAKE, needs=("train",), made_of=[tmp_path / "train.done"]),
        make_job(tmp_path, "weigh", MAKE, needs=("score", "lost"), made_of=[tmp_path / "other"]),
        make_job(tmp_path, "old", MAKE, needs=("lost",), made_of=[tmp_path / "other"]),
    ]
    for number, name in enumerate(("old.done", "other", "score.done", "weigh.done")):
        (tmp_path / name).write_text("before")
        os.utime(tmp_path / name, (number, number))
    failures = run_pool(tmp_path, given)
    # `weigh` is done, whatever became of what it needs: its own files are in order.
    assert {each.job.name: each.code for each in failures} == {"lost": 1, "old": 0}
    assert (tmp_path / "score.done").read_text() == "score.done" and (tmp_path / "weigh.done").read_text() == "before"
    (tmp_path / "score.done").write_text("kept")
    run_pool(tmp_path, given)
    assert (tmp_path / "score.done").read_text() == "kept"
    os.utime(tmp_path / "train.done", (1, 1))
    os.utime(tmp_path / "score.done", (1, 1))
    assert given[2].done  # as old is not older


def test_a_folder_is_held_until_the_last_process_has_ended(tmp_path, capsys):
    with jobs.hold(tmp_path) as lock:
        code = f"import os, pathlib; pathlib.Path(OUT).write_text(str(os.fstat({lock}).st_ino))"
        job = make_job(tmp_path, "look", code)
        times = jobs.Times(tmp_path / "times.json")
        assert jobs.Pool([job], workers=1, times=times, folder=tmp_path, inherited=(lock,)).run() == []
        assert job.makes.read_text() == str((tmp_path / "lock").stat().st_ino)
        code = "import sys; sys.stdin.read()"
        capsys.readouterr()
        left = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, pass_fds=[lock])
    try:  # as where `run.py` was killed: the process that it started still has the lock
        assert run.main(["run.py", f"--out={tmp_path}", "--only=phrasebook", "--no_training"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "a process that one has left behind, is at work in this folder" in line
        assert run.main(["run.py", f"--out={tmp_path}", "--only=phrasebook", "--list"]) == 0
    finally:
        left.communicate()
    with jobs.hold(tmp_path):
        pass


TRAINER = """
import pathlib, signal, sys, time
state = pathlib.Path(OUT).with_suffix(".state")
step = int(state.read_text()) if state.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
state.write_text(str(step + 1))
if step:
    pathlib.Path(OUT).write_text("from " + str(step))
else:
    time.sleep(60)
"""


def test_a_study_that_is_stopped_ends_its_processes_and_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    given = [make_job(tmp_path, "train", TRAINER), make_job(tmp_path, "first", MAKE)]
    sleep, state = time.sleep, tmp_path / "train.state"

    def stop(seconds):
        sleep(seconds)
        if state.exists() and state.read_text() and (tmp_path / "first.done").exists():
            monkeypatch.setattr(jobs.time, "sleep", sleep)
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", stop)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_pool(tmp_path, given)
    assert time.monotonic() - started < 30 and not (tmp_path / "train.done").exists()
    (tmp_path / "first.done").write_text("untouched")
    assert run_pool(tmp_path, given) == []
    assert (tmp_path / "train.done").read_text() == "from 1" and (tmp_path / "first.done").read_text() == "untouched"


def test_the_time_left_follows_from_jobs_of_a_kind_and_else_from_how_far_off_guesses_were(tmp_path):
    given = [
        make_job(tmp_path, name, "", kind=kind, guess=guess)
        for name, kind, guess in (("a0", "a", 10.0), ("a1", "a", 10.0), ("a2", "a", 10.0), ("b0", "b", 20.0))
    ]
    (tmp_path / "times.json").write_text('{"a0": 5.0}')  # of the last process alone
    times = jobs.Times(tmp_path / "times.json", {"a0": 30.0})
    times.add(given[1], 50.0)
    assert times.estimate(given) == {"a0": 40.0, "a1": 40.0, "a2": 40.0, "b0": 80.0}
    assert jobs.Times(tmp_path / "times.json").estimate(given)["b0"] == 80.0
    assert jobs.Times(tmp_path / "none.json").estimate(given)["b0"] == 20.0
    (tmp_path / "a0.done").write_text("")
    (tmp_path / "a1.done").write_text("")
    assert jobs.Pool(given, workers=2, times=times, folder=tmp_path).tell_left() == 80.0  # the longest alone
    told = run.describe(given, times, workers=1)
    assert "    done  a0\n" in told and "     40s  a2\n" in told and "the others take 2m00s" in told


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    assert jobs.share_cores(2) == [{0, 2, 7}, {1, 5}]
    assert jobs.share_cores(6)[5] == {0, 1, 2, 5, 7}
    monkeypatch.delattr(jobs.os, "sched_getaffinity")
    assert jobs.share_cores(2) == [None, None]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--only=multi40k",), "--only must name some of multi30k, phrasebook, but is 'multi40k' instead."),
        (("--jobs=0",), "--jobs must be at least 1, but is 0 instead."),
        ((), "--data is missing: name the folder that holds multi30k/tok"),
        (("--readme",), "tables.md: is not there yet; run the study first"),
    ],
)
def test_wrong_flags_are_told_in_one_line(flags, told, tmp_path, capsys):
    assert run.main(["run.py", f"--out={tmp_path}", *flags]) == 2
    assert told in capsys.readouterr().err
