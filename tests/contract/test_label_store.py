"""What a Store promises of labels and of what fraud scores leave behind, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from connectors.database.rows import (
    Advance,
    Checkpoint,
    EntityRow,
    FloodRow,
    FoldResult,
    KeptRecord,
    LabelCounts,
    LabelledRecord,
    LabelsAdded,
    LabelSpan,
    NewLabel,
    RememberedRow,
    Retention,
)
from connectors.database.store import Store
from connectors.records import Gap, Partition
from detectors.errors import OwnershipLost
from tests.contract.clock import Clock

DAY_MS = 86_400_000
P0, P1, LABELS = Partition("orders", 0), Partition("orders", 1), Partition("labels", 0)


def known(offset: int = 5, **more: Any) -> LabelledRecord:
    values: dict[str, Any] = {
        "partition": P0,
        "offset": offset,
        "row": 0,
        "event_ms": 77,
        "entity": "card-1",
        "vector": b"\x00\x00\x80?",
        "signals": b"\x00\x00\x00@",
        "probability": 0.25,
        "p_value": 0.01,
        "scored_with": 3,
        "selected": "alert",
        "chance": 1.0,
    }
    return LabelledRecord(**(values | more))


def label(record_id: str, said: str = "fraud", **more: Any) -> NewLabel:
    values: dict[str, Any] = {"time_ms": 50, "source": "analyst", "confidence": 1.0, "by": "eve"}
    values["origin"] = f"{record_id}/{said}"
    return NewLabel(record_id=record_id, label=said, **(values | more))  # type: ignore[arg-type]


def numbers(store: Store) -> dict[str, int]:
    return {row.said.record_id: row.id for row in store.waiting_labels("m", limit=100)}


# --- labels ---


def test_a_label_whose_record_is_known_counts_at_once_and_comes_out_as_it_went_in(store: Store) -> None:
    sure = label("t1", known=known())
    unsure = label(
        "t2", "cleared", confidence=0.5, source="rule", known=known(9, probability=math.nan, chance=math.nan)
    )
    assert store.add_labels("m", [sure, unsure]) == LabelsAdded(2, 0, 2)
    first, second = store.labels("m")
    assert (first.version, first.said, first.received_ms) == (1, sure, 1_000)
    assert second.version == 2 and second.said.confidence == 0.5 and second.said.known is not None
    assert math.isnan(second.said.known.probability) and math.isnan(second.said.known.chance)
    assert store.label_version("m") == 2 and store.label_version("other") == 0
    assert store.labels("m", after=1) == [second] and store.labels("m", upto=1) == [first]
    assert store.labels("other") == []


def test_the_same_origin_again_is_no_new_label_whatever_it_says(store: Store) -> None:
    first = label("t1", known=known(), origin="a")
    assert store.add_labels("m", [first, dataclasses.replace(first, label="cleared")]) == LabelsAdded(1, 1, 1)
    assert store.add_labels("m", [first, label("t2", origin="b")]) == LabelsAdded(1, 1, 0)
    assert store.add_labels("other", [first]) == LabelsAdded(1, 0, 1)
    assert [row.said.label for row in store.all_labels("m")] == ["fraud", "fraud"]
    assert store.label_version("m") == 1


def test_a_label_that_waits_is_woken_where_the_same_one_brings_its_record(store: Store) -> None:
    store.add_labels("m", [label("t1", origin="a"), label("t2", origin="b")])
    again = [label("t1", origin="a", known=known(4)), label("t3", origin="c", known=known(5)), label("t2", origin="b")]
    assert store.add_labels("m", again) == LabelsAdded(1, 2, 1, woken=1)
    assert [(row.version, row.said.record_id) for row in store.labels("m")] == [(1, "t3"), (2, "t1")]
    assert store.add_labels("m", again) == LabelsAdded(0, 3, 0) and store.label_version("m") == 2


def test_a_label_waits_until_its_record_is_known_and_counts_from_then_on(store: Store) -> None:
    store.add_labels("m", [label("t1"), label("t2"), label("t3", known=known(1))])
    assert store.label_version("m") == 1
    waiting = numbers(store)
    assert list(waiting) == ["t1", "t2"]
    assert store.match_labels("m", {waiting["t2"]: known(2), waiting["t1"]: known(1)}) == 2
    assert [(row.version, row.said.record_id) for row in store.labels("m")] == [(1, "t3"), (2, "t1"), (3, "t2")]
    assert store.labels("m", after=2)[0].said.known == known(2)
    assert numbers(store) == {}
    # What counts already is left as it is.
    assert store.match_labels("m", {waiting["t2"]: known(8)}) == 0
    assert store.match_labels("other", {waiting["t2"]: known(8)}) == 0
    assert store.labels("m", after=2)[0].said.known == known(2) and store.label_version("m") == 3


def test_waiting_labels_come_in_pages_and_no_older_than_asked_for(store: Store, clock: Clock) -> None:
    store.add_labels("m", [label(f"t{n}") for n in range(5)])
    clock.ms = 9_000
    store.add_labels("m", [label("late")])
    page = store.waiting_labels("m", limit=3)
    assert [row.said.record_id for row in page] == ["t0", "t1", "t2"]
    assert [row.said.record_id for row in store.waiting_labels("m", limit=9, after=page[-1].id)] == ["t3", "t4", "late"]
    assert [row.said.record_id for row in store.waiting_labels("m", limit=9, newer_than_ms=2_000)] == ["late"]


def test_several_processes_give_each_label_one_version_and_leave_no_hole(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(3)]
    stores[0].migrate()
    stores[0].add_labels("m", [label(f"w{n}") for n in range(30)])
    waiting = numbers(stores[0])
    failures: list[BaseException] = []

    def work(store: Store, mine: int) -> None:
        try:
            for n in range(10):
                # Each matches all, and adds what another one adds as well.
                store.match_labels("m", {waiting[f"w{at}"]: known(at) for at in range(3 * n, 3 * n + 3)})
                store.add_labels("m", [label(f"n{n}-{mine}", known=known(n)), label(f"both{n}", known=known(n))])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(store, mine)) for mine, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    rows = stores[0].labels("m")
    assert [row.version for row in rows] == list(range(1, 30 + 30 + 10 + 1))
    assert stores[0].label_version("m") == 70 and len({row.said.origin for row in rows}) == 70


def test_labels_of_a_topic_move_its_position_in_the_same_transaction_or_are_not_there(store: Store) -> None:
    assert store.label_positions("m") == {}
    store.add_labels("m", [label("t1")], positions={LABELS: (None, 4)})
    store.add_labels("m", [], positions={LABELS: (4, 9), P1: (None, 1)})
    assert store.label_positions("m") == {LABELS: 9, P1: 1}
    for expected in (4, None):
        with pytest.raises(OwnershipLost):
            store.add_labels("m", [label("t2", known=known())], positions={LABELS: (expected, 12)})
    assert store.label_positions("m") == {LABELS: 9, P1: 1} and store.label_version("m") == 0
    assert store.label_topic_ids("m", [LABELS, P1]) == {}
    store.add_labels("m", [], positions={LABELS: (9, 10)}, topic_ids={LABELS: "first"})
    assert store.label_topic_ids("m", [LABELS, P1]) == {LABELS: "first"}
    store.add_labels("m", [], positions={LABELS: (10, 3)}, topic_ids={LABELS: "anew"})
    assert store.label_topic_ids("m", [LABELS]) == {LABELS: "anew"} and store.label_topic_ids("m", [P1]) == {}
    assert [row.said.record_id for row in store.all_labels("m")] == ["t1"]


def test_labels_are_counted_by_what_they_say_and_what_becomes_of_them(store: Store, clock: Clock) -> None:
    store.add_labels("m", [label("gone")])
    clock.ms = 5_000
    store.add_labels("m", [label("t1", known=known()), label("t1", "cleared", source="chargeback", known=known())])
    store.add_labels("m", [label("t2", known=known()), label("t2", known=known(), origin="again"), label("t3")])
    by = {("analyst", "fraud"): 5, ("chargeback", "cleared"): 1}
    assert store.label_counts("m", remembered_since_ms=2_000) == LabelCounts(
        by=by,  # type: ignore[arg-type]
        version=4,
        waiting=2,
        unmatched=1,
        contradicting=1,
        superseded=2,
    )
    assert store.label_counts("other", remembered_since_ms=0) == LabelCounts({}, 0, 0, 0, 0, 0)


def test_a_list_of_labels_is_the_last_ones_or_those_of_a_record_or_those_that_wait(store: Store) -> None:
    store.add_labels("m", [label("t1"), label("t2", known=known()), label("t1", "cleared", known=known()), label("t4")])
    assert [row.said.record_id for row in store.all_labels("m", limit=2)] == ["t1", "t4"]
    assert [row.said.label for row in store.all_labels("m", record_id="t1")] == ["fraud", "cleared"]
    assert [row.said.record_id for row in store.all_labels("m", waiting=True)] == ["t1", "t4"]


def test_texts_that_a_database_refuses_are_made_acceptable_and_stay_keys(store: Store) -> None:
    odd = label("t\0\ud800", origin="o\0", by="\udfff", known=known(entity="c\0"))
    assert store.add_labels("m", [odd]) == LabelsAdded(1, 0, 1)
    assert store.add_labels("m", [odd]) == LabelsAdded(0, 1, 0)
    assert len(store.all_labels("m", record_id="t\0\ud800")) == 1


def test_more_labels_than_a_statement_takes_parameters_are_added_and_matched(store: Store) -> None:
    many = [label(f"t{n}") for n in range(12_000)]
    assert store.add_labels("m", many) == LabelsAdded(12_000, 0, 0)
    assert store.add_labels("m", many) == LabelsAdded(0, 12_000, 0)
    waiting = store.waiting_labels("m", limit=20_000)
    assert store.match_labels("m", {row.id: known() for row in waiting}) == 12_000
    assert [row.version for row in store.labels("m", after=11_998)] == [11_999, 12_000]
    assert [row.said.record_id for row in store.labels("m", upto=2)] == ["t0", "t1"]


def kept(offset: int, record_id: str, *, space: str = "fraud", **more: Any) -> KeptRecord:
    values: dict[str, Any] = {"time_ms": 1, "block": 0, "reason": "fraud", "score": 3.0, "p_value": 0.001}
    values |= {"reference": 1, "exemplar": -1, "prediction": None, "confidence": None, "segments": {}, "kept": {}}
    return KeptRecord(partition=P0, offset=offset, space=space, id=record_id, **(values | more))


def test_the_last_kept_record_of_an_id_is_found_in_its_space(store: Store) -> None:
    records = [
        kept(1, "t1", detail={"signals": [1.5]}, labels=4, vector=b"1234"),
        kept(2, "t1", space="input", reason="outlier"),
        kept(3, "t2"),
        kept(7, "t2", reason="review"),
    ]
    store.commit(Checkpoint("m", [Advance(P0, None, 10, 1, 10, 0, 0)], kept=records))
    found = store.find_kept("m", ["t1", "t2", "t3"], space="fraud")
    assert found == {"t1": records[0], "t2": records[3]}
    assert store.find_kept("other", ["t1"], space="fraud") == {}
    assert len(store.find_kept("m", [f"x{n}" for n in range(11_000)] + ["t1"], space="fraud")) == 1


# --- what fraud scores leave behind ---


def commit(store: Store, expected: int | None, to: int, **parts: Any) -> None:
    store.commit(Checkpoint("m", [Advance(P0, expected, to, to, 1, 0, 0)], **parts))


def test_label_spans_say_from_where_on_which_labels_were_in_force(store: Store) -> None:
    spans = [LabelSpan(P0, 0, 0, 1), LabelSpan(P1, 0, 0, 1), LabelSpan(P0, 10, 3, 1)]
    commit(store, None, 10, spans=spans[:2])
    commit(store, 10, 20, spans=spans[2:])
    assert store.label_spans("m") == [spans[0], spans[2], spans[1]]
    assert store.label_spans("m", P1) == [spans[1]]
    # A checkpoint that was refused may be written anew, by then with newer labels.
    commit(store, 20, 30, spans=[LabelSpan(P0, 10, 5, 2)])
    assert store.label_spans("m", P0)[1] == LabelSpan(P0, 10, 5, 2)


def test_spans_of_a_worker_that_lost_its_partition_are_not_written(store: Store) -> None:
    commit(store, None, 10)
    with pytest.raises(OwnershipLost):
        commit(store, None, 20, spans=[LabelSpan(P0, 0, 1, 1)], entities=[EntityRow(P0, "card", 1, 2, b"x")])
    assert store.label_spans("m") == [] and store.entity_states("m", P0) == []


def test_an_entity_has_one_row_in_a_partition_until_it_is_dropped(store: Store) -> None:
    low, high = -(2**63), 2**63 - 1
    commit(store, None, 10, entities=[EntityRow(P0, "card", high, 4, b"a"), EntityRow(P0, "card", low, 5, b"b")])
    commit(store, 10, 20, entities=[EntityRow(P0, "card", high, 14, b"c"), EntityRow(P1, "card", low, 3, b"d")])
    assert store.entity_states("m", P0) == [EntityRow(P0, "card", low, 5, b"b"), EntityRow(P0, "card", high, 14, b"c")]
    assert store.scattered_entities("m") == {"card": 1}
    commit(store, 20, 30, entities=[EntityRow(P0, "card", low, 25, b""), EntityRow(P0, "card", 9, 25, b"")])
    assert store.entity_states("m", P0) == [EntityRow(P0, "card", high, 14, b"c")]
    assert store.scattered_entities("m") == {}


def test_counts_of_floods_go_with_their_blocks(store: Store) -> None:
    rows = [FloodRow(P0, 1, 0, b"a"), FloodRow(P0, 2, 0, b"b"), FloodRow(P0, 2, 10, b"c")]
    commit(store, None, 10, floods=rows[:2])
    commit(store, 10, 20, floods=rows[2:])
    assert store.flood_counts("m", P0) == rows and store.flood_counts("m", P1) == []
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(2, [], [], [], [], []))
    assert store.flood_counts("m", P0) == rows[1:]


def remembered(first: int, size: int = 100, partition: Partition = P0) -> RememberedRow:
    return RememberedRow(partition, first, first, first + 9, 10, bytes(8), bytes(size - 8))


def numbers_of(store: Store, after: int = 0) -> Sequence[int]:
    return [number for number, _, _ in store.remembered_numbers("m", after=after)]


def test_remembered_records_come_newest_first(store: Store, clock: Clock) -> None:
    commit(store, None, 10, remembered=[remembered(0), remembered(0, partition=P1)])
    clock.ms = 2_000
    commit(store, 10, 20, remembered=[remembered(10)])
    found = list(store.remembered(numbers_of(store)))
    assert [(row.partition, row.first_offset, row.stored_ms) for row in found] == [
        (P0, 10, 2_000),
        (P1, 0, 1_000),
        (P0, 0, 1_000),
    ]
    assert found[0] == dataclasses.replace(remembered(10), stored_ms=2_000, id=found[0].id)
    assert numbers_of(store, after=found[1].id) == [found[0].id]
    assert sorted(store.remembered_ids(numbers_of(store))) == [(row.id, bytes(8)) for row in reversed(found)]
    assert list(store.remembered([999])) == [] and store.remembered_ids([999]) == []


def test_remembered_records_go_by_their_age_and_by_their_bytes(store: Store, clock: Clock) -> None:
    for n in range(5):
        clock.ms = n * DAY_MS
        commit(store, n * 10 or None, n * 10 + 10, remembered=[remembered(n * 10, 1_000)])
    everything = numbers_of(store)
    assert store.prune(4 * DAY_MS, Retention(remembered_days=2.5))["remembered"] == 2
    assert numbers_of(store) == everything[:3]
    assert store.prune(4 * DAY_MS, Retention(remembered_mb=0.0025))["remembered"] == 1
    assert numbers_of(store) == everything[:2]
    assert store.prune(4 * DAY_MS, Retention())["remembered"] == 0


def test_a_topic_that_was_made_anew_may_come_to_the_same_offsets_again(store: Store) -> None:
    parts: dict[str, Any] = {"spans": [LabelSpan(P0, 0, 1, 1)], "remembered": [remembered(0)]}
    parts["floods"] = [FloodRow(P0, 1, 0, b"a")]
    commit(store, None, 10, **parts)
    commit(store, 10, 0, gaps=[Gap(P0, 10, 0, "recreated", "made anew")])
    commit(store, 0, 10, **(parts | {"spans": [LabelSpan(P0, 0, 2, 1)]}))
    assert [span.from_offset >= 0 for span in store.label_spans("m")] == [False, True]
    assert [row.first_offset >= 0 for row in store.remembered(numbers_of(store))] == [True, False]
    assert len(store.flood_counts("m", P0)) == 2


def test_what_comes_with_the_news_of_a_topic_made_anew_is_of_the_old_one(store: Store) -> None:
    parts: dict[str, Any] = {"spans": [LabelSpan(P0, 0, 1, 1)], "remembered": [remembered(0)]}
    parts |= {"floods": [FloodRow(P0, 1, 0, b"a")], "entities": [EntityRow(P0, "entity/1", 7, 9, b"state")]}
    commit(store, None, 0, gaps=[Gap(P0, 10, 0, "recreated", "made anew")], **parts)
    assert store.entity_states("m", P0) == []
    commit(store, 0, 10, **parts)
    assert [span.from_offset >= 0 for span in store.label_spans("m")] == [False, True]
    assert [row.first_offset >= 0 for row in store.flood_counts("m", P0)] == [False, True]
    assert [row.entity for row in store.entity_states("m", P0)] == [7]
