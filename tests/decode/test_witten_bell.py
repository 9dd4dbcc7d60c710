"""N-gram models that are estimated here are distributions, with Witten and Bell's numbers, read back as they were."""

from __future__ import annotations

import math

import pytest

from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.decode.witten_bell import estimate_arpa


def make(path, texts, order):
    path.write_text(estimate_arpa(texts, order), encoding="utf-8")
    return read_arpa(path)


@pytest.mark.parametrize("history", [(), ("<s>",), ("a",), ("b", "\u2581"), ("<s>", "c", "a"), ("d", "d")])
def test_what_may_follow_sums_to_one(history, tmp_path):
    arpa = make(tmp_path / "m.arpa", ["ab\u2581abc", "cab\u2581b", "dab"], 3)
    words = ["<unk>", "</s>", "\u2581", *"abcd"]
    assert math.isclose(sum(math.exp(arpa.score_word(history, word)) for word in words), 1.0, abs_tol=1e-4)


def test_numbers_are_those_of_the_paper(tmp_path):
    """By hand: after "a a" came b twice and c once, after "a" a thrice, b twice and c once."""
    arpa = make(tmp_path / "m.arpa", ["aab", "aab", "aac"], 3)
    types, total = 4, 12  # a, b, c and the end, which occur 6, 2, 1 and 3 times
    one = (2 + types / (types + 1)) / (total + types)
    two = (2 + 3 * one) / (6 + 3)
    three = (2 + 2 * two) / (3 + 2)
    assert math.isclose(arpa.score_word((), "b"), math.log(one), abs_tol=1e-5)
    assert math.isclose(arpa.score_word(("a",), "b"), math.log(two), abs_tol=1e-5)
    assert math.isclose(arpa.score_word(("a", "a"), "b"), math.log(three), abs_tol=1e-5)
    assert math.isclose(arpa.score_word(("c", "b"), "b"), math.log(one / 3), abs_tol=1e-5)  # b had the end twice


def test_no_text_and_no_order_are_refused():
    with pytest.raises(ValueError, match="there must be a text"):
        estimate_arpa([], 2)
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        estimate_arpa(["a"], 0)
