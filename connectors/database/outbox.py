"""The part of Store about notifications on their way out.

They are delivered at least once: a row is marked after the delivery, so that a crash between the two delivers again,
under the same id.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, literal_column, or_, select, update

from connectors.database import schema
from connectors.database.columns import outbox_row, rows_of
from connectors.database.connection import Database
from connectors.database.rows import OutboxRow

_OUTBOX = schema.outbox
# Literals, not parameters: SQLite uses a partial index only where the query says the index's own words.
_PENDING: ColumnElement[str] = literal_column("'pending'")
# No lease and no wait for another attempt is longer.
LONGEST_WAIT_MS = 3_600_000
# Looked at beyond what is asked for, because other processes take the first ones at the same moment.
_SPARE = 10


def _due(now_ms: int, limit: int, sink: str | None) -> Select[Any]:
    """The notifications that may be sent now."""
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
    # Due further ahead than anything ever waits: a clock that ran ahead wrote that, and has been set right since.
    is_due = or_(_OUTBOX.c.due_ms <= now_ms, _OUTBOX.c.due_ms > now_ms + LONGEST_WAIT_MS)
    query = (
        select(_OUTBOX)
        .where(_OUTBOX.c.status == _PENDING, is_due, ~waits)
        .order_by(_OUTBOX.c.due_ms, _OUTBOX.c.id)
        .limit(limit)
    )
    return query if sink is None else query.where(_OUTBOX.c.sink == sink)


class Outbox:
    """Notifications that wait."""

    _database: Database

    def outbox_due(self, now_ms: int, limit: int, *, sink: str | None = None) -> list[OutboxRow]:
        """Notifications to send now, the longest due first; of one sink, or of all.

        A notification waits for every earlier one of the same incident and sink that is still pending, so that no
        receiver hears "resolved" before "firing".
        """
        with self._database.reading() as connection:
            return rows_of(connection.execute(_due(now_ms, limit, sink)), outbox_row)

    def outbox_claim(self, sink: str, now_ms: int, lease_ms: int, limit: int) -> list[OutboxRow]:
        """Take notifications of a sink that are due, so that no other process sends them for ``lease_ms``.

        A process that dies with them delays them by that time. Those that it has sent are told with `outbox_sent`,
        before the lease is over.

        Returns:
            At most ``limit`` notifications; their ``due_ms`` is the end of the lease.
        """
        if not 0 < lease_ms < LONGEST_WAIT_MS:
            raise ValueError(f"a lease of {lease_ms} ms; expected less than {LONGEST_WAIT_MS}")
        with self._database.reading() as connection:  # nothing is due most of the time, and readers block nobody
            found = connection.execute(_due(now_ms, limit + _SPARE, sink)).all()
        if not found:
            return []
        take = (
            update(_OUTBOX)
            .where(
                _OUTBOX.c.id == bindparam("row"), _OUTBOX.c.status == _PENDING, _OUTBOX.c.due_ms == bindparam("seen")
            )
            .values(due_ms=now_ms + lease_ms)
        )
        claimed: list[OutboxRow] = []
        with self._database.writing() as connection:
            for row in found:
                if len(claimed) == limit:
                    break
                # One by one: of those that another process has taken meanwhile, we must know which.
                if connection.execute(take, {"row": row.id, "seen": row.due_ms}).rowcount == 1:
                    claimed.append(replace(outbox_row(row), due_ms=now_ms + lease_ms))
        return claimed

    def outbox_sent(self, sink: str, notification_id: str, now_ms: int) -> None:
        """The sink took it."""
        self._settle(sink, notification_id, status="sent", error="", sent_ms=now_ms)

    def outbox_failed(
        self, sink: str, notification_id: str, due_ms: int, error: str, *, held_ms: int | None = None
    ) -> None:
        """The sink did not take it; try again at ``due_ms``, which is at most `LONGEST_WAIT_MS` from now.

        Args:
            held_ms: end of the lease under which it was sent. If it is over, and another process has taken the
                notification since, that one's lease is left alone.
        """
        self._settle(sink, notification_id, held_ms=held_ms, due_ms=due_ms, error=error)

    def outbox_dead(self, sink: str, notification_id: str, error: str) -> None:
        """The sink will never take it; later notifications of the incident do not wait for it any more."""
        self._settle(sink, notification_id, status="dead", error=error)

    def outbox_waiting(self) -> tuple[int, int | None]:
        """How many notifications are pending, due or not, and when the oldest was written; None if there is none."""
        query = select(func.count(), func.min(_OUTBOX.c.stored_ms)).where(_OUTBOX.c.status == _PENDING)
        with self._database.reading() as connection:
            depth, oldest_ms = connection.execute(query).one()
        return int(depth), None if oldest_ms is None else int(oldest_ms)

    def _settle(self, sink: str, notification_id: str, *, held_ms: int | None = None, **values: Any) -> None:
        # Only a pending row: of two senders of one notification, the second's result must not undo the first's.
        change = (
            update(_OUTBOX)
            .where(_OUTBOX.c.sink == sink, _OUTBOX.c.notification_id == notification_id, _OUTBOX.c.status == _PENDING)
            .values(attempts=_OUTBOX.c.attempts + 1, **values)
        )
        if held_ms is not None:
            change = change.where(_OUTBOX.c.due_ms == held_ms)
        with self._database.writing() as connection:
            connection.execute(change)
