"""The part of Store about notifications on their way out.

They are delivered at least once: a row is marked after the delivery, so that a crash between the two delivers again,
under the same id. A row's life:

    pending ──► sent | dead | muted        held (a mute covers it) ◄──► pending
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)

from connectors.database import schema
from connectors.database.columns import clean, incident_row, notification_from_json, outbox_row, rows_of
from connectors.database.connection import Database
from connectors.database.rows import IncidentRow, OutboxRow, Waiting, WaitingModel
from connectors.notification import Notification

_OUTBOX, _INCIDENTS = schema.outbox, schema.incidents
# Literals, not parameters: SQLite uses a partial index only where the query says the index's own words.
_PENDING: ColumnElement[str] = literal_column("'pending'")
_IS_PENDING = _OUTBOX.c.status == _PENDING
# A page that people do not know of yet.
_PAGE_NEWS = and_(_OUTBOX.c.severity == "page", _OUTBOX.c.event.in_(["opened", "raised", "reopened"]))
# No lease and no wait for another attempt is longer.
LONGEST_WAIT_MS = 3_600_000
# Looked at beyond what is asked for, because other processes take the first ones at the same moment.
_SPARE = 10
_MINUTE_MS = 60_000


class _TakenByOthers(Exception):
    """Another process claimed some of a group; ends the transaction."""


def _may_go(now_ms: int) -> ColumnElement[bool]:
    """Neither on its way nor waiting for another attempt."""
    # Due further ahead than anything ever waits: a clock that ran ahead wrote that, and has been set right since.
    return or_(_OUTBOX.c.due_ms <= now_ms, _OUTBOX.c.due_ms > now_ms + LONGEST_WAIT_MS)


def _waits_for(*status: str) -> ColumnElement[bool]:
    """There is an earlier one of the same incident and sink, with one of these states."""
    earlier = _OUTBOX.alias("earlier")
    return (
        select(earlier.c.id)
        .where(
            earlier.c.status.in_(status),
            earlier.c.sink == _OUTBOX.c.sink,
            earlier.c.incident == _OUTBOX.c.incident,
            earlier.c.id < _OUTBOX.c.id,
        )
        .exists()
    )


def _due(now_ms: int, limit: int, sink: str | None) -> Select[Any]:
    """The notifications that may be sent now."""
    query = (
        select(_OUTBOX)
        .where(_IS_PENDING, _may_go(now_ms), ~_waits_for("pending", "held"))
        .order_by(_OUTBOX.c.due_ms, _OUTBOX.c.id)
        .limit(limit)
    )
    return query if sink is None else query.where(_OUTBOX.c.sink == sink)


class Outbox:
    """Notifications that wait."""

    _database: Database

    def outbox_due(self, now_ms: int, limit: int, *, sink: str | None = None) -> list[OutboxRow]:
        """Notifications to send now, the longest due first; of one sink, or of all.

        A notification waits for every earlier one of the same incident and sink that is still pending or held, so that
        no receiver hears "resolved" before "firing".
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
        _check_lease(lease_ms)
        with self._database.reading() as connection:  # nothing is due most of the time, and readers block nobody
            found = connection.execute(_due(now_ms, limit + _SPARE, sink)).all()
        if not found:
            return []
        take = (
            update(_OUTBOX)
            .where(_OUTBOX.c.id == bindparam("row"), _IS_PENDING, _OUTBOX.c.due_ms == bindparam("seen"))
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

    # --- groups -------------------------------------------------------------------------------------------------------

    def outbox_waits(self, sink: str, now_ms: int, since_ms: int) -> Waiting:
        """What waits for a sink, model by model.

        Args:
            since_ms: messages before this time of the wall clock are long ago.
        """
        with self._database.reading() as connection:
            return _waiting(connection, sink, now_ms, since_ms)

    def outbox_claim_group(
        self,
        sink: str,
        now_ms: int,
        lease_ms: int,
        *,
        since_ms: int,
        choose: Callable[[Waiting], Sequence[str]],
        limit: int,
    ) -> list[OutboxRow]:
        """Take everything that waits for a sink about some models, for one message; all of it, or nothing.

        What `outbox_claim` says of the lease holds here, too. Of several processes one at a time looks, chooses and
        takes, so that none goes by what another has done meanwhile. ``sent_ms`` becomes the time of the claim.

        Args:
            choose: the models, by what waits; none to leave it.
            limit: of notifications; where there are more, incidents with news of a page come first, then the oldest.

        Returns:
            The notifications in the order in which they were stored; their ``due_ms`` is the end of the lease.
        """
        _check_lease(lease_ms)
        pages = _OUTBOX.alias("pages")
        news = select(pages.c.incident).where(
            pages.c.status == _PENDING,
            pages.c.sink == sink,
            pages.c.severity == "page",
            pages.c.event.in_(["opened", "raised", "reopened"]),
        )
        urgent = case((_OUTBOX.c.incident.in_(news), 0), else_=1)
        try:
            with self._database.writing() as connection:
                if self._database.dialect == "postgresql":  # a transaction of SQLite is alone anyway
                    connection.execute(select(text("pg_advisory_xact_lock(:number)")).params(number=_lock_number(sink)))
                models = choose(_waiting(connection, sink, now_ms, since_ms))
                if not models:
                    return []
                wanted = select(_OUTBOX).where(
                    *(_IS_PENDING, _OUTBOX.c.sink == sink, _OUTBOX.c.model.in_(models), _may_go(now_ms)),
                    ~_waits_for("held"),
                )
                found = connection.execute(wanted.order_by(urgent, _OUTBOX.c.id).limit(limit)).all()
                found = sorted(found, key=lambda row: int(row.id))
                return _take_all(connection, sink, found, now_ms, lease_ms)
        except _TakenByOthers:
            return []

    def outbox_claim_again(self, sink: str, rows: Sequence[OutboxRow], now_ms: int, lease_ms: int) -> list[OutboxRow]:
        """Take notifications once more that this process has claimed, for a message of their own.

        Returns:
            The same with the new lease; none of them if another process has taken one since.
        """
        _check_lease(lease_ms)
        ids = [row.notification.id for row in rows]
        held = {row.due_ms for row in rows}
        try:
            with self._database.writing() as connection:
                query = select(_OUTBOX).where(
                    _IS_PENDING,
                    _OUTBOX.c.sink == sink,
                    _OUTBOX.c.notification_id.in_(ids),
                    _OUTBOX.c.due_ms.in_(held),
                )
                found = connection.execute(query.order_by(_OUTBOX.c.id)).all()
                if len(found) != len(ids):
                    return []
                return _take_all(connection, sink, found, now_ms, lease_ms)
        except _TakenByOthers:
            return []

    def open_incidents(self, sink: str, models: Sequence[str]) -> dict[str, tuple[int, int]]:
        """By model: how many open incidents the sink knows of or is about to, and how many of them are pages.

        What a mute holds back is not among them: the sink may never hear of it, nor of its end.
        """
        mine = (_OUTBOX.c.sink == sink, _OUTBOX.c.incident == _INCIDENTS.c.id)
        waiting = select(_OUTBOX.c.id).where(*mine, _IS_PENDING).exists()
        newest = select(_OUTBOX.c.event).where(*mine, _OUTBOX.c.status == "sent").order_by(_OUTBOX.c.id.desc()).limit(1)
        pages = func.sum(case((_INCIDENTS.c.severity == "page", 1), else_=0))
        query = (
            select(_INCIDENTS.c.model, func.count(), pages)
            .where(_INCIDENTS.c.model.in_(models), _INCIDENTS.c.status == "open")
            .where(or_(waiting, newest.scalar_subquery() != "resolved"))
            .group_by(_INCIDENTS.c.model)
        )
        with self._database.reading() as connection:
            found = {model: (int(firing), int(paging)) for model, firing, paging in connection.execute(query)}
        return {model: found.get(model, (0, 0)) for model in models}

    # --- what came of it ----------------------------------------------------------------------------------------------

    def outbox_sent(self, sink: str, ids: Sequence[str], now_ms: int | None = None) -> None:
        """The sink took them.

        Args:
            ids: of notifications.
            now_ms: when; None where the claim said it.
        """
        when = {} if now_ms is None else {"sent_ms": now_ms}
        self._settle(sink, ids, status="sent", error="", **when)

    def outbox_failed(
        self, sink: str, ids: Sequence[str], due_ms: int, error: str, *, held_ms: int | None = None
    ) -> None:
        """The sink did not take them; try again at ``due_ms``, which is at most `LONGEST_WAIT_MS` from now.

        Args:
            held_ms: end of the lease under which they were sent. If it is over, and another process has taken a
                notification since, that one's lease is left alone.
        """
        self._settle(sink, ids, held_ms=held_ms, due_ms=due_ms, error=error)

    def outbox_dead(self, sink: str, ids: Sequence[str], error: str) -> None:
        """The sink will never take them; later notifications of their incidents do not wait for them any more."""
        self._settle(sink, ids, status="dead", error=error)

    def outbox_waiting(self) -> tuple[int, int | None]:
        """How many notifications are pending, due or not, and when the oldest was written; None if there is none."""
        query = select(func.count(), func.min(_OUTBOX.c.stored_ms)).where(_IS_PENDING)
        with self._database.reading() as connection:
            depth, oldest_ms = connection.execute(query).one()
        return int(depth), None if oldest_ms is None else int(oldest_ms)

    def outbox_refused(self, sink: str) -> bool:
        """Whether a notification that waits for the sink was refused by it."""
        query = select(_OUTBOX.c.id).where(_IS_PENDING, _OUTBOX.c.sink == sink, _OUTBOX.c.attempts > 0).limit(1)
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    # --- mutes and acknowledgements -----------------------------------------------------------------------------------

    def outbox_incidents(self, sink: str, status: Literal["pending", "held"]) -> list[IncidentRow]:
        """The incidents that notifications of a sink tell of, by id; without title, text and detail."""
        # The literal again, for the partial index.
        is_so = _IS_PENDING if status == "pending" else _OUTBOX.c.status == status
        told = select(_OUTBOX.c.incident).where(is_so, _OUTBOX.c.sink == sink)
        left_out = {"title": "", "text": "", "detail": "{}"}  # many kilobytes, for many incidents, once a second
        columns = (literal(left_out[one.name]).label(one.name) if one.name in left_out else one for one in _INCIDENTS.c)
        query = select(*columns).where(_INCIDENTS.c.id.in_(told)).order_by(_INCIDENTS.c.id)
        with self._database.reading() as connection:
            return rows_of(connection.execute(query), incident_row)

    def outbox_acknowledged(self, sink: str) -> list[str]:
        """The incidents that somebody takes care of, and that a pending notification says of that they still go on."""
        told = select(_OUTBOX.c.incident).where(_IS_PENDING, _OUTBOX.c.sink == sink, _OUTBOX.c.event == "repeated")
        query = select(_INCIDENTS).where(_INCIDENTS.c.id.in_(told)).order_by(_INCIDENTS.c.id)
        with self._database.reading() as connection:
            found = rows_of(connection.execute(query), incident_row)
        return [row.id for row in found if "acknowledged" in row.detail]

    def outbox_last_told(self, sink: str, incidents: Sequence[str]) -> dict[str, str]:
        """The event of the newest notification of each incident that the sink took; not those that it took none of."""
        newest = (
            select(func.max(_OUTBOX.c.id))
            .where(_OUTBOX.c.sink == sink, _OUTBOX.c.incident.in_(incidents), _OUTBOX.c.status == "sent")
            .group_by(_OUTBOX.c.incident)
        )
        query = select(_OUTBOX.c.incident, _OUTBOX.c.event).where(_OUTBOX.c.id.in_(newest))
        with self._database.reading() as connection:
            return {row.incident: row.event for row in connection.execute(query)}

    def outbox_hold(self, sink: str, incidents: Sequence[str], now_ms: int) -> None:
        """Hold everything back that is pending about these incidents, but for what is on its way."""
        covered = (_IS_PENDING, _OUTBOX.c.sink == sink, _OUTBOX.c.incident.in_(incidents), _may_go(now_ms))
        with self._database.writing() as connection:
            connection.execute(update(_OUTBOX).where(*covered).values(status="held"))

    def outbox_release(self, sink: str, incidents: Sequence[str]) -> None:
        """Let go what is held back about these incidents: it is due at once."""
        held = (_OUTBOX.c.sink == sink, _OUTBOX.c.incident.in_(incidents), _OUTBOX.c.status == "held")
        with self._database.writing() as connection:
            connection.execute(update(_OUTBOX).where(*held).values(status="pending", due_ms=0))

    def outbox_mute(self, sink: str, incidents: Sequence[str], now_ms: int, *, event: str | None = None) -> int:
        """Tell nobody what waits or is held back about these incidents, but for what is on its way; how many it was.

        Args:
            event: only notifications of this event.
        """
        waits = or_(and_(_IS_PENDING, _may_go(now_ms)), _OUTBOX.c.status == "held")
        change = update(_OUTBOX).where(_OUTBOX.c.sink == sink, _OUTBOX.c.incident.in_(incidents), waits)
        if event is not None:
            change = change.where(_OUTBOX.c.event == event)
        with self._database.writing() as connection:
            return connection.execute(change.values(status="muted")).rowcount

    # --- what the other side forgets ----------------------------------------------------------------------------------

    def outbox_told(self, sink: str, resolved_since_ms: int) -> list[Notification]:
        """The newest notification that the sink took of each incident that is open, as far as the sink knows.

        Also of incidents whose end the sink was told at ``resolved_since_ms`` of the wall clock or later.
        """
        unsettled = select(_OUTBOX.c.incident).where(_OUTBOX.c.sink == sink, _OUTBOX.c.status.in_(["pending", "held"]))
        open_ones = select(_INCIDENTS.c.id).where(_INCIDENTS.c.status == "open")
        ended = select(_OUTBOX.c.incident).where(
            _OUTBOX.c.sink == sink, _OUTBOX.c.event == "resolved", _OUTBOX.c.sent_ms >= resolved_since_ms
        )
        wanted = or_(
            _OUTBOX.c.incident.in_(open_ones), _OUTBOX.c.incident.in_(unsettled), _OUTBOX.c.incident.in_(ended)
        )
        newest = (
            select(func.max(_OUTBOX.c.id))
            .where(_OUTBOX.c.sink == sink, _OUTBOX.c.status == "sent", wanted)
            .group_by(_OUTBOX.c.incident)
        )
        # An incident that came back and is not told yet: the sink knows its old end, from long ago.
        old_end = and_(_OUTBOX.c.event == "resolved", _OUTBOX.c.sent_ms < resolved_since_ms)
        query = select(_OUTBOX.c.body).where(_OUTBOX.c.id.in_(newest), ~old_end).order_by(_OUTBOX.c.id)
        with self._database.reading() as connection:
            return [notification_from_json(body) for body in connection.execute(query).scalars()]

    def _settle(self, sink: str, ids: Sequence[str], *, held_ms: int | None = None, **values: Any) -> None:
        # Only pending rows: of two senders of one notification, the second's result must not undo the first's.
        change = (
            update(_OUTBOX)
            .where(
                _OUTBOX.c.sink == sink,
                _OUTBOX.c.notification_id.in_([clean(identity) for identity in ids]),
                _IS_PENDING,
            )
            .values(attempts=_OUTBOX.c.attempts + 1, **values)
        )
        if held_ms is not None:
            change = change.where(_OUTBOX.c.due_ms == held_ms)
        with self._database.writing() as connection:
            connection.execute(change)


def _check_lease(lease_ms: int) -> None:
    if not 0 < lease_ms < LONGEST_WAIT_MS:
        raise ValueError(f"a lease of {lease_ms} ms; expected less than {LONGEST_WAIT_MS}")


def _waiting(connection: Connection, sink: str, now_ms: int, since_ms: int) -> Waiting:
    news = case((_PAGE_NEWS, 1), else_=0)
    busy = func.max(case((_may_go(now_ms), 0), else_=1))
    query = (
        select(_OUTBOX.c.model, news.label("news"), func.min(_OUTBOX.c.stored_ms).label("oldest"), busy.label("busy"))
        .where(_IS_PENDING, _OUTBOX.c.sink == sink)
        .group_by(_OUTBOX.c.model, news)
    )
    models: dict[str, WaitingModel] = {}
    for row in connection.execute(query):
        one = models.get(row.model, WaitingModel(row.model))
        one = replace(one, sending=one.sending or bool(row.busy))
        models[row.model] = replace(one, page_ms=row.oldest) if row.news else replace(one, other_ms=row.oldest)
    if not models:
        return Waiting((), 0)
    # A time to come was written by a clock that ran ahead.
    lately = (_OUTBOX.c.sink == sink, _OUTBOX.c.sent_ms >= since_ms, _OUTBOX.c.sent_ms <= now_ms + _MINUTE_MS)
    told = (
        select(_OUTBOX.c.model, _OUTBOX.c.severity, func.max(_OUTBOX.c.sent_ms).label("at"))
        .where(*lately, _OUTBOX.c.status == "sent")
        .group_by(_OUTBOX.c.model, _OUTBOX.c.severity)
    )
    for model, severity, told_ms in connection.execute(told):
        if (known := models.get(model)) is not None:
            page_ms = told_ms if severity == "page" else known.told_page_ms
            models[model] = replace(known, told_ms=max(told_ms, known.told_ms or told_ms), told_page_ms=page_ms)
    # All notifications of a message have its time, and no other message has.
    messages = select(func.count(func.distinct(_OUTBOX.c.sent_ms))).where(
        _OUTBOX.c.sink == sink, _OUTBOX.c.sent_ms > now_ms - _MINUTE_MS, _OUTBOX.c.sent_ms <= now_ms + _MINUTE_MS
    )
    return Waiting(tuple(models.values()), int(connection.execute(messages).scalar_one()))


def _take_all(connection: Connection, sink: str, found: Sequence[Any], now_ms: int, lease_ms: int) -> list[OutboxRow]:
    """Lease rows that were just read, all or (with _TakenByOthers) none, at a time that no other message has."""
    newest = select(func.max(_OUTBOX.c.sent_ms)).where(
        _OUTBOX.c.sink == sink, _OUTBOX.c.sent_ms >= now_ms, _OUTBOX.c.sent_ms <= now_ms + _MINUTE_MS
    )
    latest = connection.execute(newest).scalar()
    sent_ms = now_ms if latest is None else int(latest) + 1
    take = (
        update(_OUTBOX)
        .where(_OUTBOX.c.id == bindparam("row"), _IS_PENDING, _OUTBOX.c.due_ms == bindparam("seen"))
        .values(due_ms=now_ms + lease_ms, sent_ms=sent_ms)
    )
    taken = [{"row": row.id, "seen": row.due_ms} for row in found]
    if taken and connection.execute(take, taken).rowcount != len(taken):
        raise _TakenByOthers
    return [replace(outbox_row(row), due_ms=now_ms + lease_ms) for row in found]


def _lock_number(sink: str) -> int:
    """A number for the sink's turn, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"outbox {sink}".encode()).digest()[:8], "big", signed=True)
