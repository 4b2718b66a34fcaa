"""Outlier scores: what they rank highest, what their p-values promise, and that batches change nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detectors import conformal, outlier
from detectors.errors import InvalidInput
from detectors.index import NearestIndex
from detectors.outlier import OutlierScorer
from detectors.reference import ANGULAR, STANDARD, Geometry, Reference

Floats = npt.NDArray[np.float32]


def normal_vectors(n: int, dimension: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def brute_force_scores(baseline: Floats, queries: Floats, *, same: bool = False) -> npt.NDArray[np.float64]:
    """The documented formula in float64 with full distance matrices; ``same``: each query is the baseline's record."""

    def distances(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
        return np.sqrt(((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2))

    between = distances(baseline, baseline)
    np.fill_diagonal(between, np.inf)
    median = np.median(np.sort(between, axis=1)[:, :5].mean(axis=1))
    scores = []
    for row, query in enumerate(queries):
        allowed = np.arange(len(baseline)) != row if same else np.ones(len(baseline), bool)
        to_query = distances(query[None], baseline[allowed])[0]
        near = np.argsort(to_query)[:5]
        radii = np.sort(between[np.ix_(allowed, allowed)], axis=1)[:, :5].mean(axis=1)
        scores.append(to_query[near].mean() * np.sqrt(2 * median / (radii[near].mean() + median)))
    return np.array(scores)


def test_exemplar_scores_follow_the_documented_formula() -> None:
    reference = Reference.build(normal_vectors(120, 4, 0), geometry=STANDARD)
    queries = normal_vectors(30, 4, 1) * 2
    baseline = np.concatenate([reference.exemplars, reference.calibration_vectors])

    scores = OutlierScorer(reference).score(queries)

    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, brute_force_scores(baseline, reference.prepare(queries)), atol=2e-5)


def test_calibration_scores_leave_each_record_out_of_its_neighbours_radii_too() -> None:
    reference = Reference.build(normal_vectors(120, 4, 0), geometry=STANDARD)
    baseline = np.concatenate([reference.exemplars, reference.calibration_vectors])

    expected = np.sort(brute_force_scores(baseline, baseline, same=True))

    np.testing.assert_allclose(OutlierScorer(reference).calibration_scores, expected, atol=2e-5)


def test_the_same_gap_is_stranger_in_a_dense_region() -> None:
    random = np.random.default_rng(0)
    dense = random.normal(0.0, 0.1, size=(400, 2))
    sparse = random.normal(0.0, 2.0, size=(400, 2)) + 20.0
    reference = Reference.build(random.permutation(np.concatenate([dense, sparse])), geometry=STANDARD)

    beside_dense, beside_sparse = OutlierScorer(reference).score([[1.0, 0.0], [20.0 + 6.0, 20.0]])

    assert beside_dense > 0
    gap = reference.prepare([[1.0, 0.0], [26.0, 20.0]])
    index = NearestIndex(np.concatenate([reference.exemplars, reference.calibration_vectors]))
    plain = index.search(gap, 5)[0].mean(axis=1)
    assert beside_dense / plain[0] > 1.3 * beside_sparse / plain[1]


@pytest.mark.parametrize("geometry", [ANGULAR, STANDARD])
def test_scores_do_not_depend_on_how_the_batch_is_cut(geometry: Geometry) -> None:
    scorer = OutlierScorer(Reference.build(normal_vectors(3000, 24, 0), geometry=geometry))
    queries = normal_vectors(257, 24, 1)

    whole = scorer.assess(queries)

    for size in (1, 3, 64, 200):
        parts = [scorer.assess(queries[start : start + size]) for start in range(0, len(queries), size)]
        np.testing.assert_array_equal(np.concatenate([part.score for part in parts]), whole.score)
        np.testing.assert_array_equal(np.concatenate([part.p_value for part in parts]), whole.p_value)


@pytest.mark.parametrize(
    ("geometry", "n", "dimension"),
    [(STANDARD, 400, 6), (STANDARD, 60, 20), (ANGULAR, 400, 8), (ANGULAR, 100, 60), (Geometry(False, 0.5), 150, 40)],
)
def test_few_normal_records_get_a_small_p_value(geometry: Geometry, n: int, dimension: int) -> None:
    rates = []
    for seed in range(8):
        scorer = OutlierScorer(Reference.build(normal_vectors(n, dimension, seed), geometry=geometry))
        rates.append((scorer.p_values(normal_vectors(2000, dimension, 1000 + seed)) <= 0.1).mean())

    # Cross-fitting errs on the safe side: a fold knows a tenth less than the scorer.
    assert 0.015 < np.mean(rates) < 0.125


def test_without_cross_fitting_p_values_of_whitened_small_baselines_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = Reference.build(normal_vectors(100, 60, 0), geometry=ANGULAR)
    fresh = normal_vectors(2000, 60, 1)
    honest = (OutlierScorer(reference).p_values(fresh) <= 0.1).mean()
    monkeypatch.setattr(outlier, "CROSS_FIT_BELOW", 0)

    naive = (OutlierScorer(reference).p_values(fresh) <= 0.1).mean()

    assert naive > 0.3 > 0.125 > honest


def test_strange_records_get_the_smallest_p_value_there_is() -> None:
    scorer = OutlierScorer(Reference.build(normal_vectors(300, 5, 0), geometry=STANDARD))

    assert scorer.p_values(np.full((1, 5), 7.0, np.float32)).tolist() == [1 / 301]


def test_copies_in_the_baseline_leave_scores_finite_and_ordered() -> None:
    random = np.random.default_rng(0)
    copies = np.repeat(random.normal(size=(10, 3)), 60, axis=0)  # more copies than neighbours are searched
    baseline = np.concatenate([copies, random.normal(size=(100, 3))])
    scorer = OutlierScorer(Reference.build(random.permutation(baseline), geometry=STANDARD))

    scores = scorer.score(np.concatenate([copies[:1], copies[:1] + 0.5, copies[:1] + 5.0]))

    assert scores[0] == 0.0 < scores[1] < scores[2] < np.inf
    assert scorer.p_values(copies[:1]).tolist() == [1.0]


def test_ties_are_broken_by_the_uniforms_that_are_given() -> None:
    random = np.random.default_rng(0)
    baseline = random.integers(0, 3, size=(2000, 2)).astype(np.float32)
    fresh = random.integers(0, 3, size=(4000, 2)).astype(np.float32)
    scorer = OutlierScorer(Reference.build(baseline, geometry=STANDARD))
    uniforms = conformal.position_uniforms("topic", 0, np.arange(4000))

    assert (scorer.p_values(fresh) == 1.0).all()
    assert abs((scorer.p_values(fresh, uniforms=uniforms) <= 0.25).mean() - 0.25) < 0.03


def test_large_baselines_are_scored_by_prototypes_as_the_reference_does() -> None:
    reference = Reference.build(normal_vectors(outlier.MAX_EXEMPLARS + 1, 3, 0), geometry=STANDARD, prototypes=50)
    queries = normal_vectors(100, 3, 1)
    scorer = OutlierScorer(reference)

    scored = reference.score(queries)

    assert scorer.basis == "prototypes"
    np.testing.assert_array_equal(scorer.score(queries), scored.distance)
    np.testing.assert_array_equal(scorer.p_values(queries), scored.p_value)


def test_prototypes_can_be_asked_for_on_a_small_baseline() -> None:
    reference = Reference.build(normal_vectors(500, 3, 0), geometry=STANDARD)
    assert OutlierScorer(reference).basis == "exemplars"

    scorer = OutlierScorer(reference, basis="prototypes")

    np.testing.assert_array_equal(
        scorer.score(normal_vectors(9, 3, 1)), reference.score(normal_vectors(9, 3, 1)).distance
    )


def test_exemplars_are_refused_where_the_reference_did_not_keep_its_baseline() -> None:
    reference = Reference.build(normal_vectors(500, 3, 0), geometry=STANDARD, exemplars=100)

    assert OutlierScorer(reference).basis == "prototypes"
    with pytest.raises(InvalidInput, match=r"whole baseline.*basis="):
        OutlierScorer(reference, basis="exemplars")


def test_the_smallest_baseline_can_be_scored() -> None:
    scorer = OutlierScorer(Reference.build(normal_vectors(20, 12, 0), geometry=ANGULAR))

    assessed = scorer.assess(normal_vectors(5, 12, 1))

    assert np.isfinite(assessed.score).all()
    assert ((assessed.p_value > 0) & (assessed.p_value <= 1)).all()


def test_queries_are_not_changed_and_wrong_dimensions_are_named() -> None:
    scorer = OutlierScorer(Reference.build(normal_vectors(50, 4, 0), geometry=STANDARD))
    queries = normal_vectors(10, 4, 1)
    before = queries.copy()

    scorer.assess(queries)

    np.testing.assert_array_equal(queries, before)
    with pytest.raises(InvalidInput, match="dimension"):
        scorer.score(normal_vectors(1, 5, 0))


def test_leave_one_out_never_returns_the_record_itself_unless_copies_hide_it() -> None:
    vectors = normal_vectors(50, 3, 0)
    index = NearestIndex(vectors)

    distances, found = outlier.leave_one_out(index, np.arange(50), 4)

    assert (found != np.arange(50)[:, None]).all()
    assert (distances > 0).all()
    np.testing.assert_array_equal(found, index.search(vectors, 5)[1][:, 1:])


def test_evenly_spaced_rows_span_the_whole_and_never_repeat() -> None:
    assert outlier.evenly_spaced(10, 20).tolist() == list(range(10))
    chosen = outlier.evenly_spaced(1000, 7)
    assert len(set(chosen.tolist())) == 7
    assert chosen[0] == 0 and chosen[-1] >= 800
    assert outlier.evenly_spaced(0, 5).tolist() == []
