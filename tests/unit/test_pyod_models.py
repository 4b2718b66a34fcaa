"""Models of PyOD beside driftd's own score: calibrated, deterministic, one record at a time, stored with check sums."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from detectors import pyod_models
from detectors.errors import InvalidInput, InvalidReference
from detectors.pyod_models import REFUSED, Model, PyODScorer, PyODSettings
from detectors.reference import STANDARD, TEXT, Reference

Floats = npt.NDArray[np.float32]
MODELS: tuple[Model, ...] = get_args(Model)
every_model = pytest.mark.parametrize("model", MODELS)


def normal_vectors(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.build(normal_vectors(500, 0), geometry=STANDARD)


@pytest.fixture(scope="module")
def scorers(reference: Reference) -> dict[str, PyODScorer]:
    return {model: PyODSettings(model=model, seed=3).build(reference) for model in MODELS}


# --- every model ------------------------------------------------------------------------------------------------------


@every_model
def test_strange_records_score_higher_and_get_a_small_p_value(scorers: dict[str, PyODScorer], model: Model) -> None:
    scorer = scorers[model]
    directions = normal_vectors(40, 5)
    far = 7.0 * directions / np.abs(directions).max(axis=1, keepdims=True)

    normal, strange = scorer.assess(normal_vectors(400, 1)), scorer.assess(far)

    assert strange.score.dtype == np.float32 and strange.p_value.dtype == np.float64
    assert np.median(strange.p_value) <= 0.05
    assert np.median(strange.score) > np.median(normal.score)


@every_model
def test_p_values_keep_their_promise_on_normal_records(scorers: dict[str, PyODScorer], model: Model) -> None:
    p_values = scorers[model].p_values(normal_vectors(1_000, 1))

    # 250 calibration scores: the rate of one set varies by .02 around what it promises; ties make it less.
    assert 0.0 < (p_values <= 0.1).mean() < 0.1 + 3 * 0.02


@every_model
def test_a_record_scores_the_same_alone_in_any_batch_and_in_any_order(
    scorers: dict[str, PyODScorer], model: Model
) -> None:
    scorer = scorers[model]
    queries = np.concatenate([normal_vectors(32, 1), 5.0 * normal_vectors(9, 2)])
    order = np.random.default_rng(4).permutation(len(queries))

    whole = scorer.score(queries)
    alone = np.concatenate([scorer.score(queries[row : row + 1]) for row in range(0, len(queries), 10)])
    parts = np.concatenate([scorer.score(queries[start : start + 17]) for start in range(0, len(queries), 17)])

    np.testing.assert_array_equal(alone, whole[::10])
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(scorer.score(queries[order]), whole[order])
    assert scorer.score(queries[:0]).shape == (0,)


@every_model
def test_the_same_seed_gives_the_same_scores_whatever_chance_did_before(
    scorers: dict[str, PyODScorer], reference: Reference, model: Model
) -> None:
    queries = normal_vectors(50, 1)
    np.random.seed(99)  # noqa: NPY002 (what a model without a seed of its own would draw from)

    again = PyODSettings(model=model, seed=3).build(reference)

    np.testing.assert_array_equal(again.score(queries), scorers[model].score(queries))
    np.testing.assert_array_equal(again.calibration_scores, scorers[model].calibration_scores)


@every_model
def test_a_saved_model_scores_as_before(
    scorers: dict[str, PyODScorer], reference: Reference, tmp_path: Path, model: Model
) -> None:
    queries = np.concatenate([normal_vectors(50, 1), reference.exemplars[:5]])
    checksum = scorers[model].save(tmp_path / model)

    loaded = PyODScorer.load(tmp_path / model, reference, checksum=checksum)

    np.testing.assert_array_equal(loaded.assess(queries).p_value, scorers[model].assess(queries).p_value)
    size = (tmp_path / model / "model.pickle").stat().st_size
    assert (loaded.model, loaded.seed, loaded.fitted) == (model, 3, replace(scorers[model].fitted, n_bytes=size))


@every_model
def test_baselines_with_many_copies_are_learned_or_refused_with_the_reason(model: Model) -> None:
    vectors = np.repeat(normal_vectors(30, 0), 20, axis=0)
    reference = Reference.build(vectors, geometry=STANDARD)

    try:
        scores = PyODScorer(reference, model=model).score(np.concatenate([vectors[:20], normal_vectors(20, 1)]))
    except InvalidReference as error:
        assert model in error.message and error.hint
    else:
        assert np.isfinite(scores).all()


# --- what is not offered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ecod", "ranks a record within the batch"),
        ("ECOD", "ranks a record within the batch"),
        ("copod", "ranks a record within the batch"),
        ("sod", "ranks a record within the batch"),
        ("loci", "ranks a record within the batch"),
        ("vae", "needs torch"),
        ("suod", "combines other models"),
        ("ts_lstm", "not vectors"),
        ("isolationforest", "Did you mean iforest"),
        ("lov", "Did you mean lof"),
    ],
)
def test_what_is_not_offered_is_refused_with_the_reason(reference: Reference, name: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        PyODSettings.model_validate({"kind": "pyod", "model": name})
    with pytest.raises(InvalidInput, match=reason):
        PyODScorer(reference, model=name)  # type: ignore[arg-type]


def test_every_model_of_pyod_is_offered_or_refused() -> None:
    import pyod.models

    (folder,) = map(Path, pyod.models.__path__)
    shared = {"base", "base_dl", "sklearn_base", "thresholds", "gaal_base", "so_gaal_new"}
    prefixes = ("_", "ts_", "pyg_")
    there = {path.stem for path in folder.glob("*.py") if not path.stem.startswith(prefixes)}
    assert there - shared == set(MODELS) | set(REFUSED)
    assert not set(MODELS) & set(REFUSED)


def test_the_models_refused_for_their_batch_do_score_a_record_otherwise_in_another_batch() -> None:
    vectors, queries = normal_vectors(300, 0), normal_vectors(40, 1)
    for name, attribute in [("ecod", "ECOD"), ("sos", "SOS")]:
        detector = getattr(import_module(f"pyod.models.{name}"), attribute)().fit(vectors[:, :3])
        whole = detector.decision_function(queries[:, :3])
        assert not np.allclose(detector.decision_function(queries[:20, :3]), whole[:20])


def test_a_reference_without_exemplars_is_refused() -> None:
    bare = Reference.build(normal_vectors(100, 0), geometry=STANDARD, exemplars=0)
    with pytest.raises(InvalidReference, match="exemplars=20000"):
        PyODScorer(bare)


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_progress_names_the_model_and_reaches_the_end(reference: Reference) -> None:
    told: list[tuple[str, float]] = []

    PyODSettings(model="hbos").build(reference, progress=lambda step, share: told.append((step, share)))

    assert all(step.startswith("hbos: ") for step, _ in told)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)


def test_size_time_and_speed_are_stated(scorers: dict[str, PyODScorer]) -> None:
    for model, scorer in scorers.items():
        words = scorer.describe()
        assert words.startswith(f"{model}: learned from ") and "records/ms" in words and " MB" in words
        assert scorer.slow == ("slow" in words) == (scorer.fitted.microseconds > pyod_models.SLOW_US)


def test_models_that_compare_with_every_record_learn_from_some_of_them() -> None:
    reference = Reference.build(normal_vectors(2_400, 0), geometry=STANDARD)
    assert len(reference.exemplars) > 1_000
    assert PyODScorer(reference, model="kde").fitted.exemplars == 1_000


def test_angular_vectors_are_scored_in_the_space_of_the_reference() -> None:
    vectors = normal_vectors(800, 0) + np.float32(2.0)
    scorer = PyODScorer(Reference.build(vectors, geometry=TEXT), model="gmm")
    np.testing.assert_array_equal(scorer.score(vectors[:20]), scorer.score(vectors[:20] * np.float32(4.0)))


# --- on disk ----------------------------------------------------------------------------------------------------------


class Trap:
    """Runs something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def saved(scorers: dict[str, PyODScorer], tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "saved"
    yield folder, scorers["hbos"].save(folder)


def test_a_changed_model_is_not_unpickled(saved: tuple[Path, str], reference: Reference, tmp_path: Path) -> None:
    folder, checksum = saved
    (folder / "model.pickle").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))

    with pytest.raises(InvalidReference, match=r"model\.pickle was changed"):
        PyODScorer.load(folder, reference, checksum=checksum)

    assert not (tmp_path / "sprung").exists()


def test_a_manifest_rewritten_to_fit_a_changed_model_is_refused(
    saved: tuple[Path, str], reference: Reference, tmp_path: Path
) -> None:
    import hashlib

    folder, checksum = saved
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    (folder / "model.pickle").write_bytes(content)
    manifest = json.loads((folder / "model.json").read_bytes())
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "model.json").write_text(json.dumps(manifest))

    with pytest.raises(InvalidReference, match=r"model\.json was changed"):
        PyODScorer.load(folder, reference, checksum=checksum)

    assert not (tmp_path / "sprung").exists()


def test_a_model_of_other_library_versions_is_fitted_anew_and_the_log_says_so(
    scorers: dict[str, PyODScorer],
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    older = {**pyod_models._versions(), "scikit-learn": "0.1"}
    with monkeypatch.context() as then:
        then.setattr(pyod_models, "_versions", lambda: older)
        checksum = scorers["iforest"].save(tmp_path / "old")
    (tmp_path / "old" / "model.pickle").write_bytes(b"what another version wrote")

    with caplog.at_level(logging.WARNING):
        loaded = PyODScorer.load(tmp_path / "old", reference, checksum=checksum)

    assert "fitted anew" in caplog.text and "scikit-learn 0.1 then" in caplog.text
    queries = normal_vectors(20, 1)
    np.testing.assert_array_equal(loaded.score(queries), scorers["iforest"].score(queries))


def test_a_model_of_another_reference_is_refused(saved: tuple[Path, str]) -> None:
    folder, checksum = saved
    other = Reference.build(normal_vectors(200, 7), geometry=STANDARD)
    with pytest.raises(InvalidReference, match="another reference"):
        PyODScorer.load(folder, other, checksum=checksum)


def test_a_missing_model_is_an_error_with_a_hint(saved: tuple[Path, str], reference: Reference) -> None:
    folder, checksum = saved
    (folder / "model.pickle").unlink()
    with pytest.raises(InvalidReference, match="reference build"):
        PyODScorer.load(folder, reference, checksum=checksum)
    with pytest.raises(InvalidReference, match="reference build"):
        PyODScorer.load(folder / "nothing", reference, checksum=checksum)


def test_a_saved_model_is_never_overwritten(saved: tuple[Path, str], scorers: dict[str, PyODScorer]) -> None:
    with pytest.raises(InvalidReference, match="never overwritten"):
        scorers["hbos"].save(saved[0])


def test_settings_are_read_without_importing_pyod() -> None:
    program = (
        "import sys; from detectors.pyod_models import PyODSettings; PyODSettings(model='lof'); "
        "print(*[name for name in ('pyod', 'sklearn', 'numba', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
