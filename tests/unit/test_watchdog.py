"""The watchdog: what hangs ends the process, and what was only asleep does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from monitor.watchdog import EXIT_CODE, Watchdog

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ended:
    def __init__(self) -> None:
        self.reasons: list[tuple[str, float]] = []

    def __call__(self, what: str, seconds: float) -> None:
        self.reasons.append((what, seconds))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ended() -> Ended:
    return Ended()


@pytest.fixture
def watchdog(clock: Clock, ended: Ended) -> Watchdog:
    return Watchdog(end=ended, clock=clock, tick_s=1.0)


def looks(watchdog: Watchdog, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1.0
        watchdog.look()


def test_what_takes_longer_than_its_limit_ends_the_process(watchdog: Watchdog, clock: Clock, ended: Ended) -> None:
    with watchdog.limit("poll of orders", 60):
        looks(watchdog, clock, 60)
        assert ended.reasons == []
        looks(watchdog, clock, 1)
    assert ended.reasons == [("poll of orders", 61.0)]


def test_the_innermost_is_named_and_each_has_a_limit_of_its_own(watchdog: Watchdog, clock: Clock, ended: Ended) -> None:
    with watchdog.limit("step of orders", 600):
        for _ in range(3):
            with watchdog.limit("poll of orders", 60):
                looks(watchdog, clock, 50)
        looks(watchdog, clock, 449)
        assert ended.reasons == []
        with watchdog.limit("poll of orders", 60):
            looks(watchdog, clock, 2)
    assert ended.reasons == [("step of orders", 601.0)]


def test_many_short_steps_are_no_long_one(watchdog: Watchdog, clock: Clock, ended: Ended) -> None:
    for _ in range(1000):
        with watchdog.limit("step of orders", 60):
            looks(watchdog, clock, 1)
    looks(watchdog, clock, 1000)
    assert ended.reasons == []


def test_a_process_that_was_suspended_is_not_shot_on_waking(watchdog: Watchdog, clock: Clock, ended: Ended) -> None:
    with watchdog.limit("poll of orders", 60):
        looks(watchdog, clock, 30)
        clock.now += 7_200.0
        looks(watchdog, clock, 28)
        assert ended.reasons == []
        looks(watchdog, clock, 2)
    assert len(ended.reasons) == 1


def test_a_block_that_raises_is_over(watchdog: Watchdog, clock: Clock, ended: Ended) -> None:
    with pytest.raises(ValueError, match="bad"), watchdog.limit("poll of orders", 60):
        raise ValueError("bad")
    looks(watchdog, clock, 100)
    assert ended.reasons == []


def test_the_thread_looks_by_itself_until_it_is_stopped(ended: Ended) -> None:
    seen = threading.Event()

    def end(what: str, seconds: float) -> None:
        ended(what, seconds)
        seen.set()

    watchdog = Watchdog(end=end, tick_s=0.01)
    watchdog.start()
    with watchdog.limit("poll of orders", 0.05):
        assert seen.wait(10)
    watchdog.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "driftd-watchdog"]


HANGS = """
import threading, time
from monitor.log import configure
from monitor.watchdog import Watchdog

configure("text")
watchdog = Watchdog(tick_s=0.1)
watchdog.start()

def never_comes_back():
    threading.Event().wait()

with watchdog.limit("poll of orders", {limit}):
    print("hangs", flush=True)
    never_comes_back()
"""


def hanging(limit: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HANGS.format(limit=limit)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_real_process_that_hangs_exits_with_70_and_says_where() -> None:
    with hanging(0.5) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE == 70
    (line,) = [line for line in said.splitlines() if "hangs, and ends itself" in line]
    assert 'what="poll of orders"' in line and "never_comes_back" in line and " critical " in line
    assert "(most recent call first)" in said and "driftd-watchdog" in line


def test_a_real_process_that_was_stopped_for_longer_than_its_limit_lives_on() -> None:
    with hanging(2.0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        while time.monotonic() - stopped < 3.0:
            threading.Event().wait(0.1)
        process.send_signal(signal.SIGCONT)
        awake = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - awake > 1.0, said
    assert process.returncode == EXIT_CODE


def test_a_log_that_nobody_reads_does_not_keep_the_process() -> None:
    # Fill the pipe of its standard error, so that every word of farewell blocks.
    code = "import os, fcntl\nfcntl.fcntl(2, 1031, 4096)\nos.write(2, b'x' * 4096)\n" + HANGS.format(limit=0.2)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.wait(timeout=60) == -signal.SIGALRM
