"""The benchmarks of the Transformer: the peer is the same computation, and operations are counted as PyTorch counts."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = "--features 8 --heads 2 --layers 1 --vocab 17 --rows 3 --source 5 --target 4".split()


@pytest.fixture
def transformer_step(monkeypatch):
    """The script, from a folder that is no package."""
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="the benchmark's peer is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    import transformer_step

    return transformer_step


def test_the_peer_has_the_same_loss_and_gradients(transformer_step, capsys):
    assert transformer_step.run_check(transformer_step.parse_arguments([*SIZES, "--check"]))
    assert "largest relative difference" in capsys.readouterr().out


def test_operations_are_those_that_pytorch_counts(transformer_step):
    import training_step
    import transformer_torch
    from torch.utils.flop_counter import FlopCounterMode

    args = transformer_step.parse_arguments([*SIZES, "--layers=2"])
    peer = transformer_torch.make_peer(transformer_step.build_ours(args, dropout=0.0).config)
    peer.set_attn_implementation("eager")  # its two products are counted, what a mask hides with them
    with FlopCounterMode(display=False) as counter:
        transformer_torch.mean_loss(peer, training_step.make_tokens(args), 0.1).backward()
    hidden = args.rows * args.target * (args.target - 1) / 2
    expected = sum(transformer_step.count_flops(args).values()) + 3 * args.layers * 4 * args.features * hidden
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_peers_find_the_same_outputs_of_given_lengths(method, transformer_step, tmp_path):
    import transformer_search
    import transformer_search_ours

    texts = {"sources": "to be or not to be\nthat\nis the question", "references": "being\nor not being\nwho asks"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [f"--{name}={tmp_path / name}" for name in texts]
    sizes = "--features 16 --heads 2 --layers 1 --vocab 60 --rows 8".split()
    args = transformer_search.parse_arguments([*sizes, *files, f"--weights={tmp_path}", "--cores=1"])
    transformer_search_ours.write_weights(args)
    sources, lengths = transformer_search.make_many(args, "real")
    found = []
    for args.side in ("ours", "torch"):
        found.append(transformer_search.make_search(args, "real", method)(sources))
    assert [len(output) for output in found[0]] == lengths and len(set(lengths)) > 1
    assert found[0] == found[1]


def test_outputs_that_differ_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import transformer_search

    args = transformer_search.parse_arguments([])
    found = {"outputs": [[4, 5, 3]] * 100}
    other = {"outputs": [[4, 5, 3]] * 97 + [[4, 3]] * 3}
    results = {"ours": {"batch beam": found}, "torch": {"batch beam": other}, "ct2": {"batch beam": found}}
    assert transformer_search.find_differing(args, results) == ["torch batch beam"]
    args.dtype = "bfloat16"  # whose rounding makes other outputs
    assert transformer_search.find_differing(args, results) == []
