"""Reads a topic of Apache Kafka, from the positions that driftd's own database holds.

How it stays exact (docs/kafka.md says it at length):

* The group only decides who reads which partition. Its offsets are written for lag tools and never read.
* A new assignment is paused at once; on the polling thread each partition is then placed at the offset stored in the
  database, and only then fetched. The rebalance listener runs on the client's I/O thread, where nothing may block.
* A partition that stays ours over a rebalance, or over a rebuilt client, goes on where we were, as long as its stored
  offset is the one that we know: nobody else has written it.
* Where nothing is stored, the start in the settings becomes a number once, and is handed over as an empty batch, so
  that it is stored before the first record comes.
* What is missing comes out as an empty batch with a gap, where the settings do not say to stop.
* An error that the client does not survive closes it; the next poll builds a new one.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, Field

from connectors.kafka_fetcher import DamageCount, UndecodableBatch, mend_fetcher
from connectors.kafka_probe import Brokers, KafkaSecurity, TopicFound, TopicName, broker_addresses, find_topic
from connectors.log_throttle import throttle
from connectors.records import (
    Gap,
    Headers,
    Partition,
    RawBatch,
    Source,
    SourceState,
    Span,
    StoredPositions,
    StoredTopicIds,
)
from detectors.errors import (
    AccessRefused,
    MissingCodec,
    OffsetGap,
    SourceError,
    SourceUnreachable,
    UnknownTopic,
)

if TYPE_CHECKING:
    from kafka import KafkaConsumer, TopicPartition

    from connectors.kafka_dead_letters import KafkaDeadLetterTopic

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

_MIN_POLL_MS = 100  # kafka-python 3.0 never finishes joining a group on polls of 0 ms
_MAX_POLL_INTERVAL_MS = 600_000  # building a first reference between two polls may take minutes
_FETCH_MAX_BYTES = 16 << 20  # the default of 50 MB peaks at 300 MB resident with many partitions
_CLOSE_S = 4.5  # a source leaves within 5 s
_PROBE_EVERY_S = 5.0
_SILENCE_S = 30.0  # without records for so long, ask whether the topic is still there
_JOIN_S = 2.0  # a signal must be heard in between
_STUCK_S = 30.0  # not a word from brokers that answer others: the client is stuck
_COMMIT_EVERY_S = 10.0
_LOOK_EVERY_S = 10.0
_ENDS_MS = 500
_METADATA_AGE_MS = 10_000  # a partition that is added, or a topic made anew, is seen within that time
_ATTEMPTS = 3  # the same failure in a row, before it is called lasting
_LOG_APPEND_TIME = 1
_JUMP = 5000  # records; to skip fewer, reading on is cheaper than fetching anew

_OFFSET, _TIMESTAMP, _KEY, _VALUE, _HEADERS = itemgetter(3), itemgetter(4), itemgetter(6), itemgetter(7), itemgetter(8)


class KafkaSettings(BaseModel, frozen=True, extra="forbid"):
    """A topic of Apache Kafka, as a member of a consumer group."""

    kind: Literal["kafka"] = "kafka"
    brokers: Brokers = Field(description='addresses to start from, "host:port,host:port" or a list')
    topic: TopicName = Field(description="name of the topic")
    group: str | None = Field(
        None, min_length=1, description="consumer group; default: driftd-MODEL. Two models need two groups"
    )
    instance: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9._-]{1,200}$",
        description="static member id, to have the same partitions back after a restart; "
        'default: model, host and worker; "none": leave the group on stopping',
    )
    start: Literal["earliest", "latest"] | AwareDatetime = Field(
        "earliest",
        description="where to begin when the database has no position: earliest, latest, or a time (RFC 3339)",
    )
    on_gap: Literal["stop", "skip"] = Field(
        "stop",
        description="when the stored position is no longer in the topic: stop with an error, or skip what is lost",
    )
    on_damaged: Literal["stop", "skip"] = Field(
        "stop",
        description="when a batch cannot be decoded, at the third try: stop with an error, or skip that batch",
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="whether records of open and aborted transactions are read"
    )
    security: KafkaSecurity = Field(default_factory=lambda: KafkaSecurity.model_validate({}))
    session_timeout_s: float = Field(
        45.0, ge=1, le=1800, description="seconds after which the group gives a silent member's partitions to another"
    )
    max_partition_fetch_bytes: int = Field(
        1 << 20, ge=1 << 10, le=1 << 28, description="bytes fetched at once from one partition"
    )
    connect_timeout_s: float = Field(5.0, gt=0, le=60, description="seconds to wait for a broker's answer")
    unreachable_after_s: float = Field(
        10.0, ge=1, description="seconds without a word from any broker until that is reported as an error"
    )

    @property
    def addresses(self) -> list[str]:
        return broker_addresses(self.brokers)

    @property
    def ends(self) -> bool:
        """Reading comes to an end by itself."""
        return False

    @property
    def answer_s(self) -> float:
        """How long one question may take, in seconds."""
        return self.connect_timeout_s

    def build(self, *, client_id: str, group: str = "driftd") -> KafkaSource:
        """The source.

        Args:
            client_id: one for each running reader, stable over restarts: "driftd-MODEL-HOST-ORDINAL".
            group: what all readers of the model share, on whatever host; the settings' own name comes first.
        """
        instance = None if self.instance == "none" else (self.instance or client_id)
        return KafkaSource(self, client_id=client_id, group=self.group or group, instance=instance)

    def dead_letter_topic(self, topic: str, *, client_id: str) -> KafkaDeadLetterTopic:
        """Where unusable records of this source go, on the same cluster and with the same rights."""
        from connectors.kafka_dead_letters import KafkaDeadLetterTopic

        return KafkaDeadLetterTopic(
            self.addresses,
            topic,
            security=self.security,
            client_id=client_id,
            connect_timeout_s=self.connect_timeout_s,
        )


class KafkaSource:
    """A live source (connectors.records.Source); see the top of this file.

    ``open`` takes the look-up of stored offsets. It is called on the polling thread, from inside `poll`, for partitions
    that are newly ours, before any record of them is handed over.

    Attributes:
        failed_commits: group commits that Kafka refused or lost; harmless, lag tools show old numbers meanwhile.
        rebuilt: how often an error made the client be built anew.
    """

    def __init__(self, settings: KafkaSettings, *, client_id: str, group: str, instance: str | None) -> None:
        self._settings = settings
        self._client_id = client_id
        self.group = group
        self.instance = re.sub(r"[^a-zA-Z0-9._-]", "-", instance)[:249] if instance else None
        self._positions: StoredPositions | None = None
        self._topic_ids: StoredTopicIds | None = None
        self._consumer: KafkaConsumer | None = None
        # Shared with the rebalance listener, which runs on the client's I/O thread.
        self._lock = threading.Lock()
        self._fresh: set[TopicPartition] = set()
        self._assigned: frozenset[Partition] = frozenset()
        self._known: frozenset[Partition] = frozenset()
        self._held: frozenset[Partition] = frozenset()
        self._next: dict[Partition, int] = {}  # what comes after the records handed over
        self._base: dict[Partition, int | None] = {}  # what the database holds, as far as we know
        self._starts: dict[Partition, int] = {}  # starts that were resolved and may not be stored yet
        self._ends: dict[Partition, int] = {}
        self._ids: dict[Partition, str | None] = {}  # of the topic that `_next` belongs to
        self._diverged: dict[Partition, int | None] = {}  # where a log that was cut off still was what we read
        self._told: list[RawBatch] = []  # empty batches that tell starts and gaps, not handed over yet
        self._damage = DamageCount()
        self._partitions_at_open = 0
        self._committed: dict[Partition, int] = {}
        self._progress: dict[Partition, float] = {}  # when each was last at its end or brought something
        self._rebalances = 0
        self._failures = 0
        self._heard = self._asked = self._received = self._committed_at = self._looked = 0.0  # monotonic clock
        self._trouble: SourceError | None = None
        self.failed_commits = 0
        self.rebuilt = 0

    @property
    def finished(self) -> bool:
        """A topic has no end."""
        return False

    @property
    def connected(self) -> bool:
        """A broker has said something within the last ``unreachable_after_s`` seconds."""
        return self._consumer is not None and self.last_contact_age_s < self._settings.unreachable_after_s

    @property
    def last_contact_age_s(self) -> float:
        """Seconds since a broker last said anything, even "no records"; while connected, below about 3."""
        self._listen()
        return time.monotonic() - self._heard

    def check(self) -> str:
        """Connect once: address, TLS, log-in, topic, rights, codecs. See `connectors.records.Source.check`.

        Raises:
            SourceUnreachable, AccessRefused, UnknownTopic, MissingCodec: what is wrong, with its cure.
        """
        require_codecs()
        found = self._find_topic()
        consumer = self._new_consumer(group=self.group, instance=None)
        try:
            tps = self._topic_partitions(range(found.partitions))
            # Both need no membership: the rights on the group, then those on the topic.
            try:
                consumer.committed(tps[0], timeout_ms=self._rpc_ms)
            except Exception as error:
                if not _is_retriable(error):  # the very first question of a new cluster can take long
                    raise
            consumer.assign(tps)
            for tp, end in consumer.end_offsets(tps, timeout_ms=self._rpc_ms).items():
                consumer.seek(tp, end)
            consumer.poll(timeout_ms=_MIN_POLL_MS, max_records=1)
        except Exception as error:
            raise self._translated(error) from error
        finally:
            within(_CLOSE_S, lambda: consumer.close(autocommit=False, timeout_ms=1000))
        noun = "partition" if found.partitions == 1 else "partitions"
        return f"kafka {found.broker}, topic {self._settings.topic}, {found.partitions} {noun}, group {self.group}"

    def open(self, positions: StoredPositions, *, topic_ids: StoredTopicIds | None = None) -> None:
        """Connect and join the group; partitions come with the first polls.

        Raises:
            SourceUnreachable, AccessRefused, UnknownTopic, MissingCodec: what is wrong, with its cure.
        """
        self._positions = positions
        self._topic_ids = topic_ids
        require_codecs()
        self._partitions_at_open = self._find_topic().partitions
        self._connect()

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        """See `connectors.records.Source.poll`. A batch may be empty: it then only says where reading goes on.

        An outage is no error at first: there is nothing to read. After ``unreachable_after_s`` it is told, by
        SourceUnreachable from each call, while the client goes on trying underneath.

        Raises:
            OffsetGap: a stored offset is gone and ``on_gap`` is stop.
            SourceError: `retryable` says whether to call again. Nothing that was handed over is handed over again.
        """
        consumer = self._consumer if self._consumer is not None else self._connect()
        self._place()
        try:
            polled = self._fetch(consumer, max_records, timeout_s)
        except UndecodableBatch as damage:
            self._after_damage(consumer, damage)
            polled = {}
        except Exception as error:
            self._after_failure(error)
            polled = {}
        if self._made_anew(consumer):
            self._replace(consumer.assignment())
            polled = {}  # of the old topic or of the new one: nobody can tell
        try:
            self._place()
        except BaseException:
            # What came with this poll is not handed over now, so it must be fetched again.
            self._replace(polled)
            raise
        batches = [batch for batch in self._told if batch.partition in self._next]
        self._told = []
        for tp, records in polled.items():
            partition = Partition(*tp)
            if partition in self._next and tp not in self._fresh:
                position = _position(consumer, partition)
                batch = _raw_batch(partition, records, position, topic_id=self._ids[partition])
                self._next[partition] = batch.next_offset
                batches.append(batch)
        now = time.monotonic()
        self._progress.update({batch.partition: now for batch in batches})
        if polled:
            self._failures = 0
            self._trouble = None
            self._heard = self._received = now
        elif not batches:  # it may raise, and what is told then would be lost
            self._watch_connection()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            batches += self._passed_over(consumer)
            self._ask_for_ends(consumer)
        if time.monotonic() - self._committed_at >= _COMMIT_EVERY_S:
            # The client does not say that another process took its member id, except in the answer to a commit.
            self.commit(self._committed)
        return batches

    def rewind(self) -> None:
        """See `connectors.records.Source.rewind`. Takes effect in the next poll."""
        self._next.clear()
        self._told.clear()
        if self._consumer is not None:
            self._replace(self._consumer.assignment())

    def assignment(self) -> frozenset[Partition]:
        """The partitions that this source reads, as of the last poll."""
        return self._assigned

    def partitions(self) -> frozenset[Partition]:
        """Every partition of the topic that the client knows of; it looks anew every 10 s."""
        if self._consumer is not None:
            numbers = self._consumer._client.cluster.partitions_for_topic(self._settings.topic)
            if numbers:
                self._known = frozenset(Partition(self._settings.topic, number) for number in numbers)
        return self._known

    def hold(self, partitions: frozenset[Partition]) -> None:
        """See `connectors.records.Source.hold`. What was fetched of a held partition is kept until it is let go."""
        self._held = partitions
        if self._consumer is None:
            return
        with self._lock:
            for tp in self._consumer.assignment() - self._fresh:
                self._let_fetch(self._consumer, tp)

    def state(self) -> SourceState:
        """See `connectors.records.Source.state`."""
        now = time.monotonic()
        stable = self._consumer is not None and self._consumer._coordinator.stable()
        silent = {}
        for partition, lag in self.lag().items():
            if lag == 0 or partition in self._held:
                self._progress[partition] = now
            elif (seconds := now - self._progress.setdefault(partition, now)) > _SILENCE_S:
                silent[partition] = seconds
        return SourceState(
            member="stable" if stable else "joining",
            connected=self.connected,
            rebalances=self._rebalances,
            rebuilt=self.rebuilt,
            failed_commits=self.failed_commits,
            silent=silent,
        )

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """See `connectors.records.Source.commit`: advisory, asynchronous, never raises."""
        from kafka import TopicPartition
        from kafka.structs import OffsetAndMetadata

        self._committed_at = time.monotonic()
        self._base.update(next_offsets)
        self._committed.update(next_offsets)
        mine = {
            TopicPartition(*partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in next_offsets.items()
            if partition in self._assigned
        }
        if not mine or self._consumer is None:
            return
        try:
            self._consumer.commit_async(mine, callback=self._after_commit)
        except Exception as error:
            # Even a fenced member: the next poll says so, and the database is what counts.
            self._after_commit(mine, error)

    def lag(self) -> Mapping[Partition, int]:
        """See `connectors.records.Source.lag`: up to the last fetch's end of the topic."""
        from kafka import TopicPartition

        lags = {}
        for partition in self._assigned:
            tp = TopicPartition(*partition)
            position = _position(self._consumer, partition) if self._consumer is not None else None
            if position is None:
                position = self._next.get(partition)
            if position is None:
                continue
            try:
                end = self._consumer.highwater(tp) if self._consumer is not None else None
            except Exception:  # not ours any more, since a moment ago
                end = None
            lags[partition] = max(0, max(end or 0, self._ends.get(partition, 0)) - position)
        return lags

    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        """See `connectors.records.Source.read_range`. The ends are fixed when the first batch is asked for.

        Every record from the first that is new enough to the end of the topic is looked at, because producers' clocks
        may go back; where the broker sets the time (LogAppendTime), reading stops at ``end_ms``.

        Raises:
            SourceError: the topic cannot be read; what was handed over before stays valid.
        """
        require_codecs()
        found = self._find_topic()
        with self._reader() as consumer:
            yield from self._range_batches(consumer, self._topic_partitions(range(found.partitions)), start_ms, end_ms)

    def extents(self, start_ms: int | None, end_ms: int | None) -> dict[Partition, Span]:
        """See `connectors.records.Source.extents`. The end of a partition is before transactions that are open.

        Raises:
            SourceError: the topic cannot be read.
        """
        require_codecs()
        found = self._find_topic()
        tps = self._topic_partitions(range(found.partitions))
        with self._reader() as consumer:
            first, last = self._limits(consumer, tps)
            begin = first if start_ms is None else self._first_since(consumer, tps, start_ms, last)
            end = last if end_ms is None else self._first_since(consumer, tps, end_ms, last)
            topic_id = self._topic_id(consumer)
        spans = {Partition(*tp): Span(begin[tp], min(end[tp], last[tp]), topic_id) for tp in tps}
        return {partition: span for partition, span in spans.items() if len(span)}

    def between(self, spans: Mapping[Partition, Span]) -> Source:
        """See `connectors.records.Source.between`."""
        from connectors.kafka_range import KafkaRange

        return KafkaRange(self._settings, spans, client_id=self._client_id)

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        """See `connectors.records.Source.read_at`. Absent are also records of transactions that are open or aborted.

        Raises:
            SourceError: the topic cannot be read; what was handed over before stays valid.
        """
        require_codecs()
        wanted: dict[TopicPartition, npt.NDArray[np.int64]] = {}
        found = self._find_topic()
        for tp in self._topic_partitions(range(found.partitions)):
            offsets = {offset for partition, offset in positions if partition == tp}
            if offsets:
                wanted[tp] = np.array(sorted(offsets), dtype=np.int64)
        if not wanted:
            return
        with self._reader() as consumer:
            yield from self._batches_at(consumer, wanted)

    def close(self) -> None:
        """Leave within 5 seconds, whatever the broker does. A static member's partitions wait for its return."""
        from kafka import TopicPartition
        from kafka.structs import OffsetAndMetadata

        self._listen()
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        last = {TopicPartition(*p): OffsetAndMetadata(n, "", -1) for p, n in self._committed.items()}
        alive = time.monotonic() - self._heard < 3.0

        def leave() -> None:
            # An asynchronous commit that is still under way is lost on closing; lag tools would show it for ever.
            mine = {tp: offset for tp, offset in last.items() if tp in consumer.assignment()}
            if mine and alive:
                try:
                    consumer.commit(mine, timeout_ms=1000)
                except Exception:
                    self.failed_commits += 1
            consumer.close(autocommit=False, timeout_ms=2000)

        if not within(_CLOSE_S, leave):
            _log.warning("kafka client did not close in time, left behind: topic=%s", self._settings.topic)
        self._assigned = frozenset()

    def _fetch(self, consumer: KafkaConsumer, max_records: int, timeout_s: float) -> Mapping[TopicPartition, list[Any]]:
        return _poll(consumer, max_records, timeout_s)

    @property
    def _rpc_ms(self) -> int:
        return int(self._settings.connect_timeout_s * 1000)

    def _topic_partitions(self, numbers: Iterable[int]) -> list[TopicPartition]:
        from kafka import TopicPartition

        return [TopicPartition(self._settings.topic, number) for number in numbers]

    def _find_topic(self, timeout_s: float | None = None) -> TopicFound:
        settings = self._settings
        return find_topic(
            settings.addresses,
            settings.topic,
            security=settings.security,
            timeout_s=timeout_s or settings.connect_timeout_s,
            client_id=self._client_id,
        )

    def _new_consumer(self, *, group: str | None, instance: str | None) -> KafkaConsumer:
        from kafka import KafkaConsumer

        settings = self._settings
        throttle("kafka")
        clients: list[Any] = []
        session_ms = int(settings.session_timeout_s * 1000)
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=settings.addresses,
                client_id=self._client_id,
                group_id=group,
                group_instance_id=instance,
                enable_auto_commit=False,
                auto_offset_reset="none",  # a position that is gone must be an error, never a jump
                allow_auto_create_topics=False,
                isolation_level=settings.isolation,
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=min(3000, session_ms // 3),
                max_poll_interval_ms=max(_MAX_POLL_INTERVAL_MS, session_ms),
                max_partition_fetch_bytes=settings.max_partition_fetch_bytes,
                fetch_max_bytes=max(_FETCH_MAX_BYTES, settings.max_partition_fetch_bytes),
                reconnect_backoff_max_ms=1000,  # the default of 30 s lengthens every outage
                metadata_max_age_ms=_METADATA_AGE_MS,
                bootstrap_timeout_ms=self._rpc_ms,
                kafka_client=client_factory(clients),
                **settings.security.client_options(),
            )
        except Exception as error:
            for made in clients:  # the constructor that failed leaves its I/O thread running
                within(1.0, made.close)
            if _is_retriable(error):
                self._find_topic()  # says it better, where it can
            raise self._translated(error) from error
        mend_fetcher(consumer)
        throttle("kafka")
        return consumer

    def _connect(self) -> KafkaConsumer:
        if self._positions is None:
            raise SourceError("The Kafka source is not open.", hint="Call open(positions) before poll().")
        consumer = self._new_consumer(group=self.group, instance=self.instance)
        consumer.subscribe([self._settings.topic], listener=_listener(self._on_assigned))
        try:
            # Makes the client learn of the topic's partitions before it joins. Otherwise a member that leads the group
            # may share out none at all, and think better of it only with the next look at the metadata.
            self._ask(lambda: consumer.end_offsets(self._topic_partitions([0]), timeout_ms=self._rpc_ms))
        except SourceError:
            within(_CLOSE_S, lambda: consumer.close(autocommit=False, timeout_ms=1000))
            raise
        self._heard = self._received = self._committed_at = time.monotonic()
        self._asked = float("-inf")
        with self._lock:
            self._fresh = set()
        self._consumer = consumer
        return consumer

    def _on_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """On the client's I/O thread, between joining and fetching. Blocks on nothing: see kafka-python's listeners."""
        consumer = self._consumer
        if consumer is None:
            return
        with self._lock:
            for tp in assigned:
                # Any position will do: one is needed so that the client does not ask for the group's, and the pause
                # keeps it from being fetched.
                consumer.seek(tp, 0)
                consumer.pause(tp)
                self._fresh.add(tp)
        self._rebalances += 1

    def _let_fetch(self, consumer: KafkaConsumer, tp: TopicPartition) -> None:
        """Fetch of a partition that was placed, unless it is held."""
        try:
            if Partition(*tp) in self._held:
                consumer.pause(tp)
            else:
                consumer.resume(tp)
        except KeyError:  # taken away in this moment
            return

    def _replace(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch nothing more of these partitions until they are placed again."""
        with self._lock:
            for tp in partitions:
                if self._consumer is not None and tp in self._consumer.assignment():
                    self._consumer.pause(tp)
                    self._fresh.add(tp)

    def _place(self) -> None:
        """Put each partition that is newly ours where reading goes on, and let it be fetched.

        A partition that has no stored offset yet gets an empty batch, so that the start that was chosen is stored.
        """
        consumer = self._consumer
        if consumer is None:
            return
        with self._lock:
            fresh, self._fresh = self._fresh, set()
        assigned = consumer.assignment()
        fresh &= assigned
        partitions = frozenset(Partition(*tp) for tp in assigned)
        if partitions != self._assigned:
            for gone in self._assigned - partitions:
                self._next.pop(gone, None)
                self._progress.pop(gone, None)
                self._diverged.pop(gone, None)
            self._assigned = partitions
        if not fresh:
            return
        try:
            self._place_these(consumer, sorted(fresh))
        except BaseException:
            with self._lock:
                self._fresh |= fresh
            raise

    def _place_these(self, consumer: KafkaConsumer, tps: Sequence[TopicPartition]) -> None:
        assert self._positions is not None
        partitions = [Partition(*tp) for tp in tps]
        stored = self._positions(partitions)
        stored_ids = self._topic_ids(partitions) if self._topic_ids is not None else {}
        now_id = self._topic_id(consumer)
        first, last = self._limits(consumer, tps)
        if self._made_anew(consumer):
            self._starts.clear()
            self._partitions_at_open = 0  # all that the new topic holds is newer than we are
        starts = self._resolve_starts(consumer, [tp for tp in tps if Partition(*tp) not in stored], first, last)
        told = []
        targets: dict[TopicPartition, int] = {}
        for tp, partition in zip(tps, partitions, strict=True):
            unmoved = self._base.get(partition) == stored.get(partition)  # nobody else has written it
            held = self._next.get(partition) if unmoved else None
            if held is not None:
                offset, topic_id = held, self._ids.get(partition)
            elif partition in stored:
                offset = stored[partition]
                topic_id = stored_ids.get(partition, self._ids.get(partition) if unmoved else None)
            else:
                offset, topic_id = starts[partition], None
            gap = self._gap(consumer, tp, offset, topic_id, first[tp], last[tp])
            targets[tp] = offset if gap is None else gap.to_offset
            if gap is not None or (held is None and partition not in stored):
                told.append(_raw_batch(partition, [], targets[tp], topic_id=now_id, gap=gap))
        if self._topic_id(consumer) != now_id:  # it was made anew while we asked
            self._place_these(consumer, tps)
            return
        for tp, offset in targets.items():
            partition = Partition(*tp)
            self._base[partition] = stored.get(partition)
            self._next[partition] = offset
            self._ids[partition] = now_id
            self._ends[partition] = last[tp]
            self._diverged.pop(partition, None)
            try:
                consumer.seek(tp, offset)
            except ValueError:  # taken away again in this moment; the next poll tells
                continue
            self._let_fetch(consumer, tp)
        self._told += told

    def _resolve_starts(
        self,
        consumer: KafkaConsumer,
        tps: Sequence[TopicPartition],
        first: Mapping[TopicPartition, int],
        last: Mapping[TopicPartition, int],
    ) -> Mapping[Partition, int]:
        """Where to begin what was never read. Resolved once for each partition, or "latest" would move on."""
        start = self._settings.start
        missing = [tp for tp in tps if Partition(*tp) not in self._starts]
        times: Mapping[TopicPartition, int] = {}
        if missing and not isinstance(start, str):
            times = self._first_since(consumer, missing, int(start.timestamp() * 1000), last)
        for tp in missing:
            if start == "earliest":
                offset = first[tp]
            elif start == "latest":
                # A partition that was added since we came holds nothing older than us.
                offset = last[tp] if tp.partition < self._partitions_at_open else first[tp]
            else:
                offset = times[tp]
            self._starts[Partition(*tp)] = offset
        return self._starts

    def _limits(
        self, consumer: KafkaConsumer, tps: Sequence[TopicPartition]
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        first = self._ask(lambda: consumer.beginning_offsets(tps, timeout_ms=self._rpc_ms))
        last = self._ask(lambda: consumer.end_offsets(tps, timeout_ms=self._rpc_ms))
        return first, last

    def _first_since(
        self, consumer: KafkaConsumer, tps: Sequence[TopicPartition], since_ms: int, last: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, int]:
        """The first offset of each partition that is not older than ``since_ms``; its end where all are older."""

        def ask(wanted: Sequence[TopicPartition]) -> Mapping[TopicPartition, Any]:
            times = dict.fromkeys(wanted, max(0, since_ms))
            return self._ask(lambda: consumer.offsets_for_times(times, timeout_ms=self._rpc_ms))

        found = dict(ask(tps))
        for tp in tps:
            if found[tp] is None:
                # The client also says None for a partition whose leader it does not know at this moment, unless it is
                # asked for that one alone: then it finds out.
                found.update(ask([tp]))
        return {tp: last[tp] if found[tp] is None else found[tp].offset for tp in tps}

    def _made_anew(self, consumer: KafkaConsumer) -> bool:
        """Another topic has the name than the one that our positions belong to."""
        topic_id = self._topic_id(consumer)
        return topic_id is not None and any(
            known is not None and known != topic_id
            for partition, known in self._ids.items()
            if partition in self._assigned
        )

    def _gap(
        self, consumer: KafkaConsumer, tp: TopicPartition, offset: int, topic_id: str | None, first: int, last: int
    ) -> Gap | None:
        """What is missing between ``offset``, in the topic with that id, and where reading can go on; None if nothing.

        Raises:
            OffsetGap: something is, and the settings say to stop.
        """
        partition = Partition(*tp)
        if (
            topic_id in (None, self._topic_id(consumer))
            and partition not in self._diverged
            and first <= offset
            and (offset <= last or offset <= self._end_of_all(tp, last))
        ):
            return None
        self._ask(lambda: _refresh_metadata(consumer, self._rpc_ms))
        now_id = self._topic_id(consumer)
        name = f"Partition {tp.partition} of topic {tp.topic}"
        hint = "Set source.on_gap: skip to go on with the first record that is there"
        if topic_id != now_id and None not in (topic_id, now_id):
            gap = Gap(
                partition, offset, first, "recreated", f"{name} belongs to a topic that was deleted and made anew."
            )
        elif offset < first:
            lost = first - offset
            detail = (
                f"{name} no longer holds offset {offset}, where reading goes on: its first is {first}, "
                f"so up to {lost} records were deleted before they were read."
            )
            gap = Gap(partition, offset, first, "retention", detail)
            hint += "; give the topic a longer retention.ms"
        elif None in (topic_id, now_id) and partition not in self._diverged:
            detail = (
                f"{name} ends at offset {last}, before {offset}, where reading goes on: "
                f"the topic was deleted and made anew, or it lost its newest records."
            )
            gap = Gap(partition, offset, first, "recreated", detail)
        else:
            diverged = self._diverged.get(partition)
            end = min(offset, self._end_of_all(tp, last) if diverged is None else diverged)
            detail = (
                f"{name} lost its newest records: reading goes on at offset {end} instead of {offset}, "
                f"and what was read of them counts."
            )
            gap = Gap(partition, offset, max(end, first), "truncated", detail)
            hint = "Set source.on_gap: skip to go on with what was written since; see unclean.leader.election.enable"
        if self._settings.on_gap == "stop":
            raise OffsetGap(gap.detail, hint=f"{hint}.")
        return gap

    def _end_of_all(self, tp: TopicPartition, last: int) -> int:
        """The partition's end with open transactions, which a reader of committed records is not told."""
        if self._settings.isolation == "read_uncommitted":
            return last
        settings = self._settings.model_copy(update={"isolation": "read_uncommitted"})
        other = KafkaSource(settings, client_id=self._client_id, group=self.group, instance=None)
        consumer = other._new_consumer(group=None, instance=None)
        try:
            ends = self._ask(lambda: consumer.end_offsets([tp], timeout_ms=self._rpc_ms))
            return int(ends[tp])
        finally:
            within(1.0, lambda: consumer.close(autocommit=False, timeout_ms=500))

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        try:
            return question()
        except Exception as error:
            if _is_retriable(error):
                self._find_topic()  # says it better, where it can
            raise self._translated(error) from error

    def _topic_id(self, consumer: KafkaConsumer) -> str | None:
        """The id of the topic that has the name now, as far as the client knows; brokers before 2.8 have none."""
        known = consumer._client.cluster.topic_id(self._settings.topic)
        return str(known) if known is not None and known.int else None

    def _read(self, consumer: KafkaConsumer, partition: Partition, records: Sequence[Any]) -> RawBatch:
        """What a client beside the stream polled."""
        return _raw_batch(partition, records, _position(consumer, partition), topic_id=self._topic_id(consumer))

    def _after_failure(self, error: Exception) -> None:
        """What an exception out of the client's poll means; raises, unless waiting is all that there is to do."""
        from kafka import errors

        lost_place = (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError, errors.LogTruncationError)
        if isinstance(error, lost_place) and self._consumer is not None:
            if isinstance(error, errors.LogTruncationError):
                for tp, known in error.divergent_offsets.items():
                    self._diverged[Partition(*tp)] = None if known is None else known.offset
            self._replace(self._consumer.assignment())  # placing says what is lost
            return
        if _is_retriable(error):
            return
        # After any other error this client may fail for ever. Records handed over stay handed over.
        self._failures += 1
        self._drop_client()
        raise self._translated(error) from error

    def _drop_client(self) -> None:
        """The next poll builds a new one."""
        consumer, self._consumer = self._consumer, None
        self.rebuilt += 1
        if consumer is not None:
            within(_CLOSE_S, lambda: consumer.close(autocommit=False, timeout_ms=2000))

    def _after_damage(self, consumer: KafkaConsumer, damage: UndecodableBatch) -> None:
        """A batch could not be decoded. The client fetches it again by itself, until it was tried often enough.

        Raises:
            SourceError: it was, and the settings say to stop.
        """
        from kafka import TopicPartition

        tp, partition = TopicPartition(*damage.partition), damage.partition
        if partition not in self._next or tp in self._fresh or tp not in consumer.assignment():
            return
        if not self._damage.lasting(damage):
            return
        if self._settings.on_damaged == "stop":
            raise self._translated(damage) from damage
        after = self._after_damaged(consumer, damage)
        gap = Gap(partition, damage.offset, after, "damaged", f"A batch cannot be decoded, {damage}.")
        consumer.seek(tp, after)
        self._next[partition] = after
        self._told.append(_raw_batch(partition, [], after, topic_id=self._ids[partition], gap=gap))

    def _after_damaged(self, consumer: KafkaConsumer, damage: UndecodableBatch) -> int:
        """Where reading goes on after a batch that cannot be decoded."""
        from kafka import TopicPartition

        tp = TopicPartition(*damage.partition)
        _, last = self._limits(consumer, [tp])
        end = max(last[tp], damage.offset + 1)
        if damage.next_offset is not None:
            return min(damage.next_offset, end)
        # The header is damaged too, so look for the first offset that can be read: first how far away, then where.
        with self._reader() as reader:
            reader.assign([tp])
            bad, step = damage.offset, 1
            while bad + step < end and not _can_read(reader, tp, bad + step):
                bad, step = bad + step, step * 2
            good = min(bad + step, end)
            while good - bad > 1:
                middle = (bad + good) // 2
                bad, good = (bad, middle) if _can_read(reader, tp, middle) else (middle, good)
            return good

    def _passed_over(self, consumer: KafkaConsumer) -> list[RawBatch]:
        """Empty batches for partitions that went on without records: over control records, aborted transactions and
        what was compacted. Once stored, they are no gap when the topic deletes them."""
        batches = []
        for partition in sorted(self._assigned & self._next.keys()):
            position = _position(consumer, partition)
            if position is not None and position > self._next[partition]:
                self._next[partition] = position
                batches.append(_raw_batch(partition, [], position, topic_id=self._ids[partition]))
        return batches

    def _ask_for_ends(self, consumer: KafkaConsumer) -> None:
        """The ends of partitions that are quiet or held: no fetch tells them. Not while the brokers are away."""
        from kafka import TopicPartition
        from kafka.errors import KafkaError

        now = time.monotonic()
        quiet = [
            TopicPartition(*partition)
            for partition in sorted(self._assigned & self._next.keys())
            if partition in self._held or now - self._progress.get(partition, now) > _SILENCE_S
        ]
        if not quiet or not self.connected:
            return
        try:
            ends = consumer.end_offsets(quiet, timeout_ms=_ENDS_MS)
        except (KafkaError, KeyError) as error:  # KeyError: a partition that is gone
            _log.debug("ends of quiet partitions are not known: %s", error)
            return
        self._ends.update({Partition(*tp): end for tp, end in ends.items()})

    def _after_commit(self, _offsets: object, result: object) -> None:
        if isinstance(result, Exception):
            self.failed_commits += 1
            if self.failed_commits == 1 or self.failed_commits % 1000 == 0:
                _log.info("group commits refused (harmless): count=%d last=%s", self.failed_commits, result)

    def _listen(self) -> None:
        """Note when a broker last said anything, from the client's connections."""
        if self._consumer is None:
            return
        try:
            connections = self._consumer._client._manager.least_used_connections()
            reads = [connection.transport.last_read for connection in connections]
        except (AttributeError, RuntimeError):
            # RuntimeError: the I/O thread changed the table of connections meanwhile.
            return
        self._heard = max([self._heard, *reads])

    def _watch_connection(self) -> None:
        """Nothing came. Find out whether that is all there is, and tell if not.

        Raises:
            SourceError: the brokers cannot be reached, or the topic is gone.
        """
        now = time.monotonic()
        self._listen()
        cut_off = now - self._heard >= self._settings.unreachable_after_s
        if not cut_off and now - max(self._asked, self._received) < _SILENCE_S and self._trouble is None:
            return
        if now - self._asked >= _PROBE_EVERY_S:
            self._asked = now
            refused = isinstance(self._trouble, AccessRefused)
            self._trouble = None
            try:
                self._find_topic(timeout_s=min(2.0, self._settings.connect_timeout_s))
            except SourceError as error:
                self._trouble = error
            else:
                if refused:  # the client holds on to the password that it was built with
                    self._drop_client()
                    return
        if self._trouble is not None:
            raise type(self._trouble)(self._trouble.message, hint=self._trouble.hint) from self._trouble
        if now - self._heard >= max(_STUCK_S, 3 * self._settings.unreachable_after_s):
            self._after_failure(RuntimeError(f"the client heard nothing for {now - self._heard:.0f} s"))

    def _range_batches(
        self, consumer: KafkaConsumer, tps: Sequence[TopicPartition], start_ms: int | None, end_ms: int | None
    ) -> Iterator[RawBatch]:
        first, last = self._limits(consumer, tps)
        begin = dict(first)
        if start_ms is not None:
            begin = dict(self._first_since(consumer, tps, start_ms, last))
        left = {tp for tp in tps if begin[tp] < last[tp]}
        if not left:
            return
        consumer.assign(sorted(left))
        for tp in left:
            consumer.seek(tp, begin[tp])
        damage = DamageCount()
        heard = time.monotonic()
        while left:
            polled = self._poll_beside(consumer, 5000, damage)
            if polled:
                heard = time.monotonic()
            elif time.monotonic() - heard >= self._settings.unreachable_after_s:
                self._find_topic()
                heard = time.monotonic()
            for tp, records in polled.items():
                batch = self._read(consumer, Partition(*tp), records)
                wanted_rows = batch.offsets < last[tp]
                if start_ms is not None:
                    wanted_rows &= batch.timestamps_ms >= start_ms
                if end_ms is not None:
                    wanted_rows &= batch.timestamps_ms < end_ms
                    if records[-1].timestamp_type == _LOG_APPEND_TIME and batch.timestamps_ms[-1] >= end_ms:
                        left.discard(tp)
                if kept := _rows(batch, wanted_rows, end=last[tp]):
                    yield kept
            for tp in list(left):
                if consumer.position(tp, timeout_ms=0) >= last[tp]:
                    left.discard(tp)
            done = set(tps) - left
            consumer.pause(*(done & consumer.assignment()))

    @contextmanager
    def _reader(self) -> Iterator[KafkaConsumer]:
        """A client of no group, for reading beside the stream."""
        consumer = self._new_consumer(group=None, instance=None)
        try:
            yield consumer
        except SourceError:
            raise
        except Exception as error:
            raise self._translated(error) from error
        finally:
            within(_CLOSE_S, lambda: consumer.close(autocommit=False, timeout_ms=1000))

    def _poll_beside(
        self, consumer: KafkaConsumer, max_records: int, count: DamageCount
    ) -> dict[TopicPartition, list[Any]]:
        """A poll of a client of no group. Steps over damaged batches where the settings say so, with a line in the log.

        Raises:
            UndecodableBatch: they do not.
        """
        from kafka import TopicPartition

        try:
            polled: dict[TopicPartition, list[Any]] = consumer.poll(timeout_ms=1000, max_records=max_records)
            return polled
        except UndecodableBatch as damage:
            if count.lasting(damage):
                if self._settings.on_damaged == "stop":
                    raise
                _log.error("a batch was left out: %s", damage)
                consumer.seek(TopicPartition(*damage.partition), self._after_damaged(consumer, damage))
            return {}

    def _batches_at(
        self, consumer: KafkaConsumer, wanted: dict[TopicPartition, npt.NDArray[np.int64]]
    ) -> Iterator[RawBatch]:
        """The records at these sorted offsets. Reads on over short stretches, jumps over long ones."""
        first, last = self._limits(consumer, list(wanted))
        for tp, offsets in list(wanted.items()):
            wanted[tp] = offsets[(offsets >= first[tp]) & (offsets < last[tp])]
        left = {tp for tp, offsets in wanted.items() if len(offsets)}
        consumer.assign(sorted(left))
        for tp in left:
            consumer.seek(tp, int(wanted[tp][0]))
        damage = DamageCount()
        heard = time.monotonic()
        while left:
            polled = self._poll_beside(consumer, _JUMP, damage)
            if polled:
                heard = time.monotonic()
            elif time.monotonic() - heard >= self._settings.unreachable_after_s:
                self._find_topic()
                heard = time.monotonic()
            for tp, records in polled.items():
                batch = self._read(consumer, Partition(*tp), records)
                if kept := _rows(batch, np.isin(batch.offsets, wanted[tp]), end=last[tp]):
                    yield kept
            for tp in list(left):
                position = consumer.position(tp, timeout_ms=0)
                wanted[tp] = wanted[tp][wanted[tp] >= position]
                if not len(wanted[tp]):
                    left.discard(tp)
                    consumer.pause(tp)
                elif wanted[tp][0] >= position + _JUMP:
                    consumer.seek(tp, int(wanted[tp][0]))

    def _translated(self, error: Exception) -> SourceError:
        """Any error of the client library as one of ours."""
        from kafka import errors

        if isinstance(error, SourceError):
            return error
        settings = self._settings
        where = f"topic {settings.topic} at {', '.join(settings.addresses)}"
        if isinstance(error, UndecodableBatch):
            if isinstance(error.__cause__, errors.UnsupportedCodecError):
                return MissingCodec(
                    f"A batch is compressed with a codec that is not installed, {error}.", hint=_CODEC_HINT
                )
            return SourceError(
                f"A batch cannot be decoded, {error}.",
                hint="Compare it on another replica, or set source.on_damaged: skip to leave out that batch.",
            )
        if isinstance(error, errors.GroupAuthorizationFailedError):
            return AccessRefused(
                f"Kafka does not let us into group {self.group}, to read {where}.",
                hint=f"Grant it: kafka-acls.sh --add --allow-principal User:NAME --operation Read --group {self.group}",
            )
        if isinstance(error, errors.TopicAuthorizationFailedError):
            return AccessRefused(
                f"Kafka does not let us read {where}.",
                hint=f"Grant it: kafka-acls.sh --add --allow-principal User:NAME --operation Read "
                f"--topic {settings.topic}",
            )
        if isinstance(error, errors.AuthorizationError | errors.SaslAuthenticationFailedError):
            return AccessRefused(f"Kafka refuses us, reading {where}: {error}.", hint="Check source.security.")
        if isinstance(error, errors.FencedInstanceIdError):
            return SourceError(
                f"Another process took our place in group {self.group}: it has the same member id, {self.instance}.",
                hint="Is driftd running twice? Stop one, or set source.instance differently.",
            )
        if isinstance(error, errors.InvalidSessionTimeoutError):
            return SourceError(
                f"Kafka does not accept source.session_timeout_s: {settings.session_timeout_s:g}.",
                hint="The broker allows group.min.session.timeout.ms to group.max.session.timeout.ms, 6 to 1800 s.",
            )
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            return UnknownTopic(f"There is no {where}.", hint="Check source.topic.")
        if _is_retriable(error):
            return SourceUnreachable(
                f"Kafka does not answer, reading {where}: {error}.", hint="driftd tries again; check the brokers."
            )
        failure = SourceError(
            f"Reading {where} failed: {type(error).__name__}: {error}.", hint="The client was built anew."
        )
        failure.retryable = self._failures < _ATTEMPTS
        return failure


_CODEC_HINT = "Install them all: pip install 'kafka-python[crc32c,lz4,snappy,zstd]'"


def client_factory(made: list[Any]) -> Callable[..., Any]:
    """The class of the client's connections, as its ``kafka_client`` takes it; every one goes into ``made``.

    kafka-python 3.0 keeps ``allow_auto_create_topics=False`` to itself: its questions for metadata let the broker make
    the topic all the same. Here the setting is put where it counts.
    """
    from kafka.net.compat import KafkaNetClient

    def client(**options: Any) -> Any:
        new = KafkaNetClient(**options)
        new.cluster.config["allow_auto_create_topics"] = False
        made.append(new)
        return new

    return client


def _poll(consumer: KafkaConsumer, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Any]]:
    """The client's poll, and longer while a rebalance is under way, when there is nothing to read anyway.

    An assignment that arrives between two polls is dropped by kafka-python 3.0. A member then joins once more, which
    makes the whole group rebalance again; or, if it joined as the leader because the topic's partitions changed, it
    finds that it need not join any more, and goes on without records, heartbeats or an error. So wait for it inside,
    and hold on to the need to join until the client says that it has joined.
    """
    coordinator = consumer._coordinator
    deadline = time.monotonic() + _JOIN_S
    while True:
        if coordinator.rejoining:
            coordinator.request_rejoin()
        timeout_ms = max(_MIN_POLL_MS, int(timeout_s * 1000))
        polled: dict[TopicPartition, list[Any]] = consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        if polled or not coordinator.rejoining or time.monotonic() >= deadline:
            return polled


def require_codecs() -> None:
    """Producers choose the codec of each batch, so all must be there before one is met.

    Raises:
        MissingCodec: a package is not installed.
    """
    from kafka import codec

    known = {"lz4": codec.has_lz4, "snappy": codec.has_snappy, "zstd": codec.has_zstd}
    missing = [name for name, present in known.items() if not present()]
    if missing:
        raise MissingCodec(f"Packages to decompress Kafka batches are missing: {', '.join(missing)}.", hint=_CODEC_HINT)


def _listener(on_assigned: Callable[[Iterable[TopicPartition]], None]) -> Any:
    """A rebalance listener that only tells of new partitions: what is taken away needs no farewell."""
    from kafka import ConsumerRebalanceListener

    class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
            pass

        def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
            on_assigned(assigned)

    return _Listener()


def _is_retriable(error: Exception) -> bool:
    """The client mends it by itself: lost connections, moved leaders, time-outs."""
    from kafka.errors import KafkaError

    return isinstance(error, KafkaError) and bool(error.retriable)


def within(seconds: float, work: Callable[[], object]) -> bool:
    """Do ``work`` on a thread of its own; True if it ended within ``seconds``. What it raises is logged, not raised."""

    def safely() -> None:
        try:
            work()
        except Exception as error:
            _log.debug("kafka client, while closing: %s", error)

    thread = threading.Thread(target=safely, name="kafka-close", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _refresh_metadata(consumer: KafkaConsumer, timeout_ms: int) -> None:
    """Learn what the topic is now. Raises what the client raises."""
    cluster = consumer._cluster
    if cluster.metadata_refresh_in_progress:  # its answer may be older than our question
        consumer._net.run(consumer._manager.wait_for, cluster.request_update(), timeout_ms)
    consumer._net.run(consumer._manager.wait_for, cluster.request_update(), timeout_ms)


def _can_read(consumer: KafkaConsumer, tp: TopicPartition, offset: int) -> bool:
    """Whether the batch that holds ``offset`` can be decoded. Raises KafkaTimeoutError where nobody answers."""
    from kafka.errors import KafkaTimeoutError

    consumer.seek(tp, offset)
    deadline = time.monotonic() + _STUCK_S
    while time.monotonic() < deadline:
        try:
            polled = consumer.poll(timeout_ms=_MIN_POLL_MS, max_records=1)
        except UndecodableBatch:
            return False
        if polled or consumer.position(tp, timeout_ms=0) > offset:
            return True
    raise KafkaTimeoutError(f"no answer to whether offset {offset} can be read")


def _position(consumer: KafkaConsumer, partition: Partition) -> int | None:
    """Where the client goes on, past the records handed over and past control records and aborted transactions."""
    from kafka import TopicPartition

    try:
        # 0: what it knows now, without asking anybody.
        position: int | None = consumer.position(TopicPartition(*partition), timeout_ms=0)
    except Exception:
        return None  # taken away in this moment
    return position


def _raw_batch(
    partition: Partition,
    records: Sequence[Any],
    next_offset: int | None,
    *,
    topic_id: str | None = None,
    gap: Gap | None = None,
) -> RawBatch:
    """The client's records (named tuples) as columns."""
    n = len(records)
    offsets = np.fromiter(map(_OFFSET, records), np.int64, n)
    after = int(offsets[-1]) + 1 if n else 0
    return RawBatch(
        partition=partition,
        offsets=offsets,
        timestamps_ms=np.fromiter(map(_TIMESTAMP, records), np.int64, n),
        keys=list(map(_KEY, records)),
        values=list(map(_VALUE, records)),
        headers=_headers(records),
        next_offset=max(after, next_offset or 0),
        topic_id=topic_id,
        gap=gap,
    )


def _headers(records: Sequence[Any]) -> Sequence[Headers]:
    headers: list[Headers] = list(map(_HEADERS, records))
    if not any(value is None for row in headers for _, value in row):
        return headers
    # Kafka knows headers without a value; ours are bytes.
    return [[(name, value if value is not None else b"") for name, value in row] if row else row for row in headers]


def _rows(batch: RawBatch, wanted: npt.NDArray[np.bool_], *, end: int) -> RawBatch | None:
    """The wanted rows of a batch, all below ``end``; None where there are none."""
    if not wanted.any():
        return None
    if wanted.all() and batch.next_offset <= end:
        return batch
    return RawBatch(
        partition=batch.partition,
        offsets=batch.offsets[wanted],
        timestamps_ms=batch.timestamps_ms[wanted],
        keys=list(compress(batch.keys, wanted)),
        values=list(compress(batch.values, wanted)),
        headers=list(compress(batch.headers, wanted)),
        next_offset=min(batch.next_offset, end),
        topic_id=batch.topic_id,
    )
