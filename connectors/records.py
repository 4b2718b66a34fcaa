"""What a source hands over: raw records in batches of one partition, and the contract of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Headers = Sequence[tuple[str, bytes]]


class Partition(NamedTuple):
    """One ordered log of records: a partition of a topic, or a file (its path is the topic, its number 0)."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of one partition that were gone before they could be read.

    Attributes:
        from_offset, to_offset: where reading should have gone on, and where it does; the latter is smaller where a
            topic was made anew or lost its newest records.
        reason: "retention" (deleted by the broker), "recreated" (another topic has the name now), "truncated" (the
            topic lost its newest records), "damaged" (a batch that cannot be decoded).
        detail: one sentence for a person.
    """

    partition: Partition
    from_offset: int
    to_offset: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Records of one partition in the order of their offsets, still as bytes.

    Attributes:
        partition: where the records lie.
        offsets: int64 (n,), strictly increasing; holes are normal (compaction, transactions, byte positions of lines).
        timestamps_ms: int64 (n,), the broker's time in milliseconds since 1970, -1 where there is none.
        keys, values, headers: n entries each; a value of None is a tombstone.
        next_offset: where reading goes on; greater than the last offset.
        topic_id: the broker's id of the topic, None if unknown; a topic made anew under the same name has another one.
        gap: records between where reading should have gone on and this batch; such a batch is empty.
    """

    partition: Partition
    offsets: npt.NDArray[np.int64]
    timestamps_ms: npt.NDArray[np.int64]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]
    next_offset: int
    topic_id: str | None = None
    gap: Gap | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def rows(self, first: int, after: int) -> RawBatch:
        """The records first <= row < after, as a batch of their own."""
        return RawBatch(
            partition=self.partition,
            offsets=self.offsets[first:after],
            timestamps_ms=self.timestamps_ms[first:after],
            keys=self.keys[first:after],
            values=self.values[first:after],
            headers=self.headers[first:after],
            next_offset=int(self.offsets[after]) if after < len(self) else self.next_offset,
            topic_id=self.topic_id,
            gap=self.gap,
        )

    def take(self, rows: Sequence[int]) -> RawBatch:
        """Some of the records, by their rows. Reading goes on where it did."""
        return replace(
            self,
            offsets=self.offsets[rows],
            timestamps_ms=self.timestamps_ms[rows],
            keys=[self.keys[row] for row in rows],
            values=[self.values[row] for row in rows],
            headers=[self.headers[row] for row in rows],
        )

    def below(self, after: int) -> RawBatch:
        """The records with offsets below ``after``, with which reading is at ``after``; itself where it ends before."""
        if self.next_offset <= after:
            return self
        rows = self.rows(0, int(np.searchsorted(self.offsets, after)))
        gap = None if self.gap is None else replace(self.gap, to_offset=min(self.gap.to_offset, after))
        return replace(rows, next_offset=after, gap=gap)

    @staticmethod
    def empty(partition: Partition, next_offset: int) -> RawBatch:
        """No records, only word of where reading goes on."""
        nothing = np.zeros(0, dtype=np.int64)
        return RawBatch(partition, nothing, nothing, (), (), (), next_offset)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used.

    Attributes:
        partition, offset: the record's position.
        time_ms: the broker's time, -1 if there is none.
        reason: one of a short fixed list of words, used as a metric label.
        detail: one sentence on what was found, without the payload.
        payload: the first bytes of the value, as many as settings allow.
        size: the length of the whole value in bytes.
        row: which row of the record, from 0, where a record carries many; -1 where all of it cannot be used.
        block: the block of event time that it is counted in; None while that is not known.
    """

    partition: Partition
    offset: int
    time_ms: int
    reason: str
    detail: str
    payload: bytes
    size: int
    row: int = -1
    block: int | None = None

    def counted_in(self, block: int) -> DeadLetter:
        """The same letter, counted in a block."""
        return DeadLetter(
            self.partition,
            self.offset,
            self.time_ms,
            self.reason,
            self.detail,
            self.payload,
            self.size,
            self.row,
            block,
        )


@dataclass(frozen=True, slots=True)
class Span:
    """A part of one partition: the offsets first <= offset < after, whether or not each of them holds a record.

    Attributes:
        topic_id: the broker's id of the topic that the offsets belong to, None if unknown.
    """

    first: int
    after: int
    topic_id: str | None = None

    def __len__(self) -> int:
        """Offsets, which are rarely fewer than its records; bytes for lines of a file."""
        return max(0, self.after - self.first)


# Given partitions, the next offset stored for each; partitions that were never read are absent.
StoredPositions = Callable[[Sequence[Partition]], Mapping[Partition, int]]

# Given partitions, the id of the topic that each stored offset belongs to; where none is known, it is absent.
StoredTopicIds = Callable[[Sequence[Partition]], Mapping[Partition, str]]


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a source does, as far as it knows without asking anybody.

    Attributes:
        member: of a consumer group: "stable", or "joining" while partitions move; "none" without a group.
        connected: the outside system has said something lately.
        rebalances: how often the group has told us our partitions, since the start.
        rebuilt: how often an error made the client be built anew.
        failed_commits: advisory commits that were refused or lost.
        silent: seconds since anything came, for the partitions that are read and have something left but brought
            nothing for more than 30 s. What is left may also be an open transaction.
    """

    member: str
    connected: bool
    rebalances: int
    rebuilt: int
    failed_commits: int
    silent: Mapping[Partition, float]


class Source(Protocol):
    """Where records come from. Every method is called from one thread.

    A source never stores progress of its own: `open` is given a look-up of the offsets in driftd's database, which the
    source calls for each partition it is assigned, from inside `poll`, and reads on from there; a partition without a
    stored offset starts where the source's settings say.
    """

    @property
    def finished(self) -> bool:
        """A bounded source has been read to its end. A live source is never finished."""

    def check(self) -> str:
        """Connect once and return a line such as "kafka localhost:9092, topic orders, 4 partitions".

        Raises:
            SourceError: a subclass that names what is wrong, with a hint.
        """

    def open(self, positions: StoredPositions, *, topic_ids: StoredTopicIds | None = None) -> None:
        """Begin. Raises SourceError where the source cannot be read at all.

        Args:
            topic_ids: tells whether a stored offset belongs to the topic that is there now; asked like ``positions``.
        """

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        """Up to ``max_records`` records, after at most about ``timeout_s`` seconds; [] where there are none.

        Raises:
            SourceError: `retryable` says whether to call again.
        """

    def rewind(self) -> None:
        """Forget what was fetched and read on from the stored positions: called after a checkpoint was refused."""

    def assignment(self) -> frozenset[Partition]:
        """The partitions that this source reads now."""

    def partitions(self) -> frozenset[Partition]:
        """Every partition that is known now, whoever reads it; empty before any is known."""

    def hold(self, partitions: frozenset[Partition]) -> None:
        """From now on fetch nothing of exactly these; they stay assigned, and their positions stay. Never raises."""

    def state(self) -> SourceState:
        """How it does. Never blocks."""

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Tell the outside system how far we are. Advisory, never raises: the database is the truth."""

    def lag(self) -> Mapping[Partition, int]:
        """Records (or bytes, for files) not yet read, per assigned partition, from local knowledge; never blocks."""

    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        """Records with start_ms <= broker's time < end_ms, without touching the group; ends are fixed at the start."""

    def extents(self, start_ms: int | None, end_ms: int | None) -> dict[Partition, Span]:
        """Where a time lies: from the first record with time >= start_ms up to the first with time >= end_ms.

        By the broker's time, and without a look at what lies between: clocks go back, and the offsets of a span must
        follow one another. A source whose records have no time outside gives everything that it has. Ends are fixed
        now; partitions that hold nothing there are absent.

        Raises:
            SourceError: the source cannot be read.
        """

    def between(self, spans: Mapping[Partition, Span]) -> Source:
        """A source of exactly these offsets, which is `finished` at their end. It is of no group and closed by itself.

        `open` takes stored positions inside the spans. Where nothing is stored, an empty batch tells the first offset,
        and a span whose last offsets hold no record ends with an empty batch as well: what was read has no holes. Its
        `lag` counts to the ends of the spans.

        Raises (from `open` and `poll`):
            OffsetGap: offsets of a span are gone, or belong to a topic that was made anew.
        """

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        """Exactly the records at these offsets, in any order of partitions, without touching the group.

        Those that are gone are absent. A batch holds records of one partition in the order of their offsets.
        """

    def close(self) -> None:
        """Leave within 5 seconds, whatever the outside system does."""


@runtime_checkable
class Cuttable(Protocol):
    """A source in which not every offset begins a record, so that a span can be cut in two at some of them only."""

    def next_start(self, partition: Partition, offset: int) -> int:
        """The first offset from this one on at which a record may begin; the end where none begins any more.

        Raises:
            SourceError: it cannot be read.
        """
