"""The part of Store that says what was said of each model, block by block: the verdicts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from connectors.database import schema
from connectors.database.columns import rows_of, verdict_row
from connectors.database.connection import Database
from connectors.database.rows import VerdictRow

_TABLE = schema.verdicts


class Verdicts:
    """Reads the table verdicts; the fold writes it."""

    _database: Database

    def verdicts(
        self, model: str, *, from_ms: int | None = None, to_ms: int | None = None, limit: int = 10_000
    ) -> list[VerdictRow]:
        """Verdicts of blocks with from_ms <= start < to_ms, the newest ``limit`` of them, by block."""
        query = select(_TABLE).where(_TABLE.c.model == model)
        if from_ms is not None:
            query = query.where(_TABLE.c.start_ms >= from_ms)
        if to_ms is not None:
            query = query.where(_TABLE.c.start_ms < to_ms)
        return self._verdicts(query.order_by(_TABLE.c.block.desc()).limit(limit))[::-1]

    def verdict(self, model: str, *, at_ms: int | None = None) -> VerdictRow | None:
        """The verdict of the newest block that ended by ``at_ms``, or of the newest of all; None if there is none."""
        query = select(_TABLE).where(_TABLE.c.model == model)
        if at_ms is not None:
            query = query.where(_TABLE.c.end_ms <= at_ms)
        return next(iter(self._verdicts(query.order_by(_TABLE.c.block.desc()).limit(1))), None)

    def verdict_changes(
        self, model: str, *, from_ms: int | None = None, to_ms: int | None = None, limit: int = 1000
    ) -> list[VerdictRow]:
        """Of the verdicts of these blocks, those whose word is not that of the block before; the newest, by block."""
        before = func.lag(_TABLE.c.word).over(order_by=_TABLE.c.block).label("before")
        found = select(_TABLE, before).where(_TABLE.c.model == model)
        if from_ms is not None:
            found = found.where(_TABLE.c.start_ms >= from_ms)
        if to_ms is not None:
            found = found.where(_TABLE.c.start_ms < to_ms)
        told = found.subquery()
        changed = select(told).where(told.c.before.is_(None) | (told.c.before != told.c.word))
        return self._verdicts(changed.order_by(told.c.block.desc()).limit(limit))[::-1]

    def truths_at(self, model: str, from_block: int, below: int) -> dict[int, int]:
        """See `truths_at`."""
        with self._database.reading() as connection:
            return truths_at(connection, model, from_block, below)

    def _verdicts(self, query: Any) -> list[VerdictRow]:
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), verdict_row)


def truths_at(connection: Connection, model: str, from_block: int, below: int) -> dict[int, int]:
    """By block, from_block <= block < below, the number of the last true answer that its verdict rests on."""
    query = select(_TABLE.c.block, _TABLE.c.truths).where(
        _TABLE.c.model == model, _TABLE.c.block >= from_block, _TABLE.c.block < below
    )
    return {row.block: row.truths for row in connection.execute(query.order_by(_TABLE.c.block))}
