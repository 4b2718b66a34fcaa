"""Labels out of a topic: each once, whoever is killed when; what is no label is in the way of no other."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from connectors.database.rows import Advance, Checkpoint
from connectors.database.store import Store
from connectors.records import Partition
from monitor.app import build_label_readers
from monitor.label_reader import LabelReader
from monitor.remembered import pack
from monitor.settings import Settings
from tests.acceptance.command import Running, wait_until
from tests.killed_daemon import run_until_killed
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.kafka
P0 = Partition("orders", 0)
log = logging.getLogger(__name__)


def settings_of(brokers: str, labels: str, *, database: str, source: str = "orders") -> dict[str, Any]:
    model = {
        "source": {"kind": "kafka", "brokers": brokers, "topic": source},
        "record": {"id": "/id"},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
        "fraud": {"labels": {"kind": "kafka", "topic": labels}},
    }
    return {"database": database, "models": {"pay": model}, "http": {"bind": "127.0.0.1:0"}}


@contextmanager
def reading(settings: dict[str, Any], store: Store, *, ordinal: int = 0) -> Iterator[LabelReader]:
    """A process's reader, as the daemon has it."""
    from connectors.prometheus import Metrics

    [reader] = build_label_readers(Settings(**settings), store, Metrics(), ordinal=ordinal).values()
    reader.start()
    try:
        yield reader
    finally:
        began = time.monotonic()
        reader.stop()
        assert time.monotonic() - began < 5.5


def opened(url: str) -> Store:
    store = Store.open(url)
    store.migrate()
    return store


def send(kafka: KafkaServer, topic: str, values: list[bytes | None], *, partition: int = 0) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=kafka.brokers)
    for value in values:
        producer.send(topic, value=value, key=b"k", partition=partition)
    producer.flush(timeout=30)
    producer.close(timeout=10)


def label(number: int, said: str = "fraud") -> bytes:
    return json.dumps({"id": f"t{number}", "label": said}).encode()


def remember(store: Store, ids: list[str], *, at: int = 0) -> None:
    n = len(ids)
    row = pack(
        P0,
        at,
        offsets=np.arange(at, at + n),
        rows=np.zeros(n, np.int64),
        time_ms=np.arange(n),
        ids=ids,
        entities=None,
        probability=np.zeros(n, np.float32),
        p_value=np.ones(n),
        vectors=np.zeros((n, 2), np.float32),
        signals=np.zeros((n, 1), np.float32),
        version=0,
    )
    store.commit(Checkpoint("pay", [Advance(P0, at or None, at + n, n, n, 0, 0)], remembered=[row]))


def test_a_label_counts_soon_and_what_is_none_is_counted_and_passed_over(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    settings = settings_of(kafka.brokers, name, database=f"sqlite:///{tmp_path}/driftd.db")
    with opened(settings["database"]) as store:
        remember(store, ["t1", "t2"])
        send(kafka, name, [label(1), b"nonsense", None, b'{"id": "t2"}', label(7)])
        with reading(settings, store) as reader:
            wait_until(lambda: store.label_version("pay") == 1, "the first label", 60)
            began = time.monotonic()
            send(kafka, name, [label(2, "cleared")])
            wait_until(lambda: store.label_version("pay") == 2, "the label that was sent", 30)
            log.info("a label was in force after %.2f s", time.monotonic() - began)
            # The label overtook its record.
            remember(store, ["t7"], at=2)
            wait_until(lambda: store.label_version("pay") == 3, "the label that overtook its record", 30)
            taken = reader._metrics.labels_taken
            counts = {labels[1]: metric._value.get() for labels, metric in taken._metrics.items()}
        assert counts == {"new": 3, "repeated": 0, "bad_json": 1, "no_value": 1, "unknown_label": 1}
        assert [row.said.record_id for row in store.labels("pay")] == ["t1", "t2", "t7"]
        assert store.label_positions("pay") == {Partition(name, 0): 6}
        assert "a message is no label" in caplog.text and f"{name}/0/1" in caplog.text
        # A new start reads on where the database says.
        with reading(settings, store):
            send(kafka, name, [label(1, "cleared")])
            wait_until(lambda: store.label_version("pay") == 4, "the label after a new start", 60)
        assert len(store.all_labels("pay")) == 4


@pytest.mark.parametrize("moment", ["Store.add_labels:before", "Store.add_labels:after"])
def test_a_reader_that_is_killed_between_reading_and_storing_leaves_none_out_and_takes_none_twice(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path, moment: str
) -> None:
    name, records = topic(), topic()
    settings = settings_of(kafka.brokers, name, database=f"sqlite:///{tmp_path}/driftd.db", source=records)
    (tmp_path / "driftd.yaml").write_text(yaml.safe_dump(settings))
    send(kafka, name, [label(number) for number in range(200)])
    # The first time it may only store where the topic begins.
    assert run_until_killed(tmp_path, moment, 2) == -9
    with opened(settings["database"]) as store:
        log.info("stored when it was killed: %d", len(store.all_labels("pay", limit=1000)))
        send(kafka, name, [label(number) for number in range(200, 250)])
        with reading(settings, store):
            wait_until(lambda: store.label_positions("pay") == {Partition(name, 0): 250}, "all labels", 90)
        rows = store.all_labels("pay", limit=1000)
    assert [row.said.record_id for row in rows] == [f"t{number}" for number in range(250)]


def test_a_topic_that_was_made_anew_while_nobody_read_it_is_read_from_its_beginning(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic()
    settings = settings_of(kafka.brokers, name, database=f"sqlite:///{tmp_path}/driftd.db")
    with opened(settings["database"]) as store:
        send(kafka, name, [label(number) for number in range(5)])
        with reading(settings, store):
            wait_until(lambda: store.label_positions("pay") == {Partition(name, 0): 5}, "the first labels", 60)
        with kafka.admin() as admin:
            admin.delete_topics([name])
        kafka.create_topic(name)
        # More than there were: an offset alone does not tell that these are others.
        send(kafka, name, [label(number) for number in range(10, 20)])
        with reading(settings, store):
            wait_until(lambda: store.label_positions("pay") == {Partition(name, 0): 10}, "the others", 60)
        rows = store.all_labels("pay", limit=100)
    assert [row.said.record_id for row in rows] == [f"t{number}" for number in [*range(5), *range(10, 20)]]


@pytest.mark.postgres
def test_two_readers_share_the_topic_and_take_each_label_once(
    kafka: KafkaServer, postgres: PostgresServer, topic: Callable[..., str]
) -> None:
    name = topic(partitions=2)
    settings = settings_of(kafka.brokers, name, database=postgres.new_database())
    with opened(settings["database"]) as store, opened(settings["database"]) as other:
        for partition in (0, 1):
            send(kafka, name, [label(1000 * partition + number) for number in range(100)], partition=partition)
        with reading(settings, store):
            wait_until(lambda: len(store.label_positions("pay")) > 0, "the first positions", 60)
            with reading(settings, other, ordinal=1):
                for partition in (0, 1):
                    more = [label(1000 * partition + number) for number in range(100, 200)]
                    send(kafka, name, more, partition=partition)
                ends = {Partition(name, 0): 200, Partition(name, 1): 200}
                wait_until(lambda: store.label_positions("pay") == ends, "all labels", 90)
        rows = store.all_labels("pay", limit=1000)
    assert len(rows) == 400 and len({row.said.record_id for row in rows}) == 400


def test_brokers_that_do_not_answer_are_said_and_tried_again_until_it_is_stopped(tmp_path: Path) -> None:
    settings = settings_of("127.0.0.1:1", "labels", database=f"sqlite:///{tmp_path}/driftd.db")
    with opened(settings["database"]) as store, reading(settings, store) as reader:
        wait_until(lambda: "127.0.0.1:1" in reader.trouble, "the brokers are said", 60)
        remember(store, ["t1"])  # nobody waits for it


def test_labels_are_posted_to_a_daemon_of_several_workers(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTD_HTTP__TOKEN", "s3cret")
    settings = settings_of(kafka.brokers, topic(), database=f"sqlite:///{tmp_path}/driftd.db", source=topic())
    running = Running(tmp_path, settings)
    running.start("--workers", "2")

    def posted() -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"{running.url()}/labels?model=pay",
            data=b'{"id": "t1", "label": "fraud", "time": "2026-01-31T12:00:00Z"}',
            headers={"authorization": "Bearer s3cret"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    try:
        # While no worker answers, the sender is told to come again.
        code, said = wait_until(lambda: posted() if posted()[0] != 503 else None, "a worker that takes labels")
        assert (code, said) == (200, {"new": 0, "repeated": 1, "matched": 0, "waiting": 0})
        assert running.one("SELECT count(*) FROM labels") == 1
        assert "s3cret" not in running.log() and "s3cret" not in running.get("/metrics")[1]
        code, seconds = running.terminate()
        assert code == 0 and seconds < 15
    finally:
        running.kill()
