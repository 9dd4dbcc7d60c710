"""Optimisers by name, all of them optax's; ours is only GNMT's change of one for another."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seq2seq_jax.interfaces import Array

OPTIMIZERS = ("adam", "adamw", "sgd", "adam_then_sgd")


class SwitchState(NamedTuple):
    """Steps taken, and the states of both optimisers."""

    taken: Array  # [] int32
    first: Any
    second: Any


def switch_after(
    steps: int, first: optax.GradientTransformation, second: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Uses `first` for the first `steps` updates and `second` from then on."""

    def init(params: optax.Params) -> SwitchState:
        return SwitchState(jnp.zeros([], jnp.int32), first.init(params), second.init(params))

    def update(updates: optax.Updates, state: SwitchState, params: optax.Params | None = None) -> Any:
        def use_first() -> tuple[optax.Updates, SwitchState]:
            out, new = first.update(updates, state.first, params)
            return out, SwitchState(state.taken + 1, new, state.second)

        def use_second() -> tuple[optax.Updates, SwitchState]:
            out, new = second.update(updates, state.second, params)
            return out, SwitchState(state.taken + 1, state.first, new)

        return jax.lax.cond(state.taken < steps, use_first, use_second)

    return optax.GradientTransformation(init, update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Rescales gradients to the global norm `limit` where they exceed it, by one factor for all."""

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None) -> Any:
        del params
        factor = jnp.minimum(1.0, limit / jnp.maximum(optax.tree.norm(updates), limit))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adam_steps: int = 0,
    adam_learning_rate: float = 0.0,
) -> optax.GradientTransformation:
    """Clipping by the global norm, then the named optimiser.

    "adam_then_sgd" is GNMT's: Adam at the constant `adam_learning_rate` (after the schedule's
    warm-up there is none) for `adam_steps`, then plain gradient descent at the schedule's rate.

    Args:
        name: one of `OPTIMIZERS`.
        schedule: learning rate of the step.
        clip_norm: the gradient of the batch mean is rescaled to this norm where it exceeds it; 0 is off.
        b1: Adam's first decay.
        b2: Adam's second decay.
        eps: Adam's epsilon.
        weight_decay: decoupled (AdamW), on matrices only.
        adam_steps: steps before the change, "adam_then_sgd" only.
        adam_learning_rate: rate of Adam, "adam_then_sgd" only.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {OPTIMIZERS}, but is {name!r} instead.")
    if name == "adam_then_sgd" and not adam_learning_rate > 0:
        raise ValueError(f"`adam_learning_rate` must be more than 0 for {name!r}, but is {adam_learning_rate} instead.")
    if name == "adam":
        chosen = optax.adam(schedule, b1=b1, b2=b2, eps=eps)
    elif name == "adamw":
        chosen = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_matrices)
    elif name == "sgd":
        chosen = optax.sgd(schedule)
    else:
        adam = optax.adam(adam_learning_rate, b1=b1, b2=b2, eps=eps)
        # The schedule speaks of the whole run's steps; the second optimiser starts to count at the change.
        chosen = switch_after(adam_steps, adam, optax.sgd(lambda n: schedule(n + adam_steps)))
    return optax.chain(clip_by_norm(clip_norm), chosen) if clip_norm > 0 else chosen


def _matrices(params: optax.Params) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)
