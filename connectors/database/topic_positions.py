"""How far topics of labels, and of true answers, were read: written with what came out of them, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from connectors.database import schema
from connectors.records import Partition
from detectors.errors import OwnershipLost

_OFFSETS = schema.label_offsets


class MovedByOthers(Exception):
    """A partition of a topic does not stand where it was read from; ends the transaction."""


def read_by_others(what: str) -> OwnershipLost:
    """The error that a transaction ends with which `MovedByOthers` has ended."""
    return OwnershipLost(
        f"{what} was read by another process meanwhile. Nothing was written.",
        hint="Normal for a moment when workers come and go. If it goes on, two deployments share a database.",
    )


def positions_of(connection: Connection, reader: str) -> dict[Partition, int]:
    """The next offset of each partition that the reader has read."""
    query = select(_OFFSETS).where(_OFFSETS.c.model == reader)
    return {Partition(row.topic, row.number): row.next_offset for row in connection.execute(query)}


def topic_ids_of(connection: Connection, reader: str, partitions: Sequence[Partition]) -> dict[Partition, str]:
    """The broker's ids of the topics of these partitions, as far as known."""
    query = select(_OFFSETS).where(_OFFSETS.c.model == reader, _OFFSETS.c.topic_id.is_not(None))
    found = {Partition(row.topic, row.number): row.topic_id for row in connection.execute(query)}
    return {partition: found[partition] for partition in partitions if partition in found}


def move_positions(
    connection: Connection,
    reader: str,
    positions: Mapping[Partition, tuple[int | None, int]],
    topic_ids: Mapping[Partition, str | None],
    *,
    dialect: str,
) -> None:
    """Move partitions on.

    Args:
        reader: who reads: the model's name for its labels.
        positions: the next offset that was read before (None if there was none), and the one now.
        topic_ids: the broker's ids of the topics, as far as known.

    Raises:
        MovedByOthers: another process has read on from there.
    """
    for partition, (expected, next_offset) in sorted(positions.items()):
        where = {"next_offset": next_offset, "topic_id": topic_ids.get(partition)}
        if expected is None:
            row = {"model": reader, "topic": partition.topic, "number": partition.number, **where}
            statement: Any = schema.insert_ignoring(_OFFSETS, dialect=dialect).values(row)
        else:
            statement = (
                update(_OFFSETS)
                .where(
                    _OFFSETS.c.model == reader,
                    _OFFSETS.c.topic == partition.topic,
                    _OFFSETS.c.number == partition.number,
                    _OFFSETS.c.next_offset == expected,
                )
                .values(where)
            )
        # SQLAlchemy forgets the count of an INSERT unless it is asked to keep it.
        if connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount != 1:
            raise MovedByOthers
