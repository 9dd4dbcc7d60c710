"""`--mode=translate --constraints=FILE`: what cannot be is told before the work begins, and groups share programs."""

from __future__ import annotations

import io
import json

import pytest

from seq2seq_jax.config import load_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.modes import translate as mode
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.workdir import Folder

LINES = ["one two cat", "blue", "three red four one"]


def load_keys(run, **keys):
    """The run's config with other keys of `config.decode`."""
    config = load_config(run / "config.json")
    config.parallel.data = 1
    config.decode.update(keys)
    return config


def translate(run, path, *, total=None, lines=LINES, **keys) -> list[str]:
    output = io.StringIO()
    try:
        config = load_keys(run, **keys)
        mode.translate(config, run, iter(lines), output, nbest=0, total=total, constraints=str(path))
    except UserError:
        assert output.getvalue() == ""
        raise
    return output.getvalue().splitlines()


def write(path, *wishes):
    path.write_text("".join((wish if isinstance(wish, str) else json.dumps(wish)) + "\n" for wish in wishes))
    return path


def test_a_file_is_read_before_the_model(tiny_run, tmp_path, monkeypatch):
    def load(*given):
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(mode, "load_run", load)
    with pytest.raises(UserError, match=r"^--constraints=.*none: cannot be read"):
        translate(tiny_run, tmp_path / "none")
    path = write(tmp_path / "wishes", {}, "", "{")
    with pytest.raises(UserError, match=rf"^{path}: line 3: not JSON"):
        translate(tiny_run, path, total=3)
    with pytest.raises(UserError, match=r"^--constraints=.*: has 3 lines, but the input has 4\."):
        translate(tiny_run, write(path, {}, {}, {}), total=4)
    with pytest.raises(RuntimeError, match="was loaded"):
        translate(tiny_run, path, total=3)


def test_what_cannot_be_spelled_is_told_before_the_first_line_is_translated(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(mode, "PART_LINES", 1)
    path = write(tmp_path / "wishes", {}, {}, {"must": ["rot", "weiss"]})
    with pytest.raises(UserError, match=rf"^{path}: line 3: must has 'weiss', which the vocabulary cannot spell"):
        translate(tiny_run, path, total=3)
    write(path, {}, {"must_not": ["rot"]}, {})
    with pytest.raises(UserError, match=rf"^{path}: line 2: must asks for 'rot', but must_not forbids 'rot'"):
        translate(tiny_run, path, total=3, must="rot")
    with pytest.raises(UserError, match=rf"^{path}: line 1: must needs a beam"):
        translate(tiny_run, write(path, {"must": ["rot"]}, "", ""), total=3, method="greedy")


def test_groups_of_lines_share_programs_and_a_line_may_lift_the_prefix_of_all(tiny_run, tmp_path, monkeypatch, capsys):
    path = write(
        tmp_path / "wishes", {"prefix": "", "must": ["rot", "vier", "blau"]}, "", {"prefix": "Katze drei drei"}
    )
    whole = translate(tiny_run, path, total=3, prefix="eins eins")
    assert {"rot", "vier", "blau"} <= set(whole[0].split()) and not whole[0].startswith("eins eins")
    assert whole[1].startswith("eins eins") and whole[2].startswith("Katze drei drei")
    capsys.readouterr()
    monkeypatch.setattr(mode, "PART_LINES", 1)
    same = ["one two cat"] * 3
    found = translate(tiny_run, path, total=3, lines=same, prefix="eins eins")
    assert found[0] == whole[0] and "1 programs compiled" in capsys.readouterr().err


def test_a_pipe_tells_lines_that_are_too_many_or_too_few(tiny_run, tmp_path, capsys):
    path = write(tmp_path / "wishes", *[{}] * 4)
    assert len(translate(tiny_run, path)) == 3
    assert f"--constraints={path}: has 4 lines, but the input had only 3" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^--constraints=.*: has 2 lines, but the input has more"):
        translate(tiny_run, write(path, {}, {}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"must": "weiss"}, "must has 'weiss'"),
        ({"prefix": "weiss"}, "prefix has 'weiss'"),
        ({"prefix": "rot", "must_not": "rot"}, "prefix asks for 'rot'"),
        ({"must": "rot", "beam_size": 1}, "must needs a beam"),
    ],
)
def test_what_the_config_asks_is_refused_by_its_name_when_a_translator_is_made(tiny_run, keys, message):
    experiment, _ = load_run(load_keys(tiny_run, **keys), Folder(tiny_run))
    with pytest.raises(UserError, match=rf"^config\.decode\.{message}"):
        experiment.translator()
