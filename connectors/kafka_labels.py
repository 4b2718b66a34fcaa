"""Reads labels out of a topic: what analysts, chargebacks and rules say of single records."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from connectors.kafka import KafkaSettings
from connectors.kafka_probe import Brokers, KafkaSecurity, TopicName


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
