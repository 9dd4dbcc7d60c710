"""A corpus that does not fit in memory: how much memory, how fast to prepare, what a kill costs, does training wait.

    python experiments/large_corpus/run.py                      50 thousand and 5 million pairs, in a temporary folder
    python experiments/large_corpus/run.py --lines=500000 --folder=/data/scratch --keep
    python experiments/large_corpus/run.py --only=memory,wait   some measurements, on what --folder has

Measurements go to results.csv beside this file as they are made; a measurement made again replaces the old one.
Each runs in a process of its own, and the sizes are the same corpus, cut. Generated text: halves of sentences of the
built-in phrasebook, recombined.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

RESULTS = HERE / "results.csv"
SMALL = 50_000
WORKERS = 2
POOL = 20_000  # sentences that are recombined
ENCODED = 200_000  # lines of each side that SentencePiece encodes alone
BATCHES = 400
PARTS = ("prepare", "encode", "memory", "resume", "wait", "train")
DATA = ("--config.data.tokens_per_batch=8192", "--config.data.max_source_len=80", "--config.data.max_target_len=80")


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000, help="pairs of the large corpus")
    parser.add_argument("--resume_lines", type=int, default=1_000_000, help="pairs of the corpus that is killed")
    parser.add_argument("--folder", type=Path, help="where the corpora are made; temporary by default")
    parser.add_argument("--keep", action="store_true", help="leave the corpora there")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--inside", nargs="*", help=argparse.SUPPRESS)  # a measurement's own process
    given = parser.parse_args()
    if given.inside:
        name, *rest = given.inside
        print(json.dumps({"read": read_batches, "wait": consume, "encode": encode_alone}[name](*rest)))
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="large_corpus-"))
    folder.mkdir(parents=True, exist_ok=True)
    only = given.only.split(",")
    try:
        small, large = (write_text(folder, n) for n in (SMALL, given.lines))
        if "prepare" in only:
            if not (name_prepared(folder, SMALL) / "index.json").exists():
                record(measure_prepare(small, folder, SMALL))
            record(measure_prepare(large, folder, given.lines))
        if "encode" in only:
            record(measure_encode(large, folder))
        if "memory" in only:
            record(measure_memory(folder, given.lines))
        if "resume" in only:
            record(measure_resume(write_text(folder, given.resume_lines), folder))
        if "wait" in only:
            record(measure_wait(folder, given.lines))
        if "train" in only:
            record(measure_training(large, folder, given.lines))
    finally:
        if not given.keep and given.folder is None:
            shutil.rmtree(folder)


def write_text(folder: Path, count: int) -> Path:
    """Writes `count` pairs, if they are not there: halves of phrasebook sentences, put together at random."""
    from seq2seq_jax.data import phrasebook

    prefix = folder / f"text{count}"
    if prefix.with_suffix(".de").exists():
        return prefix
    halves: list[list[str]] = [[], [], [], []]
    for side, lines in enumerate(phrasebook.pairs("train", source="en", target="de", size=POOL, seed=0)):
        for line in lines:
            words = line.split()
            halves[side].append(" ".join(words[: len(words) // 2]))
            halves[side + 2].append(" ".join(words[len(words) // 2 :]))
    draw = random.Random(0)
    part = prefix.with_suffix(".part")
    with open(prefix.with_suffix(".en"), "w") as source, open(part, "w") as target:
        for start in range(0, count, 100_000):
            first = draw.choices(range(POOL), k=min(100_000, count - start))
            second = draw.choices(range(POOL), k=len(first))
            for file, begin, end in ((source, halves[0], halves[2]), (target, halves[1], halves[3])):
                file.write("".join(f"{begin[i]} {end[j]}\n" for i, j in zip(first, second, strict=True)))
    part.rename(prefix.with_suffix(".de"))
    return prefix


def record(rows: list[tuple[str, int, float, str]]) -> None:
    """Puts measurements into the table and prints them."""
    known: dict[tuple[str, str], list[Any]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            known = {(row[0], row[1]): row for row in list(csv.reader(file))[1:]}
    for what, pairs, value, unit in rows:
        known[what, str(pairs)] = [what, pairs, f"{value:.6g}", unit]
        print(f"{what} ({pairs:,} pairs): {value:,.6g} {unit}", flush=True)
    with RESULTS.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["what", "pairs", "value", "unit"], *known.values()])


def command(mode: str, prefix: Path, folder: Path, *more: str) -> list[str]:
    """A command line of seq2seq_jax on these texts; the vocabulary is that of the small corpus, once it is there."""
    words = [sys.executable, "-m", "seq2seq_jax.main", f"--config={ROOT}/configs/gnmt.py", f"--mode={mode}", *DATA]
    words += [f"--workdir={folder / 'run'}-{prefix.name}", f"--config.data.train={prefix}", "--config.vocab.size=8000"]
    words += ["--config.data.dev=phrasebook", "--config.data.test=phrasebook", *more]
    model = folder / "prepared-small" / "vocab" / "vocab.model"
    if prefix.name != f"text{SMALL}":
        words.append(f"--config.vocab.file={model}")
    return words


def name_prepared(folder: Path, lines: int) -> Path:
    """Where the prepared corpus of so many pairs is."""
    return folder / ("prepared-small" if lines == SMALL else f"prepared-{lines}")


def measure_prepare(prefix: Path, folder: Path, lines: int) -> list[tuple[str, int, float, str]]:
    """The whole command, from start to index."""
    prepared = name_prepared(folder, lines)
    shutil.rmtree(prepared, ignore_errors=True)
    started, used = time.monotonic(), count_cpu()
    words = command("prepare", prefix, folder, f"--workers={WORKERS}", f"--config.data.prepared={prepared}", "--json")
    report = json.loads(subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    seconds, used = time.monotonic() - started, count_cpu() - used
    size = sum(path.stat().st_size for path in (prepared / "shards").iterdir())
    return [
        ("prepare, seconds", lines, seconds, "s"),
        ("prepare, sentences of both sides", lines, 2 * report["pairs"] / seconds, "sentences/s"),
        ("prepare, sentences of both sides, a second of CPU", lines, 2 * report["pairs"] / used, "sentences/s"),
        ("prepared, on the disk", lines, size / report["pairs"], "bytes/pair"),
    ]


def count_cpu() -> float:
    """Seconds of CPU that the processes started here have used, their own workers included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_inside(*args: object) -> dict[str, Any]:
    """A measurement in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--inside", *map(str, args)]
    return json.loads(subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def measure_encode(prefix: Path, folder: Path) -> list[tuple[str, int, float, str]]:
    """SentencePiece alone on the first lines: one process with two threads, and two processes with one each."""
    model = folder / "prepared-small" / "vocab" / "vocab.model"
    threads = run_inside("encode", model, prefix, WORKERS, 0, 1)["sentences_per_second"]
    words = [sys.executable, str(Path(__file__).resolve()), "--inside", "encode", str(model), str(prefix), "1"]
    outputs = run_together([[*words, str(n), str(WORKERS)] for n in range(WORKERS)])
    found = [json.loads(output) for output in outputs]
    processes = sum(entry["sentences_per_second"] for entry in found)
    alone = sum(entry["sentences_per_cpu_second"] for entry in found) / WORKERS
    return [
        (f"SentencePiece alone, {WORKERS} threads", ENCODED, threads, "sentences/s"),
        (f"SentencePiece alone, {WORKERS} processes", ENCODED, processes, "sentences/s"),
        (f"SentencePiece alone, {WORKERS} processes, a second of CPU", ENCODED, alone, "sentences/s"),
    ]


def run_together(commands: list[list[str]]) -> list[str]:
    """Runs commands at the same time; the last line that each prints."""
    running = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for words in commands]
    return [process.communicate()[0].splitlines()[-1] for process in running]


def encode_alone(model: str, prefix: str, threads: str, part: str, of: str) -> dict[str, float]:
    """Encodes lines of both sides to numpy arrays, 10,000 at a time, and nothing else."""
    import itertools

    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    lines = []
    for language in ("en", "de"):
        with open(f"{prefix}.{language}") as file:
            lines += [line.rstrip("\n") for line in itertools.islice(file, int(part), ENCODED, int(of))]
    started, used = time.monotonic(), time.process_time()
    for begin in range(0, len(lines), 10_000):
        processor.encode(lines[begin : begin + 10_000], return_type="numpy", num_threads=int(threads))
    seconds, used = time.monotonic() - started, time.process_time() - used
    return {"sentences_per_second": len(lines) / seconds, "sentences_per_cpu_second": len(lines) / used}


def resident() -> tuple[int, int, int]:
    """Bytes of this process: its own, pages of files, and its own without what is free but not given back.

    The allocator keeps freed memory, up to about 100 MB whatever the size of the corpus.
    """

    def look() -> tuple[int, int]:
        found = {}
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
        return found["Anonymous"], found["Rss"] - found["Anonymous"]

    own, files = look()
    ctypes.CDLL(None).malloc_trim(0)
    return own, files, look()[0]


def make_reader(folder: str, seed: int = 0) -> tuple[Any, Any]:
    """The corpus and its plan, as a training opens them."""
    from seq2seq_jax.data.plan import make_plan
    from seq2seq_jax.data.store import PreparedPairs

    pairs = PreparedPairs.open(Path(folder), check=False)
    sizes = {"tokens_per_batch": 8192, "max_shapes": 6, "max_source_len": 80, "max_target_len": 80}
    return pairs, make_plan(pairs.source_lengths, pairs.target_lengths, seed=seed, **sizes)


def read_batches(folder: str) -> dict[str, tuple[int, int, int]]:
    """Resident memory of a process that reads as a training does, after each of its steps."""
    from seq2seq_jax.data import pipeline
    from seq2seq_jax.data.store import PreparedPairs

    found = {"imports": resident()}
    pairs = PreparedPairs.open(Path(folder), check=False)
    found["lengths"] = resident()
    del pairs
    pairs, plan = make_reader(folder)
    found["plan"] = resident()
    with pipeline.batches(pairs, plan, start=0, stop=BATCHES) as reader:
        for _ in reader:
            pass
        found["batches"] = resident()
    last = plan.batches_per_epoch - 50
    with pipeline.batches(pairs, plan, start=last, stop=last + 100) as reader:
        for _ in reader:
            pass
        found["second epoch"] = resident()
    return found


def measure_memory(folder: Path, lines: int) -> list[tuple[str, int, float, str]]:
    """What the larger corpus takes more, by step, and for each pair more."""
    found = {n: run_inside("read", name_prepared(folder, n)) for n in (SMALL, lines)}
    rows = []
    for n, steps in found.items():
        for step in ("imports", "batches", "second epoch"):
            rows.append((f"resident after {step}, own", n, steps[step][0] / 2**20, "MiB"))
            rows.append((f"resident after {step}, files", n, steps[step][1] / 2**20, "MiB"))
    for step in ("lengths", "plan", "batches", "second epoch"):
        own, files, used = (found[lines][step][k] - found[SMALL][step][k] for k in range(3))
        rows.append((f"each pair more, own, after {step}", lines, own / (lines - SMALL), "bytes"))
        rows.append((f"each pair more, own and in use, after {step}", lines, used / (lines - SMALL), "bytes"))
        rows.append((f"each pair more, files, after {step}", lines, files / (lines - SMALL), "bytes"))
    return rows


def measure_resume(prefix: Path, folder: Path) -> list[tuple[str, int, float, str]]:
    """Kills a preparation when half of its shards are there, starts it again, and compares with one in one go."""
    lines = int(prefix.name.removeprefix("text"))
    killed, whole = folder / "killed", folder / "whole"
    for path in (killed, whole):
        shutil.rmtree(path, ignore_errors=True)
    shards = 20
    more = ["--json", f"--workers={WORKERS}", f"--config.data.shard_pairs={lines // shards}"]
    words = command("prepare", prefix, folder, *more)
    process = subprocess.Popen([*words, f"--config.data.prepared={killed}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(list(killed.glob("shards/[0-9]*.json"))) < shards // 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # workers end with the process that started them
    finished = len(list(killed.glob("shards/[0-9]*.json")))
    times = {path: path.stat().st_mtime_ns for path in killed.glob("shards/[0-9]*.array_record")}
    digests = []
    for target in (killed, whole):
        done = subprocess.run(
            [*words, f"--config.data.prepared={target}"], cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
        digests.append(json.loads(done.stdout)["sha256"])
    again = sum(path.stat().st_mtime_ns != was for path, was in times.items())
    return [
        ("killed: shards in all", lines, shards, "shards"),
        ("killed: finished before", lines, finished, "shards"),
        ("killed: finished ones made again", lines, again, "shards"),
        ("killed: the result is that of one go", lines, float(digests[0] == digests[1]), "1 = yes"),
    ]


def consume(folder: str, threads: str, step: str) -> dict[str, float]:
    """A consumer that works `step` seconds on every batch, and how long it waits for batches."""
    from seq2seq_jax.data import pipeline

    pairs, plan = make_reader(folder)
    waited, examples = 0.0, 0
    with pipeline.batches(pairs, plan, start=0, stop=BATCHES, threads=int(threads)) as reader:
        next(reader)  # makes the order of the epoch
        started = asked = time.monotonic()
        for batch in reader:
            waited += time.monotonic() - asked
            examples += int(batch.row_mask.sum())
            time.sleep(float(step))
            asked = time.monotonic()
        seconds = time.monotonic() - started
    return {"wait_share": waited / seconds, "examples_per_second": examples / seconds}


def measure_wait(folder: Path, lines: int) -> list[tuple[str, int, float, str]]:
    """Batches as fast as they come, and with work of 50 milliseconds on each, which a device would do."""
    free, busy = (run_inside("wait", name_prepared(folder, lines), 1, step) for step in (0, 0.05))
    return [
        ("read, nothing else to do", lines, free["examples_per_second"], "examples/s"),
        ("read, 50 ms of work a batch", lines, busy["examples_per_second"], "examples/s"),
        ("wait share, 50 ms of work a batch", lines, 100 * busy["wait_share"], "%"),
    ]


def measure_training(prefix: Path, folder: Path, lines: int) -> list[tuple[str, int, float, str]]:
    """A short training of a small model from the prepared corpus: its own log's wait share."""
    root = folder / "run-training"
    shutil.rmtree(root, ignore_errors=True)
    small = ["--config.train.steps=40", "--config.train.log_every=20", "--config.train.evaluate_every=40"]
    small += ["--config.evaluate.dev_sentences=20", "--config.evaluate.samples=0", "--config.decode.beam_size=1"]
    small += ["--config.data.tokens_per_batch=2048", "--config.data.max_shapes=1", "--config.data.max_source_len=48"]
    small += ["--config.data.max_target_len=48", f"--workdir={root}"]
    small.append(f"--config.data.prepared={name_prepared(folder, lines)}")
    subprocess.run([*command("train", prefix, folder), *small], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((root / "results.json").read_text())
    return [
        ("training, wait share", lines, 100 * results["data_wait_share"], "%"),
        ("training, tokens of both sides", lines, results["tokens_per_second"], "tokens/s"),
    ]


if __name__ == "__main__":
    main()
