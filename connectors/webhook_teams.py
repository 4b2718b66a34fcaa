"""Preset `teams`: an Adaptive Card for the workflow "When a Teams webhook request is received" of Microsoft Teams.

Texts are text runs, which Teams does not read as Markdown: a segment's value can be no link. A message may have 28 KB
(https://learn.microsoft.com/microsoftteams/limits-specifications-teams); users met the limit at 21 KB.
"""

from __future__ import annotations

from typing import Any

from connectors.message import URGENCY_MARKS, Entry, Urgency, message_of, shortened_json
from connectors.notification import Group

_COLOURS: dict[Urgency, str] = {"PAGE": "Attention", "WARN": "Warning", "RESOLVED": "Good"}
_TITLE = 200  # bytes, as all limits here
_ALL_TEXTS = 8_000  # shared by the entries
_LONGEST_TEXT = 4_000


def teams_body(group: Group, *, external_url: str = "") -> dict[str, Any]:
    """What to POST to the address that the workflow shows."""
    message = message_of(group)
    room = min(_ALL_TEXTS // len(message.entries), _LONGEST_TEXT)
    alone = len(message.entries) == 1
    headline = shortened_json(f"{URGENCY_MARKS[message.urgency]} {message.urgency} {message.headline}", _TITLE)
    footer = " · ".join(part for part in (message.more, shortened_json(message.state, _TITLE)) if part)
    card: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "fallbackText": headline,
        "msteams": {"width": "Full"},
        "body": [
            _runs(_run(headline, weight="Bolder", size="Large", color=_COLOURS[message.urgency])),
            *(block for entry in message.entries for block in _entry(entry, room, titled=not alone)),
            *([_runs(_run(footer, isSubtle=True, size="Small"), separator=True)] if footer else []),
        ],
    }
    if external_url:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "driftd", "url": external_url}]
    return {
        "type": "message",
        "attachments": [
            {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
        ],
    }


def _entry(entry: Entry, room: int, *, titled: bool) -> list[dict[str, Any]]:
    title = shortened_json(f"{URGENCY_MARKS[entry.urgency]} {entry.title}", _TITLE)
    blocks = [
        _runs(_run(title, weight="Bolder"), separator=True) if titled else None,
        _runs(_run(shortened_json(entry.facts, _TITLE), isSubtle=True)),
        _runs(_run(shortened_json(entry.text, room))) if entry.text else None,
        _runs(_run("Next: "), _run(shortened_json(entry.next, _TITLE), fontType="Monospace")) if entry.next else None,
    ]
    return [block for block in blocks if block is not None]


def _runs(*inlines: dict[str, Any], separator: bool = False) -> dict[str, Any]:
    return {"type": "RichTextBlock", "inlines": list(inlines), **({"separator": True} if separator else {})}


def _run(text: str, **style: Any) -> dict[str, Any]:
    return {"type": "TextRun", "text": text, **style}
