"""Dead letters on their way from the table to a topic, after their transaction was committed: at least once, keyed by
position. A topic that does not answer delays nothing; the letters wait in the table.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from connectors.database.store import Store
from connectors.kafka_dead_letters import KafkaDeadLetterTopic
from detectors.errors import SinkError, StoreError
from monitor.log import event

log = logging.getLogger(__name__)

AT_A_TIME = 500
WAIT_S = 1.0
RETRY_S = 10.0


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
