"""Outlier models of PyOD beside driftd's own score, on the same calibrated scale (Zhao, Nasrullah, Li 2019).

A model learns from the reference's exemplars and is calibrated on vectors that it has not seen, so that its p-values
mean what those of `detectors.outlier` mean: split-conformal, P(p <= a) <= a for records exchangeable with the baseline.
Raw scores of different models never meet.

Offered are the models that score a record by itself: alone or in any batch, the same. ECOD, COPOD and others of PyOD
rank a record within the batch that it comes in, and would score it differently in a backfill; `REFUSED` says of each
why it is not offered.

A fitted model is stored as a pickle, which can run anything when it is read: `PyODScorer.load` compares check sums
first, with one that the caller knows from elsewhere.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import os
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, Field

from detectors import conformal
from detectors.errors import InvalidInput, InvalidReference
from detectors.outlier import OutlierScores, evenly_spaced
from detectors.reference import Progress, Reference

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Model = Literal[
    "abod",
    "cblof",
    "gmm",
    "hbos",
    "iforest",
    "inne",
    "kde",
    "knn",
    "kpca",
    "loda",
    "lof",
    "mcd",
    "ocsvm",
    "pca",
    "sampling",
]

SLOW_US = (
    50.0  # a record; above, one core scores fewer than the 20,000 records/s that a fraud score should keep up with
)

_MODEL, _MANIFEST = "model.pickle", "model.json"
_FORMAT = 1
_LARGEST = 1e30  # stands for infinity: fits float32, with room for the rounding
_TILE = 1024  # records scored at once: what bounds the memory of models that compare with every exemplar
_TIMED = 1000  # records whose scoring is timed
# Libraries whose classes the pickle holds, and that decide what it computes.
_LIBRARIES = ("pyod", "scikit-learn", "numpy", "scipy", "numba")


@dataclass(frozen=True, slots=True)
class _Offered:
    """One model: where its class stands, and what it is made with besides the seed.

    Attributes:
        arguments: of the class, from the number of exemplars and of dimensions.
        seeded: it makes random choices, by ``random_state``.
        most: exemplars that it learns from: some compare every record with each of them, others fit in their square
            or cube.
    """

    path: str
    arguments: Callable[[int, int], dict[str, Any]] = lambda n, d: {}
    seeded: bool = False
    most: int = 20_000


_OFFERED: Mapping[str, _Offered] = MappingProxyType(
    {
        "abod": _Offered("abod:ABOD", lambda n, d: {"n_neighbors": min(5, n - 1)}, most=5_000),
        # With 8 clusters, PyOD's default, none may hold less than a tenth of the records, and it finds no small ones.
        "cblof": _Offered("cblof:CBLOF", lambda n, d: {"n_clusters": min(16, n)}, seeded=True),
        "gmm": _Offered("gmm:GMM", lambda n, d: {"n_components": 1}, seeded=True),
        "hbos": _Offered("hbos:HBOS"),
        "iforest": _Offered("iforest:IForest", lambda n, d: {"n_jobs": 1}, seeded=True),
        "inne": _Offered("inne:INNE", seeded=True),
        "kde": _Offered("kde:KDE", most=1_000),
        "knn": _Offered("knn:KNN", lambda n, d: {"n_neighbors": min(5, n - 1), "n_jobs": 1}, most=5_000),
        "kpca": _Offered("kpca:KPCA", seeded=True, most=1_000),
        "loda": _Offered("loda:LODA", seeded=True),
        "lof": _Offered(
            "lof:LOF", lambda n, d: {"n_neighbors": min(20, n - 1), "novelty": True, "n_jobs": 1}, most=5_000
        ),
        "mcd": _Offered("mcd:MCD", seeded=True, most=5_000),
        "ocsvm": _Offered("ocsvm:OCSVM", most=5_000),
        # It divides by the variance of each direction: those that hold nothing but rounding would decide alone.
        "pca": _Offered("pca:PCA", lambda n, d: {"n_components": 0.9999, "svd_solver": "full"}, seeded=True),
        "sampling": _Offered("sampling:Sampling", lambda n, d: {"subset_size": min(20, n)}, seeded=True),
    }
)

_BATCH = "it ranks a record within the batch that it comes in, so that history would be scored otherwise than live"
_COMBINES = "it combines other models; name those, and driftd combines them by p-value"
_NEEDS_TORCH = "it is a neural network and needs torch; embed with a network instead, and choose a model here"
_LABELS = "it learns from labels; that is what the fraud score itself does"
_OTHER_DATA = "it scores graphs, series or raw texts, not vectors"

# Why a model of PyOD is not offered.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("cd", "cof", "copod", "ecod", "lmdd", "loci", "rgraph", "rod", "sod", "sos"), _BATCH),
        **dict.fromkeys(("feature_bagging", "suod", "combination"), _COMBINES),
        "lscp": f"{_COMBINES}; besides, it draws its features anew each time it scores",
        **dict.fromkeys(
            ("ae1svm", "alad", "anogan", "auto_encoder", "deep_svdd", "dif", "lunar", "mo_gaal", "so_gaal", "vae"),
            _NEEDS_TORCH,
        ),
        **dict.fromkeys(("devnet", "xgbod"), _LABELS),
        "hdbscan": "it gives a strange record the score of the cluster that is nearest, however far that is",
        "mad": "it scores a single column of numbers",
        "qmcd": "it guesses from skewness which way its scores point, and guesses wrong on plain normal records",
        **dict.fromkeys(("audio_ae", "embedding"), _OTHER_DATA),
    }
)


def _known(name: object) -> object:
    """The name as PyOD's file of the model has it; ValueError with the reason where it is not offered."""
    if not isinstance(name, str) or name in _OFFERED:
        return name
    plain = name.lower().strip()
    if plain in REFUSED:
        raise ValueError(f"{name} is not offered: {REFUSED[plain]}. Choose one of {', '.join(_OFFERED)}")
    if plain.startswith(("ts_", "pyg_")):
        raise ValueError(f"{name} is not offered: {_OTHER_DATA}. Choose one of {', '.join(_OFFERED)}")
    near = difflib.get_close_matches(plain, [*_OFFERED, *REFUSED], n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no PyOD model {name!r}.{meant} Expected one of {', '.join(_OFFERED)}")


class PyODSettings(BaseModel, frozen=True, extra="forbid"):
    """An outlier model of PyOD that scores a record by itself, such as an isolation forest."""

    kind: Literal["pyod"] = "pyod"
    model: Annotated[Model, BeforeValidator(_known)] = Field(
        default="iforest", description="PyOD's name of the model: " + ", ".join(get_args(Model))
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the model's random choices")

    def build(self, reference: Reference, *, progress: Progress | None = None) -> PyODScorer:
        """Fit the model on a reference; see `PyODScorer`."""
        return PyODScorer(reference, model=self.model, seed=self.seed, progress=progress)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit cost and made.

    Attributes:
        exemplars: records that the model learned from.
        seconds: that fitting and calibrating took.
        n_bytes: of the stored model.
        microseconds: to score a record in a batch, measured on up to 1,000.
        remarks: what PyOD and its libraries warned of meanwhile.
    """

    exemplars: int
    seconds: float
    n_bytes: int
    microseconds: float
    remarks: tuple[str, ...] = field(default=())


class PyODScorer:
    """A PyOD model, fitted on a reference's exemplars and calibrated on its calibration vectors.

    Args:
        reference: what normal looks like.
        model: PyOD's name of the model, one of `Model`.
        seed: of the model's random choices: the same seed and reference, the same scores.
        progress: called with the name of a step and the share done of the whole.

    Scores are rounded to a 2^-20th of the spread of the calibration scores, so that what a library computes otherwise
    in the last bits for a record in another batch changes nothing: measured, such errors are below 1e-11 of the spread.

    Attributes:
        reference, model, seed: as given.
        calibration_scores: float32 (m,), ascending: scores of records that the model has not seen.
        fitted: what it cost.

    Importing PyOD takes about 3 s, once.

    Raises:
        InvalidInput: an unknown model, or one that is not offered, with the reason.
        InvalidReference: the reference keeps no exemplars, or the model cannot learn from them.
    """

    def __init__(
        self, reference: Reference, *, model: Model = "iforest", seed: int = 0, progress: Progress | None = None
    ) -> None:
        try:
            _known(model)
        except ValueError as error:
            raise InvalidInput(f"PyOD model: {error}.") from None
        if len(reference.exemplars) < 2:
            raise InvalidReference(
                "this reference holds no exemplars to fit a PyOD model on.",
                hint="Build it with exemplars: Reference.build(..., exemplars=20000).",
            )
        tell = progress if progress is not None else _silent
        self.reference, self.model, self.seed = reference, model, seed
        began = time.perf_counter()
        offered = _OFFERED[model]
        exemplars = reference.exemplars[evenly_spaced(len(reference.exemplars), offered.most)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tell(f"{model}: fit on {len(exemplars):,} records", 0.0)
            self._detector = _fit(offered, reference.search_space(exemplars), seed=seed, model=model)
            self._unit = 0.0
            calibration = reference.search_space(reference.calibration_vectors)
            self._unit = _rounding_unit(self._raw(calibration[:_TIMED]))
            scores, microseconds = self._calibrate(calibration, tell)
        self.calibration_scores = np.sort(scores)
        remarks = tuple(dict.fromkeys(str(warning.message).splitlines()[0] for warning in caught))
        seconds = time.perf_counter() - began
        self.fitted = Fitted(len(exemplars), round(seconds, 3), len(self._pickled()), round(microseconds, 3), remarks)
        tell(f"{model}: done", 1.0)

    def _calibrate(self, calibration: Floats, tell: Progress) -> tuple[Floats, float]:
        """Scores of the calibration vectors, and the microseconds that one took."""
        scores = np.empty(len(calibration), np.float32)
        took = 0.0
        for start in range(0, len(calibration), _TIMED):
            tell(f"{self.model}: calibrate on {len(calibration):,} records", 0.5 + 0.5 * start / len(calibration))
            began = time.perf_counter()
            scores[start : start + _TIMED] = self._score(calibration[start : start + _TIMED])
            took = (time.perf_counter() - began) if start == 0 else took
        return scores, took * 1e6 / max(min(len(calibration), _TIMED), 1)

    # ---- scores -----------------------------------------------------------------------------------------------------

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

    def _score(self, vectors: Floats) -> Floats:
        """Scores of vectors in the reference's search space."""
        tiles = [self._raw(vectors[start : start + _TILE]) for start in range(0, len(vectors), _TILE)]
        raw = np.concatenate([np.empty(0), *tiles])
        return np.asarray(np.rint(raw / self._unit) * self._unit, np.float32)

    def _raw(self, vectors: Floats) -> npt.NDArray[np.float64]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a division by nothing, for a record that is an exemplar's copy
            scores = np.asarray(self._detector.decision_function(vectors.astype(np.float64)), np.float64).ravel()
        # 0 / 0 where a model divides by the distance to copies of the record: nothing is more normal than those.
        return np.nan_to_num(scores, nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)

    # ---- in words ---------------------------------------------------------------------------------------------------

    @property
    def slow(self) -> bool:
        """A record takes so long that one core falls behind 20,000 records a second."""
        return self.fitted.microseconds > SLOW_US

    def describe(self) -> str:
        """What the fit cost and made, in one line."""
        fitted = self.fitted
        per_ms = 1000.0 / max(fitted.microseconds, 1e-3)
        rate = f"{per_ms:,.0f}" if per_ms >= 10 else f"{per_ms:.1f}"
        words = (
            f"{self.model}: learned from {fitted.exemplars:,} records in {fitted.seconds:.1f} s, "
            f"{fitted.n_bytes / 1e6:.1f} MB, scores {rate} records/ms"
        )
        if self.slow:
            words += "; slow: one core falls behind 20,000 records/s, more workers or gmm or sampling may be needed"
        return words

    # ---- on disk ----------------------------------------------------------------------------------------------------

    def _pickled(self) -> bytes:
        return pickle.dumps((self._detector, self._unit, self.calibration_scores))

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the fitted model into a new directory, and return the check sum that `load` wants.

        Raises:
            InvalidReference: ``path`` exists, or cannot be written.
        """
        folder, pickled = Path(path), self._pickled()
        manifest = {
            "format": _FORMAT,
            "model": self.model,
            "seed": self.seed,
            "reference": self.reference.checksum,
            "libraries": _versions(),
            "sha256": hashlib.sha256(pickled).hexdigest(),
            "exemplars": self.fitted.exemplars,
            "seconds": self.fitted.seconds,
            "n_bytes": len(pickled),
            "microseconds": self.fitted.microseconds,
            "remarks": list(self.fitted.remarks),
        }
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        try:
            folder.mkdir(parents=True)
            _write(folder / _MODEL, pickled)
            _write(folder / _MANIFEST, content)
        except FileExistsError as error:
            raise InvalidReference(
                f"{folder} exists, and a fitted model is never overwritten.", hint="Name another directory."
            ) from error
        except OSError as error:
            raise InvalidReference(
                f"cannot write the fitted model {folder}: {error.strerror or error}.",
                hint="Check its permissions and the space left.",
            ) from error
        return hashlib.sha256(content).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str], reference: Reference, *, checksum: str) -> PyODScorer:
        """Read a saved model, after its check sums were compared. Nothing is unpickled that they do not vouch for.

        Where a library that computes the scores has another version than at the fit, the model is fitted anew from the
        reference, and the log says so: a pickle of another version may not read, or may score otherwise.

        Args:
            path: as given to `save`.
            reference: the one that the model was fitted on.
            checksum: what `save` returned, kept somewhere else than beside the file.

        Raises:
            InvalidReference: missing, changed, of another format, or of another reference.
        """
        folder = Path(path)
        content = _read(folder / _MANIFEST)
        if hashlib.sha256(content).hexdigest() != checksum:
            raise _changed(folder, _MANIFEST)
        manifest = json.loads(content)
        if manifest["format"] != _FORMAT:
            raise InvalidReference(
                f"{folder} holds a fitted model of format {manifest['format']}, expected {_FORMAT}.",
                hint="Build the reference again: driftd reference build",
            )
        if manifest["reference"] != reference.checksum:
            raise InvalidReference(
                f"the model in {folder} was fitted on another reference.",
                hint="Load the reference that stands beside it, or build both again: driftd reference build",
            )
        model, seed = manifest["model"], manifest["seed"]
        if others := _other_versions(manifest["libraries"]):
            log.warning("the PyOD model %s is fitted anew, because of other libraries: %s", model, ", ".join(others))
            return cls(reference, model=model, seed=seed)
        pickled = _read(folder / _MODEL)
        if hashlib.sha256(pickled).hexdigest() != manifest["sha256"]:
            raise _changed(folder, _MODEL)
        scorer = cls.__new__(cls)
        scorer.reference, scorer.model, scorer.seed = reference, model, seed
        scorer._detector, scorer._unit, scorer.calibration_scores = pickle.loads(pickled)
        scorer.fitted = Fitted(
            manifest["exemplars"],
            manifest["seconds"],
            manifest["n_bytes"],
            manifest["microseconds"],
            tuple(manifest["remarks"]),
        )
        return scorer


def _fit(offered: _Offered, exemplars: Floats, *, seed: int, model: str) -> Any:
    module, name = offered.path.split(":")
    arguments = offered.arguments(*exemplars.shape)
    if offered.seeded:
        arguments["random_state"] = seed
    detector = getattr(importlib.import_module(f"pyod.models.{module}"), name)(**arguments)
    try:
        detector.fit(exemplars.astype(np.float64))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise InvalidReference(
            f"PyOD's {model} cannot learn from the {len(exemplars):,} exemplars of this reference: {error}.",
            hint="Choose another model, such as iforest, or build the reference from more records.",
        ) from error
    return detector


def _rounding_unit(scores: npt.NDArray[np.float64]) -> float:
    """A power of two near a millionth of the scores' spread: between their quartiles, or the whole, or 1."""
    finite = scores[np.abs(scores) < _LARGEST]
    if len(finite) == 0:
        return 1.0
    lower, upper = np.percentile(finite, [25, 75])
    spread = float(upper - lower) or float(finite.max() - finite.min()) or 1.0
    return float(2.0 ** (np.floor(np.log2(spread)) - 20))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = ""
    return found


def _other_versions(then: Mapping[str, str]) -> list[str]:
    now = _versions()
    return [f"{name} {then.get(name)} then, {now[name]} now" for name in now if now[name] != then.get(name)]


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidReference(
            f"cannot read the fitted model {path}: {error.strerror or error}.",
            hint="Build the reference again: driftd reference build",
        ) from error


def _changed(folder: Path, name: str) -> InvalidReference:
    return InvalidReference(
        f"{folder / name} was changed: its check sum differs from the one that is known, so it is not read.",
        hint="Restore it from a copy, or build the reference again: driftd reference build",
    )


def _silent(step: str, share: float) -> None:
    pass
