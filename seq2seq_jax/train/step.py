"""One training step, the same on one device and on many, and the state it carries from step to step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
from seq2seq_jax.parallel.spread import Gradient


@struct.dataclass
class TrainState:
    """All that training carries; everything else is a function of (config, seed, step)."""

    step: Array  # [] int32, steps taken = global batches consumed
    skipped: Array  # [] int32, non-finite steps in a row
    params: PyTree
    opt_state: PyTree


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    step, skipped = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)  # two buffers: both are donated
    return TrainState(step=step, skipped=skipped, params=params, opt_state=optimizer.init(params))


def make_train_step(
    gradient: Gradient, optimizer: optax.GradientTransformation, *, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Builds `step(state, batch) -> (state, sums)`, to be jitted with the state donated.

    `gradient` is that of the batch's sums, of which `sums["weight"]` is the divisor: what is followed is the
    gradient of the mean. A step whose loss or gradient norm is not finite
    changes nothing but the counters (`skipped`, and `step`: its batch is consumed); one whose update
    is not finite leaves the parameters alone (its gradient, which was finite, enters the moments).

    The sums get `grad_norm` (before clipping), `finite` (1 or 0) and `skipped` (in a row).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (objective, sums), grads = gradient(state.params, batch, key)
        weight = jnp.maximum(sums["weight"], 1.0)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        norm = optax.tree.norm(grads)

        def advance() -> tuple[PyTree, PyTree, Array]:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            finite = jnp.isfinite(optax.tree.norm(updates))  # a finite gradient can still meet an absurd rate
            updates = jax.tree.map(lambda u: jnp.where(finite, u, 0.0), updates)
            return optax.apply_updates(state.params, updates), opt_state, finite

        params, opt_state, finite = jax.lax.cond(
            jnp.isfinite(objective) & jnp.isfinite(norm),
            advance,
            lambda: (state.params, state.opt_state, jnp.bool_(False)),
        )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        state = TrainState(
            step=state.step + 1,
            skipped=skipped,
            params=params,
            opt_state=opt_state,
        )
        return state, {**sums, "grad_norm": norm, "finite": finite.astype(jnp.float32), "skipped": skipped}

    return train_step
