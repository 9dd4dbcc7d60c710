"""The training step: the mean's gradient, bad batches, many devices, resuming; and the benchmark's peer."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.interfaces import Batch
from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.parallel.shard import init_sharded, place_batch
from seq2seq_jax.parallel.softmax import cross_entropy
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.step import init_state, make_train_step

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VOCAB = 13
# 32 wide: XLA compiles it faster than a narrower one, whose products it unrolls.
MODEL = GNMT(GNMTConfig(VOCAB, VOCAB, 32, 1, 2, 32, "current_step", dropout=0.3, init_scale=0.3))


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# --- a model whose gradient is known -------------------------------------------------------------


def differentiate(loss):
    """What a step follows, on a mesh that `jit` looks after."""
    return jax.value_and_grad(loss, has_aux=True)


def squared_error(params, batch, key, step):
    """Weighted squared error of a line through x; a NaN in x or y is a bad batch."""
    del key, step
    error = batch["x"] * params["slope"] + params["offset"] - batch["y"]
    loss = jnp.sum(batch["weight"] * error**2)
    return loss, {"loss": loss, "weight": jnp.sum(batch["weight"])}


def root_error(params, batch, key, step):
    """Finite at an error of zero, where its gradient is not."""
    del key, step
    loss = jnp.sum(jnp.sqrt(params["slope"] * batch["x"]))
    return loss, {"loss": loss, "weight": jnp.float32(batch["x"].size)}


def make_line():
    return {"slope": jnp.float32(2.0), "offset": jnp.float32(-1.0)}


def make_points(*, y: float = 3.0):
    return {"x": jnp.array([1.0, 2.0, 5.0]), "y": jnp.array([0.0, y, 1.0]), "weight": jnp.array([1.0, 3.0, 0.0])}


def test_sgd_goes_down_the_gradient_of_the_mean():
    optimizer = make_optimizer("sgd", lambda n: 0.5)
    state, sums = jax.jit(make_train_step(differentiate(squared_error), optimizer, seed=0))(
        init_state(make_line(), optimizer), make_points()
    )
    # errors 1 and 0 (the third point has no weight): sums of weights 4, of gradients (2, 2)
    assert float(state.params["slope"]) == pytest.approx(2.0 - 0.5 * 2 / 4)
    assert float(state.params["offset"]) == pytest.approx(-1.0 - 0.5 * 2 / 4)
    assert float(sums["loss"]) == pytest.approx(1.0) and float(sums["weight"]) == 4.0
    assert float(sums["grad_norm"]) == pytest.approx(8**0.5 / 4)
    assert (int(state.step), int(state.skipped), float(sums["finite"]), int(sums["skipped"])) == (1, 0, 1.0, 0)


def test_grad_norm_is_that_before_clipping():
    optimizer = make_optimizer("sgd", lambda n: 1.0, clip_norm=0.01)
    step = make_train_step(differentiate(squared_error), optimizer, seed=0)
    state, sums = step(init_state(make_line(), optimizer), make_points())
    assert float(sums["grad_norm"]) == pytest.approx(8**0.5 / 4)
    moved = jax.tree.map(jnp.subtract, state.params, make_line())
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["sgd", "adam", "adam_then_sgd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_batch_changes_nothing_but_the_counters(name, bad):
    optimizer = make_optimizer(name, lambda n: 0.1, clip_norm=5.0, adam_steps=2, adam_learning_rate=0.1)
    step = jax.jit(make_train_step(differentiate(squared_error), optimizer, seed=0))
    state, _ = step(init_state(make_line(), optimizer), make_points())
    before = bits((state.params, state.opt_state))
    for run in (1, 2):
        state, sums = step(state, make_points(y=bad))
        assert bits((state.params, state.opt_state)) == before
        assert (int(state.step), int(state.skipped)) == (1 + run, run)
        assert (float(sums["finite"]), int(sums["skipped"])) == (0.0, run)
    state, sums = step(state, make_points(y=2.5))
    assert bits((state.params, state.opt_state)) != before
    assert (int(state.step), int(state.skipped), float(sums["finite"])) == (4, 0, 1.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_a_gradient_that_is_not_finite_is_a_bad_batch_too():
    optimizer = make_optimizer("adam", lambda n: 0.1)
    state = init_state({"slope": jnp.float32(1.0)}, optimizer)
    after, sums = make_train_step(differentiate(root_error), optimizer, seed=0)(state, {"x": jnp.array([1.0, 0.0])})
    assert np.isfinite(float(sums["loss"])) and not np.isfinite(float(sums["grad_norm"]))
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))
    assert int(after.skipped) == 1


def test_a_batch_of_weight_zero_is_no_division_by_zero():
    optimizer = make_optimizer("sgd", lambda n: 0.5)
    points = make_points() | {"weight": jnp.zeros(3)}
    step = make_train_step(differentiate(squared_error), optimizer, seed=0)
    state, sums = step(init_state(make_line(), optimizer), points)
    assert bits(state.params) == bits(make_line()) and float(sums["finite"]) == 1.0


def test_the_state_can_be_donated_from_the_first_step():
    optimizer = make_optimizer("sgd", lambda n: 0.5)
    step = jax.jit(make_train_step(differentiate(squared_error), optimizer, seed=0), donate_argnums=0)
    state, _ = step(init_state(make_line(), optimizer), make_points())
    assert int(state.step) == 1


def test_the_key_is_a_function_of_seed_and_step():
    def loss(params, batch, key, step):
        return params["slope"] * batch["x"].sum(), {"weight": jnp.float32(1), "draw": jax.random.uniform(key)}

    optimizer = make_optimizer("sgd", lambda n: 0.0)

    def draws(seed: int, first: int, steps: int) -> list[float]:
        step = jax.jit(make_train_step(differentiate(loss), optimizer, seed=seed))
        state = init_state(make_line(), optimizer)
        state, found = state.replace(step=jnp.int32(first)), []
        for _ in range(steps):
            state, sums = step(state, make_points())
            found.append(float(sums["draw"]))
        return found

    straight = draws(0, 0, 4)
    assert draws(0, 2, 2) == straight[2:]
    assert len({*straight, *draws(1, 0, 4)}) == 8


# --- the moving average --------------------------------------------------------------------------


def test_the_average_is_that_of_the_parameters_with_a_decay_that_warms_up():
    optimizer = make_optimizer("sgd", lambda n: 0.1)
    step = jax.jit(make_train_step(differentiate(squared_error), optimizer, seed=0, ema_decay=0.25))
    state = init_state(make_line(), optimizer, ema_decay=0.25)
    mean = {name: np.float64(value) for name, value in make_line().items()}
    for n in range(6):
        bad = n == 4
        state, _ = step(state, make_points(y=np.nan if bad else 2.0 + n))
        decay = min(0.25, (1 + n) / (10 + n))  # 1/10, 2/11, then 1/4
        for name in mean:
            if not bad:
                mean[name] = decay * mean[name] + (1 - decay) * np.float64(state.params[name])
            assert float(state.ema[name]) == pytest.approx(mean[name], rel=1e-6)
            assert float(state.averaged[name]) == float(state.ema[name]) != float(state.params[name])
    assert init_state(make_line(), optimizer).averaged == make_line()


def test_an_update_that_is_not_finite_leaves_the_average_alone_too():
    optimizer = optax.sgd(1e38)
    loss = lambda p, batch, key, step: (100.0 * p["w"].sum(), {"weight": 1.0})  # noqa: E731
    step = jax.jit(make_train_step(differentiate(loss), optimizer, seed=0, ema_decay=0.9), donate_argnums=0)
    start = init_state({"w": jnp.ones(3)}, optimizer, ema_decay=0.9).replace(ema={"w": jnp.zeros(3)})
    state, sums = step(start, None)
    np.testing.assert_array_equal(state.ema["w"], np.zeros(3))
    assert float(sums["finite"]) == 0.0


# --- a tiny GNMT with dropout --------------------------------------------------------------------


def translation_loss(params, batch, key, step):
    """The cross-entropy of a batch, summed."""
    del step

    def run(model):
        memory = model.encode(batch.source, batch.source_mask, train=True)
        return model.decode(batch.target_in, memory, train=True).hidden, *model.softmax_weights()

    hidden, kernel, bias = MODEL.apply({"params": params}, rngs={"dropout": key}, method=run)
    weights = batch.target_mask.astype(jnp.float32)
    sums = cross_entropy(hidden, kernel, bias, batch.target_out, weights, label_smoothing=0.1, chunk=48)
    return sums.loss, {"loss": sums.loss, "nll": sums.nll, "correct": sums.correct, "weight": weights.sum()}


def make_batch(seed: int) -> Batch:
    """Sixteen sentences of uneven lengths; the last rows only fill the batch."""
    generator = np.random.default_rng(seed)
    rows, source_len, target_len = 16, 6, 5
    row_mask = np.arange(rows) < 13

    def mask(length: int) -> np.ndarray:
        lengths = generator.integers(1, length + 1, rows)
        return (np.arange(length) < lengths[:, None]) & row_mask[:, None]

    source_mask, target_mask = mask(source_len), mask(target_len)
    tokens = generator.integers(4, VOCAB, (rows, source_len + target_len), dtype=np.int32)
    source, target = np.split(tokens, [source_len], axis=1)
    return Batch(
        source=np.where(source_mask, source, 0),
        source_mask=source_mask,
        target_in=np.where(target_mask, np.roll(target, 1, axis=1), 0),
        target_out=np.where(target_mask, target, 0),
        target_mask=target_mask,
        example_ids=np.where(row_mask, np.arange(rows), -1).astype(np.int32),
        row_mask=row_mask,
    )


@functools.cache
def make_step():
    """Plain gradient descent: Adam would hide a factor that is common to all gradients."""
    optimizer = make_optimizer("sgd", lambda n: 1.0)
    return jax.jit(make_train_step(differentiate(translation_loss), optimizer, seed=0))


@functools.cache
def make_start():
    """The state before the first step, numpy arrays."""

    def init(key, batch):
        params = MODEL.init(key, batch.source, batch.source_mask, batch.target_in)["params"]
        return init_state(params, make_optimizer("sgd", lambda n: 1.0))

    one = make_layout(data=1, fsdp=1, stage=1, tensor=1)
    return jax.tree.map(np.asarray, init_sharded(init, one, jax.random.key(0), make_batch(0)))


def run_steps(state, mesh, numbers):
    """Takes a step with each numbered batch, from host arrays; returns the state and the mean losses."""
    state, losses = jax.device_put(state, NamedSharding(mesh, PartitionSpec())), []
    for number in numbers:
        state, sums = make_step()(state, place_batch(make_batch(number), mesh))
        losses.append(float(sums["loss"] / sums["weight"]))
    return state, losses


def test_resuming_is_bit_equal_to_never_having_stopped():
    mesh = make_mesh(data=1)
    straight, losses = run_steps(make_start(), mesh, range(4))
    half, first_losses = run_steps(make_start(), mesh, range(2))
    resumed, last_losses = run_steps(jax.tree.map(np.asarray, half), mesh, range(2, 4))
    assert bits(resumed) == bits(straight)
    assert first_losses + last_losses == losses


def test_dropout_is_drawn_anew_every_step():
    mesh, start = make_mesh(data=1), make_start()
    first, again, other = (run_steps(start.replace(step=np.int32(n)), mesh, [0])[1] for n in (0, 0, 1))
    assert first == again != other


# --- the peer of the benchmark -------------------------------------------------------------------


def test_the_benchmark_s_peer_is_the_same_computation(monkeypatch, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed: the benchmark's peer cannot be compared")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    import gnmt_step

    sizes = "--features 6 --layers 3 --vocab 17 --rows 3 --source 5 --target 4 --check".split()
    assert gnmt_step.run_check(gnmt_step.parse_arguments(sizes))
    assert "parameters: ours" in capsys.readouterr().out


def test_an_update_that_is_not_finite_leaves_the_parameters_alone() -> None:
    params = {"w": jnp.ones(3)}
    optimizer = optax.sgd(1e38)  # times a gradient of 100: more than float32 holds
    loss = lambda p, batch, key, step: (100.0 * p["w"].sum(), {"weight": 1.0})  # noqa: E731
    step = jax.jit(make_train_step(differentiate(loss), optimizer, seed=0))
    state, sums = step(init_state(params, optimizer), None)
    np.testing.assert_array_equal(state.params["w"], params["w"])
    assert float(sums["finite"]) == 0.0 and int(state.skipped) == 1 and int(state.step) == 1
