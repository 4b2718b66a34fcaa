"""Records on their way from opening to the columns: one entry per row, in the order in which they came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from connectors.records import DeadLetter, Partition, RawBatch
from monitor.columns import Int64s


@dataclass(slots=True)
class Rows:
    """Opened records of one partition.

    Attributes:
        offsets: int64 (n,), of the record of each row.
        numbers: int64 (n,), which row of its record, from 0.
        many: the record has other rows; None where no record has.
        places: int64 (n,), strictly increasing: the place among all rows, those that could not be opened included.
        broker_ms: int64 (n,), the broker's time, -1 where there is none.
        documents: what `Parser.parse` or `Parser.fill` gave; empty for codec raw.
        headers: of each row; empty where no field is a header.
        keys, bodies: of each row.
        enveloped: the headers hold the attributes of CloudEvents.
        next_offset: where opening goes on.
        letter: makes the dead letter of a row, given its place, the reason and the detail.
        dead, dead_places: what could not be opened, by place.
    """

    partition: Partition
    offsets: Int64s
    numbers: Int64s
    many: Sequence[bool] | None
    places: Int64s
    broker_ms: Int64s
    documents: list[Any]
    headers: Sequence[Mapping[str, bytes]]
    keys: Sequence[bytes | None]
    bodies: Sequence[bytes | None]
    enveloped: bool
    next_offset: int
    letter: Callable[[int, str, str], DeadLetter]
    dead: list[DeadLetter] = field(default_factory=list)
    dead_places: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Origin:
    """The record that rows came from, as it was read.

    Attributes:
        time_ms: the broker's time, -1 where there is none.
    """

    partition: Partition
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None


def origin_of(batch: RawBatch, row: int) -> Origin:
    """One record of a batch."""
    return Origin(
        batch.partition, int(batch.offsets[row]), int(batch.timestamps_ms[row]), batch.keys[row], batch.values[row]
    )


class RowsBuilder:
    """Collects the rows of one partition, record by record.

    Args:
        letter: makes a dead letter, given the origin, the number of the row (-1: all of the record), reason and detail.
    """

    def __init__(self, partition: Partition, letter: Callable[[Origin, int, str, str], DeadLetter]) -> None:
        self._partition = partition
        self._letter = letter
        self._origins: list[tuple[Origin, int]] = []  # by place, with the number of the row; -1 if it is the only one
        self._places: list[int] = []
        self._many: list[bool] = []
        self._documents: list[Any] = []
        self._headers: list[Mapping[str, bytes]] = []
        self._bodies: list[bytes | None] = []
        self._dead: list[DeadLetter] = []
        self._dead_places: list[int] = []

    def __len__(self) -> int:
        return len(self._origins)

    def add(
        self,
        origin: Origin,
        documents: Sequence[Any],
        headers: Mapping[str, bytes],
        *,
        body: bytes | None = None,
    ) -> None:
        """The rows of one record: a document each, or for codec raw one body.

        Args:
            documents: filled for the parser; empty for codec raw.
        """
        n = len(documents) or 1
        self._places += range(len(self._origins), len(self._origins) + n)
        self._origins += [(origin, -1)] if n == 1 else [(origin, number) for number in range(n)]
        self._documents += documents
        self._headers += [headers] * n
        self._bodies += [body] * n
        self._many += [n > 1] * n

    def refuse(self, origin: Origin, reason: str, detail: str) -> None:
        """A record that cannot be opened."""
        self._dead_places.append(len(self._origins))
        self._origins.append((origin, -1))
        self._dead.append(self._letter(origin, -1, reason, detail))

    def rows(self, next_offset: int, *, enveloped: bool) -> Rows:
        """What was collected."""
        chosen = [self._origins[place] for place in self._places]
        n = len(chosen)
        return Rows(
            partition=self._partition,
            offsets=np.fromiter((origin.offset for origin, _ in chosen), dtype=np.int64, count=n),
            numbers=np.fromiter((max(number, 0) for _, number in chosen), dtype=np.int64, count=n),
            many=self._many,
            places=np.array(self._places, dtype=np.int64),
            broker_ms=np.fromiter((origin.time_ms for origin, _ in chosen), dtype=np.int64, count=n),
            documents=self._documents,
            headers=self._headers,
            keys=[origin.key for origin, _ in chosen],
            bodies=self._bodies,
            enveloped=enveloped,
            next_offset=next_offset,
            letter=self._letter_at,
            dead=self._dead,
            dead_places=self._dead_places,
        )

    def _letter_at(self, place: int, reason: str, detail: str) -> DeadLetter:
        origin, number = self._origins[place]
        return self._letter(origin, number, reason, detail)
