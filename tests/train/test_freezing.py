"""Parameters that stay as they are: which ones a pattern names, and what an update does to the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seq2seq_jax.train.freezing import find_frozen, freeze, hold
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.step import init_state, make_train_step

PARAMS = {
    "encoder_stack": {"kernel": jnp.array([[3.0, -1.0]]), "bias": jnp.array([2.0])},
    "softmax": {"kernel": jnp.array([[1.0], [2.0]])},
}
NAMES = ["encoder_stack.bias", "encoder_stack.kernel", "softmax.kernel"]


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ("", []),
        ("encoder", NAMES[:2]),
        ("kernel$", NAMES[1:]),
        (r"^softmax\.", NAMES[2:]),
        ("bias, softmax ,", [NAMES[0], NAMES[2]]),
    ],
)
def test_patterns_are_searched_in_the_dotted_name(patterns, frozen):
    assert sorted(find_frozen(patterns, PARAMS)) == frozen


@pytest.mark.parametrize(
    ("patterns", "rule"),
    [("decoder", "'decoder' is in no"), ("bias,oops", "'oops' is in no"), ("e", "something to train"),
     ("kernel,bias", "something to train"), ("(", "no regular expression")],
)  # fmt: skip
def test_what_freezes_nothing_or_everything_is_refused_with_the_names(patterns, rule):
    with pytest.raises(ValueError, match=rule) as refused:
        find_frozen(patterns, PARAMS)
    told, short = str(refused.value), "is in no" in rule  # the names, or what they begin with
    assert "(" == patterns or all((name.partition(".")[0] if short else name) in told for name in NAMES)


def quadratic(params, batch, key, step):
    """Half the squared distance to zero: the gradient is the parameter."""
    del batch, key, step
    loss = 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return loss, {"weight": jnp.float32(1)}


def test_an_update_clips_and_decays_the_others_alone():
    frozen = find_frozen("softmax", PARAMS)
    optimizer = make_optimizer("adamw", lambda n: 0.1, clip_norm=1.0, weight_decay=0.5)
    gradient = jax.value_and_grad(quadratic, has_aux=True)
    step = make_train_step(hold(gradient, frozen), freeze(optimizer, frozen), seed=0)
    state, sums = step(init_state(PARAMS, freeze(optimizer, frozen)), None)
    part = {"encoder_stack": PARAMS["encoder_stack"]}  # the same as if there were no others
    alone, sums_alone = make_train_step(gradient, optimizer, seed=0)(init_state(part, optimizer), None)
    np.testing.assert_array_equal(state.params["softmax"]["kernel"], PARAMS["softmax"]["kernel"])
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(state.params["encoder_stack"][name], alone.params["encoder_stack"][name])
    assert float(sums["grad_norm"]) == float(sums_alone["grad_norm"]) == pytest.approx((9 + 1 + 4) ** 0.5)


def test_a_frozen_parameter_whose_gradient_is_not_finite_spoils_nothing():
    gradient = jax.value_and_grad(quadratic, has_aux=True)
    params = {"good": jnp.ones(2), "bad": jnp.full(2, 1e30)}  # its square is too large for float32
    frozen = find_frozen("bad", params)

    def scaled(params, batch, key, step):
        aside, grads = gradient(params, batch, key, step)
        return (jnp.float32(0), aside[1]), jax.tree.map(lambda g: g * 1e30, grads)

    step = make_train_step(hold(scaled, frozen), freeze(optax.sgd(1e-31), frozen), seed=0)
    state, sums = step(init_state(params, freeze(optax.sgd(1e-31), frozen)), None)
    assert float(sums["finite"]) == 0.0  # 1e30 squared in the norm of the good one
    scaled_less = hold(lambda *a: jax.tree.map(lambda x: x, gradient(*a)), frozen)
    aside, grads = scaled_less(params, None, jax.random.key(0), jnp.int32(0))
    np.testing.assert_array_equal(grads["bad"], 0)
    np.testing.assert_array_equal(grads["good"], 1)
