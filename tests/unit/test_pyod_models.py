"""Models of PyOD beside driftd's own score: calibrated, deterministic, one record at a time."""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from detectors.errors import InvalidInput, InvalidReference
from detectors.pyod_models import Model, PyODScorer, PyODSettings
from detectors.reference import ANGULAR, STANDARD, Reference

Floats = npt.NDArray[np.float32]
every_model = pytest.mark.parametrize("model", get_args(Model))


def normal_vectors(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.build(normal_vectors(2000, 0), geometry=STANDARD)


@every_model
def test_strange_records_score_higher_and_get_the_smallest_p_value(reference: Reference, model: Model) -> None:
    scorer = PyODScorer(reference, model=model)

    assessed = scorer.assess(np.concatenate([np.zeros((1, 6), np.float32), np.full((1, 6), 7.0, np.float32)]))

    assert assessed.score.dtype == np.float32
    assert assessed.score[1] > assessed.score[0]
    assert assessed.p_value[1] == 1 / (reference.n_calibration + 1)


@every_model
def test_p_values_keep_their_promise_on_normal_records(reference: Reference, model: Model) -> None:
    p_values = PyODScorer(reference, model=model).p_values(normal_vectors(4000, 1))

    assert abs((p_values <= 0.1).mean() - 0.1) < 0.03


@every_model
def test_scores_do_not_depend_on_how_the_batch_is_cut(model: Model) -> None:
    scorer = PyODScorer(Reference.build(normal_vectors(800, 0), geometry=ANGULAR), model=model)
    queries = normal_vectors(70, 1)

    parts = [scorer.score(queries[start : start + 9]) for start in range(0, len(queries), 9)]

    np.testing.assert_array_equal(np.concatenate(parts), scorer.score(queries))
    assert len(scorer.score(queries[:0])) == 0


@every_model
def test_the_same_seed_gives_the_same_scores(reference: Reference, model: Model) -> None:
    queries = normal_vectors(50, 1)

    first, second = (PyODSettings(model=model, seed=3).build(reference).score(queries) for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_unknown_models_and_references_without_exemplars_are_refused(reference: Reference) -> None:
    with pytest.raises(InvalidInput, match="iforest, lof, gmm"):
        PyODScorer(reference, model="ecod")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="iforest"):
        PyODSettings.model_validate({"kind": "pyod", "model": "ecod"})
    bare = Reference.build(normal_vectors(100, 0), geometry=STANDARD, exemplars=0)
    with pytest.raises(InvalidReference, match="exemplars=20000"):
        PyODScorer(bare)
