"""Learning rates against tables worked out by hand from the papers. Steps count from 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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
CONSTANT = [(0, 0.75), (1, 1.5), (2, 2.25), (3, 3.0), (4, 3.0), (10_000, 3.0)]


@pytest.mark.parametrize(
    ("name", "options", "table"),
    [
        ("gnmt", {"learning_rate": 0.5, "decay_start": 1_200_000, "decay_every": 200_000, "decay_times": 4}, GNMT),
        ("inverse_sqrt", {"learning_rate": 1.0, "warmup_steps": 4000}, INVERSE_SQRT),
        ("cosine", {"learning_rate": 2.0, "warmup_steps": 10, "decay_steps": 110}, COSINE),
        ("constant", {"learning_rate": 3.0, "warmup_steps": 4}, CONSTANT),
        ("constant", {"learning_rate": 0.1}, [(0, 0.1), (7, 0.1)]),
    ],
)
def test_the_table_of_the_paper(name, options, table):
    schedule = jax.jit(make_schedule(name, **options))
    steps, wanted = zip(*table, strict=True)
    rates = [schedule(jnp.int32(step)) for step in steps]
    np.testing.assert_allclose(rates, wanted, rtol=1e-5, atol=1e-7)


def test_gnmt_warms_up_first():
    schedule = make_schedule("gnmt", learning_rate=1.0, warmup_steps=4, decay_start=6, decay_every=2, decay_times=2)
    rates = [float(schedule(step)) for step in range(12)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("linear", {}, "linear"),
        ("cosine", {"warmup_steps": 10, "decay_steps": 10}, "warmup_steps=10"),
        ("gnmt", {"decay_start": 5}, "decay_every"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, options, named):
    with pytest.raises(ValueError, match=named):
        make_schedule(name, learning_rate=1.0, **options)
