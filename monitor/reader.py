"""Reads the source of one model: how much at a time, from which partitions, and what it says when it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from connectors.database.rows import PartitionState
from connectors.records import Partition, RawBatch, Source
from detectors.errors import AccessRefused, SourceError, StoreError

FIRST_BATCH = 256  # records of the first poll, before it is known how long they take
AHEAD = 6  # times the wait: a partition that far ahead of the slowest is held back
RETRY_S = 30.0  # between two tries of a source that refuses us: a wrong password locks accounts
REMEMBER_S = 10.0  # a failure that does not mend by itself, in one partition, comes between records of the others


class Reader:
    """The source of one model, read by one thread.

    Args:
        source: opened by the caller.
        most_records: of one poll.
        target_s: how long the records of one poll may take to be scored.
        idle_s: a partition that is read to its end and silent for so long is idle.
        wait_s: so far may a partition that is read to its end lie behind the newest, in event time.
        live: go on trying, slowly, after an error that no retry mends; otherwise it is raised.

    Attributes:
        batch_records: what the next poll asks for.
        failure: why the last poll failed, in words; "" if it did not.
        failing_since: monotonic clock of the first failure in a row, None while there is none.
        lasting: the failure does not mend by itself.
        held: partitions that are not fetched now.
    """

    def __init__(
        self, source: Source, *, most_records: int, target_s: float, idle_s: float, wait_s: float, live: bool
    ) -> None:
        self.source = source
        self.batch_records = min(FIRST_BATCH, most_records)
        self.failure = ""
        self.failing_since: float | None = None
        self.lasting = False
        self.held: frozenset[Partition] = frozenset()
        self.assigned: frozenset[Partition] = frozenset()
        self._most = most_records
        self._target_s = target_s
        self._idle_s = idle_s
        self._wait_ms = round(wait_s * 1000)
        self._live = live
        self._rewind_due = False
        self._stumbled = False
        self._retry_at = self._failed_at = float("-inf")
        self._last_came: dict[Partition, float] = {}  # monotonic clock of the last record, or of the assignment
        self._last_time: dict[Partition, int] = {}  # the broker's time of the last record
        self._handed: dict[Partition, int] = {}  # what follows the records that were handed over

    def poll(self, clock_s: float, *, wait_s: float) -> list[RawBatch]:
        """What came; [] where nothing did, and where the source failed (`failure`).

        Raises:
            SourceError, StoreError: what cannot be retried, unless the source is a live one.
        """
        if clock_s < self._retry_at:
            return []
        try:
            if self._rewind_due:
                self.source.rewind()
                self._rewind_due = False
            batches = self.source.poll(self.batch_records, wait_s)
        except (SourceError, StoreError) as error:  # a source asks the database where to begin
            self._fail(error, clock_s)
            return []
        if not self._stumbled and not (self.lasting and clock_s < self._failed_at + REMEMBER_S):
            self.failure, self.lasting, self.failing_since = "", False, None
        for batch in batches:
            self._handed[batch.partition] = batch.next_offset
            if len(batch):
                self._last_came[batch.partition] = clock_s
                self._last_time[batch.partition] = int(batch.timestamps_ms[-1])
        return batches

    def stumble(self, error: SourceError, clock_s: float) -> None:
        """The records that came cannot be opened now: what their schemas are asked of does not answer.

        Raises:
            SourceError: what cannot be retried, unless the source is a live one.
        """
        self._stumbled = True
        self._fail(error, clock_s)

    def cope(self) -> None:
        """The records that came were opened."""
        self._stumbled = False

    def _fail(self, error: SourceError | StoreError, clock_s: float) -> None:
        if not error.retryable and not (self._live and isinstance(error, SourceError)):
            raise error
        self.failure = str(error)
        self.lasting = not error.retryable
        self._failed_at = clock_s
        self._retry_at = clock_s + RETRY_S if isinstance(error, AccessRefused) else float("-inf")
        if self.failing_since is None:
            self.failing_since = clock_s

    def rewind(self) -> None:
        """Read on from the stored positions, from the next poll on."""
        self._rewind_due = True
        self._handed.clear()

    def gone(self, clock_s: float) -> frozenset[Partition]:
        """Take note of the assignment. Returns the partitions that went away since the last look."""
        before, self.assigned = self.assigned, self.source.assignment()
        for partition in self.assigned:
            self._last_came.setdefault(partition, clock_s)
        gone = before - self.assigned
        for partition in gone:
            self._last_came.pop(partition, None)
            self._last_time.pop(partition, None)
        return gone

    def took(self, records: int, seconds: float) -> None:
        """So long did the records of the last poll take; the next poll is made to fit."""
        if records == 0:
            return
        fits = max(1, min(self._most, int(self._target_s * records / max(seconds, 1e-9))))
        # A few records take longer each: they say nothing of a full batch, unless that they are fast.
        if fits > self.batch_records or 2 * records >= self.batch_records:
            self.batch_records = fits

    def hold(self, partitions: frozenset[Partition]) -> None:
        """Fetch nothing of exactly these partitions, until told otherwise."""
        if partitions != self.held:
            self.held = partitions
            self.source.hold(partitions)

    def hold_those_ahead(self, states: Sequence[PartitionState], stalled: frozenset[Partition]) -> None:
        """Let the slow catch up, so that the blocks that stay open are bounded in number."""
        slow = [state.max_time_ms for state in states if not state.idle and state.partition not in stalled]
        if not slow or min(slow) < 0:
            self.hold(frozenset())
            return
        limit = min(slow) + AHEAD * self._wait_ms
        ahead = {state.partition for state in states if state.max_time_ms > limit}
        self.hold(self.assigned & ahead)

    def at_rest(
        self, clock_s: float, states: Sequence[PartitionState], written: Mapping[Partition, int]
    ) -> dict[Partition, int]:
        """The partitions that no block need wait for: read to their end, and silent or far behind. With next offsets.

        Args:
            states: what the last fold read.
            written: next offsets that were written since.
        """
        if not self.source.state().connected:
            return {}
        lag = self.source.lag()
        newest = max((state.max_time_ms for state in states), default=-1)
        rest = {}
        for state in states:
            partition = state.partition
            if partition not in self.assigned or lag.get(partition, 1) > 0:
                continue
            offset = written.get(partition, state.next_offset)
            if self._handed.get(partition, offset) != offset:
                continue  # its last records are not written yet
            silent = clock_s - self._last_came.get(partition, clock_s) >= self._idle_s
            behind = 0 <= state.max_time_ms < newest - self._wait_ms
            if (silent or behind) and state.idle_offset != offset:
                rest[partition] = offset
        return rest

    def lag_seconds(self, now_ms: int) -> dict[Partition, float]:
        """How long ago the broker got the last record that was read, per partition; 0 where nothing is left to read."""
        lag = self.source.lag()
        return {
            partition: max(0.0, (now_ms - time_ms) / 1000) if lag.get(partition, 0) > 0 else 0.0
            for partition, time_ms in self._last_time.items()
            if time_ms >= 0
        }
