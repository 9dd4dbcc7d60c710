"""Learning rates as functions of the step."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from seq2seq_jax.interfaces import Array

SCHEDULES = ("constant", "inverse_sqrt", "cosine", "linear", "exponential", "stable", "gnmt", "halving")
SCHEDULE_NUMBERS = (
    "learning_rate", "warmup_steps", "decay_steps", "decay_floor", "decay_start", "decay_every", "decay_times",
    "halve_after_epochs", "halve_every_epochs",
)  # fmt: skip


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    decay_floor: float = 0.0,
    decay_start: int = 0,
    decay_every: int = 0,
    decay_times: int = 0,
    halve_after_epochs: float = 5.0,
    halve_every_epochs: float = 0.5,
    updates_per_epoch: float | None = None,
) -> optax.Schedule:
    """The learning rate at step n (counted from 0), after a linear warm-up.

    - "constant": the peak, for ever.
    - "inverse_sqrt": peak sqrt(warmup / n) (Vaswani et al. 2017, section 5.3).
    - "cosine": from the peak to `decay_floor` of it at step `decay_steps`, and constant from there
      (Loshchilov and Hutter 2017).
    - "linear": likewise, along a line.
    - "exponential": likewise, by the same factor every step; its floor must be above 0.
    - "stable": the peak until `decay_start`, then along a line to the floor at `decay_steps` (warm-up, stable,
      decay: Hu et al. 2024, section 4).
    - "gnmt": the peak, halved every `decay_every` steps from `decay_start` on, at most
      `decay_times` times (Wu et al. 2016, section 8.4; Luong et al. 2015).
    - "halving": the peak, halved when `halve_after_epochs` are done and every `halve_every_epochs` from there on,
      without end (Sutskever et al. 2014, section 3.4: 5.0 and 0.5). An epoch is `updates_per_epoch` steps, which
      need not be whole. Where they are None the schedule can be made, but not asked for a rate: so a run's state
      can be described and read back where its corpus is not there.

    Raises:
        ValueError: the name is none of these, or a number it needs is missing.
    """
    if name not in SCHEDULES:
        raise ValueError(f"`schedule` must be one of {SCHEDULES}, but is {name!r} instead.")
    if name in ("cosine", "linear", "exponential") and decay_steps <= warmup_steps:
        raise ValueError(
            f"`decay_steps` must be more than warmup_steps={warmup_steps} for {name!r}, but is {decay_steps} instead."
        )
    if name == "stable" and not warmup_steps <= decay_start < decay_steps:
        raise ValueError(
            f"`decay_start` must be at least warmup_steps={warmup_steps} and less than decay_steps={decay_steps} for "
            f"'stable', but is {decay_start} instead."
        )
    if name == "exponential" and not decay_floor > 0:
        raise ValueError(f"`decay_floor` must be more than 0 for 'exponential', but is {decay_floor} instead.")
    if name == "gnmt" and decay_every < 1:
        raise ValueError(f"`decay_every` must be at least 1 for the schedule 'gnmt', but is {decay_every} instead.")
    if name == "halving" and not (halve_every_epochs > 0 and halve_after_epochs >= 0):
        raise ValueError(
            "`halve_every_epochs` must be more than 0 and `halve_after_epochs` at least 0 for 'halving', but are "
            f"{halve_every_epochs} and {halve_after_epochs} instead."
        )
    warm = max(warmup_steps, 1)
    begin = max(decay_start, 1) if name == "stable" else warm

    def schedule(step: Array) -> Array:
        n = jnp.asarray(step, jnp.float32) + 1.0
        done = jnp.clip((n - begin) / max(decay_steps - begin, 1), 0.0, 1.0)
        if name == "inverse_sqrt":
            shape = jnp.sqrt(warm / jnp.maximum(n, warm))
        elif name == "cosine":
            shape = decay_floor + (1.0 - decay_floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif name in ("linear", "stable"):
            shape = 1.0 - (1.0 - decay_floor) * done
        elif name == "exponential":
            shape = decay_floor**done
        elif name == "gnmt":
            halvings = jnp.floor((n - 1 - decay_start) / decay_every) + 1.0
            shape = 0.5 ** jnp.clip(halvings, 0.0, decay_times)
        elif name == "halving":
            shape = 0.5 ** count_halvings(n - 1, halve_after_epochs, halve_every_epochs, updates_per_epoch)
        else:
            shape = jnp.float32(1.0)
        return learning_rate * shape * jnp.minimum(1.0, n / warm)

    return schedule


def count_halvings(step: Array, after: float, every: float, updates_per_epoch: float | None) -> Array:
    """How often the rate has been halved at a step (from 0): the first time when `after` epochs are done."""
    if updates_per_epoch is None:
        raise ValueError("`updates_per_epoch` must be known for the rates of 'halving', but is None instead.")
    return jnp.maximum(jnp.floor((step - after * updates_per_epoch) / (every * updates_per_epoch)) + 1.0, 0.0)
