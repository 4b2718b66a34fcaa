"""Fraud score: how much nearer a record lies to the confirmed cases than to normal traffic, and what a small model
says.

Two parts, each with its own strength. The *contrast* log(distance to normal) - log(distance to fraud), distances being
means over up to 5 neighbours, works from the first confirmed case on, and shows its evidence: the nearest cases. From 5
cases on, a *model* joins it: class-balanced logistic regression with a ridge, on the prepared vector. Each part is
standardised on normal records and the two are added. On text with 2 % of fraud the sum beats either part at every
number of labels.

The sum becomes a probability by a logistic curve (Platt 1999) through scores that were made without the record in
question (folds), fitted to equal classes and moved to the stated prevalence (Elkan 2001). Nothing is random: the same
labels in the same order give the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput
from detectors.index import NearestIndex, squared_lengths, stable_product
from detectors.outlier import NEIGHBOURS, OutlierScorer, evenly_spaced, leave_one_out
from detectors.reference import Reference

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Basis = Literal["outlier", "contrast", "contrast and model"]

MODEL_FROM = 5  # confirmed cases, after dropping copies, from which on the logistic model joins
MAX_CASES = 10_000  # the last ones are kept: fraud changes
MAX_CLEARED = 20_000  # evenly spaced among those given
MAX_NORMAL = 20_000  # exemplars and calibration vectors of the reference that stand for normal traffic in the contrast
MAX_NEGATIVES = 4_000  # of those, and of the cleared records, the ones that train the model
# Standard deviations at which a table's columns are cut here. A reference cuts at 8, for the sake of its sums, but
# fraud often lies beyond, and how far tells it from normal records there.
FARTHEST = 1_000.0
COPY_COSINE = 0.98  # angular vectors nearer than this are one case, so that a campaign does not outvote the others
FOLDS = 5
# Penalty per unit of squared weight, for a mean loss; vectors are scaled to a mean squared length of 1. Flat from a
# fifth of this to five times.
RIDGE = 4e-5


@dataclass(frozen=True, slots=True)
class NearestCases:
    """Evidence for a fraud score.

    Attributes:
        rows: int64 (n, k), row numbers of the nearest confirmed cases in the vectors that `FraudScorer.fit` was given,
            nearest first.
        distances: float32 (n, k), in the reference's search space.
        distance_to_normal: float32 (n,), mean over up to 5 normal neighbours, in the same unit.
    """

    rows: npt.NDArray[np.int64]
    distances: Floats
    distance_to_normal: Floats


class FraudScorer:
    """Scores records against confirmed fraud and normal traffic.

    Args:
        reference: what normal looks like.
        prevalence: share of fraud in the traffic, to which the score is calibrated; it moves the scale, never the
            ranking.

    Without labels the score is 1 - p of the outlier score, and `basis` says "outlier".
    """

    def __init__(self, reference: Reference, *, prevalence: float = 0.01) -> None:
        if not 0.0 < prevalence < 1.0:
            raise InvalidInput(
                f"prevalence: expected a share between 0 and 1, got {prevalence}.", hint="Give 0.01 for 1 %."
            )
        self.reference = reference
        self._prior = float(np.log(prevalence / (1.0 - prevalence)))
        self._outlier: OutlierScorer | None = None
        self._sides: _Sides | None = None
        self._curve = (1.0, 0.0)

    @property
    def basis(self) -> Basis:
        """What the score rests on: "outlier" (no case known), "contrast" (1 to 4 cases), "contrast and model"."""
        if self._sides is None:
            return "outlier"
        return "contrast" if self._sides.weights is None else "contrast and model"

    @property
    def n_cases(self) -> int:
        """Confirmed cases that the score rests on, copies dropped."""
        return 0 if self._sides is None else len(self._sides.fraud)

    def fit(self, vectors: Floats, labels: npt.ArrayLike) -> FraudScorer:
        """Learn from all labels known so far; replaces what an earlier call learned.

        Args:
            vectors: float32 (n, d), n may be 0.
            labels: (n,), 1 for confirmed fraud, 0 for cleared.

        Returns:
            This scorer.

        Raises:
            InvalidInput: labels other than 0 and 1, or a number of labels other than n; vectors that the reference
                refuses.
        """
        marks = np.asarray(labels)
        if marks.shape != (len(vectors),):
            raise InvalidInput(f"labels: expected one for each of {len(vectors)} vectors, got shape {marks.shape}.")
        if not np.isin(marks, (0, 1)).all():
            wrong = marks[~np.isin(marks, (0, 1))][0]
            raise InvalidInput(f"labels: expected 1 (fraud) or 0 (cleared), got {wrong!r}.")
        rows = np.flatnonzero(marks == 1)[-MAX_CASES:]
        if len(rows) == 0:
            self._sides = None
            return self
        angular = self.reference.geometry.unit
        prepared, at_zero = self._prepared(vectors), np.flatnonzero(marks == 0)
        rows = rows[_distinct(self.reference.prepare(vectors)[rows] if angular else prepared[rows], angular=angular)]
        cleared = prepared[at_zero[evenly_spaced(len(at_zero), MAX_CLEARED)]]
        normal = _Normal(self.reference, cleared)
        self._sides = _Sides.fit(normal, prepared[rows], rows)
        self._curve = _calibrate(normal, prepared[rows], self._sides.start)
        return self

    def score(self, vectors: Floats) -> Floats:
        """Probability of fraud at the stated prevalence, float32 (n,) in [0, 1]; larger is more suspicious.

        Args:
            vectors: float32 (n, d).

        Raises:
            InvalidInput: vectors that the reference refuses.
        """
        if self._sides is None:
            if self._outlier is None:
                self._outlier = OutlierScorer(self.reference)
            return (1.0 - self._outlier.p_values(vectors)).astype(np.float32)
        prepared = self._prepared(vectors)
        slope, offset = self._curve
        return _sigmoid(slope * self._sides.strength(prepared) + offset + self._prior).astype(np.float32)

    def nearest_cases(self, vectors: Floats, k: int = 3) -> NearestCases:
        """The confirmed cases nearest to each record: why its score is what it is.

        Args:
            vectors: float32 (n, d).
            k: cases for each record, at least 1; fewer where fewer are known.

        Raises:
            InvalidInput: no case is known yet, or k < 1.
        """
        if self._sides is None:
            raise InvalidInput("no confirmed fraud is known yet.", hint="Call fit() with at least one label 1.")
        prepared = self._prepared(vectors)
        distances, found = self._sides.fraud.search(prepared, min(k, len(self._sides.fraud)))
        return NearestCases(self._sides.rows[found], distances, self._sides.normal.distance(prepared))

    def _prepared(self, vectors: npt.ArrayLike) -> Floats:
        """Vectors in the reference's search space, float32 (n, d); tables are clipped later than the reference does."""
        x = self.reference.prepare(vectors)
        if not self.reference.geometry.unit:
            x = (np.asarray(vectors, np.float32) - self.reference.centre) / self.reference.scale
            np.clip(x, -FARTHEST, FARTHEST, out=x)
        return self.reference.search_space(x)


class _Normal:
    """Normal traffic and cleared records: distances to them, and the negatives that train the model."""

    def __init__(self, reference: Reference, cleared: Floats) -> None:
        x = np.concatenate([reference.exemplars, reference.calibration_vectors])
        self.index = NearestIndex(reference.search_space(x[evenly_spaced(len(x), MAX_NORMAL)]))
        self.cleared = NearestIndex(cleared) if len(cleared) else None
        negatives = evenly_spaced(len(self.index), MAX_NEGATIVES)
        own = leave_one_out(self.index, negatives, NEIGHBOURS)[0].mean(axis=1)
        sample = self.index.vectors[negatives]
        distance = self._with_cleared(own, sample)
        self.n_cleared = 0
        if self.cleared is not None:
            chosen = evenly_spaced(len(cleared), MAX_NEGATIVES)
            sample = np.concatenate([sample, cleared[chosen]])
            distance = np.concatenate([distance, self._cleared_distance(self.cleared, chosen)])
            self.n_cleared = len(chosen)
        self.negatives: Floats = sample  # the cleared ones come last
        self.negative_distance: Doubles = distance.astype(np.float64)
        # The scale of "near": half a typical distance between normal records, so that a copy of a case has a finite
        # contrast.
        typical = float(np.median(own))
        self.near = 0.5 * (typical if typical > 0 else 1.0)
        self.length = float(np.sqrt(squared_lengths(self.index.vectors).mean(dtype=np.float64))) or 1.0

    def distance(self, prepared: Floats) -> Floats:
        """Mean distance to up to 5 normal records, or to up to 5 cleared ones if those are nearer."""
        return self._with_cleared(_mean_distance(self.index, prepared), prepared)

    def _with_cleared(self, distance: Floats, prepared: Floats) -> Floats:
        if self.cleared is None:
            return distance
        return np.asarray(np.minimum(distance, _mean_distance(self.cleared, prepared)), np.float32)

    def _cleared_distance(self, cleared: NearestIndex, chosen: npt.NDArray[np.int64]) -> Floats:
        """Of some cleared records: each against normal traffic and the other cleared ones, float32 (m,)."""
        distance = _mean_distance(self.index, cleared.vectors[chosen])
        if len(cleared) == 1:
            return distance
        others = leave_one_out(cleared, chosen, min(NEIGHBOURS, len(cleared) - 1))[0].mean(axis=1)
        return np.asarray(np.minimum(distance, others), np.float32)

    def weights(self, kept: npt.NDArray[np.bool_], cases: int) -> Doubles:
        """Weights of the kept negatives, adding up to 1/2; a cleared record weighs as much as a case, if that fits."""
        is_cleared = np.arange(len(self.negatives)) >= len(self.negatives) - self.n_cleared
        of_cleared, of_normal = int((is_cleared & kept).sum()), int((~is_cleared & kept).sum())
        mass = 0.5 * min(0.5, of_cleared / (of_cleared + cases))
        weights = np.where(is_cleared, mass / max(of_cleared, 1), (0.5 - mass) / max(of_normal, 1))
        return np.asarray(weights[kept], np.float64)


@dataclass(frozen=True, slots=True)
class _Sides:
    """A fitted pair of contrast and model; `strength` is their standardised sum."""

    normal: _Normal
    fraud: NearestIndex
    rows: npt.NDArray[np.int64]  # of the cases, in the caller's vectors
    weights: Doubles | None  # (d,) of the model
    start: Doubles | None  # (d + 1,), where a fit on almost the same records begins
    contrast_scale: tuple[float, float]  # mean and standard deviation on normal records
    model_scale: tuple[float, float]

    @classmethod
    def fit(
        cls,
        normal: _Normal,
        cases: Floats,
        rows: npt.NDArray[np.int64],
        *,
        kept: npt.NDArray[np.bool_] | None = None,
        with_model: bool | None = None,
        start: Doubles | None = None,
    ) -> _Sides:
        """Fit on the cases and on those of the negatives that are ``kept`` (all, if None)."""
        kept = np.ones(len(normal.negatives), bool) if kept is None else kept
        negatives, fraud = normal.negatives[kept], NearestIndex(cases)
        contrast = _contrast(normal.negative_distance[kept], _mean_distance(fraud, negatives), normal.near)
        weights, model_scale = None, (0.0, 1.0)
        if len(cases) >= MODEL_FROM if with_model is None else with_model:
            features = np.concatenate([negatives, cases]).astype(np.float64) / normal.length
            targets = np.concatenate([np.zeros(len(negatives)), np.ones(len(cases))])
            mass = np.concatenate([normal.weights(kept, len(cases)), np.full(len(cases), 0.5 / len(cases))])
            start = _logistic(features, targets, mass, ridge=RIDGE, start=start)
            weights = start[:-1] / normal.length
            model_scale = _scale(stable_product(negatives, weights[:, None].astype(np.float32))[:, 0])
        return cls(normal, fraud, rows, weights, start, _scale(contrast), model_scale)

    def strength(self, prepared: Floats, *, to_normal: Doubles | None = None) -> Doubles:
        """Standardised contrast, plus the standardised model where there is one: float64 (n,)."""
        if to_normal is None:
            to_normal = self.normal.distance(prepared).astype(np.float64)
        contrast = _contrast(to_normal, _mean_distance(self.fraud, prepared), self.normal.near)
        total = (contrast - self.contrast_scale[0]) / self.contrast_scale[1]
        if self.weights is not None:
            product = stable_product(prepared, self.weights[:, None].astype(np.float32))[:, 0].astype(np.float64)
            total = total + (product - self.model_scale[0]) / self.model_scale[1]
        return total


def _calibrate(normal: _Normal, cases: Floats, start: Doubles | None) -> tuple[float, float]:
    """Slope and offset that turn strengths into log odds at equal classes, learned from records left out of the fit."""
    if len(cases) == 1:
        return 1.0, -3.0  # nothing can be left out; even odds at three standard deviations above normal
    folds = min(FOLDS, len(cases))
    case_fold, negative_fold = np.arange(len(cases)) % folds, np.arange(len(normal.negatives)) % folds
    strengths, targets = [], []
    for fold in range(folds):
        out, out_negative = case_fold == fold, negative_fold == fold
        sides = _Sides.fit(
            normal,
            cases[~out],
            np.flatnonzero(~out),
            kept=~out_negative,
            with_model=len(cases) >= MODEL_FROM,
            start=start,
        )
        strengths += [
            sides.strength(cases[out]),
            sides.strength(normal.negatives[out_negative], to_normal=normal.negative_distance[out_negative]),
        ]
        targets += [np.ones(int(out.sum())), np.zeros(int(out_negative.sum()))]
    strength, target = np.concatenate(strengths), np.concatenate(targets)
    positive, negative = int(target.sum()), int((1 - target).sum())
    soft = np.where(target == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))  # Platt's targets
    mass = np.where(target == 1, 0.5 / positive, 0.5 / negative)
    slope, offset = _logistic(strength[:, None], soft, mass, ridge=1e-4)
    return max(float(slope), 1e-3), float(offset)


def _logistic(
    features: Doubles, targets: Doubles, mass: Doubles, *, ridge: float, start: Doubles | None = None
) -> Doubles:
    """Weighted logistic regression by Newton's method, with a ridge on all weights but the last, the intercept.

    Minimises sum(mass * loss) + ridge / 2 |weights|^2 over float64 (d + 1,).

    Args:
        features: float64 (n, d).
        targets: float64 (n,) in [0, 1].
        mass: float64 (n,), adding up to 1.
        ridge: > 0.
        start: float64 (d + 1,), weights to begin with; zeros by default.
    """
    design = np.column_stack([features, np.ones(len(features))])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 1e-9  # keeps the equations solvable, without pulling the intercept

    def loss(weights: Doubles) -> float:
        odds = design @ weights
        return float(mass @ (np.logaddexp(0.0, odds) - targets * odds) + 0.5 * penalty @ weights**2)

    weights = np.zeros(design.shape[1]) if start is None else start
    before = loss(weights)
    for _ in range(50):
        probability = _sigmoid(design @ weights)
        gradient = design.T @ (mass * (probability - targets)) + penalty * weights
        curvature = mass * probability * (1.0 - probability)
        step = np.linalg.solve((design * curvature[:, None]).T @ design + np.diag(penalty), gradient)
        length = 1.0
        while (after := loss(weights - length * step)) > before and length > 1e-6:
            length *= 0.5
        weights = weights - length * step
        if before - after <= 1e-8 * abs(before):
            break
        before = after
    return weights


def _contrast(to_normal: npt.NDArray[np.floating], to_fraud: Floats, near: float) -> Doubles:
    return np.asarray(np.log(to_normal + near) - np.log(to_fraud.astype(np.float64) + near), np.float64)


def _mean_distance(index: NearestIndex, prepared: Floats) -> Floats:
    return np.asarray(index.search(prepared, min(NEIGHBOURS, len(index)))[0].mean(axis=1), np.float32)


def _scale(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    spread = float(values.std(dtype=np.float64))
    return float(values.mean(dtype=np.float64)), spread if spread > 0 else 1.0


def _sigmoid(odds: Doubles) -> Doubles:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -500.0, 500.0))), np.float64)


def _distinct(cases: Floats, *, angular: bool) -> npt.NDArray[np.int64]:
    """Row numbers of the cases without copies, first ones kept: cosine above .98 if angular, else equal vectors."""
    if not angular:
        return np.sort(np.unique(cases, axis=0, return_index=True)[1])
    lengths = np.sqrt(squared_lengths(cases))
    unit = cases / np.where(lengths > 0, lengths, np.float32(1))[:, None]
    kept = np.ones(len(cases), bool)
    for start in range(0, len(cases), 1024):
        copies = unit[start : start + 1024] @ unit.T > COPY_COSINE
        for row in range(start, start + len(copies)):
            kept[row] = not (copies[row - start, :row] & kept[:row]).any()
    return np.flatnonzero(kept)
