"""Nobody's bytes are trusted: 10,000 bad inputs over all formats become rows or dead letters, in bounded memory.

Every input is decoded and embedded as a worker does it. Inputs are drawn by hypothesis without a random seed, so that
each run sees the same.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import fastavro
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from connectors.records import Headers, Partition, RawBatch
from monitor.decode import DEAD_LETTER_REASONS, Decoder, RecordSettings
from monitor.embedders import Embedder
from monitor.embedders.category import CategorySettings
from monitor.embedders.number import NumberSettings
from monitor.embedders.vector import VectorSettings
from monitor.event import EventBatch

NOW = 1_772_438_400_000
ORDERS = Partition("orders", 3)
INPUTS = 10_000
BATCH = 20
MAX_BYTES = 64 * 1024
MEMORY = 30 << 20  # bytes: one gzip bomb takes more; a body of 4,096 rows takes 20 MiB, in Python's objects

SCHEMA = {
    "type": "record",
    "name": "Scored",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "v", "type": {"type": "array", "items": ["null", "double", "string"]}},
        {"name": "p", "type": ["null", "double"]},
        {"name": "l", "type": ["null", "string", {"type": "map", "values": "bytes"}]},
        {"name": "d", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
    ],
}

# --- what may come

NUMBERS = [
    0,
    1,
    -3,
    2.5,
    -0.0,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    10**400,
    -(2**63),
    2**64,
    NOW,
    NOW * 1000,
]
TEXTS = ["", "a", "b", "\0", "\ud800", "x" * 3_000, "2026-03-02T08:00:00Z", "é" * 300, "[", "AAAA", "true", "1.0"]
SIZES = [0, 1, 2, 3, 4, 5, -1, 4097, 2**31, 2**63, 10**30, 1.0, "2", None, True]
DATATYPES = ["FP32", "BYTES", "INT64", "BF16", "float", 3, None]
TYPES = ["org.kubeflow.serving.inference.request", "io.seldon.serving.inference.response", "a.b", "a.b", "", "\0"]
NAMES = ["id", "t", "v", "p", "l", "s", "inputs", "outputs", "instances", "predictions", "data", "name", "\0", "é"]
GOOD_RECORD = {"id": "a", "t": NOW, "v": [1, 2.5], "p": 0.5, "l": "b", "s": "c"}
VECTOR = b"\0\0\x80?\0\0\x80?"


def scalar(chance: Random) -> Any:
    return chance.choice([None, True, False, chance.choice(NUMBERS), chance.choice(NUMBERS), chance.choice(TEXTS)])


def junk(chance: Random, depth: int = 3) -> Any:
    """Any document."""
    kind = chance.random()
    if depth == 0 or kind < 0.5:
        return scalar(chance)
    if kind < 0.75:
        return [junk(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {chance.choice(NAMES): junk(chance, depth - 1) for _ in range(chance.randrange(4))}


def record(chance: Random) -> Any:
    """A good record, in which one thing is not as it should be, or two."""
    kind = chance.random()
    if kind < 0.1:
        return junk(chance)
    if kind < 0.3:
        return GOOD_RECORD | {"v": [chance.choice(NUMBERS) for _ in range(chance.randrange(4))]}
    return GOOD_RECORD | {chance.choice(list(GOOD_RECORD)): junk(chance) for _ in range(chance.randrange(3))}


def body(chance: Random) -> Any:
    """An inference request, good or nearly."""
    n = chance.randrange(1, 6)
    good: dict[str, Any] = {
        "id": "q",
        "inputs": [
            {"name": "v", "shape": [n, 2], "datatype": "FP32", "data": list(range(1, 2 * n + 1))},
            {"name": "t", "shape": [n], "datatype": "INT64", "data": [NOW] * n},
            {"name": "l", "shape": [n], "datatype": "BYTES", "data": ["a"] * n},
        ],
        "outputs": [{"name": "p", "shape": [n], "datatype": "FP32", "data": [0.5] * n}],
    }
    kind, tensor = chance.randrange(8), chance.choice(good["inputs"])
    if kind == 0:
        tensor["data"][chance.randrange(len(tensor["data"]))] = junk(chance, 1)
    elif kind == 1:
        tensor["shape"] = [chance.choice(SIZES) for _ in range(chance.randrange(4))]
    elif kind == 2:
        tensor["data"] = chance.choice([junk(chance), [[1, 2]] * n, [[1], [2, 3]], list(range(chance.randrange(9)))])
    elif kind == 3:
        tensor[chance.choice(["name", "datatype", "shape", "parameters"])] = junk(chance)
    elif kind == 4:
        return {"instances": [record(chance) for _ in range(n)], "predictions": [0.5] * chance.choice([n, 2])}
    elif kind == 5:
        good[chance.choice(["inputs", "outputs"])] = chance.choice([junk(chance), [junk(chance)]])
    return good


def cloud_event(chance: Random) -> Any:
    """A structured CloudEvent, good or nearly."""
    data = chance.choice([record, body])(chance)
    event = {"specversion": "1.0", "id": "e", "type": chance.choice(TYPES), "source": "s", "data": data}
    kind = chance.randrange(6)
    if kind == 0:
        event[chance.choice([*event, "time", "ext"])] = junk(chance)
    elif kind == 1:
        event["data_base64"] = chance.choice([base64.b64encode(python_json(data)).decode(), junk(chance)])
    elif kind == 2:
        event["time"] = chance.choice(["2026-03-02T08:00:00Z", *TEXTS])
    elif kind == 3:
        del event[chance.choice(list(event))]
    return event


def python_json(document: Any) -> bytes:
    """As Python writes it: with NaN, Infinity, lone surrogates and numbers of any length."""
    return json.dumps(document).encode()


def packed(document: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(document)
    except (OverflowError, UnicodeEncodeError, ValueError):
        return b"\xc1"


def deep(opening: bytes, closing: bytes, times: int) -> bytes:
    return opening * times + b"1" + closing * times


def avro(document: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, SCHEMA, document)
    return stream.getvalue()


GOOD_AVRO = avro({"id": "a", "t": NOW, "v": [1.0, 2.0], "p": 0.5, "l": "b", "d": Decimal("0.01")})
MONSTERS = [
    b"",
    deep(b"[", b"]", 5_000),
    deep(b'{"v":', b"}", 5_000),
    deep(b'{"inputs":[{"name":"v","shape":[1],"datatype":"FP32","data":', b"}]}", 800),
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff\xa1v",
    b"\x91" * 20_000,
    b"[" + b"0," * 30_000 + b"0]",
    b'{"v":[' + b"1e5," * 16_000 + b"1]}",
    b'{"inputs":[{"name":"v","shape":[4096,1],"datatype":"FP32","data":[' + b"1," * 4095 + b"1]}]}",
    b'{"inputs":[{"name":"v","shape":[5000],"datatype":"FP32","data":[' + b"1," * 4999 + b"1]}]}",
    b"9" * 60_000,
    b'{"p":' + b"9" * 60_000 + b"}",
    b'"' + b"x" * 70_000 + b'"',
    gzip.compress(b"0" * (32 << 20), 9),
    gzip.compress(gzip.compress(b'{"v": [1, 2]}')),
    gzip.compress(b"") * 3_000,
]


def any_bytes(chance: Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.choice(MONSTERS)
    if kind == 1:
        return chance.randbytes(chance.randrange(40))
    return chance.choice([python_json, packed])(chance.choice([junk, record, body, cloud_event])(chance))


def framed(chance: Random) -> bytes:
    """A Confluent frame, with what may be in it."""
    payload = chance.choice(
        [
            GOOD_AVRO,
            GOOD_AVRO,
            chance.randbytes(chance.randrange(60)),
            b"\x02" * 60_000,
            b"\x02a\x00" + b"\xfe\xff\xff\xff\xff\xff\xff\x7f" + chance.randbytes(8),
            python_json(record(chance)),
        ]
    )
    return b"\0" + chance.choice([1, 1, 2, 3, 4, 2**32 - 1]).to_bytes(4, "big") + payload


def damaged(chance: Random, value: bytes) -> bytes:
    """The value, mostly whole; or cut off, with a byte changed, or compressed and then damaged."""
    kind = chance.randrange(12)
    if kind == 0:
        return value[: chance.randrange(len(value) + 1)]
    if kind == 1 and value:
        at = chance.randrange(len(value))
        return value[:at] + chance.randbytes(chance.randrange(3)) + value[at + 1 :]
    if kind == 2:
        small = gzip.compress(value, 1)
        at = chance.randrange(len(small))
        return chance.choice([small, small[:at], small[:at] + b"\xff" + small[at + 1 :]])
    return value


EVENT: Headers = [("ce_specversion", b"1.0"), ("ce_id", b"e1"), ("ce_type", b"a.b")]
INFERENCE: Headers = [*EVENT[:2], ("ce_type", b"org.kubeflow.serving.inference.request")]
STRAY: Headers = [
    *((name, b"x" * 2_000) for name in ("ce_specversion", "ce_id", "ce_type", "ce_time", "h")),
    *((name, b"\xff\0") for name in ("ce_specversion", "ce_id", "ce_type", "ce_time", "h", "content-type")),
    ("ce_specversion", b"0.3"),
    ("ce_time", b"2026-03-02T08:00:00Z"),
    ("h", b"0.5"),
    ("content-type", b"application/cloudevents+json"),
    ("content-type", b"application/cloudevents+avro"),
    ("content-encoding", b"gzip"),
    ("content-encoding", b"br"),
    ("__value_schema_id", b"\0\0\0\0\x01"),
    ("__value_schema_id", b"\x01" + b"\x02" * 16),
    ("__value_schema_id", b"\0"),
]


def headers(chance: Random) -> Headers:
    usual = chance.choice([(), (), (), EVENT, EVENT, INFERENCE, [("h", b"0.5")], [("h", b"0.5")]])
    return [*usual, *chance.sample(STRAY, chance.randrange(3))] if chance.randrange(4) == 0 else usual


# --- what is done with it


def batch(found: Sequence[tuple[Any, ...]]) -> RawBatch:
    n = len(found)
    return RawBatch(
        partition=ORDERS,
        offsets=np.arange(100, 100 + n, dtype=np.int64),
        timestamps_ms=np.array([NOW if row % 3 else -1 for row in range(n)], dtype=np.int64),
        keys=[key for _, _, key in found],
        values=[value for value, _, _ in found],
        headers=[headers for _, headers, _ in found],
        next_offset=100 + n,
    )


MAPPED: dict[str, Any] = {
    "id": "/id",
    "time": "/t",
    "key": "/l",
    "prediction": "/l",
    "confidence": "/p",
    "segments": {"s": "/s"},
    "keep": ["/s", "/v", "header:h"],
    "redact": ["/s/id"],
}
V2: dict[str, Any] = {"confidence": "/inputs/p", "time": "/inputs/t", "keep": ["/inputs/v", "/parameters"]}
RAW: dict[str, Any] = {"codec": "raw", "id": "key", "segments": {"s": "header:h"}, "keep": ["header:h"]}

EVENTS = {"tombstone", "bad_event", "bad_rows", "bad_json", "unexpected_format", "bad_encoding", "too_large"}
FIELDS = {"tombstone", "missing_field", "bad_value", "bad_time", "bad_vector", "wrong_dimension", "bad_encoding"}


class Case(NamedTuple):
    """A format: settings; where the vector, the number and the text stand; what comes; reasons that must be found."""

    settings: dict[str, Any]
    where: tuple[str, str, str]
    near: Sequence[Callable[[Random], bytes]]
    expected: set[str]


FLAT, IN_BODY, IN_RAW = ("/v", "/p", "/l"), ("/inputs/v", "/inputs/t", "/inputs/l"), ("body", "header:h", "header:h")


def json_of(make: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    return lambda chance: python_json(make(chance))


def pack_of(make: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    return lambda chance: packed(make(chance))


def raw(chance: Random) -> bytes:
    return VECTOR[: chance.choice([8, 8, 8, 7, 4])]


FORMATS: dict[str, Case] = {
    "json": Case(MAPPED, FLAT, [json_of(record)], {*FIELDS, "bad_json", "not_finite", "too_large"}),
    "msgpack": Case(MAPPED | {"codec": "msgpack"}, FLAT, [pack_of(record)], {*FIELDS, "bad_msgpack", "too_large"}),
    "raw": Case(RAW, IN_RAW, [raw], {"tombstone", "bad_vector", "wrong_dimension", "bad_encoding", "missing_field"}),
    "cloudevents": Case(
        {"format": "cloudevents", "keep": ["/v", "header:ce_id"], "prediction": "/l"},
        FLAT,
        [json_of(cloud_event), json_of(record)],
        {*EVENTS, "bad_time", "bad_vector"},
    ),
    "inference in cloudevents": Case(
        {"format": "cloudevents", "keep": ["/inputs"]}, IN_BODY, [json_of(cloud_event), json_of(body)], EVENTS
    ),
    "msgpack in cloudevents": Case(
        {"format": "cloudevents", "codec": "msgpack"},
        FLAT,
        [pack_of(record), json_of(cloud_event)],
        {"bad_msgpack", "bad_event", "bad_vector"},
    ),
    "v2": Case(
        V2 | {"format": "v2"},
        IN_BODY,
        [json_of(body)],
        {"bad_rows", "too_many_rows", "bad_json", "unexpected_format", "bad_time", "missing_field", "bad_vector"},
    ),
    "confluent": Case(
        MAPPED | {"format": "confluent"},
        FLAT,
        [framed],
        {"unknown_schema", "bad_avro", "unexpected_format", "bad_json", "bad_value"},
    ),
    "auto": Case(
        {"format": "auto"},
        FLAT,
        [json_of(record), json_of(cloud_event), json_of(body), framed],
        {*EVENTS, "bad_vector", "unknown_schema"},
    ),
    "auto, raw": Case(RAW | {"format": "auto"}, IN_RAW, [raw], {"unexpected_format", "bad_vector", "bad_encoding"}),
}


def records(chance: Random, near: Sequence[Callable[[Random], bytes]]) -> list[tuple[Any, ...]]:
    """Value, headers and key of each record."""
    found: list[tuple[Any, ...]] = []
    for _ in range(BATCH):
        value = any_bytes(chance) if chance.randrange(4) == 0 else chance.choice(near)(chance)
        key = chance.choice([None, b"k", b"\xff"])
        found.append((None if chance.randrange(30) == 0 else damaged(chance, value), headers(chance), key))
    return found


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "1.avsc").write_text(json.dumps(SCHEMA))
    (folder / "2.json").write_text("{}")
    (folder / "3.avsc").write_text(json.dumps({"type": "array", "items": {"type": "array", "items": "null"}}))
    again = {"name": "again", "type": ["null", "Scored"]}
    (folder / "4.avsc").write_text(json.dumps(SCHEMA | {"fields": [again]}))
    return {"directory": str(folder)}


def embedders(where: tuple[str, str, str]) -> list[Embedder]:
    vector, number, text = where
    encoding = "bytes" if vector == "body" else "list"
    made: list[Embedder] = [
        VectorSettings.model_validate({"field": vector, "encoding": encoding, "dimension": 2}).build(),
        CategorySettings(field=text).build(),
    ]
    made[1].fit([["a", "b"] * 50])
    if not number.startswith("header:"):  # headers are text
        made.append(NumberSettings(field=number).build())
        made[2].fit([[0.0, 1.0, 2.0, 0.5] * 25])
    return made


def check(decoder: Decoder, made: Sequence[Embedder], found: Sequence[tuple[Any, ...]]) -> Counter[str]:
    """Decode and embed; every record is there, as rows or as a dead letter, and what is there can be stored."""
    raw, seen = batch(found), Counter[str]()
    while len(raw):
        events = decoder.decode(raw, NOW)
        offsets = {*events.offsets.tolist(), *(letter.offset for letter in events.dead)}
        assert sorted(offsets) == [offset for offset in raw.offsets.tolist() if offset < events.next_offset]
        assert len(set(zip(events.offsets.tolist(), events.rows.tolist(), strict=True))) == len(events)
        seen["records"] += len(offsets)
        problems: dict[int, tuple[str, str]] = {}
        for embedder in made:
            embedded = embedder.embed([events.fields[name] for name in embedder.fields])
            assert np.isfinite(embedded.vectors).all() and len(embedded.vectors) == len(events)
            for problem in embedded.problems:
                problems.setdefault(problem.row, (problem.reason, problem.detail))
        events, left = events.refused(problems)
        check_stored(events)
        seen["rows"] += len(left)
        seen.update(letter.reason for letter in events.dead)
        raw = raw.rows(int(np.searchsorted(raw.offsets, events.next_offset)), len(raw))
    return seen


def check_stored(events: EventBatch) -> None:
    assert events.places.tolist() == sorted(set(events.places.tolist()) - set(events.dead_places))
    assert events.dead_places == sorted(events.dead_places)
    assert ((events.time_ms >= 0) & (events.time_ms < 253_402_300_800_000)).all()
    texts = [*events.ids, *(text for column in events.segments.values() for text in column)]
    texts += [text for column in (events.predictions, events.labels) for text in column or () if text is not None]
    for letter in events.dead:
        assert letter.reason in DEAD_LETTER_REASONS and letter.row < 65_536
        assert len(letter.payload) <= 4096 and len(letter.detail) < 600
        texts += [letter.detail, letter.reason]
    for text in texts:
        assert type(text) is str and "\0" not in text
        text.encode()
    for kept in list(events.kept or ())[:5]:
        assert len(msgspec.json.encode(kept)) < 20_000


@pytest.mark.parametrize("name", FORMATS)
def test_no_input_stops_the_line_or_takes_memory(name: str, schemas: dict[str, str]) -> None:
    case = FORMATS[name]
    needs = {"schemas": schemas} if framed in case.near else {}
    settings = RecordSettings.model_validate({"max_bytes": MAX_BYTES, **case.settings, **needs})
    made = embedders(case.where)
    fields = [field for embedder in made for field in embedder.fields]
    examples = INPUTS // BATCH // len(FORMATS)
    seen, peak = Counter[str](), 0

    @hypothesis_settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(st.randoms(use_true_random=True))
    def run(chance: Random) -> None:
        nonlocal seen, peak
        found = records(chance, case.near)
        # A decoder of its own: what `auto` is pinned to must not come from other examples.
        decoder = Decoder(settings, fields)
        tracemalloc.start()
        try:
            seen += check(decoder, made, found)
            peak = max(peak, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    run()
    assert seen["records"] >= examples * BATCH
    assert seen["rows"] > 0 and case.expected <= seen.keys(), seen  # or else they were not bad in every way
    assert peak < MEMORY, f"{peak >> 20} MiB"
