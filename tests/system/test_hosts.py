"""Two processes with four devices each, over loopback, as two hosts would: what they learn is what one would.

And they end together: a signal to one stops both where they are, a host that dies or hangs ends the other with its
name, and a start again goes on from there.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

STEPS = 30
LIMIT = 6  # seconds of silence after which a host is lost
ARGS = (
    "--config=configs/gnmt.py",
    "--config.data.source=x",
    "--config.data.target=y",
    "--config.data.max_shapes=1",
    "--config.data.tokens_per_batch=160",
    "--config.vocab.kind=word",
    "--config.vocab.size=30",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=1",
    "--config.decode.length_factor=0.1",
    "--config.decode.length_extra=4",
    "--config.decode.rows=8",
    "--config.evaluate.samples=0",
    f"--config.train.steps={STEPS}",
    "--config.train.save_every=5",
    "--config.train.evaluate_every=1000",
    "--config.train.log_every=1",
    "--config.train.warmup_steps=10",
    f"--config.train.decay_steps={STEPS}",
    "--config.train.learning_rate=0.02",
    f"--host_timeout={LIMIT}",
)
BALANCED = ("--config.parallel.data=2", "--config.parallel.stage=2", "--config.parallel.tensor=2")

RESTORE = """
import sys
import jax, numpy as np, tensorstore
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from seq2seq_jax.parallel.hosts import join
from seq2seq_jax.train.checkpoints import Checkpoints

def bytes_read():
    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in found for value in metric["values"])

with join(coordinator=sys.argv[1], count=2, index=int(sys.argv[2])) as hosts:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    def abstract(*axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return {"w": jax.ShapeDtypeStruct((1024, 1024), np.float32, sharding=sharding)}
    draw = lambda: {"w": jax.random.normal(jax.random.key(0), (1024, 1024))}
    whole = np.asarray(jax.jit(draw, out_shardings=NamedSharding(mesh, PartitionSpec()))()["w"])
    rows, columns = abstract(("a", "b"), None), abstract("b", "a")
    state = jax.jit(draw, out_shardings=jax.tree.map(lambda x: x.sharding, rows))()
    with Checkpoints(sys.argv[3], warn=print) as checkpoints:
        checkpoints.save(1, state, meta={})
        checkpoints.wait()
        hosts.gather("saved")
        for name, target in (("rows", rows), ("columns", columns)):
            before = bytes_read()
            found = checkpoints.restore(target).state["w"]
            print(name, bytes_read() - before, flush=True)
            assert found.sharding == target["w"].sharding
            for shard in found.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[shard.index])
"""

EXCHANGE = """
import sys, time
import numpy as np
from jax.experimental import multihost_utils
from seq2seq_jax.parallel.hosts import join

with join(coordinator=sys.argv[1], count=2, index=int(sys.argv[2]), timeout=float(sys.argv[3])) as hosts:
    for n in range(10**6):
        multihost_utils.process_allgather(np.ones(3))
        hosts.look(None)
        if n == 3:
            print("going", flush=True)
        if n > 3 and hosts.index == 1 and sys.argv[4] == "fails":
            raise ValueError("a bug")
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    """Sentences of a few words and their copies in other letters; the flags that name them."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split, count in (("train", 48), ("dev", 4), ("test", 4)):
        lines = [" ".join(draw.choices("abcdefgh", k=draw.randint(3, 7))) for _ in range(count)]
        (folder / f"{split}.x").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{split}.y").write_text("".join(f"{line.upper()}\n" for line in lines))
    return tuple(f"--config.data.{split}={folder / split}" for split in ("train", "dev", "test"))


class Pair:
    """The processes of one run, and what they have said."""

    def __init__(self, root: Path, *args: str, hosts: int = 2, differ: tuple[str, ...] = ()):
        self.root = root
        port = free_port()
        self.logs = [root.with_name(f"{root.name}.{host}.{port}.log") for host in range(hosts)]
        self.processes = []
        for host in range(hosts):
            flags = f"--xla_force_host_platform_device_count={8 // hosts}"
            where = (f"--coordinator=127.0.0.1:{port}", f"--hosts={hosts}", f"--host={host}")
            command = [sys.executable, "-m", "seq2seq_jax.main", *ARGS, *args, f"--workdir={root}", *where]
            with self.logs[host].open("w") as log, self.logs[host].with_suffix(".out").open("w") as out:
                process = subprocess.Popen(
                    command + list(differ if host else ()),
                    stdout=out,
                    stderr=log,
                    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                )
            self.processes.append(process)

    def wait(self, host: int, *, seconds: float = 240) -> int:
        try:
            return self.processes[host].wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"host {host} goes on after {seconds} s:\n{self.said(0)[-1500:]}\n{self.said(1)[-1500:]}")

    def said(self, host: int) -> str:
        return self.logs[host].read_text()

    def printed(self, host: int) -> str:
        return self.logs[host].with_suffix(".out").read_text()

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + 240
        while max(steps_of(self.root), default=0) < step:
            for host in (0, 1):
                assert self.processes[host].poll() is None, self.said(host)[-3000:]
            assert time.monotonic() < end, self.said(0)[-3000:]
            time.sleep(0.005)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def steps_of(root: Path) -> list[int]:
    return sorted(int(path.name) for path in (root / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def losses_of(root: Path) -> list[float]:
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    assert sorted(losses) == list(range(1, STEPS + 1))
    return [losses[step] for step in sorted(losses)]


def finish(root: Path, *args: str, hosts: int) -> dict:
    with Pair(root, *args, hosts=hosts) as pair:
        for host in range(hosts):
            assert pair.wait(host) == 0, pair.said(host)[-3000:]
        assert "test (4 sentences" in pair.printed(0)
        if hosts == 2:  # the first one speaks for both, and Gloo does not write among its results
            assert "step" not in pair.said(1) and pair.printed(1) == "" and "Gloo" not in pair.printed(0)
    return json.loads((root / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(), BALANCED], ids=["data_parallel", "balanced"])
def test_two_hosts_learn_what_one_does_whatever_happens_to_them(tmp_path, corpus, mesh):
    one = finish(tmp_path / "one", *corpus, *mesh, hosts=1)
    root = tmp_path / "two"
    if not mesh:
        disturb(root, *corpus)
    two = finish(root, *corpus, *mesh, hosts=2)

    np.testing.assert_allclose(losses_of(root), losses_of(tmp_path / "one"), rtol=1e-5)
    assert one["test"]["sentences"] == two["test"]["sentences"] == 4 and two["steps"] == STEPS
    assert one["train_loss"] < 3.0, "nothing was learnt: equal numbers would say little"
    assert len(two["devices"]) == 8
    outputs = [(tmp_path / name / "outputs" / "test.hypotheses.txt").read_text() for name in ("one", "two")]
    assert outputs[0] == outputs[1]


def disturb(root: Path, *args: str) -> None:
    """A run of two hosts that is stopped, and one of which is killed, on its way."""
    with Pair(root, *args) as pair:  # a signal to one of them
        pair.wait_for_step(5)
        pair.processes[1].send_signal(signal.SIGTERM)
        assert [pair.wait(host) for host in (0, 1)] == [143, 143], pair.said(1)[-3000:]
        for host in (0, 1):
            assert f"at step {steps_of(root)[-1]}, which is saved; resume with the same command" in pair.said(host)
    before = steps_of(root)[-1]
    assert before < STEPS / 2

    with Pair(root, *args) as pair:  # one is killed
        pair.wait_for_step(before + 5)
        assert f"resuming at step {before}" in pair.said(0)
        pair.processes[1].kill()
        killed = time.monotonic()
        assert pair.wait(0) == 5, pair.said(0)[-3000:]
        assert time.monotonic() - killed < LIMIT + 5
        last = pair.said(0).strip().splitlines()[-1]
        assert f"error: host 1 ({socket.gethostname()}, process {pair.processes[1].pid}) has not been heard of" in last
        assert f"Start all hosts again with the same command to resume from step {steps_of(root)[-1]}." in last
    assert steps_of(root)[-1] < STEPS


def test_hosts_that_were_started_differently_refuse_to_run(tmp_path, corpus):
    with Pair(tmp_path / "run", *corpus, differ=("--config.train.seed=1",)) as pair:
        for host in (0, 1):
            assert pair.wait(host) == 2, pair.said(host)[-3000:]
            line = pair.said(host).strip().splitlines()[-1]
            assert f"host 1 ({socket.gethostname()}, process {pair.processes[1].pid}) has config.train.seed 1" in line
            assert "Traceback" not in pair.said(host)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["first_killed", "second_stopped", "fails"])
def test_who_is_lost_in_an_exchange_is_named(tmp_path, fate):
    """JAX itself would abort the other process without a name, or leave it waiting."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-c", EXCHANGE, f"127.0.0.1:{free_port()}"]
    victim = 0 if fate == "first_killed" else 1
    processes = []
    for host in (0, 1):
        with (tmp_path / f"{host}.err").open("w") as said:
            arguments = [*command, str(host), str(LIMIT), fate]
            processes.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=said, text=True, env=environ))
    try:
        for process in processes:
            assert process.stdout.readline() == "going\n", (tmp_path / "0.err").read_text()[-2000:]
        if fate != "fails":
            processes[victim].send_signal(signal.SIGKILL if fate == "first_killed" else signal.SIGSTOP)
        began = time.monotonic()
        assert processes[1 - victim].wait(timeout=60) == 5
        assert time.monotonic() - began < 2 * LIMIT + 5
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    line = (tmp_path / f"{1 - victim}.err").read_text().strip().splitlines()[-1]
    how = "stopped: a bug" if fate == "fails" else "has not been heard of|cannot be reached"
    assert re.search(rf"error: host {victim} \([^)]*process {processes[victim].pid}\) ({how})", line), line
    if fate == "fails":
        assert "ValueError: a bug" in (tmp_path / "1.err").read_text()  # a bug shows where it is


def test_each_host_restores_its_own_shards_from_the_disk(tmp_path):
    """Of a state of 4 MiB each host reads its half, where it is split as it was saved; any other split works too."""
    address = f"127.0.0.1:{free_port()}"
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", RESTORE, address]
    processes = [
        subprocess.Popen(
            [*command, str(host), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ,
        )
        for host in (0, 1)
    ]
    for process in processes:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said[-3000:]
        read = dict(line.split() for line in said.splitlines() if line.startswith(("rows ", "columns ")))
        assert 1.5 * 2**20 < int(read["rows"]) < 2.1 * 2**20, read  # compressed a little
        assert 1.5 * 2**20 < int(read["columns"]) < 4.2 * 2**20, read
