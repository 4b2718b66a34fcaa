"""What a worker tells of by itself: once, by one of several workers, and over when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from connectors.database.rows import Advance, BlockStatRow, Checkpoint, FoldResult, PartitionState
from connectors.database.store import Store
from connectors.records import Gap, Partition
from detectors.errors import AccessRefused, SourceUnreachable
from detectors.reference import STANDARD, Reference
from monitor.reader import Reader
from monitor.troubles import AGAIN_S, FEW, GROWTH_S, LASTS_S, Recent, Troubles
from monitor.vector_watch import FEWEST_SAME, VectorWatch
from tests.unit.test_reader import ScriptedSource, batch, reader_of

P = [Partition("orders", number) for number in range(2)]
NOW_MS = 1_800_000_000_000
AFTER_S = 600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        yield store


def troubles(store: Store, *, live: bool = True) -> Troubles:
    made = Troubles("m", store, sinks=["pager", "log"], after_s=AFTER_S, live=live)
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


# --- silence ----------------------------------------------------------------------------------------------------------


def at_end(silent_s: float, *, idle: bool = True) -> list[PartitionState]:
    """Both partitions, read to their end; the last record came so long ago."""
    last = NOW_MS - round(silent_s * 1000)
    states = [PartitionState(partition, 7, 0, 7, 0, 0, idle_offset=7, advanced_ms=last - 9) for partition in P]
    return [states[0], replace(states[1], advanced_ms=last, idle_offset=7 if idle else None)]


def remember(store: Store, *, hours: float = 0.0, every_s: float = 10.0) -> None:
    """A past of so many hours with a block of records every ``every_s``, as the fold would have written it."""
    begins = np.arange(0.0, hours * 3600, every_s) * 1000
    stats = [BlockStatRow("", int(t) // 10_000, int(t), int(t) + 10_000, 0, 5, 0, 0, 0.5, (0,) * 10) for t in begins]
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(10**9, [], [], [], [], [], stats=stats))


def answering() -> Reader:
    reader = reader_of(ScriptedSource())
    reader.poll(0.0, wait_s=0.1)
    return reader


def watch_for(mine: Troubles, states: list[PartitionState], seconds: float, *, begin_s: float = 0.0) -> None:
    """Two looks that are so far apart; the second is at `NOW_MS`."""
    reader = answering()
    mine.silent(reader, states, NOW_MS - round(seconds * 1000), begin_s)
    mine.silent(reader, states, NOW_MS, begin_s + seconds)


def test_a_busy_stream_that_stops_is_told_after_the_wait_and_over_with_the_next_record(store: Store) -> None:
    remember(store, hours=30)
    mine = troubles(store)
    watch_for(mine, at_end(AFTER_S - 1), AFTER_S - 1)
    assert told(store) == []
    watch_for(mine, at_end(AFTER_S + 1), AFTER_S + 1)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.onset_ms, mine.blind) == ("silent", NOW_MS - round((AFTER_S + 1) * 1000), ["silent"])
    assert "the longest silence was 10 seconds; one of more than 10 minutes" in row.text
    mine.silent(answering(), at_end(0.0, idle=False), NOW_MS + 5, AFTER_S + 2)
    assert told(store) == [("silent", "resolved")] and mine.blind == []


def test_a_stream_that_often_pauses_may_be_silent_for_longer(store: Store) -> None:
    remember(store, hours=300, every_s=7_200.0)
    mine = troubles(store)
    watch_for(mine, at_end(7_000.0), 7_000.0)
    assert told(store) == []
    watch_for(mine, at_end(7_300.0), 7_300.0)
    assert told(store) == [("silent", "open")]


def test_silence_is_known_after_a_restart_and_told_once_by_many(store: Store) -> None:
    remember(store, hours=30)
    states = at_end(50_000.0)
    for mine in (troubles(store), troubles(store)):
        watch_for(mine, states, AFTER_S - 1)
        assert told(store) == [], "what waited is read first"
    for mine in (troubles(store), troubles(store)):
        watch_for(mine, states, AFTER_S)
    assert told(store) == [("silent", "open")]
    after = troubles(store)
    watch_for(after, states, AFTER_S)
    assert told(store) == [("silent", "open")]
    after.silent(answering(), at_end(1.0), NOW_MS, 5 * AFTER_S)
    assert told(store) == [("silent", "resolved")]


@pytest.mark.parametrize("why", ["nothing was ever read", "not read to its end", "bounded", "fails", "one hour old"])
def test_what_is_no_silence_is_not_told(store: Store, why: str) -> None:
    remember(store, hours=1 if why == "one hour old" else 30)
    mine = troubles(store, live=why != "bounded")
    states = at_end(3_000.0, idle=why != "not read to its end")
    reader = failing(SourceUnreachable("Kafka does not answer.")) if why == "fails" else answering()
    for clock_s in (0.0, 3_000.0):
        mine.silent(reader, [] if why == "nothing was ever read" else states, NOW_MS, clock_s)
    assert told(store) == []


# --- lag --------------------------------------------------------------------------------------------------------------


def test_lag_is_told_when_it_has_grown_for_minutes_and_over_when_it_is_short(store: Store) -> None:
    mine = troubles(store)
    mine.lag(5_000.0, 10**6, NOW_MS, 0.0)
    mine.lag(3_000.0, 10**6, NOW_MS, GROWTH_S)
    assert told(store) == [], "it catches up"
    mine.lag(3_100.0, 10**6, NOW_MS, GROWTH_S + 1)
    mine.lag(3_200.0, 10**6, NOW_MS, 2 * GROWTH_S + 1)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.onset_ms) == ("lag", NOW_MS - 3_200_000)
    assert "1,000,000 waited" in row.text
    mine.lag(AFTER_S + 1, 10**5, NOW_MS, 4 * GROWTH_S)
    mine.lag(AFTER_S + 1, 10**5, NOW_MS, 5 * GROWTH_S)
    assert mine.blind == ["lag"], "it is shorter, and long enough"
    mine.lag(1.0, 10, NOW_MS, 6 * GROWTH_S)
    mine.lag(1.0, 10, NOW_MS, 6 * GROWTH_S + AGAIN_S)
    assert told(store) == [("lag", "resolved")]


# --- records ----------------------------------------------------------------------------------------------------------


def look(
    mine: Troubles,
    clock_s: float,
    *,
    records: int = 0,
    dead: Mapping[str, int] | None = None,
    ahead: int = 0,
    zeros: int = 0,
    watch: VectorWatch | None = None,
) -> None:
    mine.records(
        records,
        dead or {},
        ahead=ahead,
        zeros={"input": zeros},
        watches={} if watch is None else {"input": watch},
        now_ms=NOW_MS,
        clock_s=clock_s,
    )
    mine.clocks([], NOW_MS, clock_s)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("embedder_failed", "embedder"),
        ("wrong_dimension", "embedder"),
        ("zero_vector", "vectors"),
        ("not_finite", "vectors"),
        ("time_past", "clock"),
        ("bad_time", "clock"),
    ],
)
def test_many_records_that_are_bad_for_one_reason_are_told_when_it_lasts(store: Store, reason: str, kind: str) -> None:
    mine = troubles(store)
    look(mine, 0.0, records=400, dead={reason: FEW})
    look(mine, LASTS_S, records=0)
    assert told(store) == [], "one in twenty is allowed"
    look(mine, 100.0, records=1_000, dead={reason: 300, "bad_json": 700})
    look(mine, 100.0 + LASTS_S - 1)
    assert told(store) == [], "it may pass"
    look(mine, 100.0 + LASTS_S)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.onset_ms, mine.blind) == (kind, NOW_MS - 60_000, [kind])
    assert "30 %" in row.title
    look(mine, 200.0, records=1_000, dead={"bad_json": 1_000})
    look(mine, 200.0 + AGAIN_S)
    assert told(store) == [(kind, "resolved")]


def test_a_few_bad_records_are_told_never_and_a_restart_ends_nothing(store: Store) -> None:
    mine = troubles(store)
    for clock_s in range(100):
        look(mine, 10.0 * clock_s, dead={"wrong_dimension": 1}, records=20)
    assert told(store) == []
    look(mine, 5_000.0, dead={"wrong_dimension": 100}, records=100)
    look(mine, 5_000.0 + LASTS_S)
    after = troubles(store)
    look(after, 0.0, records=10)
    look(after, 2 * AGAIN_S, records=10)
    assert told(store) == [("embedder", "open")], "ten good records say nothing"
    look(after, 3 * AGAIN_S, records=400)
    look(after, 4 * AGAIN_S)
    assert told(store) == [("embedder", "resolved")]


def test_events_dated_after_the_broker_got_them_are_told(store: Store) -> None:
    mine = troubles(store)
    look(mine, 0.0, records=400, ahead=200)
    look(mine, LASTS_S)
    (row,) = store.incidents(model="m")
    assert row.kind == "clock" and "200 more than a minute after the broker's time" in row.text


def test_a_broker_whose_clock_is_ahead_is_told_and_one_producer_among_many_is_not(store: Store) -> None:
    mine = troubles(store)
    stray = replace(batch(P[0], n=9), timestamps_ms=np.array([NOW_MS] * 8 + [NOW_MS + 10**6]))
    ahead = batch(P[0], time_ms=NOW_MS + 300_000, n=9)
    for step, clock_s in ((stray, 0.0), (stray, LASTS_S)):
        mine.clocks([step], NOW_MS, clock_s)
    assert told(store) == []
    for step, clock_s in ((ahead, 100.0), (ahead, 100.0 + LASTS_S)):
        mine.clocks([step], NOW_MS, clock_s)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.detail["ahead_s"]) == ("clock", 300.0)


def test_what_is_remembered_of_records_is_bounded() -> None:
    recent = Recent(400)
    for _ in range(1_000):
        recent.push(30, {"zero_vector": 1})
    assert recent.full and 400 <= recent.records < 430 and len(recent._steps) <= 15
    assert recent.of(frozenset({"zero_vector", "bad_json"})) == {"zero_vector": recent.records // 30}


# --- vectors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> Reference:
    """A baseline of tables, of which one row in ten is zero everywhere."""
    vectors = np.random.default_rng(1).normal(size=(2_000, 6)).astype(np.float32)
    vectors[::10] = 0.0
    return Reference.build(vectors, geometry=STANDARD)


def push(watch: VectorWatch, reference: Reference, vectors: np.ndarray) -> None:
    watch.push(vectors, reference.score(vectors).distance)


def test_zero_vectors_are_told_where_there_are_more_than_in_the_reference(store: Store, table: Reference) -> None:
    watch = VectorWatch(table)
    assert watch.usual_zeros == pytest.approx(0.1, abs=0.03)
    vectors = np.random.default_rng(2).normal(size=(1_000, 6)).astype(np.float32)
    vectors[:100] = 0.0
    push(watch, table, vectors)
    assert watch.zeros == 100
    mine = troubles(store)
    look(mine, 0.0, records=1_000, zeros=100, watch=watch)
    look(mine, LASTS_S, watch=watch)
    assert told(store) == [], "as many as usual"
    look(mine, 100.0, records=1_000, zeros=300, watch=watch)
    look(mine, 100.0 + LASTS_S, watch=watch)
    (row,) = store.incidents(model="m")
    assert row.title == "m: 30 % of the vectors of input are zero or not finite"


def test_vectors_that_are_all_the_same_are_told_when_it_lasts(store: Store, table: Reference) -> None:
    watch, mine = VectorWatch(table), troubles(store)
    chance = np.random.default_rng(3)
    push(watch, table, chance.normal(size=(512, 6)).astype(np.float32))
    assert watch.same == 1
    same = np.repeat(chance.normal(size=(1, 6)).astype(np.float32), 200, axis=0)
    push(watch, table, same)
    assert (watch.same, watch.too_many_same) == (200, FEWEST_SAME)
    push(watch, table, same[:60])
    look(mine, 0.0, watch=watch)
    look(mine, LASTS_S, watch=watch)
    (row,) = store.incidents(model="m")
    assert (row.kind, row.detail["what"], row.detail["records"]) == ("vectors", "constant", 260)
    push(watch, table, chance.normal(size=(1, 6)).astype(np.float32))
    assert watch.same == 1, "one by one, each differs from the one before"


def test_where_equal_vectors_are_usual_a_longer_run_of_them_is_no_news() -> None:
    chance = np.random.default_rng(4)
    often = np.where(chance.random(4_000) < 0.95, 0, 1 + chance.integers(0, 3, 4_000))
    labels = np.eye(4, dtype=np.float32)[often] + np.float32(0.01)
    watch = VectorWatch(Reference.build(labels))
    assert 400 < watch.too_many_same < 800, "0.95^n is one in 10^12 at 539"
