"""The part of Store about partitions: how far each was read, and what of it is not finished yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, or_, select, tuple_, update

from connectors.database import schema
from connectors.database.columns import gap_row, half_row, partition_state, rows_of, thinned_row
from connectors.database.connection import Database
from connectors.database.rows import GapRow, HalfRow, PartitionState, ThinnedKeys
from connectors.records import Partition

_TABLE = schema.partitions
# Keys of one IN: SQLite takes 32,766 parameters in a statement.
_KEYS = 5_000


class Partitions:
    """Positions, counts and open work of the partitions of each model."""

    _database: Database

    def positions(self, model: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The next offset of each partition; partitions that were never read are absent."""
        return {Partition(row.topic, row.number): row.next_offset for row in self._rows(model, partitions)}

    def topic_ids(self, model: str, partitions: Sequence[Partition]) -> dict[Partition, str]:
        """The broker's id of the topic that each partition was read from; those without a known one are absent."""
        return {
            Partition(row.topic, row.number): row.topic_id
            for row in self._rows(model, partitions)
            if row.topic_id is not None
        }

    def partition_states(self, model: str, partition: Partition | None = None) -> list[PartitionState]:
        """How far every partition of the model is, or this one, with its exact counts, by topic and number."""
        query = select(_TABLE).where(_TABLE.c.model == model).order_by(_TABLE.c.topic, _TABLE.c.number)
        if partition is not None:
            query = query.where(_TABLE.c.topic == partition.topic, _TABLE.c.number == partition.number)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), partition_state)

    def mark_idle(self, model: str, offsets: Mapping[Partition, int]) -> None:
        """Their owner found these partitions silent, and read to their ends at these next offsets.

        A partition that stands elsewhere by now, or was never read, is left as it is. The mark is void once a
        checkpoint moves the partition.
        """
        change = (
            update(_TABLE)
            .where(
                _TABLE.c.model == model,
                _TABLE.c.topic == bindparam("of_topic"),
                _TABLE.c.number == bindparam("of_number"),
                _TABLE.c.next_offset == bindparam("at"),
                # A row that says so already is not written again: owners repeat themselves every few seconds.
                or_(_TABLE.c.idle_offset.is_(None), _TABLE.c.idle_offset != bindparam("at")),
            )
            .values(idle_offset=bindparam("at"))
        )
        values = [
            {"of_topic": topic, "of_number": number, "at": offset}
            for (topic, number), offset in sorted(offsets.items())
        ]
        if values:
            with self._database.writing() as connection:
                connection.execute(change, values)

    def thinned_keys(self, model: str, partition: Partition) -> list[ThinnedKeys]:
        """The keys that checkpoints met in blocks of the partition that are not folded yet, by block and offset.

        Read them after the partition's position: where another owner writes a checkpoint in between, the position is
        old, and whoever read it writes nothing.
        """
        table = schema.thinned_keys
        query = select(table).where(_of(table, model, partition)).order_by(table.c.block, table.c.first_offset)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), thinned_row)

    def halves(self, model: str, partition: Partition) -> list[HalfRow]:
        """The requests and responses of the partition that wait for their other half, by offset.

        Read them after the partition's position, as `thinned_keys`. Those with a negative offset came from a topic
        that has been made anew since.
        """
        table = schema.pending_halves
        query = select(table).where(_of(table, model, partition)).order_by(table.c.position)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), half_row)

    def gaps(self, model: str) -> list[GapRow]:
        """Records of the model that were lost before they could be read, in the order in which that was noticed."""
        table = schema.gaps
        order = (table.c.noticed_ms, table.c.topic, table.c.number, table.c.from_offset)
        query = select(table).where(table.c.model == model).order_by(*order)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), gap_row)

    def pin_format(self, model: str, topic: str, found: str, now_ms: int) -> str:
        """The format of the topic's records: ``found``, unless a worker has pinned another one before."""
        table = schema.formats
        query = select(table.c.format).where(table.c.model == model, table.c.topic == topic)
        with self._database.reading() as connection:
            pinned = connection.execute(query).scalar()
        if pinned is not None:
            return str(pinned)
        with self._database.writing() as connection:
            row = {"model": model, "topic": topic, "format": found, "pinned_ms": now_ms}
            connection.execute(schema.insert_ignoring(table, dialect=self._database.dialect), [row])
            return str(connection.execute(query).scalar_one())

    def formats(self, model: str) -> dict[str, str]:
        """The formats that are pinned, by topic."""
        table = schema.formats
        with self._database.reading() as connection:
            found = connection.execute(select(table.c.topic, table.c.format).where(table.c.model == model))
            return {row.topic: row.format for row in found}

    def _rows(self, model: str, partitions: Sequence[Partition]) -> Iterator[Any]:
        columns = (_TABLE.c.topic, _TABLE.c.number, _TABLE.c.next_offset, _TABLE.c.topic_id)
        with self._database.reading() as connection:
            for start in range(0, len(partitions), _KEYS):
                keys = [tuple(partition) for partition in partitions[start : start + _KEYS]]
                query = select(*columns).where(
                    _TABLE.c.model == model, tuple_(_TABLE.c.topic, _TABLE.c.number).in_(keys)
                )
                yield from connection.execute(query)


def _of(table: Any, model: str, partition: Partition) -> Any:
    return (table.c.model == model) & (table.c.topic == partition.topic) & (table.c.number == partition.number)
