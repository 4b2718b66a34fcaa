"""What is stored of records whose offsets belong to other records now: their topic was made anew, or lost its end.

Such rows stay: sums of open blocks are still to be folded, and people still look at kept records and dead letters. But
their offsets must neither collide with those of the new records nor lead to them, so they move below zero, where no
broker has an offset. They keep their order, and several generations lie below one another.

What is usual of entities is forgotten with their topic: their age is told in its offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Text, cast, delete, func, literal, or_, select, update

from connectors.database import schema
from connectors.database.columns import clean
from connectors.records import Gap, Partition

# No offset is that great. Sums of what came without a record lie between it and zero (monitor/pipeline.py).
_BELOW = -(2**48)
_PLACES: tuple[Column[Any], ...] = (
    schema.summary_deltas.c.first_offset,
    schema.thinned_keys.c.first_offset,
    schema.pending_halves.c.position,
    schema.kept.c.position,
    schema.dead_letters.c.position,
    schema.label_spans.c.from_offset,
    schema.remembered.c.first_offset,
    schema.answers.c.first_offset,
    schema.flood_counts.c.first_offset,
)


SAID, SAID_LATE = "record:", "late:"  # begin the origins of truths that records say themselves, on time and late


def record_origin(partition: Partition, *, late: bool = False) -> str:
    """How the origin begins of a truth that a record of this partition says itself; offset and row follow."""
    return clean(f"{SAID_LATE if late else SAID}{partition.topic}/{partition.number}/")


def came_late(origin: str, partition: Partition, first_offset: int) -> bool:
    """Whether a truth with this origin was said, not known to be late, by a record from this offset of it on."""
    return origin.startswith(record_origin(partition)) and int(origin.rsplit("/", 2)[1]) >= first_offset


def move_below_zero(connection: Connection, model: str, gaps: Sequence[Gap]) -> None:
    """Free the offsets that are used again after these gaps; those that only jump forwards change nothing.

    Of a topic that was made anew all offsets are freed; of one that lost its newest records, the lost ones.
    """
    for gap in gaps:
        if gap.reason != "recreated" and gap.to_offset >= gap.from_offset:
            continue
        if gap.reason == "recreated":
            entities = schema.entity_states.c
            connection.execute(
                delete(schema.entity_states).where(
                    entities.model == model,
                    entities.topic == gap.partition.topic,
                    entities.number == gap.partition.number,
                )
            )
        _free_origins(connection, model, gap)
        for place in _PLACES:
            table = place.table.c
            mine = (
                (table["model"] == model)
                & (table["topic"] == gap.partition.topic)
                & (table["number"] == gap.partition.number)
            )
            first, last = connection.execute(select(func.min(place), func.max(place)).where(mine)).one()
            # What is below all that already came from an older topic, and stays where it is.
            freed = place > _BELOW
            if gap.reason != "recreated":
                freed &= or_(place >= gap.to_offset, place < 0)
            if last is None:
                continue
            # So far that no row lands where another one lies: unique keys are checked row by row.
            by = int(last) + 1 - min(_BELOW, int(first))
            connection.execute(update(place.table).where(mine, freed).values({place.name: place - by}))


def _free_origins(connection: Connection, model: str, gap: Gap) -> None:
    """Truths that records said themselves are known by their offsets: those of other records now are free again."""
    truths = schema.truths.c
    for late in (False, True):
        origin = record_origin(gap.partition, late=late)
        mine = (truths.model == model) & (func.substr(truths.origin, 1, len(origin)) == origin)
        # They begin as they did: they count with the blocks of their records, which may still be open.
        place = func.substr(truths.origin, len(SAID_LATE if late else SAID) + 1)
        freed = literal(SAID_LATE if late else SAID).concat("gone/").concat(place)
        freed = freed.concat("/").concat(cast(truths.id, Text))
        connection.execute(update(schema.truths).where(mine).values(origin=freed))
