"""The part of Store about labels: what people and other systems say of single records.

Rows are only ever added. What changes of a row, once, is what is known of its record: with that it gets the next
version of the model's labels, from which on it counts. Every change of a model's labels locks its version first, so
that versions have no holes, no two processes give the same one, and rows appear in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from connectors.database import schema
from connectors.database.columns import (
    KNOWN_OF_LABELS,
    clean,
    kept_row,
    known_columns,
    label_columns,
    label_row,
    rows_of,
)
from connectors.database.connection import Database
from connectors.database.rows import (
    KeptRecord,
    LabelCounts,
    LabelledRecord,
    LabelRow,
    LabelsAdded,
    NewLabel,
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

_LABELS, _VERSIONS, _KEPT = schema.labels, schema.label_versions, schema.kept
# Keys of one IN: SQLite takes 32,766 parameters in a statement.
_KEYS = 5_000


class Labels:
    """Labels of each model, in the order of their arrival, and the version from which on each of them counts."""

    _database: Database

    def add_labels(
        self,
        model: str,
        labels: Sequence[NewLabel],
        *,
        positions: Mapping[Partition, tuple[int | None, int]] | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
    ) -> LabelsAdded:
        """Store labels, in one transaction. A label whose origin is there already is left out, unless that one waits.

        Args:
            labels: those with ``known`` count from now on.
            positions: of the topics that they came from: the next offset that was read before (None if there was
                none), and the one now.
            topic_ids: the broker's ids of these topics, as far as known.

        Raises:
            OwnershipLost: another process has read on from there. Nothing is written.
            StoreError: the database refuses. Nothing is written.
        """
        try:
            with self._database.writing() as connection:
                version = self._lock(connection, model)
                move_positions(connection, model, positions or {}, topic_ids or {}, dialect=self._database.dialect)
                there = _origins(connection, model, [clean(label.origin) for label in labels])
                rows, now_ms, given = [], self._database.now_ms(), version
                for label in labels:
                    if (origin := clean(label.origin)) in there:
                        continue
                    there.add(origin)
                    given += label.known is not None
                    rows.append(label_columns(model, label, now_ms, given if label.known is not None else 0))
                after = self._last(connection)
                if rows:
                    connection.execute(insert(_LABELS), rows)
                last = self._last(connection)
                again = _waiting_origins(connection, model, labels)
                woken = _match(connection, model, again, version=given)
                self._set_version(connection, model, version, given + woken)
        except MovedByOthers:
            raise read_by_others(f"A topic of labels of {model}") from None
        return LabelsAdded(len(rows), len(labels) - len(rows), given - version, woken, after, last)

    def match_labels(self, model: str, known: Mapping[int, LabelledRecord]) -> int:
        """Say which records labels mean, by the labels' numbers: they count from now on, in the order of the numbers.

        Labels that count already are left as they are. Any number of processes may do so at once.

        Returns:
            How many labels count now that did not before.
        """
        if not known:
            return 0
        with self._database.writing() as connection:
            version = self._lock(connection, model)
            matched = _match(connection, model, known, version=version)
            self._set_version(connection, model, version, version + matched)
        return matched

    def label_version(self, model: str) -> int:
        """How many labels of the model count; one row is read."""
        with self._database.reading() as connection:
            return self._version(connection, model)

    def labels(self, model: str, *, after: int = 0, upto: int | None = None) -> list[LabelRow]:
        """Labels that count, by version: after < version <= upto."""
        query = select(_LABELS).where(_LABELS.c.model == model, _LABELS.c.version > max(after, 0))
        if upto is not None:
            query = query.where(_LABELS.c.version <= upto)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query.order_by(_LABELS.c.version)), label_row)

    def waiting_labels(self, model: str, *, limit: int, after: int = 0, newer_than_ms: int = 0) -> list[LabelRow]:
        """Labels whose record is not known yet, by number, the first ``limit``.

        Args:
            after: only those with greater numbers.
            newer_than_ms: only those that arrived then or later.
        """
        query = waiting_rows(_LABELS, model, limit=limit, after=after, newer_than_ms=newer_than_ms)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), label_row)

    def all_labels(
        self, model: str, *, record_id: str | None = None, waiting: bool = False, limit: int = 100
    ) -> list[LabelRow]:
        """The last ``limit`` labels, by number, whether they count or not."""
        query = newest_rows(_LABELS, model, record_id=record_id, waiting=waiting, limit=limit)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), label_row)[::-1]

    def label_counts(self, model: str, *, remembered_since_ms: int = 0) -> LabelCounts:
        """The labels of a model, counted.

        Args:
            remembered_since_ms: labels that arrived before, and still wait, are unmatched; by default none is.
        """
        mine = _LABELS.c.model == model
        counts = func.count()
        by = select(_LABELS.c.source, _LABELS.c.label, counts).where(mine).group_by(_LABELS.c.source, _LABELS.c.label)
        waiting = select(counts).where(mine, _LABELS.c.version == 0)
        both = (
            select(_LABELS.c.record_id)
            .where(mine)
            .group_by(_LABELS.c.record_id)
            .having(func.count(_LABELS.c.label.distinct()) > 1)
            .subquery()
        )
        records = select(func.count(_LABELS.c.record_id.distinct())).where(mine, _LABELS.c.version > 0)
        with self._database.snapshot() as connection:
            version = self._version(connection, model)
            return LabelCounts(
                by={(row.source, row.label): int(row[2]) for row in connection.execute(by)},
                version=version,
                waiting=int(connection.execute(waiting).scalar_one()),
                unmatched=int(
                    connection.execute(waiting.where(_LABELS.c.received_ms < remembered_since_ms)).scalar_one()
                ),
                contradicting=int(connection.execute(select(counts).select_from(both)).scalar_one()),
                superseded=version - int(connection.execute(records).scalar_one()),
            )

    def label_positions(self, model: str) -> dict[Partition, int]:
        """The next offset of each partition of the topics of labels that were read."""
        with self._database.reading() as connection:
            return positions_of(connection, model)

    def label_topic_ids(self, model: str, partitions: Sequence[Partition]) -> dict[Partition, str]:
        """The broker's ids of the topics of labels that were read, of these partitions, as far as known."""
        with self._database.reading() as connection:
            return topic_ids_of(connection, model, partitions)

    def find_kept(self, model: str, record_ids: Sequence[str], *, space: str) -> dict[str, KeptRecord]:
        """Of the kept records of a space with these ids, the last one each; ids without one are absent."""
        wanted = {clean(name): name for name in record_ids}
        names, found = sorted(wanted), dict[str, KeptRecord]()
        with self._database.reading() as connection:
            for start in range(0, len(names), _KEYS):
                query = select(_KEPT).where(
                    _KEPT.c.model == model,
                    _KEPT.c.space == space,
                    _KEPT.c.record_id.in_(names[start : start + _KEYS]),
                )
                for row in connection.execute(query.order_by(_KEPT.c.id)):
                    found[wanted[row.record_id]] = kept_row(row)
        return found

    # --- within a transaction -----------------------------------------------------------------------------------------

    def _lock(self, connection: Connection, model: str) -> int:
        """The version of the labels, which nobody else changes until this transaction ends."""
        new = schema.insert_ignoring(_VERSIONS, dialect=self._database.dialect)
        connection.execute(new, [{"model": model, "version": 0}])
        query = select(_VERSIONS.c.version).where(_VERSIONS.c.model == model)
        if self._database.dialect == "postgresql":  # a transaction of SQLite is alone anyway
            query = query.with_for_update()
        return int(connection.execute(query).scalar_one())

    @staticmethod
    def _last(connection: Connection) -> int:
        """The greatest number, of whatever model: all that the model's lock lets in later is greater."""
        return int(connection.execute(select(func.max(_LABELS.c.id))).scalar() or 0)

    @staticmethod
    def _version(connection: Connection, model: str) -> int:
        query = select(_VERSIONS.c.version).where(_VERSIONS.c.model == model)
        return int(connection.execute(query).scalar() or 0)

    @staticmethod
    def _set_version(connection: Connection, model: str, before: int, after: int) -> None:
        if after != before:
            connection.execute(update(_VERSIONS).where(_VERSIONS.c.model == model).values(version=after))


def _match(connection: Connection, model: str, known: Mapping[int, LabelledRecord], *, version: int) -> int:
    """Give those of these labels that wait their records, and the versions after ``version``; how many they are."""
    waiting: set[int] = set()
    numbers = sorted(known)
    for start in range(0, len(numbers), _KEYS):
        query = select(_LABELS.c.id).where(
            _LABELS.c.id.in_(numbers[start : start + _KEYS]), _LABELS.c.model == model, _LABELS.c.version == 0
        )
        waiting.update(connection.execute(query).scalars())
    changes = [
        {"label_id": number, **_new(known_columns(known[number])), "new_version": version + place}
        for place, number in enumerate(sorted(waiting), start=1)
    ]
    if changes:
        change = (
            update(_LABELS)
            .where(_LABELS.c.id == bindparam("label_id"))
            .values(version=bindparam("new_version"), **{name: bindparam(f"new_{name}") for name in KNOWN_OF_LABELS})
        )
        connection.execute(change, changes)
    return len(changes)


def _waiting_origins(connection: Connection, model: str, labels: Sequence[NewLabel]) -> dict[int, LabelledRecord]:
    """What labels bring along, by the number of the label with the same origin that waits for just that."""
    known = {clean(label.origin): label.known for label in labels if label.known is not None}
    origins, found = sorted(known), dict[int, LabelledRecord]()
    for start in range(0, len(origins), _KEYS):
        query = select(_LABELS.c.id, _LABELS.c.origin).where(
            _LABELS.c.model == model, _LABELS.c.origin.in_(origins[start : start + _KEYS]), _LABELS.c.version == 0
        )
        found |= {row.id: known[row.origin] for row in connection.execute(query)}
    return found


def _origins(connection: Connection, model: str, origins: Sequence[str]) -> set[str]:
    """Which of them are there."""
    found: set[str] = set()
    for start in range(0, len(origins), _KEYS):
        query = select(_LABELS.c.origin).where(
            _LABELS.c.model == model, _LABELS.c.origin.in_(origins[start : start + _KEYS])
        )
        found.update(connection.execute(query).scalars())
    return found


def _new(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in columns.items()}
