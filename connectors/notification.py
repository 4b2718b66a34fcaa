"""What a sink is given, and the contract of a sink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing to tell about one incident.

    Attributes:
        id: deterministic; the same event has the same id after a crash, a replay or a backfill. Receivers dedupe by it.
        incident: the incident's id.
        group_key: stable name of the reason to alert, without event ids: "model/kind/space/segment".
        status: "firing" or "resolved", as Alertmanager says.
        severity: "page" or "warn".
        model, kind, space, segment: what the incident is about; space and segment may be "".
        title: one line for a person.
        text: a few sentences: what, since when, how strong, what to look at.
        starts_ms, ends_ms: onset, and end or None while firing; milliseconds since 1970.
        values: numbers and words worth a field of their own (strength, threshold, n, reference, ...).
    """

    id: str
    incident: str
    group_key: str
    status: Literal["firing", "resolved"]
    severity: Literal["page", "warn"]
    model: str
    kind: str
    space: str
    segment: str
    title: str
    text: str
    starts_ms: int
    ends_ms: int | None
    values: dict[str, str]


class Sink(Protocol):
    """Where notifications go. Delivery is at least once; the notification's id is the key to dedupe by."""

    def send(self, notification: Notification) -> None:
        """Deliver one notification within the sink's time-out.

        Raises:
            SinkError: `retryable` and `retry_after_s` say whether and when to try again.
        """

    def check(self) -> str:
        """One line on where notifications will go; raises SinkError where that can be seen to fail beforehand."""

    def close(self) -> None:
        """Release connections and files."""
