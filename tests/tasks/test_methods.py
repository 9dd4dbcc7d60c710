"""The method of search that a config's keys ask for."""

import dataclasses

import pytest

from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.ranking import PRESETS
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.errors import UserError
from seq2seq_jax.keys import DEFAULTS
from seq2seq_jax.tasks.methods import check_count, make_method, make_ranking


def keys(**changed):
    assert set(changed) <= set(DEFAULTS["decode"])
    return DEFAULTS["decode"] | changed


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_what_is_not_set_is_the_preset_s(preset):
    assert make_ranking(keys(preset=preset)) == PRESETS[preset]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length_penalty", -0.5),
        ("length_penalty", -2.0),
        ("length_penalty", 0.0),
        ("word_bonus", -0.2),
        ("word_bonus", 0.4),
        ("coverage_penalty", 0.0),
        ("prune", 0.0),
    ],
)
def test_what_is_set_goes_before_the_preset(key, value):
    changed = make_ranking(keys(preset="gnmt", **{key: value}))
    assert changed == dataclasses.replace(PRESETS["gnmt"], **{key: value})


@pytest.mark.parametrize(("asked", "size"), [(None, 6), (2, 3), (3, 3), (4, 6), (5, 6), (7, 9)])
def test_groups_are_kept_at_every_size(asked, size):
    made = make_method(keys(beam_size=6, groups=3, diversity=0.7), size=asked)
    assert isinstance(made, Beam) and (made.size, made.groups, made.diversity) == (size, 3, 0.7)


@pytest.mark.parametrize(
    ("changed", "asked"),
    [({"beam_size": 1}, None), ({}, 1), ({"groups": 5}, 1), ({"method": "greedy"}, 5), ({"method": "greedy"}, None)],
    ids=str,
)
def test_one_beam_is_greedy(changed, asked):
    made = make_method(keys(preset="gnmt", **changed), size=asked)
    assert isinstance(made, Draws) and (made.samples, made.temperature) == (1, 0.0)


def test_minimum_bayes_risk_has_its_own_size():
    asked = keys(method="minimum_bayes_risk", candidates_from="beam", candidates=8, groups=4)
    beam, draws = make_method(asked, size=3), make_method(keys(method="minimum_bayes_risk", candidates=8))
    assert isinstance(beam, Beam) and (beam.size, beam.groups) == (8, 4)
    assert isinstance(draws, Draws) and draws.samples == 8
    other = make_method(asked, method="beam")  # of 5, what back-translation uses
    assert isinstance(other, Beam) and (other.size, other.groups) == (8, 4)


def test_more_outputs_than_a_method_finds_are_refused():
    for method in ("beam", "sampling"):
        check_count(keys(method=method), 40, "--nbest")
    check_count(keys(method="greedy"), 1, "--nbest")
    check_count(keys(method="minimum_bayes_risk", candidates=8), 8, "--nbest")
    for changed, count, told in (
        ({"method": "greedy"}, 2, r"--nbest must be at most 1 with config\.decode\.method='greedy', but is 2"),
        ({"method": "minimum_bayes_risk", "candidates": 8}, 9, r"--nbest must be at most .*candidates=8 .* but is 9"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            check_count(keys(**changed), count, "--nbest")
        assert "\n" not in str(refused.value)
