"""Labelled synthetic records: of each it is known beforehand what driftd must make of it.

A soak feeds them through real workers that are killed on the way, and compares what the database holds with `Truth`.
The vectors of usual records come from a small pool, so that a planted outlier is stranger than every usual one.
Everything is a function of the seed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DIMENSION = 16
POOL = 512  # different vectors of usual traffic, before and after the change
SHARES = (0.4, 0.3, 0.2, 0.1)  # of the first four partitions: they differ in speed
RECORDS_PER_BLOCK = 1_000
BLOCK_MS = 10_000
LATENESS_MS = 30_000
CHANGED = (0.7, 0.85)  # shares of the stream between which the traffic is another one
POISON = 0.005
OUTLIERS = 0.0005
LATE = 0.003
BASELINE = 0.1  # share of the stream that is safe to build a reference from: neither late nor changed

USUAL, OUTLIER = 0, 1
DEAD = {2: "wrong_dimension", 3: "not_finite", 4: "bad_vector", 5: "zero_vector", 6: "tombstone"}

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LabelledRecords:
    """n records in the order in which they are produced.

    Attributes:
        partition: int64 (n,), the partition of each.
        offset: int64 (n,), its offset in a topic that holds nothing else.
        time_ms: int64 (n,), event time, milliseconds since 1970; the record's own timestamp.
        session: int64 (n,), the number in its key.
        label: int64 (n,), USUAL, OUTLIER, or one of DEAD.
        choice: int64 (n,), which vector of its pool it has.
        usual, changed, strange: float32 (k, DIMENSION), the pools of vectors.
    """

    partitions: int
    partition: Int64s
    offset: Int64s
    time_ms: Int64s
    session: Int64s
    label: Int64s
    choice: Int64s
    usual: npt.NDArray[np.float32]
    changed: npt.NDArray[np.float32]
    strange: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.partition)

    def key(self, row: int) -> bytes:
        """The key of one record."""
        return b"s%d" % self.session[row]

    def values(self) -> list[bytes | None]:
        """The value of every record: little-endian float32, or what nobody can use."""
        usual = [vector.astype("<f4").tobytes() for vector in self.usual]
        changed = [vector.astype("<f4").tobytes() for vector in self.changed]
        strange = [vector.astype("<f4").tobytes() for vector in self.strange]
        broken: dict[int, bytes | None] = {
            2: usual[0][:-4],
            3: np.full(DIMENSION, np.nan, dtype="<f4").tobytes(),
            4: usual[0][:-1],
            5: bytes(4 * DIMENSION),
            6: None,
        }
        pools = [(usual, strange), (changed, strange)]
        first, after = (round(share * len(self)) for share in CHANGED)
        return [
            broken[label] if label > OUTLIER else pools[first <= row < after][label][choice % len(pools[0][label])]
            for row, (label, choice) in enumerate(zip(self.label.tolist(), self.choice.tolist(), strict=True))
        ]


@dataclass(frozen=True, slots=True)
class Truth:
    """What must stand in the database when all records are read and all blocks are closed.

    Attributes:
        records, dead, late: by partition.
        reasons: dead letters by reason.
        dead_letters: (partition, offset) of every dead letter, and its reason.
        outliers: (partition, offset) of every planted outlier that is not late.
        votes: records that enter the summary of each block: usable, on time, the first of its key in its partition.
    """

    records: dict[int, int]
    dead: dict[int, int]
    late: dict[int, int]
    reasons: dict[str, int]
    dead_letters: dict[tuple[int, int], str]
    outliers: set[tuple[int, int]]
    votes: dict[int, int]


def labelled_records(
    count: int, *, partitions: int, seed: int, start_ms: int, per_block: int = RECORDS_PER_BLOCK
) -> LabelledRecords:
    """``count`` records that begin at ``start_ms`` of event time, ``per_block`` of them in a block of BLOCK_MS.

    Their times are out of order by up to two seconds; a few come too late for their block.
    """
    chance = np.random.default_rng(seed)
    start_ms -= start_ms % BLOCK_MS
    weights = np.array([SHARES[number % len(SHARES)] for number in range(partitions)])
    partition = chance.choice(partitions, size=count, p=weights / weights.sum())
    offset = np.zeros(count, dtype=np.int64)
    for number in range(partitions):
        mine = partition == number
        offset[mine] = np.arange(np.count_nonzero(mine))
    row = np.arange(count)
    time_ms = start_ms + 2_000 + row * BLOCK_MS // per_block - chance.integers(0, 2_000, count)
    after_baseline = row >= round(BASELINE * count)
    time_ms -= np.where((chance.random(count) < LATE) & after_baseline, LATENESS_MS + 4 * BLOCK_MS, 0)
    label = np.full(count, USUAL)
    label[(chance.random(count) < OUTLIERS) & after_baseline] = OUTLIER
    poison = chance.random(count) < POISON
    label[poison] = chance.choice(list(DEAD), size=int(poison.sum()))
    of_pools = np.random.default_rng([seed, DIMENSION])  # the same pools for any number of records
    centres = of_pools.normal(size=(8, DIMENSION - 2))
    pools = [_pool(of_pools, centres, 0.35 * moved) for moved in (0.0, 1.0)]
    strange = np.zeros((16, DIMENSION), dtype=np.float32)
    strange[:, -1] = -1.0  # where no usual record has anything
    strange[:, 0] = np.linspace(0.0, 0.01, 16)
    return LabelledRecords(
        partitions=partitions,
        partition=partition,
        offset=offset,
        time_ms=time_ms,
        session=row // 40 * 16 + chance.integers(0, 16, count),
        label=label,
        choice=chance.integers(0, POOL, count),
        usual=pools[0],
        changed=pools[1],
        strange=strange,
    )


def truth_of(records: LabelledRecords) -> Truth:
    """What driftd must make of the records, worked out without any of its code."""
    usable = records.label <= OUTLIER
    block = records.time_ms // BLOCK_MS
    late = np.zeros(len(records), dtype=np.bool_)
    for number in range(records.partitions):
        rows = np.flatnonzero((records.partition == number) & usable)
        if len(rows):
            newest = np.maximum.accumulate(records.time_ms[rows])
            before = np.concatenate([[-1], newest[:-1]])
            late[rows] = (block[rows] + 1) * BLOCK_MS <= before - LATENESS_MS
    voting = np.flatnonzero(usable & ~late)
    heard = np.unique(np.stack([records.partition[voting], block[voting], records.session[voting]]), axis=1)
    dead = np.flatnonzero(~usable)
    reasons = {int(row): DEAD[int(records.label[row])] for row in dead}
    places = list(zip(records.partition.tolist(), records.offset.tolist(), strict=True))
    return Truth(
        records=_by_partition(records, np.arange(len(records))),
        dead=_by_partition(records, dead),
        late=_by_partition(records, np.flatnonzero(late)),
        reasons=dict(Counter(reasons.values())),
        dead_letters={places[row]: reason for row, reason in reasons.items()},
        outliers={places[row] for row in np.flatnonzero((records.label == OUTLIER) & ~late).tolist()},
        votes=dict(Counter(heard[1].tolist())),
    )


def _by_partition(records: LabelledRecords, rows: Int64s) -> dict[int, int]:
    counts = np.bincount(records.partition[rows], minlength=records.partitions)
    return dict(enumerate(counts.tolist()))


def _pool(chance: np.random.Generator, centres: npt.NDArray[np.float64], bias: float) -> npt.NDArray[np.float32]:
    """Unit vectors around the centres, moved by ``bias`` along one direction."""
    vectors = np.zeros((POOL, DIMENSION))
    vectors[:, :-2] = centres[chance.integers(0, len(centres), POOL)] + 0.5 * chance.normal(size=(POOL, DIMENSION - 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:, -2] = bias + 0.05 * chance.normal(size=POOL)
    vectors[:, -1] = np.abs(0.05 * chance.normal(size=POOL))
    return vectors.astype(np.float32)
