"""How good the alerts are: precision, recall and prevalence with intervals, from alerts that were looked at and from a
random review sample.

Alerts are chosen by our own score, so what they say of the rest of the traffic is biased; a sample of all traffic,
chosen by a hash, is not. The traffic is two strata, alerted and not alerted, with known numbers of records; in each,
the records that were answered stand for all. With n records and a rate r of fraud in each stratum,

    precision = r1,    prevalence = (n1 r1 + n0 r0) / (n1 + n0),    recall = n1 r1 / (n1 r1 + n0 r0).

The rate of a stratum has the exact interval of Clopper and Pearson (1934), finite at zero counts. Prevalence combines
the two by the method of variance estimates recovery (MOVER; Zou and Donner 2008): the distances of the estimates to
their limits add up like standard deviations. Recall inverts the same interval for (1 - recall) n1 r1 - recall n0 r0
(Donner and Zou 2012). Measured on 312 settings (100,000 to 10 million records, prevalence .02 % to 2 %, recall .1 to
.99, .03 % to 1 % alerted, .05 % or .5 % reviewed, 30 % or all alerts answered), 4,000 draws each, at 95 %: coverage
.945 to 1 for recall (mean .985) and .947 to 1 for prevalence (mean .982).

Precision of a day's k most suspicious entities, such as cards, is `entity_precision` (card precision@k; Dal Pozzolo et
al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the traffic.

    Attributes:
        records: how many there were.
        asked: how many of them somebody was asked about.
        answered: how many of those have an answer.
        fraud: how many answers say fraud.
    """

    records: int
    asked: int
    answered: int
    fraud: int

    def __post_init__(self) -> None:
        if not 0 <= self.fraud <= self.answered <= self.asked <= self.records:
            raise InvalidInput(
                f"a stratum needs 0 <= fraud <= answered <= asked <= records, got {self.fraud}, {self.answered}, "
                f"{self.asked} and {self.records}."
            )

    def __add__(self, other: Stratum) -> Stratum:
        return Stratum(
            self.records + other.records,
            self.asked + other.asked,
            self.answered + other.answered,
            self.fraud + other.fraud,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its interval. ``value`` is None where nothing was answered: the interval says what is left open."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ReviewEstimates:
    """What the answers say. ``unanswered_alerts``, ``unanswered_reviews``: asked, but without an answer yet; they count
    neither as fraud nor as cleared."""

    precision: Estimate
    recall: Estimate
    prevalence: Estimate
    unanswered_alerts: int
    unanswered_reviews: int


def estimates(alerted: Stratum, rest: Stratum, *, confidence: float = CONFIDENCE) -> ReviewEstimates:
    """Precision of the alerts, recall and prevalence of fraud.

    Args:
        alerted: records that an alert was raised for; those answered must be a fair picture of all of them.
        rest: all other records; those asked about are a random sample.
        confidence: of each interval, in (0, 1).

    Raises:
        InvalidInput: confidence out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise InvalidInput(f"confidence: expected a share between 0 and 1, got {confidence}.", hint="Give 0.95.")
    precision = rate(alerted.fraud, alerted.answered, confidence=confidence)
    missed = rate(rest.fraud, rest.answered, confidence=confidence)
    return ReviewEstimates(
        precision=precision,
        recall=_recall(precision, missed, alerted.records, rest.records),
        prevalence=_prevalence(precision, missed, alerted.records, rest.records),
        unanswered_alerts=alerted.asked - alerted.answered,
        unanswered_reviews=rest.asked - rest.answered,
    )


def rate(count: int, of: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """A share with the exact interval of Clopper and Pearson (1934); 0 to 1 where ``of`` is 0."""
    from scipy.special import betaincinv

    if of == 0:
        return Estimate(None, 0.0, 1.0)
    tail = (1.0 - confidence) / 2.0
    low = float(betaincinv(count, of - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 1.0 - tail)) if count < of else 1.0
    return Estimate(count / of, low, high)


def _prevalence(alerted: Estimate, rest: Estimate, n1: int, n0: int) -> Estimate:
    if n1 + n0 == 0:
        return Estimate(None, 0.0, 1.0)
    weights = (n1 / (n1 + n0), n0 / (n1 + n0))
    parts = [(weight, part) for weight, part in zip(weights, (alerted, rest), strict=True) if weight]
    if any(part.value is None for _, part in parts):
        low, high = (sum(weight * getattr(part, side) for weight, part in parts) for side in ("low", "high"))
        return Estimate(None, low, high)
    value = sum(weight * _known(part) for weight, part in parts)
    below = sqrt(sum((weight * (_known(part) - part.low)) ** 2 for weight, part in parts))
    above = sqrt(sum((weight * (part.high - _known(part))) ** 2 for weight, part in parts))
    return Estimate(value, max(0.0, value - below), min(1.0, value + above))


def _recall(alerted: Estimate, rest: Estimate, n1: int, n0: int) -> Estimate:
    if alerted.value is None or rest.value is None:
        # One side is unknown: its limits are all that can be put in, and the other's keep their confidence.
        return Estimate(
            None, _part(n1 * alerted.low, n0 * rest.high, 0.0), _part(n1 * alerted.high, n0 * rest.low, 1.0)
        )
    caught, missed = n1 * alerted.value, n0 * rest.value

    def lower(recall: float) -> float:
        spread = hypot((1.0 - recall) * (caught - n1 * alerted.low), recall * (n0 * rest.high - missed))
        return (1.0 - recall) * caught - recall * missed - spread

    def upper(recall: float) -> float:
        spread = hypot((1.0 - recall) * (n1 * alerted.high - caught), recall * (missed - n0 * rest.low))
        return (1.0 - recall) * caught - recall * missed + spread

    # A recall is too small while even the lower limit of the difference is above zero, too large once the upper is not.
    low = _last(lambda recall: lower(recall) > 0.0)
    high = _last(lambda recall: upper(recall) >= 0.0)
    return Estimate(caught / (caught + missed) if caught + missed else None, low, high)


def _last(holds: Callable[[float], bool]) -> float:
    """Where in [0, 1] a condition ends to hold; 1 if it holds there."""
    if holds(1.0):
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2.0
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _part(part: float, other: float, empty: float) -> float:
    return part / (part + other) if part + other else empty


def _known(part: Estimate) -> float:
    assert part.value is not None
    return part.value


@dataclass(frozen=True, slots=True)
class EntityPrecision:
    """Of one day's most suspicious entities: how many were fraud.

    Attributes:
        day: as given.
        entities: how many were chosen: k, or fewer where there were fewer.
        fraud, cleared: how many of them have an answer, and which; the others have none yet.
    """

    day: int
    entities: int
    fraud: int
    cleared: int

    @property
    def unanswered(self) -> int:
        """Chosen entities without an answer."""
        return self.entities - self.fraud - self.cleared


def entity_precision(
    entities: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    answers: npt.NDArray[np.integer],
    days: npt.NDArray[np.integer],
    *,
    k: int = 100,
) -> list[EntityPrecision]:
    """Each day's k entities with the highest scores, one record each; entities found to be fraud leave the game.

    Args:
        entities: integers (n,), such as hashes.
        scores: (n,), larger is more suspicious; ties go to the earlier record.
        answers: (n,), 1 fraud, 0 cleared, -1 none yet. An entity is fraud if any of its records of the day is,
            cleared if some are cleared and none is fraud.
        days: (n,), ascending or not.
        k: at least 1.

    Raises:
        InvalidInput: arrays of different lengths, k < 1.
    """
    if not len(entities) == len(scores) == len(answers) == len(days) or k < 1:
        raise InvalidInput("entity_precision needs arrays of one length and k >= 1.")
    found = np.zeros(0, entities.dtype)
    result = []
    for day in np.unique(days).tolist():
        today = np.flatnonzero((days == day) & ~np.isin(entities, found))
        order = today[np.argsort(-scores[today], kind="stable")]
        _, first = np.unique(entities[order], return_index=True)
        chosen = entities[order[np.sort(first)[:k]]]
        fraud = np.intersect1d(chosen, entities[today[answers[today] == 1]])
        cleared = np.setdiff1d(np.intersect1d(chosen, entities[today[answers[today] == 0]]), fraud)
        result.append(EntityPrecision(day, len(chosen), len(fraud), len(cleared)))
        found = np.union1d(found, fraud)
    return result
