"""Answers that no longer follow from the features are told once, and are over when later ones do again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from connectors.database.rows import LabelledRecord, NewLabel
from connectors.database.store import Store
from connectors.records import Partition
from detectors.flood import FloodPlan
from detectors.fraud_baseline import FraudBaseline, Signal
from detectors.reference import Reference
from monitor.fraud_build import FraudParts
from monitor.fraud_learner import Learner
from monitor.operations import BLIND
from monitor.troubles import Troubles

D, NOW_MS = 4, 1_772_438_400_000


@pytest.fixture(scope="module")
def parts() -> FraudParts:
    vectors = np.random.default_rng(0).normal(size=(1_000, D)).astype(np.float32)
    reference = Reference.build(vectors)
    signals = np.random.default_rng(1).exponential(0.4, (500, 1)).astype(np.float32)
    baseline = FraudBaseline(vectors[500:], signals, (Signal("outlier", "surprise"),))
    flood = FloodPlan.measure(reference, vectors, np.arange(1_000) // 100)
    return FraudParts(1, reference, baseline, scorers={}, entities=None, relations=None, flood=flood)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(f"sqlite:///{tmp_path / 'driftd.db'}")
    store.migrate()
    return store


def answer(store: Store, n: int, *, turned: bool, first: int = 0) -> None:
    """Answers of an analyst to alerts: fraud where the signal is large; ``turned``: where it is small."""
    chance = np.random.default_rng(first)
    strange = chance.normal(size=n)
    fraud = (strange > 0.5) != turned
    labels = []
    for row in range(n):
        vector = chance.normal(size=D).astype("<f4")
        known = LabelledRecord(
            partition=Partition("cards", 0),
            offset=first + row,
            row=0,
            event_ms=NOW_MS,
            entity="",
            vector=vector.tobytes(),
            signals=np.array([strange[row]], "<f4").tobytes(),
            probability=0.3,
            p_value=0.001,
            scored_with=0,
            selected="alert",
            chance=1.0,
        )
        said = "fraud" if fraud[row] else "cleared"
        labels.append(NewLabel(f"r{first + row}", said, NOW_MS + row, "analyst", 1.0, "ann", f"{first + row}", known))
    store.add_labels("cards", labels)


def judged(store: Store, parts: FraudParts) -> Learner:
    learner = Learner("cards", store=store, parts=parts, prevalence=0.01)
    learner.latest()
    learner._look()
    assert learner.judged
    return learner


def test_a_change_is_told_once_as_a_warning_that_makes_nobody_blind_and_ends_with_later_answers(
    store: Store, parts: FraudParts
) -> None:
    first, second = (Troubles("cards", store, sinks=("log",), after_s=60.0) for _ in range(2))
    answer(store, 600, turned=False)
    assert judged(store, parts).change is None
    answer(store, 100, turned=True, first=600)
    for troubles in (first, second):  # two workers, each with a learner of its own
        troubles.fraud_changed(judged(store, parts).change, NOW_MS, 0.0)
    (row,) = store.incidents(model="cards")
    assert (row.kind, row.severity, row.status) == ("fraud_changed", "warn", "open")
    assert row.detail["severity_now"] == "warn"
    assert "answers no longer follow from the features as they did" in row.text
    assert row.title == "cards: fraud itself seems to have changed"
    assert "fraud_changed" not in BLIND
    assert first.blind == []
    answer(store, 600, turned=True, first=700)
    change = judged(store, parts).change
    assert change is None
    for clock_s in (100.0, 200.0):
        first.fraud_changed(change, NOW_MS + 1_000, clock_s)
    assert [row.status for row in store.incidents(model="cards")] == ["resolved"]


def test_few_answers_are_no_reason_to_judge(store: Store, parts: FraudParts) -> None:
    answer(store, 50, turned=True)
    learner = judged(store, parts)
    assert learner.change is None
