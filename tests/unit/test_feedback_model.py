"""The second opinion on fraud: what it learns, when it says that fraud has changed, and when it does not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detectors.errors import InvalidInput
from detectors.feedback_model import MOST_ANSWERS, STEP, WARM_UP, FeedbackModel, counted_after

Doubles = npt.NDArray[np.float64]


def answers(
    n: int, seed: int, *, weights: tuple[float, ...] = (2.0, -1.0, 1.0), shift: float = 0.0
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Answers that follow the features; ``shift`` moves the features towards fraud, and changes nothing else."""
    random = np.random.default_rng(seed)
    towards = np.array(weights) / np.linalg.norm(weights)
    features = random.normal(size=(n, len(weights))) + shift * towards
    odds = features @ np.array(weights) - 1.0
    return features, random.random(n) < 1.0 / (1.0 + np.exp(-odds))


def test_it_learns_which_records_people_call_fraud() -> None:
    model = FeedbackModel(3)
    model.push(*answers(1000, 1))
    features, fraud = answers(500, 2)

    said = model.probability(features)

    assert said[fraud].mean() > said[~fraud].mean() + 0.3
    assert abs(said.mean() - fraud.mean()) < 0.06


def test_it_has_no_opinion_before_enough_answers_of_both_kinds() -> None:
    model = FeedbackModel(3)
    assert not model.has_an_opinion
    features, fraud = answers(WARM_UP, 1)
    model.push(features[:-1], fraud[:-1])
    assert not model.has_an_opinion
    model.push(features[-1:], fraud[-1:])
    assert model.has_an_opinion

    only_fraud = FeedbackModel(3)
    only_fraud.push(features, np.ones(len(features), bool))
    assert not only_fraud.has_an_opinion


def test_fraud_that_turns_round_is_noticed_within_a_hundred_answers() -> None:
    model = FeedbackModel(3)
    assert model.push(*answers(1500, 1)) == []

    changes = model.push(*answers(300, 2, weights=(-2.0, 1.0, -1.0)))

    assert changes
    assert 1500 <= changes[0].answer < 1600
    assert changes[0].worse_by > 4.0


def test_a_better_mix_of_alerts_is_no_change_of_fraud() -> None:
    model = FeedbackModel(3)
    model.push(*answers(1500, 1))

    assert model.push(*answers(1500, 2, shift=1.5)) == []  # far more of them are fraud, as the features say


def test_the_same_answers_give_the_same_model_in_any_pieces() -> None:
    features, fraud = answers(700, 3)
    whole, pieces = FeedbackModel(3), FeedbackModel(3)
    whole.push(features, fraud)
    for start in range(0, 700, 33):
        pieces.push(features[start : start + 33], fraud[start : start + 33])

    np.testing.assert_array_equal(whole.probability(features), pieces.probability(features))


def test_unknown_and_wild_features_do_no_harm() -> None:
    features, fraud = answers(1000, 4)
    features[::7, 1] = np.nan
    features[::50, 2] = 1e12
    model = FeedbackModel(3)
    model.push(features, fraud)

    said = model.probability(features)

    assert np.isfinite(said).all()
    assert said[fraud].mean() > said[~fraud].mean() + 0.2


def test_answers_count_in_steps_up_to_the_most() -> None:
    assert [counted_after(version) for version in (0, 1, MOST_ANSWERS, MOST_ANSWERS + 1)] == [0, 0, 0, STEP]
    for version in (5_500, 6_000, 6_001, 123_456):
        assert MOST_ANSWERS - STEP <= version - counted_after(version) <= MOST_ANSWERS


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"expected shape \(n, 2\)"):
        FeedbackModel(2).probability(np.zeros((1, 3)))
    with pytest.raises(InvalidInput, match="1 records have 2 answers"):
        FeedbackModel(2).push(np.zeros((1, 2)), np.zeros(2, bool))
