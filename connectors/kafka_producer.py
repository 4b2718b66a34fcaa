"""A topic that driftd writes: its messages are acknowledged by all in-sync replicas, and nothing makes the topic."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from connectors.kafka_probe import KafkaSecurity, find_topic
from connectors.log_throttle import throttle
from detectors.errors import SinkError, SourceError

if TYPE_CHECKING:
    from kafka import KafkaProducer

_CLOSE_S = 4.5


class WrittenTopic:
    """A topic and the idempotent producer that writes it, opened when it is first asked for.

    What it raises is retryable: a person can make the topic, or grant the right to write it.

    Args:
        brokers: addresses to start from, as "host:port".
        topic: its name; the topic must exist.
        what: is written to it, as a sentence begins: "Notifications".
        place: of its settings, for hints: "sinks.NAME".
        timeout_s: within which a message is acknowledged or failed.
        connect_timeout_s: to wait for a broker's first answer.
        options: more of the library's.

    Attributes:
        partitions: how many the topic has; 1 before the first `check`.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        topic: str,
        *,
        what: str,
        place: str,
        client_id: str,
        security: KafkaSecurity | None,
        timeout_s: float,
        connect_timeout_s: float,
        **options: Any,
    ) -> None:
        self.partitions = 1
        self._brokers = list(brokers)
        self._topic = topic
        self._what = what
        self._place = place
        self._client_id = client_id
        self._security = security if security is not None else KafkaSecurity.model_validate({})
        self._timeout_ms = int(timeout_s * 1000)
        self._connect_timeout_s = connect_timeout_s
        self._options = options
        self._producer: KafkaProducer | None = None

    def __repr__(self) -> str:
        return f"{', '.join(self._brokers)}, topic {self._topic}"

    def check(self) -> str:
        """Connect once; one line on where messages will go.

        Raises:
            SinkError: the topic cannot be found or reached.
        """
        try:
            found = find_topic(
                self._brokers,
                self._topic,
                security=self._security,
                timeout_s=self._connect_timeout_s,
                client_id=self._client_id,
            )
        except SourceError as error:
            raise SinkError(
                f"{self._what} cannot be sent: {error.message}",
                retryable=True,
                hint=error.hint.replace("source.", f"{self._place}."),
            ) from error
        self.partitions = found.partitions
        noun = "partition" if found.partitions == 1 else "partitions"
        return f"kafka {found.broker}, topic {self._topic}, {found.partitions} {noun}"

    def producer(self) -> KafkaProducer:
        """The producer; the same until `close`.

        Raises:
            SinkError: the topic cannot be found or reached.
        """
        if self._producer is None:
            self.check()
            problem = ""
            try:
                self._producer = self._open()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if self._producer is None:  # not chained: the library's errors may hold what it was configured with
                raise SinkError(
                    f"{self._what} cannot be sent to topic {self._topic}: {problem}.",
                    retryable=True,
                    hint=f"Check {self._place}.brokers and {self._place}.security.",
                )
        return self._producer

    def close(self) -> None:
        """Leave within 5 seconds, whatever the broker does; what is still in the buffer is not sent any more."""
        producer, self._producer = self._producer, None
        if producer is not None:
            thread = threading.Thread(target=lambda: producer.close(timeout=1.0), name="kafka-close", daemon=True)
            thread.start()
            thread.join(_CLOSE_S)

    def _open(self) -> KafkaProducer:
        from kafka import KafkaProducer

        from connectors.kafka import client_factory

        throttle("kafka")
        producer = KafkaProducer(
            bootstrap_servers=self._brokers,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            max_block_ms=self._timeout_ms,
            request_timeout_ms=self._timeout_ms,
            delivery_timeout_ms=self._timeout_ms + self._options.get("linger_ms", 0),
            kafka_client=client_factory([]),
            reconnect_backoff_max_ms=1000,
            bootstrap_timeout_ms=int(self._connect_timeout_s * 1000),
            **self._security.client_options(),
            **self._options,
        )
        throttle("kafka")
        return producer
