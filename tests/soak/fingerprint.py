"""Everything that a run left in the database and that must not depend on how it went, row by row.

Left out is what the wall clock stamps (when a row was stored, when a notification was sent), the numbers that the
database gives to rows, and what only says how the work was cut: the version of the fold, which closures there were,
which partition was last seen idle. Incidents that the worker opens by the wall clock (a source that is down) come and
go with the disturbance, and are left out with their notifications.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, create_engine, select

from connectors.database import schema
from connectors.database.rows import AnswersRow
from connectors.records import Partition
from monitor.answers import RememberedAnswers
from monitor.incidents import OPERATIONAL

MUST_BE_EMPTY = ("summary_deltas", "thinned_keys", "pending_halves")
# Table: the columns that identify a row, and those that must be the same too.
KEPT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "partitions": (
        ("model", "topic", "number"),
        ("next_offset", "max_time_ms", "records", "dead", "late", "topic_id", "closed_late"),
    ),
    "summaries": (("model", "space", "segment", "block", "reference"), ("blob",)),
    "fold_states": (("model", "space", "segment", "reference"), ("blob",)),
    "folds": (("model",), ("next_block",)),
    "readings": (
        ("model", "space", "segment", "block", "channel", "reference"),
        (
            *("start_ms", "end_ms", "statistic", "strength", "threshold", "warn_threshold", "n", "effect"),
            *("window_start_ms", "onset_ms", "page", "warn", "onset_from_ms", "onset_to_ms"),
        ),
    ),
    "incidents": (
        ("id",),
        (
            *("model", "kind", "space", "segment", "severity", "status", "opened_ms", "onset_ms", "updated_ms"),
            *("resolved_ms", "revision", "reference", "title", "text", "detail"),
        ),
    ),
    "block_stats": (
        ("model", "space", "block", "reference"),
        ("start_ms", "end_ms", "records", "late", "dead", "confidence", *(f"surprise_{n}" for n in range(10))),
    ),
    "verdicts": (
        ("model", "block"),
        tuple(column.name for column in schema.verdicts.c if column.name not in ("id", "model", "block", "stored_ms")),
    ),
    "truths": (
        ("model", "origin"),
        ("record_id", "truth", "time_ms", "weight", "answer", "confidence", "event_ms"),
    ),
    "deployments": (("model", "version"), ("block", "start_ms")),
    "kept": (
        ("model", "space", "topic", "number", "position", "row"),
        (
            *("time_ms", "block", "record_id", "reason", "score", "p_value", "reference", "exemplar", "prediction"),
            *("confidence", "segments", "fields", "flagged", "vector", "labels", "detail"),
        ),
    ),
    "dead_letters": (
        ("model", "topic", "number", "position", "row", "reason"),
        ("time_ms", "detail", "payload", "size"),
    ),
    "dead_letter_counts": (("model", "topic", "number", "reason"), ("count",)),
    "outbox": (("sink", "notification_id"), ("incident", "body")),
    "gaps": (("model", "topic", "number", "from_offset", "to_offset", "reason"), ("detail",)),
    "formats": (("model", "topic"), ("format",)),
}

Row = tuple[tuple[Any, ...], dict[str, Any]]
Fingerprint = dict[str, list[Row]]


def fingerprint(url: str) -> Fingerprint:
    """The rows of every table of the database at ``url``, in the order of their keys."""
    engine = create_engine(url)
    found: Fingerprint = {}
    try:
        with engine.connect() as connection:
            incidents = schema.incidents
            query = select(incidents.c.id).where(incidents.c.kind.in_(OPERATIONAL))
            left_out = set(connection.execute(query).scalars())
            for name, (key, values) in KEPT.items():
                columns = schema.metadata.tables[name].c
                rows = connection.execute(select(*(columns[column] for column in (*key, *values))))
                found[name] = sorted(
                    (
                        (tuple(row[: len(key)]), dict(zip(values, map(_plain, row[len(key) :]), strict=True)))
                        for row in rows
                        if not _is_of(name, key, values, row, left_out)
                    ),
                    key=lambda entry: tuple(map(str, entry[0])),
                )
            for name in MUST_BE_EMPTY:
                table = schema.metadata.tables[name]
                rows = connection.execute(select(*table.primary_key.columns))
                found[name] = sorted(((tuple(row), {}) for row in rows), key=lambda entry: tuple(map(str, entry[0])))
            found["answers"] = _answers(connection)
    finally:
        engine.dispose()
    return found


def _answers(connection: Connection) -> list[Row]:
    """What is remembered of each record, however checkpoints cut them into rows."""
    found: list[Row] = []
    for stored in connection.execute(select(schema.answers)).all():
        place = Partition(stored.topic, stored.number)
        numbers = (stored.first_offset, stored.from_ms, stored.to_ms, stored.records)
        row = RememberedAnswers(AnswersRow(place, *numbers, bytes(stored.ids), bytes(stored.blob)))
        for at, key in enumerate(row.hashes.tolist()):
            known = row.record(at)
            found.append(
                (
                    (stored.model, *place, key, known.event_ms, known.answer, repr(known.confidence)),
                    {"one of these": True},
                )
            )
    found.sort(key=lambda entry: tuple(map(str, entry[0])))
    # The same record may have been sent twice.
    return [((*key, number), value) for number, (key, value) in _numbered(found)]


def _numbered(rows: list[Row]) -> Iterator[tuple[int, Row]]:
    """Each row with its place among those that are alike."""
    seen: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        yield seen[row[0]], row
        seen[row[0]] += 1


def first_difference(expected: Fingerprint, found: Fingerprint) -> str:
    """The first row in which two runs differ, with both values; "" where they are the same to the last byte."""
    for name in found:
        if name in MUST_BE_EMPTY and found[name]:
            return f"{name} should be empty and has {len(found[name])} rows, such as {found[name][0][0]}"
    for name in (*KEPT, "answers"):
        wanted, has = _by_key(expected[name]), _by_key(found[name])
        for key in sorted(set(wanted) | set(has), key=lambda key: tuple(map(str, key))):
            if key not in has:
                return f"{name} {key} is missing ({len(has)} rows of {len(wanted)}); expected {_short(wanted[key])}"
            if key not in wanted:
                return f"{name} {key} should not be there ({len(has)} rows, {len(wanted)} expected): {_short(has[key])}"
            for column, value in wanted[key].items():
                if has[key][column] != value:
                    return f"{name} {key}: {column} is {_short(has[key][column])}, expected {_short(value)}"
    return ""


def _is_of(name: str, key: tuple[str, ...], values: tuple[str, ...], row: Any, left_out: set[str]) -> bool:
    incident = {"incidents": "id", "outbox": "incident"}.get(name)
    return incident is not None and row[(*key, *values).index(incident)] in left_out


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _by_key(rows: list[Row]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = dict(rows)
    assert len(found) == len(rows), "a key of the fingerprint does not identify its row"
    return found


def _short(value: Any) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-150:]} ({len(text)} characters)"
