"""The loop over time of a recurrent layer, with a backward pass written by hand.

What makes it fast: the input products of all steps are one product before the loop (the caller's), the loop of the
backward pass carries the cotangents of the state only, and the gradient of the recurrent kernel is one product after
it, where `grad(lax.scan)` would add to it at every step. A layer that runs backwards in time reads and writes its
arrays at T - 1 - k: nothing is turned around. Both directions of a layer can share one loop, in which their two
products are one batched product.

Everything is time-major, `[T, B, ...]`. States are float32; products are made in the dtype of the inputs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.cells import Cell, Saved, State
from seq2seq_jax.layers.kernels.choice import Kernels, find_kernels
from seq2seq_jax.layers.runs import (
    PLAIN_LOOP,
    STATES,
    Loop,
    Run,
    Weights,
    add_bias,
    as_float,
    multiply,
    sum_products,
    zero_state,
)
from seq2seq_jax.layers.sweep import join, read, split, sweep


def recur(
    cell: Cell,
    projected: Float[Array, "T B Z"],
    weights: Weights,
    mask: Bool[Array, "T B"] | None = None,
    *,
    initial: State | None = None,
    noise: Float[Array, "B P"] | None = None,
    reverse: bool = False,
    loop: Loop = PLAIN_LOOP,
) -> tuple[Float[Array, "T B P"], State]:
    """Runs a recurrent layer over time-major sequences of different lengths.

    A masked step leaves the state as it was and gives a zero output, so that padding before, after
    or between the real steps changes nothing, in either direction.

    Args:
        cell: the equations of a step.
        projected: `[T, B, Z]`, input products of all steps; its dtype is the one that products are made in.
        weights: float32.
        mask: `[T, B]`, True where a step is real; None: all are.
        initial: state before the first step; zeros if absent.
        noise: `[B, P]` float32, factors of the output on its way to the next step, the same at every step
            (variational dropout: Gal and Ghahramani 2016, 1512.05287); they get no gradient.
        reverse: run from the last step to the first; outputs stay where their inputs are.
        loop: how it is run.

    Returns:
        The outputs `[T, B, P]` in the dtype of the inputs (zero where masked), and the state after the last real step.
    """
    run = Run(projected, weights, initial, noise)
    _check(cell, (run,))
    ((outputs, last),) = _recur(cell, (reverse,), loop, (run,), mask)
    return _blank(outputs, mask), last


def recur_both(
    cell: Cell,
    projected: tuple[Array, Array],
    weights: tuple[Weights, Weights],
    mask: Bool[Array, "T B"] | None = None,
    *,
    noise: tuple[Array | None, Array | None] = (None, None),
    loop: Loop = PLAIN_LOOP,
) -> tuple[Float[Array, "T B P"], Float[Array, "T B P"]]:
    """Runs both directions of a layer from zeros: the outputs of the one ahead in time, and of the one backwards.

    Arguments as of `recur`, two of each.
    """
    runs = tuple(Run(*each) for each in zip(projected, weights, (None, None), noise, strict=True))
    _check(cell, runs)
    if loop.both_at_once:
        (ahead, _), (back, _) = _recur(cell, (False, True), loop, runs, mask)
    else:
        ((ahead, _),) = _recur(cell, (False,), loop, runs[:1], mask)
        ((back, _),) = _recur(cell, (True,), loop, runs[1:], mask)
    return _blank(ahead, mask), _blank(back, mask)


def keep_states(layer: Callable[..., Any]) -> Callable[..., Any]:
    """The same layer, of whose insides the backward pass is given the states of its recurrences alone.

    To be used with `Loop.recompute`, around the input products and `recur`: what enters `recur` is as large as the
    gates, and is then made again too (the loop ahead is not run again).
    """
    return jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(STATES))


def _check(cell: Cell, runs: tuple[Run, ...]) -> None:
    if cell.states == 1 and any(run.weights.projection is not None for run in runs):
        raise ValueError(f"the output of {cell} is its state, which cannot be projected; use an LSTM cell")
    if len({run.noise is None for run in runs}) > 1:
        raise ValueError("`noise` must be given for both directions or for none")


def _blank(outputs: Array, mask: Array | None) -> Array:
    return outputs if mask is None else jnp.where(mask[..., None], outputs, jnp.zeros([], outputs.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _recur(
    cell: Cell, turned: tuple[bool, ...], loop: Loop, runs: tuple[Run, ...], mask: Array | None
) -> tuple[tuple[Array, State], ...]:
    """Outputs of every step `[T, B, P]`, a masked one repeating what was before it, and the last state, of each run."""
    tapes, last = _run(cell, turned, loop, runs, mask, keep=())
    return tuple((tape.outputs, state) for tape, state in zip(tapes, last, strict=True))


def _recur_fwd(cell: Cell, turned: tuple[bool, ...], loop: Loop, runs: tuple[Run, ...], mask: Array | None) -> Any:
    keep = ("states",) if loop.recompute else ("states", "saved")
    tapes, last = _run(cell, turned, loop, runs, mask, keep=keep)
    kept = runs
    if loop.recompute:
        tapes, last = checkpoint_name((tapes, last), STATES)
    else:  # the input products are of no use any more
        kept = tuple(dataclasses.replace(run, projected=jnp.zeros_like(run.projected, shape=(0,))) for run in runs)
    return tuple((tape.outputs, state) for tape, state in zip(tapes, last, strict=True)), (kept, mask, tapes)


def _recur_bwd(cell: Cell, turned: tuple[bool, ...], loop: Loop, kept: Any, cotangents: Any) -> Any:
    runs, mask, tapes = kept
    if loop.recompute:
        tapes = tuple(_make_gates(cell, *each) for each in zip(runs, turned, tapes, strict=True))
    kernels = find_kernels(cell, loop, runs, tapes[0].saved[0])
    if kernels is None:
        backs, d_initial = _backward(cell, turned, loop, runs, mask, tapes, cotangents)
    else:
        backs, d_initial = _backward_by(kernels, cell, turned, runs, mask, tapes, cotangents)
    each = zip(runs, turned, tapes, backs, d_initial, strict=True)
    return tuple(_gradients(cell, *parts) for parts in each), None


_recur.defvjp(_recur_fwd, _recur_bwd)


@struct.dataclass
class _Tape:
    """What the loop ahead leaves behind of a run; a masked step repeats the state before it."""

    outputs: Array  # [T, B, P]
    states: State  # all of the state but the output, [T, B, H] float32 each
    saved: Saved  # of the cell


@struct.dataclass
class _Back:
    """What the loop back leaves behind of a run; zero where masked."""

    dx: Array  # [T, B, Z], cotangents of the input's part
    dh: Array | None  # [T, B, P], those of the outputs, where there is a projection
    kept: Saved  # of the cell


def _transposed(kernel: Array) -> Array:
    return jnp.swapaxes(kernel, -1, -2)


def _join_weights(runs: Sequence[Run], dtype: jnp.dtype) -> Weights:
    """Kernels in the dtype of products, vectors with an axis for the rows where there are two runs."""
    weights = [run.weights for run in runs]
    vectors = [{k: v if len(runs) == 1 else v[None] for k, v in w.vectors.items()} for w in weights]
    projections = [w.projection.astype(dtype) for w in weights if w.projection is not None]
    biases = [w.bias if len(runs) == 1 else w.bias[None] for w in weights if w.bias is not None]
    recurrent = join([w.recurrent.astype(dtype) for w in weights])
    return Weights(
        recurrent, join(projections) if projections else None, join(vectors), join(biases) if biases else None
    )


def _join_noise(runs: Sequence[Run]) -> Array | None:
    return None if runs[0].noise is None else join([run.noise for run in runs])


def _choose(mask: Array | None, at: Sequence[Array], new: Any, old: Any) -> Any:
    """The new where the time is a real step of the row, else the old."""
    if mask is None:
        return new
    real = read([mask] * len(at), at)[..., None]
    return jax.tree.map(lambda a, b: jnp.where(real, a, b), new, old)


def _run(
    cell: Cell, turned: Sequence[bool], loop: Loop, runs: Sequence[Run], mask: Array | None, *, keep: tuple[str, ...]
) -> tuple[tuple[_Tape, ...], tuple[State, ...]]:
    """`_forward`, by kernels where they are wanted and can."""
    kernels = find_kernels(cell, loop, runs, runs[0].projected)
    if kernels is None:
        return _forward(cell, turned, loop, runs, mask, keep=keep)
    tapes: list[_Tape] = []
    last: list[State] = []
    for run, back in zip(runs, turned, strict=True):
        projected = add_bias(run.projected, run.weights.bias).astype(run.projected.dtype)
        kernel, (c0, h0) = run.weights.recurrent.astype(projected.dtype), _first_state(cell, run, projected)
        gates, cells, outputs = kernels.run_forward(projected, kernel, _fill(mask, projected), c0, h0, back)
        end = 0 if back else -1
        tapes.append(_Tape(outputs, (cells,), (gates,)))
        last.append((cells[end], outputs[end].astype(jnp.float32)))
    return tuple(tapes), tuple(last)


def _fill(mask: Array | None, like: Array) -> Array:
    return jnp.ones_like(like, bool, shape=like.shape[:2]) if mask is None else mask


def _backward_by(
    kernels: Kernels,
    cell: Cell,
    turned: Sequence[bool],
    runs: Sequence[Run],
    mask: Array | None,
    tapes: Sequence[_Tape],
    cotangents: Sequence[tuple[Array, State]],
) -> tuple[tuple[_Back, ...], tuple[State, ...]]:
    """`_backward`, by kernels."""
    backs, initial = [], []
    for run, back, tape, (d_outputs, (d_c, d_h)) in zip(runs, turned, tapes, cotangents, strict=True):
        (gates,), (cells,), (c0, _) = tape.saved, tape.states, _first_state(cell, run, tape.outputs)
        kernel, real = run.weights.recurrent.astype(gates.dtype), _fill(mask, gates)
        dx, *d_state = kernels.run_backward(gates, cells, c0, real, kernel, d_outputs, d_c, d_h, back)
        backs.append(_Back(dx, None, ()))
        initial.append(tuple(d_state))
    return tuple(backs), tuple(initial)


def _forward(
    cell: Cell, turned: Sequence[bool], loop: Loop, runs: Sequence[Run], mask: Array | None, *, keep: tuple[str, ...]
) -> tuple[tuple[_Tape, ...], tuple[State, ...]]:
    """The loop ahead: the outputs, what else is to be kept ("states", "saved"), and the last states."""
    like, dtype = runs[0].projected, runs[0].projected.dtype
    weights, noise = _join_weights(runs, dtype), _join_noise(runs)
    held = jnp.dtype(jnp.float32) if cell.reads_output else dtype  # of the output, between steps

    def step(n: Array, at: Sequence[Array], state: State, x: Array) -> tuple[State, _Tape]:
        h = state[-1] if noise is None else state[-1] * noise
        new, saved = cell.forward(add_bias(x, weights.bias), multiply(h, weights.recurrent), state, weights.vectors)
        if weights.projection is not None:
            new = (*new[:-1], multiply(new[-1], weights.projection))
        state = _choose(mask, at, (*new[:-1], new[-1].astype(held)), state)
        kept = tuple(array.astype(dtype) for array in saved) if "saved" in keep else ()
        return state, _Tape(state[-1].astype(dtype), state[:-1] if "states" in keep else (), kept)

    start = join([_first_state(cell, run, like) for run in runs])
    start = (*start[:-1], start[-1].astype(held))
    projected = [run.projected for run in runs]
    last, tapes = sweep(
        step, start, length=like.shape[0], turned=turned, unroll=loop.unroll, like=like, inputs=projected
    )
    return tapes, split(as_float(last), len(runs))


def _backward(
    cell: Cell,
    turned: Sequence[bool],
    loop: Loop,
    runs: Sequence[Run],
    mask: Array | None,
    tapes: Sequence[_Tape],
    cotangents: Sequence[tuple[Array, State]],
) -> tuple[tuple[_Back, ...], tuple[State, ...]]:
    """The loop back: the cotangents of all pre-activations, and of the initial states."""
    like, length, dtype = tapes[0].outputs, tapes[0].outputs.shape[0], tapes[0].outputs.dtype
    weights, noise = _join_weights(runs, dtype), _join_noise(runs)
    back_kernel = _transposed(weights.recurrent)
    initial = join([_first_state(cell, run, like) for run in runs])
    states = [(*tape.states, tape.outputs) for tape in tapes]

    def read_before(n: Array, at: Sequence[Array]) -> State:
        earlier = [jnp.clip(t + 1 if back else t - 1, 0, length - 1) for t, back in zip(at, turned, strict=True)]
        found = as_float(read(states, earlier))
        return tuple(jnp.where(n == length - 1, a, b) for a, b in zip(initial, found, strict=True))

    def step(n: Array, at: Sequence[Array], d_state: State, x: None) -> tuple[State, _Back]:
        saved, after = as_float(read([tape.saved for tape in tapes], at)), as_float(read(states, at))
        d_output = d_state[-1] + read([outputs for outputs, _ in cotangents], at).astype(jnp.float32)
        dh, d_cell = None, d_output
        if weights.projection is not None:
            dh = d_output.astype(dtype)
            d_cell = multiply(dh, _transposed(weights.projection))
        dx, d_before, kept = cell.backward(saved, read_before(n, at), after, (*d_state[:-1], d_cell), weights.vectors)
        dx = dx.astype(dtype)
        through = multiply(cell.through(saved, dx.astype(jnp.float32), weights.vectors), back_kernel)
        through = through if noise is None else through * noise
        # With a projection the cell's own h is not the output: of the output before, only p reads.
        new = (*d_before[:-1], through if dh is not None else d_before[-1] + through)
        given = _Back(dx, dh, tuple(array.astype(dtype) for array in kept))
        given = _choose(mask, at, given, jax.tree.map(jnp.zeros_like, given))
        return _choose(mask, at, new, (*d_state[:-1], d_output)), given

    start, away = join([last for _, last in cotangents]), [not back for back in turned]
    d_initial, backs = sweep(step, start, length=length, turned=away, unroll=loop.unroll, like=like)
    return backs, split(d_initial, len(runs))


def _make_gates(cell: Cell, run: Run, turned: bool, tape: _Tape) -> _Tape:
    """The tape with what the loop ahead did not save, made of all steps at once."""
    before = _states_before(cell, run, tape, turned)
    dtype = run.projected.dtype
    h = before[-1] if run.noise is None else before[-1] * run.noise
    p = multiply(h, run.weights.recurrent.astype(dtype))
    _, saved = cell.forward(add_bias(run.projected, run.weights.bias), p, before, run.weights.vectors)
    return dataclasses.replace(tape, saved=tuple(array.astype(dtype) for array in saved))


def _gradients(cell: Cell, run: Run, turned: bool, tape: _Tape, back: _Back, d_initial: State) -> Run:
    """The cotangent of a run: the gradient of every kernel is one product over all steps."""
    saved, vectors, dx = as_float(tape.saved), run.weights.vectors, back.dx
    dp = cell.through(saved, dx.astype(jnp.float32), vectors).astype(dx.dtype)
    before = _states_before(cell, run, tape, turned)
    h = before[-1] if run.noise is None else before[-1] * run.noise
    recurrent = sum_products(h, dp)
    projection = None
    if back.dh is not None:
        own = cell.emit(saved, tape.states, vectors).astype(dx.dtype)
        projection = sum_products(own, back.dh)
    sums = {}
    if vectors:
        after = (*tape.states, tape.outputs.astype(jnp.float32))
        terms = cell.vector_terms(saved, as_float(back.kept), before, after, dx.astype(jnp.float32), vectors)
        sums = {name: term.sum(axis=(0, 1)) for name, term in terms.items()}
    bias = None if run.weights.bias is None else dx.astype(jnp.float32).sum(axis=(0, 1))
    weights = Weights(recurrent, projection, sums, bias)
    return Run(dx, weights, None if run.initial is None else d_initial, None)


def _first_state(cell: Cell, run: Run, like: Array) -> State:
    return zero_state(cell, run.weights, like) if run.initial is None else run.initial


def _states_before(cell: Cell, run: Run, tape: _Tape, turned: bool) -> State:
    """What each step started from, `[T, B, ...]` float32."""
    first = _first_state(cell, run, tape.outputs)
    after = (*tape.states, tape.outputs.astype(jnp.float32))
    return tuple(
        jnp.concatenate([a[1:], b[None]] if turned else [b[None], a[:-1]]) for a, b in zip(after, first, strict=True)
    )
