"""Outlier scores on real data, with floors: ADBench against kNN, an out-of-scope task on text, false positives."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.outlier import OutlierScorer
from detectors.reference import ANGULAR, STANDARD, TEXT, Geometry, Reference
from tests.quality import adbench

pytestmark = pytest.mark.quality
needs_data = pytest.mark.skipif(not adbench.DATA.is_dir(), reason=adbench.NO_DATA)

# Tables of all kinds up to 20,000 records, and one large one. All 23 are in tests/benchmarks/outlier_quality.py.
TABLES = [
    "12_fault",
    "19_landsat",
    "20_letter",
    "27_PageBlocks",
    "2_annthyroid",
    "34_smtp",
    "35_SpamBase",
    "38_thyroid",
    "41_Waveform",
    "44_Wilt",
    "47_yeast",
    "6_cardio",
    "7_Cardiotocography",
]


def mean_auroc(group: str, names: list[str], geometry: Geometry) -> tuple[float, float]:
    """Mean over sets and seeds of driftd and of the peer."""
    ours, peer = [], []
    for name in names:
        for data in adbench.splits(group, name):
            ours.append(
                adbench.auroc(
                    data.anomalous, OutlierScorer(Reference.build(data.train, geometry=geometry)).score(data.test)
                )
            )
            peer.append(adbench.auroc(data.anomalous, adbench.peer_scores(data)))
    return float(np.mean(ours)), float(np.mean(peer))


@needs_data
def test_image_vectors_are_ranked_4_5_points_better_than_by_knn() -> None:
    ours, peer = mean_auroc("mvtec_resnet18", adbench.names("mvtec_resnet18"), ANGULAR)

    assert ours - peer >= 5.5  # measured 6.26; promised 4.5
    assert ours >= 82.0  # measured 82.63


@needs_data
def test_tables_are_ranked_0_7_points_better_than_by_knn() -> None:
    ours, peer = mean_auroc("classical", TABLES, STANDARD)

    assert ours - peer >= 1.6  # measured 2.18 on these 13; 1.38 on all 23, of which .7 are promised


@needs_data
@pytest.mark.parametrize(("basis", "floor"), [("prototypes", 97.5), ("exemplars", 97.0)])
def test_out_of_scope_requests_stand_out(basis: str, floor: float) -> None:
    with np.load(adbench.DATA / "embeddings_minilm" / "clinc150_without_oos_test.npz") as stored:
        vectors, part = stored["X"].astype(np.float32), stored["split"]
    in_scope, out_of_scope = vectors[part == "test"], vectors[np.char.startswith(part, "oos")]
    # The file is sorted by intent, traffic is not; a reference takes its two halves from different times.
    baseline = np.random.default_rng(0).permutation(vectors[part == "train"])
    reference = Reference.build(baseline, geometry=TEXT, prototypes=1000)
    assert len(reference.prototypes) <= 1000

    scorer = OutlierScorer(reference, basis="prototypes" if basis == "prototypes" else "exemplars")
    scores = scorer.score(np.concatenate([in_scope, out_of_scope]))

    marks = np.repeat([False, True], [len(in_scope), len(out_of_scope)])
    assert adbench.auroc(marks, scores) >= floor


@needs_data
def test_p_values_of_small_baselines_keep_their_promise_on_normal_records() -> None:
    rates = {}
    for group, names, geometry in (
        ("mvtec_resnet18", adbench.names("mvtec_resnet18"), ANGULAR),
        ("classical", TABLES, STANDARD),
    ):
        below = []
        for name in names:
            data = adbench.split(group, name, 0)
            scorer = OutlierScorer(Reference.build(data.train, geometry=geometry))
            below.append((scorer.p_values(data.test[~data.anomalous]) <= 0.1).mean())
        rates[group] = float(np.mean(below))

    assert 0.05 < rates["mvtec_resnet18"] < 0.115
    assert 0.08 < rates["classical"] < 0.12


def test_one_in_a_thousand_normal_records_has_p_below_a_thousandth() -> None:
    """100,000 calibration scores hold the rate within 20 % of alpha = .001, over 1.2 million records."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(200, 32)).astype(np.float32)
    weights = random.dirichlet(np.full(200, 0.7))

    def records(n: int) -> np.ndarray:
        topic = random.choice(200, size=n, p=weights)
        return np.asarray(centres[topic] + random.normal(scale=0.6, size=(n, 32)).astype(np.float32))

    reference = Reference.build(records(200_000), geometry=ANGULAR)
    assert reference.n_calibration >= 99_000
    scorer = OutlierScorer(reference)
    assert scorer.basis == "prototypes"

    flagged = sum(int((scorer.p_values(records(100_000)) <= 0.001).sum()) for _ in range(12))

    assert 0.8 <= flagged / 1_200_000 / 0.001 <= 1.2
