"""Precision, recall and prevalence from alerts and a review sample: values, limits, coverage."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.errors import InvalidInput
from detectors.review import Estimate, Stratum, entity_precision, estimates, rate


def inside(estimate: Estimate, truth: float) -> bool:
    return estimate.low - 1e-9 <= truth <= estimate.high + 1e-9


def test_precision_has_the_exact_interval_of_clopper_and_pearson() -> None:
    found = rate(3, 10)

    assert found.value == 0.3
    assert found.low == pytest.approx(0.0667, abs=1e-4)
    assert found.high == pytest.approx(0.6525, abs=1e-4)


def test_nothing_found_is_no_proof_that_there_is_nothing() -> None:
    found = estimates(Stratum(1000, 1000, 1000, 400), Stratum(999_000, 500, 500, 0))

    assert found.recall.value == 1.0
    assert 0.0 < found.recall.low < 0.2  # 500 of 999,000 may well have missed 7,000 frauds
    assert found.prevalence.value == pytest.approx(0.0004)
    assert found.prevalence.high > 0.005


def test_without_any_answer_all_is_open_and_finite() -> None:
    found = estimates(Stratum(50, 50, 0, 0), Stratum(10_000, 5, 0, 0))

    assert (found.precision, found.recall) == (Estimate(None, 0.0, 1.0), Estimate(None, 0.0, 1.0))
    assert found.prevalence == Estimate(None, 0.0, 1.0)
    assert (found.unanswered_alerts, found.unanswered_reviews) == (50, 5)


def test_what_has_no_answer_is_not_cleared() -> None:
    half = estimates(Stratum(100, 100, 50, 25), Stratum(10_000, 10, 10, 0))
    cleared = estimates(Stratum(100, 100, 100, 25), Stratum(10_000, 10, 10, 0))

    assert half.precision.value == 0.5
    assert half.unanswered_alerts == 50
    assert cleared.precision.value == 0.25


def test_a_review_without_answers_leaves_recall_open_but_the_alerts_count() -> None:
    found = estimates(Stratum(100, 100, 100, 90), Stratum(10_000, 5, 0, 0))

    assert found.recall.value is None
    assert found.recall.low > 0.0
    assert found.recall.high == 1.0
    assert found.prevalence.low > 0.005


def test_more_review_makes_every_interval_narrower() -> None:
    few = estimates(Stratum(100, 100, 100, 60), Stratum(99_900, 500, 500, 1))
    many = estimates(Stratum(100, 100, 100, 60), Stratum(99_900, 5000, 5000, 10))

    assert many.recall.high - many.recall.low < few.recall.high - few.recall.low
    assert many.prevalence.high - many.prevalence.low < few.prevalence.high - few.prevalence.low


@pytest.mark.parametrize("recall", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("share", [0.0005, 0.005])
def test_the_intervals_hold_the_truth_as_often_as_they_say(recall: float, share: float) -> None:
    records, alerts, prevalence = 1_000_000, 1_000, 0.0009
    random = np.random.default_rng(1)
    hits, misses = prevalence * recall * records, prevalence * (1 - recall) * records
    reviewed = int((records - alerts) * share)
    covered = np.zeros(3)
    draws = 300
    for _ in range(draws):
        alerted = Stratum(alerts, alerts, alerts, int(random.binomial(alerts, hits / alerts)))
        rest = Stratum(
            records - alerts, reviewed, reviewed, int(random.binomial(reviewed, misses / (records - alerts)))
        )
        found = estimates(alerted, rest)
        covered += [
            inside(found.precision, hits / alerts),
            inside(found.recall, recall),
            inside(found.prevalence, prevalence),
        ]

    assert covered.min() / draws >= 0.92  # at 95 %, less what 300 draws may miss by chance


def test_a_stratum_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="fraud <= answered"):
        Stratum(10, 5, 4, 5)
    with pytest.raises(InvalidInput, match="confidence"):
        estimates(Stratum(1, 1, 1, 1), Stratum(1, 1, 1, 1), confidence=1.0)


def test_strata_of_days_add_up() -> None:
    assert Stratum(10, 5, 4, 3) + Stratum(1, 1, 1, 0) == Stratum(11, 6, 5, 3)


def test_an_entity_counts_once_a_day_and_leaves_once_found() -> None:
    entities = np.array([1, 1, 2, 3, 1, 2, 4])
    scores = np.array([9.0, 8.0, 7.0, 6.0, 9.0, 8.0, 7.0])
    answers = np.array([0, 1, 0, 1, 1, -1, -1])
    days = np.array([0, 0, 0, 0, 1, 1, 1])

    first, second = entity_precision(entities, scores, answers, days, k=2)

    assert (first.entities, first.fraud, first.cleared, first.unanswered) == (2, 1, 1, 0)  # 1 is fraud, 2 is cleared
    assert (second.entities, second.fraud, second.unanswered) == (2, 0, 2)  # 1 is gone; 2 and 4 wait for answers


def test_entity_precision_refuses_what_does_not_fit() -> None:
    with pytest.raises(InvalidInput, match="one length"):
        entity_precision(np.zeros(2, int), np.zeros(1), np.zeros(2, int), np.zeros(2, int))
