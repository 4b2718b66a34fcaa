"""Settings of the Kafka source, and the parts of it that need no broker."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.kafka import KafkaSettings, _raw_batch
from connectors.kafka_probe import split_address
from connectors.log_throttle import LogThrottle
from connectors.records import Partition


def settings(**values: Any) -> KafkaSettings:
    return KafkaSettings.model_validate({"brokers": "localhost:9092", "topic": "requests", **values})


@pytest.mark.parametrize(
    ("brokers", "addresses"),
    [
        ("a:1", ["a:1"]),
        ("a:1, b:2,", ["a:1", "b:2"]),
        (["a:1", "[::1]:2"], ["a:1", "[::1]:2"]),
    ],
)
def test_brokers_are_a_text_or_a_list(brokers: object, addresses: list[str]) -> None:
    assert settings(brokers=brokers).addresses == addresses


@pytest.mark.parametrize(
    ("address", "parts"),
    [("a:1", ("a", 1)), ("a", ("a", 9092)), ("[::1]:7", ("::1", 7)), ("[::1]", ("::1", 9092)), (" a:1 ", ("a", 1))],
)
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", ":1", "a:b", "a:0", "a:65536", "kafka://a:1", "[::1", "[::1]7", "::1", "a:1:2"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        split_address(address)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"brokers": ""}, "at least one address"),
        ({"brokers": "kafka://localhost"}, "expected host:port"),
        ({"topic": "no spaces"}, "topic"),
        ({"start": "newest"}, "start"),
        ({"start": "2026-01-31T00:00:00"}, "timezone"),
        ({"offset": 3}, "offset"),
        ({"security": {"protocol": "SASL_SSL"}}, "needs username"),
        ({"security": {"protocol": "SASL_SSL", "username": "u"}}, "one of password and password_file"),
        (
            {"security": {"protocol": "SASL_SSL", "username": "u", "password": "p", "password_file": "f"}},
            "one of password and password_file",
        ),
        ({"security": {"username": "u", "password": "p"}}, "are only used with SASL"),
        ({"security": {"ca_file": "ca.pem"}}, "are only used with SSL"),
        ({"security": {"protocol": "SSL", "key_file": "key.pem"}}, "needs cert_file"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(**values)


def test_a_password_is_never_shown() -> None:
    shown = settings(security={"protocol": "SASL_SSL", "username": "u", "password": "hunter2"})
    assert "hunter2" not in repr(shown)
    assert "hunter2" not in shown.model_dump_json()


def test_a_start_time_is_a_time() -> None:
    assert settings(start="2026-01-31T00:00:00Z").start == datetime(2026, 1, 31, tzinfo=UTC)


def test_the_readers_of_a_model_share_a_group_and_no_member_id() -> None:
    first = settings().build(client_id="driftd-fraud-host-0", group="driftd-fraud")
    second = settings().build(client_id="driftd-fraud-host-1", group="driftd-fraud")
    assert first.group == second.group == "driftd-fraud"
    assert first.instance != second.instance
    assert settings(instance="none").build(client_id="a").instance is None
    assert settings(group="mine").build(client_id="a", group="given").group == "mine"


def test_a_member_id_holds_only_what_kafka_allows() -> None:
    assert settings().build(client_id="driftd-ä b/c-0").instance == "driftd---b-c-0"


def test_headers_without_a_value_become_empty_bytes() -> None:
    from kafka.consumer.fetcher import ConsumerRecord

    def record(offset: int, headers: list[tuple[str, bytes | None]]) -> ConsumerRecord:
        return ConsumerRecord("t", 0, 0, offset, 5, 0, None, b"v", headers, None, -1, 1, 0)

    batch = _raw_batch(Partition("t", 0), [record(3, []), record(9, [("a", None), ("b", b"x")])], 12)
    assert [list(row) for row in batch.headers] == [[], [("a", b""), ("b", b"x")]]
    assert batch.offsets.tolist() == [3, 9]
    assert batch.next_offset == 12


def log_record(text: str, *args: object, at: float, level: int = logging.WARNING) -> logging.LogRecord:
    made = logging.LogRecord("kafka.x", level, "x.py", 1, text, args, None)
    made.created = at
    return made


def test_a_text_passes_once_in_a_while_whatever_its_numbers() -> None:
    throttle = LogThrottle(every_s=60)
    passed = [throttle.filter(log_record("try %d failed after %.1f s", i, i / 3, at=1000.0 + i)) for i in range(60)]
    assert passed == [True] + [False] * 59
    assert throttle.filter(log_record("another", at=1001.0))
    again = log_record("try %d failed after %.1f s", 60, 20.0, at=1060.0)
    assert throttle.filter(again)
    assert again.getMessage() == "try 60 failed after 20.0 s (59 more like this left out)"
    assert throttle.suppressed == 59


def test_the_memory_of_seen_texts_is_bounded() -> None:
    throttle = LogThrottle(every_s=60)
    for i in range(1000):
        throttle.filter(log_record("x" * i, at=1000.0))
    assert len(throttle._seen) == 256
