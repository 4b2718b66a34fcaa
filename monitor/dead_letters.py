"""Dead letters on their way from the table to a topic, and the limit at which there are too many of them.

They are published after their transaction was committed: at least once, keyed by position. A topic that does not answer
delays nothing; the letters wait in the table.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from connectors.database.store import Store
from connectors.kafka_dead_letters import KafkaDeadLetterTopic
from connectors.records import DeadLetter
from detectors.errors import SinkError, StoreError
from monitor.log import event
from monitor.settings import DeadLetterSettings

log = logging.getLogger(__name__)

AT_A_TIME = 500
WAIT_S = 1.0
RETRY_S = 10.0


class DeadLetterLimit:
    """Says when so many records cannot be used that reading must stop: a share of the last ones, or a run of them.

    It counts record by record, in the order in which they are handed over, so that the cut of the polls does not
    matter. Remembers at most ``max(stop_records, stop_run)`` positions.

    Args:
        limits: ``stop_ratio`` of the last ``stop_records`` records reach the limit, not before there were so many;
            ``stop_run`` in a row reach it at any time.
    """

    def __init__(self, limits: DeadLetterSettings) -> None:
        self._ratio = limits.stop_ratio
        self._records = limits.stop_records
        self._run = limits.stop_run
        self._seen = 0
        self._dead: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)  # which of all records that were seen

    def push(self, offsets: npt.NDArray[np.int64], dead: Sequence[DeadLetter]) -> str:
        """Take note of records of one partition.

        Args:
            offsets: int64 (n,), of all of them, strictly increasing.
            dead: the letters among them, in any order.

        Returns:
            Why the limit is reached, in words; "" while it is not.
        """
        before, self._seen = self._seen, self._seen + len(offsets)
        last = max(dead, key=lambda letter: letter.offset, default=None)
        if last is None and before >= self._records:
            return ""  # a share that was no reason to stop has not grown
        found = np.unique(np.fromiter((letter.offset for letter in dead), dtype=np.int64, count=len(dead)))
        at = np.concatenate([self._dead, before + np.searchsorted(offsets, found)])
        self._dead = at[at >= self._seen - max(self._records, self._run)]
        why = f" (the last one: {last.reason}: {last.detail})" if last is not None else ""
        if len(at) >= self._run and bool(np.any(at[self._run - 1 :] - at[: len(at) - self._run + 1] == self._run - 1)):
            return f"{self._run:,} records in a row cannot be used{why}"
        # A share is greatest just after a dead letter, or when the first window is full.
        looks = at[np.searchsorted(at, max(before, self._records - 1)) :]
        if before < self._records <= self._seen:
            looks = np.append(looks, self._records - 1)
        inside = np.searchsorted(at, looks, side="right") - np.searchsorted(at, looks - self._records, side="right")
        worst = int(inside.max(initial=0))
        if worst > self._ratio * self._records:
            return f"{worst:,} of {self._records:,} records cannot be used{why}"
        return ""


class DeadLetterPublisher:
    """Publishes the dead letters of some models, in a thread of its own.

    Args:
        store: where the letters are.
        topics: for each model that has a dead-letter topic, the topic.
    """

    def __init__(self, store: Store, topics: Mapping[str, KafkaDeadLetterTopic]) -> None:
        self._store = store
        self._topics = dict(topics)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driftd-dead-letters", daemon=True)
        self._said = ""

    def start(self) -> None:
        """Begin, if any model has a topic."""
        if self._topics:
            self._thread.start()

    def stop(self) -> None:
        """End within 5 seconds; what was not published waits for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        for topic in self._topics.values():
            topic.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                busy = self.pump()
                self._said = ""
            except (SinkError, StoreError) as error:
                if str(error) != self._said:
                    self._said = str(error)
                    log.warning(event("dead letters wait", reason=self._said))
                self._stop.wait(RETRY_S)
                continue
            if not busy:
                self._stop.wait(WAIT_S)

    def pump(self) -> bool:
        """Publish some. Returns whether there were any.

        Raises:
            SinkError: the brokers did not take them.
            StoreError: the database did not answer.
        """
        waiting = self._store.dead_letters_unpublished(AT_A_TIME, models=list(self._topics))
        for model, topic in self._topics.items():
            rows = [row for row in waiting if row.model == model]
            if rows:
                topic.send([row.letter for row in rows])
                self._store.dead_letters_published(rows)
        return bool(waiting)
