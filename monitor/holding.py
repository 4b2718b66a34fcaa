"""What a sink is not told: by the wall clock, at the time of sending.

* What a mute covers is held back. When it is not covered any more, it goes out; but if its incident is over, and the
  sink does not know that it was open, nobody is told.
* That an incident still goes on is not told where somebody has acknowledged it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from connectors.database.rows import IncidentRow, MuteRow

if TYPE_CHECKING:
    from connectors.database.store import Store
    from connectors.prometheus import Metrics

Item = TypeVar("Item")

LOOK_EVERY_MS = 1_000  # while much is sent, new mutes are looked for so often
AT_A_TIME = 1_000  # incidents of one statement


class Holding:
    """Holds back, lets go and drops the notifications of one sink. Called from one thread."""

    def __init__(self, sink: str, store: Store, *, metrics: Metrics | None = None) -> None:
        self._sink = sink
        self._store = store
        self._metrics = metrics
        self._mutes: list[MuteRow] | None = None  # in force when it was looked last
        self._next_look_ms = 0

    def look(self, now_ms: int, *, at_once: bool = False) -> None:
        """Hold back what a mute covers, let go what none covers any more, and drop what nobody wants to hear.

        Args:
            at_once: also if that was done within the last second.
        """
        if not at_once and now_ms < self._next_look_ms <= now_ms + LOOK_EVERY_MS:
            return
        mutes = self._store.mutes(now_ms)
        if mutes:
            waiting = self._store.outbox_incidents(self._sink, "pending")
            covered = [row for row in waiting if any(mute.covers(row) for mute in mutes)]
            for some in _pieces(covered):
                self._store.outbox_hold(self._sink, [row.id for row in some], now_ms)
                self._drop_unknown(some, now_ms)
        if mutes != self._mutes:
            held = self._store.outbox_incidents(self._sink, "held")
            for some in _pieces([row for row in held if not any(mute.covers(row) for mute in mutes)]):
                self._drop_unknown(some, now_ms)
                self._store.outbox_release(self._sink, [row.id for row in some])
            self._mutes = mutes
        for cared in _pieces(self._store.outbox_acknowledged(self._sink)):
            self._drop(cared, now_ms, event="repeated")
        self._next_look_ms = now_ms + LOOK_EVERY_MS

    def _drop_unknown(self, incidents: Sequence[IncidentRow], now_ms: int) -> None:
        """Of these incidents, tell nothing of those that are over before the sink knew that they were open."""
        over = [row.id for row in incidents if row.status == "resolved"]
        told = self._store.outbox_last_told(self._sink, over) if over else {}
        unknown = [incident for incident in over if told.get(incident, "resolved") == "resolved"]
        if unknown:
            self._drop(unknown, now_ms)

    def _drop(self, incidents: Sequence[str], now_ms: int, *, event: str | None = None) -> None:
        count = self._store.outbox_mute(self._sink, incidents, now_ms, event=event)
        if self._metrics is not None:
            self._metrics.muted.labels(self._sink).inc(count)


def _pieces(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + AT_A_TIME] for start in range(0, len(items), AT_A_TIME)]
