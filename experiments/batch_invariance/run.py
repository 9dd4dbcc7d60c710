"""Does a translation depend on the batch that it was made in? A trained model over real lines, batched in many ways.

Every line is translated in the order of the file, 64 at a time, and then in other batches. Hypotheses that are not the
same are listed with the gap between them: how far their scores are apart when both are read once more, alone and in
float32, under teacher forcing. A rounding error can only decide between hypotheses that are nearly as good.

    python experiments/batch_invariance/run.py --run=RUN [--out=runs/batch_invariance] [--formats=float32,bfloat16]
        [--methods=beam,greedy] [--lines=3000]

`RUN` is a run of `configs/gnmt.py:multi30k`; the lines are the last thousand of Multi30k's train.en and all of val.en
and test_2016_flickr.en, in the folder multi30k of the folder that SEQ2SEQ_JAX_DATA names. Written to --out, and begun
where it stopped: summary.csv, flips.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID
from seq2seq_jax.experiment import Experiment, build
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.tasks.translation import Candidate
from seq2seq_jax.workdir import Folder

FILES = {"train.en": slice(-1000, None), "val.en": slice(0, 1000), "test_2016_flickr.en": slice(0, 1000)}
SUMMARY = [
    "format",
    "method",
    "batches",
    "lines",
    "best_differ",
    "lists_differ",
    "largest_gap",
    "scores_apart",
    "seconds",
]
FLIPS = ["format", "method", "batches", "line", "place", "gap", "ours", "theirs"]


@dataclasses.dataclass(frozen=True)
class Batches:
    """One way of putting lines into batches.

    Attributes:
        rows: lines at a time.
        every: only every so manyth line is translated.
        shuffled: seed of another order; 0 is that of the file.
        max_source_len: tokens of the longest source, which is the last of the lengths that sources are padded to.
        alone: every line is given by itself.
    """

    rows: int
    every: int = 1
    shuffled: int = 0
    max_source_len: int = 256
    alone: bool = False


WAYS = {
    "64, shuffled": Batches(64, shuffled=1),
    "7, shuffled": Batches(7, shuffled=2),
    "48, shuffled, other lengths": Batches(48, shuffled=3, max_source_len=90),
    "1": Batches(64, every=10, alone=True),
}
FIRST = Batches(64)


def read_lines(folder: Path, count: int) -> list[str]:
    """The lines; of fewer than all, as many of each file."""
    lines = []
    for name, part in FILES.items():
        lines += (folder / "multi30k" / name).read_text(encoding="utf-8").splitlines()[part][: count // len(FILES)]
    return lines


def translate(
    experiment: Experiment, params: PyTree, method: str, lines: Sequence[str], batches: Batches
) -> dict[int, list[Candidate]]:
    """The candidates of each line that is translated."""
    config = ConfigDict(experiment.config.to_dict())
    config.decode.rows, config.decode.max_source_len = batches.rows, batches.max_source_len
    here = build(config, experiment.vocabs)
    translator = here.translator(engine=here.engine(here.training.make_search(method=method), attention="none"))
    places = np.arange(0, len(lines), batches.every)
    if batches.shuffled:
        places = np.random.default_rng(batches.shuffled).permutation(places)
    given = [lines[place] for place in places]
    if batches.alone:
        found = [translator.translate(params, [line])[0] for line in given]
    else:
        found = translator.translate(params, given)
    return {int(place): each.candidates for place, each in zip(places, found, strict=True)}


class Reader:
    """Scores given hypotheses once more: alone, in float32, with the ranking of the search."""

    def __init__(self, experiment: Experiment, params: PyTree):
        self._experiment, self._params = experiment, params
        self._read = jax.jit(self._apply)

    def _apply(self, params: PyTree, source: jax.Array, mask: jax.Array, target_in: jax.Array):
        def run(model):
            output = model.decode(target_in, model.encode(source, mask, train=False), train=False)
            return jax.nn.log_softmax(model.project(output.hidden).astype(jnp.float32)), output.attention

        return self._experiment.training.model.apply({"params": params}, method=run)

    def score(self, line: str, tokens: Sequence[int], *, method: str) -> float:
        """GNMT's score by `config.decode`, summed in float64; log P where the search is greedy."""
        source = [*self._experiment.vocabs.source.encode(line), EOS_ID]
        width, room = -(-len(source) // 32) * 32, -(-len(tokens) // 32) * 32
        padded, target_in = np.zeros((1, width), np.int32), np.zeros((1, room), np.int32)
        padded[0, : len(source)], target_in[0, : len(tokens)] = source, [BOS_ID, *tokens[:-1]]
        log_probs, attention = jax.device_get(
            self._read(self._params, padded, np.arange(width)[None] < len(source), target_in)
        )
        total = log_probs[0, np.arange(len(tokens)), tokens].astype(np.float64).sum()
        if method == "greedy":
            return float(total)
        ranking = self._experiment.training.make_search(method="beam").method.ranking
        covered = attention[0, : len(tokens), : len(source)].astype(np.float64).sum(axis=0)
        divisor = ((5 + len(tokens)) / 6) ** ranking.length_penalty
        return float(total / divisor + ranking.coverage_penalty * np.log(np.minimum(covered, 1.0)).sum())


def compare(reader: Reader, method: str, lines: Sequence[str], ours: dict, theirs: dict) -> tuple[dict, list[dict]]:
    """A row of the summary, and the flips: of each line the first place of the n-best lists that is not the same."""
    flips, apart = [], 0.0
    for place, candidates in sorted(theirs.items()):
        if len(ours[place]) != len(candidates):
            raise RuntimeError(f"line {place}: {len(ours[place])} hypotheses, and {len(candidates)} in other batches.")
        for n, (mine, other) in enumerate(zip(ours[place], candidates, strict=True)):
            if mine.tokens != other.tokens:
                scores = [reader.score(lines[place], each.tokens, method=method) for each in (mine, other)]
                told = {"gap": abs(scores[0] - scores[1]), "ours": mine.text, "theirs": other.text}
                flips.append({"line": place, "place": n + 1, **told})
                break
            apart = max(apart, abs(mine.score - other.score))
    best = sum(flip["place"] == 1 for flip in flips)
    largest = max((flip["gap"] for flip in flips), default=0.0)
    told = {"lines": len(theirs), "best_differ": best, "lists_differ": len(flips)}
    return told | {"largest_gap": f"{largest:.2e}", "scores_apart": f"{apart:.1e}"}, flips


def append(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Adds rows to a CSV file, with its header where there is none yet."""
    there = path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if not there:
            writer.writeheader()
        writer.writerows(rows)


def load(run: Path, dtype: str) -> tuple[Experiment, Experiment, PyTree]:
    """The model computing in this format, the same in float32, and its parameters, on one device."""
    config = load_config(run / "config.json")
    config.parallel = default_config().parallel
    config.parallel.data = 1
    experiment, restored = load_run(config, Folder(run))
    other = ConfigDict(config.to_dict())
    other.model.dtype = dtype
    return build(other, experiment.vocabs), experiment, restored.state.averaged


def main() -> None:
    """Translates in every way that is not in the summary yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/batch_invariance"))
    parser.add_argument("--formats", default="float32,bfloat16")
    parser.add_argument("--methods", default="beam,greedy")
    parser.add_argument("--lines", type=int, default=3000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = read_lines(Path(os.environ["SEQ2SEQ_JAX_DATA"]), given.lines)
    summary, known = given.out / "summary.csv", set()
    if summary.exists():
        with summary.open(encoding="utf-8", newline="") as file:
            known = {(row["format"], row["method"], row["batches"]) for row in csv.DictReader(file)}
    for dtype in given.formats.split(","):
        experiment, exact, params = load(given.run.absolute(), dtype)
        reader = Reader(exact, params)
        for method in given.methods.split(","):
            ours = None
            for name, batches in WAYS.items():
                if (dtype, method, name) in known:
                    continue
                ours = ours or translate(experiment, params, method, lines, FIRST)
                began = time.monotonic()
                theirs = translate(experiment, params, method, lines, batches)
                seconds = time.monotonic() - began
                row, flips = compare(reader, method, lines, ours, theirs)
                head = {"format": dtype, "method": method, "batches": name}
                append(summary, SUMMARY, [head | row | {"seconds": round(seconds)}])
                append(given.out / "flips.csv", FLIPS, [head | flip for flip in flips])
                print(", ".join(f"{key} {value}" for key, value in (head | row).items()), flush=True)


if __name__ == "__main__":
    main()
