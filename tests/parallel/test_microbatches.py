"""Layers that see whole sequences: as a loop, recomputed, and over devices, against one after the other in float64."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from seq2seq_jax.layers.transformer_layer import TransformerLayer, list_parameters, run_layer
from seq2seq_jax.parallel.layout import Execution, make_layout
from seq2seq_jax.parallel.microbatches import REMAT, UNROLLED
from seq2seq_jax.parallel.varying import vary_over

B, T, S, D, N, F = 16, 3, 4, 6, 2, 5
QUICKLY = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")


def layer(execution, numpy, own, n, x, extras, shared):
    """A small layer with all that a Transformer's has: heads that read a memory, rows' own numbers, its own number."""
    scatter = execution.scatter_rows if execution else lambda a: a
    gather = execution.gather_rows if execution else lambda a: a
    queries = numpy.einsum("btd,dnh->btnh", gather(x), own["query"])
    scores = numpy.einsum("btnh,bsh->bnts", queries, shared["memory"])
    weights = numpy.exp(numpy.tanh(scores)) * shared["mask"][:, None, None, :]
    found = numpy.einsum("bnts,bsh->btnh", weights, shared["memory"])
    y = x + scatter(numpy.einsum("btnh,nhd->btd", found, own["out"]))
    y = y / numpy.sqrt(1e-3 + (y * y).mean(-1, keepdims=True))  # which a layer of zeros would not be without
    return numpy.sin(y * own["scale"] + extras["noise"] * (1.0 + 0.1 * n))


@functools.cache
def draw(layers):
    rng = np.random.default_rng(layers)
    shapes = {"query": (layers, D, N, F), "out": (layers, N, F, D), "scale": (layers, D)}
    parameters = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    rows = {"noise": (B, T, D), "memory": (B, S, F), "x": (B, T, D), "weights": (B, T, D)}
    arrays = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in rows.items()}
    return parameters, arrays | {"mask": rng.random((B, S)) < 0.7}


def in_float64(parameters, arrays):
    """Layer by layer with NumPy; the weighted sum, the output and the input of the top layer."""
    x, below = arrays["x"], None
    for n in range(len(parameters["scale"])):
        below = x
        x = layer(None, np, {k: a[n] for k, a in parameters.items()}, n, x, arrays, arrays)
    return np.vdot(arrays["weights"], x), x, below


def run(execution, parameters, arrays, layers):
    """The same as the model's code would have it."""
    extras, shared = {"noise": arrays["noise"]}, {"memory": arrays["memory"], "mask": arrays["mask"], "none": None}
    own = functools.partial(layer, execution, jnp)
    return execution.layer_runner()(own, parameters, arrays["x"], extras, shared, layers=layers)


def differentiate(execution, layers):
    """Value, gradients of parameters, input and memory, output and what is below the top, on one device."""
    parameters, arrays = draw(layers)

    def total(parameters, floats, mask):
        y, below = run(execution, parameters, floats | {"mask": mask}, layers)
        return jnp.vdot(floats["weights"], y), (y, below)

    floats = {name: a for name, a in arrays.items() if name != "mask"}
    step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True)).lower(parameters, floats, arrays["mask"])
    compiled = step.compile(compiler_options=QUICKLY)
    return compiled(parameters, floats, arrays["mask"]), step.as_text()


def differentiate_over_devices(count, **sizes):
    """The same on a mesh: layers filled up to equal shares, rows over all axes, heads and width over `tensor`."""
    layout = make_layout(**({"data": 1, "fsdp": 1, "stage": 1, "tensor": 1} | sizes))
    execution, rows = layout.execution, P(layout.rows)
    parameters, arrays = draw(count)
    fill = -count % layout.mesh.shape["stage"]
    parameters = jax.tree.map(lambda a: np.pad(a, ((0, fill),) + ((0, 0),) * (a.ndim - 1)), parameters)
    stage, heads = execution.stage, execution.tensor
    lying = {"query": P(stage, None, heads), "out": P(stage, heads), "scale": P(stage)}
    floats, mask = {name: a for name, a in arrays.items() if name != "mask"}, arrays["mask"]

    def local(parameters, floats, mask):
        def total(parameters, floats):
            parameters, floats = jax.tree.map(lambda a: vary_over(a, layout.rows), (parameters, floats))
            y, below = run(execution, parameters, floats | {"mask": mask}, count)
            assert (below is None) == (execution.stage is not None)
            return lax.psum(jnp.vdot(floats["weights"], y), layout.rows), (y, below)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(parameters, floats)

    out = (P(), (rows, rows)), (lying, rows)
    mapped = jax.shard_map(local, mesh=layout.mesh, in_specs=(lying, rows, rows), out_specs=out)
    compiled = jax.jit(mapped).lower(parameters, floats, mask).compile(compiler_options=QUICKLY)
    (found, grads) = compiled(parameters, floats, mask)
    return (found, (jax.tree.map(lambda a: a[:count], grads[0]), grads[1])), compiled.as_text()


def check_equal(found, wanted):
    """Every leaf, to a share of its largest element."""
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        want = np.asarray(want)
        assert np.abs(want).max() > 1e-3, path
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0, err_msg=str(path))


@functools.cache
def wanted(layers):
    return differentiate(Execution(scanned=False), layers)[0]


# --- on one device -------------------------------------------------------------------------------


def test_plain_order_is_a_float64_loop_and_its_gradient_the_loop_s_slope():
    parameters, arrays = draw(3)
    wide = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype != bool else a, (parameters, arrays))
    (value, (y, below)), grads = wanted(3)
    check_equal((value, y, below), in_float64(*wide))
    rng = np.random.default_rng(0)
    for tree, key in [(0, "query"), (0, "out"), (0, "scale"), (1, "x"), (1, "memory"), (1, "noise")]:
        way = rng.normal(size=wide[tree][key].shape)
        ends = []
        for share in (1e-5, -1e-5):
            moved = [dict(wide[0]), dict(wide[1])]
            moved[tree][key] = moved[tree][key] + share * way
            ends.append(in_float64(*moved)[0])
        slope, grad = (ends[0] - ends[1]) / 2e-5, grads[tree][key]
        assert abs(np.vdot(grad, way) - slope) < 1e-5 * np.linalg.norm(grad) * np.linalg.norm(way)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_a_loop_and_what_is_made_again_are_plain_order(scanned, remat):
    found, _ = differentiate(Execution(scanned=scanned, remat=remat), 3)
    check_equal(found, wanted(3))


def test_deep_stacks_are_loops_unless_told_otherwise():
    def count_products(layers, **how):
        parameters, arrays = draw(layers)
        step = jax.jit(lambda *given: run(Execution(**how), *given, layers)[0])
        return step.lower(parameters, arrays).as_text().count("dot_general")

    assert count_products(UNROLLED) == UNROLLED * count_products(1)
    assert count_products(UNROLLED + 1) == count_products(1)
    assert count_products(UNROLLED + 1, scanned=False) == (UNROLLED + 1) * count_products(1)
    assert count_products(2, scanned=True) == count_products(1)


@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_kept_for_the_backward_pass_is_less_from_policy_to_policy(scanned):
    def kept(remat):
        parameters, arrays = draw(4)

        def value(parameters):
            return run(Execution(scanned=scanned, remat=remat), parameters, arrays, 4)[0]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(value, p)[1], parameters)))

    everything, products, inputs = (kept(remat) for remat in REMAT)
    assert everything > products > inputs


def test_a_transformer_s_layers_keep_their_products_with_weights():
    width, inner, layers = 8, 12, 3
    kept = {"dots": (1 + 3 + 1 + 1) * width + inner, "full": width}  # input, queries to values, two outputs; and inside
    for remat, each in kept.items():
        execution = Execution(scanned=False, remat=remat)
        kind = TransformerLayer(features=width, heads=2, feed_forward=inner, execution=execution)
        own = {name: np.zeros((layers, *shape), np.float32) for name, (shape, _, _) in list_parameters(kind).items()}
        x, mask = np.zeros((B, T, width), np.float32), jnp.ones((B, T), bool)

        def apply(own, x, kind=kind, mask=mask):
            one = functools.partial(run_layer, kind)
            return kind.execution.layer_runner()(one, own, x, {}, {"mask": mask}, layers=layers)[0]

        leaves = jax.tree.leaves(jax.eval_shape(lambda own, x, apply=apply: jax.vjp(apply, own, x)[1], own, x))
        rows = [leaf.size for leaf in leaves if leaf.shape[:2] == (B, T) and leaf.dtype == jnp.float32]
        assert sum(rows) == layers * B * T * each


# --- over devices --------------------------------------------------------------------------------

MESHES = [
    (3, {"stage": 8, "chunks": 3}),  # three layers on eight stages, and microbatches that do not divide the rows
    (4, {"stage": 4, "tensor": 2}),
    (3, {"stage": 2, "tensor": 2, "data": 2, "chunks": 1, "remat": "full", "layers": "scanned"}),
    (3, {"tensor": 2, "fsdp": 4, "remat": "dots"}),
    (5, {"stage": 4, "tensor": 2, "strategy": "exact"}),
]


@pytest.mark.parametrize(("layers", "sizes"), MESHES, ids=str)
def test_layers_over_devices_are_those_of_one(layers, sizes):
    ((value, (y, below)), grads), text = differentiate_over_devices(layers, **sizes)
    (want_value, (want, want_below)), want_grads = wanted(layers)
    check_equal((value, y, grads), (want_value, want, want_grads))
    if below is not None:
        check_equal(below, want_below)
    stages = sizes.get("stage", 1) > 1
    assert stages == ("collective-permute" in text)
    # Rows and hidden states travel; the weights of a layer stay where they are.
    moved = re.findall(r"= \S*f32\[([\d,]+)\]\S* (?:all-gather|collective-permute|all-to-all)", text)
    assert moved
    assert not [dims for dims in moved if dims.endswith((f"{D},{N},{F}", f"{N},{F},{D}", f"{D},1,{F}", f"1,{F},{D}"))]


def test_rows_are_gathered_and_summed_by_the_devices_that_share_heads():
    execution = make_layout(data=2, fsdp=1, stage=1, tensor=4).execution
    assert (execution.tensor, execution.stage) == ("tensor", None)
    assert make_layout(data=2, fsdp=1, stage=1, tensor=4, step="jit", layers="in_order").execution.tensor is None
    plain = dataclasses.replace(execution, tensor=None)
    x = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    assert plain.gather_rows(x) is x and plain.scatter_rows(x) is x

    def both(x):
        gathered = execution.gather_rows(x)
        return gathered, execution.scatter_rows(gathered), execution.gather_rows(x[None], axis=1)[0]

    mesh = make_layout(data=2, fsdp=1, stage=1, tensor=4).mesh
    specs = {"in_specs": P(("data", "tensor")), "out_specs": P(("data", "tensor"))}
    gathered, scattered, inner = jax.jit(jax.shard_map(both, mesh=mesh, **specs))(x)
    groups = np.repeat(x.reshape(2, 8, 3), 4, axis=0).reshape(-1, 3)  # the rows of a replica, on each of its devices
    np.testing.assert_array_equal(gathered, groups)
    np.testing.assert_array_equal(inner, groups)
    np.testing.assert_array_equal(scattered, 4 * x)


@pytest.mark.parametrize("scanned", [False, True])
def test_only_straight_code_is_kept_from_being_found_twice(scanned):
    """XLA would undo what is made again in it, and cannot in a loop, where keeping it apart only costs."""
    parameters, arrays = draw(2)

    def value(parameters):
        return run(Execution(scanned=scanned, remat="full"), parameters, arrays, 2)[0].sum()

    text = str(jax.make_jaxpr(jax.grad(value))(parameters))
    assert f"prevent_cse={not scanned}" in text and f"prevent_cse={scanned}" not in text
