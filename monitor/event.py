"""A decoded batch: columns, one entry per usable row, in the order of the offsets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from connectors.records import DeadLetter, Partition

T = TypeVar("T")
Int64s = npt.NDArray[np.int64]

_AHEAD_MS = 60_000  # an event so long after the broker got it was stamped by a clock that is wrong


def all_but(n: int, rows: Collection[int]) -> Int64s:
    """The numbers from 0 to n - 1 without some, ascending."""
    left = np.ones(n, dtype=np.bool_)
    left[list(rows)] = False
    return np.flatnonzero(left)


@dataclass(slots=True)
class EventBatch:
    """Events of one partition. Rows that could not be decoded are in ``dead`` and in no column.

    Most records are one row; a body of a model server may be many, which share its offset.

    Attributes:
        offsets: int64 (n,).
        rows: int64 (n,), which row of its record, from 0.
        places: int64 (n,), strictly increasing: the place among all rows of the batch, dead ones included.
        time_ms: int64 (n,), event time in milliseconds since 1970.
        broker_ms: int64 (n,), the broker's time, -1 where there is none.
        ids: n texts; "topic/partition/offset" where no id is mapped, "topic/partition/offset#row" of many rows.
        keys: n texts, or None where a record has no key; None altogether if no key is mapped.
        segments: for each configured segment field, n texts.
        predictions: n texts or None each; None altogether if no prediction is mapped.
        confidence: float64 (n,), NaN where absent; None if not mapped.
        labels: n texts or None each; None if not mapped.
        versions: which version of the model answered, n texts or None each; None altogether if not mapped.
        kept: n small dicts of the fields that settings allow to keep, redaction applied; None if nothing is kept.
        fields: for each embedder field (its pointer as in the settings), n raw values: Python objects, or for
            the body of a raw record its bytes.
        next_offset: where decoding goes on: behind the batch, or at the record that was too much for one step.
        dead: what could not be used, in the order of ``dead_places``.
        dead_places: the place of each among all rows of the batch, ascending.
        letter: makes the dead letter of a row, given its place, the reason and the detail.
    """

    partition: Partition
    offsets: Int64s
    rows: Int64s
    places: Int64s
    time_ms: Int64s
    broker_ms: Int64s
    ids: Sequence[str]
    keys: Sequence[str | None] | None
    segments: dict[str, Sequence[str]]
    predictions: Sequence[str | None] | None
    confidence: npt.NDArray[np.float64] | None
    labels: Sequence[str | None] | None
    versions: Sequence[str | None] | None
    kept: Sequence[dict[str, Any]] | None
    fields: dict[str, Sequence[Any]]
    next_offset: int
    letter: Callable[[int, str, str], DeadLetter]
    dead: list[DeadLetter] = field(default_factory=list)
    dead_places: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def records(self) -> int:
        """How many were decoded or refused: a record of many rows counts as so many, one that is refused as one."""
        return len(self.offsets) + len(self.dead)

    @property
    def ahead(self) -> npt.NDArray[np.bool_]:
        """Which events are dated more than a minute after the broker got them, bool (n,)."""
        return (self.broker_ms >= 0) & (self.time_ms > self.broker_ms + _AHEAD_MS)

    @property
    def spoiled(self) -> list[DeadLetter]:
        """One dead letter for each record of which no row can be used."""
        last = {letter.offset: letter for letter in self.dead}
        if not last:
            return []
        usable = set(self.offsets.tolist())
        return [letter for offset, letter in last.items() if offset not in usable]

    def take(self, rows: Int64s) -> EventBatch:
        """The events of some rows, with all dead letters."""
        pick = Picker(rows, len(self))
        return EventBatch(
            partition=self.partition,
            offsets=self.offsets[rows],
            rows=self.rows[rows],
            places=self.places[rows],
            time_ms=self.time_ms[rows],
            broker_ms=self.broker_ms[rows],
            ids=pick(self.ids),
            keys=None if self.keys is None else pick(self.keys),
            segments={name: pick(values) for name, values in self.segments.items()},
            predictions=None if self.predictions is None else pick(self.predictions),
            confidence=None if self.confidence is None else self.confidence[rows],
            labels=None if self.labels is None else pick(self.labels),
            versions=None if self.versions is None else pick(self.versions),
            kept=None if self.kept is None else Picked(self.kept, rows),
            fields={name: pick(values) for name, values in self.fields.items()},
            next_offset=self.next_offset,
            letter=self.letter,
            dead=self.dead,
            dead_places=self.dead_places,
        )

    def refused(self, problems: Mapping[int, tuple[str, str]]) -> tuple[EventBatch, Int64s]:
        """Rows that were found unusable become dead letters.

        Args:
            problems: reason and detail, by row.

        Returns:
            The batch without them, and the rows that are left.
        """
        left = all_but(len(self), problems)
        if not problems:
            return self, left
        events = self.take(left)
        found = list(zip(self.dead_places, self.dead, strict=True))
        for row, (reason, detail) in problems.items():
            place = int(self.places[row])
            found.append((place, self.letter(place, reason, detail)))
        found.sort(key=lambda each: each[0])
        events.dead_places = [place for place, _ in found]
        events.dead = [letter for _, letter in found]
        return events, left


class Picker:
    """Takes the same rows out of several columns.

    Args:
        rows: int64, ascending.
        n: entries of a column.
    """

    def __init__(self, rows: Int64s, n: int) -> None:
        self._rows = rows.tolist()
        gone = all_but(n, self._rows)[::-1].tolist()
        # To take a few out of a copy costs a tenth of picking all the others.
        self._gone = gone if 16 * len(gone) <= n else None

    def __call__(self, column: Sequence[T]) -> list[T]:
        if self._gone is None:
            return [column[row] for row in self._rows]
        left = list(column)
        for row in self._gone:
            del left[row]
        return left


class Picked(Sequence[T], Generic[T]):
    """Some entries of a sequence, looked up when they are asked for: few are."""

    def __init__(self, whole: Sequence[T], chosen: Int64s) -> None:
        self._whole = whole
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._whole[int(self._chosen[index])]
