"""Incidents of the watching itself: a source that cannot be read or is silent, records and vectors that are of no use.

While these are open, the numbers of a model rest on less than its traffic, or on nothing: the model is `BLIND`. A
worker sees them and makes them here; `Store.open_incident` and `Store.resolve_incident` see to it that of many workers
one tells. Their times are those of the wall clock, because there may be no records to take a time from. A gap is
different: it is opened by the checkpoint that jumps over it, at its partition's event time, and resolved by the fold.

    row, notification = source_incident("orders", problem=str(error), lasting=False, since_ms=since, now_ms=now)
    store.open_incident(row, [(sink, notification) for sink in sinks])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from connectors.database.rows import IncidentRow
from connectors.notification import Notification
from connectors.records import Gap, Partition
from monitor.incidents import OPERATIONAL, notification_of
from monitor.wording import text_of_incident, title_of

# While one of these is open, what driftd says of a model cannot be relied on.
BLIND = OPERATIONAL - {"sink", "fraud_changed", "encoder_changed"}

DEPLOYMENT = "driftd"  # stands for the model in incidents that are about no model

_HOUR_MS = 3_600_000


def source_incident(
    model: str, *, problem: str, lasting: bool, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """The source of a model cannot be read.

    Args:
        problem: what it said last, with its hint.
        lasting: it does not mend by itself: a refused password, a topic that is not there.
        since_ms: wall clock of the first failure in a row.
        now_ms: wall clock, milliseconds since 1970, as in all functions here.
    """
    return _opened(model, "source", since_ms, now_ms, {"problem": problem, "lasting": lasting})


def wave_incident(model: str, *, problem: str, now_ms: int) -> tuple[IncidentRow, Notification]:
    """Reading was stopped, because too many records cannot be used.

    Args:
        problem: how many, and why, in words and without a payload.
    """
    return _opened(model, "dead_letter_wave", now_ms, now_ms, {"problem": problem})


def stalled_incident(
    model: str, partitions: Mapping[Partition, int], *, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """Partitions stand still though they hold more records, so that blocks are closed without them.

    Args:
        partitions: with the next offset that each stands at.
        since_ms: wall clock of the last checkpoint that moved one of them.
    """
    places = [[topic, number, offset] for (topic, number), offset in sorted(partitions.items())]
    return _opened(model, "stalled", since_ms, now_ms, {"partitions": places})


def silent_incident(
    model: str, *, since_ms: int, now_ms: int, limit_s: float, longest_s: float, span_s: float, every_s: float
) -> tuple[IncidentRow, Notification]:
    """Nothing comes any more, though the source answers and everything in it was read.

    Args:
        since_ms: wall clock of the last record.
        limit_s: so long a silence was still likely: see `monitor.silence`.
        longest_s, span_s: the longest silence of the past that this follows from, and how long that past is.
        every_s: time in which a silence above the limit is expected once.
    """
    detail = {"limit_s": limit_s, "longest_s": longest_s, "span_s": span_s, "every_s": every_s}
    return _opened(model, "silent", since_ms, now_ms, detail)


def lag_incident(
    model: str, *, lag_s: float, records: int, limit_s: float, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """More records come than are read.

    Args:
        lag_s: age of the last record that was read, where more wait; the oldest partition's.
        records: how many wait.
        limit_s: the age from which on growing lag is told.
    """
    return _opened(model, "lag", since_ms, now_ms, {"lag_s": lag_s, "records": records, "limit_s": limit_s})


def embedder_incident(
    model: str, *, reasons: Mapping[str, int], records: int, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """Many records have no vector, because of their embedder or of what made their vectors.

    Args:
        reasons: how many of them, by reason of their dead letters.
        records: the last ones that were looked at.
    """
    return _opened(model, "embedder", since_ms, now_ms, {"reasons": dict(sorted(reasons.items())), "records": records})


def encoder_changed_incident(
    model: str, *, space: str, cause: str, problem: str, changed: int, canaries: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """The encoder makes other vectors of the canaries than when the reference was built: reading waits.

    Args:
        space: whose encoder.
        cause: of `detectors.encoder_change.EncoderChange`.
        problem: what was seen, and what it points to, in sentences.
        changed: of how many ``canaries`` the vector is another one.
    """
    detail = {"encoder_space": space, "cause": cause, "problem": problem, "changed": changed, "canaries": canaries}
    return _opened(model, "encoder_changed", now_ms, now_ms, detail)


def vectors_incident(
    model: str, *, space: str, what: Literal["zero", "constant"], count: int, records: int, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """Vectors that say nothing of their records.

    Args:
        space: "" where it is not known which.
        what: zero (or without a finite length) in ``count`` of the last ``records``; or all ``records`` the same.
    """
    detail = {"vectors_space": space, "what": what, "count": count, "records": records}
    return _opened(model, "vectors", since_ms, now_ms, detail)


def clock_incident(
    model: str,
    *,
    since_ms: int,
    now_ms: int,
    ahead_s: float = 0.0,
    reasons: Mapping[str, int] | None = None,
    records: int = 0,
) -> tuple[IncidentRow, Notification]:
    """Times that cannot be right.

    Args:
        ahead_s: so far is the broker's time of most records ahead of ours; 0 if that is not the trouble.
        reasons: of the last ``records``, how many have a wrong event time, by what is wrong.
    """
    detail = {"ahead_s": ahead_s, "reasons": dict(sorted((reasons or {}).items())), "records": records}
    return _opened(model, "clock", since_ms, now_ms, detail)


def fraud_changed_incident(
    model: str, *, version: int, answers: int, foretold: float, found: float, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """Answers of analysts no longer follow from the features as they did.

    Args:
        version: of the labels, at which it was noticed: names the incident, so that all workers open the same one.
        answers: the latest ones, that were foretold worst.
        foretold, found: share of fraud among them, as it was expected and as it was.
        since_ms: when the answer was given at which it was noticed.
    """
    detail = {"version": version, "answers": answers, "foretold": foretold, "found": found}
    row, _ = _opened(model, "fraud_changed", since_ms, now_ms, detail, key=(version,))
    row = _worded(replace(row, severity="warn", detail={**row.detail, "severity_now": "warn"}))
    return row, notification_of(row, "opened")


def sink_incident(
    sink: str, *, problem: str, given_up: bool, since_ms: int, now_ms: int
) -> tuple[IncidentRow, Notification]:
    """A sink does not take notifications. It is an incident of the `DEPLOYMENT`, told through the other sinks.

    Args:
        sink: its name in the settings.
        problem: what it said last.
        given_up: a notification will not be tried again.
        since_ms: wall clock of the first refusal in a row.
    """
    segment = sink_segment(sink)
    detail = {"sink": sink, "problem": problem, "given_up": given_up}
    return _opened(DEPLOYMENT, "sink", since_ms, now_ms, detail, key=(segment, since_ms), segment=segment)


def sink_segment(sink: str) -> str:
    """The segment of incidents about a sink, so that each sink has its own."""
    return f"sink={sink}"


def gap_incidents(model: str, gaps: Iterable[tuple[Gap, int]]) -> list[tuple[IncidentRow, Notification]]:
    """Records were lost before they could be read; for `Checkpoint.incidents` and `Checkpoint.outbox`.

    One incident for all gaps of a topic that have the same reason and fall into the same hour of the stream's time,
    whichever checkpoints bring them: the first is told, and it stays open for the hour. Each gap is a row of its own.

    Args:
        gaps: each with the event time of the newest record that was read of its partition; the wall clock where none
            was.
    """
    alike: dict[tuple[str, str, int], list[tuple[Gap, int]]] = {}
    for gap, time_ms in gaps:
        alike.setdefault((gap.partition.topic, gap.reason, time_ms // _HOUR_MS), []).append((gap, time_ms))
    return [_gap_incident(model, key, found) for key, found in sorted(alike.items(), key=lambda item: item[0])]


def _gap_incident(
    model: str, key: tuple[str, str, int], gaps: Sequence[tuple[Gap, int]]
) -> tuple[IncidentRow, Notification]:
    topic, reason, hour = key
    numbers = sorted({gap.partition.number for gap, _ in gaps})
    values: dict[str, object] = {"topic": topic, "partitions": ", ".join(map(str, numbers)), "reason": reason}
    lost = sum(max(gap.to_offset - gap.from_offset, 0) for gap, _ in gaps)
    if lost:
        values["lost"] = lost
    first_ms = min(time_ms for _, time_ms in gaps)
    detail = {
        "values": values,
        "problem": gaps[0][0].detail,
        "more": len(gaps) - 1,
        "last_active_ms": (hour + 1) * _HOUR_MS,
    }
    return _opened(model, "gap", first_ms, first_ms, detail, key=key)


def resolved(row: IncidentRow, now_ms: int) -> tuple[IncidentRow, Notification]:
    """The incident, and what to tell, when what it was about is over; for `Store.resolve_incident`."""
    # Never before it began, should the clock have been set back.
    end_ms = max(now_ms, row.onset_ms)
    over = replace(row, status="resolved", resolved_ms=end_ms, updated_ms=end_ms, revision=row.revision + 1)
    over = _worded(over)
    return over, notification_of(over, "resolved")


def _opened(
    model: str,
    kind: str,
    since_ms: int,
    now_ms: int,
    detail: Mapping[str, object],
    *,
    key: Sequence[str | int] = (),
    segment: str = "",
) -> tuple[IncidentRow, Notification]:
    since_ms = min(since_ms, now_ms)
    identity = json.dumps([model, kind, *(key or (since_ms, now_ms))])
    row = IncidentRow(
        id=hashlib.sha256(identity.encode()).hexdigest()[:12],
        model=model,
        kind=kind,
        space="",
        segment=segment,
        severity="page",
        status="open",
        opened_ms=now_ms,
        onset_ms=since_ms,
        updated_ms=now_ms,
        resolved_ms=None,
        revision=1,
        reference=0,
        title="",
        text="",
        detail={**detail, "severity_now": "page"},
    )
    row = _worded(row)
    return row, notification_of(row, "opened")


def _worded(row: IncidentRow) -> IncidentRow:
    row = replace(row, title=title_of(row))
    return replace(row, text=text_of_incident(row))
