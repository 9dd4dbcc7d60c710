"""What the papers found, and what this study finds: systems, perplexities, and every claim with its test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from runs import SEEDS, Run, list_runs, read_results
from scores import COMPARED, Place, check_same_tests, find_systems, list_stale, read_lines, read_log_probs
from significance import (
    RESAMPLES,
    Score,
    choose_metric,
    correct,
    draw_counts,
    find_effect,
    find_interval,
    judge,
    score_log_probs,
)

from seq2seq_jax.errors import UserError

SYSTEMS: dict[str, tuple[str, float | None]] = {
    "forward@12": ("single LSTM, source in its order, beam 12", 26.17),
    "reversed@1": ("single LSTM, source reversed, beam 1", None),
    "reversed@2": ("single LSTM, source reversed, beam 2", None),
    "reversed@12": ("single LSTM, source reversed, beam 12", 30.59),
    "ensemble5@1": ("5 LSTMs, source reversed, beam 1", 33.00),
    "ensemble2@12": ("2 LSTMs, source reversed, beam 12", 33.27),
    "ensemble3@12": ("3 LSTMs, source reversed, beam 12", None),
    "ensemble5@2": ("5 LSTMs, source reversed, beam 2", 34.50),
    "ensemble5@12": ("5 LSTMs, source reversed, beam 12", 34.81),
    "layers1@12": ("single LSTM of 1 layer, beam 12", None),
    "layers4@12": ("single LSTM of 4 layers, beam 12", None),
    "attention@12": ("single model with attention, beam 12", 26.75),
    "smt": ("phrase-based system", 33.30),
    "average:forward": ("its lists, even average with one LSTM, source in its order", 35.61),
    "average:reversed": ("its lists, even average with one LSTM, source reversed", 35.85),
    "average:ensemble5": ("its lists, even average with 5 LSTMs, source reversed", 36.5),
    "average:attention": ("its lists, even average with one model with attention", None),
    "average:attention_ensemble3": ("its lists, even average with 3 models with attention", None),
    "tuned:forward": ("its lists, tuned weights, one LSTM, source in its order", None),
    "tuned:reversed": ("its lists, tuned weights, one LSTM, source reversed", None),
    "tuned:ensemble5": ("its lists, tuned weights, 5 LSTMs, source reversed", None),
    "tuned:attention": ("its lists, tuned weights, one model with attention", None),
    "tuned:attention_ensemble3": ("its lists, tuned weights, 3 models with attention", None),
    "oracle": ("its lists, the best choice there is", 45.0),
}
"""Key → what it is, and its BLEU in the papers (WMT 2014, English to French)."""

PERPLEXITIES: dict[str, tuple[str, float | None]] = {
    "forward": ("2 layers, source in its order", 5.8),
    "reversed": ("2 layers, source reversed", 4.7),
    "layers1": ("1 layer, source reversed", None),
    "layers4": ("4 layers, source reversed", None),
    "attention": ("attention", None),
}
"""The same for the perplexity of the test set's references."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be tested: the systems `after` are better than those `before`.

    Attributes:
        text: the claim.
        measure: "bleu" or "perplexity".
        before, after: keys of systems (`scores.find_systems`), or names of models.
        paper: what the paper has for the two, or its effect in words; "" where it only says so.
        layers: by so many the two differ, where the claim is about each of them.
    """

    text: str
    measure: str
    before: str
    after: str
    paper: str = ""
    layers: int = 1

    @property
    def key(self) -> str:
        """Its name in tables.json."""
        return f"{self.measure}: {self.before} to {self.after}"


CLAIMS = (
    Claim("reversing the source lowers perplexity", "perplexity", "forward", "reversed", "5.8 → 4.7 (-19 %)"),
    Claim("reversing the source raises BLEU", "bleu", "forward@12", "reversed@12", "26.17 → 30.59 (+4.42)"),
    Claim("a second layer lowers perplexity", "perplexity", "layers1", "reversed", "nearly -10 % a layer"),
    Claim("two more layers lower perplexity (each)", "perplexity", "reversed", "layers4", "nearly -10 % a layer", 2),
    Claim("a second layer raises BLEU", "bleu", "layers1@12", "reversed@12"),
    Claim("two more layers raise BLEU", "bleu", "reversed@12", "layers4@12"),
    Claim("a beam of 2 does better than greedy search", "bleu", "reversed@1", "reversed@2"),
    Claim("a beam of 12 does better than one of 2", "bleu", "reversed@2", "reversed@12"),
    Claim("5 models: a beam of 2 beats greedy search", "bleu", "ensemble5@1", "ensemble5@2", "33.00 → 34.50 (+1.50)"),
    Claim("5 models: a beam of 12 beats one of 2", "bleu", "ensemble5@2", "ensemble5@12", "34.50 → 34.81 (+0.31)"),
    Claim("2 models beat one", "bleu", "members2@12", "ensemble2@12", "30.59 → 33.27 (+2.68)"),
    Claim("3 models beat one", "bleu", "members3@12", "ensemble3@12"),
    Claim("5 models beat one", "bleu", "members5@12", "ensemble5@12", "30.59 → 34.81 (+4.22)"),
    Claim("5 models beat 2", "bleu", "ensemble2@12", "ensemble5@12", "33.27 → 34.81 (+1.54)"),
    Claim("5 models with a beam of 2 beat one with 12", "bleu", "members5@12", "ensemble5@2", "30.59 → 34.50 (+3.91)"),
    Claim("attention raises BLEU", "bleu", "reversed@12", "attention@12", "17.82 → 26.75 (+8.93)"),
    Claim("attention lowers perplexity", "perplexity", "reversed", "attention"),
    Claim("5 LSTMs beat the phrase-based system", "bleu", "smt", "ensemble5@12", "33.30 → 34.81 (+1.51)"),
    Claim("the phrase-based system beats one LSTM", "bleu", "reversed@12", "smt", "30.59 → 33.30 (+2.71)"),
    Claim("even average, one LSTM in order", "bleu", "smt", "average:forward", "33.30 → 35.61 (+2.31)"),
    Claim("even average, one LSTM reversed", "bleu", "smt", "average:reversed", "33.30 → 35.85 (+2.55)"),
    Claim("even average, 5 LSTMs reversed", "bleu", "smt", "average:ensemble5", "33.30 → 36.5 (+3.2)"),
    Claim("even average, one model with attention", "bleu", "smt", "average:attention"),
    Claim("even average, 3 models with attention", "bleu", "smt", "average:attention_ensemble3"),
    Claim("tuned weights, one LSTM in order", "bleu", "smt", "tuned:forward"),
    Claim("tuned weights, one LSTM reversed", "bleu", "smt", "tuned:reversed"),
    Claim("tuned weights, 5 LSTMs reversed", "bleu", "smt", "tuned:ensemble5"),
    Claim("tuned weights, one model with attention", "bleu", "smt", "tuned:attention"),
    Claim("tuned weights, 3 models with attention", "bleu", "smt", "tuned:attention_ensemble3"),
)


def find_results(corpus: str, out: Path) -> dict[str, Any]:
    """Everything that can be said of a corpus by what is finished; "missing" names what could not be.

    Raises:
        UserError: runs are not of one test set and vocabulary, or files differ in length.
    """
    check_same_tests(corpus, out)
    stale = list_stale(corpus, out)
    place, metric = Place(out, corpus), choose_metric(corpus)
    runs = [run for run in list_runs((corpus,)) if run.find_folder(out).results.exists()]
    missing = [f"training {run.label}" for run in list_runs((corpus,)) if run not in runs]
    found: dict[str, Any] = {"metric": {"name": metric.name, "signature": metric.signature, "resamples": RESAMPLES}}
    if not place.find_text("references").exists():
        return {**found, "missing": missing, "runs": {}, "systems": {}, "perplexities": {}, "comparisons": []}
    references = read_lines(place.find_text("references"))
    found["metric"]["sentences"] = len(references)
    counts = draw_counts(len(references))
    ours: dict[Path, np.ndarray] = {}  # statistics of a file of translations: members are of several groups
    bleu: dict[str, list[np.ndarray]] = {}
    for key, files in find_systems(corpus, out).items():
        if lost := [path for path in files if path in stale or not path.exists()]:
            missing.append(f"{key}: {_tell_lost(lost[0], out)}")
            continue
        for path in files:
            if path not in ours:
                ours[path] = metric.count(_read_equal(path, len(references)), references)
        bleu[key] = [ours[path] for path in files]
    nats: dict[str, list[np.ndarray]] = {}
    for name in SEEDS:
        paths = [place.find_log_probs(f"{name}-{seed}") for seed in range(COMPARED)]
        if lost := [path for path in paths if path in stale]:
            missing.append(f"perplexity of {name}: {_tell_lost(lost[0], out)}")
            continue
        nats[name] = [read_log_probs(path, len(references)) for path in paths]
    found |= {"missing": missing, "runs": {run.label: _describe_run(run, out) for run in runs}}
    found["systems"] = {key: _sum_up(key, bleu[key], metric.score, counts) for key in SYSTEMS if key in bleu}
    found["perplexities"] = {name: _tell_perplexity(name, nats[name]) for name in PERPLEXITIES if name in nats}
    sides = {"bleu": (bleu, metric.score), "perplexity": (nats, score_log_probs)}
    comparisons = [
        check_claim(claim, systems[claim.before], systems[claim.after], score, counts)
        for claim in CLAIMS
        for systems, score in [sides[claim.measure]]
        if claim.before in systems and claim.after in systems
    ]
    return {**found, "comparisons": judge_claims(comparisons)}


def _tell_lost(path: Path, out: Path) -> str:
    name = path.relative_to(out)
    return f"{name} is older than what it is made of" if path.exists() else f"no {name}"


def _read_equal(path: Path, lines: int) -> list[str]:
    found = read_lines(path)
    if len(found) != lines:
        raise UserError(f"{path}: has {len(found)} lines, but the test set has {lines}; remove it and run this again.")
    return found


def _describe_run(run: Run, out: Path) -> dict[str, Any]:
    """What results.json says of a run."""
    results = read_results(run, out)
    kept = {key: results.get(key) for key in ("parameters", "steps", "wall_seconds", "train_loss", "tokens_per_second")}
    return kept | {f"results_{key}": results["test"].get(key) for key in ("bleu", "chrf", "bleu_tokenized_lowercase")}


def _sum_up(key: str, systems: Sequence[np.ndarray], score: Score, counts: np.ndarray) -> dict[str, Any]:
    """Scores of a group, their mean and standard deviation over seeds, and the interval of the mean."""
    label, paper = SYSTEMS[key]
    scores = [float(score(system.sum(axis=0))) for system in systems]
    return {"label": label, **_spread(scores), "interval": find_interval(systems, score, counts), "paper": paper}


def _tell_perplexity(name: str, systems: Sequence[np.ndarray]) -> dict[str, Any]:
    """Perplexities of seeds; their mean is the geometric one, as in claims: that of nats a token."""
    label, paper = PERPLEXITIES[name]
    nats = [float(score_log_probs(system.sum(axis=0))) for system in systems]
    spread = _spread([math.exp(each) for each in nats]) | {"mean": math.exp(float(np.mean(nats)))}
    return {"label": label, **spread, "tokens": int(systems[0][:, 1].sum()), "paper": paper}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"values": list(values), "mean": float(np.mean(values)), "std": deviation}


def check_claim(
    claim: Claim, before: Sequence[np.ndarray], after: Sequence[np.ndarray], score: Score, counts: np.ndarray
) -> dict[str, Any]:
    """A claim beside what is found; effects on perplexity are in per cent, of each layer where it speaks of several."""
    effect = find_effect(before, after, score, counts)
    told: dict[str, Any] = {"key": claim.key, "claim": claim.text, "measure": claim.measure, "paper": claim.paper}
    told |= {"before": claim.before, "after": claim.after}
    perplexity = claim.measure == "perplexity"

    def change(difference: float) -> float:
        # Nats a token differ by the logarithm of how perplexities (the seeds' geometric means) are to each other.
        return 100.0 * (math.exp(difference / claim.layers) - 1.0) if perplexity else difference

    sides = (math.exp(effect.before), math.exp(effect.after)) if perplexity else (effect.before, effect.after)
    told |= {"before_value": sides[0], "after_value": sides[1], "effect": change(effect.effect)}
    told |= {"interval": [change(end) for end in effect.interval], "p": effect.p}
    return told | {"pairs": [change(pair) for pair in effect.pairs]}


def judge_claims(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `check_claim` has found of the claims of a corpus, with p corrected for their number, and verdicts by it."""
    found = []
    for claim, p in zip(claims, correct([claim["p"] for claim in claims]), strict=True):
        wanted = -1 if claim["measure"] == "perplexity" else 1
        verdict = judge(claim["effect"], p, claim["pairs"], wanted=wanted)
        found.append({**claim, "p_corrected": p, "verdict": verdict})
    return found
