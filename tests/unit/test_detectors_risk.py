"""Whether labels prove that a model is worse than its floor: bets on losses."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.errors import InvalidInput
from detectors.risk import LEAST_RUN, RiskRule, RiskState, run_length

RULE = RiskRule(bound=0.06, run_length=1e4)


def losses(n: int, rate: float, *, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < rate).astype(np.float64)


def found_after(values: np.ndarray, rule: RiskRule, weights: np.ndarray | None = None) -> int | None:
    """Labels until the alarm."""
    state = RiskState.start()
    for place in range(len(values)):
        state = state.push(
            values[place : place + 1], None if weights is None else weights[place : place + 1], rule=rule
        )
        if state.degraded(rule):
            return place + 1
    return None


def test_worse_answers_are_found_and_since_when() -> None:
    stream = np.concatenate([losses(1_000, 0.04, seed=1), losses(400, 0.2, seed=2)])

    state = RiskState.start().push(stream, rule=RULE)

    assert state.degraded(RULE)
    assert state.onset is not None
    assert abs(state.onset - 1_000) <= 60


def test_answers_as_good_as_the_bound_allows_are_not() -> None:
    for seed in range(10):
        assert not RiskState.start().push(losses(1_000, 0.06, seed=seed), rule=RULE).degraded(RULE)


def test_false_alarms_come_no_more_often_than_asked_for() -> None:
    # At the bound itself, the worst case; the standard error of the mean wait is 25 labels.
    rule = RiskRule(bound=0.3, run_length=200)
    waits = [found_after(losses(4_000, 0.3, seed=seed), rule) or 4_000 for seed in range(100)]

    assert 180 <= np.mean(waits) <= 800


def test_the_state_is_the_same_however_labels_are_cut() -> None:
    values, weights = losses(500, 0.1, seed=3), np.random.default_rng(4).uniform(0.5, 30, 500)
    once = RiskState.start().push(values, weights, rule=RULE)
    cut = RiskState.start()
    for start, end in ((0, 1), (1, 1), (1, 130), (130, 131), (131, 500)):
        cut = cut.push(values[start:end], weights[start:end], rule=RULE)
        cut = RiskState.from_bytes(cut.to_bytes())

    assert cut.to_bytes() == once.to_bytes()


def test_weights_of_one_size_are_no_weights() -> None:
    values = losses(300, 0.1, seed=5)

    assert RiskState.start().push(values, np.full(300, 8.0), rule=RULE).evidence == pytest.approx(
        RiskState.start().push(values, rule=RULE).evidence
    )


def test_the_size_of_all_weights_together_means_nothing() -> None:
    values, weights = losses(300, 0.1, seed=5), np.random.default_rng(12).uniform(1, 9, 300)

    assert RiskState.start().push(values, 1_000 * weights, rule=RULE).evidence == pytest.approx(
        RiskState.start().push(values, weights, rule=RULE).evidence
    )


def test_one_heavy_label_at_first_does_not_silence_the_others() -> None:
    values = losses(150, 0.3, seed=13)
    weights = np.ones(150)
    weights[0] = 50.0

    assert RiskState.start().push(values, weights, rule=RULE).degraded(RULE)


def test_asking_more_often_about_doubtful_answers_is_no_degradation() -> None:
    # Nine of ten records are right in 98 %, one in 70 %: .052 wrong. The doubtful ones are asked about nine times as
    # often, so that half of the labels are theirs and .16 of all labels are wrong.
    rng = np.random.default_rng(6)
    doubtful = rng.random(3_000) < 0.5
    values = (rng.random(3_000) < np.where(doubtful, 0.3, 0.02)).astype(np.float64)
    weights = np.where(doubtful, 1.0, 9.0)

    assert values.mean() > 0.14
    assert not RiskState.start().push(values, weights, rule=RULE).degraded(RULE)
    assert RiskState.start().push(values, rule=RULE).degraded(RULE)  # without the weights

    worse = (rng.random(3_000) < np.where(doubtful, 0.3, 0.15)).astype(np.float64)
    assert RiskState.start().push(worse, weights, rule=RULE).degraded(RULE)


def test_a_mended_model_is_not_held_guilty_for_ever() -> None:
    bad = RiskState.start().push(losses(20_000, 0.5, seed=7), rule=RULE)

    assert bad.degraded(RULE)
    assert not bad.push(losses(600, 0.03, seed=8), rule=RULE).degraded(RULE)


def test_another_bound_is_another_question() -> None:
    state = RiskState.start().push(losses(400, 0.3, seed=9), rule=RULE)
    other = RiskRule(bound=0.4, run_length=1e4)

    assert state.degraded(RULE)
    assert not state.degraded(other)
    assert not state.push(losses(10, 0.3, seed=10), rule=other).degraded(other)
    assert state.push(np.zeros(0), rule=other).n == 400


def test_before_any_label_nothing_is_known() -> None:
    state = RiskState.start()

    assert state.evidence == float("-inf")
    assert state.onset is None
    assert not state.degraded(RULE)
    assert RiskState.from_bytes(state.to_bytes()).to_bytes() == state.to_bytes()


def test_labels_that_came_are_not_changed() -> None:
    values = losses(50, 0.1, seed=11)
    state = RiskState.start().push(values, rule=RULE)
    before, given = state.to_bytes(), values.copy()

    state.push(values, rule=RULE)

    assert state.to_bytes() == before
    assert (values == given).all()


def test_the_run_length_is_what_labels_come_in_the_days_between_alarms() -> None:
    assert run_length(2_000, 20 / 24, every_days=90) == pytest.approx(216_000)
    assert run_length(30, 30.0, every_days=90) == LEAST_RUN
    assert run_length(0, 0.0, every_days=90) == LEAST_RUN


@pytest.mark.parametrize(("bound", "length"), [(0.0, 1e4), (1.0, 1e4), (float("nan"), 1e4), (0.1, 1.0)])
def test_rules_that_cannot_be_held_are_refused(bound: float, length: float) -> None:
    with pytest.raises(InvalidInput):
        RiskRule(bound, length)


@pytest.mark.parametrize(
    ("values", "weights"), [([1.5], [1.0]), ([float("nan")], [1.0]), ([0.5], [0.0]), ([0.5, 0.5], [1.0])]
)
def test_labels_that_cannot_be_used_are_refused(values: list[float], weights: list[float]) -> None:
    with pytest.raises(InvalidInput):
        RiskState.start().push(np.array(values), np.array(weights), rule=RULE)


def test_a_state_cut_off_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no state of a watch"):
        RiskState.from_bytes(RiskState.start().to_bytes()[:-1])
