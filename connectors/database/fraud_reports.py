"""The part of Store that says what became of fraud scores: who was asked about which records, and what was answered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import LargeBinary, literal, or_, select, true

from connectors.database import schema
from connectors.database.columns import from_json, kept_row, label_row, rows_of
from connectors.database.connection import Database
from connectors.database.rows import AskedRecord, KeptRecord, LabelRow
from connectors.records import Partition

_KEPT, _LABELS = schema.kept, schema.labels


class FraudReports:
    """Questions of the report and the command line. Each is one statement."""

    _database: Database

    def asked_records(self, model: str, space: str, *, from_ms: int, limit: int) -> list[AskedRecord]:
        """Records that people were asked about, alerts and the review sample, the newest ``limit``, by event time.

        Args:
            space: the pseudo-space of fraud.
            from_ms: event time.
        """
        names = ("topic", "number", "position", "row", "time_ms", "record_id", "score", "p_value", "labels", "detail")
        reviewed = or_(_KEPT.c.reason == "review", _KEPT.c.detail.like('%"review":%'))
        query = (
            select(*(_KEPT.c[name] for name in names), _KEPT.c.flagged)
            .where(_KEPT.c.model == model, _KEPT.c.space == space, _KEPT.c.time_ms >= from_ms)
            .where(or_(_KEPT.c.flagged == true(), reviewed))
            .order_by(_KEPT.c.time_ms.desc(), _KEPT.c.topic, _KEPT.c.number, _KEPT.c.position, _KEPT.c.row)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), _asked)[::-1]

    def moved_by_marks(self, model: str, space: str, *, from_ms: int, limit: int) -> list[KeptRecord]:
        """Kept records that false-alarm marks moved down, the newest first; without their vectors."""
        columns = [column for column in _KEPT.c if column.name != "vector"]
        query = (
            select(*columns, literal(None, LargeBinary).label("vector"))
            .where(_KEPT.c.model == model, _KEPT.c.space == space, _KEPT.c.time_ms >= from_ms)
            .where(_KEPT.c.detail.like('%"cleared_by":%'))
            .order_by(_KEPT.c.time_ms.desc(), _KEPT.c.topic, _KEPT.c.number, _KEPT.c.position, _KEPT.c.row)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), kept_row)

    def label_sayings(self, model: str, *, limit: int) -> list[LabelRow]:
        """The last ``limit`` labels that count, by version; without vectors and signals, so that many fit in memory."""
        columns = [column for column in _LABELS.c if column.name not in ("vector", "signals")]
        nothing = (literal(b"", LargeBinary).label(name) for name in ("vector", "signals"))
        query = select(*columns, *nothing).where(_LABELS.c.model == model, _LABELS.c.version > 0)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query.order_by(_LABELS.c.version.desc()).limit(limit)), label_row)[::-1]


def _asked(row: Any) -> AskedRecord:
    detail = from_json(row.detail) if row.detail else {}
    return AskedRecord(
        Partition(row.topic, row.number),
        row.position,
        row.row,
        row.time_ms,
        row.record_id,
        bool(row.flagged),
        row.score,
        row.p_value,
        row.labels,
        detail,
    )
