"""`driftd run --workers N`: starts N worker processes, starts those that die anew, and shows all of them as one.

Each worker is the same `driftd run`, single-threaded, with an ordinal of its own. They share nothing but the database
and the consumer group, so the supervisor has no part in what they count.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from connectors.kafka import KafkaSettings
from detectors.errors import InvalidInput
from monitor.app import check_references_folder, http_address
from monitor.label_requests import LABELS, TRUTHS, PassedOnLabels
from monitor.log import configure, event
from monitor.overview import Overview
from monitor.settings import Settings
from monitor.web import WebServer

log = logging.getLogger(__name__)

TICK_S = 0.05
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
SETTLED_S = 60.0  # a worker that lived so long is started anew after the first pause
STOP_WITHIN_S = 8.0
WRONG_SETTINGS = 2


@dataclass(slots=True)
class _Worker:
    """One ordinal: the process that has it now, if any."""

    ordinal: int
    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    told: bytes = b""  # of its port
    began: float = 0.0
    due: float = float("-inf")  # when the next process is started
    pause_s: float = FIRST_PAUSE_S  # before that
    starts: int = 0
    has_read: bool = False  # a process of it once opened a source: what fails with 1 before fails at each start
    ended: bool = False


class Supervisor:
    """Runs until SIGTERM or SIGINT, or until every worker has ended with 0.

    Args:
        settings: as read from ``path``, which each worker reads again.
        workers: how many, 2 or more.
        command: what starts driftd.

    Raises:
        InvalidInput: a model's source is a file.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        *,
        workers: int,
        command: Sequence[str] = (sys.executable, "-m", "monitor"),
    ) -> None:
        alone = [name for name, model in settings.models.items() if not isinstance(model.source, KafkaSettings)]
        if alone:
            raise InvalidInput(
                f"Model {alone[0]} reads files or a query, and only the partitions of a topic are shared out: "
                f"--workers {workers} would count its records {workers} times.",
                hint="Leave out --workers, or give the model a Kafka source.",
            )
        self._settings = settings
        self._path = path
        self._command = command
        self._workers = [_Worker(ordinal) for ordinal in range(workers)]
        self._overview = Overview(workers)
        self._asked_to_stop = False
        self._stop_at: float | None = None  # when those that still run are killed
        self._code = 0

    def run(self) -> int:
        """Start the workers, and keep them running. Returns the exit code.

        Raises:
            DriftdError: the address cannot be taken, or the folder of the references cannot be written.
        """
        configure(self._settings.log_format)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        check_references_folder(self._settings.references)
        host, port = http_address(self._settings)
        with ExitStack() as closing:
            closing.callback(self._overview.stop)
            labels, truths = (
                PassedOnLabels(self._settings.http, self._overview.ports, path=path) for path in (LABELS, TRUTHS)
            )
            web = WebServer(self._overview, self._overview, host=host, port=port, labels=labels, truths=truths)
            web.start()
            closing.callback(web.stop)
            self._overview.start()
            log.info(event("listening", url=web.url, workers=len(self._workers)))
            while not all(worker.ended for worker in self._workers):
                self._tick(time.monotonic())
                time.sleep(TICK_S)
        log.info(event("stopped", code=self._code))
        return self._code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks the workers to stop after the current batch; the second kills them, which is safe."""
        if self._asked_to_stop:
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
            os._exit(128 + number)
        self._asked_to_stop = True

    def _tick(self, now: float) -> None:
        if self._asked_to_stop and self._stop_at is None:
            self._stop(now)
        for worker in self._workers:
            if worker.ended:
                continue
            if worker.process is None:
                if self._stop_at is not None:
                    worker.ended = True
                elif now >= worker.due:
                    self._start(worker, now)
                continue
            worker.has_read = worker.has_read or self._overview.reads(worker.ordinal)
            code = worker.process.poll()
            if code is not None:
                self._ended(worker, code, now)
                continue
            self._hear(worker)
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = float("inf")
            for worker in self._workers:
                if worker.process is not None:
                    log.warning(event("worker does not stop, and is killed", worker=worker.ordinal))
                    worker.process.kill()

    def _stop(self, now: float) -> None:
        """Ask all to stop."""
        self._stop_at = now + STOP_WITHIN_S
        log.info(event("stopping", within_s=STOP_WITHIN_S))
        for worker in self._workers:
            if worker.process is not None:
                worker.process.terminate()

    def _start(self, worker: _Worker, now: float) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        words = ["run", "-s", str(self._path), "--ordinal", str(worker.ordinal), "--parent", str(theirs.fileno())]
        try:
            with theirs:
                worker.process = subprocess.Popen(
                    [*self._command, *words],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C is for the supervisor, which passes it on once
                )
        except OSError as error:  # no memory, or too many processes
            ours.close()
            self._start_later(worker, f"cannot be started: {error.strerror}", now, lived_s=0.0)
            return
        worker.channel, worker.told, worker.began = ours, b"", now
        self._overview.started(worker.ordinal, again=worker.starts > 0)
        worker.starts += 1
        log.info(event("worker started", worker=worker.ordinal, pid=worker.process.pid, starts=worker.starts))

    def _hear(self, worker: _Worker) -> None:
        """Take the port that the worker tells, once it does."""
        if worker.channel is None or worker.told.endswith(b"\n"):
            return
        try:
            worker.told += worker.channel.recv(64)
        except OSError:  # nothing yet, or it ends in this moment
            return
        if worker.told.endswith(b"\n"):
            self._overview.listens(worker.ordinal, int(worker.told))

    def _ended(self, worker: _Worker, code: int, now: float) -> None:
        """Its process ended: start another one later, or end all, or leave it."""
        lived_s = now - worker.began
        assert worker.channel is not None
        worker.channel.close()
        worker.process = worker.channel = None
        how = _named(code)
        if self._stop_at is not None:
            worker.ended = True
            if code > 0 and self._code == 0:
                self._code = 1
            self._overview.down(worker.ordinal, how, ended=True)
            log.info(event("worker stopped", worker=worker.ordinal, how=how))
            return
        if code == 0:
            worker.ended = True
            self._overview.down(worker.ordinal, "ended, as it was asked to", ended=True)
            log.warning(event("worker ended", worker=worker.ordinal, how="as it was asked to"))
            return
        if code == WRONG_SETTINGS or (code == 1 and not worker.has_read):
            log.error(event("worker cannot run, so all stop", worker=worker.ordinal, how=how))
            worker.ended = True
            self._code = code
            self._overview.down(worker.ordinal, how, ended=False)
            self._stop(now)
            return
        self._start_later(worker, how, now, lived_s=lived_s)

    def _start_later(self, worker: _Worker, how: str, now: float, *, lived_s: float) -> None:
        """After a pause that doubles each time, until a process has lived for a minute."""
        if lived_s >= SETTLED_S:
            worker.pause_s = FIRST_PAUSE_S
        pause_s = worker.pause_s
        worker.due = now + pause_s
        worker.pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        detail = f"{how} after {lived_s:.0f} s; is started anew in {pause_s:g} s"
        self._overview.down(worker.ordinal, detail, ended=False)
        log.warning(event("worker ended", worker=worker.ordinal, how=how, lived_s=round(lived_s), again_in=pause_s))


def _named(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
