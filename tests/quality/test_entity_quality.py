"""Entities on the Fraud-Detection-Handbook's transactions, with floors."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.fraud_ranks import Ranks
from detectors.reference import STANDARD, Reference
from tests.quality import adbench, handbook

pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(not adbench.DATA.is_dir(), reason=adbench.NO_DATA),
]


def test_without_labels_a_card_against_its_own_past_finds_more_fraud_than_neighbours_do() -> None:
    """5 nearest neighbours of the same week: AUROC .846, average precision .249, card precision@100 .230."""
    stream = handbook.everything()
    first_week = stream.between(handbook.FIRST_WEEK)
    _, test = handbook.split(stream)
    tested = stream[test]
    reference = Reference.build(stream.vectors[first_week], geometry=STANDARD)
    outlier = Ranks(reference.calibration_scores).surprise(reference.score(tested.vectors).distance)

    of_card = handbook.entity_surprise(stream, stream.card, reference, first_week)[test]
    scores = outlier + of_card[:, 0]  # of independent p-values it would be the product

    assert (len(tested.fraud), int(tested.fraud.sum())) == (58_264, 385)
    assert adbench.auroc(tested.fraud, scores) > 84.6  # measured 85.2
    assert handbook.average_precision(tested.fraud, scores) > 0.29  # measured .319
    assert handbook.card_precision(tested, scores) > 0.24  # measured .259
    genuine = of_card[~tested.fraud]
    assert np.all((genuine >= 2.0).mean(axis=0) <= 0.03)  # p <= .01, four weeks after the calibration
