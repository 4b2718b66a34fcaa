"""The store on SQLite: addresses, files that cannot be used, locks, full disks, and what importing it costs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

import connectors.database
from connectors.database import schema
from connectors.database.columns import from_json, notification_from_json, notification_to_json, to_json
from connectors.database.connection import network_file_system
from connectors.database.rows import Advance, Checkpoint, FoldResult, SummaryDelta
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Partition
from detectors.errors import InvalidSettings, MissingExtra, StoreBusy, StoreError, StoreFull, StoreUnreachable

ROOT = Path(__file__).resolve().parents[2]
P0 = Partition("orders", 0)


def checkpoint(expected: int | None, to: int, *, blob: bytes = b"") -> Checkpoint:
    return Checkpoint("m", [Advance(P0, expected, to, 0, 1, 0, 0)], [SummaryDelta("i", "", 0, 1, P0, to, blob)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db", busy_timeout_s=0.2) as opened:
        opened.migrate()
        yield opened


def test_the_page_of_the_database_has_a_row_for_each_table() -> None:
    page = (ROOT / "docs/database.md").read_text()
    rows = page[page.index("| table | one row per") :].partition("\n\n")[0].splitlines()
    assert set(re.findall("`([a-z_]+)`", " ".join(row.split("|")[1] for row in rows))) == set(schema.metadata.tables)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no address of a database"),
        ("driftd.db", "no address of a database"),
        ("mysql://root:hunter2@db/driftd", "mysql://, which driftd does not know"),
        ("postgresql://db/driftd", r"postgresql\+psycopg://USER"),
        ("postgresql+psycopg2://db/driftd", "does not know"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:driftd.db", "names no file"),
        ("sqlite:///driftd.db?mode=ro", "without host and options"),
        ("sqlite://driftd.db", "without host and options"),
        ("sqlite:////nowhere/at/all/driftd.db", "mkdir -p /nowhere/at/all"),
        ("sqlite:////tmp", "Name a file in it"),
        ("postgresql+psycopg://user:hunter2@db:port/driftd", "no address of a database"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_cure(url: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        Store.open(url)
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None


def test_postgresql_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'driftd\[postgres\]'"):
        Store.open("postgresql+psycopg://db/driftd")


def test_opening_touches_nothing(tmp_path: Path) -> None:
    Store.open(f"sqlite:///{tmp_path}/driftd.db").close()
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_in_no_message() -> None:
    url = "postgresql+psycopg://user:hunter2@127.0.0.1:1/driftd"
    with Store.open(url) as store, pytest.raises(StoreUnreachable) as caught:
        store.check()
    assert caught.value.retryable
    assert "127.0.0.1:1/driftd" in str(caught.value)
    assert "hunter2" not in str(caught.value)


MOUNTS = r"""/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local xfs rw 0 0
//nas/models /mnt/my\040nas cifs rw 0 0
me@host: /mnt/ssh fuse.sshfs rw 0 0
/dev/sdc1 /mnt/over ext4 rw 0 0
server:/over /mnt/over nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/driftd.db", None),
        ("/home/me/driftd.db", "nfs4"),
        ("/home/local/driftd.db", None),
        ("/homeland/driftd.db", None),
        ("/mnt/my nas/driftd.db", "cifs"),
        ("/mnt/ssh/a/b/driftd.db", "fuse.sshfs"),
        ("/mnt/over/driftd.db", "nfs"),
    ],
)
def test_a_network_file_system_is_told_by_the_deepest_mount(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_a_file_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share, link = tmp_path / "share", tmp_path / "link"
    share.mkdir()
    link.symlink_to(share)
    monkeypatch.setattr("connectors.database.connection._mounts", lambda: f"server:/x {share} nfs rw 0 0\n")
    for folder in (share, link):
        with pytest.raises(InvalidSettings, match=r"network file system \(nfs\).*use PostgreSQL"):
            Store.open(f"sqlite:///{folder}/driftd.db")


# --- files that cannot be used ----------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary")
    with pytest.raises(StoreError, match="is not a SQLite database") as caught:
        Store.open(f"sqlite:///{path}")
    assert not caught.value.retryable
    assert path.read_text() == "Dear diary"


@pytest.mark.parametrize("damage", [slice(16, 4096), slice(4096, None)])
def test_a_damaged_file_is_an_error_that_no_retry_mends(tmp_path: Path, damage: slice) -> None:
    path = tmp_path / "driftd.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.migrate()
        store.commit(checkpoint(None, 1))
    content = bytearray(path.read_bytes())
    content[damage] = b"\xa5" * len(content[damage])
    path.write_bytes(content)
    with Store.open(f"sqlite:///{path}") as store, pytest.raises(StoreError, match="damaged") as caught:
        store.commit(checkpoint(1, 2))
    assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, (sa.exc.DatabaseError, sqlite3.DatabaseError))


@contextlib.contextmanager
def _someone_else() -> Iterator[Path]:
    """A folder, and the effective user "nobody" if we are root, for whom no file is read-only."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    user = os.geteuid()
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def _become_nobody() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_read_only_file_is_refused_when_it_is_opened() -> None:
    with _someone_else() as folder:
        path = folder / "driftd.db"
        with Store.open(f"sqlite:///{path}") as store:
            store.migrate()
        path.chmod(0o444)
        _become_nobody()
        with pytest.raises(StoreFull, match=rf"{path} is read-only for this user\. Type: chown"):
            Store.open(f"sqlite:///{path}")


def test_a_read_only_folder_is_refused_when_it_is_opened() -> None:
    with _someone_else() as folder:
        folder.chmod(0o555)
        _become_nobody()
        with pytest.raises(StoreFull, match=rf"{folder} is read-only for this user"):
            Store.open(f"sqlite:///{folder}/driftd.db")


def test_a_database_that_turns_read_only_is_told_from_one_that_is_full(store: Store) -> None:
    _on_every_connection(store, "PRAGMA query_only = ON")
    with pytest.raises(StoreFull, match="read-only") as caught:
        store.commit(checkpoint(None, 1))
    assert caught.value.retryable and isinstance(caught.value.__cause__, sa.exc.OperationalError)


def test_a_full_disk_writes_nothing_and_the_next_try_succeeds(store: Store) -> None:
    store.commit(checkpoint(None, 1))
    with store._database.reading() as connection:
        pages = connection.execute(sa.text("PRAGMA page_count")).scalar_one()
    _on_every_connection(store, f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(StoreFull, match="full") as caught:
        store.commit(checkpoint(1, 2, blob=bytes(100_000)))
    assert caught.value.retryable and isinstance(caught.value.__cause__, sa.exc.OperationalError)
    assert store.positions("m", [P0]) == {P0: 1}
    _on_every_connection(store, f"PRAGMA max_page_count = {pages + 1000}")
    store.commit(checkpoint(1, 2, blob=bytes(100_000)))
    assert store.positions("m", [P0]) == {P0: 2}


def _on_every_connection(store: Store, statement: str) -> None:
    def settle(connection: Any, _record: object) -> None:
        connection.execute(statement)

    sa.event.listen(store._database._engine, "connect", settle)
    store.close()  # so that every connection is new


def test_a_database_without_tables_names_the_cure(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/new.db") as store, pytest.raises(StoreError, match="no such table"):
        store.commit(checkpoint(None, 1))


# --- locks ------------------------------------------------------------------------------------------------------------

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def locked_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def test_a_lock_of_another_process_is_waited_for_and_then_named(store: Store, tmp_path: Path) -> None:
    store.commit(checkpoint(None, 1))
    with locked_by_another_process(tmp_path / "driftd.db"):
        with pytest.raises(StoreBusy, match=r"locked by another process.*fuser .*driftd.db") as caught:
            store.commit(checkpoint(1, 2))
        assert caught.value.retryable
        assert store.positions("m", [P0]) == {P0: 1}, "readers never wait"
    store.commit(checkpoint(1, 2))
    assert store.positions("m", [P0]) == {P0: 2}


def test_a_new_file_that_another_process_is_writing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the very first connection changes the file to write-ahead logging, and there SQLite itself does not wait.
    path = tmp_path / "new.db"
    with Store.open(f"sqlite:///{path}", busy_timeout_s=0.2) as store, locked_by_another_process(path) as process:
        with pytest.raises(StoreBusy):
            store.migrate()
        waited: list[float] = []

        def release_instead(seconds: float) -> None:
            waited.append(seconds)
            process.communicate("done\n", timeout=10)

        monkeypatch.setattr("connectors.database.connection.sleep", release_instead)
        store.migrate()
        assert len(waited) == 1


def test_a_fold_that_cannot_be_written_can_be_tried_again(store: Store, tmp_path: Path) -> None:

    store.commit(checkpoint(None, 1))
    nothing = FoldResult(1, [], [], [], [], [])
    with locked_by_another_process(tmp_path / "driftd.db"), store.begin_fold("m") as fold:
        fold.deltas(below_block=1)
        with pytest.raises(StoreBusy):
            fold.commit(nothing)
    with store.begin_fold("m") as fold:
        assert len(fold.deltas(below_block=1)) == 1
        fold.commit(nothing)


def test_settings_of_a_connection_hold(store: Store) -> None:
    with store._database.reading() as connection:
        found = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 200}


# --- schema and encoding ----------------------------------------------------------------------------------------------


def test_the_revision_of_the_schema_is_the_newest_migration() -> None:
    folder = Path(connectors.database.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == schema.REVISION


NOTIFICATION = Notification(
    *("n1", "i1", "m/drift/input/NO", "firing", "page", "m", "drift", "input", "NO", "Drift", "Øl, 漢字, \n", 1, None),
    {"strength": "7.5"},
)


def test_a_notification_survives_json() -> None:
    assert notification_from_json(notification_to_json(NOTIFICATION)) == NOTIFICATION


@pytest.mark.parametrize("text", ["{}", '{"id": 3}', notification_to_json(NOTIFICATION).replace("firing", "burning")])
def test_a_notification_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        notification_from_json(text)


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ({"a": [1, 2.5, None, True], "b": {"c": "ø"}}, {"a": [1, 2.5, None, True], "b": {"c": "ø"}}),
        ({"nan": float("nan")}, {"nan": None}),
        ({"big": 2**70}, {"big": 2**70}),
        ({"surrogate": "\ud800"}, {"surrogate": "\ud800"}),
        ({"object": P0}, {"object": ["orders", 0]}),
    ],
)
def test_small_dictionaries_survive_json(value: dict[str, Any], back: dict[str, Any]) -> None:
    assert from_json(to_json(value)) == back


def test_importing_the_rows_loads_no_database_library() -> None:
    program = (
        "import sys; from connectors.database.rows import Checkpoint; "
        "print(*[name for name in ('sqlalchemy', 'alembic', 'psycopg') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_migrated_database_is_opened_without_alembic(store: Store, tmp_path: Path) -> None:
    program = (
        "import sys; from connectors.database.store import Store; "
        "Store.open(sys.argv[1]).migrate(); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/driftd.db"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- speed ------------------------------------------------------------------------------------------------------------


def test_the_questions_of_every_second_use_an_index(store: Store) -> None:
    statements: list[str] = []
    sa.event.listen(
        store._database._engine, "before_cursor_execute", lambda *arguments: statements.append(str(arguments[2]))
    )
    store.outbox_due(0, 10)
    store.outbox_waiting()
    store.dead_letters_unpublished(10, models=["m"])
    store.dead_letters("m", 10)
    store.kept("m", flagged=True)
    with store.begin_fold("m") as fold:
        fold.first_pending_block()
        fold.deltas(below_block=3)
    questions = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(questions) == 9
    with store._database.reading() as connection:
        for statement in questions:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", (1,) * statement.count("?"))
            assert not [row for row in plan if row.detail.startswith("SCAN") and "USING" not in row.detail], statement
