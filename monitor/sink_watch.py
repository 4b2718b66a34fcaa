"""Opens an incident about a sink that takes nothing, tells it through the other sinks, and says when it is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from monitor.log import event
from monitor.operations import DEPLOYMENT, resolved, sink_incident, sink_segment

if TYPE_CHECKING:
    from connectors.database.rows import IncidentRow
    from connectors.database.store import Store

log = logging.getLogger(__name__)

REFUSED_MS = 600_000  # a sink that has refused for so long is an incident
LOOK_EVERY_MS = 60_000  # for an incident that another process opened


class SinkWatch:
    """What one sink refuses, as one process sees it. Called from the sink's thread.

    Args:
        others: the other sinks, which are told.

    Attributes:
        since_ms: since when the sink refuses, by the wall clock; None while it takes what it gets.
        trouble: why there is an incident, in words; "" if there is none.
    """

    def __init__(self, sink: str, store: Store, *, others: Sequence[str]) -> None:
        self.since_ms: int | None = None
        self.trouble = ""
        self._sink = sink
        self._store = store
        self._others = tuple(others)
        self._problem = ""
        self._given_up = False  # and not told yet
        self._took = False  # and the incident, should there be one, is not resolved yet
        self._next_look_ms = 0

    def refused(self, problem: str, now_ms: int) -> None:
        """It did not take something, which is tried again."""
        self._problem = problem
        self._took = False
        if self.since_ms is None:
            self.since_ms = now_ms

    def gave_up(self, problem: str) -> None:
        """Something will never be delivered."""
        self._problem = problem
        self._given_up = True
        self._took = False

    def took(self) -> None:
        """It takes what it gets."""
        self.since_ms, self._took = None, True

    def look(self, now_ms: int) -> None:
        """Open the incident, or resolve it, if it is time.

        Raises:
            StoreError: the database refuses; the next look tries again.
        """
        if self.since_ms is not None and not self._store.outbox_refused(self._sink):
            self.since_ms = None  # another process delivered what this one could not
        overdue = self.since_ms is not None and now_ms - self.since_ms >= REFUSED_MS
        if self._given_up or (overdue and not self.trouble):
            self._open(now_ms)
        # What was given up is told first, even if the sink took the next one at once.
        if self._took and (self.trouble or now_ms >= self._next_look_ms):
            self._resolve(now_ms)

    def _open(self, now_ms: int) -> None:
        since_ms = now_ms if self.since_ms is None else self.since_ms
        row, notice = sink_incident(
            self._sink, problem=self._problem, given_up=self._given_up, since_ms=since_ms, now_ms=now_ms
        )
        if self._store.open_incident(row, [(other, notice) for other in self._others]):
            log.error(event("sink is in trouble", sink=self._sink, incident=row.id, reason=self._problem))
        self.trouble, self._given_up = row.text, False

    def _resolve(self, now_ms: int) -> None:
        for row in _open_incidents(self._store):
            if row.segment == sink_segment(self._sink) and _end(row, self._store, self._others, now_ms):
                log.info(event("sink works again", sink=self._sink, incident=row.id))
        self.trouble, self._took = "", False
        self._next_look_ms = now_ms + LOOK_EVERY_MS


def resolve_removed(store: Store, sinks: Sequence[str], now_ms: int) -> None:
    """Resolve the incidents of sinks that are no longer in the settings: they will never take anything again.

    Args:
        sinks: those in the settings, which are told.

    Raises:
        StoreError: the database refuses.
    """
    segments = {sink_segment(sink) for sink in sinks}
    for row in _open_incidents(store):
        if row.segment not in segments and _end(row, store, sinks, now_ms):
            log.info(event("sink is no longer in the settings", incident=row.id))


def _open_incidents(store: Store) -> list[IncidentRow]:
    """Those about sinks."""
    return [row for row in store.incidents(model=DEPLOYMENT, status="open") if row.kind == "sink"]


def _end(row: IncidentRow, store: Store, told: Sequence[str], now_ms: int) -> bool:
    """Resolve it and tell these sinks; whether nobody else did so before."""
    over, notice = resolved(row, now_ms)
    return store.resolve_incident(over, [(sink, notice) for sink in told])
