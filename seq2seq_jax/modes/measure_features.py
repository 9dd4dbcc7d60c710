"""The mean and deviation of a corpus' features, measured once, before a training that normalises by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.corpora import Corpus
from seq2seq_jax.data.pipeline import build_batch
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.layers.frontend import log_mel, measure
from seq2seq_jax.speech_experiment import make_frontend
from seq2seq_jax.train.step import TrainState

UTTERANCES = 1000
"""About so many are measured; more would change nothing."""


def measure_features(experiment: Experiment, corpus: Corpus, state: TrainState) -> TrainState:
    """A fresh state with the mean and scale of the training's features in it (`audio.normalisation="global"`)."""
    frontend, plan = make_frontend(experiment.config), corpus.plan
    run = jax.jit(lambda waveform, mask: log_mel(frontend, waveform, mask))

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = 0
        for n in range(plan.batches_per_epoch):
            batch = build_batch(corpus.pairs, plan.batch(n))
            yield np.asarray(run(batch.source, batch.source_mask)), np.asarray(batch.source_mask)
            count += int(np.sum(batch.row_mask))
            if count >= UTTERANCES:
                return

    try:
        mean, scale = measure(read())
    except ValueError as error:
        raise UserError(f"config.data.train: none of the first clips can be read ({error}).") from error

    def put(params: PyTree) -> PyTree:
        if params is None:
            return None
        old = params["frontend"]
        new = {
            name: jax.device_put(jnp.asarray(value, old[name].dtype), old[name].sharding)
            for name, value in (("mean", mean), ("scale", scale))
        }
        return {**params, "frontend": new}

    return dataclasses.replace(state, params=put(state.params), ema=put(state.ema))
