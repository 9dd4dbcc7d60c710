"""The scores on dev while a run trains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from seq2seq_jax.config import has_search
from seq2seq_jax.corpora import Corpus
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.evaluate.speech import speech_scores
from seq2seq_jax.evaluate.text import corpus_scores
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.failpoints import reach
from seq2seq_jax.modes.measuring import Measure, make_measure
from seq2seq_jax.modes.recognising import GROUP, make_recogniser
from seq2seq_jax.modes.scoring import get_references
from seq2seq_jax.parallel.hosts import Hosts
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState


def make_dev_evaluation(
    experiment: Experiment, corpus: Corpus, dev: ParallelText, stop: StopSignal, hosts: Hosts
) -> Callable[[TrainState], dict[str, float]]:
    """Builds `evaluate(state) -> {"loss", "perplexity", "bleu"}` on dev.

    With "accuracy" in the place of the last where nothing is searched; of speech {"loss", "wer", "cer"}.
    """
    config = experiment.config

    def poll() -> None:
        stop.check("during an evaluation")

    measure = make_measure(experiment, corpus.dev, corpus.dev_plan, hosts, poll=poll)
    if not has_search(config.model):

        def fill(state: TrainState) -> dict[str, float]:
            found = measure(state.averaged)
            reach("evaluate", int(state.step))
            return {name: found[name] for name in ("loss", "perplexity", "accuracy")}

        return fill
    if reads_speech(config.model):
        return _make_speech_evaluation(experiment, corpus, dev, measure, poll, hosts)
    search = experiment.training.make_search(config.evaluate.dev_beam_size, method="beam")
    engine = experiment.engine(search, attention="none")  # the texts alone are read
    translator = experiment.translator(method="beam", tags=dev.tags, engine=engine)
    count = config.evaluate.dev_sentences or len(dev)

    def score(texts: list[str], references: list[str]) -> float:
        return float(corpus_scores(texts, references, target=dev.languages[1], lowercase_tokenized=False)["bleu"])

    def evaluate(state: TrainState) -> dict[str, float]:
        found = measure(state.averaged)
        reach("evaluate", int(state.step))
        outputs = translator.translate(state.averaged, dev.source[:count], poll=poll)
        engine.forget()  # the next step rewrites these parameters
        texts, references = [item.text for item in outputs], get_references(dev)[:count]
        bleu = hosts.share("bleu", lambda: score(texts, references))
        return {"loss": found["loss"], "perplexity": found["perplexity"], "bleu": bleu}

    return evaluate


def _make_speech_evaluation(
    experiment: Experiment,
    corpus: Corpus,
    dev: ParallelText,
    measure: Measure,
    poll: Callable[[], None],
    hosts: Hosts,
) -> Callable[[TrainState], dict[str, float]]:
    """The same of speech: the loss, and errors of words and characters."""
    config = experiment.config
    count = config.evaluate.dev_sentences or len(dev)
    recogniser = make_recogniser(experiment, beam_size=config.evaluate.dev_beam_size, method="beam")
    references = get_references(dev)[:count]

    def evaluate(state: TrainState) -> dict[str, float]:
        found, texts = measure(state.averaged), []
        reach("evaluate", int(state.step))
        for first in range(0, len(references), GROUP):
            held, _ = corpus.dev.read(np.arange(first, min(first + GROUP, len(references))))
            sources = [held[n] for n in range(len(held))]
            texts += [item.text for item in recogniser.recognise(state.averaged, sources, first=first, poll=poll)]
        recogniser.engine.forget()  # the next step rewrites these parameters
        scores = hosts.share("wer", lambda: speech_scores(texts, references))
        return {"loss": found["loss"], "wer": float(scores["wer"]), "cer": float(scores["cer"])}

    return evaluate
