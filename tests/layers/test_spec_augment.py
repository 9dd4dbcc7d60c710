"""SpecAugment against its definition row by row, the sizes of what it hides, and what a draw depends on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.spec_augment import POLICIES, Policy, _warp, augment, make_keys

M, S = 20, 60
LENGTHS = np.array([60, 41, 25, 9, 1, 0])
ROWS = len(LENGTHS)
MASK = jnp.asarray(np.arange(S) < LENGTHS[:, None])
run = jax.jit(augment, static_argnums=3)


def draw(rows=ROWS):
    rng = np.random.default_rng(0)
    mask = MASK if rows == ROWS else jnp.ones((rows, S), bool)
    return jnp.asarray(rng.normal(size=(rows, S, M)), jnp.float32) * mask[..., None], mask


def keys_of(rows, *, seed=0, epoch=0, first=0):
    return make_keys(seed, jnp.full(rows, epoch, jnp.int32), first + jnp.arange(rows, dtype=jnp.int32))


def pick(draw_, low, high):
    """A whole number from low to high, both included."""
    return min(low + int(np.floor(np.float32(draw_) * np.float32(high - low + 1))), high)


def augment_row(features, draws, policy):
    """What is left of one recording's frames `[n, M]`, from its draws in [0, 1)."""
    n, draws = len(features), list(draws)
    first, second = draws.pop(0), draws.pop(0)
    if policy.time_warp and n > 2 * policy.time_warp:
        wide = policy.time_warp
        centre = pick(first, wide, n - wide - 1)
        moved = min(max(centre + pick(second, -wide, wide), 1), n - 2)
        times = np.interp(np.arange(n), [0, moved, n - 1], [0, centre, n - 1])
        features = np.array([[np.interp(t, np.arange(n), column) for column in features.T] for t in times])
    made = features.copy()
    for count, width, axis in (
        (policy.freq_masks, policy.freq_width, 1),
        (policy.time_masks, min(policy.time_width, int(np.float32(policy.time_share) * n)), 0),
    ):
        size = features.shape[axis]
        for _ in range(count):
            hidden = pick(draws.pop(0), 0, min(width, size))
            start = pick(draws.pop(0), 0, size - hidden)
            np.moveaxis(made, axis, 0)[start : start + hidden] = 0.0
    return made


@pytest.mark.parametrize(
    "policy",
    [
        Policy(time_warp=8),
        Policy(freq_masks=2, freq_width=6),
        Policy(time_masks=2, time_width=15, time_share=0.5),
        Policy(5, 1, 25, 3, 10, 0.2),
        POLICIES["LD"],
    ],
)
def test_equals_the_definition(policy):
    features, mask = draw()
    keys = keys_of(ROWS)
    made = np.asarray(run(features, mask, keys, policy))
    count = 2 + 2 * policy.freq_masks + 2 * policy.time_masks
    for row, length in enumerate(LENGTHS):
        draws = np.asarray(jax.random.uniform(keys[row], (count,)))
        want = augment_row(np.asarray(features[row, :length], np.float64), draws, policy)
        np.testing.assert_allclose(made[row, :length], want, atol=2e-5)
        np.testing.assert_array_equal(made[row, length:], 0.0)


def test_the_policies_are_those_of_table_1():
    rows = {"none": (0, 0, 0, 0, 0, 1.0), "LB": (80, 1, 27, 1, 100, 1.0), "LD": (80, 2, 27, 2, 100, 1.0)}
    rows |= {"SM": (40, 2, 15, 2, 70, 0.2), "SS": (40, 2, 27, 2, 70, 0.2)}  # W, m_F, F, m_T, T, p
    assert {name: dataclasses.astuple(policy) for name, policy in POLICIES.items()} == rows


def test_nothing_is_changed_without_a_policy():
    features, mask = draw()
    np.testing.assert_array_equal(run(features, mask, keys_of(ROWS), POLICIES["none"]), features)


def test_widths_and_places_are_drawn_evenly():
    rows, widest = 4000, 4
    features, mask = jnp.ones((rows, S, M)), jnp.ones((rows, S), bool)
    made = np.asarray(run(features, mask, keys_of(rows), Policy(freq_masks=1, freq_width=widest)))
    hidden = made[:, 0] == 0.0
    assert (made == np.where(hidden, 0.0, 1.0)[:, None]).all()  # the same bins in every frame
    widths = hidden.sum(1)
    counts = np.bincount(widths, minlength=widest + 1)
    assert len(counts) == widest + 1 and (np.abs(counts - rows / (widest + 1)) < 5 * np.sqrt(rows / 6)).all()
    edges = np.abs(np.diff(hidden.astype(int), axis=1, prepend=0, append=0)).sum(1)
    assert (edges == np.where(widths > 0, 2, 0)).all()  # one stripe
    share = hidden[widths == 1].mean(0)
    assert (np.abs(share - 1 / M) < 5 * np.sqrt(1 / M / (widths == 1).sum())).all()


def test_a_draw_is_of_seed_epoch_and_example_and_of_nothing_else():
    features, mask = draw(3)
    policy = Policy(8, 1, 6, 1, 15, 1.0)
    want = run(features, mask, keys_of(3), policy)
    for other in ({"seed": 1}, {"epoch": 1}, {"first": 3}):
        changed = run(features, mask, keys_of(3, **other), policy)
        assert (np.abs(changed - want).max(axis=(1, 2)) > 0).all(), other
    alone = run(features[1:2], mask[1:2], keys_of(1, first=1), policy)
    np.testing.assert_array_equal(alone[0], want[1])
    wide = run(jnp.pad(features, ((0, 0), (0, 13), (0, 0))), jnp.pad(mask, ((0, 0), (0, 13))), keys_of(3), policy)
    np.testing.assert_array_equal(wide[:, :S], want)


def test_there_is_no_gradient():
    features, mask = draw()
    gradient = jax.grad(lambda x: jnp.sum(augment(x, mask, keys_of(ROWS), POLICIES["LB"])))(features)
    assert not np.any(gradient)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"freq_width": -1}, "`freq_width` must be at least 0"), ({"time_share": 1.5}, "must be in")],
)
def test_policies_that_cannot_be_say_so(changes, message):
    with pytest.raises(ValueError, match=message):
        Policy(**changes)


@pytest.mark.parametrize("draws", [(0.0, 0.999), (0.999, 0.999), (0.0, 0.0), (0.999, 0.0)])
def test_the_first_and_the_last_frame_stay_where_they_are_however_far_is_moved(draws):
    wide, frames = 8, 2 * 8 + 1  # as few as can be moved
    features = jnp.arange(frames, dtype=jnp.float32)[None, :, None]
    moved = _warp(features, jnp.array([frames]), jnp.array([draws]), wide)[0, :, 0]
    want = augment_row(np.arange(frames, dtype=np.float64)[:, None], draws, Policy(time_warp=wide))[:, 0]
    np.testing.assert_allclose(moved, want, atol=1e-5)
    assert moved[0] == 0 and moved[-1] == frames - 1
