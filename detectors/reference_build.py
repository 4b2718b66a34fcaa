"""Measures a baseline and makes a reference of it: split, moments, prototypes, calibration, blocks, drift constants."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors import conformal
from detectors.baseline import measure_reference
from detectors.errors import InvalidInput
from detectors.geometry import Geometry, as_vectors, column_scale, prepare, soft_whitening
from detectors.index import NearestIndex, k_means, triangular_product
from detectors.norms import NORMS, Norms, log_norms
from detectors.reference import Blocks, Canaries, EmbedderState, Progress, Reference, nearest_prototypes
from detectors.segments import Halves, measure_segments
from detectors.summary import FRACTION_BITS, fixed_point_sum

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

MIN_RECORDS = 20
MIN_MEMBERS = 5  # a prototype with fewer members is an outlier or a clump of duplicates, not a part of normal
MAX_CALIBRATION = 100_000  # 95 % of such calibration sets have a false-positive rate within 20 % of .001 at p <= .001
MAX_BLOCKS = 4096
MAX_EXCERPT = 500  # characters kept of an exemplar's excerpt
MAX_CALIBRATION_VECTORS = 20_000

_ITERATIONS = 10  # of k-means: AUROC on sentence vectors does not change in the third digit after 8
_STRETCH = 1024  # records that go to one half together
_TILE = 4096
_SCORING_TILE = 1024


def build_reference(
    vectors: npt.ArrayLike,
    *,
    geometry: Geometry,
    block: int,
    block_ids: Int64s | None,
    prototypes: int | None,
    exemplars: int,
    excerpts: Sequence[str] | None,
    ids: Sequence[str] | None,
    times_ms: Int64s | None,
    embedder: EmbedderState | None,
    model: str,
    space: str,
    segments: Mapping[str, Sequence[str]],
    segment_values: Mapping[str, Sequence[str]],
    seasons: Sequence[float],
    canaries: Canaries | None,
    performance: Mapping[str, npt.NDArray[Any]],
    seed: int,
    created_ms: int,
    progress: Progress | None,
) -> Reference:
    """See `Reference.build`, which holds the defaults."""
    tell = progress if progress is not None else _silent
    rows = as_vectors(vectors, None)
    n = len(rows)
    _check_options(n, block=block, prototypes=prototypes, exemplars=exemplars)
    _check_columns(n, block_ids=block_ids, times_ms=times_ms, excerpts=excerpts, ids=ids)
    _check_columns(n, **{f"segment_values {name}": column for name, column in segment_values.items()})

    tell("split", 0.0)
    order, block_number = _time_order(n, block, block_ids, times_ms)
    calibrates = _split(block_number, seed)
    fit_at, calibration_at = np.flatnonzero(~calibrates), np.flatnonzero(calibrates)

    tell("moments", 0.02)
    baseline = _Baseline.of(rows, order, geometry, fit_at)
    fit = np.empty((len(fit_at), rows.shape[1]), np.float32)
    for tile in _tiles(len(fit_at), _TILE):
        fit[tile] = baseline.prepared(fit_at[tile])
    mean, covariance = _moments(fit)
    if np.trace(covariance) <= len(mean) * 4.0**-FRACTION_BITS:  # the mean itself is a multiple of about that
        raise InvalidInput(
            f"all {len(fit_at)} records of the fit half are equal: there is nothing to compare with.",
            hint="Check the embedder and the mapped field.",
        )
    search_space = _SearchSpace(mean.astype(np.float32), soft_whitening(covariance, geometry.whitening))
    exemplar_at = _choose(fit_at, exemplars, seed)
    exemplar_vectors = fit[np.searchsorted(fit_at, exemplar_at)]

    tell("prototypes", 0.1)
    for tile in _tiles(len(fit), _TILE):
        fit[tile] = search_space.of(fit[tile])  # in place: the fit half is in memory once
    wanted = _prototype_count(len(fit)) if prototypes is None else min(prototypes, len(fit))
    trained, nearest_fit = _prototypes(fit, wanted, seed, lambda share: tell("prototypes", 0.1 + 0.6 * share))
    del fit

    tell("calibration", 0.75)
    scores, nearest_calibration = _calibrate(baseline, calibration_at, search_space, NearestIndex(trained))
    nearest = np.empty(n, np.int32)
    nearest[fit_at], nearest[calibration_at] = nearest_fit, nearest_calibration
    calibration_scores = np.sort(scores)

    tell("blocks", 0.9)
    blocks = _block_sums(
        baseline,
        block_number,
        nearest=nearest,
        prototypes=len(trained),
        calibration_at=calibration_at,
        p_bins=conformal.p_bins(scores, conformal.score_thresholds(calibration_scores)),
    )

    tell("exemplars", 0.95)
    sample_at = _choose(calibration_at, MAX_CALIBRATION_VECTORS, seed)
    exemplar_rows = baseline.row_numbers(exemplar_at)
    chosen = exemplar_rows.tolist()
    reference = Reference(
        geometry=geometry,
        embedder=embedder if embedder is not None else EmbedderState(),
        model=model,
        space=space,
        segments={name: tuple(values) for name, values in segments.items()},
        seed=seed,
        created_ms=created_ms,
        canaries=canaries,
        performance=performance,
        n_fit=len(fit_at),
        n_calibration=len(calibration_at),
        block_records=int(np.median(np.unique(block_number, return_counts=True)[1])),
        first_ms=int(np.min(times_ms)) if times_ms is not None else -1,
        last_ms=int(np.max(times_ms)) if times_ms is not None else -1,
        centre=baseline.centre,
        scale=baseline.scale,
        mean=mean,
        covariance=covariance,
        whitening=search_space.whitening,
        prototypes=trained,
        prototype_counts=np.bincount(nearest_fit, minlength=len(trained)).astype(np.int64),
        calibration_scores=calibration_scores,
        calibration_vectors=baseline.prepared(sample_at),
        exemplars=exemplar_vectors,
        exemplar_rows=exemplar_rows,
        exemplar_ids=() if ids is None else tuple(ids[row] for row in chosen),
        exemplar_excerpts=() if excerpts is None else tuple(excerpts[row][:MAX_EXCERPT] for row in chosen),
        blocks=blocks,
    )
    reference = replace(reference, drift={**measure_reference(reference, seasons), **_norms(rows, embedder)})
    if segments and segment_values:
        tell("segments", 0.97)
        all_scores = np.zeros(n, np.float32)
        all_scores[calibration_at] = scores
        rows_in_time = baseline.row_numbers(np.arange(n)).tolist()
        own = measure_segments(
            {name: [segment_values[name][row] for row in rows_in_time] for name in segments},
            segments,
            Halves(baseline.prepared, block_number, calibrates, nearest, all_scores),
            reference.drift,
        )
        reference = replace(reference, drift={**reference.drift, **own})
    tell("done", 1.0)
    return reference


def _norms(rows: Floats, embedder: EmbedderState | None) -> dict[str, npt.NDArray[Any]]:
    """Lengths of ready vectors, which say whether another encoder makes them; not of those that driftd makes itself."""
    if embedder is not None and embedder.kind not in ("", "vector"):
        return {}
    sums = Norms()
    for tile in _tiles(len(rows), _TILE):
        sums = sums.merge(Norms.of(log_norms(rows[tile])))
    return {NORMS: np.array([sums.n, sums.total, sums.squares], dtype=np.int64)}


@dataclass(frozen=True, slots=True)
class _Baseline:
    """The given vectors in the order of time; prepared piece by piece, so that no second copy of all is made."""

    rows: Floats
    order: Int64s | None
    geometry: Geometry
    centre: Floats
    scale: Floats

    @classmethod
    def of(cls, rows: Floats, order: Int64s | None, geometry: Geometry, fit_at: Int64s) -> _Baseline:
        dimension = rows.shape[1]
        raw = cls(rows, order, geometry, np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
        if geometry.unit:
            return raw
        for tile in _tiles(len(rows), _TILE):
            raw.prepared(np.arange(tile.start, tile.stop))  # refuses what is not finite, before it is summed
        centre, scale = column_scale(lambda: (raw.taken(fit_at[tile]) for tile in _tiles(len(fit_at), _TILE)))
        return cls(rows, order, geometry, centre, scale)

    def row_numbers(self, at: Int64s) -> Int64s:
        return at if self.order is None else self.order[at]

    def taken(self, at: Int64s) -> Floats:
        return self.rows[self.row_numbers(at)]

    def prepared(self, at: Int64s) -> Floats:
        numbers = self.row_numbers(at)
        return prepare(self.rows[numbers], self.geometry, self.centre, self.scale, numbers=numbers)


@dataclass(frozen=True, slots=True)
class _SearchSpace:
    mean: Floats
    whitening: Floats

    def of(self, x: Floats) -> Floats:
        return triangular_product(x - self.mean, self.whitening) if len(self.whitening) else x


def _silent(step: str, share: float) -> None:
    """No one listens."""


def _tiles(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _check_options(n: int, *, block: int, prototypes: int | None, exemplars: int) -> None:
    if n < MIN_RECORDS:
        raise InvalidInput(
            f"a reference needs at least {MIN_RECORDS} records, got {n}.", hint="200,000 are recommended."
        )
    if block < 1:
        raise InvalidInput(f"block: expected at least 1 record, got {block}.")
    if prototypes is not None and prototypes < 1:
        raise InvalidInput(f"prototypes: expected at least 1, got {prototypes}.")
    if exemplars < 0:
        raise InvalidInput(f"exemplars: expected 0 or more, got {exemplars}.")


def _check_columns(n: int, **columns: npt.NDArray[Any] | Sequence[str] | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise InvalidInput(f"{name}: expected {n} entries, one for each vector, got {len(column)}.")


def calibration_half(block_ids: Int64s, *, seed: int = 0) -> Int64s:
    """Row numbers of the records that a reference of this baseline ranks others among, ascending: in no index.

    Args:
        block_ids: int64 (n,), ascending, as given to `Reference.build`.
        seed: likewise.
    """
    return np.flatnonzero(_split(block_ids, seed))


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
    """Which records calibrate: half of every ten stretches of blocks (fewer above 200,000 records), by hash.

    A stretch has about 1,024 records: a session that lies on both sides of a cut makes its copies look closer to the
    prototypes than new records will be. On sessions over 128 records, the mean normal score of unchanged records was .5
    for stretches of 64 records, .26 for 256 and .06 for 1,024.
    """
    n = len(block_number)
    share = min(0.5, MAX_CALIBRATION / n)
    blocks, block_of = np.unique(block_number, return_inverse=True)
    unit_of = block_of // max(1, min(_STRETCH, n // 64) * len(blocks) // n)
    units = np.arange(unit_of[-1] + 1)
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


def _moments(x: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean (d,), exact in fixed point, and covariance (d, d) of prepared vectors."""
    mean = fixed_point_sum(x) / (len(x) * 2.0**FRACTION_BITS)
    products = np.zeros((x.shape[1], x.shape[1]))
    for tile in _tiles(len(x), _TILE):
        centred = x[tile] - mean
        products += centred.T @ centred
    return mean, products / len(x)


def _prototype_count(n: int) -> int:
    """One for every 20 records up to 500, then one for every 100 up to 2,000.

    On 10,000 sentence vectors of 150 intents, 500 give an AUROC of foreign records of .983, 100 give .972; more than
    500 gain less than a search of twice the time costs.
    """
    return max(1, min(2000, max(n // 100, min(n // 20, 500))))


def _prototypes(
    y: Floats, count: int, seed: int, progress: Callable[[float], None]
) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Prototypes, float32 (K, d), and the nearest one of every row; those with too few members are dropped.

    Plain k-means in the space that is searched; spherical k-means before whitening is no better (AUROC of foreign
    sentences .980 against .983).

    Rows that are equal, as those of a category are, go in once with their number: two prototypes begun on one point
    would lie there together, and chance would say which of them is the nearest. Of no more distinct rows than
    prototypes are asked for, each is one.
    """
    distinct, weights = _distinct(y)
    if len(distinct) <= count:
        trained = distinct
    else:
        trained = k_means(distinct, count, weights=weights, seed=seed, iterations=_ITERATIONS, progress=progress)
    _, nearest = nearest_prototypes(NearestIndex(trained), y)
    members = np.bincount(nearest, minlength=len(trained))
    kept = members >= min(MIN_MEMBERS, members.max())
    if kept.all():
        return trained, nearest
    homeless = np.flatnonzero(~kept[nearest])
    trained = np.ascontiguousarray(trained[kept])
    nearest = (np.cumsum(kept) - 1)[nearest].astype(np.int32)
    if len(homeless):
        _, nearest[homeless] = nearest_prototypes(NearestIndex(trained), y[homeless])
    return trained, nearest


def _distinct(y: Floats) -> tuple[Floats, Floats | None]:
    """The distinct rows in the order of their first, and how often each is there; None where all are distinct."""
    y = np.ascontiguousarray(y)
    whole_rows = y.view(np.dtype((np.void, y.itemsize * y.shape[1])))[:, 0]
    _, first, counts = np.unique(whole_rows, return_index=True, return_counts=True)
    if len(first) == len(y):
        return y, None
    order = np.argsort(first)
    return np.ascontiguousarray(y[first[order]]), counts[order].astype(np.float32)


def _calibrate(
    baseline: _Baseline, at: Int64s, search_space: _SearchSpace, index: NearestIndex
) -> tuple[Floats, npt.NDArray[np.int32]]:
    scores, nearest = np.empty(len(at), np.float32), np.empty(len(at), np.int32)
    for tile in _tiles(len(at), _SCORING_TILE):
        scores[tile], nearest[tile] = nearest_prototypes(index, search_space.of(baseline.prepared(at[tile])))
    return scores, nearest


def _block_sums(
    baseline: _Baseline,
    block_number: Int64s,
    *,
    nearest: npt.NDArray[np.int32],
    prototypes: int,
    calibration_at: Int64s,
    p_bins: npt.NDArray[np.uint8],
) -> Blocks:
    number, place = np.unique(block_number, return_inverse=True)
    merged_from = -(-len(number) // MAX_BLOCKS)
    block = place.astype(np.int64) // merged_from
    count = int(block[-1]) + 1
    s = np.zeros((count, baseline.rows.shape[1]), np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(block)]
    for first, after in itertools.pairwise(cuts):
        for tile in _tiles(after - first, _TILE):
            s[block[first]] += fixed_point_sum(baseline.prepared(np.arange(first + tile.start, first + tile.stop)))
    h = np.zeros((count, conformal.N_BINS), np.int64)
    np.add.at(h, (block[calibration_at], p_bins), 1)
    c = np.zeros((count, prototypes), np.int32)
    np.add.at(c, (block, nearest), 1)
    return Blocks(
        number=number[::merged_from].astype(np.int64),
        n=np.bincount(block, minlength=count).astype(np.int64),
        s=s,
        n_h=h.sum(axis=1),
        h=h,
        c=c,
    )


def _choose(at: Int64s, most: int, seed: int) -> Int64s:
    """At most so many of the records, those with the smallest hashes, in their order."""
    if len(at) <= most:
        return at
    return np.sort(at[np.argsort(conformal.hash64(at, seed), kind="stable")[:most]])
