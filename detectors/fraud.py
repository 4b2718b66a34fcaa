"""Fraud score: how much nearer a record lies to the confirmed cases than to normal traffic, and what models say.

Three parts. The *contrast* log(distance to normal) - log(distance to fraud), distances being means over up to 5
neighbours, works from the first confirmed case on, and shows its evidence: the nearest cases. From 5 cases on a *linear
model* joins it: class-balanced logistic regression with a ridge, on the prepared vector and the signals (how surprising
detectors find the record, and numbers that it has). From 200 cases on, *trees* see the signals and small vectors
(`detectors.fraud_model`). A logistic curve through scores that were made without the record in question turns them into
a probability at the stated prevalence (Platt 1999; Elkan 2001).

False-alarm marks lower the score of their like, down to a limit: see `MOST_TAKEN`. The score is also ranked among those
of normal records that neither index nor model has seen: p-values of scorers of different versions are comparable.
Nothing is random: the same labels in the same order give the same scores.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput
from detectors.fraud_baseline import FraudBaseline
from detectors.fraud_model import LINEAR_SHARE, SMALL, Curve, FraudModel, NormalSide, Records, fit_curve, no_case
from detectors.fraud_ranks import Ranks
from detectors.fraud_signals import SignalScale
from detectors.geometry import CLIP
from detectors.index import NearestIndex, squared_lengths
from detectors.logistic import sigmoid
from detectors.outlier import OutlierScorer, evenly_spaced
from detectors.reference import Reference, Scored, nearest_prototypes

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Basis = Literal["outlier", "surprises", "contrast", "contrast and model"]

MAX_CASES = 10_000  # the last ones are kept: fraud changes
MAX_USUAL = 20_000  # normal records that are looked at where there is no baseline
# Standard deviations at which a table's columns are cut here. A reference cuts at 8, for the sake of its sums, but
# fraud often lies beyond, and how far tells it from normal records there.
FARTHEST = 1_000.0
COPY_COSINE = 0.98  # angular vectors nearer than this are one case, so that a campaign does not outvote the others
# False-alarm marks lower the log odds of a record by at most this, far from all cases, and by nothing at a copy of one:
# odds fall to a twentieth, as from one to one to one to twenty: nineteen clearances count, and no more. They never
# raise a score, so that a copy of a confirmed case keeps its rank whatever is marked beside it.
MOST_TAKEN = 3.0


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
        self._learned: _Learned | None = None
        self._ranks: Ranks | None = None
        self._signals = (
            None if baseline is None or not baseline.columns else SignalScale(baseline.signals[::2], baseline.columns)
        )

    @property
    def basis(self) -> Basis:
        """What the score rests on: "outlier" or "surprises" (no case known), "contrast" (1 to 4), "contrast and
        model"."""
        if self._learned is None:
            return "outlier" if self._signals is None or self._signals.n_surprises < 2 else "surprises"
        return "contrast" if self._learned.model.weights is None else "contrast and model"

    @property
    def n_cases(self) -> int:
        """Confirmed cases that the score rests on, copies dropped."""
        return 0 if self._learned is None else len(self._learned.case_rows)

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
        scaled = self._scaled(vectors, signals)
        rows = np.flatnonzero(marks == 1)[-MAX_CASES:]
        if len(rows) == 0:
            self._learned = None
            self._ranks = None
            return self
        x, unit = self._prepared(vectors), self.reference.geometry.unit
        rows = rows[_distinct(x[rows], angular=unit)]
        cases = Records(x[rows], scaled[rows], counts[rows])
        cleared = np.flatnonzero(marks == 0)
        known = _known_normal(self.reference, self.baseline)
        self._learned = _Learned.fit(
            known.side, cases, rows, Records(x[cleared], scaled[cleared], counts[cleared]), cleared, unit=unit
        )
        held_out = known.held_out
        self._ranks = Ranks(_rounded(self._log_odds(held_out.vectors, held_out.signals, known.to_prototypes)))
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
        """Range of the probability, float64 (n, 2), lower and upper end: 95 % by how sure the calibration is.

        On simulated labels it holds the true rate of fraud among records of like score nearly as often from 5 cases on
        (docs/methods.md). It does not know of labels that are untypical of fraud.

        Raises:
            InvalidInput: no case is known yet; else see `score`.
        """
        if self._learned is None:
            raise no_case()
        x, scaled = self._prepared(vectors), self._scaled(vectors, signals)
        odds = self._log_odds(x, scaled, None) + self._prior
        half = _student_95(self.n_cases) * self._learned.curve.deviation(self._learned.model.strengths(x, scaled))
        return np.column_stack([sigmoid(odds - half), sigmoid(odds + half)])

    def contributions(self, vectors: Floats, *, signals: Floats | None = None) -> FraudContributions:
        """What speaks for fraud, record by record; see `FraudContributions`.

        Raises:
            InvalidInput: no case is known yet; else see `score`.
        """
        if self._learned is None:
            raise no_case()
        x, scaled = self._prepared(vectors), self._scaled(vectors, signals)
        names = () if self._signals is None else tuple(column.name for column in self._signals.columns)
        terms, offset, odds = self._learned.terms(x, scaled)
        before = self._learned.quick_or_full(x, scaled, self._to_prototypes(x) if self._gated else None)
        taken = self._log_odds(x, scaled, None) - before
        terms[:, 0] += before - odds
        rows = np.where(taken < 0, self._learned.nearest_mark(x), -1)
        trees = ("trees",) if terms.shape[1] > 2 + len(names) else ()
        return FraudContributions(
            ("contrast", "model", *names, *trees, "cleared"),
            np.column_stack([terms, taken]),
            offset + self._prior,
            rows,
        )

    def nearest_cases(self, vectors: Floats, k: int = 3) -> NearestCases:
        """The confirmed cases nearest to each record: why its score is what it is.

        Args:
            vectors: float32 (n, d).
            k: cases for each record, at least 1; fewer where fewer are known.

        Raises:
            InvalidInput: no case is known yet, or k < 1.
        """
        if self._learned is None:
            raise no_case()
        x, learned = self._prepared(vectors), self._learned
        distances, found = learned.fraud.search(x, min(k, len(learned.fraud)))
        return NearestCases(learned.case_rows[found], distances, learned.normal.distance(x))

    @property
    def _gated(self) -> bool:
        """Vectors are so large that most records get by with the quick score."""
        return self.reference.dimension > SMALL

    def _strength(self, vectors: Floats, signals: Floats | None, scored: Scored | None) -> Floats:
        """What is ranked and calibrated, float32 (n,)."""
        scaled = self._scaled(vectors, signals)
        if self._learned is not None:
            to_prototypes = None if scored is None else scored.distance
            return _rounded(self._log_odds(self._prepared(vectors, scored), scaled, to_prototypes))
        if self._signals is not None and self._signals.n_surprises:
            unknown = np.full(scaled.shape, np.nan, np.float32)
            return self._signals.combined(unknown if signals is None else signals)
        if self._outlier is None:
            self._outlier = OutlierScorer(self.reference)
        return self._outlier.score(vectors)

    def _log_odds(self, x: Floats, scaled: Doubles, to_prototypes: Floats | None) -> Doubles:
        """At equal classes, float64 (n,)."""
        assert self._learned is not None
        if not self._gated:
            return self._learned.log_odds(x, scaled)
        to_prototypes = self._to_prototypes(x) if to_prototypes is None else to_prototypes
        return self._learned.gated_log_odds(x, scaled, to_prototypes)

    def _to_prototypes(self, x: Floats) -> Floats:
        """Distance of prepared vectors to the reference's prototypes, as `Reference.score` gives it."""
        if not self.reference.geometry.unit:
            x = np.clip(x, -CLIP, CLIP)
        return nearest_prototypes(self.reference.prototype_index, self.reference.search_space(x))[0]

    def _known_ranks(self) -> Ranks:
        if self._ranks is None:
            if self._signals is not None and self._signals.n_surprises and self.baseline is not None:
                self._ranks = Ranks(self._signals.combined(self.baseline.signals))
            else:
                self._outlier = self._outlier or OutlierScorer(self.reference)
                self._ranks = Ranks(self._outlier.calibration_scores)
        return self._ranks

    def _probability(self, strength: Floats) -> Floats:
        if self._learned is None:
            return (1.0 - self._known_ranks().p_values(strength)).astype(np.float32)
        return sigmoid(strength.astype(np.float64) + self._prior).astype(np.float32)

    def _normal_records(self) -> tuple[Records, Records]:
        """Normal records: those to learn from, and those kept from index and model."""
        if self.baseline is not None:
            x = self._prepared(self.baseline.vectors)
            scaled = self._scaled(self.baseline.vectors, self.baseline.signals)
            everyone = Records(x, scaled, np.ones(len(x)))
            return everyone[::2], everyone[1::2]
        reference = self.reference
        known = np.concatenate([reference.exemplars, reference.calibration_vectors[::2]])
        known = known[evenly_spaced(len(known), MAX_USUAL)]
        usual, held_out = (
            Records(x, np.zeros((len(x), 0)), np.ones(len(x)))
            for x in (known, np.array(reference.calibration_vectors[1::2]))
        )
        return usual, held_out

    def _prepared(self, vectors: npt.ArrayLike, scored: Scored | None = None) -> Floats:
        """Unit length, or standardised and clipped later than the reference does, float32 (n, d)."""
        if self.reference.geometry.unit:
            return scored.x if scored is not None else self.reference.prepare(vectors)
        if scored is None:
            self.reference.prepare(vectors)  # refuses what it must
        with np.errstate(over="ignore"):
            x = (np.asarray(vectors, np.float32) - self.reference.centre) / self.reference.scale
        return np.asarray(np.clip(x, -FARTHEST, FARTHEST, out=x), np.float32)

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
class _Known:
    """What no label changes: normal records to learn from, and those kept from index and model."""

    side: NormalSide
    held_out: Records
    to_prototypes: Floats  # of the held-out ones


@functools.lru_cache(maxsize=4)  # a new version of the labels is fitted within seconds of the last one
def _known_normal(reference: Reference, baseline: FraudBaseline | None) -> _Known:
    scorer = FraudScorer(reference, baseline=baseline)
    usual, held_out = scorer._normal_records()
    side = NormalSide(usual, scorer._to_prototypes)
    return _Known(side, held_out, scorer._to_prototypes(held_out.vectors))


@dataclass(frozen=True, slots=True)
class _Learned:
    """What is known from labels: a model of the cases, and, where something was cleared, one that knows that too."""

    normal: NormalSide
    model: FraudModel
    curve: Curve
    marked: tuple[FraudModel, Curve] | None
    fraud: NearestIndex
    case_rows: Int64s  # of the cases, in the caller's vectors
    mark_rows: Int64s

    @classmethod
    def fit(
        cls, normal: NormalSide, cases: Records, rows: Int64s, marks: Records, mark_rows: Int64s, *, unit: bool
    ) -> _Learned:
        model = FraudModel(normal, cases, unit=unit)
        curve = fit_curve(model, cases, unit=unit)
        marked = None
        if len(marks):
            with_marks = FraudModel(normal.with_marks(marks), cases, unit=unit, start=model.start)
            marked = with_marks, fit_curve(with_marks, cases, unit=unit)
        return cls(normal, model, curve, marked, NearestIndex(cases.vectors), rows, mark_rows)

    def log_odds(self, x: Floats, signals: Doubles) -> Doubles:
        """In full, float64 (n,)."""
        to_normal = self.normal.distance(x)
        odds = self.curve.log_odds(self.model.strengths(x, signals, to_normal=to_normal))
        if self.marked is None:
            return odds
        model, curve = self.marked
        to_marks = model.normal.nearer(to_normal, x)
        instead = curve.log_odds(model.strengths(x, signals, to_normal=to_marks))
        _, nearest = self.model.cases.towards(x)
        most = MOST_TAKEN * nearest.astype(np.float64) / (nearest + self.normal.typical)
        return np.clip(instead, odds - most, odds)

    def gated_log_odds(self, x: Floats, signals: Doubles, to_prototypes: Floats) -> Doubles:
        """In full for the records whose quick score says that it can matter, quick for the others."""
        odds = self.curve.log_odds(self.model.quick(x, signals, to_prototypes))
        rows = np.flatnonzero(odds > self.curve.gate)
        if len(rows):
            odds[rows] = np.maximum(self.log_odds(x[rows], signals[rows]), self.curve.gate)
        return odds

    def quick_or_full(self, x: Floats, signals: Doubles, to_prototypes: Floats | None) -> Doubles:
        """As if nothing had been cleared."""
        bare = replace(self, marked=None)
        return bare.log_odds(x, signals) if to_prototypes is None else bare.gated_log_odds(x, signals, to_prototypes)

    def terms(self, x: Floats, signals: Doubles) -> tuple[Doubles, float, Doubles]:
        """Contrast, terms of the linear model and the trees in log odds, float64 (n, m), their offset and their sum."""
        strengths, weights = self.model.strengths(x, signals), self.curve.weights
        linear = LINEAR_SHARE * self.model.linear_terms(x, signals)
        terms = weights[0] * np.column_stack([strengths.contrast, linear])
        offset = self.curve.offset
        if len(weights) == 2:
            terms = np.column_stack([terms, weights[1] * (strengths.trees - self.model.usual_trees)])
            offset += float(weights[1]) * self.model.usual_trees
        return terms, offset, offset + terms.sum(axis=1)

    def nearest_mark(self, x: Floats) -> Int64s:
        """Row of the nearest of what was cleared, int64 (n,); -1 where nothing was."""
        if self.marked is None:
            return np.full(len(x), -1, np.int64)
        side = self.marked[0].normal
        kept = self.mark_rows[evenly_spaced(len(self.mark_rows), len(side.marks))][side.near_marks]
        return np.asarray(kept[side.nearest_mark(x)], np.int64)


def _student_95(cases: int) -> float:
    """Deviations that hold 95 % where the deviation itself was learned from so few cases (Student 1908)."""
    from scipy.special import stdtrit

    return float(stdtrit(max(cases - 1, 1), 0.975))


def _rounded(odds: Doubles) -> Floats:
    """Multiples of 1e-5: what lies below is rounding."""
    return (np.rint(odds * 1e5) * 1e-5).astype(np.float32)


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
