"""One database: its address checked, its transactions opened and closed, its errors translated.

SQLite: write-ahead log, so that readers never wait; a write transaction takes the lock when it begins (BEGIN
IMMEDIATE), so that it waits at its first statement or not at all. PostgreSQL: a pool of connections, each tested before
its use.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from connectors.database.failures import translated
from detectors.errors import InvalidSettings, MissingExtra, StoreError, StoreFull, StoreUnreachable

# SQLite's locks and its shared memory do not hold between machines (https://sqlite.org/wal.html, section 1).
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "gpfs"}
    | {"beegfs", "ocfs2", "davfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs"}
    | {"fuse.ceph", "fuse.davfs", "fuse.smbnetfs"}
)
_EXAMPLES = "Write sqlite:///FILE (four slashes for an absolute path) or postgresql+psycopg://USER@HOST/DATABASE."
_MAGIC = b"SQLite format 3\x00"
_FROZEN = 6  # times the busy time-out: PostgreSQL ends a transaction whose process says nothing for so long
_WAL_BYTES = 64 << 20  # the log shrinks back to this after a burst


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time_ns() // 1_000_000


class Database:
    """Connections to one database, and what one may do with them: `reading`, `writing`, `snapshot`.

    Args:
        url: sqlite:///FILE or postgresql+psycopg://...
        busy_timeout_s: how long a transaction waits for another one's lock before StoreBusy is raised.
        now_ms: the clock that stamps rows for retention.

    Raises:
        InvalidSettings: another kind of address, or a SQLite file where it cannot work.
        MissingExtra: PostgreSQL is asked for and psycopg is not installed.
        StoreFull: the SQLite file or its folder cannot be written.
        StoreError: the file is no SQLite database.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 10.0, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        parsed = _parsed(url)
        self.dialect = parsed.get_backend_name()
        self.url = url
        self._file: tuple[int, int] | None = None
        self._refused = False  # the last attempt to write was, because of a full or read-only disk or server
        self.now_ms = now_ms
        if self.dialect == "sqlite":
            self.path: Path | None = _checked_file(parsed)
            self.name = f"sqlite {self.path}"
            self._engine = _sqlite_engine(parsed, busy_timeout_s)
            event.listen(self._engine, "connect", self._remember_file)
        else:
            self.path = None
            self.name = f"postgresql {_address(parsed)}"
            self._engine = _postgresql_engine(parsed, busy_timeout_s)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._snapshots = (
            self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            if self.dialect == "postgresql"
            else self._engine
        )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block, or rolled back if the block raises."""
        with self._transaction(self._writer) as connection:
            yield connection
        self._refused = False

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction that reads, and whose statements all see the database as it was at the first one."""
        with self._transaction(self._snapshots) as connection:
            yield connection

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        self._check_file()
        try:
            with engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            failure = translated(error, self.name)
            if isinstance(failure, StoreFull):
                self._refused = True
            raise failure from error
        finally:
            if self._refused:
                # A connection that was made while a file or a server was read-only stays read-only for ever: keep none.
                self._engine.dispose()

    def _remember_file(self, connection: Any, _record: object) -> None:
        assert self.path is not None
        if self._file is None:
            found = self.path.stat()
            self._file = found.st_dev, found.st_ino

    def _check_file(self) -> None:
        """SQLite goes on writing into a file that was deleted or moved away: see that it is still the same."""
        if self.path is None or self._file is None:
            return
        try:
            found = self.path.stat()
        except OSError as error:
            raise StoreUnreachable(
                f"{self.name} is gone: {error.strerror}. It was deleted or moved while driftd ran.",
                hint="Put it back, with the two files beside it, and driftd goes on; to start anew, stop driftd first.",
            ) from error
        if (found.st_dev, found.st_ino) != self._file:
            raise StoreUnreachable(
                f"{self.name} is another file now: it was replaced while driftd ran. Nothing was written.",
                hint=f"Put the old one back; or stop driftd, delete {self.path}-wal and -shm, and start it again.",
            )

    def close(self) -> None:
        """Give the connections back. Opens new ones if the database is used again."""
        self._engine.dispose()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: its text may hold the address, and so a password.
        raise InvalidSettings("`database` is no address of a database.", hint=_EXAMPLES) from None
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if parsed.host or parsed.query:
            raise InvalidSettings(
                "`database`: a SQLite address is only a path, without host and options.", hint=_EXAMPLES
            )
        if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
            raise InvalidSettings(
                "`database` names no file: a database in memory would forget everything at the end.", hint=_EXAMPLES
            )
        return parsed
    if parsed.drivername == "postgresql+psycopg":
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise MissingExtra(
                "PostgreSQL needs the package psycopg, which is not installed.",
                hint="Type: pip install 'driftd[postgres]'",
            ) from error
        return parsed
    raise InvalidSettings(f"`database` starts with {parsed.drivername}://, which driftd does not know.", hint=_EXAMPLES)


def _address(url: URL) -> str:
    host = url.host or url.query.get("host") or "localhost"
    port = f":{url.port}" if url.port else ""
    return f"{host}{port}/{url.database or url.username or ''}"


# --- SQLite ---------------------------------------------------------------------------------------------------------


def _checked_file(url: URL) -> Path:
    path = Path(url.database or "")
    folder = path.parent
    if not folder.is_dir():
        raise InvalidSettings(f"`database`: the folder {folder} does not exist.", hint=f"Type: mkdir -p {folder}")
    if path.is_dir():
        raise InvalidSettings(f"`database`: {path} is a folder.", hint=f"Name a file in it: sqlite:///{path}/driftd.db")
    kind = network_file_system(path.resolve(), _mounts())
    if kind is not None:
        raise InvalidSettings(
            f"`database`: {path} lies on a network file system ({kind}), where SQLite loses data.",
            hint="Put the file on a local disk, or use PostgreSQL: postgresql+psycopg://USER@HOST/DATABASE",
        )
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise StoreUnreachable(
            f"sqlite {path} cannot be read: {error.strerror}.",
            hint="Give driftd's user the right to read and write it.",
        ) from error
    if head and head != _MAGIC:
        raise StoreError(
            f"{path} is not a SQLite database: it starts with other bytes.",
            hint="Name another file in `database`; this one was not touched.",
        )
    for needed in (path, folder) if path.exists() else (folder,):
        if not os.access(needed, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise StoreFull(
                f"sqlite {path} cannot be written: {needed} is read-only for this user.",
                hint=f"Type: chown {os.geteuid()} {needed}, or name another file in `database`.",
            )
    return path


def _mounts() -> str:
    try:
        return Path("/proc/self/mounts").read_text()
    except OSError:  # not Linux: nothing to look it up in
        return ""


def network_file_system(path: Path, mounts: str) -> str | None:
    """The kind of network file system that ``path`` lies on, None if it is a local one.

    Args:
        path: absolute, without symbolic links.
        mounts: the text of /proc/self/mounts: device, mount point, kind, ...
    """
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        columns = line.split(" ")
        if len(columns) < 3:
            continue
        # Blanks and the like are written as octal numbers: "\040".
        point = Path(columns[1].encode().decode("unicode_escape"))
        # Of two mounts on one point, the later one is on top.
        if path.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, columns[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _sqlite_engine(url: URL, busy_timeout_s: float) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": busy_timeout_s, "check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def settle(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        _use_write_ahead_log(connection, monotonic() + busy_timeout_s)
        # With the write-ahead log, NORMAL may lose the last transactions at a power cut, but never part of one; the
        # offsets are in the same transaction as the results, so that what is lost is read and counted again.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection, deadline: float) -> None:
    # The file remembers the mode. SQLite's busy time-out does not cover the switch, so we wait here: several workers
    # may open a new file at once.
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.01)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def _postgresql_engine(url: URL, busy_timeout_s: float) -> Engine:
    engine = create_engine(
        url,
        connect_args={"connect_timeout": 5, "application_name": "driftd", "client_encoding": "utf8"},
        pool_pre_ping=True,  # after a restart of the server the next transaction finds a new connection, not an error
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def settle(connection: Any, _record: object) -> None:
        # A worker that was frozen in the middle of a transaction must not hold its rows for ever. SET, not a start-up
        # option: connection poolers refuse those.
        connection.execute(f"SET lock_timeout = {int(busy_timeout_s * 1000)}")
        connection.execute(f"SET idle_in_transaction_session_timeout = {int(busy_timeout_s * _FROZEN * 1000)}")
        connection.commit()

    return engine
