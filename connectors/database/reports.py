"""The part of Store that only reads: for the report, the command line, replay and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Select, func, select, true

from connectors.database import schema
from connectors.database.columns import (
    clean,
    closure_row,
    incident_row,
    kept_row,
    letter_row,
    reading_row,
    rows_of,
    summary_row,
)
from connectors.database.connection import Database
from connectors.database.rows import (
    MOST_BLOCKS,
    Closure,
    DeploymentRow,
    IncidentRow,
    KeptRecord,
    ReadingRow,
    Silences,
    SummaryDelta,
    Totals,
)
from connectors.records import DeadLetter


class Reports:
    """Questions to the database. Each is one statement; results come whole, so ask for a range."""

    _database: Database

    def readings(
        self,
        model: str,
        space: str | None = None,
        *,
        segment: str | None = None,
        channel: str | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
    ) -> list[ReadingRow]:
        """Readings of blocks with from_ms <= start < to_ms, by time, space, segment, channel, reference."""
        table = schema.readings
        query = select(table).where(table.c.model == model)
        query = _equal(query, table, space=space, segment=None if segment is None else clean(segment), channel=channel)
        if from_ms is not None:
            query = query.where(table.c.start_ms >= from_ms)
        if to_ms is not None:
            query = query.where(table.c.start_ms < to_ms)
        order = (table.c.start_ms, table.c.space, table.c.segment, table.c.channel, table.c.reference)
        return self._all(query.order_by(*order), reading_row)

    def margins(
        self, model: str, channels: Sequence[str], *, from_ms: int, to_ms: int, places: int
    ) -> list[tuple[int, float, int]]:
        """How near the alarms of the whole traffic came to a page, drawn together to at most ``places`` stretches.

        Returns:
            For each stretch with readings its begin, the greatest strength beyond the threshold of a page (negative
            under it), and the records that came.
        """
        width = max(-(-(to_ms - from_ms) // places), 1)
        table, stats = schema.readings.c, schema.block_stats.c
        place = (table.start_ms - from_ms) // width
        margins = (
            select(place, func.max(table.strength - table.threshold))
            .where(table.model == model, table.segment == "", table.channel.in_(channels))
            .where(table.start_ms >= from_ms, table.start_ms < to_ms, table.strength.is_not(None))
            .group_by(place)
            .order_by(place)
        )
        place = (stats.start_ms - from_ms) // width
        records = (
            select(place, func.sum(stats.records))
            .where(stats.model == model, stats.space == "", stats.start_ms >= from_ms, stats.start_ms < to_ms)
            .group_by(place)
        )
        with self._database.reading() as connection:
            came = {int(at): int(count) for at, count in connection.execute(records)}
            found = [(int(at), float(margin)) for at, margin in connection.execute(margins)]
        return [(from_ms + at * width, margin, came.get(at, 0)) for at, margin in found]

    def judged_ms(self, model: str) -> tuple[int, int] | None:
        """Event time from the begin of the first stored reading to the end of the last; None if there is none."""
        table = schema.readings
        query = select(func.min(table.c.start_ms), func.max(table.c.end_ms)).where(table.c.model == model)
        with self._database.reading() as connection:
            first, last = connection.execute(query).one()
        return None if first is None else (int(first), int(last))

    def silences(self, model: str, *, days: float, most: int) -> tuple[Silences, Silences]:
        """The longest times between blocks that hold records: in event time, and in the time at which they were closed.

        Args:
            days: of the past, up to the newest block.
            most: how many of each.
        """
        table = schema.block_stats
        return (
            self._silences(model, table.c.start_ms, days=days, most=most),
            self._silences(model, table.c.stored_ms, days=days, most=most),
        )

    def _silences(self, model: str, begin: Any, *, days: float, most: int) -> Silences:
        table = schema.block_stats
        whole = (table.c.model == model) & (table.c.space == "")
        with self._database.reading() as connection:
            newest = connection.execute(select(func.max(begin)).where(whole)).scalar()
            if newest is None:
                return Silences((), 0.0)
            recent = whole & (begin >= newest - round(days * 86_400_000))
            first, last = connection.execute(select(func.min(begin), func.max(begin)).where(recent)).one()
            pause = (begin - func.lag(begin).over(order_by=begin)).label("pause_ms")
            pauses = select(pause).where(recent).subquery()
            longest = (
                select(pauses.c.pause_ms).where(pauses.c.pause_ms > 0).order_by(pauses.c.pause_ms.desc()).limit(most)
            )
            found = connection.execute(longest).scalars().all()
        return Silences(tuple(pause_ms / 1000 for pause_ms in found), (last - first) / 1000)

    def summaries(
        self, model: str, space: str, *, segment: str, from_block: int | None = None, to_block: int | None = None
    ) -> list[SummaryDelta]:
        """Summaries that hold closed blocks with from_block <= block < to_block, in the order of block and reference.

        A row of several blocks is there if one of its blocks is: the first row may begin before ``from_block``, and the
        last one end after ``to_block``.

        They come from all partitions, so their partition is ("", -1) and their first offset -1.
        """
        table = schema.summaries
        query = select(table).where(table.c.model == model, table.c.space == space, table.c.segment == clean(segment))
        if from_block is not None:
            # The first condition is what an index can tell; the second one leaves out what ends before.
            query = query.where(table.c.block > from_block - MOST_BLOCKS, table.c.block + table.c.blocks > from_block)
        if to_block is not None:
            query = query.where(table.c.block < to_block)
        return self._all(query.order_by(table.c.block, table.c.reference), summary_row)

    def closures(self, model: str) -> list[Closure]:
        """Closures by the wall clock or the end of a source, in the order in which they happened."""
        table = schema.closures
        return self._all(select(table).where(table.c.model == model).order_by(table.c.id), closure_row)

    def incidents(
        self, model: str | None = None, status: Literal["open", "resolved"] | None = None
    ) -> list[IncidentRow]:
        """Incidents in the order of their opening; without those of history that is still being scored in a lane."""
        table = schema.incidents
        query = _equal(select(table), table, model=model, status=status)
        if model is None:
            query = query.where(table.c.model.not_like("%~%"))
        return self._all(query.order_by(table.c.opened_ms, table.c.id), incident_row)

    def deployments(self, model: str) -> list[DeploymentRow]:
        """The versions of the watched model that came after the first, in the order of their first blocks."""
        table = schema.deployments
        query = select(table).where(table.c.model == model).order_by(table.c.block, table.c.version)
        return self._all(query, lambda row: DeploymentRow(row.version, row.block, row.start_ms))

    def kept(
        self,
        model: str,
        space: str | None = None,
        *,
        flagged: bool | None = None,
        limit: int = 100,
        order: Literal["score", "time"] = "score",
    ) -> list[KeptRecord]:
        """Kept records, the strangest or the newest first."""
        table = schema.kept
        query = _equal(select(table).where(table.c.model == model), table, space=space)
        if flagged is not None:
            query = query.where(table.c.flagged == true() if flagged else table.c.flagged != true())
        first = table.c.score.desc().nulls_last() if order == "score" else table.c.time_ms.desc()
        place = (table.c.space, table.c.topic, table.c.number, table.c.position)
        return self._all(query.order_by(first, *place).limit(limit), kept_row)

    def dead_letters(self, model: str, limit: int = 100) -> list[DeadLetter]:
        """Stored dead letters, the newest first."""
        table = schema.dead_letters
        return self._all(
            select(table).where(table.c.model == model).order_by(table.c.id.desc()).limit(limit), letter_row
        )

    def dead_letter_counts(self, model: str) -> dict[str, int]:
        """How many records of a model were dead letters, by reason; exact, whatever retention has deleted."""
        table = schema.dead_letter_counts
        count = func.sum(table.c.count)
        query = select(table.c.reason, count).where(table.c.model == model).group_by(table.c.reason)
        with self._database.reading() as connection:
            found = {row[0]: int(row[1]) for row in connection.execute(query)}
        return dict(sorted(found.items()))

    def totals(self, model: str) -> Totals:
        """What happened to the model's records; all zero for a model that the database does not know."""
        table, kept = schema.partitions, schema.kept
        sums = [func.coalesce(func.sum(table.c[name]), 0) for name in ("records", "dead", "late")]
        stored = select(func.count()).select_from(kept).where(kept.c.model == model)
        flagged = stored.where(kept.c.flagged == true(), kept.c.reason == "outlier")
        # Records of history have been counted in lanes (`connectors.database.lane`).
        mine = (table.c.model == model) | table.c.model.startswith(f"{model}~", autoescape=True)
        query = select(*sums, stored.scalar_subquery(), flagged.scalar_subquery()).where(mine)
        with self._database.reading() as connection:
            return Totals(*(int(value) for value in connection.execute(query).one()))

    def _all(self, query: Select[Any], make: Any) -> list[Any]:
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), make)


def _equal(query: Select[Any], table: Any, **values: object) -> Select[Any]:
    for name, value in values.items():
        if value is not None:
            query = query.where(table.c[name] == value)
    return query
