"""The mean of checkpoints: against float64 NumPy, and what is left out or refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from seq2seq_jax.config import load_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import build
from seq2seq_jax.main import main
from seq2seq_jax.modes.average import Mean, read_choice
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.vocabularies import obtain_vocabs


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


def save_copy_of(run, step, change):
    """Saves a step again, as a later one, with other parameters."""
    config = load_config(run / "config.json")
    target = build(config, obtain_vocabs(config, run / "vocab", None)).training.abstract_state()
    with Checkpoints(run / "checkpoints", keep_last=9, asynchronous=False, warn=pytest.fail) as checkpoints:
        found = checkpoints.restore(target, step=step)
        state = found.state.replace(params=change(found.state.params), ema=change(found.state.ema))
        assert checkpoints.save(step + 100, state, meta=found.meta)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(copy, tmp_path, bad, capsys):
    def spoil(tree):
        leaves, structure = jax.tree.flatten(tree)
        leaves[3] = leaves[3].at[(0,) * leaves[3].ndim].set(bad)
        return jax.tree.unflatten(structure, leaves)

    save_copy_of(copy, 8, spoil)
    assert call(f"--workdir={copy}", "--mode=average", "--last=2", f"--output={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert "of step 108 must be finite" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_mean_of_equal_checkpoints_is_that_checkpoint(copy, tmp_path):
    save_copy_of(copy, 8, lambda tree: tree)
    goal = tmp_path / "out"
    assert call(f"--workdir={copy}", "--mode=average", "--steps=8,108", f"--output={goal}") == 0
    wanted = read_arrays(copy, 8)
    for name, array in read_arrays(goal, 108).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_means_of_random_subsets_are_those_of_float64(seed):
    """Of any types: whole numbers too, of which the mean is cut off as NumPy does."""
    draw = np.random.default_rng(seed)
    trees = [
        {
            "w": (draw.normal(size=(7, 5)) * 10.0 ** draw.integers(-6, 6)).astype(np.float32),
            "tied": {"small": draw.normal(size=3).astype(jnp.bfloat16)},
            "n": draw.integers(-9, 9, size=4).astype(np.int32),
        }
        for _ in range(6)
    ]
    chosen = [trees[n] for n in draw.choice(6, size=draw.integers(1, 7), replace=False)]
    mean = Mean()
    for tree in chosen:
        mean.add(jax.tree.map(jnp.asarray, tree))
    found = mean.take(like=jax.tree.map(jnp.asarray, chosen[0]))
    for name in ("w", "n"):
        wanted = np.mean([tree[name].astype(np.float64) for tree in chosen], axis=0)
        assert found[name].dtype == chosen[0][name].dtype
        np.testing.assert_allclose(found[name], wanted.astype(chosen[0][name].dtype), rtol=1e-7, atol=0)
    small = np.mean([tree["tied"]["small"].astype(np.float64) for tree in chosen], axis=0)
    np.testing.assert_array_equal(found["tied"]["small"], small.astype(jnp.bfloat16))
    if len(chosen) == 1:
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found, chosen[0])), strict=True))


def test_the_default_is_the_last_five():
    assert read_choice(None, None, None).last == 5 and read_choice(None, None, "9,4").steps == (4, 9)
    with pytest.raises(UserError, match="at least two"):
        read_choice(None, None, "4")
