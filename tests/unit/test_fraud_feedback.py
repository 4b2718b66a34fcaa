"""Which answers the second opinion learns from, and what it says of the records in the labels' terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from connectors.database.rows import LabelledRecord, LabelSource, NewLabel
from connectors.database.store import Store
from connectors.records import Partition
from detectors.feedback_model import WARM_UP, counted_after
from detectors.fraud_baseline import Signal
from monitor import fraud_feedback
from monitor.fraud_feedback import Feedback, features_of

COLUMNS = (Signal("outlier", "surprise"), Signal("amount", "number"))
CARDS = Partition("cards", 0)
Selected = Literal["", "alert", "review"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'driftd.db'}") as store:
        store.migrate()
        yield store


def answers(
    n: int,
    seed: int,
    *,
    source: LabelSource = "analyst",
    selected: Selected = "alert",
    turned: bool = False,
    size: int = 2,
) -> list[NewLabel]:
    """Labels: fraud where the outlier signal is high, or, turned round, where it is low."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(n):
        signals = np.array([random.exponential(2.0), random.exponential(50.0), *[0.0] * (size - 2)], "<f4")
        likely = 1.0 / (1.0 + np.exp(-3.0 * (float(signals[0]) - 1.5)))
        fraud = random.random() < (1.0 - likely if turned else likely)
        known = LabelledRecord(
            CARDS,
            number,
            0,
            number,
            "",
            b"",
            signals.tobytes(),
            0.5,
            0.001,
            0,
            selected,
            1.0,
        )
        origin = f"{seed}-{number}"
        found.append(NewLabel(origin, "fraud" if fraud else "cleared", number, source, 1.0, "ann", origin, known))
    return found


def learned(store: Store, *labels: NewLabel) -> Feedback:
    store.add_labels("cards", labels)
    return learned_upto(store, store.label_version("cards"))


def learned_upto(store: Store, version: int) -> Feedback:
    rows = store.labels("cards", after=counted_after(version), upto=version)
    return fraud_feedback.learned(rows, version=version, columns=COLUMNS)


def opinions(feedback: Feedback) -> list[float] | None:
    signals = np.array([[6.0, 50.0], [0.1, 50.0]], np.float32)
    found = feedback.opinions(signals, np.full(2, 0.5), np.full(2, 0.001))
    return None if found is None else found.tolist()


def test_the_opinion_follows_what_analysts_said(store: Store) -> None:
    found = opinions(learned(store, *answers(600, 1)))

    assert found is not None
    assert found[0] > 0.8
    assert found[1] < 0.2


def test_the_opinion_of_a_kept_record_is_that_of_its_evidence(store: Store) -> None:
    feedback = learned(store, *answers(600, 1))
    signals = {column.name: value for column, value in zip(COLUMNS, (6.0, 50.0), strict=True)}

    found = feedback.of_evidence([{"signals": signals, "probability": 0.5}, {}], np.array([0.001, 0.5]))

    said = opinions(feedback)
    assert said is not None
    assert found[0] == said[0]
    assert found[1] is not None and found[1] < 0.8


def test_it_has_none_before_enough_have_answered(store: Store) -> None:
    assert opinions(learned(store, *answers(WARM_UP - 1, 1))) is None


@pytest.mark.parametrize(
    ("source", "selected", "size"), [("chargeback", "alert", 2), ("analyst", "", 2), ("analyst", "alert", 3)]
)
def test_answers_that_came_for_fraud_alone_or_with_other_signals_do_not_count(
    store: Store, source: LabelSource, selected: Selected, size: int
) -> None:
    assert learned(store, *answers(20, 1, source=source, selected=selected, size=size)).model.n == 0


def test_a_change_names_the_label_at_which_it_was_noticed(store: Store) -> None:
    before, after = answers(1000, 1), answers(300, 2, turned=True)

    change = learned(store, *before, *after).changes[0]

    assert 1000 < change.version < 1100
    assert change.record_id == f"2-{change.version - 1001}"
    assert change.time_ms == change.version - 1001


def test_a_version_is_learned_alike_whatever_came_after(store: Store) -> None:
    then = opinions(learned(store, *answers(400, 1)))
    store.add_labels("cards", answers(100, 2))

    again = opinions(learned_upto(store, 400))

    assert then == again


def test_amounts_enter_as_logarithms_and_what_is_unknown_stays_so() -> None:
    signals = np.array([[1.0, np.e - 1.0], [2.0, np.nan]], np.float32)

    found = features_of(signals, np.array([0.5, 0.9]), np.array([0.1, np.nan]), columns=COLUMNS)

    np.testing.assert_allclose(found[0], [1.0, 1.0, 0.0, 1.0], atol=1e-6)
    assert np.isnan(found[1, [1, 3]]).all()
