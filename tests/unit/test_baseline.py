"""The constants of the drift rule: closed forms against simulation, and baselines that are small or odd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detectors import baseline
from detectors.baseline import (
    MAX_GROUPS,
    Moments,
    group_sums,
    level_moments,
    measure,
    merge_prototypes,
    payoff_inflation,
    quadratic_inflation,
    scores_above_edges,
    shares_moments,
    whitening,
)
from detectors.conformal import N_BINS, P_EDGES
from detectors.errors import InvalidInput, InvalidReference
from tests.streams import Baseline, Topics


def cumulants_of_windows(z, n):
    """First three cumulants of |sum z|^2 / n over disjoint windows of n records."""
    windows = z[: len(z) // n * n].reshape(-1, n, z.shape[1]).sum(axis=1)
    t = np.einsum("ij,ij->i", windows, windows) / n
    return t.mean(), t.var(), ((t - t.mean()) ** 3).mean()


def closed_form(moments, n):
    return moments.t1, 2 * moments.t2 + moments.k4 / n, 8 * moments.t3 + moments.c3 / n


def test_cumulants_of_short_windows_agree_with_simulation_for_skewed_vectors():
    random = np.random.default_rng(0)
    x = random.gamma(2.0, size=(1_600_000, 3)) * [1.0, 2.0, 0.5]  # kurtosis 6: far from Gaussian
    covariance = np.cov(x.T, bias=True)
    to_z, spectrum = whitening(covariance)
    z = (x - x.mean(axis=0)) @ to_z
    moments = level_moments(spectrum, z[:40_000], n0=len(x), held_out=False)
    for n in (16, 64):
        mean, variance, third = cumulants_of_windows(z, n)
        expected = closed_form(moments, n)
        assert mean == pytest.approx(expected[0], rel=0.01)
        assert variance == pytest.approx(expected[1], rel=0.05)
        assert third == pytest.approx(expected[2], rel=0.15)
    # Without the corrections the third would be off by more than the test allows.
    assert closed_form(moments, 16)[2] > 1.25 * 8 * moments.t3


def test_mix_moments_are_exact_for_windows_of_one_hot_records():
    random = np.random.default_rng(1)
    counts = np.array([5000.0, 3000.0, 1500.0, 400.0, 100.0])
    shares, scale, moments = shares_moments(counts)
    group = random.choice(5, size=1_000_000, p=shares)
    z = (np.eye(5)[group] - shares) * scale
    for n in (16, 64):
        mean, variance, third = cumulants_of_windows(z, n)
        expected = closed_form(moments, n)
        assert mean == pytest.approx(expected[0], rel=0.01)
        assert variance == pytest.approx(expected[1], rel=0.04)
        assert third == pytest.approx(expected[2], rel=0.15)


def test_whitened_records_have_the_stated_spectrum():
    random = np.random.default_rng(2)
    x = random.standard_normal((5000, 6)) @ random.standard_normal((6, 6))
    to_z, spectrum = whitening(np.cov(x.T, bias=True))
    assert np.allclose(np.cov(((x - x.mean(axis=0)) @ to_z).T, bias=True), np.diag(spectrum), atol=1e-9)
    assert (spectrum < 1).all()


def test_a_held_out_sample_shows_the_error_of_a_covariance_of_few_records():
    random = np.random.default_rng(3)
    x = random.standard_normal((60, 40))
    to_z, spectrum = whitening(np.cov(x.T, bias=True))
    fresh = (random.standard_normal((2000, 40)) - x.mean(axis=0)) @ to_z
    assert level_moments(spectrum, fresh, n0=60, held_out=True).floor > 1.2
    assert level_moments(spectrum, fresh, n0=60, held_out=False).floor == 1.0


def test_prototypes_merge_into_at_most_256_groups_of_neighbours_and_none_is_empty():
    random = np.random.default_rng(4)
    centres = random.standard_normal((MAX_GROUPS, 8)) * 100
    centroids = np.concatenate([centres + 0.01 * random.standard_normal(centres.shape) for _ in range(3)])
    groups = merge_prototypes(centroids, np.ones(len(centroids), dtype=np.int64), seed=0)
    assert sorted(set(groups)) == list(range(MAX_GROUPS))
    assert (groups[:MAX_GROUPS] == groups[MAX_GROUPS : 2 * MAX_GROUPS]).mean() > 0.95
    assert np.array_equal(groups, merge_prototypes(centroids, np.ones(len(centroids), dtype=np.int64), seed=0))
    assert group_sums(np.ones(len(centroids)), groups).sum() == len(centroids)


def test_few_or_equal_prototypes_still_make_groups():
    assert list(merge_prototypes(np.zeros((3, 2)), np.array([1, 0, 2]), seed=0)) == [0, 1, 2]
    same = merge_prototypes(np.ones((300, 2)), np.ones(300, dtype=np.int64), seed=0)
    assert sorted(set(same)) == list(range(MAX_GROUPS))


def test_independent_blocks_show_no_inflation_and_sessions_do():
    random = np.random.default_rng(5)
    spectrum = np.linspace(0.2, 0.9, 10)
    moments = Moments(spectrum.sum(), (spectrum**2).sum(), (spectrum**3).sum(), 0.9, 0.0, 0.0, 1.0, 40_000.0)
    sizes = np.full(400, 100.0)
    plain = random.standard_normal((400, 10)) * np.sqrt(spectrum * 100)
    independent = quadratic_inflation(plain, sizes, moments)
    assert independent.measured
    assert (independent.v1 == 1).all() and (independent.v2 == 1).all()
    sessions = quadratic_inflation(plain * np.sqrt(8), sizes, moments)  # eight copies of every record
    assert sessions.v1[0] == pytest.approx(8, rel=0.15)
    assert (np.diff(sessions.v1) >= 0).all()


def test_a_season_inflates_long_windows_and_spares_short_ones():
    random = np.random.default_rng(6)
    moments = Moments(10.0, 10.0, 10.0, 1.0, 0.0, 0.0, 1.0, 200_000.0)
    wave = 5.0 * np.sin(np.arange(2000) * 2 * np.pi / 200)[:, None] * np.eye(10)[0]
    inflation = quadratic_inflation(random.standard_normal((2000, 10)) * 10 + wave, np.full(2000, 100.0), moments)
    assert inflation.v1[0] == 1 and inflation.v2[0] == 1
    assert inflation.v1[-1] > 1.5


def test_too_few_blocks_are_said_to_be_too_few():
    moments = Moments(2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 1.0, 100.0)
    inflation = quadratic_inflation(np.ones((5, 2)), np.full(5, 20.0), moments)
    assert not inflation.measured and inflation.v1[0] == 1
    factors, measured = payoff_inflation(np.ones((5, N_BINS)), np.ones((3, N_BINS)))
    assert not measured and (factors == 1).all()


def test_copies_of_records_inflate_the_payoffs_by_their_number():
    random = np.random.default_rng(7)
    widths = np.diff(np.append(0.0, P_EDGES))
    single = random.multinomial(64, widths, size=2000)
    payoffs = np.stack([P_EDGES <= 0.5, P_EDGES <= 2.0**-6]).astype(float)
    assert (payoff_inflation(single, payoffs)[0] == 1).all()
    # The greatest of ten estimates lies above the truth, on the safe side.
    copied, measured = payoff_inflation(single * 4, payoffs)
    assert measured
    assert copied == pytest.approx([4, 4], rel=0.35)


def test_scores_above_edges_are_one_fewer_than_the_rank_unless_scores_are_tied():
    distinct = np.arange(1023.0)
    ranks = np.floor(P_EDGES * 1024)
    above = scores_above_edges(distinct)
    assert np.array_equal(above[:-1], np.maximum(ranks - 1, 0)[:-1])
    tied = np.sort(np.where(distinct < 512, 0.0, distinct))  # half of all scores are zero
    assert np.array_equal(scores_above_edges(tied)[ranks <= 511], above[ranks <= 511])
    assert set(scores_above_edges(tied)[ranks > 511]) == {511}
    assert not scores_above_edges(np.zeros(100)).any()
    assert not scores_above_edges(np.zeros(0)).any()


def test_gaps_between_blocks_do_not_hide_a_season():
    random = np.random.default_rng(8)
    widths = np.diff(np.append(0.0, P_EDGES))
    wave = 0.3 * np.sin(np.arange(3000) * 2 * np.pi / 120)
    shares = widths + wave[:, None] * widths * np.where(P_EDGES <= 0.5, 1.0, -1.0)
    histogram = np.stack([random.multinomial(256, row) for row in shares])
    payoffs = (P_EDGES <= 0.5).astype(float)[None, :]
    whole = payoff_inflation(histogram, payoffs)[0][0]
    gaps = histogram * (random.random(3000) < 0.5)[:, None]
    assert whole > 100
    assert payoff_inflation(gaps, payoffs)[0][0] == pytest.approx(whole, rel=0.2)


@pytest.fixture(scope="module")
def small():
    topics = Topics(dimension=8, topics=5)
    random = np.random.default_rng(8)
    return Baseline(topics.draw(6000, random), random, prototypes=20)


def test_everything_is_measured_once_and_the_same_way_again(small):
    again = measure(**small.measured)
    assert set(again) == set(small.constants)
    for name, array in small.constants.items():
        assert isinstance(array, np.ndarray) and np.isfinite(array).all()
        assert np.array_equal(array, again[name]), name
    assert small.constants["inflation_measured"].all()
    baseline.check_format(small.constants)


def test_constants_of_another_format_are_refused(small):
    with pytest.raises(InvalidReference, match="format 7"):
        baseline.check_format(dict(small.constants, format=np.array([7])))
    with pytest.raises(InvalidReference, match="format None"):
        baseline.check_format({})
    for name in set(small.constants) - {"format"}:
        with pytest.raises(InvalidReference, match=f"lack {name}"):
            baseline.check_format({key: array for key, array in small.constants.items() if key != name})


@pytest.mark.parametrize("name", ["covariance", "sample", "centroids", "counts", "block_s", "block_h", "block_c"])
def test_arrays_that_do_not_fit_together_are_refused_by_name(small, name):
    array = np.asarray(small.measured[name])
    with pytest.raises(InvalidInput, match=f"{name} has shape"):
        measure(**dict(small.measured, **{name: np.concatenate([array, array], axis=-1)}))


def test_values_that_are_not_finite_are_refused(small):
    with pytest.raises(InvalidInput, match="not finite"):
        measure(**dict(small.measured, mean=np.full(8, np.nan)))


def test_no_blocks_one_prototype_constant_columns_and_more_dimensions_than_records():
    random = np.random.default_rng(9)
    x = random.standard_normal((30, 50))
    x[:, 7] = 1.0
    constants = measure(
        n0=30,
        mean=x.mean(axis=0),
        covariance=np.cov(x.T, bias=True),
        sample=x[:3],
        sample_held_out=False,
        centroids=x[:1],
        counts=np.array([30]),
        calibration_scores=np.zeros(0),
        block_n=np.zeros(0, dtype=np.int64),
        block_s=np.zeros((0, 50), dtype=np.int64),
        block_h=np.zeros((0, N_BINS), dtype=np.int64),
        block_c=np.zeros((0, 1), dtype=np.int64),
    )
    assert all(np.isfinite(array).all() for array in constants.values())
    assert not constants["inflation_measured"].any()
    assert constants["mix_moments"][0] == pytest.approx(0)


def test_empty_blocks_of_the_baseline_change_nothing(small):
    rows = {name: np.asarray(small.measured[name]) for name in ("block_n", "block_s", "block_h", "block_c")}
    holes = {name: np.insert(array, 3, 0, axis=0) for name, array in rows.items()}
    with_holes = measure(**dict(small.measured, **holes))
    for name, array in small.constants.items():
        assert np.array_equal(array, with_holes[name]), name


def test_moments_survive_their_array():
    moments = Moments(1.0, 2.0, 3.0, 0.5, -1.0, 4.0, 1.1, 100.0)
    assert Moments.from_array(moments.array()) == moments
    assert replace(moments, n=1.0) != moments
