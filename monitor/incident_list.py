"""Incidents as people list them, with what people did about them: called, acknowledged, muted."""

from __future__ import annotations

import dataclasses
import getpass
from collections.abc import Iterable, Sequence
from typing import Any

from connectors.database.rows import IncidentRow, MuteRow
from connectors.database.store import Store
from detectors.errors import InvalidInput
from monitor.incidents import is_held
from monitor.priority import priority_of
from monitor.times import text_of
from monitor.wording import acknowledged_by, status_of


def incident_id_of(store: Store, beginning: str) -> str:
    """The id of the only incident whose id begins so.

    Raises:
        InvalidInput: there is none, or more than one.
    """
    found = [row.id for row in store.incidents() if row.id.startswith(beginning)]
    if len(found) != 1:
        how_many = "no incident" if not found else f"{len(found)} incidents"
        raise InvalidInput(f"There is {how_many} whose id begins with {beginning}.", hint="List them: driftd incidents")
    return found[0]


def login_name() -> str:
    """Who types.

    Raises:
        InvalidInput: the system does not know.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise InvalidInput("The system does not say who you are.", hint="Say it: --by NAME") from error


def mute_of(row: IncidentRow, mutes: Iterable[MuteRow]) -> MuteRow | None:
    """The mute that covers an open incident the longest; None where none does, or it is resolved.

    Args:
        mutes: in force now.
    """
    covering = [mute for mute in mutes if row.status == "open" and mute.covers(row)]
    return max(covering, key=lambda mute: (mute.until_ms, mute.id), default=None)


def alerted(rows: Iterable[IncidentRow]) -> list[tuple[str, str, float]]:
    """Kind, severity and time of opening (seconds since 1970) of those that rules may alert on: not what is held."""
    return [(row.kind, row.severity, row.opened_ms / 1000) for row in rows if not is_held(row)]


def table_of(rows: Sequence[IncidentRow], mutes: Sequence[MuteRow]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the list; columns in which nothing stands are left out."""
    columns = ["id", "status", "severity", "priority", "since", "resolved", "flaps", "acknowledged", "muted", "what"]
    lines = [_line(row, mute_of(row, mutes)) for row in rows]
    spare = {"flaps", "acknowledged", "muted"}
    shown = [at for at, name in enumerate(columns) if name not in spare or any(line[at] for line in lines)]
    return [columns[at] for at in shown], [[line[at] for at in shown] for line in lines]


def _line(row: IncidentRow, mute: MuteRow | None) -> list[str]:
    return [
        row.id[:10],
        status_of(row),
        row.severity,
        priority_of(row),
        text_of(row.onset_ms),
        text_of(row.resolved_ms) if row.resolved_ms is not None else "-",
        str(row.detail.get("flaps") or ""),
        acknowledged_by(row),
        f"until {text_of(mute.until_ms)} ({mute.id})" if mute is not None else "",
        row.title,
    ]


def data_of(row: IncidentRow, mutes: Sequence[MuteRow]) -> dict[str, Any]:
    """Everything about one incident, for a program: the row, its priority, and the mute that covers it or None."""
    return {**dataclasses.asdict(row), "priority": priority_of(row), "muted": mute_of(row, mutes)}
