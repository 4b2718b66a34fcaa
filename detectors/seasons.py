"""Seasons: what normal looks like at this hour, where the baseline holds at least two whole cycles.

The expected mean of the vectors (and the expected shares of the prototype groups) in a block at phase u of a period is
a harmonic regression (Bloomfield, 2000, chapter 2)

    m(u) = b0 + sum over h of  b1h cos(2 pi h u) + b2h sin(2 pi h u),        u = ((block + 1/2) mod period) / period

fitted by least squares, weighted with the records of each baseline block. Which h are in it is decided twice:

* by a test. Over c whole cycles of the baseline a season shows at the frequencies c, 2c, 3c, ... (cycles of the whole
  span) and nowhere else; sessions, bursts and slow wandering show just as much in between. So the power at hc is
  compared with the mean power at its neighbours, up to five on each side: an F test of a spectral line against the
  background around it (Priestley, 1981, chapter 8). Its degrees of freedom are those of the directions that the
  background really fills, 1 / mean |cos|^2 of the angles between pairs of its Fourier vectors. An h is taken if
  p <= 0.01 / (all tests made on this baseline);
* by forecasting. Each cycle (at most ten groups of cycles) is forecast from the others, with and without the terms;
  unless the forecast with them is better, in whitened squares, there is no season.

What the terms cost: the forecast of a window whose blocks have the mean features f errs by the variance
g = f' M^-1 f per direction, M being the weighted design of the baseline, where the plain mean errs by 1 / n0. The drift
rule widens its null law by n g - n / n0, at the worst phase for each length of window (`widened`): 2 n / n0 for each
harmonic in short windows, nothing in windows of whole cycles.

scipy.special is used for the tail of the F distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, floor, pi, sin

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_CYCLES = 2
MAX_HARMONICS = 24  # one hour's detail of a day; of a week, three lines of the day
MAX_FOLDS = 10
NEIGHBOURS = 5  # background frequencies on each side of a line
FALSE_SEASONS = 0.01  # of baselines without a season, the share in which one is believed in
# Where records come at few phases only, the terms cannot be told apart, and forecasts between those are worth nothing.
MAX_CONDITION = 1e3


@dataclass(frozen=True, slots=True)
class Trial:
    """What a baseline says of one period.

    Attributes:
        period: in blocks.
        cycles: whole cycles that the baseline holds.
        p_value: of its strongest line, times the number of tests made; 1 where there was nothing to test.
        gain: share of the squared whitened block sums that other cycles forecast; 0 where no line was significant.
        used: the drift rule follows this season.
    """

    period: float
    cycles: int
    p_value: float
    gain: float
    used: bool

    @classmethod
    def read(cls, constants: Mapping[str, npt.NDArray[np.generic]]) -> tuple[Trial, ...]:
        """The trials that a baseline's constants report; none if no season was asked for."""
        if "season_trials" not in constants:
            return ()
        rows = np.asarray(constants["season_trials"], dtype=np.float64).tolist()
        return tuple(cls(period, int(cycles), p, gain, bool(used)) for period, cycles, p, gain, used in rows)


def trials_array(trials: Sequence[Trial]) -> Floats:
    """The trials as float64 (k, 5), which `Trial.read` reads."""
    rows = [[one.period, one.cycles, one.p_value, one.gain, one.used] for one in trials]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


# --- the season that the drift rule follows --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Season:
    """The forecast of a block by its number.

    Attributes:
        period: in blocks.
        harmonics: multiples of 1 / period, ascending.
        level: (1 + 2 H, d), coefficients of the mean of the vectors: constant, then cosine and sine of each harmonic.
        mix: (1 + 2 H, G), the same of the shares of the prototype groups.
        error: (2, W): records of a window; n g - n / n0 for it.
    """

    period: float
    harmonics: tuple[int, ...]
    level: Floats
    mix: Floats
    error: Floats

    @classmethod
    def read(cls, constants: Mapping[str, npt.NDArray[np.generic]]) -> Season | None:
        """The season in a baseline's constants; None where there is none."""
        if "season_period" not in constants:
            return None
        return cls(
            period=float(np.asarray(constants["season_period"], dtype=np.float64)[0]),
            harmonics=tuple(np.asarray(constants["season_harmonics"], dtype=np.int64).tolist()),
            level=np.asarray(constants["season_level"], dtype=np.float64),
            mix=np.asarray(constants["season_mix"], dtype=np.float64),
            error=np.asarray(constants["season_error"], dtype=np.float64),
        )

    def level_at(self, block: int) -> Floats:
        """(d,), the expected mean of block number ``block``; the same bits whenever it is asked."""
        return self._features(block) @ self.level

    def shares_at(self, block: int) -> Floats:
        """(G,), the expected shares. A sum of few waves dips below zero where a share is rare; that is cut off, which
        only brings it nearer to any true share.
        """
        return np.maximum(self._features(block) @ self.mix, 0.0)

    def _features(self, block: int) -> Floats:
        turn = 2.0 * pi * (((block + 0.5) % self.period) / self.period)
        return np.array([1.0, *(wave(h * turn) for h in self.harmonics for wave in (cos, sin))])


def widened(inflation: Floats, error: Floats, scale: float) -> Floats:
    """A null law's inflation (3, W: records, factor of the mean, factor of the variance) with the forecast's error.

    The error of the terms, a shift of random direction and of the covariance's shape, raises the mean of T by
    ``scale`` (n g - n / n0). Adding it to the factor of the mean raises the second and third cumulants by at least what
    such a shift adds, 4 n v eta t2 and 24 n v^2 eta t3.

    Args:
        inflation: measured on what the season leaves over.
        error: (2, W'), see `Season`.
        scale: the quantile of baselines times their long-run dependence; n0 times the rule's eta of the plain mean.
    """
    records = np.unique(np.concatenate([inflation[0], error[0]]))
    length = np.log2(records)

    def at(table: Floats, row: int) -> Floats:
        return np.asarray(np.interp(length, np.log2(table[0]), table[row]))

    return np.stack([records, at(inflation, 1) + scale * at(error, 1), at(inflation, 2)])


# --- fitting and judging one -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Design:
    """The features of a baseline's blocks, and what is forecast from which of them.

    Attributes:
        period, harmonics: see `Season`.
        records: (N,), records of each block.
        features: (N, q), at the middle of each block.
        fold: (N,), which blocks are forecast together, from all others; ascending with time.
        inverse: (folds, q, q), inverse of the others' design for each fold.
    """

    period: float
    harmonics: tuple[int, ...]
    records: Floats
    features: Floats
    fold: Ints
    inverse: Floats

    @classmethod
    def of(cls, at: Floats, records: Floats, cycle: Ints, *, period: float, harmonics: Sequence[int]) -> Design | None:
        """The design with those of the harmonics that the blocks can tell apart; None if that is none of them."""
        chosen = tuple(harmonics)
        present = np.unique(cycle, return_inverse=True)[1]
        folds = min(int(present[-1]) + 1, MAX_FOLDS)
        fold = (present * folds // (int(present[-1]) + 1)).astype(np.int64)
        while chosen and folds > 1:
            turn = np.outer(at % period, np.repeat(chosen, 2)) * (2.0 * pi / period)
            waves = np.where(np.arange(turn.shape[1]) % 2 == 0, np.cos(turn), np.sin(turn))
            features = np.concatenate([np.ones((len(at), 1)), waves], axis=1)
            parts = np.stack([_weighted(features[fold == one], records[fold == one]) for one in range(folds)])
            others = parts.sum(axis=0) - parts
            if np.linalg.cond(others).max() <= MAX_CONDITION:
                return cls(period, chosen, records, features, fold, np.linalg.inv(others))
            chosen = chosen[:-1]
        return None

    def coefficients(self, sums: Floats) -> Floats:
        """Coefficients (q, D) of the means behind sums (N, D) over blocks."""
        return np.asarray(np.linalg.solve(_weighted(self.features, self.records), self.features.T @ sums))

    def residuals(self, sums: Floats) -> Floats:
        """Sums (N, D) less what the other folds forecast of them."""
        left = np.empty_like(sums)
        total = self.features.T @ sums
        for one, inverse in enumerate(self.inverse):
            rows = np.flatnonzero(self.fold == one)
            own = self.features[rows]
            forecast = own @ (inverse @ (total - own.T @ sums[rows]))
            left[rows] = sums[rows] - self.records[rows, None] * forecast
        return left

    def plain(self) -> Design:
        """The same folds, forecast by the plain mean of the others."""
        weights = np.bincount(self.fold, weights=self.records)
        inverse = (1.0 / (weights.sum() - weights)).reshape(-1, 1, 1)
        return Design(self.period, (), self.records, self.features[:, :1], self.fold, inverse)

    def windows(self, starts: Ints, width: int) -> tuple[Ints, Floats]:
        """Those windows of ``width`` blocks that lie within a fold, and n g of the forecast from the others for each:
        first blocks (m,), errors (m,).
        """
        starts = starts[self.fold[starts] == self.fold[starts + width - 1]]
        n, summed = self._window_sums(starts, width)
        inverse = self.inverse[self.fold[starts]]
        return starts, np.einsum("ij,ijk,ik->i", summed, inverse, summed) / n

    def error(self) -> Floats:
        """(2, W): records, and n g - n / n0 at the worst phase, for windows of 1, 2, 4, ... N / 2 blocks."""
        whole = np.linalg.inv(_weighted(self.features, self.records))
        blocks, total = len(self.records), float(self.records.sum())
        widths = [2**power for power in range(max(blocks // 2, 1).bit_length())]
        found = []
        for width in widths:
            n, summed = self._window_sums(np.arange(blocks - width + 1), width)
            g = np.einsum("ij,jk,ik->i", summed, whole, summed) / n**2
            found.append((float(n.mean()), max(float(n.mean() * (g.max() - 1.0 / total)), 0.0)))
        return np.ascontiguousarray(np.array(found).T)

    def _window_sums(self, starts: Ints, width: int) -> tuple[Floats, Floats]:
        weighted = self.records[:, None] * self.features
        sums = np.concatenate([np.zeros((1, weighted.shape[1])), np.cumsum(weighted, axis=0)])
        summed = sums[starts + width] - sums[starts]
        return summed[:, 0], summed


def seek(
    at: Floats, records: Floats, channels: Sequence[Floats], periods: Sequence[float]
) -> tuple[tuple[Trial, ...], Design | None]:
    """Look for a season of one of several periods.

    Args:
        at: (N,), ascending: middles of the baseline's blocks, in blocks.
        records: (N,), records of each, above 0.
        channels: arrays (N, D), sums of whitened, centred records.
        periods: candidates, in blocks.

    Returns:
        A trial for each period, and the design of the one that forecasts best; None if there is no season.
    """
    blocks = len(at)
    width = float(np.median(np.diff(at))) if blocks > 1 else 1.0
    begin, end = (float(at[0]) - width / 2.0, float(at[-1]) + width / 2.0) if blocks else (0.0, 0.0)
    cycles = [floor((end - begin) / period + 1e-6) for period in periods]
    tested = [
        min(MAX_HARMONICS, floor(period / (4.0 * width))) if count >= MIN_CYCLES else 0
        for period, count in zip(periods, cycles, strict=True)
    ]
    tests = sum(tested) * len(channels)
    trials: list[Trial] = []
    best: Design | None = None
    for period, count, most in zip(periods, cycles, tested, strict=True):
        p, gain, design = 1.0, 0.0, None
        if most > 0:
            lines = np.stack([_lines(at, records, z, end, period, count, most) for z in channels]).min(axis=0)
            p = min(float(lines.min()) * tests, 1.0)
            significant = (np.flatnonzero(lines * tests <= FALSE_SEASONS) + 1).tolist()
            cycle = np.maximum(count - 1 - ((end - at) / period).astype(np.int64), 0)
            design = Design.of(at, records, cycle, period=period, harmonics=significant)
        if design is not None:
            gain = float(np.mean([_gain(design, z) for z in channels]))
            if gain > max([0.0, *(one.gain for one in trials)]):
                best = design
        trials.append(Trial(period, count, p, gain, used=False))
    chosen = tuple(
        Trial(one.period, one.cycles, one.p_value, one.gain, used=best is not None and one.period == best.period)
        for one in trials
    )
    return chosen, best


def _weighted(features: Floats, records: Floats) -> Floats:
    return np.asarray((features * records[:, None]).T @ features)


def _gain(design: Design, sums: Floats) -> float:
    """Share of the squares about the plain forecast that the seasonal one saves."""
    squares = [
        float((one.residuals(sums) ** 2).sum(axis=1) @ (1.0 / design.records)) for one in (design, design.plain())
    ]
    return 1.0 - squares[0] / squares[1] if squares[1] > 0 else 0.0


def _mean(squares: Floats) -> float:
    """Mean over what is not NaN; 1, as if all directions were one, where there is nothing else."""
    kept = squares[~np.isnan(squares)]
    return float(kept.mean()) if len(kept) else 1.0


def _lines(at: Floats, records: Floats, z: Floats, end: float, period: float, cycles: int, most: int) -> Floats:
    """p-values (most,) of the lines at 1, 2, ..., ``most`` times 1 / period over so many whole cycles up to ``end``."""
    from scipy.special import fdtrc

    kept = np.flatnonzero(at >= end - cycles * period)
    n = records[kept]
    centred = z[kept] - n[:, None] * (z[kept].sum(axis=0) / n.sum())
    aside = [step for step in range(-min(cycles // 2, NEIGHBOURS), min(cycles // 2, NEIGHBOURS) + 1) if step != 0]
    line = cycles * np.arange(1, most + 1)
    around = line[:, None] + np.array(aside)
    background = np.unique(around)
    phase = (end - at[kept]) * (2.0 * pi / (cycles * period))

    def transform(frequencies: Ints) -> npt.NDArray[np.complex128]:
        return np.asarray(np.exp(1j * np.outer(frequencies, phase)) @ centred)

    beside = transform(background)
    power = (np.abs(beside) ** 2).sum(axis=1)
    if not (power > 0).all():
        return np.ones(most)  # hardly any blocks, or a channel that never varies
    directions = beside / np.sqrt(power)[:, None]
    alike = np.abs(directions @ directions.conj().T) ** 2
    np.fill_diagonal(alike, np.nan)
    degrees = np.empty(most)
    for h in range(most):
        # Slow wandering may fill one direction where quicker noise fills all: the neighbours of three lines are asked,
        # and all of them. Each pair is one look at how many directions there are; few looks, and few are believed in.
        first = min(max(h - 1, 0), max(most - 3, 0))
        near = np.searchsorted(background, np.unique(around[first : first + 3]))
        overlap = max(_mean(alike[np.ix_(near, near)]), _mean(alike), 1.0 / z.shape[1])
        degrees[h] = max(min(1.0 / overlap, len(near) * (len(near) - 1) / 2.0), 1.0)
    floor_power = power[np.searchsorted(background, around)].mean(axis=1)
    ratio = (np.abs(transform(line)) ** 2).sum(axis=1) / floor_power
    return np.asarray(fdtrc(2.0 * degrees, 2.0 * degrees * len(aside), ratio))
