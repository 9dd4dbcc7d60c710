"""How the costs of Linformer and of full attention grow: the fit, and the programs that are measured."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("linformer")


def test_the_power_of_known_growth_is_found_overall_and_at_the_end(script):
    lengths = [512, 1024, 2048, 4096]
    cubic = {n: {"temp_mib": 7.0 * n**3} for n in lengths} | {8192: {"first_seconds": 1.0, "skipped": "memory"}}
    np.testing.assert_allclose(script.find_slopes(cubic, "temp_mib"), (3, 3))
    kinked = {n: {"temp_mib": float(n if n < 2048 else n**2 / 2048)} for n in lengths}  # 1, then 2
    overall, last = script.find_slopes(kinked, "temp_mib")
    assert 1 < overall < 2 and last == pytest.approx(2)


def test_linformer_s_memory_grows_with_the_length_and_that_of_full_attention_with_its_square(script):
    args = script.parse_arguments(
        "--features=8 --heads=2 --feed_forward=8 --lengths=256,512 --ranks=4 --layers=1".split()
    )
    grown = {}
    for rank in (0, 4):
        sizes = []
        for length in args.lengths:
            step, given = script.build(args, rank, length)
            sizes.append(step.lower(*given).compile(QUICKLY).memory_analysis().temp_size_in_bytes)
        grown[rank] = sizes[1] / sizes[0]
    assert grown[0] > 3.5 and grown[4] < 2.2


def test_the_gradients_of_all_weights_and_of_the_input_are_made(script):
    args = script.parse_arguments(
        "--features=8 --heads=2 --feed_forward=8 --lengths=8 --ranks=2 --rows=2 --layers=1".split()
    )
    step, given = script.build(args, 2, 8)
    weights, x = step.lower(*given).compile(QUICKLY)(*given)
    assert jax.tree.structure(weights) == jax.tree.structure(given[0]) and x.shape == (2, 8, 8)
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves((weights, x)))
