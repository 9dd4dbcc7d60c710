"""Devices of a TPU slice that is not there, and what a program compiled for them holds and does.

`describe_devices("v5p:4x4x8")` gives 128 devices that programs can be compiled for, not run, on any
machine with the `libtpu` package. `analyse` reads such a program, or one for devices at hand.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from typing import Any

import jax
from jax.sharding import Mesh

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.parallel.program import Computation, Op, Program, parse_program
from seq2seq_jax.parallel.roofline import HARDWARE, Estimate, Hardware, estimate
from seq2seq_jax.parallel.work import Work, count_work

TPUS = ("v4", "v5e", "v5p", "v6e")
_EXAMPLES = "v5e:4x4, v6e:16x16, v5p:4x4x8, v5p:8x8x16"
_ENVIRONMENT = {  # libtpu looks for a machine of Google's cloud unless told where it is
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock is for devices; here are none
}


def describe_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice, named by kind and shape in chips: one device a chip.

    Neighbours in the list are neighbours along the first dimension of the slice.

    Raises:
        UserError: no such kind or shape, or `libtpu` is not installed.
    """
    kind, sizes = _check_name(topology)
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}  # its two cores as one device
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # else a host has four chips
    try:
        devices = list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError(
                f"--topology={topology}: compiling for a TPU needs libtpu, which is not installed; "
                "run pip install 'seq2seq_jax[plan]'."
            ) from error
        reason = str(error).split("\n")[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
        raise UserError(f"--topology={topology}: libtpu has no such slice ({reason}); try {_EXAMPLES}.") from error
    if len(devices) != math.prod(sizes):
        raise ValueError(f"{topology} must have one device a chip, but libtpu makes {len(devices)} of it.")
    return devices


def _check_name(topology: str) -> tuple[str, list[int]]:
    """The kind and the sizes, or one line on how to name a slice."""
    if sold := re.fullmatch(r"(v\d\w*|tpu\w*)-(\d+)", topology):
        counts = "cores, two a chip" if sold.group(1) in ("v4", "v5p") else "chips"
        raise UserError(
            f"--topology={topology}: name a slice by its shape in chips, such as {_EXAMPLES}; "
            f"the number in {topology} counts {counts}, and does not say their shape."
        )
    kind, _, shape = topology.partition(":")
    if kind not in TPUS:
        near = difflib.get_close_matches(kind, TPUS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"try {_EXAMPLES}."
        raise UserError(f"--topology={topology}: the kind must be one of {', '.join(TPUS)}; {hint}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(f"--topology={topology}: the shape must be sizes joined by x; try {_EXAMPLES}.")
    sizes = [int(size) for size in shape.split("x")]
    wanted = HARDWARE[kind].links // 2
    if len(sizes) != wanted:
        raise UserError(f"--topology={topology}: a {kind} has {wanted} dimensions, not {len(sizes)}; try {_EXAMPLES}.")
    return kind, sizes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory while a program runs, as the compiler allots them.

    Attributes:
        arguments: what is there before: state and batch, in the layout of the device.
        outputs: results that do not take the place of an argument.
        temporaries: everything in between: gradients, activations kept for the backward pass, scratch.
        code: the program itself.
        peak: the most at one time, by the compiler's count; 0 if it makes none.
    """

    arguments: float
    outputs: float
    temporaries: float
    code: float
    peak: float

    @property
    def total(self) -> float:
        return self.arguments + self.outputs + self.temporaries + self.code


def read_memory(compiled: Any) -> Memory:
    """The memory of a compiled program (`jax.stages.Compiled`)."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=float(stats.argument_size_in_bytes),
        outputs=float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
        temporaries=float(stats.temp_size_in_bytes),
        code=float(stats.generated_code_size_in_bytes),
        peak=float(getattr(stats, "peak_memory_in_bytes", 0)),
    )


def count_bytes_per_device(tree: PyTree) -> float:
    """Bytes of the leaves of an abstract tree (with shardings) on the device that holds most."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def count_activations(program: Program) -> float:
    """Bytes that a train step's forward pass makes and its backward pass reads, by the names jax gives operations.

    Rows of `[B, T, H]` that a loop stacks count whole. What is recomputed does not count, nor what
    lives inside one loop.
    """
    entry = program.computations[program.entry]
    total = 0.0
    for op in entry.ops.values():
        source = entry.ops.get(op.operands[0], op) if op.opcode == "get-tuple-element" else op
        if (
            len(op.results) == 1
            and op.opcode not in ("parameter", "bitcast", "tuple")
            and _pass_of(source) == "forward"
        ):
            if any(_pass_of(user) == "backward" for user in _find_users(entry, op)):
                total += op.size * (not op.results[0].fast)
    return total


def _pass_of(op: Op) -> str:
    name = re.search(r'op_name="([^"]*)"', op.attributes)
    if name is None or "jvp(" not in name.group(1):
        return ""
    return "backward" if "transpose(" in name.group(1) else "forward"


def _find_users(entry: Computation, op: Op) -> list[Op]:
    """Who reads an array, through what only hands it on."""
    found = []
    for user, _ in entry.users.get(op.name, []):
        if user.opcode in ("bitcast", "tuple", "copy-start", "copy-done", "slice-start", "slice-done"):
            found += _find_users(entry, user)
        else:
            found.append(user)
    return found


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All that is known of a compiled program on a mesh.

    Attributes:
        memory, work, time: see there.
        activations: see `count_activations`; at most the temporaries, which hold them.
    """

    memory: Memory
    work: Work
    time: Estimate
    activations: float


def analyse(compiled: Any, mesh: Mesh, hardware: Hardware) -> Analysis:
    """Reads a compiled program (`jax.stages.Compiled`): memory, work and estimated time of one run.

    Raises:
        UserError: jax cannot read what libtpu has made, because their versions do not go together.
    """
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            "the compiled program cannot be read: the installed libtpu does not go with this jax; "
            "run pip install 'seq2seq_jax[plan]', which names the one that does."
        ) from error
    program, memory = parse_program(text), read_memory(compiled)
    work = count_work(program)
    activations = min(count_activations(program), memory.temporaries)
    return Analysis(memory=memory, work=work, time=estimate(work, mesh, hardware), activations=activations)
