"""Optimisers by name against numpy in float64 and against optax's own, run apart."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.parallel.shard import batch_sharding, init_sharded, state_shardings
from seq2seq_jax.parallel.spread import spread_gradient
from seq2seq_jax.train.freezing import freeze, hold
from seq2seq_jax.train.optimizers import OPTIMIZERS, make_optimizer, switch_after
from seq2seq_jax.train.step import init_state, make_train_step


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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adam_then_sgd", "muon"])
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
    with pytest.raises(ValueError, match="adamax"):
        make_optimizer("adamax", lambda n: 0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_number_that_an_optimizer_does_not_know_is_refused(name):
    for key in ("momentum", "weight_decay"):
        has = name in {"momentum": ("sgd", "rmsprop"), "weight_decay": ("adamw", "nadamw", "lamb", "lion", "muon")}[key]
        with contextlib.nullcontext() if has else pytest.raises(ValueError, match=f"`{key}` must be 0 .*{name!r}"):
            make_optimizer(name, decay, adam_learning_rate=0.1, **{key: 0.5})


# --- every one by name ---------------------------------------------------------------------------

MATRICES = {"kernel": True, "bias": False}
NUMBERS = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
THEIRS = {
    "nadam": optax.nadam(decay, **NUMBERS),
    "nadamw": optax.nadamw(decay, **NUMBERS, weight_decay=0.3, mask=MATRICES),
    "radam": optax.radam(decay, **NUMBERS),
    "adafactor": optax.adafactor(decay),
    "adagrad": optax.adagrad(decay),
    "adadelta": optax.adadelta(decay),
    "rmsprop": optax.rmsprop(decay, eps=1e-3, momentum=0.7),
    "lamb": optax.lamb(decay, **NUMBERS, weight_decay=0.3, mask=MATRICES),
    "lion": optax.lion(decay, b1=0.8, b2=0.95, weight_decay=0.3, mask=MATRICES),
    "sgd": optax.sgd(decay, momentum=0.7),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_name_is_optax_s_with_our_numbers(name):
    extra = {"weight_decay": 0.3} if name in ("nadamw", "lamb", "lion") else {}
    extra |= {"momentum": 0.7} if name in ("rmsprop", "sgd") else {}
    gradients = make_gradients(8)  # radam begins to rectify at the sixth
    ours = follow(make_optimizer(name, decay, **NUMBERS, **extra), make_params(), gradients)
    assert_close(ours, follow(THEIRS[name], make_params(), gradients), rtol=1e-5)


def test_muon_takes_the_heads_of_a_transformer_s_kernel_as_one_side_of_a_matrix():
    generator = np.random.default_rng(1)
    shapes = {
        "self_qkv_kernel": (2, 6, 3, 2, 4),
        "cross_query_kernel": (2, 6, 2, 4),
        "self_out_kernel": (2, 2, 4, 6),
        "mlp_in_kernel": (2, 6, 2, 8),
    }
    gradient = {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    (moved,) = follow(make_optimizer("muon", lambda n: 0.1), zeros, [gradient])
    # Every matrix by itself, its rows the inputs.
    parts = {
        "self_qkv_kernel": lambda x: np.moveaxis(x, 2, 1).reshape(6, 6, 8),
        "cross_query_kernel": lambda x: x.reshape(2, 6, 8),
        "self_out_kernel": lambda x: x.reshape(2, 8, 6),
        "mlp_in_kernel": lambda x: np.moveaxis(x, 2, 1).reshape(4, 6, 8),
    }
    for name, cut in parts.items():
        for step, g in zip(cut(np.asarray(moved[name])), cut(np.asarray(gradient[name])), strict=True):
            u, _, v = np.linalg.svd(g.astype(np.float64), full_matrices=False)
            turned = u.T @ -step @ v.T / (0.1 * 0.2 * 8**0.5)  # the five iterations leave its values near 1
            assert (np.abs(np.diag(turned) - 1) < 0.35).all(), name
            assert np.linalg.norm(turned - np.diag(np.diag(turned))) < 1e-3, name


def test_muon_makes_every_matrix_of_a_stack_orthogonal_and_leaves_the_rest_to_adam():
    generator = np.random.default_rng(0)
    shapes = {"stack": {"kernel": (3, 8, 16), "bias": (3, 16)}, "softmax": {"kernel": (9, 8)}, "in": {"table": (9, 8)}}
    params = jax.tree.map(lambda s: jnp.asarray(generator.normal(size=s), jnp.float32), shapes, is_leaf=_is_shape)
    gradient = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), jnp.float32), params)
    (after,) = follow(make_optimizer("muon", lambda n: 0.1, weight_decay=0.5), params, [gradient])
    moved = jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), after, params)
    decayed = -0.1 * 0.5 * np.asarray(params["stack"]["kernel"], np.float64)
    for layer, g in zip(moved["stack"]["kernel"] - decayed, gradient["stack"]["kernel"], strict=True):
        u, _, v = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
        values = np.diag(u.T @ -layer @ v.T) / (0.1 * 0.2 * 16**0.5)  # the five iterations leave them near 1
        assert (np.abs(values - 1) < 0.35).all()
        assert np.linalg.norm(u.T @ -layer @ v.T - np.diag(np.diag(u.T @ -layer @ v.T))) < 1e-3
    (adam,) = follow(make_optimizer("adamw", lambda n: 0.1, weight_decay=0.5), params, [gradient])
    for part in ("softmax", "in"):
        assert_close(after[part], adam[part])
    assert_close(after["stack"]["bias"], adam["stack"]["bias"])


def _is_shape(x):
    return isinstance(x, tuple)


# --- every one in shards -------------------------------------------------------------------------

LEAVES = {  # logical axes and shape; the first one is large enough for Adafactor to factor it
    "embedding": {"table": (("vocab", "embed"), (136, 128))},
    "stack": {"kernel": (("layers", "hidden", "gates"), (3, 8, 16)), "bias": (("layers", "gates"), (3, 16))},
    "odd": {"v": (("attention",), (5,))},
}


def make_boxed():
    generator = np.random.default_rng(0)
    draw = lambda item: nn.LogicallyPartitioned(jnp.float32(generator.normal(0, 0.1, item[1])), item[0])  # noqa: E731
    return jax.tree.map(draw, LEAVES, is_leaf=_is_shape)


def wavy_loss(params, batch, key, step):
    """Every parameter counts, every row its own way."""
    del key, step
    terms = [jnp.sum(jnp.sin((n + 1) * leaf)) for n, leaf in enumerate(jax.tree.leaves(params))]
    loss = jnp.sum(batch["rows"]) * sum(terms)
    return loss, {"weight": jnp.sum(batch["rows"])}


@functools.cache
def take_two_steps(name: str, fsdp: int, freeze_names: frozenset[str] = frozenset(), ema_decay: float = 0.0):
    """The state after two steps, and the sharding that every leaf of it was to have."""
    layout = make_layout(data=1, fsdp=fsdp, stage=1, tensor=1)
    options = {"adam_then_sgd": {"adam_learning_rate": 0.1, "adam_steps": 1}}.get(name, {})
    optimizer = freeze(make_optimizer(name, decay, clip_norm=1.0, **options), freeze_names)

    def init():
        return init_state(make_boxed(), optimizer, ema_decay=ema_decay)

    boxed = jax.eval_shape(init)
    gradient = hold(spread_gradient(wavy_loss, layout, boxed.params), freeze_names)
    places = state_shardings(boxed, layout)
    step = make_train_step(gradient, optimizer, seed=0, ema_decay=ema_decay)
    step = jax.jit(step, out_shardings=(places, None), compiler_options={"xla_backend_optimization_level": 0})
    state = init_sharded(init, layout)
    rows = jax.device_put(np.arange(8, dtype=np.float32), batch_sharding(layout.mesh))
    for _ in range(2):
        state, _ = step(state, {"rows": rows})
    return state, places


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_in_shards_are_those_of_one_device(name):
    wanted, _ = take_two_steps(name, 1)
    found, places = take_two_steps(name, 8)
    named = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, want), got, place in zip(named, jax.tree.leaves(found), jax.tree.leaves(places), strict=True):
        where = jax.tree_util.keystr(path)
        assert got.sharding.is_equivalent_to(place, got.ndim), where
        want, got = np.asarray(want), np.asarray(got)
        # Rows and columns of the orthogonalisation come out in another order of adding.
        close = 2e-5 * max(np.abs(want).max(), 1e-3) if name != "muon" else 2e-4 * max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(got, want, rtol=0, atol=close, err_msg=where)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_where_their_parameters_do_and_what_is_whole_is_small(name):
    state, _ = take_two_steps(name, 8)
    shapes = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(state.params)}  # no two are alike
    whole, seen = sum(leaf.size for leaf in jax.tree.leaves(state.params)), set()
    for leaf in jax.tree.leaves(state.opt_state):
        seen.add(leaf.shape)
        if leaf.shape in shapes:
            assert leaf.sharding.is_equivalent_to(shapes[leaf.shape], leaf.ndim)
        else:
            assert leaf.sharding.is_fully_replicated and leaf.size < 0.01 * whole
    assert not shapes[136, 128].is_fully_replicated
    if name == "adafactor":  # rows and columns: they have another shape than the table
        assert {(136,), (128,)} <= seen and (136, 128) not in seen
    elif name != "sgd":
        assert set(shapes) <= seen


def test_frozen_parameters_have_no_moments_and_stay_with_their_average():
    names = frozenset({"embedding.table", "stack.bias"})
    for devices in (1, 8):
        state, _ = take_two_steps("adamw", devices, names, 0.9)
        free, _ = take_two_steps("adamw", devices)
        start = nn.meta.unbox(make_boxed())
        for tree in (state.params, state.ema):
            np.testing.assert_array_equal(tree["embedding"]["table"], start["embedding"]["table"])
            np.testing.assert_array_equal(tree["stack"]["bias"], start["stack"]["bias"])
            assert np.abs(np.asarray(tree["odd"]["v"] - start["odd"]["v"])).min() > 1e-4
        saved = [sum(leaf.size for leaf in jax.tree.leaves(s.opt_state)) for s in (free, state)]
        assert saved[0] - saved[1] == 2 * (136 * 128 + 3 * 16)
