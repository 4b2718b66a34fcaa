"""Sends what waits in the outbox: one thread for each sink, so that a sink that hangs delays nothing but itself.

A row is written in the same transaction as the incident it tells of, and marked after the sink took it. A crash between
the two sends it again, under the same id. What fails is tried again later and later, for about a day.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from connectors.database.rows import OutboxRow
from connectors.notification import Sink
from detectors.errors import SinkError, StoreError
from monitor.log import RepeatingFailure, describe, event

if TYPE_CHECKING:
    from connectors.prometheus import Metrics

log = logging.getLogger(__name__)

LEASE_S = 60.0  # a process that dies while it sends delays the notification by so much; longer than any sink waits
LONGEST_WAIT_S = 3_540.0  # an hour is the most that the database takes, and clocks differ a little
DEPTH_EVERY_S = 5.0


class OutboxStore(Protocol):
    """What the sender needs of the database; `connectors.database.store.Store` has it. Called from several threads."""

    def outbox_claim(self, sink: str, now_ms: int, lease_ms: int, limit: int) -> list[OutboxRow]: ...
    def outbox_sent(self, sink: str, notification_id: str, now_ms: int) -> None: ...
    def outbox_failed(
        self, sink: str, notification_id: str, due_ms: int, error: str, *, held_ms: int | None = None
    ) -> None: ...
    def outbox_dead(self, sink: str, notification_id: str, error: str) -> None: ...
    def outbox_waiting(self) -> tuple[int, int | None]: ...


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


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class SinkQueue:
    """Delivers the notifications of one sink, one after the other. Called from one thread.

    After a failure that may pass, the whole sink pauses: the notifications behind it would only fail as well, and use
    up their attempts.

    Each notification is claimed in the database before it is sent, so that of several processes one sends it. Whoever
    is killed between the two delays it by ``lease_s``.

    Attributes:
        name: of the sink.
        paused_until_ms: nothing is sent before.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        store: OutboxStore,
        *,
        policy: RetryPolicy,
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
        self._metrics = metrics
        self._failing_since_ms: int | None = None
        self._failures = 0
        self._unmarked: set[str] = set()  # taken by the sink, and not marked in the database yet
        self._refusals = RepeatingFailure(log, "sink does not take notifications")
        if metrics is not None:
            metrics.watch_sink(name)

    def pump(self, clock: Callable[[], int], stopping: threading.Event) -> int:
        """Send what is due, until nothing is, the sink fails or a stop is asked for. Returns how many were sent.

        Raises:
            StoreError: the database refuses; what was sent and could not be marked is marked by the next call.
        """
        sent = 0
        for identity in sorted(self._unmarked):
            self._mark_sent(identity, clock())
        while not stopping.is_set() and not self._is_paused(clock()):
            # One at a time: those behind it would use up their leases while it is on its way.
            rows = self._store.outbox_claim(self.name, clock(), self._lease_ms, 1)
            if not rows:
                break
            sent += self._deliver(rows[0], clock)
        self._show_age(clock())
        return sent

    def _is_paused(self, now_ms: int) -> bool:
        # More than the whole pause is left: the clock was set back, and the pause would last for as long.
        return 0 < self.paused_until_ms - now_ms <= self._pause_ms

    def _deliver(self, row: OutboxRow, clock: Callable[[], int]) -> int:
        """Send one, and mark it. Returns 1 if it was sent."""
        identity = row.notification.id
        if identity in self._unmarked:  # marking it failed after the lease was over
            self._mark_sent(identity, clock())
            return 0
        try:
            self._sink.send(row.notification)
        except Exception as error:  # a defect in one sink must stop neither the others nor the scoring
            if not isinstance(error, SinkError):
                log.exception(event("sink raised an unexpected error", sink=self.name))
            self._failed(row, error, clock())
            return 0
        # Should the database refuse the mark, the lease ends one day: never send it again for that.
        self._unmarked.add(identity)
        self._failing_since_ms, self._failures = None, 0
        self._refusals.over(sink=self.name)
        if self._metrics is not None:
            self._metrics.outbox_sent.labels(self.name).inc()
        self._mark_sent(identity, clock())
        return 1

    def _mark_sent(self, identity: str, now_ms: int) -> None:
        self._store.outbox_sent(self.name, identity, now_ms)
        self._unmarked.discard(identity)

    def _failed(self, row: OutboxRow, error: Exception, now_ms: int) -> None:
        identity, attempts, text = row.notification.id, row.attempts + 1, describe(error)
        asked_s = min(error.retry_after_s or 0.0, LONGEST_WAIT_S) if isinstance(error, SinkError) else 0.0
        passing = not isinstance(error, SinkError) or error.retryable
        self._refusals.happened(text, sink=self.name)
        # First the pause, which holds even if the database then refuses. It grows with the failures in a row, not with
        # the attempts of this notification: one that a receiver chokes on must not hold up the others for long.
        self._failures += 1
        pause_s = max(self._policy.wait_s(self.name, self._failures), asked_s)
        self._pause_ms = round(pause_s * 1000)
        self.paused_until_ms = now_ms + self._pause_ms
        if passing and attempts < self._policy.attempts:
            if self._failing_since_ms is None:
                self._failing_since_ms = now_ms
            wait_s = max(self._policy.wait_s(f"{self.name} {identity}", attempts), asked_s)
            self._store.outbox_failed(self.name, identity, now_ms + round(wait_s * 1000), text, held_ms=row.due_ms)
            if self._metrics is not None:
                self._metrics.outbox_failed.labels(self.name).inc()
            return
        self._store.outbox_dead(self.name, identity, text)
        if not passing:
            # The receiver answered: it is there, and the next notification may suit it.
            self._failures, self.paused_until_ms = 0, 0
        if self._metrics is not None:
            self._metrics.outbox_dead.labels(self.name).inc()
        log.error(
            event(
                "notification given up",
                sink=self.name,
                incident=row.notification.incident,
                title=row.notification.title,
                attempts=attempts,
                reason=text,
            )
        )

    def _show_age(self, now_ms: int) -> None:
        if self._metrics is not None:
            since = now_ms if self._failing_since_ms is None else self._failing_since_ms
            self._metrics.outbox_age.labels(self.name).set(max(now_ms - since, 0) / 1000)


class OutboxSender:
    """Runs a `SinkQueue` for each sink, each in its own daemon thread.

        sender = OutboxSender(store, {"pager": sink}, metrics=metrics)
        sender.start()
        sender.stop()       # what is being sent may finish; what is not sent stays in the outbox

    Args:
        store: the database; its calls must be safe from several threads.
        clock: wall clock, milliseconds since 1970.
        look_every_s: how often the outbox is looked at.
    """

    def __init__(
        self,
        store: OutboxStore,
        sinks: Mapping[str, Sink],
        *,
        metrics: Metrics | None = None,
        policy: RetryPolicy | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        look_every_s: float = 1.0,
    ) -> None:
        self._store = store
        self._sinks = dict(sinks)
        self._metrics = metrics
        self._clock = clock
        self._look_every_s = look_every_s
        self._stopping = threading.Event()
        self._queues = {
            name: SinkQueue(name, sink, store, policy=policy or RetryPolicy(), metrics=metrics)
            for name, sink in self._sinks.items()
        }
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to send."""
        for name in self._queues:
            thread = threading.Thread(target=self._run, args=(name,), name=f"driftd-sink-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> list[str]:
        """Send nothing new and leave within ``timeout_s``. Returns the sinks that were still busy; they are left alone.

        A notification that was on its way then may be sent again at the next start, under the same id.
        """
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        busy = {thread.name.removeprefix("driftd-sink-") for thread in self._threads if thread.is_alive()}
        for name, sink in self._sinks.items():
            if name not in busy:
                sink.close()
        self._threads = []
        return sorted(busy)

    def _run(self, name: str) -> None:
        queue = self._queues[name]
        database = RepeatingFailure(log, "outbox cannot be read or written")
        next_depth_s = 0.0
        while not self._stopping.is_set():
            try:
                queue.pump(self._clock, self._stopping)
                if self._metrics is not None and time.monotonic() >= next_depth_s:
                    next_depth_s = time.monotonic() + DEPTH_EVERY_S
                    depth, oldest_ms = self._store.outbox_waiting()
                    self._metrics.outbox_depth.set(depth)
                    waited_ms = 0 if oldest_ms is None else max(self._clock() - oldest_ms, 0)
                    self._metrics.outbox_oldest.set(waited_ms / 1000)
                database.over(sink=name)
            except StoreError as error:
                database.happened(describe(error), sink=name)
            except Exception:  # a thread that ends in silence would be alerts that never come
                log.exception(event("sender failed", sink=name))
            self._stopping.wait(self._look_every_s)
