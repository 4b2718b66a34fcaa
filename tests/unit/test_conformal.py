"""Conformal p-values, their bins, and chance drawn from positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import conformal


def exact_p(score: float, calibration: np.ndarray) -> float:
    return (1 + int((calibration >= score).sum())) / (len(calibration) + 1)


def test_there_are_49_ascending_edges_that_end_at_one() -> None:
    edges = conformal.P_EDGES
    assert conformal.N_BINS == len(edges) == 49
    assert (np.diff(edges) > 0).all()
    assert edges[0] == 2.0**-17
    assert edges[-1] == 1.0
    assert {1 / 32, 0.5, 1 - 2.0**-10, 2.0**-6} <= set(edges.tolist())


def test_a_p_value_counts_the_calibration_scores_that_are_not_smaller() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0], np.float32)
    scores = np.array([0.5, 1.0, 2.0, 2.5, 3.0, 9.0], np.float32)
    assert conformal.p_values(scores, calibration).tolist() == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]


@given(
    calibration=st.lists(st.integers(0, 30), min_size=1, max_size=400),
    scores=st.lists(st.integers(-1, 31), min_size=1, max_size=50),
)
def test_bins_from_48_thresholds_are_those_of_the_p_values(calibration: list[int], scores: list[int]) -> None:
    ordered = np.sort(np.array(calibration, np.float32))
    asked = np.array(scores, np.float32)
    bins = conformal.p_bins(asked, conformal.score_thresholds(ordered))
    expected = [int(np.flatnonzero(exact_p(score, ordered) <= conformal.P_EDGES)[0]) for score in asked]
    assert bins.dtype == np.uint8
    assert bins.tolist() == expected


@pytest.mark.parametrize("n", [10, 999, 50_000, 131_071, 200_000])
def test_bins_agree_with_p_values_for_calibration_sets_of_every_size(n: int) -> None:
    calibration = np.sort(np.random.default_rng(n).standard_normal(n).astype(np.float32))
    scores = np.concatenate([calibration[:: max(1, n // 5000)], calibration[-40:], [-9.0, 9.0]]).astype(np.float32)
    p = conformal.p_values(scores, calibration)
    bins = conformal.p_bins(scores, conformal.score_thresholds(calibration))
    assert (p <= conformal.P_EDGES[bins]).all()
    assert (p[bins > 0] > conformal.P_EDGES[bins[bins > 0] - 1]).all()


def test_false_positives_at_one_per_mille_come_at_their_rate() -> None:
    # 95 of 100 calibration sets of 100,000 keep within 20 %; with this seed it is one of them.
    random = np.random.default_rng(5)
    calibration = np.sort(random.standard_normal(100_000).astype(np.float32))
    p = conformal.p_values(random.standard_normal(1_000_000).astype(np.float32), calibration)
    assert 0.0008 <= (p <= 0.001).mean() <= 0.0012


def test_randomised_p_values_are_uniform_even_where_all_scores_are_tied() -> None:
    calibration = np.ones(99, np.float32)
    uniforms = conformal.position_uniforms("topic", 0, np.arange(20_000))
    p = conformal.randomised_p_values(np.ones(20_000, np.float32), calibration, uniforms=uniforms)
    assert abs(np.mean(p <= 0.1) - 0.1) < 0.01
    assert abs(p.mean() - 0.5) < 0.01


def test_randomised_p_values_lie_between_the_strict_and_the_conservative_one() -> None:
    calibration = np.sort(np.array([1, 1, 2, 3, 3, 3], np.float32))
    scores = np.array([0, 1, 2, 3, 4], np.float32)
    conservative = conformal.p_values(scores, calibration)
    strict = np.array([(calibration > score).sum() for score in scores]) / 7
    for u in (1e-9, 0.5, 1 - 1e-9):
        p = conformal.randomised_p_values(scores, calibration, uniforms=np.full(5, u))
        assert ((p >= strict) & (p <= conservative)).all()


def test_draws_are_a_function_of_the_position_and_of_nothing_else() -> None:
    offsets = np.arange(1000, dtype=np.int64)
    whole = conformal.position_uniforms("orders", 3, offsets)
    assert np.array_equal(whole[17:400], conformal.position_uniforms("orders", 3, offsets[17:400]))
    assert ((whole > 0) & (whole < 1)).all()
    for other in (
        conformal.position_uniforms("orders", 4, offsets),
        conformal.position_uniforms("order", 3, offsets),
        conformal.position_uniforms("orders", 3, offsets, purpose="review"),
    ):
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.15


def test_draws_never_change_between_releases() -> None:
    # Replays of stored streams depend on these numbers.
    assert conformal.hash64(np.array([0, 1, 2**40], np.int64), seed=7).tolist() == [
        7191089600892374487,
        309689372594955804,
        11363145223830680844,
    ]
    assert conformal.position_hashes("orders", 3, np.array([12], np.int64)).tolist() == [692671791743653966]


def test_draws_of_neighbouring_offsets_are_uniform_and_uncorrelated() -> None:
    draws = conformal.position_uniforms("t", 0, np.arange(100_000))
    counts = np.bincount((draws * 100).astype(int), minlength=100)
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-square with 99 degrees of freedom
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.015
