"""The part of Store about mutes: from when until when nobody wants to be told, and of what."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import insert, select, update

from connectors.database import schema
from connectors.database.columns import clean, rows_of
from connectors.database.connection import Database
from connectors.database.rows import MuteRow
from detectors.errors import InvalidInput

_TABLE = schema.mutes
_FIELDS = tuple(MuteRow.__dataclass_fields__)
_TEXTS = ("model", "kind", "space", "segment", "reason", "by")


class Mutes:
    """Mutes, which people make. They stay in the database after they are over: few, and part of the story."""

    _database: Database

    def add_mute(self, row: MuteRow) -> None:
        """Store a mute."""
        columns = dataclasses.asdict(row)
        columns |= {name: clean(columns[name]) for name in _TEXTS}
        with self._database.writing() as connection:
            connection.execute(insert(_TABLE), [columns])

    def end_mute(self, mute: str, now_ms: int) -> MuteRow:
        """End a mute now. One that was still to come never begins.

        Returns:
            The mute as it is now.

        Raises:
            InvalidInput: there is no mute with this id, or it is over.
        """
        with self._database.writing() as connection:
            query = select(_TABLE).where(_TABLE.c.id == mute)
            if self._database.dialect == "postgresql":  # a transaction of SQLite is alone anyway
                query = query.with_for_update()
            found = connection.execute(query).one_or_none()
            if found is None:
                raise InvalidInput(f"There is no mute {mute}.", hint="List them: driftd mute list")
            row = _mute_row(found)
            if row.until_ms <= now_ms:
                raise InvalidInput(f"Mute {mute} is over already.", hint="List those in force: driftd mute list")
            ended = dataclasses.replace(row, until_ms=max(now_ms, row.from_ms))
            connection.execute(update(_TABLE).where(_TABLE.c.id == mute).values(until_ms=ended.until_ms))
        return ended

    def mutes(self, now_ms: int | None) -> list[MuteRow]:
        """Mutes in force at a time of the wall clock, or all that ever were (None); in the order of their beginning."""
        query = select(_TABLE).order_by(_TABLE.c.from_ms, _TABLE.c.id)
        if now_ms is not None:
            query = query.where(_TABLE.c.from_ms <= now_ms, _TABLE.c.until_ms > now_ms)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), _mute_row)


def _mute_row(row: Any) -> MuteRow:
    return MuteRow(**{name: getattr(row, name) for name in _FIELDS})
