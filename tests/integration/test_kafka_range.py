"""Parts of a topic, on a real broker: where a time lies, how partitions go forward together, and what breaks."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from connectors.kafka import KafkaSettings, KafkaSource
from connectors.records import Partition, RawBatch, Span
from detectors.errors import OffsetGap, SourceUnreachable
from tests.servers.kafka import KafkaServer

pytestmark = [
    pytest.mark.kafka,
    # The client forgets sockets whose connection was refused; they are closed when they are collected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

DEADLINE_S = 30.0
Make = Callable[..., KafkaSource]
Read = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _collect_forgotten_sockets() -> Iterator[None]:
    """Here, where the warning is expected, not in some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def whole(server: KafkaServer, topic: str, **settings: Any) -> KafkaSource:
    values = {"brokers": server.brokers, "topic": topic, **settings}
    return KafkaSettings.model_validate(values).build(client_id="test", group=f"group-{topic}")


@pytest.fixture
def part() -> Iterator[Callable[..., Any]]:
    """``part(source, spans, stored={...})``: a source of these spans, opened; closed at the end."""
    made = []

    def make(
        source: KafkaSource, spans: Mapping[Partition, Span], stored: Mapping[Partition, int] | None = None
    ) -> Any:
        positions = stored if stored is not None else {}
        made.append(source.between(spans))
        made[-1].open(lambda partitions: {p: positions[p] for p in partitions if p in positions})
        return made[-1]

    yield make
    for source in made:
        source.close()


def produce(
    server: KafkaServer,
    topic: str,
    n: int,
    *,
    partition: int = 0,
    times_ms: Sequence[int] | None = None,
    first: int = 0,
    transaction: str | None = None,
    batch_size: int = 16_384,
) -> None:
    """Write n records, numbered from ``first``; ``transaction`` is how it ends: "commit" or "abort"."""
    from kafka import KafkaProducer

    options = {"batch_size": batch_size, **({"transactional_id": f"{topic}-{partition}"} if transaction else {})}
    producer = KafkaProducer(bootstrap_servers=server.brokers, reconnect_backoff_max_ms=200, linger_ms=5, **options)
    try:
        if transaction:
            producer.init_transactions()
            producer.begin_transaction()
        for number in range(n):
            at = None if times_ms is None else times_ms[number]
            producer.send(topic, b"%d" % (first + number), partition=partition, timestamp_ms=at)
        producer.flush()
        if transaction:
            producer.commit_transaction() if transaction == "commit" else producer.abort_transaction()
    finally:
        producer.close()


def read_all(source: Any, max_records: int = 1000) -> list[RawBatch]:
    """To the end, whatever the source says of the brokers meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    batches: list[RawBatch] = []
    while not source.finished:
        assert time.monotonic() < deadline, source.lag()
        try:
            batches += source.poll(max_records, 0.2)
        except SourceUnreachable as error:
            assert error.retryable
    return batches


def offsets_of(batches: Sequence[RawBatch]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for batch in batches:
        found.setdefault(batch.partition.number, []).extend(batch.offsets.tolist())
    return found


def delete_below(server: KafkaServer, topic: str, offset: int) -> None:
    from kafka import TopicPartition

    with server.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): offset})


def test_a_time_lies_from_its_first_record_to_the_first_after_it_whatever_clocks_do_between(kafka, topic) -> None:
    name = topic(partitions=3)
    produce(kafka, name, 8, times_ms=[100, 200, 150, 300, 250, 400, 350, 500])
    produce(kafka, name, 2, partition=1, times_ms=[100, 110])
    source = whole(kafka, name)
    topic_id = kafka.topic_id(name)
    spans = source.extents(200, 400)
    assert spans == {Partition(name, 0): Span(1, 5, spans[Partition(name, 0)].topic_id)}
    assert spans[Partition(name, 0)].topic_id is not None
    assert topic_id
    assert {p.number: (s.first, s.after) for p, s in source.extents(None, 400).items()} == {0: (0, 5), 1: (0, 2)}
    assert {p.number: (s.first, s.after) for p, s in source.extents(350, None).items()} == {0: (5, 8)}
    assert source.extents(501, None) == {}


def test_a_part_is_read_beside_the_group_without_a_trace_in_it(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 20)
    source = whole(kafka, name)
    part(source, source.extents(None, None)).commit({Partition(name, 0): 5})
    with kafka.admin() as admin:
        assert f"group-{name}" not in str(admin.list_groups())


def test_partitions_go_forward_together_in_time(kafka, topic, part) -> None:
    """One fetch brings a whole partition here: three thousand seconds ahead of the others, if nobody held it back."""
    name, n = topic(partitions=3), 3000
    for partition in range(3):
        produce(kafka, name, n, partition=partition, times_ms=[1_000 * number for number in range(n)])
    source = whole(kafka, name)
    reader = part(source, source.extents(None, None))
    newest = dict.fromkeys(reader.assignment(), 0)
    apart = []
    deadline = time.monotonic() + DEADLINE_S
    while not reader.finished:
        assert time.monotonic() < deadline
        for batch in reader.poll(2000, 0.2):
            if len(batch):
                newest[batch.partition] = int(batch.timestamps_ms[-1])
        apart.append(max(newest.values()) - min(newest.values()))
    assert set(newest.values()) == {1_000 * (n - 1)}
    assert max(apart) <= 1_000 * (512 + 512 + 60), "a turn, another one within the minute that is allowed, and that"


def test_one_poll_brings_many_turns(kafka, topic, part) -> None:
    name = topic(partitions=2)
    for partition in range(2):
        produce(kafka, name, 3000, partition=partition, times_ms=list(range(3000)))
    source = whole(kafka, name)
    reader = part(source, source.extents(None, None))
    sizes = []
    deadline = time.monotonic() + DEADLINE_S
    while not reader.finished:
        assert time.monotonic() < deadline
        sizes.append(sum(map(len, reader.poll(4096, 0.5))))
    assert max(sizes) > 2048
    assert max(sizes) <= 4096
    assert sum(sizes) == 6000


def test_a_span_that_ends_with_an_aborted_transaction_is_finished(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 5)
    produce(kafka, name, 3, transaction="abort")
    source = whole(kafka, name)
    spans = source.extents(None, None)
    assert [(span.first, span.after) for span in spans.values()] == [(0, 9)]
    batches = read_all(part(source, spans))
    assert offsets_of(batches) == {0: list(range(5))}
    assert batches[-1].next_offset == 9
    loud = whole(kafka, name, isolation="read_uncommitted")
    assert offsets_of(read_all(part(loud, loud.extents(None, None)))) == {0: list(range(8))}


def test_an_end_inside_a_hole_is_an_end(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 5)
    produce(kafka, name, 3, transaction="abort")
    produce(kafka, name, 5)
    source = whole(kafka, name)
    partition = Partition(name, 0)
    batches = read_all(part(source, {partition: Span(2, 7)}))
    assert offsets_of(batches) == {0: [2, 3, 4]}
    assert batches[-1].next_offset == 7
    assert offsets_of(read_all(part(source, {partition: Span(6, 10)}))) == {0: [9]}


def test_records_that_were_deleted_are_said_and_not_stepped_over(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 20)
    source = whole(kafka, name, on_gap="skip")
    spans = source.extents(None, None)
    delete_below(kafka, name, 6)
    with pytest.raises(OffsetGap, match="no longer holds offset 0") as caught:
        read_all(part(source, spans))
    assert "models.NAME.history" in str(caught.value.hint)
    assert not caught.value.retryable
    resumed = part(source, spans, {Partition(name, 0): 6})
    assert offsets_of(read_all(resumed)) == {0: list(range(6, 20))}, "what was read before need not be there any more"


def test_records_that_are_deleted_while_they_wait_are_said(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 20)
    source = whole(kafka, name)
    stored = {Partition(name, 0): 0}
    reader = part(source, source.extents(None, None), stored)
    first = reader.poll(5, 1.0)
    stored.update({batch.partition: batch.next_offset for batch in first})
    delete_below(kafka, name, 15)
    reader.rewind()
    with pytest.raises(OffsetGap, match="no longer holds"):
        read_all(reader)


def test_a_span_that_was_read_to_its_end_is_no_matter_when_it_is_deleted(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 20)
    source = whole(kafka, name)
    delete_below(kafka, name, 15)
    assert read_all(part(source, {Partition(name, 0): Span(0, 10)}, {Partition(name, 0): 10})) == []


def test_a_topic_that_was_made_anew_is_said(kafka, topic, part) -> None:
    name = topic(partitions=2)
    produce(kafka, name, 20)
    produce(kafka, name, 20, partition=1)
    source = whole(kafka, name, on_gap="skip")
    spans = source.extents(None, None)
    with kafka.admin() as admin:
        admin.delete_topics([name])
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            kafka.create_topic(name)
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    produce(kafka, name, 30)
    with pytest.raises(OffsetGap, match="made anew"):
        read_all(part(source, {Partition(name, 0): spans[Partition(name, 0)]}))
    with pytest.raises(OffsetGap, match="no partition 1 any more"):
        part(source, spans)


def test_a_broker_that_is_killed_is_waited_for_and_nothing_is_lost_or_doubled(own_kafka: KafkaServer, part) -> None:
    name = own_kafka.create_topic("outage", partitions=2)
    for partition in (0, 1):
        produce(own_kafka, name, 300, partition=partition, batch_size=256)
    source = whole(own_kafka, name, unreachable_after_s=1, connect_timeout_s=1, max_partition_fetch_bytes=1024)
    spans = source.extents(None, None)
    reader = part(source, spans)
    batches: list[RawBatch] = []
    while sum(map(len, batches)) < 200:
        batches += reader.poll(50, 0.5)
    own_kafka.kill()
    with pytest.raises(SourceUnreachable):
        for _ in range(100):
            batches += reader.poll(50, 0.2)
    own_kafka.start()
    batches += read_all(reader, 50)
    assert offsets_of(batches) == {0: list(range(300)), 1: list(range(300))}


def test_every_thread_of_the_client_ends_with_its_part(kafka, topic, part) -> None:
    name = topic()
    produce(kafka, name, 5)
    before = {thread.name for thread in threading.enumerate()}
    source = whole(kafka, name)
    reader = part(source, source.extents(None, None))
    read_all(reader)
    reader.close()
    deadline = time.monotonic() + 5
    while extra := {thread.name for thread in threading.enumerate()} - before:
        assert time.monotonic() < deadline, extra


def test_a_clock_that_is_far_ahead_holds_nothing_up(kafka, topic, part) -> None:
    name = topic(partitions=2)
    year_ms = 365 * 86_400_000
    produce(kafka, name, 2000, times_ms=[10 * year_ms, *range(1999)])
    produce(kafka, name, 2000, partition=1, times_ms=list(range(2000)))
    source = whole(kafka, name)
    batches = read_all(part(source, source.extents(None, None)), 300)
    assert offsets_of(batches) == {0: list(range(2000)), 1: list(range(2000))}
