"""Takes labels in beside the worker: out of a topic, and out of requests; one thread for each model.

Scoring never waits for it. A topic that does not answer is tried again, and so is a database; labels that could not be
stored are read again from the position that the database holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.database.connection import wall_clock_ms
from connectors.database.store import Store
from connectors.records import Partition, RawBatch, Source
from detectors.errors import OwnershipLost, SourceError, StoreError
from monitor.joining import Positions, Took
from monitor.label_desk import LabelDesk
from monitor.labels import BadLabel, SaidLabel, parse, read_label
from monitor.log import RepeatingFailure, describe, event

if TYPE_CHECKING:
    from connectors.prometheus import Metrics

log = logging.getLogger(__name__)

POLL_S = 0.2
POLL_LABELS = 5_000
AGAIN_EVERY_S = 0.25
COUNT_EVERY_S = 15.0
RETRY_S = 5.0


class LabelReader:
    """Reads the labels of one model.

        reader = LabelReader("payments", desk, store, source=source, metrics=metrics)
        reader.start()
        reader.take(labels)     # from any thread, such as that of a request
        reader.stop()

    Args:
        desk: where they are taken in; nobody else uses it.
        source: the topic; None where there is none.
        compares: this process compares labels that wait with new records; of several, one is enough.
        remembered_days: as the desk knows it, for the counts.

    Attributes:
        trouble: why labels wait, in words; "" where nothing is known against it.
    """

    def __init__(
        self,
        model: str,
        desk: LabelDesk,
        store: Store,
        *,
        source: Source | None,
        metrics: Metrics,
        compares: bool,
        remembered_days: float,
    ) -> None:
        self._model = model
        self._desk = desk
        self._store = store
        self._source = source
        self._metrics = metrics
        self._compares = compares
        self._remembered_ms = int(remembered_days * 86_400_000)
        self._lock = threading.Lock()  # of the desk
        self._stopping = threading.Event()
        self._positions: dict[Partition, int] = {}  # as stored
        self.trouble = ""  # why labels wait, in words
        self._open = False
        self._next_again = self._next_count = 0.0
        self._bad = RepeatingFailure(log, "a message is no label")
        self._gaps = RepeatingFailure(log, "labels are lost")
        self._thread = threading.Thread(target=self._run, name=f"driftd-labels-{model}", daemon=True)

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
        labels: Sequence[SaidLabel],
        *,
        positions: Positions | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
    ) -> Took:
        """Take labels in, and find their records. Safe from any thread.

        Raises:
            OwnershipLost: another process has read on from these positions. Nothing is written.
            StoreError: the database refuses; see `LabelDesk.take`.
        """
        with self._lock:
            took = self._desk.take(labels, positions=positions, topic_ids=topic_ids)
        for outcome, count in (("new", took.new), ("repeated", took.known)):
            self._metrics.labels_taken.labels(self._model, outcome).inc(count)
        return took

    def refused(self, reason: str) -> None:
        """Count a document that is no label."""
        self._metrics.labels_taken.labels(self._model, reason).inc()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failure = RepeatingFailure(log, "labels wait")
        while not self._stopping.is_set():
            try:
                self._step()
                self.trouble = ""
                failure.over(model=self._model)
                continue
            except OwnershipLost as error:  # the group has moved the partition, and maybe moves it back
                log.info(event("labels are read by another process", model=self._model, reason=error.message))
            except (SourceError, StoreError) as error:
                self.trouble = describe(error)
                failure.happened(self.trouble, model=self._model)
            except Exception:  # a thread that ends in silence would be labels that never count
                log.exception(event("labels wait", model=self._model))
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
                self._source.open(self._stored, topic_ids=self._topic_ids)
                self._open = True
            self._read(self._source.poll(POLL_LABELS, POLL_S))
        if self._compares and time.monotonic() >= self._next_again:
            with self._lock:
                self._desk.again()
            self._next_again = time.monotonic() + AGAIN_EVERY_S
        if self._compares and time.monotonic() >= self._next_count:
            self._count()
            self._next_count = time.monotonic() + COUNT_EVERY_S

    def _stored(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        stored = self._store.label_positions(self._model)
        for partition in partitions:
            self._positions.pop(partition, None)
        self._positions |= {partition: stored[partition] for partition in partitions if partition in stored}
        return {partition: stored[partition] for partition in partitions if partition in stored}

    def _topic_ids(self, partitions: Sequence[Partition]) -> Mapping[Partition, str]:
        return self._store.label_topic_ids(self._model, partitions)

    def _read(self, batches: Sequence[RawBatch]) -> None:
        if not batches:
            return
        labels: list[SaidLabel] = []
        refused: Counter[str] = Counter()
        reached: dict[Partition, int] = {}
        for batch in batches:
            reached[batch.partition] = batch.next_offset
            if batch.gap is not None:
                self._gaps.happened(batch.gap.detail, model=self._model)
            labels += self._labels_of(batch, refused)
        positions: Positions = {
            partition: (self._positions.get(partition), offset) for partition, offset in reached.items()
        }
        self.take(labels, positions=positions, topic_ids={batch.partition: batch.topic_id for batch in batches})
        for reason, count in refused.items():
            self._metrics.labels_taken.labels(self._model, reason).inc(count)
        self._positions |= reached
        assert self._source is not None
        self._source.commit(self._positions)

    def _labels_of(self, batch: RawBatch, refused: Counter[str]) -> list[SaidLabel]:
        """The labels of a batch. A message that is none is logged and counted, and is in the way of no other."""
        topic, number = batch.partition
        now_ms, found = wall_clock_ms(), []
        rows = zip(batch.offsets.tolist(), batch.timestamps_ms.tolist(), batch.values, strict=True)
        for offset, time_ms, value in rows:
            try:
                if value is None:
                    raise BadLabel("no_value", "The message has no value.")
                # A topic that is made anew has another id, and its messages are other labels.
                origin = f"kafka:{batch.topic_id or topic}/{number}/{offset}"
                label = read_label(parse(value), now_ms, default_ms=max(time_ms, 0) or now_ms, origin=origin)
            except BadLabel as error:
                refused[error.reason] += 1
                place = f"{topic}/{number}/{offset}"
                self._bad.happened(error.reason, model=self._model, position=place, detail=error.message)
                continue
            found.append(label)
        return found

    def _count(self) -> None:
        metrics, model = self._metrics, self._model
        counts = self._store.label_counts(model, remembered_since_ms=wall_clock_ms() - self._remembered_ms)
        metrics.label_versions.labels(model).set(counts.version)
        metrics.labels_waiting.labels(model).set(counts.waiting)
        metrics.labels_unmatched.labels(model).set(counts.unmatched)
        metrics.labels_contradicting.labels(model).set(counts.contradicting)
        metrics.labels_superseded.labels(model).set(counts.superseded)
        for (source, label), count in counts.by.items():
            metrics.labels_stored.labels(model, source, label).set(count)
