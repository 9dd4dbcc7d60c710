"""Training in bfloat16: what stays float32, read from the program before it is compiled."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from seq2seq_jax.config import default_config
from seq2seq_jax.experiment import Training, make_training

CASES = {
    "gnmt": {"name": "gnmt"},
    "gnmt, attention from the previous step": {"name": "gnmt", "attention_from": "previous_step"},
    "gnmt of peephole cells": {"name": "gnmt", "cell": "lstm_peephole", "cells": 12},
    "gnmt of normalised units": {"name": "gnmt", "cell": "gru", "layer_norm": True},
    "lstm": {"name": "lstm"},
    "language_model": {"name": "language_model"},
}
VOCAB, ROWS, SOURCE, TARGET = 19, 8, 6, 5


def train(case: dict) -> Training:
    """A model 8 wide that computes in bfloat16, trained on one device."""
    config = default_config(case["name"])
    config.model.update(case | {"features": 8, "dtype": "bfloat16"})
    config.parallel.data = 1
    return make_training(config, VOCAB, VOCAB)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_in_bfloat16_adds_up_and_keeps_in_float32(case):
    """A sum over rows or times in bfloat16 loses whole percents; differentiation makes one of every broadcast."""
    training = train(case)
    state, batch = training.abstract_state(), training.abstract_batch(ROWS, SOURCE, TARGET)
    lowered = training.train_step().lower(state, batch)
    text = lowered.as_text()
    products = re.findall(r"dot_general.*tensor<\w*xbf16>\) -> ", text)
    assert len(products) > 10
    assert not re.findall(r"stablehlo.reduce\(.*applies stablehlo.add.*bf16.*", text)
    assert not re.findall(r"stablehlo.(?:exponential|log|divide|sqrt).*bf16>", text)
    kept, sums = lowered.out_info
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((kept.params, kept.opt_state, sums))}
    assert dtypes == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
