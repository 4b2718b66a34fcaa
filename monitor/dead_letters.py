"""Dead letters on their way from the table to a topic, and the limit at which there are too many of them.

They are published after their transaction was committed: at least once, keyed by position. A topic that does not answer
delays nothing; the letters wait in the table.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from connectors.database.store import Store
from connectors.kafka_dead_letters import KafkaDeadLetterTopic
from connectors.records import DeadLetter, Partition
from detectors.errors import SinkError, StoreError
from monitor.log import RepeatingFailure, describe, event
from monitor.settings import DeadLetterSettings

log = logging.getLogger(__name__)

AT_A_TIME = 500
WAIT_S = 1.0
RETRY_S = 10.0
WAVE_HINT = "Look at them: driftd deadletters list. Mend models.*.record and start again, or raise dead_letters.stop_*."


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
    """Publishes the dead letters of some models: a thread for each topic, so that one that is down delays no other.

    Of several processes each sends the letters of the partitions that it reads now, so that each letter is sent once.
    Where a partition moves at that moment, both owners may send a letter, under the same key.

    Args:
        store: where the letters are.
        topics: for each model that has a dead-letter topic, the topic.
        assigned: the partitions of a model that this process reads now; called from the threads.
    """

    def __init__(
        self,
        store: Store,
        topics: Mapping[str, KafkaDeadLetterTopic],
        *,
        assigned: Callable[[str], frozenset[Partition]],
    ) -> None:
        self._store = store
        self._topics = dict(topics)
        self._assigned = assigned
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(model,), name=f"driftd-dead-letters-{model}", daemon=True)
            for model in self._topics
        ]

    def start(self) -> None:
        """Begin, if any model has a topic."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End within about 5 seconds; what was not published waits for the next start."""
        self._stop.set()
        deadline = time.monotonic() + 5.0
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        for topic in self._topics.values():
            topic.close()

    def waiting(self) -> int:
        """How many letters wait for their topics, those that other processes will send among them.

        Raises:
            StoreError: the database did not answer.
        """
        return self._store.dead_letters_waiting(list(self._topics))

    def _run(self, model: str) -> None:
        failure = RepeatingFailure(log, "dead letters wait")
        while not self._stop.is_set():
            try:
                busy = self.pump(model)
                failure.over(model=model)
            except (SinkError, StoreError) as error:
                failure.happened(describe(error), model=model)
                self._stop.wait(RETRY_S)
                continue
            except Exception:  # a thread that ends in silence would be letters that never come
                log.exception(event("dead letters wait", model=model))
                self._stop.wait(RETRY_S)
                continue
            if not busy:
                self._stop.wait(WAIT_S)

    def pump(self, model: str) -> bool:
        """Publish some of one model. Returns whether there were any.

        Raises:
            SinkError: the brokers did not take them.
            StoreError: the database did not answer.
        """
        assigned = self._assigned(model)
        rows = self._store.dead_letters_unpublished(AT_A_TIME, models=[model], partitions=assigned) if assigned else []
        if rows:
            self._topics[model].send([row.letter for row in rows])
            self._store.dead_letters_published(rows)
        return bool(rows)
