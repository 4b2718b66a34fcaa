"""True answers: what documents say, and how they find what the model had answered."""

from __future__ import annotations

import dataclasses
import http.client
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from connectors.database.rows import Advance, Checkpoint, NewTruth
from connectors.database.store import Store
from connectors.prometheus import Metrics
from connectors.records import Partition
from monitor.answers import pack
from monitor.checks import FEW_LABELS, truths_finding
from monitor.joining import Took
from monitor.label_requests import TRUTHS, LabelRequests, PassedOnLabels
from monitor.labels import BadLabel
from monitor.settings import HttpSettings
from monitor.thinning import key_hashes
from monitor.truth_desk import TruthDesk
from monitor.truth_reader import TruthReader
from monitor.truths import read_truth
from monitor.web import Status, WebServer

P0 = Partition("orders", 0)
NOW = 1_700_000_000_000
DAY_MS = 86_400_000


# --- documents ---


def read(document: Any, **more: Any) -> NewTruth:
    return read_truth(document, NOW, origin="way", **more)


def test_a_document_needs_an_id_and_the_right_answer() -> None:
    said = read({"id": 17, "label": "cat", "more": [1]})
    assert (said.record_id, said.truth, said.time_ms, said.weight, said.origin) == ("17", "cat", NOW, 1.0, "way")
    assert said.answer is None and math.isnan(said.confidence) and said.event_ms is None
    assert read({"id": "a", "label": "cat"}, default_ms=5).time_ms == 5


def test_a_document_may_bring_the_models_answer_its_weight_and_its_times() -> None:
    said = read(
        {
            "id": "a",
            "label": "cat",
            "prediction": "dog",
            "confidence": "0.75",
            "chance": 0.05,
            "time": "2023-11-14T00:00:00Z",
            "event_time": 1_699_000_000_000,
            "origin": "case-1",
        }
    )
    assert (said.answer, said.confidence, said.event_ms, said.origin) == ("dog", 0.75, 1_699_000_000_000, "own:case-1")
    assert said.weight == pytest.approx(20.0) and said.time_ms == 1_699_920_000_000
    assert read({"id": "a", "label": "cat", "weight": "2.5"}).weight == 2.5
    # Of an answer that is not brought, no confidence is.
    assert math.isnan(read({"id": "a", "label": "cat", "confidence": 0.5}).confidence)


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (False, "false"), (3, "3"), (2.5, "2.5"), ("x" * 300, "x" * 256)]
)
def test_answers_are_in_the_words_in_which_the_models_own_are_decoded(value: Any, text: str) -> None:
    said = read({"id": "a", "label": value, "prediction": value})
    assert said.truth == said.answer == text


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "bad_json"),
        ({"label": "cat"}, "missing_id"),
        ({"id": [1], "label": "cat"}, "bad_id"),
        ({"id": "a"}, "bad_truth"),
        ({"id": "a", "label": ""}, "bad_truth"),
        ({"id": "a", "label": ["cat"]}, "bad_truth"),
        ({"id": "a", "label": math.nan}, "bad_truth"),
        ({"id": "a", "label": "cat", "prediction": {}}, "bad_prediction"),
        ({"id": "a", "label": "cat", "weight": 0}, "bad_weight"),
        ({"id": "a", "label": "cat", "weight": math.inf}, "bad_weight"),
        ({"id": "a", "label": "cat", "chance": 1.5}, "bad_weight"),
        ({"id": "a", "label": "cat", "chance": 0}, "bad_weight"),
        ({"id": "a", "label": "cat", "chance": 0.5, "weight": 2}, "bad_weight"),
        ({"id": "a", "label": "cat", "prediction": "x", "confidence": 1.01}, "bad_confidence"),
        ({"id": "a", "label": "cat", "time": "soon"}, "bad_time"),
        ({"id": "a", "label": "cat", "event_time": 12}, "bad_time"),
        ({"id": "a", "label": "cat", "origin": "x" * 201}, "bad_text"),
    ],
)
def test_what_is_no_true_answer_is_refused_with_its_reason(document: Any, reason: str) -> None:
    with pytest.raises(BadLabel) as caught:
        read(document)
    assert caught.value.reason == reason


def test_the_same_saying_with_a_time_is_known_again_whatever_way_it_comes() -> None:
    document = {"id": "a", "label": "cat", "time": NOW}
    first = read_truth(document, NOW, origin="one")
    assert first.origin == read_truth(document, NOW + 5, origin="two").origin
    for change in ({"label": "dog"}, {"time": NOW - 1}, {"weight": 2}, {"prediction": "cat"}):
        assert read_truth(document | change, NOW, origin="one").origin != first.origin


# --- the desk ---


class Clock:
    ms = NOW

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db", now_ms=clock) as made:
        made.migrate()
        yield made


@pytest.fixture
def new_desk(store: Store, clock: Clock) -> Callable[[], TruthDesk]:
    return lambda: TruthDesk("m", store, remembered_days=10.0, clock=clock)


class Stream:
    """Records of one partition, one checkpoint after the other; each is answered with its own id in capitals."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.at = 0

    def checkpoint(self, *ids: str, said: str = "") -> None:
        n = len(ids)
        row = pack(
            P0,
            self.at,
            hashes=key_hashes(ids),
            time_ms=np.arange(self.at, self.at + n),
            answers=[said or name.upper() for name in ids],
            confidence=np.full(n, 0.5, np.float32),
        )
        after = self.at + n
        self.store.commit(Checkpoint("m", [Advance(P0, self.at or None, after, after, n, 0, 0)], answers=[row]))
        self.at = after


@pytest.fixture
def stream(store: Store) -> Stream:
    return Stream(store)


def truth(record_id: str, said: str = "CAT", **more: Any) -> NewTruth:
    return NewTruth(record_id, said, 50, **({"weight": 1.0, "origin": f"{record_id}/{said}"} | more))


def joined(store: Store) -> list[tuple[str, str | None, int | None]]:
    return [(row.said.record_id, row.said.answer, row.said.event_ms) for row in store.truths("m")]


def test_a_truth_finds_what_the_model_answered_to_the_last_record_of_that_id(
    store: Store, stream: Stream, new_desk: Callable[[], TruthDesk]
) -> None:
    stream.checkpoint("a", "b", said="old")
    stream.checkpoint("a", "c")
    assert new_desk().take([truth("a"), truth("b"), truth("nobody")]) == Took(3, 0, 2)
    assert joined(store) == [("a", "A", 2), ("b", "old", 1)]
    assert store.truths("m")[0].said.confidence == 0.5


def test_a_truth_that_brings_the_answer_counts_at_once_with_the_time_of_its_record(
    store: Store, stream: Stream, new_desk: Callable[[], TruthDesk]
) -> None:
    stream.checkpoint("x", "a")
    brought = [truth("a", answer="own"), truth("gone", answer="own"), truth("b", answer="own", event_ms=7)]
    assert new_desk().take(brought) == Took(3, 0, 3)
    # Its answer is the brought one; its time that of the record, or, where nobody knows it, that of the truth.
    assert joined(store) == [("a", "own", 1), ("gone", "own", 50), ("b", "own", 7)]


def test_truths_that_come_before_their_records_wait_and_count_when_these_come(
    store: Store, stream: Stream, new_desk: Callable[[], TruthDesk]
) -> None:
    desk, other = new_desk(), new_desk()
    desk.take([truth(f"r{n}") for n in range(3_000)])
    assert desk.again() == 0 and desk.waiting == 3_000
    for start in range(0, 3_000, 500):
        stream.checkpoint(*(f"r{n}" for n in range(start, start + 500)))
    assert desk.again() == 3_000 and desk.waiting == 0 and other.again() == 0
    assert [row.version for row in store.truths("m")] == list(range(1, 3_001))
    assert all(answer == name.upper() for name, answer, _ in joined(store))


def test_a_truth_that_waited_longer_than_answers_are_remembered_waits_for_nothing(
    store: Store, stream: Stream, clock: Clock, new_desk: Callable[[], TruthDesk]
) -> None:
    desk = new_desk()
    desk.take([truth("a")])
    desk.again()
    clock.ms += 11 * DAY_MS
    desk.again()
    stream.checkpoint("a")
    assert desk.again() == 0 and new_desk().again() == 0
    assert store.truth_counts("m", remembered_since_ms=clock.ms - 10 * DAY_MS).unmatched == 1


def test_the_same_truth_again_is_known_and_a_correction_changes_nothing_that_has_counted(
    store: Store, stream: Stream, new_desk: Callable[[], TruthDesk]
) -> None:
    stream.checkpoint("a", "b")
    desk = new_desk()
    assert desk.take([truth("a", weight=4.0), truth("b")]) == Took(2, 0, 2)
    assert desk.take([truth("a", weight=4.0)]).known == 1
    assert desk.take([truth("a", "A", weight=4.0)]) == Took(1, 0, 1)
    with store.begin_fold("m") as fold:
        # What verdicts count: the first, in the order in which they came.
        assert [(row.said.record_id, row.said.truth) for row in fold.truths(0, 9)] == [("a", "CAT"), ("b", "CAT")]
    assert store.truth_counts("m").corrected == 1
    assert [(row.said.truth, row.said.weight) for row in store.all_truths("m", record_id="a")] == [
        ("CAT", 4.0),
        ("A", 4.0),
    ]


def test_a_damaged_row_of_answers_is_passed_over_and_said(
    store: Store,
    stream: Stream,
    new_desk: Callable[[], TruthDesk],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream.checkpoint("a")
    stream.checkpoint("b")
    real = store.answers

    def damaged(numbers: Any) -> Any:
        for row in real(numbers):
            yield dataclasses.replace(row, blob=b"XXXX" + row.blob[4:]) if row.first_offset == 0 else row

    monkeypatch.setattr(store, "answers", damaged)
    assert new_desk().take([truth("a"), truth("b")]) == Took(2, 0, 1)
    assert "DELETE FROM answers WHERE id = 1" in caplog.text


def test_the_doctor_asks_about_ids_where_most_true_answers_find_nothing(
    store: Store, stream: Stream, new_desk: Callable[[], TruthDesk]
) -> None:
    stream.checkpoint("a")
    desk = new_desk()
    desk.take([truth("a"), truth("b")])
    few = truths_finding(store, "m", 0)
    assert few.ok and few.detail == "2 true answers, of which 1 count and 1 wait"
    desk.take([truth(f"x{n}") for n in range(FEW_LABELS)])
    many = truths_finding(store, "m", NOW + 1)
    assert not many.ok and "longer than answers are remembered" in many.detail and "record.id" in many.detail


# --- requests ---


@pytest.fixture
def server(store: Store, new_desk: Callable[[], TruthDesk]) -> Iterator[WebServer]:
    settings = HttpSettings(token=SecretStr("s3cret"))
    requests = LabelRequests(settings, path=TRUTHS, needs="a prediction")
    reader = TruthReader("m", new_desk(), store, source=None, metrics=Metrics(), compares=True, remembered_days=1.0)
    requests.open({"m": reader})
    made = WebServer(Status(), Metrics(), port=0, truths=requests)
    made.start()
    passing = WebServer(Status(), Metrics(), port=0, truths=PassedOnLabels(settings, lambda: [made.port], path=TRUTHS))
    passing.start()
    yield passing
    passing.stop()
    made.stop()


def post(server: WebServer, path: str, body: str, *, token: str = "s3cret") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", path, body=body, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_truths_are_posted_as_labels_are_all_of_a_body_or_none(server: WebServer, store: Store, stream: Stream) -> None:
    stream.checkpoint("a", "b")
    assert post(server, "/truths?model=m", '{"id": "a", "label": "A"}', token="wrong")[0] == 401
    code, said = post(server, "/truths?model=m", '{"id": "a", "label": "A"}\n{"id": "b", "label": []}')
    assert (code, said["reason"], said["row"], said["taken"]) == (400, "bad_truth", 2, 0)
    code, said = post(server, "/truths?model=m", '{"id": "a", "label": "cat"')
    assert code == 400 and '"label": "cat"' in said["hint"]
    code, said = post(server, "/truths", '[{"id": "a", "label": "A"}, {"id": "late", "label": 3}]')
    assert (code, said) == (200, {"new": 2, "repeated": 0, "matched": 1, "waiting": 1})
    code, said = post(server, "/truths?model=other", "{}")
    assert code == 404 and "/truths?model=NAME" in said["hint"]
    assert joined(store) == [("a", "A", 0)]
