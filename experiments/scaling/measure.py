"""Measures one point of a scaling study, in a process that does nothing else: its own devices, its own memory.

    python measure.py REQUEST.json RESULT.json

REQUEST holds the point, what the study fixes, and the folder of the vocabulary (see `points.py`). RESULT is written
at the very end and as one atomic step.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from points import Point

from seq2seq_jax.config import check_config, default_config
from seq2seq_jax.corpora import open_splits
from seq2seq_jax.data.pipeline import TokenPairs, batches, tokenise
from seq2seq_jax.data.plan import BatchPlan, make_plan
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import DivergedError, UserError
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.parallel.shard import place_batch
from seq2seq_jax.provenance import count_parameters, versions
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.writers import write_json
from seq2seq_jax.vocabularies import obtain_vocabs

WINDOWS = 10
"""Parts of a training whose speed is taken apart; the first one, in which caches fill, does not count."""


def measure(point: Point, fixed: Mapping[str, Any], vocab_folder: Path) -> dict[str, Any]:
    """Trains a point and returns its measurements, flat."""
    started = time.monotonic()
    config = make_config(point, fixed["settings"])
    vocabs = _obtain_vocabs(point, fixed, vocab_folder)
    training = make_training(
        config, len(vocabs.source), len(vocabs.target), devices=_take_devices(point.devices, point.mesh)
    )
    splits = open_splits(config)
    pairs = tokenise(splits.train, vocabs)
    plan = _plan(pairs, config, rows=point.rows or None)
    compiled, compilation = _compile(training, plan)
    state = training.init()
    parameters = count_parameters(state.params)
    state, run = _train(training, compiled, state, pairs, plan, config)
    if point.kind == "train":
        run["dev_loss"] = _evaluate(training, state, tokenise(splits.dev, vocabs), config)
    return {
        "parameters": parameters,
        "epochs": round(point.steps / plan.batches_per_epoch, 3),
        **run,
        **compilation,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        "device_peak_bytes": _find_device_peak(training),
        "seconds": round(time.monotonic() - started, 2),
    }


def describe_machine() -> dict[str, Any]:
    """What the numbers of a point depend on besides the point."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _find_processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": versions(),
    }


def make_config(point: Point, settings: Mapping[str, Any]) -> ConfigDict:
    """GNMT's default config with the study's settings and the point's sizes."""
    config = default_config("gnmt")
    own = {
        "model.features": point.features,
        "model.attention_features": point.features,
        "data.phrasebook_pairs": point.pairs,
        "train.steps": point.steps,
        "train.decay_steps": point.steps,
        "train.seed": point.seed,
        **{f"parallel.{axis}": size for axis, size in point.axes.items()},
    }
    for key, value in {**settings, **own}.items():
        section, _, name = key.rpartition(".")
        config[section][name] = value
    config.train.warmup_steps = min(config.train.warmup_steps, point.steps // 4)
    check_config(config)
    return config


def _obtain_vocabs(point: Point, fixed: Mapping[str, Any], folder: Path) -> Vocabs:
    """The one vocabulary of the study, trained by the first point that needs it."""
    config = make_config(point, fixed["settings"])
    config.data.phrasebook_pairs, config.train.seed = fixed["vocab_pairs"], 0
    if (folder / "recipe.json").exists():  # written last: the vocabulary is whole
        return obtain_vocabs(config, folder, None)
    return obtain_vocabs(config, folder, open_splits(config).train, keep=False)


def _take_devices(count: int, mesh: str) -> list[jax.Device]:
    found = jax.devices()
    if len(found) < count:
        raise UserError(f"{mesh} needs {count} devices, but there are {len(found)}.")
    return found[:count]


def _plan(pairs: TokenPairs, config: ConfigDict, *, rows: int | None = None, shuffle: bool = True) -> BatchPlan:
    """Batches by tokens, or, where `rows` are given, all of one shape."""
    data = config.data
    return make_plan(
        pairs.source_lengths,
        pairs.target_lengths,
        seed=config.train.seed,
        tokens_per_batch=None if rows else data.tokens_per_batch,
        rows=rows,
        max_shapes=1 if rows or not shuffle else data.max_shapes,
        rows_multiple=data.rows_multiple,
        max_source_len=data.max_source_len,
        max_target_len=data.max_target_len,
        shuffle=shuffle,
    )


def _compile(training: Training, plan: BatchPlan) -> tuple[dict[tuple[int, ...], Any], dict[str, Any]]:
    """The train step for every shape of the plan, how long that took, and what a device must hold for it."""
    step, state = training.train_step(), training.abstract_state()
    compiled, seconds, needed = {}, 0.0, 0
    for shape in plan.shapes:
        batch = training.abstract_batch(*shape)
        started = time.monotonic()
        compiled[tuple(shape)] = step.lower(state, batch).compile()
        seconds += time.monotonic() - started
        memory = compiled[tuple(shape)].memory_analysis()
        if memory is not None:
            kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            needed = max(needed, kept + memory.temp_size_in_bytes)
    return compiled, {
        "compile_seconds": round(seconds, 3),
        "compilations": len(compiled),
        "step_bytes_per_device": needed or None,
    }


def _train(
    training: Training,
    compiled: Mapping[tuple[int, ...], Any],
    state: TrainState,
    pairs: TokenPairs,
    plan: BatchPlan,
    config: ConfigDict,
) -> tuple[TrainState, dict[str, Any]]:
    """All steps, in windows that are timed from a device at rest to a device at rest."""
    steps, totals, rates, seconds = config.train.steps, {}, [], []
    ends = {round(steps * n / WINDOWS) for n in range(1, WINDOWS + 1)}
    waiting: list[Any] = []
    with batches(pairs, plan, start=0, stop=steps, prefetch=config.data.prefetch) as reader:
        started = time.monotonic()
        for done, batch in enumerate(reader, start=1):
            shape = (*batch.source.shape, batch.target_in.shape[1])
            state, sums = compiled[shape](state, place_batch(batch, training.mesh))
            waiting.append(sums)
            if done not in ends:
                continue
            window = _add(jax.device_get([dict(sums) for sums in waiting]))
            took = time.monotonic() - started
            if window["finite"] < len(waiting):
                raise DivergedError(f"a step before step {done} was not finite; lower config.train.learning_rate.")
            rates.append((window["source_tokens"] + window["target_tokens"]) / took)
            seconds.append(took / len(waiting))
            totals = {name: totals.get(name, 0.0) + value for name, value in window.items()}
            last, waiting, started = window, [], time.monotonic()
    steady = sorted(rates[1:] or rates)
    flops, peak = training.step_flops(totals), training.peak_flops()
    tokens = totals["source_tokens"] + totals["target_tokens"]
    speed = float(np.median(steady))
    return state, {
        "train_loss": last["nll"] / max(last["weight"], 1.0),
        "tokens": int(tokens),
        "flops": flops,
        "tokens_per_second": round(speed, 1),
        "tokens_per_second_low": round(steady[0], 1),
        "tokens_per_second_high": round(steady[-1], 1),
        "step_seconds": round(float(np.median(seconds[1:] or seconds)), 5),
        "mfu": round(flops / tokens * speed / peak, 5) if peak else None,
    }


def _evaluate(training: Training, state: TrainState, dev: TokenPairs, config: ConfigDict) -> float:
    """Nats a target token on the dev split, each token weighing the same."""
    plan, sums_of = _plan(dev, config, shuffle=False), training.dev_sums()
    with batches(dev, plan, start=0, stop=plan.batches_per_epoch) as reader:
        sums = _add([jax.device_get(dict(sums_of(state.params, place_batch(b, training.mesh)))) for b in reader])
    return sums["nll"] / max(sums["weight"], 1.0)


def _add(parts: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(sum(float(part[name]) for part in parts)) for name in parts[0]}


def _find_device_peak(training: Training) -> int | None:
    """The most that any device of the mesh has held, where the device counts it (a CPU does not)."""
    counted = [device.memory_stats() for device in training.mesh.devices.flat]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if stats and "peak_bytes_in_use" in stats]
    return max(peaks) if peaks else None


def _find_processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Measures what the request asks for; exit codes as of `seq2seq_jax.errors`."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    point = Point(**request["point"])
    try:
        measured = measure(point, request["fixed"], Path(request["vocab"]))
    except (UserError, DivergedError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    write_json(sys.argv[2], {"point": request["point"], **measured, "machine": describe_machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
