"""SpecAugment (Park et al. 2019, 1904.08779): a spectrogram bent in time, with stripes of it masked.

    time_warp    W: a point of the recording moves by up to W frames, and what is beside it is stretched
    freq_width   F: each of `freq_masks` hides 0 to F neighbouring mel bins
    time_width   T: each of `time_masks` hides 0 to T neighbouring frames, at most a share `time_share` of all

What is hidden is zero, the mean of normalised features. A draw is keyed by (seed, epoch, example), so that another
layout of devices, another batch or more padding draws the same, and only a row's own frames are looked at.

Differs from the paper: the warp is a map of times that is linear on both sides of one point (their program's is a thin
plate through it and the edges), features between frames are interpolated linearly, and recordings of up to 2W frames
are not warped.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from seq2seq_jax.interfaces import Array


@dataclasses.dataclass(frozen=True)
class Policy:
    """How much is changed; see table 1 of the paper.

    Attributes:
        time_warp: W, frames; 0: no warp.
        freq_masks: number of masks over mel bins.
        freq_width: F, mel bins that one of them hides at most.
        time_masks: number of masks over frames.
        time_width: T, frames that one of them hides at most.
        time_share: p, share of a recording's frames that one of them hides at most.
    """

    time_warp: int = 0
    freq_masks: int = 0
    freq_width: int = 0
    time_masks: int = 0
    time_width: int = 0
    time_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("time_warp", "freq_masks", "freq_width", "time_masks", "time_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, but is {getattr(self, name)} instead.")
        if not 0.0 <= self.time_share <= 1.0:
            raise ValueError(f"`time_share` must be in [0, 1], but is {self.time_share} instead.")


POLICIES = {
    "none": Policy(),
    "LB": Policy(80, 1, 27, 1, 100, 1.0),
    "LD": Policy(80, 2, 27, 2, 100, 1.0),
    "SM": Policy(40, 2, 15, 2, 70, 0.2),
    "SS": Policy(40, 2, 27, 2, 70, 0.2),
}
"""Those of table 1 of the paper, for frames of 10 ms and 80 mel bins."""


def make_keys(seed: int | Array, epochs: Int[Array, " B"], example_ids: Int[Array, " B"]) -> Key[Array, " B"]:
    """What each row's draw is keyed by, `[B]`.

    Args:
        seed: of the run.
        epochs: `[B]`, of the corpus.
        example_ids: `[B]`, index in the corpus; -1 is a filling row.
    """
    first = jax.random.key(seed)

    def fold(epoch: Array, example: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(first, epoch), example)

    return jax.vmap(fold)(epochs.astype(jnp.uint32), example_ids.astype(jnp.uint32))


def augment(
    features: Float[Array, "B S M"], mask: Bool[Array, "B S"], keys: Key[Array, " B"], policy: Policy
) -> Float[Array, "B S M"]:
    """Features with a policy's changes, each row by its own key; without a gradient.

    Args:
        features: `[B, S, M]`, normalised, zero where masked.
        mask: `[B, S]`, True where real; padding comes last.
        keys: `[B]`, see `make_keys`.
        policy: what is changed.

    Returns:
        `[B, S, M]` in the dtype of `features`, zero where masked.
    """
    with jax.named_scope("spec_augment"):
        features, lengths = jax.lax.stop_gradient(features), jnp.sum(mask, axis=-1, dtype=jnp.int32)
        count = 2 + 2 * policy.freq_masks + 2 * policy.time_masks
        draws = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)  # [B, count], in [0, 1)
        warp, freqs, times = jnp.split(draws, [2, 2 + 2 * policy.freq_masks], axis=1)
        if policy.time_warp:
            features = _warp(features, lengths, warp, policy.time_warp)
        bins = jnp.full_like(lengths, features.shape[-1])
        hidden_bins = _hide(freqs, bins, jnp.full_like(lengths, policy.freq_width), features.shape[-1])
        longest = jnp.minimum(policy.time_width, jnp.floor(policy.time_share * lengths).astype(jnp.int32))
        hidden_frames = _hide(times, lengths, longest, features.shape[1])
        hidden = hidden_bins[:, None, :] | hidden_frames[:, :, None] | ~mask[..., None]
        return jnp.where(hidden, jnp.zeros((), features.dtype), features)


def _choose(draws: Array, low: Array | int, high: Array) -> Array:
    """A whole number from `low` to `high`, both included, of a draw in [0, 1)."""
    return jnp.minimum(low + jnp.floor(draws * (high - low + 1).astype(jnp.float32)).astype(jnp.int32), high)


def _hide(draws: Float[Array, "B N"], sizes: Int[Array, " B"], widest: Int[Array, " B"], room: int) -> Array:
    """Which places `[B, room]` are under a mask: of each pair of draws the width, and where it begins."""
    widths = _choose(draws[:, 0::2], 0, jnp.minimum(widest, sizes)[:, None])  # [B, masks]
    starts = _choose(draws[:, 1::2], 0, sizes[:, None] - widths)
    places = jnp.arange(room, dtype=jnp.int32)[None, :, None]
    return jnp.any((places >= starts[:, None]) & (places < (starts + widths)[:, None]), axis=-1)


def _warp(features: Array, lengths: Array, draws: Array, widest: int) -> Array:
    """Moves the frame at a drawn time `[W, n - W)` by a drawn number of frames, -W to W, of n in all."""
    centre = _choose(draws[:, 0], widest, lengths - widest - 1)
    moved = centre + _choose(draws[:, 1], jnp.full_like(centre, -widest), jnp.full_like(centre, widest))
    last = lengths - 1
    moved = jnp.clip(moved, 1, jnp.maximum(last - 1, 1))  # both sides keep a length
    times = jnp.arange(features.shape[1], dtype=jnp.float32)[None]
    ahead, target, end = (each.astype(jnp.float32)[:, None] for each in (centre, moved, last))
    before = times * ahead / target
    after = ahead + (times - target) * (end - ahead) / jnp.maximum(end - target, 1.0)
    source = jnp.where(times <= target, before, after)
    source = jnp.where((lengths > 2 * widest)[:, None] & (times <= end), source, times)
    first = jnp.clip(jnp.floor(source).astype(jnp.int32), 0, features.shape[1] - 1)
    share = (source - first.astype(jnp.float32))[..., None].astype(features.dtype)
    second = jnp.minimum(first + 1, features.shape[1] - 1)
    near, next_one = (jnp.take_along_axis(features, at[..., None], axis=1) for at in (first, second))
    return near + share * (next_one - near)
