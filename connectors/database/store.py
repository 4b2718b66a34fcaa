"""Store: everything that driftd remembers, on SQLite or PostgreSQL.

    with Store.open("sqlite:///driftd.db") as store:
        store.migrate()
        positions = store.positions("orders", partitions)
        store.commit(Checkpoint("orders", advances=[...], summaries=[...], kept=[...]))

A checkpoint is one transaction, and so is a step of the fold; both compare and set. Whoever stops a worker at any
moment finds all of a checkpoint or nothing of it, and a worker that lives on after it lost its partitions writes
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, bindparam, case, delete, func, insert, inspect, null, text, update

from connectors.database import retention, schema
from connectors.database.ageing import Ageing
from connectors.database.backfills import Backfills
from connectors.database.columns import (
    clean,
    delta_columns,
    gap_columns,
    half_columns,
    kept_columns,
    letter_columns,
    partition_key,
    thinned_columns,
)
from connectors.database.connection import Database, wall_clock_ms
from connectors.database.dead_letters import DeadLetters
from connectors.database.folding import Fold
from connectors.database.fraud import FraudStates, add_fraud
from connectors.database.fraud_reports import FraudReports
from connectors.database.history import Histories
from connectors.database.incidents import Incidents, add_incidents
from connectors.database.labels import Labels
from connectors.database.mutes import Mutes
from connectors.database.outbox import Outbox
from connectors.database.partitions import Partitions
from connectors.database.references import References, add_references
from connectors.database.remade import move_below_zero
from connectors.database.reports import Reports
from connectors.database.rows import Advance, Checkpoint, Retention
from connectors.database.truths import Truths, add_answers_and_truths
from connectors.database.verdicts import Verdicts
from detectors.errors import OwnershipLost, StoreError

_TABLE = schema.partitions
_MIGRATIONS = Path(__file__).parent / "migrations"
# "driftd" in ASCII, as the number of the lock that migrating processes take on PostgreSQL.
_MIGRATION_LOCK = 0x647269667464


class _MovedByOthers(Exception):
    """A compare-and-set matched fewer rows than partitions; ends the transaction."""


class Store(
    Partitions,
    Incidents,
    Mutes,
    DeadLetters,
    Reports,
    Outbox,
    References,
    FraudStates,
    Labels,
    Truths,
    FraudReports,
    Histories,
    Backfills,
    Ageing,
    Verdicts,
):
    """The database of one deployment. Safe to use from several threads; each call is one transaction.

    Every process opens its own: connections do not survive a fork.

    Every method raises StoreUnreachable, StoreBusy or StoreFull (retryable) or StoreError (not) where the database
    refuses; after a retryable error the same call may succeed, without opening the store anew.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = 10.0, now_ms: Callable[[], int] = wall_clock_ms) -> Self:
        """A store at an address. Nothing is read from it yet: `check` and `migrate` are the first to connect.

        Args:
            url: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE.
            busy_timeout_s: how long a transaction waits for another one's lock.
            now_ms: the clock that stamps rows for retention; nothing else depends on it.

        Raises:
            InvalidSettings: an address that driftd cannot use, or a SQLite file on a network file system.
            MissingExtra: psycopg is not installed.
            StoreFull: the SQLite file is read-only.
            StoreError: the file is something else than a SQLite database.
        """
        return cls(Database(url, busy_timeout_s=busy_timeout_s, now_ms=now_ms))

    @property
    def url(self) -> str:
        """Its address, with the password if there is one in it."""
        return self._database.url

    def close(self) -> None:
        """Give all connections back."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- schema -------------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Make the tables, or bring them up to date. Any number of processes may do so at once.

        Raises:
            StoreError: the database was written by a newer driftd; it is left as it is.
        """
        with self._database.reading() as connection:
            if self._revision(connection) == schema.REVISION:
                return  # and alembic, half a second of imports, is not needed
        with self._database.writing() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            if self._revision(connection) != schema.REVISION:
                _upgrade(connection)

    def check(self) -> str:
        """Connect once, and say in a line what is there, such as "sqlite driftd.db, 4.2 MB, schema 0001".

        Raises:
            StoreError: it cannot be reached, or was written by a newer driftd.
        """
        database = self._database
        with database.reading() as connection:
            revision = self._revision(connection)
            server = ""
            if database.dialect == "postgresql":
                server = f", server {connection.execute(text('SHOW server_version')).scalar_one()}"
        if database.path is not None:
            server = f", {database.path.stat().st_size / 1e6:.1f} MB"
        return f"{database.name}{server}, {f'schema {revision}' if revision else 'no tables yet'}"

    def _revision(self, connection: Connection) -> str | None:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if revision is not None and revision > schema.REVISION:
            raise StoreError(
                f"{self._database.name} has schema {revision}; this driftd knows {schema.REVISION} and older.",
                hint="A newer driftd wrote it. Install that version: pip install --upgrade driftd",
            )
        return None if revision is None else str(revision)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def commit(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint: offsets and counts, and all that came of the records; or nothing.

        Raises:
            OwnershipLost: a partition does not stand where this owner left it, because another one moved it, or a
                reference exists already. Nothing is written.
            StoreError: the database refuses. Nothing is written.
        """
        try:
            self._commit(checkpoint)
        except _MovedByOthers:
            raise self._ownership_lost(checkpoint) from None

    def _commit(self, checkpoint: Checkpoint) -> None:
        model, now_ms, dialect = checkpoint.model, self._database.now_ms(), self._database.dialect
        work = checkpoint.work
        with self._database.writing() as connection:
            # First of all: a worker that lost its partitions stops here, before it has written anything.
            self._advance(connection, work, sorted(checkpoint.advances, key=partition_key), now_ms)
            if checkpoint.joined:
                halves = schema.pending_halves.c
                joined = delete(schema.pending_halves).where(
                    halves.model == work,
                    halves.topic == bindparam("of_topic"),
                    halves.number == bindparam("of_number"),
                    halves.position == bindparam("at"),
                )
                connection.execute(
                    joined,
                    [
                        {"of_topic": topic, "of_number": number, "at": offset}
                        for (topic, number), offset in sorted(checkpoint.joined)
                    ],
                )
            if checkpoint.summaries:
                connection.execute(
                    insert(schema.summary_deltas), [delta_columns(work, delta) for delta in checkpoint.summaries]
                )
            if checkpoint.thinned_keys:
                connection.execute(
                    insert(schema.thinned_keys), [thinned_columns(work, keys) for keys in checkpoint.thinned_keys]
                )
            if checkpoint.halves:
                connection.execute(
                    insert(schema.pending_halves), [half_columns(work, half) for half in checkpoint.halves]
                )
            if checkpoint.kept:
                key = ("model", "space", "topic", "number", "position", "row")
                ordered = sorted(
                    checkpoint.kept, key=lambda record: (record.space, *record.partition, record.offset, record.row)
                )
                connection.execute(
                    schema.upsert(schema.kept, key, dialect=dialect, leave=("flagged",)),
                    [kept_columns(model, record, now_ms) for record in ordered],
                )
            if checkpoint.dead_letters:
                connection.execute(
                    insert(schema.dead_letters),
                    [letter_columns(model, letter, now_ms) for letter in checkpoint.dead_letters],
                )
                counts = Counter((*letter.partition, clean(letter.reason)) for letter in checkpoint.dead_letters)
                connection.execute(
                    schema.upsert(
                        schema.dead_letter_counts, ("model", "topic", "number", "reason"), dialect=dialect, add="count"
                    ),
                    [
                        {"model": model, "topic": topic, "number": number, "reason": reason, "count": count}
                        for (topic, number, reason), count in sorted(counts.items())
                    ],
                )
            add_fraud(connection, checkpoint, dialect=dialect, now_ms=now_ms)
            add_answers_and_truths(
                connection, model, checkpoint.answers, checkpoint.truths, dialect=dialect, now_ms=now_ms
            )
            if checkpoint.gaps:
                move_below_zero(connection, model, checkpoint.gaps)
                connection.execute(
                    schema.insert_ignoring(schema.gaps, dialect=dialect),
                    [gap_columns(model, gap, now_ms) for gap in checkpoint.gaps],
                )
            add_references(connection, [replace(row, active=True) for row in checkpoint.references])
            add_incidents(self._database, connection, checkpoint.incidents, checkpoint.outbox)

    def _advance(self, connection: Connection, model: str, advances: list[Advance], now_ms: int) -> None:
        known = [advance for advance in advances if advance.expected is not None]
        new = [advance for advance in advances if advance.expected is None]
        moved = 0
        if known:
            change = (
                update(_TABLE)
                .where(
                    _TABLE.c.model == model,
                    _TABLE.c.topic == bindparam("of_topic"),
                    _TABLE.c.number == bindparam("of_number"),
                    _TABLE.c.next_offset == bindparam("expected"),
                )
                .values(
                    next_offset=bindparam("to_offset"),
                    max_time_ms=bindparam("to_time"),
                    records=_TABLE.c.records + bindparam("more_records"),
                    dead=_TABLE.c.dead + bindparam("more_dead"),
                    late=_TABLE.c.late + bindparam("more_late"),
                    topic_id=func.coalesce(bindparam("of_topic_id"), _TABLE.c.topic_id),
                    # Offsets of a topic that was made anew are other records: its counting begins here.
                    from_offset=case(
                        (_TABLE.c.topic_id != bindparam("of_topic_id"), bindparam("to_offset")),
                        else_=_TABLE.c.from_offset,
                    ),
                    scores=func.coalesce(func.nullif(bindparam("new_scores"), ""), _TABLE.c.scores),
                    advanced_ms=now_ms,
                    # Not only outdated: after a topic was made anew the partition may come to this offset again.
                    idle_offset=null(),
                )
            )
            values = [
                {
                    "of_topic": advance.partition.topic,
                    "of_number": advance.partition.number,
                    "expected": advance.expected,
                    "to_offset": advance.next_offset,
                    "to_time": advance.max_time_ms,
                    "more_records": advance.records,
                    "more_dead": advance.dead,
                    "more_late": advance.late,
                    "of_topic_id": advance.topic_id,
                    "new_scores": advance.scores,
                }
                for advance in known
            ]
            moved += connection.execute(change, values).rowcount
        if new:
            rows = [
                {
                    "model": model,
                    "topic": advance.partition.topic,
                    "number": advance.partition.number,
                    "next_offset": advance.next_offset,
                    "max_time_ms": advance.max_time_ms,
                    "records": advance.records,
                    "dead": advance.dead,
                    "late": advance.late,
                    "topic_id": advance.topic_id,
                    "advanced_ms": now_ms,
                    "scores": advance.scores,
                    "from_offset": advance.from_offset,
                }
                for advance in new
            ]
            insert_new = schema.insert_ignoring(_TABLE, dialect=self._database.dialect)
            # SQLAlchemy forgets the count of an INSERT unless it is asked to keep it.
            moved += connection.execute(insert_new, rows, execution_options={"preserve_rowcount": True}).rowcount
        if moved != len(advances):
            raise _MovedByOthers

    def _ownership_lost(self, checkpoint: Checkpoint) -> OwnershipLost:
        # Everything is rolled back; this only names one partition that stands elsewhere.
        model = checkpoint.model
        stored = self.positions(checkpoint.work, [advance.partition for advance in checkpoint.advances])
        for advance in checkpoint.advances:
            found = stored.get(advance.partition)
            if found != advance.expected:
                expected = "no offset" if advance.expected is None else f"offset {advance.expected}"
                topic, number = advance.partition
                message = f"Partition {number} of {topic} ({model}) stands at offset {found}, expected was {expected}"
                break
        else:
            message = f"A partition of {model} was moved and moved back"
        return OwnershipLost(
            f"{message}: another worker owns it. Nothing was written.",
            hint="Normal for a moment when workers come and go. If it goes on, two deployments share a database.",
        )

    # --- fold and retention -------------------------------------------------------------------------------------------

    @contextmanager
    def begin_fold(self, model: str) -> Iterator[Fold]:
        """A step of the model's fold. Leaving the block without `Fold.commit` writes nothing.

        with store.begin_fold("orders") as fold:
            deltas = fold.deltas(below_block=closed)
            fold.commit(FoldResult(...))
        """
        with self._database.snapshot() as connection:
            yield Fold(self._database, connection, model)

    def prune(self, now_ms: int, settings: Retention) -> dict[str, int]:
        """Delete what is older or more than settings allow; how many rows went, by table."""
        return retention.prune(self._database, now_ms, settings)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
