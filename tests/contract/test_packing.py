"""Packed rows are the examples they hold: the same loss and the same gradients as with a row for each.

For every model that says it `packs`, on one device and on eight; and those that do not are refused.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import check_config, default_config
from seq2seq_jax.data.packing import make_packed_plan
from seq2seq_jax.data.pipeline import Ragged, TokenPairs, build_batch
from seq2seq_jax.data.plan import PlannedBatch
from seq2seq_jax.data.shapes import Shape
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.interfaces import Batch, Packs
from seq2seq_jax.models import MODELS
from seq2seq_jax.parallel.shard import place_batch

VOCAB, EXAMPLES, LONGEST = 30, 24, 9
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
TRANSFORMER = {"features": 8, "heads": 2, "feed_forward": 10, "encoder_layers": 1, "decoder_layers": 2}
GPT = {"features": 8, "heads": 2, "feed_forward": 10, "layers": 2}
BERT = {"features": 8, "heads": 2, "feed_forward": 10, "layers": 2}
VARIANTS = {
    "bert": BERT | {"max_positions": LONGEST},  # rows are longer than any table
    "bert-relative": BERT | {"positions": "relative", "norm": "pre", "head": False},
    "transformer": TRANSFORMER,
    "transformer-learned": TRANSFORMER | {"positions": "learned", "max_positions": LONGEST},
    "transformer-relative": TRANSFORMER | {"positions": "relative", "norm": "pre"},
    "gpt": GPT | {"max_positions": 2 * LONGEST},
    "gpt-full": GPT | {"positions": "rotary", "prefix": "full"},
    "gpt-language_model": GPT | {"source": False, "positions": "relative"},
}
MESHES = {"one": {"data": 1}, "three axes": {"data": 1, "fsdp": 2, "stage": 2, "tensor": 2}}

rng = np.random.default_rng(0)
PAIRS = TokenPairs(
    *(Ragged.pack([rng.integers(4, VOCAB, n) for n in rng.integers(2, LONGEST, EXAMPLES)]) for _ in range(2))
)


def make_config(variant: str, mesh: str = "one"):
    config = default_config(variant.partition("-")[0])
    config.model.update(VARIANTS[variant] | {"dropout": 0.0})
    config.data.update(pack=True, max_source_len=LONGEST, max_target_len=LONGEST)
    config.parallel.update(MESHES[mesh])
    config.masked.update(share=0.999, mask=0.0, random=0.0)  # of every text all tokens, as they are: nothing is drawn
    return config


@functools.cache
def make(variant: str, mesh: str = "one") -> Training:
    return make_training(make_config(variant, mesh), VOCAB, VOCAB)


def pack() -> Batch:
    """All examples in sixteen rows, of which the last only fill."""
    lengths = {"max_source_len": LONGEST, "max_target_len": LONGEST}
    plan = make_packed_plan(PAIRS.source_lengths, PAIRS.target_lengths, seed=1, tokens_per_batch=8 * 48, **lengths)
    batch = build_batch(PAIRS, plan.batch(0))
    if plan.batches_per_epoch != 1 or batch.row_mask.all():
        raise ValueError("the batch must hold all examples, and a row that fills")
    return batch


@functools.cache
def find(variant: str, mesh: str, *, packed: bool):
    """Objective, sums and gradients."""
    training = make(variant, mesh)
    generator, shapes = np.random.default_rng(1), nn.meta.unbox(training.boxed_state).params
    params = jax.tree.map(lambda x: generator.normal(0, 0.4, x.shape).astype(x.dtype), shapes)
    params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, training.abstract_state().params))
    planned = PlannedBatch(Shape(EXAMPLES, LONGEST, LONGEST), np.arange(EXAMPLES), 0)
    batch = pack() if packed else build_batch(PAIRS, planned)
    gradient = jax.jit(training.gradient(), compiler_options=QUICKLY)
    (objective, sums), grads = gradient(params, place_batch(batch, training.mesh), jax.random.key(0), jnp.int32(0))
    return jax.device_get((objective, dict(sums), grads))


def assert_same(found, wanted):
    of_texts = [{name: each for name, each in sums.items() if name != "slots"} for _, sums, _ in (found, wanted)]
    for a, b in ((found[0], wanted[0]), of_texts):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), a, b)
    assert found[1]["rows"] == EXAMPLES and found[1]["source_tokens"] == PAIRS.source_lengths.sum()
    named = jax.tree_util.tree_leaves_with_path(wanted[2])
    for (path, want), got in zip(named, jax.tree.leaves(found[2]), strict=True):
        name, largest = jax.tree_util.keystr(path), np.abs(want).max()
        assert largest > 0, name
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * largest, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_rows_are_the_examples_they_hold(variant):
    assert_same(find(variant, "one", packed=True), find(variant, "one", packed=False))


@pytest.mark.parametrize("variant", ["transformer", "gpt-full"])
def test_packed_rows_are_the_same_on_eight_devices(variant):
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    assert_same(find(variant, "three axes", packed=True), find(variant, "one", packed=True))


def test_every_model_that_packs_is_tested_and_others_are_refused():
    able = {name for name, (module, _) in MODELS.items() if hasattr(module, "packs")}
    assert {variant.partition("-")[0] for variant in VARIANTS} == able
    for name in set(MODELS) - able:
        config = default_config(name)
        config.data.pack = True
        with pytest.raises(UserError, match=rf"data\.pack must be False with config\.model\.name='{name}'.*gpt"):
            check_config(config)
    assert isinstance(make("gpt").model, Packs)


def test_the_abstract_batch_is_that_of_packed_rows():
    batch = pack()
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)]
    abstract = make("gpt").abstract_batch(*batch.source.shape, batch.target_in.shape[1])
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract)] == shapes


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data.sentences_per_batch": 8}, r"data\.sentences_per_batch must be 0 with config\.data\.pack, but is 8"),
        ({"data.curriculum_epochs": 1}, r"data\.curriculum_epochs must be 0"),
        ({"data.subword_sampling": 0.1}, r"data\.subword_sampling must be 0\.0"),
        ({"sequence.objective": "minimum_risk"}, r"sequence\.objective must be 'none'"),
        ({"model.max_positions": 17}, r"model\.max_positions must be at least 18, .* is 17"),
    ],
)
def test_what_packed_rows_cannot_have_is_refused(keys, said):
    config = make_config("gpt")
    check_config(config)
    for key, value in keys.items():
        section, _, name = key.partition(".")
        config[section][name] = value
    with pytest.raises(UserError, match=said) as caught:
        check_config(config)
    assert "\n" not in str(caught.value)
