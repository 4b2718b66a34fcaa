"""Gradient-boosted trees for two classes, of the kind that asks one question per level (Dorogush, Ershov, Gulin 2018).

Friedman's (2001) boosting with second-order leaves (Chen, Guestrin 2016). All leaves of a level share one question, so
a record needs no walk through nodes, only comparisons that numpy does for a batch at once. Nothing is random, and
leaves are multiples of 2**-20: their sums are exact, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.logistic import sigmoid

Doubles = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

TREES = 100
LEVELS = 4
RATE = 0.1
_RIDGE = 1.0
_CUTS = 64  # quantiles of each class at which a column may be cut: fraud hides in the tails of normal records
_GRAIN = 2.0**20


@dataclass(frozen=True, slots=True)
class BoostedTrees:
    """Fitted trees.

    Attributes:
        start: log odds before any tree.
        columns: int64 (T * 4,), which column each question is about, level by level.
        cuts: float64 (T * 4,), it asks whether the column is above this.
        leaves: float64 (T * 16,), what the answers add to the log odds.
    """

    start: float
    columns: Int64s
    cuts: Doubles
    leaves: Doubles

    @classmethod
    def fit(cls, features: Doubles, targets: npt.NDArray[np.bool_], counts: Doubles) -> BoostedTrees:
        """Learn to tell the classes apart.

        Args:
            features: float64 (n, m), finite.
            targets: bool (n,), both classes present.
            counts: float64 (n,), above 0: how many records each row stands for.
        """
        codes, edges = _binned(features, targets)
        n_bins = max(map(len, edges)) + 1
        m, n = codes.shape
        places = codes + (np.arange(m) * n_bins)[:, None]
        share = float(counts[targets].sum() / counts.sum())
        start = float(np.log(share / (1.0 - share)))
        odds = np.full(n, start)
        columns, cuts, leaves = [], [], []
        for _ in range(TREES):
            probability = sigmoid(odds)
            slope, curvature = counts * (probability - targets), counts * probability * (1.0 - probability)
            slopes, curvatures = np.tile(slope, m), np.tile(curvature, m)
            leaf = np.zeros(n, np.int64)
            for level in range(LEVELS):
                shape = (1 << level, m, n_bins)
                at = (places + leaf * (m * n_bins)).ravel()
                gain = _gains(
                    np.asarray(np.bincount(at, slopes, m * n_bins << level), np.float64).reshape(shape),
                    np.asarray(np.bincount(at, curvatures, m * n_bins << level), np.float64).reshape(shape),
                )
                column, cut = divmod(int(gain.argmax()), n_bins - 1)
                leaf = 2 * leaf + (codes[column] > cut)
                columns.append(column)
                cuts.append(edges[column][cut] if cut < len(edges[column]) else np.inf)
            added = -RATE * np.bincount(leaf, slope, 1 << LEVELS)
            added /= np.bincount(leaf, curvature, 1 << LEVELS) + _RIDGE
            added = np.rint(added * _GRAIN) / _GRAIN
            odds += added[leaf]
            leaves.append(added)
        return cls(start, np.array(columns, np.int64), np.array(cuts), np.concatenate(leaves))

    def log_odds(self, features: Doubles) -> Doubles:
        """Log odds of every row, float64 (n,).

        Args:
            features: float64 (n, m), finite.
        """
        total = np.empty(len(features))
        first = (np.arange(TREES) << LEVELS)[:, None]
        for start in range(0, len(features), 1024):
            rows = np.ascontiguousarray(features[start : start + 1024].T)
            above = rows[self.columns] > self.cuts[:, None]
            leaf = np.zeros((TREES, rows.shape[1]), np.int64)
            for level in range(LEVELS):
                leaf = 2 * leaf + above[level::LEVELS]
            total[start : start + 1024] = self.leaves[leaf + first].sum(axis=0)
        return np.asarray(self.start + total, np.float64)


def _binned(features: Doubles, targets: npt.NDArray[np.bool_]) -> tuple[Int64s, list[Doubles]]:
    """For each column, the class of each row, int64 (m, n), and the edges between classes."""
    steps = np.arange(1, _CUTS) / _CUTS
    edges = [
        np.unique(
            np.concatenate([np.quantile(side, steps, method="lower") for side in (column[~targets], column[targets])])
        )
        for column in features.T
    ]
    codes = [np.searchsorted(edge, column, side="left") for edge, column in zip(edges, features.T, strict=True)]
    return np.array(codes, np.int64), edges


def _gains(slopes: Doubles, curvatures: Doubles) -> Doubles:
    """By how much a cut after each class lowers the loss, float64 (m, classes - 1), over all leaves of the level."""
    slopes, curvatures = slopes.cumsum(axis=2), curvatures.cumsum(axis=2)
    all_slopes, all_curvatures = slopes[:, :, -1:], curvatures[:, :, -1:]
    slopes, curvatures = slopes[:, :, :-1], curvatures[:, :, :-1]
    gain = slopes**2 / (curvatures + _RIDGE)
    gain += (all_slopes - slopes) ** 2 / (all_curvatures - curvatures + _RIDGE)
    gain -= all_slopes**2 / (all_curvatures + _RIDGE)
    return np.asarray(gain.sum(axis=0), np.float64)
