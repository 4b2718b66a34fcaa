"""Takes documents in beside the worker, labels of fraud or true answers: out of a topic, and out of requests.

There is one thread for each model and kind.

Scoring never waits for it. A topic that does not answer is tried again, and so is a database; documents that could not
be stored are read again from the position that the database holds.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from connectors.database.connection import wall_clock_ms
from connectors.records import Partition, RawBatch, Source
from detectors.errors import OwnershipLost, SourceError, StoreError
from monitor.joining import Positions, Took
from monitor.labels import BadLabel, parse
from monitor.log import RepeatingFailure, describe, event

log = logging.getLogger(__name__)

POLL_S = 0.2
POLL_DOCUMENTS = 5_000
AGAIN_EVERY_S = 0.25
COUNT_EVERY_S = 15.0
RETRY_S = 5.0

D = TypeVar("D")
Taken = TypeVar("Taken", contravariant=True)


class Desk(Protocol[Taken]):
    """Where documents are taken in."""

    def take(
        self,
        documents: Sequence[Taken],
        /,
        *,
        positions: Positions | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
    ) -> Took:
        """Store documents, in one transaction, and find their records."""

    def again(self) -> int:
        """Compare those that wait with what is remembered since the last call."""


class DocumentReader(ABC, Generic[D]):
    """Reads the documents of one kind of one model.

    Args:
        what: a document, in a word for the log, such as "label".
        example: of a document, as hint where one is none.
        desk: where they are taken in; nobody else uses it.
        source: the topic; None where there is none.
        compares: this process compares documents that wait with new records; of several, one is enough.

    Attributes:
        trouble: why documents wait, in words; "" where nothing is known against it.
    """

    def __init__(
        self, what: str, example: str, model: str, desk: Desk[D], *, source: Source | None, compares: bool
    ) -> None:
        self.what = f"{what}s"
        self.example = example
        self._model = model
        self._desk = desk
        self._source = source
        self._compares = compares
        self._lock = threading.Lock()  # of the desk
        self._stopping = threading.Event()
        self._positions: dict[Partition, int] = {}  # as stored
        self.trouble = ""
        self._open = False
        self._next_again = self._next_count = 0.0
        self._bad = RepeatingFailure(log, f"a message is no {what}")
        self._gaps = RepeatingFailure(log, f"{self.what} are lost")
        self._thread = threading.Thread(target=self._run, name=f"driftd-{self.what}-{model}", daemon=True)

    @abstractmethod
    def read_document(self, value: object, now_ms: int, *, origin: str, default_ms: int | None = None) -> D:
        """The document of a decoded value.

        Raises:
            BadLabel: it is none.
        """

    @abstractmethod
    def _stored_positions(self) -> Mapping[Partition, int]: ...

    @abstractmethod
    def _stored_topic_ids(self, partitions: Sequence[Partition]) -> Mapping[Partition, str]: ...

    @abstractmethod
    def _counted(self, outcome: str, count: int) -> None:
        """Count what became of documents, in the metrics."""

    @abstractmethod
    def _count(self) -> None:
        """Count all that are stored, in the metrics."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """End soon: what several are told before each is waited for."""
        self._stopping.set()

    def stop(self) -> None:
        """End within 5 seconds. What is not stored is read again at the next start."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def take(
        self,
        documents: Sequence[D],
        *,
        positions: Positions | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
    ) -> Took:
        """Take documents in, and find their records. Safe from any thread.

        Raises:
            OwnershipLost: another process has read on from these positions. Nothing is written.
            StoreError: the database refuses; see `Desk.take`.
        """
        with self._lock:
            took = self._desk.take(documents, positions=positions, topic_ids=topic_ids)
        for outcome, count in (("new", took.new), ("repeated", took.known)):
            self._counted(outcome, count)
        return took

    def refused(self, reason: str) -> None:
        """Count a document that is none."""
        self._counted(reason, 1)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failure = RepeatingFailure(log, f"{self.what} wait")
        while not self._stopping.is_set():
            try:
                self._step()
                self.trouble = ""
                failure.over(model=self._model)
                continue
            except OwnershipLost as error:  # the group has moved the partition, and maybe moves it back
                log.info(event(f"{self.what} are read by another process", model=self._model, reason=error.message))
            except (SourceError, StoreError) as error:
                self.trouble = describe(error)
                failure.happened(self.trouble, model=self._model)
            except Exception:  # a thread that ends in silence: they would never count
                log.exception(event(f"{self.what} wait", model=self._model))
            if self._source is not None:
                self._source.rewind()
            self._stopping.wait(RETRY_S)
        if self._source is not None:
            self._source.close()

    def _step(self) -> None:
        """One poll; now and then a look at those that wait, and a count."""
        if self._source is None:
            self._stopping.wait(POLL_S)
        else:
            if not self._open:
                # A topic that was made anew meanwhile is read from its beginning.
                self._source.open(self._stored, topic_ids=self._stored_topic_ids)
                self._open = True
            self._read(self._source.poll(POLL_DOCUMENTS, POLL_S))
        if self._compares and time.monotonic() >= self._next_again:
            with self._lock:
                self._desk.again()
            self._next_again = time.monotonic() + AGAIN_EVERY_S
        if self._compares and time.monotonic() >= self._next_count:
            self._count()
            self._next_count = time.monotonic() + COUNT_EVERY_S

    def _stored(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        stored = self._stored_positions()
        for partition in partitions:
            self._positions.pop(partition, None)
        self._positions |= {partition: stored[partition] for partition in partitions if partition in stored}
        return {partition: stored[partition] for partition in partitions if partition in stored}

    def _read(self, batches: Sequence[RawBatch]) -> None:
        if not batches:
            return
        documents: list[D] = []
        refused: Counter[str] = Counter()
        reached: dict[Partition, int] = {}
        for batch in batches:
            reached[batch.partition] = batch.next_offset
            if batch.gap is not None:
                self._gaps.happened(batch.gap.detail, model=self._model)
            documents += self._documents_of(batch, refused)
        positions: Positions = {
            partition: (self._positions.get(partition), offset) for partition, offset in reached.items()
        }
        self.take(documents, positions=positions, topic_ids={batch.partition: batch.topic_id for batch in batches})
        for reason, count in refused.items():
            self._counted(reason, count)
        self._positions |= reached
        assert self._source is not None
        self._source.commit(self._positions)

    def _documents_of(self, batch: RawBatch, refused: Counter[str]) -> list[D]:
        """The documents of a batch. A message that is none is logged and counted, and is in the way of no other."""
        topic, number = batch.partition
        now_ms, found = wall_clock_ms(), []
        rows = zip(batch.offsets.tolist(), batch.timestamps_ms.tolist(), batch.values, strict=True)
        for offset, time_ms, value in rows:
            try:
                if value is None:
                    raise BadLabel("no_value", "The message has no value.")
                # A topic that is made anew has another id, and its messages are other documents.
                origin = f"kafka:{batch.topic_id or topic}/{number}/{offset}"
                default_ms = max(time_ms, 0) or now_ms
                found.append(
                    self.read_document(parse(value, example=self.example), now_ms, default_ms=default_ms, origin=origin)
                )
            except BadLabel as error:
                refused[error.reason] += 1
                place = f"{topic}/{number}/{offset}"
                self._bad.happened(error.reason, model=self._model, position=place, detail=error.message)
        return found
