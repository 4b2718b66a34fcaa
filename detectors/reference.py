"""A reference: what normal looks like, measured once on a baseline, saved, and never changed.

The baseline is cut into two halves by blocks. The *fit* half gives the mean, the covariance and the prototypes; the
*calibration* half, which no index has seen, gives the scores that new records are ranked against.

    vectors ──► x (unit length, or standardised and clipped) ──► y (softly whitened) ──► distance to the nearest
    prototype, float32, a multiple of 1e-5 ──► p-value and its bin

Soft whitening is y = (x - mean) V (w + 0.1 mean(w))^(-a/2) with (w, V) the eigenvalues and eigenvectors of the
covariance: a = 0 leaves distances as they are, a = 1 gives the Mahalanobis distance; in between, directions with little
variance count for more without noise taking over. Prototypes are centroids of k-means in the space of y.

Results are the same to the last bit however records are cut into batches (`index.stable_product`,
`index.NearestIndex.search`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from detectors import conformal, summary
from detectors.errors import InvalidInput, InvalidReference
from detectors.index import NearestIndex, k_means, squared_lengths, stable_product

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]

FORMAT_VERSION = 1
MIN_RECORDS = 20
MIN_MEMBERS = 5  # a prototype with fewer members is an outlier or a clump of duplicates, not a part of normal
MAX_CALIBRATION = 100_000  # keeps the false-positive rate at p <= .001 within 20 % of .001 (95 % of calibration sets)
MAX_BLOCKS = 4096
MAX_EXCERPT = 500  # characters kept of an exemplar's excerpt
# Beyond this many standard deviations a table's column counts no more: one record cannot own the mean of a block, and
# the fixed-point sums of `summary` cannot overflow.
CLIP = summary.MAX_MAGNITUDE

_RIDGE = 0.1  # share of the mean eigenvalue that is added before whitening
_TILE = 1024
_COVARIANCE_TILE = 4096
_SAMPLE = 20_000  # calibration vectors that are kept, for scorers and tests that need vectors no index has seen


@dataclass(frozen=True, slots=True)
class Geometry:
    """How vectors are compared.

    Attributes:
        unit: scale every vector to length 1, for encoders whose vectors mean a direction; if not, standardise every
            column and clip it at 8 standard deviations, for tables, where length carries meaning.
        whitening: the power a of the soft whitening, 0 to 1.
    """

    unit: bool
    whitening: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.whitening <= 1.0:
            raise InvalidInput(f"geometry: expected a whitening power from 0 to 1, got {self.whitening}.")


ANGULAR = Geometry(unit=True, whitening=0.5)
TEXT = Geometry(unit=True, whitening=0.25)
STANDARD = Geometry(unit=False, whitening=0.0)


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
        rows = _as_vectors(vectors, self.dimension)
        return _prepare(rows, self.geometry, self.centre, self.scale)

    def search_space(self, x: Floats) -> Floats:
        """Prepared vectors, softly whitened: float32 (n, d), in which distances to prototypes are Euclidean."""
        if self.geometry.whitening == 0.0:
            return x
        return stable_product(x - self.mean.astype(np.float32), self.whitening)

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
            distance[tile], nearest[tile] = _nearest(self.prototype_index, self.search_space(x[tile]))
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
            prototypes: how many to train; by default one for every 20 records of the fit half up to 1,000, then one
                for every 100 up to 2,000. Those with fewer than 5 members are dropped.
            exemplars: at most so many vectors of the fit half are kept, chosen by hash.
            excerpts: n texts that show a person the record; kept for exemplars, cut at 500 characters.
            ids: n texts that name the records; kept for exemplars.
            times_ms: int64 (n,), event times; without ``block_ids``, blocks are cut in their order.
            embedder: what made the vectors.
            model, space: names of what the reference is for.
            seed: of the clustering and of every choice. Same vectors, settings and seed, same reference.
            created_ms: the time to record, milliseconds since 1970.
            progress: called with the name of a step and the share done of the whole.

        Raises:
            InvalidInput: fewer than 20 records, all records equal, bad rows (by number), or options that do not fit.
        """
        rows = _as_vectors(vectors, None)
        n, dimension = rows.shape
        _check_columns(n, block_ids=block_ids, times_ms=times_ms, excerpts=excerpts, ids=ids)
        if n < MIN_RECORDS:
            raise InvalidInput(
                f"a reference needs at least {MIN_RECORDS} records, got {n}.", hint="200,000 are recommended."
            )
        if block < 1 or exemplars < 0 or (prototypes is not None and prototypes < 1):
            raise InvalidInput(
                f"expected block >= 1, exemplars >= 0 and prototypes >= 1, got {block}, {exemplars} and {prototypes}."
            )
        tell = progress if progress is not None else _silent

        tell("split", 0.0)
        order, block_number = _time_order(n, block, block_ids, times_ms)
        is_calibration = _split(block_number, seed)
        fit_at, calibration_at = np.flatnonzero(~is_calibration), np.flatnonzero(is_calibration)
        block_records = int(np.median(np.unique(block_number, return_counts=True)[1]))

        def baseline_rows(at: Int64s) -> Floats:
            return rows[at if order is None else order[at]]

        tell("moments", 0.02)
        centre, scale = np.zeros(dimension, np.float32), np.ones(dimension, np.float32)
        if not geometry.unit:
            centre, scale = _column_scale(baseline_rows, fit_at)

        def prepared(at: Int64s) -> Floats:
            return _prepare(baseline_rows(at), geometry, centre, scale, numbers=at if order is None else order[at])

        fit = np.empty((len(fit_at), dimension), np.float32)
        for tile in _tiles(len(fit_at), _COVARIANCE_TILE):
            fit[tile] = prepared(fit_at[tile])
        mean, covariance = _moments(fit)
        if not np.trace(covariance) > 0.0:
            raise InvalidInput(
                f"all {len(fit_at)} records of the fit half are equal: there is nothing to compare with.",
                hint="Check the embedder and the mapped field.",
            )
        whitening = _whitening(covariance, geometry.whitening)

        exemplar_at = np.sort(_choose(fit_at, exemplars, seed))
        exemplar_x = fit[np.searchsorted(fit_at, exemplar_at)]

        # The fit half in the search space takes the place of its prepared vectors: one copy of it at a time.
        offset = mean.astype(np.float32)
        if geometry.whitening > 0.0:
            for tile in _tiles(len(fit), _COVARIANCE_TILE):
                fit[tile] = stable_product(fit[tile] - offset, whitening)
        tell("prototypes", 0.1)
        count = min(prototypes if prototypes is not None else _prototype_count(len(fit)), len(fit))
        trained, nearest_fit = _prototypes(fit, count, seed)
        del fit
        index = NearestIndex(trained)

        tell("calibration", 0.75)
        number, merged = np.unique(block_number, return_inverse=True)
        factor = -(-len(number) // MAX_BLOCKS)
        merged = merged.astype(np.int64) // factor
        n_blocks = int(merged[-1]) + 1
        s = np.zeros((n_blocks, dimension), np.int64)
        nearest = np.empty(n, np.int32)
        nearest[fit_at] = nearest_fit
        scores = np.empty(n, np.float32)
        for tile in _tiles(n, _TILE):
            x = prepared(np.arange(tile.start, tile.stop))
            held_out = np.flatnonzero(is_calibration[tile])
            if len(held_out):
                y = x[held_out]
                if geometry.whitening > 0.0:
                    y = stable_product(y - offset, whitening)
                at = tile.start + held_out
                scores[at], nearest[at] = _nearest(index, y)
            of_tile = merged[tile]
            cuts = [0, *(np.flatnonzero(np.diff(of_tile)) + 1).tolist(), len(of_tile)]
            for first, after in itertools.pairwise(cuts):
                s[of_tile[first]] += summary.fixed_point_sum(x[first:after])
            tell("calibration", 0.75 + 0.2 * tile.stop / n)
        calibration_scores = np.sort(scores[calibration_at])
        h = np.zeros((n_blocks, conformal.N_BINS), np.int64)
        p_bin = conformal.p_bins(scores[calibration_at], conformal.score_thresholds(calibration_scores))
        np.add.at(h, (merged[calibration_at], p_bin), 1)
        c = np.zeros((n_blocks, len(trained)), np.int32)
        np.add.at(c, (merged, nearest), 1)
        blocks = Blocks(
            number=number[::factor].astype(np.int64),
            n=np.bincount(merged, minlength=n_blocks).astype(np.int64),
            s=s,
            n_h=h.sum(axis=1),
            h=h,
            c=c,
        )

        tell("exemplars", 0.95)
        sample_at = np.sort(_choose(calibration_at, _SAMPLE, seed))
        sample = np.concatenate([prepared(sample_at[tile]) for tile in _tiles(len(sample_at), _COVARIANCE_TILE)])
        exemplar_rows = exemplar_at if order is None else order[exemplar_at]
        reference = cls(
            geometry=geometry,
            embedder=embedder if embedder is not None else EmbedderState(),
            model=model,
            space=space,
            seed=seed,
            created_ms=created_ms,
            n_fit=len(fit_at),
            n_calibration=len(calibration_at),
            block_records=block_records,
            first_ms=int(times_ms.min()) if times_ms is not None else -1,
            last_ms=int(times_ms.max()) if times_ms is not None else -1,
            centre=centre,
            scale=scale,
            mean=mean,
            covariance=covariance,
            whitening=whitening,
            prototypes=trained,
            prototype_counts=np.bincount(nearest_fit, minlength=len(trained)).astype(np.int64),
            calibration_scores=calibration_scores,
            calibration_vectors=sample,
            exemplars=exemplar_x,
            exemplar_rows=exemplar_rows,
            exemplar_ids=tuple(ids[row] for row in exemplar_rows.tolist()) if ids is not None else (),
            exemplar_excerpts=(
                tuple(excerpts[row][:MAX_EXCERPT] for row in exemplar_rows.tolist()) if excerpts is not None else ()
            ),
            blocks=blocks,
        )
        tell("done", 1.0)
        return reference

    # ---- on disk --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 over everything that the reference holds, in hexadecimal."""
        return str(_manifest(self)["checksum"])

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the reference as a new directory, whole or not at all, and return its check sum.

        Raises:
            InvalidReference: ``path`` exists (references are immutable), or cannot be written.
        """
        target = Path(path)
        if target.exists():
            _refuse_to_overwrite(target)
        temporary: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            manifest = _manifest(self)
            for name, array in _arrays(self).items():
                with (temporary / f"{name}.npy").open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    _to_disk(file)
            with (temporary / _MANIFEST).open("w", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1, sort_keys=True)
                _to_disk(file)
            temporary.chmod(0o755)
            _sync_directory(temporary)
            temporary.rename(target)
            _sync_directory(target.parent)
        except OSError as error:
            if target.exists():
                _refuse_to_overwrite(target)
            raise InvalidReference(
                f"cannot write the reference {target}: {error.strerror or error}.",
                hint="Name a directory on a disk with free space that you may write to.",
            ) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return str(manifest["checksum"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reference:
        """Read a saved reference and check every byte of it.

        Raises:
            InvalidReference: missing, of another format version, truncated or changed.
        """
        return _load(Path(path))


# ---- the parts of build ---------------------------------------------------------------------------------------------


def _silent(step: str, share: float) -> None:
    """No one listens."""


def _tiles(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _as_vectors(vectors: npt.ArrayLike, dimension: int | None) -> Floats:
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InvalidInput(f"vectors: expected a two-dimensional array (n, d), got shape {rows.shape}.")
    if rows.dtype.kind not in "fiu":
        raise InvalidInput(f"vectors: expected numbers, got dtype {rows.dtype}.", hint="Convert them to float32.")
    if dimension is not None and rows.shape[1] != dimension:
        raise InvalidInput(
            f"vectors have {rows.shape[1]} dimensions, but the reference was built from {dimension}.",
            hint="Use the embedder that the reference was built with, or build a new one: driftd reference build ...",
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is reported with its row
        return rows.astype(np.float32, copy=False)


def _check_columns(n: int, **columns: npt.NDArray[Any] | Sequence[str] | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise InvalidInput(f"{name}: expected {n} entries, one for each vector, got {len(column)}.")


def _prepare(
    rows: Floats, geometry: Geometry, centre: Floats, scale: Floats, *, numbers: Int64s | None = None
) -> Floats:
    """``numbers`` are the rows' numbers for messages, where they are not 0, 1, 2, ..."""
    if not geometry.unit:
        with np.errstate(over="ignore", invalid="ignore"):
            x = (rows - centre) / scale
            finite = np.isfinite(np.einsum("ij->i", rows))
        if not finite.all():
            suspects = np.flatnonzero(~finite)
            _refuse(suspects[~np.isfinite(rows[suspects]).all(axis=1)], numbers, len(rows), "NaN or infinity")
        return np.clip(x, -CLIP, CLIP, out=x)
    rows = np.ascontiguousarray(rows)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = squared_lengths(rows)
    if not ((squares > 1e-30) & (squares < 1e30)).all():
        # Too long or short for float32 squares, or not usable at all.
        odd = np.flatnonzero(~((squares > 1e-30) & (squares < 1e30)))
        _refuse(odd[~np.isfinite(rows[odd]).all(axis=1)], numbers, len(rows), "NaN or infinity")
        largest = np.abs(rows[odd]).max(axis=1, keepdims=True)
        _refuse(odd[largest[:, 0] == 0.0], numbers, len(rows), "nothing but zeros")
        rows = rows.copy()
        rows[odd] = rows[odd].astype(np.float64) / largest
        squares[odd] = squared_lengths(rows[odd])
    return np.asarray(rows / np.sqrt(squares)[:, None], np.float32)


def _refuse(bad: npt.NDArray[np.intp], numbers: Int64s | None, n: int, what: str) -> None:
    if len(bad) == 0:
        return
    named = (bad if numbers is None else numbers[bad]).tolist()
    shown = ", ".join(map(str, named[:5])) + (", ..." if len(named) > 5 else "")
    raise InvalidInput(
        f"vectors: {'row' if len(named) == 1 else 'rows'} {shown} of {n} hold{'s' if len(named) == 1 else ''} {what}.",
        hint="Leave such records out, or repair what makes the vectors.",
    )


def _time_order(n: int, block: int, block_ids: Int64s | None, times_ms: Int64s | None) -> tuple[Int64s | None, Int64s]:
    """The order of time as row numbers (None: as given), and the block number of each record in that order."""
    key = block_ids if block_ids is not None else times_ms
    order = None
    if key is not None:
        key = np.asarray(key, np.int64)
        if (key[1:] < key[:-1]).any():
            order = np.argsort(key, kind="stable")
            key = key[order]
    if block_ids is not None and key is not None:
        return order, key
    return order, np.arange(n, dtype=np.int64) // block


def _split(block_number: Int64s, seed: int) -> npt.NDArray[np.bool_]:
    """Which records calibrate: whole blocks, half of every ten neighbours (fewer above 200,000 records), by hash."""
    n = len(block_number)
    share = min(0.5, MAX_CALIBRATION / n)
    units, unit_of = np.unique(block_number, return_inverse=True)
    for _ in range(2):
        ten, place = np.divmod(np.arange(len(units)), 10)
        wanted = np.floor((ten + 1) * 10 * share + 0.5) - np.floor(ten * 10 * share + 0.5)
        last = ten == ten[-1]
        wanted[last] = np.floor((place[-1] + 1) * share + 0.5)
        by_hash = np.lexsort((conformal.hash64(units, seed), ten))
        rank = np.empty(len(units), np.int64)
        rank[by_hash] = place
        chosen: npt.NDArray[np.bool_] = (rank < wanted)[unit_of]
        if len(units) >= 32 and abs(chosen.mean() - share) <= share / 4:
            break
        # Too few blocks, or too unequal ones: cut the baseline into about 64 runs of equal length instead.
        unit_of = np.arange(n) // max(1, n // 64)
        units = np.arange(unit_of[-1] + 1)
    return chosen


def _column_scale(baseline_rows: Callable[[Int64s], Floats], at: Int64s) -> tuple[Floats, Floats]:
    """Mean and standard deviation of every column, float32 (d,) each; 1 for a column that never changes."""
    tiles = list(_tiles(len(at), _COVARIANCE_TILE))
    total = np.zeros(baseline_rows(at[:1]).shape[1])
    for tile in tiles:
        rows = baseline_rows(at[tile])
        with np.errstate(invalid="ignore"):
            total += rows.sum(axis=0, dtype=np.float64)
        if not np.isfinite(total).all():
            _refuse(np.flatnonzero(~np.isfinite(rows).all(axis=1)), at[tile], len(rows), "NaN or infinity")
    centre = total / len(at)
    squares = np.zeros_like(total)
    for tile in tiles:
        squares += np.square(baseline_rows(at[tile]) - centre).sum(axis=0)
    deviation = np.sqrt(squares / len(at))
    # A constant column has a deviation of about its rounding error.
    constant = deviation <= 1e-6 * np.abs(centre)
    return centre.astype(np.float32), np.where(constant | (deviation < 1e-30), 1.0, deviation).astype(np.float32)


def _moments(x: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean (d,), exact in fixed point, and covariance (d, d) of prepared vectors."""
    mean = summary.fixed_point_sum(x) / (len(x) * 2.0**summary.FRACTION_BITS)
    products = np.zeros((x.shape[1], x.shape[1]))
    for tile in _tiles(len(x), _COVARIANCE_TILE):
        centred = x[tile] - mean
        products += centred.T @ centred
    return mean, products / len(x)


def _whitening(covariance: npt.NDArray[np.float64], power: float) -> Floats:
    if power == 0.0:
        return np.zeros((0, 0), np.float32)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    return np.ascontiguousarray(vectors * (values + _RIDGE * values.mean()) ** (-power / 2), np.float32)


def _prototype_count(n: int) -> int:
    return int(np.clip(max(n // 100, min(n // 20, 1000)), 1, 2000))


def _prototypes(y: Floats, count: int, seed: int) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Prototypes, float32 (K, d), and the nearest one of every row; those with too few members are dropped."""
    trained = k_means(y, count, seed=seed)
    _, nearest = _nearest_tiled(NearestIndex(trained), y)
    members = np.bincount(nearest, minlength=count)
    kept = members >= min(MIN_MEMBERS, members.max())
    if kept.all():
        return trained, nearest
    number = np.cumsum(kept) - 1
    homeless = np.flatnonzero(~kept[nearest])
    nearest = number[nearest].astype(np.int32)
    kept_prototypes = np.ascontiguousarray(trained[kept])
    _, nearest[homeless] = _nearest_tiled(NearestIndex(kept_prototypes), y[homeless])
    return kept_prototypes, nearest


def _nearest_tiled(index: NearestIndex, y: Floats) -> tuple[Floats, npt.NDArray[np.int32]]:
    distance, nearest = index.search(y, 1)
    return distance[:, 0], nearest[:, 0].astype(np.int32)


def _nearest(index: NearestIndex, y: Floats) -> tuple[Floats, npt.NDArray[np.int32]]:
    distance, nearest = index.search(y, 1)
    # Scores are compared as multiples of 1e-5, so that what another build computes in the last bits changes nothing.
    return np.rint(distance[:, 0] * np.float32(1e5)) * np.float32(1e-5), nearest[:, 0].astype(np.int32)


def _choose(at: Int64s, most: int, seed: int) -> Int64s:
    """At most so many of the records, those with the smallest hashes."""
    if len(at) <= most:
        return at
    return at[np.argsort(conformal.hash64(at, seed), kind="stable")[:most]]


# ---- the files ------------------------------------------------------------------------------------------------------

_MANIFEST = "reference.json"
_FORMAT = "driftd reference"
_MAPPED = ("exemplars", "calibration_vectors", "block_s", "block_h", "block_c")
_ARRAYS: dict[str, str] = {
    "centre": "float32",
    "scale": "float32",
    "mean": "float64",
    "covariance": "float64",
    "whitening": "float32",
    "prototypes": "float32",
    "prototype_counts": "int64",
    "calibration_scores": "float32",
    "calibration_vectors": "float32",
    "exemplars": "float32",
    "exemplar_rows": "int64",
}
_BLOCK_ARRAYS = {"number": "int64", "n": "int64", "s": "int64", "n_h": "int64", "h": "int64", "c": "int32"}
_NUMBERS = ("seed", "created_ms", "n_fit", "n_calibration", "block_records", "first_ms", "last_ms")


def _arrays(reference: Reference) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: getattr(reference, name) for name in _ARRAYS}
    arrays |= {f"block_{name}": getattr(reference.blocks, name) for name in _BLOCK_ARRAYS}
    arrays |= {f"drift_{name}": np.asarray(array) for name, array in reference.drift.items()}
    arrays["embedder_state"] = np.frombuffer(reference.embedder.state, np.uint8)
    arrays["exemplar_ids"] = _text_array(reference.exemplar_ids)
    arrays["exemplar_excerpts"] = _text_array(reference.exemplar_excerpts)
    return arrays


def _text_array(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(list(texts)).encode("ascii"), np.uint8)


def _describe(array: npt.NDArray[Any]) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    content = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": content}


def _manifest(reference: Reference) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "geometry": asdict(reference.geometry),
        "embedder": {"kind": reference.embedder.kind, "fingerprint": reference.embedder.fingerprint},
        "model": reference.model,
        "space": reference.space,
        **{name: getattr(reference, name) for name in _NUMBERS},
        "arrays": {name: _describe(array) for name, array in _arrays(reference).items()},
    }
    manifest["checksum"] = _checksum(manifest)
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_to_overwrite(target: Path) -> NoReturn:
    raise InvalidReference(
        f"{target} exists, and a reference is never overwritten.",
        hint="Name another directory, or remove this one first.",
    )


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(path: Path, what: str) -> InvalidReference:
    return InvalidReference(
        f"the reference {path} is damaged: {what}.", hint="Restore it from a copy, or build it again."
    )


def _load(path: Path) -> Reference:
    manifest = _read_manifest(path)
    try:
        arrays = {name: _read_array(path, name, described) for name, described in manifest["arrays"].items()}
        geometry = manifest["geometry"]
        parts: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        parts |= {name: int(manifest[name]) for name in _NUMBERS}
        blocks = Blocks(**{name: arrays[f"block_{name}"] for name in _BLOCK_ARRAYS})
        reference = Reference(
            geometry=Geometry(unit=bool(geometry["unit"]), whitening=float(geometry["whitening"])),
            embedder=EmbedderState(**manifest["embedder"], state=arrays["embedder_state"].tobytes()),
            model=manifest["model"],
            space=manifest["space"],
            exemplar_ids=tuple(json.loads(arrays["exemplar_ids"].tobytes())),
            exemplar_excerpts=tuple(json.loads(arrays["exemplar_excerpts"].tobytes())),
            blocks=blocks,
            drift={name[6:]: array for name, array in arrays.items() if name.startswith("drift_")},
            **parts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{_MANIFEST} lacks {error}" if isinstance(error, KeyError) else str(error)) from error
    for name, dtype in [*_ARRAYS.items(), *((f"block_{name}", dtype) for name, dtype in _BLOCK_ARRAYS.items())]:
        if arrays[name].dtype != np.dtype(dtype):
            raise _damaged(path, f"{name}.npy holds {arrays[name].dtype}, expected {dtype}")
    return reference


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_dir():
            found = f"the directory {path} holds no {_MANIFEST}"
        else:
            found = f"{path} is a file" if path.exists() else f"{path} does not exist"
        raise InvalidReference(
            f"expected a reference, but {found}.", hint="Build one: driftd reference build --vectors X.npy --output DIR"
        ) from error
    except OSError as error:
        raise InvalidReference(
            f"cannot read the reference {path}: {error.strerror or error}.", hint="Check its permissions."
        ) from error
    except ValueError as error:
        raise _damaged(path, f"{_MANIFEST} is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise InvalidReference(f"{path / _MANIFEST} does not describe a reference of driftd.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InvalidReference(
            f"{path}: expected format version {FORMAT_VERSION}, got {manifest.get('format_version')}.",
            hint="It was written by another release of driftd: use that one, or build the reference again.",
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise _damaged(path, f"the check sum of {_MANIFEST} differs")
    return manifest


def _read_array(path: Path, name: str, described: Mapping[str, Any]) -> npt.NDArray[Any]:
    file = path / f"{name}.npy"
    try:
        array = np.load(file, mmap_mode="r" if name in _MAPPED else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise _damaged(path, f"{file.name} is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"{file.name} cannot be read ({error})") from error
    found = _describe(array)
    for key, expected in described.items():
        if found.get(key) != expected:
            raise _damaged(path, f"{file.name}: expected {key} {expected}, got {found.get(key)}")
    array.flags.writeable = False
    return np.asarray(array)
