"""One update of the parameters, from one batch or from several, the same on one device and on many."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
from seq2seq_jax.parallel.spread import Gradient


@struct.dataclass
class TrainState:
    """All that training carries; everything else is a function of (config, seed, step)."""

    step: Array  # [] int32, updates taken, skipped ones included
    skipped: Array  # [] int32, non-finite updates in a row
    params: PyTree
    opt_state: PyTree
    ema: PyTree = None  # moving average of the parameters, where there is one

    @property
    def averaged(self) -> PyTree:
        """The parameters to evaluate and to translate with: their moving average where there is one."""
        return self.params if self.ema is None else self.ema


@struct.dataclass
class Total:
    """What the batches of one update have come to so far: it is never saved."""

    objective: Array  # [] float32
    sums: Sums
    grads: PyTree  # of the objective


Update = Callable[[TrainState, Total], tuple[TrainState, Sums]]
"""`update(state, total) -> (state, sums)`."""

DIVISORS = {"token": "weight", "sentence": "rows"}
"""What a gradient is a mean over → the sum that counts it."""


def init_state(params: PyTree, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0) -> TrainState:
    """The state before the first step.

    Args:
        params: may be boxed with the names of their axes; the optimizer's state and the average never are.
        optimizer: of the parameters.
        ema_decay: above 0 the state has a moving average.
    """
    step, skipped = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)  # two buffers: both are donated
    plain = nn.meta.unbox(params)
    ema = jax.tree.map(jnp.copy, plain) if ema_decay else None
    return TrainState(step=step, skipped=skipped, params=params, opt_state=optimizer.init(plain), ema=ema)


def make_train_step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float = 0.0,
    loss_per: str = "token",
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Builds `step(state, batch) -> (state, sums)`, to be jitted with the state donated; see `make_update`.

    Args:
        gradient: of the batch's sums.
        optimizer: of the parameters.
        seed: of all random draws, together with the number of the batch.
        ema_decay: of the moving average; 0 is none.
        loss_per: see `make_update`.
    """
    update = make_update(optimizer, ema_decay=ema_decay, loss_per=loss_per)
    total_of = make_totals(gradient, seed=seed, accumulate=1)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        return update(state, total_of(state.params, state.step, jnp.int32(0), batch))

    return train_step


def make_totals(gradient: Gradient, *, seed: int, accumulate: int) -> Callable[[PyTree, Array, Array, Batch], Total]:
    """Builds `total(params, step, number, batch)` of one batch: that of this number among those of the update `step`.

    Random draws are keyed by the global batch's own number, `step * accumulate + number`.
    """

    def total_of(params: PyTree, step: Array, number: Array, batch: Batch) -> Total:
        key = jax.random.fold_in(jax.random.key(seed), step * accumulate + number)
        (objective, sums), grads = gradient(params, batch, key, step)
        return Total(objective, sums, grads)

    return total_of


def make_update(optimizer: optax.GradientTransformation, *, ema_decay: float, loss_per: str) -> Update:
    """Builds `update(state, total) -> (state, sums)`: one step down the gradient of the mean.

    The mean is taken once, over all batches of the update: of the loss over what its `weight` counts, which is tokens
    (or candidates' sentences), or with `loss_per` "sentence" of the sentences' summed losses over `rows`, the sentences
    that there are (Sutskever et al. 2014, section 3.4). It is what the optimizer clips. What is logged follows from
    the sums and is per token in both cases. An update whose
    objective or gradient norm is not finite changes nothing but the counters (`skipped`, and `step`: its batches
    are consumed); one that is not finite itself leaves the parameters alone (its gradient, which was finite,
    enters the moments). Where the parameters stay, so does their average.

    The sums get `grad_norm` (before clipping), `finite` (1 or 0) and `skipped` (in a row).
    """

    def update(state: TrainState, total: Total) -> tuple[TrainState, Sums]:
        count = jnp.maximum(total.sums[DIVISORS[loss_per]], 1.0)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), total.grads)
        norm = optax.tree.norm(grads)

        def advance() -> tuple[PyTree, PyTree, PyTree, Array]:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            finite = jnp.isfinite(optax.tree.norm(updates))  # a finite gradient can still meet an absurd rate
            updates = jax.tree.map(lambda u: jnp.where(finite, u, 0.0), updates)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema is not None:
                moved = move_average(ema, params, decay=warm_decay(ema_decay, state.step))
                ema = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, ema)
            return params, opt_state, ema, finite

        params, opt_state, ema, finite = jax.lax.cond(
            jnp.isfinite(total.objective) & jnp.isfinite(norm),
            advance,
            lambda: (state.params, state.opt_state, state.ema, jnp.bool_(False)),
        )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        state = TrainState(step=state.step + 1, skipped=skipped, params=params, opt_state=opt_state, ema=ema)
        return state, {**total.sums, "grad_norm": norm, "finite": finite.astype(jnp.float32), "skipped": skipped}

    return update


def warm_decay(decay: float, step: Array) -> Array:
    """The decay of the moving average at update n (from 0): min(decay, (1 + n) / (10 + n)).

    The first averages would otherwise be the initial parameters for a long time. TensorFlow's
    `ExponentialMovingAverage(num_updates=n)`.
    """
    n = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def move_average(ema: PyTree, params: PyTree, *, decay: Array) -> PyTree:
    """decay * ema + (1 - decay) * params, as a difference: parameters that stand still have an average that does."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay).astype(old.dtype) * (new - old), ema, params)
