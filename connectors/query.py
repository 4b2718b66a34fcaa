"""Rows of a SQL query as records: predictions that a service writes into its own database.

A record's offset is an integer column that is unique and grows, its value the row as JSON. Rows are read in pages by
that column, each in a short transaction of its own that may only read, so that no page is held open while records are
scored, and reading goes on where it stood after any error. Ends are fixed when the source is opened: it is for history,
and for runs that end. A stream that grows needs more than a growing number, because transactions commit in any order.
"""

from __future__ import annotations

import difflib
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, SecretStr, model_validator

from connectors.records import Partition, RawBatch, Source, SourceState, Span, StoredPositions, StoredTopicIds
from detectors.errors import (
    AccessRefused,
    InvalidSettings,
    MissingExtra,
    OffsetGap,
    SourceError,
    SourceUnreachable,
    UnknownTopic,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import SQLAlchemyError

_EXAMPLES: Final = "Write postgresql+psycopg://USER@HOST/DATABASE, or sqlite:///FILE."
_AT_ONCE: Final = 500  # keys of one question of read_at
_WAIT_S: Final = 0.05  # where what is left is held
# While a connection is made there is no SQLSTATE, only the server's words.
_REFUSED: Final = ("authentication failed", "no password supplied", 'role "', "pg_hba.conf")


class QuerySettings(BaseModel, frozen=True, extra="forbid"):
    """Rows of a SQL query, from PostgreSQL or SQLite: history, or a run that ends."""

    kind: Literal["query"] = "query"
    url: SecretStr | None = Field(
        None, min_length=1, description="postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE"
    )
    url_file: Path | None = Field(None, description="file that holds the url")
    query: str = Field(
        min_length=1, description="one SELECT, such as SELECT id, ts, text FROM predictions; without ORDER BY"
    )
    key: str = Field(min_length=1, description="its column that is a unique integer >= 0 and grows: the offset")
    time: str | None = Field(
        None, min_length=1, description="its column of times: a timestamp, or a number of milliseconds since 1970"
    )
    name: str = Field(min_length=1, description="the topic under which positions are stored")
    page: int = Field(5000, ge=1, le=100_000, description="most rows of one question: what is held in memory")
    timeout_s: float = Field(60.0, gt=0, description="seconds after which a question is given up (PostgreSQL)")
    connect_timeout_s: float = Field(5.0, gt=0, le=60, description="seconds to wait for the server's answer")

    @model_validator(mode="after")
    def _one_address(self) -> QuerySettings:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("give either url or url_file")
        if self.query.strip().rstrip(";").count(";"):
            raise ValueError("query holds several statements; write one SELECT")
        return self

    @property
    def ends(self) -> bool:
        """Reading comes to an end by itself."""
        return True

    @property
    def answer_s(self) -> float:
        """How long one question may take, in seconds."""
        return self.connect_timeout_s + self.timeout_s

    def build(self, *, client_id: str, group: str = "driftd") -> QuerySource:
        """Make the source. Nothing is asked yet. The name is what the server shows of us (application_name)."""
        return QuerySource(self, client_id=client_id)


class QuerySource:
    """A bounded source (`connectors.records.Source`): one partition, of the rows of a query in the order of their keys.

    Args:
        span: keys to read; by default those that there are when it is opened.
    """

    def __init__(self, settings: QuerySettings, *, client_id: str, span: Span | None = None) -> None:
        self._settings = settings
        self._client_id = client_id
        self._partition = Partition(settings.name, 0)
        self._given = span
        self._span = span or Span(0, 0)
        self._positions: StoredPositions | None = None
        self._at = self._span.first
        self._new = False  # the first offset was not told
        self._held = False
        self._connected = False
        self._made: Engine | None = None
        self._columns: Sequence[str] | None = None

    @property
    def finished(self) -> bool:
        """All keys were handed over, up to the end that was fixed when the source was opened."""
        return self._positions is not None and self._at >= self._span.after

    def check(self) -> str:
        """Ask once: log-in, query, columns, and which keys there are.

        Raises:
            SourceError, InvalidSettings, MissingExtra: what is wrong, with its cure.
        """
        span = self._span_of(None, None)
        keys = f"keys {span.first} to {span.after - 1}" if len(span) else "no rows"
        return f"query {self._where}, {self._settings.name}, {keys}"

    def open(self, positions: StoredPositions, *, topic_ids: StoredTopicIds | None = None) -> None:
        """Fix the end, where none was given, and go to the stored position.

        Raises:
            SourceError, InvalidSettings, MissingExtra: see `check`; OffsetGap where rows would be left out.
        """
        self._span = self._given or self._span_of(None, None)
        self._positions = positions
        self.rewind()

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        """The next rows, at most ``max_records`` and a page."""
        if self.finished:
            return []
        if self._held:
            time.sleep(min(timeout_s, _WAIT_S))
            return []
        batch = self._page(self._at, self._span.after, min(max_records, self._settings.page))
        batches = [RawBatch.empty(self._partition, self._at), batch] if self._new else [batch]
        self._at, self._new = batch.next_offset, False
        return batches

    def rewind(self) -> None:
        """Read on from the stored position."""
        assert self._positions is not None
        stored = self._positions([self._partition]).get(self._partition)
        if stored is not None and stored < self._span.first and self._given is not None:
            raise OffsetGap(
                f"{self._settings.name} was read up to {stored}, and the range begins at {self._span.first}: what lies "
                "between would be left out.",
                hint="Begin the range earlier.",
            )
        self._new = stored is None
        self._at = self._span.first if stored is None else stored

    def assignment(self) -> frozenset[Partition]:
        """The one partition."""
        return frozenset({self._partition})

    def partitions(self) -> frozenset[Partition]:
        """The one partition."""
        return frozenset({self._partition})

    def hold(self, partitions: frozenset[Partition]) -> None:
        """Read nothing, where the partition is among these."""
        self._held = self._partition in partitions

    def state(self) -> SourceState:
        """Whether the last question was answered."""
        return SourceState("none", self._connected, 0, 0, 0, {})

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Nobody need know."""

    def lag(self) -> Mapping[Partition, int]:
        """Keys left, up to the end."""
        return {self._partition: max(0, self._span.after - self._at)}

    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        """See `connectors.records.Source.read_range`; every row, where the settings name no column of times."""
        span = self._span_of(start_ms, end_ms)
        at = span.first
        while at < span.after:
            batch = self._page(at, span.after, self._settings.page)
            at = batch.next_offset
            inside = np.ones(len(batch), dtype=bool)
            if self._settings.time is not None:
                inside = batch.timestamps_ms >= (-math.inf if start_ms is None else start_ms)
                inside &= batch.timestamps_ms < (math.inf if end_ms is None else end_ms)
            if inside.any():
                yield batch.take(np.flatnonzero(inside).tolist())

    def extents(self, start_ms: int | None, end_ms: int | None) -> dict[Partition, Span]:
        """See `connectors.records.Source.extents`; all keys, where the settings name no column of times."""
        span = self._span_of(start_ms, end_ms)
        return {self._partition: span} if len(span) else {}

    def between(self, spans: Mapping[Partition, Span]) -> Source:
        """See `connectors.records.Source.between`."""
        return QuerySource(self._settings, client_id=self._client_id, span=spans[self._partition])

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        """The rows with these keys."""
        keys = sorted({offset for partition, offset in positions if partition == self._partition})
        for first in range(0, len(keys), _AT_ONCE):
            wanted = keys[first : first + _AT_ONCE]
            names = ", ".join(f":k{number}" for number in range(len(wanted)))
            condition, values = f"{self._key} IN ({names})", {f"k{n}": key for n, key in enumerate(wanted)}
            rows = self._rows(condition, values, _AT_ONCE)
            if rows:
                yield self._batch(rows, self._offsets(rows), wanted[-1] + 1)

    def close(self) -> None:
        """Give the connection back."""
        if self._made is not None:
            self._made.dispose()
        self._made = None

    # --- Questions ----------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return _quoted(self._settings.key)

    @property
    def _from(self) -> str:
        # A colon would be taken for the name of a value; a line break ends a comment at the end of the query.
        return f"FROM ({self._settings.query.strip().rstrip(';')}\n) AS records".replace(":", "\\:")

    @property
    def _where(self) -> str:
        """The database in words, without a password."""
        url = self._url
        if url.get_backend_name() == "sqlite":
            return f"sqlite {url.database}"
        return f"postgresql {url.host or url.query.get('host') or 'localhost'}/{url.database or ''}"

    @property
    def _url(self) -> Any:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        settings = self._settings
        try:
            text = (
                settings.url.get_secret_value() if settings.url else Path(settings.url_file or "").read_text().strip()
            )
        except OSError as error:
            raise InvalidSettings(
                f"url_file: {settings.url_file} cannot be read: {error.strerror}.",
                hint="Check its name and its rights.",
            ) from error
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            # Without the cause: its text may hold the address, and so a password.
            raise InvalidSettings("The url of the query is no address of a database.", hint=_EXAMPLES) from None
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername not in ("postgresql+psycopg", "sqlite") or (url.drivername == "sqlite" and not url.database):
            raise InvalidSettings(f"The url of the query is of kind {url.drivername}, not known here.", hint=_EXAMPLES)
        return url

    @property
    def _engine(self) -> Engine:
        if self._made is None:
            self._made = self._new_engine()
        return self._made

    def _new_engine(self) -> Engine:
        """At most one connection, which may only read."""
        from sqlalchemy import NullPool, create_engine

        url, settings = self._url, self._settings
        if url.get_backend_name() == "sqlite":
            path = Path(url.database)
            if not path.is_file():
                raise UnknownTopic(f"There is no SQLite file {path}.", hint="Check the url of the query.")
            creator = _read_only(path, settings.connect_timeout_s)
            return create_engine("sqlite://", creator=creator, poolclass=NullPool, hide_parameters=True)
        try:
            return create_engine(
                url,
                pool_size=1,
                max_overflow=0,
                pool_pre_ping=True,
                hide_parameters=True,
                execution_options={"postgresql_readonly": True},
                connect_args={
                    "connect_timeout": max(2, math.ceil(settings.connect_timeout_s)),  # of libpq: at least 2
                    "application_name": self._client_id[:63],
                    "options": f"-c statement_timeout={round(settings.timeout_s * 1000)} "
                    "-c default_transaction_read_only=on",
                },
            )
        except ImportError as error:
            raise MissingExtra(
                "PostgreSQL needs the package psycopg, which is not installed.",
                hint="Type: pip install 'driftd[postgres]'",
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """One short transaction.

        Raises:
            SourceError: what the database says, in our words.
        """
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self._connected = False
            raise self._translated(error) from error
        self._connected = True

    def _check_columns(self, connection: Connection) -> None:
        """The columns that the settings name must be there. Raises InvalidSettings."""
        from sqlalchemy import text

        if self._columns is not None:
            return
        found = list(connection.execute(text(f"SELECT * {self._from} LIMIT 0")).keys())
        for place, name in (("key", self._settings.key), ("time", self._settings.time)):
            if name is not None and found.count(name) != 1:
                near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
                raise InvalidSettings(
                    f"{place}: the query has {'several columns' if name in found else 'no column'} {name}; "
                    f"it has {', '.join(found)}.",
                    hint=f"Did you mean {near[0]}?" if near else "Name it in the query: SELECT ... AS " + name,
                )
        self._columns = found

    def _span_of(self, start_ms: int | None, end_ms: int | None) -> Span:
        from sqlalchemy import text

        key, settings = self._key, self._settings
        with self._reading() as connection:
            self._check_columns(connection)
            if connection.execute(text(f"SELECT 1 {self._from} WHERE {key} IS NULL LIMIT 1")).first():
                raise SourceError(
                    f"Some rows of {settings.name} have no {settings.key}.",
                    hint=f"Leave them out: WHERE {key} IS NOT NULL",
                )
            # Two questions: a database takes each alone from the index.
            lowest = connection.execute(text(f"SELECT min({key}) {self._from}")).scalar()
            highest = connection.execute(text(f"SELECT max({key}) {self._from}")).scalar()
            if lowest is None:
                return Span(0, 0)
            first, after = self._offset(lowest), self._offset(highest) + 1
            if settings.time is not None and (start_ms, end_ms) != (None, None):
                bound = self._bound_of(connection, settings.time)
                since = text(f"SELECT min({key}) {self._from} WHERE {_quoted(settings.time)} >= :since")
                for ms, is_start in ((start_ms, True), (end_ms, False)):
                    if ms is not None:
                        at = connection.execute(since, {"since": bound(ms)}).scalar()
                        found = after if at is None else self._offset(at)
                        first, after = (found, after) if is_start else (first, min(after, found))
        return Span(first, max(first, after))

    def _bound_of(self, connection: Connection, column: str) -> Callable[[int], Any]:
        """How a moment is written so that the database can compare it with the column of times."""
        from sqlalchemy import text

        question = f"SELECT {_quoted(column)} {self._from} WHERE {_quoted(column)} IS NOT NULL LIMIT 1"
        sample = connection.execute(text(question)).scalar()
        if isinstance(sample, datetime) and sample.tzinfo is None:
            return lambda ms: _moment(ms).replace(tzinfo=None)
        if sample is None or isinstance(sample, datetime):
            return _moment
        if isinstance(sample, int | float | Decimal) and not isinstance(sample, bool):
            return lambda ms: ms
        raise _no_time(column, sample)

    def _page(self, first: int, after: int, most: int) -> RawBatch:
        """The rows with first <= key < after, at most so many. Where these are all, ``after`` is what comes next."""
        # One more than is handed over shows a key that comes twice, and whether more follow.
        rows = self._rows(f"{self._key} >= :first AND {self._key} < :after", {"first": first, "after": after}, most + 1)
        offsets = self._offsets(rows)
        return self._batch(rows[:most], offsets[:most], int(offsets[most - 1]) + 1 if len(rows) > most else after)

    def _rows(self, condition: str, values: Mapping[str, Any], most: int) -> list[Any]:
        from sqlalchemy import text

        question = text(f"SELECT * {self._from} WHERE {condition} ORDER BY {self._key} LIMIT :most")
        with self._reading() as connection:
            self._check_columns(connection)
            return list(connection.execute(question, {**values, "most": most}))

    def _offset(self, key: object) -> int:
        """A key as an offset. Raises SourceError where it cannot be one."""
        if isinstance(key, Decimal) and key == key.to_integral_value():
            key = int(key)
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 2**63 - 1:
            raise SourceError(
                f"{self._settings.key} is no number that could be an offset: it holds {type(key).__name__} values.",
                hint="Take a column of integers >= 0 that grows, such as a bigserial.",
            )
        return key

    def _offsets(self, rows: Sequence[Any]) -> npt.NDArray[np.int64]:
        """The keys of rows. Raises SourceError where they are no offsets."""
        assert self._columns is not None
        at = self._columns.index(self._settings.key)
        offsets = np.fromiter((self._offset(row[at]) for row in rows), np.int64, len(rows))
        if (twice := offsets[1:][np.diff(offsets) <= 0]).size:
            raise SourceError(
                f"{self._settings.key} is not unique: {twice[0]} comes more than once.",
                hint="Take a column that is, or make the query join fewer rows.",
            )
        return offsets

    def _batch(self, rows: Sequence[Any], offsets: npt.NDArray[np.int64], next_offset: int) -> RawBatch:
        import msgspec

        n = len(rows)
        if not n:
            return RawBatch.empty(self._partition, next_offset)
        assert self._columns is not None
        columns = [_plain(column) for column in zip(*rows, strict=True)]
        encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode
        times = np.full(n, -1, dtype=np.int64)
        if self._settings.time is not None:
            moments = columns[self._columns.index(self._settings.time)]
            times = np.fromiter((_ms_of(moment, self._settings.time) for moment in moments), np.int64, n)
        return RawBatch(
            partition=self._partition,
            offsets=offsets,
            timestamps_ms=times,
            keys=[None] * n,
            values=[encode(dict(zip(self._columns, row, strict=True))) for row in zip(*columns, strict=True)],
            headers=[()] * n,
            next_offset=next_offset,
        )

    def _translated(self, error: SQLAlchemyError) -> SourceError:
        """Any error of SQLAlchemy or of a driver below it as one of ours. Of its text the first line: no values."""
        from sqlalchemy.exc import DBAPIError

        original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        state = getattr(original, "sqlstate", None) or ""
        words = (
            getattr(getattr(original, "diag", None), "message_primary", None) or (str(original) or "?").split("\n")[0]
        )
        where = f"{self._where}: {words}."
        if state.startswith("28") or (not state and any(refused in words for refused in _REFUSED)):
            return AccessRefused(f"The log-in is refused, {where}", hint="Check user and password in the url.")
        if state == "42501":
            return AccessRefused(f"The query may not be asked, {where}", hint="GRANT SELECT ON ... TO driftd's user.")
        if state in ("42P01", "3D000") or "no such table" in words:
            return UnknownTopic(f"The query asks for what is not there, {where}", hint="Check the names in the query.")
        if state == "57014":
            return SourceError(
                f"The query took more than {self._settings.timeout_s:g} s, {where}",
                hint=f"Is there an index on {self._settings.key}"
                f"{f' and on {self._settings.time}' if self._settings.time else ''}? Or raise timeout_s.",
            )
        if state == "25006" or "readonly database" in words:
            return SourceError(f"The query writes, {where}", hint="driftd only reads; write a plain SELECT.")
        if (
            (isinstance(error, DBAPIError) and error.connection_invalidated)
            or state[:2] in ("08", "57", "53")
            or (
                not state
                and type(original).__name__ == "OperationalError"
                and "syntax" not in words
                and "no such" not in words
            )
        ):
            return SourceUnreachable(f"The database does not answer, {where}", hint="driftd tries again.")
        return SourceError(f"The query cannot be answered, {where}", hint="Try it with psql or sqlite3.")


def _read_only(path: Path, busy_s: float) -> Callable[[], sqlite3.Connection]:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=busy_s)
        connection.execute("PRAGMA query_only = ON")
        return connection

    return connect


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace(":", "\\:") + '"'


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _ms_of(value: object, column: str) -> int:
    """A time of a row in milliseconds; -1 where there is none. Raises SourceError where it is no time."""
    if value is None:
        return -1
    if isinstance(value, datetime):
        return math.floor(round(_utc(value).timestamp() * 1e6) / 1000)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return math.floor(value)
    raise _no_time(column, value)


def _no_time(column: str, value: object) -> SourceError:
    return SourceError(
        f"{column} is no column of times: it holds {type(value).__name__} values.",
        hint=f"Make it one in the query: CAST({column} AS timestamptz), or for SQLite unixepoch({column}) * 1000",
    )


def _plain(column: Sequence[Any]) -> Sequence[Any]:
    """Values of one column as JSON will have them: times in UTC, no number that JSON does not know."""
    kinds = set(map(type, column))
    if datetime in kinds:
        return [_utc(value) if isinstance(value, datetime) else value for value in column]
    if Decimal in kinds:
        return [None if isinstance(value, Decimal) and not value.is_finite() else value for value in column]
    return column
