"""What a Store promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from connectors.database import schema
from connectors.database.connection import Database
from connectors.database.rows import (
    Advance,
    BlockStatRow,
    Checkpoint,
    Closure,
    DeploymentRow,
    FoldResult,
    FoldState,
    GapRow,
    HalfRow,
    IncidentRow,
    KeptRecord,
    MuteRow,
    PartitionState,
    ReadingRow,
    ReferenceRow,
    Retention,
    Silences,
    SummaryDelta,
    ThinnedKeys,
    Totals,
    Waiting,
)
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import DeadLetter, Gap, Partition
from detectors.errors import InvalidInput, InvalidReference, OwnershipLost, StoreError
from tests.contract.clock import Clock
from tests.contract.verdict_rows import verdict

ROOT = Path(__file__).resolve().parents[2]
DAY_MS = 86_400_000
P0, P1, P2 = Partition("orders", 0), Partition("orders", 1), Partition("orders", 2)


def advance(partition: Partition = P0, expected: int | None = None, to: int = 10, **more: int) -> Advance:
    values = {"max_time_ms": to * 1000, "records": 10, "dead": 0, "late": 0} | more
    return Advance(partition, expected, to, **values)


def delta(block: int, *, blob: bytes = b"sums", **more: Any) -> SummaryDelta:
    values = {"space": "input", "segment": "", "reference": 1, "partition": P0, "first_offset": 0} | more
    return SummaryDelta(block=block, blob=blob, **values)


def candidate(offset: int, *, score: float = 1.0, **more: Any) -> KeptRecord:
    values: dict[str, Any] = {
        "partition": P0,
        "time_ms": offset,
        "space": "input",
        "block": 0,
        "id": f"r{offset}",
        "reason": "outlier",
        "p_value": 0.001,
        "reference": 1,
        "exemplar": 7,
        "prediction": "cat",
        "confidence": 0.5,
        "segments": {"country": "NO"},
        "kept": {"text": "hei", "n": 3},
    }
    return KeptRecord(offset=offset, score=score, **(values | more))


def keys(block: int, *hashes: int, partition: Partition = P0, first_offset: int = 0) -> ThinnedKeys:
    blob = b"".join(number.to_bytes(8, "little") for number in hashes or (1, 2**64 - 1))
    return ThinnedKeys(partition, block, first_offset, blob)


def letter(offset: int, reason: str = "bad_json", partition: Partition = P0) -> DeadLetter:
    return DeadLetter(partition, offset, -1, reason, "byte 3 is no JSON", b"\x00\xff{", 5000)


def reading(block: int, **more: Any) -> ReadingRow:
    values: dict[str, Any] = {
        "space": "input",
        "segment": "",
        "start_ms": block * 10_000,
        "end_ms": (block + 1) * 10_000,
        "channel": "level",
        "statistic": 1.5,
        "strength": 2.5,
        "threshold": 6.0,
        "warn_threshold": 4.0,
        "n": 256,
        "effect": 0.25,
        "window_start_ms": 0,
        "onset_ms": None,
        "reference": 1,
        "page": False,
        "warn": True,
    }
    return ReadingRow(block=block, **(values | more))


def incident(number: str, **more: Any) -> IncidentRow:
    values: dict[str, Any] = {
        "model": "m",
        "kind": "drift",
        "space": "input",
        "segment": "NO",
        "severity": "page",
        "status": "open",
        "opened_ms": 5,
        "onset_ms": 3,
        "updated_ms": 5,
        "resolved_ms": None,
        "revision": 1,
        "reference": 1,
        "title": "Drift",
        "text": "The level moved.",
        "detail": {"strength": 7.5, "examples": ["a", "b"]},
    }
    return IncidentRow(id=number, **(values | more))


def notification(number: str, *, of: str = "i1", **more: Any) -> Notification:
    values: dict[str, Any] = {
        "group_key": "m/drift/input/",
        "status": "firing",
        "severity": "page",
        "model": "m",
        "kind": "drift",
        "space": "input",
        "segment": "",
        "title": "Drift in m",
        "text": "Since noon. Øl.",
        "starts_ms": 3,
        "ends_ms": None,
        "values": {"strength": "7.5"},
    }
    return Notification(id=number, incident=of, **(values | more))


def result(next_block: int, **more: Any) -> FoldResult:
    values: dict[str, Any] = {"merged": [], "states": [], "readings": [], "incidents": [], "outbox": []}
    return FoldResult(next_block=next_block, **(values | more))


def fold(store: Store, next_block: int, **more: Any) -> dict[str, int]:
    """One step of the fold; how many candidates it flagged."""
    with store.begin_fold("m") as step:
        step.deltas(below_block=next_block)
        return step.commit(result(next_block, **more))


def content(store: Store) -> dict[str, list[Any]]:
    """Every row of every table, so that a test can say that nothing changed."""
    with store._database.reading() as connection:
        return {
            name: sorted(map(tuple, connection.execute(sa.select(t)))) for name, t in schema.metadata.tables.items()
        }


# --- schema -----------------------------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()]))
    before = content(store)
    store.migrate()
    assert content(store) == before
    assert f"schema {schema.REVISION}" in store.check()


def test_check_tells_a_database_without_tables(new_store: Callable[[], Store]) -> None:
    assert new_store().check().endswith("no tables yet")


def test_using_a_database_without_tables_says_how_to_make_them(new_store: Callable[[], Store]) -> None:
    with pytest.raises(StoreError, match="driftd"):
        new_store().positions("m", [P0])


def test_a_newer_database_is_refused_and_left_as_it_is(store: Store, new_store: Callable[[], Store]) -> None:
    with store._database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9000'"))
    for call in (new_store().migrate, new_store().check):
        with pytest.raises(StoreError, match=r"9000.*Install that version"):
            call()
    with store._database.reading() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9000"


def test_several_processes_migrate_a_new_database_at_once(url: str, new_store: Callable[[], Store]) -> None:
    program = "import sys; from connectors.database.store import Store; Store.open(sys.argv[1]).migrate()"
    command = [sys.executable, "-c", program, url]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert new_store().partition_states("m") == []


def test_a_database_of_the_first_schema_is_brought_up_to_date_with_its_rows(new_store: Callable[[], Store]) -> None:
    from alembic import command
    from alembic.config import Config

    store = new_store()
    with store._database.writing() as connection:
        config = Config()
        config.set_main_option("script_location", str(ROOT / "connectors" / "database" / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        columns = "model,topic,number,next_offset,max_time_ms,records,dead,late"
        connection.execute(sa.text(f"INSERT INTO partitions ({columns}) VALUES ('m', 't', 0, 7, 5, 7, 1, 0)"))
    store.migrate()
    assert [state.next_offset for state in store.partition_states("m")] == [7]
    assert f"schema {schema.REVISION}" in store.check()


def test_the_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._database.reading() as connection:
        migration = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(migration, schema.metadata) == []
        found = _indexes(connection)
    # Conditions of indexes and names of keys are nothing that alembic compares: make the tables anew, and look.
    with store._database.writing() as connection:
        schema.metadata.drop_all(connection)
        schema.metadata.create_all(connection)
        assert found == _indexes(connection)


def _indexes(connection: sa.Connection) -> list[tuple[str, str | None]]:
    catalogue = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name != 'alembic_version'",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes "
        "WHERE schemaname = 'public' AND tablename != 'alembic_version'",
    }
    return sorted(tuple(row) for row in connection.execute(sa.text(catalogue[connection.dialect.name])))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_moves_positions_and_adds_up_counts(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P1, to=5), advance(P0, to=10, dead=2, late=1)]))
    store.commit(Checkpoint("m", [advance(P0, 10, 25, records=15, dead=1, late=4)]))
    assert store.positions("m", [P0, P1, P2]) == {P0: 25, P1: 5}
    assert store.positions("other", [P0]) == {}
    assert store.positions("m", []) == {}
    assert store.partition_states("m") == [
        PartitionState(P0, 25, 25_000, records=25, dead=3, late=5, advanced_ms=1000),
        PartitionState(P1, 5, 5_000, records=10, dead=0, late=0, advanced_ms=1000),
    ]
    assert store.totals("m") == Totals(records=35, dead=3, late=5, kept=0, flagged=0)


def test_positions_of_more_partitions_than_one_statement_takes(store: Store) -> None:
    many = [Partition(f"/data/{number}.jsonl", 0) for number in range(12_000)]
    store.commit(Checkpoint("m", [advance(partition) for partition in many[::1000]]))
    assert store.positions("m", many) == dict.fromkeys(many[::1000], 10)


def test_a_model_that_is_not_there_has_nothing(store: Store) -> None:
    assert store.totals("m") == Totals(0, 0, 0, 0, 0)
    assert store.dead_letter_counts("m") == {}
    assert store.partition_states("m") == []


@pytest.mark.parametrize("expected", [None, 9, 11])
def test_a_checkpoint_of_a_former_owner_leaves_no_trace(store: Store, expected: int | None) -> None:
    store.commit(Checkpoint("m", [advance(P0), advance(P1)]))
    before = content(store)
    stale = Checkpoint(
        "m",
        [advance(P1, 10, 20), advance(P0, expected, 20), advance(P2)],
        summaries=[delta(0)],
        kept=[candidate(12)],
        dead_letters=[letter(13)],
        references=[REFERENCE],
        thinned_keys=[keys(0, first_offset=10)],
    )
    with pytest.raises(OwnershipLost, match=r"Partition 0 of orders .* stands at offset 10, expected was"):
        store.commit(stale)
    assert content(store) == before


def test_of_two_owners_at_once_one_writes_and_one_leaves_no_trace(store: Store, new_store: Callable[[], Store]) -> None:
    store.commit(Checkpoint("m", [advance(P0), advance(P1)]))
    ready = threading.Barrier(2)
    outcomes: dict[int, str] = {}

    def own(owner: int, mine: Store) -> None:
        rows = [candidate(offset, id=f"owner {owner}") for offset in range(10, 20)]
        sums = [delta(0, first_offset=10, blob=bytes([owner]))]
        ready.wait(timeout=10)
        try:
            mine.commit(Checkpoint("m", [advance(P0, 10, 20), advance(P1, 10, 20)], sums, rows))
            outcomes[owner] = "written"
        except OwnershipLost:
            outcomes[owner] = "lost"

    threads = [threading.Thread(target=own, args=(owner, new_store())) for owner in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(outcomes.values()) == ["lost", "written"]
    (winner,) = (owner for owner, outcome in outcomes.items() if outcome == "written")
    assert {row.id for row in store.kept("m")} == {f"owner {winner}"}
    with store.begin_fold("m") as step:
        assert [row.blob for row in step.deltas(below_block=9)] == [bytes([winner])]
    assert store.totals("m").records == 40


def test_a_transaction_that_ends_in_the_middle_leaves_no_trace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit(Checkpoint("m", [advance(P0)]))
    before = content(store)

    def fails(*_: object) -> dict[str, object]:
        raise RuntimeError("pulled the plug")

    # Dead letters are written after offsets, summaries and kept records.
    monkeypatch.setattr("connectors.database.store.letter_columns", fails)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        store.commit(Checkpoint("m", [advance(P0, 10, 20)], [delta(0)], [candidate(12)], [letter(13)]))
    assert content(store) == before
    monkeypatch.undo()
    store.commit(Checkpoint("m", [advance(P0, 10, 20)], [delta(0)], [candidate(12)], [letter(13)]))
    assert store.positions("m", [P0]) == {P0: 20}


WORKER = """
import sys
from connectors.database.rows import Advance, Checkpoint, SummaryDelta
from connectors.database.store import Store
from connectors.records import DeadLetter, Partition
from tests.contract.test_store_contract import candidate, delta, letter
store, p = Store.open(sys.argv[1]), Partition("orders", 0)
at = store.positions("m", [p]).get(p)
while True:
    to = (at or 0) + 10
    sums, rows = [delta(0, first_offset=at or 0)], [candidate(n) for n in range(to - 10, to)]
    store.commit(Checkpoint("m", [Advance(p, at, to, 0, 10, 1, 0)], sums, rows, [letter(to - 1)]))
    at = to
    print(at, flush=True)
"""


def test_a_worker_killed_at_any_moment_loses_nothing_and_counts_nothing_twice(store: Store, url: str) -> None:
    for checkpoints in (1, 5, 12):
        process = subprocess.Popen([sys.executable, "-c", WORKER, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        written = [int(process.stdout.readline()) for _ in range(checkpoints)]
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()
        at = store.positions("m", [P0])[P0]
        assert at >= written[-1], "what was said to be written is there"
        assert store.totals("m") == Totals(records=at, dead=at // 10, late=0, kept=at, flagged=0)
        assert store.dead_letter_counts("m") == {"bad_json": at // 10}
        with store.begin_fold("m") as step:
            assert [row.first_offset for row in step.deltas(below_block=1)] == list(range(0, at, 10))


def test_keys_of_open_blocks_come_back_to_the_next_owner_of_their_partition(store: Store) -> None:
    first = [keys(8, 4), keys(7, 1, 2), keys(7, 9, partition=P1)]
    store.commit(Checkpoint("m", [advance(P0), advance(P1)], thinned_keys=first))
    store.commit(Checkpoint("m", [advance(P0, 10, 20)], thinned_keys=[keys(7, 3, first_offset=10)]))
    store.commit(Checkpoint("n", [advance(P0)], thinned_keys=[keys(7, 5)]))
    assert store.thinned_keys("m", P0) == [keys(7, 1, 2), keys(7, 3, first_offset=10), keys(8, 4)]
    assert store.thinned_keys("m", P1) == [keys(7, 9, partition=P1)]
    assert store.thinned_keys("m", P2) == []


def test_the_fold_that_closes_a_block_deletes_its_keys(store: Store) -> None:
    rows = [keys(7), keys(8), keys(7, partition=P1)]
    store.commit(Checkpoint("m", [advance(P0), advance(P1)], [delta(7), delta(8)], thinned_keys=rows))
    store.commit(Checkpoint("n", [advance(P0)], thinned_keys=[keys(7)]))
    with store.begin_fold("m") as step:
        step.deltas(below_block=8)
        # A checkpoint that comes while the fold works: its block is closed with the others, its sums are late.
        late = keys(7, 3, first_offset=10)
        store.commit(Checkpoint("m", [advance(P0, 10, 20)], [delta(7, first_offset=10)], thinned_keys=[late]))
        step.commit(result(8))
    assert store.thinned_keys("m", P0) == [keys(8)]
    assert store.thinned_keys("m", P1) == []
    assert store.thinned_keys("n", P0) == [keys(7)]


def test_a_fold_that_lost_its_turn_deletes_no_keys(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(7)], thinned_keys=[keys(7), keys(9)]))
    with store.begin_fold("m") as loser:
        fold(store, 8)
        with pytest.raises(OwnershipLost):
            loser.commit(result(10))
    assert store.thinned_keys("m", P0) == [keys(9)]


def test_the_same_sums_cannot_be_added_twice(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P0)], [delta(0)]))
    with pytest.raises(StoreError):
        store.commit(Checkpoint("m", [advance(P0, 10, 20)], [delta(0)]))
    assert store.positions("m", [P0]) == {P0: 10}


def test_kept_records_come_back_as_they_were(store: Store) -> None:
    rows = [
        candidate(1, score=3.0),
        candidate(2, score=5.0, space="output", reason="sample", prediction=None, confidence=None, exemplar=-1),
        candidate(3, score=4.0, kept={"deep": {"list": [1, 2.5, None, True]}, "big": 2**70}),
    ]
    store.commit(Checkpoint("m", [advance()], kept=rows))
    assert store.kept("m") == [rows[1], rows[2], rows[0]]
    assert store.kept("m", order="time", limit=2) == [rows[2], rows[1]]
    assert store.kept("m", "input") == [rows[2], rows[0]]
    assert store.kept("m", flagged=True) == []
    assert store.kept("m", flagged=False, limit=1) == [rows[1]]


def test_a_repeated_kept_record_replaces_the_first_and_stays_flagged(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], kept=[candidate(1, score=3.0)]))
    fold(store, 1, flag_at={("input", 0): 2.0})
    store.commit(Checkpoint("m", [advance(P0, 10, 20)], kept=[candidate(1, score=4.0)]))
    assert store.kept("m") == [candidate(1, score=4.0, flagged=True)]


def test_text_that_a_database_cannot_hold_does_not_stop_the_line(store: Store) -> None:
    nasty = "a\x00b\ud800c"
    record = candidate(1, id=nasty, prediction=nasty, segments={"s": nasty}, kept={nasty: nasty, "b": b"\x00"})
    bad = dataclasses.replace(letter(2), detail=nasty)
    store.commit(Checkpoint("m", [advance()], [delta(0, segment=nasty)], [record], [bad]))
    (found,) = store.kept("m")
    assert found.id == found.prediction == "a\ufffdb?c"
    assert store.dead_letters("m")[0].detail == "a\ufffdb?c"
    fold(store, 1, merged=[delta(0, segment=nasty)], outbox=[("pager", notification("n", text=nasty))])
    assert len(store.summaries("m", "input", segment=nasty)) == 1
    assert store.outbox_due(0, 1)[0].notification.text == "a\ufffdb?c"


def test_numbers_that_are_not_finite_come_back(store: Store) -> None:
    row = candidate(1, score=math.inf, p_value=math.nan, confidence=math.nan)
    store.commit(Checkpoint("m", [advance()], kept=[row, candidate(2, score=math.nan)]))
    fold(store, 1, readings=[reading(0, statistic=math.nan, effect=-math.inf)])
    first, second = store.kept("m")
    assert first.score == math.inf and math.isnan(first.p_value) and first.confidence is None
    assert math.isnan(second.score)
    (found,) = store.readings("m")
    assert math.isnan(found.statistic) and found.effect == -math.inf


def test_dead_letters_are_counted_for_ever_and_listed_newest_first(store: Store) -> None:
    store.commit(
        Checkpoint("m", [advance(P0), advance(P1)], dead_letters=[letter(1), letter(2, "missing_field", P1), letter(3)])
    )
    store.commit(Checkpoint("m", [advance(P0, 10, 20)], dead_letters=[letter(11)]))
    assert [row.offset for row in store.dead_letters("m", 3)] == [11, 3, 2]
    assert store.dead_letters("m", 1) == [letter(11)]
    store.prune(DAY_MS * 400, Retention())
    assert store.dead_letters("m") == []
    assert store.dead_letter_counts("m") == {"bad_json": 3, "missing_field": 1}


def test_dead_letters_are_published_once_and_oldest_first(store: Store) -> None:
    store.commit(Checkpoint("a", [advance()], dead_letters=[letter(1), letter(2)]))
    store.commit(Checkpoint("b", [advance()], dead_letters=[letter(3)]))
    waiting = store.dead_letters_unpublished(2)
    assert [(row.model, row.letter.offset) for row in waiting] == [("a", 1), ("a", 2)]
    store.dead_letters_published(waiting[:1])
    store.dead_letters_published([])
    assert [row.letter.offset for row in store.dead_letters_unpublished(9)] == [2, 3]
    assert [row.letter.offset for row in store.dead_letters_unpublished(9, models=["b"])] == [3]


# --- partitions -------------------------------------------------------------------------------------------------------


def states(store: Store) -> dict[Partition, PartitionState]:
    return {state.partition: state for state in store.partition_states("m")}


def test_the_id_of_a_topic_is_kept_until_another_one_is_known(store: Store) -> None:
    store.commit(Checkpoint("m", [dataclasses.replace(advance(P0), topic_id="A"), advance(P1)]))
    assert store.topic_ids("m", [P0, P1, P2]) == {P0: "A"}
    store.commit(Checkpoint("m", [advance(P0, 10, 20), dataclasses.replace(advance(P1, 10, 20), topic_id="B")]))
    assert store.topic_ids("m", [P0, P1, P2]) == {P0: "A", P1: "B"}
    store.commit(Checkpoint("m", [dataclasses.replace(advance(P0, 20, 30), topic_id="C")]))
    assert store.topic_ids("m", [P0]) == {P0: "C"}
    assert store.topic_ids("other", [P0]) == {}


def test_the_receipt_of_the_last_scores_stays_until_there_is_another(store: Store) -> None:
    def receipts() -> list[str]:
        return [state.scores for state in store.partition_states("m")]

    store.commit(Checkpoint("m", [advance(P0), advance(P1)]).with_scores("a"))
    assert receipts() == ["a", "a"]
    store.commit(Checkpoint("m", [advance(P0, 10, 20)]).with_scores("b"))
    store.commit(Checkpoint("m", [advance(P1, 10, 20)]).with_scores(""))
    assert receipts() == ["b", "a"]
    with pytest.raises(OwnershipLost):
        store.commit(Checkpoint("m", [advance(P0, 10, 30), advance(P1, 20, 30)]).with_scores("c"))
    assert receipts() == ["b", "a"]


def test_a_partition_is_idle_where_its_owner_left_it_and_until_it_moves(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P0), advance(P1)]))
    store.mark_idle("m", {P0: 10, P1: 9, P2: 0})
    store.mark_idle("m", {})
    assert {p: (state.idle, state.idle_offset) for p, state in states(store).items()} == {
        P0: (True, 10),
        P1: (False, None),
    }
    store.commit(Checkpoint("m", [advance(P0, 10, 20)]))
    assert not states(store)[P0].idle
    store.mark_idle("m", {P0: 20})
    assert states(store)[P0].idle and store.partition_states("other") == []


def test_a_partition_that_comes_to_its_idle_offset_again_is_not_idle(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P0)]))
    store.mark_idle("m", {P0: 10})
    store.commit(Checkpoint("m", [advance(P0, 10, 3)]))
    store.commit(Checkpoint("m", [advance(P0, 3, 10)]))
    assert not states(store)[P0].idle


def test_the_first_format_of_a_topic_holds_for_every_worker(store: Store, new_store: Callable[[], Store]) -> None:
    ready = threading.Barrier(2)
    found: list[str] = []

    def pin(name: str, mine: Store) -> None:
        ready.wait(timeout=10)
        found.append(mine.pin_format("m", "orders", name, 5))

    threads = [threading.Thread(target=pin, args=(name, new_store())) for name in ("json", "avro")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 2 and len(set(found)) == 1
    assert store.pin_format("m", "orders", "msgpack", 9) == found[0]
    assert store.pin_format("m", "other topic", "msgpack", 9) == "msgpack"
    assert store.pin_format("other", "orders", "avro", 9) == "avro"


def test_halves_wait_until_a_checkpoint_joins_them(store: Store) -> None:
    halves = [HalfRow(P0, 7, b"request"), HalfRow(P0, 3, b"other"), HalfRow(P1, 3, b"response")]
    store.commit(Checkpoint("m", [advance(P0), advance(P1)], halves=halves))
    assert store.halves("m", P0) == [halves[1], halves[0]]
    assert store.halves("other", P0) == []
    stale = Checkpoint("m", [advance(P0, 9, 20)], joined=[(P0, 7)], halves=[HalfRow(P0, 12, b"")])
    with pytest.raises(OwnershipLost):
        store.commit(stale)
    assert len(store.halves("m", P0)) == 2
    store.commit(Checkpoint("m", [advance(P0, 10, 20)], joined=[(P0, 7), (P0, 11)], halves=[HalfRow(P0, 12, b"new")]))
    assert store.halves("m", P0) == [halves[1], HalfRow(P0, 12, b"new")]
    assert store.halves("m", P1) == [halves[2]]


RETENTION = Gap(P0, 10, 500, "retention", "The broker deleted them.")
RECREATED = Gap(P0, 10, 0, "recreated", "The topic was made anew.")


def test_a_gap_is_stored_with_the_offsets_that_jump_over_it(store: Store, clock: Clock) -> None:
    store.commit(Checkpoint("m", [advance(P0)], kept=[candidate(3)]))
    clock.ms = 9_000
    store.commit(Checkpoint("m", [advance(P0, 10, 500, records=0)], gaps=[RETENTION]))
    assert store.gaps("m") == [GapRow(RETENTION, 9_000)]
    assert store.positions("m", [P0]) == {P0: 500}
    assert [row.offset for row in store.kept("m")] == [3], "their offsets still lead to them"
    with pytest.raises(OwnershipLost):
        store.commit(Checkpoint("m", [advance(P0, 10, 600)], gaps=[dataclasses.replace(RETENTION, to_offset=600)]))
    assert len(store.gaps("m")) == 1 and store.gaps("other") == []


def test_a_topic_made_anew_uses_its_offsets_again_and_nothing_collides(store: Store) -> None:
    def generation(expected: int | None, blob: bytes) -> Checkpoint:
        return Checkpoint(
            "m",
            [advance(P0, expected, 10)],
            summaries=[delta(0, blob=blob), delta(0, blob=blob, first_offset=5), delta(0, blob=blob, partition=P1)],
            thinned_keys=[keys(0, 7), keys(0, 8, first_offset=5)],
            halves=[HalfRow(P0, 2, blob), HalfRow(P0, 3, blob)],
            kept=[candidate(4, id=blob.decode())],
            dead_letters=[letter(6)],
        )

    store.commit(generation(None, b"old"))
    fold(store, 0, flag_at={("input", 0): 0.5})  # closes nothing: block 0 stays open
    for blob, end in ((b"middle", -11), (b"new", -17)):
        before = store.halves("m", P0)
        # What comes with the gap is of the old topic too; a half that it gives up is still where it was.
        last = [delta(0, blob=b"last", first_offset=at) for at in (10, end)]
        store.commit(Checkpoint("m", [advance(P0, 10, 0)], last, gaps=[RECREATED], joined=[(P0, before[-1].offset)]))
        following = generation(0, blob)
        store.commit(
            dataclasses.replace(following, summaries=[row for row in following.summaries if row.partition == P0])
        )
    with store.begin_fold("m") as step:
        deltas = step.deltas(below_block=1)
    assert sorted(row.blob for row in deltas) == sorted([b"old"] * 3 + [b"last"] * 4 + [b"middle"] * 2 + [b"new"] * 2)
    assert sorted(row.first_offset for row in deltas if row.blob == b"new") == [0, 5]
    assert all(row.first_offset < 0 for row in deltas if row.blob != b"new" and row.partition == P0)
    assert [row.first_offset for row in deltas if row.partition == P1] == [0], "another partition's stay"
    assert len(store.thinned_keys("m", P0)) == 6
    assert [(row.blob, row.offset > 0) for row in sorted(store.halves("m", P0), key=lambda row: row.blob)] == [
        (b"middle", False),
        (b"new", True),
        (b"new", True),
        (b"old", False),
    ]
    kept = {row.id: row for row in store.kept("m")}
    assert (kept["old"].flagged, kept["new"].flagged, kept["new"].offset) == (True, False, 4)
    assert kept["old"].offset != kept["middle"].offset and max(kept["old"].offset, kept["middle"].offset) < 0
    assert sorted(row.offset >= 0 for row in store.dead_letters("m")) == [False, False, True]
    assert store.totals("m").records == 50


def test_a_topic_that_lost_its_end_frees_only_the_lost_offsets(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P0)], kept=[candidate(3), candidate(7), candidate(9)]))
    gap = Gap(P0, 10, 6, "truncated", "The topic lost its newest records.")
    store.commit(Checkpoint("m", [advance(P0, 10, 6, records=0)], gaps=[gap]))
    store.commit(Checkpoint("m", [advance(P0, 6, 12)], kept=[candidate(7, id="new")]))
    kept = {row.id: row.offset for row in store.kept("m")}
    assert (kept["r3"], kept["new"]) == (3, 7)
    assert kept["r7"] < kept["r9"] < 0


def test_a_worker_tells_of_a_gap_in_the_transaction_that_jumps_over_it(store: Store) -> None:
    jump = Checkpoint(
        "m",
        [advance(P0, to=500)],
        gaps=[RETENTION],
        incidents=[incident("g1", kind="gap")],
        outbox=[("pager", notification("n1", of="g1")), ("mail", notification("n1", of="g1"))],
    )
    store.commit(jump)
    fold(store, 1, incidents=[incident("g1", kind="gap", status="resolved", resolved_ms=9, revision=2)])
    again = dataclasses.replace(jump, advances=[advance(P0, 500, 600)], gaps=[])
    store.commit(again)
    assert store.incidents("m")[0].status == "resolved", "an incident that is there is left"
    assert store.outbox_waiting()[0] == 2
    with pytest.raises(OwnershipLost):
        store.commit(dataclasses.replace(again, incidents=[incident("g2")], outbox=[("pager", notification("n2"))]))
    assert [row.id for row in store.incidents("m")] == ["g1"] and store.outbox_waiting()[0] == 2


def test_a_fold_adds_records_of_closed_blocks_to_their_partitions(store: Store) -> None:
    store.commit(Checkpoint("m", [advance(P0), advance(P1)]))
    fold(store, 1, closed_late={P1: 3, P0: 0, P2: 5})
    fold(store, 1, closed_late={P1: 4})
    assert {p: state.closed_late for p, state in states(store).items()} == {P0: 0, P1: 7}
    assert store.positions("m", [P0, P1]) == {P0: 10, P1: 10}


# --- incidents of workers ---------------------------------------------------------------------------------------------


def test_of_many_workers_that_see_an_outage_one_tells(store: Store, new_store: Callable[[], Store]) -> None:
    ready = threading.Barrier(3)
    told: list[tuple[int, int]] = []

    def tell(worker: int, mine: Store) -> None:
        for outage in range(8):
            row = incident(f"s{outage} {worker}", kind="source", space="", segment=f"{outage}")
            ready.wait(timeout=10)
            if mine.open_incident(row, [("pager", notification(f"n{outage} {worker}", of=row.id))]):
                told.append((outage, worker))

    threads = [threading.Thread(target=tell, args=(worker, new_store())) for worker in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(outage for outage, _ in told) == list(range(8))
    assert {row.id for row in store.incidents("m")} == {f"s{outage} {worker}" for outage, worker in told}
    assert {name for _, name in due(store)} == {f"n{outage} {worker}" for outage, worker in told}
    assert store.open_incident(incident("other", kind="source", space="", segment="0", model="other"))


def test_an_incident_is_resolved_once_and_opens_again_under_another_id(store: Store) -> None:
    row = incident("s1", kind="source", space="", segment="")
    assert store.open_incident(row) and not store.open_incident(row)
    store.call_incident("s1", "false")
    over = dataclasses.replace(row, status="resolved", resolved_ms=9, updated_ms=9, revision=2, title="Over")
    assert not store.resolve_incident(dataclasses.replace(over, revision=3)), "it is not as this worker knows it"
    assert store.resolve_incident(over, [("pager", notification("n2", of="s1"))])
    assert not store.resolve_incident(over, [("pager", notification("n3", of="s1"))])
    assert not store.resolve_incident(dataclasses.replace(over, revision=3))
    (found,) = store.incidents("m")
    assert (found.status, found.resolved_ms, found.revision, found.title) == ("resolved", 9, 2, "Over")
    assert (found.detail["verdict"], found.detail["strength"]) == ("false", 7.5), "what a person said of it stays"
    assert due(store) == [("pager", "n2")]
    assert not store.open_incident(row), "its id is taken"
    assert store.open_incident(dataclasses.replace(row, id="s2"))


# --- fold -------------------------------------------------------------------------------------------------------------


def test_the_first_fold_starts_from_nothing(store: Store) -> None:
    with store.begin_fold("m") as step:
        assert (step.version, step.next_block, step.partitions) == (0, None, [])
        assert step.first_pending_block() is None
        assert step.deltas(below_block=100) == step.late_deltas() == step.states() == step.incidents() == []


def test_a_fold_sees_deltas_in_one_order_however_they_came(store: Store) -> None:
    rows = [
        delta(4),
        delta(3, partition=P1),
        delta(3, space="output"),
        delta(3, segment="NO"),
        delta(3, first_offset=5),
        delta(3, reference=2),
        delta(3),
    ]
    store.commit(Checkpoint("m", [advance()], rows))
    with store.begin_fold("m") as step:
        assert step.first_pending_block() == 3
        assert step.deltas(below_block=4) == [rows[6], rows[4], rows[1], rows[5], rows[3], rows[2]]
        assert len(step.deltas(below_block=5)) == 7
        assert [state.partition for state in step.partitions] == [P0]


def test_a_fold_writes_everything_and_the_next_one_goes_on_from_there(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(0, blob=b"a"), delta(0, first_offset=5), delta(1)]))
    written = result(
        1,
        merged=[delta(0, blob=b"merged")],
        states=[FoldState("input", "", 1, b"state")],
        readings=[reading(0), reading(0, channel="shape", onset_ms=7, page=True)],
        incidents=[incident("i1")],
        outbox=[("pager", notification("n1"))],
        closure=Closure(1, "idle", {P1: 7, P0: 10}, 123),
    )
    with store.begin_fold("m") as step:
        assert len(step.deltas(below_block=1)) == 2
        step.commit(written)
    with store.begin_fold("m") as step:
        assert (step.version, step.next_block, step.first_pending_block()) == (1, 1, 1)
        assert step.states() == written.states
        assert step.incidents() == written.incidents
        assert step.late_deltas() == []
        assert step.deltas(below_block=9) == [delta(1)]
    (summary,) = store.summaries("m", "input", segment="")
    assert (summary.block, summary.reference, summary.blob, summary.partition) == (0, 1, b"merged", Partition("", -1))
    assert store.readings("m") == written.readings
    assert store.incidents() == written.incidents
    assert store.closures("m") == [written.closure]
    assert [row.notification for row in store.outbox_due(0, 9)] == [notification("n1")]


def test_a_fold_that_is_left_writes_nothing(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(0)]))
    before = content(store)
    with pytest.raises(RuntimeError, match="pulled the plug"), store.begin_fold("m") as step:
        step.deltas(below_block=9)
        raise RuntimeError("pulled the plug")
    with store.begin_fold("m") as step:
        step.deltas(below_block=9)
    assert content(store) == before


def test_a_fold_that_fails_in_the_middle_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(0)]))
    before = content(store)

    def fails(*_: object) -> dict[str, object]:
        raise RuntimeError("pulled the plug")

    monkeypatch.setattr("connectors.database.folding.outbox_columns", fails)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fold(store, 1, merged=[delta(0)], readings=[reading(0)], outbox=[("pager", notification("n1"))])
    assert content(store) == before


@pytest.mark.parametrize("first", [True, False])
def test_of_two_folds_at_once_one_wins(store: Store, new_store: Callable[[], Store], first: bool) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(0), delta(1)]))
    if not first:
        fold(store, 1)
    ready = threading.Barrier(2)
    outcomes: list[str] = []

    def step(worker: int, mine: Store) -> None:
        with mine.begin_fold("m") as fold:
            fold.deltas(below_block=2)
            ready.wait(timeout=10)
            try:
                fold.commit(result(2, readings=[reading(1, n=worker)]))
                outcomes.append("written")
            except OwnershipLost:
                outcomes.append("lost")

    threads = [threading.Thread(target=step, args=(worker, new_store())) for worker in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(outcomes) == ["lost", "written"]
    assert len(store.readings("m")) == 1
    with store.begin_fold("m") as after:
        assert after.version == (1 if first else 2)


def test_checkpoints_go_on_while_a_fold_is_at_work(store: Store, new_store: Callable[[], Store]) -> None:
    other = new_store()
    store.commit(Checkpoint("m", [advance()], [delta(0)]))
    with store.begin_fold("m") as step:
        other.commit(Checkpoint("m", [advance(P0, 10, 20)], [delta(0, first_offset=10, blob=b"more")]))
        assert step.deltas(below_block=1) == [delta(0)], "a fold sees one moment"
        step.commit(result(1))
    with store.begin_fold("m") as step:
        assert step.partitions[0].next_offset == 20
        assert step.late_deltas() == [delta(0, first_offset=10, blob=b"more")], "and deletes only what it saw"
        step.commit(result(1))
    with store.begin_fold("m") as step:
        assert step.late_deltas() == []


def test_late_deltas_stay_until_a_fold_that_saw_them_is_written(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(5)]))
    fold(store, 6)
    store.commit(Checkpoint("m", [advance(P0, 10, 20)], [delta(5, first_offset=10), delta(6, first_offset=10)]))
    with store.begin_fold("m") as step:
        assert step.first_pending_block() == 6
        assert [row.block for row in step.deltas(below_block=99)] == [6]
        assert [row.block for row in step.late_deltas()] == [5]
    fold(store, 7)  # did not ask for late ones
    with store.begin_fold("m") as step:
        assert [row.block for row in step.late_deltas()] == [5]
        step.commit(result(7))
    with store.begin_fold("m") as step:
        assert step.late_deltas() == []


def test_deltas_that_were_seen_but_not_closed_stay(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(0), delta(1)]))
    with store.begin_fold("m") as step:
        step.deltas(below_block=2)
        step.commit(result(1))
    with store.begin_fold("m") as step:
        assert step.deltas(below_block=2) == [delta(1)]


def test_a_fold_is_committed_once_and_never_goes_back(store: Store) -> None:
    with store.begin_fold("m") as step:
        step.commit(result(5))
        with pytest.raises(StoreError, match="committed already"):
            step.commit(result(6))
    with store.begin_fold("m") as step, pytest.raises(StoreError, match="Block 4 of m is closed"):
        step.commit(result(4))


def test_models_fold_apart(store: Store) -> None:
    store.commit(Checkpoint("m", [advance()], [delta(0)]))
    store.commit(Checkpoint("other", [advance()], [delta(0)]))
    fold(store, 1, incidents=[incident("i1")])
    with store.begin_fold("other") as step:
        assert (step.version, step.first_pending_block(), step.incidents()) == (0, 0, [])


def test_a_fold_flags_the_candidates_above_the_threshold_of_their_block(store: Store) -> None:
    rows = [
        candidate(1, score=2.0),
        candidate(2, score=1.9),
        candidate(3, score=9.0, reason="sample"),
        candidate(4, score=9.0, space="output"),
        candidate(5, score=9.0, block=1),
    ]
    store.commit(Checkpoint("m", [advance()], kept=rows))
    assert fold(store, 1, flag_at={("input", 0): 2.0}) == {"input": 1}
    assert [row.offset for row in store.kept("m", flagged=True)] == [1]
    assert len(store.kept("m", flagged=False)) == 4
    assert store.totals("m") == Totals(records=10, dead=0, late=0, kept=5, flagged=1)


def test_states_of_a_space_end_with_the_one_written_last(store: Store) -> None:
    fold(store, 1, states=[FoldState("input", "", 2, b"second")])
    fold(store, 2, states=[FoldState("input", "", 1, b"rolled back"), FoldState("input", "NO", 1, b"x")])
    with store.begin_fold("m") as step:
        assert [(state.segment, state.reference) for state in step.states()] == [("", 2), ("", 1), ("NO", 1)]


def test_incidents_are_updated_in_place(store: Store) -> None:
    first = incident("i1", opened_ms=9)
    fold(store, 1, incidents=[first, incident("i0", opened_ms=1, model="m")])
    closed = dataclasses.replace(first, status="resolved", resolved_ms=99, revision=2)
    fold(store, 2, incidents=[closed])
    assert store.incidents("m") == [incident("i0", opened_ms=1), closed]
    assert store.incidents(status="open") == [incident("i0", opened_ms=1)]
    assert store.incidents("other") == []
    with store.begin_fold("m") as step:
        assert [row.id for row in step.incidents()] == ["i0"]
        assert [row.id for row in step.incidents(resolved_since_ms=0)] == ["i0", "i1"]


def test_readings_are_found_by_place_and_time(store: Store) -> None:
    rows = [reading(block, segment=segment) for block in range(3) for segment in ("", "NO")]
    fold(store, 3, readings=[*rows, reading(0, space="output", channel="mix")])
    assert store.readings("m", "input") == rows
    assert store.readings("m", segment="NO", from_ms=10_000, to_ms=20_000) == [rows[3]]
    assert [row.space for row in store.readings("m", channel="mix")] == ["output"]
    assert store.readings("other") == []


def test_summaries_are_found_by_block(store: Store) -> None:
    fold(store, 5, merged=[delta(block, blob=bytes([block])) for block in range(5)] + [delta(2, segment="NO")])
    found = store.summaries("m", "input", segment="", from_block=1, to_block=3)
    assert [row.blob for row in found] == [b"\x01", b"\x02"]


# --- outbox -----------------------------------------------------------------------------------------------------------


def due(store: Store, now_ms: int = 0) -> list[tuple[str, str]]:
    return [(row.sink, row.notification.id) for row in store.outbox_due(now_ms, 100)]


def test_a_notification_is_stored_once_per_sink(store: Store) -> None:
    fold(store, 1, outbox=[("pager", notification("n1")), ("mail", notification("n1")), ("pager", notification("n1"))])
    store.outbox_sent("pager", ["n1"], now_ms=5)
    fold(store, 2, outbox=[("pager", notification("n1"))])
    assert due(store) == [("mail", "n1")]
    assert store.outbox_waiting()[0] == 1


def test_a_later_notification_of_an_incident_waits_for_the_earlier_one(store: Store) -> None:
    later = notification("n2", status="resolved", ends_ms=9)
    fold(store, 1, outbox=[("pager", notification("n1")), ("pager", later), ("mail", later)])
    fold(store, 2, outbox=[("pager", notification("n3", of="i2"))])
    assert due(store) == [("pager", "n1"), ("mail", "n2"), ("pager", "n3")]
    assert [row.notification.id for row in store.outbox_due(0, 100, sink="pager")] == ["n1", "n3"]
    store.outbox_failed("pager", ["n1"], due_ms=100, error="503 Service Unavailable")
    assert due(store) == [("mail", "n2"), ("pager", "n3")], "still before it, though not due"
    (row,) = (row for row in store.outbox_due(100, 100) if row.notification.id == "n1")
    assert (row.attempts, row.due_ms, row.status, row.error) == (1, 100, "pending", "503 Service Unavailable")
    store.outbox_sent("pager", ["n1"], now_ms=101)
    assert ("pager", "n2") in due(store)
    assert store.outbox_due(0, 1)[0].notification in (later, notification("n3", of="i2"))


def test_a_dead_notification_holds_nobody_up(store: Store) -> None:
    fold(store, 1, outbox=[("pager", notification("n1")), ("pager", notification("n2"))])
    store.outbox_dead("pager", ["n1"], "404 Not Found")
    assert due(store) == [("pager", "n2")]
    assert store.outbox_waiting()[0] == 1


def test_the_second_of_two_senders_does_not_undo_the_first(store: Store) -> None:
    fold(store, 1, outbox=[("pager", notification("n1"))])
    store.outbox_sent("pager", ["n1"], now_ms=1)
    after = content(store)
    store.outbox_failed("pager", ["n1"], due_ms=0, error="timed out")
    store.outbox_dead("pager", ["n1"], error="404 Not Found")
    assert content(store) == after


def claim(store: Store, now_ms: int, *, limit: int = 9, lease_ms: int = 60_000) -> list[str]:
    return [row.notification.id for row in store.outbox_claim("pager", now_ms, lease_ms, limit)]


def test_what_one_process_has_claimed_no_other_gets_until_the_lease_is_over(
    store: Store, new_store: Callable[[], Store]
) -> None:
    other = new_store()
    notes = [("pager", notification(f"n{number}", of=f"i{number}")) for number in range(3)]
    fold(store, 1, outbox=[*notes, ("mail", notification("n0"))])
    (row,) = store.outbox_claim("pager", 1_000, 60_000, 1)
    assert (row.notification.id, row.due_ms, row.attempts) == ("n0", 61_000, 0)
    assert claim(other, 1_000) == ["n1", "n2"]
    assert claim(store, 60_999) == [], "the other process may be sending them"
    assert claim(store, 61_000) == ["n0", "n1", "n2"], "it died, and its leases are over"
    store.outbox_sent("pager", ["n0"], 61_500)
    assert claim(other, 200_000) == ["n1", "n2"]
    assert store.outbox_waiting() == (3, 1_000)


def test_a_later_notification_of_an_incident_waits_for_one_that_is_claimed(
    store: Store, new_store: Callable[[], Store]
) -> None:
    other = new_store()
    fold(store, 1, outbox=[("pager", notification("firing")), ("pager", notification("resolved"))])
    assert claim(store, 0) == ["firing"]
    assert claim(other, 0) == [] and claim(store, 0) == []
    store.outbox_sent("pager", ["firing"], 5)
    assert claim(other, 5) == ["resolved"]


def test_of_processes_that_claim_at_once_each_gets_others(store: Store, new_store: Callable[[], Store]) -> None:
    fold(store, 1, outbox=[("pager", notification(f"n{number}", of=f"i{number}")) for number in range(60)])
    ready = threading.Barrier(3)
    claimed: list[str] = []

    def take(mine: Store) -> None:
        ready.wait(timeout=10)
        while found := claim(mine, 0, limit=2):
            claimed.extend(found)

    threads = [threading.Thread(target=take, args=(new_store(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    # A thread that lost every race of one look may leave early; the others go on.
    assert sorted(claimed) == sorted(f"n{number}" for number in range(60))


def test_a_failure_after_the_lease_does_not_end_the_lease_of_another_process(store: Store) -> None:
    fold(store, 1, outbox=[("pager", notification("n1"))])
    (first,) = store.outbox_claim("pager", 0, 1_000, 1)
    (second,) = store.outbox_claim("pager", 1_000, 1_000, 1)
    store.outbox_failed("pager", ["n1"], 1_001, "timed out", held_ms=first.due_ms)
    assert claim(store, 1_001) == []
    store.outbox_failed("pager", ["n1"], 1_001, "503", held_ms=second.due_ms)
    assert claim(store, 1_001) == ["n1"]


def test_a_clock_that_ran_ahead_holds_no_notification_for_ever(store: Store) -> None:
    fold(store, 1, outbox=[("pager", notification(f"n{number}", of=f"i{number}")) for number in range(2)])
    now_ms, ahead_ms = 1_000_000_000, 365 * DAY_MS
    assert claim(store, now_ms + ahead_ms, limit=1) == ["n0"]
    store.outbox_failed("pager", ["n1"], now_ms + ahead_ms + 900_000, "down")
    assert sorted(claim(store, now_ms)) == ["n0", "n1"], "nothing ever waits for longer than an hour"
    assert claim(store, now_ms) == []
    with pytest.raises(ValueError, match="expected less than"):
        claim(store, now_ms, lease_ms=3_600_000)


def about(number: str, event: str, **more: Any) -> Notification:
    return notification(f"{number}-{event}", of=number, **({"values": {"event": event}} | more))


def claim_group(store: Store, now_ms: int, *, models: Sequence[str] = ("m",), limit: int = 1000) -> list[str]:
    rows = store.outbox_claim_group(
        *("pager", now_ms, 60_000), since_ms=0, choose=lambda waiting: models if waiting.models else (), limit=limit
    )
    return [row.notification.id for row in rows]


def test_what_waits_is_told_model_by_model_with_when_people_were_told_last(
    store: Store, new_store: Callable[[], Store]
) -> None:
    fold(store, 1, outbox=[("pager", about("i1", "opened")), ("pager", about("i2", "opened", severity="warn"))])
    fold(store, 2, outbox=[("pager", about("i3", "resolved", model="n")), ("mail", about("i1", "opened"))])
    stored = {one.model: (one.page_ms, one.other_ms) for one in store.outbox_waits("pager", 1_000, 0).models}
    assert set(stored) == {"m", "n"} and None not in stored["m"] and stored["n"][0] is None
    assert claim_group(store, 1_000) == ["i1-opened", "i2-opened"]
    (busy, free) = sorted(store.outbox_waits("pager", 1_500, 0).models, key=lambda one: one.model)
    assert busy.sending and not free.sending
    store.outbox_sent("pager", ["i1-opened", "i2-opened"])
    fold(store, 3, outbox=[("pager", about("i1", "resolved"))])
    found = store.outbox_waits("pager", 5_000, 0)
    (one,) = [one for one in found.models if one.model == "m"]
    assert (one.told_ms, one.told_page_ms, one.page_ms, found.messages) == (1_000, 1_000, None, 1)
    assert store.outbox_waits("pager", 5_000, 1_001).models[0].told_ms is None, "that is long ago"
    assert store.outbox_waits("pager", 61_000, 0).messages == 0
    assert store.outbox_waits("post", 5_000, 0) == Waiting((), 0)


def test_a_group_is_claimed_whole_and_by_one(store: Store, new_store: Callable[[], Store]) -> None:
    other = new_store()
    fold(store, 1, outbox=[("pager", about(f"i{number}", "opened", severity="warn")) for number in range(5)])
    fold(store, 2, outbox=[("pager", about("i4", "raised"))])
    assert claim_group(store, 1_000, limit=3) == ["i0-opened", "i4-opened", "i4-raised"], "news of pages first"
    assert claim_group(other, 1_000) == ["i1-opened", "i2-opened", "i3-opened"]
    assert claim_group(other, 1_000) == []
    assert claim_group(other, 61_000, models=["n"]) == []
    assert len(claim_group(other, 61_000)) == 6


def test_what_was_claimed_is_claimed_again_unless_another_process_has_it(
    store: Store, new_store: Callable[[], Store]
) -> None:
    other = new_store()
    fold(store, 1, outbox=[("pager", about(f"i{number}", "opened")) for number in range(4)])
    rows = store.outbox_claim_group(*("pager", 0, 1_000), since_ms=0, choose=lambda waiting: ["m"], limit=9)
    again = store.outbox_claim_again("pager", rows[:2], 500, 1_000)
    assert [(row.notification.id, row.due_ms) for row in again] == [("i0-opened", 1_500), ("i1-opened", 1_500)]
    assert claim_group(other, 1_000) == ["i2-opened", "i3-opened"], "the lease of the others is over"
    assert store.outbox_claim_again("pager", rows[1:], 1_000, 1_000) == []


def test_what_is_held_waits_for_its_release_and_so_does_what_comes_after_it(store: Store) -> None:
    fold(store, 1, incidents=[incident("i1"), incident("i2")], outbox=[("pager", about("i1", "opened"))])
    fold(store, 2, outbox=[("pager", about("i2", "opened"))])
    assert [row.id for row in store.outbox_incidents("pager", "pending")] == ["i1", "i2"]
    store.outbox_hold("pager", ["i1"], 0)
    fold(store, 3, outbox=[("pager", about("i1", "resolved"))])
    assert [row.id for row in store.outbox_incidents("pager", "held")] == ["i1"]
    assert due(store) == [("pager", "i2-opened")] and claim_group(store, 0) == ["i2-opened"]
    store.outbox_hold("pager", ["i2"], 0)
    assert [row.id for row in store.outbox_incidents("pager", "held")] == ["i1"], "what is on its way is not held"
    store.outbox_release("pager", ["i1"])
    assert claim_group(store, 0) == ["i1-opened", "i1-resolved"]


def test_what_nobody_wants_is_settled_as_muted(store: Store) -> None:
    fold(store, 1, incidents=[incident("i1")], outbox=[("pager", about("i1", "opened"))])
    store.outbox_hold("pager", ["i1"], 0)
    fold(store, 2, outbox=[("pager", about("i1", "repeated")), ("mail", about("i1", "repeated"))])
    assert store.outbox_acknowledged("pager") == []
    store.acknowledge_incident("i1", "ana", 7)
    assert store.outbox_acknowledged("pager") == store.outbox_acknowledged("mail") == ["i1"]
    assert store.outbox_mute("pager", ["i1"], 0, event="repeated") == 1
    assert store.outbox_mute("pager", ["i1"], 0) == 1
    assert due(store) == [("mail", "i1-repeated")] and store.outbox_incidents("pager", "held") == []


def test_what_a_sink_knows_is_the_newest_that_it_took(store: Store) -> None:
    over = incident("i2", status="resolved", resolved_ms=9)
    both = [("pager", about("i1", "opened")), ("pager", about("i2", "opened"))]
    fold(store, 1, incidents=[incident("i1"), incident("i2")], outbox=both)
    assert store.outbox_last_told("pager", ["i1", "i2"]) == {} and store.outbox_told("pager", 0) == []
    store.outbox_sent("pager", ["i1-opened", "i2-opened"], 1_000)
    fold(store, 2, incidents=[over], outbox=[("pager", about("i1", "raised")), ("pager", about("i2", "resolved"))])
    assert store.outbox_last_told("pager", ["i1", "i2", "i3"]) == {"i1": "opened", "i2": "opened"}
    assert [one.id for one in store.outbox_told("pager", 0)] == ["i1-opened", "i2-opened"], "it knows of no end"
    store.outbox_sent("pager", ["i1-raised", "i2-resolved"], 2_000)
    assert store.outbox_last_told("pager", ["i1", "i2"]) == {"i1": "raised", "i2": "resolved"}
    assert [one.id for one in store.outbox_told("pager", 2_000)] == ["i1-raised", "i2-resolved"]
    assert [one.id for one in store.outbox_told("pager", 2_001)] == ["i1-raised"]
    assert store.outbox_told("mail", 0) == []
    fold(store, 3, incidents=[incident("i2")], outbox=[("pager", about("i2", "reopened"))])
    assert [one.id for one in store.outbox_told("pager", 2_001)] == ["i1-raised"], "it is not told that i2 came back"


def test_open_incidents_that_a_sink_knows_of_are_counted_with_their_pages(store: Store) -> None:
    rows = [incident("i1"), incident("i2", severity="warn"), incident("i3", status="resolved", resolved_ms=9)]
    known = [("pager", about(f"i{number}", "opened")) for number in (1, 2, 3)]
    fold(store, 1, incidents=[*rows, incident("i4"), incident("i5", model="n")], outbox=known)
    assert store.open_incidents("pager", ["m"]) == {"m": (2, 1)}, "i4 is not told"
    store.outbox_sent("pager", ["i1-opened", "i3-opened"], 1)
    assert store.open_incidents("pager", ["m", "n"]) == {"m": (2, 1), "n": (0, 0)}
    store.outbox_hold("pager", ["i2"], 0)
    assert store.open_incidents("pager", ["m"]) == {"m": (1, 1)}, "a mute holds i2 back"
    assert store.open_incidents("mail", ["m"]) == {"m": (0, 0)}


def test_a_refused_notification_is_known_until_it_is_settled(store: Store) -> None:
    fold(store, 1, outbox=[("pager", notification("n1")), ("mail", notification("n1"))])
    assert not store.outbox_refused("pager")
    store.outbox_failed("pager", ["n1"], due_ms=9, error="503")
    assert store.outbox_refused("pager") and not store.outbox_refused("mail")
    store.outbox_sent("pager", ["n1"], 9)
    assert not store.outbox_refused("pager")


def test_nothing_waits_in_an_empty_outbox(store: Store) -> None:
    assert store.outbox_waiting() == (0, None)
    assert claim(store, 0) == []


# --- references -------------------------------------------------------------------------------------------------------

REFERENCE = ReferenceRow("m", "input", 1, "references/m/input/1", 50_000, 64, "ab12", 1_000, True)


def version(number: int, *, active: bool = False) -> ReferenceRow:
    return dataclasses.replace(REFERENCE, version=number, active=active)


def test_exactly_one_reference_is_active(store: Store) -> None:
    assert store.active_reference("m", "input") is None
    for row in (version(1, active=True), version(2), version(3, active=True)):
        store.add_reference(row)
    assert store.active_reference("m", "input") == version(3, active=True)
    store.activate_reference("m", "input", 1, now_ms=5)
    assert store.references("m", "input") == [version(1, active=True), version(2), version(3)]
    assert store.references("m", "output") == []


def test_a_reference_that_is_not_there_cannot_be_activated(store: Store) -> None:
    store.add_reference(version(1, active=True))
    with pytest.raises(InvalidReference, match=r"no reference 7 of m/input; there is: 1"):
        store.activate_reference("m", "input", 7, now_ms=5)
    assert store.active_reference("m", "input") == version(1, active=True)


def test_a_checkpoint_brings_its_references(store: Store) -> None:
    store.add_reference(version(1, active=True))
    output = dataclasses.replace(REFERENCE, space="output")
    store.commit(Checkpoint("m", [advance()], references=[version(2), output]))
    assert store.active_reference("m", "input") == version(2, active=True)
    assert store.active_reference("m", "output") == output


def test_a_checkpoint_with_a_reference_that_exists_leaves_no_trace(store: Store) -> None:
    store.add_reference(version(1, active=True))
    before = content(store)
    with pytest.raises(OwnershipLost, match="Reference 1 of m/input exists already"):
        store.commit(Checkpoint("m", [advance()], kept=[candidate(1)], references=[version(1, active=True)]))
    assert content(store) == before


def test_of_two_builders_of_a_version_one_wins(store: Store, new_store: Callable[[], Store]) -> None:
    ready = threading.Barrier(2)
    outcomes: list[str] = []

    def build(builder: int, mine: Store) -> None:
        mine.references("m", "input")
        ready.wait(timeout=10)
        try:
            mine.add_reference(dataclasses.replace(REFERENCE, records=builder))
            outcomes.append("written")
        except OwnershipLost:
            outcomes.append("lost")

    threads = [threading.Thread(target=build, args=(builder, new_store())) for builder in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(outcomes) == ["lost", "written"]
    assert len(store.references("m", "input")) == 1


# --- retention --------------------------------------------------------------------------------------------------------


def test_old_rows_go_and_young_ones_stay(store: Store, clock: Clock) -> None:
    for day, block in ((0, 0), (40, 1)):
        clock.ms = day * DAY_MS
        at = block * 10
        store.commit(
            Checkpoint(
                "m",
                [advance(P0, at or None, at + 10)],
                kept=[candidate(at)],
                dead_letters=[letter(at)],
                gaps=[Gap(P0, at, at + 10, "damaged", "")],
            )
        )
        fold(
            store,
            block + 1,
            merged=[delta(block)],
            readings=[reading(block)],
            stats=[BlockStatRow("", block, 0, 1, 0, 10, 0, 0, math.nan, (0,) * 10)],
            verdicts=[verdict(block)],
            outbox=[("pager", notification(f"sent {block}")), ("pager", notification(f"waits {block}", of="i2"))],
            closure=Closure(block, "idle", {}, clock.ms),
        )
        store.outbox_sent("pager", [f"sent {block}"], now_ms=clock.ms)
    every = Retention(kept_days=30, dead_letters_days=30, readings_days=30, summaries_days=30, outbox_days=30)
    tables = ("kept", "dead_letters", "readings", "block_stats", "verdicts", "summaries", "closures", "outbox", "gaps")
    gone = dict.fromkeys(tables, 1) | {"remembered": 0, "answers": 0, "truths": 0}
    assert store.prune(clock.ms, every) == gone
    assert [row.offset for row in store.kept("m")] == [10]
    assert [row.offset for row in store.dead_letters("m")] == [10]
    assert [row.block for row in store.readings("m")] == [1]
    assert [row.noticed_ms for row in store.gaps("m")] == [40 * DAY_MS]
    assert [row.block for row in store.summaries("m", "input", segment="")] == [1]
    assert store.outbox_waiting()[0] == 2, "what is not sent is never deleted"
    assert store.prune(clock.ms, every) == dict.fromkeys(gone, 0)
    assert store.prune(clock.ms + 40 * DAY_MS, every) == gone
    assert store.totals("m").records == 20, "counts are for ever"


def write_at(store: Store, clock: Clock, *stamps: int) -> None:
    """Keep a record at each of these wall-clock times, whose offset is its place in the order of writing."""
    for at, clock.ms in enumerate(stamps):
        store.commit(Checkpoint("m", [advance(P0, at or None, at + 1)], kept=[candidate(at)]))


def left(store: Store, now_ms: int) -> list[int]:
    store.prune(now_ms, Retention(kept_days=30))
    return sorted(row.offset for row in store.kept("m"))


def test_a_clock_that_ran_ahead_keeps_no_rows_for_ever(store: Store, clock: Clock) -> None:
    write_at(store, clock, 0, 400 * DAY_MS, 400 * DAY_MS, 1 * DAY_MS, 20 * DAY_MS)
    assert left(store, 30 * DAY_MS + 1) == [1, 2, 3, 4], "written after the first, nobody knows how long after"
    assert left(store, 31 * DAY_MS + 1) == [4], "older than the one that is too old now"
    assert left(store, 51 * DAY_MS) == []


def test_a_clock_that_was_set_back_takes_no_young_rows(store: Store, clock: Clock) -> None:
    write_at(store, clock, 100 * DAY_MS, 120 * DAY_MS, 5, 6)
    assert left(store, 121 * DAY_MS) == [0, 1, 2, 3]
    assert left(store, 0) == [0, 1, 2, 3]
    assert left(store, 131 * DAY_MS) == [1, 2, 3]
    assert left(store, 151 * DAY_MS) == []


def test_rows_above_the_cap_go_oldest_first(store: Store) -> None:
    store.commit(
        Checkpoint("m", [advance()], kept=[candidate(n) for n in range(7)], dead_letters=[letter(n) for n in range(5)])
    )
    gone = store.prune(2_000, Retention(kept_rows=4, dead_letter_rows=5))
    assert (gone["kept"], gone["dead_letters"]) == (3, 0)
    assert sorted(row.offset for row in store.kept("m")) == [3, 4, 5, 6]


def test_pruning_goes_in_small_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.database.retention._ROWS", 3)
    store.commit(Checkpoint("m", [advance()], kept=[candidate(n) for n in range(10)]))
    transactions = 0
    writing = Database.writing

    def counted(self: Database) -> Any:
        nonlocal transactions
        transactions += 1
        return writing(self)

    monkeypatch.setattr(Database, "writing", counted)
    assert store.prune(2_000, Retention(kept_rows=0))["kept"] == 10
    # 3 + 3 + 3 + 1 rows; the last is short, which says that it was the last.
    assert transactions == 4


def test_a_verdict_is_not_lost_to_a_fold_that_began_before_it(store: Store, new_store: Callable[[], Store]) -> None:
    fold(store, 1, incidents=[incident("i1"), incident("i2")])
    with store.begin_fold("m") as step:
        seen = {row.id: row for row in step.incidents()}
        called = new_store().call_incident("i1", "false")
        assert (called.detail["verdict"], called.detail["strength"]) == ("false", 7.5)
        with pytest.raises(OwnershipLost):
            step.commit(result(2, incidents=[dataclasses.replace(seen["i1"], revision=2)]))
    with store.begin_fold("m") as step:
        (again,) = [row for row in step.incidents() if row.id == "i1"]
        step.commit(result(2, incidents=[dataclasses.replace(again, revision=2)]))
    first, second = store.incidents("m")
    assert (first.revision, first.detail["verdict"]) == (2, "false")
    assert "verdict" not in second.detail


def test_a_verdict_can_be_taken_back_and_needs_an_incident(store: Store) -> None:
    fold(store, 1, incidents=[incident("i1")])
    store.call_incident("i1", "false")
    assert store.call_incident("i1", "real").detail["verdict"] == "real"
    assert store.incidents("m")[0].detail["verdict"] == "real"
    with pytest.raises(InvalidInput, match="no incident i9"):
        store.call_incident("i9", "false")


def test_what_was_judged_is_from_the_first_reading_to_the_last(store: Store) -> None:
    assert store.judged_ms("m") is None
    rows = [reading(block) for block in (3, 1, 7)]
    fold(store, 8, readings=rows)
    assert store.judged_ms("m") == (min(row.start_ms for row in rows), max(row.end_ms for row in rows))


# --- mutes and acknowledgement ----------------------------------------------------------------------------------------


def mute(number: str = "0a1b2c3d", **more: Any) -> MuteRow:
    values: dict[str, Any] = {
        "model": "m",
        "kind": "",
        "space": "",
        "segment": "",
        "from_ms": 1_000,
        "until_ms": 2_000,
        "reason": "the topic moves",
        "by": "kari",
        "created_ms": 900,
    }
    return MuteRow(id=number, **(values | more))


def test_mutes_come_back_as_they_were_and_are_in_force_from_when_until_when(
    store: Store, new_store: Callable[[], Store]
) -> None:
    later = mute("b", kind="drift", space="input", segment="country=NO", from_ms=1_500, until_ms=9_000)
    store.add_mute(later)
    store.add_mute(mute("a"))
    other = new_store()
    assert other.mutes(None) == [mute("a"), later]
    found = {now: [row.id for row in other.mutes(now)] for now in (999, 1_000, 1_500, 1_999, 2_000, 8_999, 9_000)}
    assert found == {999: [], 1_000: ["a"], 1_500: ["a", "b"], 1_999: ["a", "b"], 2_000: ["b"], 8_999: ["b"], 9_000: []}


def test_a_mute_ends_when_somebody_says_so_and_only_once(store: Store) -> None:
    store.add_mute(mute())
    assert store.end_mute("0a1b2c3d", 1_700) == mute(until_ms=1_700)
    assert store.mutes(None) == [mute(until_ms=1_700)] and store.mutes(1_700) == []
    with pytest.raises(InvalidInput, match="is over already"):
        store.end_mute("0a1b2c3d", 1_800)
    with pytest.raises(InvalidInput, match="no mute 99"):
        store.end_mute("99", 1_800)


def test_a_mute_that_is_ended_before_it_begins_never_is_in_force(store: Store) -> None:
    store.add_mute(mute())
    assert store.end_mute("0a1b2c3d", 500) == mute(until_ms=1_000)
    assert all(store.mutes(now) == [] for now in (500, 1_000, 1_500))


def test_a_mute_covers_what_it_names_and_what_it_leaves_open_is_all() -> None:
    row, told = incident("i1"), notification("n1", segment="NO")
    for covering in (mute(model=""), mute(), mute(kind="drift", space="input", segment="NO")):
        assert covering.covers(row) and covering.covers(told)
    for other in (mute(model="x"), mute(kind="gap"), mute(space="output"), mute(segment="DE")):
        assert not other.covers(row) and not other.covers(told)
    assert not mute(segment="NO").covers(notification("n2"))


def test_what_a_mute_says_may_hold_any_text(store: Store) -> None:
    store.add_mute(mute(reason="a\0b \ud800 café", by="日本"))
    [found] = store.mutes(None)
    assert "café" in found.reason and "\0" not in found.reason and found.by == "日本"


def test_an_acknowledgement_is_never_overwritten_by_a_fold_that_began_before(
    store: Store, new_store: Callable[[], Store]
) -> None:
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(1, [], [], [], [incident("i1")], []))
    with store.begin_fold("m") as fold:
        known = fold.incidents(resolved_since_ms=0)
        told = new_store().acknowledge_incident("i1", "kari", 77)
        assert told.detail["acknowledged"] == {"by": "kari", "at_ms": 77} and told.detail["strength"] == 7.5
        with pytest.raises(OwnershipLost):
            fold.commit(FoldResult(2, [], [], [], [dataclasses.replace(known[0], revision=2)], []))
    assert store.incidents() == [told]


def test_only_an_open_incident_can_be_acknowledged(store: Store) -> None:
    with store.begin_fold("m") as fold:
        fold.commit(FoldResult(1, [], [], [], [incident("i1", status="resolved", resolved_ms=9)], []))
    with pytest.raises(InvalidInput, match="resolved already"):
        store.acknowledge_incident("i1", "kari", 77)
    with pytest.raises(InvalidInput, match="no incident i9"):
        store.acknowledge_incident("i9", "kari", 77)
    assert "acknowledged" not in store.incidents()[0].detail


def test_silences_are_the_longest_times_between_blocks_in_event_time_and_as_they_were_closed(
    store: Store, clock: Clock
) -> None:
    assert store.silences("m", days=1, most=9) == (Silences((), 0.0), Silences((), 0.0))
    for block, closed_ms in ((0, 5_000), (100, 6_000), (101, 6_000), (105, 3_606_000), (200_000, 3_606_000)):
        clock.ms = closed_ms
        rows = [
            BlockStatRow(space, block, block * 10_000, (block + 1) * 10_000, 0, 5, 0, 0, 0.5, (0,) * 10)
            for space in ("", "input")
        ]
        with store.begin_fold("m") as step:
            step.commit(FoldResult(block + 1, [], [], [], [], [], stats=rows))
    event, closed = store.silences("m", days=40, most=2)
    assert event == Silences(((200_000 - 105) * 10.0, 1_000.0), 2_000_000.0)
    assert closed == Silences((3_600.0, 1.0), 3_601.0), "blocks that are closed together have nothing between them"
    assert store.silences("m", days=1, most=9)[0] == Silences((), 0.0), "the far past is forgotten"
    assert store.silences("other", days=40, most=2)[0] == Silences((), 0.0)


def test_a_version_is_deployed_in_its_first_block_whatever_comes_later(store: Store) -> None:
    first = [DeploymentRow("2.0 \0 é", 7, 70_000), DeploymentRow("2.1", 7, 70_000)]
    later = [DeploymentRow("2.1", 9, 90_000), DeploymentRow("1.9", 8, 80_000)]
    for deployments in (first, later):
        with store.begin_fold("m") as step:
            step.commit(FoldResult(10, [], [], [], [], [], deployments=deployments))
    assert store.deployments("m") == [dataclasses.replace(first[0], version="2.0 \ufffd é"), first[1], later[1]]
    assert store.deployments("other") == []
