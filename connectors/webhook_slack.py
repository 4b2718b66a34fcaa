"""Preset `slack`: the body of an incoming webhook of Slack, in blocks of its Block Kit.

Slack refuses a message as a whole where a limit is passed: 50 blocks, 3,000 characters in a section, 150 in a header,
and about 13,000 in all (https://docs.slack.dev/reference/block-kit/blocks; the last one was reported by users only).
"""

from __future__ import annotations

from typing import Any

from connectors.message import URGENCY_MARKS, Entry, message_of, shortened
from connectors.notification import Group

_HEADER = 150
_TITLE, _FACTS, _COMMAND = 200, 120, 150
_ALL_TEXTS = 6_000  # shared by the entries; with the rest, ten of them stay below 12,500
_LONGEST_TEXT = 2_000


def slack_body(group: Group, *, external_url: str = "") -> dict[str, Any]:
    """What to POST to https://hooks.slack.com/services/..."""
    message = message_of(group)
    room = min(_ALL_TEXTS // len(message.entries), _LONGEST_TEXT)
    alone = len(message.entries) == 1
    headline = f"{URGENCY_MARKS[message.urgency]} {message.urgency} {message.headline}"
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": shortened(headline, _HEADER), "emoji": False}},
        *(_section(_words(entry, room, titled=not alone)) for entry in message.entries),
    ]
    link = f"<{escaped(external_url, 500)}|driftd>" if external_url else ""
    footer = " · ".join(part for part in (message.more, escaped(message.state, 500), link) if part)
    if footer:
        blocks.append({"type": "context", "elements": [_mrkdwn(footer)]})
    # Shown in notifications of the operating system, where blocks are not.
    return {"text": escaped(headline, 1_000), "blocks": blocks}


def escaped(text: str, most: int) -> str:
    """``text`` with the three characters escaped that Slack reads as markup, cut to ``most`` characters after that."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if len(safe) <= most:
        return safe
    head, mark, tail = safe[: most - 1].rpartition("&")
    whole = head if mark and ";" not in tail else safe[: most - 1]  # not half of "&amp;"
    return f"{whole}…"


def _words(entry: Entry, room: int, *, titled: bool) -> str:
    lines = [
        f"{URGENCY_MARKS[entry.urgency]} *{escaped(entry.title, _TITLE)}*" if titled else "",
        f"_{escaped(entry.facts, _FACTS)}_",
        escaped(entry.text, room),
        f"Next: `{escaped(entry.next, _COMMAND).replace('`', chr(39))}`" if entry.next else "",
    ]
    return "\n".join(line for line in lines if line)


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text)}


def _mrkdwn(text: str) -> dict[str, Any]:
    # verbatim: nothing in it becomes a link or a mention by itself.
    return {"type": "mrkdwn", "text": text, "verbatim": True}
