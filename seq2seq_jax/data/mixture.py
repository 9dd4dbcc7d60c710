"""How much of an epoch each corpus of a mixture gets, and which of its examples an epoch takes.

Shares follow the sizes, flattened by a temperature (Devlin et al.'s multilingual BERT; Arivazhagan et al.
2019, arXiv:1907.05019, section 4.2):

    p_i = (n_i w_i)^(1/T) / sum over j of (n_j w_j)^(1/T)        n pairs, w weights, T temperature

T = 1 takes every corpus as often as its size and weight say; a large T takes all alike. An epoch holds about as
many examples as the corpora together. A cell is what one corpus has of one shape. Every epoch takes the same
number of examples of a cell, so that all epochs have the same number of batches; which ones, is a walk through
permutations of the cell, so that no example comes again before all of its cell have come.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

WALK = 2**31  # stands where the order of batches has the number of an epoch: another stream of random numbers


@dataclasses.dataclass(frozen=True)
class Part:
    """One corpus of a mixture.

    Attributes:
        size: its pairs.
        share: its probability in an epoch, relative to the other parts'.
        name: for messages.
    """

    size: int
    share: float
    name: str = ""


def share_parts(
    sizes: Sequence[int], weights: Sequence[float], names: Sequence[str], *, temperature: float
) -> tuple[Part, ...]:
    """Corpora with their shares at a temperature; see above.

    Args:
        sizes: pairs of each corpus, at least one in all.
        weights: of each, more than 0.
        names: of each, for messages.
        temperature: more than 0.
    """
    logs = [
        (math.log(size) + math.log(weight)) / temperature if size else -math.inf
        for size, weight in zip(sizes, weights, strict=True)
    ]  # a small temperature is a large power: only the ratios are kept
    shares = [math.exp(log - max(logs)) for log in logs]
    total = sum(shares)
    return tuple(Part(size, share / total, name) for size, share, name in zip(sizes, shares, names, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """How many examples of each cell an epoch takes; make it with `mix`.

    Attributes:
        borders: `[shapes, corpora + 1]` int64: where the cells of a shape begin and end in its members.
        counts: `[shapes, corpora]` int64: examples of the cell in every epoch.
    """

    borders: np.ndarray
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """`[corpora]`: what each corpus has of an epoch, in examples."""
        return self.counts.sum(axis=0) / self.counts.sum()

    def take(
        self, members: np.ndarray, shape: int, epoch: int, permute: Callable[[int, int, int, int], np.ndarray] | None
    ) -> np.ndarray:
        """The examples of a shape in an epoch, corpus after corpus.

        Args:
            members: ids of the shape's examples, in order of the corpora.
            shape: its number.
            epoch: counted from 0.
            permute: `permute(count, round, corpus, shape)` is an order of the cell; None keeps the corpus' order.
        """
        taken = [members[:0]]  # a shape may have none: it is there for others' leftovers
        for corpus, count in enumerate(self.counts[shape].tolist()):
            cell = members[self.borders[shape, corpus] : self.borders[shape, corpus + 1]]
            done = epoch * count
            while done < (epoch + 1) * count:
                round_, start = divmod(done, len(cell))
                stop = min(len(cell), start + (epoch + 1) * count - done)
                if permute is None or stop - start == len(cell):  # all of it, which the plan shuffles itself
                    taken.append(cell[start:stop])
                else:
                    taken.append(cell[permute(len(cell), round_, corpus, shape)[start:stop]])
                done += stop - start
        return np.concatenate(taken)


def mix(parts: Sequence[Part], members: Sequence[np.ndarray]) -> Mixture:
    """Decides how many examples of each cell an epoch takes.

    Of every cell at least one is taken: the examples of a small corpus in a rare shape shall be seen, too.

    Args:
        parts: the corpora; ids are positions in their concatenation.
        members: ids of each shape's examples, ascending. What is in no shape is left out of the corpora's
            counts; how often an example of a corpus is seen does not change by it.

    Raises:
        ValueError: the parts are not those of the ids.
    """
    ends = np.cumsum([0, *(part.size for part in parts)], dtype=np.int64)
    if not parts or any(part.size < 0 or not 0 <= part.share < math.inf for part in parts):
        raise ValueError(f"`parts` must have sizes and shares of at least 0, but are {tuple(parts)} instead.")
    borders = np.stack([np.searchsorted(ids, ends) for ids in members]).astype(np.int64)
    if any(border[-1] != len(ids) for border, ids in zip(borders, members, strict=True)):
        raise ValueError(f"`parts` must have as many examples as there are ids, but have {ends[-1]} instead.")
    sizes = np.diff(borders, axis=1)  # [shapes, corpora]: where shares are sizes, counts come out as these exactly
    often = np.array([part.share / max(part.size, 1) for part in parts])  # how often an example is seen, relative
    often *= sizes.sum() / (often * sizes.sum(axis=0)).sum()
    counts = np.where(sizes > 0, np.maximum(np.rint(sizes * often), 1), 0).astype(np.int64)
    return Mixture(borders, counts)


def describe_shares(parts: Sequence[Part], shares: Sequence[float]) -> str:
    """What each corpus has of an epoch, for the log."""
    return ", ".join(f"{part.name or n} {share:.1%}" for n, (part, share) in enumerate(zip(parts, shares, strict=True)))
