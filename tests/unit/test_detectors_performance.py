"""Confidence calibrated on a baseline, and the share of right answers that it estimates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from detectors.conformal import N_BINS, P_EDGES, p_bins, score_thresholds
from detectors.errors import InvalidInput
from detectors.performance import (
    MIDDLES,
    POOLED,
    ConfidenceCalibration,
    estimate,
    novel_error,
    novel_mass,
    unsupported,
)
from detectors.summary import CONFIDENCE_BINS, confidence_bins

CLEAN = np.bincount(np.searchsorted(P_EDGES, (np.arange(100_000) + 0.5) / 100_000), minlength=N_BINS)


def sample(n: int, *, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidence, and whether right: right more often than the model says."""
    rng = np.random.default_rng(seed)
    confidence = np.clip(rng.beta(5, 2, n) - shift, 0.0, 1.0)
    return confidence, rng.random(n) < np.sqrt(confidence)


def histogram(confidence: np.ndarray) -> np.ndarray:
    return np.bincount(confidence_bins(confidence), minlength=CONFIDENCE_BINS)


def test_pools_are_those_of_isotonic_regression() -> None:
    # 25 records or more in each bin, so that nothing but falling shares is taken together.
    rng = np.random.default_rng(1)
    counts = rng.integers(POOLED, 400, CONFIDENCE_BINS)
    right = rng.binomial(counts, MIDDLES).astype(float)

    pool, size, share, _ = ConfidenceCalibration(counts, right)._pools

    peer = IsotonicRegression().fit(MIDDLES, right / counts, sample_weight=counts).predict(MIDDLES)
    np.testing.assert_allclose(share[pool], peer, atol=1e-12)
    assert 1 < len(size) < CONFIDENCE_BINS


def test_the_calibrated_shares_never_fall_and_average_to_the_accuracy() -> None:
    calibration = ConfidenceCalibration.of(*sample(2_000, seed=2))

    assert (np.diff(calibration.isotonic) >= 0).all()
    assert calibration.isotonic @ calibration.counts / calibration.n == pytest.approx(calibration.accuracy, abs=1e-4)


def test_few_records_in_a_bin_do_not_make_it_certain() -> None:
    confidence = np.concatenate([np.full(1_000, 0.9), [0.11, 0.13]])
    right = np.concatenate([np.arange(1_000) % 10 > 0, [False, False]])

    calibration = ConfidenceCalibration.of(confidence, right)

    assert (calibration.isotonic > 0.8).all()  # the two wrong ones are no pool of their own


def test_a_calibration_goes_through_arrays_and_back() -> None:
    calibration = ConfidenceCalibration.of(*sample(500, seed=3))

    again = ConfidenceCalibration.from_arrays(calibration.to_arrays())

    assert again is not None
    assert (again.isotonic == calibration.isotonic).all()
    assert ConfidenceCalibration.from_arrays({}) is None
    assert ConfidenceCalibration.from_arrays(ConfidenceCalibration.of(np.zeros(0), np.zeros(0)).to_arrays()) is None
    with pytest.raises(InvalidInput, match="expected counts and right"):
        ConfidenceCalibration.from_arrays({"counts": calibration.counts})


def test_weights_undo_an_uneven_choice_of_records() -> None:
    confidence, right = sample(40_000, seed=4)
    chance = np.where(confidence < 0.6, 0.9, 0.1)  # unsure answers are looked at more often
    chosen = np.random.default_rng(5).random(len(chance)) < chance

    even = ConfidenceCalibration.of(confidence[chosen], right[chosen])
    weighted = ConfidenceCalibration.of(confidence[chosen], right[chosen], weight=1 / chance[chosen])

    assert abs(even.accuracy - right.mean()) > 0.03
    assert weighted.accuracy == pytest.approx(right.mean(), abs=0.01)
    assert weighted.n < chosen.sum()  # they are worth less than as many evenly drawn ones


def test_even_weights_change_nothing() -> None:
    confidence, right = sample(300, seed=6)

    weighted = ConfidenceCalibration.of(confidence, right, weight=np.full(300, 7.0))

    assert (weighted.counts == ConfidenceCalibration.of(confidence, right).counts).all()


@pytest.mark.parametrize(
    ("confidence", "right", "weight", "said"),
    [
        ([1.2], [1], None, "confidence"),
        ([0.5], [2], None, "rightness"),
        ([0.5], [1], [0.0], "weight"),
        ([0.5, 0.6], [1], None, "2 confidences"),
    ],
)
def test_records_that_cannot_be_used_are_refused(confidence: list, right: list, weight: list | None, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        ConfidenceCalibration.of(
            np.array(confidence), np.array(right), weight=None if weight is None else np.array(weight)
        )


def test_less_sure_answers_are_estimated_to_be_less_right() -> None:
    calibration = ConfidenceCalibration.of(*sample(20_000, seed=7))
    confidence, right = sample(5_000, seed=8, shift=0.2)

    found = estimate(calibration, histogram(confidence), CLEAN, n_calibration=50_000)

    assert found.estimated == pytest.approx(right.mean(), abs=0.02)
    assert found.estimated < calibration.accuracy - 0.05
    assert found.low <= right.mean() <= found.high
    assert found.confidence == pytest.approx(confidence.mean(), abs=0.01)
    assert found.novel == pytest.approx(0.0, abs=0.002)


def test_the_interval_holds_the_share_of_right_answers_19_times_of_20() -> None:
    # Nothing new, so that the interval is the error of window and baseline alone; both are small.
    held = 0
    for seed in range(400):
        calibration = ConfidenceCalibration.of(*sample(600, seed=2 * seed))
        confidence, right = sample(500, seed=2 * seed + 1)
        found = estimate(calibration, histogram(confidence), np.zeros(N_BINS, np.int64), n_calibration=1)
        held += found.low <= right.mean() <= found.high

    assert 0.93 <= held / 400 <= 0.985


def test_new_content_lowers_the_lower_end_only() -> None:
    calibration = ConfidenceCalibration.of(*sample(20_000, seed=9))
    confidence = histogram(sample(5_000, seed=10)[0])
    foreign = CLEAN.copy()
    foreign[0] += 25_000  # a fifth of all records lies beyond everything in the baseline

    clean = estimate(calibration, confidence, CLEAN, n_calibration=50_000)
    new = estimate(calibration, confidence, foreign, n_calibration=50_000)

    assert new.novel == pytest.approx(0.2, abs=0.002)
    assert new.unsupported == pytest.approx(0.2, abs=0.002)
    assert new.high == clean.high
    assert new.low == pytest.approx(0.8 * clean.estimated, abs=0.02)


def test_the_error_of_the_new_share_lowers_the_lower_end() -> None:
    calibration = ConfidenceCalibration.of(*sample(20_000, seed=9))
    confidence = histogram(sample(5_000, seed=10)[0])
    many = np.zeros(N_BINS, np.int64)
    many[0], many[-1] = 2_000, 8_000
    few = many // 200  # ten of fifty records are new, which may have been five or fifteen

    sure = estimate(calibration, confidence, many, n_calibration=50_000)
    unsure = estimate(calibration, confidence, few, n_calibration=50_000)

    assert unsure.novel == pytest.approx(sure.novel)
    assert unsure.bound == pytest.approx(sure.bound)
    assert unsure.low == pytest.approx(
        sure.bound - 1.96 * sure.estimated * novel_error(50, 50_000, sure.novel), abs=0.01
    )
    assert unsure.low < sure.low - 0.05


def test_novel_mass_of_clean_traffic_is_as_small_as_stated() -> None:
    rng = np.random.default_rng(11)
    calibration = np.sort(rng.standard_normal(1_000).astype(np.float32))
    found = []
    for _ in range(300):
        calibration = np.sort(rng.standard_normal(1_000).astype(np.float32))
        bins = p_bins(rng.standard_normal(1_000).astype(np.float32), score_thresholds(calibration))
        found.append(novel_mass(np.bincount(bins, minlength=N_BINS), 1_000))

    error = novel_error(1_000, 1_000, 0.0)
    assert np.mean(found) == pytest.approx(0.4 * error, rel=0.25)
    assert np.mean(np.array(found) > 1.645 * error) == pytest.approx(0.05, abs=0.035)


def test_nothing_is_new_in_no_records() -> None:
    assert novel_mass(np.zeros(N_BINS, np.int64), 100) == 0.0
    assert unsupported(np.zeros(N_BINS, np.int64), 100) == 0.0


def test_without_confidences_nothing_is_estimated() -> None:
    calibration = ConfidenceCalibration.of(*sample(500, seed=12))

    found = estimate(calibration, np.zeros(CONFIDENCE_BINS, np.int64), CLEAN, n_calibration=50_000)

    assert found.n == 0
    assert np.isnan([found.confidence, found.estimated, found.low, found.high, found.atc]).all()
    with pytest.raises(InvalidInput, match="nothing can be estimated"):
        estimate(ConfidenceCalibration.of(np.zeros(0), np.zeros(0)), calibration.counts, CLEAN, n_calibration=1)


def test_thresholded_confidence_is_the_accuracy_on_the_baseline_itself() -> None:
    calibration = ConfidenceCalibration.of(*sample(1_000, seed=13))

    found = estimate(calibration, calibration.counts, CLEAN, n_calibration=50_000)

    assert found.atc == pytest.approx(calibration.accuracy, abs=1e-9)


def test_a_model_that_is_always_right_or_never_can_be_estimated() -> None:
    for right in (np.zeros(100), np.ones(100)):
        calibration = ConfidenceCalibration.of(np.full(100, 0.99), right)
        found = estimate(calibration, calibration.counts, CLEAN, n_calibration=1_000)
        assert found.estimated == found.atc == right[0]
        assert found.low <= right[0] <= found.high


def test_the_floor_allows_for_the_error_of_the_baseline_and_the_tolerance() -> None:
    few = ConfidenceCalibration.of(np.full(100, 0.9), np.arange(100) >= 5)
    many = ConfidenceCalibration.of(np.full(100_000, 0.9), np.arange(100_000) >= 5_000)

    assert many.floor(0.01) == pytest.approx(0.95 - 0.0011 - 0.01, abs=2e-4)
    assert few.floor(0.01) == pytest.approx(0.9008 - 0.01, abs=2e-4)  # Wilson's lower limit of 95 in 100


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_any_calibration_gives_an_estimate_inside_its_interval(known: list[tuple[float, bool]], seed: int) -> None:
    calibration = ConfidenceCalibration.of(np.array([c for c, _ in known]), np.array([r for _, r in known]))
    confidence = np.random.default_rng(seed).multinomial(300, np.full(CONFIDENCE_BINS, 1 / CONFIDENCE_BINS))

    found = estimate(calibration, confidence, CLEAN, n_calibration=50_000)

    assert 0 <= found.low <= found.estimated <= found.high <= 1
    assert 0 <= found.atc <= 1
