"""The loop of recurrent layers with its hand-written backward pass, for every cell.

Values against a float64 loop over the real steps alone, gradients against autodiff of a plain scan and finite
differences, both against PyTorch and flax; what the compiled loop holds, what it needs of memory, and devices.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from seq2seq_jax.layers.cells import GRUCell, LSTMCell
from seq2seq_jax.layers.recurrence import Loop, Weights, keep_states, recur, recur_both
from seq2seq_jax.parallel.varying import vary_over, varying_axes

T, B, H, P = 7, 4, 5, 3
# Compiling is nearly all that these tests do.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# Real steps in front, behind, everywhere, and with holes.
MASK = jnp.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1, 0]], bool).T
CELLS = {
    "lstm": LSTMCell(),
    "peepholes": LSTMCell(peepholes=True),
    "layer norm": LSTMCell(layer_norm=True),
    "peepholes, layer norm": LSTMCell(peepholes=True, layer_norm=True),
    "gru": GRUCell(),
    "gru, layer norm": GRUCell(layer_norm=True),
}
every_cell = pytest.mark.parametrize("name", CELLS)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to run a layer."""

    reverse: bool = False
    initial: bool = False
    noise: bool = False
    projection: bool = False
    masked: bool = True
    loop: Loop = Loop()


# How a cell meets the loop is the same for all of them: every cell runs one way, two run in all.
CASES = {
    "backwards": Case(reverse=True, initial=True, noise=True),
    "ahead": Case(noise=True, loop=Loop(unroll=3)),
    "recompute": Case(reverse=True, initial=True, noise=True, loop=Loop(recompute=True, unroll=2)),
    "no mask": Case(reverse=True, masked=False, loop=Loop(unroll=T)),
    "projection": Case(projection=True, reverse=True, initial=True, noise=True),
    "projection, recompute": Case(projection=True, reverse=True, loop=Loop(recompute=True)),
}
RUNS = [(name, "backwards") for name in CELLS]
RUNS += [(name, label) for name in ("lstm", "gru, layer norm") for label in ("ahead", "recompute", "no mask")]
RUNS += [(name, "projection") for name in ("lstm", "peepholes", "layer norm")] + [
    ("layer norm", "projection, recompute")
]


def draw(name: str, *, projection: bool = False, seed: int = 0, sizes: tuple[int, int, int] = (T, B, H)) -> Any:
    """Projected inputs, weights and first state, and factors of noise."""
    rng, cell, (length, batch, width) = np.random.default_rng(seed), CELLS[name], sizes
    outputs = P if projection else width
    z = cell.gates * width

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0.0, 0.7, shape), jnp.float32)

    vectors = {key: value + 0.5 * normal(k) for key, (k, value) in cell.vectors(width).items()}
    weights = Weights(normal(outputs, z), normal(width, outputs) if projection else None, vectors)
    initial = tuple(normal(batch, k) for k in [width] * (cell.states - 1) + [outputs])
    noise = jnp.asarray(rng.choice([0.0, 1.5], (batch, outputs)), jnp.float32)
    return (normal(length, batch, z), weights, initial), noise


# The papers' equations, for numpy (the loop) and for jax.numpy (the scan).


def sigmoid(xp, x):
    return 1 / (1 + xp.exp(-x))


def norm(xp, x):
    return (x - x.mean(-1, keepdims=True)) / xp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def lstm_equations(xp, cell, x, p, state, v):
    c, _ = state
    if cell.layer_norm:
        p = v["recurrent_gain"] * norm(xp, p)
    i, f, g, o = xp.split(x + p, 4, axis=-1)
    if cell.peepholes:
        i, f = i + v["peephole_i"] * c, f + v["peephole_f"] * c
    c = sigmoid(xp, f) * c + sigmoid(xp, i) * xp.tanh(g)
    if cell.peepholes:
        o = o + v["peephole_o"] * c
    inner = v["cell_gain"] * norm(xp, c) + v["cell_bias"] if cell.layer_norm else c
    return c, sigmoid(xp, o) * xp.tanh(inner)


def gru_equations(xp, cell, x, p, state, v):
    (h,) = state
    width = h.shape[-1]
    if cell.layer_norm:
        both = xp.concatenate([norm(xp, p[..., : 2 * width]), norm(xp, p[..., 2 * width :])], axis=-1)
        p = v["recurrent_gain"] * both
    (x_r, x_z, x_n), (p_r, p_z, p_n) = xp.split(x, 3, axis=-1), xp.split(p, 3, axis=-1)
    r, z = sigmoid(xp, x_r + p_r), sigmoid(xp, x_z + p_z)
    n = xp.tanh(x_n + r * (p_n + v["candidate_bias"]))
    return ((1 - z) * n + z * h,)


def step(xp, cell, x, weights, state, noise):
    """One step, products and all."""
    equations = gru_equations if isinstance(cell, GRUCell) else lstm_equations
    new = equations(xp, cell, x, (state[-1] * noise) @ weights.recurrent, state, weights.vectors)
    return new if weights.projection is None else (*new[:-1], new[-1] @ weights.projection)


def loop_rows(cell, projected, weights, initial, noise, mask, reverse):
    """One row at a time over its real steps alone, in float64."""
    projected, weights, initial, noise = jax.tree.map(
        lambda a: np.array(a, np.float64), (projected, weights, initial, noise)
    )
    outputs = np.zeros((*projected.shape[:2], initial[-1].shape[-1]))
    for row in range(projected.shape[1]):
        steps = np.flatnonzero(mask[:, row])
        state = tuple(a[row] for a in initial)
        for t in steps[::-1] if reverse else steps:
            state = step(np, cell, projected[t, row], weights, state, noise[row])
            outputs[t, row] = state[-1]
        for a, b in zip(initial, state, strict=True):
            a[row] = b
    return outputs, initial


def scan_rows(cell, projected, weights, initial, noise, mask, reverse):
    """The same recurrence for autodiff to differentiate."""

    def advance(state, inputs):
        x, real = inputs
        new = step(jnp, cell, x, weights, state, noise)
        new = jax.tree.map(lambda a, b: jnp.where(real[:, None], a, b), new, state)
        return new, jnp.where(real[:, None], new[-1], 0.0)

    state, outputs = jax.lax.scan(advance, initial, (projected, mask), reverse=reverse)
    return outputs, state


def weigh(results: Any) -> jax.Array:
    """A number in which every part of every result counts differently."""
    leaves = jax.tree.leaves(results)
    return sum(
        jnp.sum(leaf.astype(jnp.float32) * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves
    )


def differentiate(function: Callable[..., Any]) -> Callable[..., Any]:
    """`(results, gradients)` of all arguments but the last two (noise, mask)."""

    def total(differentiated, noise, mask):
        results = function(*differentiated, noise, mask)
        return weigh(results), results

    def run(differentiated, noise, mask):
        (_, results), gradients = jax.value_and_grad(total, has_aux=True)(differentiated, noise, mask)
        return results, gradients

    return jax.jit(run, compiler_options=QUICKLY)


@functools.cache
def differentiate_scan(name: str, reverse: bool) -> Callable[..., Any]:
    def run(projected, weights, initial, noise, mask):
        return scan_rows(CELLS[name], projected, weights, initial, noise, mask, reverse)

    return differentiate(run)


@functools.cache
def differentiate_engine(name: str, case: Case) -> Callable[..., Any]:
    def run(projected, weights, initial, noise, mask):
        return recur(
            CELLS[name], projected, weights, mask if case.masked else None, initial=initial if case.initial else None,
            noise=noise if case.noise else None, reverse=case.reverse, loop=case.loop,
        )  # fmt: skip

    return differentiate(run)


def compare(got: Any, want: Any, atol: float = 2e-5) -> None:
    """Leaf by leaf, relative to the largest number of the leaf where that is above 1."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=atol * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("name", "label"), RUNS)
def test_values_and_gradients(name, label):
    case = CASES[label]
    (projected, weights, initial), noise = draw(name, projection=case.projection)
    start = initial if case.initial else jax.tree.map(jnp.zeros_like, initial)
    factors = noise if case.noise else jnp.ones_like(noise)
    mask = MASK if case.masked else jnp.ones_like(MASK)
    results, gradients = differentiate_engine(name, case)((projected, weights, initial), noise, MASK)
    compare(results, loop_rows(CELLS[name], projected, weights, start, factors, mask, case.reverse), 3e-6)
    _, want = differentiate_scan(name, case.reverse)((projected, weights, start), factors, mask)
    compare(gradients[:2], want[:2])
    if case.initial:
        compare(gradients[2], want[2])


AT_ONCE, AT_ONCE_RECOMPUTED = Loop(both_at_once=True), Loop(both_at_once=True, recompute=True, unroll=2)
TWO = [(name, False, AT_ONCE_RECOMPUTED) for name in ("lstm", "peepholes, layer norm", "gru, layer norm")]
TWO += [("lstm", False, Loop()), ("peepholes", True, AT_ONCE), ("gru", False, AT_ONCE)]


@pytest.mark.parametrize(("name", "projection", "loop"), TWO)
def test_both_directions(name, projection, loop):
    both = [draw(name, projection=projection, seed=seed) for seed in (1, 2)]
    zeros = jax.tree.map(jnp.zeros_like, both[0][0][2])

    def run(projected, weights, noise, mask):
        return recur_both(CELLS[name], projected, weights, mask, noise=noise, loop=loop)

    arguments = tuple(each[0][0] for each in both), tuple(each[0][1] for each in both)
    noises = tuple(each[1] for each in both)
    results, gradients = differentiate(run)(arguments, noises, MASK)
    for n, reverse in enumerate([False, True]):
        projected, weights = arguments[0][n], arguments[1][n]
        want, _ = loop_rows(CELLS[name], projected, weights, zeros, noises[n], MASK, reverse)
        compare(results[n], want, 3e-6)

    def pair(projected, weights, noise, mask):
        parts = zip(projected, weights, noise, (False, True), strict=True)
        return [scan_rows(CELLS[name], x, w, zeros, factors, mask, back)[0] for x, w, factors, back in parts]

    compare(gradients, differentiate(pair)(arguments, noises, MASK)[1])


def test_one_noise_alone_is_refused():
    """Two directions in one loop are of one kind."""
    both = [draw("lstm", seed=seed) for seed in (1, 2)]
    projected, weights = tuple(each[0][0] for each in both), tuple(each[0][1] for each in both)
    with pytest.raises(ValueError, match="noise"):
        recur_both(LSTMCell(), projected, weights, noise=(both[0][1], None), loop=Loop(both_at_once=True))


def test_a_gru_has_no_projection():
    (projected, weights, _), _ = draw("gru")
    weights = dataclasses.replace(weights, projection=jnp.ones((H, H)))
    with pytest.raises(ValueError, match="projected"):
        recur(GRUCell(), projected, weights)


@every_cell
def test_finite_differences(name):
    arguments, noise = draw(name, seed=3)
    direction, _ = draw(name, seed=4)
    run, by = differentiate_engine(name, CASES["backwards"]), 2e-3
    _, gradients = run(arguments, noise, MASK)
    ends = [jax.tree.map(lambda a, d, by=by: a + by * d, arguments, direction) for by in (by, -by)]
    above, below = (float(weigh(run(end, noise, MASK)[0])) for end in ends)
    slope = sum(jnp.vdot(a, d) for a, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))
    np.testing.assert_allclose((above - below) / (2 * by), slope, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["lstm", "gru, layer norm"])
def test_all_real_is_no_mask(name):
    arguments, noise = draw(name)
    without = differentiate_engine(name, CASES["no mask"])(arguments, noise, MASK)
    case = dataclasses.replace(CASES["no mask"], masked=True)
    compare(differentiate_engine(name, case)(arguments, noise, jnp.ones_like(MASK)), without, 1e-6)


@pytest.mark.parametrize("name", ["lstm", "gru, layer norm"])
def test_a_row_without_real_steps_keeps_its_state(name):
    arguments, noise = draw(name)
    mask = MASK & (jnp.arange(B) != 1)
    (outputs, last), gradients = differentiate_engine(name, CASES["backwards"])(arguments, noise, mask)
    np.testing.assert_array_equal(outputs[:, 1], 0.0)
    np.testing.assert_array_equal(gradients[0][:, 1], 0.0)
    for got, first in zip(last, arguments[2], strict=True):
        np.testing.assert_array_equal(got[1], first[1])


@pytest.mark.parametrize(("name", "label"), [run for run in RUNS if run[1] in ("backwards", "projection")])
def test_bfloat16_is_near_float32(name, label):
    (projected, weights, initial), noise = draw(name, projection=CASES[label].projection, seed=5)
    run, near = differentiate_engine(name, CASES[label]), 0.05 if "norm" in name else 0.03
    (want, _), want_gradients = run((projected, weights, initial), noise, MASK)
    (outputs, last), gradients = run((projected.astype(jnp.bfloat16), weights, initial), noise, MASK)
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in last} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(outputs.astype(jnp.float32), want, atol=0.03)
    assert gradients[0].dtype == jnp.bfloat16
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert np.linalg.norm(got.astype(jnp.float32) - expected) < near * np.linalg.norm(expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients[1:])} == {jnp.dtype(jnp.float32)}


# Other libraries.


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("name", "projection"), [("lstm", False), ("lstm", True), ("gru", False)])
def test_equals_torch(name, projection):
    torch = pytest.importorskip("torch")
    arguments, noise = draw(name, projection=projection, seed=6)
    projected, weights, initial = arguments
    case = Case(initial=True, projection=projection)
    mask = jnp.ones_like(MASK)
    (outputs, last), (d_projected, d_weights, d_initial) = differentiate_engine(name, case)(arguments, noise, mask)

    def tensor(a: Any, *, grad: bool = True) -> Any:
        return torch.tensor(np.asarray(a), requires_grad=grad)

    z = projected.shape[-1]
    layer = torch.nn.GRU(z, H) if name == "gru" else torch.nn.LSTM(z, H, proj_size=P if projection else 0)
    bias = jnp.zeros(z).at[2 * H :].set(weights.vectors["candidate_bias"]) if name == "gru" else jnp.zeros(z)
    own = {"weight_ih_l0": jnp.eye(z), "weight_hh_l0": weights.recurrent.T, "bias_hh_l0": bias, "bias_ih_l0": 0 * bias}
    own |= {"weight_hr_l0": weights.projection.T} if projection else {}
    layer.load_state_dict({key: tensor(value, grad=False) for key, value in own.items()})
    x, states = tensor(projected), [tensor(a[None]) for a in reversed(initial)]
    got, final = layer(x, states[0] if name == "gru" else tuple(states))
    final = (final,) if name == "gru" else final[::-1]
    results = [outputs, *last]
    compare(results, [a.detach().numpy().reshape(b.shape) for a, b in zip([got, *final], results, strict=True)], 3e-6)
    sum((a * torch.cos(torch.arange(a.numel()).reshape(a.shape))).sum() for a in (got, *final)).backward()
    gradients = dict(layer.named_parameters())
    compare(d_projected, x.grad.numpy())
    compare(d_weights.recurrent, gradients["weight_hh_l0"].grad.numpy().T)
    compare(list(d_initial), [a.grad.numpy()[0] for a in reversed(states)])
    if projection:
        compare(d_weights.projection, gradients["weight_hr_l0"].grad.numpy().T)
    if name == "gru":
        compare(d_weights.vectors["candidate_bias"], gradients["bias_hh_l0"].grad.numpy()[2 * H :])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_equals_flax(name, reverse):
    from flax import linen as nn

    (projected, weights, _), noise = draw(name, seed=7)
    cell = nn.GRUCell(H) if name == "gru" else nn.OptimizedLSTMCell(H)
    rnn = nn.RNN(cell, time_major=True, return_carry=True, reverse=reverse, keep_order=True)
    gates, z = ("rzn" if name == "gru" else "ifgo"), projected.shape[-1]

    def run(projected, weights):
        own, biases = {}, {"n": weights.vectors.get("candidate_bias")}
        for n, gate in enumerate(gates):
            columns = slice(n * H, (n + 1) * H)
            own[f"i{gate}"] = {"kernel": jnp.eye(z)[:, columns]} | ({"bias": jnp.zeros(H)} if name == "gru" else {})
            own[f"h{gate}"] = {"kernel": weights.recurrent[:, columns]}
            if name == "lstm" or gate == "n":
                own[f"h{gate}"]["bias"] = biases.get(gate, jnp.zeros(H))
        carry, outputs = rnn.apply({"params": {"cell": own}}, projected)
        return outputs, carry if isinstance(carry, tuple) else (carry,)

    want, gradients = differentiate(lambda x, w, _noise, _mask: run(x, w))((projected, weights), noise, MASK)
    case = Case(reverse=reverse, masked=False)
    got, own = differentiate_engine(name, case)((projected, weights, ()), noise, MASK)
    compare(got, want, 3e-6)
    compare(own[:2], gradients)


# What the compiled program holds.


def compile_gradient(run: Callable[..., Any], arguments: Any) -> Any:
    return jax.jit(jax.grad(lambda own: weigh(run(*own)))).lower(arguments).compile()


def find_loops(text: str) -> str:
    """The text of all computations that run inside a while loop."""
    bodies = {m[1]: m[0] for m in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n.*?^\}", text, re.M | re.S)}
    found, waiting = set(), re.findall(r"body=%?([\w.-]+)", text)
    while waiting:
        name = waiting.pop()
        if name not in found and name in bodies:
            found.add(name)
            waiting += re.findall(r"(?:calls|to_apply|body)=%?([\w.-]+)", bodies[name])
    return "\n".join(bodies[name] for name in sorted(found))


SIZES = (16, 8, 24)


@pytest.fixture(scope="module", params=["lstm", "gru"])
def compiled(request) -> tuple[str, dict[str, Any]]:
    """The gradient of a layer that runs backwards in time, compiled from the engine and from the plain scan."""
    name = request.param
    arguments, noise = draw(name, sizes=SIZES)
    mask, ones = jnp.ones(SIZES[:2], bool), jnp.ones_like(noise)

    def run(loop):
        return lambda x, w, first: recur(CELLS[name], x, w, mask, initial=first, reverse=True, loop=loop)

    return name, {
        "engine": compile_gradient(run(Loop()), arguments),
        "recompute": compile_gradient(run(Loop(recompute=True)), arguments),
        "scan": compile_gradient(lambda *own: scan_rows(CELLS[name], *own, ones, mask, True), arguments),
    }


def test_the_gradient_of_the_kernel_is_made_outside_the_loop(compiled):
    name, programs = compiled
    rows, columns = SIZES[2], CELLS[name].gates * SIZES[2]
    product = rf"f32\[({rows},{columns}|{columns},{rows})\][^\n]*? dot\("
    assert re.search(product, find_loops(programs["scan"].as_text()))  # else the test finds nothing anywhere
    assert re.search(product, programs["engine"].as_text())
    assert not re.search(product, find_loops(programs["engine"].as_text()))


def test_nothing_is_turned_around(compiled):
    for each in ("engine", "recompute"):
        text = compiled[1][each].as_text()
        assert "dynamic-update-slice" in text
        assert not re.search(rf"\[{SIZES[0]},{SIZES[1]},\d+\][^\n]* reverse\(", text)


def test_the_program_needs_less_memory_than_the_scan(compiled):
    needed = {each: program.memory_analysis().temp_size_in_bytes for each, program in compiled[1].items()}
    assert needed["engine"] < 0.9 * needed["scan"]


@every_cell
def test_what_is_kept_between_the_passes(name):
    """With `keep_states` the arguments and the states, nothing else as wide as the gates."""
    arguments, noise = draw(name, sizes=SIZES)

    def layer(loop):
        def run(x, weights, initial):
            return recur(CELLS[name], jnp.sin(x), weights, initial=initial, noise=noise, loop=loop)

        return run

    def measure(run):
        residuals = jax.eval_shape(lambda own: jax.vjp(run, *own)[1], arguments)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    kept = measure(keep_states(layer(Loop(recompute=True))))
    own = sum(leaf.nbytes for leaf in jax.tree.leaves((arguments, noise)))
    length, batch, width = SIZES
    assert kept <= own + CELLS[name].states * 4 * length * batch * width + 1000
    assert kept < measure(layer(Loop(recompute=True)))
    assert kept < measure(layer(Loop()))


@pytest.mark.parametrize("name", ["lstm", "gru, layer norm"])
def test_keeping_the_states_alone_changes_no_gradient(name):
    arguments, noise = draw(name)

    def run(projected, weights, initial, noise, mask):
        layer = keep_states(lambda *own: recur(
            CELLS[name], *own[:2], mask, initial=own[2], noise=noise, reverse=True, loop=Loop(recompute=True),
        ))  # fmt: skip
        return layer(projected, weights, initial)

    want = differentiate_engine(name, CASES["recompute"])(arguments, noise, MASK)
    compare(differentiate(run)(arguments, noise, MASK), want, 1e-5)


# Layers at once, and devices.


@pytest.mark.parametrize("name", ["peepholes, layer norm", "gru"])
def test_vmap_over_layers(name):
    layers = [draw(name, seed=seed) for seed in (8, 9)]
    arguments = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[own for own, _ in layers])
    noise = layers[0][1]

    def total(arguments):
        results = jax.vmap(lambda x, w, s: recur(CELLS[name], x, w, MASK, initial=s, noise=noise, reverse=True))(
            *arguments
        )
        return sum(jax.vmap(weigh)(results)), results

    (_, results), gradients = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=QUICKLY)(arguments)
    one = differentiate_engine(name, CASES["backwards"])
    for n, (own, _) in enumerate(layers):
        compare(jax.tree.map(lambda a, n=n: a[n], (results, gradients)), one(own, noise, MASK), 1e-5)


@pytest.mark.parametrize("loop", [Loop(), AT_ONCE_RECOMPUTED])
def test_rows_over_devices(loop):
    name, spec = "peepholes", PartitionSpec
    both = [draw(name, seed=seed, sizes=(T, 16, H)) for seed in (10, 11)]
    arguments = tuple(each[0][0] for each in both), tuple(each[0][1] for each in both)
    noise = tuple(each[1] for each in both)
    mask = jnp.tile(MASK, (1, 4))
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))

    def run(projected, weights, noise, mask):
        axes = varying_axes(mask)
        weights = jax.tree.map(lambda leaf: vary_over(leaf, axes), weights)  # sums their gradient over the devices
        return recur_both(CELLS[name], projected, weights, mask, noise=noise, loop=loop)

    rows = spec(None, "data")
    split = jax.shard_map(
        run, mesh=mesh, in_specs=((rows, rows), (spec(), spec()), (spec("data"),) * 2, rows), out_specs=(rows, rows)
    )
    compare(differentiate(split)(arguments, noise, mask), differentiate(run)(arguments, noise, mask), 1e-5)
