"""`--mode=vectors` and `load(...).vectors`: one file, in order, or one clear line."""

import io
import sys

import numpy as np
import pytest

import seq2seq_jax
from seq2seq_jax.config import default_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.modes import vectors as mode

LINES = ["one red cat", "two two blue cat four", "", "one red cat", "three", "cat red one"]


def call(run, *args):
    return main(["seq2seq_jax.main", f"--workdir={run}", "--mode=vectors", *args])


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """The file of LINES' vectors, made a few lines at a time."""
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "in.txt").write_text("".join(line + "\n" for line in LINES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mode, "GROUP_LINES", 4)
        assert call(tiny_run, f"--input={folder / 'in.txt'}", f"--output={folder / 'out.npz'}") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["in.txt", "out.npz"]
    return folder / "out.npz"


def test_a_file_holds_a_vector_for_each_line_in_order(made, tiny_run):
    with np.load(made) as file:
        found, kind, step = file["vectors"], str(file["kind"]), int(file["step"])
    assert found.shape[0] == len(LINES) and found.dtype == np.float32 and np.isfinite(found).all()
    assert kind == "mean" and step in (4, 6, 8)
    np.testing.assert_allclose(found[0], found[3], atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-4
    model = seq2seq_jax.load(tiny_run)
    np.testing.assert_allclose(model.vectors(LINES), found, atol=1e-6)
    np.testing.assert_allclose(model.vectors(LINES[1]), found[[1]], atol=1e-6)
    with pytest.raises(UserError, match="sentences must be strings"):
        model.vectors([3])


def test_standard_input_is_read_and_may_be_empty(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert call(tiny_run, "--input=-", f"--output={tmp_path / 'none.npz'}") == 0
    with np.load(tmp_path / "none.npz") as file:
        assert file["vectors"].shape == (0, 0)


def test_what_cannot_be_is_refused_in_one_line(tiny_run, tmp_path, capsys):
    text = tmp_path / "in.txt"
    text.write_text("one\n")
    for args, wanted in [
        ([f"--input={text}"], "--output is missing"),
        ([f"--input={text}", f"--output={tmp_path}"], "is a folder; name a file"),
        ([f"--input={text}", f"--output={tmp_path}/no/out.npz"], "cannot be written"),
        ([f"--input={tmp_path}/none", f"--output={tmp_path}/out.npz"], "cannot be read"),
    ]:
        assert call(tiny_run, *args) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert wanted in line
    assert list(tmp_path.iterdir()) == [text]
    with pytest.raises(UserError, match="reads no source"):
        mode.write_vectors(default_config("language_model"), tmp_path, iter([]), str(tmp_path / "out.npz"))


def test_a_file_that_is_not_whole_does_not_appear(tiny_run, tmp_path):
    text, out = tmp_path / "in.txt", tmp_path / "out.npz"
    text.write_bytes(b"one\n\xff\xfe\n")
    assert call(tiny_run, f"--input={text}", f"--output={out}") == 2
    assert list(tmp_path.iterdir()) == [text]
