"""1 % of records that cannot be used, of every reason there is, on a real broker: exactly those are dead letters."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest

from monitor.app import build_source, open_store
from monitor.decode import DEAD_LETTER_REASONS
from monitor.settings import Settings
from monitor.worker import Worker
from tests.servers.kafka import KafkaServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

NOT_ON_KAFKA = {
    "no_time",  # a broker gives every record a time
    "embedder_failed",  # no fault of a record's: tests/unit/test_pipeline.py
}
EVERY = 100
COLLECT = 1_000
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Scored",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "ts", "type": "long"},
        {"name": "v", "type": {"type": "array", "items": "double"}},
    ],
}
START_MS = int(time.time() * 1000) - 3_600_000  # the broker's clock bounds event times
_VECTORS = np.random.default_rng(5).normal(size=(4_000, 8)).round(4)
_VECTORS[np.abs(_VECTORS) < 0.01] = 0.5


@dataclass(frozen=True)
class Message:
    """What is sent; ``reason`` says what is wrong with it, "" if nothing."""

    value: bytes | None
    reason: str = ""
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    time_ms: int | None = None
    rows: int = 1  # what it counts as


def fields(number: int) -> dict[str, Any]:
    return {"id": f"r{number}", "ts": START_MS + 20 * number, "score": 0.9, "v": _VECTORS[number].tolist()}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def plain() -> list[Message]:
    """JSON; the format is left open, and pinned by the first record."""
    events = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_type", b"t"), ("ce_source", b"/s")]

    def bad(number: int) -> list[Message]:
        good = fields(number)
        return [
            Message(None, "tombstone"),
            Message(as_json(good | {"note": "x" * 5_000}), "too_large"),
            Message(b"\x1f\x8b" + as_json(good), "bad_encoding"),
            Message(as_json(good), "unexpected_format", events),
            Message(b"{broken", "bad_json"),
            Message(as_json(good | {"id": None}), "missing_field"),
            Message(as_json(good | {"score": "high"}), "bad_value"),
            Message(as_json(good | {"ts": "soon"}), "bad_time"),
            Message(as_json(good | {"ts": 5}), "time_past"),
            Message(as_json(good | {"ts": 2 * START_MS}), "time_future"),
            Message(as_json(good | {"v": "1, 2, 3"}), "bad_vector"),
            Message(as_json(good | {"v": [1.0, 2.0]}), "wrong_dimension"),
            Message(as_json(good | {"v": [float("nan")] * 8}), "not_finite"),
            Message(as_json(good | {"v": [0] * 8}), "zero_vector"),
        ]

    return mixed(3_000, lambda number: Message(as_json(fields(number))), bad)


def packed() -> list[Message]:
    """MessagePack."""
    return mixed(
        1_200,
        lambda number: Message(msgspec.msgpack.encode(fields(number))),
        lambda number: [Message(b"\xc1", "bad_msgpack")],
    )


def bodies() -> list[Message]:
    """Requests of a model server, two rows each."""

    def body(number: int, **more: Any) -> dict[str, Any]:
        rows = [_VECTORS[number].tolist(), _VECTORS[number + 1].tolist()]
        return {"id": f"b{number}", "inputs": [{"name": "v", "shape": [2, 8], "datatype": "FP32", "data": rows} | more]}

    def bad(number: int) -> list[Message]:
        many = {"shape": [9, 8], "data": [_VECTORS[number].tolist()] * 9}
        return [
            Message(as_json(body(number, shape=[3, 8])), "bad_rows"),
            Message(as_json(body(number, **many)), "too_many_rows"),
        ]

    return mixed(1_200, lambda number: Message(as_json(body(number)), rows=2), bad)


def events() -> list[Message]:
    """CloudEvents, structured."""

    def event(number: int, **more: Any) -> bytes:
        return as_json(
            {"specversion": "1.0", "id": f"e{number}", "type": "t", "source": "/s", "data": fields(number)} | more
        )

    return mixed(
        1_200, lambda number: Message(event(number)), lambda number: [Message(event(number, id=None), "bad_event")]
    )


def framed() -> list[Message]:
    """Avro in Confluent's frames."""
    schema = fastavro.parse_schema(SCHEMA)

    def payload(number: int) -> bytes:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, fields(number))
        return stream.getvalue()

    def frame(schema: int, body: bytes) -> bytes:
        return b"\0" + schema.to_bytes(4, "big") + body

    def bad(number: int) -> list[Message]:
        return [
            Message(frame(8, payload(number)), "unknown_schema"),
            Message(frame(7, payload(number)[:9]), "bad_avro"),
        ]

    return mixed(1_200, lambda number: Message(frame(7, payload(number))), bad)


def pairs() -> list[Message]:
    """Requests, each followed by its response, but for one in a hundred that waits in vain or comes twice."""
    found = []
    for number in range(1_300):
        at = START_MS + 1_000 * number
        request = {"id": f"p{number}", "kind": "call.request", "v": _VECTORS[number].tolist()}
        response = {"id": f"p{number}", "kind": "call.response", "label": "yes"}
        if number % EVERY == 50:
            found.append(Message(as_json(request), "unpaired", time_ms=at))
            continue
        found.append(Message(as_json(request), time_ms=at, rows=0))
        if number % EVERY == 0:
            found.append(Message(as_json(request), "duplicate_half", time_ms=at))
        found.append(Message(as_json(response), time_ms=at))
    return found


def mixed(count: int, good: Callable[[int], Message], bad: Callable[[int], list[Message]]) -> list[Message]:
    """Every hundredth cannot be used, for each reason in turn."""
    kinds = len(bad(0))
    return [
        bad(number)[number // EVERY % kinds] if number % EVERY == EVERY - 1 else good(number) for number in range(count)
    ]


RECORD = {"id": "/id", "time": {"path": "/ts", "unit": "ms"}, "max_bytes": 4_000}
MODELS: dict[str, tuple[Callable[[], list[Message]], dict[str, Any], str]] = {
    "plain": (plain, RECORD | {"format": "auto", "confidence": "/score"}, "/v"),
    "packed": (packed, RECORD | {"codec": "msgpack"}, "/v"),
    "bodies": (bodies, {"format": "v2", "max_rows": 8}, "/inputs/v"),
    "events": (events, RECORD | {"format": "cloudevents"}, "/v"),
    "framed": (framed, RECORD | {"format": "confluent"}, "/v"),
    "pairs": (
        pairs,
        {"pair": {"by": "/id", "role": "/kind", "timeout": "30s", "on_timeout": "dead_letter"}},
        "/request/v",
    ),
}


def produce(brokers: str, topic: str, messages: Iterable[Message]) -> None:
    from kafka import KafkaProducer

    with KafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        for message in messages:
            producer.send(
                topic, message.value, key=b"k", headers=message.headers, partition=0, timestamp_ms=message.time_ms
            )
        producer.flush(timeout=60)


def test_exactly_the_bad_records_are_dead_letters_each_with_its_reason(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "7.avsc").write_text(json.dumps(SCHEMA))
    sent = {name: make() for name, (make, _, _) in MODELS.items()}
    topics = {name: topic() for name in MODELS}
    models: dict[str, Any] = {}
    for name, (_, record, vector) in MODELS.items():
        produce(kafka.brokers, topics[name], sent[name])
        schemas = {"schemas": {"directory": str(tmp_path)}} if name == "framed" else {}
        models[name] = {
            "source": {"kind": "kafka", "brokers": kafka.brokers, "topic": topics[name], "start": "earliest"},
            "record": record | schemas,
            "spaces": {"input": {"embedder": {"kind": "vector", "field": vector, "encoding": "list"}}},
            "reference": {"collect": COLLECT},
        }
    settings = Settings.model_validate(
        {
            "database": f"sqlite:///{tmp_path / 'driftd.db'}",
            "references": tmp_path / "references",
            "checkpoint": {"every": "200ms"},
            "models": models,
        }
    )
    seen: set[str] = set()
    with open_store(settings) as store:
        for name, messages in sent.items():
            with closing(build_source(name, settings.models[name])) as source:
                worker = Worker(name, settings, store=store, source=source)
                worker.start()
                deadline = time.monotonic() + 60
                while [state.next_offset for state in store.partition_states(name)] != [len(messages)]:
                    assert time.monotonic() < deadline, (name, worker.state, store.partition_states(name))
                    assert not worker.halted
                    worker.step(int(time.time() * 1000), time.monotonic(), wait_s=0.2)
            expected = {offset: message.reason for offset, message in enumerate(messages) if message.reason}
            rows = store.dead_letter_rows(name, limit=10_000)
            found = {row.letter.offset: row.letter.reason for row in rows}
            assert len(found) == len(rows) and found == expected, name
            assert 0.009 <= len(expected) / len(messages) <= 0.012, name
            totals = store.totals(name)
            assert (totals.records, totals.dead) == (sum(m.rows for m in messages), len(expected)), name
            assert sum(store.dead_letter_counts(name).values()) == len(expected), name
            seen |= set(expected.values())
    assert seen == set(DEAD_LETTER_REASONS) - NOT_ON_KAFKA
