"""Outlier score of single records: how far a record lies from what the baseline holds near it.

Two ways, chosen by the size of the baseline (docs/methods.md has the measurements):

* **exemplars**, up to 20,000 records: mean distance g to the 5 nearest records of the baseline, adapted to how dense
  the baseline is there,

      score = g sqrt(2 m / (l + m)),

  l being the mean of the neighbours' own such distances (each without itself) and m the median of that over the
  baseline. Where neighbours lie as far apart as usual, the score is the plain distance g; a gap that is ordinary in a
  sparse region counts for more in a dense one. That is half the way from the kNN distance (Ramaswamy, Rastogi, Shim
  2000) to a ratio of densities (LOF; Breunig, Kriegel, Ng, Sander 2000), without the latter's failures at duplicates.
* **prototypes**, larger baselines: the distance to the nearest prototype that `Reference.score` gives, which for many
  records ranks as well at a tenth of the cost.

P-values rank a record among scores that were made without the record in question. With prototypes these are the
reference's calibration scores (split conformal). With exemplars no record is set aside, because a small baseline can
spare none: each record is scored against all others (leave-one-out), or, where whitening would otherwise have seen it
and the baseline has fewer than 10 records per dimension, against nine tenths of the baseline with the whitening learned
anew from those (cross-conformal; Vovk 2015).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from detectors import conformal
from detectors.errors import InvalidInput
from detectors.geometry import soft_whitening
from detectors.index import NearestIndex, stable_product
from detectors.reference import Reference

Floats = npt.NDArray[np.float32]
Basis = Literal["exemplars", "prototypes"]

NEIGHBOURS = 5
MAX_EXEMPLARS = 20_000  # exact search of more costs over 0.2 ms a record at 384 dimensions
FOLDS = 10
# Baseline records per dimension below which whitening fits its own records better than new ones: at 10, leave-one-out
# p-values below .1 come up in .102 to .108 of new records; at 3, in .14 to .16.
CROSS_FIT_BELOW = 10


@dataclass(frozen=True, slots=True)
class OutlierScores:
    """What the scorer says of n records.

    Attributes:
        score: float32 (n,), at least 0, a multiple of 1e-5; larger is stranger.
        p_value: float64 (n,), in (0, 1]; small is strange.
    """

    score: Floats
    p_value: npt.NDArray[np.float64]


class OutlierScorer:
    """Scores records against a reference.

    Args:
        reference: what normal looks like.
        basis: "exemplars" or "prototypes"; by default exemplars where the reference keeps its whole baseline and that
            is at most 20,000 records, else prototypes.

    Making one with exemplars searches the baseline once for each of its records: 4 s for 20,000 records of 384
    dimensions on one core.

    Raises:
        InvalidInput: ``basis`` is "exemplars", but the reference does not keep its whole baseline, or that is too
            large.
    """

    def __init__(self, reference: Reference, *, basis: Basis | None = None) -> None:
        self.reference = reference
        kept = len(reference.exemplars) + len(reference.calibration_vectors)
        fits = kept == reference.n_records and kept <= MAX_EXEMPLARS
        self.basis: Basis = basis if basis is not None else ("exemplars" if fits else "prototypes")
        if self.basis == "prototypes":
            return
        if not fits:
            raise InvalidInput(
                f"outlier scores from exemplars need the whole baseline, at most {MAX_EXEMPLARS:,} records; the "
                f"reference was made of {reference.n_records:,} and keeps {kept:,}.",
                hint='Use basis="prototypes", or build a smaller reference.',
            )
        self._local = _LocalDistance(_baseline(reference), reference.geometry.whitening)

    @functools.cached_property
    def calibration_scores(self) -> Floats:
        """Scores of records that the score did not know, float32 (n,), ascending: what p-values rank among."""
        if self.basis == "prototypes":
            return self.reference.calibration_scores
        power = self.reference.geometry.whitening
        if power > 0.0 and self.reference.n_records < CROSS_FIT_BELOW * self.reference.dimension:
            return np.sort(_cross_fitted_scores(_baseline(self.reference), power))
        return np.sort(self._local.own_scores())

    def score(self, vectors: npt.ArrayLike) -> Floats:
        """Score of every record, float32 (n,); larger is stranger. See `OutlierScores`.

        Args:
            vectors: (n, d), finite, converted to float32.

        Raises:
            InvalidInput: vectors of another dimension, or with rows that the reference refuses.
        """
        if self.basis == "prototypes":
            return self.reference.score(vectors).distance
        return self._local.score(self.reference.prepare(vectors))

    def p_values(
        self, vectors: npt.ArrayLike, *, uniforms: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float64]:
        """Probability that a normal record is at least as strange, float64 (n,) in (0, 1].

        For normal records that are exchangeable with the baseline, P(p <= a) <= a with prototypes, and about a with
        exemplars (.104 for a = .1, mean over 23 real tables; below a with cross-fitting); the smallest p that n
        baseline records allow is 1 / (n + 1). Records that come in near copies (sessions) are not exchangeable.

        Args:
            vectors: (n, d), finite, converted to float32.
            uniforms: float64 (n,) in (0, 1), to break ties at random, such as `conformal.position_uniforms` gives; by
                default ties go to the larger p.

        Raises:
            InvalidInput: see `score`.
        """
        return self._p_values(self.score(vectors), uniforms)

    def assess(self, vectors: npt.ArrayLike, *, uniforms: npt.NDArray[np.float64] | None = None) -> OutlierScores:
        """Scores and p-values at the cost of one search; see `score` and `p_values`."""
        score = self.score(vectors)
        return OutlierScores(score, self._p_values(score, uniforms))

    def _p_values(self, score: Floats, uniforms: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        if uniforms is None:
            return conformal.p_values(score, self.calibration_scores)
        return conformal.randomised_p_values(score, self.calibration_scores, uniforms=uniforms)


def _baseline(reference: Reference) -> Floats:
    return np.concatenate([reference.exemplars, reference.calibration_vectors])


class _LocalDistance:
    """The score over exemplars, with the soft whitening learned from them.

    Args:
        x: prepared vectors, float32 (n, d), n >= 3. Kept.
        power: of the soft whitening, 0 for none.
    """

    def __init__(self, x: Floats, power: float) -> None:
        self._mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = (x - self._mean).astype(np.float64)
        self._whitening = soft_whitening(centred.T @ centred / len(x), power) if power > 0.0 else None
        self.index = NearestIndex(self._search_space(x))
        self.k = min(NEIGHBOURS, len(x) - 2)
        self._distances, self._members = leave_one_out(self.index, np.arange(len(x)), self.k + 1)
        self._radii = self._distances[:, : self.k].mean(axis=1)
        typical = float(np.median(self._radii))
        if typical == 0.0:  # more than half of the records are copies of others
            typical = float(self._radii.mean()) or 1.0
        self._typical = np.float32(typical)

    def score(self, x: Floats) -> Floats:
        """Score of every prepared vector, float32 (n,)."""
        distances, found = self.index.search(self._search_space(x), self.k)
        return self._adapted(distances.mean(axis=1), self._radii[found])

    def own_scores(self) -> Floats:
        """Score of every exemplar against all others, float32 (n,), in their order."""
        k, near = self.k, self._members[:, : self.k]
        # The record must not speak for itself through its neighbours either: where it is among the nearest of its
        # neighbour, the next one takes its place in the neighbour's radius.
        known = (near[near] == np.arange(len(near))[:, None, None]).any(axis=2)
        instead = (self._distances[near][:, :, k] - self._distances[:, :k]) / np.float32(k)
        return self._adapted(self._radii, self._radii[near] + np.where(known, instead, np.float32(0)))

    def _search_space(self, x: Floats) -> Floats:
        return x if self._whitening is None else stable_product(x - self._mean, self._whitening)

    def _adapted(self, distance: Floats, radii: Floats) -> Floats:
        local = radii.mean(axis=1)
        score = distance * np.sqrt(2 * self._typical / (local + self._typical))
        return np.asarray(np.rint(score * np.float32(1e5)) * np.float32(1e-5), np.float32)


def _cross_fitted_scores(x: Floats, power: float) -> Floats:
    """Score of every vector against those of the other folds, with the whitening learned from these: float32 (n,)."""
    fold = np.arange(len(x)) % FOLDS
    scores = np.empty(len(x), np.float32)
    for number in range(FOLDS):
        out = fold == number
        scores[out] = _LocalDistance(x[~out], power).score(x[out])
    return scores


def leave_one_out(index: NearestIndex, members: npt.NDArray[np.int64], k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The k nearest other vectors, for some of an index's own: distances float32 (m, k), indices int64 (m, k).

    Args:
        index: of n vectors.
        members: int64 (m,), row numbers in the index.
        k: 1 <= k < n.
    """
    distances, found = index.search(index.vectors[members], k + 1)
    own = found == members[:, None]
    own[~own.any(axis=1), -1] = True  # more than k copies come before it, and any of them may go
    return distances[~own].reshape(len(members), k), found[~own].reshape(len(members), k)


def evenly_spaced(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of the numbers 0 to n - 1, evenly spaced and ascending."""
    count = min(n, most)
    return np.arange(count, dtype=np.int64) * n // max(count, 1)
