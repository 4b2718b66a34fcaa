"""`driftd run` on a real broker: what a user may do to it, and the counts that must come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.command import Running, driftd, wait_until
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
START_MS = 1_772_438_400_000
BASELINE = 2_000


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Makes a `driftd run`; whatever the test leaves running is ended."""
    made: list[Running] = []

    def make(brokers: str, topic: str, *, top: dict[str, Any] | None = None, **model: Any) -> Running:
        settings = {
            "source": {
                "kind": "kafka",
                "brokers": brokers,
                "topic": topic,
                "start": "earliest",
                "session_timeout_s": 6,
            },
            "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
            "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
            "reference": {"collect": BASELINE},
            "drift": {"idle": "2s", "lateness": "5s"},
            **model,
        }
        made.append(Running(tmp_path, {"models": {"orders": settings}, **(top or {})}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def records(first: int, count: int) -> list[bytes]:
    """JSON records with 8-dimensional vectors, one every 10 ms."""
    vectors = np.random.default_rng(first).normal(size=(count, 8)).round(4).tolist()
    return [
        json.dumps({"id": f"r{first + i}", "ts": START_MS + 10 * (first + i), "v": vector}).encode()
        for i, vector in enumerate(vectors)
    ]


def produce(brokers: str, topic: str, values: Sequence[bytes | None], partitions: int = 1) -> None:
    from kafka import KafkaProducer

    with KafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        for index, value in enumerate(values):
            producer.send(topic, value, key=b"k", partition=index % partitions)
        producer.flush(timeout=60)


def test_a_stop_and_a_start_count_every_record_once(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    name = topic(partitions=2)
    produce(kafka.brokers, name, records(0, 5_000), partitions=2)
    daemon = running(kafka.brokers, name)
    daemon.start()
    daemon.wait_for_records(5_000)
    assert wait_until(lambda: daemon.get("/readyz")[0] == 200, "ready")
    assert "driftd_records_total" in daemon.get("/metrics")[1]

    code, took = daemon.terminate()
    assert (code, took < 5.0) == (0, True), daemon.log()

    produce(kafka.brokers, name, [*records(5_000, 3_000), b"{broken", None], partitions=2)
    daemon.start()
    daemon.wait_for_records(8_002)
    assert daemon.one("select sum(dead) from partitions") == 2
    assert daemon.one("select count(*) from dead_letters where reason = 'tombstone'") == 1
    assert daemon.one("select count(*) from dead_letters where reason = 'bad_json'") == 1
    daemon.terminate()
    assert daemon.counted() == 8_002


def test_kill_9_loses_nothing_and_counts_nothing_twice(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    name = topic(partitions=2)
    produce(kafka.brokers, name, records(0, 30_000), partitions=2)
    daemon = running(kafka.brokers, name)
    for enough in (1, 6_000, 12_000):
        daemon.start()
        daemon.wait_for_records(enough, at_least=True)
        daemon.kill()
    daemon.start()
    daemon.wait_for_records(30_000)
    wait_until(lambda: daemon.one("select count(*) from summary_deltas") == 0, "every block closed by the wall clock")
    daemon.terminate()

    assert daemon.counted() == 30_000
    assert daemon.one("select max(next_offset) from partitions") == 15_000
    assert daemon.one("select count(*) from reference_versions") == 1


def test_a_broker_that_is_down_at_the_start_is_waited_for(
    own_kafka: KafkaServer, running: Callable[..., Running]
) -> None:
    name = own_kafka.create_topic("orders")
    produce(own_kafka.brokers, name, records(0, 3_000))
    own_kafka.stop()
    daemon = running(own_kafka.brokers, name)
    daemon.start()
    wait_until(
        lambda: any(own_kafka.brokers in check["detail"] for check in daemon.ready()["checks"] if not check["ok"]),
        "/readyz names the broker that does not answer",
    )
    own_kafka.start()
    daemon.wait_for_records(3_000)
    assert daemon.terminate()[0] == 0


def test_a_broker_lost_midway_costs_no_record(own_kafka: KafkaServer, running: Callable[..., Running]) -> None:
    name = own_kafka.create_topic("orders")
    produce(own_kafka.brokers, name, records(0, 3_000))
    daemon = running(own_kafka.brokers, name)
    daemon.start()
    daemon.wait_for_records(3_000)
    own_kafka.kill()
    own_kafka.start()
    produce(own_kafka.brokers, name, records(3_000, 2_000))
    daemon.wait_for_records(5_000)
    assert daemon.terminate()[0] == 0


def test_dead_letters_reach_their_topic(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    from kafka import KafkaConsumer

    name, graveyard = topic(), topic()
    produce(kafka.brokers, name, [*records(0, 2_500), b"{broken", *records(2_500, 10)])
    daemon = running(kafka.brokers, name, dead_letters={"topic": graveyard})
    daemon.start()
    daemon.wait_for_records(2_511)
    consumer = KafkaConsumer(graveyard, bootstrap_servers=kafka.brokers, auto_offset_reset="earliest")
    try:
        (letter,) = wait_until(
            lambda: [record for batch in consumer.poll(500).values() for record in batch], "a letter in the topic"
        )
    finally:
        consumer.close()
    assert letter.value == b"{broken"
    headers = dict(letter.headers)
    assert (headers["reason"], headers["source_topic"], headers["source_offset"]) == (
        b"bad_json",
        name.encode(),
        b"2500",
    )


def test_a_reference_from_a_range_of_the_topic_is_used_at_once(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    name = topic(partitions=2)
    produce(kafka.brokers, name, records(0, 4_000), partitions=2)
    daemon = running(kafka.brokers, name, reference={"collect": 3_000})
    built = driftd("reference", "build", "--from", "2020-01-01", "--to", "2100-01-01", cwd=daemon.folder)
    assert built.returncode == 0, built.stderr
    listed = driftd("reference", "list", "--json", cwd=daemon.folder)
    (row,) = json.loads(listed.stdout)
    assert (row["version"], row["records"], row["active"]) == (1, 3_000, True)
    shown = driftd("reference", "show", row["path"], "--json", cwd=daemon.folder)
    assert json.loads(shown.stdout)["dimension"] == 8
    daemon.start()
    daemon.wait_for_records(4_000)
    daemon.terminate()
    assert daemon.one("select count(*) from reference_versions") == 1


def test_a_topic_that_falls_silent_is_told_once_and_over_when_records_come_back(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    name = topic(partitions=2)
    produce(kafka.brokers, name, records(0, 2_500), partitions=2)
    daemon = running(kafka.brokers, name, drift={"block": "1s", "idle": "1s", "wait": "2s", "lateness": "1s"})
    daemon.start()
    daemon.wait_for_records(2_500)
    found = "select group_concat(status) from incidents where kind = 'silent'"
    wait_until(lambda: daemon.one(found) == "open", f"the incident:\n{daemon.log()}")
    wait_until(lambda: 'driftd_blind{model="orders"} 1.0' in daemon.get("/metrics")[1], "the metric")
    (said,) = (check for check in daemon.ready()["checks"] if check["name"] == "model orders")
    assert said["ok"] and said["detail"].startswith("running; blind: no records come any more")
    daemon.kill()

    daemon.start()
    wait_until(lambda: 'driftd_blind{model="orders"} 1.0' in daemon.get("/metrics")[1], "it is known after a start")
    produce(kafka.brokers, name, records(2_500, 100), partitions=2)
    wait_until(lambda: daemon.one(found) == "resolved", f"the end of the incident:\n{daemon.log()}")
    wait_until(lambda: 'driftd_blind{model="orders"} 0.0' in daemon.get("/metrics")[1], "the metric")
    daemon.terminate()


@pytest.mark.postgres
def test_the_same_on_postgresql(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running], postgres: PostgresServer
) -> None:
    import psycopg

    url = postgres.new_database()
    name = topic(partitions=2)
    produce(kafka.brokers, name, records(0, 12_000), partitions=2)
    daemon = running(kafka.brokers, name, top={"database": url})

    def counted() -> int:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            known = connection.execute("select to_regclass('partitions')").fetchone()
            if known is None or known[0] is None:
                return 0
            row = connection.execute("select coalesce(sum(records), 0) from partitions").fetchone()
            return int(row[0]) if row else 0

    for enough in (1, 4_000):
        daemon.start()
        wait_until(lambda enough=enough: counted() >= enough, f"{enough} records counted")
        daemon.kill()
    daemon.start()
    daemon.url()
    wait_until(lambda: counted() == 12_000, f"12,000 records counted:\n{daemon.log()}")
    assert daemon.terminate()[0] == 0
    assert counted() == 12_000
