"""What several worker processes say, as one: their checks, their models and their metrics.

A thread for each worker asks it once a second, so that one that does not answer delays nothing but its own metrics.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from connectors.prometheus_workers import SupervisorMetrics
from monitor.web import Check, ModelStatus

ASK_EVERY_S = 1.0
ANSWER_WITHIN_S = 2.0
SILENT_S = 60.0  # a worker that runs and says nothing for so long is not alive
PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Said:
    """What a worker said of itself."""

    live: Check
    checks: tuple[Check, ...]
    models: tuple[ModelStatus, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker, as the supervisor knows it.

    Attributes:
        running: there is a process.
        port: where it answers; None before it has told.
        why_not: why there is no process, in words.
        ended: and none is wanted any more.
        heard: monotonic clock of the last answer, or of the start.
        said: its last answer; None if there is none from this process, or the last question went unanswered.
    """

    running: bool = False
    port: int | None = None
    why_not: str = "not started yet"
    ended: bool = False
    heard: float = 0.0
    said: Said | None = None


class Overview:
    """Shows several workers like one process: see `monitor.web.Shown` and `monitor.web.Exposition`. Thread-safe.

    Args:
        workers: how many there are; their names are "0", "1", ...
        clock: monotonic seconds.
    """

    def __init__(self, workers: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seats = [Seat() for _ in range(workers)]
        self._metrics = SupervisorMetrics()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="driftd-metrics")

    def start(self) -> None:
        """Begin to ask."""
        for ordinal in range(len(self._seats)):
            threading.Thread(
                target=self._keep_asking, args=(ordinal,), name=f"driftd-ask-{ordinal}", daemon=True
            ).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def started(self, ordinal: int, *, again: bool) -> None:
        """A process was started for this worker."""
        self._set(ordinal, Seat(running=True, heard=self._clock()))
        if again:
            self._metrics.restarts.labels(str(ordinal)).inc()

    def listens(self, ordinal: int, port: int) -> None:
        """The process has told its port."""
        with self._lock:
            self._seats[ordinal] = replace(self._seats[ordinal], port=port)

    def down(self, ordinal: int, why: str, *, ended: bool) -> None:
        """The process ended; ``ended``: no other will be started."""
        self._set(ordinal, Seat(why_not=why, ended=ended))

    def reads(self, ordinal: int) -> bool:
        """Whether the process has opened a source, as far as it has said."""
        said = self._all()[ordinal].said
        return said is not None and any(model.lag is not None for model in said.models)

    def ports(self) -> list[int]:
        """Where the workers answer that did so lately, by their numbers."""
        return [seat.port for seat in self._all() if seat.running and seat.port is not None and seat.said is not None]

    def readiness(self) -> list[Check]:
        """Each worker's checks, with its name before theirs; one check for a worker that has none to show."""
        checks = []
        for ordinal, seat in enumerate(self._all()):
            name = f"worker {ordinal}"
            if not seat.running:
                checks.append(Check(name, seat.ended, seat.why_not))
            elif seat.said is None:
                silent_s = self._clock() - seat.heard
                detail = "starting" if seat.port is None else f"has not answered for {silent_s:.0f} s"
                checks.append(Check(name, False, detail))
            else:
                checks += [replace(check, name=f"{name}: {check.name}") for check in seat.said.checks]
        return checks

    def liveness(self) -> Check:
        """Whether each process that runs answers and polls. One that is started anew is no reason to end all."""
        now = self._clock()
        for ordinal, seat in enumerate(self._all()):
            if seat.running and seat.said is not None and not seat.said.live.ok:
                return Check("workers", False, f"worker {ordinal}: {seat.said.live.detail}")
            if seat.running and now - seat.heard > SILENT_S:
                return Check("workers", False, f"worker {ordinal} has not answered for {now - seat.heard:.0f} s")
        running = sum(seat.running for seat in self._all())
        return Check("workers", True, f"{running} of {len(self._seats)} workers run")

    def models(self) -> list[ModelStatus]:
        """Each model once for each worker that answers."""
        return [
            replace(model, name=f"{model.name} (worker {ordinal})")
            for ordinal, seat in enumerate(self._all())
            if seat.said is not None
            for model in seat.said.models
        ]

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics of all, each series with a label for its worker, in the plain format of Prometheus."""
        seats = self._all()
        # One that left the last question unanswered is not waited for.
        asked = {
            ordinal: self._pool.submit(ask, seat.port, "/metrics")
            for ordinal, seat in enumerate(seats)
            if seat.port is not None and seat.said is not None
        }
        texts = {str(n): asked[n].result() if n in asked else None for n in range(len(seats))}
        return self._metrics.exposition(texts), PLAIN_TEXT

    def _all(self) -> list[Seat]:
        with self._lock:
            return list(self._seats)

    def _set(self, ordinal: int, seat: Seat) -> None:
        with self._lock:
            self._seats[ordinal] = seat

    def _keep_asking(self, ordinal: int) -> None:
        while not self._stopping.wait(ASK_EVERY_S if self._all()[ordinal].said else ASK_EVERY_S / 5):
            port = self._all()[ordinal].port
            if port is not None:
                self.heard(ordinal, port, ask(port, "/status"))

    def heard(self, ordinal: int, port: int, answer: str | None) -> None:
        """Take note of what the process at this port answered to /status; None if it did not."""
        said = None if answer is None else read(answer)
        with self._lock:
            seat = self._seats[ordinal]
            if seat.port == port:  # else the process ended while it was asked
                self._seats[ordinal] = replace(seat, said=said, heard=self._clock() if said else seat.heard)


def ask(port: int, path: str) -> str | None:
    """What a worker of this machine answers; None if it does not, within 2 seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_WITHIN_S)
    try:
        connection.request("GET", path, headers={"accept": PLAIN_TEXT, "connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        return body.decode() if answer.status == 200 else None
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        return None
    finally:
        connection.close()


def read(answer: str) -> Said | None:
    """The body of /status of a worker; None for that of anything else, which may have its port by now."""
    try:
        body = json.loads(answer)
        return Said(
            Check(**body["live"]),
            tuple(Check(**check) for check in body["checks"]),
            tuple(ModelStatus(**model) for model in body["models"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
