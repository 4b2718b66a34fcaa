"""The drift rule beside the detectors that others use, on the same streams, at the same measured run length.

Every detector has its threshold set on null streams of its own seeds so that it alarms once in 20,000 records; then all
see the same streams, changed after 2,048 records and cut 16,384 records later (4,096 if quick). A run in which a
detector alarmed before the change is left out of its cell and counted as "before". The drift rule stands there as it
comes, asked for 20,000 records ("nominal"), and with its threshold lowered until it alarms as often as the others
("matched").

* MMD: squared maximum mean discrepancy (Gretton et al., 2012) with the exact Gaussian kernel, width by the median
  heuristic, between the last 256 (1,024) records and 4,000 of the baseline, every 64 records.
* KS: the least Kolmogorov-Smirnov p-value over 64 principal components and windows of 256, 1,024 and 4,096 records,
  with Bonferroni's correction, every 128 records.
* domain classifier: AUC of a logistic regression between the last 1,024 records and as many of the baseline, trained on
  one half and judged on the other (Lopez-Paz and Oquab, 2017), every 256 records.
* Frechet: distance of Gaussians on 150 principal components (Dowson and Landau, 1982; DriftLens, Greco et al., 2025),
  windows of 1,024 records, every 128 records.
* ADWIN (Bifet and Gavalda, 2007) and PageHinkley (Page, 1954) of river, fed with each record's conformal p-value or
  with its distance to the nearest prototype.

    python tests/benchmarks/drift_peers.py --full --processes 16
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from streams_text import NO_SHIFT, SHIFTS, Floats, Shift, chance
from streams_watch import (
    Built,
    Spec,
    Watch,
    arguments,
    build_all,
    delay_cell,
    kind,
    parallel,
    say,
    scored_pieces,
    size_of,
    source,
    summaries,
)

from detectors import Reference
from detectors.summary import BlockSummary

ONSET = 2048
RUN_LENGTH = 20_000
FIRST_SEED = 500_000  # of the null streams that thresholds are set on
MMD_REFERENCE, KS_COMPONENTS, FRECHET_COMPONENTS = 4000, 64, 150
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """A whole stream as the detectors see it: prepared vectors, conformal p-values, distances, sums of blocks."""

    x: Floats
    p: Values
    distance: Values
    blocks: list[BlockSummary]


def score(reference: Reference, seed: int, records: int, *, stream: str, shift: Shift = NO_SHIFT) -> Scores:
    """Draw and score a stream."""
    opened = source(stream).open(seed, kind=kind(stream), shift=shift, onset=ONSET)
    parts = list(scored_pieces(reference, opened, records))
    return Scores(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.p_value for part in parts]),
        np.concatenate([part.distance for part in parts]).astype(np.float64),
        [block for part in parts for block in summaries(part)],
    )


# --- statistics of windows: larger is more drifted, compared with one threshold --------------------------------------


class WindowStatistic(Protocol):
    """A statistic of the last ``window`` records, every ``stride`` records."""

    name: str
    window: int  # records after an alarm until the next value, and before the first one
    stride: int

    def values(self, scores: Scores) -> Values:
        """(n // stride,); -inf where the window is not full."""


class Mmd:
    """Unbiased squared MMD up to a constant, the mean of the kernel over pairs of the reference."""

    stride = 64

    def __init__(self, reference: Floats, window: int) -> None:
        self.name, self.window = f"MMD {window}", window
        self._points = reference[:MMD_REFERENCE]
        some = self._points[:1000]
        squares = 2.0 - 2.0 * (some @ some.T)[np.triu_indices(len(some), 1)]
        self._gain = np.float32(1.0 / float(np.median(squares)))  # |x - y|^2 / (2 s^2) with s the median distance

    def _kernel(self, left: Floats, right: Floats) -> Floats:
        product = left @ right.T
        product -= np.float32(1.0)
        product *= self._gain
        return np.asarray(np.exp(product, out=product))

    def values(self, scores: Scores) -> Values:
        chunks, span = len(scores.x) // self.stride, self.window // self.stride
        x = scores.x[: chunks * self.stride]
        to_reference = np.empty(chunks)
        # row[i, j]: kernel between chunk i and the chunk j before it, added up over pairs
        row = np.zeros((chunks, span))
        for first in range(0, chunks, 16):
            last = min(first + 16, chunks)
            tile = x[first * self.stride : last * self.stride]
            to_reference[first:last] = self._kernel(tile, self._points).sum(axis=1).reshape(-1, self.stride).sum(axis=1)
            begin = max(first - span + 1, 0)
            near = self._kernel(tile, x[begin * self.stride : last * self.stride])
            sums = near.reshape(last - first, self.stride, last - begin, self.stride).sum(axis=(1, 3))
            for chunk in range(first, last):
                before = min(span, chunk + 1)
                row[chunk, :before] = sums[chunk - first, chunk - begin - before + 1 : chunk - begin + 1][::-1]
        pairs = row[:, :1] + 2.0 * (np.cumsum(row, axis=1) - row[:, :1])  # with the chunks up to j before it
        result = np.full(chunks, -np.inf)
        w = float(self.window)
        for end in range(span - 1, chunks):
            begin = end - span + 1
            within = float(pairs[np.arange(begin, end + 1), np.arange(span)].sum()) - w
            outside = float(to_reference[begin : end + 1].sum())
            result[end] = within / (w * (w - 1.0)) - 2.0 * outside / (w * len(self._points))
        return result


class KolmogorovSmirnov:
    """-log10 of the least p-value, times the number of tests."""

    name, window, stride = "KS", 256, 128
    windows = (256, 1024, 4096)

    def __init__(self, reference: Floats, components: Floats) -> None:
        self._components = components[:, :KS_COMPONENTS]
        self._sorted = np.sort((reference @ self._components).T, axis=1)

    def values(self, scores: Scores) -> Values:
        from scipy.special import kolmogorov

        size = self._sorted.shape[1]
        projected = (scores.x @ self._components).T
        rank = np.stack([np.searchsorted(known, new) for known, new in zip(self._sorted, projected, strict=True)])
        share = (rank / size).astype(np.float32)  # of the reference below each record
        result = np.full(len(scores.x) // self.stride, -np.inf)
        for place in range(len(result)):
            end = (place + 1) * self.stride
            least = np.inf
            for w in self.windows:
                if end >= w:
                    ordered = np.sort(share[:, end - w : end], axis=1)
                    step = np.arange(w, dtype=np.float32) / np.float32(w)
                    distance = max(float((ordered - step).max()), float((step + np.float32(1 / w) - ordered).max()))
                    least = min(least, float(kolmogorov(np.sqrt(w * size / (w + size)) * distance)))
            if least < np.inf:
                result[place] = -np.log10(max(least, 1e-300) * KS_COMPONENTS * len(self.windows))
        return result


class DomainClassifier:
    """AUC on held-out records of a classifier between then and now."""

    name, window, stride = "domain classifier", 1024, 256

    def __init__(self, reference: Floats) -> None:
        # Unit vectors have coordinates near 1 / sqrt(d); the penalty is meant for columns near 1.
        self._scale = np.float32(np.sqrt(reference.shape[1]))
        self._reference = reference[: self.window] * self._scale

    def values(self, scores: Scores) -> Values:
        from scipy.stats import rankdata
        from sklearn.linear_model import LogisticRegression

        result = np.full(len(scores.x) // self.stride, -np.inf)
        now = np.repeat([0, 1], self.window // 2)
        half = self.window // 2
        for place in range(len(result)):
            end = (place + 1) * self.stride
            if end < self.window:
                continue
            rows = scores.x[end - self.window : end] * self._scale
            model = LogisticRegression(max_iter=200, tol=1e-3)
            model.fit(np.concatenate([self._reference[::2], rows[::2]]), now)
            rank = rankdata(model.decision_function(np.concatenate([self._reference[1::2], rows[1::2]])))
            result[place] = (rank[half:].sum() - half * (half + 1) / 2) / half**2
        return result


class Frechet:
    """|m - m0|^2 + tr(C0 + C - 2 (C0^1/2 C C0^1/2)^1/2) on principal components, where C0 is diagonal."""

    name, window, stride = "Frechet", 1024, 128

    def __init__(self, mean: Values, variances: Values, components: Floats) -> None:
        self._components = components[:, :FRECHET_COMPONENTS]
        self._mean = mean @ self._components
        self._variances = variances[:FRECHET_COMPONENTS]

    def values(self, scores: Scores) -> Values:
        y = scores.x @ self._components
        root = np.sqrt(self._variances)
        result = np.full(len(y) // self.stride, -np.inf)
        for place in range(len(result)):
            end = (place + 1) * self.stride
            if end < self.window:
                continue
            rows = y[end - self.window : end].astype(np.float64)
            centre = rows.mean(axis=0)
            covariance = (rows - centre).T @ (rows - centre) / (self.window - 1)
            middle = np.linalg.eigvalsh(root[:, None] * covariance * root)
            overlap = float(np.sqrt(np.maximum(middle, 0.0)).sum())
            away = float(((centre - self._mean) ** 2).sum())
            result[place] = away + float(self._variances.sum()) + float(np.trace(covariance)) - 2.0 * overlap
        return result


def window_statistics(built: Built) -> list[WindowStatistic]:
    """All of them, for one baseline."""
    reference = built.reference
    values, vectors = np.linalg.eigh(reference.covariance)
    components = np.ascontiguousarray(vectors[:, ::-1], dtype=np.float32)
    known = reference.calibration_vectors[chance(5).permutation(len(reference.calibration_vectors))]
    return [
        Mmd(known, 256),
        Mmd(known, 1024),
        KolmogorovSmirnov(known, components),
        DomainClassifier(known),
        Frechet(reference.mean, np.maximum(values[::-1], 0.0), components),
    ]


def alarms(values: Values, threshold: float, *, refill: int) -> list[int]:
    """Places at which a statistic alarms, when it starts with an empty window of ``refill`` places after each."""
    places: list[int] = []
    free = 0
    for place in np.flatnonzero(values >= threshold).tolist():
        if place >= free:
            places.append(place)
            free = place + refill
    return places


# --- detectors with a setting, run anew for every setting -----------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """A detector of single numbers, or the fold, with the settings among which the matching run length is sought.

    Attributes:
        name: in the table.
        settings: the more alarms, the further to the right.
        ends: ends, in records, of the records or blocks at which it alarms over a stream, for one setting.
    """

    name: str
    settings: tuple[float, ...]
    ends: Callable[[Scores, float], list[int]] = field(compare=False)


def adwin(numbers: Values, delta: float) -> list[int]:
    """Ends of the records at which river's ADWIN says that the mean changed."""
    from river.drift import ADWIN

    detector: Any = ADWIN
    return _river(detector(delta=delta), numbers)


def page_hinkley(numbers: Values, threshold: float) -> list[int]:
    """The same for river's PageHinkley; it starts anew after each."""
    from river.drift import PageHinkley

    return _river(PageHinkley(threshold=threshold), numbers)


def _river(detector: Any, numbers: Values) -> list[int]:
    ends = []
    for place, number in enumerate(numbers.tolist()):
        detector.update(number)
        if detector.drift_detected:
            ends.append(place + 1)
    return ends


def fold_ends(built: Built, block: int) -> Callable[[Scores, float], list[int]]:
    """Alarms of the drift rule asked for a run length in records."""

    def ends(scores: Scores, run_length: float) -> list[int]:
        watch = Watch(built.constants, block=block, run_length=run_length)
        watch.take(scores.blocks)
        return [(place + 1) * block for place in watch.alarms]

    return ends


def tuned_detectors(built: Built) -> list[Tuned]:
    """All of them."""
    deltas = (1e-6, 1e-4, 1e-2, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5)
    thresholds = (300.0, 150.0, 100.0, 70.0, 50.0, 35.0, 25.0, 15.0, 10.0, 5.0, 2.5)
    return [
        Tuned("fold 64, matched", (4000.0, 2000.0, 1000.0, 500.0, 250.0), fold_ends(built, 64)),
        Tuned("ADWIN on p", deltas, lambda scores, delta: adwin(scores.p, delta)),
        Tuned("ADWIN on distance", deltas, lambda scores, delta: adwin(scores.distance, delta)),
        Tuned("PageHinkley on p", thresholds, lambda scores, limit: page_hinkley(scores.p, limit)),
        Tuned("PageHinkley on distance", thresholds, lambda scores, limit: page_hinkley(scores.distance, limit)),
    ]


# --- setting thresholds on null streams ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """Everything that the processes share."""

    stream: str
    built: Built
    windows: list[WindowStatistic]
    tuned: list[Tuned]
    cut: int  # records from the change to the end of a run
    matched: dict[str, float] = field(default_factory=dict)


CONTEST: list[Contest] = []


def null_run(task: tuple[int, int]) -> tuple[list[Values], list[list[int]]]:
    """One null stream: the values of the window statistics, and the alarms of the others for each setting."""
    seed, records = task
    contest = CONTEST[0]
    scores = score(contest.built.reference, seed, records, stream=contest.stream)
    return (
        [statistic.values(scores) for statistic in contest.windows],
        [[len(one.ends(scores, setting)) for setting in one.settings] for one in contest.tuned],
    )


def matched_threshold(series: list[Values], statistic: WindowStatistic, wanted: float) -> tuple[float, int]:
    """The least threshold with at most ``wanted`` alarms over all series, and how many alarms it has."""
    refill = statistic.window // statistic.stride
    candidates = np.unique(np.concatenate(series))
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        found = sum(len(alarms(values, float(candidates[middle]), refill=refill)) for values in series)
        low, high = (low, middle) if found <= wanted else (middle + 1, high)
    threshold = float(candidates[low])
    return threshold, sum(len(alarms(values, threshold, refill=refill)) for values in series)


def matched_setting(settings: tuple[float, ...], found: list[int], wanted: float) -> tuple[float, int]:
    """The setting with the wanted number of alarms, between neighbours of the grid by logarithms; alarms behind it.

    Where even the last setting alarms too rarely, that one; where the first alarms too often, that one.
    """
    for place in range(1, len(settings)):
        before, after = found[place - 1], found[place]
        if before <= wanted < after:
            start, end = np.log(max(before, 0.5)), np.log(after)
            share = (np.log(wanted) - start) / (end - start)
            setting = np.exp((1.0 - share) * np.log(settings[place - 1]) + share * np.log(settings[place]))
            return float(setting), round((1.0 - share) * before + share * after)
    return (settings[0], found[0]) if found[0] > wanted else (settings[-1], found[-1])


def match(records: int, *, pieces: int, processes: int) -> None:
    """Fill `Contest.matched` and print what each matching rests on."""
    contest = CONTEST[0]
    piece = records // pieces // 2048 * 2048
    runs = list(parallel(null_run, [(FIRST_SEED + at, piece) for at in range(pieces)], processes))
    total, wanted = piece * pieces, piece * pieces / RUN_LENGTH
    chosen: list[tuple[str, float, int]] = []
    for place, statistic in enumerate(contest.windows):
        chosen.append((statistic.name, *matched_threshold([run[0][place] for run in runs], statistic, wanted)))
    for place, one in enumerate(contest.tuned):
        found = [sum(run[1][place][at] for run in runs) for at in range(len(one.settings))]
        chosen.append((one.name, *matched_setting(one.settings, found, wanted)))
    for name, setting, count in chosen:
        contest.matched[name] = setting
        say(
            benchmark="drift_peers_match",
            stream=contest.stream,
            method=name,
            value=round(total / max(count, 1)),
            unit="records between false alarms",
            ratio=round(total / max(count, 1) / RUN_LENGTH, 2),
            against=f"{RUN_LENGTH} records",
            setting=float(f"{setting:.6g}"),
            alarms=count,
            records=total,
        )


# --- the contest -----------------------------------------------------------------------------------------------------

Delay = tuple[int | None, bool]


def first_after(ends: list[int]) -> Delay:
    """Records from the change to the first alarm, if any; and whether there was an alarm before the change."""
    if any(end <= ONSET for end in ends):
        return None, True
    return (ends[0] - ONSET if ends else None), False


def shifted_run(task: tuple[str, int]) -> dict[str, Delay]:
    """The delay of every detector on one stream."""
    shift, seed = task
    contest = CONTEST[0]
    scores = score(contest.built.reference, seed, ONSET + contest.cut, stream=contest.stream, shift=SHIFTS[shift])
    result = {
        f"fold {block}, nominal": first_after(fold_ends(contest.built, block)(scores, RUN_LENGTH))
        for block in (64, 256)
    }
    for statistic in contest.windows:
        places = alarms(
            statistic.values(scores),
            contest.matched[statistic.name],
            refill=statistic.window // statistic.stride,
        )
        result[statistic.name] = first_after([(place + 1) * statistic.stride for place in places])
    for one in contest.tuned:
        result[one.name] = first_after(one.ends(scores, contest.matched[one.name]))
    return result


def compete(runs: int, processes: int) -> None:
    """Print a line for every method and shift, then how the drift rule stands against the better MMD."""
    contest = CONTEST[0]
    tasks = [(shift, seed) for shift in SHIFTS for seed in range(runs)]
    found: dict[tuple[str, str], list[Delay]] = {}
    for (shift, _), delays in zip(tasks, parallel(shifted_run, tasks, processes), strict=True):
        for name, delay in delays.items():
            found.setdefault((name, shift), []).append(delay)
    mean: dict[tuple[str, str], float | None] = {}
    for (name, shift), results in found.items():
        cell = delay_cell([delay for delay, before in results if not before], cut=contest.cut)
        mean[name, shift] = cell["value"]
        say(
            benchmark="drift_peers",
            stream=contest.stream,
            method=name,
            shift=shift,
            **cell,
            before=sum(before for _, before in results),
        )
    for name in ("fold 64, nominal", "fold 64, matched", "fold 256, nominal"):
        ratios = dict(_ratios(name, mean))
        say(
            benchmark="drift_peers_summary",
            stream=contest.stream,
            method=name,
            value=sum(ratio <= 1 / 3 for ratio in ratios.values()),
            unit=f"of {len(SHIFTS)} shifts with at most a third of the delay",
            ratio=round(max(ratios.values()), 2),
            against="the delay of the better MMD, at worst",
            ratios={shift: round(ratio, 2) for shift, ratio in ratios.items()},
        )


def _ratios(name: str, mean: dict[tuple[str, str], float | None]) -> Iterator[tuple[str, float]]:
    for shift in SHIFTS:
        ours, rivals = mean[name, shift], [mean["MMD 256", shift], mean["MMD 1024", shift]]
        known = [rival for rival in rivals if rival]
        if ours is not None and known:
            yield shift, ours / min(known)


def cost(records: int) -> None:
    """Print the cost per record of every method on one thread, embedding left out."""
    contest = CONTEST[0]
    reference = contest.built.reference
    opened = source(contest.stream).open(FIRST_SEED - 1, kind=kind(contest.stream))
    x = np.concatenate([opened.take(2048) for _ in range(records // 2048)])
    start = perf_counter()
    parts = [reference.score(x[first : first + 1024]) for first in range(0, len(x), 1024)]
    searched = perf_counter() - start
    start = perf_counter()
    blocks = [block for part in parts for block in summaries(part)]
    summed = perf_counter() - start
    scores = score(reference, FIRST_SEED - 1, len(x), stream=contest.stream)
    few = Scores(scores.x[:2048], scores.p[:2048], scores.distance[:2048], scores.blocks[:32])
    took = {"score": searched, "sums of blocks": summed}
    for block in (64, 256):
        watch = Watch(contest.built.constants, block=block, run_length=RUN_LENGTH)
        start = perf_counter()
        watch.take(blocks)
        took[f"fold {block}"] = perf_counter() - start
    for statistic in contest.windows:
        statistic.values(few)  # what is imported on first use is no cost of a record
        start = perf_counter()
        statistic.values(scores)
        took[statistic.name] = perf_counter() - start
    for one in contest.tuned:
        if not one.name.startswith("fold"):
            one.ends(few, contest.matched[one.name])
            start = perf_counter()
            one.ends(scores, contest.matched[one.name])
            took[one.name] = perf_counter() - start
    ours = took["score"] + took["sums of blocks"] + took["fold 64"]
    for name, seconds in took.items():
        say(
            benchmark="drift_peers_cost",
            method=name,
            value=round(seconds / len(x) * 1e6, 2),
            unit="us/record",
            ratio=round(seconds / ours, 3),
            against="score + sums of blocks + fold 64",
        )


def main() -> None:
    """Print a line of JSON for every cell."""
    parser = arguments(__doc__, quick_runs=1, full_runs=20)
    parser.add_argument("--stream", choices=("independent", "real"), default="independent")
    parser.add_argument(
        "--null-records", type=int, help="records that thresholds are set on: 40,960 if quick, 4,000,000 if full"
    )
    options = parser.parse_args()
    size = size_of(options)
    spec = Spec(options.stream, 64, size.baseline)
    built = build_all([spec], 1)[spec]
    cut = 16_384 if size.full else 4096
    CONTEST[:] = [Contest(options.stream, built, window_statistics(built), tuned_detectors(built), cut)]
    records = options.null_records or (4_000_000 if size.full else 40_960)
    match(records, pieces=max(1, records // 62_500), processes=size.processes)
    compete(size.runs, size.processes)
    cost(16_384 if size.full else 8_192)


if __name__ == "__main__":
    main()
