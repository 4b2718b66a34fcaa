"""Bytes to columns: decode the records of a batch and take out the fields that the settings name.

    RawBatch ──► parse each value (msgspec) ──► one column per mapped field ──► EventBatch
                        │                              │
                        └────── DeadLetter ◄───────────┘   a record that cannot be used never stops the others

The fields that are needed are known before the first record, so the parser is compiled for them: a msgspec struct that
skips everything else. A pointer that goes through an array, or a record that is not shaped as expected, takes the slow
way and gives the same result. What becomes of a record depends on the record, its position and the clock's bound alone.

Reasons of dead letters, in the order in which they are looked for:

    tombstone        the record has no value
    too_large        the value is longer than max_bytes
    bad_json         the value is not JSON (RFC 8259)
    bad_msgpack      the value is not MessagePack
    missing_field    a field that every record needs is absent or null
    bad_value        a field holds something of another type than needed
    no_time          no time is mapped and the source gives none
    bad_time         the time is not in the unit that the settings say
    time_past        the time lies more than max_past_days back
    time_future      the time lies more than max_future_s ahead
    bad_vector       not numbers, or bytes that are no whole number of them
    wrong_dimension  a vector of another length than the reference's
    not_finite       a vector or table with NaN or infinity
    zero_vector      a vector of zeros, which has no direction

The last four, and missing_field and bad_value of embedded fields, are found by the embedders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

import msgspec
import numpy as np

from connectors.records import DeadLetter, RawBatch
from monitor.columns import END_OF_TIME_MS, Int64s, Problems, to_numbers, to_texts, to_times_ms
from monitor.event import EventBatch
from monitor.parsing import REFUSED, BrokenValue, Parser
from monitor.pointers import Place, parse_place, replace
from monitor.record import RecordSettings, TimeSettings, embedded_place

__all__ = ["DEAD_LETTER_REASONS", "NO_SEGMENT", "REDACTED", "Decoder", "RecordSettings", "TimeSettings"]

DEAD_LETTER_REASONS: Final = (
    "tombstone",
    "too_large",
    "bad_json",
    "bad_msgpack",
    "missing_field",
    "bad_value",
    "no_time",
    "bad_time",
    "time_past",
    "time_future",
    "bad_vector",
    "wrong_dimension",
    "not_finite",
    "zero_vector",
)
REDACTED: Final = "[redacted]"
NO_SEGMENT: Final = "(none)"  # the segment of a record without the field

MAX_ID_CHARS: Final = 1024
MAX_LABEL_CHARS: Final = 256  # predictions, labels and segments are names; more is cut off
_DAY_MS: Final = 86_400_000
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


class Decoder:
    """Decodes the records of one model.

    Args:
        settings: where things stand in a record.
        fields: the fields that the embedders need, as in their settings.
        payload_bytes: how much of a dead letter's value is kept.

    Raises:
        InvalidSettings: a field that the codec does not have.
    """

    def __init__(self, settings: RecordSettings, fields: Sequence[str], *, payload_bytes: int = 4096) -> None:
        self.settings = settings
        self._payload_bytes = payload_bytes
        self._embedded = tuple(dict.fromkeys(fields))
        self._redacted = [parse_place(name) for name in settings.redact]
        self._kept_places = [(key, parse_place(name)) for key, name in settings.keep.items()]
        places = [parse_place(name) for _, name in settings.all_fields()]
        places += [embedded_place(settings.codec, name) for name in self._embedded]
        self._needs_headers = any(place.kind == "header" for place in places)
        self._parser = Parser(settings.codec, [place.tokens for place in places if place.kind == "pointer"])

    def decode(self, batch: RawBatch, now_ms: int | None) -> EventBatch:
        """Decode a batch.

        Args:
            batch: records of one partition.
            now_ms: stands in for the broker's time where there is none, to bound event times; None: no bound.

        Returns:
            The usable records, and a dead letter for each of the others, in the order of the offsets. Embedder fields
            that a record lacks are None in their column: the embedder decides whether it can do without.
        """
        documents, broken = self._documents(batch.values)
        dead = [self._dead_letter(batch, row, *problem) for row, problem in broken.items()]
        if broken:
            batch = _without(batch, broken)
        rows = _Rows(
            documents=documents,
            headers=[dict(headers) for headers in batch.headers] if self._needs_headers else [],
            keys=batch.keys,
            bodies=batch.values,
        )
        found = Problems()
        settings = self.settings
        ids = self._ids(batch, rows, found)
        time_ms = self._times(batch, rows, now_ms, found)
        keys = self._keys(rows, found)
        confidence = None
        if settings.confidence is not None:
            confidence = to_numbers(settings.confidence, self._column(settings.confidence, rows, found), found=found)
        predictions = self._words(settings.prediction, rows, found)
        labels = self._words(settings.label, rows, found)
        segments: dict[str, Sequence[str]] = {
            key: [
                text or NO_SEGMENT
                for text in (
                    predictions
                    if predictions is not None and name == settings.prediction
                    else self._words(name, rows, found)
                )
            ]
            for key, name in settings.segments.items()
        }
        fields: dict[str, Sequence[Any]] = {name: self._column(name, rows, found) for name in self._embedded}
        kept = _Kept(self, rows) if settings.keep else None
        events = EventBatch(
            partition=batch.partition,
            offsets=batch.offsets,
            time_ms=time_ms,
            ids=ids,
            keys=keys,
            segments=segments,
            predictions=predictions,
            confidence=confidence,
            labels=labels,
            kept=kept,
            fields=fields,
            dead=dead,
        )
        if not found.problems:
            return events
        dead += [self._dead_letter(batch, row, *problem) for row, problem in found.problems.items()]
        dead.sort(key=lambda letter: letter.offset)
        good = np.setdiff1d(np.arange(len(batch)), np.fromiter(found.problems, dtype=np.int64))
        return _chosen_events(events, good)

    def dead_letter(self, batch: RawBatch, offset: int, reason: str, detail: str) -> DeadLetter:
        """The dead letter of a record that was found unusable after it was decoded."""
        return self._dead_letter(batch, int(np.searchsorted(batch.offsets, offset)), reason, detail)

    def _dead_letter(self, batch: RawBatch, row: int, reason: str, detail: str) -> DeadLetter:
        value = batch.values[row]
        return DeadLetter(
            partition=batch.partition,
            offset=int(batch.offsets[row]),
            time_ms=int(batch.timestamps_ms[row]),
            reason=reason,
            detail=detail,
            payload=b"" if value is None else self._payload(value),
            size=0 if value is None else len(value),
        )

    def _payload(self, value: bytes) -> bytes:
        """The beginning of the value without redacted fields; nothing where they cannot be told from the rest."""
        hidden = [place.tokens for place in self._redacted if place.kind == "pointer"]
        if hidden:
            if len(value) > self.settings.max_bytes:
                return b""
            try:
                document = self._parser.parse_whole(value)
                for tokens in hidden:
                    document = replace(document, tokens, REDACTED)
                encode = msgspec.json.encode if self.settings.codec == "json" else msgspec.msgpack.encode
                value = encode(document)
            except (*REFUSED, TypeError, OverflowError):
                return b""
        return bytes(value[: self._payload_bytes])

    def _documents(self, values: Sequence[bytes | None]) -> tuple[list[Any], dict[int, tuple[str, str]]]:
        """The parsed values of the rows that can be parsed (none for codec raw), and what is wrong with the others."""
        broken: dict[int, tuple[str, str]] = {}
        limit = self.settings.max_bytes
        parses, parse = self.settings.codec != "raw", self._parser.parse
        documents: list[Any] = []
        for row, value in enumerate(values):
            if value is None:
                broken[row] = ("tombstone", "The record has no value.")
            elif len(value) > limit:
                broken[row] = ("too_large", f"{len(value)} bytes; max_bytes is {limit}.")
            elif parses:
                try:
                    documents.append(parse(value))
                except BrokenValue as error:
                    broken[row] = (error.reason, error.detail)
        return documents, broken

    def _column(self, name: str, rows: _Rows, found: Problems) -> list[Any]:
        """The raw values of a field, None where there is none. Headers and keys become text."""
        place = parse_place(name)
        if place.kind == "pointer":
            return self._parser.column(place.tokens, rows.documents)
        if place.kind == "body":
            return list(rows.bodies)
        values: list[str | None] = []
        for row, value in enumerate(self._encoded(place, rows)):
            try:
                values.append(None if value is None else str(value, "utf-8"))
            except UnicodeDecodeError:
                values.append(None)
                found.add(row, "bad_value", f"{name} is not UTF-8 text.")
        return values

    @staticmethod
    def _encoded(place: Place, rows: _Rows) -> Sequence[bytes | None]:
        """A header of the records, or their keys, still as bytes."""
        if place.kind == "header":
            return [headers.get(place.header) for headers in rows.headers]
        return rows.keys

    def _ids(self, batch: RawBatch, rows: _Rows, found: Problems) -> list[str]:
        name = self.settings.id
        if name is None:
            prefix = f"{batch.partition.topic}/{batch.partition.number}/"
            return [f"{prefix}{offset}" for offset in batch.offsets.tolist()]
        ids: list[str] = []
        for row, text in enumerate(to_texts(name, self._column(name, rows, found), kinds=(str, int), found=found)):
            if text is None:
                found.add(row, "missing_field", f"{name} (id) is missing.")
            elif len(text) > MAX_ID_CHARS:
                found.add(
                    row, "bad_value", f"{name} (id) has {len(text)} characters; at most {MAX_ID_CHARS} are allowed."
                )
            ids.append(text or "")
        return ids

    def _keys(self, rows: _Rows, found: Problems) -> Sequence[str | None] | None:
        """Whom each record belongs to. Headers and keys of records may be any bytes: they are compared, not read."""
        name = self.settings.key
        if name is None:
            return None
        place = parse_place(name)
        if place.kind == "pointer":
            return to_texts(name, self._column(name, rows, found), kinds=(str, int, float, bool), found=found)
        encoded = self._encoded(place, rows)
        return [None if value is None else str(value, "utf-8", "surrogateescape") for value in encoded]

    @overload
    def _words(self, name: None, rows: _Rows, found: Problems) -> None: ...
    @overload
    def _words(self, name: str, rows: _Rows, found: Problems) -> list[str | None]: ...
    def _words(self, name: str | None, rows: _Rows, found: Problems) -> list[str | None] | None:
        """Predictions, labels, segments: short texts, or None where absent."""
        if name is None:
            return None
        words = to_texts(name, self._column(name, rows, found), kinds=(str, int, float, bool), found=found)
        if max((len(word) for word in words if word), default=0) > MAX_LABEL_CHARS:
            return [word and word[:MAX_LABEL_CHARS] for word in words]
        return words

    def _times(self, batch: RawBatch, rows: _Rows, now_ms: int | None, found: Problems) -> Int64s:
        broker = batch.timestamps_ms
        settings = self.settings.time
        if settings is None:
            for row in np.flatnonzero(broker < 0).tolist():
                found.add(row, "no_time", "The source gives no time; map one: record: time: /ts.")
            return broker.copy()
        values = self._column(settings.path, rows, found)
        times = to_times_ms(settings.path, values, unit=settings.unit, found=found)
        if now_ms is None:
            oldest = np.where(broker >= 0, broker - self._past_ms, 0)
            newest = np.where(broker >= 0, broker + self._future_ms, END_OF_TIME_MS - 1)
        else:
            anchor = np.where(broker >= 0, broker, now_ms)
            oldest, newest = anchor - self._past_ms, anchor + self._future_ms
        for row in np.flatnonzero(times < np.maximum(oldest, 0)).tolist():
            found.add(row, "time_past", f"{settings.path} lies more than {self.settings.max_past_days:g} days back.")
        for row in np.flatnonzero(times > newest).tolist():
            found.add(row, "time_future", f"{settings.path} lies more than {self.settings.max_future_s:g} s ahead.")
        return times

    def kept_fields(self, rows: _Rows, row: int) -> dict[str, Any]:
        """The fields that may be stored of one record: redacted, cut to the excerpt, JSON-compatible."""
        return {name: self._kept_value(place, rows, row) for name, place in self._kept_places}

    def _kept_value(self, place: Place, rows: _Rows, row: int) -> Any:
        if place.kind == "pointer":
            value = self._parser.column(place.tokens, [rows.documents[row]])[0]
        else:
            encoded = rows.keys[row] if place.kind == "key" else rows.headers[row].get(place.header)
            value = None if encoded is None else str(encoded, "utf-8", "replace")
        if value is None:
            return None
        for hidden in self._redacted:
            if hidden.kind != place.kind:
                continue
            if hidden == place or (place.kind == "pointer" and place.tokens[: len(hidden.tokens)] == hidden.tokens):
                return REDACTED
            if place.kind == "pointer" and hidden.tokens[: len(place.tokens)] == place.tokens:
                value = replace(value, hidden.tokens[len(place.tokens) :], REDACTED)
        return _storable(value, self.settings.excerpt)

    @property
    def _past_ms(self) -> int:
        return int(min(self.settings.max_past_days * _DAY_MS, END_OF_TIME_MS))

    @property
    def _future_ms(self) -> int:
        return int(min(self.settings.max_future_s * 1000, END_OF_TIME_MS))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The parts of a batch's records that columns are taken from."""

    documents: list[Any]
    headers: list[dict[str, bytes]]
    keys: Sequence[bytes | None]
    bodies: Sequence[bytes | None]


def _without(batch: RawBatch, broken: Iterable[int]) -> RawBatch:
    good = np.setdiff1d(np.arange(len(batch)), np.fromiter(broken, dtype=np.int64))
    chosen = good.tolist()
    return RawBatch(
        partition=batch.partition,
        offsets=batch.offsets[good],
        timestamps_ms=batch.timestamps_ms[good],
        keys=[batch.keys[row] for row in chosen],
        values=[batch.values[row] for row in chosen],
        headers=[batch.headers[row] for row in chosen],
        next_offset=batch.next_offset,
    )


class _Kept(Sequence[dict[str, Any]]):
    """The kept fields of each record, made when they are asked for: few records of a batch are ever stored."""

    def __init__(self, decoder: Decoder, rows: _Rows, chosen: Int64s | None = None) -> None:
        self._decoder = decoder
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._rows.keys) if self._chosen is None else len(self._chosen)

    def take(self, chosen: Int64s) -> _Kept:
        return _Kept(self._decoder, self._rows, chosen if self._chosen is None else self._chosen[chosen])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = range(len(self))[index] if self._chosen is None else int(self._chosen[index])
        return self._decoder.kept_fields(self._rows, row)


def _storable(value: Any, excerpt: int) -> Any:
    """A value of a record as JSON that a database takes: no NaN, no NUL, no longer than the excerpt in characters."""
    if isinstance(value, str):
        text = value.replace("\0", "\ufffd")
        return text if len(text) <= excerpt else text[:excerpt] + "…"
    try:
        encoded = _ESCAPED_NUL.sub(rb"\1\\ufffd", msgspec.json.encode(value))
        if len(encoded) > excerpt:
            return encoded[:excerpt].decode("utf-8", "ignore") + "…"
        return msgspec.json.decode(encoded)
    except (*REFUSED, TypeError, OverflowError):  # a type that only MessagePack has
        return f"({type(value).__name__})"


def _chosen_events(events: EventBatch, rows: Int64s) -> EventBatch:
    chosen = rows.tolist()

    def pick(column: Sequence[Any]) -> list[Any]:
        return [column[row] for row in chosen]

    return EventBatch(
        partition=events.partition,
        offsets=events.offsets[rows],
        time_ms=events.time_ms[rows],
        ids=pick(events.ids),
        keys=None if events.keys is None else pick(events.keys),
        segments={name: pick(values) for name, values in events.segments.items()},
        predictions=None if events.predictions is None else pick(events.predictions),
        confidence=None if events.confidence is None else events.confidence[rows],
        labels=None if events.labels is None else pick(events.labels),
        kept=events.kept.take(rows) if isinstance(events.kept, _Kept) else events.kept,
        fields={name: pick(values) for name, values in events.fields.items()},
        dead=events.dead,
    )
