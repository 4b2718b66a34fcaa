"""History in a lane beside live records, in the database: what each sees of the other, and whose an offset is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from connectors.database.lane import LaneStore, lane_name
from connectors.database.rows import Advance, BackfillRow, Checkpoint, FoldResult, IncidentRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import OwnershipLost

P = Partition("orders", 0)
Q = Partition("orders", 1)
LANE = lane_name("m", 1)


def advance(place: Partition, first: int, after: int, *, expected: int | None = None, topic_id: str = "t1") -> Advance:
    return Advance(
        partition=place,
        expected=expected,
        next_offset=after,
        max_time_ms=10 * after,
        records=after - first,
        dead=0,
        late=0,
        topic_id=topic_id,
        from_offset=first,
    )


def delta(block: int, place: Partition, first: int) -> SummaryDelta:
    return SummaryDelta("", "", block, 0, place, first, b"counts")


def job(*places: tuple[Partition, int, int], number: int = 1, lane: str = LANE) -> BackfillRow:
    spans = {place: (first, after, "t1") for place, first, after in places}
    return BackfillRow(f"m-{number}", "m", lane, "scoring", spans, {}, 0)


def incident(number: str, opened_ms: int, **changes: Any) -> IncidentRow:
    row = IncidentRow(
        id=number,
        model="m",
        kind="drift",
        space="input",
        segment="",
        severity="page",
        status="open",
        opened_ms=opened_ms,
        onset_ms=opened_ms,
        updated_ms=opened_ms,
        resolved_ms=None,
        revision=1,
        reference=1,
        title="t",
        text="t",
        detail={},
    )
    return replace(row, **changes)


def fold(store: Store, next_block: int, *incidents: IncidentRow) -> None:
    with store.begin_fold("m") as step:
        step.deltas(next_block)
        merged = [SummaryDelta("", "", block, 0, Partition("", -1), 0, b"counts") for block in range(next_block)]
        step.commit(FoldResult(next_block, merged[-1:], [], [], list(incidents), []))


def test_a_lane_claims_partitions_that_the_daemon_has_not_read(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P, 100, 150)]))
    store.plan_backfill(job((P, 0, 100), (Q, 0, 70)), [], shared=True)
    assert store.positions("m", [P, Q]) == {P: 150, Q: 70}, "a daemon reads on after the history"
    with pytest.raises(OwnershipLost):
        store.commit(Checkpoint("m", [advance(Q, 0, 10)]))
    assert store.totals("m").records == 50


def test_of_a_daemon_that_begins_first_a_lane_takes_nothing(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(Q, 0, 10)]))
    with pytest.raises(OwnershipLost, match="has begun to read partition 1"):
        store.plan_backfill(job((P, 0, 100), (Q, 0, 70)), [], shared=True)
    assert store.backfills("m") == []
    assert store.positions("m", [P]) == {}


def test_history_of_another_source_claims_nothing(store: Store) -> None:
    store.plan_backfill(job((P, 0, 100)), [])
    assert store.positions("m", [P]) == {}


def test_counting_begins_anew_where_a_topic_was_made_anew(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P, 100, 150)]))
    store.commit(Checkpoint("m", [advance(P, 150, 160, expected=150)]))
    assert [state.from_offset for state in store.partition_states("m")] == [100]
    # The checkpoint that takes note of it holds no record of the new topic.
    store.commit(Checkpoint("m", [advance(P, 0, 0, expected=160, topic_id="t2")]))
    store.commit(Checkpoint("m", [advance(P, 0, 5, expected=0, topic_id="t2")]))
    assert [(state.from_offset, state.next_offset) for state in store.partition_states("m")] == [(0, 5)]


def test_a_lane_whose_records_belong_to_blocks_closed_meanwhile_is_not_handed_over(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P, 100, 150)], summaries=[delta(5, P, 100)]))
    row = job((P, 0, 100))
    store.plan_backfill(row, [], shared=True)
    lane = LaneStore.beside(store, "m", LANE)
    lane.commit(Checkpoint("m", [advance(P, 0, 100)], summaries=[delta(5, P, 0)]))
    fold(store, 6)
    assert not store.hand_over(row, 0, joins=True, end_ms=0), "block 5 is to be gone over first"
    with lane.begin_fold("m") as step:
        assert step.first_pending_block() == 5
        assert [found.partition for found in step.closed_before(5, 6)] == [Partition("", -1)]
        step.deltas(6)
        step.commit(FoldResult(6, [delta(5, Partition("", -1), 0)], [], [], [], []))
    assert store.hand_over(row, 0, joins=True, end_ms=0)
    assert [found.status for found in store.backfills("m")] == ["done"]
    assert store.totals("m").records == 150


def test_incidents_of_unfinished_history_are_in_no_list_and_those_of_finished_history_are_the_models(
    store: Store,
) -> None:
    row = job((P, 0, 100))
    store.plan_backfill(row, [])
    lane = LaneStore.beside(store, "m", LANE)
    lane.commit(Checkpoint("m", [advance(P, 0, 100)], summaries=[delta(1, P, 0)]))
    fold(lane, 2, incident("a", 10))
    assert store.incidents() == store.incidents(model="m") == []
    assert store.hand_over(row, 0, joins=True, end_ms=90)
    assert [(found.id, found.model, found.status) for found in store.incidents()] == [("a", "m", "open")]


def test_history_that_was_cut_short_holds_what_it_read_and_no_more(store: Store) -> None:
    row = job((P, 0, 100), (Q, 0, 70))
    store.plan_backfill(row, [])
    store.hand_over(replace(row, spans={P: (0, 40, "t1")}), 7, joins=True, end_ms=0, status="cut short")
    (found,) = store.backfills("m")
    assert (found.status, found.finished_ms, found.spans) == ("cut short", 7, {P: (0, 40, "t1")})


def test_a_database_knows_itself(store: Store, new_store: Any) -> None:
    assert store.is_same(new_store())
