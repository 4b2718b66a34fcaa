"""Documents on single records, and what is remembered of the records: how the two find each other, whichever is first.

    documents ──► table ──► remembered rows, newest first ──► they count
                                   └─► not found: they wait, and are compared with what is remembered later

Labels of fraud are joined with vectors and signals (`monitor.label_desk`), true answers with what the model had
answered (`monitor.truth_desk`). Both write records by the checkpoint into rows that say the hashes of their ids.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from connectors.database.connection import wall_clock_ms
from connectors.records import Partition
from detectors.errors import StoreError
from monitor.log import event
from monitor.thinning import key_hashes

log = logging.getLogger(__name__)

AT_A_TIME = 20_000  # documents whose records are looked for together; with 384 dimensions their records take 32 MB
MOST_WAITING = 100_000  # documents that wait and are compared with records as they come; in about 200 bytes each
_IDS = 1_000_000  # of remembered records that are looked at together, in 8 bytes each
# A transaction may show its rows so much later than one that began after it: a little more than PostgreSQL leaves open.
_LATE_MS = 120_000
DAY_MS: Final = 86_400_000

Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
K = TypeVar("K")

Positions = dict[Partition, tuple[int | None, int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Took:
    """What became of documents.

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


class Added(Protocol):
    """What the store says of documents that were brought in; after < number <= last are the new ones."""

    @property
    def new(self) -> int: ...
    @property
    def repeated(self) -> int: ...
    @property
    def matched(self) -> int: ...
    @property
    def woken(self) -> int: ...
    @property
    def after(self) -> int: ...
    @property
    def last(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """A document whose record is not known, with its number in the database."""

    id: int
    record_id: str
    received_ms: int


class Ledger(Protocol[K]):
    """The two tables that are joined, of one model; ``K`` is what is known of a record."""

    def waiting(self, *, limit: int, after: int = 0, newer_than_ms: int = 0) -> Sequence[Waiting]:
        """Documents that wait, by number."""

    def match(self, found: Mapping[int, K]) -> int:
        """Write what is known of records, by the numbers of their documents. How many count that did not before."""

    def numbers(self, *, after: int = 0) -> Sequence[tuple[int, int, int]]:
        """Number, time of writing and count of records of the remembered rows, newest first."""

    def ids(self, numbers: Sequence[int]) -> Sequence[tuple[int, bytes]]:
        """Of remembered rows, the hashes of their records' ids."""

    def find(self, numbers: Sequence[int], missing: Mapping[int, str]) -> dict[str, K]:
        """What remembered rows, newest first, know of records.

        Args:
            missing: the records' ids, by their hashes.
        """

    def choose(self, names: Sequence[str], found: Mapping[str, K]) -> Mapping[str, K]:
        """The last word on what is known of records, by their ids."""


class Joiner(Generic[K]):
    """Joins the documents of one model with its records. Used by one thread at a time.

    Args:
        what: the documents, in words, such as "labels".
        model: its name, for the log.
        patience_days: a document that waited longer waits for nothing.
        clock: wall clock, milliseconds since 1970.
    """

    def __init__(
        self,
        what: str,
        model: str,
        ledger: Ledger[K],
        *,
        patience_days: float,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._what = what
        self._model = model
        self._ledger = ledger
        self._patience_ms = int(patience_days * DAY_MS)
        self._clock = clock
        self._waiting: dict[int, list[Waiting]] = {}  # by hash of the record's id
        self._order: deque[tuple[int, Waiting]] = deque()  # the same, in the order of their arrival
        self._last = 0  # document that was looked at
        self._looked: set[int] = set()  # remembered rows above `_below` that waiting documents were compared with
        self._below = -1  # all rows up to this number were; -1 before the first look

    @property
    def waiting(self) -> int:
        """How many documents are compared with records as they come."""
        return len(self._order)

    def took(self, added: Added, progress: Progress | None = None) -> Took:
        """Find the records of documents that were just stored, and say what became of them.

        Args:
            progress: is told how many are done, and of how many.
        """
        try:
            matched = self._match_new(added, progress)
        except StoreError as error:  # they are stored: whoever sent them must not send them again
            log.warning(event(f"{self._what} wait for their records", model=self._model, reason=error.message))
            matched = 0
        return Took(added.new, added.repeated, added.matched + matched, added.woken)

    def known(self, names: Sequence[tuple[int, str]]) -> dict[int, K]:
        """What is known of records now.

        Args:
            names: a number of the caller's, and the record's id.
        """
        return self._search(names, self._pages())

    def again(self) -> int:
        """Compare the documents that wait with what is remembered since the last call. How many count now.

        Call it now and then: it is what lets a document count that came before its record, or by another process.

        Raises:
            StoreError: the database refuses.
        """
        now_ms = self._clock()
        matched = 0
        if self._below < 0:
            self._below = 0
            self._look_at_rows()  # what waits already is compared with everything, below
        while rows := self._ledger.waiting(limit=AT_A_TIME, after=self._last, newer_than_ms=now_ms - self._patience_ms):
            # They were looked for when they came; but maybe before the transaction of their record was over.
            since_ms = 0 if self._last == 0 else min(row.received_ms for row in rows) - _LATE_MS
            found = self._found(rows, since_ms=since_ms)
            matched += self._ledger.match(found)
            self._wait([row for row in rows if row.id not in found])
            self._last = rows[-1].id
        self._forget(now_ms - self._patience_ms)
        new = self._look_at_rows()
        return matched + (self._match_waiting(new) if new and self._waiting else 0)

    # --- those that wait ----------------------------------------------------------------------------------------------

    def _wait(self, rows: Iterable[Waiting]) -> None:
        rows = list(rows)
        hashes = key_hashes([row.record_id for row in rows]).tolist()
        for key, row in zip(hashes, rows, strict=True):
            self._waiting.setdefault(key, []).append(row)
            self._order.append((key, row))
        while len(self._order) > MOST_WAITING:
            self._leave(*self._order.popleft())

    def _forget(self, before_ms: int) -> None:
        while self._order and self._order[0][1].received_ms < before_ms:
            self._leave(*self._order.popleft())

    def _leave(self, key: int, one: Waiting) -> None:
        left = [other for other in self._waiting.get(key, []) if other.id != one.id]
        if left:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)

    def _look_at_rows(self) -> list[int]:
        """Numbers of the remembered rows that were not looked at yet, newest first."""
        settled_ms = self._clock() - _LATE_MS
        found = self._ledger.numbers(after=self._below)
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
            _, hashes = _joined(self._ledger.ids(numbers[start : start + 1_000]))
            hit.update(hashes[_among(hashes, wanted)].tolist())
        ones = [one for key in hit for one in self._waiting[key]]
        matched = 0
        for start in range(0, len(ones), AT_A_TIME):
            part = ones[start : start + AT_A_TIME]
            found = self._search([(one.id, one.record_id) for one in part], [numbers])
            matched += self._ledger.match(found)
            for key in key_hashes([one.record_id for one in part if one.id in found]).tolist():
                self._waiting.pop(key, None)
        self._order = deque((key, one) for key, one in self._order if key in self._waiting)
        return matched

    # --- finding records ----------------------------------------------------------------------------------------------

    def _match_new(self, added: Added, progress: Progress | None) -> int:
        matched, done, after = 0, added.matched, added.after
        while done < added.new:
            rows = self._ledger.waiting(limit=AT_A_TIME, after=after)
            rows = [row for row in rows if row.id <= added.last]
            if not rows:
                break
            matched += self._ledger.match(self._found(rows))
            done, after = done + len(rows), rows[-1].id
            if progress is not None:
                progress(done, added.new)
        return matched

    def _found(self, rows: Sequence[Waiting], *, since_ms: int = 0) -> dict[int, K]:
        """What is known of the records of these documents, by the documents' numbers.

        Args:
            since_ms: only records that were stored then or later.
        """
        return self._search([(row.id, row.record_id) for row in rows], self._pages(since_ms=since_ms))

    def _pages(self, *, since_ms: int = 0) -> list[list[int]]:
        """Numbers of the remembered rows, newest first, in portions that are looked at together."""
        numbers, pages, room = list[int](), list[list[int]](), _IDS
        for number, stored_ms, records in self._ledger.numbers():
            if stored_ms < since_ms:
                continue
            if room < records and numbers:
                pages.append(numbers)
                numbers, room = [], _IDS
            numbers.append(number)
            room -= records
        return [*pages, numbers]

    def _search(self, documents: Sequence[tuple[int, str]], pages: Iterable[Sequence[int]]) -> dict[int, K]:
        """What is known of the records with these ids, by the documents' numbers.

        Args:
            documents: number of each, and its record's id.
            pages: numbers of remembered rows, newest first, in portions that are looked at together.
        """
        names = sorted({name for _, name in documents})
        missing = dict(zip(key_hashes(names).tolist(), names, strict=True))
        found: dict[str, K] = {}
        for page in pages:
            if not missing:
                break
            wanted = np.sort(np.fromiter(missing, np.uint64, len(missing)))
            numbers, hashes = _joined(self._ledger.ids(page))
            hits = np.unique(numbers[_among(hashes, wanted)])[::-1].tolist()
            new = self._ledger.find(hits, missing)
            found |= new
            missing = {key: name for key, name in missing.items() if name not in new}
        chosen = self._ledger.choose(names, found)
        return {number: chosen[name] for number, name in documents if name in chosen}


def hashes_of(ids: bytes) -> Hashes:
    """The hashes in a remembered row's ``ids``, uint64 (n,)."""
    return np.frombuffer(ids, "<u8").astype(np.uint64, copy=False)


def _joined(rows: Sequence[tuple[int, bytes]]) -> tuple[Int64s, Hashes]:
    """The hashes of several remembered rows, and the number of the row of each."""
    hashes = hashes_of(b"".join(ids for _, ids in rows))
    numbers = np.fromiter((number for number, _ in rows), np.int64, len(rows))
    return np.repeat(numbers, [len(ids) // 8 for _, ids in rows]), hashes


def _among(hashes: Hashes, wanted: Hashes) -> npt.NDArray[np.bool_]:
    """Which hashes are among the wanted ones, bool (n,); the wanted ones ascend, and are at least one."""
    places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    return np.asarray(wanted[places] == hashes, np.bool_)
