"""The part of Store about history: which offsets of it count already, who is at work on it, and where a lane ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, delete, func, insert, select, text, update

from connectors.database import schema
from connectors.database.columns import from_json, rows_of, to_json
from connectors.database.connection import Database
from connectors.database.rows import BackfillRow
from connectors.records import Partition
from detectors.errors import OwnershipLost

_TABLE, _FOLDS = schema.backfills, schema.folds
# "backfill" in ASCII, cut to 63 bits: the lock under which a backfill is planned on PostgreSQL.
_LOCK = 0x6261636B66696C6C
_AT_A_TIME = 1_000  # rows that are copied in one transaction


class Backfills:
    """Scored history, by model."""

    _database: Database

    def backfills(self, model: str) -> list[BackfillRow]:
        """Every backfill of a model, the oldest first."""
        with self._database.reading() as connection:
            return rows_of(connection.execute(_jobs(model)), backfill_row)

    def plan_backfill(self, row: BackfillRow, known: Sequence[str], *, shared: bool = False) -> None:
        """Store a backfill before its first record is read, so that its offsets are nobody else's.

        Args:
            known: ids of the model's backfills that were there when it was planned.
            shared: a daemon reads the same source. It begins after the spans of a lane where it has read nothing yet.

        Raises:
            OwnershipLost: another one was planned meanwhile, or a daemon has begun to read what a lane was to score;
                nothing is written.
        """
        with self._database.writing() as connection:
            if self._database.dialect == "postgresql":  # a transaction of SQLite is alone anyway
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            stored = set(connection.execute(select(_TABLE.c.id).where(_TABLE.c.model == row.model)).scalars())
            if stored != set(known):
                raise OwnershipLost(
                    f"Another backfill of {row.model} was started at the same moment.", hint="Type the command again."
                )
            if shared and row.lane != row.model:
                self._claim(connection, row)
            connection.execute(insert(_TABLE), [_columns(row)])

    def _claim(self, connection: Connection, row: BackfillRow) -> None:
        table = schema.partitions
        claims = [
            {
                "model": row.model,
                "topic": place.topic,
                "number": place.number,
                "topic_id": topic_id,
                "next_offset": after,
                "from_offset": after,
                "max_time_ms": -1,
                "records": 0,
                "dead": 0,
                "late": 0,
            }
            for place, (_, after, topic_id) in sorted(row.spans.items())
        ]
        connection.execute(schema.insert_ignoring(table, dialect=self._database.dialect), claims)
        for place, (_, after, _) in sorted(row.spans.items()):
            of_place = (table.c.topic == place.topic) & (table.c.number == place.number)
            query = select(table.c.from_offset).where(table.c.model == row.model, of_place)
            begun = connection.execute(query).scalar()
            if begun is None or begun < after:
                raise OwnershipLost(
                    f"A daemon has begun to read partition {place.number} of {place.topic} from an offset of history.",
                    hint="Type the command again: it takes what is left.",
                )

    def end_backfill(self, row: BackfillRow, status: Literal["done", "taken over", "cut short"], now_ms: int) -> None:
        """A backfill that wrote to the model's own rows is over, with the spans that ``row`` has."""
        with self._database.writing() as connection:
            _finish(connection, row, status, now_ms)

    def is_same(self, other: Backfills) -> bool:
        """Whether both are one database, by whatever addresses."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        if self._database.path is not None:
            return (self._database.path.resolve(),)
        with self._database.reading() as connection:
            query = text("SELECT current_database(), pg_postmaster_start_time(), inet_server_port()")
            return tuple(connection.execute(query).one())

    def first_block(self, model: str, from_block: int) -> int | None:
        """The first block from this one on, open or closed, that has records of the model; None where none has."""
        tables = (schema.summaries, schema.summary_deltas)
        with self._database.reading() as connection:
            found = [
                connection.execute(
                    select(func.min(table.c.block)).where(table.c.model == model, table.c.block >= from_block)
                ).scalar()
                for table in tables
            ]
        return min((int(block) for block in found if block is not None), default=None)

    def next_block(self, model: str) -> int | None:
        """Blocks below it are closed; None before the first was."""
        with self._database.reading() as connection:
            block = connection.execute(select(_FOLDS.c.next_block).where(_FOLDS.c.model == model)).scalar()
        return None if block is None else int(block)

    def merged_since(self, model: str, block: int) -> bool:
        """Whether blocks of the model, from this one on, are kept as sums of several."""
        table = schema.summaries
        query = select(table.c.block).where(table.c.model == model, table.c.block >= block, table.c.blocks > 1)
        with self._database.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def copy_labels(self, model: str, source: Backfills) -> None:
        """Take over the labels of a model from another database, with their numbers, and where each was in force.

        What is there already stays as it is.
        """
        for table in (schema.labels, schema.label_versions, schema.label_spans):
            query = select(table).where(table.c.model == model)
            insert_new = schema.insert_ignoring(table, dialect=self._database.dialect)
            with source._database.reading() as connection:
                found = connection.execute(query, execution_options={"yield_per": _AT_A_TIME}).mappings()
                for part in found.partitions():
                    with self._database.writing() as writing:
                        writing.execute(insert_new, [dict(row) for row in part])

    def hand_over(
        self,
        row: BackfillRow,
        now_ms: int,
        *,
        joins: bool,
        end_ms: int,
        status: Literal["done", "cut short"] = "done",
    ) -> bool:
        """A lane is at its end: what it found is the model's.

        Incidents that are still open in the lane go on in the model. Where the model has had one of the same reason
        since, which people were told of, the lane's ends where that one began.

        Args:
            joins: the lane has gone over all blocks that the model's own fold has closed, and its state takes the place
                of that one's. Otherwise the model's fold stays as it is, and open incidents of the lane end with it.
            end_ms: event time of the lane's end.

        Returns:
            Whether that was done; False where the model's own fold has closed blocks meanwhile, which the lane has to
            go over first. Nothing is written then.
        """
        lane, model = row.lane, row.model
        with self._database.writing() as connection:
            # Locked as every fold does, first of all: a step of either waits here, or is seen.
            ours = connection.execute(select(_FOLDS).where(_FOLDS.c.model == lane).with_for_update()).one_or_none()
            live = connection.execute(select(_FOLDS).where(_FOLDS.c.model == model).with_for_update()).one_or_none()
            if joins and live is not None and _left(connection, model, lane, ours, live.next_block):
                return False
            if joins and ours is not None and not self._hand_over_state(connection, model, lane, ours, live):
                return False
            _hand_over_incidents(connection, model, lane, None if joins else end_ms)
            for table in (schema.summary_deltas, schema.label_spans, schema.closures):
                connection.execute(update(table).where(table.c.model == lane).values(model=model))
            leftovers = (
                schema.thinned_keys,
                schema.pending_halves,
                schema.entity_states,
                schema.flood_counts,
                schema.fold_states,
                _FOLDS,
            )
            for table in leftovers:
                connection.execute(delete(table).where(table.c.model == lane))
            _finish(connection, row, status, now_ms)
            return True

    def _hand_over_state(self, connection: Connection, model: str, lane: str, ours: Any, live: Any) -> bool:
        """Returns whether that was done; False where the model's own fold has taken its first step at this moment."""
        if live is None:
            first = schema.insert_ignoring(_FOLDS, dialect=self._database.dialect)
            row = {"model": model, "version": 1, "next_block": ours.next_block}
            if connection.execute(first, [row], execution_options={"preserve_rowcount": True}).rowcount == 0:
                return False
        else:
            moved = update(_FOLDS).where(_FOLDS.c.model == model)
            connection.execute(moved.values(version=live.version + 1))
        states = schema.fold_states
        version = 1 if live is None else live.version + 1
        for state in connection.execute(select(states).where(states.c.model == lane)).all():
            key = (states.c.space == state.space) & (states.c.segment == state.segment)
            key &= states.c.reference == state.reference
            connection.execute(delete(states).where(states.c.model == model, key))
            connection.execute(update(states).where(states.c.model == lane, key).values(model=model, written=version))
        return True


def _left(connection: Connection, model: str, lane: str, ours: Any, live_next: int) -> bool:
    """Whether blocks that the model's own fold has closed are still to be gone over in the lane."""
    deltas, summaries = schema.summary_deltas, schema.summaries
    places = [(deltas.c.block, (deltas.c.model == lane) & (deltas.c.block < live_next))]
    if ours is not None:  # a lane that has closed nothing begins with its own records
        first = ours.next_block
        places = [(column, found & (column >= first)) for column, found in places]
        of_model = (summaries.c.model == model) & (summaries.c.block >= first) & (summaries.c.block < live_next)
        places.append((summaries.c.block, of_model))
    return any(connection.execute(select(column).where(found).limit(1)).first() for column, found in places)


def _hand_over_incidents(connection: Connection, model: str, lane: str, end_ms: int | None) -> None:
    """At any time, at most one incident is open for a reason: one of the lane ends where the model's own one began."""
    table = schema.incidents
    mine = table.c.model == lane
    for row in connection.execute(select(table).where(mine)).all():
        same = (table.c.kind == row.kind) & (table.c.space == row.space) & (table.c.segment == row.segment)
        later = select(func.min(table.c.opened_ms)).where(
            table.c.model == model, same, table.c.opened_ms > row.opened_ms
        )
        went_on_ms = connection.execute(later).scalar()
        over_ms = end_ms if row.status == "open" else row.resolved_ms
        if went_on_ms is not None and (over_ms is None or went_on_ms < over_ms):
            detail = to_json({**from_json(row.detail), "went_on_ms": went_on_ms})
            over = {"status": "resolved", "resolved_ms": went_on_ms, "updated_ms": went_on_ms, "detail": detail}
        elif row.status == "open" and over_ms is not None:
            over = {"status": "resolved", "resolved_ms": over_ms, "updated_ms": over_ms}
        else:
            continue
        connection.execute(update(table).where(table.c.id == row.id).values(over))
    connection.execute(update(table).where(mine).values(model=model))


def _finish(connection: Connection, row: BackfillRow, status: str, now_ms: int) -> None:
    values = {"status": status, "spans": _columns(row)["spans"], "finished_ms": now_ms}
    connection.execute(update(_TABLE).where(_TABLE.c.id == row.id).values(values))


def _jobs(model: str) -> Any:
    return select(_TABLE).where(_TABLE.c.model == model).order_by(_TABLE.c.created_ms, _TABLE.c.id)


def _columns(row: BackfillRow) -> dict[str, object]:
    spans = [[*partition, *span] for partition, span in sorted(row.spans.items())]
    return {
        "id": row.id,
        "model": row.model,
        "lane": row.lane,
        "status": row.status,
        "spans": to_json(spans),
        "detail": to_json(row.detail),
        "created_ms": row.created_ms,
        "from_ms": row.from_ms,
        "to_ms": row.to_ms,
        "finished_ms": row.finished_ms,
    }


def backfill_row(row: Any) -> BackfillRow:
    """A row of the table as a record."""
    spans: Mapping[Partition, tuple[int, int, str | None]] = {
        Partition(topic, number): (first, after, topic_id)
        for topic, number, first, after, topic_id in from_json(row.spans)
    }
    return BackfillRow(
        row.id,
        row.model,
        row.lane,
        row.status,
        spans,
        from_json(row.detail),
        row.created_ms,
        row.from_ms,
        row.to_ms,
        row.finished_ms,
    )
