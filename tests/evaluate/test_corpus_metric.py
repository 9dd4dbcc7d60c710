"""Metrics as sums: sacreBLEU's own scores, and edit distances counted by hand and by the textbook's table."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from seq2seq_jax.evaluate.corpus_metric import METRICS, make_metric

HYPOTHESES = ["The cat sat, here.", "a big dog", "it  rains", "", "x", "one two three four five six"]
REFERENCES = ["The cat sat here.", "the big dog", "it rains today", "word", "y z", "one two three four six"]


def score_lines(name, hypotheses, references):
    metric = make_metric(name)
    return float(metric.score(metric.count(hypotheses, references).sum(axis=0)))


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_scores_are_sacrebleus(name):
    theirs = BLEU() if name == "bleu" else CHRF()
    places = [range(6), [0], [1, 2], [2], [3], [4], [0, 3, 5], [5], [1]]
    scores = []
    for part in places:
        sides = [[side[n] for n in part] for side in (HYPOTHESES, REFERENCES)]
        scores.append(score_lines(name, *sides))
        assert scores[-1] == pytest.approx(theirs.corpus_score(sides[0], [sides[1]]).score, abs=1e-9)
    assert len(set(scores)) >= 5  # smoothing, nothing at all, and all orders were among them
    assert "version:" in make_metric(name).signature and "nrefs:1" in make_metric(name).signature


def test_many_sums_at_once():
    for name in METRICS:
        metric = make_metric(name)
        counts = metric.count(HYPOTHESES, REFERENCES)
        assert counts.dtype == np.float64 and len(counts) == 6
        together = metric.score(np.stack([counts, counts[::-1].cumsum(axis=0)]))
        assert together.shape == (2, 6)
        np.testing.assert_allclose(together[0], [metric.score(row) for row in counts])
        assert (metric.loss(counts) == (-1 if metric.more_is_better else 1) * metric.score(counts)).all()


def distance(a, b):
    """Levenshtein's table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return table[-1, -1]


def test_errors_of_words_and_characters():
    assert score_lines("wer", ["a b c"], ["a x c d"]) == 50.0  # one replaced, one missing, of four
    assert score_lines("cer", ["ab  c"], ["ab d"]) == 25.0
    assert score_lines("wer", ["", "a b c"], ["x", "a"]) == 150.0
    for name, split in (("wer", str.split), ("cer", lambda line: " ".join(line.split()))):
        wanted = sum(distance(split(h), split(r)) for h, r in zip(HYPOTHESES, REFERENCES, strict=True))
        length = sum(len(split(r)) for r in REFERENCES)
        assert score_lines(name, HYPOTHESES, REFERENCES) == pytest.approx(100 * wanted / length)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="must be one of bleu, chrf, wer, cer"):
        make_metric("ter")
