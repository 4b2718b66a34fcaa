"""The stale-model verdict on a real classifier: a small form of tests/benchmarks/verdict.py, with floors."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from detectors.risk import RiskRule, RiskState
from tests.quality.intents import DATA, NO_DATA, WINDOW, Watched

pytestmark = [pytest.mark.quality, pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)]


@functools.cache
def model() -> Watched:
    """Forty intents, so that it is made in seconds."""
    return Watched("clinc150", seed=20, most=40)


@functools.cache
def windows(scenario: str, n: int = 3) -> list[tuple[float, float, bool]]:
    """Of each window the true and the estimated share of right answers, and whether the interval holds the true one."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(n):
        records = model().traffic(scenario, WINDOW, rng)
        estimate = model().estimate(model().summary(records))
        true = float(records.right.mean())
        found.append((true, estimate.estimated, estimate.low <= true <= estimate.high))
    return found


@pytest.mark.parametrize("scenario", ["none", "prior shift", "harder mix"])
def test_the_estimate_is_within_3_points_where_nothing_is_new(scenario: str) -> None:
    found = windows(scenario)

    assert max(abs(true - estimated) for true, estimated, _ in found) <= 0.03


def test_the_interval_holds_the_truth_in_five_of_eight_kinds_of_traffic() -> None:
    kinds = (
        "none",
        "prior shift",
        "harder mix",
        "out of scope, 10 %",
        "out of scope, 30 %",
        "other domain, 30 %",
        "noise 0.5",
        "concept swap, 10 %",
    )
    inside = {kind: np.mean([held for _, _, held in windows(kind)]) for kind in kinds}

    assert sum(share > 0.5 for share in inside.values()) >= 5, inside
    assert inside["concept swap, 10 %"] == 0  # invisible without labels, and said so


def test_labels_prove_a_swap_of_a_tenth_of_the_intents_within_300() -> None:
    rule = RiskRule(1.0 - model().calibration.floor(0.01), 216_000.0)  # 100 labels an hour, a page in 90 days
    rng = np.random.default_rng(2)
    found = early = 0
    for _ in range(10):
        clean = RiskState.start().push(1.0 - model().traffic("none", 1_000, rng).right, rule=rule)
        swapped = clean.push(1.0 - model().traffic("concept swap, 10 %", 300, rng).right, rule=rule)
        early += clean.degraded(rule)
        found += swapped.degraded(rule)

    assert found >= 8
    assert early == 0


def test_a_model_that_did_not_change_is_never_called_degraded() -> None:
    rng, watch = np.random.default_rng(3), model().watch()
    words = {watch.push(model().traffic("none", WINDOW, rng), rng.permutation(WINDOW)[:100]).word for _ in range(20)}

    assert "degraded" not in words


def test_a_model_whose_answers_became_wrong_is_called_degraded_by_labels_alone() -> None:
    rng = np.random.default_rng(4)
    unlabelled, labelled = model().watch(), model().watch()
    for _ in range(6):
        records = model().traffic("concept swap, 10 %", WINDOW, rng)
        without = unlabelled.push(records, np.zeros(0, np.int64))
        decision = labelled.push(records, rng.permutation(WINDOW)[:100])

    assert without.word == "fresh"
    assert without.reasons[-1] == "That answers to known inputs became wrong cannot be seen without labels."
    assert decision.word == "degraded"
    assert decision.reasons[0].startswith("Labels prove")


def test_new_content_is_called_degraded_by_estimate() -> None:
    rng = np.random.default_rng(5)
    watch = model().watch()
    for _ in range(5):
        decision = watch.push(model().traffic("out of scope, 30 %", WINDOW, rng), np.zeros(0, np.int64))

    assert decision.word == "degraded"
    assert "No label confirms it." in decision.reasons[0]
