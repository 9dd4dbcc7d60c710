"""Does training in bfloat16 follow training in float32? Loss curves and dev scores of small models.

Each model is trained in both formats from the same parameters, with the same batches and dropout (all three follow
from the seed), and in float32 from other seeds: how far two seeds are apart is the measure of what a format does.

    python experiments/bfloat16/run.py [--out=runs/bfloat16] [--models=gnmt,lstm] [--seeds=0,1] [--steps=400]

The built-in corpus, width 64. Trains what is not trained yet (a run that was killed goes on from its last checkpoint),
then prints the table and writes to --out: loss.csv, scores.csv, curves.png.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

WIDTH = {"gnmt": ("features", "attention_features"), "lstm": ("features",)}
LOG_EVERY, EVALUATE_EVERY, WINDOW = 10, 200, 100
Run = tuple[str, str, int]
"""Model, format, seed."""


def train(out: Path, run: Run, steps: int) -> Path:
    """Trains a run if that is not done; its folder."""
    model, dtype, seed = run
    folder = out / f"{model}-{dtype}-{seed}"
    keys = {f"model.{name}": 64 for name in WIDTH[model]} | {"model.dtype": dtype, "train.seed": seed}
    keys |= {"train.steps": steps, "train.decay_steps": steps, "train.warmup_steps": steps // 6}
    keys |= {"train.log_every": LOG_EVERY, "train.evaluate_every": EVALUATE_EVERY, "train.save_every": 100}
    keys |= {"data.phrasebook_pairs": 10_000, "data.tokens_per_batch": 1024, "data.max_shapes": 3}
    keys |= {"decode.beam_size": 1, "evaluate.dev_sentences": 200, "evaluate.samples": 0}
    if not (folder / "results.json").exists():
        print(f"== {folder.name}", flush=True)
        given = [f"--config.{key}={value}" for key, value in keys.items()]
        command = [sys.executable, "-m", "seq2seq_jax.main", f"--config=configs/{model}.py", f"--workdir={folder}"]
        subprocess.run([*command, *given], check=True, stdout=subprocess.DEVNULL)
    return folder


def read_metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_loss(folder: Path) -> dict[int, float]:
    """The training loss (nats a token, mean over `LOG_EVERY` steps) of every log line, by step."""
    return {line["step"]: line["loss"] for line in read_metrics(folder) if "loss" in line}


def read_scores(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and BLEU on dev at every evaluation, by step."""
    lines = [line for line in read_metrics(folder) if line.get("event") == "dev"]
    return {line["step"]: (line["dev_loss"], line["dev_bleu"]) for line in lines}


def smooth(loss: dict[int, float]) -> dict[int, float]:
    """The mean over the last `WINDOW` steps, at every log line that has so many."""
    steps, values = sorted(loss), [loss[step] for step in sorted(loss)]
    count = WINDOW // LOG_EVERY
    return {steps[n - 1]: float(np.mean(values[n - count : n])) for n in range(count, len(steps) + 1)}


def measure_distance(first: dict[int, float], second: dict[int, float]) -> tuple[float, float]:
    """Mean and largest distance between two smoothed curves."""
    apart = [abs(first[step] - second[step]) for step in sorted(first.keys() & second.keys())]
    return float(np.mean(apart)), float(np.max(apart))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file with its header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def tell(curves: dict[Run, dict[int, float]], scores: dict[Run, dict[int, tuple[float, float]]]) -> str:
    """The tables: smoothed losses and dev scores of each run, then distances between curves."""
    shown = [step for step in next(iter(scores.values()))]
    head = [*(f"loss at {step}" for step in shown), *(f"dev loss at {step}" for step in shown), "dev BLEU"]
    lines = [f"| model | format | seed | {' | '.join(head)} |", "|---" * (len(head) + 3) + "|"]
    for run, curve in curves.items():
        found = [scores[run][step] for step in shown]
        values = [*(f"{curve[step]:.3f}" for step in shown), *(f"{loss:.3f}" for loss, _ in found)]
        lines.append(f"| {' | '.join(map(str, run))} | {' | '.join(values)} | {found[-1][1]:.1f} |")
    lines += ["", "| model | between | mean distance | largest |", "|---|---|---|---|"]
    for one, other in itertools.combinations(curves, 2):
        same_seed = one[1:] != other[1:] and one[2] == other[2]
        same_format = one[1] == other[1] == "float32"
        if one[0] == other[0] and (same_seed or same_format):
            mean, largest = measure_distance(curves[one], curves[other])
            between = f"formats, seed {one[2]}" if same_seed else f"seeds {one[2]} and {other[2]}, float32"
            lines.append(f"| {one[0]} | {between} | {mean:.4f} | {largest:.4f} |")
    return "\n".join(lines)


def draw(losses: dict[Run, dict[int, float]], curves: dict[Run, dict[int, float]], path: Path) -> None:
    """The loss of every run above; below, how far the smoothed curves are from float32's with the first seed."""
    models = list(dict.fromkeys(model for model, _, _ in losses))
    first = next(iter(losses))[2]
    figure = Figure(figsize=(5.2 * len(models), 6.0), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False, sharex=True, height_ratios=(2, 1))
    for column, model in enumerate(models):
        above, below = axes[:, column]
        for (name, dtype, seed), loss in losses.items():
            if name != model:
                continue
            style = {"color": "#0b6e99" if dtype == "float32" else "#c2410c", "alpha": 1.0 if seed == first else 0.45}
            line = "-" if dtype == "float32" else "--"
            above.plot(list(loss), list(loss.values()), line, lw=1.2, label=f"{dtype}, seed {seed}", **style)
            curve, base = curves[name, dtype, seed], curves[model, "float32", first]
            below.plot(list(curve), [curve[step] - base[step] for step in curve], line, lw=1.2, **style)
        above.set(title=model, ylabel="training loss, nats a token")
        below.set(xlabel="steps", ylabel=f"less float32, seed {first}")
        above.legend(frameon=False)
        for ax in (above, below):
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(True, alpha=0.25)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains what is missing, then tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bfloat16"))
    parser.add_argument("--models", default="gnmt,lstm")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    out = given.out.absolute()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    formats = [("float32", seeds[0]), ("bfloat16", seeds[0]), *(("float32", seed) for seed in seeds[1:])]
    runs = [(model, *each) for model in given.models.split(",") for each in formats]
    folders = {run: train(out, run, given.steps) for run in runs}
    losses = {run: read_loss(folder) for run, folder in folders.items()}
    scores = {run: read_scores(folder) for run, folder in folders.items()}
    curves = {run: smooth(loss) for run, loss in losses.items()}
    rows = [(*run, step, value) for run, loss in losses.items() for step, value in loss.items()]
    write_csv(out / "loss.csv", ("model", "format", "seed", "step", "loss"), rows)
    rows = [(*run, step, *found) for run, score in scores.items() for step, found in score.items()]
    write_csv(out / "scores.csv", ("model", "format", "seed", "step", "dev_loss", "dev_bleu"), rows)
    draw(losses, curves, out / "curves.png")
    print(tell(curves, scores))


if __name__ == "__main__":
    main()
