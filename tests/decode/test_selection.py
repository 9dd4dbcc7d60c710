"""Choosing among candidates against NumPy and plain loops."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decode.selection import pick_tokens, select_in_turn, select_largest


@pytest.mark.parametrize(("width", "count"), [(100, 5), (2048, 3), (5000, 6), (5000, 4000)])
def test_select_largest_equals_top_k_with_its_order_of_ties(width, count):
    x = np.random.default_rng(0).integers(0, 40, size=(2, 3, width)).astype(np.float32)
    x[0, 0] = -np.inf
    x[0, 0, 7::997] = 1.0
    values, index = select_largest(jnp.asarray(x), count)
    order = np.argsort(-x, axis=-1, kind="stable")[..., :count]
    finite = np.take_along_axis(x, order, -1) > -np.inf
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))
    np.testing.assert_array_equal(np.where(finite, index, -1), np.where(finite, order, -1))


def take_in_turn(values: np.ndarray, banks: np.ndarray, count: int) -> list[int]:
    """Round after round, the best that each bank has left, the largest bank first."""
    left = {
        bank: sorted((i for i in range(len(values)) if banks[i] == bank and values[i] > -np.inf),
                     key=lambda i: (-values[i], i))
        for bank in sorted(set(banks.tolist()), reverse=True)
    }  # fmt: skip
    order = []
    while any(left.values()):
        order += [queue.pop(0) for queue in left.values() if queue]
    return order[:count]


def test_slots_go_round_the_banks():
    rng = np.random.default_rng(2)
    values = rng.integers(-6, 0, size=(40, 30)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = -np.inf
    banks = rng.integers(0, 5, size=(40, 1)) * rng.integers(0, 2, size=values.shape)  # one bank, or two
    banks[20:] = rng.integers(0, 5, size=(20, 30))
    found = np.asarray(select_in_turn(jnp.asarray(values), jnp.asarray(banks), 12))
    for row in range(40):
        assert found[row].tolist() == take_in_turn(values[row], banks[row], 12)


def test_one_bank_is_the_plain_choice():
    values = np.random.default_rng(3).integers(0, 9, size=(20, 25)).astype(np.float32)
    banks = np.full(values.shape, 3)
    plain = select_in_turn(jnp.asarray(values), None, 7)
    np.testing.assert_array_equal(select_in_turn(jnp.asarray(values), jnp.asarray(banks), 7), plain)
    np.testing.assert_array_equal(plain, np.argsort(-values, axis=-1, kind="stable")[:, :7])


def test_pick_tokens_looks_them_up():
    log_probs = np.random.default_rng(4).normal(size=(3, 2, 9)).astype(np.float32)
    tokens = np.array([[0, 8, -1], [4, 4, 7]])[None].repeat(3, axis=0)
    picked = np.asarray(pick_tokens(jnp.asarray(log_probs), jnp.asarray(tokens)))
    expected = np.where(tokens < 0, -np.inf, np.take_along_axis(log_probs, np.maximum(tokens, 0), -1))
    np.testing.assert_array_equal(picked, expected)
