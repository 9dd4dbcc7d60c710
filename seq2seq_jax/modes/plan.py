"""What a config needs and how fast it would be on hardware that need not be there: `--mode=plan`.

The real train step and the real search are compiled for the devices, never run, and the compiled
programs are read (`parallel/topology.py`). All figures are of one device unless they say otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seq2seq_jax.config import has_search, vocab_sizes
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.modes.largest_batch import count_slots, longest_shape, spread_batch, suggest_smaller
from seq2seq_jax.modes.scoring import describe_search, say
from seq2seq_jax.parallel.roofline import Hardware, calibrate, find_hardware
from seq2seq_jax.parallel.topology import Analysis, analyse, count_bytes_per_device, describe_devices
from seq2seq_jax.provenance import count_parameters
from seq2seq_jax.speech_checks import reads_speech


def plan(
    config: ConfigDict,
    root: Path,
    topology: str | None = None,
    *,
    programs: tuple[str, ...] = ("train", "decode"),
    effort: float = -1.0,
) -> dict[str, Any]:
    """Compiles a config's train step and search for a topology and reads what they hold and do.

    Args:
        config: the run's; its keys under `parallel` decide the mesh.
        root: the run's folder; its vocabulary sizes count if it has them.
        topology: such as "v5p:4x4x8"; the devices at hand if None.
        programs: which to compile; every one takes its time.
        effort: of a TPU's compiler to make the program quick, from -1 to 0, as when training. With -1 it takes a
            third of the time, and makes a program of nearly the same memory that takes about a tenth longer.

    Returns:
        The report; its "cure" is empty, or says what to change where it does not fit.

    Raises:
        UserError: there is no such topology, or the config contradicts itself.
    """
    devices = describe_devices(topology) if topology else list(jax.devices())
    effort = effort if topology else 0.0
    config, note = spread_batch(config, len(devices)) if topology else (config, "")
    sizes = _find_vocab_sizes(config, root)
    training = make_training(config, *sizes, devices=devices, updates_per_epoch=1.0)  # the programs are the same
    mesh, layout = training.mesh, training.layout
    hardware = find_hardware(devices[0]) or calibrate(devices[0], devices=len(devices))
    rows, source_len, target_len = longest_shape(config)
    slots = count_slots(config, rows, source_len, target_len)
    report: dict[str, Any] = {
        "topology": topology or "the devices at hand",
        "compiler_effort": effort,
        "devices": {"count": mesh.size, "there": len(devices), "kind": devices[0].device_kind},
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "strategy": layout.strategy,
        "hardware": dataclasses.asdict(hardware),
        "model": config.model.name,
        "parameters": count_parameters(training.abstract_state().params),
        "batch": {"rows": rows, "source_len": source_len, "target_len": target_len,
                  "slots": slots, "slots_per_device": slots / mesh.size, "note": note},
    }  # fmt: skip
    report |= {"train": {}, "decode": {}, "cure": ""}
    if "train" in programs:
        report["train"] = _plan_train(training, hardware, (rows, source_len, target_len), effort)
        report["cure"] = report["train"]["cure"]
    if "decode" in programs and has_search(config.model) and not report["cure"]:
        report["decode"] = _plan_decode(training, hardware, source_len, effort)
        report["cure"] = report["decode"]["cure"]
    return report


def _find_vocab_sizes(config: ConfigDict, root: Path) -> tuple[int, int]:
    """Those of the run in `root` if it has any, else what the config asks for."""
    if (root / "vocab" / "vocabs.json").exists():
        vocabs = Vocabs.load(root / "vocab")
        return len(vocabs.source), len(vocabs.target)
    return vocab_sizes(config)


def _plan_train(training: Training, hardware: Hardware, shape: tuple[int, int, int], effort: float) -> dict[str, Any]:
    rows, source_len, target_len = shape
    state = training.abstract_state()
    batch = training.abstract_batch(rows, source_len, target_len)
    held = {
        "parameters": count_bytes_per_device(state.params),
        "optimizer": count_bytes_per_device((state.opt_state, state.ema)),
        "batch": count_bytes_per_device(batch),
    }
    batches, objective = training.config.train.accumulate, training.config.sequence.objective
    if batches > 1:
        report = _plan_accumulated(training, hardware, (state, batch), held, effort)
    else:
        step_of = training.train_step
        report = _compile("train step", training, hardware, held, effort, lambda: step_of().lower(state, batch))
    report |= {"batches": batches, "left_out": ""}
    if objective != "none":
        report["left_out"] = f"the program that proposes candidates (config.sequence.objective={objective})"
    if "seconds" in report:
        step, slots = report["seconds"]["step"], batches * count_slots(training.config, *shape)
        useful = batches * training.step_flops({"source_tokens": rows * source_len, "target_tokens": rows * target_len})
        report["tokens_per_second"] = slots / step
        report["tokens_per_device_hour"] = slots / step * 3600 / training.mesh.size
        report["mfu"] = useful / step / hardware.peak_flops / training.mesh.size
        report["mfu_overlapped"] = useful / report["seconds"]["overlapped"] / hardware.peak_flops / training.mesh.size
    return report


def _plan_accumulated(
    training: Training, hardware: Hardware, given: tuple[Any, Any], held: dict[str, float], effort: float
) -> dict[str, Any]:
    """An update from `train.accumulate` batches: the program that adds one of them, and the one that updates.

    Work and time are those of all its batches and the update; memory is that of the program that needs more, with
    what rests on the device meanwhile: the optimizer's state while batches are added, and all batches of the group.
    """
    (state, batch), count = given, training.config.train.accumulate
    zeros: Any
    zeros, add, update = training.accumulated_step()
    total = zeros.lower().out_info
    sums = {"parameters": held["parameters"], "gradients": count_bytes_per_device(total)}
    adding, updating = {**sums, "batch": held["batch"]}, {**sums, "optimizer": held["optimizer"]}
    rests = {"optimizer": held["optimizer"], "waiting batches": (count - 1) * held["batch"]}
    parts = []
    for what, needs, beside, lower in (
        ("gradient", adding, rests, lambda: add.lower(total, state.params, state.step, state.step, batch)),
        ("update", updating, {"waiting batches": count * held["batch"]}, lambda: update.lower(state, total)),
    ):
        parts.append(_compile(what, training, hardware, needs, effort, lower, beside))
        if "seconds" not in parts[-1]:  # the compiler ran out of memory
            return parts[-1]
    of_batch, of_update = parts
    report = dict(max(parts, key=lambda part: part["memory"]["total"]))
    report["compile_seconds"] = sum(part["compile_seconds"] for part in parts)
    for key in ("flops", "bytes_moved", "loop_iterations"):
        report[key] = count * of_batch[key] + of_update[key]
    report["unbounded_loops"] = of_batch["unbounded_loops"] + of_update["unbounded_loops"]
    scaled = ("calls", "bytes", "seconds")
    lines = [line | {key: count * line[key] for key in scaled} for line in of_batch["collectives"]]
    report["collectives"] = [*lines, *of_update["collectives"]]
    took = of_update["seconds"]
    report["seconds"] = {key: count * value + took[key] for key, value in of_batch["seconds"].items()}
    report["binds"] = of_batch["binds"]
    return report


def _plan_decode(training: Training, hardware: Hardware, source_len: int, effort: float) -> dict[str, Any]:
    """The search over `decode.rows` sentences, or as many more as devices that share them."""
    keys, ways = training.config.decode, training.mesh.shape["data"] * training.mesh.shape["fsdp"]
    rows = -(-keys.rows // ways) * ways
    how, search = training.make_search(), cast(Any, training.search())
    max_len = how.longest(source_len)
    params = training.abstract_state().params
    audio = (training.config.audio.hop,) if reads_speech(training.config.model) else ()
    source = jax.ShapeDtypeStruct((rows, source_len, *audio), jnp.float32 if audio else jnp.int32)
    mask, real = jax.ShapeDtypeStruct(source.shape[:2], jnp.bool_), jax.ShapeDtypeStruct((rows,), jnp.bool_)
    held = {"parameters": count_bytes_per_device(params), "batch": 4.0 * source.size + mask.size}
    given: list[Any] = [params, source, mask, real]
    if getattr(how.method, "temperature", 0.0) > 0:  # it draws, by the number of each row and a key
        given += [jax.ShapeDtypeStruct((rows,), jnp.int32), jax.eval_shape(jax.random.key, 0)]
    lower = functools.partial(search.lower, *given, max_len=max_len)
    report = _compile("search", training, hardware, held, effort, lower)
    report |= {"rows": rows, "beam_size": keys.beam_size, "max_len": max_len, "search": describe_search(keys)}
    report["left_out"] = "the models that search beside this one" if keys.ensemble or keys.language_model else ""
    if "seconds" in report:
        report["sentences_per_second"] = rows / report["seconds"]["step"]
    return report


def _compile(
    what: str,
    training: Training,
    hardware: Hardware,
    held: dict[str, float],
    effort: float,
    lower: Callable[[], Any],
    beside: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Compiles one program and reads it; says so, because it takes a while.

    Args:
        what: its name.
        training, hardware, effort: see `plan`.
        held: name → bytes of what the program is given.
        lower: makes what is compiled.
        beside: name → bytes of what is on the device meanwhile and is not the program's.
    """
    beside = beside or {}
    mesh = training.mesh
    say(f"compiling the {what} for {mesh.size:,} x {mesh.devices.flat[0].device_kind} ...")
    start = time.perf_counter()
    try:
        compiled = lower().compile({"exec_time_optimization_effort": effort} if effort else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).split("\n")[0].partition("Ran out of memory")[2].split(". HLO")[0].rstrip(".")
        memory = {**held, **beside}
        problem = f"the compiler ran out of memory{reason}"
        return {"memory": memory, "cure": _tell_cure(training, hardware, memory, problem)}
    seconds = time.perf_counter() - start
    found = analyse(compiled, mesh, hardware)
    report = {"compile_seconds": seconds, **_describe(found, held)}
    report["memory"] |= {**beside, "total": report["memory"]["total"] + sum(beside.values())}
    total = report["memory"]["total"]
    report["memory"]["free"] = hardware.memory - total
    fits = total <= hardware.memory
    need = f"the {what} needs {_bytes(total)}"
    report["cure"] = "" if fits else _tell_cure(training, hardware, report["memory"], need)
    return report


def _describe(found: Analysis, held: dict[str, float]) -> dict[str, Any]:
    memory, work, estimate = found.memory, found.work, found.time
    return {
        "memory": {
            **held,
            "padding": max(0.0, memory.arguments - sum(held.values())),
            "activations": found.activations,
            "temporaries": memory.temporaries - found.activations,
            "outputs": memory.outputs,
            "code": memory.code,
            "total": memory.total,
        },
        "flops": work.flops,
        "bytes_moved": work.bytes,
        "loop_iterations": work.trips,
        "unbounded_loops": work.unbounded,
        "collectives": [dataclasses.asdict(line) for line in estimate.traffic],
        "seconds": {
            "compute": estimate.compute,
            "memory": estimate.memory,
            "operations": estimate.operations,
            "latency": estimate.latency,
            "communication": estimate.communication,
            "step": estimate.step,
            "overlapped": estimate.overlapped,
            "compiler": estimate.compiler,
        },
        "binds": estimate.binds,
    }


def _tell_cure(training: Training, hardware: Hardware, memory: dict[str, float], problem: str) -> str:
    """One line: what does not fit, what fills the memory, and what to change."""
    parts = sorted((size, name) for name, size in memory.items() if name not in ("total", "free", "batch", "padding"))
    filled = ", ".join(f"{name} {_bytes(size)}" for size, name in reversed(parts) if size)
    sizes, changes = training.mesh.shape, []
    if memory["parameters"] + memory.get("optimizer", 0.0) < hardware.memory:  # else no batch is small enough
        changes.append(suggest_smaller(training.config))
    if sizes["stage"] == 1 and sizes["tensor"] == 1 and training.mesh.size > sizes["fsdp"]:
        changes.append(f"parameters split (--config.parallel.data=1 --config.parallel.fsdp={training.mesh.size})")
    if sizes["stage"] == 1 and training.mesh.size > 1:
        changes.append(f"layers split (--config.parallel.stage={math.gcd(8, training.mesh.size)})")
    if training.config.model.dtype == "float32":
        changes.append("--config.model.dtype=bfloat16")
    return (
        f"does not fit: {problem}, a {hardware.name} has {_bytes(hardware.memory)}; on each device {filled}; "
        f"change: {'; '.join([*changes, 'more devices'])}."
    )


def render(report: dict[str, Any]) -> str:
    """The report as people read it."""
    devices, batch, hardware = report["devices"], report["batch"], report["hardware"]
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items()) or "one device"
    lines = [
        f"{report['model']}, {report['parameters']:,} parameters, on {report['topology']}: {devices['count']:,} of "
        f"{devices['there']:,} x {devices['kind']} as {mesh}, strategy {report['strategy']}",
        f"batch: {batch['rows']:,} rows of {batch['source_len']} + {batch['target_len']} tokens, the longest shape: "
        f"{batch['slots']:,} slots, {batch['slots_per_device']:,.0f} a device",
        *([f"note: {batch['note']}"] if batch["note"] else []),
        f"machine: {hardware['peak_flops'] / 1e12:,.4g} TFLOP/s, {_bytes(hardware['memory'])}, "
        f"{hardware['bandwidth'] / 1e9:,.4g} GB/s, {hardware['links']} links of "
        f"{hardware['link_bandwidth'] / 1e9:,.4g} GB/s ({hardware['source']})",
        f"assumed: {_seconds(hardware['hop_seconds'])} a hop, {_seconds(hardware['kernel_seconds'])} an operation, "
        f"{_seconds(hardware['loop_seconds'])} an iteration of a loop",
    ]
    for name, title in (("train", "train step"), ("decode", "search")):
        if report[name]:
            lines += ["", *_render_program(title, report[name], hardware)]
    if report["compiler_effort"]:
        lines += [
            "",
            "compiled quickly: the program of a training needs nearly the same memory and about a tenth less time",
        ]
    return "\n".join(lines)


def _render_program(title: str, part: dict[str, Any], hardware: dict[str, Any]) -> list[str]:
    memory = ", ".join(
        f"{name} {_bytes(size)}" for name, size in part["memory"].items() if name not in ("total", "free")
    )
    if "seconds" not in part:
        return [f"{title}, on each device: {memory}", f"  {part['cure']}"]
    shape = f" of {part['batches']:,} batches" if part.get("batches", 1) > 1 else ""
    if "rows" in part:
        shape = f" ({part['rows']:,} sentences, {part['search']}, at most {part['max_len']} tokens)"
    lines = [
        f"{title}{shape}, on each device; compiled in {part['compile_seconds']:.0f} s",
        f"  memory     {_bytes(part['memory']['total'])} of {_bytes(hardware['memory'])}: {memory}",
        f"  work       {part['flops']:.4g} flops, {_bytes(part['bytes_moved'])} moved, "
        f"{part['loop_iterations']:,.0f} iterations of loops",
    ]
    if part.get("left_out"):
        lines.append(f"  left out   {part['left_out']}: neither the memory nor the time of it is in this plan")
    lines += [f"  not known  how often this loop runs, counted once: {name}" for name in part["unbounded_loops"]]
    lines += [
        f"  collective {line['kind']} over {line['axis']}: {line['calls']:,.0f} calls, {_bytes(line['bytes'])}, "
        f"{_seconds(line['seconds'])}, {line['asynchronous']:.0%} started early"
        for line in part["collectives"]
    ]
    took = part["seconds"]
    lines.append(
        f"  time       {_seconds(took['step'])}, bound by {part['binds']}: operations {_seconds(took['operations'])} "
        f"(arithmetic alone {_seconds(took['compute'])}, memory alone {_seconds(took['memory'])}), latency "
        f"{_seconds(took['latency'])}, communication {_seconds(took['communication'])}; "
        f"{_seconds(took['overlapped'])} if all communication is hidden"
    )
    if took["compiler"]:
        lines.append(f"             the compiler's own estimate of the operations: {_seconds(took['compiler'])}")
    if "mfu" in part:
        lines.append(
            f"  speed      {part['tokens_per_second']:,.0f} token slots/s, {part['tokens_per_device_hour']:,.0f} "
            f"a chip-hour, MFU {part['mfu']:.1%} ({part['mfu_overlapped']:.1%} if all communication is hidden)"
        )
    if "sentences_per_second" in part:
        lines.append(f"  speed      {part['sentences_per_second']:,.1f} sentences/s on all devices")
    return [*lines, *([f"  {part['cure']}"] if part["cure"] else [])]


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.2f} ms" if value >= 1e-3 else f"{value * 1e6:,.1f} us"
