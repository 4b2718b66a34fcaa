"""Records to columns: what is taken out, what is refused and why, and that the fast way equals the slow one."""

from __future__ import annotations

import doctest
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.records import Headers, Partition, RawBatch
from detectors.errors import InvalidSettings
from monitor import pointers
from monitor.decode import DEAD_LETTER_REASONS, NO_SEGMENT, REDACTED, Decoder, RecordSettings
from monitor.event import EventBatch

NOW = 1_772_438_400_000
DAY = 86_400_000

few = hypothesis_settings(max_examples=60, deadline=None)
moments = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1))


def batch(
    values: Sequence[bytes | None],
    *,
    times: Sequence[int] | None = None,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    first: int = 100,
) -> RawBatch:
    n = len(values)
    return RawBatch(
        partition=Partition("orders", 3),
        offsets=np.arange(first, first + 2 * n, 2, dtype=np.int64),
        timestamps_ms=np.array([NOW] * n if times is None else times, dtype=np.int64),
        keys=[None] * n if keys is None else keys,
        values=values,
        headers=[()] * n if headers is None else headers,
        next_offset=first + 2 * n,
    )


def decode(
    documents: Sequence[Any], fields: Sequence[str] = (), *, now_ms: int | None = None, **settings: Any
) -> EventBatch:
    values = [each if isinstance(each, bytes) or each is None else json.dumps(each).encode() for each in documents]
    return Decoder(RecordSettings.model_validate(settings), fields).decode(batch(values), now_ms)


def reasons(events: EventBatch) -> list[str]:
    return [letter.reason for letter in events.dead]


def test_every_column_comes_out_of_a_record() -> None:
    record = {
        "id": "a1",
        "ts": NOW + 5,
        "out": {"label": "cat", "p": 0.75},
        "truth": True,
        "model": {"version": 21},
        "country": "NO",
        "vector": [1.0, 2.5],
        "more": {"deep": {"er": 7}},
    }
    events = decode(
        [record],
        ["/vector", "/more/deep/er"],
        id="/id",
        time="/ts",
        prediction="/out/label",
        confidence="/out/p",
        label="/truth",
        version="/model/version",
        segments={"country": "/country"},
        keep={"why": "/more"},
    )
    assert events.ids == ["a1"]
    assert events.time_ms.tolist() == [NOW + 5]
    assert events.predictions == ["cat"]
    assert events.labels == ["true"] and events.versions == ["21"]
    assert events.confidence is not None and events.confidence.tolist() == [0.75]
    assert events.segments == {"country": ["NO"]}
    assert events.fields == {"/vector": [[1.0, 2.5]], "/more/deep/er": [7]}
    assert events.kept is not None and list(events.kept) == [{"why": {"deep": {"er": 7}}}]
    assert events.offsets.tolist() == [100] and events.dead == []


def test_without_a_mapping_the_position_is_the_id_and_the_brokers_time_the_time() -> None:
    events = decode([{}, {}])
    assert list(events.ids) == ["orders/3/100", "orders/3/102"]
    assert events.time_ms.tolist() == [NOW, NOW]
    assert events.predictions is None and events.labels is None and events.confidence is None and events.kept is None


def test_absent_optional_fields_are_none_nan_and_empty() -> None:
    events = decode(
        [{}, {"p": None}], ["/v"], prediction="/y", label="/t", confidence="/p", segments={"s": "/s"}, keep=["/k"]
    )
    assert events.predictions == [None, None] and events.labels == [None, None]
    assert events.confidence is not None and np.isnan(events.confidence).all()
    assert events.segments == {"s": [NO_SEGMENT, NO_SEGMENT]}
    assert events.fields == {"/v": [None, None]}
    assert events.kept is not None and events.kept[1] == {"/k": None}
    assert events.dead == []


def test_pointers_follow_rfc_6901() -> None:
    document = {"a/b": 1, "m~n": 2, "": 3, "arr": [10, [20, 30]], "x": {"": 4}, 'quo"te': 5, "0": 6, "é ": 7}
    where = ["/a~1b", "/m~0n", "/", "/arr/1/0", "/x/", '/quo"te', "/0", "/é ", "/arr/-", "/arr/01", "/arr/9"]
    events = decode([document], where)
    assert [events.fields[name][0] for name in where] == [1, 2, 3, 20, 4, 5, 6, 7, None, None, None]


def test_a_pointer_below_another_sees_the_same_document() -> None:
    events = decode([{"a": {"b": {"c": 1}}}], ["/a", "/a/b/c", "/a/b"])
    assert events.fields == {"/a": [{"b": {"c": 1}}], "/a/b/c": [1], "/a/b": [{"c": 1}]}


@pytest.mark.parametrize("parent", [None, 3, "text", [1], [], True])
def test_a_parent_that_is_no_object_means_the_field_is_absent(parent: Any) -> None:
    events = decode([{"a": parent, "i": 1}, {"a": {"b": 2}, "i": 2}], ["/a/b"], id="/i")
    assert events.fields["/a/b"] == [None, 2]
    assert events.ids == ["1", "2"] and events.dead == []


@pytest.mark.parametrize("document", [b"3", b"[1, 2]", b'"text"', b"null"])
def test_a_document_that_is_no_object_has_no_fields(document: bytes) -> None:
    events = decode([document], ["/v"])
    assert events.fields["/v"] == [None] and events.dead == []
    assert reasons(decode([document], ["/v"], id="/i")) == ["missing_field"]


def test_one_bad_record_spoils_no_other_and_the_dead_are_in_order() -> None:
    good = {"id": "x", "ts": NOW}
    documents = [good, b"{", None, {"ts": NOW}, good, b"", {"id": [1], "ts": NOW}, {"id": 4, "ts": "noon"}, good]
    events = decode(documents, id="/id", time="/ts")
    assert events.offsets.tolist() == [100, 108, 116]
    assert [(letter.offset, letter.reason) for letter in events.dead] == [
        (102, "bad_json"),
        (104, "tombstone"),
        (106, "missing_field"),
        (110, "bad_json"),
        (112, "bad_value"),
        (114, "bad_time"),
    ]
    assert set(reasons(events)) <= set(DEAD_LETTER_REASONS)


def test_a_dead_letter_says_where_and_what_but_holds_only_the_beginning() -> None:
    value = b'{"secret": "' + b"x" * 100
    letter = Decoder(RecordSettings(), [], payload_bytes=10).decode(batch([value]), None).dead[0]
    assert (letter.partition, letter.offset, letter.time_ms) == (Partition("orders", 3), 100, NOW)
    assert letter.payload == value[:10] and letter.size == len(value)
    assert "xxx" not in letter.detail


def test_values_longer_than_the_limit_are_too_large() -> None:
    assert reasons(decode([b'"' + b"x" * 98 + b'"', b'"' + b"x" * 99 + b'"'], max_bytes=100)) == ["too_large"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"{",
        b'{"a": 1} {}',
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b'{"a": NaN, "b": "\\ud800"}',
        b'{"a": NaN',
    ],
)
def test_what_is_not_json_is_bad_json(value: bytes) -> None:
    assert reasons(decode([value], ["/a"])) == ["bad_json"]


def test_nan_as_python_writes_it_is_harmless_where_nobody_looks() -> None:
    documents = [b'{"id": 1, "p": NaN, "v": [1, NaN]}', b'{"id": 2, "other": -Infinity, "p": 0.5, "v": [1.0]}']
    events = decode(documents, ["/v"], id="/id")
    assert events.dead == [] and events.ids == ["1", "2"]
    assert np.isnan(events.fields["/v"][0][1])
    assert reasons(decode(documents, id="/id", confidence="/p")) == ["bad_value"]
    assert reasons(decode([b'{"p": 1e999}'], confidence="/p")) == ["bad_value"]


@pytest.mark.parametrize("bad", [True, [1], {"a": 1}, 1.5])
def test_ids_are_text_or_whole_numbers(bad: Any) -> None:
    events = decode([{"id": bad}, {"id": 12}, {"id": "x"}], id="/id")
    assert events.ids == ["12", "x"] and reasons(events) == ["bad_value"]


def test_an_id_that_no_database_would_index_is_refused() -> None:
    assert reasons(decode([{"id": "x" * 1025}, {"id": "x" * 1024}], id="/id")) == ["bad_value"]
    assert reasons(decode([b'{"id": 1' + b"0" * 30 + b"}"], id="/id")) == ["bad_value"]


def test_labels_become_short_texts_without_nul() -> None:
    events = decode([{"y": v} for v in ("a\0b", 3, 0.5, False, "x" * 300, None)], prediction="/y")
    assert events.predictions == ["a\ufffdb", "3", "0.5", "false", "x" * 256, None]
    assert reasons(decode([{"y": []}, {"y": {}}], prediction="/y")) == ["bad_value", "bad_value"]


@pytest.mark.parametrize("bad", ["0.5", True, [0.5], 10**400])
def test_confidence_is_a_finite_number(bad: Any) -> None:
    events = decode([{"p": bad}, {"p": 1}, {"p": 0.25}], confidence="/p")
    assert reasons(events) == ["bad_value"]
    assert events.confidence is not None and events.confidence.tolist() == [1.0, 0.25]


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", 1_772_438_400, NOW),
        ("s", 1_772_438_400.123, NOW + 123),
        ("ms", NOW + 1, NOW + 1),
        ("ms", NOW + 1.9, NOW + 1),
        ("us", NOW * 1000 + 1999, NOW + 1),
        ("ns", NOW * 1_000_000 + 1_999_999, NOW + 1),
        ("rfc3339", "2026-03-02T08:00:00Z", NOW),
        ("rfc3339", "2026-03-02T09:00:00.0019+01:00", NOW + 1),
    ],
)
def test_times_become_whole_milliseconds(unit: str, value: Any, expected: int) -> None:
    events = decode([{"t": value}, {"t": value}], time={"path": "/t", "unit": unit})
    assert events.time_ms.tolist() == [expected, expected] and events.dead == []


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("ms", "1772438400000"),
        ("ms", True),
        ("ms", [1]),
        ("s", {}),
        ("rfc3339", NOW),
        ("rfc3339", "2026-03-02T08:00:00"),
        ("rfc3339", "yesterday"),
        ("rfc3339", "2026-13-02T08:00:00Z"),
    ],
)
def test_what_is_no_time_is_bad_time(unit: str, value: Any) -> None:
    good = {"rfc3339": "2026-03-02T08:00:00Z", "ms": NOW, "s": NOW / 1000}[unit]
    events = decode([{"t": value}, {"t": good}], time={"path": "/t", "unit": unit})
    assert reasons(events) == ["bad_time"] and events.time_ms.tolist() == [NOW]


def test_times_are_bounded_around_the_brokers_time() -> None:
    times = [NOW - 2 * DAY - 1, NOW - 2 * DAY, NOW + 60_000, NOW + 60_001, -1, 10**18, 10**30]
    events = decode([{"t": t} for t in times], time="/t", max_past_days=2, max_future_s=60)
    assert events.time_ms.tolist() == times[1:3]
    assert reasons(events) == ["time_past", "time_future", "time_past", "time_future", "time_future"]
    assert reasons(decode([{"t": -1}, {"t": 0}], time="/t", max_past_days=1e6)) == ["time_past"]


def test_without_a_brokers_time_the_clock_bounds_times_and_without_a_clock_only_the_calendar() -> None:
    decoder = Decoder(RecordSettings.model_validate({"time": "/t"}), [])
    values = [json.dumps({"t": t}).encode() for t in (NOW, NOW + DAY, 253_402_300_800_000)]
    raw = batch(values, times=[-1, -1, -1])
    assert reasons(decoder.decode(raw, NOW)) == ["time_future", "time_future"]
    assert reasons(decoder.decode(raw, None)) == ["time_future"]


def test_a_record_without_any_time_is_dead() -> None:
    events = Decoder(RecordSettings(), []).decode(batch([b"{}", b"{}"], times=[NOW, -1]), None)
    assert reasons(events) == ["no_time"] and events.time_ms.tolist() == [NOW]


@few
@given(
    st.lists(
        st.one_of(
            st.integers(-(2**70), 2**70),
            st.floats(),
            moments.map(lambda moment: moment.isoformat() + "Z"),
            st.none(),
            st.text(max_size=3),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["s", "ms", "us", "ns", "rfc3339"]),
)
def test_a_time_is_the_same_alone_and_beside_others(values: list[Any], unit: str) -> None:
    decoder = Decoder(RecordSettings.model_validate({"time": {"path": "/t", "unit": unit}}), [])
    raw = [msgspec.json.encode({"t": v}) for v in values]
    together = decoder.decode(batch(raw, times=[-1] * len(raw)), None)
    alone = [decoder.decode(batch([one], times=[-1]), None) for one in raw]
    assert together.time_ms.tolist() == [t for each in alone for t in each.time_ms.tolist()]
    assert reasons(together) == [reason for each in alone for reason in reasons(each)]


@few
@given(moments)
def test_rfc3339_times_are_exact(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    events = Decoder(RecordSettings.model_validate({"time": {"path": "/t", "unit": "rfc3339"}}), []).decode(
        batch([json.dumps({"t": aware.isoformat()}).encode()], times=[-1]), None
    )
    assert events.time_ms.tolist() == [(aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)]


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.sampled_from(["a", "b", "0", "", "x/y"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@few
@given(st.lists(json_values, max_size=5), st.sampled_from(["json", "msgpack"]))
def test_the_compiled_parser_agrees_with_a_plain_look_up(documents: list[Any], codec: str) -> None:
    where = ["/a", "/a/b", "/b/a/x~1y", "/a/0", "/b/0/a", "/x~1y/b"]
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    decoder = Decoder(RecordSettings.model_validate({"codec": codec}), where)
    events = decoder.decode(batch([encode(document) for document in documents]), None)
    for name in where:
        found = [pointers.resolve(document, pointers.parse_pointer(name)) for document in documents]
        assert events.fields[name] == [None if value is pointers.MISSING else value for value in found]


@few
@given(st.lists(st.binary(max_size=30) | st.none(), max_size=6), st.sampled_from(["json", "msgpack", "raw"]))
def test_no_bytes_stop_the_line_and_none_are_lost(values: list[bytes | None], codec: str) -> None:
    settings = {"codec": codec, "id": "key" if codec == "raw" else "/id", "segments": {"s": "header:s"}}
    decoder = Decoder(RecordSettings.model_validate(settings), ["body" if codec == "raw" else "/v"])
    headers: list[Headers] = [[("s", value or b"")] for value in values]
    raw = batch(values, keys=[value and value[:3] for value in values], headers=headers)
    events = decoder.decode(raw, None)
    assert sorted([*events.offsets.tolist(), *(letter.offset for letter in events.dead)]) == raw.offsets.tolist()
    columns = (events.ids, *events.segments.values(), *events.fields.values())
    assert {len(column) for column in columns} <= {len(events)}


def test_message_pack_has_its_own_types() -> None:
    record = {"id": 7, "t": datetime(2026, 3, 2, 8, tzinfo=UTC), "v": b"\x00\x01", 5: "not a name", "k": b"\xff"}
    broken = [b"\xc1", msgspec.msgpack.encode({"id": 1}) + b"\x00"]
    settings = RecordSettings.model_validate({"codec": "msgpack", "id": "/id", "time": "/t", "keep": ["/k"]})
    events = Decoder(settings, ["/v"]).decode(batch([msgspec.msgpack.encode(record), *broken]), None)
    assert events.time_ms.tolist() == [NOW] and events.fields["/v"] == [b"\x00\x01"]
    assert events.kept is not None and events.kept[0] == {"/k": "/w=="}
    assert reasons(events) == ["bad_msgpack", "bad_msgpack"]


def test_a_raw_body_is_the_vector_and_headers_hold_the_rest() -> None:
    settings = RecordSettings.model_validate(
        {
            "codec": "raw",
            "id": "key",
            "time": {"path": "header:t", "unit": "s"},
            "confidence": "header:p",
            "segments": {"c": "header:c"},
            "keep": ["header:c"],
        }
    )
    good: Headers = [("t", b"1"), ("t", b"1772438400.5"), ("p", b"0.5"), ("c", "Ø".encode())]
    raw = batch(
        [b"\x00" * 8] * 4,
        keys=[b"k1", b"k2", b"\xff", None],
        headers=[good, [("t", b"noon")], good, good],
    )
    events = Decoder(settings, ["body"]).decode(raw, None)
    assert events.ids == ["k1"] and events.time_ms.tolist() == [NOW + 500]
    assert events.confidence is not None and events.confidence.tolist() == [0.5]
    assert events.segments == {"c": ["Ø"]} and events.fields == {"body": [b"\x00" * 8]}
    assert events.kept is not None and events.kept[0] == {"header:c": "Ø"}
    assert reasons(events) == ["bad_time", "bad_value", "missing_field"]


def test_kept_fields_are_cut_and_fit_for_a_database() -> None:
    record = {"t": "x" * 20, "n": "a\0b", "l": list(range(100)), "o": {"z": "\0", "q": "\\u0000"}, "b": 2**70, "f": 0.5}
    events = decode([record], keep=list(map("/{}".format, record)), excerpt=30)
    assert events.kept is not None
    assert events.kept[0] == {
        "/t": "x" * 20,
        "/n": "a\ufffdb",
        "/l": "[0,1,2,3,4,5,6,7,8,9,10,11,12,…",
        "/o": {"z": "\ufffd", "q": "\\u0000"},
        "/b": 2**70,
        "/f": 0.5,
    }
    assert decode([record], keep={"t": "/t"}, excerpt=5).kept[0] == {"t": "xxxxx…"}  # type: ignore[index]


def test_redacted_fields_are_stored_nowhere() -> None:
    record = {"user": {"name": "Ada", "card": "4111"}, "list": [{"pin": "0000", "n": 1}], "text": "hello"}
    settings: dict[str, Any] = {
        "keep": ["/user", "/user/card", "/list", "/text", "/list/0/pin"],
        "redact": ["/user/card", "/list/0/pin", "/absent/field"],
    }
    events = decode([record], **settings)
    assert events.kept is not None and events.kept[0] == {
        "/user": {"name": "Ada", "card": REDACTED},
        "/user/card": REDACTED,
        "/list": [{"pin": REDACTED, "n": 1}],
        "/text": "hello",
        "/list/0/pin": REDACTED,
    }
    values = [json.dumps(record).encode(), json.dumps(record).encode()[:-1], b"x" * 500]
    decoder = Decoder(RecordSettings.model_validate({**settings, "id": "/id", "max_bytes": 400}), [])
    payloads = [letter.payload for letter in decoder.decode(batch(values), None).dead]
    assert b"Ada" in payloads[0] and b"4111" not in payloads[0] and b"0000" not in payloads[0]
    assert payloads[1:] == [b"", b""]


def test_kept_fields_stay_with_their_record_when_others_die() -> None:
    events = decode([{"id": 1, "k": "a"}, {"k": "b"}, b"{", {"id": 2, "k": "c"}], id="/id", keep={"k": "/k"})
    assert events.kept is not None
    assert [kept["k"] for kept in events.kept] == ["a", "c"]
    assert events.kept[-1] == {"k": "c"}
    assert events.kept[:1] == [{"k": "a"}]
    with pytest.raises(IndexError):
        events.kept[2]


def test_a_dead_letter_can_be_made_after_decoding() -> None:
    decoder = Decoder(RecordSettings(), ["/v"])
    raw = batch([b'{"v": [1]}', b"{", b'{"v": [2]}', b'{"v": [3]}'])
    events, left = decoder.decode(raw, None).refused({1: ("wrong_dimension", "1 number; expected 2.")})
    assert left.tolist() == [0, 2] and events.offsets.tolist() == [100, 106]
    found = [(letter.offset, letter.payload, letter.reason) for letter in events.dead]
    assert found == [(102, b"{", "bad_json"), (104, b'{"v": [2]}', "wrong_dimension")]


def test_an_empty_batch_has_empty_columns() -> None:
    mapped: dict[str, Any] = {"id": "/i", "time": "/t", "prediction": "/y", "confidence": "/p"}
    events = decode([], ["/v"], segments={"s": "/s"}, keep=["/k"], **mapped)
    assert len(events) == 0 and events.time_ms.dtype == np.int64 and list(events.kept or ()) == []
    assert events.ids == [] and events.fields == {"/v": []}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"id": "id"}, "/id"),
        ({"id": "a.b"}, "/a/b"),
        ({"id": "/a~2"}, "~0"),
        ({"id": "header:"}, "header"),
        ({"codec": "raw", "id": "/id"}, "header:NAME or key"),
        ({"codec": "raw", "segments": {"c": "/c"}}, "segments.c"),
        ({"id": "body"}, "the body is a vector"),
        ({"time": {"path": "/t", "unit": "h"}}, "unit"),
        ({"keep": ["x"]}, "/x"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_cure(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        RecordSettings.model_validate(settings)


@pytest.mark.parametrize(("codec", "field"), [("raw", "/v"), ("json", "body"), ("msgpack", ""), ("json", "v")])
def test_an_embedder_field_that_the_codec_does_not_have_is_refused(codec: str, field: str) -> None:
    with pytest.raises(InvalidSettings, match="expected"):
        Decoder(RecordSettings.model_validate({"codec": codec}), [field])


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(pointers)
    assert result.attempted >= 3 and result.failed == 0
