"""A worker that is frozen by SIGSTOP before its checkpoint or in the middle of it, as a real process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FROZEN = """
import os, signal, sys
import connectors.database.store as module
from connectors.database.rows import Advance, Checkpoint
from connectors.database.store import Store
from connectors.records import DeadLetter, Partition
from detectors.errors import StoreError
where, url, expected = sys.argv[1:]
store, p = Store.open(url, busy_timeout_s=0.5), Partition("orders", 0)
assert store.positions("m", [p]) == {p: int(expected)}
columns = module.letter_columns
def freeze(*arguments):
    # The offsets are written, the transaction is open.
    os.kill(os.getpid(), signal.SIGSTOP)
    return columns(*arguments)
if where == "inside":
    module.letter_columns = freeze
else:
    os.kill(os.getpid(), signal.SIGSTOP)
letter = DeadLetter(p, 3, -1, "bad_json", "", b"", 0)
try:
    store.commit(Checkpoint("m", [Advance(p, int(expected), 99, 0, 98, 0, 0)], dead_letters=[letter]))
    print("written")
except StoreError as error:
    print(type(error).__name__)
"""


@contextlib.contextmanager
def frozen_worker(url: str, where: str, expected: int) -> Iterator[subprocess.Popen[str]]:
    """A worker that reads the position of partition 0 of orders, and is frozen: "outside" of its transaction, before
    it, or "inside", after it has moved the offset from ``expected`` to 99.
    """
    command = [sys.executable, "-c", FROZEN, where, url, str(expected)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def thawed(process: subprocess.Popen[str]) -> str:
    """Let it go on. Returns "written", or the name of the error that it got."""
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    return output.strip()
