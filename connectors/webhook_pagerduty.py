"""Preset `pagerduty`: events for PagerDuty's Events API v2 (https://developer.pagerduty.com/docs/events-api-v2/overview/).

One alert of PagerDuty for each model: it is triggered as long as something of the model is open, under a key that never
changes, and resolved when nothing is. That one of several incidents is over is no event: a trigger would open an alert
anew that a person has closed.
"""

from __future__ import annotations

import hashlib
from typing import Any

from connectors.alert import alert_name, rfc3339
from connectors.console import printable
from connectors.message import Entry, message_of, shortened
from connectors.notification import Group

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
_SUMMARY, _DEDUP_KEY = 1_024, 255  # limits of PagerDuty, in characters


def pagerduty_event(group: Group, *, routing_key: str, external_url: str = "") -> dict[str, Any] | None:
    """The event for a group of one model; None where PagerDuty need not know."""
    key = model_key(group.key, _DEDUP_KEY)
    event = {"routing_key": routing_key, "dedup_key": key}
    if group.status == "resolved":
        return {**event, "event_action": "resolve"}
    firing = [one for one in group.latest if one.status == "firing"]
    if not firing:
        return None
    message = message_of(group)
    return {
        **event,
        "event_action": "trigger",
        "client": "driftd",
        **({"client_url": external_url, "links": [{"href": external_url, "text": "driftd"}]} if external_url else {}),
        "payload": {
            "summary": shortened(message.summary, _SUMMARY),
            "source": shortened(printable(group.key), _DEDUP_KEY),
            "severity": "critical" if group.pages or group.severity == "page" else "warning",
            "timestamp": rfc3339(min(one.starts_ms for one in firing)),
            "component": shortened(", ".join(sorted({printable(one.space) for one in firing if one.space})), _SUMMARY),
            "group": shortened(printable(group.key), _DEDUP_KEY),
            "class": ", ".join(sorted({alert_name(one.kind) for one in firing})),
            "custom_details": {
                "state": message.state,
                "incidents": [_details(entry) for entry in message.entries],
                **({"more": message.more} if message.more else {}),
            },
        },
    }


def model_key(model: str, most: int) -> str:
    """What stands for a model at a receiver, for ever; a hash ends it where it would be too long."""
    key = f"driftd:{model}"
    if len(key) <= most:
        return key
    return f"{key[: most - 17]}:{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:16]}"


def _details(entry: Entry) -> dict[str, str]:
    details = {
        "urgency": entry.urgency,
        "title": entry.title,
        "facts": entry.facts,
        "text": entry.text,
        "next": entry.next,
    }
    return {name: value for name, value in details.items() if value}
