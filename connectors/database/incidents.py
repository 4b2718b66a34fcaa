"""The part of Store that writes incidents outside of the fold: what workers see themselves, and what people say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from sqlalchemy import Connection, select, text, update

from connectors.database import schema
from connectors.database.columns import incident_columns, incident_row, outbox_columns
from connectors.database.connection import Database
from connectors.database.rows import IncidentRow
from connectors.notification import Notification
from detectors.errors import InvalidInput

_TABLE, _FOLDS = schema.incidents, schema.folds


class Incidents:
    """Incidents with a life of their own, beside those that the fold opens and resolves."""

    _database: Database

    def open_incident(self, row: IncidentRow, outbox: Sequence[tuple[str, Notification]] = ()) -> bool:
        """Store an incident that a worker has to tell of, with its notifications; or nothing, if it is known.

        It is known where its id is there, or where another one of its model, kind, space and segment is open: of many
        workers that see the same outage, one tells.

        Args:
            outbox: (sink name, notification) pairs.

        Returns:
            Whether it was stored.
        """
        open_one = select(_TABLE.c.id).where(
            _TABLE.c.model == row.model,
            _TABLE.c.kind == row.kind,
            _TABLE.c.space == row.space,
            _TABLE.c.segment == incident_columns(row)["segment"],
            _TABLE.c.status == "open",
        )
        with self._database.writing() as connection:
            if self._database.dialect == "postgresql":  # a transaction of SQLite is alone anyway
                lock = select(text("pg_advisory_xact_lock(:number)")).params(number=_lock_number(row))
                connection.execute(lock)
            if connection.execute(open_one).first() is not None:
                return False
            return add_incidents(self._database, connection, [row], outbox) == 1

    def resolve_incident(self, row: IncidentRow, outbox: Sequence[tuple[str, Notification]] = ()) -> bool:
        """Store that an incident is over, with its notifications; or nothing, if another worker did.

        Args:
            row: as it is now: resolved, its revision one more than the one that is stored.

        Returns:
            Whether it was stored.
        """
        columns = incident_columns(row)
        # Not the detail: what a person called it meanwhile stands there.
        changed = ("status", "updated_ms", "resolved_ms", "revision", "title", "text")
        change = (
            update(_TABLE)
            .where(_TABLE.c.id == row.id, _TABLE.c.status == "open", _TABLE.c.revision == row.revision - 1)
            .values({name: columns[name] for name in changed})
        )
        with self._database.writing() as connection:
            if connection.execute(change).rowcount != 1:
                return False
            _add_notifications(self._database, connection, outbox)
            return True

    def call_incident(self, incident: str, verdict: Literal["false", "real"]) -> IncidentRow:
        """Write what a person says of an incident into its detail: "verdict", and "verdict_ms" by the wall clock.

        Raises:
            InvalidInput: there is no incident with this id.
        """
        return self._note(incident, lambda now_ms: {"verdict": verdict, "verdict_ms": now_ms})

    def acknowledge_incident(self, incident: str, by: str, now_ms: int) -> IncidentRow:
        """Write into an incident's detail that somebody takes care of it: "acknowledged": {"by", "at_ms"}.

        Raises:
            InvalidInput: there is no incident with this id, or it is resolved.
        """
        return self._note(incident, lambda _: {"acknowledged": {"by": by, "at_ms": now_ms}}, only_open=True)

    def _note(
        self, incident: str, noted: Callable[[int], dict[str, object]], *, only_open: bool = False
    ) -> IncidentRow:
        """Add to an incident's detail.

        The fold reads incidents, thinks, and writes them whole. So this takes a turn of the model's fold: a fold that
        began before finds the version moved, writes nothing and begins again, with what is noted.
        """
        with self._database.writing() as connection:
            model = connection.execute(select(_TABLE.c.model).where(_TABLE.c.id == incident)).scalar()
            if model is None:
                raise InvalidInput(f"There is no incident {incident}.", hint="List them: driftd incidents")
            turn = update(_FOLDS).where(_FOLDS.c.model == model).values(version=_FOLDS.c.version + 1)
            connection.execute(turn)
            # Read under the lock that the turn holds: no fold can write the incident in between.
            row = incident_row(connection.execute(select(_TABLE).where(_TABLE.c.id == incident)).one())
            if only_open and row.status != "open":
                raise InvalidInput(f"Incident {incident} is resolved already.", hint="See it: driftd incidents --open")
            following = replace(row, detail={**row.detail, **noted(self._database.now_ms())})
            change = update(_TABLE).where(_TABLE.c.id == incident).values(detail=incident_columns(following)["detail"])
            connection.execute(change)
        return following


def add_incidents(
    database: Database,
    connection: Connection,
    incidents: Sequence[IncidentRow],
    outbox: Sequence[tuple[str, Notification]],
) -> int:
    """Insert incidents and notifications within a transaction; those that are there are left. How many were new."""
    added = 0
    if incidents:
        insert = schema.insert_ignoring(_TABLE, dialect=database.dialect)
        rows = [incident_columns(row) for row in sorted(incidents, key=lambda row: row.id)]
        # SQLAlchemy forgets the count of an INSERT unless it is asked to keep it.
        added = connection.execute(insert, rows, execution_options={"preserve_rowcount": True}).rowcount
    _add_notifications(database, connection, outbox)
    return added


def _add_notifications(database: Database, connection: Connection, outbox: Sequence[tuple[str, Notification]]) -> None:
    if outbox:
        # One by one, not sorted: the order of the rows is the order of delivery.
        insert = schema.insert_ignoring(schema.outbox, dialect=database.dialect)
        now_ms = database.now_ms()
        connection.execute(insert, [outbox_columns(sink, notification, now_ms) for sink, notification in outbox])


def _lock_number(row: IncidentRow) -> int:
    """A number for the reason to alert, the same in every process."""
    key = json.dumps([row.model, row.kind, row.space, row.segment])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
