"""Metrics of labelled records, from sums that add up."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from detectors.errors import InvalidInput
from detectors.realised import Metric, Realised, losses
from detectors.summary import MAX_LABELS


def labelled(n: int, *, seed: int, classes: int = 5) -> tuple[list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, classes, n)
    answers = np.where(rng.random(n) < 0.7, truths, rng.integers(0, classes + 1, n))
    # Weights that 2**-20 divides, so that rounding plays no part.
    return [f"c{each}" for each in truths], [f"c{each}" for each in answers], rng.integers(1, 64, n) / 8


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_of_classes_are_those_of_scikit_learn() -> None:
    truths, answers, weights = labelled(400, seed=1)

    found = Realised().add(truths, answers, weights)

    of_all = {
        "accuracy": metrics.accuracy_score(truths, answers, sample_weight=weights),
        "balanced_accuracy": metrics.balanced_accuracy_score(truths, answers, sample_weight=weights),
    }
    peers = {"precision": metrics.precision_score, "recall": metrics.recall_score, "f1": metrics.f1_score}
    name: Metric
    for name, peer in peers.items():
        of_all[name] = peer(truths, answers, sample_weight=weights, average="macro", zero_division=0)
        of_one = peer(truths, answers, sample_weight=weights, average=None, labels=["c2"], zero_division=0)[0]
        assert found.metric(name, "c2") == pytest.approx(of_one)
    for name, value in of_all.items():
        assert found.metric(name) == pytest.approx(value)


def test_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    truths, answers, weights = rng.normal(size=300) * 40, rng.normal(size=300) * 40, rng.uniform(0.5, 5, 300)

    found = Realised(scale=20.0).add([str(t) for t in truths], [str(a) for a in answers], weights)

    mae = metrics.mean_absolute_error(truths, answers, sample_weight=weights)
    mse = metrics.mean_squared_error(truths, answers, sample_weight=weights)
    assert found.metric("mae") == pytest.approx(mae, rel=1e-6)
    assert found.metric("rmse") == pytest.approx(np.sqrt(mse), rel=1e-6)
    loss = np.average(np.minimum(abs(truths - answers) / 20, 1), weights=weights)
    assert found.accuracy() == pytest.approx(1 - loss, rel=1e-6)


def test_parts_add_up_in_any_order_to_the_same_bytes() -> None:
    truths, answers, _ = labelled(600, seed=3, classes=400)  # more classes than are kept
    weights = np.random.default_rng(4).uniform(0.1, 30, 600)
    once = Realised().add(truths, answers, weights)
    parts = [Realised().add(truths[a:b], answers[a:b], weights[a:b]) for a, b in ((0, 7), (7, 350), (350, 600))]

    backwards = parts[2].merge(parts[1]).merge(parts[0])
    grouped = parts[0].merge(parts[1].merge(parts[2]))

    assert once.to_bytes() == backwards.to_bytes() == grouped.to_bytes()
    assert Realised.from_bytes(once.to_bytes()) == once


def test_of_too_many_classes_some_are_kept_and_the_accuracy_is_of_all() -> None:
    truths, answers, weights = labelled(3_000, seed=5, classes=1_000)

    found = Realised().add(truths, answers, weights)

    assert len(found.classes) == MAX_LABELS
    assert sorted(found.classes) != sorted({*truths, *answers})[:MAX_LABELS]  # a fair choice, not the first by name
    assert found.accuracy() == pytest.approx(metrics.accuracy_score(truths, answers, sample_weight=weights))
    assert found.other + sum(true for true, _, _ in found.classes.values()) == found.weight


def test_uneven_weights_make_the_interval_wider() -> None:
    truths, answers = ["a"] * 100, ["a"] * 90 + ["b"] * 10

    even = Realised().add(truths, answers, np.full(100, 8.0))
    uneven = Realised().add(truths, answers, np.tile([1.0, 15.0], 50))

    assert even.effective == pytest.approx(100)
    assert uneven.effective == pytest.approx(100 * 64 / 113)
    low, high = even.interval()
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # Wilson's of 90 in 100
    assert uneven.interval()[0] < low and uneven.interval()[1] > high


def test_the_interval_holds_the_true_share_19_times_of_20() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(300):
        chance = rng.uniform(0.2, 1.0, 300)
        chosen = rng.random(300) < chance
        answers = np.where(rng.random(300) < 0.8, "a", "b")[chosen].tolist()
        low, high = Realised().add(["a"] * len(answers), answers, 1 / chance[chosen]).interval()
        held += low <= 0.8 <= high

    assert 0.92 <= held / 300 <= 0.99


def test_of_no_label_nothing_is_known() -> None:
    none = Realised()

    assert none.effective == 0
    assert np.isnan([none.accuracy(), none.metric("f1"), none.metric("balanced_accuracy"), *none.interval()]).all()
    assert np.isnan(Realised(scale=1.0).metric("mae"))
    assert np.isnan(Realised().add(["a"], ["b"]).metric("precision", "never seen"))
    assert none.merge(none) == none


def test_what_is_no_number_is_counted_and_left_out() -> None:
    found = Realised(scale=2.0).add(["1", "n/a", "3", "4"], ["2", "2", "inf", "4"])

    assert (found.n, found.unreadable) == (2, 2)
    assert found.metric("mae") == pytest.approx(0.5)


def test_losses_are_shares_of_a_wholly_wrong_answer() -> None:
    assert losses(["a", "b"], ["a", "c"]).tolist() == [0.0, 1.0]
    of_numbers = losses(["1", "1", "1", "x"], ["1.5", "9", "1", "1"], scale=2.0)
    assert of_numbers[:3].tolist() == [0.25, 1.0, 0.0]
    assert np.isnan(of_numbers[3])
    assert losses([], []).tolist() == losses([], [], scale=1.0).tolist() == []


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Realised().metric("mae"), "no metric of answers that are classes"),
        (lambda: Realised(scale=1.0).metric("f1"), "no metric of answers that are numbers"),
        (lambda: Realised().metric("auc"), "unknown"),
        (lambda: Realised().add(["a"], ["a"], np.array([0.0])), "weight"),
        (lambda: Realised().add(["a"], ["a", "b"]), "1 truths, 2 answers"),
        (lambda: Realised().merge(Realised(scale=1.0)), "cannot be added"),
        (lambda: Realised(scale=0.0).add(["1"], ["1"]), "scale"),
        (lambda: Realised.from_bytes(b"[1,"), "no sums over labels"),
        (lambda: Realised.from_bytes(b"7"), "no sums over labels"),
    ],
)
def test_what_cannot_be_used_is_refused(made, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        made()
