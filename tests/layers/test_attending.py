"""The attending layer against a float64 loop of its equations, and automatic differentiation of a plain scan."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from seq2seq_jax.layers.attending import Asking, Attended, recur_attending
from seq2seq_jax.layers.attention import masked_softmax
from seq2seq_jax.layers.cells import GRUCell, LSTMCell
from seq2seq_jax.layers.runs import Weights

T, B, S, H, A, D, N = 4, 3, 5, 6, 7, 4, 2  # N: width of a projected output
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
# (cell, width of the output, recurrent noise, noise of contexts); "by product": scores are h . k; "from a state": a
# first one is given
CASES = {
    "lstm": (LSTMCell(), H, False, False),
    "lstm, contexts dropped": (LSTMCell(), H, False, True),
    "lstm of all kinds": (LSTMCell(peepholes=True, layer_norm=True), N, True, True),
    "gru": (GRUCell(), H, True, False),
    "gru, from a state": (GRUCell(), H, False, False),
    "lstm of all kinds, by product, from a state": (LSTMCell(peepholes=True, layer_norm=True), N, True, True),
}


def draw(case: str, batch: int = B) -> dict:
    """Everything that a layer gets, by name; the last row of the batch has nothing to attend to."""
    cell, width, noisy, dropping = CASES[case]
    rng = np.random.default_rng(1)
    gates = cell.gates * H

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0.0, 0.6, shape), jnp.float32)

    def factors(*shape: int) -> jax.Array:
        return jnp.asarray((rng.random(shape) < 0.7) / 0.7, jnp.float32)

    vectors = {name: first + normal(length) for name, (length, first) in cell.vectors(H).items()}
    mask = (rng.random((batch, S)) < 0.7) & (np.arange(batch) < batch - 1)[:, None]
    widths, initial = [H] * (cell.states - 1) + [width], None
    if "from a state" in case:
        initial = tuple(normal(batch, each) for each in widths)
    asking = Asking(None, None, normal(D, gates)) if "by product" in case else None
    return {
        "projected": normal(T, batch, gates),
        "weights": Weights(normal(width, gates), None if width == H else normal(H, width), vectors),
        "asking": asking or Asking(normal(width, A), normal(A), normal(D, gates)),
        "attended": Attended(normal(batch, S, width if asking else A), normal(batch, S, D), jnp.asarray(mask)),
        "initial": initial,
        "noise": factors(batch, width) if noisy else None,
        "context_noise": factors(T, batch, D) if dropping else None,
    }


def scan(cell, projected, weights, asking, attended, *, initial, noise, context_noise):
    """The same as a scan, in float32, for automatic differentiation."""

    def step(state, inputs):
        z, factor = inputs
        h = state[-1]
        if asking.v is None:
            scores = jnp.einsum("ba,bsa->bs", h, attended.keys)
        else:
            scores = jnp.tanh((h @ asking.query)[:, None] + attended.keys) @ asking.v
        attention = masked_softmax(scores, attended.mask)
        context = jnp.einsum("bs,bsd->bd", attention, attended.values)
        read = context if factor is None else context * factor
        through = h if noise is None else h * noise
        new, _ = cell.forward(z + read @ asking.context, through @ weights.recurrent, state, weights.vectors)
        if weights.projection is not None:
            new = (*new[:-1], new[-1] @ weights.projection)
        return new, (new[-1], context, attention)

    widths = [H] * (cell.states - 1) + [weights.recurrent.shape[0]]
    start = tuple(jnp.zeros_like(projected, shape=(projected.shape[1], width)) for width in widths)
    return jax.lax.scan(step, initial or start, (projected, context_noise))[1]


def differentiate(run, case: str):
    """Builds a function of the arguments of a layer to its outputs and all gradients, of fixed cotangents."""

    def gradients(given: dict):
        mask, rest = given["attended"].mask, {k: given[k] for k in ("noise", "context_noise")}
        inputs = given["projected"], given["weights"], given["asking"], given["attended"].replace(mask=None)

        def own(projected, weights, asking, attended, initial):
            attended = attended.replace(mask=mask)
            return run(CASES[case][0], projected, weights, asking, attended, initial=initial, **rest)

        outputs, pull = jax.vjp(own, *inputs, given["initial"])
        return outputs, pull(tuple(jnp.sin(x + 1.0) for x in outputs))

    return gradients


@functools.cache
def expect(case: str, batch: int = B):
    """Outputs and gradients of the scan."""
    given = draw(case, batch)
    return jax.jit(differentiate(scan, case)).lower(given).compile(compiler_options=QUICKLY)(given)


@pytest.mark.parametrize("case", CASES)
def test_equals_automatic_differentiation_of_a_scan(case):
    given = draw(case)
    found = jax.jit(differentiate(recur_attending, case)).lower(given).compile(compiler_options=QUICKLY)(given)
    named = jax.tree_util.tree_leaves_with_path(found)
    for (path, got), want in zip(named, jax.tree.leaves(expect(case)), strict=True):
        largest = np.abs(want).max()
        assert largest > 1e-3, path
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * largest, err_msg=jax.tree_util.keystr(path))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


@pytest.mark.parametrize("case", ["lstm", "lstm, contexts dropped"])
def test_equals_a_loop_over_steps_and_rows_in_float64(case):
    given = draw(case)
    outputs, contexts, weights = recur_attending(CASES[case][0], **given)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), given)
    asking, attended, recurrent = exact["asking"], exact["attended"], exact["weights"].recurrent
    for b in range(B):
        real = np.flatnonzero(attended.mask[b])
        c, h = np.zeros(H), np.zeros(H)
        for t in range(T):
            scores = np.array([asking.v @ np.tanh(h @ asking.query + attended.keys[b, s]) for s in real])
            want = np.zeros(S)
            want[real] = np.exp(scores) / np.exp(scores).sum()
            context = want @ attended.values[b]
            read = context if exact["context_noise"] is None else context * exact["context_noise"][t, b]
            i, f, g, o = np.split(exact["projected"][t, b] + read @ asking.context + h @ recurrent, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            np.testing.assert_allclose(outputs[t, b], h, atol=2e-6)
            np.testing.assert_allclose(contexts[t, b], context, atol=2e-6)
            np.testing.assert_allclose(weights[t, b], want, atol=2e-6)


def test_bfloat16_comes_near():
    case = "lstm, contexts dropped"
    given = draw(case)
    attended = given["attended"]
    keys, values = attended.keys.astype(jnp.bfloat16), attended.values.astype(jnp.bfloat16)
    given |= {
        "projected": given["projected"].astype(jnp.bfloat16),
        "attended": attended.replace(keys=keys, values=values),
        "context_noise": given["context_noise"].astype(jnp.bfloat16),
    }
    found = jax.jit(differentiate(recur_attending, case)).lower(given).compile(compiler_options=QUICKLY)(given)
    (outputs, contexts, weights), (d_projected, d_weights, d_asking, d_attended, _) = found
    halves, floats = (outputs, contexts, d_projected, d_attended.keys), (weights, d_weights.recurrent, d_asking.v)
    assert {x.dtype for x in halves} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expect(case)), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=0.05 * np.abs(want).max())


def test_the_loop_back_makes_no_gradient_of_a_kernel_and_no_hidden_layer_of_all_pairs():
    given = draw("lstm")

    def shapes(run) -> tuple[set[int], list[str]]:
        text = jax.jit(differentiate(run, "lstm")).lower(given).compile().as_text()
        arrays = re.findall(r"\bf32\[([\d,]+)\]", text)
        return {int(np.prod([int(n) for n in a.split(",")])) for a in arrays}, re.findall(r"\([^()\n]*\) while\(", text)

    def count(loop: str, rows: int, columns: int) -> int:
        return loop.count(f"f32[{rows},{columns}]") + loop.count(f"f32[{columns},{rows}]")

    sizes, loops = shapes(scan)
    assert max(sizes) >= T * B * S * A  # automatic differentiation keeps all pairs,
    sizes_by_hand, loops_by_hand = shapes(recur_attending)
    assert len(loops_by_hand) == 2 and max(sizes_by_hand) < T * B * S * A
    for kernel in ((H, A), (D, 4 * H), (H, 4 * H)):
        assert max(count(loop, *kernel) for loop in loops) > 1  # and adds to what it reads; by hand it is read only
        assert max(count(loop, *kernel) for loop in loops_by_hand) <= 1


def test_devices_add_up_gradients_once_after_the_loop():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    given, rows = draw("lstm", 8), P("data")

    def own(projected, weights, asking, attended):
        def shared(cell, projected, weights, asking, attended, **noise):
            weights, asking = jax.tree.map(lambda a: jax.lax.pcast(a, "data", to="varying"), (weights, asking))
            return recur_attending(cell, projected, weights, asking, attended, **noise)

        parts = {"projected": projected, "weights": weights, "asking": asking, "attended": attended}
        outputs, gradients = differentiate(shared, "lstm")(
            parts | {"initial": None, "noise": None, "context_noise": None}
        )
        return outputs, gradients[:-1]

    steps = P(None, "data")
    split = jax.shard_map(
        own, mesh=mesh, in_specs=(steps, P(), P(), rows), out_specs=((steps,) * 3, (steps, P(), P(), rows))
    )
    inputs = [given[name] for name in ("projected", "weights", "asking", "attended")]
    compiled = jax.jit(split).lower(*inputs).compile(compiler_options=QUICKLY)
    for got, want in zip(jax.tree.leaves(compiled(*inputs)), jax.tree.leaves(expect("lstm", 8)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    inner, entry = compiled.as_text().split("\nENTRY")
    assert "while" in entry and " all-reduce(" in entry and " all-reduce(" not in inner
