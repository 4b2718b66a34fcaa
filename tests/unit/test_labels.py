"""Documents of labels: what they say, in whose words, and what is wrong with those that say nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from monitor.labels import BadLabel, documents, read_label

NOW_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z


def said(**document: Any) -> Any:
    return read_label({"id": "t1", "label": "fraud"} | document, NOW_MS, origin="labels/0/7")


def test_two_words_are_enough() -> None:
    label = said().label
    assert (label.record_id, label.label, label.time_ms, label.source) == ("t1", "fraud", NOW_MS, "analyst")
    assert (label.confidence, label.by, label.origin, label.known) == (1.0, "", "labels/0/7", None)


def test_everything_that_a_document_may_say() -> None:
    found = said(
        time="2026-01-30T12:00:00+01:00",
        source="chargeback",
        confidence=0.25,
        by="eve",
        origin="case-9",
        record={"amount": 3},
        more="is passed over",
    )
    assert found.record == {"amount": 3}
    label = found.label
    assert (label.time_ms, label.source, label.confidence) == (NOW_MS - 25 * 3_600_000, "chargeback", 0.25)
    assert (label.by, label.origin) == ("eve", "own:case-9")


@pytest.mark.parametrize("word", ["fraud", "Fraud", True, 1, "1", " TRUE ", "confirmed fraud", "true-positive", "yes"])
def test_words_for_fraud(word: Any) -> None:
    assert said(label=word).label.label == "fraud"


@pytest.mark.parametrize("word", ["cleared", "legit", "Genuine", False, 0, "0", "false", "false positive", "not-fraud"])
def test_words_for_cleared(word: Any) -> None:
    assert said(label=word).label.label == "cleared"


def test_numbers_and_blanks_as_a_table_has_them() -> None:
    label = said(id=4711, time=str(NOW_MS - 5), confidence="0.5", source="", by="", origin="", record="").label
    assert (label.record_id, label.time_ms, label.confidence, label.source) == ("4711", NOW_MS - 5, 0.5, "analyst")
    assert said(time="").label.origin == "labels/0/7"


def test_the_same_saying_with_a_time_has_one_origin_by_whatever_way_it_comes() -> None:
    first = said(time=NOW_MS - 5).label
    again = read_label({"label": True, "id": "t1", "time": NOW_MS - 5}, NOW_MS + 9, origin="elsewhere").label
    assert first.origin == again.origin != "labels/0/7"
    others = [{"label": "cleared"}, {"time": NOW_MS - 6}, {"source": "rule"}, {"by": "eve"}, {"confidence": 0.5}]
    origins = {said(**({"time": NOW_MS - 5} | other)).label.origin for other in others}
    assert len(origins | {first.origin}) == len(others) + 1


@pytest.mark.parametrize(
    ("document", "reason", "words"),
    [
        ({"id": None}, "missing_id", "its id is missing"),
        ({"id": ""}, "missing_id", "its id is missing"),
        ({"id": 1.5}, "bad_id", "1.5"),
        ({"id": True}, "bad_id", "True"),
        ({"id": "x" * 1025}, "bad_id", "at most 1024"),
        ({"label": None}, "unknown_label", "label is missing"),
        ({"label": "maybe"}, "unknown_label", "'maybe'; expected fraud or cleared"),
        ({"label": 2}, "unknown_label", "2"),
        ({"label": 1.5}, "unknown_label", "1.5"),
        ({"label": ["fraud"]}, "unknown_label", "a list"),
        ({"time": "yesterday"}, "bad_time", "'yesterday'; expected RFC 3339"),
        ({"time": NOW_MS // 1000}, "bad_time", "looks like seconds"),
        ({"time": str(NOW_MS // 1000)}, "bad_time", "looks like seconds"),
        ({"time": NOW_MS + 2 * 86_400_000}, "bad_time", "ahead"),
        ({"time": "9" * 400}, "bad_time", "expected"),
        ({"time": 1e300}, "bad_time", "expected"),
        ({"time": True}, "bad_time", "True"),
        ({"time": {}}, "bad_time", "an object"),
        ({"source": "police"}, "unknown_source", "expected one of analyst, chargeback, rule"),
        ({"source": ["rule"]}, "unknown_source", "a list"),
        ({"confidence": 0}, "bad_confidence", "above 0"),
        ({"confidence": 1.01}, "bad_confidence", "1.01"),
        ({"confidence": "nan"}, "bad_confidence", "'nan'"),
        ({"confidence": "high"}, "bad_confidence", "'high'"),
        ({"confidence": 10**400}, "bad_confidence", "expected a number"),
        ({"by": "x" * 201}, "bad_text", "200 characters"),
        ({"origin": {}}, "bad_text", "origin"),
    ],
)
def test_what_is_no_label_is_refused_with_what_was_expected(document: Any, reason: str, words: str) -> None:
    with pytest.raises(BadLabel, match=re.escape(words)) as caught:
        said(**document)
    assert caught.value.reason == reason
    assert len(caught.value.message) < 250


@pytest.mark.parametrize("document", [None, 3, "fraud", [], [1]])
def test_what_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(BadLabel, match="A label is an object"):
        read_label(document, NOW_MS, origin="")


def test_a_body_holds_one_document_a_list_of_them_or_one_in_each_line() -> None:
    one, two = {"id": "a"}, {"id": "b"}
    assert list(documents(json.dumps(one).encode())) == [one]
    assert list(documents(json.dumps([one, two]).encode())) == [one, two]
    assert list(documents(f"{json.dumps(one)}\n\n{json.dumps(two)}\r\n".encode())) == [one, two]
    assert list(documents(b"[]")) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Not JSON"),
        (b"{", "Not JSON"),
        (b"\xff", "Not JSON"),
        (b'{"id": 1}\nnonsense\n', "Line 2: Not JSON"),
        (b"[" * 100_000, "Not JSON"),
    ],
)
def test_a_body_that_holds_something_else_is_refused_with_the_line(body: bytes, words: str) -> None:
    with pytest.raises(BadLabel, match=words) as caught:
        list(documents(body))
    assert caught.value.reason == "bad_json" and caught.value.hint


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "1900-01-01", "1970-01-01T00:00:00Z", 10_000_000_000])
def test_a_date_that_stands_for_none_is_no_time(time: str | int) -> None:
    with pytest.raises(BadLabel, match="before 1980") as caught:
        read_label({"id": "t1", "label": "fraud", "time": time}, NOW_MS, origin="o")
    assert caught.value.reason == "bad_time"


def test_a_source_may_be_in_capitals() -> None:
    assert (
        read_label({"id": "t1", "label": "fraud", "source": " Chargeback"}, NOW_MS, origin="o").label.source
        == "chargeback"
    )
