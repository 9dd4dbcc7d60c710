"""The power law's fit against laws whose numbers are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "scaling"


def load(name):
    """A file of the study; it is no package, its files stand beside each other."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return __import__(name)


fit = load("fit")
SIZES = np.geomspace(1e4, 1e7, 10)


@pytest.mark.parametrize(
    "floor, scale, exponent",
    [(1.69, 406.4, 0.34), (0.5, 30.0, 0.15), (2.0, 5e5, 1.2)],
    ids=["hoffmann", "flat", "steep"],
)
def test_exact_points_give_the_law_back(floor, scale, exponent):
    law = fit.fit_power_law(SIZES, floor + scale * SIZES**-exponent, resamples=20)
    np.testing.assert_allclose(
        [law.floor.value, law.scale.value, law.exponent.value], [floor, scale, exponent], rtol=0.01
    )
    np.testing.assert_allclose([law.exponent.low, law.exponent.high], exponent, rtol=0.02)
    np.testing.assert_allclose(law.predict(SIZES), floor + scale * SIZES**-exponent, rtol=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(8):
        noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(SIZES)))
        law = fit.fit_power_law(SIZES, (1.69 + 406.4 * SIZES**-0.34) * noise, resamples=25, seed=seed)
        assert law.exponent.low <= law.exponent.value <= law.exponent.high
        held += law.exponent.low <= 0.34 <= law.exponent.high
    assert held >= 6, f"a 90 % interval held the truth {held} times of 8"


def test_one_wild_point_moves_little():
    loss = 1.69 + 406.4 * SIZES**-0.34
    loss[4] *= 1.5
    law = fit.fit_power_law(SIZES, loss, resamples=5)
    assert abs(law.exponent.value - 0.34) < 0.03


def test_the_same_seed_gives_the_same_intervals():
    loss = (1.0 + 50 * SIZES**-0.3) * np.exp(0.02 * np.random.default_rng(3).standard_normal(len(SIZES)))
    assert fit.fit_power_law(SIZES, loss, resamples=5) == fit.fit_power_law(SIZES, loss, resamples=5)
    assert fit.fit_power_law(SIZES, loss, resamples=5) != fit.fit_power_law(SIZES, loss, resamples=5, seed=1)


def test_too_few_points_give_a_sentence_and_no_number():
    assert "5 different points, and there are 4" in fit.fit_power_law([1, 2, 3, 4, 4], [5, 4, 3, 2, 2.1])
    assert "not a positive number" in fit.fit_power_law([1, 2, 3, 4, 5], [5, 4, float("nan"), 2, 1])


def test_a_law_without_a_floor_gets_none():
    law = fit.fit_power_law(SIZES, 30 * SIZES**-0.15, resamples=5)
    assert law.floor.value == 0 and any("no floor" in doubt for doubt in law.warnings)
    assert abs(law.exponent.value - 0.15) < 0.0015


def test_doubts_are_told():
    near = np.geomspace(1e5, 2e5, 6)
    law = fit.fit_power_law(near, 1 + 100 * near**-0.4, resamples=5)
    assert any("factor of 2.0 only" in doubt for doubt in law.warnings)


def test_frontier_keeps_what_no_cheaper_point_beats():
    assert fit.find_frontier([3, 1, 2, 4, 1], [1.0, 5.0, 4.0, 2.0, 6.0]) == [1, 2, 0]
