"""Plans: against the real step on the devices here, and the lines for what is wrong or does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from seq2seq_jax.config import default_config
from seq2seq_jax.errors import EXIT_USER
from seq2seq_jax.experiment import make_training
from seq2seq_jax.main import main
from seq2seq_jax.modes import largest_batch
from seq2seq_jax.modes import plan as plans
from seq2seq_jax.parallel.roofline import Hardware

MACHINE = Hardware("machine", peak_flops=1e11, memory=1e9, bandwidth=1e10, links=1, link_bandwidth=1e9)
NOWHERE = Path("/nonexistent")


def small_config() -> ConfigDict:
    """The model that compiles quickest."""
    config = default_config("lstm")
    config.vocab.size = 96
    config.data.update(tokens_per_batch=512, max_source_len=12, max_target_len=20)
    config.model.update(features=32, layers=2)
    config.decode.update(rows=8, beam_size=2)
    return config


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures instead of measurements."""
    monkeypatch.setattr(plans, "calibrate", lambda device, *, devices: MACHINE)


def count_held(tree: object) -> int:
    """Bytes of a tree's arrays on device 0."""
    return sum(
        shard.data.nbytes
        for array in jax.tree.leaves(tree)
        for shard in array.addressable_shards
        if shard.device.id == 0
    )


def test_the_plan_of_a_config_on_devices_at_hand_is_what_its_step_then_holds_and_does() -> None:
    config = small_config()
    report = plans.plan(config, NOWHERE, programs=("train",))
    training = make_training(config, 96, 96)
    state = training.init()
    found, memory, batch = report["train"], report["train"]["memory"], report["batch"]
    assert not report["cure"]
    assert report["devices"]["count"] == training.mesh.size == 8
    assert (batch["rows"], batch["source_len"], batch["target_len"]) == (16, 12, 20)
    assert memory["parameters"] == pytest.approx(count_held(state.params), rel=0.01)
    assert memory["parameters"] + memory["optimizer"] == pytest.approx(count_held(state), rel=0.01)
    assert memory["total"] > memory["parameters"] + memory["optimizer"] + memory["activations"] > 0
    useful = training.step_flops({"source_tokens": 16 * 12, "target_tokens": 16 * 20}) / 8
    assert found["flops"] == pytest.approx(useful, rel=0.1)  # of the first layers no gradient of the input is needed
    sums = [line for line in found["collectives"] if line["kind"] == "all-reduce"]
    assert {line["axis"] for line in sums} == {"data"}
    assert sum(line["bytes"] for line in sums) >= memory["parameters"]  # every gradient, and the sums
    assert not found["unbounded_loops"]
    assert found["tokens_per_second"] == pytest.approx(batch["slots"] / found["seconds"]["step"])


def test_a_plan_is_json_and_text_and_has_the_search_too() -> None:
    report = plans.plan(small_config(), NOWHERE, programs=("decode",))
    assert report["decode"]["max_len"] == 2 * 12 + 10
    assert report["decode"]["flops"] > 0
    assert not report["decode"]["unbounded_loops"]
    assert json.loads(json.dumps(report)) == report
    text = plans.render(report)
    assert "search (8 sentences, beam 2, at most 34 tokens)" in text
    assert "0.1 TFLOP/s" in text


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"method": "sampling", "ensemble": "runs/b"}, "sampling (ensemble with b)"),
        ({"method": "minimum_bayes_risk", "candidates": 3}, "minimum_bayes_risk of 3 candidates from sampling"),
        ({"method": "greedy"}, "greedy"),
    ],
)
def test_every_method_has_a_plan(keys: dict[str, object], told: str) -> None:
    config = small_config()
    config.decode.update(keys)
    report = plans.plan(config, NOWHERE, programs=("decode",))
    assert report["decode"]["flops"] > 0 and report["decode"]["search"] == told
    text = plans.render(report)
    assert f"(8 sentences, {told}, at most 34 tokens)" in text
    assert ("left out   the models that search beside this one" in text) == ("ensemble" in keys)


def test_what_does_not_fit_ends_with_exit_code_2_and_says_what_to_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Hardware("small", peak_flops=1e11, memory=1e5, bandwidth=1e10, links=1, link_bandwidth=1e9)
    monkeypatch.setattr(plans, "calibrate", lambda device, *, devices: small)
    settings = {"data.max_source_len": 12, "data.max_target_len": 20, "data.tokens_per_batch": 512, "vocab.size": 96,
                "model.features": 32, "model.layers": 2}  # fmt: skip
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    code = main(["main", "--config=configs/lstm.py", "--workdir=/nonexistent/run", "--mode=plan", *given])
    output = capsys.readouterr()
    assert code == EXIT_USER
    assert "train step, on each device" in output.out
    problem = output.err.strip().splitlines()[-1]
    assert problem.startswith("seq2seq_jax: error: the devices at hand: does not fit: the train step needs")
    assert "optimizer" in problem and "--config.parallel.fsdp=8" in problem


def test_a_program_that_the_compiler_finds_too_large_is_told_like_one_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, 20.17G exceeds 15.75G. HLO module: f."
    )

    def refuse(*_: object) -> None:
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(plans.Training, "train_step", refuse)
    report = plans.plan(small_config(), NOWHERE)
    assert report["cure"].startswith(
        "does not fit: the compiler ran out of memory on HBM, 20.17G exceeds 15.75G, a machine"
    )
    assert "fewer tokens (--config.data.tokens_per_batch=256)" in report["cure"]
    assert report["decode"] == {}
    assert report["cure"] in plans.render(report)


def test_a_wrong_topology_ends_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["main", "--config=configs/gnmt.py", "--mode=plan", "--topology=v5p-1024"]) == EXIT_USER
    assert capsys.readouterr().err.startswith("seq2seq_jax: error: --topology=v5p-1024: name a slice by its shape")


def test_a_topology_goes_with_plans_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["main", "--config=configs/gnmt.py", "--mode=describe", "--topology=v5e:4x4"]) == EXIT_USER
    assert "--topology goes with --mode=plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parallel", "devices", "rows_multiple"),
    [
        ({"data": -1}, 64, 64),
        ({"data": -1, "stage": 3}, 64, 63),
        ({"data": 2, "fsdp": 8}, 64, 16),
        ({"data": 1, "strategy": "exact"}, 64, 8),
        ({"data": -1}, 4, 8),  # 8 rows divide among 4 devices: as it is
    ],
)
def test_a_batch_that_does_not_divide_is_taken_for_one_device_s(
    parallel: dict[str, object], devices: int, rows_multiple: int
) -> None:
    config = small_config()
    config.parallel.update(parallel)
    changed, note = largest_batch.spread_batch(config, devices)
    assert changed.data.rows_multiple == rows_multiple
    if rows_multiple == 8:
        assert (changed.data.tokens_per_batch, note) == (512, "")
    else:
        assert changed.data.tokens_per_batch == 512 * rows_multiple
        assert f"--config.data.rows_multiple={rows_multiple}" in note
    assert config.data.rows_multiple == 8


def test_a_batch_of_so_many_sentences_is_planned_as_the_longest_of_them() -> None:
    config = small_config()
    config.data.update(sentences_per_batch=24, max_source_len=10, max_target_len=20, tokens_per_batch=1)
    assert largest_batch.longest_shape(config) == (24, 10, 20) and largest_batch.most_slots(config) == 24 * 30
    changed, note = largest_batch.spread_batch(config, 16)
    assert (changed.data.rows_multiple, changed.data.sentences_per_batch) == (16, 24 * 16)
    assert "24 sentences a device" in note and "--config.data.sentences_per_batch=384" in note
    changed, note = largest_batch.spread_batch(config, 12)  # 24 sentences divide among 12, only 8 does not
    assert (changed.data.rows_multiple, changed.data.sentences_per_batch) == (12, 24)
    assert note.endswith("--config.data.rows_multiple=12")
    assert "shorter sentences" in largest_batch.suggest_smaller(config)  # 12 rows are no multiple of 8
    config.data.sentences_per_batch = 48
    assert "--config.data.sentences_per_batch=24" in largest_batch.suggest_smaller(config)


def test_a_plan_for_a_slice_that_is_not_there() -> None:
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install 'seq2seq_jax[plan]')")
    config = small_config()
    config.parallel.update(data=-1, stage=2)
    report = plans.plan(config, NOWHERE, "v5e:2x4", programs=("train",), effort=-1.0)
    assert report["devices"] == {"count": 8, "there": 8, "kind": "TPU v5 lite"}
    assert report["mesh"] == {"data": 4, "stage": 2}
    assert "collective-permute" in {line["kind"] for line in report["train"]["collectives"]}
    assert {line["axis"] for line in report["train"]["collectives"]} <= {"data", "stage", "data+stage"}
    assert report["train"]["seconds"]["compiler"] > 0
    assert "197 TFLOP/s" in plans.render(report)


def test_the_plan_of_an_update_from_several_batches_is_of_the_programs_that_run() -> None:
    config = small_config()
    config.parallel.update(data=1, fsdp=8)
    config.data.rows_multiple = 8
    one = plans.plan(config, NOWHERE, programs=("train",))["train"]
    config.train.accumulate = 3
    report = plans.plan(config, NOWHERE, programs=("train",))
    found, memory = report["train"], report["train"]["memory"]
    assert found["flops"] == pytest.approx(3 * one["flops"], rel=0.02)
    assert 2 * one["seconds"]["step"] < found["seconds"]["step"] < 4 * one["seconds"]["step"]
    assert found["tokens_per_second"] == pytest.approx(3 * report["batch"]["slots"] / found["seconds"]["step"])
    for name in ("parameters", "optimizer"):
        assert memory[name] == pytest.approx(one["memory"][name])
    # The sum of the gradients is held in the parameters' own shards, beside the state.
    assert memory["gradients"] == pytest.approx(memory["parameters"], rel=0.01)
    assert memory["total"] > one["memory"]["total"]
    text = plans.render(report)
    assert "train step of 3 batches, on each device" in text and "left out" not in text


def test_a_plan_says_that_it_leaves_out_the_proposals_of_a_sequence_objective() -> None:
    config = small_config()
    config.sequence.objective = "minimum_risk"
    text = plans.render(plans.plan(config, NOWHERE, programs=("train",)))
    assert "left out   the program that proposes candidates (config.sequence.objective=minimum_risk)" in text
