"""What the database's own errors mean, in driftd's words. SQLite's by result code, PostgreSQL's by SQLSTATE."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from detectors.errors import StoreBusy, StoreError, StoreFull, StoreUnreachable

_UNREADABLE = "Look at the file system with df and dmesg; driftd tries again."
# While a connection is made there is no SQLSTATE, only the server's words.
_REFUSED = ("authentication failed", "no password supplied", 'FATAL:  role "', "pg_hba.conf")
_NO_TABLES = 'The tables are made by "driftd run"; type: driftd check'


def translated(error: SQLAlchemyError, name: str) -> StoreError:
    """The StoreError for an error of SQLAlchemy or of a driver below it.

    Args:
        error: what was raised; the caller keeps it as the cause.
        name: what to call the database in the message, without a password.
    """
    if isinstance(error, PoolTimeout):
        return StoreBusy(
            f"{name}: all connections are in use.", hint="Too many threads ask at once; driftd tries again."
        )
    if not isinstance(error, DBAPIError):
        return StoreError(f"{name}: {_first_line(error)}")
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(error.orig, name)
    return _of_postgresql(error, name)


def _of_sqlite(error: sqlite3.Error, name: str) -> StoreError:
    # The lower byte is the kind; the rest says where it came up (https://sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    found = f"{name}: {_first_line(error)}."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(
            f"{name} is locked by another process.",
            hint=f"If it stays so, find the process: fuser {name.removeprefix('sqlite ')}",
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(
            f"{name}: the disk or the database is full.", hint="Free space on its disk; driftd goes on by itself."
        )
    if code == sqlite3.SQLITE_READONLY:
        return StoreFull(
            f"{name} cannot be written: the file or its folder is read-only.",
            hint="Give driftd's user the right to write the file, the two beside it (-wal, -shm) and their folder: "
            "chown, chmod, mount -o remount,rw.",
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreFull(
            f"{name} cannot be opened: {_first_line(error)}.",
            hint="Its folder must exist, and driftd's user must be able to write there (two more files).",
        )
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnreachable(f"{name} cannot be read or written: {_first_line(error)}.", hint=_UNREADABLE)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(
            f"{name} is damaged or not a SQLite database: {_first_line(error)}.",
            hint="Restore a copy of the file, or move it away to start anew; nothing was changed in it.",
        )
    if "no such table" in str(error) or "no such column" in str(error):
        return StoreError(found, hint=_NO_TABLES)
    return StoreError(found)


def _of_postgresql(error: DBAPIError, name: str) -> StoreError:
    state = getattr(error.orig, "sqlstate", None) or ""
    diagnosis = getattr(error.orig, "diag", None)
    # The first line only: the lines after it may hold values of rows.
    text = getattr(diagnosis, "message_primary", None) or _first_line(error.orig or error)
    found = f"{name}: {text}."
    if state in ("53100", "53200"):
        return StoreFull(
            f"{name} is out of space or memory: {text}.", hint="Free space on the server; driftd goes on by itself."
        )
    if state == "25006":
        return StoreFull(f"{name} is read-only: {text}.", hint="Is it a standby? Point `database` at the primary.")
    if state in ("40001", "40P01", "55P03", "57014"):
        return StoreBusy(f"{name} is busy: {text}.", hint="Another session holds a lock; driftd tries again.")
    if state.startswith("28") or (not state and any(words in text for words in _REFUSED)):
        return StoreError(
            f"{name} refuses the login: {text}.", hint="Check user and password in `database`, and pg_hba.conf."
        )
    if state == "3D000" or (not state and 'FATAL:  database "' in text and "does not exist" in text):
        return StoreError(found, hint="Create it on the server: createdb NAME")
    if state in ("42P01", "42703"):
        return StoreError(found, hint=_NO_TABLES)
    if state == "42501":
        return StoreError(found, hint="Make driftd's user the owner of the database, or grant it CREATE on the schema.")
    if error.connection_invalidated or not state or state[:2] in ("08", "57", "53"):
        return StoreUnreachable(
            f"{name} does not answer: {text}.", hint="Is the server up, and is the address right? driftd tries again."
        )
    return StoreError(found)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
