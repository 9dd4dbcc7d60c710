"""Where the time of a compiled JAX step goes, by parts of the model: a trace, read with the names of the program.

    trace     jax.profiler writes when each instruction ran (`hlo_op`), on every thread or stream
    names     the compiled text has for each instruction where in the model it comes from (`op_name`)
    sweep     instructions that run at the same time share that time; what contains others (a loop) counts
              only while nothing inside it runs; what is left is idle

The shares therefore sum to one on any number of threads or streams. Fusion mixes neighbours: a fused instruction has
the name of its last operation, so that the lines between parts are as sharp as the compiler left them.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

PARTS = (
    "recurrent loops",
    "products outside loops",
    "attention",
    "softmax and loss",
    "optimizer",
    "embedding",
    "dropout draws",
    "other",
    "idle",
)
"""What a step consists of; "other" is what has another name or none, "idle" when no instruction runs."""

CONTAINERS = {"while", "call", "conditional", "async-start", "async-done"}
"""Instructions that run others: their events span those."""

COMMAND_BUFFERS_OFF = "--xla_gpu_enable_command_buffer="
"""For XLA_FLAGS: kernels that a GPU replays as one graph have no names in a trace."""


# --- the trace ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of an instruction.

    Attributes:
        start, end: nanoseconds.
        op: name of the instruction, "" where the trace does not say.
    """

    start: float
    end: float
    op: str


def read_events(data: ProfileData, module: str) -> list[Event]:
    """The instructions of a module in a trace.

    Devices have planes of their own (`/device:GPU:0`, a line for each stream; `/device:TPU:0`, a line "XLA Ops"); a
    CPU's instructions are on the lines of the host's threads. Kernels of a device without a name are kept, as "".
    """
    devices = [plane for plane in data.planes if plane.name.startswith(("/device:GPU", "/device:TPU"))]
    on_device = [event for plane in devices for event in _read_plane(plane, module, unnamed=True)]
    if any(event.op for event in on_device):
        return on_device
    return [event for plane in data.planes for event in _read_plane(plane, module, unnamed=False)]


def _read_plane(plane: Any, module: str, *, unnamed: bool) -> Iterable[Event]:
    for line in plane.lines:
        instructions = line.name.startswith("XLA Ops")  # a TPU's; its other lines repeat them by steps and modules
        if unnamed and not instructions and not line.name.startswith("Stream"):
            continue
        for event in line.events:
            stats = dict(event.stats)
            op = str(stats.get("hlo_op", ""))
            if not op and instructions:
                op = event.name.split(" = ")[0].strip("%")
            if op and str(stats.get("hlo_module", module)) != module:
                op = ""
            if op or unnamed:
                yield Event(event.start_ns, event.end_ns, op)


def share_time(events: Sequence[Event], contains: Callable[[str], bool]) -> tuple[dict[str, float], float]:
    """Nanoseconds by instruction, and those in which nothing ran, between the first start and the last end.

    Args:
        events: of all threads or streams, in any order.
        contains: whether an instruction runs others. It counts only while nothing else runs; of several that
            are open then, the one that was opened last.
    """
    points = sorted(
        [(event.start, 1, n) for n, event in enumerate(events)] + [(event.end, 0, n) for n, event in enumerate(events)]
    )
    taken: dict[str, float] = collections.defaultdict(float)
    running: set[int] = set()
    opened: dict[int, None] = {}
    idle, last = 0.0, points[0][0] if points else 0.0
    for at, starts, n in points:
        if running:
            for each in running:
                taken[events[each].op] += (at - last) / len(running)
        elif opened:
            taken[events[next(reversed(opened))].op] += at - last
        else:
            idle += at - last
        last = at
        if contains(events[n].op):
            if starts:
                opened[n] = None
            else:
                opened.pop(n, None)
        elif starts:
            running.add(n)
        else:
            running.discard(n)
    return dict(taken), idle


# --- the names ------------------------------------------------------------------------------------

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\((.*)$")
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What the compiled text says of an instruction: its opcode, and where in the model it comes from ("" unknown)."""

    opcode: str
    name: str


def read_instructions(text: str) -> dict[str, Instruction]:
    """All instructions of a compiled program by name.

    What the compiler has put in (a copy, say) has no name: it gets that of the first instruction that reads it, and
    else of the loop it is in.
    """
    found: dict[str, tuple[str, str, str]] = {}  # opcode, own name, computation
    callers: dict[str, str] = {}
    readers: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if (head := _COMPUTATION.match(line)) is not None:
            computation = head[1]
        elif (match := _INSTRUCTION.match(line)) is not None:
            op, opcode, rest = match.groups()
            name = _NAME.search(rest)
            found[op] = (opcode, name[1] if name else "", computation)
            for one, several in _CALLED.findall(rest):
                for called in [one] if one else several.replace("%", "").split(", "):
                    callers[called] = op
            for operand in _OPERAND.findall(rest.split(", metadata=")[0]):
                readers.setdefault(operand, op)

    def name_of(op: str, depth: int = 0) -> str:
        opcode, name, computation = found[op]
        if "/" in name or depth > 8:
            return name
        above = [next_op for next_op in (readers.get(op), callers.get(computation)) if next_op in found]
        return next((name for name in (name_of(other, depth + 1) for other in above) if name), "")

    return {op: Instruction(opcode, name_of(op)) for op, (opcode, _, _) in found.items()}


def classify(instruction: Instruction) -> str:
    """The part of `PARTS` that an instruction belongs to, by the scopes of its name and by its last operation."""
    name = instruction.name
    if not name:
        return "other"
    last = name.rsplit("/", 1)[-1]
    if "threefry" in name or "dropout" in name:
        return "dropout draws"
    if "embedding" in name:
        return "embedding"
    if "attention" in name:
        return "attention"
    if "softmax" in name:
        return "softmax and loss"
    if "jvp(" not in name:
        return "optimizer"  # all that is not differentiated: norm, clipping, moments, update
    if "/while" in name or "pallas_call" in name:
        return "recurrent loops"
    return "products outside loops" if last in ("dot_general", "conv_general_dilated") else "other"


# --- a profile ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Profile:
    """The mean of a few steps.

    Attributes:
        milliseconds: by part; their sum is the time of a step.
        heaviest: instruction, where it comes from, its part and milliseconds, the dearest first.
    """

    milliseconds: dict[str, float]
    heaviest: list[tuple[str, str, str, float]]


def join_profile(
    taken: Mapping[str, float],
    idle: float,
    instructions: Mapping[str, Instruction],
    steps: int,
    *,
    parts: Sequence[str] = PARTS,
    classify: Callable[[Instruction], str] = classify,
) -> Profile:
    """Sums the nanoseconds of `share_time` by part; for the last two arguments see `profile_step`."""
    sums = dict.fromkeys(parts, 0.0)
    lines = []
    for op, nanoseconds in taken.items():
        instruction = instructions.get(op, Instruction("", ""))
        part, milliseconds = classify(instruction), nanoseconds / 1e6 / steps
        sums[part] += milliseconds
        lines.append((op, instruction.name, part, milliseconds))
    sums["idle"] += idle / 1e6 / steps
    return Profile(sums, sorted(lines, key=lambda line: -line[3]))


def profile_step(
    step: Callable[[], Any],
    compiled: Any,
    *,
    steps: int = 3,
    folder: str | None = None,
    parts: Sequence[str] = PARTS,
    classify: Callable[[Instruction], str] = classify,
) -> Profile:
    """Traces a few steps of a compiled program and shares their time among its parts.

    Args:
        step: starts one step, and returns what can be waited for.
        compiled: the program that it runs.
        steps: to trace.
        folder: keep the trace here; None drops it.
        parts: what a step consists of, with "idle"; those of a recurrent model if not given.
        classify: the part that an instruction belongs to.

    Raises:
        ValueError: the trace names no instruction of the program.
    """
    text = compiled.as_text()
    module = re.match(r"HloModule ([\w.\-]+)", text)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(folder or scratch)
        jax.block_until_ready(step())
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's calls would only slow the launching down
        with jax.profiler.trace(str(place), profiler_options=options):
            for _ in range(steps):
                result = step()
            jax.block_until_ready(result)
        newest = max(place.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        events = read_events(ProfileData.from_file(str(newest)), module[1] if module else "")
    if not events:
        raise ValueError("The trace must name the instructions of the step, but names none: this device is not traced.")
    instructions = read_instructions(text)
    containers = {op for op, instruction in instructions.items() if instruction.opcode in CONTAINERS}
    taken, idle = share_time(events, containers.__contains__)
    return join_profile(taken, idle, instructions, steps, parts=parts, classify=classify)


def measure_feeding(batch: Any, *, times: int = 10) -> float:
    """Milliseconds to put a batch of host arrays on the device and to wait for it, the least of so many."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(jax.device_put(batch))
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def print_profile(
    profile: Profile, *, feeding_ms: float, heaviest: int = 0, floors: Mapping[str, float] | None = None
) -> None:
    """Prints milliseconds and share of every part, the feeding beside them, and the heaviest instructions.

    Args:
        profile: of a step.
        feeding_ms: what putting a batch on the device takes.
        heaviest: how many instructions.
        floors: the milliseconds that parts take at least by what the device can do; those that are not named have none.
    """
    total = sum(profile.milliseconds.values())
    print(f"{'part of a step':<28}{'ms':>10}{'share':>8}" + (f"{'floor ms':>10}{'of floor':>10}" if floors else ""))
    for part, milliseconds in profile.milliseconds.items():
        line = f"{part:<28}{milliseconds:>10.2f}{milliseconds / total:>8.1%}"
        if floors and part in floors and milliseconds:
            line += f"{floors[part]:>10.2f}{floors[part] / milliseconds:>10.0%}"
        print(line)
    line = f"{'all':<28}{total:>10.2f}{1:>8.1%}"
    print(line + (f"{sum(floors.values()):>10.2f}{sum(floors.values()) / total:>10.0%}" if floors else ""))
    print(f"{'data, host to device':<28}{feeding_ms:>10.2f}{feeding_ms / total:>8.1%}  beside the step, not in it")
    for op, name, part, milliseconds in profile.heaviest[:heaviest]:
        print(f"{milliseconds:>10.2f} ms  {part:<24}{op:<40}{name}")
