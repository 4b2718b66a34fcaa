"""Pairs requests with their responses: two records of one partition, joined by an id.

    records ──► one half each ──► Pairing ──► joined pairs, in the order of the records that completed them
                                     │
                                     └─────► halves alone: no partner came in time, or too many were waiting

What comes out, and in which order, is decided by the sequence of records of the partition alone, one record at a time:
polls may cut it anywhere. What waits is the whole state. It is written with each checkpoint, as raw records, so that a
worker that takes over goes on with exactly the same halves.

Time is the broker's, or the record's own where the broker gives none. A half waits until a record comes that is more
than the time-out younger. A half without any time waits for its partner, for more room, or for the end of the source.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from connectors.database.rows import HalfRow
from connectors.records import DeadLetter, Headers, Partition, RawBatch
from monitor.formats import FormatName, Opened
from monitor.formats.cloudevents import ID_HEADER, TIME_HEADER
from monitor.parsing import BrokenValue
from monitor.pointers import MISSING, Place, parse_place, resolve
from monitor.record import PairSettings
from monitor.rows import Origin, Rows, RowsBuilder, origin_of

MAX_ID_CHARS: Final = 1024
MAX_PENDING: Final = 100_000  # halves of one partition that may wait
MAX_PENDING_BYTES: Final = 64 << 20  # and what their records may hold; beyond either, the oldest goes alone

Role = Literal["request", "response"]


class Half(msgspec.Struct, frozen=True, array_like=True):
    """One half of a pair, with the record that it came in.

    Attributes:
        offset: where its record lies in the partition.
        id, role: which half of which pair.
        time_ms: decides when it has waited for too long; -1 where there is no time.
        timestamp_ms: the broker's time of the record, -1 where there is none.
        key, value, headers: the record as it came.
        format: how it is wrapped.
    """

    offset: int
    id: str
    role: Role
    time_ms: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    format: FormatName = "plain"

    @property
    def size(self) -> int:
        """Bytes of the record, about."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value) + headers + len(self.id)


class Pair(msgspec.Struct, frozen=True):
    """A request with its response, or one of them alone.

    Attributes:
        offset: of the half that completed it; of the only half, if it is alone.
    """

    request: Half | None
    response: Half | None
    offset: int

    @property
    def joined(self) -> bool:
        """Both halves are here."""
        return self.request is not None and self.response is not None

    @property
    def last(self) -> Half:
        """The half that stands at `offset`: the one that completed the pair, or the only one."""
        for half in (self.request, self.response):
            if half is not None and half.offset == self.offset:
                return half
        raise AssertionError("a pair stands where one of its halves does")


# Looks up the halves of a partition that the last checkpoint left waiting.
StoredHalves = Callable[[Partition], Iterable[HalfRow]]


def none_stored(partition: Partition) -> Iterable[HalfRow]:
    """No half waits: nothing was read before."""
    return ()


def pairing_of(partition: Partition, settings: PairSettings | None, stored: StoredHalves) -> Pairing | None:
    """The pairs of a partition, with the halves that wait in it; None where the settings pair no records."""
    return None if settings is None else Pairing(round(settings.timeout * 1000), stored(partition))


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What became of halves: joined pairs, halves alone because their time was over, and because of the room."""

    joined: int = 0
    timed_out: int = 0
    crowded_out: int = 0

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(
            self.joined + other.joined, self.timed_out + other.timed_out, self.crowded_out + other.crowded_out
        )


class Pairing:
    """The pairs of one partition.

    Args:
        timeout_ms: how long a half waits for the other.
        stored: halves that the last checkpoint left waiting, by offset.
    """

    def __init__(
        self,
        timeout_ms: int,
        stored: Iterable[HalfRow] = (),
        *,
        max_pending: int = MAX_PENDING,
        max_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        self._joined = self._timed_out = self._crowded_out = 0
        self._timeout_ms = timeout_ms
        self._max_pending = max_pending
        self._max_bytes = max_bytes
        self._bytes = 0
        # By id, in the order of the offsets. OrderedDict, because the first of a dict is slow to find after deletions.
        self._pending: OrderedDict[str, Half] = OrderedDict()
        self._by_time: list[tuple[int, int, str]] = []  # a heap; entries of halves that wait no more are skipped
        self._unwritten: dict[int, Half] = {}  # by offset: those that the database does not hold yet
        self._left: list[int] = []  # offsets that it holds, but which wait no more
        for row in sorted(stored, key=lambda row: row.offset):
            self._wait(_DECODER.decode(row.blob))
        self._unwritten.clear()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def counts(self) -> PairCounts:
        """Since the last checkpoint."""
        return PairCounts(self._joined, self._timed_out, self._crowded_out)

    @property
    def oldest_ms(self) -> int | None:
        """Time of the oldest half that waits; None where none does, or none has a time."""
        while self._by_time and not self._waits(self._by_time[0]):
            heapq.heappop(self._by_time)
        return self._by_time[0][0] if self._by_time else None

    def push(self, half: Half) -> tuple[list[Pair], bool]:
        """Take in the next half, in the order of the offsets.

        Returns:
            The pairs that came out at it, in their order: those that waited for too long, then the one that it
            completed; and whether it was taken. It is not where a half of its id and role waits already.
        """
        pairs: list[Pair] = []
        if half.time_ms >= 0:
            self._expire(half.time_ms - self._timeout_ms, pairs)
        other = self._pending.get(half.id)
        if other is None:
            self._wait(half)
            self._make_room(pairs)
        elif other.role == half.role:
            return pairs, False
        else:
            self._leave(other)
            self._joined += 1
            request, response = (half, other) if half.role == "request" else (other, half)
            pairs.append(Pair(request, response, half.offset))
        return pairs, True

    def end(self) -> list[Pair]:
        """The source is at its end: what waits goes alone, the oldest offset first."""
        pairs: list[Pair] = []
        while self._pending:
            self._alone(next(iter(self._pending.values())), pairs)
            self._timed_out += 1
        return pairs

    def unwritten(self, partition: Partition) -> list[HalfRow]:
        """The halves that wait and are not in the database yet, by offset."""
        return [HalfRow(partition, offset, _ENCODER.encode(half)) for offset, half in self._unwritten.items()]

    @property
    def left(self) -> Sequence[int]:
        """Offsets of halves in the database that wait no more."""
        return self._left

    def written(self) -> None:
        """The checkpoint with `unwritten` and `left` was committed."""
        self._unwritten.clear()
        self._left = []
        self._joined = self._timed_out = self._crowded_out = 0

    def _wait(self, half: Half) -> None:
        self._pending[half.id] = self._unwritten[half.offset] = half
        self._bytes += half.size
        if half.time_ms >= 0:
            heapq.heappush(self._by_time, (half.time_ms, half.offset, half.id))
        if len(self._by_time) > 2 * len(self._pending) + 1_000:  # most of it is gone: joined before its time was over
            self._by_time = [entry for entry in self._by_time if self._waits(entry)]
            heapq.heapify(self._by_time)

    def _waits(self, entry: tuple[int, int, str]) -> bool:
        _, offset, id_ = entry
        half = self._pending.get(id_)
        return half is not None and half.offset == offset

    def _leave(self, half: Half) -> None:
        del self._pending[half.id]
        self._bytes -= half.size
        if self._unwritten.pop(half.offset, None) is None:
            self._left.append(half.offset)

    def _alone(self, half: Half, pairs: list[Pair]) -> None:
        self._leave(half)
        request, response = (half, None) if half.role == "request" else (None, half)
        pairs.append(Pair(request, response, half.offset))

    def _expire(self, before_ms: int, pairs: list[Pair]) -> None:
        while self._by_time and self._by_time[0][0] < before_ms:
            entry = heapq.heappop(self._by_time)
            if self._waits(entry):
                self._alone(self._pending[entry[2]], pairs)
                self._timed_out += 1

    def _make_room(self, pairs: list[Pair]) -> None:
        while len(self._pending) > self._max_pending or self._bytes > self._max_bytes:
            self._alone(next(iter(self._pending.values())), pairs)
            self._crowded_out += 1


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Half)


class PairOpener:
    """Opens the records of a partition to pairs: rows {"request": ..., "response": ...}.

    Args:
        settings: where the id and the role stand in a record, and what becomes of a half alone.
        open_record: opens one record to whole documents, given its value and headers; raises BrokenValue.
        fill: a document as the parser of the fields wants it.
        letter: makes the dead letter of a record, given its origin, the row, the reason and the detail.
    """

    def __init__(
        self,
        settings: PairSettings,
        *,
        open_record: Callable[[FormatName, bytes, Mapping[str, bytes]], Opened],
        fill: Callable[[Any], Any],
        letter: Callable[[Origin, int, str, str], DeadLetter],
    ) -> None:
        self._settings = settings
        self._by, self._role = parse_place(settings.by), parse_place(settings.role)
        self._open_record = open_record
        self._fill = fill
        self._letter = letter

    def rows(self, batch: RawBatch, format_: FormatName, pairing: Pairing, *, most: int) -> Rows:
        """What comes out at the records of a batch, in that order; up to the record at which there are ``most`` rows.

        A record that cannot be opened, does not say which half it is, or repeats one that waits, is a dead letter.
        """
        builder = RowsBuilder(batch.partition, self._letter)
        opened_here: dict[int, Opened] = {}  # by offset; of what waited before the batch only the bytes are there
        for row in range(len(batch)):
            if len(builder) >= most:
                return builder.rows(int(batch.offsets[row]), enveloped=True)
            origin = origin_of(batch, row)
            if origin.value is None:
                builder.refuse(origin, "tombstone", "The record has no value.")
                continue
            try:
                opened = self._open_record(format_, origin.value, dict(batch.headers[row]))
                half = self._half(opened, origin, batch.headers[row], format_)
            except BrokenValue as error:
                builder.refuse(origin, error.reason, error.detail)
                continue
            opened_here[half.offset] = opened
            pairs, taken = pairing.push(half)
            for pair in pairs:
                self._add(builder, batch.partition, pair, opened_here)
            if not taken:
                builder.refuse(origin, "duplicate_half", f"A {half.role} of this id waits already.")
        return builder.rows(batch.next_offset, enveloped=True)

    def alone(self, partition: Partition, pairs: Sequence[Pair], *, next_offset: int) -> Rows:
        """Rows of pairs that came out at no record: at the end of a source."""
        builder = RowsBuilder(partition, self._letter)
        for pair in pairs:
            self._add(builder, partition, pair, {})
        return builder.rows(next_offset, enveloped=True)

    def _half(self, opened: Opened, origin: Origin, headers: Headers, format_: FormatName) -> Half:
        id_ = self._text("by", self._settings.by, self._by, opened, origin.key)
        role = role_of(self._text("role", self._settings.role, self._role, opened, origin.key))
        if role is None:
            raise BrokenValue("bad_value", f"{self._settings.role} (pair.role) says neither request nor response.")
        event_ms = -1 if opened.event is None or opened.event.time_ms is None else opened.event.time_ms
        return Half(
            offset=origin.offset,
            id=id_,
            role=role,
            time_ms=origin.time_ms if origin.time_ms >= 0 else event_ms,
            timestamp_ms=origin.time_ms,
            key=origin.key,
            value=origin.value or b"",
            headers=list(headers),
            format=format_,
        )

    def _add(
        self,
        builder: RowsBuilder,
        partition: Partition,
        pair: Pair,
        opened_here: Mapping[int, Opened],
    ) -> None:
        """The rows of a pair. Time and key are the request's; place and bytes, for a dead letter, the last half's."""
        first = pair.request or pair.response
        assert first is not None
        origin = Origin(partition, pair.offset, first.timestamp_ms, first.key, pair.last.value)
        if not pair.joined and self._settings.on_timeout == "dead_letter":
            builder.refuse(origin, "unpaired", f"A {first.role} alone.")
            return
        try:
            request, response = (
                None
                if half is None
                else opened_here.get(half.offset) or self._open_record(half.format, half.value, dict(half.headers))
                for half in (pair.request, pair.response)
            )
            builder.add(origin, *self._joined(first.id, request, response))
        except BrokenValue as error:
            builder.refuse(origin, error.reason, error.detail)

    def _joined(
        self, id_: str, request: Opened | None, response: Opened | None
    ) -> tuple[list[Any], Mapping[str, bytes]]:
        """Both sides as one record; one that is missing is null. A header that both have is the request's."""
        requests = request.documents if request is not None else ()
        responses = response.documents if response is not None else ()
        if request is not None and response is not None and len(requests) != len(responses):
            raise BrokenValue("bad_rows", f"The request has {len(requests)} rows, the response {len(responses)}.")
        rows = max(len(requests), len(responses))
        sides = zip(requests or [None] * rows, responses or [None] * rows, strict=True)
        headers = dict(response.headers) if response is not None else {}
        if request is not None:
            headers.pop(TIME_HEADER, None)  # without a time of its own, the request's is the broker's
            headers |= request.headers
        headers[ID_HEADER] = id_.encode()
        return [self._fill({"request": left, "response": right}) for left, right in sides], headers

    @staticmethod
    def _text(what: str, name: str, place: Place, opened: Opened, key: bytes | None) -> str:
        """The id or the role: a text or a whole number."""
        name = f"{name} (pair.{what})"
        value: Any
        if place.kind == "pointer":
            value = resolve(opened.documents[0], place.tokens) if opened.documents else MISSING
        else:
            value = key if place.kind == "key" else opened.headers.get(place.header)
        if isinstance(value, bytes):
            try:
                value = str(value, "utf-8")
            except UnicodeDecodeError as error:
                raise BrokenValue("bad_value", f"{name} is not UTF-8 text.") from error
        if value is MISSING or value is None or value == "":
            raise BrokenValue("missing_field", f"{name} is missing.")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BrokenValue("bad_value", f"{name} is neither a text nor a whole number.")
        text = str(value)
        if len(text) > MAX_ID_CHARS:
            raise BrokenValue("bad_value", f"{name} has more than {MAX_ID_CHARS} characters.")
        return text


def role_of(text: str) -> Role | None:
    """The role that a CloudEvents type or a field names: "request" and "x.y.request" are requests; None if neither."""
    last = text.rpartition(".")[2].lower()
    return "request" if last == "request" else "response" if last == "response" else None
