"""Fraud scores: what labels change, what they never change, and the evidence behind a score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from detectors.errors import InvalidInput, InvalidReference
from detectors.fraud import MOST_TAKEN, FraudScorer
from detectors.fraud_baseline import FraudBaseline, Signal
from detectors.fraud_model import training_mass
from detectors.logistic import logistic
from detectors.outlier import OutlierScorer
from detectors.reference import ANGULAR, STANDARD, Geometry, Reference

Floats = npt.NDArray[np.float32]


def normal_traffic(n: int, seed: int, dimension: int = 8) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def fraud_ring(n: int, seed: int, dimension: int = 8) -> Floats:
    """Records of one scheme: three columns are shifted, none of them alone far enough to stand out."""
    vectors = normal_traffic(n, seed, dimension)
    vectors[:, :3] = 2.0 + 0.5 * vectors[:, :3]
    return vectors


@pytest.fixture(scope="module")
def table() -> Reference:
    return Reference.build(normal_traffic(1500, 0), geometry=STANDARD)


@pytest.fixture(scope="module")
def angular() -> Reference:
    return Reference.build(normal_traffic(1500, 0, 24), geometry=ANGULAR)


COLUMNS = (Signal("outlier", "surprise"), Signal("entity_self", "surprise"), Signal("amount", "number"))


def signals_of(n: int, seed: int, *, amount: float = 50.0) -> Floats:
    """Uniform p-values, and amounts that spread over powers of ten."""
    random = np.random.default_rng(seed)
    surprises = -np.log10(random.uniform(size=(n, 2)))
    return np.column_stack([surprises, amount * np.exp(random.normal(size=n))]).astype(np.float32)


@pytest.fixture(scope="module")
def baseline() -> FraudBaseline:
    return FraudBaseline(normal_traffic(4000, 7), signals_of(4000, 8), COLUMNS)


def detected(scorer: FraudScorer, *, dimension: int = 8) -> float:
    """Share of 200 new cases among the 200 highest scores of 4,000 records."""
    scores = scorer.score(np.concatenate([normal_traffic(3800, 50, dimension), fraud_ring(200, 51, dimension)]))
    return float((np.argsort(-scores, kind="stable")[:200] >= 3800).mean())


def test_without_labels_the_score_is_one_minus_the_outlier_p_value_and_says_so(table: Reference) -> None:
    scorer = FraudScorer(table)
    queries = normal_traffic(100, 1)

    assert scorer.basis == "outlier"
    expected = (1.0 - OutlierScorer(table).p_values(queries)).astype(np.float32)
    np.testing.assert_array_equal(scorer.score(queries), expected)


@pytest.mark.parametrize(
    ("cases", "basis"), [(0, "outlier"), (1, "contrast"), (4, "contrast"), (5, "contrast and model")]
)
def test_the_basis_follows_the_number_of_confirmed_cases(table: Reference, cases: int, basis: str) -> None:
    vectors = np.concatenate([fraud_ring(cases, 1), normal_traffic(3, 2)])

    scorer = FraudScorer(table).fit(vectors, [1] * cases + [0] * 3)

    assert scorer.basis == basis
    assert scorer.n_cases == cases


def test_every_few_labels_find_more_of_the_ring(table: Reference) -> None:
    shares = [detected(FraudScorer(table).fit(fraud_ring(n, 1), np.ones(n))) for n in (0, 1, 5, 40)]

    assert shares[0] < 0.6
    assert shares[0] < shares[1] < shares[2] < shares[3]
    assert shares[3] > 0.75


def test_the_ring_is_found_by_direction_too(angular: Reference) -> None:
    outlier_only, learned = FraudScorer(angular), FraudScorer(angular).fit(fraud_ring(20, 1, 24), np.ones(20))

    assert detected(learned, dimension=24) > detected(outlier_only, dimension=24) + 0.2


def test_cleared_records_lower_the_score_of_their_like(table: Reference) -> None:
    random = np.random.default_rng(3)
    cases, lookalikes = fraud_ring(8, 1), fraud_ring(60, 2)
    lookalikes[:, 7] += 4.0  # what tells the harmless ones from the ring
    queries = fraud_ring(50, 4)
    queries[:, 7] += 4.0

    suspicious = FraudScorer(table).fit(cases, np.ones(8)).score(queries)
    vectors = np.concatenate([cases, lookalikes])
    order = random.permutation(len(vectors))
    labels = np.repeat([1, 0], [8, 60])
    cleared = FraudScorer(table).fit(vectors[order], labels[order]).score(queries)

    assert np.median(cleared) < 0.2 * np.median(suspicious)


@pytest.mark.parametrize(("cleared", "cases", "of_cleared"), [(0, 10, 0.0), (2, 8, 0.1), (500, 8, 0.25)])
def test_cleared_records_weigh_as_cases_do_up_to_half_of_the_normal_class(
    cleared: int, cases: int, of_cleared: float
) -> None:
    mass = training_mass(np.ones(1000), np.ones(cleared), np.ones(cases))

    assert mass.sum() == pytest.approx(1.0)
    assert mass[1000 : 1000 + cleared].sum() == pytest.approx(of_cleared)
    assert mass[1000 + cleared :].sum() == pytest.approx(0.5)


def test_copies_of_a_case_count_once(angular: Reference, table: Reference) -> None:
    ring = fraud_ring(6, 1, 24)
    campaign = np.concatenate([ring, np.repeat(ring[:1], 50, axis=0) * np.float32(1.5), ring[1:2] + 1e-3])

    assert FraudScorer(angular).fit(campaign, np.ones(len(campaign))).n_cases == 6

    rows = fraud_ring(6, 1)
    copies = np.concatenate([rows, rows, rows * np.float32(1.5)])  # in a table a multiple is another record
    assert FraudScorer(table).fit(copies, np.ones(len(copies))).n_cases == 12


def test_copies_do_not_change_scores(angular: Reference) -> None:
    ring, queries = fraud_ring(12, 1, 24), normal_traffic(50, 2, 24)

    once = FraudScorer(angular).fit(ring, np.ones(12)).score(queries)
    often = FraudScorer(angular).fit(np.concatenate([ring, ring[:3], ring[:3]]), np.ones(18)).score(queries)

    np.testing.assert_array_equal(once, often)


@pytest.mark.parametrize("cases", [2, 12])
@pytest.mark.parametrize("geometry", [ANGULAR, STANDARD, Geometry(unit=False, whitening=0.5)])
def test_scores_do_not_depend_on_how_the_batch_is_cut(geometry: Geometry, cases: int) -> None:
    scorer = FraudScorer(Reference.build(normal_traffic(800, 0), geometry=geometry))
    scorer.fit(fraud_ring(cases, 1), np.ones(cases))
    queries = normal_traffic(201, 2)

    whole = scorer.score(queries)

    for size in (1, 3, 64, 150):
        parts = [scorer.score(queries[start : start + size]) for start in range(0, len(queries), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_same_labels_give_the_same_scores_whatever_was_fitted_before(table: Reference) -> None:
    queries = normal_traffic(50, 2)
    fresh = FraudScorer(table).fit(fraud_ring(9, 1), np.ones(9)).score(queries)

    used = FraudScorer(table).fit(fraud_ring(30, 7), np.ones(30)).fit(fraud_ring(9, 1), np.ones(9)).score(queries)

    np.testing.assert_array_equal(fresh, used)


def test_withdrawn_labels_lead_back_to_the_outlier_score(table: Reference) -> None:
    scorer = FraudScorer(table).fit(fraud_ring(9, 1), np.ones(9))

    scorer.fit(np.empty((0, 8), np.float32), [])

    assert scorer.basis == "outlier"
    assert scorer.n_cases == 0


@pytest.mark.parametrize("cases", [1, 3, 20])
def test_prevalence_moves_the_scale_and_never_the_ranking(table: Reference, cases: int) -> None:
    queries = np.concatenate([normal_traffic(300, 2), fraud_ring(50, 3)])
    rare = FraudScorer(table, prevalence=0.001).fit(fraud_ring(cases, 1), np.ones(cases)).score(queries)
    usual = FraudScorer(table, prevalence=0.1).fit(fraud_ring(cases, 1), np.ones(cases)).score(queries)

    assert ((rare >= 0) & (rare < usual) & (usual <= 1)).all()
    ranked = np.argsort(rare, kind="stable")
    assert (np.diff(usual[ranked]) >= 0).all()


def test_with_many_labels_the_scores_add_up_to_the_number_of_cases(table: Reference) -> None:
    scorer = FraudScorer(table, prevalence=0.05).fit(fraud_ring(200, 1), np.ones(200))

    expected = scorer.score(np.concatenate([normal_traffic(3800, 2), fraud_ring(200, 3)])).sum()

    assert 140 < expected < 280


def test_how_far_a_column_lies_beyond_the_references_clip_still_counts(table: Reference) -> None:
    cases = normal_traffic(10, 1)
    cases[:, 0] = 30.0
    near, far = normal_traffic(1, 2), normal_traffic(1, 2)
    near[:, 0], far[:, 0] = 30.0, 9.0
    np.testing.assert_array_equal(table.prepare(near), table.prepare(far))

    scorer = FraudScorer(table).fit(cases, np.ones(10))

    assert scorer.score(near)[0] > 2 * scorer.score(far)[0]


def test_absurd_values_are_scored_without_overflow(table: Reference) -> None:
    scorer = FraudScorer(table).fit(fraud_ring(6, 1), np.ones(6))

    assert np.isfinite(scorer.score(np.full((1, 8), 3e37, np.float32))).all()


def test_the_evidence_names_rows_of_the_labelled_vectors(table: Reference) -> None:
    ring = fraud_ring(6, 1)
    vectors = np.concatenate([normal_traffic(4, 2), ring[:1], ring])  # row 4 and row 5 are the same case
    scorer = FraudScorer(table).fit(vectors, [0] * 4 + [1] * 7)

    evidence = scorer.nearest_cases(ring[[0, 3]], 2)

    assert evidence.rows.shape == evidence.distances.shape == (2, 2)
    assert evidence.rows[:, 0].tolist() == [4, 8]
    np.testing.assert_array_equal(evidence.distances[:, 0], 0)
    assert (evidence.distances[:, 1] > 0).all()
    assert (evidence.distance_to_normal > 0).all()
    assert scorer.nearest_cases(ring[:1], 99).rows.shape == (1, 6)


def test_evidence_before_any_label_is_an_error_that_says_what_to_do(table: Reference) -> None:
    with pytest.raises(InvalidInput, match=r"no confirmed fraud.*fit\(\)"):
        FraudScorer(table).nearest_cases(normal_traffic(1, 0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 0, 2], r"labels: expected 1 \(fraud\) or 0"), ([1, 0], "one for each of 3 vectors"), ([1, 0, np.nan], "nan")],
)
def test_unusable_labels_are_refused_and_the_old_ones_stay(table: Reference, labels: list[float], message: str) -> None:
    scorer = FraudScorer(table).fit(fraud_ring(6, 1), np.ones(6))

    with pytest.raises(InvalidInput, match=message):
        scorer.fit(normal_traffic(3, 0), labels)

    assert scorer.n_cases == 6


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -1.0, 50.0])
def test_a_prevalence_that_is_no_share_is_refused(table: Reference, prevalence: float) -> None:
    with pytest.raises(InvalidInput, match="prevalence"):
        FraudScorer(table, prevalence=prevalence)


def test_vectors_are_not_changed(table: Reference) -> None:
    vectors, queries = fraud_ring(9, 1), normal_traffic(20, 2)
    before = vectors.copy(), queries.copy()

    FraudScorer(table).fit(vectors, np.ones(9)).score(queries)

    np.testing.assert_array_equal(vectors, before[0])
    np.testing.assert_array_equal(queries, before[1])


def test_the_logistic_fit_is_the_one_that_scikit_learn_finds() -> None:
    from sklearn.linear_model import LogisticRegression

    features = normal_traffic(400, 0).astype(np.float64)
    targets = (features[:, 0] + 0.5 * np.random.default_rng(1).normal(size=400) > 0.8).astype(np.float64)
    mass = np.where(targets == 1, 0.5 / targets.sum(), 0.5 / (1 - targets).sum())

    found = logistic(features, targets, mass, ridge=1e-3)

    peer = LogisticRegression(C=1e3, tol=1e-10, max_iter=1000).fit(features, targets, sample_weight=mass)
    np.testing.assert_allclose(found, [*peer.coef_[0], peer.intercept_[0]], atol=2e-3)


def test_a_saved_baseline_gives_the_same_scores(table: Reference, baseline: FraudBaseline, tmp_path: Path) -> None:
    baseline.save(tmp_path)
    loaded = FraudBaseline.load(tmp_path)
    cases, queries = (fraud_ring(9, 1), signals_of(9, 2, amount=5e4)), (normal_traffic(50, 3), signals_of(50, 4))

    before, after = (
        FraudScorer(table, baseline=known)
        .fit(cases[0], np.ones(9), signals=cases[1])
        .assess(queries[0], signals=queries[1])
        for known in (baseline, loaded)
    )

    assert loaded.columns == COLUMNS
    np.testing.assert_array_equal(before.probability, after.probability)
    np.testing.assert_array_equal(before.p_value, after.p_value)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_damaged_baseline_is_refused(baseline: FraudBaseline, tmp_path: Path, keep: float) -> None:
    baseline.save(tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])

    with pytest.raises(InvalidReference, match="damaged"):
        FraudBaseline.load(tmp_path)


def test_a_baseline_with_a_changed_byte_is_refused(baseline: FraudBaseline, tmp_path: Path) -> None:
    baseline.save(tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    with pytest.raises(InvalidReference, match="damaged"):
        FraudBaseline.load(tmp_path)


def test_a_missing_baseline_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidReference, match=r"does not exist\. Build the reference again"):
        FraudBaseline.load(tmp_path)


def test_without_labels_surprises_are_combined_and_ranked(table: Reference, baseline: FraudBaseline) -> None:
    scorer = FraudScorer(table, baseline=baseline)
    signals = signals_of(3, 1)
    signals[:, :2] = [[0.1, 0.1], [2.5, 2.5], [9.0, 9.0]]

    found = scorer.assess(normal_traffic(3, 1), signals=signals)

    assert scorer.basis == "surprises"
    assert found.p_value[0] > 0.5
    assert found.p_value[1] < 0.001
    assert found.surprise[2] > found.surprise[1] + 2


def test_a_number_of_the_record_tells_fraud_where_the_vector_does_not(
    table: Reference, baseline: FraudBaseline
) -> None:
    cases = normal_traffic(30, 1), signals_of(30, 2, amount=5e4)
    scorer = FraudScorer(table, baseline=baseline).fit(cases[0], np.ones(30), signals=cases[1])

    suspicious = scorer.score(normal_traffic(200, 3), signals=signals_of(200, 4, amount=5e4))
    usual = scorer.score(normal_traffic(200, 3), signals=signals_of(200, 4))

    assert np.median(suspicious) > 10 * np.median(usual)


def test_the_contributions_add_up_to_the_log_odds(table: Reference, baseline: FraudBaseline) -> None:
    vectors = np.concatenate([fraud_ring(9, 1), fraud_ring(4, 5)])
    scorer = FraudScorer(table, baseline=baseline)
    scorer.fit(vectors, [1] * 9 + [0] * 4, signals=signals_of(13, 2, amount=5e4))
    queries, signals = fraud_ring(40, 3), signals_of(40, 4)

    found = scorer.contributions(queries, signals=signals)

    assert found.names == ("contrast", "model", "outlier", "entity_self", "amount", "cleared")
    probability = scorer.score(queries, signals=signals).astype(np.float64)
    np.testing.assert_allclose(
        found.offset + found.values.sum(axis=1), np.log(probability / (1 - probability)), atol=1e-3
    )
    assert (found.values[:, -1] <= 0).all()
    assert set(found.cleared_rows[found.values[:, -1] < 0].tolist()) <= {9, 10, 11, 12}
    assert (found.cleared_rows[found.values[:, -1] == 0] == -1).all()


@pytest.mark.parametrize("cases", [0, 1, 3, 40])
def test_normal_records_are_candidates_as_rarely_as_alpha_says(
    table: Reference, baseline: FraudBaseline, cases: int
) -> None:
    scorer = FraudScorer(table, baseline=baseline)
    scorer.fit(fraud_ring(cases, 1), np.ones(cases), signals=signals_of(cases, 2, amount=500.0))
    uniforms = np.random.default_rng(5).uniform(size=20_000)

    found = scorer.assess(normal_traffic(20_000, 3), signals=signals_of(20_000, 4), uniforms=uniforms)

    # 2,000 held-out records: the rate of one scorer at .01 has a standard deviation of .0022
    assert 0.004 < (found.p_value <= 0.01).mean() < 0.018
    assert 0.09 < (found.p_value <= 0.1).mean() < 0.13 or cases == 0
    assert (np.diff(found.surprise[np.argsort(found.probability, kind="stable")]) >= 0).all() or cases == 0


def test_signals_of_another_shape_are_refused(table: Reference, baseline: FraudBaseline) -> None:
    with pytest.raises(InvalidInput, match=r"signals: expected shape \(2, 3\), got \(2, 1\)"):
        FraudScorer(table, baseline=baseline).score(normal_traffic(2, 1), signals=np.zeros((2, 1), np.float32))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan]])
def test_unusable_weights_are_refused(table: Reference, weights: list[float]) -> None:
    with pytest.raises(InvalidInput, match="weights: expected a number above 0"):
        FraudScorer(table).fit(fraud_ring(2, 1), [1, 1], weights=weights)


def test_a_case_of_little_weight_counts_less(table: Reference) -> None:
    cases = fraud_ring(3, 1)
    sure, unsure = (FraudScorer(table).fit(cases, np.ones(3), weights=[1.0, 1.0, last]) for last in (1.0, 0.1))

    assert unsure.score(cases[2:])[0] < sure.score(cases[2:])[0]


@pytest.mark.parametrize("cases", [1, 12, 250])
@pytest.mark.parametrize("dimension", [2, 8, 80])
def test_what_is_said_of_a_record_does_not_depend_on_the_others(cases: int, dimension: int) -> None:
    reference = Reference.build(normal_traffic(800, 0, dimension), geometry=Geometry(unit=dimension > 2, whitening=0.5))
    baseline = FraudBaseline(normal_traffic(2000, 7, dimension), signals_of(2000, 8), COLUMNS)
    vectors = np.concatenate([fraud_ring(cases, 1, dimension), normal_traffic(30, 5, dimension)])
    labels = np.repeat([1, 0], [cases, 30])
    scorer = FraudScorer(reference, baseline=baseline).fit(vectors, labels, signals=signals_of(cases + 30, 2))
    queries, signals = normal_traffic(150, 3, dimension), signals_of(150, 4)
    uniforms = np.random.default_rng(5).uniform(size=150)

    whole = scorer.assess(queries, signals=signals, uniforms=uniforms)
    known = scorer.assess(queries, signals=signals, uniforms=uniforms, scored=reference.score(queries))
    parts = [
        scorer.assess(queries[rows], signals=signals[rows], uniforms=uniforms[rows])
        for rows in np.split(np.arange(150), [1, 2, 70])
    ]

    for name in ("probability", "p_value", "surprise"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
        np.testing.assert_array_equal(getattr(known, name), getattr(whole, name))


@pytest.mark.parametrize("dimension", [8, 80])
@pytest.mark.parametrize("marks", [50, 1000])
def test_wrong_marks_beside_a_case_cannot_hide_a_copy_of_it(dimension: int, marks: int) -> None:
    reference = Reference.build(normal_traffic(1500, 0, dimension), geometry=STANDARD)
    cases = fraud_ring(12, 1, dimension)
    cases[:, :3] += 1.0
    beside = cases[:1] + np.float32(0.01) * normal_traffic(marks, 2, dimension)
    labels = np.repeat([1, 0], [12, marks])

    before = FraudScorer(reference).fit(cases, np.ones(12)).assess(cases)
    after = FraudScorer(reference).fit(np.concatenate([cases, beside]), labels).assess(cases)

    assert before.p_value[0] < 0.01
    assert (after.p_value <= before.p_value).all()
    np.testing.assert_array_equal(after.probability, before.probability)


def test_marks_take_at_most_what_is_stated(table: Reference) -> None:
    cases, marks = fraud_ring(30, 1), fraud_ring(500, 2)
    vectors, labels = np.concatenate([cases, marks]), np.repeat([1, 0], [30, 500])
    queries = fraud_ring(200, 3)

    without = FraudScorer(table).fit(cases, np.ones(30)).score(queries).astype(np.float64)
    scorer = FraudScorer(table).fit(vectors, labels)
    found = scorer.score(queries).astype(np.float64)

    fall = np.log(without / (1 - without)) - np.log(found / (1 - found))
    assert (fall > -1e-3).all()
    assert 0.5 < fall.max() <= MOST_TAKEN + 1e-3
    np.testing.assert_allclose(-scorer.contributions(queries).values[:, -1], fall, atol=1e-2)


def test_trees_join_from_many_cases_on_and_find_what_lines_do_not(table: Reference) -> None:
    random = np.random.default_rng(1)
    cases, queries = normal_traffic(300, 1), normal_traffic(300, 2)
    for vectors in (cases, queries):  # on both sides of normal, in one column: no line tells them
        vectors[:, 0] = random.choice([-3.0, 3.0], size=len(vectors))
    few, many = (FraudScorer(table).fit(cases[:n], np.ones(n)) for n in (199, 300))

    usual = normal_traffic(2000, 4)
    assert "trees" in many.contributions(queries[:1]).names
    assert "trees" not in few.contributions(queries[:1]).names
    assert np.median(many.score(queries)) > 20 * np.median(many.score(usual))


@pytest.mark.parametrize("dimension", [2, 8, 80])
def test_odd_labels_are_learned_from_without_harm(dimension: int) -> None:
    reference = Reference.build(normal_traffic(500, 0, dimension), geometry=STANDARD)
    normal = normal_traffic(20, 1, dimension)
    zeros = np.zeros((3, dimension), np.float32)
    for vectors, labels in (
        (normal, np.ones(20)),  # fraud that looks like normal records
        (reference.exemplars[:20].copy(), np.ones(20)),
        (normal, np.zeros(20)),
        (zeros, np.ones(3)),
        (np.concatenate([normal, normal]), np.repeat([1, 0], 20)),  # each both fraud and cleared
    ):
        found = FraudScorer(reference).fit(vectors, labels).assess(normal_traffic(100, 2, dimension))
        assert np.isfinite(found.probability).all()
        assert ((found.p_value > 0) & (found.p_value <= 1)).all()
        assert np.isfinite(found.surprise).all()


def test_the_interval_holds_the_probability_and_narrows_with_labels(table: Reference) -> None:
    queries = fraud_ring(50, 3)
    widths = []
    for cases in (5, 20, 150):
        scorer = FraudScorer(table).fit(fraud_ring(cases, 1), np.ones(cases))
        low, high = scorer.interval(queries).T
        score = scorer.score(queries)
        assert ((low <= score + 1e-6) & (score <= high + 1e-6)).all()
        low, high = (np.clip(bound, 1e-12, 1 - 1e-12) for bound in (low, high))  # of one case alone it may be all
        widths.append(float(np.median(np.log(high / (1 - high)) - np.log(low / (1 - low)))))
    assert widths[0] > widths[1] > widths[2]
