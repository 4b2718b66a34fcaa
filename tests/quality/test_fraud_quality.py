"""Fraud scores on real texts and on the Fraud-Detection-Handbook's transactions, with floors."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.fraud import FraudScorer
from detectors.fraud_baseline import MAX_RECORDS, FraudBaseline
from detectors.outlier import evenly_spaced
from detectors.reference import STANDARD, TEXT, Reference
from tests.quality import adbench, handbook

pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(not adbench.DATA.is_dir(), reason=adbench.NO_DATA),
]

SEEDS = 3


def test_a_handful_of_labelled_spam_finds_the_rest() -> None:
    """SMS spam as fraud at 2 % of the traffic: average precision by number of labels."""
    with np.load(adbench.DATA / "embeddings_minilm" / "sms_spam.npz") as stored:
        vectors, spam = stored["X"].astype(np.float32), stored["label"] == "spam"
    found: dict[int, list[float]] = {0: [], 5: [], 20: []}
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        normal, strange = random.permutation(np.flatnonzero(~spam)), random.permutation(np.flatnonzero(spam))
        reference = Reference.build(vectors[normal[:2400]], geometry=TEXT)
        test = np.concatenate([normal[2400:4800], strange[200:249]])
        for labels, precisions in found.items():
            scorer = FraudScorer(reference, prevalence=0.02).fit(vectors[strange[:labels]], np.ones(labels))
            precisions.append(handbook.average_precision(spam[test], scorer.score(vectors[test])))
    mean = {labels: float(np.mean(precisions)) for labels, precisions in found.items()}

    assert mean[0] <= 0.2  # an outlier score is no fraud score here
    assert mean[5] >= 0.70  # measured .753 over ten seeds
    assert mean[20] >= 0.86  # measured .905


def test_transactions_are_ranked_better_than_by_any_published_model() -> None:
    """Published: AUROC .871 (logistic regression), average precision .658 (forest), card precision@100 .291."""
    train, test = handbook.week_split()
    assert (len(test.fraud), int(test.fraud.sum())) == (58_264, 385)  # as in the handbook
    share, genuine = float(train.fraud.mean()), train.vectors[~train.fraud]
    reference = Reference.build(genuine, geometry=STANDARD)
    kept = genuine[evenly_spaced(len(genuine), MAX_RECORDS)]
    baseline = FraudBaseline(kept, np.zeros((len(kept), 0), np.float32), ())

    scorer = FraudScorer(reference, prevalence=share, baseline=baseline).fit(train.vectors, train.fraud)
    scores = scorer.assess(test.vectors)

    assert adbench.auroc(test.fraud, scores.surprise) > 87.1  # measured 87.6
    assert handbook.average_precision(test.fraud, scores.surprise) > 0.658  # measured .674
    assert handbook.card_precision(test, scores.surprise) > 0.291  # measured .297
    # Scores are probabilities, they add up to the cases; p-values of genuine transactions are small as rarely as said.
    assert 0.7 <= scores.probability.sum() / test.fraud.sum() <= 1.4  # measured .86
    assert 0.005 <= (scores.p_value[~test.fraud] <= 0.01).mean() <= 0.015  # measured .008
