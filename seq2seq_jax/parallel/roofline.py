"""How long a program's work takes on a machine, by published figures: a roofline with every constant in sight.

    operation   max(flops / peak, bytes / bandwidth) + element-wise arithmetic, + a fixed part per run
    collective  by rings over the torus (`collectives.estimate_seconds`)
    step        operations + iterations x latency + collectives, nothing overlapped

and, as what full overlap would give, max(operations, collectives). This is a bound that good code
approaches, not a simulation: small products do not fill a systolic array, and a TPU's compiler, which knows
that, writes its own estimate of cycles beside its operations; both are reported.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax.parallel.collectives import Route, estimate_seconds, find_distance, find_route, name_axes, read_groups
from seq2seq_jax.parallel.work import Call, Kernel, Work


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The figures of one device (of a TPU: one chip).

    Attributes:
        name: of the kind.
        peak_flops: dense bfloat16 products a second.
        memory: bytes of its main memory.
        bandwidth: bytes a second of that memory.
        cache: bytes below which an operation works in a cache instead; 0: TPU programs say what lives in VMEM.
        cache_bandwidth: bytes a second of that.
        links: links to its neighbours; 2 for every dimension of a torus, 1 into a switch.
        link_bandwidth: bytes a second of one link in one direction.
        full_ring: a torus dimension of a multiple of this many devices closes to a ring (0: none does).
        float32_share: of `peak_flops` for products of float32 at the default precision; a TPU does them as
            one pass of bfloat16.
        clock: cycles a second, for the compiler's own estimates; 0 where it makes none.
        elements: element-wise results a second that do not hide behind products or memory; 0: all hide.
        slow_elements: tanh, exp and division a second; 0: all hide.
        hop_seconds: latency from one device to its neighbour.
        kernel_seconds: fixed part of every operation.
        loop_seconds: fixed part of every iteration of a loop.
        source: where the figures come from.
    """

    name: str
    peak_flops: float
    memory: float
    bandwidth: float
    links: int
    link_bandwidth: float
    full_ring: int = 0
    cache: float = 0.0
    cache_bandwidth: float = 0.0
    float32_share: float = 1.0
    clock: float = 0.0
    elements: float = 0.0
    slow_elements: float = 0.0
    hop_seconds: float = 1e-6
    kernel_seconds: float = 0.0
    loop_seconds: float = 0.0
    source: str = ""


def _tpu(name: str, teraflops: float, gigabytes: float, bandwidth: float, gigabits: float, links: int, *, clock: float,
         full_ring: int) -> Hardware:  # fmt: skip
    """A chip of cloud.google.com/tpu/docs: "interchip interconnect" in gigabits a second is that of all links.

    Assumed, not published: 1 microsecond a hop, 0.2 an operation, 1 an iteration of a loop.
    """
    return Hardware(
        name=name,
        peak_flops=teraflops * 1e12,
        memory=gigabytes * 2**30,
        bandwidth=bandwidth * 1e9,
        links=links,
        link_bandwidth=gigabits * 1e9 / 8 / links,
        full_ring=full_ring,
        clock=clock,
        kernel_seconds=0.2e-6,
        loop_seconds=1e-6,
        source=f"cloud.google.com/tpu/docs: {teraflops:g} TFLOP/s bfloat16, {gigabytes:g} GB, {bandwidth:g} GB/s HBM, "
        f"{gigabits:g} Gbit/s to neighbours over {links} links",
    )


HARDWARE: dict[str, Hardware] = {
    # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1228 GB/s, 2400 Gbit/s, 3-D torus of 4x4x4 cubes
    "v4": _tpu("v4", 275, 32, 1228, 2400, 6, clock=1.05e9, full_ring=4),
    # .../v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 1600 Gbit/s, 2-D torus of at most 16x16
    "v5e": _tpu("v5e", 197, 16, 819, 1600, 4, clock=1.5e9, full_ring=16),
    # .../v5p: 459 TFLOP/s, 95 GB, 2765 GB/s, 4800 Gbit/s, 3-D torus of 4x4x4 cubes
    "v5p": _tpu("v5p", 459, 95, 2765, 4800, 6, clock=1.75e9, full_ring=4),
    # .../v6e: 918 TFLOP/s, 32 GB, 1640 GB/s, 3584 Gbit/s, 2-D torus of at most 16x16
    "v6e": _tpu("v6e", 918, 32, 1640, 3584, 4, clock=1.75e9, full_ring=16),
    # nvidia.com data sheets, SXM, dense: bandwidth of NVLink in one direction; TF32 products at half of bfloat16
    "H200": Hardware("H200", 989e12, 141e9, 4800e9, 1, 450e9, float32_share=0.5, kernel_seconds=3e-6,
                     loop_seconds=5e-6, source="nvidia.com data sheet H200 SXM"),
    "H100": Hardware("H100", 989e12, 80e9, 3350e9, 1, 450e9, float32_share=0.5, kernel_seconds=3e-6,
                     loop_seconds=5e-6, source="nvidia.com data sheet H100 SXM"),
    "A100": Hardware("A100", 312e12, 80e9, 2039e9, 1, 300e9, float32_share=0.5, kernel_seconds=3e-6,
                     loop_seconds=5e-6, source="nvidia.com data sheet A100 80GB SXM"),
}  # fmt: skip
"""By the name that a topology or a device kind begins with. The "GB" of a TPU's HBM are GiB."""

_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e", "H200": "H200",
          "H100": "H100", "A100": "A100"}  # fmt: skip


def find_hardware(device: jax.Device) -> Hardware | None:
    """The published figures of a device's kind; None for what has none here, such as a CPU."""
    kind = device.device_kind
    return next((HARDWARE[name] for part, name in _KINDS.items() if part in kind), None)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind over one mesh axis in one run.

    Attributes:
        kind, axis: such as "all-reduce" over "data+fsdp".
        calls: how often.
        bytes: payload on one device, all calls together.
        seconds: if nothing else is on the links, all calls together.
        asynchronous: share of the bytes that the compiler starts early and so can hide.
    """

    kind: str
    axis: str
    calls: float
    bytes: float
    seconds: float
    asynchronous: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time of one run.

    Attributes:
        compute: seconds of all operations if only the arithmetic counted.
        memory: the same if only the memory's bandwidth counted.
        operations: the sum of the larger of the two, operation by operation.
        latency: fixed parts of operations and loop iterations.
        communication: of all collectives.
        traffic: those by kind and axis.
        compiler: what the compiler says of its operations, 0 if nothing.
    """

    compute: float
    memory: float
    operations: float
    latency: float
    communication: float
    traffic: tuple[Traffic, ...]
    compiler: float

    @property
    def step(self) -> float:
        """Seconds, nothing overlapped."""
        return self.operations + self.latency + self.communication

    @property
    def overlapped(self) -> float:
        """Seconds if all communication ran beside the operations."""
        return max(self.operations + self.latency, self.communication)

    @property
    def binds(self) -> str:
        """What takes most of the step: "compute", "memory", "latency" or "communication"."""
        parts = {
            "compute": self.operations if self.compute >= self.memory else 0.0,
            "memory": self.operations if self.compute < self.memory else 0.0,
            "latency": self.latency,
            "communication": self.communication,
        }
        return max(parts, key=lambda name: parts[name])


def estimate(work: Work, mesh: Mesh, hardware: Hardware) -> Estimate:
    """The time of one run of a program on a mesh."""
    traffic = estimate_traffic(work.calls, mesh, hardware)
    arithmetic = [kernel.times * _arithmetic_seconds(kernel, hardware) for kernel in work.kernels]
    moving = [kernel.times * kernel.bytes / _bandwidth(kernel, hardware) for kernel in work.kernels]
    runs = sum(kernel.times for kernel in work.kernels)
    return Estimate(
        compute=sum(arithmetic),
        memory=sum(moving),
        operations=sum(max(pair) for pair in zip(arithmetic, moving, strict=True)),
        latency=runs * hardware.kernel_seconds + work.trips * hardware.loop_seconds,
        communication=sum(line.seconds for line in traffic),
        traffic=traffic,
        compiler=work.cycles / hardware.clock if hardware.clock else 0.0,
    )


def _arithmetic_seconds(kernel: Kernel, hardware: Hardware) -> float:
    single = kernel.flops32 / (hardware.peak_flops * hardware.float32_share)
    half = max(0.0, kernel.flops - kernel.flops32) / hardware.peak_flops
    plain = (kernel.elements - kernel.slow) / hardware.elements if hardware.elements else 0.0
    slow = kernel.slow / hardware.slow_elements if hardware.slow_elements else 0.0
    return single + half + plain + slow


def _bandwidth(kernel: Kernel, hardware: Hardware) -> float:
    return hardware.cache_bandwidth if kernel.bytes < hardware.cache else hardware.bandwidth


def estimate_traffic(calls: Sequence[Call], mesh: Mesh, hardware: Hardware) -> tuple[Traffic, ...]:
    """The collectives of a program by kind and mesh axis, the dearest first."""
    coords, torus, wraps = place_on_torus(mesh, hardware)
    found: dict[tuple[str, str], list[float]] = {}
    for call in calls:
        groups = read_groups(call.attributes, mesh.size)
        axis = name_axes(groups, mesh.shape)
        if call.kind == "collective-permute":
            axis = axis.removeprefix("part of ")  # from neighbour to neighbour
            route = Route(2 if axis != "none" else 1, 1.0, find_distance(list(groups), coords, torus, wraps))
        else:
            route = find_route(list(groups[0]), coords, torus, wraps)
        seconds = estimate_seconds(
            call, route, link_bandwidth=hardware.link_bandwidth, hop_seconds=hardware.hop_seconds
        )
        line = found.setdefault((call.kind, axis), [0.0, 0.0, 0.0, 0.0])
        sums = (call.times, call.times * call.bytes, call.times * seconds, call.times * call.bytes * call.asynchronous)
        line[:] = [old + new for old, new in zip(line, sums, strict=True)]
    lines = [Traffic(kind, axis, n, size, took, late / max(size, 1.0)) for (kind, axis), (n, size, took, late)
             in found.items()]  # fmt: skip
    return tuple(sorted(lines, key=lambda line: -line.seconds))


def place_on_torus(mesh: Mesh, hardware: Hardware) -> tuple[np.ndarray | None, list[int], list[bool]]:
    """Coordinates `[devices, 3]` in the order of the mesh, sizes of the torus, and which dimensions close."""
    devices = list(mesh.devices.flat)
    if any(getattr(device, "coords", None) is None for device in devices):
        return None, [], []
    coords = np.array([device.coords for device in devices])
    torus = [int(size) for size in coords.max(axis=0) - coords.min(axis=0) + 1]
    wraps = [bool(hardware.full_ring) and size % hardware.full_ring == 0 for size in torus]
    return coords - coords.min(axis=0), torus, wraps


def calibrate(device: jax.Device, *, devices: int = 1, name: str = "") -> Hardware:
    """Figures of the device at hand by a few short measurements, each the best of several.

    One product of matrices (bfloat16 counts as float32: on a CPU it is no quicker), two copies, one
    tanh, one loop of small products. `devices` that share the machine (a CPU made to look like
    several) share what was measured.
    """
    with jax.default_device(device):
        square = jnp.ones((1024, 1024), jnp.float32)
        wide = jnp.ones((16 * 2**20,), jnp.float32)
        near = jnp.ones((2**19,), jnp.float32)  # 2 MiB: in a cache
        state = jnp.ones((8, 64), jnp.float32)
        kernel = jnp.ones((64, 64), jnp.float32)
        trips = 2000

        def loop(x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, trips, lambda n, x: jnp.dot(x, kernel) * 0.01, x)

        product = _time(lambda x: x @ x, square)
        copy = _time(lambda x: x + 1.0, wide)
        slow = _time(lambda x: jnp.tanh(jnp.tanh(jnp.tanh(jnp.tanh(x)))), near) / 4
        plain = _time(lambda x: x + 1.0, near)
        once = _time(loop, state) / trips
    memory = (device.memory_stats() or {}).get("bytes_limit", 0) if device.platform != "cpu" else 0
    return Hardware(
        name=name or device.device_kind,
        peak_flops=2 * 1024**3 / product / devices,
        memory=float(memory or _machine_memory() / devices),
        bandwidth=2 * wide.nbytes / copy / devices,
        links=1,
        link_bandwidth=wide.nbytes / copy / devices,
        cache=2.0 * near.nbytes,
        cache_bandwidth=2 * near.nbytes / plain / devices,
        slow_elements=near.size / slow / devices,
        hop_seconds=20e-6,
        kernel_seconds=once / 3,
        loop_seconds=once / 3,
        source="measured here: one float32 product of 1024 x 1024, copies of 64 and 2 MiB, tanh of 2 MiB, a loop",
    )


def _time(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    run = jax.jit(function)
    run(x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        run(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best


def _machine_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def describe_hardware(hardware: Hardware) -> Mapping[str, float | int | str]:
    """All constants, for a report."""
    return dataclasses.asdict(hardware)
