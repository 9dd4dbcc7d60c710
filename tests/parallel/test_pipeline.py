"""Stacks run over devices against the same layers in order, and against a loop in float64."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec as P

from seq2seq_jax.layers.cells import GRUCell, LSTMCell
from seq2seq_jax.layers.dropout import make_places
from seq2seq_jax.layers.recurrent import LayerKind, run_both, run_layer
from seq2seq_jax.layers.stack import RecurrentStack
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.parallel.pipeline import batched_wavefront, split_directions, wavefront
from seq2seq_jax.parallel.varying import vary_over

B, H, SIDE = 8, 5, 3
KEY = jax.random.key(7)
LSTM, GRU = LayerKind(H), LayerKind(H, GRUCell())
PROJECTED = LayerKind(H, LSTMCell(peepholes=True, layer_norm=True), inner=7, recurrent_dropout=0.3)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do


@dataclasses.dataclass(frozen=True)
class Case:
    """A stack and its input; on a mesh where it has stages."""

    layers: int
    length: int
    chunks: int
    residual_from: int = 0
    side: bool = False
    initial: bool = False
    reverse: bool = False
    dropout: float = 0.0
    data: int = 1
    stage: int = 1
    tensor: int = 1
    kind: LayerKind = LSTM
    exact: bool = False  # the devices of tensor 0 work, those of tensor 1 watch

    def make_stack(self, **run):
        return RecurrentStack(self.kind, self.layers, SIDE * self.side, self.residual_from, self.dropout, **run)

    def draw(self):
        """Parameters and inputs (all that has a gradient), a mask with holes, and a weight for every result."""
        rng, count = np.random.default_rng(self.layers), self.layers
        draw = lambda *shape: rng.normal(0, 0.7, shape).astype(np.float32)  # noqa: E731
        arrays = {"x": draw(self.length, B, H)}
        if self.side:
            arrays["side"] = draw(self.length, B, SIDE)
        init = functools.partial(self.make_stack().init, mask=None, places=PLACES[: self.length])
        params = nn.meta.unbox(jax.eval_shape(init, KEY, arrays["x"], arrays.get("side")))["params"]
        arrays["params"] = jax.tree.map(lambda leaf: draw(*leaf.shape), dict(params))
        states = [tuple(draw(count, B, width) for width in self.kind.state_widths) for _ in range(2)]
        if self.initial:
            arrays["initial"] = states[0]
        mask = rng.random((self.length, B)) < 0.7
        mask[:, 0], mask[:, 1] = True, False
        return arrays, jnp.asarray(mask), (draw(self.length, B, H), states[1])

    def apply(self, stack, arrays, mask, places, key):
        return stack.apply(
            {"params": arrays["params"]},
            arrays["x"],
            arrays.get("side"),
            mask=mask,
            places=places,
            initial=arrays.get("initial"),
            reverse=self.reverse,
            train=True,
            rngs={"dropout": key},
        )


PLACES = make_places(jnp.arange(B), 64)


def weigh(weights, results):
    """One number of all results."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, results)))


def differentiate(case, **run):
    """Results and gradients of the weighted sum of all results, on one device."""
    arrays, mask, weights = case.draw()

    def total(arrays):
        results = case.apply(case.make_stack(**run), arrays, mask, PLACES[: case.length], KEY)
        return weigh(weights, results), results

    grads, results = jax.jit(jax.grad(total, has_aux=True), compiler_options=QUICKLY)(arrays)
    return results, grads


def differentiate_over_stages(case):
    """The same on the case's mesh: layers filled up with zeros to equal shares, rows over all axes; and the program."""
    arrays, mask, weights = case.draw()
    mesh, fill = make_mesh(data=case.data, stage=case.stage, tensor=case.tensor), -case.layers % case.stage
    pad = functools.partial(jax.tree.map, lambda a: np.pad(a, ((0, fill),) + ((0, 0),) * (a.ndim - 1)))
    arrays = arrays | {key: pad(arrays[key]) for key in ("params", "initial") if key in arrays}
    rows = tuple(axis for axis in ("data", "tensor", "stage") if mesh.shape[axis] > 1)
    group = ("tensor", "stage") if case.exact else ("stage",)  # whose rows one stack of stages runs
    working = (lambda: lax.axis_index("tensor") == 0) if case.exact else None
    run = functools.partial(wavefront, stage="stage", gather=group, chunks=case.chunks, working=working)

    def local(arrays, mask, places, weights, key):
        def total(arrays):
            arrays = jax.tree.map(lambda a: vary_over(a, rows), arrays)  # gradients are added up once, at the end
            y, states = case.apply(case.make_stack(run=run), arrays, mask, places, key)
            if working:  # the states of those that only watch are nothing
                states = jax.tree.map(lambda a: jnp.where(working(), a, 0.0), states)
            value = lax.psum(weigh(weights, (y, states)), rows)
            return value, (y, jax.tree.map(lambda a: lax.psum(a, "tensor"), states) if working else states)

        grads, results = jax.grad(total, has_aux=True)(arrays)
        return results, grads

    by_row, by_layer = P(None, rows), P("stage", tuple(axis for axis in rows if axis not in group))
    specs = {"params": P("stage"), "x": by_row, "side": by_row, "initial": by_layer}
    specs, results = {key: specs[key] for key in arrays}, (by_row, by_layer)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(specs, by_row, by_row, results, P()), out_specs=(results, specs))
    inputs = arrays, np.asarray(mask), np.asarray(PLACES[: case.length]), (weights[0], pad(weights[1])), KEY
    compiled = jax.jit(mapped, compiler_options=QUICKLY).lower(*inputs).compile()
    (y, states), grads = compiled(*inputs)
    cut = functools.partial(jax.tree.map, lambda a: a[: case.layers])
    grads |= {key: cut(grads[key]) for key in ("params", "initial") if key in grads}
    return ((y, cut(states)), grads), compiled.as_text()


def find_results(text: str, kinds: str) -> list[set[int]]:
    """The sizes in the results of some collectives of a program."""
    found = re.findall(rf"= (\S+|\([^)]*\)) (?:{kinds})(?:-start)?\(", text)
    return [{int(n) for dims in re.findall(r"\[([\d,]+)\]", shape) for n in dims.split(",")} for shape in found]


def check_equal(found, wanted, *, tolerance: float = 1e-5) -> None:
    """Every leaf, to a share of its largest element."""
    named = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, want), got in zip(named, jax.tree.leaves(found), strict=True):
        want = np.asarray(want)
        assert np.abs(want).max() > 0, path
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(), rtol=0, err_msg=str(path))


WAVES = [
    Case(4, 7, chunks=3, residual_from=1, side=True, initial=True, dropout=0.3, data=2, stage=2, tensor=2),
    Case(3, 5, chunks=1, reverse=True, stage=4),
    Case(10, 6, chunks=6, residual_from=10, side=True, initial=True, reverse=True, stage=8),
    Case(5, 9, chunks=0, residual_from=1, side=True, stage=4, tensor=2, exact=True),
    Case(3, 5, chunks=2, residual_from=1, initial=True, dropout=0.3, stage=2, kind=PROJECTED),
]


@pytest.mark.parametrize("case", WAVES, ids=lambda case: f"{case.layers} layers on {case.stage}")
def test_the_wave_over_stages_equals_one_layer_after_the_other(case):
    found, text = differentiate_over_stages(case)
    check_equal(found, differentiate(case))
    # Rows go to the stages and outputs come back, hidden states go from stage to stage; parameters stay.
    assert "collective-permute" in text and find_results(text, "all-gather")
    gates = case.kind.cell.gates * case.kind.width
    assert not [sizes for sizes in find_results(text, "all-gather|all-to-all|collective-permute") if gates in sizes]
    replicas = case.data > 1 or case.tensor > 1  # these add up their gradients
    assert replicas == any(gates in sizes for sizes in find_results(text, "all-reduce|reduce-scatter"))


@pytest.mark.parametrize(
    "case",
    [
        Case(3, 7, chunks=3, residual_from=1, side=True, initial=True, dropout=0.3),
        Case(4, 5, chunks=1, residual_from=4, reverse=True),
        Case(2, 6, chunks=6, reverse=True, initial=True),
        Case(3, 5, chunks=2, side=True, initial=True, kind=GRU),
    ],
    ids=lambda case: f"{case.layers} layers, {case.chunks} chunks",
)
def test_the_wave_on_one_device_equals_one_layer_after_the_other(case):
    run = functools.partial(batched_wavefront, chunks=case.chunks)
    check_equal(differentiate(case, run=run), differentiate(case))


# --- against the equations -----------------------------------------------------------------------


def loop(case, arrays, mask):
    """Row by row and step by step over the real steps, in float64."""
    params, mask = arrays["params"], np.asarray(mask)
    outputs, states = arrays["x"], []
    for n in range(case.layers):
        c, h = (np.array(a[n]) for a in arrays["initial"])
        below = np.concatenate([outputs, arrays["side"]], axis=-1)
        new = np.zeros_like(outputs)
        for row in range(B):
            steps = np.flatnonzero(mask[:, row])
            for t in steps[::-1] if case.reverse else steps:
                z = below[t, row] @ params["input_kernel"][n] + h[row] @ params["recurrent_kernel"][n]
                i, f, g, o = np.split(z + params["bias"][n], 4)
                c[row] = c[row] / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
                h[row] = new[t, row] = np.tanh(c[row]) / (1 + np.exp(-o))
        outputs = new + outputs if n >= case.residual_from else new
        states.append((c, h))
    return outputs, (np.stack([c for c, _ in states]), np.stack([h for _, h in states]))


def test_the_wave_equals_a_float64_loop_and_its_gradient_the_loop_s_slope():
    case = Case(3, 4, chunks=2, residual_from=1, side=True, initial=True, reverse=True, stage=2)
    arrays, mask, weights = case.draw()
    (results, grads), _ = differentiate_over_stages(case)
    wide = jax.tree.map(lambda a: a.astype(np.float64), arrays)
    check_equal(results, loop(case, wide, mask), tolerance=3e-6)
    rng = np.random.default_rng(0)

    def value(arrays):
        return sum(jax.tree.leaves(jax.tree.map(np.vdot, weights, loop(case, arrays, mask))))

    leaves, tree = jax.tree.flatten(wide)
    for number, grad in enumerate(jax.tree.leaves(grads)):  # every leaf along a direction of its own
        way = rng.normal(size=leaves[number].shape)
        ends = [jax.tree.unflatten(tree, [a + (s * way if n == number else 0) for n, a in enumerate(leaves)])
                for s in (1e-5, -1e-5)]  # fmt: skip
        slope = (value(ends[0]) - value(ends[1])) / 2e-5
        assert abs(np.vdot(grad, way) - slope) < 1e-5 * np.linalg.norm(grad) * np.linalg.norm(way)


# --- two directions on two devices ---------------------------------------------------------------


def test_a_layer_in_both_directions_on_pairs_equals_two_plain_layers():
    length, rng = 5, np.random.default_rng(3)
    draw = lambda *shape: rng.normal(0, 0.7, shape).astype(np.float32)  # noqa: E731
    shapes = {"input_kernel": (3, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
    layers = [{name: draw(*shape) for name, shape in shapes.items()} for _ in range(2)]
    x, weights = draw(length, 8, 3), draw(length, 8, 2 * H)
    mask = jnp.asarray(rng.random((length, 8)) < 0.7)
    axes = ("data", "stage")
    rows = P(None, axes)

    def gradient(run, sum_over=()):
        def evaluate(forward, backward, x, mask, weights):
            def total(*args):
                args = jax.tree.map(lambda a: vary_over(a, sum_over), args)
                y = run(*args, mask)
                return (lax.psum(jnp.vdot(weights, y), sum_over) if sum_over else jnp.vdot(weights, y)), y

            grads, y = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(forward, backward, x)
            return y, grads

        return evaluate

    def plain(forward, backward, x, mask):
        return run_both(LSTM, forward, backward, x, mask)

    def run(own, x, mask):
        return run_layer(LSTM, own, (x,), mask)[0]

    pairs = gradient(functools.partial(split_directions, run, stage="stage"), axes)
    specs = {"in_specs": (P(), P(), rows, rows, rows), "out_specs": (rows, (P(), P(), rows))}
    mapped = jax.shard_map(pairs, mesh=make_mesh(data=2, stage=4), **specs)
    inputs = *layers, x, mask, weights
    compiled = jax.jit(mapped, compiler_options=QUICKLY).lower(*inputs).compile()
    check_equal(compiled(*inputs), jax.jit(gradient(plain), compiler_options=QUICKLY)(*inputs))
    assert "collective-permute" in compiled.as_text() and "all-gather" not in compiled.as_text()
