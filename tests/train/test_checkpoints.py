"""Checkpoints: what was saved comes back, and damage, kills, full disks and other models are noticed."""

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.train.checkpoint_folder import QUARANTINE
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.manifest import MANIFEST, Standing, verify_manifest

META = {"examples": 7, "vocab": "abc"}


def make_state(step: int) -> dict:
    params = {"encoder": {"kernel": jnp.full((3, 4), float(step)), "bias": jnp.arange(4.0)}}
    optimizer = optax.MultiSteps(optax.adamw(1e-3), 2)
    return {"params": params, "optimizer": optimizer.init(params), "step": jnp.int32(step), "key": jax.random.key(step)}


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def equal(left, right) -> bool:
    def data(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    same = jax.tree.map(lambda a, b: bool(np.array_equal(data(a), data(b))), left, right)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(jax.tree.leaves(same))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """A folder with the verified steps 1 and 2, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder, warn=pytest.fail) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, make_state(step), meta={**META, "step": step})
    return folder


@pytest.fixture
def damaged(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def restore(folder: Path, **arguments):
    warnings: list[str] = []
    with Checkpoints(folder, warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0)), **arguments)
    return restored, warnings


def test_what_was_saved_comes_back_with_its_meta(two_steps):
    restored, warnings = restore(two_steps)
    assert (restored.step, restored.meta, warnings) == (2, {**META, "step": 2}, [])
    assert equal(restored.state, make_state(2))
    assert restore(two_steps, step=1)[0].step == 1


def test_empty_folder_restores_none_and_unknown_step_is_refused(tmp_path, two_steps):
    assert restore(tmp_path / "new") == (None, [])
    with pytest.raises(UserError, match="no checkpoint of step 9; it has those of 1, 2"):
        restore(two_steps, step=9)


def test_a_step_is_saved_once_and_old_ones_rotate_but_not_the_best(tmp_path):
    with Checkpoints(tmp_path, best_metric="bleu", warn=pytest.fail) as checkpoints:
        for step, bleu in enumerate([1.0, 30.0, 2.0, None, float("nan"), 4.0]):
            metrics = None if bleu is None else {"bleu": bleu}
            assert checkpoints.save(step, make_state(step), meta=META, metrics=metrics)
            assert not checkpoints.save(step, make_state(step), meta=META)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4, 5]
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (5, 1)
    with Checkpoints(tmp_path, best_metric="bleu", best_mode="min", read_only=True, warn=pytest.fail) as checkpoints:
        assert checkpoints.best_step() == 5
        assert checkpoints.metrics(1) == {"bleu": 30.0}


def test_an_old_step_stays_until_the_new_one_is_verified(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no manifest today")

    warnings: list[str] = []
    with Checkpoints(tmp_path, keep_last=1, warn=warnings.append) as checkpoints:
        checkpoints.save(1, make_state(1), meta=META)
        checkpoints.wait()
        monkeypatch.setattr("seq2seq_jax.train.checkpoints.write_manifest", fail)
        checkpoints.save(2, make_state(2), meta=META)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        monkeypatch.undo()
        checkpoints.save(3, make_state(3), meta=META)
        checkpoints.wait()
        assert checkpoints.steps() == [3]
    assert len(warnings) == 1 and "no manifest today" in warnings[0]


def test_hosts_that_share_the_reading_find_damage_to_any_file_once(damaged):
    for path in [path for path in files_of(damaged / "2") if path.stat().st_size and path.name != MANIFEST]:
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        found = [verify_manifest(damaged / "2", step=2, share=(host, 3)).standing for host in range(3)]
        assert sorted(found) == [Standing.VERIFIED, Standing.VERIFIED, Standing.BAD], path
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_damage_to_any_file_falls_back_and_names_it(two_steps, tmp_path, kind):
    names = [path.relative_to(two_steps / "2") for path in files_of(two_steps / "2")]
    generator = random.Random(kind)
    assert len(names) > 8
    for number, name in enumerate(names):
        if name.name == MANIFEST and kind == "delete":
            continue  # then the step is unverified: see below
        folder = Path(shutil.copytree(two_steps, tmp_path / str(number)))
        path = folder / "2" / name
        content = bytearray(path.read_bytes())
        if kind == "flip":
            if not content:
                continue
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            path.write_bytes(content)
        elif kind == "truncate":
            if not content:
                continue
            os.truncate(path, generator.randrange(len(content)))
        else:
            path.unlink()
        assert verify_manifest(folder / "2", step=2).standing is Standing.BAD, name
        with Checkpoints(folder, warn=pytest.fail) as checkpoints:  # opening must not stumble over it
            assert checkpoints.steps() == [1, 2]
            checkpoints.best_step()


def test_fallback_quarantines_with_one_warning_and_the_step_can_be_saved_again(damaged):
    path = max(files_of(damaged / "2" / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    name = path.relative_to(damaged / "2").as_posix()
    warnings: list[str] = []
    with Checkpoints(damaged, warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0)))
        assert restored.step == 1 and equal(restored.state, make_state(1))
        assert checkpoints.save(2, make_state(2), meta=META)
    assert len(warnings) == 1 and name in warnings[0] and "step 2" in warnings[0]
    assert (damaged / QUARANTINE / "2" / name).read_bytes() == content
    assert restore(damaged)[0].step == 2
    shutil.copytree(damaged / "1", damaged / "3")  # a folder under a wrong name is no checkpoint of that step
    shutil.move(damaged / "3", damaged / QUARANTINE / "3")
    shutil.copytree(damaged / "1", damaged / "3")
    restored, warnings = restore(damaged)
    assert restored.step == 2 and "that of step 1" in warnings[0]
    assert (damaged / QUARANTINE / "3.2").is_dir()


def test_reading_only_changes_nothing(damaged):
    (damaged / "2" / "state" / "_METADATA").write_text("{}")
    (damaged / "5.orbax-checkpoint-tmp").mkdir()
    before = files_of(damaged)
    warnings: list[str] = []
    with Checkpoints(damaged, read_only=True, warn=warnings.append) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0))).step == 1
        with pytest.raises(ValueError, match="reading only"):
            checkpoints.save(3, make_state(3), meta=META)
    assert files_of(damaged) == before and (damaged / "5.orbax-checkpoint-tmp").is_dir()
    assert len(warnings) == 1 and "_METADATA" in warnings[0]
    with pytest.raises(UserError, match="no checkpoint folder"):
        Checkpoints(damaged / "nowhere", read_only=True, warn=pytest.fail)


def test_all_damaged_is_an_error_now_and_at_the_next_start(damaged):
    for step in ("1", "2"):
        (damaged / step / "state" / "_METADATA").unlink()
    count = len(files_of(damaged))
    for order in (r"step 2: state/_METADATA is missing.*step 1", "1 is in quarantine; 2 is in"):  # never from zero
        with pytest.raises(NoUsableCheckpointError, match=order):
            restore(damaged)
    assert len(files_of(damaged)) == count


def test_another_model_is_refused_by_name_and_shape_and_nothing_moves(damaged):
    other = make_state(0)
    other["params"]["encoder"] = {"kernel": jnp.ones((3, 5)), "bias": jnp.arange(4), "scale": jnp.ones(2)}
    with Checkpoints(damaged, warn=pytest.fail) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(abstract(other))
    for part in (
        "params/encoder/kernel is [3, 4] float32 there, [3, 5] float32 here",
        "params/encoder/bias is [4] float32 there, [4] int32 here",
        "params/encoder/scale is absent there, [2] float32 here",
    ):
        assert part in str(error.value)
    assert not (damaged / QUARANTINE).exists() and (damaged / "2").is_dir()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_buffers_may_be_donated_while_they_are_saved(tmp_path, size):
    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        return jax.tree.map(lambda leaf: -leaf - 5, state)

    with Checkpoints(tmp_path, warn=pytest.fail) as checkpoints:
        for step in range(3):
            state = {"a": jnp.arange(size, dtype=jnp.float32) + step, "b": jnp.arange(size, dtype=jnp.float32)}
            wanted = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
            target = abstract(state)
            assert checkpoints.save(step, state, meta={})
            for _ in range(3):
                state = update(state)
            jax.block_until_ready(state)
            assert equal(jax.tree.map(np.asarray, checkpoints.restore(target, step=step).state), wanted)


@pytest.mark.parametrize("way", ["return", "exception", "without polling"])
def test_every_way_out_commits_the_last_save(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)  # a relative folder stays where it was named
    try:
        with Checkpoints("run", warn=pytest.fail) as checkpoints:
            checkpoints.save(1, make_state(1), meta=META)
            monkeypatch.chdir("/")
            if way == "exception":
                raise KeyboardInterrupt
            if way == "return":
                checkpoints.poll()
    except KeyboardInterrupt:
        pass
    checkpoints.close()
    assert verify_manifest(tmp_path / "run" / "1", step=1).standing is Standing.VERIFIED


def test_poll_makes_the_manifest_without_waiting(tmp_path):
    with Checkpoints(tmp_path, warn=pytest.fail) as checkpoints:
        checkpoints.save(1, make_state(1), meta=META)
        deadline = time.monotonic() + 10
        while not (tmp_path / "1" / MANIFEST).exists():
            checkpoints.poll()
            time.sleep(0.005)
            assert time.monotonic() < deadline
        manifest = json.loads((tmp_path / "1" / MANIFEST).read_text())
        assert manifest["step"] == 1 and manifest["meta"] == META


def test_a_file_in_the_way_and_a_url_are_user_errors(tmp_path):
    (tmp_path / "file").write_text("")
    for directory, text in ((tmp_path / "file", "cannot write"), ("gs://bucket/run", "local path")):
        with pytest.raises(UserError, match=text):
            Checkpoints(directory, warn=pytest.fail)


FULL_DISK = """
import json, resource, sys, time
import jax
from pathlib import Path
from seq2seq_jax.errors import UserError
from seq2seq_jax.train.checkpoints import Checkpoints

def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def save(checkpoints, step):
    checkpoints.save(step, state, meta={})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and checkpoints._saving is not None:
        checkpoints.poll()
        time.sleep(0.01)
    return checkpoints.steps()

def fill_disk(folder, asynchronous):
    warnings, log = [], {}
    with Checkpoints(folder, asynchronous=asynchronous, warn=warnings.append) as c:
        log["first"] = save(c, 1)
        limit_file_size(50_000)
        log["full"] = save(c, 2), list(warnings)
        limit_file_size(resource.RLIM_INFINITY)
        log["again"] = save(c, 2), len(warnings)
        log["restored"] = bool((c.restore(target).state["a"] == state["a"]).all())
        limit_file_size(50_000)
        try:
            for step in (3, 4, 5):
                save(c, step)
        except UserError as error:
            log["error"] = step, str(error)
        limit_file_size(resource.RLIM_INFINITY)
    log["left"] = sorted(path.name for path in folder.iterdir())
    return log

state = {"a": jax.random.normal(jax.random.key(0), (100_000,))}
target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
root = Path(sys.argv[1])
print(json.dumps([fill_disk(root / "async", True), fill_disk(root / "sync", False)]))
"""


def run_program(text: str, *arguments: str, **options) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen([sys.executable, "-c", text, *arguments], env=environment, text=True, **options)


def test_a_full_disk_is_reported_survived_and_given_up_on_the_third_time(tmp_path):
    program = run_program(FULL_DISK, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert "Traceback" not in errors
    for log in json.loads(output):
        assert log["first"] == [1]
        steps, warnings = log["full"]
        assert steps == [1] and len(warnings) == 1
        assert re.search("step 2 was not saved.*File too large", warnings[0])
        assert log["again"] == [[1, 2], 1] and log["restored"]
        step, error = log["error"]
        assert step == 5 and str(tmp_path) in error and "File too large. Free disk" in error
        assert log["left"] == ["1", "2"]


KILLED = """
import sys
import jax, jax.numpy as jnp
from seq2seq_jax.train.checkpoints import Checkpoints
with Checkpoints(sys.argv[1], warn=lambda text: print(text, file=sys.stderr)) as c:
    state = {"a": jnp.zeros((300, 300)), "step": jnp.int32(0)}
    target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    found = c.restore(target)
    first = 0 if found is None else found.step
    if found is not None:
        assert found.meta == {"examples": first * 2}, found.meta
        assert (found.state["a"] == first).all() and found.state["step"] == first
    print("start", first, flush=True)
    for step in range(first + 1, 100_000):
        c.save(step, {"a": jnp.full((300, 300), float(step)), "step": jnp.int32(step)}, meta={"examples": step * 2})
        c.poll()
        print("saved", step, flush=True)
"""


def test_kill_at_any_moment_leaves_a_usable_checkpoint(tmp_path):
    generator = random.Random(3)
    starts = []
    for _ in range(3):
        program = run_program(KILLED, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        lines = iter(program.stdout.readline, "")
        start = next((line for line in lines if line.startswith("start")), None)
        assert start is not None, program.stderr.read()
        starts.append(int(start.split()[1]))
        for line in lines:
            if line.startswith("saved") and int(line.split()[1]) >= starts[-1] + 3:
                break
        time.sleep(generator.random() * 0.3)
        program.send_signal(signal.SIGKILL)
        program.communicate()
    assert starts[0] == 0 and all(later > earlier for earlier, later in zip(starts, starts[1:], strict=False)), starts
    aside = [path for path in (tmp_path / QUARANTINE).glob("*") if (path / MANIFEST).exists()]
    assert not aside, "only what was killed between the commit and the manifest may be there"
    with Checkpoints(tmp_path, warn=lambda _: None):
        assert all(path.name.isdigit() or path.name == QUARANTINE for path in tmp_path.iterdir())


OTHER_DEVICES = """
import os, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from seq2seq_jax.train.checkpoints import Checkpoints
sharded = lambda n: NamedSharding(Mesh(jax.devices()[:n], ("d",)), P("d"))
with Checkpoints(sys.argv[1], warn=print) as c:
    c.save(1, {"w": jax.device_put(np.arange(64.0, dtype=np.float32), sharded(4))}, meta={})
    for count in (1, 2):
        w = c.restore({"w": jax.ShapeDtypeStruct((64,), np.float32, sharding=sharded(count))}).state["w"]
        assert len(w.addressable_shards) == count and (np.asarray(w) == np.arange(64)).all()
"""


def test_restores_onto_another_number_of_devices(tmp_path):
    text = 'import os; os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"\n' + OTHER_DEVICES
    program = run_program(text, str(tmp_path), stderr=subprocess.PIPE)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
