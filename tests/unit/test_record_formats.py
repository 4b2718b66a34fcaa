"""How records may be wrapped: CloudEvents, inference bodies, Confluent frames, gzip; and how that is found out."""

from __future__ import annotations

import base64
import gzip
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest

from connectors.records import Headers, Partition, RawBatch
from monitor.decode import Decoder, RecordSettings
from monitor.event import EventBatch

NOW = 1_772_438_400_000
ORDERS = Partition("orders", 3)


def batch(
    values: Sequence[bytes | None], headers: Sequence[Headers] | None = None, *, first: int = 100, time_ms: int = NOW
) -> RawBatch:
    n = len(values)
    return RawBatch(
        partition=ORDERS,
        offsets=np.arange(first, first + n, dtype=np.int64),
        timestamps_ms=np.full(n, time_ms, dtype=np.int64),
        keys=[None] * n,
        values=values,
        headers=[()] * n if headers is None else headers,
        next_offset=first + n,
    )


def encoded(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def decode(
    documents: Sequence[Any], fields: Sequence[str] = (), headers: Sequence[Headers] | None = None, **settings: Any
) -> EventBatch:
    decoder = Decoder(RecordSettings.model_validate(settings), fields)
    return decoder.decode(batch([encoded(document) for document in documents], headers), NOW)


def refused(events: EventBatch) -> list[tuple[int, int, str]]:
    return [(letter.offset, letter.row, letter.reason) for letter in events.dead]


# --- CloudEvents


def event_headers(**attributes: str) -> Headers:
    named = {"specversion": "1.0", "id": "e1", "type": "com.example.scored", "source": "/models/a"} | attributes
    return [(f"ce_{name}", text.encode()) for name, text in named.items() if text]


def structured(data: Any = None, **attributes: Any) -> dict[str, Any]:
    event = {"specversion": "1.0", "id": "e1", "type": "com.example.scored", "source": "/models/a"} | attributes
    return event if data is None else event | {"data": data}


def test_both_modes_of_a_cloud_event_are_the_same_event() -> None:
    time = "2026-03-02T08:00:00.5Z"
    settings: dict[str, Any] = {
        "format": "cloudevents",
        "segments": {"source": "header:ce_source", "version": "header:ce_modelversion"},
        "prediction": "/label",
    }
    data = {"v": [1, 2], "label": "cat"}
    binary = decode([data], ["/v"], [event_headers(time=time, modelversion="7")], **settings)
    whole = decode([structured(data, time=time, modelversion=7)], ["/v"], **settings)
    in_base64 = base64.b64encode(encoded(data)).decode()
    inside = decode([structured(data_base64=in_base64, time=time, modelversion=7)], ["/v"], **settings)
    for events in (binary, whole, inside):
        assert (events.ids, events.time_ms.tolist()) == (["e1"], [NOW + 500])
        assert events.fields == {"/v": [[1, 2]]} and events.predictions == ["cat"]
        assert events.segments == {"source": ["/models/a"], "version": ["7"]}
        assert events.dead == []


def test_what_the_settings_map_goes_before_the_attributes_of_an_event() -> None:
    headers = [event_headers(time="yesterday")]
    events = decode([{"i": 5, "t": NOW + 1}], ["/i"], headers, format="cloudevents", id="/i", time="/t")
    assert (events.ids, events.time_ms.tolist(), events.dead) == (["5"], [NOW + 1], [])


def test_an_event_without_a_time_has_the_brokers_and_one_with_a_bad_time_is_dead() -> None:
    headers = [event_headers(), event_headers(time="yesterday"), event_headers(time="2040-01-01T00:00:00Z")]
    events = decode([{}] * 3, [], headers, format="cloudevents")
    assert events.time_ms.tolist() == [NOW]
    assert refused(events) == [(101, -1, "bad_time"), (102, -1, "time_future")]


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"{}", [("ce_specversion", b"1.0"), ("ce_type", b"t")], "bad_event"),
        (b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"\xff"), ("ce_type", b"t")], "bad_event"),
        (b"{}", [("ce_specversion", b"0.3"), ("ce_id", b"1"), ("ce_type", b"t")], "bad_event"),
        (b"{", [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_type", b"t")], "bad_json"),
        (b"[]", [("content-type", b"application/cloudevents-batch+json")], "bad_event"),
        (b"Obj", [("content-type", b"application/cloudevents+avro; charset=utf-8")], "bad_event"),
        (b"{}", [("content-type", b"application/cloudevents+json")], "unexpected_format"),
        (b"{}", [], "unexpected_format"),
        (b"3", [], "unexpected_format"),
        (b"", [], "bad_json"),
        (b'{"specversion": "1.0", "id": {}, "type": "t"}', [], "bad_event"),
        (b'{"specversion": "1.0", "id": "1", "type": "t", "data_base64": "?"}', [], "bad_event"),
        (b'{"specversion": "1.0", "id": "1", "type": "t", "data_base64": 5}', [], "bad_event"),
        (b'{"specversion": "1.0", "id": "1", "type": "t", "x": "%s"}' % (b"y" * 70_000), [], "bad_event"),
        (b'{"specversion": "1.0", "id": "%s", "type": "t"}' % (b"y" * 2_000), [], "bad_value"),
    ],
)
def test_what_is_no_cloud_event_is_a_dead_letter(value: bytes, headers: Headers, reason: str) -> None:
    assert refused(decode([value], [], [headers], format="cloudevents")) == [(100, -1, reason)]


def test_an_event_may_hold_message_pack_or_a_raw_vector() -> None:
    packed = msgspec.msgpack.encode({"v": [1.5]})
    assert decode([packed], ["/v"], [event_headers()], format="cloudevents", codec="msgpack").fields == {"/v": [[1.5]]}
    raw = decode([b"\0\0\x80?"] * 2, ["body"], [event_headers(), ()], format="cloudevents", codec="raw")
    assert raw.fields == {"body": [b"\0\0\x80?"]} and raw.ids == ["e1"]
    assert refused(raw) == [(101, -1, "bad_json")]
    assert refused(decode([structured({})], ["body"], format="cloudevents", codec="raw")) == [
        (100, -1, "unexpected_format")
    ]


@pytest.mark.parametrize("server", ["org.kubeflow.serving.inference", "io.seldon.serving.inference"])
def test_what_a_model_server_logs_is_rows(server: str) -> None:
    headers = [event_headers(type=f"{server}.request"), event_headers(type=f"{server}.response", id="e2")]
    bodies = [{"instances": [{"age": 1}, {"age": 2}], "signature_name": "s"}, {"predictions": [0.5]}]
    events = decode(bodies, ["/instances/age", "/predictions", "/signature_name"], headers, format="cloudevents")
    assert events.ids == ["e1#0", "e1#1", "e2"]
    assert events.fields == {
        "/instances/age": [1, 2, None],
        "/predictions": [None, None, 0.5],
        "/signature_name": ["s", "s", None],
    }
    assert events.offsets.tolist() == [100, 100, 101] and events.rows.tolist() == [0, 1, 0]


# --- V2


def tensor(name: str, shape: Any, data: Any, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def test_a_v2_body_is_as_many_rows_as_its_tensors_have() -> None:
    flat = {
        "id": "q1",
        "parameters": {"tenant": "a"},
        "inputs": [
            tensor("x", [3, 2], [1, 2, 3, 4, 5, 6]),
            tensor("text", [3], ["a", "b", "c"], "BYTES"),
            tensor("image", [3, 2, 2], list(range(12)), "UINT8"),
        ],
        "outputs": [tensor("label", [3, 1], [7, 8, 9], "INT64"), tensor("p", [3], [0.5, 0.25, 1])],
    }
    nested = json.loads(json.dumps(flat))
    nested["inputs"][0]["data"] = [[1, 2], [3, 4], [5, 6]]
    nested["inputs"][2]["data"] = np.arange(12).reshape(3, 2, 2).tolist()
    where = ["/inputs/x", "/inputs/text", "/inputs/image", "/outputs/label/0", "/parameters/tenant", "/id"]
    for body in (flat, nested):
        events = decode([body], where, format="v2", confidence="/outputs/p", segments={"text": "/inputs/text"})
        assert events.fields == {
            "/inputs/x": [[1, 2], [3, 4], [5, 6]],
            "/inputs/text": ["a", "b", "c"],
            "/inputs/image": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
            "/outputs/label/0": [7, 8, 9],
            "/parameters/tenant": ["a", "a", "a"],
            "/id": ["q1", "q1", "q1"],
        }
        assert events.ids == ["orders/3/100#0", "orders/3/100#1", "orders/3/100#2"]
        assert events.confidence is not None and events.confidence.tolist() == [0.5, 0.25, 1]
        assert events.segments == {"text": ["a", "b", "c"]}
        assert (events.records, events.places.tolist(), events.broker_ms.tolist()) == (3, [0, 1, 2], [NOW] * 3)


def test_a_body_of_one_row_is_called_like_a_record() -> None:
    events = decode([{"inputs": [tensor("x", [1, 2], [1, 2])]}], ["/inputs/x"], format="v2")
    assert events.ids == ["orders/3/100"]
    assert refused(decode([{"inputs": [tensor("x", [1], [1])]}], format="v2", id="/inputs/y")) == [
        (100, -1, "missing_field")
    ]


@pytest.mark.parametrize(
    ("body", "reason", "said"),
    [
        ({"inputs": [tensor("x", [2], [1])]}, "bad_rows", "holds 1 values"),
        ({"inputs": [tensor("x", [2], [1, 2]), tensor("y", [3], [1, 2, 3])]}, "bad_rows", "3 rows"),
        ({"inputs": [tensor("x", [2], [1, 2])], "outputs": [tensor("y", [1], [1])]}, "bad_rows", "1 rows"),
        ({"inputs": [tensor("x", [0], [])]}, "bad_rows", "no rows"),
        ({"inputs": []}, "bad_rows", "neither"),
        ({"inputs": [tensor("x", [], [1])]}, "bad_rows", "sizes"),
        ({"inputs": [tensor("x", [-1], [1])]}, "bad_rows", "sizes"),
        ({"inputs": [tensor("x", [True], [1])]}, "bad_rows", "sizes"),
        ({"inputs": [tensor("x", [1.0], [1])]}, "bad_rows", "sizes"),
        ({"inputs": [tensor("x", "1", [1])]}, "bad_rows", "sizes"),
        ({"inputs": [tensor("x", [1] * 17, [1])]}, "bad_rows", "sizes"),
        ({"inputs": [tensor("x", [10**30], [1])]}, "too_many_rows", "max_rows is 5"),
        ({"inputs": [tensor("x", [1, 10**30], [1])]}, "bad_rows", "holds 1 values"),
        ({"inputs": [tensor("x", [6], [1] * 6)]}, "too_many_rows", "6 rows"),
        ({"inputs": [tensor("x", [2, 2], [[1, 2], [3]])]}, "bad_rows", "nested"),
        ({"inputs": [tensor("x", [2], [[1], [2]])]}, "bad_rows", "nested"),
        ({"inputs": [tensor("x", [2, 2], [[1, 2], 3])]}, "bad_rows", "nested"),
        ({"inputs": [tensor("x", [2, 1], [1, {}])]}, "bad_rows", "nested"),
        ({"inputs": [tensor("x", [1], [1], "FLOAT")]}, "bad_rows", "datatype"),
        ({"inputs": [tensor("", [1], [1])]}, "bad_rows", "no name"),
        ({"inputs": [tensor("x", [1], [1]), tensor("x", [1], [1])]}, "bad_rows", "Two tensors"),
        ({"inputs": [tensor("x", [1], None, parameters={"binary_data_size": 4})]}, "bad_rows", "binary"),
        ({"inputs": [tensor("x", [1], "1")]}, "bad_rows", "no list"),
        ({"inputs": [1]}, "unexpected_format", "V2"),
        ({"inputs": 1}, "unexpected_format", "V2"),
        ({"instances": [1]}, "unexpected_format", "V2"),
        ([], "unexpected_format", "V2"),
        (b"{", "bad_json", "JSON"),
    ],
)
def test_bodies_whose_rows_do_not_fit_are_dead_letters_that_say_why(body: Any, reason: str, said: str) -> None:
    events = decode([body, {"inputs": [tensor("x", [1], [1])]}], ["/inputs/x"], format="v2", max_rows=5)
    assert refused(events) == [(100, -1, reason)] and said in events.dead[0].detail
    assert events.fields == {"/inputs/x": [1]}


def test_a_bad_row_is_a_dead_letter_of_its_own() -> None:
    body = {"inputs": [tensor("t", [4], [NOW, "noon", None, NOW + 1], "INT64"), tensor("x", [4], [1, 2, 3, 4])]}
    events = decode([body, b"{"], ["/inputs/x"], format="v2", time="/inputs/t")
    assert events.fields == {"/inputs/x": [1, 4]} and events.rows.tolist() == [0, 3]
    assert refused(events) == [(100, 1, "bad_time"), (100, 2, "missing_field"), (101, -1, "bad_json")]
    assert (events.records, events.dead_places, events.places.tolist()) == (5, [1, 2, 4], [0, 3])
    assert [letter.payload for letter in events.dead] == [encoded(body)[:256]] * 2 + [b"{"]
    assert events.dead[0].payload is events.dead[1].payload, "thousands of rows must not hold thousands of copies"
    later, left = events.refused({0: ("wrong_dimension", "no")})
    assert left.tolist() == [1] and refused(later)[0] == (100, 0, "wrong_dimension")


def test_no_more_rows_are_decoded_at_once_than_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.decode.MAX_ROWS", 5)
    body = encoded({"inputs": [tensor("x", [3], [1, 2, 3])]})
    decoder = Decoder(RecordSettings(format="v2"), ["/inputs/x"])
    raw = batch([body] * 5)
    events = decoder.decode(raw, NOW)
    assert (len(events), events.next_offset) == (6, 102)
    events = decoder.decode(raw.rows(2, 5), NOW)
    assert (len(events), events.next_offset) == (6, 104)
    events = decoder.decode(raw.rows(4, 5), NOW)
    assert (len(events), events.next_offset) == (3, 105)


# --- gzip


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_gzip_is_seen_by_its_first_bytes(codec: str) -> None:
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    value = gzip.compress(encode({"v": 1}))
    two = gzip.compress(encode({"v": 1})[:3]) + gzip.compress(encode({"v": 1})[3:])
    headers: list[Headers] = [(), (), [("content-encoding", b"gzip")], [("content-encoding", b"gzip")]]
    events = decode([value, two, value, encode({"v": 2})], ["/v"], headers, codec=codec)
    assert events.fields == {"/v": [1, 1, 1, 2]} and events.dead == []


def test_a_raw_value_is_inflated_where_a_header_says_so() -> None:
    value = gzip.compress(b"\0\0\x80?")
    headers: list[Headers] = [[("content-encoding", b"gzip")], (), [("content-encoding", b"gzip")]]
    events = decode([value, value, b"\0\0\x80?"], ["body"], headers, codec="raw")
    assert events.fields == {"body": [b"\0\0\x80?", value]}
    assert refused(events) == [(102, -1, "bad_encoding")]


def test_a_bomb_is_too_large_before_it_is_inflated() -> None:
    import tracemalloc

    bomb = gzip.compress(b"0" * (64 << 20))
    tracemalloc.start()
    events = decode([bomb, b'{"v": 1}'], ["/v"], max_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused(events) == [(100, -1, "too_large")] and events.fields == {"/v": [1]}
    assert peak < 2 << 20


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (gzip.compress(b"{}", mtime=0)[:-4], b""),
        (gzip.compress(b"{}", mtime=0)[:12] + b"\xff" * 9, b""),
        (gzip.compress(b"", mtime=0) * 20, b""),
        (b"\x1f\x8b", b""),
        (b"(\xb5/\xfd", b"zstd"),
    ],
)
def test_what_cannot_be_inflated_is_a_dead_letter(value: bytes, encoding: bytes) -> None:
    for name in ("plain", "v2", "cloudevents"):
        headers: list[Headers] = [[("content-encoding", encoding)] if encoding else ()]
        assert refused(decode([value], [], headers, format=name)) == [(100, -1, "bad_encoding")]


def test_every_format_may_be_compressed() -> None:
    body = {"inputs": [tensor("x", [2], [1, 2])]}
    assert decode([gzip.compress(encoded(body))], ["/inputs/x"], format="v2").fields == {"/inputs/x": [1, 2]}
    headers = [event_headers(type="org.kubeflow.serving.inference.request"), event_headers()]
    events = decode([gzip.compress(encoded(body))] * 2, ["/inputs/x"], headers, format="cloudevents")
    assert events.fields["/inputs/x"][:2] == [1, 2] and events.dead == []


# --- Confluent

USER = {
    "type": "record",
    "name": "Scored",
    "namespace": "com.example",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "v", "type": {"type": "array", "items": "float"}},
        {"name": "label", "type": ["null", {"type": "enum", "name": "Label", "symbols": ["CAT", "DOG"]}]},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "7.avsc").write_text(json.dumps(USER))
    (tmp_path / "8.json").write_text('{"type": "object"}')
    (tmp_path / "01020304-0506-0708-090a-0b0c0d0e0f10.avsc").write_text(json.dumps(USER))
    (tmp_path / "9.avsc").write_text("{")
    again = {"name": "next", "type": ["null", "com.example.Scored"]}
    (tmp_path / "10.avsc").write_text(json.dumps(USER | {"fields": [again]}))
    (tmp_path / "11.avsc").write_text('{"type": "array", "items": "null"}')
    return tmp_path


def avro(document: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(json.loads(json.dumps(USER))), dict(document))
    return stream.getvalue()


def framed(number: int, payload: bytes) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + payload


SCORED = {"id": "a1", "ts": NOW + 5, "v": [1.0, 2.5], "label": "DOG"}


def test_confluent_frames_hold_avro_and_json(folder: Path) -> None:
    guid: Headers = [("__value_schema_id", b"\x01" + bytes(range(1, 17)))]
    number: Headers = [("__value_schema_id", b"\0\0\0\0\x07")]
    events = decode(
        [framed(7, avro(SCORED)), framed(8, encoded(SCORED)), avro(SCORED), avro(SCORED)],
        ["/v"],
        [(), (), guid, number],
        format="confluent",
        schemas={"directory": str(folder)},
        id="/id",
        time="/ts",
        prediction="/label",
    )
    assert events.dead == []
    assert events.ids == ["a1"] * 4 and events.predictions == ["DOG"] * 4
    assert events.time_ms.tolist() == [NOW + 5] * 4 and events.fields == {"/v": [[1.0, 2.5]] * 4}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (framed(6, b""), "unknown_schema"),
        (framed(9, b""), "unknown_schema"),
        (framed(10, b"\x02" * 500_000), "unknown_schema"),
        (framed(11, b"\x80\x80\x80\x80\x80\x80\x20"), "unknown_schema"),
        (framed(7, avro(SCORED)[:-1]), "bad_avro"),
        (framed(7, avro(SCORED) + b"\0"), "bad_avro"),
        (framed(7, b""), "bad_avro"),
        (framed(7, b"\xff" * 40), "bad_avro"),
        (framed(8, b"{"), "bad_json"),
        (b"\0\0\0", "unexpected_format"),
        (b"{}", "unexpected_format"),
        (b"", "unexpected_format"),
    ],
)
def test_what_is_not_of_its_schema_is_a_dead_letter(folder: Path, value: bytes, reason: str) -> None:
    events = decode([value], ["/v"], format="confluent", schemas={"directory": str(folder)})
    assert refused(events) == [(100, -1, reason)]


# --- auto


V2 = {"inputs": [tensor("x", [2], [1, 2])]}


@pytest.mark.parametrize(
    ("value", "headers", "expected"),
    [
        ({"v": 1}, (), "plain"),
        ([1], (), "plain"),
        (V2, (), "v2"),
        (V2, [("content-type", b"application/json")], "v2"),
        ({"v": 1}, event_headers(), "cloudevents"),
        (structured({"v": 1}), [("content-type", b"application/cloudevents+json; charset=UTF-8")], "cloudevents"),
        (structured({"v": 1}), (), "cloudevents"),
        (framed(8, b'{"v": 1}'), (), "confluent"),
        (gzip.compress(encoded(V2), mtime=0), (), "v2"),
    ],
)
def test_the_first_record_shows_the_format_of_a_topic(
    folder: Path, value: Any, headers: Headers, expected: str
) -> None:
    pinned: list[tuple[str, str, int]] = []

    def pin(topic: str, name: str, now_ms: int) -> str:
        pinned.append((topic, name, now_ms))
        return name

    settings = RecordSettings.model_validate({"format": "auto", "schemas": {"directory": str(folder)}})
    decoder = Decoder(settings, ["/v"], pin=pin)
    garbage: list[bytes | None] = [None, b"{", b"\x1f\x8b"]
    raw = batch([*garbage, encoded(value), encoded(value)], [(), (), (), headers, headers])
    reasons = []
    while len(raw):
        events = decoder.decode(raw, NOW)
        reasons += [letter.reason for letter in events.dead]
        raw = raw.rows(int(np.searchsorted(raw.offsets, events.next_offset)), len(raw))
    assert pinned == [("orders", expected, NOW)]
    assert reasons == ["tombstone", "bad_json", "bad_encoding"]


def test_a_pinned_topic_takes_no_record_of_another_format(folder: Path) -> None:
    others: list[tuple[str, Any, Headers]] = [
        ("plain", {"v": 1}, ()),
        ("v2", V2, ()),
        ("cloudevents", {"v": 1}, event_headers()),
        ("confluent", framed(8, b'{"v": 1}'), ()),
    ]
    settings = RecordSettings.model_validate({"format": "auto", "schemas": {"directory": str(folder)}})
    for pinned, _, _ in others:
        decoder = Decoder(settings, ["/v"], pin=lambda topic, found, now_ms, name=pinned: name)  # type: ignore[misc]
        for shown, value, headers in others:
            events = decoder.decode(batch([encoded(value)], [headers]), NOW)
            if shown == pinned or (pinned, shown) == ("plain", "v2"):  # V2 is JSON as any other
                assert events.dead == []
            else:
                assert refused(events) == [(100, -1, "unexpected_format")], (pinned, shown)


def test_plain_records_stay_plain_by_default() -> None:
    events = decode([V2, structured({"v": 1})], ["/inputs/0/name", "/data/v"], [(), event_headers()])
    assert events.fields == {"/inputs/0/name": ["x", None], "/data/v": [None, 1]} and events.dead == []


@pytest.mark.parametrize("name", ["plain", "v2", "cloudevents", "auto"])
def test_any_cut_of_a_batch_decodes_to_the_same_rows(name: str) -> None:
    values = [None, b"{", encoded(V2), encoded(structured(V2)), encoded({"v": 3}), encoded(V2)]
    whole: list[Any] = []
    for cuts in ([6], [1, 5], [2, 2, 2], [1] * 6):
        decoder, found, raw = Decoder(RecordSettings(format=name), ["/inputs/x"]), [], batch(values)  # type: ignore[arg-type]
        for size in cuts:
            piece, raw = raw.rows(0, size), raw.rows(size, len(raw))
            while len(piece):
                events = decoder.decode(piece, NOW)
                found += list(zip(events.ids, events.fields["/inputs/x"], strict=True))
                found += refused(events)
                piece = piece.rows(int(np.searchsorted(piece.offsets, events.next_offset)), len(piece))
        whole.append(sorted(found, key=str))
    assert whole.count(whole[0]) == len(whole)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("shown", ["plain", "v2", "cloudevents", "confluent"])
def test_workers_that_come_and_go_find_the_same_format(folder: Path, codec: str, shown: str) -> None:
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    first: dict[str, tuple[bytes, Headers]] = {
        "plain": (encode({"v": 1}), ()),
        "v2": (encode(V2), ()),
        "cloudevents": (encode({"v": 1}), event_headers()),
        "confluent": (framed(8, b'{"v": 1}'), ()),
    }
    garbage = [None, b"\xc1{", b"\x1f\x8b", b""]
    values: list[bytes | None] = [*garbage, first[shown][0], *garbage, *(value for value, _ in first.values())]
    headers: list[Headers] = [(), (), (), (), first[shown][1], (), (), (), (), *(each for _, each in first.values())]
    settings = RecordSettings.model_validate({"format": "auto", "codec": codec, "schemas": {"directory": str(folder)}})
    found = []
    for cuts in ([], range(1, len(values)), [2, 6, 8]):
        stored: dict[str, str] = {}
        reasons: list[tuple[int, int, str]] = []
        for start, after in itertools.pairwise([0, *cuts, len(values)]):
            # Each piece has a worker of its own; what they share is the database.
            decoder = Decoder(settings, ["/v"], pin=lambda topic, name, now_ms: stored.setdefault(topic, name))  # noqa: B023
            piece = batch(values, headers).rows(start, after)
            while len(piece):
                events = decoder.decode(piece, NOW)
                reasons += refused(events)
                piece = piece.rows(int(np.searchsorted(piece.offsets, events.next_offset)), len(piece))
        assert stored == {"orders": shown}
        found.append(reasons)
    assert found[0] == found[1] == found[2]


def test_redacted_fields_are_not_in_the_letters_of_wrapped_records() -> None:
    body = {"inputs": [tensor("card", [2], ["4111", "4112"], "BYTES"), tensor("t", [2], [NOW, "x"], "INT64")]}
    settings: dict[str, Any] = {"keep": {"card": "/inputs/card"}, "redact": ["/inputs/card"], "time": "/inputs/t"}
    events = decode([body], [], format="v2", **settings)
    assert events.kept is not None and list(events.kept) == [{"card": "[redacted]"}]
    assert [letter.payload for letter in events.dead] == [b""]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"format": "v3"}, "v2"),
        ({"format": "confluent"}, "schemas"),
        ({"format": "v2", "codec": "msgpack"}, "codec"),
        ({"schemas": {"directory": "x"}}, "confluent"),
        ({"format": "auto", "schemas": {}}, "either url or directory"),
        ({"format": "auto", "schemas": {"url": "ftp://x"}}, "https://registry"),
        ({"format": "auto", "schemas": {"url": "http://a:b@x"}}, "username"),
        ({"format": "auto", "schemas": {"url": "http://x", "username": "a"}}, "password"),
        ({"format": "auto", "codec": "raw", "schemas": {"directory": "x"}}, "raw vector"),
        ({"max_rows": 0}, "greater"),
    ],
)
def test_settings_of_formats_that_cannot_work_are_refused_with_a_cure(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        RecordSettings.model_validate(settings)
