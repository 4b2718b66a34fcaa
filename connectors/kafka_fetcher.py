"""kafka-python's fetcher, with what it lacks: the place of batches that cannot be decoded, and fetching by topic id.

**Batches that cannot be decoded**, damaged or of an unknown codec. kafka-python 3.0 raises once for such a batch,
mostly without saying which, and its next poll never returns. Here the fetcher says which offsets the batch holds, drops
what it fetched, and goes on with the other partitions. Where nobody moves the position, the batch is fetched again, and
told again.

**Partitions that were paused in the middle of an answer** have their turn again when they are resumed.

**Fetching by topic id** (Fetch version 13, KIP-516; brokers from 3.1 on). By its name alone, a topic that is deleted
and made anew under a reader would be read on at the old offset, until the next look at the metadata.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from connectors.records import Partition

if TYPE_CHECKING:
    from kafka import KafkaConsumer

TRIES: Final = 3  # of the same batch, before it is called damaged: what the network broke comes whole the next time

_BY_TOPIC_ID: Final = 13  # the version of Fetch

_HEAD: Final = struct.Struct(">qi4xb")  # first offset, size, and format of a batch of any format
_LAST: Final = struct.Struct(">23xi")  # the last offset, counted from the first, in a batch of format 2


class UndecodableBatch(Exception):
    """A batch cannot be decoded; the cause says why.

    Attributes:
        partition, offset: the first record that cannot be read.
        next_offset: what follows the batch; None where its header does not say.
    """

    def __init__(self, partition: Partition, offset: int, next_offset: int | None, reason: str) -> None:
        super().__init__(f"offset {offset} of partition {partition.number} of topic {partition.topic}: {reason}")
        self.partition = partition
        self.offset = offset
        self.next_offset = next_offset
        self.reason = reason


class DamageCount:
    """How often the same batch could not be decoded, per partition."""

    def __init__(self) -> None:
        self._seen: dict[Partition, tuple[int, int]] = {}

    def lasting(self, damage: UndecodableBatch) -> bool:
        """Note one more try; True once there were enough."""
        offset, tries = self._seen.get(damage.partition, (-1, 0))
        tries = tries + 1 if offset == damage.offset else 1
        self._seen[damage.partition] = (damage.offset, tries)
        return tries >= TRIES


def mend_fetcher(consumer: KafkaConsumer) -> None:
    """From now on this client's polls raise UndecodableBatch, never hang, and fetch by topic id where they can."""
    consumer._fetcher.__class__ = _fetcher_class()
    consumer._fetcher.names = {}


def after_batch(batch: bytes | memoryview | None, following: memoryview | None, offset: int) -> int | None:
    """The first offset after a batch, by its header and by the next batch's; None where both say nothing usable.

    A damaged header can say anything. The least of what is possible is taken: too little only means one more gap.
    """
    found = []
    if batch is not None and len(batch) >= _LAST.size:
        first, _, magic = _HEAD.unpack_from(batch)
        # In the old formats a batch is one message, or has the offset of its last one.
        found.append(first + (_LAST.unpack_from(batch)[0] if magic == 2 else 0) + 1)
    if following is not None and len(following) >= _HEAD.size:
        found.append(_HEAD.unpack_from(following)[0])
    return min((after for after in found if after > offset), default=None)


@cache
def _fetcher_class() -> type:
    from kafka.consumer.fetcher import Fetcher
    from kafka.errors import CorruptRecordError
    from kafka.record import MemoryRecords

    class _Batches(MemoryRecords):  # type: ignore[misc]
        """The batches of an answer, which know the one that was taken last."""

        __slots__ = ("current",)

        def __init__(self, answer: Any) -> None:
            super().__init__(answer)
            self.current = None

        def next_batch(self) -> Any:
            self.current = self._next_slice
            return super().next_batch()

    class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
        def __init__(self, fetch_offset: int, tp: Any, records: Any, **options: Any) -> None:
            self._batches: Any = _Batches(records._buffer)
            super().__init__(fetch_offset, tp, self._batches, **options)
            if records.size_in_bytes() > 0 and not records.has_next():
                after = after_batch(records._buffer, None, fetch_offset)
                raise UndecodableBatch(Partition(*tp), fetch_offset, after, "the batch is cut short")

        def drain(self) -> None:
            super().drain()
            self._batches = None  # nothing is kept of an answer that was read

        def take(self, n: int | None = None) -> Any:
            try:
                return super().take(n)
            except MemoryError:
                self.drain()
                raise
            except Exception as error:
                offset = self.next_fetch_offset
                after = after_batch(self._batches.current, self._batches._next_slice, offset)
                self.drain()  # or its dead iterator would be asked for ever
                raise UndecodableBatch(Partition(*self.topic_partition), offset, after, str(error)) from error

    class _Fetcher(Fetcher):  # type: ignore[misc]
        PartitionRecords = _PartitionRecords
        names: dict[Any, str]  # by topic id
        _next_partition_records: Any

        def fetched_records(self, max_records: Any = None, update_offsets: bool = True) -> Any:
            # kafka-python 3.0 takes up the records of a partition that was paused only where no others are in line, and
            # others that are used up stay in line: without new answers the partition would be silent for ever.
            if not self._next_partition_records:
                self._next_partition_records = None
            return super().fetched_records(max_records, update_offsets=update_offsets)

        def _parse_fetched_data(self, completed_fetch: Any) -> Any:
            try:
                return super()._parse_fetched_data(completed_fetch)
            except CorruptRecordError as error:  # the broker itself cannot read it
                partition, offset = Partition(*completed_fetch.topic_partition), completed_fetch.fetched_offset
                raise UndecodableBatch(partition, offset, None, "the broker calls it corrupt") from error

        def _create_fetch_requests(self) -> Any:
            cluster = self._manager.cluster
            ids = {tp.topic: cluster.topic_id(tp.topic) for tp in self._subscriptions.assigned_partitions()}
            known = {name: topic_id for name, topic_id in ids.items() if topic_id is not None and topic_id.int}
            if any(self.names.get(topic_id) != name for name, topic_id in known.items()):
                self.names = {topic_id: name for name, topic_id in known.items()}
                for session in self._session_handlers.values():  # the brokers' sessions hold the old ids
                    session.next_metadata = session.next_metadata.next_close_existing()
            requests = super()._create_fetch_requests()
            for request, _ in requests.values():
                topics = [*request.topics, *request.forgotten_topics_data]
                if all(topic.topic in known for topic in topics):
                    request._max_version = _BY_TOPIC_ID
                    for topic in topics:
                        topic.topic_id = known[topic.topic]
            return requests

        def _handle_fetch_response(self, node_id: Any, fetch_offsets: Any, send_time: float, response: Any) -> None:
            if response.API_VERSION >= _BY_TOPIC_ID:
                for topic in response.responses:
                    topic.topic = self.names.get(topic.topic_id, "")
            super()._handle_fetch_response(node_id, fetch_offsets, send_time, response)

    return _Fetcher
