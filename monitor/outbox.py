"""Sends what waits in the outbox for one sink; monitor/sender.py runs this for each.

A row is written in the same transaction as the incident it tells of, and marked after the sink took it. A crash between
the two sends it again, under the same id. What fails is tried again later and later, for about a day.

Each sink gets each notification at once, but for sinks that people read (`connectors.notification.GroupSink`): these
get what is new of a model in one message, at the pace that monitor/pacing.py states. The notifications of an incident
arrive in order. What mutes and acknowledgements hold back, by the wall clock: monitor/holding.py.

A message that the sink refuses for good is sent again in halves, so that one notification that it cannot take does
not take the others with it. Where `MOST_REFUSED` single ones are refused and none is taken, it refuses everything,
and the rest is given up as well.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from connectors.database.rows import OutboxRow, Waiting
from connectors.notification import Group, GroupSink, Notification, RefreshedSink, Sink
from detectors.errors import SinkError, StoreError
from monitor.holding import Holding
from monitor.log import RepeatingFailure, describe, event
from monitor.pacing import Pace, due_models
from monitor.sink_watch import SinkWatch

if TYPE_CHECKING:
    from connectors.database.store import Store
    from connectors.prometheus import Metrics

log = logging.getLogger(__name__)

LEASE_S = 60.0  # a process that dies while it sends delays the notification by so much; longer than any sink waits
LONGEST_WAIT_S = 3_540.0  # an hour is the most that the database takes, and clocks differ a little
MOST_IN_GROUP = 1_000  # notifications of one message
MOST_REFUSED = 3
RESOLVED_MS = 900_000  # for so long a refreshed sink is told that an incident is over


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again: after 1, 2, 4, ... seconds up to a quarter of an hour, 106 times, which is about a day.

    Attributes:
        first_s, longest_s: shortest and longest wait between two attempts.
        attempts: a notification that failed so often is given up.
    """

    first_s: float = 1.0
    longest_s: float = 900.0
    attempts: int = 106

    def wait_s(self, key: str, attempts: int) -> float:
        """Seconds to wait after the given number of failed attempts (1, 2, ...).

        Between half and the whole of the doubled time: the part is a hash of ``key`` and the attempt, so that many
        notifications do not come back at the same moment, and the same one comes back at the same time in every run.
        """
        whole = min(self.first_s * 2.0 ** min(attempts - 1, 60), self.longest_s)
        digest = hashlib.sha256(f"{key} {attempts}".encode(errors="replace")).digest()
        return whole * (0.5 + int.from_bytes(digest[:4], "big") / 2**33)


class SinkQueue:
    """Delivers the notifications of one sink, one message after the other. Called from one thread.

    After a failure that may pass, the whole sink pauses: the notifications behind it would only fail as well, and use
    up their attempts.

    Each message is claimed in the database before it is sent, so that of several processes one sends it. Whoever is
    killed between the two delays it by ``lease_s``.

    Args:
        pace: of messages, where the sink takes groups.
        others: the other sinks, which are told when this one takes nothing.

    Attributes:
        name: of the sink.
        paused_until_ms: nothing is sent before.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        store: Store,
        *,
        policy: RetryPolicy,
        pace: Pace | None = None,
        others: Sequence[str] = (),
        metrics: Metrics | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        self.name = name
        self.paused_until_ms = 0
        self._pause_ms = 0
        self._lease_ms = round(lease_s * 1000)
        self._sink = sink
        self._store = store
        self._policy = policy
        self._pace = pace or Pace()
        self._metrics = metrics
        self._watch = SinkWatch(name, store, others=others)
        self._holding = Holding(name, store, metrics=metrics)
        self._failures = 0
        self._unmarked: set[str] = set()  # taken by the sink, and not marked in the database yet
        self._refusals = RepeatingFailure(log, "sink does not take notifications")
        self._parts: list[list[OutboxRow]] = []  # of a message that was refused for good, the next one last
        self._refused_alone = 0
        self._next_refresh_ms = 0
        self._refreshing = RepeatingFailure(log, "sink cannot be refreshed")
        if metrics is not None:
            metrics.watch_sink(name)

    @property
    def trouble(self) -> str:
        """Why there is an incident about the sink, in words; "" if there is none that this process knows of."""
        return self._watch.trouble

    def hurry(self) -> None:
        """From now on, wait for no more of the same model; messages stay as few as before."""
        self._pace = replace(self._pace, group_wait_ms=0, group_interval_ms=0)

    def pump(self, clock: Callable[[], int], stopping: threading.Event) -> int:
        """Send what is due, until nothing is, the sink fails or a stop is asked for. Returns how many were sent.

        Raises:
            StoreError: the database refuses; what was sent and could not be marked is marked by the next call.
        """
        sent = 0
        self._mark_sent(sorted(self._unmarked), clock())
        first = True
        while not stopping.is_set() and not self._is_paused(clock()):
            self._holding.look(clock(), at_once=first)
            first = False
            # One message at a time: those behind it would use up their leases while it is on its way.
            rows = self._claim(clock())
            if not rows:
                break
            sent += self._deliver(rows, clock)
        if not stopping.is_set():
            self._refresh(clock())
        self._watch.look(clock())
        self._show_age(clock())
        return sent

    def _is_paused(self, now_ms: int) -> bool:
        # More than the whole pause is left: the clock was set back, and the pause would last for as long.
        return 0 < self.paused_until_ms - now_ms <= self._pause_ms

    # --- messages -----------------------------------------------------------------------------------------------------

    def _claim(self, now_ms: int) -> list[OutboxRow]:
        """The notifications of the next message; none if nothing is due."""
        if not isinstance(self._sink, GroupSink):
            return self._store.outbox_claim(self.name, now_ms, self._lease_ms, 1)
        since_ms = now_ms - self._pace.memory_ms
        waiting = self._store.outbox_waits(self.name, now_ms, since_ms)  # without a lock: mostly nothing is due
        if self._parts:
            return self._claim_part(waiting, now_ms)
        if not due_models(waiting, self._pace, now_ms):
            return []
        return self._store.outbox_claim_group(
            self.name,
            now_ms,
            self._lease_ms,
            since_ms=since_ms,
            choose=lambda found: due_models(found, self._pace, now_ms),
            limit=MOST_IN_GROUP,
        )

    def _claim_part(self, waiting: Waiting, now_ms: int) -> list[OutboxRow]:
        """The next part of a message that was refused, if one more message may go out now."""
        while self._parts and waiting.messages < self._pace.most_per_minute:
            if rows := self._store.outbox_claim_again(self.name, self._parts.pop(), now_ms, self._lease_ms):
                return rows
        return []

    def _deliver(self, rows: list[OutboxRow], clock: Callable[[], int]) -> int:
        """Send a message, and mark it. Returns how many notifications were in it."""
        known = [row.notification.id for row in rows if row.notification.id in self._unmarked]
        if known:  # marking them failed after the lease was over
            self._mark_sent(known, clock())
            rows = [row for row in rows if row.notification.id not in known]
            if not rows:
                return 0
        try:
            self._send(rows)
        except Exception as error:  # a defect in one sink must stop neither the others nor the scoring
            if isinstance(error, StoreError):
                raise
            if not isinstance(error, SinkError):
                log.exception(event("sink raised an unexpected error", sink=self.name))
            self._failed(rows, error, clock())
            return 0
        # Should the database refuse the mark, the lease ends one day: never send them again for that.
        ids = [row.notification.id for row in rows]
        self._unmarked.update(ids)
        self._failures = self._refused_alone = 0
        self._watch.took()
        self._refusals.over(sink=self.name)
        if self._metrics is not None:
            self._metrics.outbox_sent.labels(self.name).inc(len(rows))
            self._metrics.messages.labels(self.name).inc()
        self._mark_sent(ids, clock())
        return len(rows)

    def _send(self, rows: Sequence[OutboxRow]) -> None:
        notifications = tuple(row.notification for row in rows)
        if not isinstance(self._sink, GroupSink):
            self._sink.send(notifications[0])
            return
        models: dict[str, list[Notification]] = {}
        for notification in notifications:
            models.setdefault(notification.model, []).append(notification)
        known = self._store.open_incidents(self.name, list(models))
        groups = tuple(Group(model, tuple(told), *known[model]) for model, told in sorted(models.items()))
        if len(groups) > 1:
            firing, pages = sum(group.firing for group in groups), sum(group.pages for group in groups)
            groups = (Group("*", notifications, firing, pages, parts=groups),)
        self._sink.send_group(groups[0])

    def _mark_sent(self, ids: Sequence[str], now_ms: int) -> None:
        if ids:
            # Of a group, all have the time of their claim: the pace counts messages by it.
            self._store.outbox_sent(self.name, ids, None if isinstance(self._sink, GroupSink) else now_ms)
            self._unmarked.difference_update(ids)

    def _failed(self, rows: list[OutboxRow], error: Exception, now_ms: int) -> None:
        text = describe(error)
        asked_s = min(error.retry_after_s or 0.0, LONGEST_WAIT_S) if isinstance(error, SinkError) else 0.0
        passing = not isinstance(error, SinkError) or error.retryable
        self._refusals.happened(text, sink=self.name)
        if not passing:
            # The receiver answered: it is there, and the next message may suit it.
            self._failures, self.paused_until_ms = 0, 0
            self._refused(rows, text)
            return
        # What is left of a message that was refused is grouped anew: parts must not overtake each other.
        self._parts, self._refused_alone = [], 0
        # First the pause, which holds even if the database then refuses. It grows with the failures in a row, not with
        # the attempts of this notification: one that a receiver chokes on must not hold up the others for long.
        self._failures += 1
        pause_s = max(self._policy.wait_s(self.name, self._failures), asked_s)
        self._pause_ms = round(pause_s * 1000)
        self.paused_until_ms = now_ms + self._pause_ms
        self._give_up([row for row in rows if row.attempts + 1 >= self._policy.attempts], text)
        again = [row for row in rows if row.attempts + 1 < self._policy.attempts]
        if not again:
            return
        self._watch.refused(text, now_ms)
        attempts = max(row.attempts for row in again) + 1
        wait_s = max(self._policy.wait_s(f"{self.name} {again[0].notification.id}", attempts), asked_s)
        ids, held_ms = [row.notification.id for row in again], again[0].due_ms
        self._store.outbox_failed(self.name, ids, now_ms + round(wait_s * 1000), text, held_ms=held_ms)
        if self._metrics is not None:
            self._metrics.outbox_failed.labels(self.name).inc()

    def _refused(self, rows: list[OutboxRow], text: str) -> None:
        """The sink will not take this message: look for the part of it that it does take."""
        if len(rows) > 1:
            half = len(rows) // 2
            self._parts += [rows[half:], rows[:half]]
            return
        self._give_up(rows, text)
        self._refused_alone += 1
        if self._refused_alone >= MOST_REFUSED:
            parts, self._parts = self._parts, []
            for part in parts:
                self._give_up(part, text)
        if not self._parts:
            self._refused_alone = 0

    def _give_up(self, rows: Sequence[OutboxRow], text: str) -> None:
        if not rows:
            return
        self._store.outbox_dead(self.name, [row.notification.id for row in rows], text)
        self._watch.gave_up(text)
        if self._metrics is not None:
            self._metrics.outbox_dead.labels(self.name).inc(len(rows))
        for row in rows:
            log.error(
                event(
                    "notification given up",
                    sink=self.name,
                    incident=row.notification.incident,
                    title=row.notification.title,
                    attempts=row.attempts + 1,
                    reason=text,
                )
            )

    def _show_age(self, now_ms: int) -> None:
        if self._metrics is not None:
            since = now_ms if self._watch.since_ms is None else self._watch.since_ms
            self._metrics.outbox_age.labels(self.name).set(max(now_ms - since, 0) / 1000)

    # --- what the other side forgets ----------------------------------------------------------------------------------

    def _refresh(self, now_ms: int) -> None:
        """Tell a sink whose other side forgets what was told. What fails is not tried again before the next time."""
        if not isinstance(self._sink, RefreshedSink):
            return
        every_ms = round(self._sink.refresh_every_s * 1000)
        if now_ms < self._next_refresh_ms <= now_ms + every_ms:
            return
        self._next_refresh_ms = now_ms + every_ms
        told = self._store.outbox_told(self.name, now_ms - RESOLVED_MS)
        if not told:
            return
        try:
            self._sink.refresh(told)
        except Exception as error:  # as above
            if not isinstance(error, SinkError):
                log.exception(event("sink raised an unexpected error", sink=self.name))
            self._refreshing.happened(describe(error), sink=self.name)
            if self._metrics is not None:
                self._metrics.refresh_failures.labels(self.name).inc()
        else:
            self._refreshing.over(sink=self.name)
