"""Which records a training set lacks most: few that stand for many, and no two that say the same.

What the stream has more of than the baseline is what a model that was trained on such a baseline lacks. So the records
are grouped by k-means, the baseline's exemplars are counted in the same groups, and groups are ordered by how surely
the stream has more of them: the difference of the two counts in its standard errors. Then they take turns: each names
the record nearest to its centre first, and after that the one farthest from all that it has named (Gonzalez 1985: the
radius that is left is at most twice the smallest possible). So every new kind of records is named by a typical one
before any kind is named twice, and a group that is merely large does not crowd out the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput
from detectors.index import NearestIndex, k_means

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# Candidates to a group, about. Of 4, 8 and 16, 4 named most new kinds in tests/benchmarks/retrain_hint.py, on intents
# that its report leaves out.
PER_GROUP = 4
MOST_GROUPS = 256
SURE = 2.0  # standard errors: groups that grew by less are named after these, and may have grown by chance


@dataclass(frozen=True, slots=True)
class Named:
    """The choice.

    Attributes:
        rows: int64 (m,), the candidates in the order in which they are named.
        groups: int64 (m,), the group of each, numbered from 0 for the one that is lacking most surely.
        stands_for: float64 (m,), records of the stream that each stands for: the candidates of its group that are
            nearest to it, with their weights.
        sure: how many groups, the first ones, hold more than the baseline by two standard errors or more.
        lacking: by how many records they do, together.
        covered: the share of these that is in groups of which a record is named.
    """

    rows: Rows
    groups: Rows
    stands_for: Doubles
    sure: int
    lacking: float
    covered: float


def name_lacking(vectors: Floats, weights: Doubles, baseline: Floats, most: int, *, records: int = 0) -> Named:
    """Choose at most ``most`` candidates. The same candidates in the same order give the same choice.

    Args:
        vectors: float32 (n, d), finite, in the search space of the reference.
        weights: float64 (n,), > 0: records of the stream that each stands for.
        baseline: float32 (m, d), m >= 1, records of the baseline, drawn at random, in the same space.
        most: at least 1.
        records: of the stream; by default the sum of the weights.

    Raises:
        InvalidInput: lengths that do not fit, weights that are not positive, ``most`` below 1, or an empty baseline.
    """
    n = len(vectors)
    if len(weights) != n or not (weights > 0).all() or most < 1:
        raise InvalidInput(f"expected {n} weights above 0 and most >= 1, got {len(weights)} weights, most {most}.")
    if len(baseline) == 0:
        raise InvalidInput("expected records of the baseline, got none.", hint="Build the reference with exemplars.")
    if n == 0:
        return Named(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0, 0.0, 0.0)
    k = min(max(n // PER_GROUP, 1), MOST_GROUPS)
    index = NearestIndex(k_means(vectors, k))
    distances, nearest = index.search(vectors, 1)
    home = nearest[:, 0]
    each = max(float(weights.sum()), records) / len(baseline)  # records of the stream for one of the baseline
    known = np.bincount(index.search(baseline, 1)[1][:, 0], minlength=k)
    excess = np.bincount(home, weights=weights, minlength=k) - each * known
    # Of counts, each of which is one draw with its weight.
    variance = np.bincount(home, weights=weights**2, minlength=k) + each**2 * known
    sure = excess / np.sqrt(np.maximum(variance, 1.0))
    order = [int(group) for group in np.lexsort((np.arange(k), -sure)) if excess[group] > 0]
    groups = [_Turns(np.flatnonzero(home == group), vectors, distances[:, 0]) for group in order]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < most:
        before = len(chosen)
        for number, group in enumerate(groups):
            if len(chosen) < most and (row := group.next()) is not None:
                chosen.append((row, number))
        if len(chosen) == before:
            break
    rows = np.array([row for row, _ in chosen], np.int64)
    numbers = np.array([number for _, number in chosen], np.int64)
    stands_for = np.zeros(len(rows))
    for number in np.unique(numbers):
        mine, group = np.flatnonzero(numbers == number), groups[number]
        np.add.at(stands_for, mine[group.closest], weights[group.members])
    gains = excess[[group for group in order if sure[group] >= SURE]]
    lacking = float(gains.sum())
    named = float(gains[: len(np.unique(numbers))].sum())  # in the first round each group names one
    return Named(rows, numbers, stands_for, len(gains), lacking, named / lacking if lacking > 0 else 0.0)


class _Turns:
    """One group, which names its members one after the other.

    Attributes:
        members: int64 (m,), ascending.
        closest: int64 (m,), of each member the number of the named one that is nearest to it.
    """

    def __init__(self, members: Rows, vectors: Floats, to_centre: Floats) -> None:
        self.members = members
        self.closest = np.zeros(len(members), np.int64)
        self._x = vectors[members].astype(np.float64)
        self._gap = np.full(len(members), np.inf)
        self._first = int(np.argmin(to_centre[members]))
        self._named = 0

    def next(self) -> int | None:
        """The next row; None where all are named."""
        if self._named == len(self.members):
            return None
        place = self._first if self._named == 0 else int(np.argmax(self._gap))
        gap = np.sqrt(np.square(self._x - self._x[place]).sum(axis=1))
        nearer = gap < self._gap
        self.closest[nearer] = self._named
        self._gap = np.where(nearer, gap, self._gap)
        self._gap[place] = -1.0  # named, and never again
        self.closest[place] = self._named
        self._named += 1
        return int(self.members[place])
