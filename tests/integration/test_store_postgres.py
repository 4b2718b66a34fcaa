"""The store on a real PostgreSQL that is restarted, killed, locked, full, read-only or not there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import connectors.database.store as store_module
from connectors.database.lane import LaneStore
from connectors.database.rows import Advance, BackfillRow, Checkpoint, FoldResult, IncidentRow, SummaryDelta
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import DeadLetter, Partition
from detectors.errors import OwnershipLost, StoreBusy, StoreError, StoreFull, StoreUnreachable
from tests.frozen_worker import frozen_worker, thawed
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.postgres
P0, P1 = Partition("orders", 0), Partition("orders", 1)
LETTER = DeadLetter(P0, 3, -1, "bad_json", "", b"", 0)


def checkpoint(expected: int | None, to: int) -> Checkpoint:
    return Checkpoint(
        "m", [Advance(P0, expected, to, 0, 1, 0, 0)], [SummaryDelta("i", "", 0, 1, P0, to, b"")], dead_letters=[LETTER]
    )


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def url(database: str) -> str:
    """The address of an empty database: one for all tests, because a new one costs 8 MB of disk and half a second."""
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET lock_timeout = 5000; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()
    return database


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url, busy_timeout_s=0.2) as opened:
        opened.migrate()
        opened.commit(checkpoint(None, 1))
        yield opened


@pytest.fixture
def sql(url: str) -> Iterator[Callable[[str], None]]:
    """Runs a statement on the same database, over a connection of its own."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def run(statement: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    yield run
    engine.dispose()


KILL_THE_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'driftd'"
)


def test_check_names_the_server_and_the_schema(store: Store) -> None:
    assert "postgresql" in store.check() and "server 1" in store.check() and "schema 0007" in store.check()


def test_after_a_restart_of_the_server_the_next_checkpoint_is_written(tmp_path: Path, postgres: PostgresServer) -> None:
    # The shared server is asked for only so that the test is skipped where there is none.
    server = PostgresServer(tmp_path / "own")
    try:
        url = server.new_database()
        with Store.open(url) as store:
            store.migrate()
            store.commit(checkpoint(None, 1))
            server.stop()
            with pytest.raises(StoreUnreachable, match="does not answer") as caught:
                store.commit(checkpoint(1, 2))
            assert caught.value.retryable and isinstance(caught.value.__cause__, sa.exc.OperationalError)
            server.start()
            store.commit(checkpoint(1, 2))
            assert store.positions("m", [P0]) == {P0: 2}
            assert store.totals("m").records == 2
    finally:
        server.stop()


def test_a_connection_that_was_cut_between_two_checkpoints_is_not_noticed(
    store: Store, sql: Callable[[str], None]
) -> None:
    sql(KILL_THE_OTHERS)
    store.commit(checkpoint(1, 2))
    assert store.positions("m", [P0]) == {P0: 2}


def test_a_connection_that_is_cut_in_the_middle_writes_nothing_and_the_next_try_succeeds(
    store: Store, sql: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = store_module.letter_columns

    def cut(model: str, letter: DeadLetter, stored_ms: int) -> dict[str, object]:
        sql(KILL_THE_OTHERS)
        return columns(model, letter, stored_ms)

    monkeypatch.setattr(store_module, "letter_columns", cut)
    with pytest.raises(StoreUnreachable) as caught:
        store.commit(checkpoint(1, 2))
    assert caught.value.retryable and isinstance(caught.value.__cause__, sa.exc.OperationalError)
    monkeypatch.undo()
    assert store.positions("m", [P0]) == {P0: 1}
    store.commit(checkpoint(1, 2))
    assert store.dead_letter_counts("m") == {"bad_json": 2}


def test_a_fold_that_loses_its_connection_can_be_done_again(store: Store, sql: Callable[[str], None]) -> None:
    with pytest.raises(StoreUnreachable), store.begin_fold("m") as fold:
        sql(KILL_THE_OTHERS)
        fold.deltas(below_block=1)
    with store.begin_fold("m") as fold:
        assert len(fold.deltas(below_block=1)) == 1
        fold.commit(FoldResult(1, [], [], [], [], []))


def test_a_row_that_somebody_holds_makes_the_store_busy(store: Store, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as other:
        other.exec_driver_sql("SELECT 1 FROM partitions FOR UPDATE")
        with pytest.raises(StoreBusy, match="lock") as caught:
            store.commit(checkpoint(1, 2))
        assert caught.value.retryable
    engine.dispose()
    store.commit(checkpoint(1, 2))


def test_two_workers_with_crossed_partitions_never_wait_in_a_ring(url: str, store: Store) -> None:
    """Rows are taken in one order: whatever order the advances come in, no deadlock is found by the server."""
    store.commit(Checkpoint("m", [Advance(P1, None, 1, 0, 1, 0, 0)]))
    there = [Advance(P0, 1, 1, 0, 0, 0, 0), Advance(P1, 1, 1, 0, 0, 0, 0)]
    failures: list[StoreError] = []

    def work(advances: list[Advance]) -> None:
        with Store.open(url, busy_timeout_s=10) as mine:
            for _ in range(50):
                try:
                    mine.commit(Checkpoint("m", advances))
                except StoreError as error:
                    failures.append(error)

    threads = [threading.Thread(target=work, args=(advances,)) for advances in (there, there[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []


LANE = "m~1"


def a_lane_at_its_end(store: Store) -> BackfillRow:
    row = BackfillRow("m-1", "m", LANE, "scoring", {P1: (0, 1, None)}, {}, 0)
    store.plan_backfill(row, [])
    lane = LaneStore.beside(store, "m", LANE)
    counts = [SummaryDelta("", "", 0, 0, P1, 0, b"counts")]
    lane.commit(Checkpoint("m", [Advance(P1, None, 1, 0, 1, 0, 0)], counts))
    incident = IncidentRow("a", "m", "drift", "i", "", "page", "open", 0, 0, 0, None, 1, 1, "t", "t", {})
    with lane.begin_fold("m") as fold:
        fold.deltas(1)
        fold.commit(FoldResult(1, counts, [], [], [incident], []))
    return row


def handed_over_beside(store: Store, url: str, row: BackfillRow, first: str, then: str) -> list[bool | StoreError]:
    """What handing over says while another process is between two statements of one transaction."""
    said: list[bool | StoreError] = []
    engine = sa.create_engine(url)

    def hand_over() -> None:
        with Store.open(url, busy_timeout_s=10) as mine:
            try:
                said.append(mine.hand_over(row, 0, joins=True, end_ms=0))
            except StoreError as error:
                said.append(error)

    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with engine.connect() as other, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
        other.exec_driver_sql(first)
        thread = threading.Thread(target=hand_over)
        thread.start()
        deadline = time.monotonic() + 10
        while not said and not looking.exec_driver_sql(waits).scalar():
            assert time.monotonic() < deadline
        other.exec_driver_sql(then)
        other.commit()
        thread.join(timeout=20)
    engine.dispose()
    return said


def test_a_step_of_a_lane_and_its_end_in_another_process_never_wait_in_a_ring(url: str, store: Store) -> None:
    row = a_lane_at_its_end(store)
    step = "UPDATE folds SET version = version + 1 WHERE model = 'm~1'"
    assert handed_over_beside(store, url, row, step, "UPDATE incidents SET revision = 2 WHERE model = 'm~1'") == [True]
    assert [(found.model, found.revision) for found in store.incidents()] == [("m", 2)]


def test_a_lane_whose_end_meets_the_first_step_of_the_live_fold_looks_again(url: str, store: Store) -> None:
    row = a_lane_at_its_end(store)
    step = "INSERT INTO folds (model, version, next_block) VALUES ('m', 1, 1)"
    assert handed_over_beside(store, url, row, step, "SELECT 1") == [False]
    assert store.incidents() == [], "nothing is handed over in part"
    assert store.hand_over(row, 0, joins=True, end_ms=0)
    assert [found.model for found in store.incidents()] == ["m"]


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        ("53100", StoreFull, True),
        ("40P01", StoreBusy, True),
        ("57014", StoreBusy, True),
        ("57P01", StoreUnreachable, True),
        ("42501", StoreError, False),
        ("XX000", StoreError, False),
    ],
)
def test_what_the_server_raises_is_translated_and_rolled_back(
    store: Store, sql: Callable[[str], None], code: str, kind: type[StoreError], retryable: bool
) -> None:
    sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'no such luck' USING ERRCODE = '{code}'; END $$"
    )
    sql("CREATE TRIGGER refuse BEFORE INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION refuse()")
    with pytest.raises(kind, match="no such luck") as caught:
        store.commit(checkpoint(1, 2))
    assert type(caught.value) is kind and caught.value.retryable is retryable
    sql("DROP TRIGGER refuse ON dead_letters")
    store.commit(checkpoint(1, 2))


def test_a_standby_or_read_only_database_is_named_so(store: Store, sql: Callable[[str], None], database: str) -> None:
    name = sa.make_url(database).database
    store.close()  # the setting holds for connections made from now on
    sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        with pytest.raises(StoreFull, match=r"read-only.*primary"):
            store.commit(checkpoint(1, 2))
    finally:
        sql(f'SET default_transaction_read_only = off; ALTER DATABASE "{name}" RESET default_transaction_read_only')
    store.close()
    store.commit(checkpoint(1, 2))


def test_connections_made_while_a_database_was_read_only_do_not_stay_so(
    store: Store, sql: Callable[[str], None], database: str
) -> None:
    name = sa.make_url(database).database
    sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        sql(KILL_THE_OTHERS)  # as a failover does; the next connection is one that may only read
        for _ in range(2):
            with pytest.raises(StoreFull, match="read-only") as caught:
                store.commit(checkpoint(1, 2))
            assert caught.value.retryable
        assert store.positions("m", [P0]) == {P0: 1}
    finally:
        sql(f'SET default_transaction_read_only = off; ALTER DATABASE "{name}" RESET default_transaction_read_only')
    store.commit(checkpoint(1, 2))
    assert store.positions("m", [P0]) == {P0: 2}


# --- several workers --------------------------------------------------------------------------------------------------


def test_two_zombies_write_nothing(store: Store, url: str) -> None:
    with frozen_worker(url, "outside", 1) as first, frozen_worker(url, "outside", 1) as second:
        store.commit(checkpoint(1, 2))
        assert [thawed(first), thawed(second)] == ["OwnershipLost", "OwnershipLost"]
    assert store.positions("m", [P0]) == {P0: 2} and store.totals("m").records == 2


def test_a_worker_frozen_in_a_transaction_holds_its_partitions_for_a_while_only(store: Store, url: str) -> None:
    store.commit(Checkpoint("m", [Advance(P1, None, 1, 0, 1, 0, 0)]))
    with frozen_worker(url, "inside", 1) as frozen:
        # Six times the time-out that the frozen one opened its store with, half a second.
        deadline = time.monotonic() + 30
        refusals = 0
        while True:
            try:
                store.commit(checkpoint(1, 2))
                break
            except StoreBusy as error:
                assert error.retryable and time.monotonic() < deadline
                refusals += 1
                store.commit(Checkpoint("m", [Advance(P1, refusals, refusals + 1, 0, 1, 0, 0)]))  # others go on
        assert refusals >= 1
        assert thawed(frozen) == "StoreUnreachable"
    assert store.positions("m", [P0, P1]) == {P0: 2, P1: refusals + 1}
    assert store.totals("m").records == 2 + refusals + 1
    assert store.dead_letters("m", 9) == [LETTER] * 2, "of the two checkpoints before and after"


class Stream:
    """One worker that writes checkpoints and folds, and does again what the database refuses."""

    def __init__(self, store: Store) -> None:
        self.stopping = threading.Event()
        self.refused = 0
        self.problem: BaseException | None = None
        self._store = store
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join(timeout=60)

    def wait_for(self, offset: int, timeout_s: float) -> int:
        """Until the partition stands there."""
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.problem is None, self.problem
            with contextlib.suppress(StoreUnreachable):
                at = self._store.positions("m", [P0]).get(P0, 0)
                if at >= offset:
                    return at
            assert time.monotonic() < deadline, f"at {at} after {timeout_s} s, not at {offset}"
            self.stopping.wait(0.01)

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                try:
                    at = self._store.positions("m", [P0])[P0]
                    self._store.commit(checkpoint(at, at + 1))
                    self._fold(at + 1)
                except (StoreUnreachable, OwnershipLost):
                    self.refused += 1
                    self.stopping.wait(0.01)
        except BaseException as error:
            self.problem = error

    def _fold(self, block: int) -> None:
        with self._store.begin_fold("m") as fold:
            seen = [*fold.late_deltas(), *fold.deltas(below_block=block)]
            merged = [
                SummaryDelta("i", "", fold.version, 1, P0, 0, str(len(seen)).encode())  # one summary for each step
            ]
            told = Notification(
                *(f"step {fold.version}", "i1", "m", "firing", "page", "m", "drift", "i", "", "Drift", "It moved."),
                *(0, None, {}),
            )
            fold.commit(FoldResult(block, merged, [], [], [], [("pager", told)]))


def test_a_server_killed_and_restarted_in_the_middle_of_the_work_loses_and_doubles_nothing(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    # The shared server is asked for only so that the test is skipped where there is none.
    server = PostgresServer(tmp_path / "own")
    try:
        url = server.new_database()
        with Store.open(url) as store:
            store.migrate()
            store.commit(checkpoint(None, 1))
            with Stream(store) as stream:
                at = stream.wait_for(5, timeout_s=30)
                for end in (server.kill, server.stop, server.kill, server.kill, server.stop):
                    end()
                    server.start()
                    at = stream.wait_for(at + 5, timeout_s=5)
                assert stream.refused >= 5
            at = stream.wait_for(at, timeout_s=5)
            with store.begin_fold("m") as fold:
                steps = fold.version
                left = [*fold.late_deltas(), *fold.deltas(below_block=10**9)]
            folded = [int(row.blob) for row in store.summaries("m", "i", segment="")]
            assert len(folded) == steps
            assert store.totals("m").records == sum(folded) + len(left) == at
            assert store.dead_letter_counts("m") == {"bad_json": at}
            assert store.outbox_waiting()[0] == steps
    finally:
        server.stop()


def test_a_database_that_does_not_exist_names_the_command(url: str) -> None:
    other = sa.make_url(url).set(database="nowhere").render_as_string(hide_password=False)
    with Store.open(other) as store, pytest.raises(StoreError, match="createdb") as caught:
        store.check()
    assert not caught.value.retryable


def test_no_server_at_the_address_is_worth_a_retry(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://postgres@/driftd?host={tmp_path}"
    with Store.open(url) as store, pytest.raises(StoreUnreachable, match="does not answer") as caught:
        store.migrate()
    assert caught.value.retryable


def test_an_unknown_user_is_not_worth_a_retry(url: str) -> None:
    other = sa.make_url(url).set(username="nobody_knows").render_as_string(hide_password=False)
    with Store.open(other) as store, pytest.raises(StoreError, match="refuses the login") as caught:
        store.check()
    assert not caught.value.retryable
