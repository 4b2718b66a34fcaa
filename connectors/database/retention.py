"""Deletes what is older or more than settings allow: the oldest first, in transactions that keep nobody waiting."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Table, delete, func, select

from connectors.database import schema
from connectors.database.connection import Database
from connectors.database.rows import Retention

_DAY_MS = 86_400_000
# Rows per transaction. A summary is about 4 kB, so that its share of a transaction is that of twenty other rows.
_ROWS, _SUMMARIES = 10_000, 500
# About what a truth takes with its four indexes, on either database: as many are kept as fit where answers do.
_TRUTH_BYTES = 500


@dataclass(frozen=True, slots=True)
class _Rule:
    table: Table
    stamp: str  # the column with the time of writing
    days: float
    rows: int | None
    chunk: int
    only: ColumnElement[bool] | None = None


def prune(database: Database, now_ms: int, settings: Retention) -> dict[str, int]:
    """Delete what must go, and count it: {table: rows}. Any number of workers may do so at once.

    Raises:
        StoreError: the database refuses; what was deleted so far stays deleted.
    """
    keep = settings
    settled = schema.outbox.c.status.not_in(["pending", "held"])
    rules = (
        _Rule(schema.kept, "stored_ms", keep.kept_days, keep.kept_rows, _ROWS),
        _Rule(schema.dead_letters, "stored_ms", keep.dead_letters_days, keep.dead_letter_rows, _ROWS),
        _Rule(schema.readings, "stored_ms", keep.readings_days, keep.reading_rows, _ROWS),
        _Rule(schema.block_stats, "stored_ms", keep.readings_days, keep.reading_rows, _ROWS),
        _Rule(schema.truths, "received_ms", keep.answers_days, int(keep.answers_mb * 1e6) // _TRUTH_BYTES, _ROWS),
        _Rule(schema.verdicts, "stored_ms", keep.readings_days, keep.reading_rows, _ROWS),
        _Rule(schema.summaries, "stored_ms", keep.summaries_days, keep.summary_rows, _SUMMARIES),
        _Rule(schema.closures, "closed_at_ms", keep.summaries_days, None, _ROWS),
        _Rule(schema.outbox, "stored_ms", keep.outbox_days, keep.outbox_rows, _ROWS, settled),
    )
    return {rule.table.name: _prune(database, rule, now_ms) for rule in rules} | {
        "gaps": _prune_gaps(database, now_ms - int(keep.summaries_days * _DAY_MS)),
        "remembered": _prune_packed(
            database, schema.remembered, days=keep.remembered_days, megabytes=keep.remembered_mb, now_ms=now_ms
        ),
        "answers": _prune_packed(
            database, schema.answers, days=keep.answers_days, megabytes=keep.answers_mb, now_ms=now_ms
        ),
    }


def _prune_packed(database: Database, of: Table, *, days: float, megabytes: float, now_ms: int) -> int:
    """Rows are of any size, so that their bytes are bounded, and not their number."""
    rule = _Rule(of, "stored_ms", days, None, _SUMMARIES)
    table, most = of.c, int(megabytes * 1e6)
    with database.reading() as connection:
        held = int(connection.execute(select(func.coalesce(func.sum(table.bytes), 0))).scalar_one())
        if held > most:
            newer = func.sum(table.bytes).over(order_by=table.id.desc())
            sums = select(table.id, newer.label("newer")).subquery()
            beyond = select(func.count()).select_from(sums).where(sums.c.newer <= most)
            rule = replace(rule, rows=int(connection.execute(beyond).scalar_one()))
    return _prune(database, rule, now_ms)


def _prune_gaps(database: Database, cutoff_ms: int) -> int:
    """Gaps have no numbers; there are few of them, unless a topic is full of damage."""
    old = schema.gaps.c.noticed_ms < cutoff_ms
    with database.reading() as connection:
        if connection.execute(select(schema.gaps.c.model).where(old).limit(1)).first() is None:
            return 0
    with database.writing() as connection:
        return connection.execute(delete(schema.gaps).where(old)).rowcount


def _prune(database: Database, rule: _Rule, now_ms: int) -> int:
    below = _first_to_stay(database, rule, now_ms)
    if below is None:
        return 0
    number = rule.table.c.id
    doomed = select(number).where(number < below).order_by(number).limit(rule.chunk)
    if rule.only is not None:
        doomed = doomed.where(rule.only)
    # Two workers may prune at once: on PostgreSQL each leaves what the other has in hand. SQLite has one writer anyway.
    doomed = doomed.with_for_update(skip_locked=True)
    total = 0
    while True:
        with database.writing() as connection:
            deleted = connection.execute(delete(rule.table).where(number.in_(doomed))).rowcount
        total += deleted
        if deleted < rule.chunk:
            return total


def _first_to_stay(database: Database, rule: _Rule, now_ms: int) -> int | None:
    """Rows with a smaller id go; None if all stay. Ids grow with the time of writing: no index by time is needed.

    All up to the last row that is too old, of those before the first that is surely young. A row with a time to come
    was written while the clock ran ahead: it is not surely young, and goes with the rows around it.
    """
    number, stamp = rule.table.c.id, rule.table.c[rule.stamp]
    cutoff = now_ms - int(rule.days * _DAY_MS)
    with database.reading() as connection:
        young = select(number).where(stamp >= cutoff, stamp <= now_ms).order_by(number).limit(1)
        old = select(number).where(stamp < cutoff).order_by(number.desc()).limit(1)
        first_young = connection.execute(young).scalar()
        if first_young is not None:
            old = old.where(number < first_young)
        last_old = connection.execute(old).scalar()
        surplus = None
        if rule.rows is not None:
            query = select(number).order_by(number.desc()).limit(1).offset(rule.rows)
            surplus = connection.execute(query).scalar()
    last_to_go = [int(found) for found in (last_old, surplus) if found is not None]
    return max(last_to_go) + 1 if last_to_go else None
