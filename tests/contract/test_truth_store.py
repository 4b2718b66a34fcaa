"""What a Store promises of true answers and of what models answered, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from connectors.database.lane import LaneStore, lane_name
from connectors.database.rows import (
    Advance,
    AnswersRow,
    Checkpoint,
    DeadLetterRow,
    FoldResult,
    KnownAnswer,
    NewTruth,
    Retention,
    Retried,
    SaidLate,
    TruthCounts,
    TruthsAdded,
)
from connectors.database.store import Store
from connectors.records import DeadLetter, Gap, Partition
from detectors.errors import OwnershipLost
from tests.contract.clock import Clock

DAY_MS = 86_400_000
P0, P1, TRUTHS = Partition("orders", 0), Partition("orders", 1), Partition("truths", 0)


def truth(record_id: str, said: str = "cat", **more: Any) -> NewTruth:
    values: dict[str, Any] = {"time_ms": 50, "weight": 1.0, "origin": f"{record_id}/{said}"}
    return NewTruth(record_id=record_id, truth=said, **(values | more))


def known(record_id: str, said: str = "cat", **more: Any) -> NewTruth:
    return truth(record_id, said, **({"answer": "cat", "confidence": 0.5, "event_ms": 77} | more))


def answers(first: int, *, ids: bytes = b"12345678", partition: Partition = P0, blob: bytes = b"b") -> AnswersRow:
    return AnswersRow(partition, first, 5, 6, len(ids) // 8, ids, blob)


def commit(store: Store, expected: int | None, to: int, *, partition: Partition = P0, **parts: Any) -> None:
    advance = Advance(partition, expected, to, 9, to - (expected or 0), 0, 0, from_offset=expected or 0)
    store.commit(Checkpoint("m", [advance], **parts))


def numbers(store: Store) -> dict[str, int]:
    return {row.said.record_id: row.id for row in store.waiting_truths("m", limit=100)}


def versions(store: Store, **more: Any) -> list[tuple[int, str]]:
    return [(row.version, row.said.record_id) for row in store.truths("m", **more)]


def test_a_truth_whose_answer_is_known_counts_at_once_and_comes_out_as_it_went_in(store: Store) -> None:
    sure = known("t1", weight=2.5)
    bare = truth("t2", answer="dog")
    assert store.add_truths("m", [sure, bare]) == TruthsAdded(2, 0, 2)
    first, second = store.truths("m")
    assert (first.version, first.said, first.received_ms) == (1, sure, 1_000)
    assert second.said.answer == "dog" and math.isnan(second.said.confidence) and second.said.event_ms is None
    assert (
        store.truth_counts("m").version == 2
        and store.truth_counts("other").version == 0
        and store.truths("other") == []
    )
    assert versions(store, after=1) == [(2, "t2")] and versions(store, upto=1) == [(1, "t1")]
    assert versions(store, most=1) == [(1, "t1")]


def test_the_same_origin_again_is_no_new_truth_and_wakes_one_that_waits(store: Store) -> None:
    store.add_truths("m", [truth("t1", origin="a"), truth("t2", origin="b")])
    again = [known("t1", origin="a"), known("t3", origin="c"), truth("t2", origin="b")]
    assert store.add_truths("m", again) == TruthsAdded(1, 2, 1, woken=1)
    assert versions(store) == [(1, "t3"), (2, "t1")]
    assert store.add_truths("m", again) == TruthsAdded(0, 3, 0) and store.truth_counts("m").version == 2
    assert store.add_truths("other", again[:1]) == TruthsAdded(1, 0, 1)


def test_a_truth_waits_until_the_answer_is_known_and_counts_from_then_on(store: Store) -> None:
    store.add_truths("m", [truth("t1"), truth("t2"), known("t3")])
    waiting = numbers(store)
    assert list(waiting) == ["t1", "t2"]
    found = KnownAnswer("dog", 0.25, 99)
    assert store.match_truths("m", {waiting["t2"]: found, waiting["t1"]: KnownAnswer("cat", math.nan, None)}) == 2
    assert versions(store) == [(1, "t3"), (2, "t1"), (3, "t2")]
    last = store.truths("m", after=2)[0].said
    assert (last.answer, last.confidence, last.event_ms) == ("dog", 0.25, 99)
    assert numbers(store) == {}
    assert store.match_truths("m", {waiting["t2"]: KnownAnswer("bird", 1.0, 1)}) == 0
    assert store.match_truths("other", {waiting["t2"]: found}) == 0
    assert store.truths("m", after=2)[0].said.answer == "dog" and store.truth_counts("m").version == 3


def test_several_processes_give_each_truth_one_version_and_leave_no_hole(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(3)]
    stores[0].migrate()
    stores[0].add_truths("m", [truth(f"w{n}") for n in range(12)])
    waiting = numbers(stores[0])
    failures: list[BaseException] = []

    def work(store: Store, mine: int) -> None:
        try:
            for n in range(4):
                # Each matches all, adds what another one adds as well, and has records that say truths themselves.
                found = {waiting[f"w{at}"]: KnownAnswer("cat", 0.5, at) for at in range(3 * n, 3 * n + 3)}
                store.match_truths("m", found)
                store.add_truths("m", [known(f"n{n}-{mine}"), known(f"both{n}")])
                said = [known(f"r{n}-{mine}")]
                commit(store, 5 * n if n else None, 5 * n + 5, partition=Partition("orders", mine), truths=said)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(store, mine)) for mine, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    rows = stores[0].truths("m")
    assert [row.version for row in rows] == list(range(1, 12 + 12 + 4 + 12 + 1))
    assert stores[0].truth_counts("m").version == 40 and len({row.said.origin for row in rows}) == 40


def test_truths_of_a_topic_move_its_position_in_the_same_transaction_or_are_not_there(store: Store) -> None:
    store.add_truths("m", [truth("t1")], positions={TRUTHS: (None, 4)}, topic_ids={TRUTHS: "one"})
    store.add_truths("m", [], positions={TRUTHS: (4, 9)}, topic_ids={TRUTHS: "one"})
    for expected in (4, None):
        with pytest.raises(OwnershipLost, match="true answers of m"):
            store.add_truths("m", [known("t2")], positions={TRUTHS: (expected, 12)})
    assert store.truth_positions("m") == {TRUTHS: 9} and store.truth_topic_ids("m", [TRUTHS, P1]) == {TRUTHS: "one"}
    assert [row.said.record_id for row in store.all_truths("m")] == ["t1"]
    # Labels of fraud out of the same topic stand elsewhere.
    assert store.label_positions("m") == {}


def test_a_fold_reads_truths_as_they_were_when_it_began(store: Store) -> None:
    store.add_truths("m", [known("t1"), known("t2")])
    with store.begin_fold("m") as fold:
        assert [row.version for row in fold.truths(0, 10)] == [1, 2]
        store.add_truths("m", [known("t3"), known("t1", "dog")])
        assert [row.version for row in fold.truths(1, 10)] == [2] and fold.truths(2, 10) == []
    with store.begin_fold("m") as fold:
        assert [row.version for row in fold.truths(1, 2)] == [2, 3]
        # The second truth of t1 is the fourth; its first one has counted.
        assert fold.truths(3, 2) == [] and [row.version for row in fold.truths(0, 9, upto=2)] == [1, 2]


def said_by(offset: int, *, event_ms: int = 77, partition: Partition = P0) -> NewTruth:
    """What the record at an offset says itself."""
    origin = f"record:{partition.topic}/{partition.number}/{offset}/0"
    return known(f"{partition.number}/{offset}", origin=origin, event_ms=event_ms)


def records_that_say(store: Store) -> list[str]:
    with store.begin_fold("m") as fold:
        return [row.said.record_id for row in fold.said(0, 1_000)]


def test_what_is_said_by_records_of_a_closed_block_counts_for_no_block(store: Store) -> None:
    rows = [said_by(2), said_by(9), said_by(10), said_by(11, event_ms=200), said_by(11, partition=P1)]
    commit(store, None, 12, truths=rows)
    late = [SaidLate(P0, 9, 0, 100)]
    with store.begin_fold("m") as fold:
        fold.leave_out([], late)
        assert [row.said.record_id for row in fold.said(0, 100)] == ["0/2", "1/11"]
        fold.commit(FoldResult(1, [], [], [], [], [], said_late=late))
    assert records_that_say(store) == ["0/2", "1/11", "0/11"], "and so it stays, for whoever looks later"
    assert len(versions(store)) == 5 and store.first_truths("m", 0, 99) == []
    assert store.add_truths("m", [known("posted")]).new == 1 and len(store.first_truths("m", 0, 99)) == 1


def test_truths_are_counted_by_what_becomes_of_them(store: Store, clock: Clock) -> None:
    store.add_truths("m", [truth("gone")])
    clock.ms = 5_000
    store.add_truths("m", [known("t1"), known("t1", "dog"), known("t2"), truth("t3")])
    assert store.truth_counts("m", remembered_since_ms=2_000) == TruthCounts(3, waiting=2, unmatched=1, corrected=1)
    assert store.truth_counts("other") == TruthCounts(0, 0, 0, 0)
    assert [row.said.record_id for row in store.all_truths("m", limit=2)] == ["t2", "t3"]
    assert [row.said.truth for row in store.all_truths("m", record_id="t1")] == ["cat", "dog"]
    assert [row.said.record_id for row in store.all_truths("m", waiting=True)] == ["gone", "t3"]
    page = store.waiting_truths("m", limit=1)
    assert [row.said.record_id for row in store.waiting_truths("m", limit=9, after=page[-1].id)] == ["t3"]
    assert [row.said.record_id for row in store.waiting_truths("m", limit=9, newer_than_ms=2_000)] == ["t3"]


def test_texts_that_a_database_refuses_are_made_acceptable_and_stay_keys(store: Store) -> None:
    odd = known("t\0\ud800", "x\0", origin="o\0", answer="\udfff")
    assert store.add_truths("m", [odd]) == TruthsAdded(1, 0, 1)
    assert store.add_truths("m", [odd]) == TruthsAdded(0, 1, 0)
    assert len(store.all_truths("m", record_id="t\0\ud800")) == 1


# --- with the records themselves ---


def test_answers_and_truths_are_written_with_the_offsets_of_their_records_or_not_at_all(store: Store) -> None:
    commit(
        store, None, 5, answers=[answers(0, ids=b"aaaaaaaabbbbbbbb"), answers(0, partition=P1)], truths=[known("t1")]
    )
    with pytest.raises(OwnershipLost):
        commit(store, 4, 9, answers=[answers(5)], truths=[known("t2")])
    (newest, stored_ms, records), (first, _, _) = store.answers_numbers("m")
    assert (stored_ms, records) == (1_000, 1) and store.answers_numbers("other") == []
    assert store.answers_numbers("m", after=first) == [(newest, 1_000, 1)]
    assert dict(store.answers_ids([newest, first, 99])) == {first: b"aaaaaaaabbbbbbbb", newest: b"12345678"}
    [row] = store.answers([first, 99])
    assert row == replace(answers(0, ids=b"aaaaaaaabbbbbbbb"), stored_ms=1_000, id=first)
    assert versions(store) == [(1, "t1")]


def test_what_records_of_history_say_belongs_to_the_model_itself(store: Store) -> None:
    lane = LaneStore.beside(store, "m", lane_name("m", 1))
    commit(store, None, 5, answers=[answers(0)], truths=[known("live")])
    commit(lane, None, 3, partition=P1, answers=[answers(0, partition=P1)], truths=[known("old")])
    assert versions(store) == [(1, "live"), (2, "old")] == versions(lane)
    assert len(store.answers_numbers("m")) == 2


def test_a_topic_that_was_made_anew_brings_other_truths_at_the_same_offsets(store: Store) -> None:
    def said(record_id: str, partition: Partition = P0) -> NewTruth:
        return known(record_id, origin=f"record:{partition.topic}/{partition.number}/3/0")

    other = Partition("order", 0)
    commit(store, None, 5, partition=other, truths=[said("other", other)])
    commit(store, None, 5, answers=[answers(0)], truths=[said("old")])
    # What the checkpoint with the gap brings itself is of the old topic, too.
    last = known("last", origin="record:orders/0/6/0")
    gap = Gap(P0, 8, 0, "recreated", "The topic was made anew.")
    commit(store, 5, 0, answers=[answers(5)], truths=[last], gaps=[gap])
    commit(store, 0, 8, answers=[answers(0)], truths=[said("new"), replace(last, record_id="new too")])
    assert [name for _, name in versions(store)] == ["other", "old", "last", "new", "new too"]
    assert len(store.answers_numbers("m")) == 3
    offsets = [row.first_offset for row in store.answers([n for n, _, _ in store.answers_numbers("m")])]
    assert offsets[0] == 0 and all(offset < 0 for offset in offsets[1:])
    # Blocks of theirs may be open: they count with them, and not as if other people had said so now.
    assert sorted(records_that_say(store)) == ["last", "new", "new too", "old", "other"]
    assert store.first_truths("m", 0, 99) == []
    # Its records, counted once more, say nothing new.
    assert store.add_truths("m", [said("other", other)]).new == 0


def test_what_dead_letters_turn_out_to_say_is_stored_when_they_are_read_again(store: Store) -> None:
    letter = DeadLetter(P0, 2, 5, "bad_json", "torn", b"", 0, block=0)
    commit(store, None, 5, dead_letters=[letter], answers=[answers(0)])
    [row] = store.dead_letter_rows("m", after=0, to=99, limit=9)
    retried = Retried(
        "m",
        mended=[DeadLetterRow(row.id, "m", row.letter)],
        changed=[],
        usable={(P0, 0): 1},
        summaries=[],
        kept=[],
        thinned_keys=[],
        answers=[answers(2, ids=b"mended!!")],
        truths=[known("t1")],
    )
    assert store.retried(retried) == 0
    assert versions(store) == [(1, "t1")]
    assert [ids for _, ids in store.answers_ids([n for n, _, _ in store.answers_numbers("m")])].count(b"mended!!") == 1
    assert store.retried(retried) is None and versions(store) == [(1, "t1")]


def test_what_dead_letters_of_closed_blocks_turn_out_to_say_counts_for_no_block(store: Store) -> None:
    commit(store, None, 5, dead_letters=[DeadLetter(P0, 2, 5, "bad_json", "torn", b"", 0, block=0)])
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(1, [], [], [], [], []))
    [row] = store.dead_letter_rows("m", after=0, to=99, limit=9)
    mended = [DeadLetterRow(row.id, "m", row.letter)]
    truths = [said_by(2, event_ms=99), said_by(3, event_ms=100)]
    result = Retried("m", mended, [], {(P0, 0): 1, (P0, 1): 1}, [], [], [], truths=truths, block_ms=100)
    assert store.retried(result) == 1
    assert records_that_say(store) == ["0/3"] and len(versions(store)) == 2


def test_answers_and_truths_go_when_they_are_old_or_too_many(store: Store, clock: Clock) -> None:
    def pruned(**keep: Any) -> Sequence[int]:
        gone = store.prune(4 * DAY_MS, Retention(**keep))
        return gone["answers"], gone["truths"]

    for n in range(4):
        clock.ms = n * DAY_MS
        row = answers(10 * n, blob=bytes(992))
        commit(store, 10 * n if n else None, 10 * n + 10, answers=[row], truths=[known(f"t{n}")])
    assert pruned(answers_days=3.5) == (1, 1)
    assert pruned(answers_mb=0.0025) == (1, 0)
    assert pruned(answers_mb=0.001) == (1, 1)
    assert pruned() == (0, 0)
    assert versions(store) == [(3, "t2"), (4, "t3")] and store.truth_counts("m").version == 4
