"""Damage to checkpoints, as in the nightly check and fewer: all of it is noticed, told and survived."""

import hashlib
import importlib.util
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import xxhash

from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.train.checkpoint_folder import QUARANTINE
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.manifest import MANIFEST, Standing, verify_manifest, write_manifest

_PATH = Path(__file__).parents[1] / "nightly" / "checkpoint_damage.py"
_SPEC = importlib.util.spec_from_file_location("checkpoint_damage", _PATH)
damage = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(damage)

FLIPS = 100


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder of the verified steps 1, 2 and 3, to be copied and damaged; the newer, the better."""
    return damage.save_steps(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def root(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def restore(folder, best=False, **arguments):
    warnings: list[str] = []
    with Checkpoints(folder, warn=warnings.append, **arguments) as checkpoints:
        target = damage.abstract(damage.make_state(0))
        return (checkpoints.restore_best if best else checkpoints.restore)(target), warnings


def test_any_flipped_bit_falls_back_and_names_the_file(whole, tmp_path):
    draw = random.Random(10)
    assert [found for _ in range(FLIPS) if (found := damage.try_case(whole, tmp_path / "x", "one bit", draw))] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", damage.KINDS)
def test_every_kind_of_damage_falls_back_and_is_told(whole, tmp_path, kind):
    draw = random.Random(kind)
    assert [found for _ in range(3) if (found := damage.try_case(whole, tmp_path / "x", kind, draw))] == []


@pytest.mark.parametrize("kind", damage.KINDS)
def test_reading_only_uses_the_same_step_and_moves_nothing(root, kind):
    given_up = damage.KINDS[kind](root, random.Random(kind))
    before = sorted(path for path in root.rglob("*"))
    restored, warnings = restore(root, read_only=True)
    assert restored.step == max({1, 2, 3} - set(given_up)) and len(warnings) == len(given_up)
    assert damage.equal(restored.state, damage.make_state(restored.step))
    assert sorted(path for path in root.rglob("*")) == before


@pytest.mark.parametrize("damaged", [None, MANIFEST, "bit"])
def test_the_best_is_chosen_among_those_that_are_whole(root, damaged):
    with Checkpoints(root, best_mode="min", warn=pytest.fail) as checkpoints:
        assert checkpoints.best_step() == 1
    if damaged == MANIFEST:
        (root / "1" / MANIFEST).unlink()
    elif damaged:
        damage.flip_bit(root / "1" / "state", random.Random(1))
    restored, warnings = restore(root, best=True, read_only=True, best_mode="min")
    assert restored.step == (2 if damaged else 1) and restored.metrics == {"bleu": float(restored.step)}
    assert len(warnings) == (damaged == "bit")  # without its manifest it has no score to be the best by


def test_all_without_manifest_the_newest_that_can_be_read_is_used_and_gets_one(root):
    for step in "123":
        (root / step / MANIFEST).unlink()
    (root / "3" / "state" / "manifest.ocdbt").write_bytes(b"nonsense")
    restored, warnings = restore(root)
    assert restored.step == 2 and damage.equal(restored.state, damage.make_state(2)) and not restored.verified
    assert restored.meta == {"examples": 2} and restored.metrics == {"bleu": 2.0}
    assert len(warnings) == 2 and "could not be verified" in warnings[1] and (root / QUARANTINE / "3").is_dir()
    assert verify_manifest(root / "2", step=2).standing is Standing.VERIFIED
    again, warnings = restore(root)
    assert (again.step, warnings) == (2, [])


def test_a_step_asked_for_must_be_verified_and_stays_where_it_is(root):
    (root / "2" / MANIFEST).unlink()
    with Checkpoints(root, warn=pytest.fail) as checkpoints:
        with pytest.raises(NoUsableCheckpointError, match=r"step 2: manifest.json is missing"):
            checkpoints.restore(damage.abstract(damage.make_state(0)), step=2)
        assert checkpoints.steps() == [1, 2, 3]


def test_a_step_that_was_set_aside_can_be_saved_again(root):
    (root / "3" / MANIFEST).unlink()
    with Checkpoints(root, warn=lambda _: None) as checkpoints:
        assert checkpoints.restore(damage.abstract(damage.make_state(0))).step == 2
        assert checkpoints.save(3, damage.make_state(3), meta={"examples": 3}, metrics={"bleu": 3.0})
    assert damage.judge(root, {}) == ""


def test_names_that_are_no_steps_are_left_alone(root):
    for name in ("007", "²", "٣", "3.removed.txt", "1e3", "-4", "9" * 30):
        (root / name).mkdir()
    with Checkpoints(root, warn=pytest.fail) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
    assert damage.judge(root, {}) == ""


def test_a_file_for_the_quarantine_is_one_line(root):
    (root / QUARANTINE).write_text("")
    (root / "3" / MANIFEST).unlink()
    with pytest.raises(UserError, match=f"3 is damaged and cannot be moved to .*{QUARANTINE}"):
        restore(root)


def test_what_killed_runs_left_is_cleaned_be_it_folder_file_or_link(root):
    (root / "4.orbax-checkpoint-tmp").mkdir()
    (root / "5.orbax-checkpoint-tmp").write_text("")
    (root / "6.removed").symlink_to(root / "1")
    assert damage.judge(root, {}) == ""
    assert sorted(path.name for path in root.iterdir()) == ["1", "2", "3"]


def test_digests_are_those_that_the_algorithm_is_published_with(tmp_path):
    """The value of nothing stands in the specification of XXH3."""
    content = {"empty": b"", "small": b"0123456789", "long": bytes(range(256)) * 5000}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    write_manifest(tmp_path, step=1, record={"meta": {}, "metrics": {}})
    files = json.loads((tmp_path / MANIFEST).read_text())["files"]
    assert files == {name: [len(data), xxhash.xxh3_128(data).hexdigest()] for name, data in content.items()}
    assert files["empty"] == [0, "99aa06d3014798d86001c324468d497f"]
    assert verify_manifest(tmp_path, step=1).standing is Standing.VERIFIED


def test_a_manifest_that_reads_the_same_but_is_not_as_it_was_written_is_damaged(root):
    """A flipped bit makes 1E-05 of 1e-05: the content is the same, the file is not."""
    path = root / "3" / MANIFEST
    write_manifest(root / "3", step=3, record={"meta": {"rate": 1e-05}, "metrics": {}})
    text = path.read_text()
    assert "1e-05" in text and verify_manifest(root / "3", step=3).standing is Standing.VERIFIED
    path.write_text(text.replace("1e-05", "1E-05"))
    assert json.loads(path.read_text()) == json.loads(text)
    assert damage.judge(root, {3: MANIFEST}) == ""


def test_manifests_from_before_the_algorithm_had_a_name_are_read(root):
    """They said blake2b and nothing of it."""

    def blake2b(data):
        return hashlib.blake2b(data, digest_size=32).hexdigest()

    old = json.loads((root / "3" / MANIFEST).read_text())
    files = {name: [size, blake2b((root / "3" / name).read_bytes())] for name, (size, _) in old["files"].items()}
    content = {"step": 3, "meta": old["meta"], "metrics": old["metrics"], "files": files}
    content["digest"] = blake2b(json.dumps(content, sort_keys=True).encode())
    (root / "3" / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    assert damage.judge(root, {}) == ""
    name = damage.flip_bit(root / "3" / "state", random.Random(0))
    assert damage.judge(root, {3: name}) == ""


def test_the_state_of_a_case_differs_in_every_leaf():
    """Else a step that came back for another could go unnoticed."""
    for left, right in zip(*(jax.tree.leaves(damage.make_state(step)) for step in (1, 2)), strict=True):
        assert not np.array_equal(left, right)


def test_the_best_step_stays_though_its_manifest_is_damaged_while_the_training_goes_on(root):
    """Nobody can say any more that it is the best, nor that it is not."""
    with Checkpoints(root, keep_last=1, best_mode="min", warn=pytest.fail) as checkpoints:
        (root / "1" / MANIFEST).write_bytes((root / "1" / MANIFEST).read_bytes().replace(b"1", b"7", 1))
        for step in (4, 5):
            checkpoints.save(step, damage.make_state(step), meta={"examples": step}, metrics={"bleu": 9.0})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 5]  # 2 is the best of the others
