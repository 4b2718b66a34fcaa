"""Senders as real processes, which are killed: who is told what, and how often."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.database.rows import FoldResult
from connectors.database.store import Store
from connectors.notification import Notification
from tests.servers.postgres import PostgresServer
from tests.servers.receiver import Answer, Receiver

ROOT = Path(__file__).resolve().parents[2]
INCIDENTS, STEPS, KILLS = 20, 3, 6

SENDER = """
import sys, threading
from connectors.database.store import Store
from connectors.http_sink import HttpClient
from connectors.webhook import WebhookSink
from monitor.outbox import RetryPolicy, SinkQueue, wall_clock_ms
store = Store.open(sys.argv[1])
queue = SinkQueue("pager", WebhookSink(HttpClient("webhook", sys.argv[2])), store, policy=RetryPolicy(), lease_s=1.0)
never = threading.Event()
print("sending", flush=True)
while True:
    queue.pump(wall_clock_ms, never)
    never.wait(0.01)
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/driftd.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        opened.migrate()
        yield opened


def note(identity: str, incident: str) -> Notification:
    return Notification(
        *(identity, incident, "m/drift/input/", "firing", "page", "m", "drift", "input", "", "Drift", "It changed."),
        starts_ms=1_700_000_000_123,
        ends_ms=None,
        values={},
    )


def test_killed_senders_lose_nothing_keep_the_order_and_repeat_only_what_was_on_its_way(url: str, store: Store) -> None:
    notes = [note(f"{step}-{number}", f"i{number}") for step in range(STEPS) for number in range(INCIDENTS)]
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(1, [], [], [], [], [("pager", one) for one in notes]))
    chance = random.Random(7)
    with Receiver(Answer(200)) as receiver:

        def start() -> subprocess.Popen[str]:
            command = [sys.executable, "-c", SENDER, url, receiver.url]
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

        senders = [start(), start()]
        try:
            for kill in range(KILLS):
                # In the middle of its work: after some of what is left was sent.
                receiver.wait_for((kill + 1) * len(notes) // (KILLS + 2), timeout_s=60)
                victim = chance.randrange(2)
                time.sleep(chance.random() * 0.01)
                senders[victim].kill()
                senders[victim].communicate(timeout=30)
                senders[victim] = start()
            deadline = time.monotonic() + 60
            while store.outbox_waiting()[0]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            for sender in senders:
                sender.kill()
                sender.communicate(timeout=30)
        arrived = [request.headers["Idempotency-Key"] for request in receiver.requests]
    assert set(arrived) == {one.id for one in notes}
    repeated = Counter(arrived) - Counter(set(arrived))
    assert repeated.total() <= KILLS, f"sent again without a reason: {repeated}"
    first = {identity: arrived.index(identity) for identity in set(arrived)}
    for number in range(INCIDENTS):
        order = [first[f"{step}-{number}"] for step in range(STEPS)]
        assert order == sorted(order)
