"""The candidates of one step of a beam search, counted by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from seq2seq_jax.decode.candidates import list_candidates
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.interfaces import StepResult

EOS = 3


def test_the_best_come_first_then_what_has_to_be_said_whatever_its_number() -> None:
    """Two hypotheses of one row: the first has to say tokens 0 and 5, the second, which is among its best, 2."""
    log_probs = np.log([[[0.05, 0.3, 0.25, 0.15, 0.2, 0.05], [0.1, 0.2, 0.4, 0.1, 0.1, 0.1]]])
    result = StepResult(
        jnp.asarray(log_probs, jnp.float32),
        None,
        {},
        wanted=jnp.asarray([[[0, 5], [2, -1]]], jnp.int32),
        wanted_met=jnp.asarray([[[1, 2], [3, 0]]], jnp.int32),
        met=jnp.asarray([[0, 2]], jnp.int32),
    )
    found = list_candidates(
        result,
        Ranking("gnmt"),
        eos_id=EOS,
        forbidden=(),
        alive=jnp.ones((1, 2), bool),
        may_end=jnp.ones(1, bool),
        must_end=jnp.zeros(1, bool),
        vocab_axes=(),
    )
    best = found.tokens.shape[-1] - 2
    for k, (tokens, banks) in enumerate([([1, 2, 4], [0, 0, 0]), ([2, 1], [3, 2])]):
        np.testing.assert_array_equal(found.tokens[0, k, : len(tokens)], tokens)
        np.testing.assert_array_equal(found.banks[0, k, : len(tokens)], banks)
    np.testing.assert_array_equal(found.tokens[0, 0, best:], [0, 5])
    np.testing.assert_array_equal(found.banks[0, :, best:], [[1, 2], [3, 0]])
    np.testing.assert_allclose(found.log_probs[0, 0, best:], np.log([0.05, 0.05]), rtol=1e-6)
    assert np.isneginf(found.log_probs[0, 1, best:]).all(), "2 is a candidate already, -1 is none"
