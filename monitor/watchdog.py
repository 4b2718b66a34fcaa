"""Ends a process that hangs, with the stacks of all its threads in the log, so that it is started anew.

Two things have a limit: one poll of a source, and one whole step of a model, in which a reference may be built. A
thread looks at them once a second. It counts the seconds in which it ran itself: a process that was suspended (SIGSTOP,
a laptop that slept) has hung no longer than before when it wakes. For the same reason it does not see a thread that
holds the interpreter's lock for ever inside foreign code; then /livez does not answer either.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath

from monitor.log import event

log = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
POLL_S = 60.0
STEP_S = 600.0  # as long as a consumer group waits for the next poll of a member
TICK_S = 1.0
FAREWELL_S = 3  # for the log


class Watchdog:
    """Limits how long the working thread may spend in one place. Made for one working thread.

        watchdog = Watchdog()
        watchdog.start()
        with watchdog.limit("step of orders", STEP_S):
            with watchdog.limit("poll of orders", POLL_S):
                ...

    Args:
        end: called with what hangs, and for how many seconds. By default the stacks are logged, and the process ends
            with exit code 70.
        clock: monotonic seconds.
        tick_s: how often the thread looks; a limit is seen that much later.
    """

    def __init__(
        self,
        *,
        end: Callable[[str, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_s: float = TICK_S,
    ) -> None:
        self._end = end or end_process
        self._clock = clock
        self._tick_s = tick_s
        self._lock = threading.Lock()
        self._limits: list[_Limit] = []  # the innermost last
        self._last_look = clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driftd-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._last_look = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    @contextmanager
    def limit(self, what: str, seconds: float) -> Iterator[None]:
        """The block may take so long."""
        limit = _Limit(what, seconds)
        with self._lock:
            self._limits.append(limit)
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(limit)

    def look(self) -> None:
        """Add the time since the last look to whatever goes on, and end what is over its limit.

        A look that comes late was late because the process did not run: that counts as two ticks at most.
        """
        now = self._clock()
        ran = min(now - self._last_look, 2 * self._tick_s)
        self._last_look = now
        with self._lock:
            for limit in self._limits:
                limit.spent += ran
            over = [limit for limit in self._limits if limit.spent > limit.seconds]
        if over:
            self._end(over[-1].what, over[-1].spent)

    def _run(self) -> None:
        while not self._stopping.wait(self._tick_s):
            self.look()


class _Limit:
    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        self.spent = 0.0


def end_process(what: str, seconds: float) -> None:
    """Log where every thread stands, and end the process with exit code 70. Everything uncommitted is read again."""
    # Whoever reads our log may hang as well: the kernel then ends us, whatever Python still waits for.
    with suppress(ValueError, AttributeError):
        signal.alarm(FAREWELL_S)
    log.critical(
        event(
            "hangs, and ends itself to be started anew", what=what, seconds=round(seconds), stacks=stacks_of_threads()
        )
    )
    with suppress(OSError, ValueError, AttributeError):  # no standard error, or one without a file
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
    os._exit(EXIT_CODE)


def stacks_of_threads() -> list[str]:
    """One line for each thread: its name, and where it stands, the innermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        calls = reversed(traceback.extract_stack(frame)[-8:])
        where = " < ".join(f"{PurePath(call.filename).name}:{call.lineno} {call.name}" for call in calls)
        lines.append(f"{names.get(ident, ident)}: {where}")
    return sorted(lines, key=lambda line: not line.startswith("MainThread"))
