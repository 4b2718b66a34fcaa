"""The parts of a fraud score, and how they are learned: contrast, linear model, trees, and the curve to log odds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.boosting import BoostedTrees
from detectors.errors import InvalidInput
from detectors.index import NearestIndex, k_means, squared_lengths, stable_product
from detectors.logistic import logistic, sigmoid
from detectors.outlier import NEIGHBOURS, evenly_spaced, leave_one_out

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MODEL_FROM = 5  # confirmed cases, after dropping copies, from which on the linear model joins
TREES_FROM = 200  # and from which on trees join it
MAX_NORMAL = 2_000  # normal records that distances are taken to and that train the linear model; as many marks
MAX_TRAINING = 10_000  # normal records that train the trees, and as many marks
SMALL = 64  # dimensions up to which trees see the vector, and every record is searched for in full
CASE_PROTOTYPES = {True: 512, False: 64}  # by whether the vectors are small: more cases than this become centroids
FOLDS = 5
FOLDS_WITH_TREES = 3
# Penalty per unit of squared weight, for a mean loss; vectors are scaled to a mean squared length of 1.
RIDGE = 4e-6
LINEAR_SHARE = 0.5  # of the linear model beside the contrast, both in standard deviations of normal records
# The scale of "near", in median distances between normal records: makes the contrast of a copy of a case finite.
NEAR = 2.0
# Share of normal records of large vectors for which the quick score is enough. The distance to normal records is what
# few cases rank by; models tell as much once there are many.
GATE = {False: 0.8, True: 0.96}  # by whether there are TREES_FROM cases


@dataclass(frozen=True, slots=True)
class Records:
    """Prepared vectors, float32 (n, d), signals as a model sees them, float64 (n, s), and weights, float64 (n,)."""

    vectors: Floats
    signals: Doubles
    weights: Doubles

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Int64s | Bools | slice) -> Records:
        return Records(self.vectors[rows], self.signals[rows], self.weights[rows])

    def __add__(self, other: Records) -> Records:
        return Records(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.signals, other.signals]),
            np.concatenate([self.weights, other.weights]),
        )


class NormalSide:
    """Normal records, and false-alarm marks beside them: distances to them, and what a model has to tell from fraud.

    Args:
        usual: normal records.
        to_prototypes: distances of vectors to the reference's prototypes, as `FraudModel.quick` gets them.
    """

    def __init__(self, usual: Records, to_prototypes: Callable[[Floats], Floats]) -> None:
        sample = evenly_spaced(len(usual), MAX_TRAINING)
        self.training = usual[sample]
        self.near_ones = evenly_spaced(len(sample), MAX_NORMAL)  # of these, the ones that distances are taken to
        self.index = NearestIndex(self.training.vectors[self.near_ones])
        self.quick = to_prototypes(self.index.vectors)
        rows, k = np.arange(len(self.index)), min(NEIGHBOURS, len(self.index) - 1)
        self._own = np.asarray(leave_one_out(self.index, rows, k)[0].mean(axis=1), np.float32)
        typical = float(np.median(self._own))
        self.typical = typical if typical > 0 else float(self._own.mean()) or 1.0
        self.near = NEAR * self.typical
        self.length = float(np.sqrt(squared_lengths(self.index.vectors).mean(dtype=np.float64))) or 1.0
        self._mark(usual[:0])

    def with_marks(self, marks: Records) -> NormalSide:
        """The same normal records, with false-alarm marks beside them."""
        side = copy.copy(self)
        side._mark(marks[evenly_spaced(len(marks), MAX_TRAINING)])
        return side

    def _mark(self, marks: Records) -> None:
        self.marks = marks
        self.near_marks = evenly_spaced(len(marks), MAX_NORMAL)
        self.mark_index = NearestIndex(marks.vectors[self.near_marks]) if len(marks) else None
        self.own_distance = self.nearer(self._own, self.index.vectors)

    def distance(self, x: Floats) -> Floats:
        """Mean distance to up to 5 normal records, or to up to 5 marks if those are nearer: float32 (n,)."""
        return self.nearer(mean_distance(self.index, x), x)

    def nearer(self, distance: Floats, x: Floats) -> Floats:
        """The distance to up to 5 marks, where that is less than ``distance``: float32 (n,)."""
        if self.mark_index is None:
            return distance
        return np.asarray(np.minimum(distance, mean_distance(self.mark_index, x)), np.float32)

    def nearest_mark(self, x: Floats) -> Int64s:
        """Number among ``near_marks`` of the nearest one, int64 (n,).

        Raises:
            InvalidInput: nothing is marked.
        """
        if self.mark_index is None:
            raise InvalidInput("no false alarm is marked.")
        return self.mark_index.nearest(x)


class CaseSide:
    """Confirmed cases, or centroids of them where they are many.

    Args:
        cases: at least one.
        near: the scale of "near".
        unit: the vectors have length 1.
    """

    def __init__(self, cases: Records, near: float, *, unit: bool) -> None:
        most = CASE_PROTOTYPES[cases.vectors.shape[1] <= SMALL]
        vectors, counts = cases.vectors, np.minimum(cases.weights, 1.0)
        if len(cases) > most:
            vectors = k_means(vectors, most, weights=counts.astype(np.float32))
            members = NearestIndex(vectors).search(cases.vectors, 1)[1][:, 0]
            sizes = np.bincount(members, minlength=most)
            counts = np.where(sizes > 0, np.bincount(members, counts, most) / np.maximum(sizes, 1), 1.0)
        self._counts = counts
        self._near = near
        self._index = None if unit else NearestIndex(vectors)
        self.columns = np.ascontiguousarray(vectors.T)
        self._squares = squared_lengths(vectors)

    def towards(self, x: Floats, *, products: Floats | None = None) -> tuple[Doubles, Floats]:
        """log(f + near) - log(w), float64 (n,), and the distance to the nearest, float32 (n,).

        f is the mean distance to up to 5 cases, and w what they count, the nearer ones more: near a case that counts
        half, a record must lie half as far to score the same.

        Args:
            products: float32 (n, k), ``x`` times ``columns``, where that is known.
        """
        k = min(NEIGHBOURS, len(self._squares))
        if self._index is not None:
            distances, found = self._index.search(x, k)
        else:
            squared = stable_product(x, self.columns) if products is None else products
            squared = squared * np.float32(-2)
            squared += self._squares
            found = np.argpartition(squared, k - 1, axis=1)[:, :k]
            near = np.take_along_axis(squared, found, axis=1) + squared_lengths(x)[:, None]
            order = np.argsort(near, axis=1, kind="stable")
            distances = np.sqrt(np.maximum(np.take_along_axis(near, order, axis=1), np.float32(0)))
            found = np.take_along_axis(found, order, axis=1)
        towards = np.log(distances.mean(axis=1, dtype=np.float64) + self._near)
        if (self._counts < 1.0).any():
            closeness = 1.0 / (distances.astype(np.float64) + self._near)
            towards -= np.log((closeness * self._counts[found]).sum(axis=1) / closeness.sum(axis=1))
        return towards, distances[:, 0]


@dataclass(frozen=True, slots=True)
class Strengths:
    """Parts of the score of n records, float64 (n,) each: contrast and linear in standard deviations of normal ones."""

    contrast: Doubles
    linear: Doubles
    trees: Doubles

    def columns(self, *, with_trees: bool) -> Doubles:
        """What the curve weighs, float64 (n, 1 or 2)."""
        total = self.contrast + LINEAR_SHARE * self.linear
        return np.column_stack([total, self.trees]) if with_trees else total[:, None]


class FraudModel:
    """Contrast, linear model and trees, fitted on cases against a normal side; no curve yet.

    Args:
        normal: what to tell the cases from.
        cases: at least one.
        unit: the vectors have length 1.
        kept: bool, of the normal side's training records and then of its marks, which may be learned from.
        n_cases: by which parts are chosen; the number of cases by default.
        start: where the fit of the linear model begins.
    """

    def __init__(
        self,
        normal: NormalSide,
        cases: Records,
        *,
        unit: bool,
        kept: tuple[Bools, Bools] | None = None,
        n_cases: int | None = None,
        start: Doubles | None = None,
    ) -> None:
        n_cases = len(cases) if n_cases is None else n_cases
        if kept is None:
            kept = np.ones(len(normal.training), bool), np.ones(len(normal.marks), bool)
        self.normal = normal
        self.cases = CaseSide(cases, normal.near, unit=unit)
        usual, marked = kept[0][normal.near_ones], kept[1][normal.near_marks]
        negatives = normal.training[normal.near_ones[usual]]
        towards, _ = self.cases.towards(negatives.vectors)
        self._contrast_scale = _scale(np.log(normal.own_distance[usual] + normal.near) - towards)
        quick = normal.quick[usual].astype(np.float64)
        self._quick_near = NEAR * (float(np.median(quick)) or 1.0)
        self._quick_scale = _scale(np.log(quick + self._quick_near) - towards)
        self.weights: Doubles | None = None
        self.start: Doubles | None = None
        dimension = cases.vectors.shape[1]
        if n_cases >= MODEL_FROM:
            self._fit_linear(negatives, normal.marks[normal.near_marks[marked]], cases, start)
            weights = np.asarray(self.weights, np.float32)[:dimension]
            self._columns = np.column_stack([self.cases.columns, weights])
        self._sees_vector = dimension <= SMALL
        self.trees: BoostedTrees | None = None
        self.usual_trees = 0.0
        if n_cases >= TREES_FROM and (self._sees_vector or cases.signals.shape[1]):
            everyone = normal.training[kept[0]] + normal.marks[kept[1]] + cases
            targets = np.arange(len(everyone)) >= len(everyone) - len(cases)
            self.trees = BoostedTrees.fit(self._tree_columns(everyone), targets, everyone.weights)
            self.usual_trees = float(np.median(self.trees.log_odds(self._tree_columns(negatives))))

    def _fit_linear(self, negatives: Records, marks: Records, cases: Records, start: Doubles | None) -> None:
        everyone = negatives + marks + cases
        features = np.column_stack([everyone.vectors / np.float32(self.normal.length), everyone.signals])
        targets = np.arange(len(everyone)) >= len(everyone) - len(cases)
        mass = training_mass(negatives.weights, marks.weights, cases.weights)
        self.start = logistic(features, targets.astype(np.float64), mass, ridge=RIDGE, start=start)
        self.weights = self.start[:-1].copy()
        self.weights[: cases.vectors.shape[1]] /= self.normal.length
        self._linear_scale = _scale(linear(negatives.vectors, negatives.signals, self.weights))

    def strengths(self, x: Floats, signals: Doubles, *, to_normal: Floats | None = None) -> Strengths:
        """The parts of the score, in full."""
        to_normal = self.normal.distance(x) if to_normal is None else to_normal
        towards, _ = self.cases.towards(x)
        contrast = np.log(to_normal.astype(np.float64) + self.normal.near) - towards
        trees = (
            np.zeros(len(x))
            if self.trees is None
            else self.trees.log_odds(self._tree_columns(Records(x, signals, np.empty(0))))
        )
        return Strengths(_standard(contrast, self._contrast_scale), self.linear(x, signals), trees)

    def quick(self, x: Floats, signals: Doubles, to_prototypes: Floats) -> Strengths:
        """The same by the distance to the reference's prototypes, which the outlier score has already."""
        if self.weights is None:
            (towards, _), found = self.cases.towards(x), np.zeros(len(x))
        else:  # one product with cases and weights: a second one would go through all of x again
            products = stable_product(x, self._columns)
            towards, _ = self.cases.towards(x, products=products[:, :-1])
            found = _with_signals(products[:, -1], signals, self.weights[x.shape[1] :])
            found = _standard(found, self._linear_scale)
        contrast = np.log(to_prototypes.astype(np.float64) + self._quick_near) - towards
        usual = np.full(len(x), self.usual_trees)
        return Strengths(_standard(contrast, self._quick_scale), found, usual)

    def linear(self, x: Floats, signals: Doubles) -> Doubles:
        """The linear model, in standard deviations of normal records; zeros where there is none."""
        return (
            np.zeros(len(x))
            if self.weights is None
            else _standard(linear(x, signals, self.weights), self._linear_scale)
        )

    def linear_terms(self, x: Floats, signals: Doubles) -> Doubles:
        """Its terms, float64 (n, 1 + s): the vector, and each signal."""
        if self.weights is None:
            return np.zeros((len(x), 1 + signals.shape[1]))
        vector = _standard(linear(x, signals[:, :0], self.weights[: x.shape[1]]), self._linear_scale)
        return np.column_stack([vector, signals * self.weights[x.shape[1] :] / self._linear_scale[1]])

    def _tree_columns(self, records: Records) -> Doubles:
        if not self._sees_vector:
            return records.signals
        return np.column_stack([records.vectors.astype(np.float64), records.signals])


@dataclass(frozen=True, slots=True)
class Curve:
    """Strengths to log odds at equal classes, learned from records that were left out of the fit.

    Attributes:
        weights: float64 (1 or 2,), at least 0.
        offset: float.
        covariance: float64 (m + 1, m + 1), how sure weights and offset are.
        gate: quick log odds below which they are enough.
    """

    weights: Doubles
    offset: float
    covariance: Doubles
    gate: float

    def log_odds(self, strengths: Strengths) -> Doubles:
        """float64 (n,)."""
        columns = strengths.columns(with_trees=len(self.weights) == 2)
        total = np.full(len(columns), self.offset)
        for column, weight in enumerate(self.weights):
            total += weight * columns[:, column]
        return total

    def deviation(self, strengths: Strengths) -> Doubles:
        """Standard deviation of the log odds, float64 (n,)."""
        columns = strengths.columns(with_trees=len(self.weights) == 2)
        design = np.column_stack([columns, np.ones(len(columns))])
        return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", design, self.covariance, design)), np.float64)


def fit_curve(model: FraudModel, cases: Records, *, unit: bool) -> Curve:
    """Learn the curve of a model from records left out of fits like it (Platt 1999; Wolpert 1992 where trees join)."""
    normal = model.normal
    if len(cases) == 1:  # nothing can be left out; even odds at three standard deviations above normal
        curve = Curve(np.ones(1), -3.0, np.diag([0.25, 2.25]), -np.inf)
        negatives = normal.training[normal.near_ones]
        odds = curve.log_odds(model.quick(negatives.vectors, negatives.signals, normal.quick))
        return Curve(curve.weights, curve.offset, curve.covariance, float(np.quantile(odds, GATE[False])))
    folds = min(FOLDS if model.trees is None else FOLDS_WITH_TREES, len(cases))
    of_case, of_usual, of_mark = (np.arange(n) % folds for n in (len(cases), len(normal.training), len(normal.marks)))
    of_usual[normal.near_ones] = np.arange(len(normal.near_ones)) % folds
    of_mark[normal.near_marks] = np.arange(len(normal.near_marks)) % folds
    columns: list[Doubles] = []
    quick: list[Doubles] = []
    targets: list[Doubles] = []
    counts: list[Doubles] = []
    for fold in range(folds):
        left = FraudModel(
            normal,
            cases[of_case != fold],
            unit=unit,
            kept=(of_usual != fold, of_mark != fold),
            n_cases=len(cases),
            start=model.start,
        )
        out = of_usual[normal.near_ones] == fold
        negatives, positives = normal.training[normal.near_ones[out]], cases[of_case == fold]
        both = left.trees is not None
        columns += [
            left.strengths(negatives.vectors, negatives.signals, to_normal=normal.own_distance[out]).columns(
                with_trees=both
            ),
            left.strengths(positives.vectors, positives.signals).columns(with_trees=both),
        ]
        quick.append(left.quick(negatives.vectors, negatives.signals, normal.quick[out]).columns(with_trees=both))
        targets += [np.zeros(len(negatives)), np.ones(len(positives))]
        counts += [negatives.weights, positives.weights]
    design, target, count = np.concatenate(columns), np.concatenate(targets), np.concatenate(counts)
    positive, negative = float(count[target == 1].sum()), float(count[target == 0].sum())
    soft = np.where(target == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))  # Platt's targets
    mass = count * np.where(target == 1, 0.5 / positive, 0.5 / negative)
    used = np.ones(design.shape[1], bool)
    weights = np.zeros(design.shape[1])
    found = logistic(design, soft, mass, ridge=1e-4)
    if (found[:-1] <= 0).any():  # a part that speaks against itself is noise
        used = found[:-1] > 0 if (found[:-1] > 0).any() else np.arange(design.shape[1]) == 0
        found = logistic(design[:, used], soft, mass, ridge=1e-4)
    weights[used], offset = np.maximum(found[:-1], 1e-3), float(found[-1])
    odds = np.concatenate(quick) @ weights + offset
    covariance = np.zeros((len(weights) + 1,) * 2)
    at = np.ix_(np.append(used, True), np.append(used, True))
    covariance[at] = _covariance(design[:, used], soft, mass, np.append(weights[used], offset))
    return Curve(weights, offset, covariance, float(np.quantile(odds, GATE[len(cases) >= TREES_FROM])))


def _covariance(design: Doubles, targets: Doubles, mass: Doubles, found: Doubles) -> Doubles:
    """Of the curve's weights: the sandwich of a weighted fit (Huber 1967)."""
    design = np.column_stack([design, np.ones(len(design))])
    probability = sigmoid(design @ found)
    bread: Doubles = (design * (mass * probability * (1 - probability))[:, None]).T @ design
    bread = np.asarray(np.linalg.inv(bread + 1e-4 * np.diag([1.0] * (len(found) - 1) + [1e-5])), np.float64)
    residual = mass * (targets - probability)
    return np.asarray(bread @ (design * (residual**2)[:, None]).T @ design @ bread, np.float64)


def training_mass(normal: Doubles, marks: Doubles, cases: Doubles) -> Doubles:
    """Of each record, in this order, adding up to 1: cases have half of it, a mark as much as a case, if that fits.

    Marks have at most half of what is left for normal records.
    """
    of_normal, of_marks, of_cases = float(normal.sum()), float(marks.sum()), float(cases.sum())
    share = 0.5 * min(0.5, of_marks / (of_marks + of_cases))
    parts = [normal * ((0.5 - share) / of_normal), marks * (share / (of_marks or 1.0)), cases * (0.5 / of_cases)]
    return np.concatenate(parts)


def linear(x: Floats, signals: Doubles, weights: Doubles) -> Doubles:
    """Weighted sum of vector and signals, float64 (n,)."""
    of_vector = stable_product(x, weights[: x.shape[1], None].astype(np.float32))[:, 0]
    return _with_signals(of_vector, signals, weights[x.shape[1] :])


def _with_signals(of_vector: Floats, signals: Doubles, weights: Doubles) -> Doubles:
    total = of_vector.astype(np.float64)
    for column, weight in enumerate(weights):  # in this order for every batch
        total += signals[:, column] * weight
    return total


def mean_distance(index: NearestIndex, x: Floats) -> Floats:
    """To up to 5 of an index, float32 (n,)."""
    return np.asarray(index.search(x, min(NEIGHBOURS, len(index)))[0].mean(axis=1), np.float32)


def no_case() -> InvalidInput:
    """What to raise where there is no case."""
    return InvalidInput("no confirmed fraud is known yet.", hint="Call fit() with at least one label 1.")


def _scale(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    spread = float(values.std(dtype=np.float64))
    return float(values.mean(dtype=np.float64)), spread if spread > 0 else 1.0


def _standard(values: Doubles, scale: tuple[float, float]) -> Doubles:
    return np.asarray((values - scale[0]) / scale[1], np.float64)
