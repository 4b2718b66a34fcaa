"""What a Store promises of dead letters and of their retries, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.database.rows import (
    Advance,
    Checkpoint,
    DeadLetterRow,
    FoldResult,
    KeptRecord,
    Retried,
    StoredLetters,
    SummaryDelta,
    ThinnedKeys,
)
from connectors.database.store import Store
from connectors.records import DeadLetter, Gap, Partition

P0, P1 = Partition("orders", 0), Partition("orders", 1)
NOW_MS = 5_000


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/driftd.db"
    else:
        url = request.getfixturevalue("postgres").new_database()
    with Store.open(url, busy_timeout_s=5.0, now_ms=lambda: NOW_MS) as made:
        made.migrate()
        yield made


def letter(offset: int, reason: str = "bad_json", partition: Partition = P0, **more: Any) -> DeadLetter:
    return DeadLetter(partition, offset, 77, reason, "byte 3 is no JSON", b"\x00\xff{", 5000, **more)


def store_letters(store: Store, *letters: DeadLetter, model: str = "m") -> list[DeadLetterRow]:
    """Ten records of each partition, and what is stored of those that are dead letters."""
    advances = [
        Advance(partition, None, 10, 9_000, 10, len(dead), 0)
        for partition in sorted({letter.partition for letter in letters} | {P0})
        for dead in [[letter for letter in letters if letter.partition == partition]]
    ]
    store.commit(Checkpoint(model, advances, dead_letters=list(letters)))
    return store.dead_letter_rows(model)


def delta(block: int, *, partition: Partition = P0, first_offset: int = 0) -> SummaryDelta:
    return SummaryDelta("input", "", block, 1, partition, first_offset, b"sums")


def kept(offset: int, block: int) -> KeptRecord:
    row = (P0, offset, 0, "input", block, f"r{offset}", "outlier", 1.0, 0.001, 1, -1, None, None, {}, {})
    return KeptRecord(*row)  # type: ignore[arg-type]


def retried(*mended: DeadLetterRow, usable: dict[tuple[Partition, int], int] | None = None, **more: Any) -> Retried:
    nothing: dict[str, Any] = {"changed": [], "summaries": [], "kept": [], "thinned_keys": []}
    return Retried("m", list(mended), usable=usable or {}, **(nothing | more))


def fold(store: Store, next_block: int) -> list[SummaryDelta]:
    """Close the blocks below; the deltas that went in."""
    with store.begin_fold("m") as step:
        deltas = step.deltas(next_block)
        step.commit(FoldResult(next_block, [], [], [], [], []))
    return deltas


def test_letters_are_listed_by_model_reason_and_number(store: Store) -> None:
    rows = store_letters(store, letter(1), letter(2, "tombstone"), letter(3), letter(4, partition=P1, row=2, block=7))
    store_letters(store, letter(8), model="other")
    assert [row.letter.offset for row in rows] == [1, 2, 3, 4]
    assert rows[3].letter == letter(4, partition=P1, row=2, block=7)
    assert (rows[0].model, rows[0].stored_ms, rows[0].published) == ("m", NOW_MS, False)
    assert [row.letter.offset for row in store.dead_letter_rows("m", reason="bad_json")] == [1, 3, 4]
    assert [row.letter.offset for row in store.dead_letter_rows(limit=2, newest=True)] == [4, 8]
    assert [row.letter.offset for row in store.dead_letter_rows(after=rows[0].id, to=rows[2].id)] == [2, 3]
    assert store.dead_letter_rows(number=rows[1].id) == [rows[1]]
    assert store.stored_dead_letters("m") == [
        StoredLetters("m", "bad_json", 3, rows[3].id),
        StoredLetters("m", "tombstone", 1, rows[1].id),
    ]
    assert [found.stored for found in store.stored_dead_letters(reason="bad_json")] == [3, 1]


def test_each_process_sends_the_letters_of_its_partitions(store: Store) -> None:
    store_letters(store, letter(1), letter(2, partition=P1), letter(3))
    mine = store.dead_letters_unpublished(9, models=["m"], partitions=[P1])
    assert [row.letter.offset for row in mine] == [2]
    assert store.dead_letters_unpublished(9, models=["m"], partitions=[]) == []
    assert store.dead_letters_waiting(["m"]) == 3
    store.dead_letters_published(mine)
    assert store.dead_letters_waiting(["m"]) == 2
    assert store.dead_letters_waiting(["other"]) == 0


def test_a_mended_letter_goes_and_its_record_counts_in_its_open_block(store: Store) -> None:
    first, second, third = store_letters(store, letter(1), letter(2), letter(3, "tombstone"))
    store.commit(Checkpoint("m", [Advance(P0, 10, 20, 9_000, 10, 0, 0)], summaries=[delta(5)]))
    result = retried(
        *(first, second, third),
        usable={(P0, 5): 3},
        summaries=[delta(5)],
        kept=[kept(2, 5)],
        thinned_keys=[ThinnedKeys(P0, 5, 0, b"12345678")],
    )
    assert store.retried(result) == 0
    assert store.dead_letter_rows() == []
    assert store.dead_letter_counts("m") == {}
    [state] = store.partition_states("m")
    assert (state.next_offset, state.records, state.dead, state.late, state.closed_late) == (20, 20, 0, 0, 0)
    assert [record.offset for record in store.kept("m")] == [2]
    assert [keys.hashes for keys in store.thinned_keys("m", P0)] == [b"12345678"]
    assert [found.blob for found in fold(store, 6)] == [b"sums", b"sums"]


def test_a_record_whose_block_is_closed_is_only_counted_as_late(store: Store) -> None:
    first, second = store_letters(store, letter(1), letter(2))
    fold(store, 6)
    result = retried(
        *(first, second),
        usable={(P0, 5): 1, (P0, 6): 1},
        summaries=[delta(5), delta(6)],
        kept=[kept(1, 5), kept(2, 6)],
        thinned_keys=[ThinnedKeys(P0, 5, 0, b""), ThinnedKeys(P0, 6, 0, b"")],
    )
    assert store.retried(result) == 1
    [state] = store.partition_states("m")
    assert (state.records, state.dead, state.late, state.closed_late) == (10, 0, 0, 1)
    assert [record.offset for record in store.kept("m")] == [2]
    assert [keys.block for keys in store.thinned_keys("m", P0)] == [6]
    assert [found.block for found in fold(store, 7)] == [6]


def test_a_letter_that_is_still_bad_stays_with_what_is_wrong_now(store: Store) -> None:
    [row] = store_letters(store, letter(1, block=4))
    store.dead_letters_published([row])
    now = letter(1, "missing_field", block=4)
    assert store.retried(retried(changed=[(row, now)])) == 0
    [found] = store.dead_letter_rows()
    assert (found.id, found.letter, found.published) == (row.id, now, False)
    assert store.dead_letter_counts("m") == {"missing_field": 1}
    assert store.partition_states("m")[0].dead == 1


def test_a_record_that_holds_many_rows_adds_them_to_the_counts(store: Store) -> None:
    [row] = store_letters(store, letter(1))
    result = retried(
        changed=[(row, letter(1, "bad_vector", row=1))],
        added=[letter(1, "bad_vector", row=3)],
        usable={(P0, 5): 2},
        more_records={P0: 3},
    )
    assert store.retried(result) == 0
    assert [found.letter.row for found in store.dead_letter_rows()] == [1, 3]
    [state] = store.partition_states("m")
    assert (state.records, state.dead) == (13, 2)
    assert store.dead_letter_counts("m") == {"bad_vector": 2}


def test_a_retry_that_mends_nothing_writes_nothing(store: Store) -> None:
    [row] = store_letters(store, letter(1))
    assert store.retried(retried()) == 0
    assert store.dead_letter_rows() == [row]


def test_two_retries_count_a_letter_once(store: Store) -> None:
    [row] = store_letters(store, letter(1))
    start = threading.Barrier(2)
    outcomes: list[int | None] = []

    def retry() -> None:
        start.wait()
        outcomes.append(store.retried(retried(row, usable={(P0, 5): 1}, summaries=[delta(5)])))

    threads = [threading.Thread(target=retry) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes, key=str) == [0, None]
    assert store.partition_states("m")[0].dead == 0
    assert store.dead_letter_counts("m") == {}
    assert len(fold(store, 6)) == 1


def test_two_retries_of_one_open_block_both_count(store: Store) -> None:
    first, second = store_letters(store, letter(1), letter(2))
    for row in (first, second):
        assert store.retried(retried(row, usable={(P0, 5): 1}, summaries=[delta(5)])) == 0
    assert len(fold(store, 6)) == 2


def test_a_retry_changes_nothing_for_the_worker_that_reads_on(store: Store) -> None:
    [row] = store_letters(store, letter(1))
    assert store.retried(retried(row, usable={(P0, 5): 1}, summaries=[delta(5)])) == 0
    store.commit(Checkpoint("m", [Advance(P0, 10, 20, 9_000, 10, 0, 0)], summaries=[delta(5)]))
    assert store.partition_states("m")[0].records == 20
    assert len(fold(store, 6)) == 2


def test_a_letter_of_a_topic_that_was_made_anew_meanwhile_is_not_counted(store: Store) -> None:
    [row] = store_letters(store, letter(1))
    gap = Gap(P0, 10, 0, "recreated", "another topic")
    store.commit(Checkpoint("m", [Advance(P0, 10, 0, 9_000, 0, 0, 0)], gaps=[gap]))
    assert store.retried(retried(row, usable={(P0, 5): 1}, summaries=[delta(5)])) is None
    assert store.partition_states("m")[0].dead == 1
    [found] = store.dead_letter_rows()
    assert found.letter.offset < 0
