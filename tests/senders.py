"""What tests of sending share: a notification, a clock that stands still, scripted sinks, and rows in an outbox."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from connectors.database.rows import FoldResult, IncidentRow
from connectors.database.store import Store
from connectors.notification import Group, Notification
from monitor.incidents import EventName, notification_of
from monitor.pacing import Pace

START_MS = 1_800_000_000_000
NOTE = Notification(
    id="note-1",
    incident="abc123",
    group_key="triage/drift/input/country=DE",
    status="firing",
    severity="page",
    model="triage",
    kind="drift",
    space="input",
    segment="country=DE",
    title="triage: traffic changed",
    text="It changed.",
    starts_ms=1_700_000_000_123,
    ends_ms=None,
    values={"strength": "6.3"},
)
AT_ONCE = Pace(group_wait_ms=0, group_interval_ms=0, most_per_minute=1000)


class Clock:
    """Wall clock that stands still until it is moved on; milliseconds since 1970."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class ScriptedSink:
    """Raises the scripted errors in turn, then takes everything. Shipped sinks cannot be told to fail in these ways."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[str] = []
        self.tried: list[str] = []

    def send(self, notification: Notification) -> None:
        self.tried.append(notification.id)
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(notification.id)

    def check(self) -> str:
        return "scripted"

    def close(self) -> None:
        pass


class ScriptedGroupSink(ScriptedSink):
    """The same for a sink that people read. ``refuses``: a group with one of these ids is refused for good."""

    def __init__(self, *errors: Exception, refuses: Sequence[str] = (), refusal: Exception | None = None) -> None:
        super().__init__(*errors)
        self.groups: list[Group] = []
        self._refuses, self._refusal = set(refuses), refusal

    def send_group(self, group: Group) -> None:
        ids = [one.id for one in group.notifications]
        self.tried.append(" ".join(ids))
        if self.errors:
            raise self.errors.pop(0)
        if self._refusal is not None and self._refuses & set(ids):
            raise self._refusal
        self.groups.append(group)
        self.taken += ids

    @property
    def told(self) -> list[tuple[str, list[str]]]:
        """Key and ids of each message."""
        return [(group.key, [one.id for one in group.notifications]) for group in self.groups]


def incident(
    identity: str,
    *,
    model: str = "triage",
    segment: str = "",
    severity: Literal["page", "warn"] = "page",
    status: Literal["open", "resolved"] = "open",
    revision: int = 1,
    **detail: Any,
) -> IncidentRow:
    """An incident as the fold writes it."""
    return IncidentRow(
        *(identity, model, "drift", "input", segment, severity, status, 10, 5, 10),
        *(20 if status == "resolved" else None, revision, 1, f"{model}: input has drifted", "It changed."),
        detail={"severity_now": severity, **detail},
    )


def told(row: IncidentRow, event: EventName, identity: str | None = None) -> Notification:
    """What is told of it, under an id that a test can read."""
    return dataclasses.replace(notification_of(row, event), id=identity or f"{row.id}-{event}")


def put(store: Store, *pairs: tuple[str, Notification], incidents: Sequence[IncidentRow] = ()) -> None:
    """Write outbox rows and incidents as the fold does."""
    with store.begin_fold("triage") as fold:
        fold.commit(
            FoldResult(
                fold.version + 1, merged=[], states=[], readings=[], incidents=list(incidents), outbox=list(pairs)
            )
        )


def outbox(database: Path, columns: str = "sink, notification_id, status, attempts") -> list[tuple[Any, ...]]:
    """The rows of the outbox of a SQLite database."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(f"SELECT {columns} FROM outbox ORDER BY id").fetchall()
    finally:
        connection.close()
