"""The time of a program's work, by hand."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from seq2seq_jax.parallel.roofline import HARDWARE, Hardware, calibrate, estimate, find_hardware
from seq2seq_jax.parallel.work import Call, Kernel, Work

AXES = ("data", "fsdp", "tensor", "stage")
SLOW = Hardware("slow", peak_flops=100.0, memory=1e3, bandwidth=10.0, links=1, link_bandwidth=5.0, float32_share=0.5,
                clock=2.0, hop_seconds=1.0, kernel_seconds=0.25, loop_seconds=0.5)  # fmt: skip


def mesh_of_eight() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 4)


def test_every_operation_takes_the_longer_of_arithmetic_and_memory() -> None:
    work = Work(
        kernels=[
            Kernel("product", times=3, flops=200, bytes=10, cycles=8),  # 2 s of arithmetic, 1 s of memory
            Kernel("copy", times=2, bytes=40),  # 4 s of memory
            Kernel("single", times=1, flops=100, flops32=100),  # float32 at half the peak: 2 s
        ],
        trips=4,
    )
    found = estimate(work, mesh_of_eight(), SLOW)
    assert found.compute == 3 * 2 + 2
    assert found.memory == 3 * 1 + 2 * 4
    assert found.operations == 3 * 2 + 2 * 4 + 2
    assert found.latency == 6 * 0.25 + 4 * 0.5
    assert found.compiler == 3 * 8 / 2
    assert found.step == found.operations + found.latency
    assert found.binds == "memory"


def test_what_is_smaller_than_the_cache_moves_at_the_cache_s_speed() -> None:
    machine = dataclasses.replace(SLOW, cache=30.0, cache_bandwidth=40.0)
    work = Work(kernels=[Kernel("near", times=2, bytes=20), Kernel("far", times=1, bytes=40)])
    assert estimate(work, mesh_of_eight(), machine).memory == 2 * 20 / 40 + 40 / 10


def test_communication_is_added_and_hides_at_best_behind_the_operations() -> None:
    attributes = "replica_groups=mesh['a'=4,'b'=2] {'b'}, x"
    calls = [Call("all-reduce", 3, 10.0, attributes, False), Call("all-reduce", 1, 10.0, attributes, True)]
    found = estimate(Work(kernels=[Kernel("product", times=1, flops=300)], calls=calls), mesh_of_eight(), SLOW)
    once = 2 * (10 / 2 / 5 + 1)  # two phases of half the payload over one link, and a hop each
    (line,) = found.traffic
    assert (line.kind, line.axis, line.calls, line.bytes, line.asynchronous) == ("all-reduce", "stage", 4, 40, 0.25)
    assert found.communication == pytest.approx(4 * once)
    assert found.step == pytest.approx(3 + 0.25 + 4 * once)
    assert found.overlapped == pytest.approx(4 * once)
    assert found.binds == "communication"


def test_published_figures_of_a_v5p() -> None:
    """4,800 Gbit/s to neighbours over six links: 100 GB/s each."""
    chip = HARDWARE["v5p"]
    assert (chip.peak_flops, chip.bandwidth, chip.links) == (459e12, 2765e9, 6)
    assert chip.link_bandwidth == pytest.approx(100e9)


def test_a_cpu_has_no_published_figures_and_is_measured() -> None:
    device = jax.devices("cpu")[0]
    assert find_hardware(device) is None
    found = calibrate(device, devices=8)
    assert 1e8 < found.peak_flops < 1e14
    assert 1e7 < found.bandwidth < 1e13
    assert 1e6 < found.slow_elements < 1e13
    assert found.link_bandwidth == pytest.approx(found.bandwidth / 2), "what is sent is read here and written there"


def test_devices_that_share_the_machine_share_its_memory() -> None:
    psutil = pytest.importorskip("psutil")
    found = calibrate(jax.devices("cpu")[0], devices=8)
    assert found.memory == pytest.approx(psutil.virtual_memory().total / 8, rel=1e-3)


def test_published_figures_are_positive_and_shares_at_most_one() -> None:
    for name, chip in HARDWARE.items():
        numbers = {key: value for key, value in dataclasses.asdict(chip).items() if isinstance(value, int | float)}
        assert all(value >= 0 for value in numbers.values()), (name, numbers)
        assert all(numbers[key] > 0 for key in ("peak_flops", "memory", "bandwidth", "links", "link_bandwidth")), name
        assert 0 < chip.float32_share <= 1, name
