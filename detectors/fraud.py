"""Fraud score: how much nearer a record lies to the confirmed cases than to normal traffic, and what a small model
says.

Two parts, each with its own strength. The *contrast* log(distance to normal) - log(distance to fraud), distances being
means over up to 5 neighbours, works from the first confirmed case on, and shows its evidence: the nearest cases. From 5
cases on, a *model* joins it: class-balanced logistic regression with a ridge, on the prepared vector and the signals
(how surprising detectors find the record, and numbers that it has). Each part is standardised on normal records and the
two are added. On text with 2 % of fraud the sum beats either part at every number of labels.

The sum becomes a probability by a logistic curve (Platt 1999) through scores that were made without the record in
question (folds), fitted to equal classes and moved to the stated prevalence (Elkan 2001). It is also ranked among the
scores of normal records that neither index nor model has seen: p-values of scorers of different versions are
comparable. Nothing is random: the same labels in the same order give the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput
from detectors.fraud_baseline import FraudBaseline
from detectors.fraud_ranks import Ranks
from detectors.fraud_signals import SignalScale
from detectors.index import NearestIndex, squared_lengths, stable_product
from detectors.logistic import logistic, sigmoid
from detectors.outlier import NEIGHBOURS, OutlierScorer, evenly_spaced, leave_one_out
from detectors.reference import Reference, Scored

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Basis = Literal["outlier", "surprises", "contrast", "contrast and model"]

MODEL_FROM = 5  # confirmed cases, after dropping copies, from which on the logistic model joins
MAX_CASES = 10_000  # the last ones are kept: fraud changes
MAX_CLEARED = 20_000  # evenly spaced among those given
MAX_NORMAL = 20_000  # vectors of normal records that the contrast is taken with
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

    rows: Int64s
    distances: Floats
    distance_to_normal: Floats


@dataclass(frozen=True, slots=True)
class FraudScores:
    """What the scorer says of n records.

    Attributes:
        probability: float32 (n,) in [0, 1], of fraud, at the stated prevalence.
        p_value: float64 (n,) in (0, 1], the share of normal records that score as high; small is suspicious.
        surprise: float32 (n,), at least 0, a multiple of 1e-4: -log10 of the p-value, continued beyond the finest one.
            The scale on which scorers of different versions are comparable.
    """

    probability: Floats
    p_value: Doubles
    surprise: Floats


@dataclass(frozen=True, slots=True)
class FraudContributions:
    """What speaks for fraud, record by record, in log odds.

    Attributes:
        names: of the m parts: "contrast", "model" (the vector), each signal's name, and "cleared", which is what
            false-alarm marks took away.
        values: float64 (n, m); added to ``offset`` they are the log odds of the probability.
        offset: log odds of a record whose parts are all as those of a usual normal record.
        cleared_rows: int64 (n,), row of the nearest false-alarm mark in the vectors that `FraudScorer.fit` was given,
            where marks took something away; else -1.
    """

    names: tuple[str, ...]
    values: Doubles
    offset: float
    cleared_rows: Int64s


class FraudScorer:
    """Scores records against confirmed fraud and normal traffic.

    Args:
        reference: what normal looks like.
        prevalence: share of fraud in the traffic, to which the score is calibrated; it moves the scale, never the
            ranking.
        baseline: normal records with their signals; every second one is kept from index and model, for p-values.
            Without one, the vectors that the reference keeps take its place, and there are no signals.

    Without labels the score is 1 - p of the outlier score, and `basis` says "outlier"; where there are several surprise
    columns, of their combination, and `basis` says "surprises".
    """

    def __init__(
        self, reference: Reference, *, prevalence: float = 0.01, baseline: FraudBaseline | None = None
    ) -> None:
        if not 0.0 < prevalence < 1.0:
            raise InvalidInput(
                f"prevalence: expected a share between 0 and 1, got {prevalence}.", hint="Give 0.01 for 1 %."
            )
        if baseline is not None and baseline.vectors.shape[1] != reference.dimension:
            raise InvalidInput(
                f"the fraud baseline holds {baseline.vectors.shape[1]}-dimensional vectors, the reference "
                f"{reference.dimension}-dimensional ones.",
                hint="Build both again.",
            )
        if baseline is not None and len(baseline) < 20:
            raise InvalidInput(f"the fraud baseline holds {len(baseline)} records, at least 20 are needed.")
        self.reference = reference
        self.baseline = baseline
        self._prior = float(np.log(prevalence / (1.0 - prevalence)))
        self._outlier: OutlierScorer | None = None
        self._sides: _Sides | None = None
        self._curve = (1.0, 0.0)
        self._ranks: Ranks | None = None
        self._signals = (
            None if baseline is None or not baseline.columns else SignalScale(baseline.signals[::2], baseline.columns)
        )

    @property
    def basis(self) -> Basis:
        """What the score rests on: "outlier" or "surprises" (no case known), "contrast" (1 to 4), "contrast and
        model"."""
        if self._sides is None:
            return "outlier" if self._signals is None or self._signals.n_surprises < 2 else "surprises"
        return "contrast" if self._sides.weights is None else "contrast and model"

    @property
    def n_cases(self) -> int:
        """Confirmed cases that the score rests on, copies dropped."""
        return 0 if self._sides is None else len(self._sides.fraud)

    def fit(
        self,
        vectors: Floats,
        labels: npt.ArrayLike,
        *,
        signals: Floats | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> FraudScorer:
        """Learn from all labels known so far; replaces what an earlier call learned.

        Args:
            vectors: float32 (n, d), n may be 0.
            labels: (n,), 1 for confirmed fraud, 0 for cleared.
            signals: float32 (n, s), in the columns of the baseline, NaN where unknown; all unknown by default.
            weights: (n,), above 0: how much each label counts; 1 by default.

        Returns:
            This scorer.

        Raises:
            InvalidInput: labels other than 0 and 1, or a number of labels other than n; vectors that the reference
                refuses; signals or weights that do not fit.
        """
        marks = np.asarray(labels)
        if marks.shape != (len(vectors),):
            raise InvalidInput(f"labels: expected one for each of {len(vectors)} vectors, got shape {marks.shape}.")
        if not np.isin(marks, (0, 1)).all():
            wrong = marks[~np.isin(marks, (0, 1))][0]
            raise InvalidInput(f"labels: expected 1 (fraud) or 0 (cleared), got {wrong!r}.")
        counts = np.ones(len(marks)) if weights is None else np.asarray(weights, np.float64)
        if counts.shape != marks.shape or not (np.isfinite(counts) & (counts > 0)).all():
            raise InvalidInput(f"weights: expected a number above 0 for each of {len(vectors)} vectors.")
        rows = np.flatnonzero(marks == 1)[-MAX_CASES:]
        if len(rows) == 0:
            self._scaled(vectors, signals)
            self._sides = None
            self._ranks = None
            return self
        angular = self.reference.geometry.unit
        prepared, scaled, at_zero = self._prepared(vectors), self._scaled(vectors, signals), np.flatnonzero(marks == 0)
        rows = rows[_distinct(self.reference.prepare(vectors)[rows] if angular else prepared[rows], angular=angular)]
        cleared = at_zero[evenly_spaced(len(at_zero), MAX_CLEARED)]
        usual, usual_signals, held_out, held_out_signals = self._normal_records()
        normal = _Normal(
            _Records(usual, usual_signals, np.ones(len(usual))),
            _Records(prepared[cleared], scaled[cleared], counts[cleared]),
            cleared,
        )
        cases = _Records(prepared[rows], scaled[rows], counts[rows])
        self._sides = _Sides.fit(normal, cases, rows)
        self._curve = _calibrate(normal, cases, self._sides.start)
        self._ranks = Ranks(_rounded(self._sides.strength(held_out, held_out_signals)))
        return self

    def score(self, vectors: Floats, *, signals: Floats | None = None) -> Floats:
        """Probability of fraud at the stated prevalence, float32 (n,) in [0, 1]; larger is more suspicious.

        Args:
            vectors: float32 (n, d).
            signals: float32 (n, s), in the columns of the baseline, NaN where unknown.

        Raises:
            InvalidInput: vectors that the reference refuses; signals that do not fit.
        """
        return self._probability(self._strength(vectors, signals, None))

    def assess(
        self,
        vectors: Floats,
        *,
        signals: Floats | None = None,
        uniforms: Doubles | None = None,
        scored: Scored | None = None,
    ) -> FraudScores:
        """Probability, p-value and surprise of every record.

        Args:
            vectors: float32 (n, d).
            signals: float32 (n, s), in the columns of the baseline, NaN where unknown.
            uniforms: float64 (n,) in (0, 1), to break ties of p-values at random, such as
                `conformal.position_uniforms` gives; by default ties go to the larger p.
            scored: what `Reference.score` said of the same vectors: saves doing that again, and changes nothing else.

        Raises:
            InvalidInput: see `score`.
        """
        strength = self._strength(vectors, signals, scored)
        ranks = self._known_ranks()
        return FraudScores(
            self._probability(strength), ranks.p_values(strength, uniforms=uniforms), ranks.surprise(strength)
        )

    def interval(self, vectors: Floats, *, signals: Floats | None = None) -> Doubles:
        """Range of the probability, float64 (n, 2), lower and upper end.

        Raises:
            InvalidInput: no case is known yet; else see `score`.
        """
        if self._sides is None:
            raise _no_case()
        odds = self._log_odds(self._strength(vectors, signals, None))
        half = 1.96 * _spread(self.n_cases)
        return np.column_stack([sigmoid(odds - half), sigmoid(odds + half)])

    def contributions(self, vectors: Floats, *, signals: Floats | None = None) -> FraudContributions:
        """What speaks for fraud, record by record; see `FraudContributions`.

        Raises:
            InvalidInput: no case is known yet; else see `score`.
        """
        if self._sides is None:
            raise _no_case()
        slope, offset = self._curve
        names, values, cleared_rows = self._sides.parts(self._prepared(vectors), self._scaled(vectors, signals))
        signal_names = () if self._signals is None else tuple(column.name for column in self._signals.columns)
        return FraudContributions(
            tuple(part for name in names for part in (signal_names if name == "signals" else (name,))),
            slope * values,
            offset + self._prior,
            cleared_rows,
        )

    def nearest_cases(self, vectors: Floats, k: int = 3) -> NearestCases:
        """The confirmed cases nearest to each record: why its score is what it is.

        Args:
            vectors: float32 (n, d).
            k: cases for each record, at least 1; fewer where fewer are known.

        Raises:
            InvalidInput: no case is known yet, or k < 1.
        """
        if self._sides is None:
            raise _no_case()
        prepared = self._prepared(vectors)
        distances, found = self._sides.fraud.search(prepared, min(k, len(self._sides.fraud)))
        return NearestCases(self._sides.rows[found], distances, self._sides.normal.distance(prepared))

    def _strength(self, vectors: Floats, signals: Floats | None, scored: Scored | None) -> Floats:
        """What is ranked and calibrated, float32 (n,)."""
        scaled = self._scaled(vectors, signals)
        if self._sides is not None:
            return _rounded(self._sides.strength(self._prepared(vectors, scored), scaled))
        if self._signals is not None and self._signals.n_surprises:
            unknown = np.full(scaled.shape, np.nan, np.float32)
            return self._signals.combined(unknown if signals is None else signals)
        if self._outlier is None:
            self._outlier = OutlierScorer(self.reference)
        return self._outlier.score(vectors)

    def _known_ranks(self) -> Ranks:
        if self._ranks is None:
            if self._signals is not None and self._signals.n_surprises and self.baseline is not None:
                self._ranks = Ranks(self._signals.combined(self.baseline.signals))
            else:
                self._outlier = self._outlier or OutlierScorer(self.reference)
                self._ranks = Ranks(self._outlier.calibration_scores)
        return self._ranks

    def _log_odds(self, strength: Floats) -> Doubles:
        slope, offset = self._curve
        return np.asarray(slope * strength.astype(np.float64) + offset + self._prior, np.float64)

    def _probability(self, strength: Floats) -> Floats:
        if self._sides is None:
            return (1.0 - self._known_ranks().p_values(strength)).astype(np.float32)
        return sigmoid(self._log_odds(strength)).astype(np.float32)

    def _normal_records(self) -> tuple[Floats, Doubles, Floats, Doubles]:
        """Vectors and signals of normal records: those to learn from, and those kept from index and model."""
        if self.baseline is not None:
            prepared = self._prepared(self.baseline.vectors)
            scaled = self._scaled(self.baseline.vectors, self.baseline.signals)
            return prepared[::2], scaled[::2], prepared[1::2], scaled[1::2]
        reference = self.reference
        known = np.concatenate([reference.exemplars, reference.calibration_vectors[::2]])
        known = reference.search_space(known[evenly_spaced(len(known), MAX_NORMAL)])
        held_out = reference.search_space(np.array(reference.calibration_vectors[1::2]))
        return known, np.zeros((len(known), 0)), held_out, np.zeros((len(held_out), 0))

    def _prepared(self, vectors: npt.ArrayLike, scored: Scored | None = None) -> Floats:
        """Vectors in the reference's search space, float32 (n, d); tables are clipped later than the reference does."""
        if self.reference.geometry.unit:
            return scored.y if scored is not None else self.reference.search_space(self.reference.prepare(vectors))
        if scored is None:
            self.reference.prepare(vectors)  # refuses what it must
        x = (np.asarray(vectors, np.float32) - self.reference.centre) / self.reference.scale
        return self.reference.search_space(np.clip(x, -FARTHEST, FARTHEST, out=x))

    def _scaled(self, vectors: Floats, signals: Floats | None) -> Doubles:
        """Signals as the model sees them, float64 (n, s)."""
        n_columns = 0 if self._signals is None else len(self._signals.columns)
        if signals is None:
            return np.zeros((len(vectors), n_columns))
        if signals.shape != (len(vectors), n_columns):
            raise InvalidInput(
                f"signals: expected shape ({len(vectors)}, {n_columns}), got {signals.shape}.",
                hint="Give one column for each signal of the fraud baseline; without a baseline there are none.",
            )
        return np.zeros((len(vectors), 0)) if self._signals is None else self._signals(signals)


@dataclass(frozen=True, slots=True)
class _Records:
    """Vectors in the search space, float32 (n, d), signals as the model sees them, float64 (n, s), weights (n,)."""

    vectors: Floats
    signals: Doubles
    weights: Doubles

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Int64s | Bools) -> _Records:
        return _Records(self.vectors[rows], self.signals[rows], self.weights[rows])

    def __add__(self, other: _Records) -> _Records:
        return _Records(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.signals, other.signals]),
            np.concatenate([self.weights, other.weights]),
        )


class _Normal:
    """Normal traffic and cleared records: distances to them, and the negatives that train the model."""

    def __init__(self, usual: _Records, cleared: _Records, cleared_rows: Int64s) -> None:
        self.index = NearestIndex(usual.vectors)
        self.cleared = NearestIndex(cleared.vectors) if len(cleared) else None
        self.cleared_rows = cleared_rows
        chosen = evenly_spaced(len(usual), MAX_NEGATIVES)
        own = leave_one_out(self.index, chosen, NEIGHBOURS)[0].mean(axis=1)
        self.negatives = usual[chosen]
        distance = self._with_cleared(own, self.negatives.vectors)
        self.n_cleared = 0
        if self.cleared is not None:
            chosen = evenly_spaced(len(cleared), MAX_NEGATIVES)
            self.negatives = self.negatives + cleared[chosen]  # the cleared ones come last
            distance = np.concatenate([distance, self._cleared_distance(self.cleared, chosen)])
            self.n_cleared = len(chosen)
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

    def _cleared_distance(self, cleared: NearestIndex, chosen: Int64s) -> Floats:
        """Of some cleared records: each against normal traffic and the other cleared ones, float32 (m,)."""
        distance = _mean_distance(self.index, cleared.vectors[chosen])
        if len(cleared) == 1:
            return distance
        others = leave_one_out(cleared, chosen, min(NEIGHBOURS, len(cleared) - 1))[0].mean(axis=1)
        return np.asarray(np.minimum(distance, others), np.float32)

    def weights(self, kept: Bools, cases: float) -> Doubles:
        """Weights of the kept negatives, adding up to 1/2; a cleared record weighs as much as a case, if that fits."""
        is_cleared = np.arange(len(self.negatives)) >= len(self.negatives) - self.n_cleared
        counts = self.negatives.weights
        of_cleared, of_normal = float(counts[is_cleared & kept].sum()), float(counts[~is_cleared & kept].sum())
        mass = 0.5 * min(0.5, of_cleared / (of_cleared + cases))
        weights = counts * np.where(is_cleared, mass / (of_cleared or 1.0), (0.5 - mass) / (of_normal or 1.0))
        return np.asarray(weights[kept], np.float64)


@dataclass(frozen=True, slots=True)
class _Sides:
    """A fitted pair of contrast and model; `strength` is their standardised sum."""

    normal: _Normal
    fraud: NearestIndex
    counts: Doubles  # weights of the cases
    rows: Int64s  # of the cases, in the caller's vectors
    weights: Doubles | None  # (d + s,) of the model
    start: Doubles | None  # (d + s + 1,), where a fit on almost the same records begins
    contrast_scale: tuple[float, float]  # mean and standard deviation on normal records
    model_scale: tuple[float, float]

    @classmethod
    def fit(
        cls,
        normal: _Normal,
        cases: _Records,
        rows: Int64s,
        *,
        kept: Bools | None = None,
        with_model: bool | None = None,
        start: Doubles | None = None,
    ) -> _Sides:
        """Fit on the cases and on those of the negatives that are ``kept`` (all, if None)."""
        kept = np.ones(len(normal.negatives), bool) if kept is None else kept
        negatives, fraud = normal.negatives[kept], NearestIndex(cases.vectors)
        towards_fraud = _towards_fraud(fraud, cases.weights, negatives.vectors, normal.near)
        contrast = _contrast(normal.negative_distance[kept], towards_fraud, normal.near)
        weights, model_scale = None, (0.0, 1.0)
        if len(cases) >= MODEL_FROM if with_model is None else with_model:
            everyone = negatives + cases
            features = np.column_stack([everyone.vectors.astype(np.float64) / normal.length, everyone.signals])
            targets = np.concatenate([np.zeros(len(negatives)), np.ones(len(cases))])
            total = float(cases.weights.sum())
            mass = np.concatenate([normal.weights(kept, total), 0.5 * cases.weights / total])
            start = logistic(features, targets, mass, ridge=RIDGE, start=start)
            weights = start[:-1].copy()
            weights[: normal.index.vectors.shape[1]] /= normal.length
            model_scale = _scale(_linear(negatives.vectors, negatives.signals, weights))
        return cls(normal, fraud, cases.weights, rows, weights, start, _scale(contrast), model_scale)

    def strength(self, prepared: Floats, signals: Doubles, *, to_normal: Doubles | None = None) -> Doubles:
        """Standardised contrast, plus the standardised model where there is one: float64 (n,)."""
        if to_normal is None:
            to_normal = self.normal.distance(prepared).astype(np.float64)
        towards_fraud = _towards_fraud(self.fraud, self.counts, prepared, self.normal.near)
        contrast = _contrast(to_normal, towards_fraud, self.normal.near)
        total = (contrast - self.contrast_scale[0]) / self.contrast_scale[1]
        if self.weights is not None:
            total = total + (_linear(prepared, signals, self.weights) - self.model_scale[0]) / self.model_scale[1]
        return total

    def parts(self, prepared: Floats, signals: Doubles) -> tuple[tuple[str, ...], Doubles, Int64s]:
        """Names of the terms of `strength`, their values float64 (n, m), and the mark that took most away."""
        to_usual = _mean_distance(self.normal.index, prepared).astype(np.float64)
        to_normal = self.normal.distance(prepared).astype(np.float64)
        towards_fraud = _towards_fraud(self.fraud, self.counts, prepared, self.normal.near)
        without = _contrast(to_usual, towards_fraud, self.normal.near)
        contrast = (without - self.contrast_scale[0]) / self.contrast_scale[1]
        taken = (_contrast(to_normal, towards_fraud, self.normal.near) - without) / self.contrast_scale[1]
        columns = [contrast]
        dimension = prepared.shape[1]
        if self.weights is not None:
            vector = _linear(prepared, signals[:, :0], self.weights[:dimension])
            columns.append((vector - self.model_scale[0]) / self.model_scale[1])
            columns += list((signals * self.weights[dimension:] / self.model_scale[1]).T)
        else:
            columns += [np.zeros(len(prepared))] * (1 + signals.shape[1])
        rows = np.full(len(prepared), -1, np.int64)
        if self.normal.cleared is not None:
            nearest = self.normal.cleared.search(prepared, 1)[1][:, 0]
            rows = np.where(taken < 0, self.normal.cleared_rows[nearest], -1)
        return ("contrast", "model", "signals", "cleared"), np.column_stack([*columns, taken]), rows


def _calibrate(normal: _Normal, cases: _Records, start: Doubles | None) -> tuple[float, float]:
    """Slope and offset that turn strengths into log odds at equal classes, learned from records left out of the fit."""
    if len(cases) == 1:
        return 1.0, -3.0  # nothing can be left out; even odds at three standard deviations above normal
    folds = min(FOLDS, len(cases))
    case_fold, negative_fold = np.arange(len(cases)) % folds, np.arange(len(normal.negatives)) % folds
    strengths, targets, counts = [], [], []
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
        left_out, negatives = cases[out], normal.negatives[out_negative]
        strengths += [
            sides.strength(left_out.vectors, left_out.signals),
            sides.strength(negatives.vectors, negatives.signals, to_normal=normal.negative_distance[out_negative]),
        ]
        targets += [np.ones(len(left_out)), np.zeros(len(negatives))]
        counts += [left_out.weights, negatives.weights]
    strength, target, count = np.concatenate(strengths), np.concatenate(targets), np.concatenate(counts)
    positive, negative = float(count[target == 1].sum()), float(count[target == 0].sum())
    soft = np.where(target == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))  # Platt's targets
    mass = count * np.where(target == 1, 0.5 / positive, 0.5 / negative)
    slope, offset = logistic(strength[:, None], soft, mass, ridge=1e-4)
    return max(float(slope), 1e-3), float(offset)


def _contrast(to_normal: npt.NDArray[np.floating], towards_fraud: Doubles, near: float) -> Doubles:
    return np.asarray(np.log(to_normal + near) - towards_fraud, np.float64)


def _towards_fraud(fraud: NearestIndex, counts: Doubles, prepared: Floats, near: float) -> Doubles:
    """log(f + near) - log(w), float64 (n,): f is the mean distance to up to 5 cases, and w what they count, the nearer
    ones more. Near a case that counts half, a record must lie half as far to score the same."""
    distances, found = fraud.search(prepared, min(NEIGHBOURS, len(fraud)))
    closeness = 1.0 / (distances.astype(np.float64) + near)
    count = (closeness * np.minimum(counts, 1.0)[found]).sum(axis=1) / closeness.sum(axis=1)
    return np.asarray(np.log(distances.mean(axis=1) + near) - np.log(count), np.float64)


def _linear(prepared: Floats, signals: Doubles, weights: Doubles) -> Doubles:
    total = stable_product(prepared, weights[: prepared.shape[1], None].astype(np.float32))[:, 0].astype(np.float64)
    for column, weight in enumerate(weights[prepared.shape[1] :]):  # in this order for every batch
        total += signals[:, column] * weight
    return total


def _mean_distance(index: NearestIndex, prepared: Floats) -> Floats:
    return np.asarray(index.search(prepared, min(NEIGHBOURS, len(index)))[0].mean(axis=1), np.float32)


def _rounded(strength: Doubles) -> Floats:
    """Multiples of 1e-5: what lies below is rounding."""
    return (np.rint(strength * 1e5) * 1e-5).astype(np.float32)


def _scale(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    spread = float(values.std(dtype=np.float64))
    return float(values.mean(dtype=np.float64)), spread if spread > 0 else 1.0


def _spread(cases: int) -> float:
    """Standard deviation of log odds learned from so many cases."""
    return float(np.sqrt(4.0 / cases))


def _no_case() -> InvalidInput:
    return InvalidInput("no confirmed fraud is known yet.", hint="Call fit() with at least one label 1.")


def _distinct(cases: Floats, *, angular: bool) -> Int64s:
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
