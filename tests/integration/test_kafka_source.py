"""The Kafka source against a real broker: where it begins, what it hands over, and what it says when things break."""

from __future__ import annotations

import gc
import logging
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from connectors.kafka import KafkaSettings, KafkaSource
from connectors.kafka_dead_letters import KafkaDeadLetterTopic
from connectors.records import DeadLetter, Partition, RawBatch
from detectors.errors import (
    AccessRefused,
    MissingCodec,
    OffsetGap,
    SinkError,
    SourceError,
    SourceUnreachable,
    UnknownTopic,
)
from tests.servers.kafka import PASSWORD, USER, KafkaServer, free_port

pytestmark = [
    pytest.mark.kafka,
    # The client forgets sockets whose connection was refused; they are closed when they are collected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

DEADLINE_S = 30.0


class Positions:
    """Stands for the database: the stored offsets, with a note of what was asked."""

    def __init__(self, stored: Mapping[Partition, int] | None = None) -> None:
        self.stored = dict(stored or {})
        self.asked: list[tuple[Partition, ...]] = []

    def __call__(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        self.asked.append(tuple(partitions))
        return {partition: self.stored[partition] for partition in partitions if partition in self.stored}

    def store(self, batches: Sequence[RawBatch]) -> None:
        self.stored.update({batch.partition: batch.next_offset for batch in batches})


@pytest.fixture(scope="module", autouse=True)
def _collect_forgotten_sockets() -> Iterator[None]:
    """Here, where the warning is expected, not in some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def make_source(kafka: KafkaServer) -> Iterator[Callable[..., KafkaSource]]:
    """``make_source(topic, **settings)``; every source is closed at the end."""
    made: list[KafkaSource] = []

    def make(topic: str, *, client_id: str = "reader", **settings: object) -> KafkaSource:
        values = {
            "brokers": kafka.brokers,
            "topic": topic,
            "group": f"group-{topic}",
            "session_timeout_s": 6,
            **settings,
        }
        made.append(KafkaSettings.model_validate(values).build(client_id=client_id))
        return made[-1]

    yield make
    for source in made:
        source.close()


def produce(
    brokers: str, topic: str, values: Sequence[bytes | None], *, partition: int = 0, **options: object
) -> list[int]:
    """Write ``values`` and return their offsets."""
    from kafka import KafkaProducer

    timestamps = options.pop("timestamps_ms", [None] * len(values))
    headers = options.pop("headers", None)
    keys = options.pop("keys", [None] * len(values))
    producer = KafkaProducer(bootstrap_servers=brokers, reconnect_backoff_max_ms=200, linger_ms=5, **options)
    try:
        futures = [
            producer.send(topic, value, key=key, partition=partition, timestamp_ms=timestamp, headers=headers)
            for value, key, timestamp in zip(values, keys, timestamps, strict=True)
        ]
        return [future.get(DEADLINE_S).offset for future in futures]
    finally:
        producer.close()


def read(
    source: KafkaSource,
    until: Callable[[list[RawBatch]], bool],
    *,
    max_records: int = 5000,
    positions: Positions | None = None,
) -> list[RawBatch]:
    """Poll until the batches read so far satisfy ``until``."""
    deadline = time.monotonic() + DEADLINE_S
    batches: list[RawBatch] = []
    while not until(batches):
        assert time.monotonic() < deadline, f"after {DEADLINE_S} s: {offsets_of(batches)}"
        new = source.poll(max_records, 0.2)
        batches += new
        if positions is not None:
            positions.store(new)
            source.commit({batch.partition: batch.next_offset for batch in new})
    return batches


class Reader:
    """Polls a source on a thread of its own, as each member of a group does."""

    def __init__(self, source: KafkaSource, positions: Positions, *, store: bool = True) -> None:
        self.source = source
        self.batches: list[RawBatch] = []
        self._positions = positions
        self._store = store
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                new = self.source.poll(100, 0.2)
                if self._store:
                    self._positions.store(new)
                self.batches += new
        except Exception as error:
            self._error = error


def wait_for(condition: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Wait until ``condition`` holds; the readers' threads are at work meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


def records(n: int) -> Callable[[list[RawBatch]], bool]:
    return lambda batches: sum(map(len, batches)) >= n


def placed(partitions: int) -> Callable[[list[RawBatch]], bool]:
    return lambda batches: len({batch.partition for batch in batches}) >= partitions


def offsets_of(batches: Sequence[RawBatch]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for batch in batches:
        found[batch.partition.number] += batch.offsets.tolist()
    return dict(found)


def values_of(batches: Sequence[RawBatch]) -> list[bytes | None]:
    return [value for batch in batches for value in batch.values]


def numbered(n: int, first: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(first, first + n)]


# Where it begins


def test_reading_goes_on_at_the_stored_offset(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(10))
    source = make_source(name)
    source.open(Positions({Partition(name, 0): 7}))
    batches = read(source, records(3))
    assert offsets_of(batches) == {0: [7, 8, 9]}
    assert batches[-1].next_offset == 10
    assert source.assignment() == {Partition(name, 0)}


def test_stored_offsets_win_over_the_groups(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(5))
    positions = Positions()
    first = make_source(name, instance="none")
    first.open(positions)
    read(first, records(5), positions=positions)
    first.close()  # leaves 5 as the group's offset
    second = make_source(name, instance="none")
    second.open(Positions({Partition(name, 0): 2}))
    assert offsets_of(read(second, records(3))) == {0: [2, 3, 4]}


def test_the_groups_offset_follows_for_lag_tools(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(5))
    positions = Positions()
    source = make_source(name)
    source.open(positions)
    read(source, records(5), positions=positions)
    source.close()
    with kafka.admin() as admin:
        groups = admin.list_group_offsets({f"group-{name}": None})
    (committed,) = [entry.offset for offsets in groups.values() for entry in offsets.values()]
    assert committed == 5


def test_earliest_reads_what_was_there_before(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(kafka.brokers, name, numbered(3), partition=partition)
    source = make_source(name, start="earliest")
    source.open(Positions())
    assert offsets_of(read(source, records(6))) == {0: [0, 1, 2], 1: [0, 1, 2]}


def test_latest_is_resolved_once_and_told_before_any_record(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(5))
    source = make_source(name, start="latest")
    source.open(Positions())
    (start,) = read(source, placed(1))
    assert (len(start), start.next_offset) == (0, 5)
    produce(kafka.brokers, name, numbered(2, first=5))
    # Nothing was stored, as if the first checkpoint were refused: latest must not have moved on to 7.
    source.rewind()
    assert offsets_of(read(source, records(2))) == {0: [5, 6]}


def test_a_time_begins_with_the_first_record_that_is_not_older(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    base = 1_700_000_000_000
    produce(kafka.brokers, name, numbered(6), timestamps_ms=[base + i * 1000 for i in range(6)])
    produce(kafka.brokers, name, numbered(2), partition=1, timestamps_ms=[base, base + 1000])
    source = make_source(name, start=datetime.fromtimestamp((base + 2500) / 1000, UTC).isoformat())
    source.open(Positions())
    batches = read(source, lambda batches: records(3)(batches) and placed(2)(batches))
    assert offsets_of(batches) == {0: [3, 4, 5], 1: []}
    assert {batch.partition.number: batch.next_offset for batch in batches} == {0: 6, 1: 2}


def test_a_partition_added_later_is_read_from_its_beginning_even_with_latest(kafka, topic, make_source) -> None:
    name = topic(partitions=1)
    source = make_source(name, start="latest")
    source.open(Positions())
    read(source, placed(1))
    with kafka.admin() as admin:
        admin.create_partitions({name: 2})
    produce(kafka.brokers, name, numbered(3), partition=1)
    source._consumer._client.cluster.request_update()  # instead of waiting a minute for the next look
    assert offsets_of(read(source, records(3))) == {1: [0, 1, 2]}


# What it hands over


def test_keys_headers_tombstones_and_times_come_through(kafka, topic, make_source) -> None:
    name = topic()
    time_ms = 1_700_000_000_123
    produce(
        kafka.brokers,
        name,
        [b"value", None],
        keys=[b"key", b"gone"],
        headers=[("trace", b"\x00\xff"), ("trace", b"")],
        timestamps_ms=[time_ms, time_ms + 1],
    )
    source = make_source(name)
    source.open(Positions())
    batches = [batch for batch in read(source, records(2)) if len(batch)]
    assert [key for batch in batches for key in batch.keys] == [b"key", b"gone"]
    assert values_of(batches) == [b"value", None]
    assert [list(row) for batch in batches for row in batch.headers] == [[("trace", b"\x00\xff"), ("trace", b"")]] * 2
    assert np.concatenate([batch.timestamps_ms for batch in batches]).tolist() == [time_ms, time_ms + 1]
    assert all(batch.offsets.dtype == batch.timestamps_ms.dtype == np.int64 for batch in batches)


def test_no_poll_hands_over_more_records_than_asked_for(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(kafka.brokers, name, numbered(50), partition=partition)
    source = make_source(name)
    source.open(Positions())
    sizes, offsets = [], defaultdict(list)
    deadline = time.monotonic() + DEADLINE_S
    while sum(sizes) < 100 and time.monotonic() < deadline:
        batches = source.poll(7, 0.2)
        sizes.append(sum(map(len, batches)))
        for number, found in offsets_of(batches).items():
            offsets[number] += found
    assert max(sizes) <= 7
    assert offsets == {0: list(range(50)), 1: list(range(50))}


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_every_codec_is_read(kafka, topic, make_source, codec) -> None:
    name = topic()
    values = [b"%d " % i * 100 for i in range(100)]  # the client leaves uncompressed what does not shrink
    produce(kafka.brokers, name, values, compression_type=codec)
    source = make_source(name)
    source.open(Positions())
    assert values_of(read(source, records(100))) == values


def test_aborted_transactions_are_stepped_over(kafka, topic, make_source) -> None:
    from kafka import KafkaProducer

    name = topic()
    producer = KafkaProducer(bootstrap_servers=kafka.brokers, transactional_id=f"tx-{name}")
    try:
        producer.init_transactions()
        for value, commit in ((b"kept", True), (b"aborted", False), (b"kept too", True), (b"aborted too", False)):
            producer.begin_transaction()
            producer.send(name, value)
            producer.flush()
            _ = producer.commit_transaction() if commit else producer.abort_transaction()
    finally:
        producer.close()
    source = make_source(name)
    source.open(Positions())
    batches = read(source, records(2))
    assert values_of(batches) == [b"kept", b"kept too"]
    assert batches[-1].next_offset == 8
    # Two records of aborted transactions and four markers take offsets too; nothing of it is left to read.
    deadline = time.monotonic() + DEADLINE_S
    while source.lag() != {Partition(name, 0): 0}:
        assert time.monotonic() < deadline, source.lag()
        assert values_of(source.poll(100, 0.1)) == []


def test_records_of_aborted_transactions_are_read_where_settings_say_so(kafka, topic, make_source) -> None:
    from kafka import KafkaProducer

    name = topic()
    producer = KafkaProducer(bootstrap_servers=kafka.brokers, transactional_id=f"tx-{name}")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(name, b"aborted")
    producer.flush()
    producer.abort_transaction()
    producer.close()
    source = make_source(name, isolation="read_uncommitted")
    source.open(Positions())
    assert values_of(read(source, records(1))) == [b"aborted"]


def test_lag_counts_what_is_left(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(20))
    source = make_source(name)
    source.open(Positions())
    read(source, records(5), max_records=5)
    assert source.lag() == {Partition(name, 0): 15}


def test_rewind_reads_again_from_the_stored_offset(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(10))
    positions = Positions({Partition(name, 0): 4})
    source = make_source(name)
    source.open(positions)
    assert offsets_of(read(source, records(3), max_records=3)) == {0: [4, 5, 6]}
    source.rewind()
    assert offsets_of(read(source, records(6))) == {0: [4, 5, 6, 7, 8, 9]}


def test_a_held_partition_stays_ours_and_brings_nothing_until_it_is_let_go(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(kafka.brokers, name, numbered(50), partition=partition)
    held = Partition(name, 1)
    source = make_source(name)
    source.hold(frozenset({held}))  # before it is known
    source.open(Positions())
    batches = read(source, records(50), max_records=20)
    source.hold(frozenset({Partition(name, 0), held}))
    produce(kafka.brokers, name, numbered(5, first=50))
    assert [batch for _ in range(3) for batch in source.poll(100, 0.2) if len(batch)] == []
    assert offsets_of(batches) == {0: list(range(50)), 1: []}
    assert source.assignment() == source.partitions() == {Partition(name, 0), held}
    assert source.lag()[held] == 50
    source.hold(frozenset())
    assert offsets_of(read(source, records(55))) == {0: list(range(50, 55)), 1: list(range(50))}


def test_a_partition_that_is_held_in_the_middle_of_an_answer_goes_on_when_the_others_are_used_up(
    kafka, topic, make_source
) -> None:
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(kafka.brokers, name, numbered(300), partition=partition)
    source = make_source(name)
    source.open(Positions())
    batches = read(source, records(20), max_records=20)  # the rest of the answer waits in the client
    begun = next(batch.partition for batch in batches if len(batch))
    source.hold(frozenset({begun}))
    batches += read(source, lambda found: sum(map(len, found)) >= 300, max_records=20)
    assert all(len(batch) == 0 or batch.partition != begun for batch in source.poll(100, 0.2))
    source.hold(frozenset())
    batches += read(source, records(280), max_records=20)
    assert offsets_of(batches) == {0: list(range(300)), 1: list(range(300))}


def test_a_held_partition_is_still_held_after_the_client_places_it_anew(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(10))
    source = make_source(name)
    source.open(Positions({Partition(name, 0): 0}))
    read(source, records(4), max_records=4)
    source.hold(frozenset({Partition(name, 0)}))
    source.rewind()
    assert [source.poll(100, 0.2) for _ in range(3)] == [[], [], []]
    source.hold(frozenset())
    assert offsets_of(read(source, records(10))) == {0: list(range(10))}


def test_records_are_read_again_by_their_offsets_beside_the_stream(kafka, topic, make_source, monkeypatch) -> None:
    from kafka import TopicPartition

    monkeypatch.setattr("connectors.kafka._JUMP", 50)
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(kafka.brokers, name, numbered(400), partition=partition)
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(name, 0): 3})
    wanted = [(0, 399), (0, 7), (0, 0), (0, 3), (0, 4), (0, 400), (1, 200), (1, 10), (1, 10), (5, 0)]
    found = list(make_source(name).read_at([(Partition(name, number), offset) for number, offset in wanted]))
    assert offsets_of(found) == {0: [3, 4, 7, 399], 1: [10, 200]}
    assert all(value == b"%d" % offset for b in found for offset, value in zip(b.offsets, b.values, strict=True))
    with kafka.admin() as admin:
        assert f"group-{name}" not in {group["group_id"] for group in admin.list_groups()}


def test_the_state_tells_of_group_and_topic(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(2))
    source = make_source(name)
    assert (source.state().member, source.partitions()) == ("joining", frozenset())
    source.open(Positions())
    (first, *_) = [batch for batch in read(source, records(2)) if len(batch)]
    state = source.state()
    assert (state.member, state.connected, state.rebalances, state.rebuilt) == ("stable", True, 1, 0)
    assert state.silent == {}
    assert first.topic_id == kafka.topic_id(name)


def test_a_database_that_fails_at_the_look_up_loses_nothing(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(3))
    fails = [SourceError("database is away"), SourceError("still away")]

    def look_up(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        if fails:
            raise fails.pop()
        return dict.fromkeys(partitions, 1)

    source = make_source(name)
    source.open(look_up)
    raised, batches = 0, []
    deadline = time.monotonic() + DEADLINE_S
    while not records(2)(batches) and time.monotonic() < deadline:
        try:
            batches += source.poll(100, 0.2)
        except SourceError:
            raised += 1
    assert (raised, offsets_of(batches)) == (2, {0: [1, 2]})


# A range of the past


def test_a_range_holds_exactly_its_records_and_leaves_the_group_alone(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    base = 1_700_000_000_000
    # Producers' clocks go back: offset 3 is younger than the end, offset 4 is not.
    times = [base + 1000 * s for s in (0, 10, 20, 90, 30, 40)]
    produce(kafka.brokers, name, numbered(6), timestamps_ms=times)
    produce(kafka.brokers, name, numbered(1), partition=1, timestamps_ms=[base + 25_000])
    source = make_source(name)
    batches = list(source.read_range(base + 10_000, base + 40_000))
    assert offsets_of(batches) == {0: [1, 2, 4], 1: [0]}
    with kafka.admin() as admin:
        assert f"group-{name}" not in {group["group_id"] for group in admin.list_groups()}


def test_a_range_ends_where_the_topic_ended_when_it_began(kafka, topic, make_source, monkeypatch) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(3))
    source = make_source(name)
    look_up = source._limits

    def limits(*args: object) -> object:
        found = look_up(*args)
        produce(kafka.brokers, name, numbered(3, first=3))  # before the first fetch
        return found

    monkeypatch.setattr(source, "_limits", limits)
    batches = list(source.read_range(None, None))
    assert offsets_of(batches) == {0: [0, 1, 2]}
    assert batches[-1].next_offset == 3


def test_an_empty_range_is_empty(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(1))
    assert list(make_source(name).read_range(4_000_000_000_000, None)) == []
    assert list(make_source(topic()).read_range(None, None)) == []


# Sharing the work


def shares(*sources: KafkaSource) -> Callable[[], bool]:
    """All partitions of the topic have one of these owners each, and each owner one partition."""
    return lambda: (
        [len(source.assignment()) for source in sources] == [1] * len(sources)
        and len(frozenset().union(*(source.assignment() for source in sources))) == len(sources)
    )


def test_two_members_share_the_partitions_and_hand_over_at_the_stored_offsets(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    positions = Positions()
    for partition in (0, 1):
        produce(kafka.brokers, name, numbered(10), partition=partition)
    first, second = (make_source(name, client_id=client_id) for client_id in ("first", "second"))
    first.open(positions)
    with Reader(first, positions) as one:
        wait_for(lambda: records(20)(one.batches))
        second.open(positions)
        with Reader(second, positions) as two:
            wait_for(shares(first, second))
            for partition in (0, 1):
                produce(kafka.brokers, name, numbered(5, first=10), partition=partition)
            wait_for(lambda: records(30)(one.batches + two.batches), lambda: offsets_of(one.batches + two.batches))
    assert offsets_of(one.batches + two.batches) == {0: list(range(15)), 1: list(range(15))}
    assert sum(map(len, two.batches)) == 5


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_partition_that_stays_ours_goes_on_unless_another_wrote_it(kafka, topic, make_source, elsewhere) -> None:
    """A rebalance between two checkpoints must not hand over again what waits for the next one."""
    name = topic(partitions=2)
    partitions = [Partition(name, 0), Partition(name, 1)]
    for partition in partitions:
        produce(kafka.brokers, name, numbered(4), partition=partition.number)
    positions = Positions(dict.fromkeys(partitions, 0))
    first, second = (make_source(name, client_id=client_id) for client_id in ("first", "second"))
    first.open(positions)
    seen = read(first, records(8))  # not stored
    if elsewhere:  # another owner, alive by mistake, wrote a checkpoint
        positions.stored = dict.fromkeys(partitions, 3)
    second.open(positions)
    with Reader(first, positions, store=False) as one, Reader(second, positions, store=False):
        wait_for(shares(first, second))
        (kept,) = first.assignment()
        produce(kafka.brokers, name, [b"new"], partition=kept.number)
        wait_for(lambda: any(4 in batch.offsets for batch in one.batches))
    assert offsets_of(seen + one.batches)[kept.number] == ([0, 1, 2, 3, 3, 4] if elsewhere else [0, 1, 2, 3, 4])


def test_a_leader_takes_an_assignment_that_was_agreed_between_two_of_its_polls(kafka, topic, make_source) -> None:
    """The client itself drops it, and goes on without partitions, heartbeats or an error."""
    name = topic(partitions=1)
    positions = Positions()
    first, second = (make_source(name, client_id=client_id) for client_id in ("first", "second"))
    first.open(positions)
    read(first, placed(1))  # alone, so the leader
    second.open(positions)
    joined = [source._consumer.group_metadata for source in (first, second)]
    with Reader(second, positions) as two:
        with Reader(first, positions) as one:
            wait_for(lambda: all(member().state == "<stable>" and member().generation_id > 1 for member in joined))
        with kafka.admin() as admin:
            admin.create_partitions({name: 2})
        # The leader begins a rebalance in one short poll, and the others join while it is busy with something else.
        first._consumer._client.cluster.request_update()
        wait_for(lambda: first._consumer.poll(timeout_ms=100) == {} and first._consumer._coordinator.rejoining)
        wait_for(lambda: second.assignment() == {Partition(name, 1)})
        for partition in (0, 1):
            produce(kafka.brokers, name, numbered(1), partition=partition)
        with Reader(first, positions) as one:
            wait_for(lambda: records(2)(one.batches + two.batches), lambda: offsets_of(one.batches))
            assert offsets_of(one.batches)[0] == [0]


def test_a_restarted_static_member_has_its_partitions_back_at_once(kafka, topic, make_source) -> None:
    name = topic(partitions=2)
    produce(kafka.brokers, name, numbered(4))
    positions = Positions()
    first = make_source(name, session_timeout_s=30)
    first.open(positions)
    read(first, records(4), positions=positions)
    first.close()
    produce(kafka.brokers, name, numbered(1, first=4))
    began = time.monotonic()
    second = make_source(name, session_timeout_s=30)
    second.open(positions)
    assert offsets_of(read(second, records(1)))[0] == [4]
    assert time.monotonic() - began < 10  # a dynamic member would wait for the 30 s of the old session


def test_a_second_process_with_the_same_member_id_stops_the_first(kafka, topic, make_source, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._COMMIT_EVERY_S", 0.3)
    name = topic()
    first = make_source(name)
    first.open(Positions())
    read(first, placed(1), positions=Positions())
    second = make_source(name)
    second.open(Positions())
    deadline = time.monotonic() + DEADLINE_S
    with pytest.raises(SourceError, match="same member id") as caught:
        while time.monotonic() < deadline:
            second.poll(100, 0.1)
            first.poll(100, 0.1)
    assert not caught.value.retryable


# What it says when things break


def test_an_unknown_topic_is_named_with_the_nearest(kafka, topic, make_source) -> None:
    name = topic()
    source = make_source(name[:-1] + "x")
    for call in (source.check, lambda: source.open(Positions()), lambda: next(source.read_range(None, None))):
        with pytest.raises(UnknownTopic, match="no topic") as caught:
            call()
        assert name in caught.value.hint
    with kafka.admin() as admin:
        assert name[:-1] + "x" not in admin.list_topics()


def test_an_unreachable_broker_is_told_at_once(make_source) -> None:
    source = make_source("any", brokers=f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(SourceUnreachable, match="connection refused") as caught:
        source.open(Positions())
    assert caught.value.retryable
    assert time.monotonic() - began < 5
    with pytest.raises(SourceUnreachable, match="host name is not known"):
        make_source("any", brokers="no-such-host.invalid:9092").check()


def test_one_reachable_broker_of_several_is_enough(kafka, topic, make_source) -> None:
    name = topic()
    source = make_source(name, brokers=[f"127.0.0.1:{free_port()}", kafka.brokers])
    assert source.check() == f"kafka {kafka.brokers}, topic {name}, 1 partition, group group-{name}"
    source.open(Positions())
    read(source, placed(1))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told_from_a_right_one(kafka, topic, make_source, mechanism) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(1))

    def settings(password: str) -> dict[str, object]:
        login = {"protocol": "SASL_PLAINTEXT", "mechanism": mechanism, "username": USER, "password": password}
        return {"brokers": kafka.sasl_brokers, "security": login}

    for call in ("check", "open"):
        wrong = make_source(name, **settings("wrong-password"))
        with pytest.raises(AccessRefused, match=f'refuses user "{USER}"') as caught:
            wrong.check() if call == "check" else wrong.open(Positions())
        assert "wrong-password" not in str(caught.value)
        assert not caught.value.retryable
    right = make_source(name, **settings(PASSWORD))
    assert name in right.check()
    right.open(Positions())
    assert values_of(read(right, records(1))) == [b"0"]


def test_a_password_file_is_read(kafka, topic, make_source, tmp_path: Path) -> None:
    file = tmp_path / "password"
    login = {"protocol": "SASL_PLAINTEXT", "username": USER, "password_file": str(file)}
    source = make_source(topic(), brokers=kafka.sasl_brokers, security=login)
    with pytest.raises(AccessRefused, match="cannot be read"):
        source.check()
    file.write_text(PASSWORD + "\n")
    source.check()


def test_an_unknown_authority_is_told_from_a_known_one(kafka, topic, make_source, tmp_path: Path) -> None:
    if not kafka.tls_brokers:
        pytest.skip("openssl is not installed")
    name = topic()
    produce(kafka.brokers, name, numbered(1))
    with pytest.raises(AccessRefused, match="certificate") as caught:
        make_source(name, brokers=kafka.tls_brokers, security={"protocol": "SSL"}).open(Positions())
    assert "ca_file" in caught.value.hint
    security = {"protocol": "SSL", "ca_file": str(kafka.ca_file)}
    source = make_source(name, brokers=kafka.tls_brokers, security=security)
    source.check()
    source.open(Positions())
    assert values_of(read(source, records(1))) == [b"0"]
    not_a_certificate = tmp_path / "ca.pem"
    not_a_certificate.write_text("hello")
    with pytest.raises(AccessRefused, match="cannot be used"):
        make_source(
            name, brokers=kafka.tls_brokers, security={"protocol": "SSL", "ca_file": str(not_a_certificate)}
        ).check()


def test_tls_and_log_in_together(kafka, topic, make_source) -> None:
    if not kafka.sasl_tls_brokers:
        pytest.skip("openssl is not installed")
    name = topic()
    produce(kafka.brokers, name, numbered(1))
    login = {"protocol": "SASL_SSL", "ca_file": str(kafka.ca_file), "username": USER, "password": PASSWORD}
    source = make_source(name, brokers=kafka.sasl_tls_brokers, security=login)
    source.check()
    source.open(Positions())
    assert values_of(read(source, records(1))) == [b"0"]


def test_the_wrong_protocol_for_a_listener_is_told(kafka, topic, make_source) -> None:
    name = topic()
    login = {"username": USER, "password": PASSWORD}
    with pytest.raises(AccessRefused, match="not logged in"):
        make_source(name, brokers=kafka.sasl_brokers).check()
    with pytest.raises(AccessRefused, match=r"no SASL log-in|ended"):
        make_source(name, security={"protocol": "SASL_PLAINTEXT", **login}).check()
    if kafka.tls_brokers:
        with pytest.raises(SourceUnreachable, match="does not speak TLS"):
            make_source(name, security={"protocol": "SSL", "ca_file": str(kafka.ca_file)}).check()
        with pytest.raises(SourceUnreachable, match="does not answer as a Kafka broker"):
            make_source(name, brokers=kafka.tls_brokers).check()


def test_missing_rights_on_topic_and_group_are_told(kafka, topic, make_source) -> None:
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

    name = topic()
    login = {"protocol": "SASL_PLAINTEXT", "username": USER, "password": PASSWORD}
    source = make_source(name, brokers=kafka.sasl_brokers, security=login)
    for kind, resource, operation in (
        (ResourceType.GROUP, f"group-{name}", ACLOperation.ALL),
        (ResourceType.TOPIC, name, ACLOperation.READ),
        (ResourceType.TOPIC, name, ACLOperation.ALL),
    ):
        acl = ACL(
            principal=f"User:{USER}",
            host="*",
            operation=operation,
            permission_type=ACLPermissionType.DENY,
            resource_pattern=ResourcePattern(kind, resource),
        )
        with kafka.admin() as admin:
            admin.create_acls([acl])
            try:
                with pytest.raises(AccessRefused, match=resource):
                    source.check()
            finally:
                admin.delete_acls([acl])


def test_a_missing_codec_package_is_told_before_any_batch_comes(kafka, topic, make_source, monkeypatch) -> None:
    from kafka import codec

    monkeypatch.setattr(codec, "zstd", None, raising=False)
    monkeypatch.setattr(codec, "has_zstd", lambda: False)
    source = make_source(topic())
    for call in (source.check, lambda: source.open(Positions())):
        with pytest.raises(MissingCodec, match="zstd") as caught:
            call()
        assert "pip install" in caught.value.hint


def test_a_batch_that_cannot_be_decompressed_does_not_hang_the_reader(kafka, topic, make_source, monkeypatch) -> None:
    from kafka import codec

    name = topic()
    produce(kafka.brokers, name, numbered(3))
    produce(kafka.brokers, name, [b"x" * 1000] * 3, compression_type="zstd")
    source = make_source(name)
    source.open(Positions())
    monkeypatch.setattr(codec, "has_zstd", lambda: False)
    seen: list[RawBatch] = []
    for _ in range(2):  # without our fetcher, the client spins for ever in the poll after the first failure
        with pytest.raises(MissingCodec):
            seen += read(source, records(6))
    monkeypatch.undo()
    seen += read(source, lambda batches: 5 in offsets_of(batches).get(0, []))
    assert source.rebuilt == 0
    assert offsets_of(seen)[0][-3:] == [3, 4, 5]


def test_records_deleted_before_they_were_read_are_a_gap(kafka, topic, make_source) -> None:
    from kafka import TopicPartition

    name = topic()
    produce(kafka.brokers, name, numbered(10))
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(name, 0): 6})
    stored = {Partition(name, 0): 2}
    source = make_source(name)
    source.open(Positions(stored))
    with pytest.raises(OffsetGap, match="up to 4 records were deleted") as caught:
        read(source, records(1))
    assert "on_gap" in caught.value.hint
    assert not caught.value.retryable
    source.close()
    skipping = make_source(name, on_gap="skip")
    skipping.open(Positions(stored))
    told, *batches = read(skipping, records(4))
    assert offsets_of(batches) == {0: [6, 7, 8, 9]}
    assert (len(told), told.next_offset, told.topic_id) == (0, 6, kafka.topic_id(name))
    assert told.gap is not None
    assert (told.gap.from_offset, told.gap.to_offset, told.gap.reason) == (2, 6, "retention")


def test_records_deleted_under_a_running_reader_are_a_gap(kafka, topic, make_source) -> None:
    from kafka import TopicPartition

    name = topic()
    produce(kafka.brokers, name, numbered(20), batch_size=1)  # a batch each
    source = make_source(name, max_partition_fetch_bytes=1024)
    source.open(Positions({Partition(name, 0): 0}))
    read(source, records(1), max_records=1)
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(name, 0): 20})
    with pytest.raises(OffsetGap):
        read(source, records(100), max_records=1)


def test_a_topic_made_anew_is_a_gap(kafka, topic, make_source) -> None:
    name = topic()
    produce(kafka.brokers, name, numbered(2))
    stored = {Partition(name, 0): 500}
    source = make_source(name)
    source.open(Positions(stored))
    with pytest.raises(OffsetGap, match="made anew"):
        read(source, records(1))
    source.close()
    skipping = make_source(name, on_gap="skip")
    skipping.open(Positions(stored))
    assert offsets_of(read(skipping, records(2))) == {0: [0, 1]}


def test_an_open_transaction_is_no_gap(kafka, topic, make_source) -> None:
    """The end that committed readers are told stands before an open transaction; the stored offset may be past it."""
    from kafka import KafkaProducer

    name = topic()
    producer = KafkaProducer(bootstrap_servers=kafka.brokers, transactional_id=f"tx-{name}")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for value in numbered(3):
            producer.send(name, value)
        producer.flush()
        source = make_source(name)
        source.open(Positions({Partition(name, 0): 2}))  # as a reader of uncommitted records leaves it
        read(source, lambda _: source.assignment() == {Partition(name, 0)})
        producer.commit_transaction()
        assert offsets_of(read(source, records(1))) == {0: [2]}
    finally:
        producer.close()


def test_a_topic_that_goes_away_is_told_while_running(kafka, topic, make_source, monkeypatch) -> None:
    name = topic()
    monkeypatch.setattr("connectors.kafka._SILENCE_S", 0.5)
    monkeypatch.setattr("connectors.kafka._PROBE_EVERY_S", 0.5)
    source = make_source(name)
    source.open(Positions())
    read(source, placed(1))
    with kafka.admin() as admin:
        admin.delete_topics([name])
    with pytest.raises(UnknownTopic):
        read(source, records(1))


# Outages


@pytest.fixture(scope="module")
def own_kafka(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """One broker for the outages of this file: each leaves it running again. ``kafka`` skips where there is none."""
    settings = {"auto.create.topics.enable": "true"}  # as many brokers have it
    server = KafkaServer(tmp_path_factory.mktemp("own-kafka"), settings=settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_nothing_is_lost_or_doubled_when_the_broker_is_killed(own_kafka: KafkaServer, caplog) -> None:
    name = own_kafka.create_topic("outage", partitions=2)
    for partition in (0, 1):
        produce(own_kafka.brokers, name, numbered(300), partition=partition)
    settings = KafkaSettings(brokers=own_kafka.brokers, topic=name, session_timeout_s=6, unreachable_after_s=1)
    source = settings.build(client_id="reader")
    positions = Positions()
    source.open(positions)
    try:
        seen = read(source, records(200), max_records=50, positions=positions)
        own_kafka.kill()
        with pytest.raises(SourceUnreachable, match="connection refused"):
            while True:
                seen += read(source, records(1), max_records=50, positions=positions)
        assert not source.connected
        own_kafka.start()
        for partition in (0, 1):
            produce(own_kafka.brokers, name, numbered(300, first=300), partition=partition)
        deadline = time.monotonic() + DEADLINE_S
        while sum(map(len, seen)) < 1200:
            assert time.monotonic() < deadline, {number: len(found) for number, found in offsets_of(seen).items()}
            try:
                seen += read(source, records(1), max_records=50, positions=positions)
            except SourceUnreachable as error:
                assert error.retryable
        assert offsets_of(seen) == {0: list(range(600)), 1: list(range(600))}
        assert source.connected
    finally:
        source.close()
    # An outage makes the client say the same things some hundred times.
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("kafka")]
    assert len(texts) < 40


def test_a_broker_that_says_nothing_is_told_and_closing_does_not_wait_for_it(own_kafka: KafkaServer) -> None:
    name = own_kafka.create_topic("frozen")
    settings = KafkaSettings(
        brokers=own_kafka.brokers, topic=name, unreachable_after_s=1, connect_timeout_s=1, instance="none"
    )
    source = settings.build(client_id="reader")
    source.open(Positions())
    read(source, placed(1))
    letters = settings.dead_letter_topic(name, client_id="reader")
    letter = DeadLetter(Partition(name, 0), 1, -1, "bad_json", "not JSON", b"{", 1)
    letters.send([letter])
    with own_kafka.frozen():
        with pytest.raises(SourceUnreachable, match="does not answer within 1 s"):
            read(source, records(1))
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 5
        slow = KafkaDeadLetterTopic([own_kafka.brokers], name, client_id="slow", timeout_s=1, connect_timeout_s=1)
        with pytest.raises(SinkError, match="does not answer") as caught:
            slow.send([letter])
        assert caught.value.retryable
        began = time.monotonic()
        letters.close()
        assert time.monotonic() - began < 5


def test_a_topic_that_is_gone_is_not_made_anew_by_asking_for_it(own_kafka: KafkaServer, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._SILENCE_S", 0.5)
    name = own_kafka.create_topic("gone")
    settings = KafkaSettings(brokers=own_kafka.brokers, topic=name)
    letters = settings.dead_letter_topic(name, client_id="writer")
    letter = DeadLetter(Partition(name, 0), 1, -1, "bad_json", "not JSON", b"{", 1)
    letters.send([letter])
    source = settings.build(client_id="reader")
    source.open(Positions())
    try:
        read(source, records(1))
        with own_kafka.admin() as admin:
            admin.delete_topics([name])
        # The client asks the broker for the topic's leader, again and again.
        source._consumer._client.cluster.request_update()
        with pytest.raises(UnknownTopic):
            read(source, records(1))
        with pytest.raises(SinkError):
            KafkaDeadLetterTopic([own_kafka.brokers], name, client_id="late", timeout_s=2).send([letter])
        with own_kafka.admin() as admin:
            assert name not in admin.list_topics()
    finally:
        source.close()
        letters.close()


# Dead letters


def test_dead_letters_come_back_with_their_origin(kafka, topic, make_source) -> None:
    name = topic()
    letters = KafkaSettings(brokers=kafka.brokers, topic="source").dead_letter_topic(name, client_id="writer")
    try:
        assert name in letters.check()
        letters.send(
            [
                DeadLetter(Partition("source", 3), 7, 1_700_000_000_000, "bad_json", "not JSON at byte 2", b"{x", 900),
                DeadLetter(Partition("source", 3), 8, -1, "too_large", "2 MB", b"x" * (2 << 20), 2 << 20),
                DeadLetter(Partition("source", 3), 9, -1, "bad_value", "", b"{", 1, row=2),
                *(DeadLetter(Partition("source", 4), n, -1, "bad_json", "", b"", 0) for n in range(1500)),
            ]
        )
    finally:
        letters.close()
    source = make_source(name)
    source.open(Positions())
    batches = read(source, records(1503))
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [b"source/3/7", b"source/3/8", b"source/3/9#2", *(b"source/4/%d" % n for n in range(1500))]
    first = next(batch for batch in batches if len(batch))
    assert first.values[0] == b"{x"
    assert dict(first.headers[0]) == {
        "reason": b"bad_json",
        "detail": b"not JSON at byte 2",
        "source_topic": b"source",
        "source_partition": b"3",
        "source_offset": b"7",
        "source_timestamp_ms": b"1700000000000",
        "source_size": b"900",
    }
    assert len(values_of(batches)[1] or b"") == 512 << 10
    headers = [dict(each) for batch in batches for each in batch.headers]
    assert headers[2]["source_row"] == b"2"


def test_dead_letters_to_a_topic_that_does_not_exist_are_refused(kafka) -> None:
    letters = KafkaDeadLetterTopic([kafka.brokers], "no-such-topic", client_id="writer")
    with pytest.raises(SinkError, match="no topic") as caught:
        letters.send([DeadLetter(Partition("source", 0), 0, -1, "bad_json", "", b"", 0)])
    assert caught.value.retryable, "somebody may make it"
    letters.close()


def test_every_thread_of_the_client_ends_with_its_source(kafka, topic, make_source) -> None:
    before = {thread.name for thread in threading.enumerate()}
    source = make_source(topic())
    source.check()
    source.open(Positions())
    source.poll(1, 0.1)
    source.close()
    deadline = time.monotonic() + 5
    while extra := {thread.name for thread in threading.enumerate()} - before:
        assert time.monotonic() < deadline, extra


def test_repeated_lines_of_the_client_are_counted_not_logged(kafka, topic, make_source, caplog) -> None:
    source = make_source(topic())
    source.open(Positions())
    logger = logging.getLogger("kafka.consumer.fetcher")
    for attempt in range(50):
        logger.warning("test: attempt %d failed after %.2f s", attempt, attempt / 7)
    assert len([record for record in caplog.records if "test: attempt" in record.getMessage()]) == 1
