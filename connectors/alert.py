"""A notification as an alert in the words of Prometheus: name, labels, annotations, times.

What a person's rules match on stands in the labels, and no label holds the id of an event: one reason to alert has the
same labels and the same fingerprint from its first warning to the last "resolved".
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timedelta

from connectors.notification import Notification

# In the style of other alert rules: CamelCase, the symptom first. docs/runbooks.md has a section for each.
ALERT_NAMES = {
    "drift": "EmbeddingDrift",
    "outlier_rate": "OutlierRateHigh",
    "encoder_suspected": "EncoderSuspected",
    "stale": "ModelDegraded",
    "fraud_wave": "FraudWave",
    "flood": "RecordFlood",
    "fraud_changed": "FraudChanged",
    "dead_letters": "DeadLettersHigh",
    "source": "SourceUnreadable",
    "dead_letter_wave": "ReadingStopped",
    "stalled": "PartitionsStalled",
    "gap": "RecordsLost",
    "silent": "SourceSilent",
    "lag": "LagGrowing",
    "embedder": "EmbedderFailing",
    "encoder_changed": "EncoderChanged",
    "vectors": "VectorsDegenerate",
    "clock": "ClockSkew",
    "sink": "SinkFailing",
}


RUNBOOKS = "docs/runbooks.md"  # in the sources; settings and options name another place
_NOT_IN_NAMES = re.compile(r"^(?=[0-9])|[^a-zA-Z0-9_]")


def alert_name(kind: str) -> str:
    """The name of the alert that incidents of this kind raise."""
    return ALERT_NAMES.get(kind, kind)


def runbook_url(kind: str, runbooks: str = "") -> str:
    """Where docs/runbooks.md, or its copy at ``runbooks``, says what such an incident means, and what to do."""
    return f"{runbooks or RUNBOOKS}#{alert_name(kind).lower()}"


def labels_of(notification: Notification) -> dict[str, str]:
    """The labels; those that say nothing are left out, since Alertmanager takes no empty values."""
    labels = {
        "alertname": alert_name(notification.kind),
        "model": notification.model,
        "kind": notification.kind,
        "severity": notification.severity,
        "space": notification.space,
        "segment": notification.segment,
    }
    return {name: value for name, value in labels.items() if value}


def annotations_of(notification: Notification, *, runbooks: str = "") -> dict[str, str]:
    """Words and numbers: the notification's values, title, text and ids, under names that Alertmanager takes."""
    return {
        **{_NOT_IN_NAMES.sub("_", name): value for name, value in notification.values.items() if name},
        "summary": notification.title,
        "description": notification.text,
        **({"runbook_url": runbook_url(notification.kind, runbooks)} if notification.kind in ALERT_NAMES else {}),
        "incident": notification.incident,
        "notification_id": notification.id,
    }


def fingerprint(notification: Notification) -> str:
    """16 hexadecimal digits that stand for the reason to alert."""
    return hashlib.sha256(notification.group_key.encode(errors="replace")).hexdigest()[:16]


def rfc3339(time_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 text in UTC, held within the years 1 to 9999."""
    clamped = min(max(time_ms, -62_135_596_800_000), 253_402_300_799_999)
    seconds, milliseconds = divmod(clamped, 1000)
    # A sum of integers, since fromtimestamp() of a float may round into the next millisecond.
    return f"{(datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat()}.{milliseconds:03d}Z"
