"""What a message to people says, before a receiver's own format: at most ten incidents in words, and how many more.

Texts come out of records (a segment's value) and of other people's servers. So each is one line here, with control
characters as escapes; what a format would read as markup, the format's own file escapes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from connectors.alert import rfc3339
from connectors.console import printable
from connectors.notification import Group, Notification

MOST_ENTRIES = 10
# In characters; receivers that take less cut further.
_NAME, _TITLE, _TEXT, _COMMAND = 100, 300, 4_000, 200
_NEXT = " Next: "  # before what to type, at the end of a notification's text (monitor/wording.py)

Urgency = Literal["PAGE", "WARN", "RESOLVED"]
URGENCY_MARKS: dict[Urgency, str] = {
    "PAGE": "\N{LARGE RED CIRCLE}",
    "WARN": "\N{LARGE YELLOW CIRCLE}",
    "RESOLVED": "\N{LARGE GREEN CIRCLE}",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One incident in words.

    Attributes:
        urgency: PAGE, WARN or RESOLVED.
        title: one line.
        facts: since when, until when, how strong; one line.
        text: what, and why.
        next: the command to type; "" where the notification does not say, or says more than a command.
    """

    urgency: Urgency
    title: str
    facts: str
    text: str
    next: str

    @property
    def headline(self) -> str:
        """How urgent, and the title; one line."""
        return _with_urgency(self.urgency, self.title)


@dataclass(frozen=True, slots=True)
class Message:
    """What one message says.

    Attributes:
        urgency: of the most urgent entry.
        headline: one line: how many there are of what; the title, where it is about one incident.
        summary: one line: the title of the most urgent, and how many others there are.
        entries: at most ten.
        more: how many are left out and where to see them; "" if none.
        state: how many incidents are open now.
    """

    urgency: Urgency
    headline: str
    summary: str
    entries: tuple[Entry, ...]
    more: str
    state: str

    @property
    def subject(self) -> str:
        """How urgent, and the summary; one line."""
        return _with_urgency(self.urgency, self.summary)


def message_of(group: Group) -> Message:
    """The words of a group."""
    latest = group.latest
    urgencies = [_urgency(one) for one in latest]
    left_out = len(latest) - MOST_ENTRIES
    first, others = _line(latest[0].title, _TITLE), len(latest) - 1
    return Message(
        urgency=next(name for name in URGENCY_MARKS if name in urgencies),
        headline=_headline(group, urgencies) if others else first,
        summary=f"{first}, and {others} more" if others else first,
        entries=tuple(_entry(one) for one in latest[:MOST_ENTRIES]),
        more=f"and {left_out} more: driftd incidents" if left_out > 0 else "",
        state=_state(group),
    )


def group_id(group: Group) -> str:
    """The same for the same notifications: their hash, or the id itself where there is one only."""
    ids = [notification.id for notification in group.notifications]
    return ids[0] if len(ids) == 1 else hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]


def shortened(text: str, most: int) -> str:
    """``text`` with at most ``most`` characters; an ellipsis says that it was longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shortened_json(text: str, most: int) -> str:
    """``text`` so short that it takes at most ``most`` bytes in JSON (where "ü" takes six)."""
    size = 0
    for place, character in enumerate(text):
        size += len(json.dumps(character)) - 2
        if size > most:
            return f"{text[: max(place - 6, 0)]}…"
    return text


def _with_urgency(urgency: Urgency, title: str) -> str:
    return f"{urgency} {title.removeprefix('Resolved: ')}"  # the title of what is over says so itself


def _urgency(notification: Notification) -> Urgency:
    if notification.status == "resolved":
        return "RESOLVED"
    return "PAGE" if notification.severity == "page" else "WARN"


def _entry(notification: Notification) -> Entry:
    text, _, following = notification.text.rpartition(_NEXT)
    if not text or ";" in following:  # no command alone: it stays a sentence, which nobody would paste into a shell
        text, following = notification.text, ""
    facts = [f"since {_time(notification.starts_ms)}"]
    if notification.ends_ms is not None:
        facts.append(f"until {_time(notification.ends_ms)}")
    values = notification.values
    if "strength" in values:
        limit = f" (alarm from {values['threshold']})" if "threshold" in values else ""
        facts.append(f"strength {values['strength']}{limit}")
    if "priority" in values:
        facts.append(f"priority {values['priority']}")
    return Entry(
        urgency=_urgency(notification),
        title=_line(notification.title, _TITLE),
        facts=_line(" · ".join(facts), _TITLE),
        text=_line(text, _TEXT),
        next=_line(following, _COMMAND),
    )


def _headline(group: Group, urgencies: list[Urgency]) -> str:
    models = {one.model for one in group.notifications}
    whose = _line(group.notifications[0].model, _NAME) if len(models) == 1 else f"{len(models)} models"
    parts = [
        _counted(urgencies.count("PAGE"), "page"),
        _counted(urgencies.count("WARN"), "warning"),
        f"{urgencies.count('RESOLVED')} resolved" if "RESOLVED" in urgencies else "",
    ]
    return f"{whose}: {', '.join(part for part in parts if part)}"


def _state(group: Group) -> str:
    models = {one.model for one in group.notifications}
    whose = _line(group.notifications[0].model, _NAME) if len(models) == 1 else "these models"
    if not group.firing:
        return f"Nothing of {whose} is open any more." if group.status == "resolved" else ""
    pages = f", {group.pages} of them {'a page' if group.pages == 1 else 'pages'}" if group.pages else ""
    if group.firing == 1:
        return f"1 incident of {whose} is open{', a page' if group.pages else ''}."
    return f"{group.firing} incidents of {whose} are open{pages}."


def _line(text: str, most: int) -> str:
    return shortened(printable(text), most)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}" if count else ""


def _time(time_ms: int) -> str:
    return f"{rfc3339(time_ms)[:19].replace('T', ' ')}Z"
