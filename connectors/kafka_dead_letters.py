"""Writes records that cannot be used to a topic of their own, where people and tools can look at them.

Delivery is at least once. The key is the record's position, topic/partition/offset, with #row where a record has many
rows; so a topic with ``cleanup.policy=compact`` keeps each dead letter once. The value is the record's first bytes, as
far as settings allow; what was wrong stands in the headers:

    reason, detail, source_topic, source_partition, source_offset, source_timestamp_ms, source_size, source_row
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from connectors.kafka_probe import KafkaSecurity
from connectors.kafka_producer import WrittenTopic
from connectors.records import DeadLetter
from detectors.errors import SinkError

_IN_FLIGHT = 1000  # letters sent before waiting: the client's own buffer has no bound
_MAX_PAYLOAD = 512 << 10  # brokers take 1 MB with key and headers unless told otherwise


class KafkaDeadLetterTopic:
    """Sends dead letters and waits until the brokers hold them. Connects with the first `send` or `check`.

    Args:
        brokers: addresses to start from, as "host:port".
        topic: its name; the topic must exist.
        timeout_s: until when the letters of one `send` must be acknowledged.
        connect_timeout_s: to wait for a broker's first answer.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        topic: str,
        *,
        client_id: str,
        security: KafkaSecurity | None = None,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self._topic = topic
        self._timeout_s = timeout_s
        self._written = WrittenTopic(
            brokers,
            topic,
            what="Dead letters",
            place="source",
            client_id=client_id,
            security=security,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            linger_ms=5,
        )

    def check(self) -> str:
        """Connect once; one line on where dead letters will go.

        Raises:
            SinkError: the topic cannot be found or reached.
        """
        return self._written.check()

    def send(self, letters: Sequence[DeadLetter]) -> None:
        """Send and wait for the acknowledgement of all in-sync replicas.

        Raises:
            SinkError: some were not acknowledged within ``timeout_s``; all may be sent again.
        """
        if not letters:
            return
        deadline = time.monotonic() + self._timeout_s
        for first in range(0, len(letters), _IN_FLIGHT):
            self._send_some(letters[first : first + _IN_FLIGHT], deadline)

    def close(self) -> None:
        """Leave within 5 seconds, whatever the broker does. Nothing is waiting: `send` has waited for all."""
        self._written.close()

    def _send_some(self, letters: Sequence[DeadLetter], deadline: float) -> None:
        producer = self._written.producer()
        try:
            waiting = [
                producer.send(
                    self._topic,
                    key=_key(letter),
                    value=letter.payload[:_MAX_PAYLOAD],
                    headers=_headers(letter),
                )
                for letter in letters
            ]
            for future in waiting:
                future.get(max(0.0, deadline - time.monotonic()))
        except Exception as error:
            # What is still in this producer's buffer must not come out later, out of order with the next try.
            self._written.close()
            self.check()  # says it better, where it can
            raise SinkError(
                f"Topic {self._topic} did not take {len(letters)} dead letters within "
                f"{self._timeout_s:g} s: {type(error).__name__}: {error}.",
                retryable=True,
                hint="Check the rights on the topic and its min.insync.replicas.",
            ) from error


def _key(letter: DeadLetter) -> bytes:
    """The position of its record, and which row of it, where it has many."""
    place = "/".join(map(str, (*letter.partition, letter.offset)))
    return (place if letter.row < 0 else f"{place}#{letter.row}").encode()


def _headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """Not the record's time as the letter's own: retention would delete the letters of old records at once."""
    values: dict[str, Any] = {
        "reason": letter.reason,
        "detail": letter.detail,
        "source_topic": letter.partition.topic,
        "source_partition": letter.partition.number,
        "source_offset": letter.offset,
        "source_timestamp_ms": letter.time_ms,
        "source_size": letter.size,
    }
    if letter.row >= 0:
        values["source_row"] = letter.row
    return [(name, str(value).encode()) for name, value in values.items()]
