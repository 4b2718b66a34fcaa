"""The part of Store about notifications on their way out, and about dead letters on their way to a topic.

Both are delivered at least once: a row is marked after the delivery, so that a crash between the two delivers again,
under the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, false, func, literal_column, select, update

from connectors.database import schema
from connectors.database.columns import letter_row, outbox_row, rows_of
from connectors.database.connection import Database
from connectors.database.rows import DeadLetterRow, OutboxRow

_OUTBOX = schema.outbox
_LETTERS = schema.dead_letters
# Literals, not parameters: SQLite uses a partial index only where the query says the index's own words.
_PENDING: ColumnElement[str] = literal_column("'pending'")


class Outbox:
    """Notifications that wait, and dead letters that are not published yet."""

    _database: Database

    def outbox_due(self, now_ms: int, limit: int, *, sink: str | None = None) -> list[OutboxRow]:
        """Notifications to send now, the longest due first; of one sink, or of all.

        A notification waits for every earlier one of the same incident and sink that is still pending, so that no
        receiver hears "resolved" before "firing".
        """
        earlier = _OUTBOX.alias("earlier")
        waits = (
            select(earlier.c.id)
            .where(
                earlier.c.status == _PENDING,
                earlier.c.sink == _OUTBOX.c.sink,
                earlier.c.incident == _OUTBOX.c.incident,
                earlier.c.id < _OUTBOX.c.id,
            )
            .exists()
        )
        query = (
            select(_OUTBOX)
            .where(_OUTBOX.c.status == _PENDING, _OUTBOX.c.due_ms <= now_ms, ~waits)
            .order_by(_OUTBOX.c.due_ms, _OUTBOX.c.id)
            .limit(limit)
        )
        if sink is not None:
            query = query.where(_OUTBOX.c.sink == sink)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), outbox_row)

    def outbox_sent(self, sink: str, notification_id: str, now_ms: int) -> None:
        """The sink took it."""
        self._settle(sink, notification_id, status="sent", error="", sent_ms=now_ms)

    def outbox_failed(self, sink: str, notification_id: str, due_ms: int, error: str) -> None:
        """The sink did not take it; try again at ``due_ms``."""
        self._settle(sink, notification_id, due_ms=due_ms, error=error)

    def outbox_dead(self, sink: str, notification_id: str, error: str) -> None:
        """The sink will never take it; later notifications of the incident do not wait for it any more."""
        self._settle(sink, notification_id, status="dead", error=error)

    def outbox_depth(self) -> int:
        """How many notifications are pending, due or not."""
        query = select(func.count()).select_from(_OUTBOX).where(_OUTBOX.c.status == _PENDING)
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def _settle(self, sink: str, notification_id: str, **values: Any) -> None:
        # Only a pending row: of two senders of one notification, the second's result must not undo the first's.
        change = (
            update(_OUTBOX)
            .where(_OUTBOX.c.sink == sink, _OUTBOX.c.notification_id == notification_id, _OUTBOX.c.status == _PENDING)
            .values(attempts=_OUTBOX.c.attempts + 1, **values)
        )
        with self._database.writing() as connection:
            connection.execute(change)

    def dead_letters_unpublished(self, limit: int, *, models: Sequence[str] | None = None) -> list[DeadLetterRow]:
        """Dead letters that are in the table and not yet in a topic, the oldest first.

        Args:
            models: only of these, because only some models have a dead-letter topic; None means all.
        """
        query = select(_LETTERS).where(_LETTERS.c.published == false()).order_by(_LETTERS.c.id).limit(limit)
        if models is not None:
            query = query.where(_LETTERS.c.model.in_(list(models)))
        with self._database.reading() as connection:
            return [DeadLetterRow(row.id, row.model, letter_row(row)) for row in connection.execute(query)]

    def dead_letters_published(self, rows: Sequence[DeadLetterRow]) -> None:
        """The topic has them."""
        if not rows:
            return
        change = update(_LETTERS).where(_LETTERS.c.id == bindparam("letter")).values(published=True)
        with self._database.writing() as connection:
            connection.execute(change, [{"letter": number} for number in sorted(row.id for row in rows)])
