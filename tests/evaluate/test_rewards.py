"""Scores of sentences: GLEU by counting, chrF and BLEU as sacreBLEU has them."""

from __future__ import annotations

import pytest
from sacrebleu import sentence_bleu, sentence_chrf

from seq2seq_jax.evaluate.rewards import REWARDS, gleu, make_reward

OUTPUT, REFERENCE = "the cat sat on the mat .", "the cat is on the mat ."


@pytest.mark.parametrize(
    ("output", "reference", "wanted"),
    [
        # a b | a b: 2 words and 1 pair, all shared
        ("a b", "a b", 1.0),
        # 3 + 2 + 1 against 2 + 1 n-grams; shared: a, b, ab
        ("a b c", "a b", 3 / 6),
        ("a b", "a b c", 3 / 6),
        # 4 + 3 + 2 + 1 each; shared: a, b, d and ab
        ("a b c d", "a b x d", 4 / 10),
        # one "a" of the three counts once, and no pair
        ("a a a", "a b c", 1 / 6),
        # 6 + 5 + 4 + 3 each: n-grams of five words and more do not count; shared 5 + 3 + 1 + 0
        ("a b c d e f", "a b c x e f", 5 / 18 + 3 / 18 + 1 / 18),
        ("", "a", 0.0),
        ("x", "a", 0.0),
    ],
)
def test_gleu_is_the_share_of_common_n_grams_of_the_longer_side(output, reference, wanted):
    assert gleu(output.split(), reference.split()) == pytest.approx(wanted)


def test_rewards_are_sacrebleu_s_between_0_and_1():
    assert make_reward("chrf", target="de")(OUTPUT, REFERENCE) == sentence_chrf(OUTPUT, [REFERENCE]).score / 100
    bleu = sentence_bleu(OUTPUT, [REFERENCE], smooth_method="exp", use_effective_order=True).score / 100
    assert make_reward("bleu", target="de")(OUTPUT, REFERENCE) == bleu and 0.2 < bleu < 0.8


@pytest.mark.parametrize("name", REWARDS)
def test_the_reference_is_best_and_nothing_is_worst(name):
    reward = make_reward(name, target="pt_BR")
    scores = [reward(text, "Guten Morgen, Welt!") for text in ("", "Guten Tag, Welt!", "Guten Morgen, Welt!")]
    assert scores[0] == 0.0 < scores[1] < scores[2] == pytest.approx(1.0)


def test_gleu_takes_marks_for_words():
    assert make_reward("gleu", target="de")("Nein.", "Nein !") == pytest.approx(1 / 3)


def test_an_unknown_reward_is_refused():
    with pytest.raises(ValueError, match="chrf, bleu, gleu"):
        make_reward("ter", target="de")
