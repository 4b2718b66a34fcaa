"""The classic tests of two samples: against known values, on samples of one law, and on changed ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.linalg import sqrtm

from detectors.errors import InvalidInput
from detectors.two_sample import (
    MAX_COMPONENTS,
    TestResult,
    area_under_curve,
    component_ks,
    component_psi,
    domain_classifier,
    frechet,
    histogram_psi,
    holm,
    mmd,
)

Sample = npt.NDArray[np.float64]
Test = Callable[[Sample, Sample, int], TestResult]

TESTS: dict[str, Test] = {
    "mmd": lambda x, y, seed: mmd(x, y, seed=seed, permutations=99),
    "domain_classifier": lambda x, y, seed: domain_classifier(x, y, seed=seed, permutations=39),
    "frechet": lambda x, y, seed: frechet(x, y, seed=seed, permutations=99),
    "ks": lambda x, y, seed: component_ks(x, y),
    "psi": lambda x, y, seed: component_psi(x, y),
}


def draw(n: int, seed: int, *, dimension: int = 8, shift: float = 0.0, spread: float = 1.0) -> Sample:
    random = np.random.default_rng(seed)
    rows = spread * random.standard_normal((n, dimension)) * np.linspace(1.5, 0.5, dimension)
    rows[:, 0] += shift
    return rows


@pytest.mark.parametrize("name", TESTS)
def test_samples_of_one_law_have_p_values_that_are_not_too_small(name: str) -> None:
    """120 null runs: P(more than 14 at 0.05) is below 0.003 for a valid test; other seeds than those of development."""
    p = np.array([TESTS[name](draw(60, 7_000 + i), draw(40, 8_000 + i), i).p_value for i in range(120)])
    assert np.count_nonzero(p <= 0.05) <= 14
    assert np.count_nonzero(p <= 0.5) <= 80
    assert p.max() > 0.5


@pytest.mark.parametrize("name", TESTS)
def test_a_moved_sample_is_told_from_the_old_one(name: str) -> None:
    p = [TESTS[name](draw(150, 2 * i), draw(80, 2 * i + 1, shift=2.0), i).p_value for i in range(3)]
    assert max(p) <= 0.03


@pytest.mark.parametrize("name", ["mmd", "frechet", "ks", "psi"])
def test_a_wider_sample_with_the_same_mean_is_told_too(name: str) -> None:
    p = [TESTS[name](draw(200, 2 * i), draw(150, 2 * i + 1, spread=2.0), i).p_value for i in range(3)]
    assert max(p) <= 0.02


def test_mmd_is_the_mean_over_pairs() -> None:
    x, y = draw(25, 1, dimension=3), draw(30, 2, dimension=3, shift=1.0)
    pooled = np.concatenate([x, y])
    distances = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=2)
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(55, 1)]))
    first = kernel[:25, :25][~np.eye(25, dtype=bool)].mean()
    second = kernel[25:, 25:][~np.eye(30, dtype=bool)].mean()
    expected = first + second - 2.0 * kernel[:25, 25:].mean()
    assert mmd(x, y, seed=0, permutations=9).statistic == pytest.approx(expected)


def test_frechet_is_the_distance_of_two_normal_laws() -> None:
    x, y = draw(80, 3, dimension=4), draw(90, 4, dimension=4, shift=1.0, spread=1.5)
    one, other = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2.0 * np.real(sqrtm(one @ other)))
    assert frechet(x, y, seed=0, permutations=9).statistic == pytest.approx(expected)


def test_the_area_and_its_variance_are_those_of_delong() -> None:
    random = np.random.default_rng(5)
    low, high = random.normal(0, 1, 40).round(1), random.normal(1, 1, 30).round(1)
    area, variance = area_under_curve(low, high)
    expected = stats.mannwhitneyu(high, low).statistic / (40 * 30)
    pairs = (high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])
    assert area == pytest.approx(expected)
    assert variance == pytest.approx(pairs.mean(1).var(ddof=1) / 30 + pairs.mean(0).var(ddof=1) / 40)


def test_the_interval_of_the_area_covers_the_area_of_large_samples() -> None:
    truth = domain_classifier(draw(1_000, 11), draw(1_000, 12, shift=1.0), seed=0, permutations=1).statistic
    inside = 0
    for i in range(40):
        found = domain_classifier(draw(200, 100 + i), draw(150, 200 + i, shift=1.0), seed=i, permutations=1)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert inside >= 32


def test_ks_is_that_of_scipy_on_the_clearest_component_corrected_for_their_number() -> None:
    x, y = np.zeros((50, 2)), np.zeros((40, 2))
    x[:, 0], y[:, 0] = np.linspace(-5, 5, 50), np.linspace(-3, 7, 40)
    x[:, 1], y[:, 1] = draw(50, 6)[:, 0] / 9, draw(40, 7)[:, 0] / 9
    result = component_ks(x, y)
    alone = stats.ks_2samp(x[:, 0], y[:, 0])
    assert result.component == 0
    assert result.statistic == pytest.approx(alone.statistic, abs=0.05)
    assert result.p_value == pytest.approx(2 * alone.pvalue, rel=0.7)


def test_ks_counts_the_components_that_changed() -> None:
    x, y = draw(300, 8), draw(300, 9)
    y[:, [0, 1, 2]] *= 3.0
    assert component_ks(x, y).changed in (3, 4)
    assert component_ks(x, draw(300, 10)).changed == 0


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_psi_is_the_sum_over_bins_and_its_p_value_is_uniform_where_nothing_changed() -> None:
    old, new = np.array([50_000, 30_000, 20_000]), np.array([40_000, 30_000, 30_000])
    p, q = old / old.sum(), new / new.sum()
    assert histogram_psi(old, new).statistic == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-3)
    random = np.random.default_rng(13)
    shares = np.full(10, 0.1)
    p_values = [
        histogram_psi(random.multinomial(2_000, shares), random.multinomial(800, shares)).p_value for _ in range(400)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


@pytest.mark.parametrize("name", TESTS)
def test_the_same_seed_gives_the_same_answer(name: str) -> None:
    x, y = draw(50, 21), draw(40, 22)
    before = x.copy(), y.copy()
    assert TESTS[name](x, y, 3) == TESTS[name](x, y, 3)
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


@pytest.mark.parametrize("name", TESTS)
def test_more_dimensions_than_records_and_constant_columns_are_no_trouble(name: str) -> None:
    x, y = draw(40, 23, dimension=100), draw(30, 24, dimension=100)
    x[:, 50:], y[:, 50:] = 1.0, 1.0
    result = TESTS[name](x, y, 0)
    assert 0.0 < result.p_value <= 1.0
    assert np.isfinite(result.statistic)
    assert result.component is None or result.component < MAX_COMPONENTS


@pytest.mark.parametrize("name", TESTS)
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="19 and 50 records are too small"):
        TESTS[name](draw(19, 1), draw(50, 2), 0)
    with pytest.raises(InvalidInput, match="two samples"):
        TESTS[name](draw(50, 1), draw(50, 2, dimension=9), 0)
    broken = draw(50, 2)
    broken[3, 1] = np.nan
    with pytest.raises(InvalidInput, match="not finite"):
        TESTS[name](draw(50, 1), broken, 0)


def test_histograms_without_records_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be compared"):
        histogram_psi(np.zeros(5), np.ones(5))
