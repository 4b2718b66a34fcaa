"""What a worker tells of by itself: once, by one of several workers, and over when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.database.rows import Advance, Checkpoint, PartitionState
from connectors.database.store import Store
from connectors.records import Gap, Partition
from detectors.errors import AccessRefused, SourceUnreachable
from monitor.reader import Reader
from monitor.troubles import AGAIN_S, Troubles
from tests.unit.test_reader import ScriptedSource, reader_of

P = [Partition("orders", number) for number in range(2)]
NOW_MS = 1_800_000_000_000
AFTER_S = 600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        yield store


def troubles(store: Store) -> Troubles:
    made = Troubles("m", store, sinks=["pager", "log"], after_s=AFTER_S)
    made.take_over(store.incidents(model="m", status="open"))
    return made


def failing(error: Exception) -> Reader:
    reader = reader_of(ScriptedSource(error))
    reader.poll(0.0, wait_s=0.1)
    return reader


def told(store: Store) -> list[tuple[str, str]]:
    return sorted((row.kind, row.status) for row in store.incidents(model="m"))


def sent(store: Store) -> list[tuple[str, str]]:
    rows = store.outbox_claim("pager", 2 * NOW_MS, 1000, 100)
    return [(row.notification.kind, row.notification.status) for row in rows]


def test_an_outage_is_told_when_it_has_lasted_and_over_when_records_come(store: Store) -> None:
    mine = troubles(store)
    reader = failing(SourceUnreachable("Kafka does not answer."))
    mine.source(reader, NOW_MS, AFTER_S - 1)
    assert told(store) == []
    mine.source(reader, NOW_MS, AFTER_S)
    mine.source(reader, NOW_MS, AFTER_S + 1)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.severity, row.onset_ms) == ("source", "page", NOW_MS - 600_000)
    assert "does not answer" in row.text
    assert mine.open == [row]
    reader.poll(AFTER_S + 2, wait_s=0.1)
    mine.source(reader, NOW_MS + 1000, AFTER_S + 2)
    mine.source(reader, NOW_MS + 1000, AFTER_S + AGAIN_S)
    assert told(store) == [("source", "open")], "it may come back"
    mine.source(reader, NOW_MS + 1000, AFTER_S + 2 + AGAIN_S)
    assert told(store) == [("source", "resolved")]
    assert mine.open == []
    assert sent(store) == [("source", "firing")], "resolved waits for its firing"


def test_what_does_not_mend_by_itself_is_told_at_once(store: Store) -> None:
    troubles(store).source(failing(AccessRefused("Kafka refuses us.")), NOW_MS, 0.0)
    assert told(store) == [("source", "open")]


def test_of_two_workers_one_tells_and_the_next_process_says_that_it_is_over(store: Store) -> None:
    reader = failing(AccessRefused("Kafka refuses us."))
    for worker in (troubles(store), troubles(store)):
        worker.source(reader, NOW_MS, 0.0)
    assert told(store) == [("source", "open")]
    reader.poll(100.0, wait_s=0.1)
    after = troubles(store)
    after.source(reader, NOW_MS, 100.0)
    after.source(reader, NOW_MS, 100.0 + AGAIN_S)
    assert told(store) == [("source", "resolved")]


def test_a_wave_is_over_only_when_so_many_records_were_read_without_one(store: Store) -> None:
    troubles(store).wave("600 of the last 1,000 records cannot be used", NOW_MS, 0.0)
    after = troubles(store)
    assert told(store) == [("dead_letter_wave", "open")]
    after.no_wave(NOW_MS, 0.0)
    after.no_wave(NOW_MS, AGAIN_S)
    assert told(store) == [("dead_letter_wave", "resolved")]


def test_partitions_that_stand_still_are_told_while_others_move(store: Store) -> None:
    states = [PartitionState(partition, 7, 0, 7, 0, 0, advanced_ms=NOW_MS - 5) for partition in P]
    mine = troubles(store)
    mine.stalled(frozenset(P), states, NOW_MS, 0.0)
    assert told(store) == [], "where nothing moves, the source is the trouble"
    mine.stalled(frozenset(P[:1]), states, NOW_MS, 1.0)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.onset_ms, row.detail["partitions"]) == ("stalled", NOW_MS - 5, [["orders", 0, 7]])
    mine.stalled(frozenset(), states, NOW_MS, 2.0)
    mine.stalled(frozenset(), states, NOW_MS, AGAIN_S + 2)
    assert told(store) == [("stalled", "resolved")]


def test_a_gap_is_an_incident_of_the_checkpoint_that_jumps_over_it(store: Store) -> None:
    store.commit(Checkpoint("m", [Advance(P[0], None, 5, 99, 5, 0, 0)]))
    gap = Gap(P[0], 5, 40, "retention", "Records 5 to 39 were deleted.")
    checkpoint = Checkpoint("m", [Advance(P[0], 5, 40, 99, 0, 0, 0)], gaps=[gap])
    written = troubles(store).with_gaps(checkpoint, NOW_MS)
    store.commit(written)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.severity, row.status, row.onset_ms) == ("gap", "page", "open", 99)
    assert "Records 5 to 39 were deleted." in row.text
    assert [found.gap for found in store.gaps("m")] == [gap]
    assert sent(store) == [("gap", "firing")]
    assert troubles(store).open == [], "the fold says when it is over"
