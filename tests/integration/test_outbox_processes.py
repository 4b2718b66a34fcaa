"""Senders as real processes, which are killed: who is told what, and how often."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from connectors.database.rows import FoldResult
from connectors.database.store import Store
from connectors.notification import Notification
from tests.servers.postgres import PostgresServer
from tests.servers.receiver import Answer, Receiver, Request

ROOT = Path(__file__).resolve().parents[2]
INCIDENTS, STEPS, KILLS = 20, 3, 6

# A process that sends to a webhook, in groups or one notification at a time.
SENDER = """
import sys, threading
from pydantic import SecretStr
from connectors.database.store import Store
from connectors.webhook import WebhookSettings
from connectors.database.connection import wall_clock_ms
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.pacing import Pace

class Single:
    def __init__(self, sink):
        self.send = sink.send

url, address, how, wait_ms = sys.argv[1:]
sink = WebhookSettings(url=SecretStr(address), timeout_s=2).build()
queue = SinkQueue(
    "pager",
    sink if how == "groups" else Single(sink),
    Store.open(url),
    policy=RetryPolicy(first_s=0.1, longest_s=0.5),
    pace=Pace(group_wait_ms=int(wait_ms), group_interval_ms=0, most_per_minute=10_000),
    lease_s=30.0 if int(wait_ms) else 1.0,  # short where processes are killed
)
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


class Senders:
    """Processes that send; all are killed at the end of the block."""

    def __init__(self, url: str, address: str, *, how: str = "groups", wait_ms: int = 0) -> None:
        self._command = [sys.executable, "-c", SENDER, url, address, how, str(wait_ms)]
        self._processes = [self._start(), self._start()]
        for process in self._processes:
            assert process.stdout is not None and process.stdout.readline() == "sending\n"

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def replace(self, number: int) -> None:
        """Kill one, and start another."""
        self._end(self._processes[number])
        self._processes[number] = self._start()

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate(timeout=30)

    def __enter__(self) -> Senders:
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self._processes:
            self._end(process)


def note(identity: str, incident: str, revision: int = 1) -> Notification:
    return Notification(
        *(identity, incident, f"m/drift/input/{incident}", "firing", "page", "m", "drift", "input", incident),
        *("Drift", "It changed."),
        starts_ms=1_700_000_000_123,
        ends_ms=None,
        values={"event": "opened", "revision": str(revision)},
    )


def put(store: Store, notes: Sequence[Notification]) -> None:
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(fold.version + 1, [], [], [], [], [("pager", one) for one in notes]))


def wait_until_told(store: Store) -> None:
    deadline = time.monotonic() + 60
    while store.outbox_waiting()[0]:
        assert time.monotonic() < deadline, f"{store.outbox_waiting()[0]} notifications still wait"
        time.sleep(0.02)


def alerts(requests: Sequence[Request]) -> list[dict[str, Any]]:
    return [alert for request in requests for alert in request.json["alerts"]]


def test_killed_senders_lose_nothing_keep_the_order_and_repeat_only_what_was_on_its_way(url: str, store: Store) -> None:
    notes = [note(f"{step}-{number}", f"i{number}") for step in range(STEPS) for number in range(INCIDENTS)]
    put(store, notes)
    chance = random.Random(7)
    with Receiver(Answer(200)) as receiver:
        with Senders(url, receiver.url, how="single") as senders:
            for kill in range(KILLS):
                # In the middle of its work: after some of what is left was sent.
                receiver.wait_for((kill + 1) * len(notes) // (KILLS + 2), timeout_s=60)
                time.sleep(chance.random() * 0.01)
                senders.replace(chance.randrange(2))
            wait_until_told(store)
        arrived = [request.headers["Idempotency-Key"] for request in receiver.requests]
    assert set(arrived) == {one.id for one in notes}
    repeated = Counter(arrived) - Counter(set(arrived))
    assert repeated.total() <= KILLS, f"sent again without a reason: {repeated}"
    first = {identity: arrived.index(identity) for identity in set(arrived)}
    for number in range(INCIDENTS):
        order = [first[f"{step}-{number}"] for step in range(STEPS)]
        assert order == sorted(order)


def test_two_processes_send_one_message_about_all_that_came_within_the_wait(url: str, store: Store) -> None:
    with Receiver(Answer(200)) as receiver, Senders(url, receiver.url, wait_ms=1_000):
        # In one transaction: a machine that stands still between two would make them two messages, and rightly so.
        put(store, [note(f"{number}", f"i{number}") for number in range(50)])
        wait_until_told(store)
        (request,) = receiver.requests
    assert sorted(alert["annotations"]["notification_id"] for alert in request.json["alerts"]) == sorted(
        str(number) for number in range(50)
    )


def test_a_receiver_that_dies_with_messages_on_their_way_hears_of_every_incident_when_it_is_back(
    url: str, store: Store
) -> None:
    requests: list[Request] = []
    receiver = Receiver(Answer(200))
    with Senders(url, receiver.url) as senders:
        for step in range(STEPS):
            with receiver:
                put(store, [note(f"{step}-{n}-a", f"i{n}", 2 * step) for n in range(INCIDENTS)])
                receiver.wait_for(1, timeout_s=60)
                # It takes the next message, and dies before it has answered.
                receiver.answer(Answer(hang=True))
                before = len(receiver.requests)
                put(store, [note(f"{step}-{n}-b", f"i{n}", 2 * step + 1) for n in range(INCIDENTS)])
                receiver.wait_for(before + 1, timeout_s=60)
                senders.replace(step % 2)
            requests += receiver.requests
            receiver = Receiver(Answer(200), port=receiver.port)
        with receiver:
            wait_until_told(store)
        requests += receiver.requests
    heard: dict[str, list[int]] = {}
    said: dict[str, Any] = {}
    for alert in alerts(requests):
        words = alert["annotations"]
        assert said.setdefault(words["notification_id"], alert) == alert, "the same id says the same"
        heard.setdefault(words["incident"], []).append(int(words["revision"]))
    assert set(heard) == {f"i{number}" for number in range(INCIDENTS)}
    for revisions in heard.values():
        assert max(revisions) == 2 * STEPS - 1, "the last that there is to tell"
        first = list(dict.fromkeys(revisions))
        assert first == sorted(first)


def test_a_run_that_reads_its_source_to_the_end_tells_what_is_left_before_it_ends(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    vectors = chance.normal(size=(6_000, 6)) + np.where(np.arange(6_000) > 3_500, 4.0, 0.0)[:, None]
    lines = (
        json.dumps({"ts": 1_772_438_400_000 + 50 * row, "v": vector})
        for row, vector in enumerate(vectors.round(3).tolist())
    )
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with Receiver(Answer(200)) as receiver:
        settings = {
            "database": f"sqlite:///{tmp_path}/driftd.db",
            "references": str(tmp_path / "references"),
            "http": {"bind": "127.0.0.1:0"},
            "notify": {"group_wait": "1h"},
            "sinks": {"hook": {"kind": "webhook", "url": receiver.url}},
            "models": {
                "m": {
                    "source": {"kind": "files", "path": str(tmp_path / "in.jsonl")},
                    "record": {"time": {"path": "/ts", "unit": "ms"}},
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
                    "reference": {"collect": 2_000},
                }
            },
        }
        (tmp_path / "driftd.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "monitor", "run", "-s", str(tmp_path / "driftd.yaml")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        (alert,) = alerts(receiver.requests)
    assert alert["labels"]["kind"] == "drift" and alert["status"] == "firing"
