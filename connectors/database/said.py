"""Queries that labels and true answers share: both are rows of what was said of single records, and wait alike."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, select

from connectors.database.columns import clean


def waiting_rows(table: Table, model: str, *, limit: int, after: int, newer_than_ms: int) -> Any:
    """Rows that do not count yet, by number, the first ``limit``.

    Args:
        after: only those with greater numbers.
        newer_than_ms: only those that arrived then or later.
    """
    rows = table.c
    query = select(table).where(rows.model == model, rows.version == 0, rows.id > after)
    return query.where(rows.received_ms >= newer_than_ms).order_by(rows.id).limit(limit)


def newest_rows(table: Table, model: str, *, record_id: str | None, waiting: bool, limit: int) -> Any:
    """The last ``limit`` rows, the newest first, whether they count or not; with ``waiting`` those that do not."""
    query = select(table).where(table.c.model == model)
    if record_id is not None:
        query = query.where(table.c.record_id == clean(record_id))
    if waiting:
        query = query.where(table.c.version == 0)
    return query.order_by(table.c.id.desc()).limit(limit)
