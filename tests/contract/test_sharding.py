"""The same training on one device and on eight: by rows, with parameters split, and with layers and vocabulary split.

The models are built as a run builds them, from a config. Every step here is gradient descent without
clipping: Adam, or a norm, would hide a factor that is common to all gradients.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.parallel.rules import NAMES
from seq2seq_jax.parallel.shard import place_batch

ROOT = Path(__file__).resolve().parents[2]
VOCAB, ROWS, SOURCE, TARGET = 50, 8, 5, 4  # neither the vocabulary nor the layers divide by eight
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do

SPEECH = {"reduction": 2, "listener_features": 8, "heads": 4, "feed_forward": 10, "kernel": 3, "channels": 3}
SPELLER = {"attention_features": 8, "location_filters": 3, "location_width": 3}
MODELS = {
    "bert": {"name": "bert", "layers": 3, "heads": 4, "feed_forward": 10, "max_positions": 16},
    "ctc": SPEECH | {"name": "ctc", "listener_layers": 3, "subsample": "conv"},
    "ctc of conformers": SPEECH | {"name": "ctc", "listener": "conformer", "listener_layers": 3, "subsample": "vgg"},
    "gnmt": {"name": "gnmt", "encoder_layers": 4, "decoder_layers": 3, "attention_features": 8},
    "gnmt of the paper": {
        "name": "gnmt",
        "encoder_layers": 3,
        "decoder_layers": 2,
        "attention_features": 8,
        "attention_from": "previous_step",
        "share_embeddings": "none",
    },
    "gnmt of other cells": {
        "name": "gnmt",
        "encoder_layers": 4,
        "decoder_layers": 3,
        "attention_features": 8,
        "cell": "lstm_peephole",
        "cells": 12,
        "layer_norm": True,
        "recurrent_dropout": 0.3,
    },
    "gpt": {"name": "gpt", "layers": 3, "heads": 2, "feed_forward": 10, "max_positions": 32, "prefix": "full"},
    "language_model": {"name": "language_model", "layers": 3},
    "las": SPEECH | SPELLER | {"name": "las", "listener_layers": 3, "ctc_head": True},
    "las of conformers": SPEECH
    | SPELLER
    | {"name": "las", "listener": "conformer", "positions": "relative", "subsample": "conv", "listener_layers": 2}
    | {"attention": "content", "speller_layers": 2},
    "lstm": {"name": "lstm", "layers": 4},
    "rnnsearch": {"name": "rnnsearch", "embedding_features": 12, "attention_features": 8, "readout_features": 6},
    "rnnsearch of luong": {
        "name": "rnnsearch",
        "embedding_features": 12,
        "readout_features": 6,
        "attention": "dot",
        "attention_from": "current_step",
        "readout": "tanh",
        "cell": "lstm",
    },
    "transformer": {"name": "transformer", "encoder_layers": 3, "decoder_layers": 2, "heads": 4, "feed_forward": 10},
    "transformer of long texts": {
        "name": "transformer",
        "encoder_layers": 4,
        "decoder_layers": 1,
        "heads": 2,
        "feed_forward": 10,
        "norm": "pre",
        "positions": "learned",
        "max_positions": 16,
        "linformer": 3,
        "linformer_share": "layers",
    },
    "transformer of other parts": {
        "name": "transformer",
        "encoder_layers": 2,
        "decoder_layers": 1,
        "heads": 1,  # neither it nor the feed-forward layer divides by two
        "feed_forward": 5,
        "norm": "pre",
        "positions": "relative",
        "activation": "swiglu",
        "share_embeddings": "target",
    },
}
AUDIO = {"rate": 800, "hop": 8, "window": 20, "fft": 32, "mels": 5, "low": 0.0, "normalisation": "none"}
AUDIO |= {"augment": "own", "freq_masks": 1, "freq_width": 2, "time_masks": 1, "time_width": 2, "time_warp": 1}
ONE = {"data": 1}
MESHES = {
    "one": ONE,
    "one, shard_map": ONE | {"step": "shard_map"},
    "data": {"data": 8},
    "data, jit": {"data": 8, "step": "jit"},
    "fsdp": ONE | {"fsdp": 8},
    "stage": ONE | {"stage": 8},
    "4x2": ONE | {"stage": 4, "tensor": 2},
    "tensor": ONE | {"data": 4, "tensor": 2, "layers": "scanned"},
    "three axes": ONE | {"fsdp": 2, "stage": 2, "tensor": 2, "layers": "scanned", "remat": "full", "chunks": 1},
    "exact": ONE | {"stage": 4, "tensor": 2, "strategy": "exact"},
}


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")


@functools.cache
def train(model: str, mesh: str) -> Training:
    """A tiny training with dropout."""
    config = default_config(MODELS[model]["name"])
    width = {} if config.model.name == "ctc" else {"features": 8}
    config.model.update(MODELS[model] | width | {"dropout": 0.3})
    if "listener" in config.model:
        config.audio.update(AUDIO | {"ctc_weight": 0.3 if config.model.get("ctc_head") else 0.0})
    config.train.update(optimizer="sgd", schedule="constant", learning_rate=1.0, warmup_steps=0, clip_norm=0.0)
    config.parallel.update(MESHES[mesh])
    config.masked.share = 0.5
    config.decode.update(length_penalty=0.6, coverage_penalty=0.2, length_factor=1.0, length_extra=3)
    return make_training(config, VOCAB, VOCAB)


def count_source(model: str) -> int:
    """How long sources are: recordings have more frames than their text has labels."""
    return 4 * SOURCE if "listener_layers" in MODELS[model] else SOURCE


def make_batch(model: str, seed: int = 0) -> Batch:
    """Sentences, or recordings, of uneven lengths; the last row only fills the batch."""
    generator = np.random.default_rng(seed)
    row_mask = np.arange(ROWS) < ROWS - 1

    def mask(length: int) -> np.ndarray:
        return (np.arange(length) < generator.integers(2, length + 1, ROWS)[:, None]) & row_mask[:, None]

    listens = "listener_layers" in MODELS[model]
    source_mask, target_mask = mask(count_source(model)), mask(TARGET)
    tokens = generator.integers(4, VOCAB, (ROWS, SOURCE + TARGET), dtype=np.int32)
    source, target = np.split(tokens, [SOURCE], axis=1)
    if listens:
        frames = generator.normal(0.0, 0.3, (*source_mask.shape, AUDIO["hop"]))
        source = np.where(source_mask[..., None], frames, 0.0).astype(np.float32)
    else:
        source = np.where(source_mask, source, 0)
    return Batch(
        source=source,
        source_mask=source_mask,
        target_in=np.where(target_mask, np.roll(target, 1, axis=1), 0),
        target_out=np.where(target_mask, target, 0),
        target_mask=target_mask,
        example_ids=np.where(row_mask, np.arange(ROWS), -1).astype(np.int32),
        row_mask=row_mask,
        epochs=np.full(ROWS, seed, np.int32) if listens else None,
    )


@functools.cache
def compile_step(model: str, mesh: str):
    training = train(model, mesh)
    arguments = training.abstract_state(), training.abstract_batch(ROWS, count_source(model), TARGET)
    return training.train_step().lower(*arguments).compile(compiler_options=QUICKLY)


@functools.cache
def start(model: str):
    """Parameters before the first step, large enough for every part to matter; numpy arrays."""
    generator, params = np.random.default_rng(1), nn.meta.unbox(train(model, "one").boxed_state).params
    return jax.tree.map(lambda x: generator.normal(0, 0.4, x.shape).astype(x.dtype), params)


@functools.cache
def take_steps(model: str, mesh: str):
    """Parameters after three steps, where they lie, and the loss of each."""
    training, step, losses = train(model, mesh), compile_step(model, mesh), []
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), training.abstract_state())
    places = jax.tree.map(lambda x: x.sharding, training.abstract_state())
    state = jax.device_put(zeros.replace(params=start(model)), places)
    for number in range(3):
        state, sums = step(state, place_batch(make_batch(model, number), training.mesh))
        losses.append(float(sums["loss"] / sums["weight"]))
    return state.params, losses


# --- equal training ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        ("bert", "data"),
        ("bert", "fsdp"),
        ("bert", "tensor"),
        ("bert", "stage"),
        ("bert", "three axes"),
        ("ctc", "fsdp"),
        ("ctc", "stage"),
        ("ctc of conformers", "three axes"),
        ("gnmt", "data, jit"),
        ("gnmt", "stage"),
        ("gnmt", "4x2"),
        ("gnmt of the paper", "fsdp"),
        ("gnmt of the paper", "4x2"),
        ("gnmt of the paper", "exact"),
        ("gnmt of other cells", "4x2"),
        ("gpt", "data"),
        ("gpt", "4x2"),
        ("language_model", "data"),
        ("language_model", "4x2"),
        ("las", "4x2"),
        ("las of conformers", "data, jit"),
        ("las of conformers", "4x2"),
        ("lstm", "data"),
        ("lstm", "4x2"),
        ("rnnsearch", "4x2"),
        ("rnnsearch", "fsdp"),
        ("rnnsearch of luong", "data"),
        ("transformer", "data"),
        ("transformer", "fsdp"),
        ("transformer", "tensor"),
        ("transformer", "stage"),
        ("transformer", "4x2"),
        ("transformer", "exact"),
        ("transformer of long texts", "4x2"),
        ("transformer of other parts", "three axes"),
    ],
)
def test_three_steps_on_eight_devices_are_those_of_one(model, mesh):
    wanted, losses = take_steps(model, "one")
    found, found_losses = take_steps(model, mesh)
    assert len(train(model, mesh).mesh.devices.ravel()) == 8
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    named = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, want), got, old in zip(named, jax.tree.leaves(found), jax.tree.leaves(start(model)), strict=True):
        want, got = np.asarray(want), np.asarray(got)
        name, largest, moved = jax.tree_util.keystr(path), np.abs(want).max(), np.abs(want - old).max()
        assert moved > 1e-4 * largest, name  # they are steps
        close = min(2e-5 * largest, 1e-3 * moved + 5e-7 * largest)
        np.testing.assert_allclose(got, want, rtol=0, atol=close, err_msg=name)


def test_shard_map_on_one_device_is_the_plain_program():
    costs = [compile_step("lstm", mesh).cost_analysis() for mesh in ("one", "one, shard_map")]
    for key in ("flops", "bytes accessed"):
        plain, mapped = (cost[key] for cost in costs)
        assert plain > 0 and abs(mapped - plain) < 0.02 * plain, key


@pytest.mark.parametrize(("model", "mesh"), [("lstm", "one"), ("lstm", "data"), ("gnmt", "4x2")])
def test_a_step_writes_the_whole_state_over_the_old_one(model, mesh):
    """Parameters, moments and counters on every device: none of the state is there twice."""
    training = train(model, mesh)
    aliases = re.search(r"input_output_alias=\{(.*?) \}, ", compile_step(model, mesh).as_text()).group(1)
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}", aliases)
    state = jax.tree.leaves(training.abstract_state())
    assert [(int(out), int(given)) for out, given in pairs] == [(n, n) for n in range(len(state))]


@pytest.mark.parametrize(("model", "mesh"), [("gnmt", "data, jit"), ("lstm", "data")])
def test_a_step_by_rows_adds_up_gradients_and_sends_nothing_else(model, mesh):
    """Dropout, the loss's chunks and the optimizer move no rows, and all devices keep the same bits."""
    text = compile_step(model, mesh).as_text()
    assert "all-reduce" in text
    assert not [kind for kind in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter") if kind in text]
    for path, leaf in jax.tree_util.tree_leaves_with_path(take_steps(model, mesh)[0]):
        assert len(leaf.sharding.device_set) == 8 and leaf.sharding.is_fully_replicated, jax.tree_util.keystr(path)
        assert len({np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}) == 1


# --- what a device holds -------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", ["stage", "4x2", "exact"])
def test_no_device_of_a_split_step_has_all_logits_or_all_rows_of_a_layer(mesh):
    model = "gnmt of the paper" if mesh == "exact" else "gnmt"
    text = compile_step(model, mesh).as_text()
    shapes = {tuple(int(n) for n in dims.split(",")) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    parts = 4 if mesh == "exact" else 8
    own, filled = -(-VOCAB // parts), -(-VOCAB // parts) * parts
    assert (ROWS * TARGET, own) in shapes  # this device's part of the logits: the search sees what there is
    whole = [shape for shape in shapes if {VOCAB, filled} & set(shape)]
    assert not [shape for shape in whole if np.prod(shape) >= ROWS * TARGET * VOCAB]


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_names_axes_that_have_rules(model):
    boxes = jax.tree.leaves(
        train(model, "one").boxed_state.params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    assert len(boxes) >= 5
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned)
        assert len(box.names) == len(box.value.shape) and set(box.names) <= {*NAMES, None}


def load_paper():
    path = ROOT / "configs" / "gnmt.py"
    spec = importlib.util.spec_from_file_location("gnmt_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("paper")


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ({"data": 8}, 1.0),
        ({"fsdp": 8}, 1 / 7.9),
        ({"stage": 8}, 1 / 7.9),
        ({"stage": 4, "tensor": 2}, 1 / 7.9),
        ({"stage": 4, "tensor": 2, "strategy": "exact"}, 1 / 3.9),
        ({"fsdp": 2, "stage": 4}, 1 / 7.9),
    ],
    ids=str,
)
def test_the_paper_s_state_is_a_share_on_every_device(sizes, share):
    """Parameters and Adam's moments of 8 + 8 layers of 1024 and three tables of 32,000."""
    config = load_paper()
    config.parallel.update({"data": 1} | sizes)
    state = make_training(config, 32_000, 32_000).abstract_state()
    for tree in (state.params, state.opt_state):
        leaves = jax.tree.leaves(tree)
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        held = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)
        assert whole > 1e9
        assert share * 0.9 * whole < held <= share * whole


# --- the search ----------------------------------------------------------------------------------


def strengthen(path, x):
    """So that hypotheses differ, by more than rounding.

    Gains stay near one and biases small, or a Transformer would take all positions for the same, and hypotheses would
    be orders of the same tokens.
    """
    name = jax.tree_util.keystr(path)
    if "gain" in name:
        return 1.0 + 0.2 * x
    return (0.3 if "bias" in name else 3.0) * x


@functools.cache
def search(model: str, mesh: str, *, beam_size: int, rows: int):
    """What is found for the batch's first rows."""
    training, batch = train(model, mesh), make_batch(model)
    abstract = training.abstract_state().params
    params = jax.tree_util.tree_map_with_path(strengthen, start(model))
    params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract))
    arguments = params, batch.source[:rows], batch.source_mask[:rows], batch.row_mask[:rows]
    decode = training.search(beam_size=beam_size)
    compiled = decode.lower(*arguments, max_len=SOURCE + 3).compile(compiler_options=QUICKLY)
    return jax.device_get(compiled(*arguments))


@pytest.mark.parametrize(
    ("model", "mesh", "beam_size", "rows"),
    [
        ("gnmt", "4x2", 4, 8),
        ("gnmt", "exact", 1, 8),
        ("gnmt", "exact", 4, 1),
        ("gnmt", "fsdp", 1, 8),
        ("gpt", "4x2", 4, 8),
        ("las", "4x2", 4, 8),
        ("gnmt", "fsdp", 4, 1),
        ("lstm", "4x2", 1, 8),
        ("rnnsearch", "4x2", 4, 8),
        ("transformer", "4x2", 4, 8),
    ],
)
def test_the_search_on_eight_devices_finds_what_one_finds(model, mesh, beam_size, rows):
    wanted = search(model, "one", beam_size=beam_size, rows=ROWS)
    found = search(model, mesh, beam_size=beam_size, rows=rows)
    assert len({tuple(row) for row in wanted.tokens[:, 0].tolist()}) > 3  # the model tells its sources apart
    for name in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name)[:rows], err_msg=name)
    for name in ("scores", "log_probs", "attention"):
        if getattr(wanted, name) is not None:
            np.testing.assert_allclose(
                getattr(found, name), getattr(wanted, name)[:rows], rtol=1e-5, atol=1e-5, err_msg=name
            )
    assert jnp.isfinite(wanted.scores[:-1]).all() and (wanted.lengths[-1] == 0).all()  # the last row only fills
