"""What the report needs of a run besides its translations: log-probabilities of the test set, vectors of the probes.

    OUT/scores/CORPUS/NAME-SEED.log_probs.jsonl   what --mode=score says of the test set (`scores.list_score_jobs`)
    OUT/scores/CORPUS/NAME-SEED.vectors.npz       what --mode=vectors makes of the probes
    OUT/scores/CORPUS/probes.txt                  the sentences of `probes.py`

What is there and no older than the run's results is kept.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jobs import is_newer
from probes import list_sentences
from runs import CORPORA, SEEDS, Run, list_runs
from scores import Place, read_lines, read_log_probs

from seq2seq_jax.config import load_config
from seq2seq_jax.corpora import open_splits
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main as call
from seq2seq_jax.train.writers import replace_text


def find_finished(out: Path) -> list[Run]:
    """The runs in `out` that are trained and tested."""
    return [run for run in list_runs(CORPORA) if run.find_folder(out).results.is_file()]


def group_runs(runs: Sequence[Run], corpus: str) -> dict[str, list[Run]]:
    """Name → its runs on a corpus, by seed; in the order of `SEEDS`."""
    groups = {name: [run for run in runs if (run.corpus, run.name) == (corpus, name)] for name in SEEDS}
    return {name: sorted(found, key=lambda run: run.seed) for name, found in groups.items() if found}


def read_side(run: Run, out: Path, side: str) -> list[str]:
    """Lines of the test set: "source", "references" or the run's "hypotheses"."""
    return read_lines(run.find_folder(out).outputs / f"test.{side}.txt")


def read_curve(run: Run, out: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of what a run's metrics.jsonl holds under a key."""
    steps, values = [], []
    for line in run.find_folder(out).metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if key in record:
            steps.append(float(record["step"]))
            values.append(float(record[key]))
    return steps, values


def find_vectors(run: Run, out: Path) -> Path:
    """Where the vectors of a run are."""
    return Place(out, run.corpus).folder / f"{run.label}.vectors.npz"


def make_analyses(runs: Sequence[Run], out: Path) -> None:
    """Makes the files of all runs that are missing or older than the run.

    Raises:
        UserError: a mode did not do its work (it has said why).
    """
    for run in runs:
        place, folder = Place(out, run.corpus), run.find_folder(out)
        probes, log_probs, vectors = (
            place.folder / "probes.txt",
            place.find_log_probs(run.label),
            find_vectors(run, out),
        )
        place.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(line + "\n" for line in list_sentences(run.corpus))
        if not probes.is_file() or probes.read_text(encoding="utf-8") != text:
            replace_text(probes, text)  # only then: it stays older than what was made of it
        if not is_newer(log_probs, [folder.results]):
            copied = out / "text" / run.corpus / "test"
            own = [f"--config.data.test={copied}"] if copied.with_name("test.en").is_file() else []
            _call(run, "score", log_probs, folder.root, own)
        if not is_newer(vectors, [folder.results, probes]):
            _call(run, "vectors", vectors, folder.root, [f"--input={probes}"])


def _call(run: Run, mode: str, goal: Path, root: Path, arguments: Sequence[str]) -> None:
    if call(["seq2seq_jax.main", f"--workdir={root}", f"--mode={mode}", f"--output={goal}", *arguments]):
        raise UserError(f"{root}: --mode={mode} of {run.label} did not end well, as said above.")


def read_scores(run: Run, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability and tokens of every reference of the test set."""
    lines = len(read_side(run, out, "references"))
    losses, tokens = read_log_probs(Place(out, run.corpus).find_log_probs(run.label), lines).T
    return -losses, tokens


def read_vectors(run: Run, out: Path) -> dict[str, np.ndarray]:
    """Sentence of the probes → its vector."""
    with np.load(find_vectors(run, out)) as file:
        vectors = file["vectors"]
    return dict(zip(list_sentences(run.corpus), vectors, strict=True))


def read_training(runs: Sequence[Run], corpus: str, out: Path) -> list[str] | None:
    """The source side of the training text; None where it cannot be had."""
    copied = out / "text" / corpus / "train.en"
    if copied.is_file():
        return read_lines(copied)
    for run in runs:
        if run.corpus == corpus:
            try:
                text = open_splits(load_config(run.find_folder(out).config)).train
            except UserError:
                return None
            return list(text.source) if isinstance(text, ParallelText) else None
    return None


def find_rare_words(corpus: str, training: Sequence[str]) -> list[tuple[str, int]]:
    """The five words of the corpus's probes that its training text has least often, with their counts."""

    def split(line: str) -> list[str]:
        return re.findall(r"\w+", line.lower())

    counts = Counter(word for line in training for word in split(line))
    words = {word for text in list_sentences(corpus) for word in split(text)}
    return sorted(((word, counts[word]) for word in words), key=lambda item: (item[1], item[0]))[:5]
