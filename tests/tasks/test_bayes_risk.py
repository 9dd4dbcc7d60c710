"""Minimum Bayes risk decoding against sacreBLEU itself, pair by pair."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from seq2seq_jax.tasks.bayes_risk import choose, compare

TEXTS = [
    "Two dogs are running through the grass.",
    "Two dogs run through the grass .",
    "Two dogs run through the the the grass .",
    "A dog runs in the snow.",
    "Zwei Hunde rennen durch das Gras, Gras, Gras.",
    "dogs",
    "a",
    "",
    "  Two   dogs\tare running through the grass. ",
    "草の上を二匹の犬が走っている。",
    "🐕🐕 🐕",
    "Ein",
]


@dataclasses.dataclass(frozen=True)
class Candidate:
    text: str
    score: float = 0.0
    log_prob: float = -1.0
    number: int = 0


def judge(utility: str, output: str, reference: str, target: str = "") -> float:
    metric = CHRF() if utility == "chrf" else BLEU(effective_order=True, trg_lang=target)
    return metric.sentence_score(output, [reference]).score / 100.0


def draw_texts(seed: int, count: int) -> list[str]:
    """Sentences of few words, so that much is alike, of any length."""
    generator = np.random.default_rng(seed)
    words = ["the", "dog", "dogs", "a", "run", "runs", "through", "grass", ",", "."]
    return [" ".join(generator.choice(words, size=generator.integers(0, 14))) for _ in range(count)]


@pytest.mark.parametrize("utility", ["chrf", "bleu"])
@pytest.mark.parametrize("texts", [TEXTS, draw_texts(0, 25)], ids=["real", "random"])
def test_all_pairs_are_what_sacrebleu_says_of_each(utility, texts):
    found = compare(texts, utility)
    wanted = [[judge(utility, output, reference) for reference in texts] for output in texts]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert len(np.unique(np.round(wanted, 6))) > 20


def test_the_target_language_chooses_bleu_s_tokenizer():
    texts = ["草の上を犬", "草の上を犬が走る", "雪の中"]
    found = compare(texts, "bleu", target="zh-CN")
    np.testing.assert_allclose(found, [[judge("bleu", a, b, "zh") for b in texts] for a in texts], atol=1e-12)
    assert not np.allclose(found, compare(texts, "bleu"))


@pytest.mark.parametrize("weights", ["counts", "probabilities"])
@pytest.mark.parametrize("utility", ["chrf", "bleu"])
def test_the_best_comes_first_with_its_expected_utility(utility, weights):
    generator = np.random.default_rng(1)
    texts = draw_texts(2, 8)
    drawn = generator.integers(0, 8, size=20)
    candidates = [
        Candidate(texts[text], log_prob=float(generator.normal()), number=n) for n, text in enumerate(drawn.tolist())
    ]
    found = choose(candidates, utility, weights=weights)
    p = np.array([np.exp(c.log_prob) if weights == "probabilities" else 1.0 for c in candidates])
    p /= p.sum()
    wanted = {
        c.text: sum(share * judge(utility, c.text, r.text) for share, r in zip(p, candidates, strict=True))
        for c in candidates
    }
    assert [c.text for c in found] == sorted(wanted, key=lambda text: -wanted[text])
    assert [c.score for c in found] == pytest.approx(sorted(wanted.values(), reverse=True))
    for candidate in found:  # the first of its text, as it was but for the score
        first = next(c for c in candidates if c.text == candidate.text)
        assert dataclasses.replace(candidate, score=0.0) == first
    assert len(found) == len(set(texts[n] for n in drawn)) < 20


def test_what_is_drawn_often_counts_often_and_equals_keep_their_order():
    rare = [Candidate("a b c d e"), Candidate("v w x y z")]
    assert [c.text for c in choose(rare, "chrf")] == ["a b c d e", "v w x y z"]
    often = [*rare, Candidate("v w x y z")]
    found = choose(often, "chrf")
    assert [c.text for c in found] == ["v w x y z", "a b c d e"]
    assert [c.score for c in found] == pytest.approx([2 / 3, 1 / 3])
    likely = [dataclasses.replace(rare[0], log_prob=-1.0), dataclasses.replace(rare[1], log_prob=-2.0)]
    assert choose([likely[1], likely[0]], "bleu", weights="probabilities")[0].text == "a b c d e"
    assert choose([], "chrf") == [] and choose([Candidate("")], "bleu") == [Candidate("", score=0.0)]


@pytest.mark.parametrize(("utility", "weights"), [("ter", "counts"), ("chrf", "equal")])
def test_what_is_unknown_is_refused(utility, weights):
    with pytest.raises(ValueError, match="must be one of"):
        choose([Candidate("a")], utility, weights=weights)
