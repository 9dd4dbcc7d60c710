"""Numbers that are not finite, in a hundred runs of the real loop, step and checkpoints: none is applied, none is kept.

The reference is float64 NumPy that leaves the bad steps out.
"""

import functools
import io
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.errors import DivergedError
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.parallel.shard import batch_sharding, init_sharded
from seq2seq_jax.parallel.spread import spread_gradient
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.loop import Run, fit
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import init_state, make_train_step
from seq2seq_jax.train.writers import MetricsFile, Progress

RUNS, STEPS, SAVE_EVERY, MAX_SKIPPED, RATE = 100, 16, 4, 3, 0.05
TO_DISK = 10  # every so many runs; the states that the others save are kept as they are
KINDS = ("input", "target", "loss", "gradient", "one element of a gradient", "sum")
"""Where a number goes bad; the loss stays finite in "gradient" and "one element of a gradient"."""


def loss_of(params, batch, key, step):
    """The squared error of a line; the rest is 0, with a gradient of 0, as long as nothing bad is put in."""
    del key, step
    error = batch["x"] * params["slope"] + params["offset"] - batch["y"]
    # At 0 the root is finite and its slope is not.
    gradients = jnp.sum(jnp.sqrt(batch["under_roots"] * params["slope"][0] ** 2) * 1e-30)
    loss = jnp.sum(error**2) + batch["added"] + gradients
    return loss, {"loss": loss, "weight": jnp.float32(batch["x"].size)}


@functools.cache
def make_step():
    optimizer = make_optimizer("sgd", lambda count: RATE, clip_norm=0.0)
    differentiate = jax.value_and_grad(loss_of, has_aux=True)
    return optimizer, jax.jit(make_train_step(differentiate, optimizer, seed=0))


def make_points(number, kind, draw):
    """The numbers of a step, with something bad in them where a kind is given."""
    generator = np.random.default_rng(number)
    x, y = generator.normal(size=(2, 3)).astype(np.float32)
    points = {"x": x, "y": y, "added": np.float32(0), "under_roots": np.ones(2, np.float32)}
    bad = draw.choice((np.nan, np.inf, -np.inf))
    if kind == "input":
        points["x"][draw.randrange(3)] = bad
    elif kind == "target":
        points["y"][draw.randrange(3)] = bad
    elif kind == "loss":
        points["added"] = np.float32(bad)
    elif kind == "gradient":
        points["under_roots"][:] = 0.0
    elif kind == "one element of a gradient":
        points["under_roots"][draw.randrange(2)] = 0.0
    elif kind == "sum":
        points["y"][:] = 3e38  # each of them is finite
    return points


def take_good_steps(steps):
    """Parameters after the steps in which nothing is bad, in float64."""
    slope, offset = np.full(3, 0.5), 0.0
    for number, kind in enumerate(steps, 1):
        if kind is None:
            points = make_points(number, None, random)
            error = points["x"].astype(float) * slope + offset - points["y"]
            slope = slope - RATE * 2 * error * points["x"] / 3
            offset = offset - RATE * 2 * error.sum() / 3
    return {"slope": slope, "offset": offset}


class Step:
    """The real step, on the points of a run."""

    seconds = 0.0

    def __init__(self, points):
        self._points = points

    def __call__(self, state, batch):
        return make_step()[1](state, self._points[int(batch.example_ids[0])])


def make_batch(number):
    filler = np.zeros((1, 1), np.int32)
    return Batch(
        source=filler,
        source_mask=filler > 0,
        target_in=filler,
        target_out=filler,
        target_mask=filler > 0,
        example_ids=np.array([number], np.int32),
        row_mask=np.array([True]),
    )


class Kept:
    """Checkpoints in memory."""

    def __init__(self):
        self.states = {}

    def save(self, step, state, *, meta, metrics=None):
        self.states[step] = jax.device_get(state)
        return True

    def poll(self):
        pass


def train(folder, steps, draw, checkpoints):
    """A run over `steps` (None, or a kind of badness); the state it ended with, None if it diverged, and its error."""
    points = {number: make_points(number, kind, draw) for number, kind in enumerate(steps, 1)}
    run = Run(
        step=Step(points),
        batches=lambda start: (make_batch(number) for number in range(start + 1, len(steps) + 1)),
        example_ids=lambda step: np.array([step + 1]),
        place=lambda batch: batch,
        evaluate=lambda state: {"bleu": float(state.step)},
        meta=lambda step: {"examples": step},
        learning_rate=lambda step: RATE,
        flops=lambda sums: 0.0,
        peak_flops=None,
        steps=len(steps),
        save_every=SAVE_EVERY,
        evaluate_every=1000,
        log_every=5,
        max_skipped=MAX_SKIPPED,
    )
    params = {"slope": jnp.full(3, 0.5), "offset": jnp.float32(0)}
    state = init_state(params, make_step()[0])
    with (
        MetricsFile(folder / "metrics.jsonl") as metrics,
        Progress(len(steps), stream=io.StringIO()) as progress,
        StopSignal() as stop,
    ):
        try:
            return fit(run, state, checkpoints=checkpoints, metrics=metrics, progress=progress, stop=stop), None
        except DivergedError as error:
            return None, error


def draw_steps(draw):
    share = draw.choice((0.1, 0.3, 0.6))
    return [draw.choice(KINDS) if draw.random() < share else None for _ in range(STEPS)]


def find_divergence(steps):
    """The step with which too many in a row are bad, or None."""
    in_a_row = 0
    for number, kind in enumerate(steps, 1):
        in_a_row = in_a_row + 1 if kind else 0
        if in_a_row == MAX_SKIPPED:
            return number
    return None


def test_a_hundred_runs_with_bad_numbers_apply_none_and_save_none(tmp_path):
    draw, diverged = random.Random(8), 0
    optimizer, _ = make_step()
    for number in range(RUNS):
        steps, folder = draw_steps(draw), tmp_path / str(number)
        if number % TO_DISK:
            kept = Kept()
            state, error = train(folder, steps, draw, kept)
            states = kept.states
        else:
            with Checkpoints(folder / "checkpoints", keep_last=99, warn=pytest.fail) as checkpoints:
                state, error = train(folder, steps, draw, checkpoints)
            states = read_states(folder, optimizer)
        last, saved = find_divergence(steps), list(states)
        assert (error is None) == (last is None), steps
        if error is None:
            check_parameters(state.params, steps)
            assert saved == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))
        else:
            diverged += 1
            assert error.exit_code == 3 and f"step {last}: {MAX_SKIPPED} steps in a row" in str(error)
            assert f"examples [{last}]" in str(error)
            assert saved == list(range(SAVE_EVERY, last, SAVE_EVERY))
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        told = [record["step"] for record in records if record.get("event") == "skipped"]
        assert told == [n for n, kind in enumerate(steps, 1) if kind and (last is None or n <= last)]
        for step, found in states.items():
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
            check_parameters(found.params, steps[:step])
    assert 20 < diverged < 80


def check_parameters(params, steps):
    for name, value in take_good_steps(steps).items():
        np.testing.assert_allclose(np.asarray(params[name]), value, rtol=1e-4, atol=1e-5)


def read_states(folder, optimizer):
    """Step to state, of all checkpoints."""
    params = {"slope": jnp.zeros(3), "offset": jnp.float32(0)}
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), init_state(params, optimizer)
    )
    with Checkpoints(folder / "checkpoints", read_only=True, warn=pytest.fail) as checkpoints:
        return {step: checkpoints.restore(target, step=step).state for step in checkpoints.steps()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_bad_in_the_way_it_says(kind):
    """Else a run of the test above could be of nothing at all."""
    optimizer, step = make_step()
    state = init_state({"slope": jnp.full(3, 0.5), "offset": jnp.float32(0)}, optimizer)
    _, sums = step(state, make_points(1, kind, random.Random(0)))
    assert not sums["finite"]
    assert np.isfinite(sums["loss"]) == ("gradient" in kind)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_goes_bad_on_one_device_of_eight_is_applied_on_none(kind):
    """The rows of one device make the loss, or the gradient of one parameter's part alone, no number."""

    def loss(params, batch, key, step):
        del key, step
        kernel = params["kernel"]
        roots = jnp.sum(jnp.sqrt(batch["under_roots"] * kernel[0, 0] ** 2) * 1e-30)
        return jnp.sum(batch["x"]) * jnp.sum(jnp.sin(kernel)) + roots, {"weight": jnp.sum(batch["x"] ** 0)}

    def init():
        kernel = jnp.ones((64, 32))
        return init_state({"kernel": nn.LogicallyPartitioned(kernel, ("hidden", "gates"))}, optimizer)

    layout = make_layout(data=2, fsdp=4, stage=1, tensor=1)
    optimizer = make_optimizer("adam", lambda count: RATE, clip_norm=1.0)
    boxed = jax.eval_shape(init)
    step = jax.jit(make_train_step(spread_gradient(loss, layout, boxed.params), optimizer, seed=0))
    state, place = init_sharded(init, layout), batch_sharding(layout.mesh)
    assert not state.params["kernel"].sharding.is_fully_replicated
    rows = {"x": np.arange(1.0, 9, dtype=np.float32), "under_roots": np.ones(8, np.float32)}
    moved, sums = step(state, jax.device_put(rows, place))
    assert sums["finite"] and not np.array_equal(moved.params["kernel"], state.params["kernel"])
    if kind == "loss":
        rows["x"][5] = np.nan
    else:
        rows["under_roots"][5] = 0.0
    after, sums = step(moved, jax.device_put(rows, place))
    assert not sums["finite"] and not np.isfinite(sums["grad_norm"]) and after.skipped == 1
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (moved.params, moved.opt_state))
