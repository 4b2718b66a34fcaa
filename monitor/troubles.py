"""What a worker itself has to tell people of: a source that fails, reading that stopped, stalled partitions, gaps.

Such incidents live by the clock and by what the worker sees, not by blocks: there may be no event time to go by. Of
several workers that see the same trouble, the database lets one tell, and that one says when it is over; where it died
meanwhile, the one that starts next does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from connectors.database.rows import Checkpoint, IncidentRow, PartitionState
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Partition
from detectors.errors import StoreError
from monitor.log import event
from monitor.operations import (
    OPERATIONAL,
    gap_incidents,
    resolved,
    source_incident,
    stalled_incident,
    wave_incident,
)
from monitor.reader import Reader

log = logging.getLogger(__name__)

AGAIN_S = 60.0  # until a trouble that could not be told is told again, and until one that is gone is over


class Troubles:
    """The incidents of one worker's own.

    Args:
        model: the model's name.
        sinks: the names of all sinks.
        after_s: a source that may mend by itself is told of when it has failed for so long.
    """

    def __init__(self, model: str, store: Store, *, sinks: Sequence[str], after_s: float) -> None:
        self._model = model
        self._store = store
        self._sinks = tuple(sinks)
        self._after_s = after_s
        self._told: dict[str, IncidentRow] = {}  # open ones, by kind
        self._again: dict[str, float] = {}  # monotonic clock before which a kind is not tried again
        self._well: dict[str, float] = {}  # since when a kind that was told is not seen any more

    @property
    def open(self) -> list[IncidentRow]:
        """Those that this worker told of, and that are not over."""
        return list(self._told.values())

    def take_over(self, rows: Sequence[IncidentRow]) -> None:
        """Those that were left open by whoever ran before; this worker says when they are over."""
        self._told |= {row.kind: row for row in rows if row.kind in OPERATIONAL}

    def source(self, reader: Reader, now_ms: int, clock_s: float) -> None:
        """After every poll: whether the source has failed for too long, or does no longer."""
        since = reader.failing_since
        if since is None:
            self._over("source", now_ms, clock_s)
        elif reader.lasting or clock_s - since >= self._after_s:
            began_ms = now_ms - round((clock_s - since) * 1000)
            told = source_incident(
                self._model, problem=reader.failure, lasting=reader.lasting, since_ms=began_ms, now_ms=now_ms
            )
            self._tell(told, clock_s)

    def wave(self, why: str, now_ms: int, clock_s: float) -> None:
        """Reading has stopped, because too many records cannot be used."""
        self._tell(wave_incident(self._model, problem=why, now_ms=now_ms), clock_s)

    def no_wave(self, now_ms: int, clock_s: float) -> None:
        """So many records were read that a wave would have been seen."""
        self._over("dead_letter_wave", now_ms, clock_s)

    def stalled(
        self, partitions: frozenset[Partition], states: Sequence[PartitionState], now_ms: int, clock_s: float
    ) -> None:
        """After every fold: which partitions stand still, so that blocks are closed without them.

        Where all do, nothing is closed: that is the trouble of a source.
        """
        still = [state for state in states if state.partition in partitions]
        if not still:
            self._over("stalled", now_ms, clock_s)
        elif len(still) < len(states):
            places = {state.partition: state.next_offset for state in still}
            since_ms = min(state.advanced_ms for state in still)
            self._tell(stalled_incident(self._model, places, since_ms=since_ms, now_ms=now_ms), clock_s)

    def with_gaps(self, checkpoint: Checkpoint, now_ms: int) -> Checkpoint:
        """The checkpoint, with the incidents of its gaps."""
        if not checkpoint.gaps:
            return checkpoint
        newest = {advance.partition: advance.max_time_ms for advance in checkpoint.advances}
        dated = []
        for gap in checkpoint.gaps:
            log.error(event("records were lost before they could be read", model=self._model, reason=gap.detail))
            time_ms = newest.get(gap.partition, -1)
            dated.append((gap, time_ms if time_ms >= 0 else now_ms))
        told = gap_incidents(self._model, dated)
        return replace(
            checkpoint,
            incidents=[*checkpoint.incidents, *(row for row, _ in told)],
            outbox=[*checkpoint.outbox, *(pair for _, notice in told for pair in self._pairs(notice))],
        )

    def _tell(self, told: tuple[IncidentRow, Notification], clock_s: float) -> None:
        row, notice = told
        self._well.pop(row.kind, None)
        if row.kind in self._told or clock_s < self._again.get(row.kind, clock_s):
            return
        self._again[row.kind] = clock_s + AGAIN_S
        try:
            if self._store.open_incident(row, self._pairs(notice)):
                self._told[row.kind] = row
        except StoreError as error:  # the work goes on; it is told when the database answers
            log.warning(event("incident waits for the database", kind=row.kind, reason=str(error)))

    def _over(self, kind: str, now_ms: int, clock_s: float) -> None:
        row = self._told.get(kind)
        # A broker that comes and goes must not page each time.
        well_since = self._well.setdefault(kind, clock_s)
        if row is None or clock_s < max(well_since + AGAIN_S, self._again.get(kind, clock_s)):
            return
        over, notice = resolved(row, now_ms)
        try:
            self._store.resolve_incident(over, self._pairs(notice))
        except StoreError as error:
            self._again[kind] = clock_s + AGAIN_S
            log.warning(event("incident waits for the database", kind=kind, reason=str(error)))
            return
        del self._told[kind]

    def _pairs(self, notice: Notification) -> list[tuple[str, Notification]]:
        return [(sink, notice) for sink in self._sinks]
