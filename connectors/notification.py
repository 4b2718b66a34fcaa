"""What a sink is given, and the contract of a sink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable


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


@dataclass(frozen=True, slots=True)
class Group:
    """Everything that one message tells people: what is new of a model, or of several in a storm.

    Attributes:
        key: the model's name; "*" for several models.
        notifications: at least one, in the order in which they were made; several may be about one incident.
        firing: incidents of these models that are open now, and that the sink knows of, or is about to.
        pages: of them, those that are pages.
        parts: where the key is "*", the group of each model, for receivers that keep one alert for a model.
    """

    key: str
    notifications: tuple[Notification, ...]
    firing: int
    pages: int
    parts: tuple[Group, ...] = ()

    @classmethod
    def of(cls, notification: Notification) -> Group:
        """A group of its own."""
        firing = notification.status == "firing"
        return cls(notification.model, (notification,), int(firing), int(firing and notification.severity == "page"))

    @property
    def latest(self) -> tuple[Notification, ...]:
        """The newest notification of each incident, the most urgent first: what is open, pages, then by priority, then
        what is about the whole traffic, then in the order of the first of each incident.
        """
        newest = {notification.incident: notification for notification in self.notifications}
        return tuple(sorted(newest.values(), key=_urgency))

    @property
    def status(self) -> Literal["firing", "resolved"]:
        """ "resolved" when nothing of these models is open any more."""
        return "firing" if self.firing or any(one.status == "firing" for one in self.latest) else "resolved"

    @property
    def severity(self) -> Literal["page", "warn"]:
        """The most urgent of what is told."""
        return "page" if any(one.severity == "page" for one in self.notifications) else "warn"


def _urgency(one: Notification) -> tuple[bool, bool, str, bool]:
    """Sorts the most urgent first. P1 to P4 sort as text; "P5" stands for none."""
    return one.status != "firing", one.severity != "page", str(one.values.get("priority", "P5")), bool(one.segment)


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


@runtime_checkable
class GroupSink(Protocol):
    """A sink that people read: it gets what is new of a model in one message, and not too often."""

    def send_group(self, group: Group) -> None:
        """Deliver all of the group in one message, or raise SinkError; all of it is then tried again."""


@runtime_checkable
class RefreshedSink(Protocol):
    """A sink whose other side forgets: it is told again and again what fires, as Alertmanager wants to be."""

    refresh_every_s: ClassVar[float]

    def refresh(self, notifications: Sequence[Notification]) -> None:
        """Tell what was told: the newest notification of each incident that is open, or resolved a while ago.

        Raises:
            SinkError: it is not tried again before the next time.
        """
