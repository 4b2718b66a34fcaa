"""What does not belong into a baseline: bursts of records that are like each other, floods of copies, garbage.

A reference calls normal whatever is in its baseline. One record in a thousand that is a scanner's, a load test's or an
outage's moves the threshold of p <= 0.001 to where those are, and hides the next one.

**Bursts.** The sample is cut into clusters (k-means), and into two groups more: the strangest hundredth, and what is
equal to the last bit. In each, every interval of time is compared with the share w of all records that lie in it: k of
the group's m records are in it, m w are expected. For an interval that is fixed beforehand, the chance of k or more is
at most exp(-L), L = k log(k / (m w)) + (m - k) log((m - k) / (m (1 - w))) (Chernoff, 1952), the statistic of the scan
test of Kulldorff (1997). Intervals are laid from one record of the group to another, so m^2 / 2 of them are looked at
with m - 2 records left over; over all groups that makes the bound with which L is compared. What is real is not always
harm: topics come and go. So a burst must be tight in time and much denser than usual, too; see the constants. Sessions
put records that are alike side by side: the median cluster says how many neighbours too many a record has, and k, m and
the least number of records are counted in such sessions (the design effect of Kish, 1965).

**Strays.** Distances to prototypes of the other half (each half is scored by prototypes of records that are not in it)
have a tail that is extended from the 75th to the 95th percentile as an exponential law; what lies beyond its
p = 0.001 is counted, and compared with one in a thousand. Tails that are lighter give less, heavier ones more, so the
number is told and nothing is refused for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from detectors.index import NearestIndex, k_means
from detectors.stretches import Features

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

FALSE_BURSTS = 0.01  # of samples without bursts, the share in which one is believed in
MIN_RECORDS = 15  # of the sample, in a burst
MIN_SHARE = 0.001  # of the sample: alpha of the outliers; fewer cannot move their threshold far
WIDEST = 0.05  # of the sample's records lie in the interval of a burst
DENSER = 8.0  # times as many of the group as elsewhere
CLUSTER_RECORDS = 60  # of the sample, for one cluster
MOST_CLUSTERS = 256
STRANGEST = 0.01
_COMPONENTS = 32
_NEAR = 32  # records, within which those of a session come
_TAIL_P = 0.001


@dataclass(frozen=True, slots=True)
class Burst:
    """Records that are like each other and came within a short time.

    Attributes:
        kind: "cluster" (alike), "copies" (equal), "strange" (far from all others, each in its own way).
        first_ms, last_ms: event times of the first and the last.
        rows: int64 (k,), their rows in the sample.
        usual: how many would be there if the group came evenly.
        share: of the sample that is too much.
    """

    kind: str
    first_ms: int
    last_ms: int
    rows: Int64s
    usual: float
    share: float


@dataclass(frozen=True, slots=True)
class Contamination:
    """What was found in a sample of n records.

    Attributes:
        bursts: the densest first; no two of the same records.
        strays: records beyond the p = 0.001 of a tail that goes on as it begins; n / 1000 are expected.
        copies: share of records that are equal to an earlier one to the last bit.
        commonest: share of the one vector that is there most often.
    """

    records: int
    bursts: tuple[Burst, ...]
    strays: int
    copies: float
    commonest: float

    @property
    def share(self) -> float:
        """Of the sample, in bursts."""
        return sum(burst.share for burst in self.bursts)


def find_contamination(features: Features, *, seed: int = 0) -> Contamination:
    """Look for what does not belong into a baseline.

    Args:
        features: of a sample from the stretch that shall be the baseline.
    """
    x, times = features.prepared, features.time_ms
    n = len(x)
    equal = _equal(x)
    y = _reduced(x)
    distance = _distances(y, seed)
    strange = np.argsort(distance, kind="stable")[n - max(round(STRANGEST * n), 1) :]
    clusters = min(max(n // CLUSTER_RECORDS, 1), MOST_CLUSTERS)
    cluster = NearestIndex(k_means(y, clusters, seed=seed)).nearest(y)
    clustered = _members(cluster)
    session = _session(clustered, n)
    groups = [("copies", rows) for rows in _members(equal)]
    groups += [("cluster", rows) for rows in clustered]
    groups.append(("strange", np.sort(strange)))
    groups = [(kind, rows) for kind, rows in groups if len(rows) >= MIN_RECORDS * session]
    # Where records came at the same moment they share their place: time itself says nothing, the order of records does.
    place = (np.searchsorted(times, times, "left") + np.searchsorted(times, times, "right")) / (2.0 * n)
    looks = sum(len(rows) ** 2 / 2.0 for _, rows in groups)
    needed = log(max(looks, 1.0) / FALSE_BURSTS)
    found = [
        burst
        for kind, rows in groups
        if (burst := _burst(kind, rows, place, times, needed=needed, session=session)) is not None
    ]
    kept: list[Burst] = []
    taken = np.zeros(n, np.bool_)
    for burst in sorted(found, key=lambda burst: (-burst.share, burst.first_ms)):
        if np.count_nonzero(taken[burst.rows]) * 2 < len(burst.rows):
            taken[burst.rows] = True
            kept.append(burst)
    counts = np.bincount(equal)
    return Contamination(
        records=n,
        bursts=tuple(kept),
        strays=_strays(distance),
        copies=1.0 - len(counts) / n,
        commonest=float(counts.max()) / n,
    )


def _burst(kind: str, rows: Int64s, place: Floats, times: Int64s, *, needed: float, session: float) -> Burst | None:
    """The clearest interval of a group that is a burst."""
    n, m, at = len(place), len(rows), np.sort(place[rows])
    best: tuple[float, int, int] | None = None
    k = int(np.ceil(MIN_RECORDS * session))
    while k <= m:
        widths = at[k - 1 :] - at[: m - k + 1] + 1.0 / n
        first = int(widths.argmin())
        w = float(widths[first])
        statistic = _excess(k - 2, m - 2, w) / session
        dense = k > DENSER * (m - k) * w / max(1.0 - w, 1e-9)  # than the rest of the group, elsewhere
        enough = w <= WIDEST and statistic >= needed and k - m * w >= MIN_SHARE * n
        if enough and dense and (best is None or statistic > best[0]):
            best = (statistic, first, k)
        k = k + max(k // 8, 1)
    if best is None:
        return None
    _, first, k = best
    inside = rows[(place[rows] >= at[first]) & (place[rows] <= at[first + k - 1])]
    w = float(at[first + k - 1] - at[first] + 1.0 / n)
    usual = (m - k) * w / max(1.0 - w, 1e-9)
    return Burst(kind, int(times[inside].min()), int(times[inside].max()), inside, usual, (k - usual) / n)


def _session(clusters: list[Int64s], n: int) -> float:
    """Records that count as one: 1, and by how many more of its own cluster a record is surrounded than by chance."""
    extra = []
    for rows in clusters:
        after = np.searchsorted(rows, rows + _NEAR, "right") - np.arange(1, len(rows) + 1)
        extra.append(2.0 * float(after.mean()) - 2.0 * _NEAR * (len(rows) - 1) / n)
    return 1.0 + max(float(np.median(extra)), 0.0)


def _excess(k: int, m: int, w: float) -> float:
    """The exponent of Chernoff's bound for k or more of m, each with probability w; 0 where k is no more than m w."""
    if m <= 0 or k <= m * w or w >= 1.0:
        return 0.0
    rest = (m - k) * log((m - k) / (m * (1.0 - w))) if k < m else 0.0
    return k * log(k / (m * w)) + rest


def _equal(x: npt.NDArray[np.float32]) -> Int64s:
    """A number for each row, the same for rows that are equal to the last bit."""
    whole = np.ascontiguousarray(x).view(np.dtype((np.void, x.shape[1] * x.itemsize)))[:, 0]
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


def _members(group: npt.NDArray[np.integer]) -> list[Int64s]:
    order = np.argsort(group, kind="stable").astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _reduced(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Softly whitened principal components, float32 (n, at most 32)."""
    mean = x.mean(axis=0, dtype=np.float64)
    spectrum, directions = np.linalg.eigh(np.cov(x, rowvar=False, dtype=np.float64).reshape(x.shape[1], x.shape[1]))
    top = np.argsort(spectrum)[::-1][:_COMPONENTS]
    scale = 1.0 / np.sqrt(np.sqrt(np.maximum(spectrum[top], 0.0)) * np.sqrt(max(spectrum[top].mean(), 1e-12)) + 1e-12)
    return np.ascontiguousarray((x - mean) @ (directions[:, top] * scale), np.float32)


def _distances(y: npt.NDArray[np.float32], seed: int) -> Floats:
    """(n,), of each record to the nearest prototype of records that are not in its half."""
    half = np.arange(len(y)) // 64 % 2
    distance = np.empty(len(y))
    for one in (0, 1):
        fitted, scored = y[half != one], y[half == one]
        if len(fitted) == 0 or len(scored) == 0:
            fitted = scored = y
        centroids = k_means(np.ascontiguousarray(fitted), min(max(len(fitted) // 100, 1), 200), seed=seed)
        found, _ = NearestIndex(centroids).search(np.ascontiguousarray(scored), 1)
        if len(scored) == len(y):
            return np.asarray(found[:, 0], np.float64)
        distance[half == one] = found[:, 0]
    return distance


def _strays(distance: Floats) -> int:
    low, high = np.quantile(distance, [0.75, 0.95])
    rate = (high - low) / log(0.25 / 0.05)
    return int(np.count_nonzero(distance > high + rate * log(0.05 / _TAIL_P)))
