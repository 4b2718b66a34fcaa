"""What is stored of closed blocks, to be read again in their order. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from connectors.database import schema
from connectors.database.columns import clean, fraud_hit, rows_of
from connectors.database.connection import Database
from connectors.database.folding import Fold
from connectors.database.rows import FraudHit, TruthRow
from connectors.database.truths import first_truths_of, said_of
from connectors.database.verdicts import truths_at

_SUMMARIES, _READINGS, _KEPT = schema.summaries, schema.readings, schema.kept


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """One stored summary: of the blocks first <= block < first + blocks."""

    first: int
    blocks: int
    blob: bytes


class History:
    """The closed blocks of one model, as they were at one moment. Made by `Store.history`.

    Attributes:
        fold: reads what the causes of incidents are made of.
    """

    def __init__(self, database: Database, connection: Connection, model: str) -> None:
        self.fold = Fold(database, connection, model)
        self._snapshot = connection
        self._model = model

    def timeline(self, *, from_block: int | None = None, to_block: int | None = None) -> list[tuple[int, int]]:
        """First block and number of blocks of each stored count of records, from_block <= first < to_block."""
        query = select(_SUMMARIES.c.block, _SUMMARIES.c.blocks).where(
            _SUMMARIES.c.model == self._model, _SUMMARIES.c.space == "", _SUMMARIES.c.segment == ""
        )
        if from_block is not None:
            query = query.where(_SUMMARIES.c.block >= from_block)
        if to_block is not None:
            query = query.where(_SUMMARIES.c.block < to_block)
        return [(row.block, row.blocks) for row in self._snapshot.execute(query.order_by(_SUMMARIES.c.block))]

    def first_block(self) -> int | None:
        """The lowest block that is stored; None where none is."""
        query = select(func.min(_SUMMARIES.c.block)).where(
            _SUMMARIES.c.model == self._model, _SUMMARIES.c.space == "", _SUMMARIES.c.segment == ""
        )
        return self._snapshot.execute(query).scalar()

    def references(self, space: str) -> list[int]:
        """The versions of a space's reference that stored summaries of its whole traffic are of, ascending."""
        query = (
            select(_SUMMARIES.c.reference)
            .where(_SUMMARIES.c.model == self._model, _SUMMARIES.c.space == space, _SUMMARIES.c.segment == "")
            .group_by(_SUMMARIES.c.reference)
            .order_by(_SUMMARIES.c.reference)
        )
        return list(self._snapshot.execute(query).scalars())

    def blocks_of(self, space: str, *, from_block: int, to_block: int) -> list[tuple[int, int, int]]:
        """First block, number of blocks and reference of each summary of a space's whole traffic, in that order."""
        table = _SUMMARIES.c
        query = (
            select(table.block, table.blocks, table.reference)
            .where(table.model == self._model, table.space == space, table.segment == "")
            .where(table.block >= from_block, table.block < to_block)
            .order_by(table.block, table.reference)
        )
        return [(row.block, row.blocks, row.reference) for row in self._snapshot.execute(query)]

    def judged(self, space: str, channel: str, *, from_block: int, to_block: int) -> list[tuple[int, int]]:
        """Block and reference of each stored reading of a channel of a space's whole traffic, in that order."""
        table = _READINGS.c
        query = (
            select(table.block, table.reference)
            .where(table.model == self._model, table.space == space, table.segment == "", table.channel == channel)
            .where(table.block >= from_block, table.block < to_block)
            .order_by(table.block, table.reference)
        )
        return [(row.block, row.reference) for row in self._snapshot.execute(query)]

    def summaries(
        self, space: str, segment: str, reference: int, *, from_block: int, to_block: int
    ) -> Iterator[StoredBlocks]:
        """Stored summaries with from_block <= first < to_block, in their order. Ask for what memory can hold."""
        table = _SUMMARIES.c
        query = (
            select(table.block, table.blocks, table.blob)
            .where(table.model == self._model, table.space == space, table.segment == clean(segment))
            .where(table.block >= from_block, table.block < to_block, table.reference == reference)
            .order_by(table.block)
        )
        # All at once: one by one, each row costs as much as what is in it.
        for first, blocks, blob in self._snapshot.execute(query).all():
            yield StoredBlocks(first, blocks, blob)

    def truths(self, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        """See `first_truths_of`."""
        return first_truths_of(self._snapshot, self._model, after, most, upto=upto)

    def said(self, from_ms: int, to_ms: int) -> list[TruthRow]:
        """See `said_of`."""
        return said_of(self._snapshot, self._model, from_ms, to_ms)

    def truths_at(self, from_block: int, below: int) -> dict[int, int]:
        """See `truths_at`."""
        return truths_at(self._snapshot, self._model, from_block, below)

    def fraud_hits(self, space: str, from_block: int, to_block: int, at_least: float, most: int) -> list[FraudHit]:
        """The candidates of some blocks, as `Fold.fraud_hits` gives those of one."""
        names = ("space", "topic", "number", "position", "row", "score", "labels", "segments", "detail")
        query = (
            select(*(_KEPT.c[name] for name in names))
            .where(_KEPT.c.model == self._model, _KEPT.c.space == space)
            .where(_KEPT.c.block >= from_block, _KEPT.c.block < to_block)
            .where(_KEPT.c.reason == "fraud", _KEPT.c.score >= at_least)
            .order_by(_KEPT.c.score.desc(), _KEPT.c.topic, _KEPT.c.number, _KEPT.c.position, _KEPT.c.row)
            .limit(most)
        )
        return rows_of(self._snapshot.execute(query), fraud_hit)

    def first_kept(self, space: str) -> int | None:
        """The lowest block of which records of a space are still kept; None where none are."""
        query = select(func.min(_KEPT.c.block)).where(_KEPT.c.model == self._model, _KEPT.c.space == space)
        return self._snapshot.execute(query).scalar()


class Histories:
    """The part of Store that reads history."""

    _database: Database

    @contextmanager
    def history(self, model: str) -> Iterator[History]:
        """The model's closed blocks, from one snapshot of the database, for as long as the block lasts."""
        with self._database.snapshot() as connection:
            yield History(self._database, connection, model)
