"""A reference: what normal looks like, measured once on a baseline, saved, and never changed.

The baseline is cut into two halves by blocks. The *fit* half gives the mean, the covariance and the prototypes; the
*calibration* half, which no index has seen, gives the scores that new records are ranked against.

    vectors ──► x (unit length, or standardised and clipped) ──► y (softly whitened) ──► distance to the nearest
    prototype, float32, a multiple of 1e-5 ──► p-value and its bin

Soft whitening is y = (x - mean) V (w + 0.1 mean(w))^(-a/2), up to a rotation, with (w, V) the eigenvalues and
eigenvectors of the covariance: a = 0 leaves distances as they are, a = 1 gives the Mahalanobis distance; in between,
directions with little variance count for more without noise taking over. Prototypes are centroids of k-means in the
space of y.

Results are the same to the last bit however records are cut into batches (`index.triangular_product`,
`index.NearestIndex.search`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors import conformal
from detectors.errors import InvalidReference
from detectors.geometry import ANGULAR, STANDARD, TEXT, Geometry, as_vectors, prepare
from detectors.index import NearestIndex, triangular_product

__all__ = ["ANGULAR", "STANDARD", "TEXT", "Blocks", "Canaries", "EmbedderState", "Geometry", "Reference", "Scored"]

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]

_TILE = 1024


@dataclass(frozen=True, slots=True)
class EmbedderState:
    """What made the vectors of a reference.

    Attributes:
        kind: name of the embedder's kind; "" if the vectors were given ready.
        fingerprint: changes when the same input would give another vector.
        state: what the embedder learned from the baseline.
    """

    kind: str = ""
    fingerprint: str = ""
    state: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Canaries:
    """Fixed inputs of the embedder, with the vectors that it made of them when the reference was built.

    Attributes:
        inputs: the raw columns, opaque here; see `monitor.canaries`.
        vectors: float32 (m, d), as embedded, before any preparation.
        made_on: what they were computed on, in words: processor and versions of libraries.
    """

    inputs: bytes
    vectors: Floats
    made_on: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sums over the blocks of the baseline in the order of time; neighbours are merged until at most 4,096 are left.

    Attributes:
        number: int64 (B,), the first block number in each.
        n: int64 (B,), records.
        s: int64 (B, d), sums of round(x * 2**20) over all records.
        n_h: int64 (B,), records of the calibration half, the row sums of h.
        h: int64 (B, 49), bins of p of the calibration half; records of the fit half lie too close to the prototypes.
        c: int32 (B, K), counts of the nearest prototype over all records.
    """

    number: Int64s
    n: Int64s
    s: Int64s
    n_h: Int64s
    h: Int64s
    c: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.n)


@dataclass(frozen=True, slots=True)
class Scored:
    """What a reference says of n records.

    Attributes:
        x: float32 (n, d), the prepared vectors; the sums of summaries are over these.
        distance: float32 (n,), to the nearest prototype, a multiple of 1e-5; larger is stranger.
        nearest: int32 (n,), that prototype.
        p_value: float64 (n,), (1 + #{calibration >= distance}) / (n_calibration + 1).
        bin: uint8 (n,), index of p's bin in `conformal.P_EDGES`.
        prototypes: how many prototypes the reference has.
        score_scale: the reference's median calibration score.
    """

    x: Floats
    distance: Floats
    nearest: npt.NDArray[np.int32]
    p_value: npt.NDArray[np.float64]
    bin: npt.NDArray[np.uint8]
    prototypes: int
    score_scale: float

    def __len__(self) -> int:
        return len(self.distance)


@dataclass(frozen=True, eq=False)
class Reference:
    """What normal looks like. Made by `build` or `load`; immutable.

    Attributes:
        geometry: how vectors are compared.
        embedder: what made the vectors.
        model, space: names of what the reference is for; may be "".
        seed: of the clustering and of every choice.
        created_ms: when it was built, milliseconds since 1970, as told to `build`.
        n_fit, n_calibration: records of the two halves.
        block_records: typical records in a block.
        centre, scale: float32 (d,), what standardised vectors are made with; zeros and ones for unit vectors.
        mean: float64 (d,), and
        covariance: float64 (d, d): moments of the prepared vectors of the fit half.
        whitening: float32 (d, d), lower triangular, what makes y = (x - mean) whitening; (0, 0) where y is x.
        prototypes: float32 (K, d), in the whitened space.
        prototype_counts: int64 (K,), records of the fit half nearest to each.
        calibration_scores: float32 (n_calibration,), ascending.
        calibration_vectors: float32 (m, d), prepared vectors of up to 20,000 records of the calibration half.
        exemplars: float32 (e, d), prepared vectors of records of the fit half, in the order of time.
        exemplar_rows: int64 (e,), their rows in the baseline as it was given.
        exemplar_ids, exemplar_excerpts: e texts each, or none.
        first_ms, last_ms: event times of the baseline, -1 where unknown.
        blocks: sums over the baseline's blocks.
        drift: constants of the drift rule, see `detectors.baseline`.
        segments: for each segment field, the values common enough in the baseline to be watched by themselves.
        canaries: fixed inputs, to tell a changed encoder; None where there are none.
        performance: how often the model was right in the baseline, by its confidence: arrays of
            `detectors.performance.ConfidenceCalibration`; empty where nobody said what is true.
    """

    geometry: Geometry
    embedder: EmbedderState
    model: str
    space: str
    seed: int
    created_ms: int
    n_fit: int
    n_calibration: int
    block_records: int
    first_ms: int
    last_ms: int
    centre: Floats
    scale: Floats
    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]
    whitening: Floats
    prototypes: Floats
    prototype_counts: Int64s
    calibration_scores: Floats
    calibration_vectors: Floats
    exemplars: Floats
    exemplar_rows: Int64s
    exemplar_ids: tuple[str, ...]
    exemplar_excerpts: tuple[str, ...]
    blocks: Blocks
    drift: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    segments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    canaries: Canaries | None = None
    performance: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    # ---- a record's way -------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """Dimensions of the vectors."""
        return len(self.mean)

    @property
    def n_records(self) -> int:
        """Records of the baseline."""
        return self.n_fit + self.n_calibration

    @functools.cached_property
    def score_thresholds(self) -> Floats:
        """float32 (48,): the scores at which p crosses the inner edges of its bins."""
        return conformal.score_thresholds(self.calibration_scores)

    @functools.cached_property
    def score_scale(self) -> float:
        """The median calibration score, or the largest if that is 0, or 1: the scale of score histograms."""
        scores = self.calibration_scores
        return float(scores[len(scores) // 2] or scores[-1] or 1.0)

    @functools.cached_property
    def _centre_of_search(self) -> Floats:
        return self.mean.astype(np.float32)

    @functools.cached_property
    def prototype_index(self) -> NearestIndex:
        """Index of the prototypes, in the whitened space."""
        return NearestIndex(self.prototypes)

    @functools.cached_property
    def _exemplar_index(self) -> NearestIndex:
        return NearestIndex(self.search_space(self.exemplars))

    def exemplar_index(self) -> NearestIndex:
        """Index of the exemplars in the whitened space, made on first use; search it with `search_space(x)`.

        Raises:
            InvalidReference: the reference has no exemplars.
        """
        if len(self.exemplars) == 0:
            raise InvalidReference(
                "this reference holds no exemplars.",
                hint="Build it with exemplars: Reference.build(..., exemplars=20000).",
            )
        return self._exemplar_index

    def prepare(self, vectors: npt.ArrayLike) -> Floats:
        """Unit length, or standardised and clipped: float32 (n, d), a new array.

        Args:
            vectors: (n, d), finite, converted to float32.

        Raises:
            InvalidInput: wrong dimension; rows with NaN or infinity, or (for unit length) of zeros, named by number.
        """
        rows = as_vectors(vectors, self.dimension)
        return prepare(rows, self.geometry, self.centre, self.scale)

    def search_space(self, x: Floats) -> Floats:
        """Prepared vectors, softly whitened: float32 (n, d), in which distances to prototypes are Euclidean."""
        if self.geometry.whitening == 0.0:
            return x
        return triangular_product(x - self._centre_of_search, self.whitening)

    def score(self, vectors: npt.ArrayLike) -> Scored:
        """Distance to normal, p-value and bin of every record; see `Scored`.

        Args:
            vectors: (n, d), finite, converted to float32. Batches of 256 to 4,096 are fastest.

        Raises:
            InvalidInput: see `prepare`.
        """
        x = self.prepare(vectors)
        distance = np.empty(len(x), np.float32)
        nearest = np.empty(len(x), np.int32)
        for start in range(0, len(x), _TILE):
            tile = slice(start, start + _TILE)
            distance[tile], nearest[tile] = nearest_prototypes(self.prototype_index, self.search_space(x[tile]))
        return Scored(
            x=x,
            distance=distance,
            nearest=nearest,
            p_value=conformal.p_values(distance, self.calibration_scores),
            bin=conformal.p_bins(distance, self.score_thresholds),
            prototypes=len(self.prototypes),
            score_scale=self.score_scale,
        )

    # ---- making one -----------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        vectors: npt.ArrayLike,
        *,
        geometry: Geometry = ANGULAR,
        block: int = 256,
        block_ids: Int64s | None = None,
        prototypes: int | None = None,
        exemplars: int = 20_000,
        excerpts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        times_ms: Int64s | None = None,
        embedder: EmbedderState | None = None,
        model: str = "",
        space: str = "",
        segments: Mapping[str, Sequence[str]] | None = None,
        segment_values: Mapping[str, Sequence[str]] | None = None,
        seasons: Sequence[float] = (),
        canaries: Canaries | None = None,
        performance: Mapping[str, npt.NDArray[Any]] | None = None,
        seed: int = 0,
        created_ms: int = 0,
        progress: Progress | None = None,
    ) -> Reference:
        """Measure a baseline.

        Args:
            vectors: (n, d), at least 20 records; 200,000 are recommended. Finite, converted to float32, not changed.
            geometry: how vectors are compared: ANGULAR, TEXT or STANDARD, or another.
            block: records in a block, where ``block_ids`` is not given.
            block_ids: int64 (n,), the event-time block of each record, of about the length that live blocks have.
            prototypes: how many to train; by default one for every 20 records of the fit half up to 500, then one
                for every 100 up to 2,000. Those with fewer than 5 members are dropped.
            exemplars: at most so many vectors of the fit half are kept, chosen by hash.
            excerpts: n texts that show a person the record; kept for exemplars, cut at 500 characters.
            ids: n texts that name the records; kept for exemplars.
            times_ms: int64 (n,), event times; without ``block_ids``, blocks are cut in their order.
            embedder: what made the vectors.
            model, space: names of what the reference is for.
            segments: for each segment field, the values to be watched by themselves.
            segment_values: for each of these fields, the n values of the records; with them, every segment of 500
                records or more is compared with its own past. Without, segments have no alarm of their own.
            seasons: periods to look for, in blocks. The drift rule follows the one that forecasts best, if any does:
                live blocks are then compared with the hour that their number stands for, so they must be numbered as
                ``block_ids``, or, where those were not given, from the first record on (`detectors.seasons`).
            canaries: fixed inputs with their vectors, kept as they are.
            performance: arrays of `ConfidenceCalibration`, kept as they are.
            seed: of the clustering and of every choice. Same vectors, settings and seed, same reference.
            created_ms: the time to record, milliseconds since 1970.
            progress: called with the name of a step and the share done of the whole.

        Raises:
            InvalidInput: fewer than 20 records, all records equal, bad rows (by number), or options that do not fit.
        """
        from detectors.reference_build import build_reference

        return build_reference(
            vectors,
            geometry=geometry,
            block=block,
            block_ids=block_ids,
            prototypes=prototypes,
            exemplars=exemplars,
            excerpts=excerpts,
            ids=ids,
            times_ms=times_ms,
            embedder=embedder,
            model=model,
            space=space,
            segments=segments or {},
            segment_values=segment_values or {},
            seasons=seasons,
            canaries=canaries,
            performance=performance or {},
            seed=seed,
            created_ms=created_ms,
            progress=progress,
        )

    # ---- on disk --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 over everything that the reference holds, in hexadecimal."""
        from detectors import reference_files

        return str(reference_files.manifest_of(self)["checksum"])

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the reference as a new directory, whole or not at all, and return its check sum.

        Raises:
            InvalidReference: ``path`` exists (references are immutable), or cannot be written.
        """
        from detectors import reference_files

        return reference_files.save(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reference:
        """Read a saved reference and check every byte of it.

        Raises:
            InvalidReference: missing, of another format version, truncated or changed.
        """
        from detectors import reference_files

        return reference_files.load(Path(path))


def nearest_prototypes(index: NearestIndex, y: Floats) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Distance to the nearest prototype, float32 (n,), and its number, int32 (n,).

    Distances are multiples of 1e-5, so that what another build computes in the last bits changes no comparison.
    """
    distance, nearest = index.search(y, 1)
    return np.rint(distance[:, 0] * np.float32(1e5)) * np.float32(1e-5), nearest[:, 0].astype(np.int32)
