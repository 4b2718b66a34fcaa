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

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, overload

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from connectors.records import DeadLetter, RawBatch
from detectors.errors import InvalidSettings
from monitor.event import EventBatch
from monitor.pointers import (
    MISSING,
    FieldName,
    Place,
    Tokens,
    is_index,
    parse_place,
    replace,
    resolve,
)

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
_END_OF_TIME_MS: Final = 253_402_300_800_000  # the year 10000, where RFC 3339 ends
_DAY_MS: Final = 86_400_000

TimeUnit = Literal["s", "ms", "us", "ns", "rfc3339"]
Problem = tuple[str, str]  # reason and detail
Int64s = npt.NDArray[np.int64]
_AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NO_NUMBER_OF_JSON: Final = re.compile(rb"NaN|Infinity")
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_REFUSED: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class TimeSettings(BaseModel, frozen=True, extra="forbid"):
    """The event time of a record."""

    path: FieldName = Field(description="where it stands: a pointer, header:NAME or key")
    unit: TimeUnit = Field("ms", description="s, ms, us or ns since 1970, or rfc3339 text with its offset from UTC")


def _time(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _names(value: object) -> object:
    return {str(name): name for name in value} if isinstance(value, list | tuple) else value


class RecordSettings(BaseModel, frozen=True, extra="forbid"):
    """What is in a record. Fields are JSON pointers ("/input/text"), header:NAME or key."""

    codec: Literal["json", "msgpack", "raw"] = Field(
        "json", description="how values are encoded; raw: the value is the vector, all else stands in headers"
    )
    id: FieldName | None = Field(None, description="the record's id; without it topic/partition/offset")
    time: Annotated[TimeSettings | None, BeforeValidator(_time)] = Field(
        None, description="event time, a pointer (milliseconds) or {path, unit}; without it the broker's time"
    )
    prediction: FieldName | None = Field(None, description="what the model answered")
    confidence: FieldName | None = Field(None, description="how sure the model was, a number")
    label: FieldName | None = Field(None, description="what is true, where the record says so")
    segments: dict[str, FieldName] = Field(
        default_factory=dict, description="name: field; each value of it is watched by itself"
    )
    keep: Annotated[dict[str, FieldName], BeforeValidator(_names)] = Field(
        default_factory=dict, description="fields stored with a kept record: a list, or name: field"
    )
    redact: list[FieldName] = Field(
        default_factory=list, description="fields that are never stored, in kept records and dead letters alike"
    )
    excerpt: int = Field(2000, ge=1, le=1 << 20, description="most characters stored of one kept field")
    max_bytes: int = Field(1 << 20, ge=1, description="longest value in bytes that is decoded")
    max_past_days: float = Field(3650.0, gt=0, description="oldest event time, in days before the broker's time")
    max_future_s: float = Field(3600.0, ge=0, description="newest event time, in seconds after the broker's time")

    @model_validator(mode="after")
    def _fields_fit_the_codec(self) -> RecordSettings:
        for key, name in self._all_fields():
            _check_place(self.codec, key, name)
        return self

    def _all_fields(self) -> Iterable[tuple[str, str]]:
        named = {"id": self.id, "prediction": self.prediction, "confidence": self.confidence, "label": self.label}
        yield from ((key, name) for key, name in named.items() if name is not None)
        if self.time is not None:
            yield "time", self.time.path
        for group in ("segments", "keep"):
            yield from ((f"{group}.{key}", name) for key, name in getattr(self, group).items())
        yield from (("redact", name) for name in self.redact)


def _check_place(codec: str, key: str, name: str) -> None:
    kind = parse_place(name).kind
    if codec == "raw" and kind == "pointer":
        raise ValueError(f"{key}: a raw value has no fields; {name} must be header:NAME or key")
    if kind == "body":
        raise ValueError(
            f'{key}: the body is a vector, not a field; expected a pointer such as "/id", header:NAME or key'
        )


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
        places = [parse_place(name) for _, name in settings._all_fields()]
        places += [_embedded_place(settings.codec, name) for name in self._embedded]
        self._needs_headers = any(place.kind == "header" for place in places)
        self._shape = _Shape([place.tokens for place in places if place.kind == "pointer"])
        self._parse: Callable[[bytes], Any] | None = None
        self._parse_any: Callable[[bytes], Any] = msgspec.json.Decoder().decode
        if settings.codec == "json":
            self._parse = msgspec.json.Decoder(self._shape.type).decode
        elif settings.codec == "msgpack":
            self._parse = msgspec.msgpack.Decoder(self._shape.type).decode
            self._parse_any = msgspec.msgpack.Decoder().decode

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
        found = _Problems()
        settings = self.settings
        ids = self._ids(batch, rows, found)
        time_ms = self._times(batch, rows, now_ms, found)
        confidence = None
        if settings.confidence is not None:
            confidence = _numbers(settings.confidence, self._column(settings.confidence, rows, found), found)
        predictions = self._words(settings.prediction, rows, found)
        labels = self._words(settings.label, rows, found)
        segments: dict[str, Sequence[str]] = {
            key: [text if text is not None else "" for text in self._words(name, rows, found)]
            for key, name in settings.segments.items()
        }
        fields: dict[str, Sequence[Any]] = {name: self._column(name, rows, found) for name in self._embedded}
        kept = _Kept(self, rows) if settings.keep else None
        events = EventBatch(
            partition=batch.partition,
            offsets=batch.offsets,
            time_ms=time_ms,
            ids=ids,
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
                document = self._parse_any(value)
                for tokens in hidden:
                    document = replace(document, tokens, REDACTED)
                encode = msgspec.json.encode if self.settings.codec == "json" else msgspec.msgpack.encode
                value = encode(document)
            except (*_REFUSED, TypeError, OverflowError):
                return b""
        return bytes(value[: self._payload_bytes])

    def _documents(self, values: Sequence[bytes | None]) -> tuple[list[Any], dict[int, Problem]]:
        """The parsed values of the rows that can be parsed (none for codec raw), and what is wrong with the others."""
        broken: dict[int, Problem] = {}
        limit = self.settings.max_bytes
        parse = self._parse
        documents: list[Any] = []
        append = documents.append
        for row, value in enumerate(values):
            if value is None:
                broken[row] = ("tombstone", "The record has no value.")
            elif len(value) > limit:
                broken[row] = ("too_large", f"{len(value)} bytes; max_bytes is {limit}.")
            elif parse is not None:
                try:
                    append(parse(value))
                except _REFUSED:
                    try:
                        append(self._parse_slowly(value))
                    except _BrokenValue as error:
                        broken[row] = error.problem
        return documents, broken

    def _parse_slowly(self, value: bytes) -> Any:
        """A value that is broken, or only of another shape than the struct."""
        try:
            return self._shape.fill(self._parse_any(value))
        except _REFUSED as error:
            if self.settings.codec == "msgpack":
                raise _BrokenValue(("bad_msgpack", _what_is_wrong(value, error, "MessagePack"))) from error
            document = _parse_like_python(value, error)
            if document is MISSING:
                raise _BrokenValue(("bad_json", _what_is_wrong(value, error, "JSON"))) from error
            return self._shape.fill(document)

    def _column(self, name: str, rows: _Rows, found: _Problems) -> list[Any]:
        """The raw values of a field, None where there is none. Headers and keys become text."""
        place = parse_place(name)
        if place.kind == "pointer":
            return self._shape.column(place.tokens, rows.documents)
        if place.kind == "body":
            return list(rows.bodies)
        encoded: Sequence[bytes | None] = rows.keys
        if place.kind == "header":
            encoded = [headers.get(place.header) for headers in rows.headers]
        texts: list[str | None] = []
        for row, value in enumerate(encoded):
            try:
                texts.append(None if value is None else str(value, "utf-8"))
            except UnicodeDecodeError:
                texts.append(None)
                found.add(row, "bad_value", f"{name} is not UTF-8 text.")
        return texts

    def _ids(self, batch: RawBatch, rows: _Rows, found: _Problems) -> list[str]:
        name = self.settings.id
        if name is None:
            prefix = f"{batch.partition.topic}/{batch.partition.number}/"
            return [f"{prefix}{offset}" for offset in batch.offsets.tolist()]
        ids: list[str] = []
        for row, text in enumerate(_texts(self._column(name, rows, found), name, (str, int), found)):
            if text is None:
                found.add(row, "missing_field", f"{name} (id) is missing.")
            elif len(text) > MAX_ID_CHARS:
                found.add(
                    row, "bad_value", f"{name} (id) has {len(text)} characters; at most {MAX_ID_CHARS} are allowed."
                )
            ids.append(text or "")
        return ids

    @overload
    def _words(self, name: None, rows: _Rows, found: _Problems) -> None: ...
    @overload
    def _words(self, name: str, rows: _Rows, found: _Problems) -> list[str | None]: ...
    def _words(self, name: str | None, rows: _Rows, found: _Problems) -> list[str | None] | None:
        """Predictions, labels, segments: short texts, or None where absent."""
        if name is None:
            return None
        texts = _texts(self._column(name, rows, found), name, (str, int, float, bool), found)
        if max((len(text) for text in texts if text), default=0) > MAX_LABEL_CHARS:
            return [text and text[:MAX_LABEL_CHARS] for text in texts]
        return texts

    def _times(self, batch: RawBatch, rows: _Rows, now_ms: int | None, found: _Problems) -> Int64s:
        broker = batch.timestamps_ms
        settings = self.settings.time
        if settings is None:
            for row in np.flatnonzero(broker < 0).tolist():
                found.add(row, "no_time", "The source gives no time; map one: record: time: /ts.")
            return broker.copy()
        values = self._column(settings.path, rows, found)
        is_text = parse_place(settings.path).kind != "pointer"
        times = _times_ms(values, settings.unit, is_text=is_text, name=settings.path, found=found)
        if now_ms is None:
            oldest = np.where(broker >= 0, broker - self._past_ms, 0)
            newest = np.where(broker >= 0, broker + self._future_ms, _END_OF_TIME_MS - 1)
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
            value = self._shape.value(place.tokens, rows.documents[row])
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
        return int(min(self.settings.max_past_days * _DAY_MS, _END_OF_TIME_MS))

    @property
    def _future_ms(self) -> int:
        return int(min(self.settings.max_future_s * 1000, _END_OF_TIME_MS))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The parts of a batch's records that columns are taken from."""

    documents: list[Any]
    headers: list[dict[str, bytes]]
    keys: Sequence[bytes | None]
    bodies: Sequence[bytes | None]


class _Problems:
    """The first problem of each row that has one."""

    def __init__(self) -> None:
        self.problems: dict[int, Problem] = {}

    def add(self, row: int, reason: str, detail: str) -> None:
        self.problems.setdefault(row, (reason, detail))


class _BrokenValue(Exception):
    """A value that cannot be parsed; never leaves this file."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem


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


def _embedded_place(codec: str, name: str) -> Place:
    try:
        place = parse_place(name)
        if codec == "raw" and place.kind == "pointer":
            raise ValueError("a raw value has no fields; expected body, header:NAME or key")
        if codec != "raw" and place.kind == "body":
            raise ValueError(f'a body needs codec: raw, and this is {codec}; expected a pointer such as "/vector"')
    except ValueError as error:
        raise InvalidSettings(
            f"The embedder's field {name!r} cannot be taken from a record: {error}.",
            problems=[f"field {name!r}: {error}"],
            hint="See record.codec and spaces in the settings.",
        ) from error
    return place


class _Shape:
    """The part of a document that is needed, as a compiled struct.

    A pointer that goes through an array, or below a field that is needed as a whole, is compiled as far as it can be;
    the rest of it is looked up in each record.
    """

    def __init__(self, pointers: Sequence[Tokens]) -> None:
        stems = {_stem(tokens) for tokens in pointers}
        self._stems = {stem for stem in stems if not any(stem[:end] in stems for end in range(len(stem)))}
        self._fields: dict[Tokens, list[tuple[str, str, Tokens]]] = {}
        self._types: dict[Tokens, type[msgspec.Struct]] = {}
        self.type: Any = Any if () in self._stems else self._compile(())
        self.empty: Any = None if self.type is Any else self.type()
        self._ways = {tokens: self._way(tokens) for tokens in pointers}

    def _compile(self, at: Tokens) -> type[msgspec.Struct]:
        names = sorted({stem[len(at)] for stem in self._stems if stem[: len(at)] == at})
        fields: list[tuple[str, Any, Any]] = []
        self._fields[at] = []
        for number, name in enumerate(names):
            inner = (*at, name)
            if inner in self._stems:
                fields.append((f"f{number}", Any, msgspec.field(default=None, name=name)))
            else:
                below = self._compile(inner)
                fields.append((f"f{number}", below, msgspec.field(default_factory=below, name=name)))
            self._fields[at].append((f"f{number}", name, inner))
        # Without cycles there is nothing for the garbage collector to look at; tracking costs a quarter of the time.
        self._types[at] = msgspec.defstruct("Record", fields, gc=False)
        return self._types[at]

    def _way(self, tokens: Tokens) -> tuple[Callable[[Any], Any] | None, Tokens]:
        if self.type is Any:
            return None, tokens
        stem = next(tokens[:end] for end in range(1, len(tokens) + 1) if tokens[:end] in self._stems)
        path = [
            next(attribute for attribute, name, _ in self._fields[stem[:end]] if name == stem[end])
            for end in range(len(stem))
        ]
        return attrgetter(".".join(path)), tokens[len(stem) :]

    def fill(self, document: Any) -> Any:
        """The struct of a document that was parsed without it."""
        return document if self.type is Any else self._fill((), document)

    def _fill(self, at: Tokens, document: Any) -> msgspec.Struct:
        values: dict[str, Any] = {}
        if isinstance(document, dict):
            for attribute, name, inner in self._fields[at]:
                value = document.get(name)
                values[attribute] = value if inner in self._stems else self._fill(inner, value)
        return self._types[at](**values)

    def column(self, tokens: Tokens, documents: Sequence[Any]) -> list[Any]:
        """The values at a pointer, None where there are none."""
        getter, rest = self._ways[tokens]
        values = list(documents) if getter is None else list(map(getter, documents))
        return [_found(value, rest) for value in values] if rest else values

    def value(self, tokens: Tokens, document: Any) -> Any:
        """The value at a pointer of one document, None where there is none."""
        return self.column(tokens, [document])[0]


def _stem(tokens: Tokens) -> Tokens:
    """The part of a pointer that a struct can hold: names that msgspec accepts and that index no array."""
    for end, token in enumerate(tokens):
        if token in ("", "-") or is_index(token) or re.search(r'["\\\x00-\x1f]', token):
            return tokens[:end]
    return tokens


def _found(value: Any, rest: Tokens) -> Any:
    result = resolve(value, rest)
    return None if result is MISSING else result


def _parse_like_python(value: bytes, error: Exception) -> Any:
    """Python's json module writes NaN and Infinity, which are not JSON: parse them, as harm is done only by fields that
    are used, and those are looked at. MISSING where that is not what is wrong."""
    if not isinstance(error, msgspec.ValidationError) and not _NO_NUMBER_OF_JSON.search(value):
        return MISSING
    try:
        document = json.loads(value.decode("utf-8"))
        msgspec.json.encode(document)  # refuses half of a surrogate pair, which Python lets through
    except (*_REFUSED, TypeError, OverflowError):
        return MISSING
    return document


def _what_is_wrong(value: bytes, error: Exception, name: str) -> str:
    if not value:
        return "The value is empty."
    if isinstance(error, UnicodeDecodeError):
        return f"Not {name}: text in it is not UTF-8."
    if isinstance(error, RecursionError):
        return f"Not {name} that can be read: nested too deeply."
    return f"Not {name}: {_without_content(str(error))}."


def _without_content(message: str) -> str:
    return message.removeprefix("JSON is malformed: ").removeprefix("MessagePack data is malformed: ")[:200].rstrip(".")


def _texts(values: list[Any], name: str, kinds: tuple[type, ...], found: _Problems) -> list[str | None]:
    """Short texts out of a column; values that are no text and no number are a problem."""
    present = set(map(type, values))
    if not present <= {str, type(None)}:
        if present == {int} and int in kinds:
            values = _each(values, name, kinds, found) if any(abs(v) >> 64 for v in values) else list(map(str, values))
        else:
            values = _each(values, name, kinds, found)
    # PostgreSQL takes no text with a NUL in it.
    if "\0" in "".join(filter(None, values)):
        return [text and text.replace("\0", "\ufffd") for text in values]
    return values


def _each(values: list[Any], name: str, kinds: tuple[type, ...], found: _Problems) -> list[str | None]:
    texts: list[str | None] = []
    for row, value in enumerate(values):
        text: str | None = None
        if value is None or type(value) is str:
            text = value
        elif type(value) not in kinds or (type(value) is int and abs(value) >> 64):
            expected = "text or a whole number" if float not in kinds else "text, a number, true or false"
            found.add(row, "bad_value", f"{name} is {_kind_of(value)}; expected {expected}.")
        elif type(value) is bool:
            text = "true" if value else "false"
        else:
            text = str(value)
        texts.append(text)
    return texts


def _kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "an array"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)


def _numbers(name: str, values: list[Any], found: _Problems) -> npt.NDArray[np.float64]:
    """A column of numbers as float64, NaN where absent."""
    is_text = parse_place(name).kind != "pointer"
    if set(map(type, values)) == {float}:
        numbers = np.array(values, dtype=np.float64)
    else:
        numbers = np.full(len(values), np.nan)
        for row, value in enumerate(values):
            if value is None:
                continue
            if (
                (is_text and type(value) is str and _NUMBER.fullmatch(value))
                or type(value) is float
                or (type(value) is int and not abs(value) >> 64)
            ):
                numbers[row] = float(value)
            else:
                found.add(row, "bad_value", f"{name} is {_kind_of(value)}; expected a number.")
    for row in np.flatnonzero(~np.isfinite(numbers)).tolist():
        if values[row] is not None:
            found.add(row, "bad_value", f"{name} is not a finite number.")
    return numbers


# Nanoseconds do not fit the 53 bits of a float, and seconds have fractions: whole numbers and others go apart.
_PER_UNIT: Final[dict[str, tuple[int, int]]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


def _whole_to_ms(numbers: Int64s, unit: str) -> Int64s:
    times, divided_by = _PER_UNIT[unit]
    limit = _END_OF_TIME_MS * divided_by // times
    limit = min(limit, int(np.iinfo(np.int64).max) - 1)
    return np.asarray(np.clip(numbers, -limit, limit) * times // divided_by, dtype=np.int64)


def _float_to_ms(numbers: npt.NDArray[np.float64], unit: str) -> Int64s:
    """To the nearest microsecond, because 0.001 has no exact float, then down to the millisecond."""
    times, divided_by = _PER_UNIT[unit]
    ratio = times / divided_by
    limit = 2.0 * _END_OF_TIME_MS / ratio
    micros = np.rint(np.clip(numbers, -limit, limit) * ratio * 1000.0)
    return np.asarray(np.floor(micros / 1000.0), dtype=np.int64)


def _times_ms(values: list[Any], unit: TimeUnit, *, is_text: bool, name: str, found: _Problems) -> Int64s:
    """Event times in milliseconds since 1970, rounded down; 0 in rows with a problem."""
    present = set(map(type, values))
    if unit != "rfc3339" and present == {int} and not is_text:
        try:
            return _whole_to_ms(np.array(values, dtype=np.int64), unit)
        except OverflowError:
            pass
    elif unit != "rfc3339" and present == {float} and not is_text:
        numbers = np.array(values, dtype=np.float64)
        if np.isfinite(numbers).all():
            return _float_to_ms(numbers, unit)
    elif unit == "rfc3339" and present == {str}:
        try:
            return _moments_to_ms(msgspec.convert(values, list[_AwareDatetime]))
        except msgspec.ValidationError:
            pass
    return _times_ms_each(values, unit, is_text=is_text, name=name, found=found)


def _moments_to_ms(moments: Sequence[datetime]) -> Int64s:
    return _float_to_ms(np.array([moment.timestamp() for moment in moments], dtype=np.float64), "s")


def _times_ms_each(values: list[Any], unit: TimeUnit, *, is_text: bool, name: str, found: _Problems) -> Int64s:
    times = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if value is None:
            found.add(row, "missing_field", f"{name} (time) is missing.")
        elif (time_ms := _time_ms(value, unit, is_text)) is None:
            expected = "RFC 3339 text such as 2026-03-01T12:00:00Z" if unit == "rfc3339" else f"a number of {unit}"
            found.add(row, "bad_time", f"{name} is {_kind_of(value)} that is no time; expected {expected}.")
        else:
            times[row] = time_ms
    return times


def _time_ms(value: Any, unit: TimeUnit, is_text: bool) -> int | None:
    """One time of any type, by the functions that convert whole columns, so that both agree to the millisecond."""
    if isinstance(value, datetime):  # MessagePack has a type for it, which says the unit
        return None if value.tzinfo is None else int(_moments_to_ms([value])[0])
    if unit == "rfc3339":
        try:
            return int(_moments_to_ms([msgspec.convert(value, _AwareDatetime, strict=True)])[0])
        except msgspec.ValidationError:
            return None
    if is_text and type(value) is str and _NUMBER.fullmatch(value):
        value = int(value) if _WHOLE_NUMBER.fullmatch(value) else float(value)
    if type(value) is int:
        bounded = max(min(value, (1 << 63) - 1), -(1 << 63) + 1)
        return int(_whole_to_ms(np.array([bounded], dtype=np.int64), unit)[0])
    if type(value) is float and np.isfinite(value):
        return int(_float_to_ms(np.array([value]), unit)[0])
    return None


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
    except (*_REFUSED, TypeError, OverflowError):  # a type that only MessagePack has
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
        segments={name: pick(values) for name, values in events.segments.items()},
        predictions=None if events.predictions is None else pick(events.predictions),
        confidence=None if events.confidence is None else events.confidence[rows],
        labels=None if events.labels is None else pick(events.labels),
        kept=events.kept.take(rows) if isinstance(events.kept, _Kept) else events.kept,
        fields={name: pick(values) for name, values in events.fields.items()},
        dead=events.dead,
    )
