"""What happened to the records of one block: how many came, were late, could not be used, of which version, and how
many of them look like fraud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.norms import Norms, log_norms
from detectors.summary import at_most, merge_counts
from monitor.event import EventBatch

MAX_VERSIONS = 32  # of the watched model, in one block
SURPRISE_BINS = 256  # of a histogram of surprise; the last one takes all above
SURPRISE_STEP = 1 / 16
PROBABILITY_BINS = 64  # of a histogram of probabilities, equally wide

Sparse = dict[int, int]  # a histogram: count by bin, without those that are empty


@dataclass(frozen=True, slots=True)
class FraudCounts:
    """What the fraud scores say of the records of one block, late ones left out. Counts add up, whatever the order.

    Attributes:
        n: records that were scored.
        candidates: of them, those with a p-value of at most `fraud.alpha`.
        surprise: records by their surprise (-log10 p, continued beyond the finest p), in bins of `SURPRISE_STEP`.
        probability: candidates by their probability, in `PROBABILITY_BINS` bins; only of records that were scored with
            labels, because without any a probability says nothing of precision.
        flooded: records that resemble at least so many of their block and partition that they are a flood.
        floods: groups of such records; `flood_largest`: records of the largest one, as far as one partition saw it.
        segments: the same of the records of some segments, such as "country=de", without segments of their own.
    """

    n: int
    candidates: int
    surprise: Sparse = field(default_factory=dict)
    probability: Sparse = field(default_factory=dict)
    flooded: int = 0
    floods: int = 0
    flood_largest: int = 0
    segments: dict[str, FraudCounts] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        """Candidates that were scored with labels."""
        return sum(self.probability.values())

    def merge(self, other: FraudCounts) -> FraudCounts:
        segments = dict(self.segments)
        for name, counts in other.segments.items():
            segments[name] = segments[name].merge(counts) if name in segments else counts
        return FraudCounts(
            self.n + other.n,
            self.candidates + other.candidates,
            added(self.surprise, other.surprise),
            added(self.probability, other.probability),
            self.flooded + other.flooded,
            self.floods + other.floods,
            max(self.flood_largest, other.flood_largest),
            dict(sorted(segments.items())),
        )

    def stored(self) -> _StoredFraud:
        return _StoredFraud(
            self.n,
            self.candidates,
            sorted(self.surprise.items()),
            sorted(self.probability.items()),
            (self.flooded, self.floods, self.flood_largest),
            [(name, counts.stored()) for name, counts in sorted(self.segments.items())],
        )

    @classmethod
    def restored(cls, stored: _StoredFraud) -> FraudCounts:
        return cls(
            stored.n,
            stored.candidates,
            dict(stored.surprise),
            dict(stored.probability),
            *stored.floods,
            {name: cls.restored(counts) for name, counts in stored.segments},
        )


class _StoredFraud(msgspec.Struct, array_like=True, frozen=True):
    n: int
    candidates: int
    surprise: list[tuple[int, int]]
    probability: list[tuple[int, int]]
    floods: tuple[int, int, int]
    segments: list[tuple[str, _StoredFraud]]


class _StoredCounts(msgspec.Struct, array_like=True, frozen=True):
    records: int
    late: int
    dead: list[tuple[str, int]]
    versions: list[tuple[str, int]] = []  # not there before driftd knew of versions, and where none is named
    fraud: _StoredFraud | None = None  # not there where no fraud scores are configured
    norms: list[tuple[str, int, int, int]] = []  # not there without spaces of ready vectors


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """What happened to the records of one block; the summary of space "".

    Attributes:
        records: all that came, late and unusable ones included.
        dead: how many could not be used, by reason.
        versions: records on time of each version of the watched model. Of more than `MAX_VERSIONS`, those with the
            smallest hashes.
        fraud: what the fraud scores say of the records on time; None where there are none.
        norms: by space of ready vectors, the lengths of the vectors of the records on time.
    """

    records: int
    late: int
    dead: dict[str, int]
    versions: dict[str, int] = field(default_factory=dict)
    fraud: FraudCounts | None = None
    norms: dict[str, Norms] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        counts = (self.records, self.late, sorted(self.dead.items()))
        versions = sorted(self.versions.items())
        if self.norms:
            norms = [(name, sums.n, sums.total, sums.squares) for name, sums in sorted(self.norms.items())]
            fraud = None if self.fraud is None else self.fraud.stored()
            return msgspec.json.encode((*counts, versions, fraud, norms))
        if self.fraud is not None:
            return msgspec.json.encode((*counts, versions, self.fraud.stored()))
        return msgspec.json.encode((*counts, versions) if versions else counts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> RecordCounts:
        stored = msgspec.json.decode(blob, type=_StoredCounts)
        fraud = None if stored.fraud is None else FraudCounts.restored(stored.fraud)
        norms = {name: Norms(*sums) for name, *sums in stored.norms}
        return cls(stored.records, stored.late, dict(stored.dead), dict(stored.versions), fraud, norms)

    def merge(self, other: RecordCounts) -> RecordCounts:
        # Counts may be negative: of a dead letter that was mended.
        # In one order, whoever came first: the fold stores them.
        reasons = sorted(self.dead | other.dead)
        summed = {reason: self.dead.get(reason, 0) + other.dead.get(reason, 0) for reason in reasons}
        dead = {reason: count for reason, count in summed.items() if count}
        versions = merge_counts(self.versions, other.versions, most=MAX_VERSIONS)
        fraud = self.fraud if other.fraud is None else other.fraud
        if self.fraud is not None and other.fraud is not None:
            fraud = self.fraud.merge(other.fraud)
        norms = dict(self.norms)
        for name, sums in other.norms.items():
            norms[name] = norms[name].merge(sums) if name in norms else sums
        return RecordCounts(self.records + other.records, self.late + other.late, dead, versions, fraud, norms)


def versions_of(
    events: EventBatch, blocks: npt.NDArray[np.int64], late: npt.NDArray[np.bool_]
) -> dict[int, dict[str, int]]:
    """By block, how many records on time each version of the model answered."""
    if events.versions is None:
        return {}
    named = zip(blocks.tolist(), events.versions, late.tolist(), strict=True)
    found: dict[int, dict[str, int]] = {}
    for (block, version, is_late), count in Counter(named).items():
        if version is not None and not is_late:
            found.setdefault(block, {})[version] = count
    return {block: at_most(counts, MAX_VERSIONS) for block, counts in found.items()}


def norms_of(
    space: str, vectors: npt.NDArray[np.float32], blocks: npt.NDArray[np.int64], late: npt.NDArray[np.bool_]
) -> dict[int, RecordCounts]:
    """By block, the lengths of the vectors of records on time, to be added to its counts.

    Args:
        vectors: float32 (n, d), as they came.
    """
    on_time = np.flatnonzero(~late)
    logs, where = log_norms(vectors[on_time]), blocks[on_time]
    found = {}
    for block in np.unique(where).tolist():
        found[block] = RecordCounts(0, 0, {}, norms={space: Norms.of(logs[where == block])})
    return found


def fraud_counts_of(
    blocks: npt.NDArray[np.int64],
    surprise: npt.NDArray[np.float32],
    p_value: npt.NDArray[np.float64],
    *,
    alpha: float,
    segments: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    flood_sizes: npt.NDArray[np.int32] | None = None,
    flood_least: int = 0,
    probability: npt.NDArray[np.float32] | None = None,
) -> dict[int, FraudCounts]:
    """By block, what the fraud scores say of its records.

    Args:
        blocks: int64 (n,), of records on time; the other arrays are as long.
        surprise, p_value: of `detectors.fraud.FraudScores`.
        alpha: largest p-value of a candidate.
        segments: bool (n,) for each segment that has alerts of its own: which records belong to it.
        flood_sizes: int32 (n,), how many near-identical records of its block and partition there are so far, each
            record itself included; None where floods are not looked for.
        flood_least: fewest of them that are a flood.
        probability: float32 (n,), of records that were scored with labels; None without labels.
    """
    numbers, group = np.unique(blocks, return_inverse=True)
    candidate = p_value <= alpha
    bins = np.minimum(np.maximum(surprise, 0.0) * np.float32(1 / SURPRISE_STEP), SURPRISE_BINS - 1).astype(np.int64)
    likely = None
    if probability is not None:
        likely = np.clip(probability * np.float32(PROBABILITY_BINS), 0, PROBABILITY_BINS - 1).astype(np.int64)
    within: dict[int, dict[str, FraudCounts]] = {}
    for name, inside in sorted((segments or {}).items()):
        rows = np.flatnonzero(inside)
        for index, counts in _counted(group, rows, bins, candidate, likely).items():
            within.setdefault(index, {})[name] = counts
    found = _counted(group, np.arange(len(blocks)), bins, candidate, likely)
    flooded, floods = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    largest = np.zeros(len(numbers), np.int64)
    if flood_sizes is not None and flood_least > 0:
        flooded = np.bincount(group[flood_sizes >= flood_least], minlength=len(numbers))
        # Every group has one record that made it so large.
        floods = np.bincount(group[flood_sizes == flood_least], minlength=len(numbers))
        np.maximum.at(largest, group, np.where(flood_sizes >= flood_least, flood_sizes, 0))
    return {
        int(numbers[index]): FraudCounts(
            counts.n,
            counts.candidates,
            counts.surprise,
            counts.probability,
            int(flooded[index]),
            int(floods[index]),
            int(largest[index]),
            within.get(index, {}),
        )
        for index, counts in found.items()
    }


def _counted(
    group: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    bins: npt.NDArray[np.int64],
    candidate: npt.NDArray[np.bool_],
    likely: npt.NDArray[np.int64] | None,
) -> dict[int, FraudCounts]:
    """By group, the counts of some rows."""
    chosen = rows[candidate[rows]]
    surprise = _histograms(group[rows], bins[rows], SURPRISE_BINS)
    probability = {} if likely is None else _histograms(group[chosen], likely[chosen], PROBABILITY_BINS)
    candidates = Counter(group[chosen].tolist())
    return {
        index: FraudCounts(sum(histogram.values()), candidates[index], histogram, probability.get(index, {}))
        for index, histogram in surprise.items()
    }


def _histograms(group: npt.NDArray[np.int64], bins: npt.NDArray[np.int64], size: int) -> dict[int, Sparse]:
    codes, counts = np.unique(group * size + bins, return_counts=True)
    found: dict[int, Sparse] = {}
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        found.setdefault(code // size, {})[code % size] = count
    return found


def added(one: Sparse, other: Sparse) -> Sparse:
    """The sum of two histograms, its bins ascending."""
    return {index: one.get(index, 0) + other.get(index, 0) for index in sorted(one | other)}
