"""Optimisers by name against numpy in float64 and against optax's own, run apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seq2seq_jax.train.optimizers import make_optimizer, switch_after


def make_params():
    return {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.5, -0.25])}


def make_gradients(steps: int):
    """A different gradient every step."""
    generator = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32)  # noqa: E731
    return [{"kernel": draw((2, 2)), "bias": draw((2,))} for _ in range(steps)]


def follow(optimizer: optax.GradientTransformation, params, gradients):
    """The parameters after every step."""
    update = jax.jit(optimizer.update)
    state, path = optimizer.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def assert_close(ours, theirs, rtol: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


def decay(step):
    return 0.1 / (step + 1.0)


def test_switch_after_is_adam_and_then_sgd():
    gradients, params = make_gradients(7), make_params()
    ours = follow(switch_after(3, optax.adam(0.01), optax.sgd(0.1)), params, gradients)
    adam = follow(optax.adam(0.01), params, gradients[:3])
    sgd = follow(optax.sgd(0.1), adam[-1], gradients[3:])
    assert len(ours) == 7
    assert_close(ours, adam + sgd)


def test_adam_then_sgd_reads_the_schedule_by_the_steps_of_the_whole_run():
    gradients, params = make_gradients(5), make_params()
    optimizer = make_optimizer("adam_then_sgd", decay, adam_steps=2, adam_learning_rate=0.01)
    ours = follow(optimizer, params, gradients)
    adam = follow(optax.adam(0.01), params, gradients[:2])
    sgd = follow(optax.sgd(lambda n: 0.1 / (n + 3.0)), adam[-1], gradients[2:])  # steps 2, 3, 4 of the run
    assert_close(ours, adam + sgd)


def test_adam_is_the_paper_s():
    b1, b2, eps, rate = 0.8, 0.9, 1e-3, 0.05
    gradients = make_gradients(4)
    ours = follow(make_optimizer("adam", lambda n: rate, b1=b1, b2=b2, eps=eps), make_params(), gradients)
    x = np.asarray(make_params()["bias"], np.float64)
    m = v = np.zeros(2)
    for n, gradient in enumerate(gradients, 1):  # Kingma and Ba 2015, algorithm 1
        g = np.asarray(gradient["bias"], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - rate * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
        np.testing.assert_allclose(ours[n - 1]["bias"], x, rtol=1e-5)


def test_sgd_follows_the_schedule():
    gradients = make_gradients(3)
    ours = follow(make_optimizer("sgd", decay), make_params(), gradients)
    wanted = np.asarray(make_params()["kernel"], np.float64)
    for n, gradient in enumerate(gradients):
        wanted = wanted - 0.1 / (n + 1) * np.asarray(gradient["kernel"], np.float64)
        np.testing.assert_allclose(ours[n]["kernel"], wanted, rtol=1e-5)


def test_weight_decay_is_decoupled_and_leaves_biases_alone():
    zero = [jax.tree.map(jnp.zeros_like, make_params())]
    (after,) = follow(make_optimizer("adamw", lambda n: 0.1, weight_decay=0.5), make_params(), zero)
    np.testing.assert_allclose(after["kernel"], (1 - 0.1 * 0.5) * make_params()["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(after["bias"], make_params()["bias"])


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (5.0, 0.5), (10.0, 1.0), (20.0, 1.0)])
def test_clipping_is_by_the_norm_of_all_gradients_together(clip_norm, factor):
    gradient = {"kernel": jnp.array([[1.0, 5.0], [5.0, 3.0]]), "bias": jnp.array([2.0, 6.0])}  # norm 10
    optimizer = make_optimizer("sgd", lambda n: 1.0, clip_norm=clip_norm)
    (after,) = follow(optimizer, make_params(), [gradient])
    assert_close(after, jax.tree.map(lambda p, g: p - factor * g, make_params(), gradient))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adam_then_sgd"])
def test_every_name_clips(name):
    options = {"adam_learning_rate": 0.1} if name == "adam_then_sgd" else {}
    clipped = make_optimizer(name, lambda n: 0.1, clip_norm=1.0, **options)
    plain = make_optimizer(name, lambda n: 0.1, **options)
    gradients = [optax.tree.scale(10.0, tree) for tree in make_gradients(2)]
    norms = [optax.tree.norm(tree) for tree in gradients]
    assert min(norms) > 1.0
    by_hand = [optax.tree.scale(1.0 / norm, tree) for tree, norm in zip(gradients, norms, strict=True)]
    assert_close(follow(clipped, make_params(), gradients), follow(plain, make_params(), by_hand), rtol=1e-5)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="adagrad"):
        make_optimizer("adagrad", lambda n: 0.1)
