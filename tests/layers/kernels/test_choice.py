"""A layer that runs by kernels against the same layer's loop, and layers that cannot."""

from __future__ import annotations

import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.cells import GRUCell, LSTMCell
from seq2seq_jax.layers.kernels import choice, lstm_tpu
from seq2seq_jax.layers.recurrence import Loop, Weights, recur, recur_both

T, B, H = 3, 4, 128


@pytest.fixture(autouse=True)
def _interpret(monkeypatch):
    """TPU kernels, run by Pallas's interpreter."""
    run_forward, run_backward = (
        functools.partial(run, interpret=True, cores=1) for run in (lstm_tpu.run_forward, lstm_tpu.run_backward)
    )
    module = types.SimpleNamespace(supported=lstm_tpu.supported, run_forward=run_forward, run_backward=run_backward)
    monkeypatch.setattr(choice, "load", lambda platform: module)
    choice._tell.cache_clear()


def draw():
    """Input products, kernel, bias, initial states, a mask with holes, and a weight for every result."""
    rng = np.random.default_rng(0)
    shapes = {"x": (T, B, 4 * H), "kernel": (H, 4 * H), "bias": (4 * H,), "c": (B, H), "h": (B, H)}
    arrays = {name: jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32) for name, shape in shapes.items()}
    mask = jnp.asarray(rng.random((T, B)) < 0.7)
    return arrays, mask, rng.normal(size=(3, T, B, H)).astype(np.float32)


@pytest.mark.parametrize("reverse", [False, True])
def test_kernels_equal_the_loop_and_so_do_their_gradients(reverse):
    arrays, mask, weigh = draw()

    def run(loop):
        def total(a):
            weights = Weights(a["kernel"], bias=a["bias"])
            outputs, (c, h) = recur(
                LSTMCell(), a["x"], weights, mask, initial=(a["c"], a["h"]), reverse=reverse, loop=loop
            )
            return jnp.vdot(weigh[0], outputs) + jnp.vdot(weigh[1, 0], c) + jnp.vdot(weigh[2, 0], h), outputs

        program = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(arrays)
        return program.compile()(arrays)

    wanted, found = run(Loop()), run(Loop(kernel="tpu"))
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5, err_msg=str(path))


def test_kernels_run_both_directions_and_layers_without_gradients():
    arrays, _, _ = draw()
    x, weights = arrays["x"], Weights(arrays["kernel"])
    run = functools.partial(recur_both, LSTMCell(), (x, 2 * x), (weights, weights))
    for got, want in zip(run(loop=Loop(kernel="tpu", both_at_once=True)), run(), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "width", "loop", "reason"),
    [
        (GRUCell(), H, Loop(kernel="tpu"), "config.model.cell='lstm'"),
        (LSTMCell(peepholes=True), H, Loop(kernel="tpu"), "config.model.cell='lstm'"),
        (LSTMCell(), 100, Loop(kernel="tpu"), "must be a multiple of 128, but is 100"),
        (LSTMCell(), H, Loop(kernel="tpu", recompute=True), "recompute_gates"),
        (LSTMCell(), H, Loop(kernel="cpu"), "there are none"),
    ],
    ids=["gru", "peepholes", "width", "recompute", "cpu"],
)
def test_what_kernels_cannot_run_is_told_once_and_runs_by_the_loop(cell, width, loop, reason, caplog):
    vectors = {name: jnp.full(size, value) for name, (size, value) in cell.vectors(width).items()}
    weights = Weights(jnp.ones((width, cell.gates * width)), vectors=vectors)
    x = jnp.ones((T, B, cell.gates * width))
    with caplog.at_level(logging.WARNING, logger="seq2seq_jax"):
        outputs = [recur(cell, x, weights, loop=each)[0] for each in (loop, loop, Loop())]
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert [reason in record.getMessage() for record in caplog.records] == [True]
