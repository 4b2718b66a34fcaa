"""A producer of Kafka whose messages are acknowledged by all in-sync replicas, and how to get rid of it in time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from connectors.kafka_probe import KafkaSecurity
from connectors.log_throttle import throttle

if TYPE_CHECKING:
    from kafka import KafkaProducer

_CLOSE_S = 4.5


def open_producer(
    brokers: Sequence[str],
    *,
    client_id: str,
    security: KafkaSecurity,
    timeout_s: float,
    connect_timeout_s: float,
    **options: Any,
) -> KafkaProducer:
    """An idempotent producer, which never makes a topic. Raises what the library raises.

    Args:
        timeout_s: within which a message is acknowledged or failed.
        connect_timeout_s: to wait for a broker's first answer.
        options: more of the library's, or others than here.
    """
    from kafka import KafkaProducer

    from connectors.kafka import client_factory

    throttle("kafka")
    timeout_ms = int(timeout_s * 1000)
    producer = KafkaProducer(
        bootstrap_servers=list(brokers),
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        max_block_ms=timeout_ms,
        request_timeout_ms=timeout_ms,
        delivery_timeout_ms=timeout_ms + options.get("linger_ms", 0),
        kafka_client=client_factory([]),
        reconnect_backoff_max_ms=1000,
        bootstrap_timeout_ms=int(connect_timeout_s * 1000),
        **security.client_options(),
        **options,
    )
    throttle("kafka")
    return producer


def leave(producer: KafkaProducer) -> None:
    """Close it within 5 seconds, whatever the broker does; what is still in its buffer is not sent any more."""
    thread = threading.Thread(target=lambda: producer.close(timeout=1.0), name="kafka-close", daemon=True)
    thread.start()
    thread.join(_CLOSE_S)
