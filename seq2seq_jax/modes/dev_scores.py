"""The scores on dev while a run trains."""

from __future__ import annotations

from collections.abc import Callable

import jax

from seq2seq_jax.corpora import DEV_SHAPES, Corpus
from seq2seq_jax.data.pipeline import build_batch
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.evaluate.text import corpus_scores
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.modes.scoring import get_references
from seq2seq_jax.parallel.hosts import Hosts
from seq2seq_jax.parallel.shard import place_batch, rows_here
from seq2seq_jax.train.loop import CompiledStep
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState


def make_dev_evaluation(
    experiment: Experiment, corpus: Corpus, dev: ParallelText, stop: StopSignal, hosts: Hosts
) -> Callable[[TrainState], dict[str, float]]:
    """Builds `evaluate(state) -> {"loss", "perplexity", "bleu"}` on dev."""
    config = experiment.config
    search = experiment.training.make_search(config.evaluate.dev_beam_size, method="beam")
    engine = experiment.engine(search, attention="none")  # the texts alone are read
    translator = experiment.translator(method="beam", tags=dev.tags, engine=engine)
    count = config.evaluate.dev_sentences or len(dev)
    sums_of = CompiledStep(
        experiment.training.dev_sums(), shapes=DEV_SHAPES, tell=lambda line: None, meet=lambda: hosts.gather("dev")
    )
    plan, mesh = corpus.dev_plan, experiment.training.mesh

    def poll() -> None:
        stop.check("during an evaluation")

    def score(texts: list[str], references: list[str]) -> float:
        return float(corpus_scores(texts, references, target=dev.languages[1], lowercase_tokenized=False)["bleu"])

    def evaluate(state: TrainState) -> dict[str, float]:
        nll = weight = 0.0
        for n in range(plan.batches_per_epoch):
            poll()
            planned = plan.batch(n)
            batch = build_batch(corpus.dev, planned, rows=rows_here(mesh, planned.shape.rows))
            sums = jax.device_get(sums_of(state.averaged, place_batch(batch, mesh)))
            nll, weight = nll + float(sums["nll"]), weight + float(sums["weight"])
        hosts.gather("dev")
        found = translator.translate(state.averaged, dev.source[:count], poll=poll)
        engine.forget()  # the next step rewrites these parameters
        texts, references = [item.text for item in found], get_references(dev)[:count]
        mean = nll / max(weight, 1.0)
        return {
            "loss": mean,
            "perplexity": float(min(2.718281828459045 ** min(mean, 50.0), 1e9)),
            "bleu": hosts.share("bleu", lambda: score(texts, references)),
        }

    return evaluate
