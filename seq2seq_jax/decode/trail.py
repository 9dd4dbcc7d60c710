"""Back-pointers: what a beam search writes down at every step, to read whole outputs off once, at the end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from seq2seq_jax.decode.selection import gather_beams
from seq2seq_jax.interfaces import Array


@struct.dataclass
class Trail:
    """The tokens that each step chose, and the beams that they grew from."""

    tokens: Array  # [B, T, K] int32
    parents: Array  # [B, T, K] int32
    attention: Array | None  # [B, T, K, S] float32, of the beams before they were reordered


def write_step(trail: Trail, tokens: Array, parents: Array, attention: Array | None, *, time: Array) -> Trail:
    """Adds a step `[B, K]` at each row's own clock `[B]`; a clock beyond the end writes nothing."""
    rows = jnp.arange(time.shape[0])

    def write(history: Array, now: Array) -> Array:
        return history.at[rows, time].set(now, mode="drop")

    kept = trail.attention
    return Trail(
        tokens=write(trail.tokens, tokens),
        parents=write(trail.parents, parents),
        attention=None if kept is None or attention is None else write(kept, attention),
    )


def read_outputs(
    trail: Trail, parents: Array, last_tokens: Array, lengths: Array, *, pad_id: int
) -> tuple[Array, Array | None]:
    """Follows the back-pointers from the last token of each output.

    Args:
      trail: What was written.
      parents: `[B, J]` int32, the beams that predicted the last tokens.
      last_tokens: `[B, J]` int32.
      lengths: `[B, J]` int32, the last token included; 0 for no output.
      pad_id: What fills the output after its end.

    Returns:
      Tokens `[B, J, T]`, and the attention `[B, J, T, S]` where it was written, zero after the end.
    """

    def step_back(beams: Array, inputs: tuple[Array, Trail]) -> tuple[Array, tuple[Array, Array | None]]:
        time, now = inputs
        inside = time < lengths - 1
        tokens = jnp.where(inside, gather_beams(now.tokens, beams), jnp.where(time == lengths - 1, last_tokens, pad_id))
        beams = jnp.where(inside, gather_beams(now.parents, beams), beams)
        attention = now.attention
        if attention is not None:
            attention = jnp.where((time < lengths)[:, :, None], gather_beams(attention, beams), 0.0)
        return beams, (tokens, attention)

    by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), trail)
    times = jnp.arange(trail.tokens.shape[1])
    _, sequences = lax.scan(step_back, parents, (times, by_time), reverse=True)
    tokens, attention = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), sequences)
    return tokens, attention
