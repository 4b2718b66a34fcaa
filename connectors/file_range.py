"""Reads parts of files, each from a first offset to a last: history, and the pieces of it that workers share.

Files are opened in the order in which their spans are given, a few at a time, which take turns: a block of event time
stays open until all files that may hold records of it have passed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from connectors.file_reader import Reader, Rows
from connectors.records import Partition, RawBatch, Source, SourceState, Span, StoredPositions, StoredTopicIds
from detectors.errors import OffsetGap, SourceError

_OPEN: Final = 16  # files at a time
_WAIT_S: Final = 0.05  # where everything that is left is held


class FilesRange:
    """A bounded source (`connectors.records.Source.between`) of files.

    Args:
        spans: what to read of each file, in the file's own offsets; the oldest records first, where that is known.
        read: opens a file for reading up to an offset; raises SourceError.
        batch: rows of a file as records.
        verify: raises SourceError where a file that was read is not the one any more that its span is of.
        whole: the source that the spans are of.
    """

    def __init__(
        self,
        spans: Mapping[Partition, Span],
        *,
        read: Callable[[Partition, Span], Reader],
        batch: Callable[[Partition, Rows], RawBatch],
        verify: Callable[[Partition, Span], None],
        whole: Source,
    ) -> None:
        self._spans = dict(spans)
        self._read = read
        self._batch = batch
        self._verify = verify
        self._whole = whole
        self._positions: StoredPositions | None = None
        self._at: dict[Partition, int] = {}  # where each span goes on
        self._left: dict[Partition, None] = {}  # those that are not at their end, in order
        self._new: set[Partition] = set()  # those whose first offset was not told
        self._readers: dict[Partition, Reader] = {}
        self._held: frozenset[Partition] = frozenset()
        self._turn = 0
        self._postponed: SourceError | None = None

    @property
    def finished(self) -> bool:
        """All spans were handed over to their ends."""
        return self._positions is not None and not self._left

    def check(self) -> str:
        """What is to be read, in words."""
        return f"{sum(map(len, self._spans.values())):,} bytes or rows of {len(self._spans):,} files"

    def open(self, positions: StoredPositions, *, topic_ids: StoredTopicIds | None = None) -> None:
        """Go to the stored positions. Files are opened when their turn comes.

        Raises:
            OffsetGap: a stored position lies before its span.
        """
        self._positions = positions
        self._place()

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        """Up to ``max_records`` records, an equal share of each open file.

        Raises:
            SourceError: a file is gone, or not what it was when the span was fixed.
        """
        chosen = [partition for partition in islice(self._left, _OPEN) if partition not in self._held]
        if self._postponed is not None:
            error, self._postponed = self._postponed, None
            raise error
        if not chosen:
            if self._left:
                time.sleep(min(timeout_s, _WAIT_S))
            return []
        batches: list[RawBatch] = []
        self._turn = (self._turn + 1) % len(chosen)
        share, left = max(1, max_records // len(chosen)), max_records
        for partition in chosen[self._turn :] + chosen[: self._turn]:
            if left <= 0:
                break
            try:
                batch = self._next_of(partition, min(share, left))
            except SourceError as error:
                self._forget(partition)  # what failed in the middle of something is opened anew
                if not batches:
                    raise
                self._postponed = error  # what the others gave must be handed over: they have gone on
                break
            if partition in self._new:
                self._new.discard(partition)
                batches.append(RawBatch.empty(partition, self._spans[partition].first))
            batches.append(batch)
            left -= len(batch)
        return batches

    def rewind(self) -> None:
        """Read on from the stored positions."""
        self.close()
        self._place()

    def assignment(self) -> frozenset[Partition]:
        """One partition for each file."""
        return frozenset(self._spans)

    def partitions(self) -> frozenset[Partition]:
        """The files of the spans."""
        return frozenset(self._spans)

    def hold(self, partitions: frozenset[Partition]) -> None:
        """Read nothing of exactly these files until told otherwise."""
        self._held = partitions

    def state(self) -> SourceState:
        """Files have no group, and no connection to lose."""
        return SourceState("none", self._positions is not None, 0, 0, 0, {})

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Nobody need know."""

    def lag(self) -> Mapping[Partition, int]:
        """Bytes (jsonl) or rows left, up to the ends of the spans."""
        return {
            partition: max(0, span.after - self._at.get(partition, span.first))
            for partition, span in self._spans.items()
        }

    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        """Of the whole source."""
        return self._whole.read_range(start_ms, end_ms)

    def extents(self, start_ms: int | None, end_ms: int | None) -> dict[Partition, Span]:
        """Of the whole source."""
        return self._whole.extents(start_ms, end_ms)

    def between(self, spans: Mapping[Partition, Span]) -> Source:
        """Of the whole source."""
        return self._whole.between(spans)

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        """Of the whole source."""
        return self._whole.read_at(positions)

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}

    def _place(self) -> None:
        assert self._positions is not None
        stored = self._positions(list(self._spans))
        self._at, self._new, self._postponed = {}, set(), None
        for partition, span in self._spans.items():
            position = stored.get(partition)
            if position is not None and position < span.first:
                raise OffsetGap(
                    f"{partition.topic} was read up to {position}, and the range begins at {span.first}: what lies "
                    "between would be left out.",
                    hint="Begin the range earlier.",
                )
            self._at[partition] = span.first if position is None else position
            if position is None:
                self._new.add(partition)
        self._left = {p: None for p, span in self._spans.items() if self._at[p] < span.after}

    def _next_of(self, partition: Partition, most: int) -> RawBatch:
        """The next records of a file; none, and its end, where only blank lines are left."""
        span, at = self._spans[partition], self._at[partition]
        rows = self._reader(partition).read(min(most, span.after - at))
        if rows is None or rows.next_offset >= span.after:
            self._verify(partition, span)
            self._forget(partition)
            del self._left[partition]
        if rows is None:
            batch = RawBatch.empty(partition, span.after)
        else:
            batch = self._batch(partition, rows).below(span.after)
        self._at[partition] = batch.next_offset
        return batch

    def _forget(self, partition: Partition) -> None:
        if reader := self._readers.pop(partition, None):
            reader.close()

    def _reader(self, partition: Partition) -> Reader:
        reader = self._readers.get(partition)
        if reader is None:
            if len(self._readers) >= 2 * _OPEN:  # of files that are held since
                for other in [other for other in self._readers if other in self._held]:
                    self._forget(other)
            reader = self._read(partition, self._spans[partition])
            try:
                reader.seek(self._at[partition])
            except BaseException:
                reader.close()
                raise
            self._readers[partition] = reader
        return reader
