"""Reads labels out of a topic: what analysts, chargebacks and rules say of single records.

Positions are kept in driftd's own database, in the transaction that stores the labels: none is stored twice, none is
left out. What the broker has deleted before it was read, or cannot be decoded, is passed over: a label that is lost
must not keep all later ones from counting.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from connectors.kafka import KafkaSettings, KafkaSource
from connectors.kafka_probe import Brokers, KafkaSecurity, TopicName
from detectors.errors import InvalidSettings


class KafkaLabelsSettings(BaseModel, frozen=True, extra="forbid"):
    """A topic of Apache Kafka that brings labels, one in each message."""

    kind: Literal["kafka"] = "kafka"
    topic: TopicName = Field(description="name of the topic")
    brokers: Brokers | None = Field(
        None, description='addresses to start from, "host:port,host:port" or a list; default: those of the source'
    )
    security: KafkaSecurity | None = Field(
        None, description="how to connect to these brokers; default: with the source's, where brokers is not set"
    )

    def beside(self, source: KafkaSettings) -> KafkaLabelsSettings:
        """On the cluster of the source, and with its rights, where these settings name no brokers."""
        if self.brokers is not None:
            return self
        return self.model_copy(
            update={"brokers": source.addresses, "security": self.security if self.security else source.security}
        )

    def build(self, *, client_id: str, group: str) -> KafkaSource:
        """The topic as a source: its records are labels, each as JSON.

        Args:
            client_id: one for each running reader, stable over restarts.
            group: what all readers of the model's labels share, on whatever host.
        """
        if self.brokers is None:
            raise InvalidSettings(
                "A topic of labels has no brokers.", hint="Name them: fraud.labels.brokers: HOST:9092"
            )
        settings = KafkaSettings.model_validate(
            {
                "brokers": self.brokers,
                "topic": self.topic,
                "on_gap": "skip",
                "on_damaged": "skip",
                **({"security": self.security} if self.security is not None else {}),
            }
        )
        return settings.build(client_id=client_id, group=group)
