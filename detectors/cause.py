"""What changed, and where: an explanation of a drift from the same sums that raised the alarm.

Everything comes out of block summaries, added up: those since the onset (*now*), those of the blocks just before it
(*before*), and those of the baseline, which the reference holds. It explains, and decides nothing.

* **Prototypes** that gained or lost share: the signed root of the likelihood-ratio statistic of two binomials (Wilks,
  1938), less what dependence inflates it by, as measured on the baseline. Unlike a difference in standard errors it
  holds for shares near zero.
* **The way of the level**: the shift of the mean in whitened standard deviations, and the prototypes that lie in its
  direction.
* **Segments**: with shares w and means m now, and shares p and means q before,

      D = sum w m - sum p q = sum w (m - q) + sum (w - p) (q - centre)

  is a sum of what each segment changed itself and of what its share of the traffic changed (Kitagawa, 1955). The
  projection of each term on D, over the square of D, is the part of the change that comes from there; the parts of a
  field add up to one. The vectors are the whitened ones for the level, scaled shares of prototype groups for the mix,
  and scaled shares of the bins of scores for the shape. The noise of finite sums is taken off both sides of the
  ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from detectors.baseline import SHRINKAGE, TICK, Constants, Moments, group_sums
from detectors.conformal import N_BINS, P_EDGES
from detectors.reference import Reference
from detectors.segments import constants_of, measured_segments
from detectors.summary import SCORE_BINS, score_bins

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

MOST_ROWS = 10  # of each table
ALONG = 3  # prototypes named in the direction of the level's shift, and against it
EVERYTHING = ""
# A segment with fewer records before the onset has no baseline of its own: its mean would be noise.
MIN_BEFORE = 256
MIN_BEFORE_PROTOTYPES = 2_000
# Two-sided, after Bonferroni over all prototypes: what stands out by chance in one explanation of a hundred.
SURE = 0.01
RARE = 2.0**-10  # p-values that count as outliers in the outlier rate
# Where noise makes up more than this of the squared change, no segment is blamed for it.
MOST_NOISE = 0.75


class Summary(Protocol):
    """What is read of a block; `detectors.summary.BlockSummary` is one."""

    @property
    def n(self) -> int: ...
    @property
    def s(self) -> Int64s: ...
    @property
    def c(self) -> Int64s: ...
    @property
    def scores(self) -> Int64s | None: ...


@dataclass(slots=True, eq=False)
class Sums:
    """Summaries of many blocks of one segment, added up in place. Whole numbers: the order does not matter.

    Attributes:
        n: records.
        s: int64 (d,), sum of the vectors in fixed point 2^-20.
        c: int64 (K,), records per nearest prototype.
        scores: int64 (1024,), records per bin of scores, see `detectors.summary.score_bins`. A segment's p-values are
            its own; scores mean the same in all of them.
    """

    n: int
    s: Int64s
    c: Int64s
    scores: Int64s

    @classmethod
    def empty(cls, dimension: int, prototypes: int) -> Sums:
        """No records yet."""
        return cls(0, np.zeros(dimension, np.int64), np.zeros(prototypes, np.int64), np.zeros(SCORE_BINS, np.int64))

    def add(self, summary: Summary) -> None:
        """Add one block."""
        self.n += summary.n
        self.s += summary.s
        self.c += summary.c
        if summary.scores is not None:
            self.scores += summary.scores

    def without(self, parts: Sequence[Sums]) -> Sums:
        """What is left without some parts of it."""
        rest = Sums(self.n, self.s.copy(), self.c.copy(), self.scores.copy())
        for part in parts:
            rest.n -= part.n
            rest.s -= part.s
            rest.c -= part.c
            rest.scores -= part.scores
        return rest


@dataclass(frozen=True, slots=True)
class PrototypeChange:
    """A prototype whose share of the records changed.

    Attributes:
        prototype: its number.
        count: records nearest to it now.
        share, expected: share of the records now, and in what it is compared with.
        z: signed root of the likelihood-ratio statistic, corrected for dependence; positive where the share grew.
    """

    prototype: int
    count: int
    share: float
    expected: float
    z: float


@dataclass(frozen=True, slots=True)
class Level:
    """How the mean of the vectors moved.

    Attributes:
        sigmas: length of the shift in whitened standard deviations, without what noise adds to it.
        towards, away: the prototypes that lie in the direction of the shift, seen from the baseline's mean, and in the
            opposite one; the best aligned first.
    """

    sigmas: float
    towards: tuple[int, ...]
    away: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """How much of the change comes from one segment; the parts of all segments of a field add up to one.

    Attributes:
        segment: such as "country=DE".
        n: its records now.
        share, before: its share of the records now, and before the onset (the same where that is not known).
        part: own + moved.
        own: part of the change that is a change of the segment's own records.
        moved: part of the change that comes from the segment's larger or smaller share of the traffic.
        own_baseline: compared with its own records before the onset; if not, with the whole baseline.
    """

    segment: str
    n: int
    share: float
    before: float
    part: float
    own: float
    moved: float
    own_baseline: bool


@dataclass(frozen=True, slots=True)
class Cause:
    """An explanation of a change.

    Attributes:
        records, records_before: now, and in the blocks before the onset.
        against: what the prototypes are compared with, "reference" or "before".
        prototypes: those that changed beyond chance, the clearest first; at most 10.
        changed: how many did.
        level: how the mean moved.
        segments: the segments that the change comes from, the largest part first; at most 10. Empty where noise is most
            of the change, or there are no segments.
    """

    records: int
    records_before: int
    against: str
    prototypes: tuple[PrototypeChange, ...]
    changed: int
    level: Level
    segments: tuple[SegmentPart, ...]

    @property
    def gained(self) -> tuple[int, ...]:
        """The prototypes that grew, the clearest first."""
        return tuple(row.prototype for row in self.prototypes if row.z > 0)


def find_cause(
    reference: Reference,
    now: Mapping[str, Sums],
    *,
    before: Mapping[str, Sums],
    segment: str = EVERYTHING,
    channel: str = "level",
) -> Cause:
    """Explain the change of one segment, or of the whole traffic.

    Args:
        reference: what the summaries were scored against.
        now: sums since the onset, by segment; "" is the whole traffic, and must be there, and ``segment`` too.
        before: sums of blocks before the onset, of the same keys; may be empty.
        segment: the one that the incident is about. Of a named one, ``segments`` holds its own part of the change of
            the whole traffic, as far as ``now`` holds no others.
        channel: level, mix, shape or outlier_rate: in which of its statistics the parts of segments are measured; any
            other one counts as shape.

    Returns:
        The same sums give the same cause to the last bit, in one build of the libraries.
    """
    measured = segment == EVERYTHING or segment in measured_segments(reference.drift)
    constants = constants_of(reference.drift, segment if measured else EVERYTHING)
    mine = now[segment]
    own = before.get(segment)
    expected, against = np.asarray(reference.blocks.c).sum(axis=0, dtype=np.int64), "reference"
    if segment != EVERYTHING and own is not None and own.n >= MIN_BEFORE_PROTOTYPES:
        # A segment need not look like the whole traffic: its own past is the better measure of what is new in it.
        expected, against = own.c, "before"
    z = share_changes(mine.c, expected, inflation=_inflation_curve(constants, "mix")(mine.n))
    rows, changed = _prototypes(mine.c, expected, z)
    return Cause(
        records=mine.n,
        records_before=0 if own is None else own.n,
        against=against,
        prototypes=rows,
        changed=changed,
        level=_level(reference, constants, mine),
        segments=segment_parts(reference, now, before, channel=channel)[:MOST_ROWS],
    )


def share_changes(counts: Int64s, baseline: Int64s, *, inflation: float = 1.0) -> Floats:
    """Signed root of the likelihood-ratio statistic of each count against its share in the baseline.

    Args:
        counts, baseline: (K,), of the records that are compared; both with a positive sum.
        inflation: factor on the variance of counts by dependence, at least 1.

    Returns:
        (K,), about standard normal where nothing changed; 0 where nothing was counted in either.
    """
    a, b = np.asarray(counts, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    n, m = a.sum(), b.sum()
    if n == 0 or m == 0:
        return np.zeros(len(a))
    pooled = (a + b) / (n + m)

    def term(count: Floats, mean: Floats) -> Floats:
        filled = count > 0
        ratio = np.divide(count, mean, out=np.ones_like(count), where=filled)
        return np.asarray(count * np.log(ratio))

    g = term(a, n * pooled) + term(n - a, n * (1 - pooled)) + term(b, m * pooled) + term(m - b, m * (1 - pooled))
    return np.asarray(np.sign(a / n - b / m) * np.sqrt(2.0 * np.maximum(g, 0.0) / max(inflation, 1.0)))


def _prototypes(counts: Int64s, expected: Int64s, z: Floats) -> tuple[tuple[PrototypeChange, ...], int]:
    from scipy.special import ndtri

    clear = np.flatnonzero(np.abs(z) >= -ndtri(SURE / 2.0 / max(len(z), 1)))
    # Equal values in the order of the numbers: lexsort is stable.
    first = clear[np.lexsort((clear, -np.abs(z[clear])))][:MOST_ROWS]
    n, m = max(int(counts.sum()), 1), max(int(expected.sum()), 1)
    rows = tuple(
        PrototypeChange(int(j), int(counts[j]), float(counts[j] / n), float(expected[j] / m), float(z[j]))
        for j in first
    )
    return rows, len(clear)


def _inflation_curve(constants: Constants, channel: str) -> Callable[[int], float]:
    """By how much dependence inflates the statistic of a window of so many records."""
    records, v1, _ = np.asarray(constants[f"{channel}_inflation"], dtype=np.float64)
    return lambda n: max(1.0, float(np.interp(np.log2(max(n, 1)), np.log2(records), v1)))


# --- level -----------------------------------------------------------------------------------------------------------


def _level(reference: Reference, constants: Constants, sums: Sums) -> Level:
    if sums.n == 0:
        return Level(0.0, (), ())
    shift = sums.s.astype(np.float64) * (TICK / sums.n) - np.asarray(constants["level_mean"], dtype=np.float64)
    whitened = shift @ np.asarray(constants["level_map"], dtype=np.float64)
    moments = Moments.from_array(constants["level_moments"])
    noise = moments.t1 * _inflation_curve(constants, "level")(sums.n) * (1.0 / sums.n + 1.0 / moments.n)
    sigmas = sqrt(max(float(whitened @ whitened) - noise, 0.0))
    # Prototypes lie in the space that is searched: the shift has to be taken there.
    whitened_there = len(reference.whitening) > 0
    way = shift @ reference.whitening.astype(np.float64) if whitened_there else shift
    points = reference.prototypes.astype(np.float64) - (0.0 if whitened_there else reference.mean)
    along = points @ way / np.maximum(np.linalg.norm(points, axis=1), 1e-12)
    order = np.argsort(along, kind="stable")
    ends = min(ALONG, len(order) // 2)
    return Level(sigmas, tuple(order[::-1][:ends].tolist()), tuple(order[:ends].tolist()))


# --- segments --------------------------------------------------------------------------------------------------------


def segment_parts(
    reference: Reference, now: Mapping[str, Sums], before: Mapping[str, Sums], *, channel: str
) -> tuple[SegmentPart, ...]:
    """The part of the whole traffic's change that comes from each segment, the largest first.

    A segment is compared with its own baseline where the reference has one (for level and mix), else with its own
    records before the onset, else with the whole baseline.

    Args:
        reference: see `find_cause`.
        now, before: see `find_cause`. Segments are named "field=value", and no two of one field share a record.
        channel: see `find_cause`.
    """
    whole = now[EVERYTHING]
    fields: dict[str, list[str]] = {}
    for name in sorted(now):
        if name != EVERYTHING:
            fields.setdefault(name.partition("=")[0], []).append(name)
    if whole.n == 0:
        return ()
    feature = _Feature(reference, channel)
    rows: list[SegmentPart] = []
    for names in fields.values():
        rows += _parts_of_field(feature, names, now, before)
    return tuple(sorted(rows, key=lambda row: (-row.part, row.segment)))


def _parts_of_field(
    feature: _Feature, names: Sequence[str], now: Mapping[str, Sums], before: Mapping[str, Sums]
) -> list[SegmentPart]:
    whole = now[EVERYTHING]
    # The records of values that were not given, so that the parts still are parts of the whole change.
    present = [*(now[name] for name in names), whole.without([now[name] for name in names])]
    n = np.array([sums.n for sums in present], dtype=np.float64)
    share = n / whole.n
    mean = np.stack([feature.mean(sums) for sums in present])
    b, base = feature.baseline(names) or _past(feature, names, before)
    known = b.sum() >= MIN_BEFORE
    share_before = b / b.sum() if known else share
    own = known & (b >= np.maximum(MIN_BEFORE, n / 4.0)) & ~np.isnan(base[:, 0])
    base = np.where(own[:, None], base, 0.0)
    changed = share[:, None] * (mean - base)
    moved = (share - share_before)[:, None] * (base - share_before @ base)
    total = (changed + moved).sum(axis=0)
    # What finite sums add to the projections where nothing changed.
    per_record = 1.0 / np.maximum(n, 1.0) + np.where(own, 1.0 / np.maximum(b, 1.0), 0.0)
    noise = share**2 * per_record * feature.variance(whole.n)
    square, bias = float(total @ total), float(noise.sum())
    if square <= 0.0 or bias > MOST_NOISE * square:
        return []
    parts, shifts = (changed @ total - noise) / (square - bias), (moved @ total) / (square - bias)
    return [
        SegmentPart(
            segment=name,
            n=int(n[i]),
            share=float(share[i]),
            before=float(share_before[i]),
            part=float(parts[i] + shifts[i]),
            own=float(parts[i]),
            moved=float(shifts[i]),
            own_baseline=bool(own[i]),
        )
        for i, name in enumerate(names)
    ]


def _past(feature: _Feature, names: Sequence[str], before: Mapping[str, Sums]) -> tuple[Floats, Floats]:
    """Records and mean vectors of segments before the onset; the last row is the rest of the traffic."""
    whole = before.get(EVERYTHING)
    if whole is None:
        return np.zeros(len(names) + 1), feature.nowhere(len(names) + 1)
    empty = whole.without([whole])
    past = [before.get(name, empty) for name in names]
    past.append(whole.without(past))
    return np.array([sums.n for sums in past], dtype=np.float64), np.stack([feature.mean(sums) for sums in past])


class _Feature:
    """The standardised mean vector of a channel: zero for the baseline of the whole traffic."""

    def __init__(self, reference: Reference, channel: str) -> None:
        self._drift = reference.drift
        self._constants = constants = constants_of(reference.drift, EVERYTHING)
        self._kind = channel if channel in ("level", "mix", "outlier_rate") else "shape"
        self._inflation = _inflation_curve(constants, "mix" if channel == "mix" else "level")
        if self._kind in ("level", "mix"):
            self._centre = np.asarray(constants["level_mean" if channel == "level" else "mix_shares"], np.float64)
            self._trace = Moments.from_array(constants[f"{channel}_moments"]).t1
            return
        known = np.bincount(score_bins(reference.calibration_scores, reference.score_scale), minlength=SCORE_BINS)
        tail = np.cumsum(known[::-1])[::-1] / known.sum()  # share of calibration scores from each bin on
        if self._kind == "outlier_rate":
            self._bin = (tail > RARE).astype(np.int64)
            rate = float(known[tail <= RARE].sum() / known.sum())
            self._scale, self._trace = np.array([1.0, 0.0]), rate * (1.0 - rate)
            self._centre = np.array([rate, 1.0 - rate])
        else:
            self._bin = np.searchsorted(P_EDGES, np.minimum(tail, 1.0), side="left")
            self._centre = np.bincount(self._bin, weights=known, minlength=N_BINS) / known.sum()
            # As the mix scales its groups: rare bins count for more, without noise taking over.
            self._scale = 1.0 / np.sqrt(self._centre + SHRINKAGE / N_BINS)
            self._trace = float((self._scale**2 * self._centre * (1.0 - self._centre)).sum())

    def mean(self, sums: Sums) -> Floats:
        """Of the records of the sums; zero where there are none."""
        n = max(sums.n, 1)
        if self._kind == "level":
            found = sums.s.astype(np.float64) * (TICK / n)
        elif self._kind == "mix":
            found = group_sums(sums.c, self._constants["mix_groups"]) / n
        else:
            found = np.bincount(self._bin, weights=sums.scores, minlength=len(self._centre)) / n
        return self._standardised(found) if sums.n else np.zeros_like(self._centre)

    def _standardised(self, mean: Floats) -> Floats:
        shift = mean - self._centre
        if self._kind == "level":
            return np.asarray(shift @ np.asarray(self._constants["level_map"], np.float64))
        scale = np.asarray(self._constants["mix_scale"], np.float64) if self._kind == "mix" else self._scale
        return np.asarray(shift * scale)

    def baseline(self, names: Sequence[str]) -> tuple[Floats, Floats] | None:
        """Records and mean vectors of segments in the reference, the last row for the rest of the traffic.

        None where the reference has none of them, or not for this channel. Rows of NaN where a segment has none.
        """
        measured = set(measured_segments(self._drift))
        if self._kind not in ("level", "mix") or not measured & set(names):
            return None
        whole = Moments.from_array(self._constants["level_moments"]).n
        n, means = np.zeros(len(names) + 1), self.nowhere(len(names) + 1)
        for i, name in enumerate(names):
            if name in measured:
                own = constants_of(self._drift, name)
                n[i] = Moments.from_array(own["level_moments"]).n
                mean = own["level_mean" if self._kind == "level" else "mix_shares"]
                means[i] = self._standardised(np.asarray(mean, np.float64))
        n[-1] = max(whole - n.sum(), 0.0)
        missing = [i for i, name in enumerate(names) if name not in measured]
        if missing:  # what the reference does not tell apart is shared out evenly
            n[[*missing, len(names)]] = n[-1] / (len(missing) + 1)
        elif n[-1] > 0:
            means[-1] = -(n[:-1] @ means[:-1]) / n[-1]  # the mean of all is zero
        return n, means

    def nowhere(self, rows: int) -> Floats:
        """Mean vectors that are not known."""
        return np.full((rows, len(self._centre)), np.nan)

    def variance(self, n: int) -> float:
        """Mean squared length of one record's vector, with the inflation of windows of ``n`` records."""
        return self._trace * self._inflation(n)


def nearest_exemplars(reference: Reference, prototypes: Sequence[int], count: int = 1) -> list[list[int]]:
    """For each prototype, the indices of the exemplars nearest to it; empty lists where the reference has none."""
    if not prototypes or len(reference.exemplars) == 0:
        return [[] for _ in prototypes]
    points = reference.prototypes[np.asarray(prototypes, dtype=np.int64)]
    _, nearest = reference.exemplar_index().search(points, min(count, len(reference.exemplars)))
    return [row.tolist() for row in nearest]
