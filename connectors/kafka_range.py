"""Reads parts of a topic, each from a first offset to a last: history, beside the group that reads the live end.

It is the live source with three differences: partitions are assigned here, not by a group, and no offset is committed;
what lies outside the spans is never handed over; and partitions go forward together in time, because a block of event
time stays open until all of them have passed it. What breaks is mended in the same way, or told in the same words.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from connectors.kafka import KafkaSettings, KafkaSource, within
from connectors.records import Partition, RawBatch, SourceState, Span, StoredPositions, StoredTopicIds
from detectors.errors import OffsetGap, SourceError

if TYPE_CHECKING:
    from kafka import KafkaConsumer, TopicPartition

# Records of one partition in a row. The client hands over what one fetch has brought, a megabyte, before it goes to the
# next partition; in a quiet topic that is hours.
_TURN: Final = 512
_AHEAD_MS: Final = 60_000  # of the broker's time: a partition that far ahead of the slowest waits


class KafkaRange(KafkaSource):
    """A bounded source (`connectors.records.Source.between`) of one topic.

    Args:
        settings: of the live source; ``start``, ``group`` and ``on_gap`` mean nothing here.
        spans: what to read, at least one partition.
    """

    def __init__(self, settings: KafkaSettings, spans: Mapping[Partition, Span], *, client_id: str) -> None:
        super().__init__(settings.model_copy(update={"on_gap": "stop"}), client_id=client_id, group="", instance=None)
        self._spans = dict(spans)
        self._done: set[Partition] = set()  # handed over to their ends
        self._wanted_held: frozenset[Partition] = frozenset()
        self._times: dict[Partition, int] = {}  # the newest time that came of each partition
        self._postponed: Exception | None = None

    @property
    def finished(self) -> bool:
        """All spans were handed over to their ends."""
        return self._done >= self._spans.keys()

    def check(self) -> str:
        """Connect once. See `connectors.records.Source.check`."""
        found = self._find_topic()
        offsets = sum(map(len, self._spans.values()))
        return (
            f"kafka {found.broker}, topic {self._settings.topic}, {offsets:,} offsets in {len(self._spans)} partitions"
        )

    def open(self, positions: StoredPositions, *, topic_ids: StoredTopicIds | None = None) -> None:
        """Connect. See `connectors.records.Source.open`.

        Raises:
            SourceError: what is wrong, with its cure; OffsetGap where the topic has lost partitions of the spans.
        """
        self._positions = positions
        self._topic_ids = topic_ids
        missing = [partition for partition in self._spans if partition.number >= self._find_topic().partitions]
        if missing:
            raise OffsetGap(
                f"Topic {self._settings.topic} has no partition {missing[0].number} any more: it was made anew.",
                hint=_HINT,
            )
        self._connect()

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        """See `connectors.records.Source.poll`. A batch may be empty: it then only says where reading goes on."""
        if self.finished:
            return []
        done = frozenset(self._done)
        batches = super().poll(max_records, timeout_s)
        if not batches and self._consumer is not None:
            batches = self._passed_over(self._consumer)
        batches = [batch.below(self._spans[batch.partition].after) for batch in batches if batch.partition not in done]
        self._done |= {batch.partition for batch in batches if batch.next_offset >= self._spans[batch.partition].after}
        return batches

    def rewind(self) -> None:
        """See `connectors.records.Source.rewind`."""
        self._done.clear()
        self._times.clear()
        self._postponed = None
        super().rewind()

    def assignment(self) -> frozenset[Partition]:
        """The partitions of the spans."""
        return frozenset(self._spans)

    def partitions(self) -> frozenset[Partition]:
        """The partitions of the spans: nobody else reads them."""
        return frozenset(self._spans)

    def hold(self, partitions: frozenset[Partition]) -> None:
        """See `connectors.records.Source.hold`."""
        self._wanted_held = partitions
        self._hold_back()

    def state(self) -> SourceState:
        """See `connectors.records.Source.state`."""
        return replace(super().state(), member="none", rebalances=0)

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Nobody is told; what the database holds is noted."""
        self._committed_at = time.monotonic()
        self._base.update(next_offsets)

    def lag(self) -> Mapping[Partition, int]:
        """Offsets left, up to the ends of the spans."""
        return {
            partition: 0 if partition in self._done else max(0, span.after - self._next.get(partition, span.first))
            for partition, span in self._spans.items()
        }

    def _connect(self) -> KafkaConsumer:
        if self._positions is None:
            raise SourceError("The Kafka source is not open.", hint="Call open(positions) before poll().")
        consumer = self._new_consumer(group=None, instance=None)
        tps = self._topic_partitions(sorted(partition.number for partition in self._spans))
        try:
            self._ask(lambda: consumer.end_offsets(tps[:1], timeout_ms=self._rpc_ms))  # it learns of the topic
        except SourceError:
            within(1.0, lambda: consumer.close(autocommit=False, timeout_ms=500))
            raise
        consumer.assign(tps)
        for tp in tps:
            consumer.seek(tp, 0)  # until it is placed; the pause keeps it from being fetched
            consumer.pause(tp)
        self._postponed = None
        self._heard = self._received = self._committed_at = time.monotonic()
        self._asked = float("-inf")
        with self._lock:
            self._fresh = set(tps)
        self._consumer = consumer
        return consumer

    def _place_these(self, consumer: KafkaConsumer, tps: Sequence[TopicPartition]) -> None:
        assert self._positions is not None
        stored = self._positions([Partition(*tp) for tp in tps])
        left = []
        for tp in tps:
            partition = Partition(*tp)
            span, position = self._spans[partition], stored.get(partition)
            if position is not None and position < span.first:
                raise OffsetGap(
                    f"Partition {tp.partition} of topic {tp.topic} was read up to offset {position}, and the range "
                    f"begins at {span.first}: what lies between would be left out.",
                    hint="Begin the range earlier.",
                )
            unmoved = self._base.get(partition) == position
            at = self._next.get(partition, position) if unmoved else position
            if at is not None and at >= span.after:  # over; whether the broker still has it does not matter
                self._base[partition] = position
                self._next[partition] = at
                self._ids[partition] = span.topic_id
                self._done.add(partition)
            else:
                left.append(tp)
        if not left:
            return
        now_id = self._topic_id(consumer)
        try:
            for tp in left:
                if None not in (now_id, known := self._spans[Partition(*tp)].topic_id) and known != now_id:
                    raise OffsetGap(f"Topic {tp.topic} was deleted and made anew.")
            super()._place_these(consumer, left)
        except OffsetGap as error:
            raise OffsetGap(error.message, hint=_HINT) from error

    def _resolve_starts(
        self,
        consumer: KafkaConsumer,
        tps: Sequence[TopicPartition],
        first: Mapping[TopicPartition, int],
        last: Mapping[TopicPartition, int],
    ) -> Mapping[Partition, int]:
        return {Partition(*tp): self._spans[Partition(*tp)].first for tp in tps}

    def _ask_for_ends(self, consumer: KafkaConsumer) -> None:
        """The ends are known."""

    def _fetch(self, consumer: KafkaConsumer, max_records: int, timeout_s: float) -> Mapping[TopicPartition, list[Any]]:
        """Polls of a few records each, so that partitions take turns, and none runs ahead in time."""
        if self._postponed is not None:
            error, self._postponed = self._postponed, None
            raise error
        polled: dict[TopicPartition, list[Any]] = defaultdict(list)
        left, timeout_ms = max_records, max(1, int(timeout_s * 1000))
        while left > 0:
            self._hold_back(polled)
            try:
                came = consumer.poll(timeout_ms=timeout_ms, max_records=min(left, _TURN))
            except Exception as error:
                if not polled:
                    raise
                self._postponed = error  # what came before must be handed over: the client has gone on
                break
            if not came:
                break
            for tp, records in came.items():
                polled[tp] += records
                left -= len(records)
                partition, newest = Partition(*tp), records[-1].timestamp
                self._times[partition] = max(newest, self._times.get(partition, newest))
            timeout_ms = 1
        return polled

    def _hold_back(self, polled: Mapping[TopicPartition, list[Any]] | None = None) -> None:
        """Fetch neither what is read to its end, nor what is held, nor what is ahead of the slowest of the others."""
        over = self._done | {
            Partition(*tp)
            for tp, records in (polled or {}).items()
            if records[-1].offset + 1 >= self._spans[Partition(*tp)].after
        }
        times = {
            partition: self._times.get(partition, -1)
            for partition in self._spans.keys() - over - self._wanted_held
            if partition in self._next
        }
        limit = min(times.values(), default=-1) + _AHEAD_MS
        ahead = {partition for partition, time_ms in times.items() if time_ms > limit}
        held = frozenset(over | ahead | self._wanted_held)
        if held != self._held:
            super().hold(held)


_HINT: Final = "Begin the range later, or read it from where older records are kept: models.NAME.history."
