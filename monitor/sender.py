"""Sends what waits in the outbox: one thread for each sink, so that a sink that hangs delays nothing but itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from connectors.database.connection import wall_clock_ms
from connectors.notification import Sink
from detectors.errors import StoreError
from monitor.log import RepeatingFailure, describe, event
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.pacing import Pace
from monitor.sink_watch import resolve_removed

if TYPE_CHECKING:
    from connectors.database.store import Store
    from connectors.prometheus import Metrics

log = logging.getLogger(__name__)

DEPTH_EVERY_S = 5.0


class _SharedDatabase:
    """What all senders find of their one database: said once, however many senders there are. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failure = RepeatingFailure(log, "outbox cannot be read or written")
        self._without: set[str] = set()

    def failed(self, sender: str, reason: str) -> None:
        """A sender could not use it."""
        with self._lock:
            self._without.add(sender)
            self._failure.happened(reason)

    def works(self, sender: str) -> None:
        """A sender could; it is over when all can."""
        with self._lock:
            self._without.discard(sender)
            if not self._without:
                self._failure.over()


class OutboxSender:
    """Runs a `SinkQueue` for each sink, each in its own daemon thread.

        sender = OutboxSender(store, {"pager": sink}, metrics=metrics)
        sender.start()
        sender.finish()     # nothing more will come: send what waits, without waiting for more of it
        sender.stop()       # what is being sent may finish; what is not sent stays in the outbox

    Args:
        store: the database; its calls must be safe from several threads.
        pace: of messages to sinks that people read.
        clock: wall clock, milliseconds since 1970.
        look_every_s: how often the outbox is looked at.
    """

    def __init__(
        self,
        store: Store,
        sinks: Mapping[str, Sink],
        *,
        metrics: Metrics | None = None,
        policy: RetryPolicy | None = None,
        pace: Pace | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        look_every_s: float = 1.0,
    ) -> None:
        self._store = store
        self._sinks = dict(sinks)
        self._metrics = metrics
        self._clock = clock
        self._look_every_s = look_every_s
        self._database = _SharedDatabase()
        self._stopping = threading.Event()
        self._finishing = threading.Event()
        self._woken = {name: threading.Event() for name in self._sinks}
        self._through = {name: threading.Event() for name in self._sinks}  # has sent all that it could at the end
        self._queues = {
            name: SinkQueue(
                name,
                sink,
                store,
                policy=policy or RetryPolicy(),
                pace=pace,
                others=[other for other in self._sinks if other != name],
                metrics=metrics,
            )
            for name, sink in self._sinks.items()
        }
        self._threads: list[threading.Thread] = []

    def troubles(self) -> dict[str, str]:
        """For each sink, why there is an incident about it, in words; "" where there is none."""
        return {name: queue.trouble for name, queue in self._queues.items()}

    def start(self) -> None:
        """Begin to send."""
        for name in self._queues:
            thread = threading.Thread(target=self._run, args=(name,), name=f"driftd-sink-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def finish(self, timeout_s: float = 10.0) -> None:
        """Nothing more will come: send what waits now, as far as that goes within ``timeout_s``.

        What a sink does not take stays in the outbox, and goes out at the next start.
        """
        for queue in self._queues.values():
            queue.hurry()
        self._finishing.set()
        self._wake()
        deadline = time.monotonic() + timeout_s
        for name in self._queues:
            self._through[name].wait(max(deadline - time.monotonic(), 0.0))

    def _wake(self) -> None:
        for woken in self._woken.values():
            woken.set()

    def stop(self, timeout_s: float = 5.0) -> list[str]:
        """Send nothing new and leave within ``timeout_s``. Returns the sinks that were still busy; they are left alone.

        A notification that was on its way then may be sent again at the next start, under the same id.
        """
        self._stopping.set()
        self._wake()
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
        next_depth_s = 0.0
        first = name == next(iter(self._sinks))  # looks once for what sinks of earlier settings have left
        while not self._stopping.is_set():
            finishing = self._finishing.is_set()
            try:
                if first:
                    resolve_removed(self._store, list(self._sinks), self._clock())
                    first = False
                queue.pump(self._clock, self._stopping)
                if finishing:
                    self._through[name].set()
                if self._metrics is not None and time.monotonic() >= next_depth_s:
                    next_depth_s = time.monotonic() + DEPTH_EVERY_S
                    depth, oldest_ms = self._store.outbox_waiting()
                    self._metrics.outbox_depth.set(depth)
                    waited_ms = 0 if oldest_ms is None else max(self._clock() - oldest_ms, 0)
                    self._metrics.outbox_oldest.set(waited_ms / 1000)
                self._database.works(name)
            except StoreError as error:
                self._database.failed(name, describe(error))
            except Exception:  # a thread that ends in silence would be alerts that never come
                log.exception(event("sender failed", sink=name))
            self._woken[name].wait(self._look_every_s)
            self._woken[name].clear()
