"""How often a model is right, without labels: its confidence, calibrated on a baseline whose truth is known.

A model that says ".8" is seldom right in exactly 80 of 100 cases. The share that was right in the baseline, by
confidence (isotonic regression; Ayer et al. 1955, Zadrozny and Elkan 2002), averaged over the confidences of new
records, estimates how many of them are right ("confidence-based performance estimation"). That holds while records of
like confidence are right as often as before. Where content is new they may all be wrong, so the estimate is an
interval: from "no new record is right" to "new records are as right as their confidence says". Average thresholded
confidence (Garg, Balakrishnan, Lipton, Neyshabur, Sedghi 2022) is a second method, for people to compare with.

None of this sees that the right answer to a known input became another one. Only labels do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.conformal import N_BINS, P_EDGES
from detectors.errors import InvalidInput
from detectors.summary import CONFIDENCE_BINS, confidence_bins

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

# Neighbouring bins are taken together until they hold so many records: the share of right ones among 25 has a standard
# error of .1 at most. Single bins of two or three records, all right or all wrong, would say 1 or 0.
POOLED = 25
LEVEL = 0.95  # of the interval
Z = 1.959963984540054  # the normal quantile that leaves (1 - LEVEL) / 2 on each side
Z_FLOOR = 1.6448536269514722  # of the baseline's own error in the floor: one side, 95 %
MIDDLES: Floats = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
_NOVEL_EDGE = int(np.argmin(np.abs(P_EDGES - 0.1)))  # 3/32
_UNSUPPORTED_EDGE = int(np.argmin(np.abs(P_EDGES - 0.01)))  # 1/128


@dataclass(frozen=True, eq=False)
class ConfidenceCalibration:
    """How often the model was right in the baseline, by its confidence. Treat the arrays as read-only.

    Attributes:
        counts: int64 (50,), records with a known truth by bin of confidence (`summary.confidence_bins`).
        right: float64 (50,), how many of them were right; for answers that are numbers, the sum of 1 - loss.
    """

    counts: Int64s
    right: Floats

    @classmethod
    def of(cls, confidence: Floats, right: npt.NDArray[Any], *, weight: Floats | None = None) -> ConfidenceCalibration:
        """Count records whose truth is known. The model must not have learned from them.

        Args:
            confidence: float64 (n,), 0 to 1; records with NaN are passed over.
            right: (n,), whether each answer was right, bool, or how right, 0 to 1.
            weight: float64 (n,), how many records each stands for, > 0, where they were not drawn evenly. Counts are
                then those of as many evenly drawn records as these are worth (Kish 1965).

        Raises:
            InvalidInput: arrays of different lengths, or a value outside its range.
        """
        confidence = np.asarray(confidence, np.float64)
        right = np.asarray(right, np.float64)
        weights = np.ones(len(confidence)) if weight is None else np.asarray(weight, np.float64)
        if not (len(confidence) == len(right) == len(weights)):
            raise InvalidInput(
                f"{len(confidence)} confidences, {len(right)} answers and {len(weights)} weights: expected one of each "
                "for every record."
            )
        known = ~np.isnan(confidence)
        confidence, right, weights = confidence[known], right[known], weights[known]
        for name, fits in (
            ("confidence, expected 0 to 1", (confidence >= 0) & (confidence <= 1)),
            ("rightness, expected 0 to 1", (right >= 0) & (right <= 1)),
            ("weight, expected more than 0", (weights > 0) & np.isfinite(weights)),
        ):
            if not fits.all():
                raise InvalidInput(f"record {int(np.argmin(fits))} of the calibration has an unusable {name}.")
        if len(confidence) == 0:
            return cls(np.zeros(CONFIDENCE_BINS, np.int64), np.zeros(CONFIDENCE_BINS))
        bins = confidence_bins(confidence)
        each = np.bincount(bins, weights, CONFIDENCE_BINS)
        share = np.bincount(bins, weights * right, CONFIDENCE_BINS) / np.where(each > 0, each, 1.0)
        worth = weights.sum() / (weights**2).sum()  # 1 for even weights of 1
        counts = np.rint(each * worth).astype(np.int64)
        return cls(counts, share * counts)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that `Reference.build(performance=...)` keeps."""
        return {"counts": self.counts, "right": self.right}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ConfidenceCalibration | None:
        """What `to_arrays` gave; None where there is nothing, or no record was counted.

        Raises:
            InvalidInput: other arrays.
        """
        if not arrays:
            return None
        if set(arrays) != {"counts", "right"} or any(each.shape != (CONFIDENCE_BINS,) for each in arrays.values()):
            raise InvalidInput(
                f"the reference's calibration of confidence holds {', '.join(sorted(arrays))}: expected counts and "
                f"right, {CONFIDENCE_BINS} of each.",
                hint="It was written by another release of driftd: build the reference again.",
            )
        made = cls(arrays["counts"].astype(np.int64), arrays["right"].astype(np.float64))
        return made if made.n else None

    @property
    def n(self) -> int:
        """Records of the baseline whose truth is known."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of them that was right; NaN of none."""
        return float(self.right.sum() / self.n) if self.n else float("nan")

    @cached_property
    def isotonic(self) -> Floats:
        """Share of right answers by bin of confidence, float64 (50,), never falling; all NaN without records.

        Bins are taken together from below until each pool holds 25 records, then pools whose shares fall (Ayer et al.
        1955). Between the mean confidences of two pools the share goes in a straight line, so that bins without records
        lie between their neighbours; outside it stays.
        """
        if not self.n:
            return np.full(CONFIDENCE_BINS, np.nan)
        _, _, share, place = self._pools
        line = np.interp(MIDDLES, place, share)
        # A line is no step: on the baseline itself it may miss the accuracy by a little, which is moved back.
        missed = self.accuracy - float(self.counts @ line / self.n)
        return np.asarray(np.clip(line + missed, 0.0, 1.0))

    @cached_property
    def _pools(self) -> tuple[Int64s, Floats, Floats, Floats]:
        """Pool of every bin, int64 (50,), and of every pool its records, share of right ones and mean confidence."""
        pool = np.zeros(CONFIDENCE_BINS, np.int64)
        held = 0.0
        for bin_ in range(CONFIDENCE_BINS):  # smallest pools of at least POOLED records, from below
            if bin_ and held >= POOLED and self.counts[bin_:].sum() >= POOLED:
                pool[bin_:] += 1
                held = 0.0
            held += self.counts[bin_]
        size = np.bincount(pool, self.counts).astype(np.float64)
        right = np.bincount(pool, self.right)
        blocks: list[list[float]] = []  # records, right ones, pools
        for n, r in zip(size.tolist(), right.tolist(), strict=True):
            blocks.append([n, r, 1])
            while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
                last = blocks.pop()
                blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
        merged = np.repeat(np.arange(len(blocks)), [int(block[2]) for block in blocks])
        pool = merged[pool]
        size = np.array([block[0] for block in blocks])
        share = np.array([block[1] for block in blocks]) / size
        place = np.bincount(pool, self.counts * MIDDLES) / size
        return pool, size, share, place

    def error(self, shares: Floats) -> float:
        """Standard error of a mean of `isotonic` that comes from the finite baseline.

        Args:
            shares: float64 (50,), share of the new records in every bin; they add up to 1.
        """
        pool, size, share, _ = self._pools
        among = np.bincount(pool, shares)
        # Share of right ones in (n, right) with one more of each kind, so that 25 of 25 is not taken for certain.
        careful = (share * size + 1.0) / (size + 2.0)
        return float(np.sqrt(np.sum(among**2 * careful * (1.0 - careful) / (size + 2.0))))

    def floor(self, tolerance: float) -> float:
        """Share of right answers below which the model is worse than it was: the baseline's, less its own error.

        The baseline's accuracy is itself measured on n records, so the floor is its lower confidence limit (one side,
        95 %; Wilson 1927), less ``tolerance``. NaN without records.
        """
        if not self.n:
            return float("nan")
        n, z = self.n, Z_FLOOR
        middle = (self.accuracy + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(self.accuracy * (1 - self.accuracy) / n + z * z / (4 * n * n))
        return float(max(0.0, middle - half - tolerance))


@dataclass(frozen=True, slots=True)
class Estimate:
    """How often a model is right in one window, as far as that shows without labels. Shares are 0 to 1.

    Attributes:
        n: records of the window that say how sure the model was.
        confidence: the model's mean confidence, as it says it, to .01.
        estimated: share of right answers if every record is as right as its confidence was in the baseline.
        low, high: 95 % interval, from "nothing new is right" less the error of the finite window and baseline, to
            ``estimated`` with it. Of the right answers among the window's own records.
        atc: average thresholded confidence, the same as ``estimated`` by another method.
        novel, unsupported: see `novel_mass` and `unsupported`.

    All but n, novel and unsupported are NaN where no record says how sure the model was.
    """

    n: int
    confidence: float
    estimated: float
    low: float
    high: float
    atc: float
    novel: float
    unsupported: float

    @property
    def bound(self) -> float:
        """Share of right answers if nothing new is right: ``low`` without the error of window and baseline."""
        return self.estimated * (1.0 - self.novel)

    @property
    def surely_below(self) -> float:
        """`bound` with its error upwards: if this is under a floor, that the bound is there is no chance."""
        return 2.0 * self.bound - self.low


UNKNOWN = Estimate(0, *(float("nan") for _ in range(7)))  # of a window with too few records


def estimate(
    calibration: ConfidenceCalibration, confidence_histogram: Int64s, h: Int64s, *, n_calibration: int
) -> Estimate:
    """Estimate the share of right answers among the records of a window.

    Args:
        calibration: of the baseline, with at least one record.
        confidence_histogram: int64 (50,), `BlockSummary.confidence`, added up over the window.
        h: int64 (49,), `BlockSummary.h` of the input space, added up over the window; all 0 where there is none.
        n_calibration: scores behind the p-values, `Reference.n_calibration`.

    Raises:
        InvalidInput: the calibration has no records.
    """
    if not calibration.n:
        raise InvalidInput("no record of the baseline says what is true: nothing can be estimated from confidence.")
    novel = novel_mass(h, n_calibration)
    strange = unsupported(h, n_calibration)
    n = int(confidence_histogram.sum())
    if n == 0:
        nan = float("nan")
        return Estimate(0, nan, nan, nan, nan, nan, novel, strange)
    shares = confidence_histogram / n
    rate = calibration.isotonic
    estimated = min(1.0, float(shares @ rate))
    # Errors: of the baseline, and of n records each right or wrong by chance.
    variance = calibration.error(shares) ** 2 + float(shares @ (rate * (1.0 - rate))) / n
    of_novel = novel_error(int(h.sum()), n_calibration, novel)
    low = estimated * (1.0 - novel) - Z * np.sqrt(variance * (1.0 - novel) ** 2 + (estimated * of_novel) ** 2)
    return Estimate(
        n=n,
        confidence=float(shares @ MIDDLES),
        estimated=estimated,
        low=float(max(0.0, low)),
        high=float(min(1.0, estimated + Z * np.sqrt(variance))),
        atc=_thresholded(calibration, shares),
        novel=novel,
        unsupported=strange,
    )


def novel_mass(h: Int64s, n_calibration: int) -> float:
    """Share of the records that are like nothing in the baseline: what is too many below p = 3/32, 0 to 1.

    If a share a of any sound records has p <= a, and all new ones do, then a + (1 - a) novel have. That is the least
    share of new records that explains the excess (Storey 2002). It is never negative, so clean traffic shows .4 of its
    standard error on the average: .13 / sqrt(n) of n records, .004 of 1,000, with a large calibration.

    Args:
        h: int64 (49,), counts by bin of p (`conformal.P_EDGES`).
        n_calibration: scores behind the p-values.
    """
    return _excess(h, n_calibration, _NOVEL_EDGE)


def unsupported(h: Int64s, n_calibration: int) -> float:
    """The same as `novel_mass` at p = 1/128: records stranger than nearly all of the baseline."""
    return _excess(h, n_calibration, _UNSUPPORTED_EDGE)


def novel_error(n: int, n_calibration: int, novel: float) -> float:
    """Standard error of `novel_mass`, from the n records and from the calibration scores; 0 without records."""
    if n == 0 or n_calibration == 0:
        return 0.0
    edge = _reached(n_calibration, _NOVEL_EDGE)
    share = edge + (1.0 - edge) * novel
    spread = share * (1.0 - share) / n + edge * (1.0 - edge) / n_calibration * (1.0 - novel) ** 2
    return float(np.sqrt(spread) / (1.0 - edge))


def _reached(n_calibration: int, edge: int) -> float:
    """Share of sound records with p at or below an edge: p is a multiple of 1 / (n_calibration + 1)."""
    return float(np.floor(P_EDGES[edge] * (n_calibration + 1)) / (n_calibration + 1))


def _excess(h: Int64s, n_calibration: int, edge: int) -> float:
    if h.shape != (N_BINS,):
        raise InvalidInput(f"expected {N_BINS} counts by bin of p, found {h.shape}.")
    n = int(h.sum())
    if n == 0:
        return 0.0
    usual = _reached(n_calibration, edge)
    return float(max(0.0, (h[: edge + 1].sum() / n - usual) / (1.0 - usual)))


def _thresholded(calibration: ConfidenceCalibration, shares: Floats) -> float:
    """Share of the records above the confidence that as many of the baseline exceed as were right there.

    Within its bin the threshold lies where a straight line puts it.
    """
    above = np.concatenate([np.cumsum(calibration.counts[::-1])[::-1], [0]]) / calibration.n  # at each lower edge
    edge = int(np.flatnonzero(above >= calibration.accuracy - 1e-12)[-1])  # the last one that enough exceed
    if edge == CONFIDENCE_BINS:
        return 0.0
    within = max(0.0, above[edge] - calibration.accuracy) / (above[edge] - above[edge + 1])
    return min(1.0, float(shares[edge + 1 :].sum() + (1.0 - within) * shares[edge]))
