"""Stretches of a stream in which nothing changed, found in a sample spread over its time, before there is a reference.

Each record becomes about a hundred **features** whose means say what the drift rule will look at: principal
components (level), the nearest of 64 prototypes (mix), the distance to it and its tails (shape). Their sums over cells
of time lose daily and weekly waves, if there are any (`detectors.seasons`), and are merged to `UNITS` units of about
as many records.

A change is the best split of one of many intervals (seeded binary segmentation: Kovács, Bühlmann, Li, Munk, 2023). An
interval of n records is split into n1 and n2 of means m1 and m2; the statistics are n1 n2 / n times the square of
m1 - m2, once summed over all features, for changes that many share, and once of the largest, for one that few show.
What they are without a change is found by permuting the units, which leaves the dependence within a unit as it is:
sessions, bursts and slow wandering shorter than a unit are no change. p-values are (1 + hits) / (1 + permutations), the
smaller of the two doubled (Bonferroni), and exact for exchangeable units (Phipson, Smyth, 2010). Both sides of a change
are searched in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.geometry import Geometry, column_scale, prepare
from detectors.index import NearestIndex, k_means
from detectors.seasons import Trial, seek

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

COMPONENTS = 32
PROTOTYPES = 64
TAILS = (0.05, 0.01)  # of the distances: few records of a new kind show here first
CELLS = 600  # half an hour of two weeks
CELL_RECORDS = 20  # fewer, and a cell is merged with the next
UNITS = 64  # 5 hours of two weeks: no change is placed more precisely by the test itself
MIN_UNITS = 4  # on both sides of a change together: below, permutations have nothing to permute
PERMUTATIONS = 499
FALSE_CHANGES = 0.01  # of stretches without a change, the share in which one is believed in
_FITTED = 10_000  # records that components and prototypes are fitted on
_CLIP = 12.0  # standard deviations of a feature: one wild record is no change


@dataclass(frozen=True, slots=True)
class Change:
    """Where the stream changed.

    Attributes:
        time_ms: about when.
        p_value: of the test that found it.
        shift: distance of the means before and after, in standard deviations of the features, less what chance adds.
    """

    time_ms: int
    p_value: float
    shift: float


@dataclass(frozen=True, slots=True)
class Features:
    """A sample in the order of time.

    Attributes:
        time_ms: int64 (n,), ascending.
        values: float64 (n, K), standardised.
        prepared: float32 (n, d), vectors as the geometry compares them.
        distance: float64 (n,), to the nearest of a few prototypes.
    """

    time_ms: Int64s
    values: Floats
    prepared: npt.NDArray[np.float32]
    distance: Floats


def features_of(
    vectors: npt.NDArray[np.float32], time_ms: Int64s, *, geometry: Geometry, seed: int = 0
) -> Features | None:
    """Features of a sample.

    Args:
        vectors: float32 (n, d), finite, and without zeros where the geometry compares directions.
        time_ms: int64 (n,).

    Returns:
        None where all vectors are equal, or fewer than 40.
    """
    order = np.argsort(time_ms, kind="stable")
    rows, times = vectors[order], time_ms[order]
    centre, scale = (np.zeros(rows.shape[1], np.float32), np.ones(rows.shape[1], np.float32))
    if not geometry.unit and len(rows):
        centre, scale = column_scale(lambda: iter([rows]))
    x = prepare(rows, geometry, centre, scale)
    fitted = x[:: -(-len(x) // _FITTED)] if len(x) else x
    if len(fitted) < 2 * CELL_RECORDS:
        return None
    mean = fitted.mean(axis=0, dtype=np.float64)
    covariance = np.cov(fitted, rowvar=False, dtype=np.float64).reshape(x.shape[1], x.shape[1])
    spectrum, directions = np.linalg.eigh(covariance)
    wide = np.flatnonzero(spectrum > max(1e-9 * spectrum[-1], 1e-12))[::-1][:COMPONENTS]
    if len(wide) == 0:
        return None
    z = (x - mean) @ (directions[:, wide] / np.sqrt(spectrum[wide] + 0.1 * spectrum[wide].mean()))
    projected = np.ascontiguousarray(z, np.float32)
    some = np.ascontiguousarray(projected[:: -(-len(x) // _FITTED)])
    distance, nearest = NearestIndex(k_means(some, min(PROTOTYPES, len(some) // 20), seed=seed)).search(projected, 1)
    apart = distance[:, 0].astype(np.float64)
    share = np.bincount(nearest[:, 0]) / len(x)
    used = np.flatnonzero(share > 0)
    mix = (nearest == used) * 1.0
    tails = (apart[:, None] > np.quantile(apart, [1.0 - tail for tail in TAILS])) * 1.0
    columns = np.concatenate([z, mix, np.log(apart + 1e-3 * np.median(apart) + 1e-9)[:, None], tails], axis=1)
    deviation = columns.std(axis=0)
    columns = columns[:, deviation > 1e-9]
    standard = np.clip((columns - columns.mean(axis=0)) / columns.std(axis=0), -_CLIP, _CLIP)
    return Features(times, standard - standard.mean(axis=0), x, apart)


@dataclass(frozen=True, slots=True)
class Stretches:
    """What a sample says of its own time.

    Attributes:
        changes: in the order of time.
        trials: what was found of each season.
    """

    changes: tuple[Change, ...]
    trials: tuple[Trial, ...]


def find_changes(
    features: Features, *, seasons_ms: tuple[float, ...] = (), tolerance: float = 0.05, seed: int = 0
) -> Stretches:
    """Where the stream changed, once what repeats every day or week is taken off.

    Args:
        seasons_ms: periods to look for.
        tolerance: shifts below it, in standard deviations, are no change: with enough records anything is significant.
    """
    at, records, sums = _cells(features)
    if len(at) < MIN_UNITS:
        return Stretches((), ())
    width = float(features.time_ms[-1] - features.time_ms[0] + 1) / CELLS
    fits = tuple(period / width for period in seasons_ms if period >= 8 * width)
    trials, design = seek(at, records, [sums], fits) if fits else ((), None)
    if design is not None:
        # Fitted on all of it: forecasts from other cycles have errors in common, which look like changes between them.
        sums = sums - records[:, None] * (design.features @ design.coefficients(sums))
    unit, weights = _units(records)
    left = np.stack([np.bincount(unit, column) for column in sums.T], axis=1).astype(np.float64)
    found = _search(left, weights, 0, np.random.default_rng(seed), tolerance)
    begin, ends = features.time_ms[0], np.searchsorted(unit, np.arange(unit[-1] + 1))
    changes = []
    for split, p_value, shift in found:
        cell = _sharpened(sums, records, ends, split, sorted(other for other, _, _ in found))
        edge = (at[cell - 1] + at[cell]) / 2.0
        changes.append(Change(int(begin + edge * width), p_value, shift))
    in_ms = tuple(Trial(one.period * width, one.cycles, one.p_value, one.gain, one.used) for one in trials)
    return Stretches(tuple(sorted(changes, key=lambda change: change.time_ms)), in_ms)


def _cells(features: Features) -> tuple[Floats, Floats, Floats]:
    """Middles (N,) in cells of equal time, records (N,) and sums of features (N, K) of the cells that hold enough."""
    times = features.time_ms
    width = float(times[-1] - times[0] + 1) / CELLS
    cell = ((times - times[0]) / width).astype(np.int64)
    counts = np.bincount(cell, minlength=CELLS)
    group = np.zeros(CELLS, np.int64)
    number, held = 0, 0
    for index, count in enumerate(counts.tolist()):
        group[index] = number
        held += count
        if held >= CELL_RECORDS:
            number, held = number + 1, 0
    if held and number:
        group[group == number] = number - 1  # what is left over belongs to the last full one
    row = group[cell]
    records = np.bincount(row).astype(np.float64)
    middle = np.asarray(np.bincount(row, cell + 0.5) / records, np.float64)
    sums = np.stack([np.bincount(row, column) for column in features.values.T], axis=1).astype(np.float64)
    return middle, records, sums


def _units(records: Floats) -> tuple[Int64s, Floats]:
    """The unit of each cell, ascending from 0, and the records of each unit."""
    share = (np.cumsum(records) - records / 2.0) / records.sum()
    unit = np.unique((share * min(UNITS, len(records))).astype(np.int64), return_inverse=True)[1].astype(np.int64)
    return unit, np.bincount(unit, records).astype(np.float64)


def _search(
    sums: Floats, weights: Floats, first: int, random: np.random.Generator, tolerance: float
) -> list[tuple[int, float, float]]:
    """(split, p-value, shift) of every change, splits counted from unit 0 of the whole."""
    n = len(weights)
    if n < MIN_UNITS:
        return []
    intervals = _intervals(n)
    observed, splits = _best(sums[None], weights[None], intervals)
    orders = np.stack([random.permutation(n) for _ in range(PERMUTATIONS)])
    permuted, _ = _best(sums[orders], weights[orders], intervals)
    hits = (permuted >= observed[0] * (1 - 1e-12)).sum(axis=0)
    p_values = (1 + hits) / (1 + PERMUTATIONS)
    which = int(np.argmin(p_values))
    p_value = min(2.0 * float(p_values[which]), 1.0)
    if p_value > FALSE_CHANGES:
        return []
    split = int(splits[0, which])
    shift = _shift(sums, weights, split)
    if shift <= tolerance:
        return []
    return [
        *_search(sums[:split], weights[:split], first, random, tolerance),
        (first + split, p_value, shift),
        *_search(sums[split:], weights[split:], first + split, random, tolerance),
    ]


def _intervals(n: int) -> list[tuple[int, int]]:
    """Intervals of lengths n, n / 2, ..., each half overlapping the next."""
    found, length = {(0, n)}, float(n)
    while length >= MIN_UNITS:
        shifts = max(round(2 * n / length) - 1, 1)
        step = (n - length) / max(shifts - 1, 1)
        found.update((int(place * step), min(int(np.ceil(place * step + length)), n)) for place in range(shifts))
        length /= 2.0
    return sorted(found)


def _best(sums: Floats, weights: Floats, intervals: list[tuple[int, int]]) -> tuple[Floats, Int64s]:
    """For each of p orders of the units: the largest of both statistics (p, 2), and where it splits (p, 2)."""
    orders = len(sums)
    added = np.concatenate([np.zeros((orders, 1, sums.shape[2])), np.cumsum(sums, axis=1)], axis=1)
    heavy = np.concatenate([np.zeros((orders, 1)), np.cumsum(weights, axis=1)], axis=1)
    best = np.full((orders, 2), -np.inf)
    where = np.zeros((orders, 2), np.int64)
    for begin, end in intervals:
        inside = np.arange(begin + 1, end)
        n1 = heavy[:, inside] - heavy[:, [begin]]
        n2 = heavy[:, [end]] - heavy[:, inside]
        s1 = added[:, inside] - added[:, [begin]]
        s2 = added[:, [end]] - added[:, inside]
        # n1 n2 / n (s1 / n1 - s2 / n2)^2
        squares = np.square(s1 * (n2 / n1)[..., None] - s2) / (n2 * (n1 + n2) / n1)[..., None]
        for which, statistic in enumerate((squares.sum(axis=2), squares.max(axis=2))):
            at = statistic.argmax(axis=1)
            value = statistic[np.arange(orders), at]
            better = value > best[:, which]
            best[better, which] = value[better]
            where[better, which] = inside[at[better]]
    return best, where


def _shift(sums: Floats, weights: Floats, split: int) -> float:
    """Distance of the mean features before and after, less what the scatter of the units within both adds to it."""
    difference, chance = np.zeros(sums.shape[1]), 0.0
    for sign, side in ((1.0, slice(0, split)), (-1.0, slice(split, len(sums)))):
        total = weights[side].sum()
        mean = sums[side].sum(axis=0) / total
        difference += sign * mean
        units = len(weights[side])
        if units > 1:
            scatter = np.square(sums[side] - weights[side, None] * mean).sum()
            chance += float(scatter) / total**2 * units / (units - 1)
    return float(np.sqrt(max(float(difference @ difference) - chance, 0.0)))


def _sharpened(sums: Floats, records: Floats, ends: Int64s, split: int, splits: list[int]) -> int:
    """The cell at which a change begins: the best split of the cells between the neighbouring changes."""
    before = max((other for other in splits if other < split), default=0)
    after = min((other for other in splits if other > split), default=len(ends))
    low, high = int(ends[before]), int(ends[after]) if after < len(ends) else len(records)
    _, where = _best(sums[None, low:high], records[None, low:high], [(0, high - low)])
    return low + int(where[0, 0])
