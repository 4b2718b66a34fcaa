"""The part of Store about dead letters: looking at them, sending them to a topic, and what a retry makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, delete, false, func, insert, select, tuple_, update

from connectors.database import schema
from connectors.database.columns import (
    clean,
    delta_columns,
    kept_columns,
    letter_columns,
    letter_row,
    thinned_columns,
)
from connectors.database.connection import Database
from connectors.database.rows import DeadLetterRow, Retried, StoredLetters
from connectors.database.truths import add_answers_and_truths, said_late
from connectors.records import Partition

_LETTERS, _PARTITIONS = schema.dead_letters, schema.partitions


class _Lost(Exception):
    """A letter is not what it was when it was read again; ends the transaction."""


class DeadLetters:
    """Records that could not be used, one row each. How many there were is counted elsewhere, for ever."""

    _database: Database

    # --- looking at them ----------------------------------------------------------------------------------------------

    def dead_letter_rows(
        self,
        model: str | None = None,
        *,
        reason: str | None = None,
        number: int | None = None,
        after: int = 0,
        to: int | None = None,
        limit: int = 100,
        newest: bool = False,
    ) -> list[DeadLetterRow]:
        """Stored dead letters by their numbers, ascending.

        Args:
            number: only the one with this number.
            after, to: only those with after < number <= to.
            newest: of more than ``limit``, the last ones; otherwise the first.
        """
        number_of = _LETTERS.c.id
        query = _chosen(select(_LETTERS), model, reason).where(number_of > after)
        if number is not None:
            query = query.where(number_of == number)
        if to is not None:
            query = query.where(number_of <= to)
        query = query.order_by(number_of.desc() if newest else number_of).limit(limit)
        with self._database.reading() as connection:
            found = [_row(row) for row in connection.execute(query)]
        return found[::-1] if newest else found

    def stored_dead_letters(self, model: str | None = None, *, reason: str | None = None) -> list[StoredLetters]:
        """How many are stored, by model and reason, the most frequent first; retention may have deleted others."""
        letters = _LETTERS.c
        count = func.count().label("stored")
        query = _chosen(
            select(letters.model, letters.reason, count, func.max(letters.id).label("newest")), model, reason
        ).group_by(letters.model, letters.reason)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(letters.model, count.desc(), letters.reason))
            return [StoredLetters(row.model, row.reason, row.stored, row.newest) for row in rows]

    # --- to a topic ---------------------------------------------------------------------------------------------------

    def dead_letters_unpublished(
        self,
        limit: int,
        *,
        models: Sequence[str] | None = None,
        partitions: Collection[Partition] | None = None,
    ) -> list[DeadLetterRow]:
        """Dead letters that are in the table and not yet in a topic, the oldest first.

        Args:
            models: only of these, because only some models have a dead-letter topic; None means all.
            partitions: only of these, so that of several processes one sends each letter; None means all.
        """
        query = select(_LETTERS).where(_unpublished(models)).order_by(_LETTERS.c.id).limit(limit)
        if partitions is not None:
            places = [tuple(partition) for partition in sorted(partitions)]
            query = query.where(tuple_(_LETTERS.c.topic, _LETTERS.c.number).in_(places))
        with self._database.reading() as connection:
            return [_row(row) for row in connection.execute(query)]

    def dead_letters_published(self, rows: Sequence[DeadLetterRow]) -> None:
        """The topic has them."""
        if not rows:
            return
        # A letter that got another reason meanwhile is not the one that was sent.
        change = (
            update(_LETTERS)
            .where(_LETTERS.c.id == bindparam("letter"), _LETTERS.c.reason == bindparam("sent_reason"))
            .values(published=True)
        )
        sent = [{"letter": row.id, "sent_reason": row.letter.reason} for row in sorted(rows, key=lambda row: row.id)]
        with self._database.writing() as connection:
            connection.execute(change, sent)

    def dead_letters_waiting(self, models: Sequence[str]) -> int:
        """How many letters of these models are not yet in their topics, whichever process will send them."""
        query = select(func.count()).select_from(_LETTERS).where(_unpublished(models))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    # --- a retry ------------------------------------------------------------------------------------------------------

    def retried(self, result: Retried) -> int | None:
        """Write what came of letters whose records were read again: one transaction, all of it or nothing.

        No next offset changes, so that the workers go on beside it. What belongs to a block that is closed by now is
        only counted as late; a fold that closes a block at the same moment counts it so, too.

        Returns:
            How many records were late; None if a letter went or changed meanwhile: then nothing was written.

        Raises:
            StoreError: the database refuses. Nothing was written.
        """
        if not (result.mended or result.changed):
            return 0
        try:
            with self._database.writing() as connection:
                return self._retried(connection, result)
        except _Lost:
            return None

    def _retried(self, connection: Connection, result: Retried) -> int:
        model, now_ms, dialect = result.model, self._database.now_ms(), self._database.dialect
        folds = schema.folds.c
        next_block = connection.execute(select(folds.next_block).where(folds.model == model)).scalar()
        closed = -1 if next_block is None else int(next_block) - 1
        late: Counter[Partition] = Counter()
        for (partition, block), records in result.usable.items():
            late[partition] += records if block <= closed else 0
        # The rows of the partitions first, as in a checkpoint: they are the lock that everything below is held by.
        self._count_retried(connection, result, late)
        self._settle_letters(connection, result)
        places = {delta.partition for delta in result.summaries} | {keys.partition for keys in result.thinned_keys}
        places |= {row.partition for row in result.answers}
        first_offsets = {partition: _free_offset(connection, model, partition) for partition in sorted(places)}
        if deltas := [delta for delta in result.summaries if delta.block > closed]:
            connection.execute(
                insert(schema.summary_deltas),
                [delta_columns(model, replace(d, first_offset=first_offsets[d.partition])) for d in deltas],
            )
        if keys := [keys for keys in result.thinned_keys if keys.block > closed]:
            connection.execute(
                insert(schema.thinned_keys),
                [thinned_columns(model, replace(k, first_offset=first_offsets[k.partition])) for k in keys],
            )
        if kept := [record for record in result.kept if record.block > closed]:
            key = ("model", "space", "topic", "number", "position", "row")
            kept.sort(key=lambda record: (record.space, *record.partition, record.offset, record.row))
            connection.execute(
                schema.upsert(schema.kept, key, dialect=dialect, leave=("flagged",)),
                [kept_columns(model, record, now_ms) for record in kept],
            )
        answers = [replace(row, first_offset=first_offsets[row.partition]) for row in result.answers]
        over_ms = (closed + 1) * result.block_ms
        truths = [said_late(truth) if (truth.event_ms or 0) < over_ms else truth for truth in result.truths]
        add_answers_and_truths(connection, model, answers, truths, dialect=dialect, now_ms=now_ms)
        return late.total()

    def _count_retried(self, connection: Connection, result: Retried, late: Counter[Partition]) -> None:
        """The counts of the partitions, and of the reasons."""
        counts: Counter[tuple[Partition, str]] = Counter()
        for row in result.mended:
            counts[row.letter.partition, clean(row.letter.reason)] -= 1
        for row, letter in result.changed:
            counts[row.letter.partition, clean(row.letter.reason)] -= 1
            counts[letter.partition, clean(letter.reason)] += 1
        for letter in result.added:
            counts[letter.partition, clean(letter.reason)] += 1
        dead: Counter[Partition] = Counter()
        for (partition, _), count in counts.items():
            dead[partition] += count
        change = (
            update(_PARTITIONS)
            .where(
                _PARTITIONS.c.model == result.model,
                _PARTITIONS.c.topic == bindparam("of_topic"),
                _PARTITIONS.c.number == bindparam("of_number"),
            )
            .values(
                records=_PARTITIONS.c.records + bindparam("more_records"),
                dead=_PARTITIONS.c.dead + bindparam("more_dead"),
                closed_late=_PARTITIONS.c.closed_late + bindparam("more_late"),
            )
        )
        connection.execute(
            change,
            [
                {
                    "of_topic": partition.topic,
                    "of_number": partition.number,
                    "more_records": result.more_records.get(partition, 0),
                    "more_dead": dead[partition],
                    "more_late": late[partition],
                }
                for partition in sorted({*dead, *late, *result.more_records})
            ],
        )
        if changes := {key: count for key, count in counts.items() if count}:
            table = schema.dead_letter_counts
            key = ("model", "topic", "number", "reason")
            connection.execute(
                schema.upsert(table, key, dialect=self._database.dialect, add="count"),
                [
                    {"model": result.model, "topic": topic, "number": number, "reason": reason, "count": count}
                    for ((topic, number), reason), count in sorted(changes.items())
                ],
            )
            connection.execute(delete(table).where(table.c.model == result.model, table.c.count == 0))

    def _settle_letters(self, connection: Connection, result: Retried) -> None:
        """The letters themselves, each compared with what was read of it."""
        now_ms = self._database.now_ms()
        same = (
            _LETTERS.c.id == bindparam("letter"),
            _LETTERS.c.position == bindparam("at"),
            _LETTERS.c.reason == bindparam("before"),
        )
        settled = 0
        if result.mended:
            gone = [_place(row) for row in sorted(result.mended, key=lambda row: row.id)]
            settled += connection.execute(delete(_LETTERS).where(*same), gone).rowcount
        if result.changed:
            names = ("reason", "detail", "payload", "size", "row")
            change = update(_LETTERS).where(*same).values(published=False, **{n: bindparam(f"new_{n}") for n in names})
            values = []
            for row, letter in sorted(result.changed, key=lambda pair: pair[0].id):
                columns = letter_columns(result.model, letter, now_ms)
                values.append({**_place(row), **{f"new_{name}": columns[name] for name in names}})
            settled += connection.execute(change, values).rowcount
        if settled != len(result.mended) + len(result.changed):
            raise _Lost
        if result.added:
            rows = [letter_columns(result.model, letter, now_ms) for letter in result.added]
            connection.execute(insert(_LETTERS), rows)


def _chosen(query: Select[Any], model: str | None, reason: str | None) -> Select[Any]:
    if model is not None:
        query = query.where(_LETTERS.c.model == model)
    return query if reason is None else query.where(_LETTERS.c.reason == reason)


def _unpublished(models: Sequence[str] | None) -> ColumnElement[bool]:
    waiting = _LETTERS.c.published == false()
    return waiting if models is None else waiting & _LETTERS.c.model.in_(list(models))


def _row(row: Any) -> DeadLetterRow:
    return DeadLetterRow(row.id, row.model, letter_row(row), row.stored_ms, row.published)


def _place(row: DeadLetterRow) -> dict[str, Any]:
    return {"letter": row.id, "at": row.letter.offset, "before": row.letter.reason}


def _free_offset(connection: Connection, model: str, partition: Partition) -> int:
    """A first offset that no checkpoint has: below zero, where no record lies, and below all that are there."""
    lowest = 0
    for table in (schema.summary_deltas, schema.thinned_keys, schema.answers):
        place = table.c
        query = select(func.min(place.first_offset)).where(
            place.model == model, place.topic == partition.topic, place.number == partition.number
        )
        lowest = min(lowest, connection.execute(query).scalar() or 0)
    return lowest - 1
