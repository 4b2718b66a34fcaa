"""Rows of rows.py as columns of a table, and back. Texts that a database refuses are made acceptable here, once.

Notifications and the small open dictionaries (kept fields, details) are stored as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from connectors.database.rows import (
    BlockStatRow,
    Closure,
    DeploymentRow,
    FoldState,
    FraudHit,
    GapRow,
    HalfRow,
    IncidentRow,
    KeptRecord,
    LabelledRecord,
    LabelRow,
    NewLabel,
    NewTruth,
    OutboxRow,
    PartitionState,
    ReadingRow,
    ReferenceRow,
    SummaryDelta,
    ThinnedKeys,
    TruthRow,
    VerdictRow,
)
from connectors.notification import Notification
from connectors.records import DeadLetter, Gap, Partition

Columns = dict[str, Any]
Row = TypeVar("Row")

# A merged summary comes from all partitions: it names none.
MERGED = Partition("", -1)


def rows_of(result: Iterable[Any], make: Callable[[Any], Row]) -> list[Row]:
    """Every row of a result through ``make``."""
    return [make(row) for row in result]


def clean(value: str) -> str:
    """The text without what a database cannot hold: NUL (PostgreSQL) and lone surrogates (no UTF-8 has them).

    The same text always becomes the same text, so that keys stay keys.
    """
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def to_json(value: object) -> str:
    """JSON text. What JSON cannot say is said as text; NaN and infinity become null."""
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (ValueError, OverflowError, TypeError):
        # Integers beyond 64 bits, lone surrogates, keys that are no texts: rare, and Python's own encoder takes them.
        return json.dumps(value, default=str, skipkeys=True)


def from_json(text: str) -> Any:
    """The value of a JSON text written by `to_json`."""
    return json.loads(text)


def notification_to_json(notification: Notification) -> str:
    """The notification as JSON text."""
    return msgspec.json.encode(_clean_notification(notification)).decode()


def notification_from_json(text: str) -> Notification:
    """The notification in a JSON text, with every field checked.

    Raises:
        msgspec.ValidationError: a field is missing or of another type.
    """
    return msgspec.json.decode(text, type=Notification)


def _clean_notification(notification: Notification) -> Notification:
    values = {clean(key): clean(value) for key, value in notification.values.items()}
    texts: dict[str, Any] = {
        name: clean(getattr(notification, name))
        for name in ("id", "incident", "group_key", "model", "kind", "space", "segment", "title", "text")
    }
    return dataclasses.replace(notification, values=values, **texts)


def _number(value: float | None) -> float | None:
    # SQLite stores NaN as NULL; doing it here makes PostgreSQL do the same.
    return None if value is None or math.isnan(value) else float(value)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def partition_key(row: Any) -> tuple[str, int]:
    """Sort key of anything with a partition: every transaction takes its rows in this order, so none wait in a ring."""
    return (row.partition.topic, row.partition.number)


def delta_columns(model: str, delta: SummaryDelta) -> Columns:
    return {
        "model": model,
        "block": delta.block,
        "space": delta.space,
        "segment": clean(delta.segment),
        "reference": delta.reference,
        "topic": delta.partition.topic,
        "number": delta.partition.number,
        "first_offset": delta.first_offset,
        "blob": delta.blob,
    }


def delta_row(row: Any) -> SummaryDelta:
    return SummaryDelta(
        row.space, row.segment, row.block, row.reference, Partition(row.topic, row.number), row.first_offset, row.blob
    )


def thinned_columns(model: str, keys: ThinnedKeys) -> Columns:
    return {
        "model": model,
        "topic": keys.partition.topic,
        "number": keys.partition.number,
        "block": keys.block,
        "first_offset": keys.first_offset,
        "blob": keys.hashes,
    }


def thinned_row(row: Any) -> ThinnedKeys:
    return ThinnedKeys(Partition(row.topic, row.number), row.block, row.first_offset, row.blob)


def half_columns(model: str, half: HalfRow) -> Columns:
    return {
        "model": model,
        "topic": half.partition.topic,
        "number": half.partition.number,
        "position": half.offset,
        "blob": half.blob,
    }


def half_row(row: Any) -> HalfRow:
    return HalfRow(Partition(row.topic, row.number), row.position, row.blob)


def gap_columns(model: str, gap: Gap, noticed_ms: int) -> Columns:
    return {
        "model": model,
        "topic": gap.partition.topic,
        "number": gap.partition.number,
        "from_offset": gap.from_offset,
        "to_offset": gap.to_offset,
        "reason": gap.reason,
        "detail": clean(gap.detail),
        "noticed_ms": noticed_ms,
    }


def gap_row(row: Any) -> GapRow:
    partition = Partition(row.topic, row.number)
    return GapRow(Gap(partition, row.from_offset, row.to_offset, row.reason, row.detail), row.noticed_ms)


def summary_columns(model: str, merged: SummaryDelta, stored_ms: int) -> Columns:
    return {
        "model": model,
        "space": merged.space,
        "segment": clean(merged.segment),
        "block": merged.block,
        "reference": merged.reference,
        "blob": merged.blob,
        "stored_ms": stored_ms,
        "blocks": merged.blocks,
    }


def summary_row(row: Any) -> SummaryDelta:
    return SummaryDelta(row.space, row.segment, row.block, row.reference, MERGED, -1, row.blob, row.blocks)


def kept_columns(model: str, record: KeptRecord, stored_ms: int) -> Columns:
    return {
        "model": model,
        "space": record.space,
        "topic": record.partition.topic,
        "number": record.partition.number,
        "position": record.offset,
        "time_ms": record.time_ms,
        "block": record.block,
        "record_id": clean(record.id),
        "reason": record.reason,
        "score": _number(record.score),
        "p_value": _number(record.p_value),
        "reference": record.reference,
        "exemplar": record.exemplar,
        "prediction": None if record.prediction is None else clean(record.prediction),
        "confidence": _number(record.confidence),
        "segments": to_json(record.segments),
        "fields": to_json(record.kept),
        "flagged": False,
        "stored_ms": stored_ms,
        "vector": record.vector,
        "row": record.row,
        "labels": record.labels,
        "detail": to_json(record.detail) if record.detail else "",
    }


def kept_row(row: Any) -> KeptRecord:
    return KeptRecord(
        Partition(row.topic, row.number),
        row.position,
        row.time_ms,
        row.space,
        row.block,
        row.record_id,
        row.reason,
        _nan(row.score),
        _nan(row.p_value),
        row.reference,
        row.exemplar,
        row.prediction,
        row.confidence,
        from_json(row.segments),
        from_json(row.fields),
        bool(row.flagged),
        row.vector,
        row.row,
        row.labels,
        from_json(row.detail) if row.detail else {},
    )


def fraud_hit(row: Any) -> FraudHit:
    probability = from_json(row.detail).get("probability") if row.detail else None
    return FraudHit(
        row.space,
        Partition(row.topic, row.number),
        row.position,
        row.row,
        _nan(row.score),
        _nan(probability),
        row.labels,
        from_json(row.segments),
    )


def letter_columns(model: str, letter: DeadLetter, stored_ms: int) -> Columns:
    return {
        "model": model,
        "topic": letter.partition.topic,
        "number": letter.partition.number,
        "position": letter.offset,
        "time_ms": letter.time_ms,
        "reason": letter.reason,
        "detail": clean(letter.detail),
        "payload": letter.payload,
        "size": letter.size,
        "published": False,
        "stored_ms": stored_ms,
        "row": letter.row,
        "block": letter.block,
    }


def letter_row(row: Any) -> DeadLetter:
    return DeadLetter(
        Partition(row.topic, row.number),
        row.position,
        row.time_ms,
        row.reason,
        row.detail,
        row.payload,
        row.size,
        row.row,
        row.block,
    )


def partition_state(row: Any) -> PartitionState:
    return PartitionState(
        Partition(row.topic, row.number),
        row.next_offset,
        row.max_time_ms,
        row.records,
        row.dead,
        row.late,
        row.topic_id,
        row.idle_offset,
        row.advanced_ms,
        row.closed_late,
        row.scores,
        row.from_offset,
    )


def state_columns(model: str, state: FoldState, version: int) -> Columns:
    return {
        "model": model,
        "space": state.space,
        "segment": clean(state.segment),
        "reference": state.reference,
        "written": version,
        "blob": state.blob,
    }


def state_row(row: Any) -> FoldState:
    return FoldState(row.space, row.segment, row.reference, row.blob)


_READING_NUMBERS = ("statistic", "strength", "threshold", "warn_threshold", "effect")
_READING_FIELDS = tuple(ReadingRow.__dataclass_fields__)


def reading_columns(model: str, reading: ReadingRow, stored_ms: int) -> Columns:
    columns: Columns = {name: getattr(reading, name) for name in _READING_FIELDS}
    columns.update({name: _number(columns[name]) for name in _READING_NUMBERS})
    columns.update(
        model=model,
        segment=clean(reading.segment),
        page=bool(reading.page),
        warn=bool(reading.warn),
        stored_ms=stored_ms,
    )
    return columns


def reading_row(row: Any) -> ReadingRow:
    values = {name: getattr(row, name) for name in _READING_FIELDS}
    values.update({name: _nan(values[name]) for name in _READING_NUMBERS})
    return ReadingRow(**values)


_INCIDENT_FIELDS = tuple(IncidentRow.__dataclass_fields__)


def incident_columns(incident: IncidentRow) -> Columns:
    columns: Columns = {name: getattr(incident, name) for name in _INCIDENT_FIELDS}
    columns.update({name: clean(columns[name]) for name in ("segment", "title", "text")})
    columns["detail"] = to_json(incident.detail)
    return columns


def incident_row(row: Any) -> IncidentRow:
    values = {name: getattr(row, name) for name in _INCIDENT_FIELDS}
    values["detail"] = from_json(row.detail)
    return IncidentRow(**values)


def outbox_columns(sink: str, notification: Notification, stored_ms: int) -> Columns:
    return {
        "sink": sink,
        "notification_id": clean(notification.id),
        "incident": clean(notification.incident),
        "body": notification_to_json(notification),
        "attempts": 0,
        "due_ms": 0,
        "status": "pending",
        "error": "",
        "stored_ms": stored_ms,
        "model": clean(notification.model),
        "severity": notification.severity,
        "event": clean(notification.values.get("event", "")),
    }


def outbox_row(row: Any) -> OutboxRow:
    return OutboxRow(
        row.sink, notification_from_json(row.body), row.attempts, row.due_ms, row.status, row.error, row.stored_ms
    )


def block_stat_columns(model: str, row: BlockStatRow, stored_ms: int) -> Columns:
    names = ("space", "block", "start_ms", "end_ms", "reference", "records", "late", "dead")
    columns: Columns = {name: getattr(row, name) for name in names}
    columns |= {f"surprise_{number}": count for number, count in enumerate(row.surprise)}
    return columns | {"model": model, "confidence": _number(row.confidence), "stored_ms": stored_ms}


_VERDICT_FIELDS = tuple(VerdictRow.__dataclass_fields__)
_VERDICT_NUMBERS = tuple(name for name, of in VerdictRow.__dataclass_fields__.items() if of.type == "float")


def verdict_columns(model: str, verdict: VerdictRow, stored_ms: int) -> Columns:
    columns: Columns = {name: getattr(verdict, name) for name in _VERDICT_FIELDS}
    columns |= {name: _number(columns[name]) for name in _VERDICT_NUMBERS}
    reasons = to_json([clean(reason) for reason in verdict.reasons])
    return columns | {"model": model, "reasons": reasons, "stored_ms": stored_ms}


def verdict_row(row: Any) -> VerdictRow:
    values = {name: getattr(row, name) for name in _VERDICT_FIELDS}
    values |= {name: _nan(values[name]) for name in _VERDICT_NUMBERS}
    return VerdictRow(**(values | {"reasons": tuple(from_json(row.reasons))}))


def deployment_columns(model: str, row: DeploymentRow, stored_ms: int) -> Columns:
    return {
        "model": model,
        "version": clean(row.version),
        "block": row.block,
        "start_ms": row.start_ms,
        "stored_ms": stored_ms,
    }


def closure_columns(model: str, closure: Closure) -> Columns:
    ends = [[topic, number, offset] for (topic, number), offset in sorted(closure.next_offsets.items())]
    return {
        "model": model,
        "block": closure.block,
        "reason": closure.reason,
        "next_offsets": to_json(ends),
        "closed_at_ms": closure.closed_at_ms,
    }


def closure_row(row: Any) -> Closure:
    ends: Sequence[tuple[str, int, int]] = from_json(row.next_offsets)
    offsets: Mapping[Partition, int] = {Partition(topic, number): offset for topic, number, offset in ends}
    return Closure(row.block, row.reason, dict(offsets), row.closed_at_ms)


_RECORD = ("topic", "number", "position", "row", "event_ms", "entity", "vector", "signals")
KNOWN_OF_LABELS = (*_RECORD, "probability", "p_value", "scored_with", "selected", "chance", "made_with")


def label_columns(model: str, label: NewLabel, received_ms: int, version: int) -> Columns:
    return {
        "model": model,
        "record_id": clean(label.record_id),
        "label": label.label,
        "source": label.source,
        "by": clean(label.by),
        "origin": clean(label.origin),
        "time_ms": label.time_ms,
        "received_ms": received_ms,
        "version": version,
        "confidence": label.confidence,
        **(dict.fromkeys(KNOWN_OF_LABELS) if label.known is None else known_columns(label.known)),
    }


def known_columns(known: LabelledRecord) -> Columns:
    return {
        "topic": clean(known.partition.topic),
        "number": known.partition.number,
        "position": known.offset,
        "row": known.row,
        "event_ms": known.event_ms,
        "entity": clean(known.entity),
        "vector": known.vector,
        "signals": known.signals,
        "probability": _number(known.probability),
        "p_value": _number(known.p_value),
        "scored_with": known.scored_with,
        "selected": known.selected,
        "chance": _number(known.chance),
        "made_with": clean(known.made_with),
    }


def label_row(row: Any) -> LabelRow:
    known = None
    if row.version:
        known = LabelledRecord(
            Partition(row.topic, row.number),
            row.position,
            row.row,
            row.event_ms,
            row.entity,
            row.vector,
            row.signals,
            _nan(row.probability),
            _nan(row.p_value),
            row.scored_with,
            row.selected,
            _nan(row.chance),
            row.made_with,
        )
    said = NewLabel(row.record_id, row.label, row.time_ms, row.source, row.confidence, row.by, row.origin, known)
    return LabelRow(row.id, row.model, row.version, row.received_ms, said)


_REFERENCE_FIELDS = tuple(ReferenceRow.__dataclass_fields__)


def reference_columns(row: ReferenceRow) -> Columns:
    return {name: getattr(row, name) for name in _REFERENCE_FIELDS}


def reference_row(row: Any) -> ReferenceRow:
    return ReferenceRow(**{name: getattr(row, name) for name in _REFERENCE_FIELDS})


def truth_columns(model: str, truth: NewTruth, received_ms: int, version: int) -> Columns:
    return {
        "model": model,
        "record_id": clean(truth.record_id),
        "truth": clean(truth.truth),
        "origin": clean(truth.origin),
        "time_ms": truth.time_ms,
        "received_ms": received_ms,
        "version": version,
        "weight": truth.weight,
        **answer_columns(truth.answer, truth.confidence, truth.event_ms),
    }


def answer_columns(answer: str | None, confidence: float, event_ms: int | None) -> Columns:
    return {
        "answer": None if answer is None else clean(answer),
        "confidence": _number(confidence),
        "event_ms": event_ms,
    }


def truth_row(row: Any) -> TruthRow:
    said = NewTruth(
        row.record_id,
        row.truth,
        row.time_ms,
        row.weight,
        row.origin,
        row.answer,
        _nan(row.confidence),
        row.event_ms,
    )
    return TruthRow(row.id, row.model, row.version, row.received_ms, said)
