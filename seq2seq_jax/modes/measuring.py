"""How well a model knows given texts: loss and perplexity, without a search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from seq2seq_jax.corpora import DEV_SHAPES, plan_in_order
from seq2seq_jax.data.pipeline import Pairs, build_batch, tokenise
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.parallel.hosts import Hosts
from seq2seq_jax.parallel.shard import place_batch, rows_here
from seq2seq_jax.train.checkpoints import Restored
from seq2seq_jax.train.loop import CompiledStep

Measure = Callable[[PyTree], dict[str, float]]
"""`measure(params) -> {"loss", "perplexity", "accuracy", "tokens"}` of a text."""


def make_measure(
    experiment: Experiment, pairs: Pairs, plan: BatchPlan, hosts: Hosts, *, poll: Callable[[], None]
) -> Measure:
    """Builds what measures a text; its loss is that of training without dropout and label smoothing.

    Args:
        experiment: of the model.
        pairs, plan: the text as tokens and their batches, all of one epoch.
        hosts: which take their rows of every batch.
        poll: called before each batch; may raise to stop.
    """
    sums_of = CompiledStep(
        experiment.training.dev_sums(), shapes=DEV_SHAPES, tell=lambda line: None, meet=lambda: hosts.gather("dev")
    )
    mesh = experiment.training.mesh

    def measure(params: PyTree) -> dict[str, float]:
        total = dict.fromkeys(("nll", "correct", "weight"), 0.0)
        for n in range(plan.batches_per_epoch):
            poll()
            planned = plan.batch(n)
            batch = build_batch(pairs, planned, rows=rows_here(mesh, planned.shape.rows))
            sums = jax.device_get(sums_of(params, place_batch(batch, mesh)))
            total = {name: value + float(sums.get(name, 0.0)) for name, value in total.items()}
        hosts.gather("dev")
        tokens = max(total["weight"], 1.0)
        mean = total["nll"] / tokens
        perplexity = min(math.exp(min(mean, 50.0)), 1e9)
        return {"loss": mean, "perplexity": perplexity, "accuracy": total["correct"] / tokens, "tokens": tokens}

    return measure


def measure_test(
    experiment: Experiment, chosen: Restored, test: ParallelText, hosts: Hosts, *, poll: Callable[[], None]
) -> dict[str, Any]:
    """The scores of a masked language model on test, as `results.json` has them: the loss of its hidden tokens."""
    started = time.monotonic()
    pairs = tokenise(test, experiment.vocabs, test.tags)
    plan = plan_in_order(experiment.config, pairs)
    found = make_measure(experiment, pairs, plan, hosts, poll=poll)(chosen.state.averaged)
    share = experiment.config.masked.share
    scores = {"loss": found["loss"], "perplexity": found["perplexity"], "accuracy": found["accuracy"]}
    told = {"hidden_tokens": int(found["tokens"]), "search": f"{share:.0%} of the tokens hidden", "samples": []}
    counts = {"sentences": plan.examples_per_epoch, "step": chosen.step}
    return {**scores, **told, **counts, "seconds": round(time.monotonic() - started, 1)}
