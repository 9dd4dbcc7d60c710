"""Self-attention whose cost grows with the length, not with its square: Linformer (Wang et al. 2020, 2006.04768).

    head_i = softmax(Q_i (E_i K_i)^T / sqrt(H)) (F_i V_i)        equation 7; E, F: [rank, length]

A sentence's keys and values, one a place, are mixed down to `rank` of each, whatever its length. E and F are learned,
one row a place (kept here as `[length, rank]`), and are shared as section 4 of the paper has it:

    "none"      every head of every layer has an E and an F of its own
    "heads"     one E and one F a layer
    "kv"        one E = F a layer
    "layers"    one E = F for all layers

Shorter sentences use the first rows; masked places are zeros before they are mixed, so that padding changes nothing. A
mixture has no place and no past: there is no causal Linformer, no packing, and no bias by distance.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.dot_attention import attend_heads
from seq2seq_jax.layers.initializers import glorot_initializer

SHARES = ("none", "heads", "kv", "layers")

Declared = tuple[tuple[int, ...], tuple[str | None, ...], nn.initializers.Initializer]
"""Shape, names of axes and initializer of a parameter."""


def describe_projections(share: str, *, heads: int, length: int, rank: int, init_scale: float) -> Declared:
    """What E and F of one layer ("layers": of all) are as one parameter, as `attend_low_rank` takes it.

    Args:
        share: one of `SHARES`.
        heads: N.
        length: longest sentence, R rows.
        rank: what it is mixed down to, k.
        init_scale: see `seq2seq_jax.layers.initializers.glorot_initializer`.

    Returns:
        Of shape `[2, N, R, k]` where nothing is shared, `[2, R, k]` among heads, else `[1, R, k]`: what comes first is
        E, what comes last F.
    """
    init = glorot_initializer(init_scale, inputs=length, outputs=rank)
    if share == "none":
        return (2, heads, length, rank), (None, "heads", "positions", None), init
    return (2 if share == "heads" else 1, length, rank), (None, "positions", None), init


def attend_low_rank(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    projections: Float[Array, "C *one R k"],
    *,
    mask: Bool[Array, "B S"] | None,
    platform: str = "",
) -> Float[Array, "B T N H"]:
    """Attends with every query of every head to the mixtures; its cost is that of T times rank pairs.

    Args:
        q: `[B, T, N, H]`.
        k: `[B, S, N, H]`.
        v: `[B, S, N, H]`.
        projections: E and F; see `describe_projections`.
        mask: `[B, S]`, True where real. None: everywhere.
        platform: see `attend_heads`.

    Returns:
        `[B, T, N, H]`, in the dtype of `v`; zero where a row has nothing real.

    Raises:
        UserError: the sentences are longer than the projections.
    """
    longest = projections.shape[-2]
    if k.shape[1] > longest:
        raise UserError(
            f"config.model.max_positions must be at least {k.shape[1]}, what sources are padded to, because Linformer "
            f"has a row for every place, but is {longest} instead; train with more, or set lower limits of lengths."
        )
    mixed = (mix_down(x, e, mask) for x, e in ((k, projections[0]), (v, projections[-1])))
    return attend_heads(q, *mixed, mask=None, causal=False, platform=platform)


def mix_down(
    x: Float[Array, "B S N H"], projection: Float[Array, "*one R k"], mask: Bool[Array, "B S"] | None
) -> Float[Array, "B k N H"]:
    """`[B, S, N, H]` to `[B, k, N, H]`, by the first S rows of `[R, k]`, or of `[N, R, k]`: one for each head."""
    if mask is not None:
        x = jnp.where(mask[:, :, None, None], x, jnp.zeros((), x.dtype))
    rows = projection[..., : x.shape[1], :].astype(x.dtype)
    return jnp.einsum("bsnh,nsk->bknh" if rows.ndim == 3 else "bsnh,sk->bknh", x, rows)
