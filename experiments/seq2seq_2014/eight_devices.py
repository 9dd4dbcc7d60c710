"""What the eight devices of Sutskever et al. 2014 bring: the whole model's step, planned for one chip and for eight.

The claim (section 3.5): one GPU does 1,700 words/s, eight do 6,300 (3.7 times): encoder layer l and decoder layer l on
GPU l, the softmax as 1000 x 20,000 on each of four others, 128 sentences at a time.

    python experiments/seq2seq_2014/eight_devices.py               compiles every row that eight_devices.csv lacks
    python experiments/seq2seq_2014/eight_devices.py --only exact  rows whose name contains this
    python experiments/seq2seq_2014/eight_devices.py --table       prints the tables of what there is
    python experiments/seq2seq_2014/eight_devices.py --here        the step in the layout of 2014 for eight CPU devices

Nothing is run: the real train step of `configs/lstm.py:paper` (384M weights, vocabularies of 160,000 and 80,000) is
compiled for TPU v5e chips that need not be there (pip install 'seq2seq_jax[plan]') and read as by `--mode=plan`.
What follows from it stands in eight_devices.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

os.environ.setdefault("JAX_PLATFORMS", "cpu")

RESULTS = HERE / "eight_devices.csv"
SENTENCES, WORDS = 128, 30  # of a batch, and on each side of a sentence
PAPER = 1_700, 6_300  # words/s of one GPU and of eight, both languages counted
ONE = "one chip"
SPREAD = {"data": 1, "stage": 4, "tensor": 2}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    ONE: ("v5e:1x1", {"data": 1}),
    "exact": ("v5e:2x4", SPREAD | {"strategy": "exact"}),
    "exact, a word at a time": ("v5e:2x4", SPREAD | {"strategy": "exact", "chunks": WORDS}),
    "balanced, stage=4 tensor=2": ("v5e:2x4", SPREAD | {"strategy": "balanced"}),
    "balanced, stage=8": ("v5e:2x4", {"data": 1, "stage": 8}),
    "data=8": ("v5e:2x4", {"data": 8}),
    "fsdp=8": ("v5e:2x4", {"data": 1, "fsdp": 8}),
}
"""Name → slice, and keys under `parallel`."""
PARTS = ("layers", "softmax", "tables and update", "copies")
FIELDS = ("layout", "topology", "gib", "of_gib", "state_gib", "tflop", "moved_gib", "sent_gib", "arithmetic_ms",
          "memory_ms", "operations_ms", *(f"{part} ms" for part in PARTS), "latency_ms", "communication_ms", "step_ms",
          "hidden_ms", "compiler_ms", "words_per_second", "compile_s", "collectives")  # fmt: skip


def make_config(parallel: dict[str, Any]) -> Any:
    """The paper's config with sentences of one length."""
    from configs.lstm import get_config

    config = get_config("paper")
    config.data.update(sentences_per_batch=SENTENCES, max_source_len=WORDS, max_target_len=WORDS)
    config.parallel.update(parallel)
    return config


def lower_step(parallel: dict[str, Any], devices: Sequence[Any]) -> tuple[Any, Any]:
    """The training, and its step before it is compiled."""
    from seq2seq_jax.config import vocab_sizes
    from seq2seq_jax.experiment import make_training

    config = make_config(parallel)
    training = make_training(config, *vocab_sizes(config), devices=devices, updates_per_epoch=1.0)
    shapes = training.abstract_batch(SENTENCES, WORDS, WORDS)
    return training, training.train_step().lower(training.abstract_state(), shapes)


def name_part(name: str) -> str:
    """Which of `PARTS` an operation belongs to, by jax's name for it."""
    if "encoder" in name or "decoder" in name:
        return "layers"
    if "jvp()/while" in name:  # the loop over chunks of tokens, which makes gradients as it goes
        return "softmax"
    return "tables and update" if "jit(" in name or "state." in name else "copies"


def read_step(compiled: Any, mesh: Any, hardware: Any) -> dict[str, Any]:
    """One row of the results of a compiled step: what it holds and does on a chip."""
    from seq2seq_jax.parallel.roofline import estimate
    from seq2seq_jax.parallel.topology import analyse
    from seq2seq_jax.parallel.work import Work

    found, gib = analyse(compiled, mesh, hardware), 2**30
    kernels: dict[str, list[Any]] = {part: [] for part in PARTS}
    for kernel in found.work.kernels:
        kernels[name_part(kernel.name)].append(kernel)
    parts = {part: estimate(Work(kernels=some), mesh, hardware).operations for part, some in kernels.items()}
    took = found.time
    lines = [f"{line.kind} over {line.axis} x{line.calls:.0f} {line.bytes / 2**20:.1f} MiB {line.seconds * 1e3:.2f} ms"
             for line in took.traffic]  # fmt: skip
    return {
        "gib": found.memory.total / gib,
        "of_gib": hardware.memory / gib,
        "state_gib": found.memory.arguments / gib,
        "tflop": found.work.flops / 1e12,
        "moved_gib": found.work.bytes / gib,
        "sent_gib": sum(line.bytes for line in took.traffic) / gib,
        "arithmetic_ms": took.compute * 1e3,
        "memory_ms": took.memory * 1e3,
        "operations_ms": took.operations * 1e3,
        **{f"{part} ms": seconds * 1e3 for part, seconds in parts.items()},
        "latency_ms": took.latency * 1e3,
        "communication_ms": took.communication * 1e3,
        "step_ms": took.step * 1e3,
        "hidden_ms": took.overlapped * 1e3,
        "compiler_ms": took.compiler * 1e3,
        "words_per_second": 2 * SENTENCES * WORDS / took.step,
        "collectives": "; ".join(lines),
    }


def measure(name: str) -> dict[str, Any]:
    """Compiles the step in one layout, quickly: its memory is that of a training's, its time about a tenth more."""
    from seq2seq_jax.parallel.roofline import find_hardware
    from seq2seq_jax.parallel.topology import describe_devices

    topology, parallel = LAYOUTS[name]
    devices = describe_devices(topology)
    training, lowered = lower_step(parallel, devices)
    start = time.perf_counter()
    compiled = lowered.compile({"exec_time_optimization_effort": -1.0})
    seconds = time.perf_counter() - start
    row = {"layout": name, "topology": topology, "compile_s": seconds}
    return row | read_step(compiled, training.mesh, find_hardware(devices[0]))


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a file of results; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_results(path: Path = RESULTS) -> dict[str, dict[str, str]]:
    """Name → finished row, in the order of `LAYOUTS`."""
    rows = {row["layout"]: row for row in read_rows(path)}
    return {name: rows[name] for name in LAYOUTS if name in rows}


def add_result(row: dict[str, Any], path: Path = RESULTS) -> None:
    """Keeps a finished row: the file is written anew, as one step."""
    from seq2seq_jax.train.writers import replace_text

    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(read_rows(path))
    writer.writerow({name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()})
    replace_text(path, text.getvalue())


def make_tables(rows: dict[str, dict[str, str]]) -> str:
    """Both tables in Markdown: speed, and where the time goes."""
    found = {name: {key: _number(value) for key, value in row.items()} for name, row in rows.items()}
    base = found.get(ONE)
    speed = [
        "| layout | memory a chip, GiB | step, ms | words/s | times one chip | all messages hidden | arithmetic alone "
        "| compiler's count |",
        "|---" * 8 + "|",
    ]
    where = [
        f"| layout, ms | {' | '.join(PARTS)} | fixed parts | messages | of it the largest | TFLOP | moved, GiB |",
        "|---" * (len(PARTS) + 6) + "|",
    ]
    for name, row in found.items():
        keys = ("step_ms", "hidden_ms", "arithmetic_ms", "compiler_ms")
        times = [f"{base[key] / row[key]:.2f}" if base else "" for key in keys]
        speed.append(f"| {name} | {row['gib']:.1f} | {row['step_ms']:.1f} | {row['words_per_second']:,.0f} | "
                     f"{' | '.join(times)} |")  # fmt: skip
        parts = [f"{row[f'{part} ms']:.1f}" for part in PARTS]
        largest = rows[name]["collectives"].split("; ")[0]
        where.append(f"| {name} | {' | '.join(parts)} | {row['latency_ms']:.1f} | {row['communication_ms']:.1f} | "
                     f"{largest} | {row['tflop']:.2f} | {row['moved_gib']:.1f} |")  # fmt: skip
    paper = f"| the paper's GPUs | | | {PAPER[0]:,} -> {PAPER[1]:,} | {PAPER[1] / PAPER[0]:.2f} | | | |"
    return "\n".join([*speed, paper, "", *where])


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def tell_here() -> str:
    """Compiles the layout of 2014 for eight devices of this machine and tells their memory; runs nothing."""
    import jax

    from seq2seq_jax.parallel.topology import read_memory

    training, lowered = lower_step(LAYOUTS["exact"][1], jax.devices())
    start = time.perf_counter()
    memory = read_memory(lowered.compile())
    held = ", ".join(f"{name} {getattr(memory, name) / 2**20:,.1f} MiB"
                     for name in ("arguments", "outputs", "temporaries", "code"))  # fmt: skip
    return (
        f"{training.mesh.size} x {training.mesh.devices.flat[0].device_kind}, compiled in "
        f"{time.perf_counter() - start:.0f} s: {memory.total / 2**30:.2f} GiB on each: {held}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    from programs import call

    return call("eight_devices.py", lambda: plan(argv))


def plan(argv: Sequence[str] | None) -> int:
    """Does what the flags ask for.

    Raises:
        UserError: no row has such a name, or nothing can be compiled for TPUs here.
    """
    from seq2seq_jax.errors import UserError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--table", action="store_true", help="compile nothing")
    parser.add_argument("--here", action="store_true", help="memory on eight devices of this machine instead")
    given = parser.parse_args(argv)
    if given.here:
        flag = "--xla_force_host_platform_device_count=8"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        print(tell_here())
        return 0
    wanted = [name for name in LAYOUTS if given.only in name]
    if not wanted:
        raise UserError(f"--only={given.only}: must be part of a row's name, but no row has it: {'; '.join(LAYOUTS)}.")
    for name in wanted:
        if not given.table and name not in read_results():
            print(name, file=sys.stderr, flush=True)
            add_result(measure(name))
    print(make_tables(read_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
