"""What a batch of a training looks like before there is one: for compiling ahead, and for plans."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from seq2seq_jax.interfaces import Batch
from seq2seq_jax.tasks.sequence import longest_candidate


def make_abstract_batch(
    sharding: Sharding,
    rows: int,
    source_len: int,
    target_len: int,
    *,
    candidates: int = 0,
    packed: bool = False,
    samples: int = 0,
) -> Batch:
    """Shapes, dtypes and shardings of a batch of tokens, or of audio and tokens.

    Args:
        sharding: of its rows.
        rows, source_len, target_len: its shape.
        candidates: outputs besides the reference, for sequence-level training; 0 is without.
        packed: several examples share a row.
        samples: of a frame of audio; 0 is a source of tokens.
    """

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    source, target, slots = (rows, source_len), (rows, target_len), (rows, candidates + 1)
    more: dict[str, Any] = {}
    if candidates:
        more = {
            "candidates": array(jnp.int32, *slots, longest_candidate(target_len)),
            "candidate_lengths": array(jnp.int32, *slots),
            "rewards": array(jnp.float32, *slots),
        }
    if packed:
        of_source, of_target = array(jnp.int32, *source), array(jnp.int32, *target)
        more |= {"source_segments": of_source, "source_positions": of_source}
        more |= {"target_segments": of_target, "target_positions": of_target}
    if samples:
        more["epochs"] = array(jnp.int32, rows)
    return Batch(
        source=array(jnp.float32, *source, samples) if samples else array(jnp.int32, *source),
        source_mask=array(jnp.bool_, *source),
        target_in=array(jnp.int32, *target),
        target_out=array(jnp.int32, *target),
        target_mask=array(jnp.bool_, *target),
        example_ids=array(jnp.int32, rows),
        row_mask=array(jnp.bool_, rows),
        **more,
    )
