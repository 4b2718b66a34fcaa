"""Bytes to columns: decode the records of a batch and take out the fields that the settings name.

    RawBatch ──► open and parse each value ──► Rows ──► one column per mapped field ──► EventBatch
                            │                                        │
                            └────────────── DeadLetter ◄─────────────┘   what cannot be used never stops the others

The fields that are needed are known before the first record, so the parser is compiled for them: a msgspec struct that
skips everything else. A pointer that goes through an array, or a record that is not shaped as expected, takes the slow
way and gives the same result. What becomes of a record depends on the record, its position and the clock's bound alone;
where the settings leave the format open, on what the topic is pinned to as well.

Reasons of dead letters, in the order in which they are looked for:

    tombstone          the record has no value
    too_large          the value is longer than max_bytes, as it is or when inflated
    bad_encoding       compressed, but not with gzip, or damaged
    unexpected_format  not of the format that the settings say, or that the topic is pinned to
    bad_event          a CloudEvent without what every event has
    bad_rows           an inference request or response whose rows do not fit together
    too_many_rows      a record of more rows than max_rows
    unknown_schema     the record's schema is unknown, or cannot be used
    bad_avro           the value is not of its schema
    bad_json           the value is not JSON (RFC 8259)
    bad_msgpack        the value is not MessagePack
    missing_field      a field that every record needs is absent or null
    bad_value          a field holds something of another type than needed
    duplicate_half     a request, or response, whose id another one bears that still waits
    unpaired           a request, or response, alone, where record.pair.on_timeout is dead_letter
    no_time            no time is mapped and the source gives none
    bad_time           the time is not in the unit that the settings say
    time_past          the time lies more than max_past_days back
    time_future        the time lies more than max_future_s ahead
    bad_vector         not numbers, or bytes that are no whole number of them
    wrong_dimension    a vector of another length than the reference's
    not_finite         a vector or table with NaN or infinity
    zero_vector        a vector of zeros, which has no direction
    embedder_failed    the embedder raised an error at this record

The last five, and missing_field and bad_value of embedded fields, are found by the embedders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as changed
from typing import Any, Final, overload

import msgspec
import numpy as np

from connectors.records import DeadLetter, Partition, RawBatch
from monitor.columns import END_OF_TIME_MS, Int64s, Problems, to_numbers, to_texts, to_times_ms
from monitor.event import EventBatch, Picker, all_but
from monitor.formats import Format, FormatName, Opened, build_format, detected, marked
from monitor.formats.cloudevents import ID_HEADER, TIME_HEADER
from monitor.formats.compression import inflated
from monitor.pairing import Pair, Pairing, PairOpener
from monitor.parsing import REFUSED, BrokenValue, Parser
from monitor.pointers import HEADER, Place, parse_place, replace
from monitor.record import RecordSettings, TimeSettings, embedded_place
from monitor.rows import Origin, Rows, RowsBuilder, origin_of

__all__ = ["DEAD_LETTER_REASONS", "NO_SEGMENT", "REDACTED", "Decoder", "RecordSettings", "TimeSettings"]

DEAD_LETTER_REASONS: Final = (
    "tombstone",
    "too_large",
    "bad_encoding",
    "unexpected_format",
    "bad_event",
    "bad_rows",
    "too_many_rows",
    "unknown_schema",
    "bad_avro",
    "bad_json",
    "bad_msgpack",
    "missing_field",
    "bad_value",
    "duplicate_half",
    "unpaired",
    "no_time",
    "bad_time",
    "time_past",
    "time_future",
    "bad_vector",
    "wrong_dimension",
    "not_finite",
    "zero_vector",
    "embedder_failed",
)
REDACTED: Final = "[redacted]"
NO_SEGMENT: Final = "(none)"  # the segment of a record without the field

MAX_ID_CHARS: Final = 1024
ROW_PAYLOAD_BYTES: Final = 256  # of a record in the dead letter of one of its rows: it may have thousands of them
MAX_ROWS: Final = 16_384  # decoded at once; a record more may come on top
MAX_LABEL_CHARS: Final = 256  # predictions, labels and segments are names; more is cut off
_DAY_MS: Final = 86_400_000
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


# Given a topic, the format that its first record shows, and the clock in milliseconds: the format that holds.
Pin = Callable[[str, FormatName, int], str]


class Decoder:
    """Decodes the records of one model.

    Args:
        settings: where things stand in a record.
        fields: the fields that the embedders need, as in their settings.
        payload_bytes: how much of a dead letter's value is kept.
        pin: stores the format of a topic that the settings leave open; None: only this decoder remembers it.

    Raises:
        InvalidSettings: a field that the codec does not have, or schemas that are not where the settings say.
        MissingExtra: a format's package is not installed.
    """

    def __init__(
        self, settings: RecordSettings, fields: Sequence[str], *, payload_bytes: int = 4096, pin: Pin | None = None
    ) -> None:
        self.settings = settings
        self._payload_bytes = payload_bytes
        self._pin = pin
        self._embedded = tuple(dict.fromkeys(fields))
        self._redacted = [parse_place(name) for name in settings.redact]
        self._kept_places = [(key, parse_place(name)) for key, name in settings.keep.items()]
        places = [parse_place(name) for _, name in settings.all_fields()]
        places += [embedded_place(settings.codec, name, paired=settings.pair is not None) for name in self._embedded]
        self._needs_headers = any(place.kind == "header" for place in places)
        self._parser = Parser(settings.codec, [place.tokens for place in places if place.kind == "pointer"])
        self._pairs = None
        if settings.pair is not None:
            self._pairs = PairOpener(
                settings.pair, open_record=self.open, fill=self._parser.fill, letter=self._dead_letter
            )
        self._schemas = None if settings.schemas is None else settings.schemas.build()
        self._pinned: dict[str, FormatName] = {}  # by topic
        self._row_payload: tuple[Origin | None, bytes] = (None, b"")
        self._formats: dict[FormatName, Format | None] = {}
        if settings.format != "auto":
            self._format(settings.format)
        elif self._schemas is not None:
            self._format("confluent")  # what it needs is missed now, and not at the first record

    def decode(
        self, batch: RawBatch, now_ms: int | None, pairing: Pairing | None = None, *, most: int | None = None
    ) -> EventBatch:
        """Decode a batch, or as many of its records as hold `MAX_ROWS` rows: see `EventBatch.next_offset`.

        Args:
            batch: records of one partition.
            now_ms: stands in for the broker's time where there is none, to bound event times; None: no bound.
            pairing: the halves of pairs that wait in the partition, where the settings pair records; it takes in what
                the batch holds.
            most: stop behind the record with which there are so many rows.

        Returns:
            The usable rows, and a dead letter for each of the others, in the order of the offsets. Embedder fields
            that a row lacks are None in their column: the embedder decides whether it can do without.

        Raises:
            SourceError: the schema registry cannot be asked. The batch is as good as before.
            StoreError: the format of the topic cannot be pinned. The same holds.
        """
        name, batch = self._format_of(batch, now_ms)
        format_ = self._format(name)
        if self._pairs is not None:
            assert pairing is not None, "records that are halves cannot be decoded without those before them"
            rows = self._pairs.rows(batch, name, pairing, most=min(most or MAX_ROWS, MAX_ROWS))
        elif format_ is not None:
            rows = self._opened(batch, name, format_, most=min(most or MAX_ROWS, MAX_ROWS))
        else:
            rows = self._plain(batch if most is None else batch.rows(0, min(len(batch), most)))
        return self._events(rows, now_ms)

    def decode_alone(
        self, partition: Partition, halves: Sequence[Pair], now_ms: int | None, *, next_offset: int
    ) -> EventBatch:
        """Decode halves that came out at the end of the source, as `decode` does those that came out at a record."""
        assert self._pairs is not None, "the settings pair no records"
        return self._events(self._pairs.alone(partition, halves, next_offset=next_offset), now_ms)

    def open(self, name: FormatName, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        """Open one record to whole documents (codec raw: to its value), as pairs need them.

        Raises:
            BrokenValue: with the reason and the detail of its dead letter.
            SourceError: the schema registry cannot be asked.
        """
        opened = self._open(name, self._format(name), value, headers)
        if opened.value is None or self.settings.codec == "raw":
            return opened
        return changed(opened, value=None, documents=(self._parse_inside(opened.value),))

    def _format(self, name: FormatName) -> Format | None:
        if name not in self._formats:
            self._formats[name] = build_format(
                name, parse=self._parse_inside, max_rows=self.settings.max_rows, schemas=self._schemas
            )
        return self._formats[name]

    def _format_of(self, batch: RawBatch, now_ms: int | None) -> tuple[FormatName, RawBatch]:
        """The format of the batch, or of its first records: those before the first that shows a format are plain."""
        if self.settings.format != "auto":
            return self.settings.format, batch
        topic = batch.partition.topic
        pinned = self._pinned.get(topic)
        if pinned is not None:
            return pinned, batch
        for row, value in enumerate(batch.values):
            found = None
            if value is not None and len(value) <= self.settings.max_bytes:
                found = self._detected(value, dict(batch.headers[row]))
            if found is not None:
                if row > 0:
                    return "plain", batch.rows(0, row)
                name: Any = found if self._pin is None else self._pin(topic, found, now_ms or 0)
                self._pinned[topic] = name
                return name, batch
        return "plain", batch

    def _detected(self, value: bytes, headers: Mapping[str, bytes]) -> FormatName | None:
        parse = None if self.settings.codec == "raw" else self._parse_inside
        try:
            value = self._inflated(value, headers)
        except BrokenValue:
            return None
        return detected(value, headers, framed=self._schemas is not None, parse=parse)

    def _parse_inside(self, value: bytes) -> Any:
        """The whole document of bytes inside a record, which may be compressed."""
        return self._parser.parse_document(self._inflated(value, {}))

    def _inflated(self, value: bytes, headers: Mapping[str, bytes]) -> bytes:
        return inflated(value, headers, by_magic=self.settings.codec != "raw", max_bytes=self.settings.max_bytes)

    def _open(self, name: FormatName, format_: Format | None, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        if len(value) > self.settings.max_bytes:
            raise BrokenValue("too_large", self._how_large(value))
        if self.settings.format == "auto":
            self._check_mark(name, value, headers)
        value = self._inflated(value, headers)
        return Opened(value, (), headers) if format_ is None else format_.open(value, headers)

    def _check_mark(self, name: FormatName, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Raise BrokenValue where a record bears the mark of another format than its topic's."""
        mark = marked(value, headers, framed=self._schemas is not None)
        if mark is None and name in ("cloudevents", "confluent") and self.settings.codec != "raw":
            # What cannot be read at all pins nothing, so it must be as dead before the topic is pinned as after.
            self._parse_inside(value)
        if mark not in (None, name):
            raise BrokenValue("unexpected_format", f"The record is {mark}, but the topic is {name}.")

    def _how_large(self, value: bytes) -> str:
        return f"{len(value)} bytes; max_bytes is {self.settings.max_bytes}."

    def _plain(self, batch: RawBatch) -> Rows:
        """Records that are one document each: the fast way."""
        documents, bodies, broken = self._documents(batch)

        def letter(place: int, reason: str, detail: str) -> DeadLetter:
            return self._dead_letter(origin_of(batch, place), -1, reason, detail)

        n = len(batch)
        good = np.arange(n, dtype=np.int64)
        offsets, broker_ms, headers, keys = batch.offsets, batch.timestamps_ms, batch.headers, batch.keys
        if broken:
            good = all_but(n, broken)
            pick = Picker(good, n)
            offsets, broker_ms = offsets[good], broker_ms[good]
            headers, keys, bodies = pick(headers), pick(keys), pick(bodies)
        return Rows(
            partition=batch.partition,
            offsets=offsets,
            numbers=np.zeros(len(good), dtype=np.int64),
            many=None,
            places=good,
            broker_ms=broker_ms,
            documents=documents,
            headers=[dict(each) for each in headers] if self._needs_headers else [],
            keys=keys,
            bodies=bodies,
            enveloped=False,
            next_offset=batch.next_offset,
            letter=letter,
            dead=[letter(row, *problem) for row, problem in broken.items()],
            dead_places=list(broken),
        )

    def _documents(self, batch: RawBatch) -> tuple[list[Any], Sequence[bytes | None], dict[int, tuple[str, str]]]:
        """The values that can be parsed, parsed (none for codec raw); all bodies; what is wrong with the others."""
        broken: dict[int, tuple[str, str]] = {}
        limit = self.settings.max_bytes
        parses, parse = self.settings.codec != "raw", self._parser.parse
        documents: list[Any] = []
        bodies = batch.values
        checked = self.settings.format == "auto" and (self._schemas is not None or any(batch.headers))
        if checked or (not parses and any(batch.headers)):
            bodies = self._bodies(batch, checked=checked, broken=broken)
        for row, value in enumerate(bodies):
            if value is None:
                broken.setdefault(row, ("tombstone", "The record has no value."))
            elif len(value) > limit:
                broken[row] = ("too_large", self._how_large(value))
            elif parses:
                try:
                    documents.append(parse(value))
                except BrokenValue as error:
                    try:
                        documents.append(self._parse_compressed(value, batch, row, error))
                    except BrokenValue as final:
                        broken[row] = (final.reason, final.detail)
        return documents, bodies, broken if len(broken) < 2 else dict(sorted(broken.items()))

    def _bodies(self, batch: RawBatch, *, checked: bool, broken: dict[int, tuple[str, str]]) -> list[bytes | None]:
        """The values, those of codec raw inflated; None for those that cannot be, or bear another format's mark."""
        bodies: list[bytes | None] = []
        for row, value in enumerate(batch.values):
            body = value
            if value is not None and len(value) <= self.settings.max_bytes:
                headers = dict(batch.headers[row])
                try:
                    if checked:
                        self._check_mark("plain", value, headers)
                    if self.settings.codec == "raw":
                        body = self._inflated(value, headers)
                except BrokenValue as error:
                    broken[row], body = (error.reason, error.detail), None
            bodies.append(body)
        return bodies

    def _parse_compressed(self, value: bytes, batch: RawBatch, row: int, error: BrokenValue) -> Any:
        """A value that cannot be parsed as it is; raises ``error`` where it is not compressed."""
        inside = self._inflated(value, dict(batch.headers[row]))
        if inside is value:
            raise error
        return self._parser.parse(inside)

    def _opened(self, batch: RawBatch, name: FormatName, format_: Format, *, most: int) -> Rows:
        """Records that are wrapped, or hold many rows."""
        builder = RowsBuilder(batch.partition, self._dead_letter)
        next_offset = batch.next_offset
        raw = self.settings.codec == "raw"
        for row in range(len(batch)):
            if len(builder) >= most:
                next_offset = int(batch.offsets[row])
                break
            origin = origin_of(batch, row)
            if origin.value is None:
                builder.refuse(origin, "tombstone", "The record has no value.")
                continue
            try:
                opened = self._open(name, format_, origin.value, dict(batch.headers[row]))
                documents: list[Any] = []
                if opened.value is None:
                    documents = [self._parser.fill(document) for document in opened.documents]
                elif not raw:
                    documents = [self._parser.parse(self._inflated(opened.value, {}))]
                if raw and opened.value is None:
                    raise BrokenValue("unexpected_format", "The event holds JSON, but the codec is raw.")
            except BrokenValue as error:
                builder.refuse(origin, error.reason, error.detail)
                continue
            builder.add(origin, documents, opened.headers, body=opened.value)
        return builder.rows(next_offset, enveloped=name == "cloudevents")

    def _events(self, rows: Rows, now_ms: int | None) -> EventBatch:
        """The columns of opened rows."""
        found = Problems()
        settings = self.settings
        ids = self._ids(rows, found)
        time_ms = self._times(rows, now_ms, found)
        keys = self._keys(rows, found)
        confidence = None
        if settings.confidence is not None:
            confidence = to_numbers(settings.confidence, self._column(settings.confidence, rows, found), found=found)
        predictions = self._words(settings.prediction, rows, found)
        labels = self._words(settings.label, rows, found)
        versions = self._words(settings.version, rows, found)
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
        events = EventBatch(
            partition=rows.partition,
            offsets=rows.offsets,
            rows=rows.numbers,
            places=rows.places,
            time_ms=time_ms,
            broker_ms=rows.broker_ms,
            ids=ids,
            keys=keys,
            segments=segments,
            predictions=predictions,
            confidence=confidence,
            labels=labels,
            versions=versions,
            kept=_Kept(self, rows) if settings.keep else None,
            fields=fields,
            next_offset=rows.next_offset,
            letter=rows.letter,
            dead=rows.dead,
            dead_places=rows.dead_places,
        )
        return events.refused(found.problems)[0]

    def _dead_letter(self, origin: Origin, row: int, reason: str, detail: str) -> DeadLetter:
        value = origin.value
        return DeadLetter(
            partition=origin.partition,
            offset=origin.offset,
            time_ms=origin.time_ms,
            reason=reason,
            detail=detail.replace("\0", "\ufffd"),  # names out of a record may be in it; PostgreSQL takes no NUL
            payload=b"" if value is None else self._payload(origin, row),
            size=0 if value is None else len(value),
            row=row,
        )

    def _payload(self, origin: Origin, row: int) -> bytes:
        """The beginning of the value without redacted fields; nothing where they cannot be told from the rest."""
        if row < 0:
            return self._shown(origin)
        if self._row_payload[0] is not origin:  # the letters of a record's rows share theirs
            self._row_payload = origin, self._shown(origin)[:ROW_PAYLOAD_BYTES]
        return self._row_payload[1]

    def _shown(self, origin: Origin) -> bytes:
        value = origin.value or b""
        # A record that is half of a pair has no side in it.
        inside = slice(1, None) if self.settings.pair is not None else slice(None)
        hidden = [place.tokens[inside] for place in self._redacted if place.kind == "pointer"]
        if hidden:
            plain = self._pinned.get(origin.partition.topic, "plain") if self.settings.format == "auto" else None
            if len(value) > self.settings.max_bytes or (plain or self.settings.format) != "plain":
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

    def _column(self, name: str, rows: Rows, found: Problems) -> list[Any]:
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
    def _encoded(place: Place, rows: Rows) -> Sequence[bytes | None]:
        """A header of the records, or their keys, still as bytes."""
        if place.kind == "header":
            return [headers.get(place.header) for headers in rows.headers]
        return rows.keys

    def _ids(self, rows: Rows, found: Problems) -> list[str]:
        name = self.settings.id or (HEADER + ID_HEADER if rows.enveloped else None)
        if name is None:
            prefix = f"{rows.partition.topic}/{rows.partition.number}/"
            return _numbered([f"{prefix}{offset}" for offset in rows.offsets.tolist()], rows)
        ids: list[str] = []
        for row, text in enumerate(to_texts(name, self._column(name, rows, found), kinds=(str, int), found=found)):
            if text is None:
                found.add(row, "missing_field", f"{name} (id) is missing.")
            elif len(text) > MAX_ID_CHARS:
                found.add(
                    row, "bad_value", f"{name} (id) has {len(text)} characters; at most {MAX_ID_CHARS} are allowed."
                )
            ids.append(text or "")
        return ids if self.settings.id is not None else _numbered(ids, rows)

    def _keys(self, rows: Rows, found: Problems) -> Sequence[str | None] | None:
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
    def _words(self, name: None, rows: Rows, found: Problems) -> None: ...
    @overload
    def _words(self, name: str, rows: Rows, found: Problems) -> list[str | None]: ...
    def _words(self, name: str | None, rows: Rows, found: Problems) -> list[str | None] | None:
        """Predictions, labels, segments: short texts, or None where absent."""
        if name is None:
            return None
        words = to_texts(name, self._column(name, rows, found), kinds=(str, int, float, bool), found=found)
        if max((len(word) for word in words if word), default=0) > MAX_LABEL_CHARS:
            return [word and word[:MAX_LABEL_CHARS] for word in words]
        return words

    def _times(self, rows: Rows, now_ms: int | None, found: Problems) -> Int64s:
        settings = self.settings.time
        if settings is not None:
            values = self._column(settings.path, rows, found)
            times = to_times_ms(settings.path, values, unit=settings.unit, found=found)
            return self._bounded(settings.path, times, rows.broker_ms, now_ms, found)
        times = rows.broker_ms.copy()
        if rows.enveloped:
            times = self._event_times(times, rows, now_ms, found)
        for row in np.flatnonzero(times < 0).tolist():
            found.add(row, "no_time", "The source gives no time; map one: record: time: /ts.")
        return times

    def _event_times(self, times: Int64s, rows: Rows, now_ms: int | None, found: Problems) -> Int64s:
        """The times of CloudEvents, for those that have one."""
        values = self._column(HEADER + TIME_HEADER, rows, found)
        stated = np.array([row for row, value in enumerate(values) if value is not None], dtype=np.int64)
        inside = Problems()
        chosen = [values[row] for row in stated.tolist()]
        own = to_times_ms(HEADER + TIME_HEADER, chosen, unit="rfc3339", found=inside)
        self._bounded(TIME_HEADER, own, rows.broker_ms[stated], now_ms, inside)
        for row, problem in inside.problems.items():
            found.add(int(stated[row]), *problem)
        times[stated] = own
        return times

    def _bounded(self, name: str, times: Int64s, broker: Int64s, now_ms: int | None, found: Problems) -> Int64s:
        """The same times; those out of bounds are problems."""
        if now_ms is None:
            oldest = np.where(broker >= 0, broker - self._past_ms, 0)
            newest = np.where(broker >= 0, broker + self._future_ms, END_OF_TIME_MS - 1)
        else:
            anchor = np.where(broker >= 0, broker, now_ms)
            oldest, newest = anchor - self._past_ms, anchor + self._future_ms
        for row in np.flatnonzero(times < np.maximum(oldest, 0)).tolist():
            found.add(row, "time_past", f"{name} lies more than {self.settings.max_past_days:g} days back.")
        for row in np.flatnonzero(times > newest).tolist():
            found.add(row, "time_future", f"{name} lies more than {self.settings.max_future_s:g} s ahead.")
        return times

    def kept_fields(self, rows: Rows, row: int) -> dict[str, Any]:
        """The fields that may be stored of one record: redacted, cut to the excerpt, JSON-compatible."""
        return {name: self._kept_value(place, rows, row) for name, place in self._kept_places}

    def _kept_value(self, place: Place, rows: Rows, row: int) -> Any:
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


def _numbered(ids: list[str], rows: Rows) -> list[str]:
    """The ids of rows whose record has others end in the number of the row."""
    if rows.many is None:
        return ids
    numbers = rows.numbers.tolist()
    return [f"{id_}#{numbers[row]}" if rows.many[row] else id_ for row, id_ in enumerate(ids)]


class _Kept(Sequence[dict[str, Any]]):
    """The kept fields of each row, made when they are asked for: few rows of a batch are ever stored."""

    def __init__(self, decoder: Decoder, rows: Rows) -> None:
        self._decoder = decoder
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._decoder.kept_fields(self._rows, range(len(self))[index])


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
