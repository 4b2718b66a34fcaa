"""Sink `kafka`: each notification is a message of a topic, for other programs.

Delivery is at least once, in order for each incident: the key is the incident's id, so all of its messages lie in one
partition, and each is acknowledged by all in-sync replicas before the next one is sent. What comes again after a lost
acknowledgement has the same id, in the value and in the headers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from connectors.jsonl import notification_json
from connectors.kafka_probe import Brokers, KafkaSecurity, TopicName, broker_addresses
from connectors.kafka_producer import WrittenTopic
from connectors.notification import Notification
from detectors.errors import SinkError


class KafkaAlertsSettings(BaseModel, frozen=True, extra="forbid"):
    """A topic of Apache Kafka that gets each notification as JSON, with the incident's id as its key."""

    kind: Literal["kafka"] = "kafka"
    brokers: Brokers = Field(description='addresses to start from, "host:port,host:port" or a list')
    topic: TopicName = Field(description="name of the topic, which must exist")
    security: KafkaSecurity = Field(
        default_factory=lambda: KafkaSecurity.model_validate({}), description="as that of a Kafka source"
    )
    timeout_s: float = Field(10.0, gt=0, le=25, description="seconds to wait until all in-sync replicas have a message")

    def build(self) -> KafkaAlertsSink:
        """The sink; connects with the first notification."""
        return KafkaAlertsSink(
            broker_addresses(self.brokers), self.topic, security=self.security, timeout_s=self.timeout_s
        )


class KafkaAlertsSink:
    """Sends notifications to a topic. Called from one thread.

    Args:
        brokers: addresses to start from, as "host:port".
        topic: its name; the topic must exist.
        timeout_s: until when a message must be acknowledged, and to wait for a broker's first answer, at most 5.
    """

    def __init__(
        self, brokers: Sequence[str], topic: str, *, security: KafkaSecurity | None = None, timeout_s: float = 10.0
    ) -> None:
        self._topic = topic
        self._timeout_s = timeout_s
        self._written = WrittenTopic(
            brokers,
            topic,
            what="Notifications",
            place="sinks.NAME",
            client_id="driftd-alerts",
            security=security,
            timeout_s=timeout_s,
            connect_timeout_s=min(timeout_s, 5.0),
        )

    def __repr__(self) -> str:
        return f"KafkaAlertsSink({self._written!r})"

    def send(self, notification: Notification) -> None:
        """Send one, and wait for the acknowledgement of all in-sync replicas.

        Raises:
            SinkError: retryable, also where the topic or the right to write is missing, since a person can mend that;
                but not where the brokers find the message too large.
        """
        deadline = time.monotonic() + self._timeout_s
        producer = self._written.producer()
        problem, too_large = "", False
        try:
            producer.send(
                self._topic,
                key=notification.incident.encode(errors="replace"),
                value=notification_json(notification),
                headers=[
                    (name, value.encode(errors="replace"))
                    for name, value in (
                        ("id", notification.id),
                        ("model", notification.model),
                        ("severity", notification.severity),
                    )
                ],
            ).get(max(0.001, deadline - time.monotonic()))
            return
        except Exception as error:
            from kafka.errors import MessageSizeTooLargeError

            problem = f"{type(error).__name__}: {error}"
            too_large = isinstance(error, MessageSizeTooLargeError)
        # What is still in this producer's buffer must not come out later, behind what is sent next.
        self._written.close()
        if not too_large:
            self.check()  # says it better, where it can
        raise SinkError(
            f"Topic {self._topic} did not take a notification within {self._timeout_s:g} s: {problem}.",
            retryable=not too_large,
            hint="Check the topic's max.message.bytes."
            if too_large
            else "Check the rights on the topic and its min.insync.replicas.",
        )

    def check(self) -> str:
        """Connect once; one line on where notifications will go.

        Raises:
            SinkError: the topic cannot be found or reached.
        """
        return self._written.check()

    def close(self) -> None:
        """Leave within 5 seconds, whatever the broker does. Nothing is waiting: `send` has waited for it."""
        self._written.close()
