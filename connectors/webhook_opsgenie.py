"""Preset `opsgenie`: the Alert API of Opsgenie, as https://docs.opsgenie.com/docs/alert-api describes it.

One alert of Opsgenie for each model, under an alias that never changes: made (or counted once more, where it is open)
as long as something of the model is open, closed when nothing is.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from connectors.alert import alert_name
from connectors.console import printable
from connectors.message import Entry, message_of, shortened
from connectors.notification import Group, Notification
from connectors.webhook_pagerduty import model_key

OPSGENIE_URL = "https://api.opsgenie.com/v2/alerts"
# Limits of Opsgenie, in characters.
_MESSAGE, _ALIAS, _DESCRIPTION, _ENTITY, _NOTE, _TAG = 130, 512, 15_000, 512, 25_000, 50
_TEXT = 1_000  # of one incident: ten of them stay within the description


def opsgenie_request(group: Group, *, external_url: str = "") -> tuple[str, dict[str, Any]] | None:
    """Path below the address and body, for a group of one model; None where Opsgenie need not know."""
    alias = model_key(group.key, _ALIAS)
    message = message_of(group)
    if group.status == "resolved":
        close = f"/{quote(alias, safe='')}/close?identifierType=alias"
        return close, {"source": "driftd", "note": shortened(message.summary, _NOTE)}
    firing = [one for one in group.latest if one.status == "firing"]
    if not firing:
        return None
    parts = [*(_words(entry) for entry in message.entries), message.more, message.state]
    tags = {group.severity, *(alert_name(one.kind) for one in firing)}
    return "", {
        "message": shortened(message.summary, _MESSAGE),
        "alias": alias,
        "description": shortened("\n\n".join(part for part in parts if part), _DESCRIPTION),
        "priority": min(_priority(one) for one in firing),
        "source": "driftd",
        "entity": shortened(printable(group.key), _ENTITY),
        "tags": sorted(shortened(tag, _TAG) for tag in tags)[:20],
        **({"details": {"driftd": external_url}} if external_url else {}),
    }


def _priority(notification: Notification) -> str:
    given = notification.values.get("priority", "")
    if re.fullmatch(r"P[1-5]", given):
        return given
    return "P1" if notification.severity == "page" else "P3"


def _words(entry: Entry) -> str:
    lines = [
        shortened(entry.headline, 200),
        shortened(entry.facts, 100),
        shortened(entry.text, _TEXT),
    ]
    return "\n".join([*(line for line in lines if line), *([f"Next: {entry.next}"] if entry.next else [])])
