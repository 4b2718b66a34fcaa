"""A topic that is made for one occasion, filled, and deleted: what `driftd doctor --soak` reads.

Nothing else in driftd makes or deletes a topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from connectors.kafka_probe import KafkaSecurity
from connectors.log_throttle import throttle
from detectors.errors import AccessRefused, SourceError, SourceUnreachable

_AT_ONCE = 20_000  # records sent before waiting: the client's own buffer has no bound
_FLUSH_S = 60.0

# What a record is made of: partition, time in milliseconds since 1970, key, value.
Record = tuple[int, int, bytes, bytes | None]


class ScratchTopic:
    """A topic of our own on somebody's brokers.

        with scratch_topic(brokers, "driftd-soak-3f2a91", partitions=4, security=security) as topic:
            topic.fill(records, lambda sent: None)

    Args:
        brokers: addresses to start from, as "host:port".
        security: how to connect; whoever it is needs the rights to CREATE, WRITE, READ and DELETE the topic.
        connect_timeout_s: to wait for a broker's first answer.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        name: str,
        *,
        security: KafkaSecurity,
        client_id: str,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self.name = name
        self._options: dict[str, Any] = {
            "bootstrap_servers": list(brokers),
            "client_id": client_id,
            "reconnect_backoff_max_ms": 1000,
            "bootstrap_timeout_ms": int(connect_timeout_s * 1000),
            **security.client_options(),
        }

    def create(self, partitions: int) -> None:
        """Make the topic: as many copies as the cluster's default says, its records kept whatever their time is.

        Raises:
            SourceError: the brokers refuse, or do not answer.
        """
        from kafka.admin import NewTopic

        # Only the times are unusual; a broker that deletes by size would spoil the count.
        kept = {"retention.ms": "-1", "retention.bytes": "-1", "message.timestamp.type": "CreateTime"}
        topic = NewTopic(self.name, num_partitions=partitions, replication_factor=-1, topic_configs=kept)
        with self._admin("made") as admin:
            admin.create_topics([topic])
            admin.wait_for_topics([self.name])

    def fill(self, records: Iterable[Record], progress: Callable[[int], None]) -> int:
        """Write the records in their order, and wait until all in-sync replicas have them. Returns how many.

        Args:
            progress: is told now and then how many are written.

        Raises:
            SourceError: the brokers did not take them.
        """
        from kafka import KafkaProducer

        throttle("kafka")
        sent = 0
        try:
            with KafkaProducer(**self._options, acks="all", batch_size=1 << 18, linger_ms=20) as producer:
                futures = []
                for partition, time_ms, key, value in records:
                    futures.append(producer.send(self.name, value, key=key, partition=partition, timestamp_ms=time_ms))
                    sent += 1
                    if len(futures) == _AT_ONCE:
                        self._wait_for(producer, futures)
                        progress(sent)
                self._wait_for(producer, futures)
        except Exception as error:
            raise self._translated(error, "filled") from error
        progress(sent)
        return sent

    def _wait_for(self, producer: Any, futures: list[Any]) -> None:
        producer.flush(timeout=_FLUSH_S)
        for future in futures:
            future.get(0)
        futures.clear()

    def delete(self) -> None:
        """Delete the topic with all its records.

        Raises:
            SourceError: the brokers refuse, or do not answer: the topic is still there.
        """
        with self._admin("deleted") as admin:
            admin.delete_topics([self.name])

    @contextmanager
    def _admin(self, done: str) -> Iterator[Any]:
        from kafka.admin import KafkaAdminClient

        throttle("kafka")
        admin = None
        try:
            admin = KafkaAdminClient(**self._options)
            yield admin
        except Exception as error:
            raise self._translated(error, done) from error
        finally:
            if admin is not None:
                admin.close()

    def _translated(self, error: Exception, done: str) -> SourceError:
        name = type(error).__name__
        message = f"Topic {self.name} could not be {done}: {name}: {error}."
        if "Authoriz" in name or "Authentic" in name:
            hint = f"Give the user of the settings the rights to CREATE, WRITE, READ and DELETE topic {self.name}."
            return AccessRefused(message, hint=hint)
        if "Timeout" in name or "Connection" in name:
            return SourceUnreachable(message, hint="Is the address right? Type: driftd check")
        return SourceError(message, hint=f"If it is there now, delete it by hand: topic {self.name}.")


@contextmanager
def scratch_topic(
    brokers: Sequence[str],
    name: str,
    *,
    partitions: int,
    security: KafkaSecurity,
    client_id: str,
    connect_timeout_s: float = 5.0,
) -> Iterator[ScratchTopic]:
    """The topic, made at the beginning of the block and deleted at its end, however it ends.

    Raises:
        SourceError: it cannot be made or deleted.
    """
    topic = ScratchTopic(brokers, name, security=security, client_id=client_id, connect_timeout_s=connect_timeout_s)
    topic.create(partitions)
    try:
        yield topic
    finally:
        topic.delete()
