"""Pairs through the real command on a real broker: kill -9 loses no half and joins none twice."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.record_counts import RecordCounts
from tests.acceptance.command import Running, wait_until
from tests.servers.kafka import KafkaServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
START_MS = 1_772_438_400_000
BLOCK_MS = 10_000
CALLS = 6_000
COLLECT = 2_000  # rows of the baseline: all from one partition at worst
TYPE = "org.kubeflow.serving.inference."


@dataclass(frozen=True)
class Log:
    """What a model server logs of one call: a record, and how long after the request."""

    call: int
    role: str
    body: dict[str, Any]
    time_ms: int

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        moment = datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat()
        attributes = {"specversion": "1.0", "id": f"call-{self.call}", "type": TYPE + self.role, "time": moment}
        attributes["source"] = "http://localhost:9081/"
        return [
            *((f"ce_{name}", value.encode()) for name, value in attributes.items()),
            ("content-type", b"application/json"),
        ]


def is_answered(call: int) -> bool:
    return call % 50 != 7


def logs() -> list[Log]:
    """Calls of two rows each, 20 ms apart, answered within two seconds; one in fifty never is."""
    chance = np.random.default_rng(2)
    vectors = chance.normal(size=(CALLS, 2, 8)).round(4).tolist()
    took = chance.integers(1, 2_000, size=CALLS).tolist()
    found = []
    for call, rows in enumerate(vectors):
        at = START_MS + 20 * call
        found.append(Log(call, "request", {"instances": rows}, at))
        if is_answered(call):
            answer = {"predictions": [("yes", "no")[row[0] > 0] for row in rows]}
            found.append(Log(call, "response", answer, at + took[call]))
    return sorted(found, key=lambda log: log.time_ms)


def produce(brokers: str, topic: str, records: list[Log]) -> None:
    from kafka import KafkaProducer

    with KafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        for log in records:
            producer.send(
                topic,
                json.dumps(log.body).encode(),
                key=b"%d" % log.call,
                headers=log.headers,
                partition=log.call % 2,
                timestamp_ms=log.time_ms,
            )
        producer.flush(timeout=60)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[[str, str], Running]]:
    made: list[Running] = []

    def make(brokers: str, topic: str) -> Running:
        source = {"kind": "kafka", "brokers": brokers, "topic": topic, "start": "earliest", "session_timeout_s": 6}
        model = {
            "source": source,
            "record": {"format": "cloudevents", "pair": {"timeout": "5s"}, "prediction": "/response/predictions"},
            "spaces": {"input": {"embedder": {"kind": "vector", "field": "/request/instances", "encoding": "list"}}},
            "reference": {"collect": COLLECT},
            "drift": {"idle": "2s", "per_class": False},
        }
        settings = {"models": {"calls": model}, "checkpoint": {"every": "200ms", "poll_records": 500}}
        made.append(Running(tmp_path, settings))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def counts(database: Path) -> dict[int, int]:
    """Events of each block, closed or open."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        rows = [
            row
            for table in ("summaries", "summary_deltas")
            for row in connection.execute(f"select block, blob from {table} where space = ''").fetchall()
        ]
    found: Counter[int] = Counter()
    for block, blob in rows:
        found[block] += RecordCounts.from_bytes(blob).records
    return dict(found)


def test_kill_9_loses_no_half_and_joins_none_twice(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[[str, str], Running]
) -> None:
    name, records = topic(partitions=2), logs()
    produce(kafka.brokers, name, records)
    daemon = running(kafka.brokers, name)
    for enough in (1, 6_000):
        daemon.start()
        daemon.wait_for_records(enough, at_least=True)
        daemon.kill()
        assert 0 < daemon.one("select count(*) from pending_halves") < len(records)
    daemon.start()
    total = len(records)
    wait_until(
        lambda: daemon.one("select sum(next_offset) from partitions") == total, f"the end of the topic\n{daemon.log()}"
    )

    # Of each partition, what is more than the time-out older than its newest record has gone alone.
    newest = {part: max(log.time_ms for log in records if log.call % 2 == part) for part in (0, 1)}
    alone = [call for call in range(CALLS) if not is_answered(call)]
    waiting = [call for call in alone if START_MS + 20 * call + 5_000 >= newest[call % 2]]
    wait_until(lambda: daemon.one("select count(*) from pending_halves") == len(waiting), "only the last ones wait")
    assert daemon.terminate()[0] == 0, daemon.log()

    gone = set(range(CALLS)) - set(waiting)
    assert daemon.one("select sum(dead) from partitions") == 0
    found = counts(daemon.database)
    assert sum(found.values()) == 2 * len(gone), "every call once, with both of its rows"
    # The rows of the baseline are counted in the block in which it ended; all others in their own.
    after = (START_MS + 20 * 2 * COLLECT) // BLOCK_MS
    expected = Counter((START_MS + 20 * call) // BLOCK_MS for call in gone for _ in range(2))
    assert {block: n for block, n in found.items() if block > after} == {
        block: n for block, n in expected.items() if block > after
    }
    assert max(expected) > after + 2
    assert daemon.one("select count(*) from reference_versions") == 1
    assert daemon.one("select sum(late) from partitions") == 0
