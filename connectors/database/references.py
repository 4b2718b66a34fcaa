"""The part of Store about references: numbered, immutable, exactly one active per model and space."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from connectors.database import schema
from connectors.database.columns import reference_columns, reference_row, rows_of
from connectors.database.connection import Database
from connectors.database.rows import ReferenceRow
from detectors.errors import InvalidReference, OwnershipLost

_TABLE = schema.references


class References:
    """References of the models in one database."""

    _database: Database

    def add_reference(self, row: ReferenceRow) -> None:
        """Store a new reference; it becomes the active one if ``row.active``.

        Raises:
            OwnershipLost: the version exists already: another process built one at the same time. Nothing is written.
        """
        with self._database.writing() as connection:
            add_references(connection, [row])

    def references(self, model: str, space: str) -> list[ReferenceRow]:
        """All references of a space, in the order of their versions."""
        query = select(_TABLE).where(_TABLE.c.model == model, _TABLE.c.space == space).order_by(_TABLE.c.version)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), reference_row)

    def active_reference(self, model: str, space: str) -> ReferenceRow | None:
        """The reference that new records of the space are scored against; None before the first one."""
        return next((row for row in self.references(model, space) if row.active), None)

    def activate_reference(self, model: str, space: str, version: int, now_ms: int) -> None:
        """Move the pointer to another version, newer (promote) or older (roll back).

        Raises:
            InvalidReference: there is no such version.
            OwnershipLost: another process moved the pointer at the same moment.
        """
        with self._database.writing() as connection:
            query = select(_TABLE.c.version).where(_TABLE.c.model == model, _TABLE.c.space == space)
            versions = sorted(connection.execute(query).scalars())
            if version not in versions:
                known = ", ".join(map(str, versions)) or "none"
                raise InvalidReference(
                    f"There is no reference {version} of {model}/{space}; there is: {known}.",
                    hint="Type: driftd reference list",
                )
            _activate(connection, model, space, version, now_ms=now_ms)


def add_references(connection: Connection, rows: Sequence[ReferenceRow]) -> None:
    """Insert references within a transaction, in the order of their keys; each row that says so becomes the active one.

    Raises:
        OwnershipLost: one of them exists already.
    """
    for row in sorted(rows, key=lambda row: (row.model, row.space, row.version)):
        columns = reference_columns(row) | {"active": False, "activated_ms": None}
        try:
            connection.execute(insert(_TABLE), [columns])
        except IntegrityError as error:
            raise OwnershipLost(
                f"Reference {row.version} of {row.model}/{row.space} exists already; nothing was written.",
                hint="Another process built one at the same time. See: driftd reference list",
            ) from error
        if row.active:
            _activate(connection, row.model, row.space, row.version, now_ms=row.created_ms)


def _activate(connection: Connection, model: str, space: str, version: int, *, now_ms: int) -> None:
    of_space = (_TABLE.c.model == model) & (_TABLE.c.space == space)
    connection.execute(update(_TABLE).where(of_space, _TABLE.c.active).values(active=False))
    try:
        connection.execute(
            update(_TABLE).where(of_space, _TABLE.c.version == version).values(active=True, activated_ms=now_ms)
        )
    except IntegrityError as error:
        # PostgreSQL only: another transaction activated one between our two statements. The unique index keeps it one.
        raise OwnershipLost(
            f"Another process activated a reference of {model}/{space} at the same moment; nothing was changed.",
            hint="See which one it is: driftd reference list",
        ) from error
