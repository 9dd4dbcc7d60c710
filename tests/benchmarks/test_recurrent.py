"""The benchmark of recurrent layers: its baselines are what they claim to be, and its command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from seq2seq_jax.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def recurrent():
    """The module, from a folder that is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    import recurrent

    yield recurrent
    sys.path.remove(str(BENCHMARKS))


def test_the_baselines_and_the_peers_compute_the_same(recurrent, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed: the benchmark's peers cannot be compared")
    names = "scan;flax;layer norm;peepholes, projection;scan GRU"
    sizes = "--layers 1 --features 16 --length 3 --rows 2".split()
    assert recurrent.run_check(recurrent.parse_arguments([*sizes, "--check", "--variants", names]))
    assert capsys.readouterr().out.count("the equations in PyTorch") == 2


def test_a_size_that_is_given_goes_before_the_preset_s(recurrent):
    args = recurrent.parse_arguments(["--preset=translation", "--layers", "2"])
    assert (args.layers, args.features, args.length, args.rows) == (2, 1024, 50, [128, 512])
    assert args.dtype == "bfloat16"


def test_operations_are_those_of_the_equations(recurrent):
    from recurrent_variants import count_flops

    sizes = recurrent.read_sizes(recurrent.parse_arguments("--layers 2 --features 8 --length 5".split()), 3)
    each = 3 * 2 * 5 * 3  # forward and twice that backward, a multiplication and an addition, steps, rows
    assert count_flops("lstm", sizes) == each * 2 * (8 + 8) * 32
    assert count_flops("gru", sizes) == each * 2 * (8 + 8) * 24
    assert count_flops("bidirectional", sizes) == each * 2 * ((8 + 8) + (16 + 8)) * 32
    assert count_flops("projection", sizes) == each * (((8 + 4) + (4 + 4)) * 32 + 2 * 8 * 4)


def test_a_variant_that_is_not_there_is_named(recurrent):
    with pytest.raises(UserError, match="'slow scan'"):
        recurrent.choose_variants(recurrent.parse_arguments(["--variants=ours;slow scan"]))
