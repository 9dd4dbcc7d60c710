"""Layouts: which strategy and step follow from the sizes, what the model is told, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from seq2seq_jax.parallel.layout import ONE_PROGRAM, make_layout
from seq2seq_jax.parallel.softmax import WHOLE, VocabularySplit

ONE = {"data": 1, "fsdp": 1, "stage": 1, "tensor": 1}


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")


def layout_of(**options):
    return make_layout(**(ONE | options))


@pytest.mark.parametrize(
    ("options", "strategy", "step"),
    [
        ({}, "data_parallel", "jit"),
        ({"data": -1}, "data_parallel", "shard_map"),
        ({"fsdp": 8}, "fsdp", "shard_map"),
        ({"data": 2, "fsdp": 4, "step": "jit"}, "fsdp", "jit"),
        ({"fsdp": 2, "stage": 4}, "balanced", "shard_map"),
        ({"tensor": 8}, "balanced", "shard_map"),
        ({"step": "shard_map"}, "data_parallel", "shard_map"),
        ({"stage": 8, "step": "jit", "layers": "in_order"}, "balanced", "jit"),
    ],
)
def test_strategy_and_step_follow_from_the_sizes(options, strategy, step):
    layout = layout_of(**options)
    assert (layout.strategy, layout.step) == (strategy, step)


def test_one_device_is_a_plain_program():
    plain = dataclasses.replace(ONE_PROGRAM, platform=jax.devices()[0].platform)
    assert layout_of().execution == plain
    assert layout_of().rows == ()
    assert layout_of(data=8, step="jit").execution == plain
    assert layout_of(layers="wavefront", chunks=3).execution.batched


def test_what_the_model_is_told_of_stages_and_tensor_shards():
    layout = layout_of(data=2, stage=2, tensor=2, chunks=5)
    execution = layout.execution
    assert layout.rows == execution.rows == ("data", "tensor", "stage")
    # Parts lie in the order (stage, tensor), rows in the order of the mesh; other replicas share nothing.
    assert execution.vocabulary == VocabularySplit(("stage", "tensor"), ("tensor", "stage"))
    assert (execution.stage, execution.chunks, execution.idle) == ("stage", 5, None)
    assert execution.tensor == "tensor"
    only_tensor = layout_of(tensor=8).execution
    assert (only_tensor.stage, only_tensor.vocabulary) == (None, VocabularySplit(("tensor",), ("tensor",)))
    by_rows = layout_of(data=2, fsdp=4).execution
    assert (by_rows.stage, by_rows.vocabulary, by_rows.rows) == (None, WHOLE, ("data", "fsdp"))


def test_how_a_transformer_s_layers_run():
    for layers, scanned in {"auto": None, "in_order": False, "scanned": True}.items():
        assert layout_of(layers=layers).execution.scanned is scanned
    assert layout_of(stage=4, tensor=2, layers="scanned", remat="dots").execution.remat == "dots"


def test_exact_is_four_stages_by_two_and_its_vocabulary_lies_over_the_stages():
    layout = layout_of(strategy="exact")
    assert dict(layout.mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 2, "stage": 4}
    assert layout.execution.vocabulary == VocabularySplit(("stage",), ("tensor", "stage"), idle="tensor")
    assert (layout.execution.idle, layout.execution.tensor) == ("tensor", None)  # no layer is split there
    assert dict(layout_of(strategy="exact", data=2, stage=2, tensor=2).mesh.shape)["stage"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"stage": 4, "strategy": "fsdp"},
            r"`parallel\.strategy` must be 'balanced' or 'exact' with stages or tensor shards, but is 'fsdp' with "
            r"stage=4 and tensor=1 instead",
        ),
        ({"tensor": 2, "strategy": "data_parallel"}, r"`parallel\.strategy` must be .* but is 'data_parallel' with"),
        (
            {"fsdp": 2, "strategy": "data_parallel"},
            r"`parallel\.strategy` must not be 'data_parallel' with `parallel\.fsdp` above 1; use 'fsdp'",
        ),
        (
            {"stage": 8, "strategy": "exact"},
            r"'exact' needs `parallel\.tensor`=2 .* `parallel\.stage` of at least 2, but they are 1 and 8 instead",
        ),
        ({"tensor": 2, "strategy": "exact"}, r"`parallel\.stage` of at least 2, but they are 2 and 1 instead"),
        (
            {"stage": 4, "tensor": 2, "strategy": "exact", "step": "jit"},
            r"`parallel\.step` must be 'shard_map' with `parallel\.strategy` 'exact', but is 'jit' instead",
        ),
        (
            {"stage": 4, "layers": "in_order"},
            r"`parallel\.layers` must be 'auto', 'scanned' or 'wavefront' with `parallel\.stage`=4 .* but is "
            r"'in_order' instead; set `parallel\.step` to 'jit'",
        ),
        (
            {"data": 8, "recurrence": "kernel", "step": "jit"},
            r"`parallel\.step` must be 'shard_map' with `parallel\.recurrence` 'kernel' on 8 devices, but is 'jit'",
        ),
        (
            {"data": 8, "recurrence": "kernel", "layers": "wavefront"},
            r"`parallel\.layers` must be 'in_order' with `parallel\.recurrence` 'kernel' .* but is 'wavefront'",
        ),
        ({"stage": 3}, r"set config\.data\.rows_multiple to a multiple of 3"),
    ],
)
def test_what_contradicts_itself_is_refused_with_key_rule_value_and_cure(options, told):
    with pytest.raises(ValueError, match=told):
        layout_of(**options)
