"""The sink `kafka` on a real broker: what a message is, order, an outage, a lost acknowledgement, missing topics."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.kafka_alerts import KafkaAlertsSettings, KafkaAlertsSink
from connectors.notification import GroupSink
from detectors.errors import SinkError
from tests import senders
from tests.servers.kafka import PASSWORD, USER, KafkaServer

pytestmark = [
    pytest.mark.kafka,
    # The client forgets sockets whose connection was refused; they are closed when they are collected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
NewTopic = Callable[..., str]
NOTE = dataclasses.replace(senders.NOTE, title="triage: traffic changed ü")


@pytest.fixture(autouse=True)
def _collect_forgotten_sockets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Here, where the warning is expected, not in some later test; what was logged holds some of them, too."""
    yield
    caplog.get_records("call").clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def sink_for(server: KafkaServer, topic: str, **more: Any) -> KafkaAlertsSink:
    return KafkaAlertsSettings.model_validate({"brokers": server.brokers, "topic": topic, **more}).build()


def messages(server: KafkaServer, topic: str, count: int) -> list[Any]:
    """At least ``count`` messages of the topic, partition by partition."""
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic, bootstrap_servers=server.brokers, auto_offset_reset="earliest", consumer_timeout_ms=20_000
    )
    got: list[Any] = []
    try:
        for message in consumer:
            got.append(message)
            ends = consumer.end_offsets(consumer.assignment())
            if len(got) >= count and all(consumer.position(place) >= end for place, end in ends.items()):
                break
    finally:
        consumer.close()
    return sorted(got, key=lambda message: (message.partition, message.offset))


def test_a_message_is_the_notification_with_its_incident_as_key(kafka: KafkaServer, topic: NewTopic) -> None:
    name = topic(partitions=3)
    sink = sink_for(kafka, name)
    assert not isinstance(sink, GroupSink), "programs get each notification"
    incidents = [f"incident-{n}" for n in range(6)]
    for revision in range(3):
        for incident in incidents:
            sink.send(dataclasses.replace(NOTE, id=f"{incident}/{revision}", incident=incident))
    sink.close()
    got = messages(kafka, name, 18)
    assert len(got) == 18 and len({message.partition for message in got}) > 1
    first = got[0]
    assert json.loads(first.value) == {
        **dataclasses.asdict(NOTE),
        "id": f"{first.key.decode()}/0",
        "incident": first.key.decode(),
    }
    assert dict(first.headers) == {"id": f"{first.key.decode()}/0".encode(), "model": b"triage", "severity": b"page"}
    for incident in incidents:
        ids = [dict(message.headers)["id"].decode() for message in got if message.key == incident.encode()]
        assert ids == [f"{incident}/{revision}" for revision in range(3)]


def test_a_broker_that_is_killed_and_comes_back_has_all_in_order(own_kafka: KafkaServer) -> None:
    name = own_kafka.create_topic("alerts", partitions=1)
    sink = sink_for(own_kafka, name, timeout_s=1)
    sink.send(dataclasses.replace(NOTE, id="0"))
    own_kafka.kill()
    for _ in range(2):
        with pytest.raises(SinkError, match="refused") as got:
            sink.send(dataclasses.replace(NOTE, id="1"))
        assert got.value.retryable and "sinks.NAME.brokers" in got.value.hint
    own_kafka.start()
    retried(sink, "1")
    with own_kafka.frozen():  # it may have taken what it does not acknowledge
        with pytest.raises(SinkError) as got:
            for _ in range(100):  # a moment passes until it stands still
                sink.send(dataclasses.replace(NOTE, id="2"))
        assert got.value.retryable
    retried(sink, "2")
    retried(sink, "3")
    sink.close()
    ids = [dict(message.headers)["id"].decode() for message in messages(own_kafka, name, 4)]
    assert list(dict.fromkeys(ids)) == ["0", "1", "2", "3"], "in order, and a repeat has the same id"
    assert ids == sorted(ids), "nothing that failed comes out behind what was sent later"


def retried(sink: KafkaAlertsSink, identity: str) -> None:
    for _ in range(20):  # a broker that was just started or thawed may need a second
        try:
            return sink.send(dataclasses.replace(NOTE, id=identity))
        except SinkError as error:
            assert error.retryable
            threading.Event().wait(0.2)
    pytest.fail(f"notification {identity} cannot be sent")


def test_a_topic_that_is_not_there_is_named_with_the_nearest_and_never_made(
    kafka: KafkaServer, topic: NewTopic
) -> None:
    name = topic()
    sink = sink_for(kafka, f"{name}x")
    for call in (sink.check, lambda: sink.send(NOTE)):
        with pytest.raises(SinkError, match=f'no topic "{name}x"') as got:
            call()
        assert got.value.retryable, "somebody may make it within the day"
        assert f'"{name}"' in got.value.hint
    sink.close()
    with kafka.admin() as admin:
        assert f"{name}x" not in admin.list_topics()


def test_a_password_is_taken_or_refused_and_never_shown(kafka: KafkaServer, topic: NewTopic) -> None:
    name = topic()
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-256", "username": USER, "password": PASSWORD}
    sink = sink_for(kafka, name, brokers=kafka.sasl_brokers, security=security)
    sink.send(NOTE)
    assert sink.check() == f"kafka {kafka.sasl_brokers}, topic {name}, 1 partition"
    sink.close()
    wrong = sink_for(kafka, name, brokers=kafka.sasl_brokers, security={**security, "password": "wr0ng"})
    for call in (wrong.check, lambda: wrong.send(NOTE)):
        with pytest.raises(SinkError) as got:
            call()
        assert "wr0ng" not in f"{got.value!r} {got.value} {wrong!r}" and "sinks.NAME.security" in got.value.hint


def test_a_message_that_is_too_large_is_final_and_stops_no_other(kafka: KafkaServer, topic: NewTopic) -> None:
    name = topic(config={"max.message.bytes": "2000"})
    sink = sink_for(kafka, name)
    for size in (5_000, 2_000_000):
        with pytest.raises(SinkError, match="TooLarge") as got:
            sink.send(dataclasses.replace(NOTE, text="x" * size))
        assert not got.value.retryable and "max.message.bytes" in got.value.hint
    sink.send(NOTE)
    sink.close()
    assert len(messages(kafka, name, 1)) == 1


@pytest.mark.parametrize("brokers", ["", "localhost:port", [], ["a:1", "b:0"]])
def test_addresses_that_cannot_work_are_refused(brokers: Any) -> None:
    with pytest.raises(ValidationError):
        KafkaAlertsSettings.model_validate({"brokers": brokers, "topic": "alerts"})
