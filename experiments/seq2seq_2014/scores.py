"""The evaluations of the study: which translations and probabilities are made of finished runs, and reading them.

Nothing is written into the folders of runs: all of it lies in OUT/scores/CORPUS.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jobs import Job
from runs import SEEDS, Run, list_runs, name_job

from seq2seq_jax.errors import UserError

BEAM = 12
"""Of the paper; training ends with a translation of the test set by it."""

BEAMS = (1, 2, 12)
COMPARED = 3
"""Seeds by which models are compared: all have these; the other runs of `reversed` are members of the ensemble."""

ENSEMBLES = {5: BEAMS, 3: (BEAM,), 2: (BEAM,)}
"""Members → the beams that they search by together."""

LIST_LENGTH = 100
"""Hypotheses of a sentence that models read, the best of the system's 1000-best lists: there is time for no more."""

RESCORED = {"reversed": 5, "forward": 3, "attention": 3}
"""Models that rescore the lists of the phrase-based system → so many runs of each."""

MIXES = {
    **{f"{name}-{seed}": (f"{name}-{seed}",) for name in RESCORED for seed in range(COMPARED)},
    "ensemble5": tuple(f"reversed-{seed}" for seed in range(5)),
    "attention_ensemble3": tuple(f"attention-{seed}" for seed in range(3)),
}
"""Name of a rescoring → the runs whose log-probabilities are averaged."""

OF_CLI = (sys.executable, "-m", "seq2seq_jax.main")
HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the evaluations of one corpus lie in the folder of a study."""

    out: Path
    corpus: str

    @property
    def folder(self) -> Path:
        """All evaluations of the corpus."""
        return self.out / "scores" / self.corpus

    def find_run(self, label: str) -> Path:
        """The folder of a run by its name and seed."""
        return self.out / self.corpus / label

    def find_text(self, side: str) -> Path:
        """The test set as a run has left it: "source" or "references"; the same for all of them."""
        return self.find_run("reversed-0") / "outputs" / f"test.{side}.txt"

    def find_translation(self, label: str, beam: int) -> Path:
        """Translations of a run ("forward-2") or of an ensemble ("ensemble5"), a line a sentence."""
        if beam == BEAM and not label.startswith("ensemble"):
            return self.find_run(label) / "outputs" / "test.hypotheses.txt"
        return self.folder / f"{label}.beam{beam}.txt"

    def find_log_probs(self, label: str) -> Path:
        """Log-probabilities of the test set's references by a run, JSON Lines."""
        return self.folder / f"{label}.log_probs.jsonl"

    def find_list(self, split: str) -> Path:
        """The phrase-based system's lists, cut to `LIST_LENGTH`."""
        return self.folder / "lists" / f"{split}.nbest"

    def find_scored(self, label: str, split: str) -> Path:
        """The phrase-based system's lists with the log-probabilities of a run."""
        return self.folder / "lists" / f"{label}.{split}.nbest"


def list_score_jobs(corpus: str, out: Path) -> list[Job]:
    """Translations by other beams and by ensembles, and the probabilities of the references."""
    place = Place(out, corpus)
    found = [_score(place, run) for run in list_runs((corpus,))]
    for seed in range(COMPARED):
        found += [_translate(place, f"reversed-{seed}", (seed,), beam) for beam in BEAMS if beam != BEAM]
    for members, beams in ENSEMBLES.items():
        found += [_translate(place, f"ensemble{members}", range(members), beam) for beam in beams]
    return found


def _make(
    place: Place, name: str, kind: str, arguments: Sequence[str], makes: Path, runs: Sequence[Run], guess: float
) -> Job:
    """A command of the toolkit that reads runs; jobs of lists add to what it needs and is made of."""
    log = place.out / "logs" / place.corpus / f"{name.replace(' ', '_')}.log"
    name, kind = (f"{text} ({place.corpus})" for text in (name, kind))
    needs, made_of = tuple(map(name_job, runs)), tuple(run.find_folder(place.out).results for run in runs)
    return Job(name, kind, (*OF_CLI, *arguments), makes, log, guess, needs, made_of)


def _translate(place: Place, label: str, seeds: Sequence[int], beam: int) -> Job:
    """Translates the test set by the runs of `reversed` with these seeds, together."""
    first, *others = [place.find_run(f"reversed-{seed}") for seed in seeds]
    to = place.find_translation(label, beam)
    arguments = [f"--workdir={first}", "--mode=translate", f"--input={place.find_text('source')}", f"--output={to}"]
    arguments += [f"--config.decode.beam_size={beam}", f"--config.decode.ensemble={','.join(map(str, others))}"]
    runs = [Run(place.corpus, "reversed", seed) for seed in dict.fromkeys((0, *seeds))]
    guess = 15.0 + len(seeds) * 2.5 * beam
    return _make(place, f"translate {label} beam {beam}", f"beam {beam} of {len(seeds)}", arguments, to, runs, guess)


def _score(place: Place, run: Run) -> Job:
    """The log-probability of every reference of the test set."""
    to = place.find_log_probs(run.label)
    arguments = [f"--workdir={place.find_run(run.label)}", "--mode=score", f"--output={to}"]
    if run.corpus == "multi30k":  # whatever path it was trained with
        arguments.append(f"--config.data.test={place.out / 'text' / run.corpus / 'test'}")
    return _make(place, f"score {run.label}", f"score {run.name}", arguments, to, (run,), 15.0)


def list_rescoring_jobs(out: Path, *, smt: Job | None) -> list[Job]:
    """The phrase-based system's lists read by every model, then weighed with the system's totals.

    Args:
        out: folder of the study.
        smt: the job that makes the lists; None where they are there already.
    """
    place, found = Place(out, "multi30k"), []
    text, cut = out / "text" / "multi30k", _cut(place, (smt.name,) if smt else ())
    found.append(cut)
    for run in [run for run in list_runs(("multi30k",)) if run.seed < RESCORED.get(run.name, 0)]:
        for split in ("val", "test"):
            to = place.find_scored(run.label, split)
            arguments = ["--mode=rescore", f"--models={place.find_run(run.label)}", "--weights=average"]
            arguments += [f"--input={place.find_list(split)}", f"--source={text / split}.en", f"--output={to}"]
            job = _make(place, f"lists {split} {run.label}", f"lists {run.name}", arguments, to, (run,), 120.0)
            made_of = (*job.made_of, *cut.made_of, place.find_list(split))
            found.append(dataclasses.replace(job, needs=(*job.needs, cut.name), made_of=made_of))
    return found + [_weigh(place, name, found, cut) for name in ("oracle", *MIXES)]


def _cut(place: Place, before: Sequence[str]) -> Job:
    """The phrase-based system's lists, as long as models read them."""
    job = _make(place, "cut lists", "cut", [], place.find_list("test"), (), 20.0)
    return dataclasses.replace(
        job,
        command=(sys.executable, str(HERE / "rescoring.py"), f"--out={place.out}", "--name=cut"),
        needs=tuple(before),
        made_of=tuple(place.out / "smt" / f"{split}.nbest" for split in ("val", "test")),
        also=(place.find_list("val"),),
    )


def _weigh(place: Place, name: str, lists: Sequence[Job], cut: Job) -> Job:
    """A mix of lists, or the oracle of the system's own."""
    job = _make(place, f"weigh {name}", "weigh", [], place.folder / f"rescored-{name}.json", (), 30.0)
    scored = [place.find_scored(label, split) for label in MIXES.get(name, ()) for split in ("val", "test")]
    own = [each for each in lists if each.makes in scored]
    system = [*cut.made_of, *(place.find_list(split) for split in ("val", "test"))]
    names = ["oracle"] if name == "oracle" else [f"{way}-{name}" for way in ("average", "tuned")]
    return dataclasses.replace(
        job,
        command=(sys.executable, str(HERE / "rescoring.py"), f"--out={place.out}", f"--name={name}"),
        needs=(*(each.name for each in own), cut.name),
        made_of=(*system, *scored, *(path for each in own for path in each.made_of)),
        also=tuple(place.folder / f"{file}.txt" for file in names),
    )


def list_stale(corpus: str, out: Path) -> set[Path]:
    """Evaluations that are missing, or older than the runs and lists that they are made of."""
    jobs = list_score_jobs(corpus, out) + (list_rescoring_jobs(out, smt=None) if corpus == "multi30k" else [])
    return {path for job in jobs if not job.done for path in (job.makes, *job.also)}


def find_systems(corpus: str, out: Path) -> dict[str, list[Path]]:
    """Key of a group of systems → the files of their translations, a file a seed; not all of them need be there."""
    place = Place(out, corpus)
    groups = {name: [f"{name}-{seed}" for seed in range(COMPARED)] for name in SEEDS}
    found = {
        f"{name}@{BEAM}": [place.find_translation(label, BEAM) for label in labels] for name, labels in groups.items()
    }
    for beam in BEAMS:
        found[f"reversed@{beam}"] = [place.find_translation(label, beam) for label in groups["reversed"]]
    for members, beams in ENSEMBLES.items():
        labels = [f"reversed-{seed}" for seed in range(members)]
        found[f"members{members}@{BEAM}"] = [place.find_translation(label, BEAM) for label in labels]
        found |= {f"ensemble{members}@{beam}": [place.find_translation(f"ensemble{members}", beam)] for beam in beams}
    if corpus == "multi30k":
        found["smt"] = [out / "smt" / "test.1best"]
        for way in ("average", "tuned"):
            for name in RESCORED:
                found[f"{way}:{name}"] = [place.folder / f"{way}-{label}.txt" for label in groups[name]]
            for name in ("ensemble5", "attention_ensemble3"):
                found[f"{way}:{name}"] = [place.folder / f"{way}-{name}.txt"]
        found["oracle"] = [place.folder / "oracle.txt"]
    return found


def read_lines(path: Path) -> list[str]:
    """Lines without their ends; only "\\n" ends one."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def check_same_tests(corpus: str, out: Path) -> None:
    """Refuses runs that were tested on other texts or have other vocabularies: their scores cannot be compared.

    Raises:
        UserError: names the runs.
    """
    place, first = Place(out, corpus), ""
    seen: dict[str, tuple[list[str], str]] = {}
    for run in list_runs((corpus,)):
        folder = run.find_folder(out)
        if not folder.results.exists():
            continue
        vocabulary = json.loads(folder.results.read_text(encoding="utf-8"))["vocab_sha256"]
        text = place.find_run(run.label) / "outputs" / "test.references.txt"
        seen[run.label] = (read_lines(text), vocabulary)
        first = first or run.label
        for what, one, other in zip(("test set", "vocabulary"), seen[first], seen[run.label], strict=True):
            if one != other:
                raise UserError(f"{folder.root}: has another {what} than {first}; move it away and run this again.")


def read_log_probs(path: Path, lines: int) -> np.ndarray:
    """Statistics of sentences for `significance.score_log_probs`: `[N, 2]`, negative log-probability and tokens.

    Raises:
        UserError: a sentence has no score, or there are not as many rows as the test set has lines.
    """
    rows: list[Mapping[str, float]] = [json.loads(line) for line in read_lines(path)]
    if len(rows) != lines:
        raise UserError(f"{path}: has {len(rows)} rows, but the test set has {lines}; remove it and run this again.")
    lost = [row["line"] for row in rows if row["log_prob"] is None]
    if lost:
        raise UserError(f"{path}: has no score of line {lost[0]}; the model could not read that sentence.")
    return np.array([(-row["log_prob"], row["tokens"]) for row in rows], np.float64)
