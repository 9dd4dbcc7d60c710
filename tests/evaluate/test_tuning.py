"""Tuning: every interval of a line search by direct evaluation, the best weights and choices by trying all of them."""

import itertools

import numpy as np
import pytest

from seq2seq_jax.evaluate.corpus_metric import make_metric
from seq2seq_jax.evaluate.tuning import (
    Lists,
    cross_validate,
    find_corners,
    find_oracle,
    fit_totals,
    search_line,
    tune,
)

WER, BLEU = make_metric("wer"), make_metric("bleu")
WORDS = "a b c d e f".split()


def make_lists(seed, *, lists=12, most=6, features=3, metric=WER, whole=False):
    """Lists of random lines; `whole` features are small whole numbers, so that lines meet, coincide and are level."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, most + 1, lists)
    values = draw.integers(-2, 3, (sizes.sum(), features)) if whole else draw.normal(size=(sizes.sum(), features))
    references = [" ".join(draw.choice(WORDS, 7)) for _ in sizes]
    hypotheses = []
    for size, reference in zip(sizes, references, strict=True):
        for _ in range(size):
            words = reference.split()
            words[draw.integers(7)] = words[draw.integers(7)]
            hypotheses.append(" ".join(words[: draw.integers(4, 8)]))
    counts = metric.count(hypotheses, list(np.repeat(references, sizes)))
    return Lists(values.astype(float), counts, sizes)


def list_crossings(lists, weights, direction):
    """All steps at which any two lines of any list cross, in ascending order."""
    found, begin = set(), 0
    for size in lists.sizes:
        slopes = lists.features[begin : begin + size] @ direction
        heights = lists.features[begin : begin + size] @ weights
        for i, j in itertools.combinations(range(size), 2):
            if slopes[i] != slopes[j]:
                found.add((heights[j] - heights[i]) / (slopes[i] - slopes[j]))
        begin += size
    return np.array(sorted(found))


def enumerate_steps(lists, weights, direction):
    """A step inside every interval between crossings, and the two beyond the last."""
    cuts = list_crossings(lists, weights, direction)
    cuts = cuts[np.append(True, np.diff(cuts) > 1e-9)]
    return np.concatenate([[cuts[0] - 1], (cuts[1:] + cuts[:-1]) / 2, [cuts[-1] + 1]])


def loss_at(lists, metric, weights):
    """By adding up what each list's first best hypothesis counts."""
    total, begin = np.zeros(lists.statistics.shape[1]), 0
    for size in lists.sizes:
        scores = [float(row @ weights) for row in lists.features[begin : begin + size]]
        total += lists.statistics[begin + scores.index(max(scores))]
        begin += size
    return float(metric.loss(total))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("metric", [WER, BLEU], ids=["wer", "bleu"])
def test_a_line_search_finds_the_best_of_all_intervals(metric, whole):
    improved = 0
    for seed in range(25):
        lists = make_lists(seed, metric=metric, whole=whole)
        draw = np.random.default_rng(100 + seed)
        weights, direction = draw.normal(size=(2, 3))
        tried = [loss_at(lists, metric, weights + s * direction) for s in enumerate_steps(lists, weights, direction)]
        step, reached = search_line(lists, metric.loss, weights, direction)
        assert reached == pytest.approx(min(tried), abs=1e-9)
        assert loss_at(lists, metric, weights + step * direction) == pytest.approx(reached, abs=1e-9)
        improved += reached < loss_at(lists, metric, weights)
        assert (step == 0.0) == (reached == pytest.approx(loss_at(lists, metric, weights), abs=1e-9))
    assert improved > 15


def test_the_sums_between_all_corners_are_those_of_the_choices_there():
    lists = make_lists(3, lists=8, most=9)
    weights, direction = np.random.default_rng(4).normal(size=(2, 3))
    corners, changes, sums = find_corners(lists, weights, direction)
    order = np.argsort(corners)
    found = sums + np.concatenate([np.zeros((1, 2)), np.cumsum(changes[order], axis=0)])
    edges = np.concatenate([[corners.min() - 1], corners[order], [corners.max() + 1]])
    assert 5 < len(corners) <= (lists.sizes - 1).sum()
    for step, wanted in zip((edges[1:] + edges[:-1]) / 2, found, strict=True):
        np.testing.assert_array_equal(lists.add(lists.choose(weights + step * direction)), wanted)


def test_a_hypothesis_that_two_lines_meet_in_is_never_alone_the_best():
    """Three lines through one point: the middle one is on the envelope nowhere, and must not be counted."""
    lists = Lists(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 4], [9, 4], [2, 4]]), np.array([3]))
    corners, changes, sums = find_corners(lists, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    assert corners.tolist() == [0.0] and changes.tolist() == [[1.0, 0.0]] and sums.tolist() == [1.0, 4.0]


@pytest.mark.parametrize("metric", [WER, BLEU], ids=["wer", "bleu"])
def test_tuning_reaches_the_best_of_all_weights(metric):
    """Of two features only the direction of the weights matters: every sector of the circle is tried."""
    for seed in range(6):
        lists = make_lists(seed, lists=15, features=2, metric=metric)
        begin, angles = 0, set()
        for size in lists.sizes:
            for i, j in itertools.combinations(range(begin, begin + size), 2):
                x, y = lists.features[i] - lists.features[j]
                angles |= {np.arctan2(-x, y) % (2 * np.pi), np.arctan2(x, -y) % (2 * np.pi)}
            begin += size
        cuts = np.array(sorted(angles))
        middles = np.append((cuts[1:] + cuts[:-1]) / 2, (cuts[0] + cuts[-1] + 2 * np.pi) / 2)
        best = min(loss_at(lists, metric, np.array([np.cos(angle), np.sin(angle)])) for angle in middles)
        tuned = tune(lists, metric.loss, np.array([1.0, 0.0]), restarts=4, seed=seed)
        assert tuned.loss == pytest.approx(best, abs=1e-9)
        assert loss_at(lists, metric, tuned.weights) == pytest.approx(best, abs=1e-9)
        assert np.abs(tuned.weights).sum() == pytest.approx(1.0)


def test_tuning_does_not_mind_units_and_repeats_itself():
    lists = make_lists(1, lists=40, features=4)
    units = np.array([1e-3, 1.0, 1e4, 0.0])  # the last feature says nothing
    scaled = Lists(lists.features * units + [5.0, 0.0, 1e6, 3.0], lists.statistics, lists.sizes)
    plain = Lists(lists.features * (units > 0), lists.statistics, lists.sizes)
    tuned, again = (tune(scaled, WER.loss, 1 / np.maximum(units, 1e-3) * (units > 0), restarts=2) for _ in range(2))
    np.testing.assert_array_equal(tuned.weights, again.weights)
    wanted = tune(plain, WER.loss, np.array([1.0, 1.0, 1.0, 0.0]), restarts=2)
    assert tuned.loss == pytest.approx(wanted.loss) and tuned.weights[3] == 0.0
    assert tuned.loss == loss_at(scaled, WER, tuned.weights) < loss_at(plain, WER, np.array([1.0, 1.0, 1.0, 0.0]))


def test_where_there_is_no_choice_the_start_stays():
    lists = make_lists(0, most=1)
    tuned = tune(lists, WER.loss, np.array([2.0, -1.0, 1.0]))
    np.testing.assert_allclose(tuned.weights, [0.5, -0.25, 0.25])
    assert tuned.loss == loss_at(lists, WER, tuned.weights)


@pytest.mark.parametrize("metric", [WER, BLEU], ids=["wer", "bleu"])
def test_the_oracle_is_the_best_of_all_choices(metric):
    for seed in range(8):
        lists = make_lists(seed, lists=6, most=4, metric=metric)
        ranges = [row[:size] for row, size in zip(lists.rows, lists.sizes, strict=True)]
        losses = [float(metric.loss(lists.add(np.array(rows)))) for rows in itertools.product(*ranges)]
        found = float(metric.loss(lists.add(find_oracle(lists, metric.loss))))
        assert found == pytest.approx(min(losses), abs=1e-9)
        assert max(losses) > min(losses)


def test_the_weights_behind_totals_are_found():
    lists, wanted = make_lists(2, lists=20), np.array([0.3, -1.2, 0.05])
    constants = np.repeat(np.random.default_rng(0).normal(size=20), lists.sizes)  # a feature that was not written
    np.testing.assert_allclose(fit_totals(lists, lists.features @ wanted + constants), wanted, atol=1e-9)


def test_cross_validation_chooses_by_the_weights_of_the_other_half():
    """In even lists the first feature tells the best hypothesis, in odd ones its negative does: both are misled."""
    features, counts = [], []
    for n in range(20):
        sign = 1.0 if n % 2 == 0 else -1.0
        features += [[sign * 1.0], [sign * -1.0]]
        counts += [[0.0, 5.0], [5.0, 5.0]]
    lists = Lists(np.array(features), np.array(counts), np.full(20, 2))
    assert cross_validate(lists, WER.loss, np.array([1.0])) == 100.0
    even = lists.take(np.arange(0, 20, 2))
    assert cross_validate(even, WER.loss, np.array([-1.0])) == 0.0 and even.sizes.sum() == 20


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`sizes` must be at least 1 and sum to the rows"):
        Lists(np.zeros((3, 1)), np.zeros((3, 2)), np.array([3, 0]))
