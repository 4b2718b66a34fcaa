"""Segments against their own past: the constants of the drift rule for each watched value of a field.

The records of one country, or of one predicted class, are not a sample of the whole traffic: compared with the whole
they would alarm for ever. So every segment has its own baseline: its mean, its shares of the prototype groups, its own
calibration scores (and so its own p-values), its own inflation by dependence. What segments share are the prototypes,
their groups, and one map per field: the map that whitens the *pooled* covariance within the values of the field, as in
linear discriminant analysis (Fisher, 1936; Friedman, 1989, for the shrinkage). It is known from all records, however
rare a value is, and it is sensitive to changes within a class that are small against the differences between classes.

The constants of all segments of a reference are stored together with those of the whole traffic, under names that begin
with "segments_"; `constants_of` takes out those of one segment in the form that `detectors.fold.Rule` reads.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors import conformal
from detectors.baseline import (
    FORMAT,
    TICK,
    Inflation,
    group_sums,
    level_moments,
    payoff_inflation,
    quadratic_inflation,
    scores_above_edges,
    shares_moments,
    whitening,
)
from detectors.summary import fixed_point_sum

Constants = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

OTHER = "(other)"  # the segment of all values of a field that are not watched by themselves
MIN_SEGMENT_RECORDS = 500  # fewer baseline records than this give a segment no alarm of its own
MIN_HALF = 100  # of them in each half: moments come from one, p-values from the other
MAX_BLOCKS = 512  # a segment's blocks are merged to so many, which bounds a reference of many segments
MAX_SAMPLE = 5_000
_TILE = 4096
_PREFIX = "segments_"
_SHAPE_EDGES = (2.0**-6, 9 / 32, 1 / 2)  # as for the whole traffic


def segment_names(field: str, known: Sequence[str]) -> list[str]:
    """The segments of a field, such as "country=de", in the order of their codes; the last one takes all others."""
    return [f"{field}={value}" for value in (*known, OTHER)]


def segment_codes(values: Sequence[str], known: Sequence[str]) -> Int64s:
    """The segment of each record, int64 (n,): the place of its value in ``known``, or ``len(known)``."""
    code = {value: index for index, value in enumerate(known)}
    return np.fromiter((code.get(value, len(known)) for value in values), dtype=np.int64, count=len(values))


@dataclass(frozen=True, slots=True)
class Halves:
    """The baseline in the order of time, as `detectors.reference_build` has cut it.

    Attributes:
        prepared: prepared vectors, float32 (m, d), of the records at these places.
        block: int64 (n,), ascending, the block of each record.
        calibrates: bool (n,), the record is in the half that gives the p-values.
        nearest: int (n,), nearest prototype.
        scores: float32 (n,), outlier scores; only those of the calibrating half are read.
    """

    prepared: Callable[[Int64s], npt.NDArray[np.float32]]
    block: Int64s
    calibrates: npt.NDArray[np.bool_]
    nearest: npt.NDArray[np.integer]
    scores: npt.NDArray[np.float32]


def measure_segments(
    values: Mapping[str, Sequence[str]], segments: Mapping[str, Sequence[str]], halves: Halves, constants: Constants
) -> dict[str, npt.NDArray[np.generic]]:
    """Measure every segment that has enough baseline records.

    Args:
        values: for each segment field, the n values of the baseline's records in the order of time.
        segments: for each segment field, the values that are watched by themselves.
        constants: those of the whole traffic, from `detectors.baseline.measure`; the groups of prototypes are taken
            from there.

    Returns:
        Arrays to be stored with ``constants``; none if no segment has enough records.
    """
    names: list[str] = []
    maps: list[Floats] = []
    found: list[dict[str, npt.NDArray[np.generic]]] = []
    for field, known in segments.items():
        codes = segment_codes(values[field], known)
        members = {name: np.flatnonzero(codes == code) for code, name in enumerate(segment_names(field, known))}
        enough = {name: at for name, at in members.items() if _enough(halves.calibrates[at])}
        if not enough:
            continue
        moments = {name: _moments(halves, at[~halves.calibrates[at]]) for name, at in enough.items()}
        weights = {name: float(len(at)) for name, at in enough.items()}
        pooled = sum(weights[name] * moments[name][1] for name in enough) / sum(weights.values())
        if np.trace(np.asarray(pooled)) <= len(np.asarray(pooled)) * TICK**2:
            continue  # the field decides the vector: within a value there is nothing that could change
        level_map, _ = whitening(np.asarray(pooled))
        for name, at in enough.items():
            names.append(name)
            found.append(_measure(halves, at, moments[name][1], level_map, constants, len(maps)))
        maps.append(level_map)
    if not found:
        return {}
    rows = [len(one["block_histogram"]) for one in found]
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0] if name not in _RAGGED}
    stacked |= {name: _padded([np.asarray(one[name], dtype=np.float64) for one in found]) for name in _PADDED}
    stacked["block_histogram"] = np.concatenate([one["block_histogram"] for one in found])
    stacked["rows"] = np.cumsum([0, *rows]).astype(np.int64)
    stacked["maps"] = np.stack(maps)
    stacked["names"] = np.frombuffer(json.dumps(names).encode("ascii"), np.uint8)
    return {_PREFIX + name: array for name, array in stacked.items()}


def measured_segments(constants: Constants) -> list[str]:
    """The segments with a baseline of their own, such as "country=de"."""
    if f"{_PREFIX}names" not in constants:
        return []
    return [str(name) for name in json.loads(np.asarray(constants[f"{_PREFIX}names"]).tobytes())]


def constants_of(constants: Constants, segment: str) -> Constants:
    """The constants of one segment, or of the whole traffic for "".

    Raises:
        KeyError: the segment has no baseline of its own; see `measured_segments`.
    """
    whole = {name: array for name, array in constants.items() if not name.startswith(_PREFIX)}
    if segment == "":
        return whole
    names = measured_segments(constants)
    if segment not in names:
        raise KeyError(segment)
    index = names.index(segment)

    def part(name: str) -> npt.NDArray[np.generic]:
        return np.asarray(constants[_PREFIX + name])

    rows = part("rows")
    own = {
        name.removeprefix(_PREFIX): np.asarray(array)[index]
        for name, array in constants.items()
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in ("names", "maps", "rows", "block_histogram")
    }
    return own | {
        "mix_groups": np.asarray(constants["mix_groups"]),
        "level_map": part("maps")[int(own["map"])],
        "block_histogram": part("block_histogram")[int(rows[index]) : int(rows[index + 1])],
    }


def thresholds_of(constants: Constants, segment: str) -> npt.NDArray[np.float32] | None:
    """The 48 scores at which the segment's own p-value crosses an edge, for `detectors.conformal.p_bins`.

    None where the segment has no baseline of its own.
    """
    names = measured_segments(constants)
    if segment not in names:
        return None
    return np.asarray(np.asarray(constants[f"{_PREFIX}thresholds"], dtype=np.float32)[names.index(segment)])


_PADDED = ("level_inflation", "mix_inflation")
_RAGGED = (*_PADDED, "block_histogram")


def _enough(calibrates: npt.NDArray[np.bool_]) -> bool:
    n, half = len(calibrates), int(np.count_nonzero(calibrates))
    return n >= MIN_SEGMENT_RECORDS and min(half, n - half) >= MIN_HALF


def _moments(halves: Halves, at: Int64s) -> tuple[Floats, Floats]:
    """Mean (d,) and covariance (d, d) of the records at these places."""
    first = halves.prepared(at[:1])[0].astype(np.float64)  # sums about a point nearby lose no digits
    total, square = np.zeros(len(first)), np.zeros((len(first), len(first)))
    for start in range(0, len(at), _TILE):
        x = halves.prepared(at[start : start + _TILE]).astype(np.float64) - first
        total += x.sum(axis=0)
        square += x.T @ x
    mean = total / len(at)
    return mean + first, square / len(at) - np.outer(mean, mean)


def _measure(
    halves: Halves, at: Int64s, covariance: Floats, level_map: Floats, constants: Constants, field: int
) -> dict[str, npt.NDArray[np.generic]]:
    """The constants of the segment whose records are at these places."""
    numbers, place = np.unique(halves.block[at], return_inverse=True)
    block = place // -(-len(numbers) // MAX_BLOCKS)
    n = np.bincount(block).astype(np.float64)
    cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(at)]
    sums = np.stack([_sum(halves, at[first:after]) for first, after in itertools.pairwise(cuts)]) * TICK
    mean = sums.sum(axis=0) / len(at)

    # A covariance of few records has its eigenvalues spread too wide: the null law is then wider than the truth.
    spectrum, rotation = np.linalg.eigh(level_map.T @ covariance @ level_map)
    spectrum = np.maximum(spectrum, 0.0)
    calibrating = at[halves.calibrates[at]]
    sample = halves.prepared(calibrating[:: -(-len(calibrating) // MAX_SAMPLE)]).astype(np.float64)
    level = level_moments(spectrum, (sample - mean) @ level_map @ rotation, n0=len(at), held_out=True)
    level_inflation = quadratic_inflation((sums - n[:, None] * mean) @ level_map, n, level)

    groups = np.asarray(constants["mix_groups"])
    counts = np.zeros((len(n), len(groups)))
    np.add.at(counts, (block, halves.nearest[at]), 1.0)
    grouped = group_sums(counts, groups)
    shares, scale, mix = shares_moments(
        with_unseen(grouped.sum(axis=0), np.asarray(constants["mix_shares"], np.float64))
    )
    mix_inflation = quadratic_inflation((grouped - n[:, None] * shares) * scale, n, mix)

    scores = halves.scores[calibrating]
    ordered = np.sort(scores)
    thresholds = conformal.score_thresholds(ordered)
    histogram = np.zeros((len(n), conformal.N_BINS), dtype=np.int32)
    np.add.at(histogram, (block[halves.calibrates[at]], conformal.p_bins(scores, thresholds)), 1)
    indicators = np.stack([edge >= conformal.P_EDGES for edge in _SHAPE_EDGES]).astype(np.float64)
    excess, shape_measured = payoff_inflation(histogram, indicators)
    return {
        "format": np.array([FORMAT]),
        "map": np.array(field),
        "level_mean": mean,
        "level_moments": level.array(),
        "level_inflation": _rows(level_inflation),
        "mix_shares": shares,
        "mix_scale": scale,
        "mix_moments": mix.array(),
        "mix_inflation": _rows(mix_inflation),
        "thresholds": thresholds,
        "calibration": np.array([float(len(scores)), len(scores) / float(excess.max())]),
        "calibration_above": scores_above_edges(ordered.astype(np.float64)),
        "block_histogram": histogram,
        "inflation_measured": np.array([level_inflation.measured, mix_inflation.measured, shape_measured]),
    }


def with_unseen(counts: Floats, usual: Floats) -> Floats:
    """Counts per group (G,) in which groups that a small segment never showed have their part: (G,), the same total.

    A group that is merely rare would look impossible, and its first record like an alarm. All unseen groups together
    have the probability (1 + groups seen once) / n (Good, 1953), divided among them as in the whole traffic.

    Args:
        counts: records of the segment.
        usual: shares of the whole traffic, positive where a segment may have records.
    """
    total = float(counts.sum())
    unseen = (counts == 0) & (usual > 0)
    if not unseen.any():
        return counts
    mass = min((1.0 + float(np.count_nonzero(counts == 1))) / total, 0.5)
    return np.where(unseen, total * mass * usual / usual[unseen].sum(), counts * (1.0 - mass))


def _sum(halves: Halves, at: Int64s) -> Int64s:
    """Sum of the vectors in fixed point."""
    tiles = [at[start : start + _TILE] for start in range(0, len(at), _TILE)]
    return np.asarray(np.sum([fixed_point_sum(halves.prepared(tile)) for tile in tiles], axis=0))


def _rows(inflation: Inflation) -> Floats:
    return np.stack([inflation.records, inflation.v1, inflation.v2])


def _padded(tables: Sequence[Floats]) -> Floats:
    """Tables (3, W) of several widths as one array; the last column is held, as it is for longer windows anyway."""
    widest = max(table.shape[1] for table in tables)
    return np.stack([np.pad(table, ((0, 0), (0, widest - table.shape[1])), mode="edge") for table in tables])
