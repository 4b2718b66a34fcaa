"""What /readyz says of a real `driftd run` while something does not work, and when it works again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.command import Running, wait_until
from tests.servers.kafka import KafkaServer, free_port

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
START_MS = 1_772_438_400_000
BASELINE = 1_000


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Makes a `driftd run` of models by their brokers and topics; whatever the test leaves running is ended."""
    made: list[Running] = []

    def make(**sources: tuple[str, str]) -> Running:
        made.append(Running(tmp_path, {"models": {name: model(*source) for name, source in sources.items()}}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def model(brokers: str, topic: str) -> dict[str, Any]:
    return {
        "source": {
            "kind": "kafka",
            "brokers": brokers,
            "topic": topic,
            "session_timeout_s": 6,
            "connect_timeout_s": 2,
            "unreachable_after_s": 2,
        },
        "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "drift": {"idle": "2s", "lateness": "5s"},
        "dead_letters": {"stop_records": 100},
    }


def records(first: int, count: int) -> list[bytes]:
    vectors = np.random.default_rng(first).normal(size=(count, 4)).round(4).tolist()
    return [
        json.dumps({"id": f"r{first + i}", "ts": START_MS + 10 * (first + i), "v": vector}).encode()
        for i, vector in enumerate(vectors)
    ]


def produce(brokers: str, topic: str, values: list[bytes]) -> None:
    from kafka import KafkaProducer

    with KafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        for value in values:
            producer.send(topic, value)
        producer.flush(timeout=60)


def failing(daemon: Running) -> dict[str, str]:
    """The checks that fail, with what they say."""
    return {check["name"]: check["detail"] for check in daemon.ready()["checks"] if not check["ok"]}


def metric(daemon: Running, series: str) -> float | None:
    """The value of a series, written as /metrics writes it."""
    lines = daemon.get("/metrics")[1].splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), None)


def test_a_broker_that_is_killed_makes_the_group_fail_until_it_is_back(
    own_kafka: KafkaServer, running: Callable[..., Running]
) -> None:
    topic = own_kafka.create_topic("orders", partitions=2)
    produce(own_kafka.brokers, topic, records(0, 1_500))
    daemon = running(orders=(own_kafka.brokers, topic))
    daemon.start()
    daemon.wait_for_records(1_500)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "ready")
    assert {check["name"] for check in daemon.ready()["checks"]} >= {
        "orders: database",
        "orders: group",
        "orders: assignment",
        "orders: lag",
        "orders: dead letters",
        "model orders",
    }

    own_kafka.kill()
    wait_until(lambda: daemon.get("/readyz")[0] == 503, "not ready", 30)
    wait_until(
        lambda: own_kafka.brokers in failing(daemon).get("orders: group", ""), "the group's check names the broker"
    )
    assert "orders: database" not in failing(daemon) and "orders: lag" not in failing(daemon)
    assert daemon.get("/livez")[0] == 200, "a new start would not help"

    own_kafka.start()
    produce(own_kafka.brokers, topic, records(1_500, 500))
    daemon.wait_for_records(2_000)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "ready again", 30)
    assert metric(daemon, 'driftd_lag_records{model="orders"}') == 0
    assert metric(daemon, 'driftd_assigned_partitions{model="orders"}') == 2
    assert daemon.terminate()[0] == 0


def test_a_wave_of_unusable_records_stops_one_model_and_no_other(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    good, bad = topic(), topic()
    produce(kafka.brokers, good, records(0, 1_500))
    produce(kafka.brokers, bad, [*records(0, 1_500), *[b"{broken"] * 900])
    daemon = running(good=(kafka.brokers, good), bad=(kafka.brokers, bad))
    daemon.start()
    wait_until(lambda: "bad: dead letters" in failing(daemon), "the wave is seen")
    assert "driftd deadletters list" in failing(daemon)["bad: dead letters"]

    def counted_of(name: str) -> int:
        return int(daemon.one(f"select coalesce(sum(records), 0) from partitions where model = '{name}'"))

    at_the_wave = counted_of("bad")
    produce(kafka.brokers, bad, [b"{broken"] * 500)
    wait_until(lambda: counted_of("good") == 1_500, "the other model goes on")
    produce(kafka.brokers, good, records(1_500, 700))
    wait_until(lambda: counted_of("good") == 2_200, "and on")
    assert counted_of("bad") == at_the_wave, "the topic is not drained into the dead letters"
    assert set(failing(daemon)) == {"bad: dead letters", "model bad"}
    assert daemon.get("/livez")[0] == 200, "a new start would not help"
    assert daemon.terminate()[0] == 0


def test_a_model_whose_broker_is_not_there_at_the_start_keeps_no_other_waiting(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[..., Running]
) -> None:
    nowhere, name = f"127.0.0.1:{free_port()}", topic()
    produce(kafka.brokers, name, records(0, 1_500))
    daemon = running(absent=(nowhere, name), good=(kafka.brokers, name))
    daemon.start()
    daemon.wait_for_records(1_500)
    assert set(failing(daemon)) == {"model absent"} and nowhere in failing(daemon)["model absent"]
    assert (daemon.get("/readyz")[0], daemon.get("/livez")[0]) == (503, 200)
    code, took = daemon.terminate()
    assert (code, took < 10.0) == (0, True), daemon.log()
