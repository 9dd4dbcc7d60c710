"""What the study of bfloat16 reads and tells, from made-up runs."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "experiments" / "bfloat16" / "run.py"


def load():
    spec = importlib.util.spec_from_file_location("bfloat16_run", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = load()


def make_folder(path, *, slope: float):
    """A run of 200 steps whose loss falls along a line, with another event between."""
    lines = [{"step": n, "loss": 7.0 - slope * n} for n in range(10, 201, 10)]
    lines.insert(3, {"step": 33, "event": "skipped", "in_a_row": 1})
    lines.append({"step": 200, "event": "dev", "dev_loss": 2.5, "dev_perplexity": 12.2, "dev_bleu": 7.25})
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_curves_are_means_over_the_last_hundred_steps_and_compared_step_by_step(tmp_path):
    losses = [study.read_loss(make_folder(tmp_path / str(slope), slope=slope)) for slope in (0.01, 0.02)]
    assert losses[0][10] == pytest.approx(6.9) and 33 not in losses[0] and len(losses[0]) == 20
    first, second = (study.smooth(loss) for loss in losses)
    assert min(first) == 100 and first[200] == pytest.approx(7.0 - 0.01 * 155)
    mean, largest = study.measure_distance(first, second)
    assert largest == pytest.approx(0.01 * 155) and mean == pytest.approx(0.01 * 105)


def test_the_tables_compare_formats_of_a_seed_and_seeds_of_float32_alone(tmp_path):
    runs = {("gnmt", "float32", 0): 0.01, ("gnmt", "bfloat16", 0): 0.011, ("gnmt", "float32", 1): 0.02}
    folders = {run: make_folder(tmp_path / str(slope), slope=slope) for run, slope in runs.items()}
    losses = {run: study.read_loss(folder) for run, folder in folders.items()}
    curves = {run: study.smooth(loss) for run, loss in losses.items()}
    told = study.tell(curves, {run: study.read_scores(folder) for run, folder in folders.items()})
    assert "| gnmt | bfloat16 | 0 | 5.295 | 2.500 | 7.2 |" in told
    assert told.splitlines()[-2:] == [
        "| gnmt | formats, seed 0 | 0.1050 | 0.1550 |",
        "| gnmt | seeds 0 and 1, float32 | 1.0500 | 1.5500 |",
    ]
    study.draw(losses, curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
