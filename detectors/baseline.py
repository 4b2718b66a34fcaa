"""Constants of the drift rule, measured once when a reference is built and stored with it.

The drift rule (`detectors.fold`) compares sums over windows of blocks with what the baseline says of such sums when
nothing changes. What it needs for that is measured here, from arrays alone:

* level: the map that whitens the vectors softly, A = V / sqrt(w + lambda) with (w, V) the eigenvalues and
  eigenvectors of the baseline's covariance and lambda = 0.3 mean(w); the first three cumulants of |A sum(x - mean)|^2
  / n over n records;
* mix: the same with the one-hot vector of a record's prototype group in place of x, groups being up to 256 clusters of
  prototypes;
* season: the mean and the shares at each phase of a period, where the baseline shows one (`detectors.seasons`);
* inflation: by how much sessions, bursts and what is left of seasons inflate the mean and the variance of those
  statistics, measured on the baseline's own blocks in the order of time, for windows of every geometric length;
* calibration: how far the true distribution of the p-values may lie from the uniform one, given that the calibration
  set is finite (Clopper and Pearson, 1934).

The third cumulant uses the finite-window corrections of a degenerate U-statistic (Hoeffding, 1948), so that windows
of a few hundred records have the right tail. scipy.special is not needed here; eigenvalues come from numpy.linalg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from detectors.conformal import N_BINS, P_EDGES
from detectors.errors import InvalidInput, InvalidReference
from detectors.seasons import Design, seek, trials_array
from detectors.summary import FRACTION_BITS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Constants = Mapping[str, npt.NDArray[np.generic]]

FORMAT = 1
TICK = 2.0**-FRACTION_BITS  # one step of the fixed-point sums in a block summary
SHRINKAGE = 0.3  # lambda as a share of the mean eigenvalue; delays are flat between 0.1 and 1
MAX_GROUPS = 256
_NAMES = (
    "level_mean",
    "level_map",
    "level_moments",
    "level_inflation",
    "mix_groups",
    "mix_shares",
    "mix_scale",
    "mix_moments",
    "mix_inflation",
    "calibration",
    "calibration_above",
    "block_histogram",
    "inflation_measured",
)
# Columns that never vary in the baseline have no scale of their own: a deviation of 32 fixed-point steps counts as
# one sigma.
SMALLEST_LAMBDA = (32.0 * TICK) ** 2
MIN_WINDOWS = 20  # disjoint windows without which no inflation of level and mix is read off the baseline
MIN_PAYOFF_WINDOWS = 30  # the same for shape


@dataclass(frozen=True, slots=True)
class Moments:
    """Null moments of z = A(x - mean) for one quadratic channel.

    Attributes:
        t1, t2, t3: traces of the first three powers of the covariance of z.
        s1: its greatest eigenvalue.
        k4: var |z|^2 - 2 t2, the excess of the variance for windows of n records, times n.
        c3: the excess of the third cumulant for windows of n records, times n.
        floor: mean |z|^2 / t1 over records that the covariance has not seen, plus two standard errors; at least 1.
        n: baseline records behind the mean.
    """

    t1: float
    t2: float
    t3: float
    s1: float
    k4: float
    c3: float
    floor: float
    n: float

    def array(self) -> Floats:
        return np.array([self.t1, self.t2, self.t3, self.s1, self.k4, self.c3, self.floor, self.n])

    @classmethod
    def from_array(cls, values: npt.NDArray[np.generic]) -> Moments:
        return cls(*(float(value) for value in np.asarray(values, dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class Inflation:
    """What dependence between records does to the mean (v1) and the variance (v2) of a statistic, by window length.

    Attributes:
        records: mean records in the windows that were measured, increasing.
        v1, v2: factors, 1 where the excess is not significant.
        measured: False where the baseline has too few blocks, and all factors are 1 for want of knowledge.
    """

    records: Floats
    v1: Floats
    v2: Floats
    measured: bool


def measure(
    *,
    n0: int,
    mean: npt.NDArray[np.floating],
    covariance: npt.NDArray[np.floating],
    sample: npt.NDArray[np.floating],
    sample_held_out: bool,
    centroids: npt.NDArray[np.floating],
    counts: npt.NDArray[np.integer],
    calibration_scores: npt.NDArray[np.floating],
    block_n: npt.NDArray[np.integer],
    block_s: npt.NDArray[np.integer],
    block_h: npt.NDArray[np.integer],
    block_c: npt.NDArray[np.integer],
    block_at: npt.NDArray[np.floating] | None = None,
    seasons: Sequence[float] = (),
    seed: int = 0,
) -> dict[str, npt.NDArray[np.generic]]:
    """Measure every constant of the drift rule on a baseline.

    Args:
        n0: records behind ``mean`` and ``covariance``.
        mean, covariance: (d,) and (d, d), of the vectors whose sums the block summaries hold (unit length for angular
            ones).
        sample: (m, d), such vectors, about 20,000; used for the finite-window corrections.
        sample_held_out: the sample's records are not in ``covariance``; then the covariance's own error is measured
            on them.
        centroids, counts: (K, d) prototypes and (K,) baseline records nearest to each.
        calibration_scores: (n_calibration,), ascending, behind the p-values; may be empty.
        block_n, block_s, block_h, block_c: (N,), (N, d) in fixed point 2^-20, (N, 49) and (N, K): the summaries of the
            baseline's blocks in the order of time, of about the length that live blocks have. N may be 0. Rows of
            ``block_h`` may count fewer records than the block has, or none, where the others made the prototypes.
        block_at: (N,), ascending: the middle of each block's time, in live blocks, so that live block number b has its
            middle at b + 1/2. By default those of N live blocks from number 0 on.
        seasons: periods to look for, in live blocks. At most one of them is followed, and none of which the baseline
            holds fewer than two cycles.
        seed: seed of the clustering of prototypes into groups.

    Returns:
        Named arrays, to be stored with the reference and handed to `detectors.fold.Rule`. ``inflation_measured`` holds
        three flags (level, mix, shape): False means that the baseline has too few blocks to see sessions or seasons,
        and that the rule trusts records to be independent. ``season_trials`` is there if ``seasons`` were given, the
        other ``season_...`` if one was found.

    Raises:
        InvalidInput: shapes that do not fit together, or values that are not finite.
    """
    mean64, covariance64 = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    sample64 = np.asarray(sample, dtype=np.float64)
    dimension, prototypes, blocks = len(mean64), len(centroids), len(block_n)
    middles = np.asarray(np.arange(blocks) + 0.5 if block_at is None else block_at, dtype=np.float64)
    expected = {
        "covariance": (covariance64, (dimension, dimension)),
        "sample": (sample64, (len(sample64), dimension)),
        "centroids": (np.asarray(centroids), (prototypes, dimension)),
        "counts": (np.asarray(counts), (prototypes,)),
        "block_s": (np.asarray(block_s), (blocks, dimension)),
        "block_h": (np.asarray(block_h), (blocks, N_BINS)),
        "block_c": (np.asarray(block_c), (blocks, prototypes)),
        "block_at": (middles, (blocks,)),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise InvalidInput(
                f"{name} has shape {array.shape}, expected {shape}.", hint="Pass arrays of one and the same baseline."
            )
    if n0 < 2 or prototypes < 1:
        raise InvalidInput(
            f"A baseline of {n0} records and {prototypes} prototypes is too small.", hint="Give more records."
        )
    if (np.diff(middles) <= 0).any() or not all(1.0 < period < np.inf for period in seasons):
        raise InvalidInput(
            "Middles of blocks must ascend, and the period of a season must be longer than a block.",
            hint="Give blocks in the order of time, and periods in blocks.",
        )
    if not (np.isfinite(mean64).all() and np.isfinite(covariance64).all() and np.isfinite(sample64).all()):
        raise InvalidInput(
            "The baseline's moments or its sample hold values that are not finite.", hint="Clean the data."
        )

    kept = np.asarray(block_n) > 0
    sizes = np.asarray(block_n, dtype=np.float64)[kept]

    level_map, spectrum = whitening(covariance64)
    level = level_moments(spectrum, (sample64 - mean64) @ level_map, n0=n0, held_out=sample_held_out)
    sums = np.asarray(block_s)[kept].astype(np.float64) * TICK
    level_sums = (sums - sizes[:, None] * mean64) @ level_map

    groups = merge_prototypes(np.asarray(centroids, dtype=np.float64), np.asarray(counts), seed=seed)
    shares, scale, mix = shares_moments(group_sums(np.asarray(counts), groups))
    grouped = group_sums(np.asarray(block_c)[kept], groups)
    mix_sums = (grouped - sizes[:, None] * shares) * scale

    season: dict[str, npt.NDArray[np.generic]] = {}
    design: Design | None = None
    if len(seasons):
        trials, design = seek(middles[kept], sizes, (level_sums, mix_sums), seasons)
        season["season_trials"] = trials_array(trials)
    if design is not None:
        # Both forecasts are fitted to all records of the blocks, whatever the plain mean was taken from.
        level, mix = (replace(moments, n=float(sizes.sum())) for moments in (level, mix))
        level_sums, mix_sums = design.residuals(level_sums), design.residuals(mix_sums)
        season |= {
            "season_period": np.array([design.period]),
            "season_harmonics": np.array(design.harmonics, dtype=np.int64),
            "season_level": design.coefficients(sums),
            "season_mix": design.coefficients(grouped),
            "season_error": design.error(),
        }
    level_inflation = quadratic_inflation(level_sums, sizes, level, design)
    mix_inflation = quadratic_inflation(mix_sums, sizes, mix, design)

    scores = np.asarray(calibration_scores, dtype=np.float64)
    histogram = np.asarray(block_h)[kept].astype(np.int32)
    indicators = np.stack([edge >= P_EDGES for edge in (2.0**-6, 9 / 32, 1 / 2)]).astype(np.float64)
    excess, shape_measured = payoff_inflation(histogram, indicators)
    return {
        "format": np.array([FORMAT]),
        "level_mean": mean64,
        "level_map": level_map,
        "level_moments": level.array(),
        "level_inflation": np.stack([level_inflation.records, level_inflation.v1, level_inflation.v2]),
        "mix_groups": groups,
        "mix_shares": shares,
        "mix_scale": scale,
        "mix_moments": mix.array(),
        "mix_inflation": np.stack([mix_inflation.records, mix_inflation.v1, mix_inflation.v2]),
        "calibration": np.array([float(len(scores)), len(scores) / float(excess.max())]),
        "calibration_above": scores_above_edges(scores),
        "block_histogram": histogram,
        "inflation_measured": np.array([level_inflation.measured, mix_inflation.measured, shape_measured]),
        **season,
    }


class _Blocks(Protocol):
    """The blocks of a baseline as `measure_reference` reads them."""

    @property
    def number(self) -> npt.NDArray[np.int64]: ...
    @property
    def n(self) -> npt.NDArray[np.int64]: ...
    @property
    def s(self) -> npt.NDArray[np.int64]: ...
    @property
    def h(self) -> npt.NDArray[np.int64]: ...
    @property
    def c(self) -> npt.NDArray[np.int32]: ...


class _Measured(Protocol):
    """What `measure_reference` reads; `detectors.reference.Reference` has it."""

    @property
    def seed(self) -> int: ...
    @property
    def covariance(self) -> npt.NDArray[np.float64]: ...
    @property
    def prototypes(self) -> npt.NDArray[np.float32]: ...
    @property
    def calibration_scores(self) -> npt.NDArray[np.float32]: ...
    @property
    def calibration_vectors(self) -> npt.NDArray[np.float32]: ...
    @property
    def blocks(self) -> _Blocks: ...


def measure_reference(reference: _Measured, seasons: Sequence[float] = ()) -> dict[str, npt.NDArray[np.generic]]:
    """`measure` on a reference's own arrays; ``seasons`` are periods to look for, in blocks.

    The mean and the shares of the prototypes are taken over all records of the baseline: those that calibrate the
    scores halve their error.
    """
    blocks = reference.blocks
    records = int(blocks.n.sum())
    return measure(
        n0=records,
        mean=np.asarray(blocks.s).sum(axis=0) * (TICK / records),
        covariance=reference.covariance,
        sample=reference.calibration_vectors,
        sample_held_out=True,
        centroids=reference.prototypes,
        counts=np.asarray(blocks.c).sum(axis=0, dtype=np.int64),
        calibration_scores=reference.calibration_scores,
        block_n=blocks.n,
        block_s=blocks.s,
        block_h=blocks.h,
        block_c=blocks.c,
        block_at=_middles(np.asarray(blocks.number)),
        seasons=seasons,
        seed=reference.seed,
    )


def _middles(number: Ints) -> Floats:
    """Middle of each block's time, in live blocks, from the first of the live blocks that were merged in each."""
    if len(number) < 2:
        return np.asarray(number + 0.5, dtype=np.float64)
    gaps = np.append(np.diff(number), np.iinfo(np.int64).max)
    # Where no records came for a while, a block is not longer for that.
    return np.asarray(number + np.minimum(gaps, np.median(gaps[:-1])) / 2.0)


def check_format(constants: Constants) -> None:
    """Raise InvalidReference unless the constants are complete and of the format that this version reads."""
    hint = "Build the reference again: driftd reference build ..."
    found = int(constants["format"][0]) if "format" in constants else None
    if found != FORMAT:
        raise InvalidReference(f"The drift constants have format {found}, expected {FORMAT}.", hint=hint)
    missing = [name for name in _NAMES if name not in constants]
    if missing:
        raise InvalidReference(f"The drift constants lack {', '.join(missing)}.", hint=hint)


# --- level -----------------------------------------------------------------------------------------------------------


def whitening(covariance: Floats) -> tuple[Floats, Floats]:
    """The softly whitening map A (d, d), z = (x - mean) @ A, and the eigenvalues (d,) of cov z, all below 1."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
    values = np.maximum(values, 0.0)  # a covariance of few records has eigenvalues of -1e-18
    shrink = max(SHRINKAGE * float(values.mean()), SMALLEST_LAMBDA)
    return np.ascontiguousarray(vectors / np.sqrt(values + shrink)), values / (values + shrink)


def level_moments(spectrum: Floats, z: Floats, *, n0: int, held_out: bool) -> Moments:
    """Moments of whitened records from the eigenvalues (d,) and, for finite windows, from a sample z (m, d)."""
    t1, t2, t3 = (float((spectrum**power).sum()) for power in (1, 2, 3))
    records = len(z)
    if records < 4:
        return Moments(t1, t2, t3, float(spectrum.max()), 0.0, 0.0, 1.0, float(n0))
    q = np.einsum("ij,ij->i", z, z)
    r = (z * z) @ spectrum
    # Pairs across the two halves of the sample, so that the copies within a session do not pose as independent records.
    half = records // 2
    step = -(-half // 1500)
    cubes = float(((z[:half:step] @ z[half : 2 * half : step].T) ** 3).mean())
    k4 = float(q.var()) - 2.0 * t2
    c3 = 12.0 * (float(np.mean((q - q.mean()) * (r - r.mean()))) - 2.0 * t3) + 4.0 * cubes
    floor = 1.0
    if held_out and t1 > 0:
        floor = max(1.0, float(q.mean() + 2.0 * q.std() / np.sqrt(records)) / t1)
    return Moments(t1, t2, t3, float(spectrum.max()), k4, c3, floor, float(n0))


# --- mix -------------------------------------------------------------------------------------------------------------


def merge_prototypes(centroids: Floats, counts: npt.NDArray[np.generic], *, seed: int) -> Ints:
    """Put each of K prototypes into one of min(256, K) groups of neighbours; returns int64 (K,), no group empty.

    Weighted k-means of the centroids (Lloyd, 1982) from k-means++ seeds (Arthur and Vassilvitskii, 2007).
    """
    prototypes = len(centroids)
    if prototypes <= MAX_GROUPS:
        return np.arange(prototypes, dtype=np.int64)
    weights = np.maximum(np.asarray(counts, dtype=np.float64), 1.0)
    random = np.random.default_rng(seed)
    squares = np.einsum("ij,ij->i", centroids, centroids)

    def distances(points: Floats) -> Floats:
        cross = centroids @ points.T
        return np.asarray(np.maximum(squares[:, None] - 2.0 * cross + np.einsum("ij,ij->i", points, points), 0.0))

    chosen = [int(random.choice(prototypes, p=weights / weights.sum()))]
    nearest = distances(centroids[chosen])[:, 0]
    for _ in range(MAX_GROUPS - 1):
        nearest[chosen] = 0.0
        mass = nearest * weights
        free = np.setdiff1d(np.arange(prototypes), chosen)
        # Where all centroids are the same point there is no mass left; any free prototype is as good as another.
        pick = int(random.choice(prototypes, p=mass / mass.sum())) if mass.sum() > 0 else int(free[0])
        chosen.append(pick)
        nearest = np.minimum(nearest, distances(centroids[[pick]])[:, 0])
    centres = centroids[chosen].copy()
    groups: Ints = np.full(prototypes, -1, dtype=np.int64)
    for _ in range(30):
        away = distances(centres)
        assigned = away.argmin(axis=1).astype(np.int64)
        # A group that lost all its members takes the prototype that lies worst in a group of several.
        for group in np.setdiff1d(np.arange(MAX_GROUPS), assigned):
            crowded = np.bincount(assigned, minlength=MAX_GROUPS)[assigned] > 1
            cost = np.where(crowded, away[np.arange(prototypes), assigned], -1.0)
            assigned[int(cost.argmax())] = group
        if np.array_equal(assigned, groups):
            break
        groups = assigned
        members = np.bincount(groups, weights=weights, minlength=MAX_GROUPS)
        for column in range(centroids.shape[1]):
            centres[:, column] = (
                np.bincount(groups, weights=weights * centroids[:, column], minlength=MAX_GROUPS) / members
            )
    return groups


def group_sums(counts: npt.NDArray[np.generic], groups: npt.NDArray[np.generic]) -> Floats:
    """Counts per prototype (..., K) added up per group: float64 (..., G)."""
    members = np.zeros((len(groups), int(groups.max()) + 1))
    members[np.arange(len(groups)), np.asarray(groups, dtype=np.int64)] = 1.0
    return np.asarray(np.asarray(counts, dtype=np.float64) @ members)


def shares_moments(counts: Floats) -> tuple[Floats, Floats, Moments]:
    """Shares pi (G,), scales a (G,), exact moments of z = a (one-hot - pi), from baseline counts per group (G,)."""
    total = float(counts.sum())
    groups = len(counts)
    shares = counts / total if total > 0 else np.full(groups, 1.0 / groups)
    scale = 1.0 / np.sqrt(shares + SHRINKAGE / groups)
    centre = scale * shares
    covariance = np.diag(scale * scale * shares) - np.outer(centre, centre)
    square = covariance @ covariance
    spectrum = np.linalg.eigvalsh(covariance)
    z = np.diag(scale) - centre  # row j: what a record of group j adds
    q = np.einsum("ij,ij->i", z, z)
    r = np.einsum("ij,jk,ik->i", z, covariance, z, optimize=True)
    t2, t3 = float(np.trace(square)), float(np.trace(square @ covariance))
    q_mean, r_mean = float(shares @ q), float(shares @ r)
    k4 = float(shares @ (q - q_mean) ** 2) - 2.0 * t2
    cubes = float(shares @ (z @ z.T) ** 3 @ shares)
    c3 = 12.0 * (float(shares @ ((q - q_mean) * (r - r_mean))) - 2.0 * t3) + 4.0 * cubes
    moments = Moments(float(np.trace(covariance)), t2, t3, float(spectrum[-1]), k4, c3, 1.0, max(total, 1.0))
    return shares, scale, moments


# --- shape ---------------------------------------------------------------------------------------------------------


def scores_above_edges(scores: Floats) -> Ints:
    """For each edge of the bins, the calibration scores strictly above the one at which p crosses it: int64 (49,).

    Without ties these are one fewer than floor(edge (n + 1)). Where many scores are the same, p jumps across several
    edges at once, and far fewer records than an edge says have such a p.

    Args:
        scores: (n,), ascending.
    """
    n = len(scores)
    if n == 0:
        return np.zeros(N_BINS, dtype=np.int64)
    rank = np.clip(np.floor(P_EDGES * (n + 1)).astype(np.int64), 0, n)
    above = n - np.searchsorted(scores, scores[n - np.maximum(rank, 1)], side="right")
    return np.where(rank == 0, 0, above).astype(np.int64)


# --- dependence ------------------------------------------------------------------------------------------------------


def quadratic_inflation(z: Floats, records: Floats, moments: Moments, season: Design | None = None) -> Inflation:
    """Inflation of T = |sum z|^2 / n over windows of 1, 2, 4, ... blocks, against independent records.

    Args:
        z: (N, D), sums of whitened, centred records per block, in the order of time.
        records: (N,), records per block.
        moments: of a single z.
        season: each block was centred by the forecast of the other folds of this design: windows then lie within a
            fold, and their T is larger by that forecast's error.
    """
    blocks, total = len(records), float(records.sum())
    if blocks < MIN_WINDOWS or moments.t1 <= 0 or moments.t2 <= 0:
        return Inflation(np.ones(1), np.ones(1), np.ones(1), measured=False)
    sums = np.concatenate([np.zeros((1, z.shape[1])), np.cumsum(z, axis=0)])
    counts = np.concatenate([[0.0], np.cumsum(records)])
    lengths, first, second = [], [], []
    width, greatest = 1, 1.0
    while blocks // width >= MIN_WINDOWS:
        starts = np.arange(0, blocks - width + 1, max(1, width // 4))
        if season is not None:
            starts, error_of_forecast = season.windows(starts, width)
            if len(starts) < MIN_WINDOWS:
                break
        n = counts[starts + width] - counts[starts]
        delta = sums[starts + width] - sums[starts]
        if season is not None:
            overlap = 1.0 + error_of_forecast
        else:
            # The mean has an error of its own, and it was taken from these very records, or from a part of them.
            overlap = 1.0 + n / moments.n - 2.0 * n * min(1.0, moments.n / total) / moments.n
        t = np.einsum("ij,ij->i", delta, delta) / n / overlap
        windows = blocks // width
        error = float(np.sqrt(2.0 * moments.t2 / windows)) / moments.t1
        ratio = float(t.mean()) / moments.t1
        greatest = max(greatest, ratio * (1.0 + error) if ratio >= 1.0 + 3.0 * error else 1.0)
        spread = 2.0 * moments.t2 * greatest**2 + moments.k4 * float((1.0 / n).mean())
        error2 = float(np.sqrt(2.0 / windows))
        ratio2 = float(t.var()) / spread if spread > 0 else 1.0
        lengths.append(float(n.mean()))
        first.append(greatest)
        second.append(ratio2 * (1.0 + error2) if ratio2 >= 1.0 + 2.5 * error2 else 1.0)
        width *= 2
    return Inflation(np.array(lengths), np.array(first), np.array(second), measured=True)


def payoff_inflation(histogram: npt.NDArray[np.generic], payoffs: Floats) -> tuple[Floats, bool]:
    """Greatest variance, against independent records, of each payoff's sum over windows of 1, 2, 4, ... blocks.

    Blocks without p-values (a baseline's records may serve as prototypes or as calibration, not as both) are gaps: each
    product of two blocks is weighted by how rarely two blocks that far apart both have some (Horvitz and Thompson,
    1952).

    Args:
        histogram: (N, 49), p-value counts of the baseline's blocks in the order of time; rows of zeros are gaps.
        payoffs: (E, 49), what a record in each bin pays.

    Returns:
        Factors (E,), 1 where the excess is below three standard errors, and whether there were blocks enough to see
        any.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    n = counts.sum(axis=1)
    present = n > 0
    greatest = np.ones(len(payoffs))
    if present.sum() < MIN_PAYOFF_WINDOWS:
        return greatest, False
    blocks, total = len(n), n.sum()
    shares = counts.sum(axis=0) / total
    means = payoffs @ shares
    variances = (payoffs - means[:, None]) ** 2 @ shares
    usable = variances > 0
    sums = counts @ payoffs.T - n[:, None] * means  # (N, E)
    longest = blocks // MIN_PAYOFF_WINDOWS
    pairs = [float(np.mean(present[lag:] & present[: blocks - lag])) for lag in range(longest)]
    weights = np.array([1.0 / share if share > 0 else 0.0 for share in pairs])
    width = 1
    while width <= longest:
        step = max(1, width // 4)
        view = np.lib.stride_tricks.sliding_window_view(sums, width, axis=0)[::step]  # (windows, E, width)
        size = np.lib.stride_tricks.sliding_window_view(n, width)[::step].sum(axis=1) * weights[0]
        lags = np.abs(np.subtract.outer(np.arange(width), np.arange(width)))
        found = ((view @ weights[lags]) * view).sum(axis=2)  # (windows, E)
        # A window is part of the mean that it is compared with.
        expected = (size * (1.0 - np.minimum(size / weights[0] / total, 0.5)))[:, None] * np.where(
            usable, variances, 1.0
        )
        ratio = found.sum(axis=0) / expected.sum(axis=0)
        error = (found - ratio * expected).std(axis=0) / expected.mean(axis=0) / np.sqrt(blocks // width)
        greatest = np.where(usable & (ratio > 1.0 + 3.0 * error), np.maximum(greatest, ratio), greatest)
        width *= 2
    return greatest, True
