"""Schemas by number: what a registry is asked, how often, and what becomes of records while it does not answer."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from connectors.database.store import Store
from connectors.records import Partition, RawBatch, SourceState
from connectors.schema_registry import UNKNOWN_FOR_S, SchemaRegistry, SchemaSettings
from detectors.errors import AccessRefused, InvalidSettings, SourceError, SourceUnreachable
from monitor.checks import check_everything
from monitor.decode import Decoder, RecordSettings
from monitor.settings import Settings
from monitor.worker import Worker
from tests.servers.schema_registry import Registry, registry

POINT = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "float"}]}
NAMED = {
    "type": "record",
    "name": "Named",
    "fields": [{"name": "at", "type": "Point"}, {"name": "n", "type": "string"}],
}
ORDERS = Partition("orders", 0)
NOW = 1_772_438_400_000


@pytest.fixture
def server() -> Iterator[Registry]:
    with registry() as state:
        yield state


def avro(schema: Any, document: Mapping[str, Any], *, number: int) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, dict(document))
    return b"\0" + number.to_bytes(4, "big") + stream.getvalue()


def batch(values: Sequence[bytes], first: int = 0) -> RawBatch:
    n = len(values)
    offsets = np.arange(first, first + n, dtype=np.int64)
    return RawBatch(ORDERS, offsets, np.full(n, NOW), [None] * n, values, [()] * n, first + n)


def decoder(server: Registry, field: str = "/x") -> Decoder:
    settings = RecordSettings.model_validate({"format": "confluent", "schemas": {"url": server.url + "/"}})
    return Decoder(settings, [field])


def test_a_schema_is_asked_for_once(server: Registry) -> None:
    server.add(7, POINT)
    reads = decoder(server)
    value = avro(POINT, {"x": 0.5}, number=7)
    for first in (0, 3):
        assert reads.decode(batch([value] * 3, first), NOW).fields == {"/x": [0.5] * 3}
    assert server.asked == ["/schemas/ids/7"]


def test_schemas_that_name_others_are_put_together(server: Registry) -> None:
    line = {
        "type": "record",
        "name": "Line",
        "fields": [{"name": "a", "type": "Named"}, {"name": "b", "type": "Point"}],
    }
    named: dict[str, Any] = {}
    for schema in (POINT, NAMED):
        fastavro.parse_schema(json.loads(json.dumps(schema)), named_schemas=named)
    parsed = fastavro.parse_schema(json.loads(json.dumps(line)), named_schemas=named)
    point = {"name": "Point", "subject": "com/point", "version": 2}
    to_named = {"name": "Named", "subject": "named", "version": 1}
    server.answers["/subjects/com%2Fpoint/versions/2"] = {"schema": json.dumps(POINT)}
    server.answers["/subjects/named/versions/1"] = {"schema": json.dumps(NAMED), "references": [point]}
    server.add(9, line, schemaType="AVRO", references=[to_named, point])
    value = avro(parsed, {"a": {"at": {"x": 1.5}, "n": "p"}, "b": {"x": 2}}, number=9)
    assert decoder(server, "/a/at/x").decode(batch([value] * 2), NOW).fields == {"/a/at/x": [1.5, 1.5]}
    assert len(server.asked) == 3


def test_json_and_guids_are_found_and_protobuf_is_refused(server: Registry) -> None:
    guid = "01020304-0506-0708-090a-0b0c0d0e0f10"
    server.answers[f"/schemas/guids/{guid}"] = {"schema": "{}", "schemaType": "JSON"}
    server.add(8, {}, schemaType="PROTOBUF")
    raw = batch([b'{"x": 3}', b"\0\0\0\0\x08{}"])
    raw = RawBatch(
        ORDERS,
        raw.offsets,
        raw.timestamps_ms,
        raw.keys,
        raw.values,
        [[("__value_schema_id", b"\x01" + bytes(range(1, 17)))], ()],
        raw.next_offset,
    )
    events = decoder(server).decode(raw, NOW)
    assert events.fields == {"/x": [3]}
    assert [(letter.reason, "PROTOBUF" in letter.detail) for letter in events.dead] == [("unknown_schema", True)]


def test_an_unknown_number_is_a_dead_letter_and_is_asked_for_again_later(server: Registry) -> None:
    clock = [0.0]
    schemas = SchemaRegistry(server.url, clock=lambda: clock[0])
    assert schemas.find("7") is None and schemas.find("7") is None
    server.add(7, POINT)
    clock[0] = UNKNOWN_FOR_S - 1
    assert schemas.find("7") is None
    clock[0] = UNKNOWN_FOR_S
    found = schemas.find("7")
    assert found is not None and (found.kind, json.loads(found.text)) == ("AVRO", POINT)
    assert server.asked == ["/schemas/ids/7"] * 2


def test_a_registry_that_wants_a_password_gets_it(server: Registry, tmp_path: Path) -> None:
    server.login = ("driftd", "s3cret")
    server.add(7, POINT)
    with pytest.raises(AccessRefused, match="401") as refused:
        SchemaSettings(url=server.url).build().find("7")
    assert not refused.value.retryable
    (tmp_path / "password").write_text("s3cret\n")
    schemas = SchemaSettings(url=server.url, username="driftd", password_file=tmp_path / "password").build()
    assert schemas.find("7") is not None
    assert "answers" in schemas.check()
    with pytest.raises(InvalidSettings, match="password_file"):
        SchemaSettings(url=server.url, username="driftd", password_file=tmp_path / "none").build()
    with pytest.raises(InvalidSettings, match="ca_file"):
        SchemaSettings(url=server.url, ca_file=tmp_path / "none").build()
    with pytest.raises(InvalidSettings, match="directory"):
        SchemaSettings(directory=tmp_path / "none").build()


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"schema": 45}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_a_registry_that_answers_nonsense_is_a_failure_that_may_pass(server: Registry, answer: bytes) -> None:
    server.broken = answer
    value = avro(POINT, {"x": 0.5}, number=7)
    reads = decoder(server)
    with pytest.raises(SourceUnreachable) as failure:
        reads.decode(batch([value]), NOW)
    assert failure.value.retryable
    server.broken = None
    server.add(7, POINT)
    assert reads.decode(batch([value]), NOW).fields == {"/x": [0.5]}


@pytest.mark.parametrize("references", [3, [3], [{"subject": "a"}], [{"subject": "a", "version": 1}]])
def test_references_that_lead_nowhere_are_no_fault_of_the_records(server: Registry, references: Any) -> None:
    server.add(7, POINT, references=references)
    with pytest.raises(SourceError):
        decoder(server).decode(batch([avro(POINT, {"x": 0.5}, number=7)]), NOW)


class OneTopic:
    """A source of one partition, which reads on from the stored position after a rewind."""

    finished = False

    def __init__(self, values: Sequence[bytes]) -> None:
        self.values = values
        self.at: int | None = None

    def open(self, positions: Any, *, topic_ids: Any = None) -> None:
        self.positions = positions

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        if self.at is None:
            self.at = self.positions([ORDERS]).get(ORDERS, 0)
        first, self.at = self.at, min(self.at + max_records, len(self.values))
        return [batch(self.values[first : self.at], first)] if self.at > first else []

    def rewind(self) -> None:
        self.at = None

    def assignment(self) -> frozenset[Partition]:
        return frozenset([ORDERS])

    partitions = assignment

    def state(self) -> SourceState:
        return SourceState("stable", True, 0, 0, 0, {})

    def lag(self) -> Mapping[Partition, int]:
        return {ORDERS: len(self.values) - (self.at or 0)}

    def hold(self, partitions: frozenset[Partition]) -> None:
        pass

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        pass


def test_records_wait_while_the_registry_is_away_and_are_counted_once(tmp_path: Path) -> None:
    port = free_port()
    chance = np.random.default_rng(0)
    values = [avro(POINT, {"x": float(x)}, number=7) for x in chance.normal(size=3_000)]
    model = {
        "source": {"kind": "kafka", "brokers": "localhost:1", "topic": "orders"},
        "record": {"format": "confluent", "schemas": {"url": f"http://127.0.0.1:{port}", "timeout_s": 2}},
        "spaces": {"x": {"embedder": {"kind": "number", "field": "/x"}}},
        "reference": {"collect": 1_000},
    }
    settings = Settings.model_validate({"models": {"m": model}, "references": tmp_path / "references"})
    source: Any = OneTopic(values)
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        worker = Worker("m", settings, store=store, source=source)
        worker.start()
        clock = [0.0]

        def step() -> Any:
            clock[0] += 10.0
            return worker.step(NOW, clock[0])

        for _ in range(3):
            assert "does not answer" in step().failure
        with registry(port) as server:
            server.add(7, POINT)
            for _ in range(200):
                step()
                if store.positions("m", [ORDERS]).get(ORDERS) == len(values):
                    break
            assert step().failure == ""
        (state,) = store.partition_states("m")
        assert (state.next_offset, state.records, state.dead) == (3_000, 3_000, 0)


def test_check_says_whether_the_schemas_are_there(server: Registry, tmp_path: Path) -> None:
    (tmp_path / "7.avsc").write_text(json.dumps(POINT))
    found = []
    for schemas in ({"url": server.url}, {"directory": str(tmp_path)}, {"url": f"http://127.0.0.1:{free_port()}"}):
        model = {
            "source": {"kind": "files", "path": str(tmp_path / "*.jsonl")},
            "record": {"format": "confluent", "schemas": schemas},
            "spaces": {"x": {"embedder": {"kind": "number", "field": "/x"}}},
        }
        settings = Settings.model_validate(
            {"models": {"m": model}, "references": tmp_path, "database": f"sqlite:///{tmp_path}/driftd.db"}
        )
        found += [finding for finding in check_everything(settings) if "schemas" in finding.name]
    assert [finding.ok for finding in found] == [True, True, False]
    assert "1 schemas" in found[1].detail and "does not answer" in found[2].detail
