"""Rows that hold many records each, packed, with the hashes of the records' ids beside them: what labels, and true
answers, that come later are joined with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Table, insert, select

from connectors.database.connection import Database
from connectors.database.rows import PackedRow
from connectors.records import Partition

Packed = TypeVar("Packed", bound=PackedRow)

# Keys of one IN: SQLite takes 32,766 parameters in a statement.
_KEYS = 5_000


def packed_numbers(database: Database, table: Table, model: str, *, after: int) -> list[tuple[int, int, int]]:
    """Number, time of writing and count of records of every row of the model above ``after``, newest first."""
    of = table.c
    query = select(of.id, of.stored_ms, of.records).where(of.model == model, of.id > after)
    with database.reading() as connection:
        return [(row.id, row.stored_ms, row.records) for row in connection.execute(query.order_by(of.id.desc()))]


def packed_ids(database: Database, table: Table, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
    """Of rows with these numbers, the hashes of their records' ids; rows that are gone are absent."""
    of = table.c
    found: list[tuple[int, bytes]] = []
    with database.reading() as connection:
        for start in range(0, len(numbers), _KEYS):
            query = select(of.id, of.ids).where(of.id.in_(numbers[start : start + _KEYS]))
            found += [(row.id, row.ids) for row in connection.execute(query)]
    return found


def packed(database: Database, table: Table, numbers: Iterable[int], make: Callable[..., Packed]) -> Iterator[Packed]:
    """Rows with these numbers, in their order, one at a time: all together may be large. Rows that are gone are left
    out."""
    for number in numbers:
        with database.reading() as connection:
            row = connection.execute(select(table).where(table.c.id == number)).one_or_none()
        if row is not None:  # else retention has taken it meanwhile
            yield make(
                Partition(row.topic, row.number),
                row.first_offset,
                row.from_ms,
                row.to_ms,
                row.records,
                row.ids,
                row.blob,
                row.stored_ms,
                row.id,
            )


def add_packed(connection: Connection, table: Table, model: str, rows: Sequence[Packed], *, now_ms: int) -> None:
    """Write what a checkpoint brings, within its transaction."""
    if rows:
        connection.execute(
            insert(table),
            [
                {
                    "model": model,
                    "topic": row.partition.topic,
                    "number": row.partition.number,
                    "first_offset": row.first_offset,
                    "from_ms": row.from_ms,
                    "to_ms": row.to_ms,
                    "records": row.records,
                    "bytes": len(row.ids) + len(row.blob),
                    "ids": row.ids,
                    "blob": row.blob,
                    "stored_ms": now_ms,
                }
                for row in sorted(rows, key=lambda row: (*row.partition, row.first_offset))
            ],
        )
