"""Slices that are not there: their names, and what a program compiled for one is said to hold and to do."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.errors import EXIT_USER, UserError
from seq2seq_jax.parallel.roofline import HARDWARE, Hardware
from seq2seq_jax.parallel.topology import analyse, count_bytes_per_device, describe_devices, read_memory

AXES = ("data", "fsdp", "tensor", "stage")
ANY = Hardware("any", peak_flops=1e9, memory=1e9, bandwidth=1e9, links=1, link_bandwidth=1e9)


def make_mesh(devices: list[jax.Device], *sizes: int) -> Mesh:
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p-1024", "counts cores, two a chip"),
        ("v5litepod-16", "by its shape"),
        ("v5q:4x4", "the kind must be one of v4, v5e, v5p, v6e; did you mean v5p?"),
        ("gpu", "the kind must be one of"),
        ("v5e", "sizes joined by x"),
        ("v5e:4*4", "sizes joined by x"),
        ("v5e:0x4", "sizes joined by x"),
        ("v5e:4x4x4", "a v5e has 2 dimensions, not 3"),
        ("v5p:4x4", "a v5p has 3 dimensions, not 2"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        describe_devices(name)
    assert caught.value.exit_code == EXIT_USER
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_libtpu_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(UserError, match=r"pip install 'seq2seq_jax\[plan\]'"):
        describe_devices("v5e:4x4")


def scan_products(x: jax.Array, w: jax.Array) -> jax.Array:
    """Seven products with half of `w` on each device of `tensor`, each followed by a sum over `tensor`."""
    return lax.scan(lambda c, _: (lax.psum(c @ w, "tensor"), None), x, None, length=7)[0]


def compile_scan(mesh: Mesh) -> jax.stages.Compiled:
    rows, whole = PartitionSpec(("data", "fsdp", "stage")), PartitionSpec()
    mapped = jax.shard_map(scan_products, mesh=mesh, in_specs=(rows, whole), out_specs=rows, check_vma=False)
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=NamedSharding(mesh, rows))
    w = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=NamedSharding(mesh, whole))
    return jax.jit(mapped).lower(x, w).compile()


@pytest.mark.parametrize("topology", ["here", "v5e:4x4", "v5p:2x2x4", "v4:2x2x4", "v6e:4x4"])
def test_one_program_is_read_alike_on_all_machines(topology: str) -> None:
    """Rows 256 / 4 on each device: 7 products of [64, 256] @ [256, 256], 7 sums of [64, 256] over `tensor`."""
    if topology == "here":
        mesh, hardware = make_mesh(jax.devices()[:8], 2, 1, 2, 2), ANY
    else:
        pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install 'seq2seq_jax[plan]')")
        devices = describe_devices(topology)
        assert len(devices) == 16
        mesh, hardware = make_mesh(devices, 2, 2, 4, 1), HARDWARE[topology.partition(":")[0]]
    found = analyse(compile_scan(mesh), mesh, hardware)
    assert found.work.flops == 7 * 2 * 64 * 256 * 256
    assert not found.work.unbounded
    ((kind, axis, calls, size),) = [(line.kind, line.axis, line.calls, line.bytes) for line in found.time.traffic]
    assert (kind, axis, calls) == ("all-reduce", "tensor", 7)
    assert size in (7 * 64 * 256 * 4, 7 * 64 * 256 * 2)  # a TPU may send what it multiplies: bfloat16
    assert 0 < found.time.step < 1


def test_a_slice_can_be_one_chip() -> None:
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install 'seq2seq_jax[plan]')")
    (device,) = describe_devices("v5e:1x1")
    assert device.device_kind == "TPU v5 lite"


def test_bytes_per_device_are_those_of_its_shards() -> None:
    mesh = make_mesh(jax.devices()[:8], 2, 1, 2, 2)
    split = jax.ShapeDtypeStruct((64, 10), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(AXES)))
    whole = jax.ShapeDtypeStruct((6,), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    assert count_bytes_per_device({"a": split, "b": whole}) == 64 * 10 * 4 / 8 + 12


def measure_live(run: Callable[[], object]) -> int:
    """Bytes of arrays on device 0 that are new after `run`."""
    before = {id(array) for array in jax.live_arrays()}
    kept = run()
    new = [array for array in jax.live_arrays() if id(array) not in before]
    held = sum(shard.data.nbytes for array in new for shard in array.addressable_shards if shard.device.id == 0)
    del kept
    return held


def test_memory_of_arguments_and_outputs_is_what_the_arrays_then_hold() -> None:
    mesh = make_mesh(jax.devices()[:8], 2, 1, 2, 2)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return state + x.sum(), x @ x.T

    jitted = jax.jit(step, donate_argnums=0)
    state, x = jax.device_put(jnp.ones((512, 300)), sharding), jax.device_put(jnp.ones((512, 400)), sharding)
    compiled = jitted.lower(state, x).compile()
    memory = read_memory(compiled)
    held = [sum(s.data.nbytes for s in a.addressable_shards if s.device.id == 0) for a in (state, x)]
    assert memory.arguments == pytest.approx(sum(held), rel=0.01)
    product = measure_live(lambda: compiled(state, x)) - held[0]  # the new state takes the place of the old
    assert memory.outputs == pytest.approx(product, rel=0.1)
    assert memory.total >= memory.arguments + memory.outputs
