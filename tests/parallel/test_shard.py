"""States born in their shards, batches over the devices, and the way of a parameter from where it rests to its use."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.interfaces import Batch
from seq2seq_jax.layers.projections import Softmax
from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.parallel.mesh import AXES
from seq2seq_jax.parallel.rules import NAMES, RULES
from seq2seq_jax.parallel.shard import (
    arrange,
    batch_sharding,
    init_sharded,
    place_batch,
    plan_leaves,
    rows_here,
    split_axes,
    to_spec,
)
from seq2seq_jax.parallel.softmax import cross_entropy
from seq2seq_jax.parallel.spread import add_up
from seq2seq_jax.parallel.varying import vary_over
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.step import init_state

VOCAB, ROWS, SOURCE, TARGET = 16, 16, 6, 5
QUICKLY = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")


def layout_of(**options):
    return make_layout(**({"data": 1, "fsdp": 1, "stage": 1, "tensor": 1} | options))


@pytest.fixture
def eight():
    """A mesh of eight devices that share a batch."""
    return layout_of(data=8).mesh


def boxed(names, shape):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


# --- which axis is split over what ---------------------------------------------------------------

STAGES = {"data": 1, "fsdp": 1, "tensor": 1, "stage": 8}
FOUR_BY_TWO = {"data": 1, "fsdp": 1, "tensor": 2, "stage": 4}
EVERYTHING = {"data": 1, "fsdp": 2, "tensor": 2, "stage": 2}


@pytest.mark.parametrize(
    ("names", "shape", "sizes", "want"),
    [
        # Layers lie on stages where they divide; seven fall through to their gates.
        (("layers", "hidden", "gates"), (8, 16, 64), STAGES, (("stage",), (), ())),
        (("layers", "hidden", "gates"), (7, 16, 64), STAGES, ((), (), ("stage",))),
        (("layers", "hidden", "gates"), (7, 16, 60), STAGES, ((), ("stage",), ())),
        (("layers", "hidden", "gates"), (7, 15, 60), STAGES, ((), (), ())),
        # A mesh axis serves one axis; the other one goes to what is next.
        (("layers", "hidden", "gates"), (4, 16, 64), FOUR_BY_TWO, (("stage",), (), ("tensor",))),
        (("layers", "hidden", "gates"), (3, 16, 64), FOUR_BY_TWO, ((), (), ("tensor", "stage"))),
        (("layers", "hidden", "gates"), (3, 16, 62), FOUR_BY_TWO, ((), ("stage",), ("tensor",))),
        # Tables over all devices, or, where they do not divide, by their width.
        (("vocab", "embed"), (48, 16), FOUR_BY_TWO, (("stage", "tensor"), ())),
        (("vocab", "embed"), (50, 16), FOUR_BY_TWO, ((), ("tensor", "stage"))),
        (("vocab",), (50,), FOUR_BY_TWO, ((),)),
        # What is left is split again over fsdp.
        (("vocab", "embed"), (48, 16), EVERYTHING, (("stage", "tensor"), ("fsdp",))),
        (("gates",), (64,), EVERYTHING, (("tensor", "stage", "fsdp"),)),
        ((None, "gates"), (8, 64), STAGES, ((), ("stage",))),
        # Heads and feed-forward layers lie over tensor; six layers on four stages, or three heads, fall through.
        (("layers", "embed", None, "heads", None), (4, 6, 3, 8, 2), FOUR_BY_TWO, (("stage",), (), (), ("tensor",), ())),
        (("layers", "mlp", "embed"), (6, 64, 16), FOUR_BY_TWO, ((), ("tensor",), ("stage",))),
        (("layers", "heads", None, "embed"), (4, 3, 2, 16), FOUR_BY_TWO, (("stage",), (), (), ("tensor",))),
        (("layers", "embed", "mlp"), (4, 16, 64), EVERYTHING, (("stage",), ("fsdp",), ("tensor",))),
        (("positions", "embed"), (32, 16), EVERYTHING, ((), ("tensor", "stage", "fsdp"))),
    ],
)
def test_rules_are_tried_from_the_top_and_an_axis_is_split_only_where_it_divides(names, shape, sizes, want):
    assert split_axes(names, shape, RULES["balanced"].at_rest, sizes) == want


def test_strategies_differ_in_what_they_split():
    table = (("vocab", "embed"), (48, 16))
    assert split_axes(*table, RULES["data_parallel"].at_rest, EVERYTHING) == ((), ())
    assert split_axes(*table, RULES["fsdp"].at_rest, EVERYTHING) == (("fsdp",), ())
    assert split_axes(*table, RULES["exact"].at_rest, FOUR_BY_TWO) == (("stage",), ())


def test_a_search_has_all_layers_heads_and_columns_and_its_part_of_the_vocabulary():
    layout = layout_of(stage=4, tensor=2)
    tree = {
        "qkv": boxed(("layers", "embed", None, "heads", None), (4, 16, 3, 8, 2)),
        "mlp": boxed(("layers", "embed", "mlp"), (4, 16, 64)),
        "table": boxed(("vocab", "embed"), (50, 16)),
    }
    training, searching = plan_leaves(tree, layout), plan_leaves(tree, layout, layers_here=True)
    assert training["qkv"].compute == (("stage",), (), (), ("tensor",), ())
    assert training["mlp"].compute == (("stage",), (), ("tensor",))
    assert searching["qkv"].compute == ((),) * 5 and searching["mlp"].compute == ((),) * 3
    assert training["table"].compute == searching["table"].compute == (("stage", "tensor"), ())
    assert searching["qkv"].at_rest == training["qkv"].at_rest


def test_an_axis_name_without_a_meaning_is_refused():
    with pytest.raises(ValueError, match=rf"logical axis must be one of {', '.join(NAMES)}, but is 'colour' instead"):
        split_axes(("vocab", "colour"), (8, 8), (), STAGES)


# --- states and batches --------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("sizes", "spec", "part"),
    [
        ({"data": 8}, (None, None), (VOCAB, 32)),
        ({"fsdp": 8}, ("fsdp", None), (VOCAB // 8, 32)),
        ({"stage": 2, "tensor": 2, "fsdp": 2}, (("stage", "tensor"), "fsdp"), (VOCAB // 4, 16)),
    ],
)
def test_a_state_born_in_its_shards_has_the_values_of_one_that_is_not(sizes, spec, part):
    layout, softmax, key = layout_of(**sizes), Softmax(VOCAB, 32), jax.random.key(3)

    def init(key):
        params = softmax.init(key, method="weights")["params"]
        return init_state(params, make_optimizer("adam", lambda n: 0.1))

    whole = nn.meta.unbox(jax.jit(init)(key))
    assert np.asarray(whole.params["kernel"]).std() > 0
    state = init_sharded(init, layout, key)
    named = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), want in zip(named, jax.tree.leaves(whole), strict=True):
        assert len(leaf.sharding.device_set) == 8
        np.testing.assert_allclose(leaf, want, rtol=1e-6, err_msg=jax.tree_util.keystr(path))
    moments = [leaf for path, leaf in named if "opt_state" in str(path[0]) and leaf.ndim == 2]
    assert len(moments) == 2  # Adam's two, where the parameter is
    for leaf in (state.params["kernel"], *moments):  # unboxed, [V, D]
        assert leaf.sharding.is_equivalent_to(NamedSharding(layout.mesh, PartitionSpec(*spec)), 2)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {part}


def test_a_batch_is_split_by_rows_over_all_axes_in_the_order_of_the_mesh():
    mesh, batch = layout_of(data=2, stage=2, tensor=2).mesh, make_batch()
    placed = place_batch(batch, mesh)
    np.testing.assert_array_equal(rows_here(mesh, ROWS), np.arange(ROWS))
    for name in ("source", "source_mask", "target_in", "target_out", "target_mask", "example_ids", "row_mask"):
        array, want = getattr(placed, name), getattr(batch, name)
        assert array.sharding == batch_sharding(mesh)
        place = {device: n for n, device in enumerate(mesh.devices.ravel())}
        shards = sorted(array.addressable_shards, key=lambda shard: place[shard.device])
        assert [shard.data.shape for shard in shards] == [(ROWS // 8, *want.shape[1:])] * 8
        np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), want)
    assert placed.source_segments is None


# --- from where a parameter rests to where it is used --------------------------------------------

MESHES = [
    {"stage": 8},
    {"stage": 4, "tensor": 2},
    {"data": 2, "stage": 2, "tensor": 2},
    {"fsdp": 2, "stage": 2, "tensor": 2},
    {"fsdp": 8},
    {"stage": 4, "tensor": 2, "strategy": "exact"},
]
LEAVES = {
    "table": (("vocab", "embed"), (48, 16)),
    "odd table": (("vocab", "embed"), (50, 16)),
    "odd bias": (("vocab",), (50,)),
    "stack": (("layers", "embed", "gates"), (8, 6, 32)),
    "short stack": (("layers", "hidden", "gates"), (3, 8, 32)),
    "stack's bias": (("layers", "gates"), (4, 32)),
    "bias": (("gates",), (32,)),
    "query": (("hidden", "attention"), (8, 5)),
}


def plan(sizes):
    """The layout, and every leaf's plan and array."""
    layout, generator = layout_of(**sizes), np.random.default_rng(0)
    leaves = {key: plan_leaves(boxed(*item), layout) for key, item in LEAVES.items()}
    return layout, leaves, {key: generator.normal(size=leaf.shape).astype(np.float32) for key, leaf in leaves.items()}


def slice_of(leaf, mesh, place, shape):
    """What the device at a place of the mesh computes with, in the padded array of this shape."""
    index = []
    for axes, length in zip(leaf.compute, shape, strict=True):
        part = 0
        for axis in axes:
            part = part * mesh.shape[axis] + place[AXES.index(axis)]
        size = length // math.prod(mesh.shape[axis] for axis in axes)
        index.append(slice(part * size, (part + 1) * size))
    return tuple(index)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_device_gets_its_slice_and_the_gradient_is_the_sum_of_what_each_made_of_it(sizes):
    layout, leaves, arrays = plan(sizes)
    mesh, generator = layout.mesh, np.random.default_rng(1)
    padded = {}
    for key, leaf in leaves.items():
        ways = [math.prod(mesh.shape[axis] for axis in axes) for axes in leaf.compute]
        padded[key] = tuple(-(-length // n) * n for length, n in zip(leaf.shape, ways, strict=True))
    places = list(np.ndindex(*mesh.devices.shape))
    weights = {  # of every device's own
        key: generator.normal(size=(8, *[s.stop - s.start for s in slice_of(leaf, mesh, places[0], padded[key])]))
        for key, leaf in leaves.items()
    }

    def local(parts, weights):
        def total(parts):
            taken = {key: vary_over(arrange(leaves[key], part), layout.rows) for key, part in parts.items()}
            sums = [jnp.vdot(weights[key][0], value) for key, value in taken.items()]
            return add_up(sum(sums), layout.rows), {key: value[None] for key, value in taken.items()}

        return jax.grad(total, has_aux=True)(parts)

    specs, devices = {key: to_spec(leaf.at_rest) for key, leaf in leaves.items()}, PartitionSpec(layout.rows)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(specs, devices), out_specs=(specs, devices))
    weights = jax.tree.map(np.float32, weights)
    grads, taken = jax.jit(mapped, compiler_options=QUICKLY)(arrays, weights)
    for key, leaf in leaves.items():
        whole = np.pad(arrays[key], [(0, b - a) for a, b in zip(leaf.shape, padded[key], strict=True)])
        back = np.zeros(padded[key])
        for number, place in enumerate(places):
            index = slice_of(leaf, mesh, place, padded[key])
            np.testing.assert_array_equal(taken[key][number], whole[index], err_msg=f"{key} {place}")
            back[index] += weights[key][number]
        back = back[tuple(slice(0, length) for length in leaf.shape)]
        np.testing.assert_allclose(grads[key], back, rtol=1e-5, atol=1e-5, err_msg=key)


def find_moves(leaf, layout) -> list[str]:
    """The collectives of the program that arranges a parameter, before the compiler has seen it."""
    shape = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    local = functools.partial(arrange, leaf)
    specs = {"in_specs": to_spec(leaf.at_rest), "out_specs": to_spec(leaf.compute), "check_vma": False}
    text = jax.jit(jax.shard_map(local, mesh=layout.mesh, **specs)).lower(shape).as_text()
    kinds = ("all_gather", "all_reduce", "all_to_all", "collective_permute", "reduce_scatter")
    return [kind for kind in kinds for _ in range(text.count(f"stablehlo.{kind}"))]


@pytest.mark.parametrize(
    ("sizes", "moves"),
    [
        # Layers and tables that divide are used where they rest; a table that does not moves by an all-to-all for
        # each mesh axis, a stack by one; only what every device needs is gathered.
        (
            {"stage": 4, "tensor": 2},
            {
                "table": [],
                "odd table": ["all_to_all"] * 2,
                "stack": ["all_gather"],  # over tensor
                "short stack": ["all_gather", "all_to_all"],
                "bias": ["all_gather"] * 2,
                "odd bias": [],
            },
        ),
        (
            {"stage": 8},
            {
                "table": [],
                "odd table": ["all_to_all"],
                "stack": [],
                "short stack": ["all_to_all"],
                "stack's bias": ["all_to_all"],
                "bias": ["all_gather"],
            },
        ),
        ({"fsdp": 8}, {"table": ["all_gather"], "odd table": ["all_gather"], "stack": ["all_gather"], "odd bias": []}),
        ({"data": 8}, dict.fromkeys(LEAVES, [])),
    ],
    ids=str,
)
def test_a_parameter_moves_only_where_it_must_and_by_what_sends_least(sizes, moves):
    layout, leaves, _ = plan(sizes)
    assert {key: find_moves(leaves[key], layout) for key in moves} == moves


# --- what a loss by rows sends -------------------------------------------------------------------


def find_gathers(program: str) -> set[str]:
    """The kinds of messages in a compiled program that move rows between devices."""
    kinds = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind for kind in kinds if kind in program}


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
    text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments).compile(compiler_options=QUICKLY).as_text()
    assert "all-reduce" in text
    assert not find_gathers(text)
