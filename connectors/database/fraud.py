"""The part of Store about what fraud scores leave behind: labels in force, entities, floods, remembered records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from connectors.database import schema
from connectors.database.columns import rows_of
from connectors.database.connection import Database
from connectors.database.packed import add_packed, packed, packed_ids, packed_numbers
from connectors.database.rows import Checkpoint, EntityRow, FloodRow, LabelSpan, RememberedRow
from connectors.records import Partition

_ENTITY_KEY = ("model", "kind", "topic", "number", "entity")
_UPSERT_INTO = f"INSERT INTO entity_states ({', '.join(_ENTITY_KEY)}, position, blob) "
_CHANGE = f" ON CONFLICT ({', '.join(_ENTITY_KEY)}) DO UPDATE SET position = excluded.position, blob = excluded.blob"
_UPSERT = f"{_UPSERT_INTO} VALUES (?, ?, ?, ?, ?, ?, ?) {_CHANGE}"
_ARRAYS = "%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %b::bytea[]"
_UPSERT_ALL = f"{_UPSERT_INTO} SELECT * FROM unnest({_ARRAYS}) {_CHANGE}"


class FraudStates:
    """What the fraud scores of later records need to know of earlier ones, partition by partition."""

    _database: Database

    def label_spans(self, model: str, partition: Partition | None = None) -> list[LabelSpan]:
        """Which version of the labels was in force from which offset on, by topic, number and offset."""
        table = schema.label_spans
        query = select(table).where(table.c.model == model)
        if partition is not None:
            query = query.where(table.c.topic == partition.topic, table.c.number == partition.number)
        with self._database.reading() as connection:
            result = connection.execute(query.order_by(table.c.topic, table.c.number, table.c.from_offset))
            return [
                LabelSpan(Partition(row.topic, row.number), row.from_offset, row.version, row.reference)
                for row in result
            ]

    def entity_states(self, model: str, partition: Partition) -> list[EntityRow]:
        """Every entity that the partition knows, by kind and hash. Read them after the partition's position."""
        table = schema.entity_states
        query = select(table).where(_of(table, model, partition)).order_by(table.c.kind, table.c.entity)
        with self._database.reading() as connection:
            return rows_of(
                connection.execute(query),
                lambda row: EntityRow(partition, row.kind, row.entity, row.position, row.blob),
            )

    def scattered_entities(self, model: str) -> dict[str, int]:
        """By kind, how many entities have records in several partitions of one topic: what is known of them is split.

        Kinds without such entities are absent.
        """
        table = schema.entity_states
        several = (
            select(table.c.kind, table.c.entity)
            .where(table.c.model == model)
            .group_by(table.c.kind, table.c.topic, table.c.entity)
            .having(func.count() > 1)
            .subquery()
        )
        query = select(several.c.kind, func.count()).group_by(several.c.kind)
        with self._database.reading() as connection:
            return {str(kind): int(count) for kind, count in connection.execute(query)}

    def flood_counts(self, model: str, partition: Partition) -> list[FloodRow]:
        """Counts of the blocks of the partition that are not folded yet. Read them after the partition's position."""
        table = schema.flood_counts
        query = select(table).where(_of(table, model, partition)).order_by(table.c.block, table.c.first_offset)
        with self._database.reading() as connection:
            return rows_of(
                connection.execute(query), lambda row: FloodRow(partition, row.block, row.first_offset, row.blob)
            )

    def remembered_numbers(self, model: str, *, after: int = 0) -> list[tuple[int, int, int]]:
        """Number, time of writing and count of records of every row that is remembered of the model, newest first."""
        return packed_numbers(self._database, schema.remembered, model, after=after)

    def remembered_ids(self, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        """Of rows with these numbers, the hashes of their records' ids; rows that are gone are absent."""
        return packed_ids(self._database, schema.remembered, numbers)

    def remembered(self, numbers: Iterable[int]) -> Iterator[RememberedRow]:
        """Rows with these numbers, in their order, one at a time; rows that are gone are left out."""
        return packed(self._database, schema.remembered, numbers, RememberedRow)


def add_fraud(connection: Connection, checkpoint: Checkpoint, *, dialect: str, now_ms: int) -> None:
    """Write what a checkpoint brings of these, within its transaction."""
    work = checkpoint.work
    if checkpoint.spans:
        key = ("model", "topic", "number", "from_offset")
        connection.execute(
            schema.upsert(schema.label_spans, key, dialect=dialect),
            [
                {
                    "model": work,
                    "topic": span.partition.topic,
                    "number": span.partition.number,
                    "from_offset": span.from_offset,
                    "version": span.version,
                    "reference": span.reference,
                }
                for span in sorted(checkpoint.spans, key=lambda span: (*span.partition, span.from_offset))
            ],
        )
    add_packed(connection, schema.remembered, checkpoint.model, checkpoint.remembered, now_ms=now_ms)
    _add_entities(connection, work, checkpoint.entities, dialect=dialect)
    if checkpoint.floods:
        connection.execute(
            insert(schema.flood_counts),
            [
                {
                    "model": work,
                    "topic": row.partition.topic,
                    "number": row.partition.number,
                    "block": row.block,
                    "first_offset": row.first_offset,
                    "blob": row.blob,
                }
                for row in sorted(checkpoint.floods, key=lambda row: (*row.partition, row.block))
            ],
        )


def _add_entities(connection: Connection, model: str, entities: Sequence[EntityRow], *, dialect: str) -> None:
    rows = [
        (model, row.kind, row.partition.topic, row.partition.number, row.entity, row.offset, row.blob)
        for row in sorted(entities, key=lambda row: (row.kind, *row.partition, row.entity))
    ]
    if dropped := [row for row in rows if not row[-1]]:
        table = schema.entity_states.c
        gone = delete(schema.entity_states).where(
            *(table[name] == bindparam(f"of_{name}") for name in _ENTITY_KEY),
        )
        connection.execute(
            gone, [{f"of_{name}": row[place] for place, name in enumerate(_ENTITY_KEY)} for row in dropped]
        )
    if stays := [row for row in rows if row[-1]]:
        # A checkpoint has thousands of these. Row by row through SQLAlchemy they took twice the processor time on
        # SQLite, and four times on PostgreSQL.
        if dialect == "postgresql":
            connection.exec_driver_sql(_UPSERT_ALL, tuple(map(list, zip(*stays, strict=True))))
        else:
            connection.exec_driver_sql(_UPSERT, stays)


def _of(table: Any, model: str, partition: Partition) -> Any:
    return (table.c.model == model) & (table.c.topic == partition.topic) & (table.c.number == partition.number)
