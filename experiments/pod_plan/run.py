"""What GNMT and the Transformer need on TPU slices that are not there, and how far such plans can be trusted.

    python experiments/pod_plan/run.py             the table: compiles every row that the file of results lacks
    python experiments/pod_plan/run.py --only v5p  rows whose model, topology or mesh contains this
    python experiments/pod_plan/run.py --table     prints the table of what there is
    python experiments/pod_plan/run.py --check     the devices at hand: a plan beside real steps

Every row is `--mode=plan` of one config on one slice (seq2seq_jax/modes/plan.py); what is finished is kept in
results.csv beside this file, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

os.environ.setdefault("JAX_PLATFORMS", "cpu")

RESULTS = HERE / "results.csv"
MODELS = {
    "gnmt:paper": {},
    # 8 + 8 layers as in the paper, 3.5 times as wide: 2.5 billion parameters
    "gnmt:wide": {"model.features": 3584, "model.attention_features": 1024},
    # the paper's big model in rows of 100 + 100 tokens, as GNMT's are; its layers compiled as one loop
    "transformer:big": {"data.max_source_len": 100, "data.max_target_len": 100, "parallel.layers": "scanned"},
}
SLOTS = 8192  # on one device: 40 rows of 100 + 100 tokens
SLOTS_OF = {"transformer:big": 130_400}  # where it is another number
EFFORT_OF = {"transformer:big": 0.0}  # of the compiler, as for training; else it compiles quickly
ROWS: list[tuple[str, str, dict[str, int]]] = [
    ("gnmt:paper", "v5p:4x4x4", {"data": 64}),
    ("gnmt:paper", "v5p:8x8x16", {"data": 1024}),
    ("gnmt:paper", "v5p:4x4x4", {"data": 8, "stage": 8}),
    ("gnmt:paper", "v5p:8x8x16", {"data": 128, "stage": 8}),
    ("gnmt:paper", "v5e:4x4", {"data": 16}),
    ("gnmt:paper", "v5e:4x4", {"fsdp": 16}),
    ("gnmt:paper", "v5e:4x4", {"data": 2, "stage": 8}),
    ("gnmt:paper", "v6e:16x16", {"data": 256}),
    ("gnmt:paper", "v5p:8x8x8", {"data": 512}),
    ("gnmt:wide", "v5p:4x4x4", {"data": 8, "stage": 8}),
    ("gnmt:wide", "v5p:8x8x16", {"data": 128, "stage": 8}),
    ("gnmt:wide", "v5p:4x4x4", {"fsdp": 64}),
    ("gnmt:wide", "v5p:8x8x16", {"data": 16, "fsdp": 64}),
    ("gnmt:wide", "v5e:4x4", {"data": 16}),
    ("gnmt:wide", "v5e:4x4", {"fsdp": 16}),
    ("gnmt:wide", "v6e:16x16", {"data": 4, "fsdp": 64}),
    ("gnmt:wide", "v5p:8x8x8", {"data": 64, "stage": 8}),
    ("transformer:big", "v5p:4x8x8", {"fsdp": 256}),
]
FIELDS = ("model", "topology", "mesh", "parameters", "slots_per_device", "gib", "of_gib", "fits", "state_gib",
          "activations_gib", "temporaries_gib", "tflops", "moved_gib", "sent_gib", "step_ms", "operations_ms",
          "latency_ms", "communication_ms", "overlapped_ms", "compiler_ms", "binds", "slots_per_second",
          "slots_per_chip_hour", "mfu", "compile_s", "collectives")  # fmt: skip


def make_config(model: str, mesh: dict[str, int], devices: int) -> Any:
    """The config of one row: the model, the mesh, and the same batch on every device."""
    file, _, preset = model.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config("paper" if preset == "wide" else preset)
    for key, value in MODELS[model].items():
        section, name = key.split(".")
        config[section][name] = value
    config.parallel.update({"data": 1, **mesh})
    config.data.update(rows_multiple=devices, tokens_per_batch=SLOTS_OF.get(model, SLOTS) * devices)
    return config


def name_mesh(mesh: dict[str, int]) -> str:
    """As in the table: "data 8 x stage 8"."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def measure(model: str, topology: str, mesh: dict[str, int]) -> dict[str, Any]:
    """One row of the table."""
    from seq2seq_jax.modes.plan import plan

    devices = 1
    for size in mesh.values():
        devices *= size
    config, effort = make_config(model, mesh, devices), EFFORT_OF.get(model, -1.0)
    report = plan(config, HERE / "no_run", topology, programs=("train",), effort=effort)
    found, gib = report["train"], 2**30
    memory = found["memory"]
    row = {
        "model": model,
        "topology": topology,
        "mesh": name_mesh(mesh),
        "parameters": report["parameters"],
        "slots_per_device": round(report["batch"]["slots_per_device"]),
        "of_gib": report["hardware"]["memory"] / gib,
        "fits": not report["cure"],
        "state_gib": (memory["parameters"] + memory["optimizer"]) / gib,
    }
    if "seconds" not in found:
        return row
    took = {f"{name}_ms": value * 1e3 for name, value in found["seconds"].items()}
    names = ("step_ms", "operations_ms", "latency_ms", "communication_ms", "overlapped_ms", "compiler_ms")
    lines = [f"{line['kind']} over {line['axis']} x{line['calls']:.0f}" for line in found["collectives"]]
    return row | {
        "gib": memory["total"] / gib,
        "activations_gib": memory["activations"] / gib,
        "temporaries_gib": memory["temporaries"] / gib,
        "tflops": found["flops"] / 1e12,
        "moved_gib": found["bytes_moved"] / gib,
        "sent_gib": sum(line["bytes"] for line in found["collectives"]) / gib,
        **{name: took[name] for name in names},
        "binds": found["binds"],
        "slots_per_second": found["tokens_per_second"],
        "slots_per_chip_hour": found["tokens_per_device_hour"],
        "mfu": found["mfu"],
        "compile_s": found["compile_seconds"],
        "collectives": "; ".join(lines),
    }


def read_results() -> list[dict[str, str]]:
    """The rows that are finished, in the order of `ROWS`."""
    if not RESULTS.exists():
        return []
    order = [(model, topology, name_mesh(mesh)) for model, topology, mesh in ROWS]
    with RESULTS.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: order.index((row["model"], row["topology"], row["mesh"])))


def append_result(row: dict[str, Any]) -> None:
    """Keeps a finished row."""
    fresh = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        writer.writerow({name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()})


def fill_table(only: str) -> None:
    """Compiles what is missing."""
    import jax

    done = {(row["model"], row["topology"], row["mesh"]) for row in read_results()}
    for model, topology, mesh in ROWS:
        name = (model, topology, name_mesh(mesh))
        if name in done or only not in " ".join(name):
            continue
        print(*name, file=sys.stderr, flush=True)
        append_result(measure(model, topology, mesh))
        jax.clear_caches()  # a compiled program for 1,024 chips takes a gigabyte here


def print_table() -> None:
    """The table in Markdown."""
    print("| model | slice | mesh | memory, GiB | step, ms | of it communication | overlapped, ms | compiler's, ms "
          "| bound by | slots/s | slots a chip-hour | MFU |\n" + "|---" * 12 + "|")  # fmt: skip
    for row in read_results():
        place = f"| {row['model']} | {row['topology']} | {row['mesh']} "
        if not row["gib"]:
            print(
                f"{place}| does not fit in {float(row['of_gib']):.0f} (state {float(row['state_gib']):.1f})" + " |" * 9
            )
            continue
        step, sent = float(row["step_ms"]), float(row["communication_ms"])
        print(
            f"{place}| {float(row['gib']):.1f} of {float(row['of_gib']):.0f}{'' if row['fits'] == 'True' else ': no'} "
            f"| {step:,.1f} | {sent / step:.0%} "
            f"| {float(row['overlapped_ms']):,.1f} | {float(row['compiler_ms']):,.1f} | {row['binds']} "
            f"| {float(row['slots_per_second']) / 1e6:,.2f} M | {float(row['slots_per_chip_hour']) / 1e6:,.0f} M "
            f"| {float(row['mfu']):.1%} |"
        )
    print()
    for model, mesh, small, large in find_weak_scaling():
        rate = {row["topology"]: float(row["slots_per_chip_hour"]) for row in (small, large)}
        hidden = float(small["overlapped_ms"]) / float(large["overlapped_ms"])
        print(f"{model}, {mesh}: {small['topology']} to {large['topology']}, {SLOTS:,} slots a chip: "
              f"{rate[large['topology']] / rate[small['topology']]:.1%} of the speed a chip; with all communication "
              f"hidden {hidden:.1%}")  # fmt: skip


def find_weak_scaling() -> list[tuple[str, str, dict[str, str], dict[str, str]]]:
    """Pairs of rows of 64 and 1,024 chips that differ in the size of `data` alone."""

    def kind(row: dict[str, str]) -> str:
        parts = [part for part in row["mesh"].split(" x ") if not part.startswith("data")]
        return " x ".join(["data", *parts])

    rows = [row for row in read_results() if row["gib"]]
    smalls = [row for row in rows if row["topology"] == "v5p:4x4x4"]
    return [
        (small["model"], kind(small), small, large)
        for small in smalls
        for large in rows
        if large["topology"] == "v5p:8x8x16" and large["model"] == small["model"] and kind(large) == kind(small)
    ]


def check(features: int, slots: int, steps: int) -> None:
    """A plan for one device at hand beside its real steps: seconds, and the memory of the process."""
    import jax
    import numpy as np

    from configs.gnmt import get_config
    from seq2seq_jax.experiment import make_training
    from seq2seq_jax.modes.largest_batch import longest_shape
    from seq2seq_jax.parallel.roofline import calibrate
    from seq2seq_jax.parallel.shard import place_batch
    from seq2seq_jax.parallel.topology import analyse, read_memory

    config = get_config("")
    config.data.update(tokens_per_batch=slots, max_source_len=40, max_target_len=40)
    config.vocab.size = 4000
    config.model.update(features=features, attention_features=features)
    training = make_training(config, 4000, 4000, devices=jax.devices()[:1])
    rows, source_len, target_len = longest_shape(config)
    shapes = training.abstract_batch(rows, source_len, target_len)
    step = training.train_step().lower(training.abstract_state(), shapes).compile()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = read_status("VmRSS")
    random = np.random.default_rng(0)

    def fill(array: Any) -> np.ndarray:
        if array.dtype == bool:
            return np.ones(array.shape, bool)
        return random.integers(4, 4000, array.shape).astype(array.dtype)

    def place(array: Any) -> Any:  # and not training.init(): compiling that takes memory, too
        return jax.device_put(np.full(array.shape, 0.01, array.dtype), array.sharding, may_alias=False)

    batch = place_batch(jax.tree.map(fill, shapes), training.mesh)
    state = jax.tree.map(place, training.abstract_state())
    for _ in range(2):
        state, _ = step(state, batch)
        jax.block_until_ready(state)
    used, total = read_status("VmHWM") - before, read_memory(step).total
    took, planned = [], []
    for _ in range(steps):  # the machine is measured between steps: others may be at work on it
        planned.append(analyse(step, training.mesh, calibrate(jax.devices()[0])).time.step)
        start = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        took.append(time.perf_counter() - start)
    ratio = statistics.median(planned) / statistics.median(took)
    print(f"features {features}, {rows} rows of {source_len} + {target_len}, {jax.devices()[0].device_kind}")
    print(f"  step    planned {statistics.median(planned):.3f} s, measured {statistics.median(took):.3f} s "
          f"(medians of {steps}): {ratio:.2f}")  # fmt: skip
    print(f"  memory  planned {total / 2**20:.0f} MiB, the process grew by {used / 2**20:.0f} MiB: {total / used:.2f}")


def read_status(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose model, topology or mesh contains this")
    parser.add_argument("--table", action="store_true", help="compile nothing")
    parser.add_argument("--check", action="store_true", help="compare a plan with real steps on the devices at hand")
    parser.add_argument("--features", type=int, default=512, help="--check: width of the model")
    parser.add_argument("--slots", type=int, default=4096, help="--check: token slots of the batch")
    parser.add_argument("--steps", type=int, default=7, help="--check: steps to measure")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.features, arguments.slots, arguments.steps)
        return
    if not arguments.table:
        fill_table(arguments.only)
    print_table()


if __name__ == "__main__":
    main()
