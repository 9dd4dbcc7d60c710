"""Profiles: the trace is of the steps that were asked for, and a training that ends early leaves one that is whole."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from seq2seq_jax.train.profiling import Profile, parse_profile_steps


@pytest.mark.parametrize(("text", "steps"), [("", []), ("3:5", [3, 4, 5]), ("1:1", [1]), ("10:10", [10])])
def test_a_range_has_both_ends(text, steps):
    assert list(parse_profile_steps(text, 10)) == steps


@pytest.mark.parametrize("text", ["5", "0:3", "5:4", "9:11", "a:b", "1:2:3", "-1:2", " 1:2", "1.0:2"])
def test_wrong_ranges_are_refused(text):
    with pytest.raises(ValueError, match=r"`train.profile_steps` must be FIRST:LAST .* <= train.steps=10"):
        parse_profile_steps(text, 10)


def take_steps(profile: Profile, steps: range) -> list[float]:
    @jax.jit
    def marked_step(x):
        return jnp.sin(x) * 2

    seconds = []
    for step in steps:
        seconds.append(profile.enter(step, lambda: None))
        with jax.profiler.TraceAnnotation(f"number_{step}_"):
            result = marked_step(jnp.ones(8))
        seconds.append(profile.leave(step, result.block_until_ready))
    profile.close()
    return seconds


@pytest.mark.parametrize(
    ("taken", "traced"), [(range(1, 8), [3, 4]), (range(4, 8), [4]), (range(1, 4), [3]), (range(5, 8), [])]
)
def test_the_trace_holds_the_steps_of_the_range_and_no_other(tmp_path, taken, traced):
    told: list[str] = []
    seconds = take_steps(Profile(range(3, 5), tmp_path, told.append), taken)
    assert all(value >= 0 for value in seconds)
    files = list(tmp_path.rglob("*.trace.json.gz"))
    if not traced:
        assert not files and not told
        return
    names = {event.get("name", "") for event in json.loads(gzip.decompress(files[0].read_bytes()))["traceEvents"]}
    assert [step for step in range(1, 8) if any(f"number_{step}_" in name for name in names)] == traced
    assert told == [f"profiled the steps {traced[0]} to {traced[-1]}: {tmp_path}"]
