"""What every way of searching has in common: it starts, advances by one step, and is read off.

    rows ──▶ start ──▶ state ──▶ advance ──▶ state ──▶ ... ──▶ collect ──▶ Hypotheses
                         ▲          │
                         └──────────┘   until all rows are done (`loop.run_loop`), or some are and others
                                        take their places (`rolling`)

Every leaf of a state leads with the rows, and every row has its own clock. So rows may leave a batch and
others enter it between any two steps: gathering leaves by row is all there is to it.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.interfaces import Array, Cache, Hypotheses, Step

State = Any
"""A pytree with leaves `[B, ...]`; has at least `time [B]` int32 and `done [B]` bool."""


@struct.dataclass
class Rows:
    """What a search is told of each row besides its cache."""

    source_mask: Array  # [B, S] bool, True where the source is real
    row_mask: Array  # [B] bool, False for rows that only fill the batch: they are done from the start, and empty
    max_lengths: Array  # [B] int32, longest output, eos included; cut to max_len
    min_lengths: Array  # [B] int32, shortest output, eos included; 0 or 1 is no limit
    numbers: Array  # [B] int32, what the draws of a row are keyed by: its place in the input, or its example
    keys: Array | None = None  # [B] new-style PRNG keys, of methods that draw


def make_rows(
    max_lengths: Array,
    *,
    source_mask: Array | None = None,
    min_lengths: Array | None = None,
    row_mask: Array | None = None,
) -> Rows:
    """Rows `[B]` of which all are real, with no shortest output, no number and no source, unless these are given."""
    return Rows(
        source_mask=jnp.ones_like(max_lengths, bool, shape=(max_lengths.shape[0], 0))
        if source_mask is None
        else source_mask,
        row_mask=jnp.ones_like(max_lengths, bool) if row_mask is None else row_mask,
        max_lengths=max_lengths,
        min_lengths=jnp.zeros_like(max_lengths) if min_lengths is None else min_lengths,
        numbers=jnp.zeros_like(max_lengths),
    )


class Method(Protocol):
    """A way of searching with its settings: a frozen dataclass, hashable, so that it may be static under jit."""

    def start(self, step_fn: Step, cache: Cache, rows: Rows, *, max_len: int) -> State:
        """The state before the first step; `cache` has leaves `[B, ...]`, `max_len` is the room for tokens (static)."""
        ...

    def advance(self, step_fn: Step, state: State) -> State:
        """One step of every row that is not done; those that are stay as they are, bit for bit."""
        ...

    def collect(self, state: State) -> Hypotheses:
        """What was found, best first; of rows that are not done, what was found so far."""
        ...


def over_hypotheses(step_fn: Step) -> Step:
    """The step over `[B, K]` hypotheses of each row, which share its clock and its memory."""
    return jax.vmap(step_fn, in_axes=(1, None, 1), out_axes=1)
