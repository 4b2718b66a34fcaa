"""Outlier models of PyOD beside driftd's own score, on the same calibrated scale (Zhao, Nasrullah, Li 2019).

A model learns from the reference's exemplars and is calibrated on vectors that it has not seen, so that its p-values
mean what those of `detectors.outlier` mean: split-conformal, P(p <= a) <= a for records exchangeable with the baseline.
Raw scores of different models never meet.

Offered are models that score a record by itself. ECOD, COPOD and others of PyOD rank a record within the batch that it
comes in, and would score it differently in a backfill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from detectors import conformal
from detectors.errors import InvalidInput, InvalidReference
from detectors.outlier import OutlierScores
from detectors.reference import Reference

Floats = npt.NDArray[np.float32]
Model = Literal["iforest", "lof", "gmm"]


class PyODSettings(BaseModel, frozen=True, extra="forbid"):
    """An outlier model of PyOD: isolation forest, local outlier factor or Gaussian mixture."""

    kind: Literal["pyod"] = "pyod"
    model: Model = Field(
        default="iforest",
        description="iforest (isolation forest), lof (local outlier factor, 20 neighbours) or gmm (Gaussian mixture)",
    )
    seed: int = Field(default=0, ge=0, description="seed of the model's random choices")

    def build(self, reference: Reference) -> PyODScorer:
        """Fit the model on a reference."""
        return PyODScorer(reference, model=self.model, seed=self.seed)


class PyODScorer:
    """A PyOD model, fitted on a reference's exemplars and calibrated on its calibration vectors.

    Args:
        reference: what normal looks like.
        model: "iforest", "lof" or "gmm".
        seed: of the model's random choices: the same seed and reference, the same scores.

    Importing PyOD takes about 3 s, once.

    Raises:
        InvalidInput: an unknown model.
        InvalidReference: the reference keeps no exemplars.
    """

    def __init__(self, reference: Reference, *, model: Model = "iforest", seed: int = 0) -> None:
        if model not in get_args(Model):
            raise InvalidInput(f"PyOD model: expected one of {', '.join(get_args(Model))}, got {model!r}.")
        if len(reference.exemplars) == 0:
            raise InvalidReference(
                "this reference holds no exemplars to fit a PyOD model on.",
                hint="Build it with exemplars: Reference.build(..., exemplars=20000).",
            )
        self.reference = reference
        self.model = model
        exemplars = reference.search_space(reference.exemplars)
        self._detector = _DETECTORS[model](seed, len(exemplars))
        self._detector.fit(exemplars)
        self.calibration_scores = np.sort(self._score(reference.search_space(reference.calibration_vectors)))

    def score(self, vectors: npt.ArrayLike) -> Floats:
        """Raw score of every record, float32 (n,), of any sign; larger is stranger. Compare p-values, not these.

        Args:
            vectors: (n, d), finite, converted to float32.

        Raises:
            InvalidInput: vectors that the reference refuses.
        """
        return self._score(self.reference.search_space(self.reference.prepare(vectors)))

    def p_values(
        self, vectors: npt.ArrayLike, *, uniforms: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float64]:
        """Probability that a normal record is at least as strange, float64 (n,) in (0, 1].

        Args:
            vectors: (n, d), finite, converted to float32.
            uniforms: float64 (n,) in (0, 1), to break ties at random; by default ties go to the larger p.

        Raises:
            InvalidInput: see `score`.
        """
        return self.assess(vectors, uniforms=uniforms).p_value

    def assess(self, vectors: npt.ArrayLike, *, uniforms: npt.NDArray[np.float64] | None = None) -> OutlierScores:
        """Scores and p-values at once; see `score` and `p_values`."""
        score = self.score(vectors)
        if uniforms is None:
            return OutlierScores(score, conformal.p_values(score, self.calibration_scores))
        return OutlierScores(score, conformal.randomised_p_values(score, self.calibration_scores, uniforms=uniforms))

    def _score(self, prepared: Floats) -> Floats:
        if len(prepared) == 0:
            return np.empty(0, np.float32)
        # Multiples of 1e-5, as driftd's own scores are: what lies below is rounding.
        return np.asarray(np.rint(self._detector.decision_function(prepared) * 1e5) * 1e-5, np.float32)


def _isolation_forest(seed: int, n: int) -> Any:
    from pyod.models.iforest import IForest

    return IForest(random_state=seed, n_jobs=1)


def _local_outlier_factor(seed: int, n: int) -> Any:
    from pyod.models.lof import LOF

    return LOF(n_neighbors=min(20, n - 1), novelty=True, n_jobs=1)


def _gaussian_mixture(seed: int, n: int) -> Any:
    from pyod.models.gmm import GMM

    return GMM(n_components=1, random_state=seed)


_DETECTORS: dict[Model, Callable[[int, int], Any]] = {
    "iforest": _isolation_forest,
    "lof": _local_outlier_factor,
    "gmm": _gaussian_mixture,
}
