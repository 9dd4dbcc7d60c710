"""The mean of checkpoints: against float64 NumPy, and what is left out or refused."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.modes.average import read_choice


def call(*args):
    """Runs a command line in this process; the exit code."""
    return main(["seq2seq_jax.main", *args])


def read_arrays(run, step):
    """Name → array of a checkpoint, read by Orbax alone and without the package."""
    tree = ocp.StandardCheckpointer().restore(run / "checkpoints" / str(step) / "state")
    return flatten(tree)


def flatten(tree, prefix=""):
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in flatten(value, f"{prefix}{name}.").items()}
    if isinstance(tree, list | tuple):
        return flatten({str(n): value for n, value in enumerate(tree)}, prefix)
    return {} if tree is None else {prefix: np.asarray(tree)}


def damage(folder):
    """Flips one bit in the largest file."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


def test_the_mean_is_that_of_float64(tiny_run, averaged_run):
    steps = [4, 6, 8]
    given = [read_arrays(tiny_run, step) for step in steps]
    found, newest = read_arrays(averaged_run, 8), given[-1]
    averaged = 0
    for name, array in found.items():
        if name.startswith(("params.", "ema.")):
            wanted = np.mean([one[name].astype(np.float64) for one in given], axis=0)
            np.testing.assert_allclose(array, wanted, rtol=0, atol=1e-7)
            assert array.dtype == newest[name].dtype
            averaged += not np.array_equal(array, newest[name])
        else:
            np.testing.assert_array_equal(array, newest[name], err_msg="all else is the newest one's")
    assert averaged > 10 and {name.split(".")[0] for name in found} >= {"params", "ema", "opt_state", "step"}
    note = json.loads((averaged_run / "average.json").read_text())
    assert [source["step"] for source in note["sources"]] == steps
    assert len({source["parameters_sha256"] for source in note["sources"]} | {note["parameters_sha256"]}) == 4
    assert "bleu" in note["sources"][-1]["metrics"]


def test_the_result_is_a_run_like_any_other(averaged_run, tmp_path):
    results = json.loads((averaged_run / "evaluation" / "results.json").read_text())
    assert results["test"]["step"] == 8 and results["test"]["sentences"] == 24
    (tmp_path / "in").write_text("one red cat\ntwo\n")
    args = (f"--workdir={averaged_run}", "--mode=translate", f"--input={tmp_path / 'in'}")
    assert call(*args, f"--output={tmp_path / 'out'}") == 0
    assert (tmp_path / "out").read_text().count("\n") == 2
    assert (averaged_run / "checkpoints" / "8" / "manifest.json").exists()


def test_a_damaged_checkpoint_is_left_out_with_a_line(copy, tmp_path, capsys):
    damage(copy / "checkpoints" / "6")
    assert call(f"--workdir={copy}", "--mode=average", "--last=2", f"--output={tmp_path / 'out'}", "--json") == 0
    captured = capsys.readouterr()
    assert [source["step"] for source in json.loads(captured.out)["sources"]] == [4, 8]
    assert "step 6" in captured.err and "damaged" in captured.err
    assert (copy / "checkpoints" / "6").is_dir(), "the run stays as it is"


def test_without_manifest_it_is_left_out(copy, tmp_path, capsys):
    (copy / "checkpoints" / "8" / "manifest.json").unlink()
    assert call(f"--workdir={copy}", "--mode=average", "--last=2", f"--output={tmp_path / 'out'}") == 0
    assert "step 8 has no manifest.json" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["6"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--last=5",), "--config.train.keep_last=5"),
        (("--best=3",), "dev score"),
        (("--last=1",), "at least 2"),
        (("--steps=4,5",), "no checkpoint of step 5"),
        (("--steps=4,x",), "numbers separated by commas"),
        (("--steps=4,6", "--best=2"), "exclude each other"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(tiny_run, tmp_path, args, told, capsys):
    goal = tmp_path / "out"
    assert call(f"--workdir={tiny_run}", "--mode=average", f"--output={goal}", *args) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(copy, tmp_path, capsys):
    damage(copy / "checkpoints" / "4")
    assert call(f"--workdir={copy}", "--mode=average", "--steps=4,8", f"--output={tmp_path / 'out'}") == 2
    assert "step 4 is not as it was written" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_written_over(tiny_run, tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert call(f"--workdir={tiny_run}", "--mode=average", f"--output={tmp_path}") == 2
    assert "is there already" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert call(f"--workdir={tiny_run}", "--mode=average") == 2
    assert "--output is missing" in capsys.readouterr().err


def test_checkpoints_of_two_trainings_are_refused(copy, tmp_path, capsys):
    from seq2seq_jax.train.manifest import read_manifest, write_manifest

    folder = copy / "checkpoints" / "4"
    manifest = read_manifest(folder)
    record = {"meta": {**manifest["meta"], "train_sha256": "another"}, "metrics": manifest["metrics"]}
    write_manifest(folder, step=4, record=record)
    assert call(f"--workdir={copy}", "--mode=average", "--last=3", f"--output={tmp_path / 'out'}") == 2
    assert "another training corpus" in capsys.readouterr().err


def test_the_default_is_the_last_five():
    assert read_choice(None, None, None).last == 5 and read_choice(None, None, "9,4").steps == (4, 9)
    with pytest.raises(UserError, match="at least two"):
        read_choice(None, None, "4")
