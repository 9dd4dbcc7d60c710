"""Optimisers by name, all of them optax's; ours is only GNMT's change of one for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from seq2seq_jax.interfaces import Array
from seq2seq_jax.train.freezing import name_of


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


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What optimisers are made of; see `make_optimizer`."""

    schedule: optax.Schedule
    b1: float
    b2: float
    eps: float
    momentum: float
    weight_decay: float
    rho: float
    adam_steps: int
    adam_learning_rate: float

    @property
    def moments(self) -> dict[str, float]:
        """The arguments that Adam and its kin share."""
        return {"b1": self.b1, "b2": self.b2, "eps": self.eps}

    @property
    def decay(self) -> dict[str, Any]:
        """The arguments of decoupled weight decay, on matrices alone."""
        return {"weight_decay": self.weight_decay, "mask": find_matrices}


def make_muon(n: Numbers) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices between layers, AdamW for tables, the softmax and vectors.

    Every layer of a stack is a matrix of its own. Updates are scaled to a root mean square of 0.2, so that both
    parts can follow one schedule made for Adam (Liu et al. 2025, equation 4). Momentum 0.95, five iterations.
    """

    def dimensions(params: optax.Params) -> Any:
        return jax.tree_util.tree_map_with_path(_find_sides, params)

    muon = contrib.muon(
        n.schedule, weight_decay=n.weight_decay, consistent_rms=0.2, muon_weight_dimension_numbers=dimensions
    )
    adam = optax.adamw(n.schedule, **n.moments, **n.decay)

    def label(params: optax.Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: "muon" if _is_matrix(path, x) and not _is_table(path) else "adam", params
        )

    return optax.partition({"muon": muon, "adam": adam}, label)


def make_adam_then_sgd(n: Numbers) -> optax.GradientTransformation:
    """GNMT's: Adam at the constant `adam_learning_rate`, then gradient descent at the schedule's rate."""
    if not n.adam_learning_rate > 0:
        raise ValueError(
            f"`adam_learning_rate` must be more than 0 for 'adam_then_sgd', but is {n.adam_learning_rate} instead."
        )
    # The schedule speaks of the whole run's steps; the second optimiser starts to count at the change.
    later = optax.sgd(lambda step: n.schedule(step + n.adam_steps))
    return switch_after(n.adam_steps, optax.adam(n.adam_learning_rate, **n.moments), later)


OPTIMIZERS: dict[str, Callable[[Numbers], optax.GradientTransformation]] = {
    "adam": lambda n: optax.adam(n.schedule, **n.moments),
    "adamw": lambda n: optax.adamw(n.schedule, **n.moments, **n.decay),
    "nadam": lambda n: optax.nadam(n.schedule, **n.moments),
    "nadamw": lambda n: optax.nadamw(n.schedule, **n.moments, **n.decay),
    "radam": lambda n: optax.radam(n.schedule, **n.moments),
    # With the paper's numbers and none of ours: the rate is relative to a parameter's own size (Shazeer and Stern
    # 2018, algorithms 4 and 5), the decay of the second moment is 1 - step^-0.8, updates are clipped to a root mean
    # square of 1, moments are factored where two axes have at least 128. No momentum.
    "adafactor": lambda n: optax.adafactor(n.schedule),
    "adagrad": lambda n: optax.adagrad(n.schedule),  # sums begin at 0.1, eps 1e-7
    "adadelta": lambda n: optax.adadelta(n.schedule, rho=n.rho),  # eps 1e-6; a rate of 1 is the paper's
    "rmsprop": lambda n: optax.rmsprop(n.schedule, eps=n.eps, momentum=n.momentum or None),  # decay 0.9
    "lamb": lambda n: optax.lamb(n.schedule, **n.moments, **n.decay),
    "lion": lambda n: optax.lion(n.schedule, b1=n.b1, b2=n.b2, **n.decay),  # the paper's b2 is 0.99, its rate low
    "muon": make_muon,
    "sgd": lambda n: optax.sgd(n.schedule, momentum=n.momentum or None),
    "adam_then_sgd": make_adam_then_sgd,
}
WITH_MOMENTUM = ("rmsprop", "sgd")
WITH_DECAY = ("adamw", "nadamw", "lamb", "lion", "muon")


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    rho: float = 0.9,
    adam_steps: int = 0,
    adam_learning_rate: float = 0.0,
) -> optax.GradientTransformation:
    """Clipping by the global norm, then the named optimiser.

    Args:
        name: one of `OPTIMIZERS`.
        schedule: learning rate of the step.
        clip_norm: the gradient of the batch mean is rescaled to this norm where it exceeds it; 0 is off.
        b1: first decay of Adam and its kin, and of Lion.
        b2: their second decay.
        eps: of Adam and its kin, and of RMSProp.
        momentum: `WITH_MOMENTUM` only.
        weight_decay: decoupled (times the rate), on matrices only; `WITH_DECAY` only.
        rho: decay of both means, "adadelta" only.
        adam_steps: steps before the change, "adam_then_sgd" only.
        adam_learning_rate: rate of Adam, "adam_then_sgd" only.

    Raises:
        ValueError: there is no such optimiser, or it knows no such number.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, but is {name!r} instead.")
    for key, value, known in (("momentum", momentum, WITH_MOMENTUM), ("weight_decay", weight_decay, WITH_DECAY)):
        if value and name not in known:
            raise ValueError(
                f"`{key}` must be 0 with the optimizer {name!r}, which has none, but is {value} instead; those that "
                f"have it are {', '.join(known)}."
            )
    numbers = Numbers(schedule, b1, b2, eps, momentum, weight_decay, rho, adam_steps, adam_learning_rate)
    chosen = OPTIMIZERS[name](numbers)
    return optax.chain(clip_by_norm(clip_norm), chosen) if clip_norm > 0 else chosen


def find_matrices(params: optax.Params) -> Any:
    """True for every parameter that is a matrix, or a stack of them; a stack of vectors is none, which names tell."""
    return jax.tree_util.tree_map_with_path(_is_matrix, params)


def _is_matrix(path: Any, x: Any) -> bool:
    return x.ndim > 1 and not name_of(path).endswith(("bias", "gain", "peephole_i", "peephole_f", "peephole_o"))


def _find_sides(path: Any, x: Any) -> contrib.MuonDimensionNumbers:
    """Which axes of a matrix are its inputs and outputs; all others are a batch of matrices.

    They are the last two but in a Transformer, whose kernels have heads `[N, H]` on one side, and next to the inputs an
    axis for queries, keys and values, or for the two halves of a gate.
    """
    name = name_of(path).rpartition(".")[2]
    if name in ("self_qkv_kernel", "cross_kv_kernel"):  # [L, D, 3 or 2, N, H]
        return contrib.MuonDimensionNumbers(-4, (-2, -1))
    if name == "cross_query_kernel":  # [L, D, N, H]
        return contrib.MuonDimensionNumbers(-3, (-2, -1))
    if name in ("self_out_kernel", "cross_out_kernel"):  # [L, N, H, D]
        return contrib.MuonDimensionNumbers((-3, -2), -1)
    if name == "mlp_in_kernel" and x.ndim == 4:  # [L, D, 2, F]
        return contrib.MuonDimensionNumbers(-3, -1)
    return contrib.MuonDimensionNumbers(-2, -1)


def _is_table(path: Any) -> bool:
    """An embedding, or the softmax: rows that stand for words."""
    name = name_of(path)
    return name.endswith("table") or "softmax" in name
