"""Sentence vectors in two dimensions and their distances: against an eigenvalue problem, and counts by hand."""

import itertools

import numpy as np
import pytest

from seq2seq_jax.evaluate.sentence_space import Probe, count_words, measure_distances, project

MEANINGS, FORMS, SCENES = ("man", "woman"), ("active", "passive"), 3
PROBES = [
    Probe(f"{scene} {meaning} {form}", scene, meaning, form)
    for scene in range(SCENES)
    for meaning in MEANINGS
    for form in FORMS
]


def test_projections_are_the_directions_of_the_largest_variance():
    vectors = np.random.default_rng(0).normal(size=(20, 6)) * [5, 1, 3, 0.5, 2, 1] + 7
    points, shares = project(vectors)
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    wanted = (vectors - vectors.mean(axis=0)) @ directions[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points), np.abs(wanted), atol=1e-9)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum(), atol=1e-12)
    np.testing.assert_allclose(project(vectors[::-1])[0], points[::-1], atol=1e-9)  # the signs stay


def test_equal_vectors_and_single_dimensions_have_points_too():
    points, shares = project(np.ones((3, 4)))
    assert np.allclose(points, 0) and np.allclose(shares, 0)
    points, shares = project(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(points, [[-1, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(shares, [1, 0])


def test_distances_are_those_counted_by_hand():
    vectors = np.random.default_rng(1).normal(size=(len(PROBES), 5))
    at = {(p.scene, p.meaning, p.form): vector for p, vector in zip(PROBES, vectors, strict=True)}

    def far(a, b):
        return float(np.sqrt(((at[a] - at[b]) ** 2).sum()))

    other = np.mean([far(a, b) for a, b in itertools.combinations(at, 2) if a[0] != b[0]])
    same = np.mean([far((s, m, FORMS[0]), (s, m, FORMS[1])) for s in range(SCENES) for m in MEANINGS])
    words = np.mean([far((s, MEANINGS[0], f), (s, MEANINGS[1], f)) for s in range(SCENES) for f in FORMS])
    wins = [
        far((s, m, f), (s, m, g)) < far((s, m, f), (s, other_meaning, g))
        for s in range(SCENES)
        for m, other_meaning in itertools.permutations(MEANINGS)
        for f, g in itertools.permutations(FORMS)
    ]
    found = measure_distances(vectors, PROBES)
    assert (found.triples, found.nearer) == (len(wins), pytest.approx(np.mean(wins)))
    assert 0 < np.mean(wins) < 1
    assert (found.same_meaning, found.same_words) == (pytest.approx(same / other), pytest.approx(words / other))


def test_meaning_alone_and_words_alone_are_told_apart():
    meanings = sorted({(probe.scene, probe.meaning) for probe in PROBES})
    by_meaning = np.eye(len(meanings))[[meanings.index((probe.scene, probe.meaning)) for probe in PROBES]]
    assert measure_distances(by_meaning, PROBES).nearer == 1.0
    assert measure_distances(by_meaning, PROBES).same_meaning == 0.0
    words = ["man sees woman", "woman is seen by man", "woman sees man", "man is seen by woman"]
    probes = [Probe(f"{scene} {text}", scene, "mw"[n // 2], "ap"[n % 2]) for scene in range(2) for n, text in
              enumerate(words)]  # fmt: skip
    bag = measure_distances(count_words([probe.text for probe in probes]), probes, forms=("a", "p"))
    assert (bag.nearer, bag.same_words) == (0.5, 0.0) and bag.same_meaning > 0


def test_bags_count_words_without_regard_to_large_letters():
    found = count_words(["The cat the", "cat"])
    assert found.tolist() == [[1, 2], [1, 0]]


@pytest.mark.parametrize(("rows", "kept"), [(3, PROBES), (4, PROBES[:4])])
def test_what_cannot_be_compared_is_refused(rows, kept):
    with pytest.raises(ValueError, match="must"):
        measure_distances(np.zeros((rows, 2)), kept)
