"""The step of sequence-level training, put together from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.evaluate.rewards import make_reward
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import Array, Batch, PyTree
from seq2seq_jax.parallel.shard import batch_sharding
from seq2seq_jax.tasks.methods import IDS, make_method
from seq2seq_jax.tasks.search import make_decode
from seq2seq_jax.tasks.sequence import Judge, make_propose
from seq2seq_jax.train.loop import Step
from seq2seq_jax.train.sequence import SequenceStep, batch_key


def make_sequence_step(
    experiment: Experiment,
    step: Step,
    *,
    shapes: int,
    tell: Callable[[str], None],
    meet: Callable[[], object] = lambda: None,
) -> SequenceStep:
    """Puts proposals and rewards before a step; see `config.sequence`.

    Args:
        experiment: the run's.
        step: what takes its updates, from batches with candidates.
        shapes, tell, meet: see `train.loop.CompiledStep`.
    """
    config, training = experiment.config, experiment.training
    objective = training.objective
    if objective is None:
        raise ValueError("`sequence.objective` must not be 'none' here.")
    sharding = batch_sharding(training.mesh)

    def place(array: np.ndarray) -> Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return SequenceStep(
        jit_propose(experiment),
        Judge(experiment.vocabs.target, make_reward(config.sequence.reward, target=config.data.target), objective),
        place,
        step,
        accumulate=config.train.accumulate,
        shapes=shapes,
        tell=tell,
        meet=meet,
    )


def jit_propose(experiment: Experiment) -> Any:
    """The jitted `propose(params, number of the batch, batch)` of a config; what it finds is on all hosts."""
    config, training = experiment.config, experiment.training
    count, seed = config.sequence.candidates, config.train.seed
    search = training.make_search()
    if config.sequence.proposals == "sample":  # the model's own distribution, whatever is decoded with
        draws = Draws(samples=count, **IDS)
        search = dataclasses.replace(search, method=draws, shortest_factor=0.0, shortest_extra=0)
    else:
        search = dataclasses.replace(search, method=make_method(config.decode, method="beam", size=count))
    propose = make_propose(make_decode(training.program, search, attention=False))

    def numbered(params: PyTree, number: Array, batch: Batch) -> Any:
        return propose(params, batch, batch_key(seed, number))

    return jax.jit(numbered, out_shardings=NamedSharding(training.mesh, PartitionSpec()))
