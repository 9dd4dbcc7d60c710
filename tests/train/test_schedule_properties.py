"""Properties of learning rates, for any numbers: the formulas in float64, warm-up up, decay down."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.train.schedules import SCHEDULES, make_schedule


@st.composite
def numbers(draw) -> tuple[str, dict[str, float]]:
    """A schedule and what it needs."""
    name = draw(st.sampled_from(SCHEDULES))
    warm = draw(st.sampled_from([0, 1]) | st.integers(0, 5000))
    keys = {"learning_rate": draw(st.floats(1e-6, 10.0)), "warmup_steps": warm}
    start = warm + draw(st.integers(0, 5000))
    if name in ("cosine", "linear", "exponential"):
        keys["decay_steps"] = warm + draw(st.integers(1, 100_000))
    if name == "stable":
        keys |= {"decay_start": start, "decay_steps": start + draw(st.integers(1, 100_000))}
    if name == "gnmt":
        keys |= {
            "decay_start": start,
            "decay_every": draw(st.integers(1, 5000)),
            "decay_times": draw(st.integers(0, 6)),
        }
    if name == "halving":
        keys |= {"halve_after_epochs": draw(st.integers(0, 20)) / 4, "halve_every_epochs": draw(st.integers(1, 8)) / 4}
        keys["updates_per_epoch"] = draw(st.integers(1, 40_000)) / 4
    else:
        keys["decay_floor"] = draw(st.sampled_from([0.01, 0.5]) if name == "exponential" else st.floats(0.0, 0.99))
    return name, keys


def find_rate(name: str, step: int, keys: dict[str, float]) -> float:
    """The docstring of `make_schedule`, in float64; the update that is made at step n is the (n + 1)th."""
    n, warm, floor = step + 1, max(1, keys["warmup_steps"]), keys.get("decay_floor", 0.0)
    begin = max(1, keys["decay_start"]) if name == "stable" else warm
    done = min(1.0, max(0.0, (n - begin) / max(1, keys.get("decay_steps", 0) - begin)))
    shape = 1.0
    if name == "inverse_sqrt":
        shape = math.sqrt(warm / max(n, warm))
    elif name == "cosine":
        shape = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    elif name in ("linear", "stable"):
        shape = 1 - (1 - floor) * done
    elif name == "exponential":
        shape = floor**done
    elif name == "gnmt":
        times = 0 if step < keys["decay_start"] else 1 + (step - keys["decay_start"]) // keys["decay_every"]
        shape = 0.5 ** min(times, keys["decay_times"])
    elif name == "halving":
        after, every = (keys[f"halve_{which}_epochs"] * keys["updates_per_epoch"] for which in ("after", "every"))
        shape = 0.5 ** (0 if step < after else 1 + math.floor((step - after) / every))
    return keys["learning_rate"] * shape * min(1.0, n / warm)


@given(numbers(), st.lists(st.integers(0, 120_000), min_size=1, max_size=30))
def test_rates_are_the_formula_and_rise_and_fall_where_they_should(drawn, steps):
    name, keys = drawn
    warm = keys["warmup_steps"]
    edges = [warm + offset for offset in (-2, -1, 0, 1) if warm + offset >= 0]
    edges += [int(keys[key]) + offset for key in ("decay_start", "decay_steps") if key in keys for offset in (-1, 0, 1)]
    steps = np.array(sorted({*steps, *(step for step in edges if step >= 0), 0}))
    padded = np.pad(steps, (0, 48 - len(steps)), mode="edge")  # of one size: nothing is compiled twice
    rates = np.asarray(make_schedule(name, **keys)(jnp.asarray(padded)), np.float64)[: len(steps)]
    wanted = np.array([find_rate(name, int(step), keys) for step in steps])
    np.testing.assert_allclose(rates, wanted, rtol=2e-5, atol=1e-6 * keys["learning_rate"])
    assert np.all(rates >= 0) and np.all(rates <= keys["learning_rate"] * (1 + 1e-6))
    assert np.all(rates[wanted > 1e-30] > 0)
    slack = 1e-6 * keys["learning_rate"]
    if name != "halving":  # which may begin to halve before it is warm
        assert np.all(np.diff(rates[steps < warm]) >= -slack)
    assert np.all(np.diff(rates[steps >= max(0, warm - 1)]) <= slack)
