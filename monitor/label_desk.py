"""Where labels are taken in, and where their records are found.

    labels ──► table, each origin once ──► kept records ──► remembered records, newest first ──► they count
                                                                       └─► not found: they wait

A label counts from the moment that its record is known. One that came before its record, or names one that is long
gone, waits in the table, and is compared with what is remembered of later records as they come.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from connectors.database.connection import wall_clock_ms
from connectors.database.rows import KeptRecord, LabelledRecord, LabelRow, LabelsAdded, NewLabel
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import InvalidInput, StoreError
from monitor.fraud_settings import FRAUD_SPACE
from monitor.labels import SaidLabel
from monitor.log import RepeatingFailure, event
from monitor.remembered import Remembered, hashes_of
from monitor.thinning import key_hashes

log = logging.getLogger(__name__)

AT_A_TIME = 20_000  # labels whose records are looked for together; with 384 dimensions their records take 32 MB
MOST_WAITING = 100_000  # labels that wait and are compared with records as they come; in about 200 bytes each
_IDS = 1_000_000  # of remembered records that are looked at together, in 8 bytes each
# A transaction may show its rows so much later than one that began after it: a little more than PostgreSQL leaves open.
_LATE_MS = 120_000
_DAY_MS = 86_400_000

Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

Positions = dict[Partition, tuple[int | None, int]]
Progress = Callable[[int, int], None]
Describe = Callable[[Sequence[SaidLabel]], Sequence[LabelledRecord | None]]


@dataclass(frozen=True, slots=True)
class Took:
    """What became of labels.

    Attributes:
        new, repeated: as they came.
        matched: of the new ones, those that count from now on.
        woken: of the repeated ones, those that had waited and count from now on, because their record came along.
    """

    new: int
    repeated: int
    matched: int
    woken: int = 0

    @property
    def waiting(self) -> int:
        """New ones that wait for their record."""
        return self.new - self.matched

    @property
    def counting(self) -> int:
        """Those that count from now on, and did not before."""
        return self.matched + self.woken

    @property
    def known(self) -> int:
        """Those of which nothing comes: the same was said before."""
        return self.repeated - self.woken

    def plus(self, other: Took) -> Took:
        """Both together."""
        return Took(
            self.new + other.new,
            self.repeated + other.repeated,
            self.matched + other.matched,
            self.woken + other.woken,
        )

    def counts(self) -> dict[str, int]:
        """As a program is told of it."""
        return {"new": self.new, "repeated": self.known, "matched": self.counting, "waiting": self.waiting}


@dataclass(frozen=True, slots=True)
class _Waiting:
    id: int
    record_id: str
    received_ms: int


class LabelDesk:
    """Takes the labels of one model in. Used by one thread at a time; several processes may have one each.

    Args:
        model: its name.
        store: the database.
        review: chance of a record to be put before a person whatever its score, `fraud.review`.
        remembered_days: a label that waited longer waits for nothing.
        describe: what is known of records that labels brought along, as far as they can be read; without it, none is.
        clock: wall clock, milliseconds since 1970.
    """

    def __init__(
        self,
        model: str,
        store: Store,
        *,
        review: float,
        remembered_days: float,
        describe: Describe | None = None,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._model = model
        self._store = store
        self._review = review
        self._patience_ms = int(remembered_days * _DAY_MS)
        self._describe = describe
        self._clock = clock
        self._damaged = RepeatingFailure(log, "remembered records cannot be read")
        self._waiting: dict[int, list[_Waiting]] = {}  # by hash of the record's id
        self._order: deque[tuple[int, _Waiting]] = deque()  # the same, in the order of their arrival
        self._last_label = 0  # that was looked at
        self._looked: set[int] = set()  # remembered rows above `_below` that waiting labels were compared with
        self._below = -1  # all rows up to this number were; -1 before the first look

    def take(
        self,
        labels: Sequence[SaidLabel],
        *,
        positions: Positions | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
        progress: Progress | None = None,
    ) -> Took:
        """Store labels, in one transaction, and find their records.

        Args:
            positions, topic_ids: of the topics that they came from; see `Store.add_labels`.
            progress: is told how many are done, and of how many.

        Raises:
            OwnershipLost: another process has read on from there. Nothing is written.
            StoreError: the database refuses. Nothing is written. Where it refuses later on, labels wait for `again`.
        """
        added = self._store.add_labels(self._model, self._described(labels), positions=positions, topic_ids=topic_ids)
        try:
            matched = self._match_new(added, progress)
        except StoreError as error:  # they are stored: whoever sent them must not send them again
            log.warning(event("labels wait for their records", model=self._model, reason=error.message))
            matched = 0
        return Took(added.new, added.repeated, added.matched + matched, added.woken)

    def _described(self, labels: Sequence[SaidLabel]) -> list[NewLabel]:
        """The labels, each that brought its record with what is known of that."""
        brought = {place: said for place, said in enumerate(labels) if said.record is not None}
        plain = [said.label for said in labels]
        places = list(brought)
        for start in range(0, len(places), AT_A_TIME):
            part = places[start : start + AT_A_TIME]
            found = self._search([(place, plain[place].record_id) for place in part], self._pages())
            if self._describe is not None and (others := [place for place in part if place not in found]):
                described = self._describe([labels[place] for place in others])
                found |= {place: known for place, known in zip(others, described, strict=True) if known is not None}
            for place, known in found.items():
                plain[place] = replace(plain[place], known=known)
        return plain

    def again(self) -> int:
        """Compare the labels that wait with what is remembered since the last call. How many count now.

        Call it now and then: it is what lets a label count that came before its record, or by another process.

        Raises:
            StoreError: the database refuses.
        """
        now_ms = self._clock()
        matched = 0
        if self._below < 0:
            self._below = 0
            self._look_at_rows()  # what waits already is compared with everything, below
        while rows := self._store.waiting_labels(
            self._model, limit=AT_A_TIME, after=self._last_label, newer_than_ms=now_ms - self._patience_ms
        ):
            # They were looked for when they came; but maybe before the transaction of their record was over.
            since_ms = 0 if self._last_label == 0 else min(row.received_ms for row in rows) - _LATE_MS
            found = self._found(rows, since_ms=since_ms)
            matched += self._store.match_labels(self._model, found)
            self._wait([row for row in rows if row.id not in found])
            self._last_label = rows[-1].id
        self._forget(now_ms - self._patience_ms)
        new = self._look_at_rows()
        return matched + (self._match_waiting(new) if new and self._waiting else 0)

    @property
    def waiting(self) -> int:
        """How many labels are compared with records as they come."""
        return len(self._order)

    # --- those that wait ----------------------------------------------------------------------------------------------

    def _wait(self, rows: Iterable[LabelRow]) -> None:
        rows = list(rows)
        hashes = key_hashes([row.said.record_id for row in rows]).tolist()
        for key, row in zip(hashes, rows, strict=True):
            one = _Waiting(row.id, row.said.record_id, row.received_ms)
            self._waiting.setdefault(key, []).append(one)
            self._order.append((key, one))
        while len(self._order) > MOST_WAITING:
            self._leave(*self._order.popleft())

    def _forget(self, before_ms: int) -> None:
        while self._order and self._order[0][1].received_ms < before_ms:
            self._leave(*self._order.popleft())

    def _leave(self, key: int, one: _Waiting) -> None:
        left = [other for other in self._waiting.get(key, []) if other.id != one.id]
        if left:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)

    def _look_at_rows(self) -> list[int]:
        """Numbers of the remembered rows that were not looked at yet, newest first."""
        settled_ms = self._clock() - _LATE_MS
        found = self._store.remembered_numbers(self._model, after=self._below)
        new = [number for number, _, _ in found if number not in self._looked]
        # Rows that are old enough have no older neighbours to come.
        self._below = max((number for number, stored_ms, _ in found if stored_ms < settled_ms), default=self._below)
        self._looked = {number for number, _, _ in found if number > self._below}
        return new

    def _match_waiting(self, numbers: Sequence[int]) -> int:
        """Compare all that wait with some remembered rows."""
        wanted = np.sort(np.fromiter(self._waiting, np.uint64, len(self._waiting)))
        hit: set[int] = set()
        for start in range(0, len(numbers), 1_000):
            _, hashes = _joined(self._store.remembered_ids(numbers[start : start + 1_000]))
            hit.update(hashes[_among(hashes, wanted)].tolist())
        ones = [one for key in hit for one in self._waiting[key]]
        matched = 0
        for start in range(0, len(ones), AT_A_TIME):
            part = ones[start : start + AT_A_TIME]
            found = self._search([(one.id, one.record_id) for one in part], [numbers])
            matched += self._store.match_labels(self._model, found)
            for key in key_hashes([one.record_id for one in part if one.id in found]).tolist():
                self._waiting.pop(key, None)
        self._order = deque((key, one) for key, one in self._order if key in self._waiting)
        return matched

    # --- finding records ----------------------------------------------------------------------------------------------

    def _match_new(self, added: LabelsAdded, progress: Progress | None) -> int:
        matched, done, after = 0, added.matched, added.after
        while done < added.new:
            rows = self._store.waiting_labels(self._model, limit=AT_A_TIME, after=after)
            rows = [row for row in rows if row.id <= added.last]
            if not rows:
                break
            matched += self._store.match_labels(self._model, self._found(rows))
            done, after = done + len(rows), rows[-1].id
            if progress is not None:
                progress(done, added.new)
        return matched

    def _found(self, rows: Sequence[LabelRow], *, since_ms: int = 0) -> dict[int, LabelledRecord]:
        """What is known of the records of these labels, by the labels' numbers.

        Args:
            since_ms: only records that were stored then or later.
        """
        return self._search([(row.id, row.said.record_id) for row in rows], self._pages(since_ms=since_ms))

    def _pages(self, *, since_ms: int = 0) -> list[list[int]]:
        """Numbers of the remembered rows, newest first, in portions that are looked at together."""
        numbers, pages, room = list[int](), list[list[int]](), _IDS
        for number, stored_ms, records in self._store.remembered_numbers(self._model):
            if stored_ms < since_ms:
                continue
            if room < records and numbers:
                pages.append(numbers)
                numbers, room = [], _IDS
            numbers.append(number)
            room -= records
        return [*pages, numbers]

    def _search(self, labels: Sequence[tuple[int, str]], pages: Iterable[Sequence[int]]) -> dict[int, LabelledRecord]:
        """What is known of the records with these ids, by the labels' numbers.

        Args:
            labels: number of each, and its record's id.
            pages: numbers of remembered rows, newest first, in portions that are looked at together.
        """
        names = sorted({name for _, name in labels})
        kept = self._store.find_kept(self._model, names, space=FRAUD_SPACE)
        hashes = key_hashes(names)
        missing = dict(zip(hashes.tolist(), names, strict=True))
        known: dict[str, LabelledRecord] = {}
        for page in pages:
            if not missing:
                break
            wanted = np.sort(np.fromiter(missing, np.uint64, len(missing)))
            numbers, hashes_there = _joined(self._store.remembered_ids(page))
            hits = np.unique(numbers[_among(hashes_there, wanted)])[::-1].tolist()
            for row in self._store.remembered(hits):
                try:
                    records = Remembered(row)
                except InvalidInput as error:
                    self._damaged.happened(str(error), model=self._model)
                    continue
                for key, place in records.find(np.fromiter(missing, np.uint64, len(missing))).items():
                    known[missing.pop(key)] = records.record(place)
        return {
            number: found
            for number, name in labels
            if (found := self._chosen(known.get(name), kept.get(name))) is not None
        }

    def _chosen(self, known: LabelledRecord | None, kept: KeptRecord | None) -> LabelledRecord | None:
        """What is known of one record: what is remembered, and why a person looked at it."""
        if kept is None:
            return known
        if known is None:
            known = _of_kept(kept)
        if known is None or (known.partition, known.offset, known.row) != (kept.partition, kept.offset, kept.row):
            return known  # a later record with the same id
        if kept.flagged:
            return replace(known, selected="alert", chance=1.0)
        if kept.reason == "review" or kept.detail.get("review") is True:
            return replace(known, selected="review", chance=self._review)
        return known


def _of_kept(kept: KeptRecord) -> LabelledRecord | None:
    """What a kept row says of its record; None where its vector or signals are not kept."""
    signals = kept.detail.get("signals")
    if kept.vector is None or not isinstance(signals, dict):
        return None
    values = [math.nan if value is None else value for value in signals.values()]
    probability = kept.detail.get("probability")
    return LabelledRecord(
        partition=kept.partition,
        offset=kept.offset,
        row=kept.row,
        event_ms=kept.time_ms,
        entity=str(kept.detail.get("entity", "")),
        vector=kept.vector,
        signals=np.array(values, "<f4").tobytes(),
        probability=probability if isinstance(probability, float) else math.nan,
        p_value=kept.p_value,
        scored_with=kept.labels,
        selected="",
        chance=math.nan,
        made_with=str(kept.detail.get("made_with", "")),
    )


def _joined(rows: Sequence[tuple[int, bytes]]) -> tuple[Int64s, Hashes]:
    """The hashes of several remembered rows, and the number of the row of each."""
    hashes = hashes_of(b"".join(ids for _, ids in rows))
    numbers = np.fromiter((number for number, _ in rows), np.int64, len(rows))
    return np.repeat(numbers, [len(ids) // 8 for _, ids in rows]), hashes


def _among(hashes: Hashes, wanted: Hashes) -> npt.NDArray[np.bool_]:
    """Which hashes are among the wanted ones, bool (n,); the wanted ones ascend, and are at least one."""
    places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    return np.asarray(wanted[places] == hashes, np.bool_)
