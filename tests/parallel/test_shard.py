"""Meshes, states born in their shards, batches over the devices, and what the compiled step sends between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.interfaces import Batch
from seq2seq_jax.layers.projections import Softmax
from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.parallel.rules import RULES
from seq2seq_jax.parallel.shard import batch_sharding, init_sharded, place_batch, state_shardings
from seq2seq_jax.tasks.translation import make_loss
from seq2seq_jax.train.losses import cross_entropy
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.step import init_state, make_train_step

VOCAB, ROWS, SOURCE, TARGET = 16, 16, 6, 5
# 32 wide: XLA compiles it faster than a narrower one, whose products it unrolls.
MODEL = GNMT(GNMTConfig(VOCAB, VOCAB, 32, 1, 2, 32, "current_step", dropout=0.3, init_scale=0.3))


@pytest.fixture
def eight():
    """A mesh of eight devices."""
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    return make_mesh(data=8)


def make_batch() -> Batch:
    generator = np.random.default_rng(0)
    source, target = (generator.integers(4, VOCAB, (ROWS, length), dtype=np.int32) for length in (SOURCE, TARGET))
    return Batch(
        source=source,
        source_mask=np.ones(source.shape, bool),
        target_in=np.roll(target, 1, axis=1),
        target_out=target,
        target_mask=np.ones(target.shape, bool),
        example_ids=np.arange(ROWS, dtype=np.int32),
        row_mask=np.ones(ROWS, bool),
    )


def make_descent():
    return make_optimizer("sgd", lambda n: 0.1, clip_norm=1.0)


def test_a_mesh_takes_all_devices_or_the_first_ones():
    devices = jax.devices()
    assert make_mesh().devices.tolist() == devices
    assert make_mesh(data=1).devices.tolist() == devices[:1]
    assert make_mesh().axis_names == ("data",)


@pytest.mark.parametrize("excess", [None, 1])
def test_a_mesh_of_an_impossible_size_is_refused(excess):
    count = len(jax.devices())
    for data in (0, -2) if excess is None else (count + excess,):
        with pytest.raises(ValueError, match=rf"between 1 and the {count} devices .* but is {data} instead"):
            make_mesh(data=data)


def test_a_state_born_in_its_shards_has_the_values_of_one_that_is_not(eight, monkeypatch):
    """Also under a rule that splits something, which the tables do not have yet."""
    monkeypatch.setitem(RULES, "split_vocab", (("vocab", "data"), *RULES["data_parallel"][2:]))
    softmax = Softmax(VOCAB, 32)

    def init(key):
        params = softmax.init(key, method="weights")["params"]
        return init_state(params, make_optimizer("adam", lambda n: 0.1))

    key = jax.random.key(3)
    whole = nn.meta.unbox(jax.jit(init)(key))
    assert np.asarray(whole.params["kernel"]).std() > 0
    for strategy, spec, rows in (("data_parallel", (None, None), VOCAB), ("split_vocab", ("data", None), VOCAB // 8)):
        state = init_sharded(init, eight, key, strategy=strategy)
        named = jax.tree_util.tree_leaves_with_path(state)
        for (path, leaf), want in zip(named, jax.tree.leaves(whole), strict=True):
            assert len(leaf.sharding.device_set) == 8
            np.testing.assert_allclose(leaf, want, rtol=1e-6, err_msg=jax.tree_util.keystr(path))
        kernel = state.params["kernel"]  # unboxed, [V, D]
        assert kernel.sharding.is_equivalent_to(NamedSharding(eight, PartitionSpec(*spec)), 2)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(rows, 32)}


def test_an_axis_name_without_a_rule_is_replicated_and_an_unknown_strategy_refused(eight):
    boxed = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((8, 8), jnp.float32), ("batch", "vocab"))
    assert state_shardings(boxed, eight).spec == PartitionSpec("data", None)
    with pytest.raises(KeyError, match="no_such"):
        state_shardings(boxed, eight, strategy="no_such")


def test_a_batch_is_split_by_rows(eight):
    batch = make_batch()
    placed = place_batch(batch, eight)
    for name in ("source", "source_mask", "target_in", "target_out", "target_mask", "example_ids", "row_mask"):
        array, want = getattr(placed, name), getattr(batch, name)
        assert array.sharding == batch_sharding(eight)
        shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
        assert [shard.data.shape for shard in shards] == [(ROWS // 8, *want.shape[1:])] * 8
        np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), want)
    assert placed.source_segments is None


def random_state(mesh):
    """A state of the model on the mesh, where its axis names put it."""

    def init(key):
        tokens = jnp.ones((1, 2), jnp.int32)
        return init_state(MODEL.init(key, tokens, tokens > 0, tokens)["params"], make_descent())

    boxed, generator = jax.eval_shape(init, jax.random.key(0)), np.random.default_rng(0)
    arrays = jax.tree.map(
        lambda x: generator.normal(0, 0.3, x.shape).astype(x.dtype) * np.dtype(x.dtype).type(x.ndim > 0),
        nn.meta.unbox(boxed),
    )
    return jax.device_put(arrays, state_shardings(boxed, mesh))


def find_gathers(program: str) -> set[str]:
    """The kinds of messages in a compiled program that move rows between devices."""
    kinds = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind for kind in kinds if kind in program}


def test_the_step_on_eight_devices_gathers_nothing(eight):
    """Gradients are summed over the devices; nothing else is sent, and parameters stay whole everywhere."""
    loss = make_loss(MODEL, label_smoothing=0.1, chunk=16)  # 80 tokens in 5 chunks
    step = jax.jit(make_train_step(loss, make_descent(), seed=0), donate_argnums=0)
    state, batch = random_state(eight), place_batch(make_batch(), eight)
    compiled = step.lower(state, batch).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not find_gathers(text)
    state, _ = compiled(state, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert len(leaf.sharding.device_set) == 8 and leaf.sharding.is_fully_replicated, jax.tree_util.keystr(path)
    for leaf in jax.tree.leaves(state.params):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(copy.tobytes() == copies[0].tobytes() for copy in copies)


@pytest.mark.parametrize("chunk", [80, 16, 24])
def test_the_loss_on_eight_devices_gathers_nothing_however_it_is_chunked(eight, chunk):
    rows = NamedSharding(eight, PartitionSpec("data"))

    def shape(*sizes: int, dtype=jnp.float32, sharding=rows):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def loss(hidden, kernel, bias, targets, weights):
        return cross_entropy(hidden, kernel, bias, targets, weights, chunk=chunk).loss

    whole = NamedSharding(eight, PartitionSpec())
    arguments = (
        shape(ROWS, TARGET, 32),
        shape(VOCAB, 32, sharding=whole),
        shape(VOCAB, sharding=whole),
        shape(ROWS, TARGET, dtype=jnp.int32),
        shape(ROWS, TARGET),
    )
    text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()
    assert "all-reduce" in text
    assert not find_gathers(text)
