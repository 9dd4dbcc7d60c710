"""What of an experiment is speech's own: the front end, the augmentation, what searches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID
from seq2seq_jax.decode.ctc_prefix import Labels, ctc_decoder, join_ctc
from seq2seq_jax.decode.steps import Decoder, seq2seq_decoder
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, PyTree, Seq2Seq
from seq2seq_jax.layers.frontend import Frontend
from seq2seq_jax.layers.spec_augment import POLICIES, Policy, augment, make_keys
from seq2seq_jax.parallel.layout import Execution, Layout
from seq2seq_jax.tasks.search import Program

FRONT_END = (
    "rate", "hop", "window", "fft", "mels", "low", "high", "mel_scale", "log", "normalisation", "preemphasis",
)  # fmt: skip
OWN_POLICY = ("time_warp", "freq_masks", "freq_width", "time_masks", "time_width", "time_share")

LEAST_FRAMES = 16
"""Frames of the utterance that parameters are made with."""


def make_frontend(config: ConfigDict) -> Frontend:
    """From waveforms to features, as `config.audio` says.

    Raises:
        UserError: they cannot be.
    """
    try:
        return Frontend(**{name: config.audio[name] for name in FRONT_END})
    except ValueError as error:  # which has the fields' names, as the keys are called
        raise UserError(re.sub(r"`(\w+)`", r"config.audio.\1", str(error))) from error


def make_augment(config: ConfigDict) -> Callable[[Array, Array, Array, Array], Array] | None:
    """SpecAugment as `config.audio` says: of features, their mask, and the epochs and ids of examples; None without."""
    keys = config.audio
    if keys.augment == "none":
        return None
    own = Policy(**{name: keys[name] for name in OWN_POLICY})
    policy, seed = own if keys.augment == "own" else POLICIES[keys.augment], config.train.seed

    def run(features: Array, mask: Array, epochs: Array, example_ids: Array) -> Array:
        return augment(features, mask, make_keys(seed, epochs, example_ids), policy)

    return run


def make_speech_program(model: nn.Module, layout: Layout, boxed: PyTree, keys: ConfigDict) -> Program:
    """The program of a model that hears: by its speller, by CTC, or by both.

    Args:
        model: see `tasks.search.model_program`.
        layout, boxed: likewise.
        keys: `config.decode`.
    """

    def build(execution: Execution) -> Decoder:
        here = model.clone(execution=execution)
        shared: dict[str, Any] = {"vocab_axes": execution.vocabulary.axes, "vocab_size": here.config.target_vocab}
        labels = Labels(bos_id=BOS_ID, eos_id=EOS_ID, **shared)
        if not isinstance(here, Seq2Seq):
            return ctc_decoder(here, labels)
        decoder = seq2seq_decoder(here, **shared)
        if not keys.ctc_weight:
            return decoder
        return join_ctc(decoder, here, keys.ctc_weight, labels)

    return Program(build, layout, boxed)
