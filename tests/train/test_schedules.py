"""Learning rates against tables worked out by hand from the papers. Steps count from 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seq2seq_jax.train.schedules import make_schedule

# Wu et al. 2016, section 8.4: 0.5; from step 1.2M on halved every 200k steps for another 800k steps.
GNMT = (
    [(0, 0.5), (1, 0.5), (1_199_999, 0.5), (1_200_000, 0.25), (1_399_999, 0.25), (1_400_000, 0.125)]
    + [(1_599_999, 0.125), (1_600_000, 0.0625), (1_799_999, 0.0625), (1_800_000, 0.03125), (1_999_999, 0.03125)]
    + [(2_000_000, 0.03125), (5_000_000, 0.03125)]
)
# Vaswani et al. 2017, equation 3, scaled to its peak 1 at update 4000: n / 4000, then sqrt(4000 / n).
INVERSE_SQRT = [(0, 1 / 4000), (1999, 0.5), (3999, 1.0), (4000, (4000 / 4001) ** 0.5), (15_999, 0.5), (63_999, 0.25)]
# Warm-up over 10 updates, then half a cosine over 100.
COSINE = [(0, 0.2), (4, 1.0), (9, 2.0), (34, 2 * 0.5 * (1 + 2**-0.5)), (59, 1.0), (109, 0.0), (500, 0.0)]
# Warm-up over 10 updates, then down to a tenth of the peak over 100: the same amount, or the same factor, every update.
LINEAR = [(0, 0.2), (9, 2.0), (34, 2 * 0.775), (59, 2 * 0.55), (109, 0.2), (500, 0.2)]
EXPONENTIAL = [(0, 0.2), (9, 2.0), (34, 2 * 0.1**0.25), (59, 2 * 0.1**0.5), (109, 0.2), (500, 0.2)]
STABLE = [(0, 0.2), (9, 2.0), (10, 2.0), (99, 2.0), (149, 2 * 0.55), (199, 0.2), (500, 0.2)]
# Sutskever et al. 2014, section 3.4: 0.7; after five epochs halved every half epoch, 7.5 epochs in all. Twelve million
# pairs in batches of 128 are 93,750 updates an epoch: 468,750 in five, 46,875 in a half.
HALVING = [(0, 0.7), (468_749, 0.7), (468_750, 0.35), (515_624, 0.35), (515_625, 0.175), (562_499, 0.175)]
HALVING += [(562_500, 0.0875), (609_374, 0.0875), (609_375, 0.04375), (656_250, 0.021875), (703_124, 0.021875)]
EVERY_FIVE = [(0, 1.0), (49, 1.0), (50, 0.5), (99, 0.5), (100, 0.25), (149, 0.25), (150, 0.125)]
# An epoch of 2.5 updates: halved before the first update from 2.5 on, and after each 1.25 more (3.75, 5, 6.25).
FRACTIONS = [(0, 8.0), (2, 8.0), (3, 4.0), (4, 2.0), (5, 1.0), (6, 1.0), (7, 0.5)]
PAPER = {"learning_rate": 0.7, "updates_per_epoch": 93_750}
DECAY = {"learning_rate": 2.0, "warmup_steps": 10, "decay_floor": 0.1}
CONSTANT = [(0, 0.75), (1, 1.5), (2, 2.25), (3, 3.0), (4, 3.0), (10_000, 3.0)]


@pytest.mark.parametrize(
    ("name", "options", "table"),
    [
        ("gnmt", {"learning_rate": 0.5, "decay_start": 1_200_000, "decay_every": 200_000, "decay_times": 4}, GNMT),
        ("inverse_sqrt", {"learning_rate": 1.0, "warmup_steps": 4000}, INVERSE_SQRT),
        ("cosine", {"learning_rate": 2.0, "warmup_steps": 10, "decay_steps": 110}, COSINE),
        ("linear", DECAY | {"decay_steps": 110}, LINEAR),
        ("exponential", DECAY | {"decay_steps": 110}, EXPONENTIAL),
        ("stable", DECAY | {"decay_start": 100, "decay_steps": 200}, STABLE),
        ("halving", PAPER, HALVING),
        ("halving", {"learning_rate": 1.0, "halve_every_epochs": 5.0, "updates_per_epoch": 10.0}, EVERY_FIVE),
        ("halving", {"learning_rate": 8.0, "halve_after_epochs": 1.0, "updates_per_epoch": 2.5}, FRACTIONS),
        ("halving", {"learning_rate": 3.0, "warmup_steps": 4, "updates_per_epoch": 10_000}, CONSTANT),
        ("constant", {"learning_rate": 3.0, "warmup_steps": 4}, CONSTANT),
        ("constant", {"learning_rate": 0.1}, [(0, 0.1), (7, 0.1)]),
    ],
)
def test_the_table_of_the_paper(name, options, table):
    schedule = jax.jit(make_schedule(name, **options))
    steps, wanted = zip(*table, strict=True)
    rates = [schedule(jnp.int32(step)) for step in steps]
    np.testing.assert_allclose(rates, wanted, rtol=1e-5, atol=1e-7)


def test_gnmt_halves_from_its_first_step_unless_it_is_told_when():
    schedule = make_schedule("gnmt", learning_rate=8.0, decay_every=2, decay_times=3)
    assert [float(schedule(step)) for step in range(8)] == [4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]


def test_gnmt_warms_up_first():
    schedule = make_schedule("gnmt", learning_rate=1.0, warmup_steps=4, decay_start=6, decay_every=2, decay_times=2)
    rates = [float(schedule(step)) for step in range(12)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_decays_are_optax_s_own_after_our_warm_up():
    """Theirs count from 0 and the rate of the step; ours counts the update that is made, so that none has rate 0."""
    numbers = {"learning_rate": 2.0, "warmup_steps": 5, "decay_floor": 0.1}
    ours = {
        "cosine": make_schedule("cosine", decay_steps=25, **numbers),
        "linear": make_schedule("linear", decay_steps=25, **numbers),
        "exponential": make_schedule("exponential", decay_steps=25, **numbers),
        "stable": make_schedule("stable", decay_start=15, decay_steps=25, **numbers),
    }
    warm = optax.linear_schedule(0.0, 2.0, 5)
    line = optax.linear_schedule(2.0, 0.2, 10)
    theirs = {
        "cosine": optax.join_schedules([warm, optax.cosine_decay_schedule(2.0, 20, alpha=0.1)], [5]),
        "linear": optax.join_schedules([warm, optax.linear_schedule(2.0, 0.2, 20)], [5]),
        "exponential": optax.warmup_exponential_decay_schedule(0.0, 2.0, 5, 20, 0.1, end_value=0.2),
        "stable": optax.join_schedules([warm, optax.constant_schedule(2.0), line], [5, 15]),
    }
    for name, schedule in ours.items():
        rates = [float(schedule(n)) for n in range(40)]
        np.testing.assert_allclose(rates, [float(theirs[name](n + 1)) for n in range(40)], rtol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("quadratic", {}, "quadratic"),
        ("linear", {"warmup_steps": 10, "decay_steps": 10}, "warmup_steps=10 for 'linear'"),
        ("exponential", {"decay_steps": 10}, "decay_floor"),
        ("stable", {"decay_start": 10, "decay_steps": 10}, "less than decay_steps=10"),
        ("stable", {"warmup_steps": 9, "decay_start": 8, "decay_steps": 10}, "warmup_steps=9"),
        ("cosine", {"warmup_steps": 10, "decay_steps": 10}, "warmup_steps=10"),
        ("gnmt", {"decay_start": 5}, "decay_every"),
        ("halving", {"halve_every_epochs": 0.0}, "halve_every_epochs"),
        ("halving", {"halve_after_epochs": -1.0}, "halve_after_epochs"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, options, named):
    with pytest.raises(ValueError, match=named):
        make_schedule(name, learning_rate=1.0, **options)


def test_rates_by_epochs_cannot_be_asked_for_where_no_corpus_says_how_long_one_is():
    schedule = make_schedule("halving", learning_rate=1.0)
    assert optax.sgd(schedule).init({"w": jnp.zeros(2)}) is not None  # a state is made, and read back
    with pytest.raises(ValueError, match="updates_per_epoch"):
        schedule(0)
