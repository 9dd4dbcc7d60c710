"""Error rates against jiwer and a dynamic program written out; the rule by which texts are compared."""

from __future__ import annotations

import importlib.metadata
import random
import sys
import unicodedata

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.speech import (
    align_words,
    count_confusions,
    find_interval,
    normalise,
    speech_scores,
    worst,
)

LETTERS = ["a", "b", "c", "dd", "e'e"]


def count_errors(wanted: list[str], told: list[str]) -> int:
    """Levenshtein's distance, row by row of its table."""
    row = list(range(len(told) + 1))
    for n, word in enumerate(wanted, start=1):
        before, row[0] = row[0], n
        for m, other in enumerate(told, start=1):
            before, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, before + (word != other))
    return row[-1]


def draw_pairs(count: int) -> list[tuple[str, str]]:
    draw = random.Random(7)
    return [tuple(" ".join(draw.choices(LETTERS, k=draw.randrange(9))) for _ in range(2)) for _ in range(count)]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """References and hypotheses, some of them empty."""
    drawn = draw_pairs(1000)
    assert sum(not wanted for wanted, _ in drawn) > 50 and sum(not told for _, told in drawn) > 50
    return drawn


def test_the_corpus_is_counted_as_jiwer_and_a_dynamic_program_count_it(pairs):
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    scores = speech_scores(hypotheses, references, normaliser="none")
    words = sum(len(line.split()) for line in references)
    errors = sum(count_errors(wanted.split(), told.split()) for wanted, told in pairs)
    letters = sum(map(len, references))
    wrong_letters = sum(count_errors(list(wanted), list(told)) for wanted, told in pairs)
    assert (
        scores["wer"] == pytest.approx(100 * errors / words) == pytest.approx(100 * jiwer.wer(references, hypotheses))
    )
    assert scores["cer"] == pytest.approx(100 * wrong_letters / letters)
    assert scores["cer"] == pytest.approx(100 * jiwer.cer(references, hypotheses))
    assert scores["substitutions"] + scores["deletions"] + scores["insertions"] == errors
    assert scores["hits"] + scores["substitutions"] + scores["deletions"] == scores["words"] == words
    assert (scores["character_errors"], scores["characters"]) == (wrong_letters, letters)
    assert scores["sentence_error_rate"] == pytest.approx(100 * sum(a != b for a, b in pairs) / len(pairs))
    assert scores["signature"] == f"normaliser:none|jiwer:{importlib.metadata.version('jiwer')}"


def test_each_utterance_is_counted_as_jiwer_and_a_dynamic_program_count_it(pairs):
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    for (wanted, told), one in zip(pairs, align_words(hypotheses, references), strict=True):
        output = jiwer.process_words(wanted, told)
        assert one.errors == count_errors(wanted.split(), told.split())
        assert one.wer == pytest.approx(100 * output.wer)
        counts = (output.hits, output.substitutions, output.deletions, output.insertions)
        assert tuple(one.count(kind) for kind in ("hit", "substitution", "deletion", "insertion")) == counts
        assert one.words == len(wanted.split())
        # Read from left to right the steps spell both sides.
        assert [word for _, word, _ in one.steps if word is not None] == wanted.split()
        assert [word for _, _, word in one.steps if word is not None] == told.split()
        assert all((kind == "hit") == (a == b) for kind, a, b in one.steps)


@pytest.mark.parametrize(
    ("told", "wanted", "wer"), [("", "", 0.0), ("a b", "", 200.0), ("", "a b", 100.0), ("a", "A.", 0.0)]
)
def test_nothing_said_and_nothing_heard(told, wanted, wer):
    scores = speech_scores([told], [wanted])
    assert scores["wer"] == wer
    assert align_words([told], [wanted])[0].wer == wer


def test_what_is_compared_is_named():
    assert speech_scores(["Yes, sir"], ["yes sir"])["wer"] == 0.0
    assert speech_scores(["Yes, sir"], ["yes sir"], normaliser="none")["wer"] == 50.0
    assert speech_scores(["a"], ["a"])["signature"].startswith("normaliser:words|jiwer:4.")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("  Don’t — “STOP”, twenty-one!\n", "don't stop twenty one"),
        ("'quoted' words', rock 'n' roll, o''clock", "quoted words rock n roll o clock"),
        ("don\u00b4t don`t don\u02bct don\uff07t", "don't don't don't don't"),
        ("Straße, ÉCOLE, cafe\u0301", "straße école café"),
        ("ＦＵＬＬ ｗｉｄｔｈ ﬁne", "full width fine"),
        ("ДА! हिन्दी है? 男が。", "да हिन्दी है 男が"),
        ("so\u00adft 3.5 % $5 ⁇ <unk>", "soft 3 5 5 unk"),
        ("…", ""),
    ],
)
def test_the_rule(text, spoken):
    assert normalise(text) == spoken


@given(st.text(max_size=30))
@settings(max_examples=max(300, settings.default.max_examples))
def test_the_rule_twice_changes_nothing_more(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())
    assert all(c in " '" or unicodedata.category(c)[0] in "LMN" for c in once)


def test_the_worst_have_the_most_errors_and_of_these_the_highest_rate():
    utterances = align_words(["a x", "x", "a b", "x y", ""], ["a b", "b", "a b", "a b", "b c d"])
    assert [one.number for one in worst(utterances)] == [4, 3, 1, 0, 2]
    assert [one.number for one in worst(utterances, 2)] == [4, 3]


def test_confusions_are_counted():
    utterances = align_words(["a x", "a x", "a y", "", "b b"], ["a b", "a b", "a b", "q", "b"])
    rows = count_confusions(utterances, 1)
    assert rows["substitution"] == [("b", "x", 2)]
    assert rows["deletion"] == [("q", "", 1)]
    assert rows["insertion"] == [("", "b", 1)]
    assert count_confusions(utterances)["substitution"] == [("b", "x", 2), ("b", "y", 1)]


def test_the_interval_is_that_of_a_share():
    # 400 utterances of one word, each wrong with a chance of a fifth: the normal approximation of the binomial.
    draw = random.Random(3)
    told = ["x" if draw.random() < 0.2 else "a" for _ in range(400)]
    utterances = align_words(told, ["a"] * 400)
    share = sum(one.errors for one in utterances) / 400
    assert find_interval(utterances) == pytest.approx(196 * (share * (1 - share) / 400) ** 0.5, rel=0.1)
    assert find_interval(align_words(["a", "b"], ["a", "b"])) == 0.0


def test_mistakes_are_told(monkeypatch):
    with pytest.raises(ValueError, match="equally many lines, but are 1 and 2"):
        speech_scores(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one line"):
        speech_scores([], [])
    with pytest.raises(ValueError, match="must be one of words, none"):
        speech_scores(["a"], ["a"], normaliser="moses")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"pip install 'seq2seq_jax\[speech\]'"):
        speech_scores(["a"], ["a"])
