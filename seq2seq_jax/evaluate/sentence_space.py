"""What sentence vectors tell of meaning: a picture in two dimensions, and distances within and between meanings.

Sutskever et al. 2014, figure 2, show by a picture of a dozen phrases that their vectors depend on the order of words
and hardly on the voice. Here the same is counted: over triples of a sentence, another form of the same meaning, and
that very form's words in another order, which mean something else. For a bag of words the last two are the same.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Probe:
    """A sentence that is compared with others.

    Attributes:
        text: as the model reads it.
        scene: sentences of one scene and one form have the same words.
        meaning: who does what to whom; within a scene there are several meanings of the same words.
        form: how it is said, such as "active" or "passive".
    """

    text: str
    scene: int
    meaning: str
    form: str


@dataclasses.dataclass(frozen=True)
class Distances:
    """How far apart sentences lie, in units of the mean distance between different scenes.

    Attributes:
        same_meaning: mean distance of two forms of the same meaning.
        same_words: mean distance of two meanings of the same words, in the same form.
        nearer: share of the triples whose other form of the same meaning is nearer than that form's words in another
            order; a tie counts a half, so that 0.5 is what chance and a bag of words have.
        triples: how many there are.
    """

    same_meaning: float
    same_words: float
    nearer: float
    triples: int


def project(vectors: np.ndarray, axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components (Pearson 1901): the directions in which vectors differ most.

    Args:
        vectors: `[N, D]`.
        axes: how many directions.

    Returns:
        Points `[N, axes]`, and each direction's share of the variance. The sign of a direction is chosen so that its
        largest entry in size is positive.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    points = left * np.where(signs == 0, 1, signs) * sizes
    points = np.pad(points, ((0, 0), (0, max(0, axes - points.shape[1]))))
    shares = np.pad(sizes**2 / max(float((sizes**2).sum()), 1e-300), (0, max(0, axes - len(sizes))))
    return points[:, :axes], shares[:axes]


def count_words(lines: Sequence[str]) -> np.ndarray:
    """A bag of words for each line, `[N, V]`: how often it has every word, small letters or not."""
    split = [line.lower().split() for line in lines]
    known = {word: n for n, word in enumerate(sorted({word for words in split for word in words}))}
    counts = np.zeros((len(lines), len(known)))
    for row, words in enumerate(split):
        for word in words:
            counts[row, known[word]] += 1
    return counts


def measure_distances(
    vectors: np.ndarray, probes: Sequence[Probe], *, forms: tuple[str, str] | None = None
) -> Distances:
    """Distances of the vectors of probes.

    Args:
        vectors: `[N, D]`, one for each probe.
        probes: sentences in several forms and meanings of several scenes.
        forms: two forms, of which alone sentences are compared; by default all.

    Raises:
        ValueError: there are not as many vectors as probes, or nothing to compare.
    """
    if len(vectors) != len(probes):
        raise ValueError(f"`vectors` must be as many as the {len(probes)} probes, but are {len(vectors)} instead.")
    kept = [n for n, probe in enumerate(probes) if forms is None or probe.form in forms]
    far = np.linalg.norm(np.asarray(vectors, np.float64)[:, None] - np.asarray(vectors, np.float64)[None], axis=-1)
    other, same, words, nearer = [], [], [], []
    for a, b in itertools.permutations(kept, 2):
        first, second = probes[a], probes[b]
        if first.scene != second.scene:
            other.append(far[a, b])
        elif first.meaning != second.meaning:
            words += [far[a, b]] if first.form == second.form else []
        elif first.form != second.form:
            same.append(far[a, b])
            for c in kept:
                third = probes[c]
                if (third.scene, third.form) == (second.scene, second.form) and third.meaning != second.meaning:
                    nearer.append(0.5 * (np.sign(far[a, c] - far[a, b]) + 1))
    if not other or not nearer:
        raise ValueError("`probes` must have two scenes, forms and meanings at least, but have not.")
    unit = float(np.mean(other)) or 1.0
    return Distances(
        float(np.mean(same)) / unit, float(np.mean(words)) / unit, float(np.mean(nearer)), triples=len(nearer)
    )
