"""Scores along a sorted test set: against sacreBLEU's of every part, and perplexities by hand."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from seq2seq_jax.evaluate.corpus_metric import make_metric
from seq2seq_jax.evaluate.sorted_parts import (
    average_ranks,
    count_lengths,
    measure_perplexity,
    rank_words,
    score_parts,
    split_evenly,
)

SOURCES = [" ".join(f"w{(7 * n + k) % 13}" for k in range(2 + n % 5)) for n in range(23)]
REFERENCES = [f"this is number {n} of a few short sentences" for n in range(23)]
HYPOTHESES = [
    line.replace("short", "long") if n % 3 else line.replace("this", "it") for n, line in enumerate(REFERENCES)
]


def test_parts_hold_every_sentence_once_in_order_and_are_equally_large():
    lengths = count_lengths(SOURCES)
    assert lengths.tolist() == [2 + n % 5 for n in range(23)]
    parts = split_evenly(lengths, 4)
    assert sorted(np.concatenate([part.ids for part in parts])) == list(range(23))
    assert sorted(len(part.ids) for part in parts) == [5, 6, 6, 6]
    for part, following in zip(parts, parts[1:], strict=False):
        assert part.high <= following.low
    for part in parts:
        own = lengths[part.ids]
        assert (part.low, part.high, part.mean) == (own.min(), own.max(), pytest.approx(own.mean()))
        assert all(a < b for a, b in zip(part.ids, part.ids[1:], strict=False) if lengths[a] == lengths[b])


@pytest.mark.parametrize("count", [0, 24])
def test_more_parts_than_sentences_are_refused(count):
    with pytest.raises(ValueError, match="from 1 to the 23 sentences"):
        split_evenly(count_lengths(SOURCES), count)


def test_scores_of_parts_are_sacrebleu_s():
    parts = split_evenly(count_lengths(SOURCES), 3)
    found = score_parts(parts, HYPOTHESES, REFERENCES, make_metric("bleu"))
    for score, part in zip(found, parts, strict=True):
        said, wanted = ([lines[n] for n in part.ids] for lines in (HYPOTHESES, REFERENCES))
        assert score == pytest.approx(BLEU().corpus_score(said, [wanted]).score)
    assert len(set(found)) > 1


def test_perplexity_of_a_part_is_that_of_its_tokens_together():
    log_probs = np.array([-1.0, -6.0, np.nan, -2.0])
    tokens = np.array([2.0, 3.0, 0.0, 4.0])
    parts = split_evenly(np.array([1.0, 1.0, 2.0, 3.0]), 2)
    np.testing.assert_allclose(measure_perplexity(parts, log_probs, tokens), [np.exp(7 / 5), np.exp(2 / 4)])
    without = np.where(np.isin(np.arange(len(log_probs)), parts[0].ids), np.nan, log_probs)
    np.testing.assert_allclose(measure_perplexity(parts, without, tokens), [np.nan, np.exp(2 / 4)])


def test_ranks_count_from_the_most_frequent_word():
    ranks = rank_words(["b a a", "c a b"])
    assert ranks == {"a": 1, "b": 2, "c": 3}
    assert average_ranks(["a b", "unseen a", ""], ranks).tolist() == [1.5, 2.5, 0.0]
