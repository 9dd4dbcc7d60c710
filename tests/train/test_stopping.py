"""Early stopping: counted by hand over lists of scores, across restarts, and with other numbers than before."""

from __future__ import annotations

import json
import math

import pytest

from seq2seq_jax.train.stopping import Evaluations


def follow(scores, *, metric="bleu", patience=2, restart_at=()):
    """The step that training ends at when it is evaluated every 10 steps, or None; may be restarted in between."""
    evaluations = Evaluations(metric, patience=patience)
    for n, value in enumerate(scores, 1):
        if evaluations.is_over():
            return 10 * (n - 1)
        if n in restart_at:
            evaluations = Evaluations(metric, patience=patience, past=json.loads(json.dumps(evaluations.record())))
        evaluations.add(10 * n, {metric: value, "perplexity": 3.0})
    return 10 * len(scores) if evaluations.is_over() else None


NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "patience", "end"),
    [
        ([1, 2, 3, 4, 5, 6], 2, None),
        ([1, 3, 2, 2, 9, 9], 2, 40),
        ([1, 3, 2, 4, 2, 2], 2, 60),  # a better one begins the count anew
        ([1, 3, 3, 3, 9], 2, 40),  # an equal one is no better
        ([5, 4, 9], 1, 20),
        ([NAN, NAN, 5], 2, 20),
        ([1, NAN, 2, NAN, 3], 2, None),
        ([9, 8, 7, 6, 5], 0, None),  # off
    ],
)
def test_training_ends_after_so_many_scores_in_a_row_that_are_no_better(scores, patience, end):
    assert follow(scores, patience=patience) == end
    for kill in range(2, len(scores) + 1):
        assert follow(scores, patience=patience, restart_at=(kill,)) == end
    assert follow(scores, patience=patience, restart_at=range(2, 99)) == end
    assert follow([-value for value in scores], metric="loss", patience=patience) == end  # a smaller loss is better


def test_more_patience_or_more_steps_let_it_go_on():
    evaluations = Evaluations(patience=2)
    for step, bleu in ((10, 5.0), (20, 4.0), (30, 3.0)):
        evaluations.add(step, {"bleu": bleu, "loss": 1.0})
    assert evaluations.is_over() and evaluations.best() == (10, 5.0)
    assert "better than 5.000 of step 10 in 2 evaluations" in evaluations.describe()
    assert not Evaluations(patience=3, past=evaluations.record()).is_over()
    assert Evaluations("loss", patience=2, past=evaluations.record()).is_over()
    again = Evaluations(patience=2, past=evaluations.record())
    again.be_patient_again(30)
    for step, bleu, over in ((40, 4.9, False), (50, 4.8, True)):  # two more, and neither is better than all before
        assert not again.is_over()
        again.add(step, {"bleu": bleu})
        again = Evaluations(patience=2, past=again.record())
        assert again.is_over() == over
