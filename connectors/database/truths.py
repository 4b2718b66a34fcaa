"""The part of Store about truths: what turned out to be right for single records, and what the model had answered.

A truth counts from the moment that the model's answer is known; then it gets the next version of the model's truths.
Every change of a model's truths locks its version first, so that versions have no holes, no two processes give the same
one, and whoever has seen version v has seen all before it: their order is the order in which truths count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, exists, func, insert, or_, select, update

from connectors.database import schema
from connectors.database.columns import answer_columns, clean, rows_of, truth_columns, truth_row
from connectors.database.connection import Database
from connectors.database.packed import add_packed, packed, packed_ids, packed_numbers
from connectors.database.remade import SAID, SAID_LATE, came_late
from connectors.database.rows import (
    AnswersRow,
    KnownAnswer,
    NewTruth,
    SaidLate,
    TruthCounts,
    TruthRow,
    TruthsAdded,
)
from connectors.database.said import newest_rows, waiting_rows
from connectors.database.topic_positions import (
    MovedByOthers,
    move_positions,
    positions_of,
    read_by_others,
    topic_ids_of,
)
from connectors.records import Partition

_TRUTHS, _VERSIONS = schema.truths, schema.truth_versions
# Keys of one IN: SQLite takes 32,766 parameters in a statement.
_KEYS = 5_000


class Truths:
    """Truths of each model, in the order of their arrival, and the version from which on each of them counts."""

    _database: Database

    def add_truths(
        self,
        model: str,
        truths: Sequence[NewTruth],
        *,
        positions: Mapping[Partition, tuple[int | None, int]] | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
    ) -> TruthsAdded:
        """Store truths, in one transaction. A truth whose origin is there already is left out, unless that one waits.

        Args:
            truths: those with an ``answer`` count from now on.
            positions: of the topics that they came from: the next offset that was read before (None if there was
                none), and the one now.
            topic_ids: the broker's ids of these topics, as far as known.

        Raises:
            OwnershipLost: another process has read on from there. Nothing is written.
            StoreError: the database refuses. Nothing is written.
        """
        dialect = self._database.dialect
        try:
            with self._database.writing() as connection:
                version = _locked(connection, model, dialect=dialect)
                move_positions(connection, _reader(model), positions or {}, topic_ids or {}, dialect=dialect)
                after = _last(connection)
                new, given = _insert(connection, model, truths, version=version, now_ms=self._database.now_ms())
                last = _last(connection)
                woken = _match(connection, model, _waiting_origins(connection, model, truths), version=given)
                _set_version(connection, model, version, given + woken)
        except MovedByOthers:
            raise read_by_others(f"A topic of true answers of {model}") from None
        return TruthsAdded(new, len(truths) - new, given - version, woken, after, last)

    def match_truths(self, model: str, known: Mapping[int, KnownAnswer]) -> int:
        """Say what the model had answered, by the truths' numbers: they count from now on, in the order of the numbers.

        Truths that count already are left as they are. Any number of processes may do so at once.

        Returns:
            How many truths count now that did not before.
        """
        if not known:
            return 0
        with self._database.writing() as connection:
            version = _locked(connection, model, dialect=self._database.dialect)
            matched = _match(connection, model, known, version=version)
            _set_version(connection, model, version, version + matched)
        return matched

    def truths(self, model: str, *, after: int = 0, upto: int | None = None, most: int | None = None) -> list[TruthRow]:
        """Truths that count, by version: after < version <= upto, the first ``most``."""
        with self._database.reading() as connection:
            return truths_of(connection, model, after=after, upto=upto, most=most)

    def first_truths(self, model: str, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        """See `first_truths_of`."""
        with self._database.reading() as connection:
            return first_truths_of(connection, model, after, most, upto=upto)

    def waiting_truths(self, model: str, *, limit: int, after: int = 0, newer_than_ms: int = 0) -> list[TruthRow]:
        """Truths of which it is not known what the model answered, by number, the first ``limit``.

        Args:
            after: only those with greater numbers.
            newer_than_ms: only those that arrived then or later.
        """
        query = waiting_rows(_TRUTHS, model, limit=limit, after=after, newer_than_ms=newer_than_ms)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), truth_row)

    def all_truths(
        self, model: str, *, record_id: str | None = None, waiting: bool = False, limit: int = 100
    ) -> list[TruthRow]:
        """The last ``limit`` truths, by number, whether they count or not."""
        query = newest_rows(_TRUTHS, model, record_id=record_id, waiting=waiting, limit=limit)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), truth_row)[::-1]

    def truth_counts(self, model: str, *, remembered_since_ms: int = 0) -> TruthCounts:
        """The truths of a model, counted.

        Args:
            remembered_since_ms: truths that arrived before, and still wait, are unmatched; by default none is.
        """
        counts = func.count()
        waiting = select(counts).where(_TRUTHS.c.model == model, _TRUTHS.c.version == 0)
        counting = select(counts, func.count(_TRUTHS.c.record_id.distinct())).where(
            _TRUTHS.c.model == model, _TRUTHS.c.version > 0
        )
        with self._database.snapshot() as connection:
            rows, records = connection.execute(counting).one()
            lost = connection.execute(waiting.where(_TRUTHS.c.received_ms < remembered_since_ms)).scalar_one()
            return TruthCounts(
                version=_version(connection, model),
                waiting=int(connection.execute(waiting).scalar_one()),
                unmatched=int(lost),
                corrected=int(rows) - int(records),
            )

    def truth_positions(self, model: str) -> dict[Partition, int]:
        """The next offset of each partition of the topics of truths that were read."""
        with self._database.reading() as connection:
            return positions_of(connection, _reader(model))

    def truth_topic_ids(self, model: str, partitions: Sequence[Partition]) -> dict[Partition, str]:
        """The broker's ids of the topics of truths that were read, of these partitions, as far as known."""
        with self._database.reading() as connection:
            return topic_ids_of(connection, _reader(model), partitions)

    # --- what the model answered --------------------------------------------------------------------------------------

    def answers_numbers(self, model: str, *, after: int = 0) -> list[tuple[int, int, int]]:
        """Number, time of writing and count of records of every row of the model's answers, newest first."""
        return packed_numbers(self._database, schema.answers, model, after=after)

    def answers_ids(self, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        """Of rows with these numbers, the hashes of their records' ids; rows that are gone are absent."""
        return packed_ids(self._database, schema.answers, numbers)

    def answers(self, numbers: Iterable[int]) -> Iterator[AnswersRow]:
        """Rows with these numbers, in their order, one at a time; rows that are gone are left out."""
        return packed(self._database, schema.answers, numbers, AnswersRow)


def truths_of(
    connection: Connection, model: str, *, after: int, upto: int | None = None, most: int | None = None
) -> list[TruthRow]:
    """See `Truths.truths`."""
    query = _counting(model, after, upto, most)
    return rows_of(connection.execute(query.order_by(_TRUTHS.c.version)), truth_row)


def first_truths_of(
    connection: Connection, model: str, after: int, most: int, *, upto: int | None = None
) -> list[TruthRow]:
    """The first truth that counted of each record, by version: after < version <= upto, so many at most.

    A later one of the same record corrects nothing that has counted. What records say themselves has its own order, see
    `said_of`.
    """
    before = _TRUTHS.alias()
    same = (before.c.model == model) & (before.c.record_id == _TRUTHS.c.record_id)
    earlier = exists().where(same, before.c.version > 0, before.c.version < _TRUTHS.c.version)
    by_itself = or_(_TRUTHS.c.origin.startswith(SAID), _TRUTHS.c.origin.startswith(SAID_LATE))
    query = _counting(model, after, upto, most).where(~earlier, ~by_itself)
    return rows_of(connection.execute(query.order_by(_TRUTHS.c.version)), truth_row)


def said_of(connection: Connection, model: str, from_ms: int, to_ms: int) -> list[TruthRow]:
    """What records with from_ms <= event time < to_ms, none of them late, say themselves, by event time and origin.

    Whoever read them, and in whatever order: their versions tell of that, and so do not matter.
    """
    query = select(_TRUTHS).where(
        _TRUTHS.c.model == model,
        _TRUTHS.c.event_ms >= from_ms,
        _TRUTHS.c.event_ms < to_ms,
        _TRUTHS.c.origin.startswith(SAID),
    )
    # Sorted here, because databases do not agree on the order of texts.
    found = rows_of(connection.execute(query), truth_row)
    return sorted(found, key=lambda row: (row.said.event_ms or 0, row.said.origin))


def said_late(truth: NewTruth) -> NewTruth:
    """The same, said by a record whose block is closed."""
    if not truth.origin.startswith(SAID):
        return truth
    return replace(truth, origin=SAID_LATE + truth.origin.removeprefix(SAID))


def mark_late(connection: Connection, model: str, late: Iterable[SaidLate]) -> None:
    """What these records say counts for no block: each of them was closed before they came."""
    change = update(_TRUTHS).where(_TRUTHS.c.id == bindparam("truth_id")).values(origin=bindparam("told"))
    for one in late:
        changes = [
            {"truth_id": row.id, "told": SAID_LATE + row.said.origin.removeprefix(SAID)}
            for row in said_of(connection, model, one.from_ms, one.to_ms)
            if came_late(row.said.origin, one.partition, one.first_offset)
        ]
        if changes:
            connection.execute(change, changes)


def _counting(model: str, after: int, upto: int | None, most: int | None) -> Any:
    query = select(_TRUTHS).where(_TRUTHS.c.model == model, _TRUTHS.c.version > max(after, 0))
    if upto is not None:
        query = query.where(_TRUTHS.c.version <= upto)
    return query if most is None else query.limit(most)


def add_answers_and_truths(
    connection: Connection,
    model: str,
    answers: Sequence[AnswersRow],
    truths: Sequence[NewTruth],
    *,
    dialect: str,
    now_ms: int,
) -> None:
    """Write what records brought of these, within the transaction that counts the records.

    Call it late: from here on, all other transactions wait that bring truths of this model.
    """
    add_packed(connection, schema.answers, model, answers, now_ms=now_ms)
    if truths:
        version = _locked(connection, model, dialect=dialect)
        _, given = _insert(connection, model, truths, version=version, now_ms=now_ms)
        _set_version(connection, model, version, given)


def _reader(model: str) -> str:
    """Under which name positions in topics of truths are stored: no model has it, so that labels have their own."""
    return f"{model}/truths"


def _locked(connection: Connection, model: str, *, dialect: str) -> int:
    """The version of the truths, which nobody else changes until this transaction ends."""
    connection.execute(schema.insert_ignoring(_VERSIONS, dialect=dialect), [{"model": model, "version": 0}])
    query = select(_VERSIONS.c.version).where(_VERSIONS.c.model == model)
    if dialect == "postgresql":  # a transaction of SQLite is alone anyway
        query = query.with_for_update()
    return int(connection.execute(query).scalar_one())


def _version(connection: Connection, model: str) -> int:
    return int(connection.execute(select(_VERSIONS.c.version).where(_VERSIONS.c.model == model)).scalar() or 0)


def _set_version(connection: Connection, model: str, before: int, after: int) -> None:
    if after != before:
        connection.execute(update(_VERSIONS).where(_VERSIONS.c.model == model).values(version=after))


def _last(connection: Connection) -> int:
    """The greatest number, of whatever model: all that the model's lock lets in later is greater."""
    return int(connection.execute(select(func.max(_TRUTHS.c.id))).scalar() or 0)


def _insert(
    connection: Connection, model: str, truths: Sequence[NewTruth], *, version: int, now_ms: int
) -> tuple[int, int]:
    """Store those whose origin is not there. How many they are, and the version after them."""
    there = _origins(connection, model, [clean(truth.origin) for truth in truths])
    rows, given = [], version
    for truth in truths:
        if (origin := clean(truth.origin)) in there:
            continue
        there.add(origin)
        given += truth.answer is not None
        rows.append(truth_columns(model, truth, now_ms, given if truth.answer is not None else 0))
    if rows:
        connection.execute(insert(_TRUTHS), rows)
    return len(rows), given


def _match(connection: Connection, model: str, known: Mapping[int, KnownAnswer], *, version: int) -> int:
    """Give those of these truths that wait their answers, and the versions after ``version``; how many they are."""
    waiting: set[int] = set()
    numbers = sorted(known)
    for start in range(0, len(numbers), _KEYS):
        query = select(_TRUTHS.c.id).where(
            _TRUTHS.c.id.in_(numbers[start : start + _KEYS]), _TRUTHS.c.model == model, _TRUTHS.c.version == 0
        )
        waiting.update(connection.execute(query).scalars())
    names = ("answer", "confidence", "event_ms")
    changes: list[dict[str, Any]] = []
    for place, number in enumerate(sorted(waiting), start=1):
        found = known[number]
        columns = answer_columns(found.answer, found.confidence, found.event_ms)
        changes.append({"truth_id": number, "new_version": version + place, **{f"new_{n}": columns[n] for n in names}})
    if changes:
        change = (
            update(_TRUTHS)
            .where(_TRUTHS.c.id == bindparam("truth_id"))
            .values(version=bindparam("new_version"), **{name: bindparam(f"new_{name}") for name in names})
        )
        connection.execute(change, changes)
    return len(changes)


def _waiting_origins(connection: Connection, model: str, truths: Sequence[NewTruth]) -> dict[int, KnownAnswer]:
    """What truths bring along, by the number of the truth with the same origin that waits for just that."""
    known = {
        clean(truth.origin): KnownAnswer(truth.answer, truth.confidence, truth.event_ms)
        for truth in truths
        if truth.answer is not None
    }
    origins, found = sorted(known), dict[int, KnownAnswer]()
    for start in range(0, len(origins), _KEYS):
        query = select(_TRUTHS.c.id, _TRUTHS.c.origin).where(
            _TRUTHS.c.model == model, _TRUTHS.c.origin.in_(origins[start : start + _KEYS]), _TRUTHS.c.version == 0
        )
        found |= {row.id: known[row.origin] for row in connection.execute(query)}
    return found


def _origins(connection: Connection, model: str, origins: Sequence[str]) -> set[str]:
    """Which of them are there."""
    found: set[str] = set()
    for start in range(0, len(origins), _KEYS):
        query = select(_TRUTHS.c.origin).where(
            _TRUTHS.c.model == model, _TRUTHS.c.origin.in_(origins[start : start + _KEYS])
        )
        found.update(connection.execute(query).scalars())
    return found
