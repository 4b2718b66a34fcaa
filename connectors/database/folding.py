"""The transaction of the fold: read the open blocks as they were at one moment, close some, write what came of it.

Reading and writing are two transactions with a compare-and-set on the fold's version between them. So a fold that takes
long keeps no checkpoint waiting, and of two workers that fold at once, one writes and the other learns that it lost.
What is deleted is exactly what was handed out: a delta that arrives in between stays, and is late in the next fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, bindparam, delete, false, func, insert, not_, or_, select, true, update
from sqlalchemy.exc import IntegrityError

from connectors.database import schema
from connectors.database.columns import (
    block_stat_columns,
    clean,
    closure_columns,
    delta_row,
    deployment_columns,
    fraud_hit,
    incident_columns,
    incident_row,
    kept_row,
    outbox_columns,
    partition_state,
    reading_columns,
    rows_of,
    state_columns,
    state_row,
    summary_columns,
    summary_row,
    verdict_columns,
)
from connectors.database.connection import Database
from connectors.database.remade import came_late as said_late
from connectors.database.rows import (
    FoldResult,
    FoldState,
    FraudHit,
    IncidentRow,
    KeptRecord,
    PartitionState,
    SaidLate,
    SummaryDelta,
    TruthRow,
)
from connectors.database.truths import first_truths_of, mark_late, said_of
from connectors.database.verdicts import truths_at
from connectors.records import Partition
from detectors.errors import OwnershipLost, StoreError

_FOLDS, _DELTAS, _STATES, _INCIDENTS = schema.folds, schema.summary_deltas, schema.fold_states, schema.incidents


class Fold:
    """One step of the fold of one model. Made by `Store.begin_fold`; everything is read from one snapshot.

    In a lane (`connectors.database.lane`) the fold has positions, open blocks, a state and incidents of its own, and
    runs on over the blocks that were closed without it.

    Attributes:
        version: counts the steps; 0 before the first.
        next_block: blocks below it are closed; None before the first step.
        live_next_block: the same of the model's own fold, in a lane; None elsewhere, and before its first step.
        live_first_block: in a lane, before that step: the first block that holds live records; None where none does.
        partitions: how far every partition is.
        live_partitions: the same of the model's own, in a lane.
    """

    def __init__(self, database: Database, connection: Connection, model: str, *, lane: str = "") -> None:
        self._database = database
        self._snapshot = connection
        self._model = model
        self._lane = lane
        self._work = lane or model
        # Deltas handed out, with their blocks: only these may be deleted.
        self._handed_out: dict[int, int] = {}
        self._left_out: dict[tuple[int, Partition], int] = {}
        self._said_late: list[SaidLate] = []
        self._committed = False
        row = connection.execute(select(_FOLDS).where(_FOLDS.c.model == self._work)).one_or_none()
        self.version: int = 0 if row is None else row.version
        self.next_block: int | None = None if row is None else row.next_block
        self.live_next_block: int | None = None
        self.live_first_block: int | None = None
        self.live_partitions: list[PartitionState] = []
        if lane:
            live = select(_FOLDS.c.next_block).where(_FOLDS.c.model == model)
            self.live_next_block = connection.execute(live).scalar()
            self.live_partitions = self._partitions_of(model)
            if self.live_next_block is None:
                first = select(func.min(_DELTAS.c.block)).where(_DELTAS.c.model == model)
                self.live_first_block = connection.execute(first).scalar()
        self.partitions: list[PartitionState] = self._partitions_of(self._work)

    def _partitions_of(self, name: str) -> list[PartitionState]:
        table = schema.partitions
        query = select(table).where(table.c.model == name).order_by(table.c.topic, table.c.number)
        return rows_of(self._snapshot.execute(query), partition_state)

    def first_pending_block(self) -> int | None:
        """The lowest open block that has records; None if there is none.

        A lane that has begun comes to the blocks that the model's own fold has closed, too.
        """
        query = select(func.min(_DELTAS.c.block)).where(_DELTAS.c.model == self._work)
        if self.next_block is not None:
            query = query.where(_DELTAS.c.block >= self.next_block)
        found = [self._snapshot.execute(query).scalar()]
        if self._lane and self.next_block is not None:
            table = schema.summaries
            live = select(func.min(table.c.block)).where(
                table.c.model == self._model, table.c.space == "", table.c.block >= self.next_block
            )
            found.append(self._snapshot.execute(live).scalar())
        return min((int(block) for block in found if block is not None), default=None)

    def closed_before(self, from_block: int, to_block: int) -> list[SummaryDelta]:
        """What the model's own fold stored of the blocks from_block <= block < to_block; nothing outside of a lane."""
        if not self._lane:
            return []
        table = schema.summaries
        query = (
            select(table)
            .where(table.c.model == self._model, table.c.block >= from_block, table.c.block < to_block)
            .order_by(table.c.block, table.c.space, table.c.segment, table.c.reference)
        )
        return rows_of(self._snapshot.execute(query), summary_row)

    def deltas(self, below_block: int) -> list[SummaryDelta]:
        """Deltas of the open blocks below ``below_block``; those of blocks that `commit` closes are deleted with it.

        In the order of block, space, segment, reference, partition, first offset.
        """
        query = select(_DELTAS).where(_DELTAS.c.model == self._work, _DELTAS.c.block < below_block)
        if self.next_block is not None:
            query = query.where(_DELTAS.c.block >= self.next_block)
        return self._hand_out(query)

    def late_deltas(self) -> list[SummaryDelta]:
        """Deltas of blocks that the wall clock closed before these came. Count them; `commit` deletes them."""
        if self.next_block is None:
            return []
        return self._hand_out(select(_DELTAS).where(_DELTAS.c.model == self._work, _DELTAS.c.block < self.next_block))

    def leave_out(self, came_late: Iterable[SummaryDelta], said: Sequence[SaidLate] = ()) -> None:
        """Records of these blocks, from the offsets of these deltas on, came after their block had been closed.

        Of those that are kept, none is flagged, and none is an alert.

        Args:
            said: the same, where records say themselves what is true: it does not count.
        """
        self._said_late = list(said)
        for delta in came_late:
            place = delta.block, delta.partition
            self._left_out[place] = min(delta.first_offset, self._left_out.get(place, delta.first_offset))

    def _came_late(self, block: int) -> list[Any]:
        """The kept records of a block that are left out, as conditions."""
        kept = schema.kept.c
        return [
            (kept.topic == topic) & (kept.number == number) & (kept.position >= offset)
            for (of_block, (topic, number)), offset in sorted(self._left_out.items())
            if of_block == block
        ]

    def _hand_out(self, query: Any) -> list[SummaryDelta]:
        order = (
            _DELTAS.c[name] for name in ("block", "space", "segment", "reference", "topic", "number", "first_offset")
        )
        rows: list[Row[Any]] = list(self._snapshot.execute(query.order_by(*order)))
        self._handed_out.update({row.id: row.block for row in rows})
        return rows_of(rows, delta_row)

    def states(self) -> list[FoldState]:
        """The states of the alarms, by space and segment; of several references, the one written last comes last."""
        query = (
            select(_STATES)
            .where(_STATES.c.model == self._work)
            .order_by(_STATES.c.space, _STATES.c.segment, _STATES.c.written, _STATES.c.reference)
        )
        return rows_of(self._snapshot.execute(query), state_row)

    def incidents(self, *, resolved_since_ms: int | None = None) -> list[IncidentRow]:
        """The model's open incidents, and those resolved at that time or later, in the order of their opening."""
        wanted = _INCIDENTS.c.status == "open"
        if resolved_since_ms is not None:
            wanted = or_(wanted, _INCIDENTS.c.resolved_ms >= resolved_since_ms)
        query = select(_INCIDENTS).where(_INCIDENTS.c.model == self._work, wanted)
        found = self._snapshot.execute(query.order_by(_INCIDENTS.c.opened_ms, _INCIDENTS.c.id))
        return [replace(row, model=self._model) for row in rows_of(found, incident_row)]

    def blocks(self, space: str, reference: int, *, from_block: int, to_block: int, most: int) -> list[int]:
        """The newest ``most`` closed blocks with records, from_block <= block < to_block, ascending."""
        table = schema.summaries
        query = (
            select(table.c.block)
            .where(table.c.model == self._model, table.c.space == space, table.c.segment == "")
            .where(table.c.block >= from_block, table.c.block < to_block, table.c.reference == reference)
            .order_by(table.c.block.desc())
            .limit(most)
        )
        return sorted(self._snapshot.execute(query).scalars())

    def summaries(
        self, space: str, reference: int, *, segment: str, from_block: int, to_block: int
    ) -> Iterator[SummaryDelta]:
        """Merged summaries of closed blocks with from_block <= block < to_block, one at a time, in their order."""
        table = schema.summaries
        query = (
            select(table)
            .where(table.c.model == self._model, table.c.space == space, table.c.segment == clean(segment))
            .where(table.c.block >= from_block, table.c.block < to_block, table.c.reference == reference)
            .order_by(table.c.block)
        )
        return map(summary_row, self._snapshot.execute(query, execution_options={"yield_per": 100}))

    def truths(self, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        """See `first_truths_of`."""
        return first_truths_of(self._snapshot, self._model, after, most, upto=upto)

    def said(self, from_ms: int, to_ms: int) -> list[TruthRow]:
        """See `said_of`; without the records that `leave_out` names."""
        return [row for row in said_of(self._snapshot, self._model, from_ms, to_ms) if not self._is_left_out(row)]

    def _is_left_out(self, row: TruthRow) -> bool:
        return any(
            one.from_ms <= (row.said.event_ms or 0) < one.to_ms
            and said_late(row.said.origin, one.partition, one.first_offset)
            for one in self._said_late
        )

    def truths_at(self, from_block: int, below: int) -> dict[int, int] | None:
        """How many true answers counted when the model's own fold judged these blocks; None where it is this one."""
        return truths_at(self._snapshot, self._model, from_block, below) if self._lane else None

    def kept(
        self,
        space: str,
        reference: int,
        *,
        from_block: int,
        to_block: int,
        most: int,
        order: Literal["score", "time"],
    ) -> list[KeptRecord]:
        """Records kept from blocks with from_block <= block < to_block; at most so many, the strangest or newest."""
        table = schema.kept
        query = select(table).where(
            table.c.model == self._model,
            table.c.space == space,
            table.c.block >= from_block,
            table.c.block < to_block,
            table.c.reference == reference,
        )
        first = table.c.score.desc().nulls_last() if order == "score" else table.c.time_ms.desc()
        place = (table.c.topic, table.c.number, table.c.position)
        return rows_of(self._snapshot.execute(query.order_by(first, *place).limit(most)), kept_row)

    def fraud_hits(self, space: str, block: int, at_least: float, most: int) -> list[FraudHit]:
        """The candidates of one block with such a surprise, the most surprising first; at most so many.

        Args:
            space: the pseudo-space of fraud.
        """
        table = schema.kept
        names = ("space", "topic", "number", "position", "row", "score", "labels", "segments", "detail")
        query = (
            select(*(table.c[name] for name in names))
            .where(table.c.model == self._model, table.c.space == space, table.c.block == block)
            .where(table.c.reason == "fraud", table.c.score >= at_least, *map(not_, self._came_late(block)))
            .order_by(table.c.score.desc(), table.c.topic, table.c.number, table.c.position, table.c.row)
            .limit(most)
        )
        return rows_of(self._snapshot.execute(query), fraud_hit)

    def label_facts(self, numbers: Iterable[int]) -> dict[int, tuple[str, int]]:
        """Source and time (milliseconds since 1970) of the labels with these numbers, by number."""
        table = schema.labels
        query = select(table.c.id, table.c.source, table.c.time_ms).where(
            table.c.model == self._model, table.c.id.in_(sorted(set(numbers)))
        )
        return {row.id: (row.source, row.time_ms) for row in self._snapshot.execute(query)}

    def commit(self, result: FoldResult) -> Counter[str]:
        """Write the step, all of it or nothing.

        Returns:
            How many kept candidates were flagged as outliers, by space.

        Raises:
            OwnershipLost: another worker folded first; nothing is written, and the next `begin_fold` sees its work.
            StoreError: the database refuses; nothing is written.
        """
        if self._committed:
            raise StoreError(f"This fold of {self._model} was committed already.", hint="Begin a new one.")
        if self.next_block is not None and result.next_block < self.next_block:
            raise StoreError(f"Block {self.next_block - 1} of {self._model} is closed and cannot be opened again.")
        self._snapshot.rollback()
        with self._database.writing() as connection:
            self._take_turn(connection, result.next_block)
            # Partitions before anything that a checkpoint writes after its partitions, so that none wait in a ring.
            self._count_late(connection, result.closed_late)
            flagged = self._write(connection, result)
        self._committed = True
        return flagged

    def _take_turn(self, connection: Connection, next_block: int) -> None:
        lost = OwnershipLost(
            f"Another worker folded {self._model} first (step {self.version + 1}); nothing was written.",
            hint="That is normal with several workers: the work is done.",
        )
        if self.version == 0:
            try:
                connection.execute(insert(_FOLDS), [{"model": self._work, "version": 1, "next_block": next_block}])
            except IntegrityError as error:
                raise lost from error
            return
        change = (
            update(_FOLDS)
            .where(_FOLDS.c.model == self._work, _FOLDS.c.version == self.version)
            .values(version=self.version + 1, next_block=next_block)
        )
        if connection.execute(change).rowcount != 1:
            raise lost

    def _count_late(self, connection: Connection, closed_late: Mapping[Partition, int]) -> None:
        table = schema.partitions
        change = (
            update(table)
            .where(
                table.c.model == self._work,
                table.c.topic == bindparam("of_topic"),
                table.c.number == bindparam("of_number"),
            )
            .values(closed_late=table.c.closed_late + bindparam("more"))
        )
        rows = [
            {"of_topic": topic, "of_number": number, "more": count}
            for (topic, number), count in sorted(closed_late.items())
            if count
        ]
        if rows:
            connection.execute(change, rows)

    def _write(self, connection: Connection, result: FoldResult) -> Counter[str]:
        model, work = self._model, self._work
        dialect, now_ms = self._database.dialect, self._database.now_ms()

        def write(statement: Any, columns: Iterable[dict[str, Any]]) -> None:
            if rows := list(columns):
                connection.execute(statement, rows)

        # Late deltas lie below the old next_block, and so below the new one.
        done = sorted(number for number, block in self._handed_out.items() if block < result.next_block)
        write(delete(_DELTAS).where(_DELTAS.c.id == bindparam("delta")), ({"delta": number} for number in done))
        # A closed block takes no more records, so its keys and counts are not needed: those of
        # checkpoints since the snapshot too.
        for open_blocks in (schema.thinned_keys, schema.flood_counts):
            closed = (open_blocks.c.model == work) & (open_blocks.c.block < result.next_block)
            connection.execute(delete(open_blocks).where(closed))
        write(
            schema.upsert(schema.summaries, ("model", "space", "segment", "block", "reference"), dialect=dialect),
            (summary_columns(model, merged, now_ms) for merged in result.merged),
        )
        write(
            schema.upsert(_STATES, ("model", "space", "segment", "reference"), dialect=dialect),
            (state_columns(work, state, self.version + 1) for state in result.states),
        )
        key = ("model", "space", "segment", "block", "channel", "reference")
        write(
            schema.upsert(schema.readings, key, dialect=dialect),
            (reading_columns(model, reading, now_ms) for reading in result.readings),
        )
        write(
            schema.upsert(_INCIDENTS, ("id",), dialect=dialect),
            ({**incident_columns(row), "model": work} for row in result.incidents),
        )
        # One by one, not sorted: the order of the rows is the order of delivery.
        write(
            schema.insert_ignoring(schema.outbox, dialect=dialect),
            (outbox_columns(sink, notification, now_ms) for sink, notification in result.outbox),
        )
        write(
            schema.upsert(schema.block_stats, ("model", "space", "block", "reference"), dialect=dialect),
            (block_stat_columns(model, row, now_ms) for row in result.stats),
        )
        write(
            schema.insert_ignoring(schema.deployments, dialect=dialect),
            (deployment_columns(model, row, now_ms) for row in result.deployments),
        )
        write(
            schema.upsert(schema.verdicts, ("model", "block"), dialect=dialect),
            (verdict_columns(model, row, now_ms) for row in result.verdicts),
        )
        kept = schema.kept
        of_block = (
            (kept.c.model == model)
            & (kept.c.space == bindparam("in_space"))
            & (kept.c.block == bindparam("in_block"))
            & (kept.c.reason == "outlier")
        )
        flag = update(kept).where(of_block, kept.c.score >= bindparam("at_least")).values(flagged=True)
        flagged: Counter[str] = Counter()
        for (space, block), score in sorted(result.flag_at.items()):
            values = {"in_space": space, "in_block": block, "at_least": score}
            if self._lane:  # the block may have been judged before, without what the lane knows
                before = of_block & (kept.c.flagged == true())
                connection.execute(update(kept).where(before).values(flagged=false()), values)
            flagged[space] += connection.execute(flag, values).rowcount
            for late in self._came_late(block):
                undone = update(kept).where(of_block, late, kept.c.flagged == true()).values(flagged=false())
                flagged[space] -= connection.execute(undone, values).rowcount
        if result.hits:
            place = ("space", "topic", "number", "position", "row")
            found_by = (kept.c[name] == bindparam(f"of_{name}") for name in place)
            hits = [(hit.space, *hit.partition, hit.offset, hit.row) for hit in result.hits]
            write(
                update(kept).where(kept.c.model == model, *found_by).values(flagged=True),
                ({f"of_{name}": value for name, value in zip(place, hit, strict=True)} for hit in hits),
            )
            flagged.update(hit.space for hit in result.hits)
        mark_late(connection, model, result.said_late)
        if result.closure is not None:
            write(insert(schema.closures), [closure_columns(work, result.closure)])
        return flagged
