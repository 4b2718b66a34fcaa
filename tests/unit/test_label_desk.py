"""Labels find their records: kept ones, remembered ones, and those that come later than their label."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import (
    Advance,
    Checkpoint,
    FoldResult,
    FraudHit,
    KeptRecord,
    LabelledRecord,
    LabelRow,
    NewLabel,
)
from connectors.database.store import Store
from connectors.records import Partition
from monitor.joining import Took
from monitor.label_desk import LabelDesk
from monitor.labels import SaidLabel
from monitor.remembered import pack

P0 = Partition("orders", 0)
DAY_MS = 86_400_000


class Clock:
    ms = 10_000_000_000

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
def new_desk(store: Store, clock: Clock) -> Callable[[], LabelDesk]:
    return lambda: LabelDesk("m", store, review=0.01, remembered_days=10.0, clock=clock)


class Stream:
    """Records of one partition, one checkpoint after the other."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.at = 0

    def checkpoint(self, *ids: str, kept: list[KeptRecord] | None = None, remember: bool = True) -> None:
        offsets = np.arange(self.at, self.at + len(ids))
        row = pack(
            P0,
            self.at,
            offsets=offsets,
            rows=np.zeros(len(ids), np.int64),
            time_ms=offsets,
            ids=ids,
            entities=None,
            probability=np.full(len(ids), 0.5, np.float32),
            p_value=np.full(len(ids), 0.25),
            vectors=np.repeat(offsets[:, None], 3, axis=1).astype(np.float32),
            signals=np.ones((len(ids), 2), np.float32),
            version=0,
        )
        after = self.at + len(ids)
        self.store.commit(
            Checkpoint(
                "m",
                [Advance(P0, self.at or None, after, after, len(ids), 0, 0)],
                kept=kept or [],
                remembered=[row] if remember else [],
            )
        )
        self.at = after


@pytest.fixture
def stream(store: Store) -> Stream:
    return Stream(store)


def label(record_id: str, said: str = "fraud", *, record: Any = None, **more: Any) -> SaidLabel:
    values: dict[str, Any] = {"time_ms": 50, "source": "analyst", "confidence": 1.0, "by": ""}
    values["origin"] = f"{record_id}/{said}"
    return SaidLabel(NewLabel(record_id=record_id, label=said, **(values | more)), record)  # type: ignore[arg-type]


def kept(offset: int, record_id: str, **more: Any) -> KeptRecord:
    values: dict[str, Any] = {"time_ms": 1, "block": 0, "reason": "fraud", "score": 3.0, "p_value": 0.001}
    values |= {"reference": 1, "exemplar": -1, "prediction": None, "confidence": None, "segments": {}, "kept": {}}
    values |= {"vector": np.full(3, 9, "<f4").tobytes(), "labels": 4}
    values["detail"] = {"signals": {"outlier": 1.5, "amount": None}, "probability": 0.75, "entity": "ab"}
    return KeptRecord(partition=P0, offset=offset, space="fraud", id=record_id, **(values | more))


def by_id(store: Store) -> dict[str, LabelRow]:
    return {row.said.record_id: row for row in store.labels("m")}


def test_a_label_finds_the_last_record_with_its_id(
    store: Store, stream: Stream, new_desk: Callable[[], LabelDesk]
) -> None:
    stream.checkpoint("a", "b", "c")
    stream.checkpoint("b", "d")
    assert new_desk().take([label("b"), label("d"), label("nobody")]) == Took(3, 0, 2)
    found = by_id(store)
    assert {name: row.said.known.offset for name, row in found.items() if row.said.known} == {"b": 3, "d": 4}
    known = found["d"].said.known
    assert known is not None and np.frombuffer(known.vector, "<f4").tolist() == [4.0, 4.0, 4.0]
    assert known.selected == "" and math.isnan(known.chance) and known.probability == 0.5


def test_the_same_labels_again_change_nothing(store: Store, stream: Stream, new_desk: Callable[[], LabelDesk]) -> None:
    stream.checkpoint("a")
    desk = new_desk()
    labels = [label("a"), label("nobody")]
    assert desk.take(labels) == Took(2, 0, 1)
    assert desk.take(labels) == Took(0, 2, 0)
    assert store.label_version("m") == 1


def test_a_label_before_its_record_counts_when_the_record_comes(
    store: Store, stream: Stream, new_desk: Callable[[], LabelDesk]
) -> None:
    desk = new_desk()
    stream.checkpoint("a")
    assert desk.take([label("b"), label("b", "cleared"), label("c")]) == Took(3, 0, 0)
    assert desk.again() == 0 and desk.waiting == 3
    stream.checkpoint("x", "b")
    assert desk.again() == 2 and desk.waiting == 1
    assert [row.said.label for row in store.labels("m")] == ["fraud", "cleared"]
    assert desk.again() == 0
    stream.checkpoint("c")
    assert desk.again() == 1 and desk.waiting == 0 and store.label_version("m") == 3


def test_labels_that_waited_before_a_start_count_after_it(
    store: Store, stream: Stream, new_desk: Callable[[], LabelDesk]
) -> None:
    store.add_labels("m", [label("a").label, label("b").label])
    stream.checkpoint("a")
    desk = new_desk()
    assert desk.again() == 1 and desk.waiting == 1
    # Brought in by another process, whose look was over before the record's transaction was.
    store.add_labels("m", [label("y").label])
    stream.checkpoint("y")
    assert desk.again() == 1


def test_a_row_that_shows_later_than_its_younger_neighbours_is_looked_at(
    store: Store, stream: Stream, clock: Clock, new_desk: Callable[[], LabelDesk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_desk()
    desk.take([label("a"), label("b")])
    desk.again()
    stream.checkpoint("a")
    stream.checkpoint("b")
    everything = store.remembered_numbers("m")
    # As other processes see it while the first one's transaction is open.
    with monkeypatch.context() as open_transaction:
        open_transaction.setattr(store, "remembered_numbers", lambda model, after=0: everything[:1])
        assert desk.again() == 1
    assert desk.again() == 1 and store.label_version("m") == 2


def test_rows_that_were_looked_at_are_not_read_again(
    store: Store, stream: Stream, clock: Clock, new_desk: Callable[[], LabelDesk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_desk()
    desk.take([label("nobody")])
    stream.checkpoint("a")
    desk.again()
    read: list[int] = []
    real = store.remembered_ids
    monkeypatch.setattr(store, "remembered_ids", lambda numbers: read.extend(numbers) or real(numbers))
    for _ in range(3):
        stream.checkpoint("x")
        clock.ms += DAY_MS // 24
        desk.again()
        desk.again()
    assert len(read) == len(set(read)) == 3


def test_a_label_that_waited_too_long_waits_for_nothing(
    store: Store, stream: Stream, clock: Clock, new_desk: Callable[[], LabelDesk]
) -> None:
    desk = new_desk()
    desk.take([label("a")])
    desk.again()
    clock.ms += 11 * DAY_MS
    assert desk.again() == 0 and desk.waiting == 0
    stream.checkpoint("a")
    assert desk.again() == 0 and new_desk().again() == 0
    assert [row.said.record_id for row in store.all_labels("m", waiting=True)] == ["a"]


def test_why_a_person_looked_is_noted_with_the_chance_of_it(
    store: Store, stream: Stream, new_desk: Callable[[], LabelDesk]
) -> None:
    rows = [
        kept(0, "alerted"),
        kept(1, "drawn", reason="review"),
        kept(2, "candidate"),
        kept(3, "both", detail={"review": True}),
        kept(1, "earlier"),
    ]
    stream.checkpoint("alerted", "drawn", "candidate", "both", "earlier", "plain", kept=rows[:4])
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(1, [], [], [], [], [], hits=[FraudHit("fraud", P0, 0, 0, 3.0, 0.9, 4, {})]))
    new_desk().take([label(name) for name in ("alerted", "drawn", "candidate", "both", "earlier", "plain")])
    chosen = {
        name: (row.said.known.selected, row.said.known.chance) for name, row in by_id(store).items() if row.said.known
    }
    assert chosen["alerted"] == ("alert", 1.0)
    assert chosen["drawn"] == chosen["both"] == ("review", 0.01)
    for name in ("candidate", "earlier", "plain"):
        assert chosen[name][0] == "" and math.isnan(chosen[name][1])


def test_a_record_that_is_remembered_no_more_is_found_where_it_was_kept(
    store: Store, stream: Stream, new_desk: Callable[[], LabelDesk]
) -> None:
    rows = [kept(0, "a", reason="review"), kept(1, "b", vector=None), kept(2, "c", detail={})]
    stream.checkpoint("a", "b", "c", kept=rows, remember=False)
    assert new_desk().take([label("a"), label("b"), label("c")]) == Took(3, 0, 1)
    known = by_id(store)["a"].said.known
    assert known is not None
    assert (known.selected, known.chance, known.probability, known.p_value) == ("review", 0.01, 0.75, 0.001)
    assert (known.scored_with, known.entity, known.offset) == (4, "ab", 0)
    signals = np.frombuffer(known.signals, "<f4")
    assert signals[0] == 1.5 and math.isnan(signals[1])


def test_a_damaged_row_is_passed_over_and_said(
    store: Store,
    stream: Stream,
    new_desk: Callable[[], LabelDesk],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream.checkpoint("a")
    stream.checkpoint("b")
    real = store.remembered

    def damaged(numbers: Any) -> Any:
        for row in real(numbers):
            yield dataclasses.replace(row, blob=b"XXXX" + row.blob[4:]) if row.first_offset == 0 else row

    monkeypatch.setattr(store, "remembered", damaged)
    assert new_desk().take([label("a"), label("b")]) == Took(2, 0, 1)
    assert "DELETE FROM remembered WHERE id = 1" in caplog.text


def test_many_labels_find_their_records_in_portions(
    store: Store, stream: Stream, new_desk: Callable[[], LabelDesk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.joining.AT_A_TIME", 7)
    monkeypatch.setattr("monitor.joining._IDS", 3)
    names = [f"t{n}" for n in range(40)]
    for start in range(0, 40, 4):
        stream.checkpoint(*names[start : start + 4])
    told: list[tuple[int, int]] = []
    took = new_desk().take([label(name) for name in [*names, "x", "y"]], progress=lambda *now: told.append(now))
    assert took == Took(42, 0, 40) and took.waiting == 2 and told[-1] == (42, 42)
    assert [row.version for row in store.labels("m")] == list(range(1, 41))


def test_a_record_that_came_along_is_used_where_it_is_not_known(store: Store, stream: Stream, clock: Clock) -> None:
    asked: list[str] = []

    def describe(labels: Any) -> list[LabelledRecord | None]:
        asked.extend(said.label.record_id for said in labels)
        return [None if said.record == "broken" else known for said in labels]

    stream.checkpoint("a")
    known = LabelledRecord(P0, -1, 0, 5, "", b"1234", b"", math.nan, math.nan, 0, "", math.nan)
    desk = LabelDesk("m", store, review=0.01, remembered_days=10.0, describe=describe, clock=clock)
    labels = [label("a", record={}), label("x", record={}), label("y", record="broken"), label("z")]
    assert desk.take(labels) == Took(4, 0, 2)
    assert asked == ["x", "y"]
    found = {name: row.said.known.offset for name, row in by_id(store).items() if row.said.known}
    assert found == {"a": 0, "x": -1}
    assert desk.take(labels) == Took(0, 4, 0)
