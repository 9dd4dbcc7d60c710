"""Wrong use of flags and keys: a sample of the nightly check's cases, and each thing that it found."""

import functools
import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax import main
from seq2seq_jax.command_line import parse
from seq2seq_jax.config import check_config, default_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import make_training
from seq2seq_jax.suggestions import find_nearest, suggest
from seq2seq_jax.workdir import LOCK, claim, hold_lock

ROOT = Path(__file__).resolve().parents[1]
GNMT = "--config=configs/gnmt.py"


def load_nightly(name):
    """A module of the nightly check."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "nightly" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sample_of_wrong_uses_is_refused_in_one_line(tmp_path):
    nightly = load_nightly("wrong_use")
    cases = nightly.draw(nightly.PARTS, 300, seed=3)
    verdicts = nightly.run_cases(cases, nightly.make_workplace(tmp_path))
    bad = [
        (case.args, verdict["problem"], verdict["err"][-300:])
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict["problem"] and not verdict["problem"].startswith("took")  # how long is the nightly check's to say
    ]
    assert not bad, "\n".join(map(str, bad))
    assert sum(case.wrong for case in cases) > 250
    assert nightly.count_suggestions(cases, verdicts).passed


ANSWER = {"code": 2, "out": "", "err": "seq2seq_jax: error: --config.train.steps is 0.\n", "seconds": 0.1}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"code": 1}, "exit code 1"),
        ({"code": 0, "err": ""}, "accepted, but is wrong"),
        ({"err": ANSWER["err"] + "Traceback (most recent call last)"}, "a traceback"),
        ({"err": ANSWER["err"] * 2}, "2 lines of errors"),
        ({"err": "nothing"}, "0 lines of errors"),
        ({"err": ANSWER["err"] + "more\n"}, "more than one line"),
        ({"out": "x"}, "something on standard output"),
        ({"seconds": 6.0}, "took 6.0 s"),
        ({"err": "seq2seq_jax: error: --config.train is 0.\n"}, "does not name train.steps"),
    ],
)
def test_the_judge_sees_what_is_wrong_with_an_answer(changes, problem):
    nightly = load_nightly("wrong_use")
    case = nightly.Case("", (), ("train.steps", "0|zero"))
    assert nightly.judge(case, ANSWER | changes) == problem


def test_the_judge_lets_nobody_refuse_what_is_right():
    nightly = load_nightly("wrong_use")
    case = nightly.Case("", (), wrong=False)
    assert nightly.judge(case, ANSWER) == "refused, but is right"
    assert nightly.judge(case, ANSWER | {"code": 0, "err": ""}) == ""


def call(monkeypatch, *args):
    """Runs a command line whose mode does nothing; its exit code."""
    monkeypatch.setattr(main, "RUNNERS", dict.fromkeys(main.RUNNERS, lambda given, config, root: 0))
    return main.main(["seq2seq_jax.main", *args])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((GNMT, "--flagfile=/nonexistent"), "--flagfile is no flag"),
        ((GNMT, "--undefok=more", "--more=1"), "--undefok is no flag"),
        ((GNMT, "--nbest=x", "--mode=translate"), "--nbest must be a whole number, but is 'x'"),
        ((GNMT, "--members=1"), "--members must be at least 2, but is 1"),
        ((GNMT, "--hosts=0"), "--hosts must be at least 1, but is 0"),
        ((GNMT, "--host=0", "--mode=translate"), "--host goes with --mode=train or evaluate or prepare"),
        ((GNMT, "--host_timeout=nan"), "--host_timeout must be at least 1 second"),
        ((GNMT, "--json=x", "--mode=plan"), "--json stands alone, or must be true or false, but is 'x'"),
        ((GNMT, "--workdir="), "--workdir must not be empty"),
        ((GNMT, "--config.data.pack="), "config.data.pack must be of type bool"),
        ((GNMT, "--config.train.seed=0x10", "--config.train.steps=x"), "--config.train.steps must be of type int"),
        ((GNMT, "--config.trian.steps=5"), "did you mean config.train.steps?"),
        ((GNMT, "--config.steps=5"), "did you mean config.train.steps?"),
        ((GNMT, "--train.steps=5"), "did you mean --config.train.steps?"),
        ((GNMT, "--config.train=5"), "config.train is a section"),
        ((GNMT, "--config.model.heads=3"), "config.model.heads is no key of the model 'gnmt', only of bert, gpt, ctc"),
        (("--config=configs/transformer.py", "--config.model.haeds=3"), "did you mean config.model.heads?"),
        ((GNMT, "--config.model.name=gmnt"), "did you mean 'gnmt'?"),
        ((GNMT + ":mulit30k",), "has no preset 'mulit30k'; it has multi30k, paper, or none at all; did you mean"),
        (("--config=configs/language_model.py:x",), "configs/language_model.py has no preset 'x'; it has none"),
        ((GNMT, "--config.train.steps=" + "9" * 20), "config.train.steps must be at most 2,147,483,647"),
        ((GNMT, "--config.train.clip_norm=1e30"), "config.train.clip_norm must be at most 1e+09, but is 1e+30"),
        ((GNMT, "--config.train.adam_steps=-1"), "config.train.adam_steps must be at least 0"),
        ((GNMT, "--config.parallel.data=0"), "config.parallel.data must be at least 1, or -1"),
        ((GNMT, "--config.data.source="), "config.data.source must be the code of a language"),
        (("--config=",), "--config=: is no file"),
        ((GNMT, "translate"), "'translate' is no flag: every argument starts with --; did you mean --mode=translate?"),
        (("--confg=configs/gnmt.py",), "--confg is no flag; did you mean --config?"),
        (("--wrkdir", "runs/gnmt"), "--wrkdir is no flag; did you mean --workdir?"),
        (("configs/gnmt.py",), "name a config file by --config=configs/gnmt.py"),
        ((GNMT, "config.train.steps=5"), "did you mean --config.train.steps=5?"),
    ],
)
def test_what_was_taken_or_badly_explained_is_refused(args, told, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert call(monkeypatch, *args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error


@pytest.mark.parametrize("flag", ["-config.train.steps=7", "--config.train.steps=07"])
def test_one_dash_will_do_and_the_last_of_two_counts(flag, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = parse(["x", GNMT, "--config.train.steps=5", flag, "--mode=train", "-mode=plan"])
    assert (values.config.train.steps, values.mode) == (7, "plan")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("def get_config():\n  x = 1\n  raise ZeroDivisionError('why\\nnot')\n", "a.py:3 (ZeroDivisionError: why not)"),
        ("x = (\n", "a.py:1 (SyntaxError"),
        ("get_config = 5\n", "(TypeError: 'int' object is not callable)"),
        ("import sys\nsys.exit(3)\n", "a.py:2 (SystemExit: 3)"),
        ("open('/nonexistent/x')\n", "No such file or directory: '/nonexistent/x'"),
        ("def get_config():\n  return None\n", "its get_config() must return a ConfigDict"),
        ("x = 1\n", "must be a Python file with a function get_config()"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_told_with_its_line(content, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.py").write_text(content)
    assert call(monkeypatch, f"--config={tmp_path / 'a.py'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error and "Traceback" not in error
    assert call(monkeypatch, f"--config={tmp_path / 'a.py'}", "--config.train.steps=5") == 2
    assert told in capsys.readouterr().err
    assert call(monkeypatch, f"--config={tmp_path / 'a.py'}", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_nobody_s_config_can_be_what_json_cannot_say(monkeypatch, tmp_path, capsys):
    for changes in (
        {"train": {"steps": None}},
        {"model": 5},
        {"model": {"name": ["gnmt"]}},
        {"train": {"freeze": "a\0b"}},
    ):
        saved = default_config().to_dict()
        for section, value in changes.items():
            saved[section] = saved[section] | value if isinstance(value, dict) else value
        (tmp_path / "config.json").write_text(json.dumps(saved))
        assert call(monkeypatch, f"--workdir={tmp_path}") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_every_number_has_a_least_and_a_most():
    config = default_config("transformer")
    for section, keys in config.items():
        for name, default in keys.items():
            if isinstance(default, bool) or not isinstance(default, int | float):
                continue
            for value in (type(default)(-(10**12)), type(default)(1e39)):
                changed = default_config("transformer")
                changed[section][name] = value
                with pytest.raises(UserError, match=rf"config\.{section}\.{name} must be "):
                    check_config(changed)


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("trian", ("train", "plan"), "train"),  # two letters that changed places are one edit
        ("beam_siez", ("beam_size", "seed"), "beam_size"),
        ("TRAIN", ("train",), "train"),
        ("xyz", ("train", "plan"), ""),
        ("", ("train",), ""),
        ("b", ("a1", "b1", "b2"), "b1"),
    ],
)
def test_the_nearest_word_is_the_one_of_fewest_edits(word, known, near):
    assert find_nearest(word, known) == near
    assert suggest(word, known, form="--{}") == (f"; did you mean --{near}?" if near else ".")


SMALL = (
    GNMT, "--config.vocab.kind=char", "--config.vocab.size=40", "--config.data.max_source_len=40",
    "--config.data.max_target_len=40", "--config.data.max_shapes=1", "--config.data.tokens_per_batch=512",
    "--config.evaluate.dev_sentences=2", "--config.evaluate.samples=0", "--config.decode.rows=8",
    "--config.decode.beam_size=1", "--config.train.steps=1", "--config.parallel.data=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The flag of a corpus of sixty short pairs."""
    prefix = tmp_path_factory.mktemp("text") / "text"
    for language in ("en", "de"):
        lines = (f"line {number} of the {language} text\n" for number in range(60))
        prefix.with_suffix(f".{language}").write_text("".join(lines))
    return f"--config.data.train={prefix}"


def start(*args):
    """Runs a command line for real; its exit code."""
    return main.main(["seq2seq_jax.main", *args])


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--config.train.decay_steps=3", "config.train.decay_steps must be more than warmup_steps=200"),
        ("--config.decode.ensemble=/nonexistent/x", "config.decode.ensemble: /nonexistent/x has no model"),
        ("--config.decode.language_model=/nonexistent/x", "config.decode.language_model"),
        ("--config.decode.ngram=/nonexistent/x", "config.decode.ngram: /nonexistent/x is no file"),
        ("--init_from=/nonexistent/x", "--init_from=/nonexistent/x"),
        ("--config.data.train=/nonexistent/x", "/nonexistent/x"),
        ("--config.train.profile_steps=9:3", "config.train.profile_steps must be FIRST:LAST"),
        ("--config.train.freeze=nothing_like_it", "config.train.freeze"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(flag, told, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert start(*SMALL, text, flag, f"--workdir={tmp_path / 'new' / 'run'}") == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_refused_after_its_vocabulary_was_made_leaves_none(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "no.arpa").write_text("nothing\n")
    args = (*SMALL, text, f"--config.decode.ngram={tmp_path / 'no.arpa'}")
    assert start(*args, f"--workdir={tmp_path / 'run'}") == 2
    assert "no.arpa" in capsys.readouterr().err and not (tmp_path / "run").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    assert start(*args, f"--workdir={tmp_path / 'own'}") == 2
    assert (tmp_path / "own" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("heads", [3, 5])
def test_heads_that_do_not_divide_are_refused_before_a_text_is_read(heads, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("seq2seq_jax.modes.train.open_splits", lambda *a, **k: pytest.fail("a text was read"))
    args = ("--config=configs/transformer.py", f"--config.model.heads={heads}", f"--workdir={tmp_path / 'run'}")
    assert start(*args) == 2
    assert f"config.model.heads must divide features=128, but is {heads}" in capsys.readouterr().err


def test_searches_with_too_few_learned_places_are_refused_before_training(text, tmp_path, monkeypatch, capsys):
    def can_search(config):  # sources of up to 32 tokens, and outputs of up to 32 + 30
        training = make_training(config, 40, 40)
        given = (np.zeros((1, 32), np.int32), np.ones((1, 32), bool), np.ones(1, bool))
        jax.eval_shape(functools.partial(training.search(), max_len=62), training.abstract_state().params, *given)

    def stop(experiment, *_):
        can_search(experiment.config)
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("seq2seq_jax.modes.train._start", stop)
    small = [flag.replace("gnmt", "transformer") for flag in SMALL]
    tiny = ("--config.model.features=8", "--config.model.feed_forward=8", "--config.model.heads=2")
    tiny += ("--config.model.encoder_layers=1", "--config.model.decoder_layers=1", "--config.model.positions=learned")
    asked = ("--config.decode.max_source_len=32", "--config.decode.length_factor=1", "--config.decode.length_extra=30")
    told = "config.model.max_positions must be at least 62"
    for count, code in ((61, 2), (62, 130)):
        args = (*small, text, *tiny, *asked, f"--config.model.max_positions={count}")
        assert start(*args, f"--workdir={tmp_path / str(count)}") == code
        assert (told in capsys.readouterr().err) == (code == 2)
    config = parse(["x", *args]).config
    config.model.max_positions = 61  # where the model itself says no, only later
    with pytest.raises(UserError, match=told):
        can_search(config)


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    import fcntl

    real, calls = fcntl.flock, []

    def flock(handle, how):
        calls.append(handle)
        if len(calls) == 1:  # between opening and locking, another process was refused and removed the folder
            (tmp_path / "run" / LOCK).unlink()
            (tmp_path / "run").rmdir()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_lock(tmp_path / "run", flag="--workdir", busy="busy") as handle:
        assert os.path.samestat((tmp_path / "run" / LOCK).stat(), os.fstat(handle))
    assert len(calls) == 2


def test_a_run_that_fails_otherwise_keeps_its_folder(tmp_path):
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), claim(tmp_path / "run", fresh=False):
            raise error
        assert (tmp_path / "run" / LOCK).exists()
    with pytest.raises(UserError), claim(tmp_path / "begun", fresh=False):
        (tmp_path / "begun" / "config.json").write_text("{}")
        raise UserError("later")
    assert (tmp_path / "begun" / "config.json").exists()


def test_memory_that_is_not_enough_is_told_in_a_line(monkeypatch, capsys):
    def ask_for_too_much(given, config, root):
        import jax.numpy as jnp

        jnp.zeros((2**50,), jnp.int8)

    monkeypatch.setitem(main.RUNNERS, "train", ask_for_too_much)
    assert main.main(["seq2seq_jax.main", GNMT]) == 2
    err = capsys.readouterr().err
    assert re.search(
        r"memory is not enough: 1,048,576\.00 GiB more were asked for, [\d.]+ GiB are free\. Lower config", err
    )
    assert err.count("\n") == 1


def test_other_errors_of_the_runtime_are_bugs(monkeypatch):
    def fail(given, config, root):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setitem(main.RUNNERS, "train", fail)
    with pytest.raises(RuntimeError, match="something else"):
        main.main(["seq2seq_jax.main", GNMT])
