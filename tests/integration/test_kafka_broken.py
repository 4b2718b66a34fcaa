"""The Kafka source on what breaks: topics made anew, damaged batches, brokers that go and come, passwords that end."""

from __future__ import annotations

import gc
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import crc32c
import numpy as np
import pytest

from connectors.kafka import KafkaSettings, KafkaSource
from connectors.kafka_fetcher import DamageCount, UndecodableBatch, after_batch
from connectors.records import Gap, Partition, RawBatch
from detectors.errors import AccessRefused, MissingCodec, OffsetGap, SourceError, SourceUnreachable, UnknownTopic
from tests.integration.test_kafka_source import (
    DEADLINE_S,
    Positions,
    numbered,
    offsets_of,
    placed,
    produce,
    read,
    records,
    values_of,
)
from tests.servers.kafka import KafkaServer

pytestmark = [
    pytest.mark.kafka,
    # The client forgets sockets whose connection was refused; they are closed when they are collected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

Make = Callable[..., KafkaSource]


@pytest.fixture(scope="module", autouse=True)
def _collect_forgotten_sockets() -> Iterator[None]:
    """Here, where the warning is expected, not in some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def _forget_logged_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What was logged holds errors, whose frames hold sockets, past the collection above."""
    yield
    caplog.get_records("call").clear()


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(server, topic, **settings)``; every source is closed at the end."""
    made: list[KafkaSource] = []

    def build(server: KafkaServer, topic: str, **settings: object) -> KafkaSource:
        values = {"brokers": server.brokers, "topic": topic, "session_timeout_s": 6, **settings}
        made.append(KafkaSettings.model_validate(values).build(client_id="reader", group=f"group-{topic}"))
        return made[-1]

    yield build
    for source in made:
        source.close()


class Ids:
    """Stands for the topic ids in the database."""

    def __init__(self, stored: Mapping[Partition, str]) -> None:
        self.stored = dict(stored)

    def __call__(self, partitions: Sequence[Partition]) -> Mapping[Partition, str]:
        return {partition: self.stored[partition] for partition in partitions if partition in self.stored}


def gaps_of(batches: Sequence[RawBatch]) -> list[Gap]:
    assert all(len(batch) == 0 and batch.next_offset == batch.gap.to_offset for batch in batches if batch.gap)
    return [batch.gap for batch in batches if batch.gap is not None]


def spans(gaps: Sequence[Gap]) -> list[tuple[int, int, int, str]]:
    return [(gap.partition.number, gap.from_offset, gap.to_offset, gap.reason) for gap in gaps]


def make_anew(server: KafkaServer, name: str, *, partitions: int = 1) -> None:
    with server.admin() as admin:
        admin.delete_topics([name])
    server.create_topic(name, partitions=partitions)


# Topics made anew


def test_a_topic_made_anew_is_a_gap_even_where_the_stored_offset_exists_in_it(kafka, topic, make) -> None:
    name = topic()
    partition = Partition(name, 0)
    stored, ids = Positions({partition: 4}), Ids({partition: kafka.topic_id(name)})
    produce(kafka.brokers, name, numbered(10))
    same = make(kafka, name)
    same.open(stored, topic_ids=ids)
    assert offsets_of(read(same, records(6))) == {0: [4, 5, 6, 7, 8, 9]}
    same.close()
    make_anew(kafka, name)
    produce(kafka.brokers, name, numbered(10))
    stopping = make(kafka, name)
    stopping.open(stored, topic_ids=ids)
    with pytest.raises(OffsetGap, match="made anew"):
        read(stopping, records(1))
    stopping.close()
    skipping = make(kafka, name, on_gap="skip")
    skipping.open(stored, topic_ids=ids)
    batches = read(skipping, records(10))
    assert spans(gaps_of(batches)) == [(0, 4, 0, "recreated")]
    assert batches[0].gap is not None
    assert offsets_of(batches) == {0: list(range(10))}
    assert {batch.topic_id for batch in batches} == {kafka.topic_id(name)} != {ids.stored[partition]}
    # Nothing was stored, as if the checkpoint had been refused: the gap is told again.
    skipping.rewind()
    assert spans(gaps_of(read(skipping, records(10)))) == [(0, 4, 0, "recreated")]


@pytest.mark.parametrize("looks", [0, 3])
def test_a_topic_made_anew_under_a_running_reader_is_the_same_gap(kafka, topic, make, monkeypatch, looks) -> None:
    monkeypatch.setattr("connectors.kafka._METADATA_AGE_MS", 1000)
    name = topic()
    old = kafka.topic_id(name)
    produce(kafka.brokers, name, numbered(10))
    source = make(kafka, name, on_gap="skip")
    positions = Positions()
    source.open(positions)
    assert offsets_of(read(source, records(10), positions=positions)) == {0: list(range(10))}
    with kafka.admin() as admin:
        admin.delete_topics([name])
    for _ in range(looks):
        assert source.poll(100, 0.3) == []
    kafka.create_topic(name)
    produce(kafka.brokers, name, numbered(30, first=100))  # more than before, so that the old position exists in it
    batches = read(source, records(30))
    assert spans(gaps_of(batches)) == [(0, 10, 0, "recreated")]
    assert values_of(batches) == numbered(30, first=100)
    assert {batch.topic_id for batch in batches} == {kafka.topic_id(name)} != {old}


def test_a_topic_that_comes_back_after_it_was_missed_is_read_on(kafka, topic, make, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._METADATA_AGE_MS", 500)
    monkeypatch.setattr("connectors.kafka._SILENCE_S", 0.5)
    monkeypatch.setattr("connectors.kafka._PROBE_EVERY_S", 0.5)
    name = topic()
    produce(kafka.brokers, name, numbered(3))
    source = make(kafka, name, on_gap="skip")
    positions = Positions()
    source.open(positions)
    read(source, records(3), positions=positions)
    with kafka.admin() as admin:
        admin.delete_topics([name])
    with pytest.raises(UnknownTopic):
        read(source, records(1))
    kafka.create_topic(name)
    produce(kafka.brokers, name, numbered(5))
    batches: list[RawBatch] = []
    deadline = time.monotonic() + DEADLINE_S
    while sum(map(len, batches)) < 5 and time.monotonic() < deadline:
        try:
            batches += source.poll(100, 0.2)
        except UnknownTopic:
            continue
    assert spans(gaps_of(batches)) == [(0, 3, 0, "recreated")]
    assert values_of(batches) == numbered(5)


# Batches that cannot be decoded


def write_batches(server: KafkaServer, topic: str, partition: int, batches: Sequence[Sequence[bytes]]) -> None:
    """Write each of ``batches`` as one batch of Kafka's."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=server.brokers, linger_ms=1000)
    try:
        for values in batches:
            for value in values:
                producer.send(topic, value, partition=partition)
            producer.flush()
    finally:
        producer.close()


def log_of(server: KafkaServer, topic: str, partition: int) -> Path:
    return server.directory / "data" / f"{topic}-{partition}" / f"{0:020}.log"


def batch_starts(log: bytes | bytearray) -> list[int]:
    """Where each batch of a log begins."""
    starts, at = [], 0
    while at + 61 <= len(log) and struct.unpack_from(">i", log, at + 8)[0] > 0:
        starts.append(at)
        at += 12 + struct.unpack_from(">i", log, at + 8)[0]
    return starts


def damage(server: KafkaServer, topic: str, partition: int, harm: Callable[[bytearray, int], None], batch: int) -> None:
    """Change a batch in the log under a running broker, as a disk that goes bad does."""
    path = log_of(server, topic, partition)
    log = bytearray(path.read_bytes())
    harm(log, batch_starts(log)[batch])
    with path.open("r+b") as file:  # the same file: the broker has it open
        file.write(log)


def flip_a_value(log: bytearray, at: int) -> None:
    log[at + 61 + 6] ^= 0xFF


def claim_an_unknown_codec(log: bytearray, at: int) -> None:
    size = 12 + struct.unpack_from(">i", log, at + 8)[0]
    struct.pack_into(">h", log, at + 21, 7)
    struct.pack_into(">I", log, at + 17, crc32c.crc32c(bytes(log[at + 21 : at + size])))


def claim_many_more_records(log: bytearray, at: int) -> None:
    struct.pack_into(">i", log, at + 23, 10_000)


def claim_to_be_tiny(log: bytearray, at: int) -> None:
    struct.pack_into(">i", log, at + 8, 5)  # the broker itself stumbles over this one


@pytest.fixture(scope="module")
def own_kafka(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """One broker for this file, which its tests stop and kill. ``kafka`` skips where there is none."""
    server = KafkaServer(tmp_path_factory.mktemp("own-kafka"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def damaged_kafka(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """With the topic "damaged", of whose batches of three records the third is damaged, in another way in each
    partition but the last; and the topic "held", whose second of three records is."""
    harms = [flip_a_value, claim_an_unknown_codec, claim_many_more_records]
    kafka.create_topic("damaged", partitions=4)
    kafka.create_topic("held")
    for partition, harm in enumerate([*harms, None]):
        write_batches(kafka, "damaged", partition, [[b"%d-%d" % (n, i) for i in range(3)] for n in range(6)])
        if harm is not None:
            damage(kafka, "damaged", partition, harm, batch=2)
    write_batches(kafka, "held", 0, [[b"a"], [b"b"], [b"c"]])
    damage(kafka, "held", 0, flip_a_value, batch=1)
    yield kafka
    with kafka.admin() as admin:
        admin.delete_topics(["damaged", "held"])


def test_a_damaged_batch_is_named_or_left_out_and_the_rest_is_read(damaged_kafka: KafkaServer, make) -> None:
    source = make(damaged_kafka, "damaged", on_damaged="skip")
    source.open(Positions())
    seen: list[RawBatch] = []
    deadline = time.monotonic() + DEADLINE_S
    while sum(map(len, seen)) < 18 + 3 * 15:
        assert time.monotonic() < deadline, (offsets_of(seen), spans(gaps_of(seen)))
        seen += source.poll(5000, 0.2)
    rest = [offset for offset in range(18) if offset not in (6, 7, 8)]
    assert offsets_of(seen) == {**dict.fromkeys(range(3), rest), 3: list(range(18))}
    assert sorted(spans(gaps_of(seen))) == [(partition, 6, 9, "damaged") for partition in range(3)]
    assert source.rebuilt == 0
    source.close()

    stopping = make(damaged_kafka, "damaged")
    stopping.open(Positions())
    errors: dict[str, SourceError] = {}
    read_on: list[RawBatch] = []
    while len(errors) < 3 or sum(map(len, read_on)) < 18 + 3 * 6:
        assert time.monotonic() < deadline + DEADLINE_S, (errors, offsets_of(read_on))
        try:
            read_on += stopping.poll(5000, 0.2)
        except SourceError as error:
            assert not error.retryable
            errors[error.message.split(" of topic")[0]] = error
    assert offsets_of(read_on) == {0: [*range(6)], 1: [*range(6)], 2: [*range(6)], 3: [*range(18)]}
    assert all("offset 6 of partition" in where for where in errors)
    assert {type(error) for error in errors.values()} == {SourceError, MissingCodec}
    assert gaps_of(read_on) == []


def test_a_held_partition_with_a_damaged_batch_does_not_hang_when_it_is_let_go(
    damaged_kafka: KafkaServer, make
) -> None:
    source = make(damaged_kafka, "held", on_damaged="skip")
    source.open(Positions())
    assert values_of(read(source, records(1))) == [b"a"]  # the client knows of the damage by now
    source.hold(source.assignment())
    assert [source.poll(100, 0.1) for _ in range(3)] == [[], [], []]
    source.hold(frozenset())
    batches = read(source, records(1))
    assert values_of(batches) == [b"c"]
    assert spans(gaps_of(batches)) == [(0, 1, 2, "damaged")]


def test_what_the_broker_cannot_read_is_left_out_up_to_what_it_can(kafka: KafkaServer, topic, make) -> None:
    """A batch whose size is damaged hides those after it, up to the broker's next index entry, some 4 kB later."""
    name = topic()
    write_batches(kafka, name, 0, [[b"x" * 1100] * 3 for _ in range(6)])
    damage(kafka, name, 0, claim_to_be_tiny, batch=2)
    source = make(kafka, name, on_damaged="skip")
    source.open(Positions())
    batches = read(source, lambda batches: 17 in offsets_of(batches).get(0, []))
    # The index knows batches by their last record: of the first that is found again, that one alone can be asked for.
    assert spans(gaps_of(batches)) == [(0, 6, 14, "damaged")]
    assert offsets_of(batches) == {0: [*range(6), *range(14, 18)]}
    with kafka.admin() as admin:
        admin.delete_topics([name])


def test_a_codec_that_is_not_installed_can_be_left_out_too(kafka, topic, make, monkeypatch) -> None:
    from kafka import codec

    name = topic()
    produce(kafka.brokers, name, numbered(3))
    produce(kafka.brokers, name, [b"x" * 1000] * 3, compression_type="zstd")
    produce(kafka.brokers, name, numbered(3))
    source = make(kafka, name, on_damaged="skip")
    source.open(Positions())
    monkeypatch.setattr(codec, "has_zstd", lambda: False)
    batches = read(source, records(6))
    assert values_of(batches) == numbered(3) * 2
    assert spans(gaps_of(batches)) == [(0, 3, 6, "damaged")]


def test_damage_met_beside_the_stream_is_left_out_or_named(damaged_kafka: KafkaServer, make) -> None:
    wanted = [(Partition("damaged", number), offset) for number in range(4) for offset in (5, 7, 9)]
    skipping = make(damaged_kafka, "damaged", on_damaged="skip")
    assert offsets_of(list(skipping.read_at(wanted))) == {**{n: [5, 9] for n in range(3)}, 3: [5, 7, 9]}
    assert sum(map(len, skipping.read_range(None, None))) == 18 + 3 * 15
    with pytest.raises(SourceError, match=r"cannot be decoded|not installed"):
        list(make(damaged_kafka, "damaged").read_range(None, None))


@pytest.mark.parametrize(
    ("batch", "following", "after"),
    [
        (struct.pack(">qiibIhi", 6, 49, 0, 2, 0, 0, 2), None, 9),
        (struct.pack(">qiibIhi", 6, 49, 0, 2, 0, 0, 10_000), struct.pack(">qiib", 9, 49, 0, 2), 9),
        (struct.pack(">qiibIhi", 6, 49, 0, 2, 0, 0, -5), struct.pack(">qiib", 9, 49, 0, 2), 9),
        (struct.pack(">qiibIhi", 6, 49, 0, 1, 0, 0, 99), None, 7),  # the old formats: one message
        (struct.pack(">qiibIhi", 6, 49, 0, 2, 0, 0, -5), None, None),
        (b"", None, None),
        (None, None, None),
    ],
)
def test_where_a_batch_ends_is_taken_from_its_header_and_the_next_ones(batch, following, after) -> None:
    assert after_batch(batch, None if following is None else memoryview(following), 6) == after


def test_only_the_same_batch_again_and_again_is_called_damaged() -> None:
    count = DamageCount()

    def lasting(number: int, offset: int) -> bool:
        return count.lasting(UndecodableBatch(Partition("t", number), offset, None, "its checksum is wrong"))

    assert [lasting(0, 6), lasting(0, 6), lasting(1, 6), lasting(0, 9), lasting(0, 9)] == [False] * 5
    assert lasting(0, 9)
    assert not lasting(1, 6)


# Brokers that go and come


def read_through(source: KafkaSource, wanted: int, positions: Positions) -> list[RawBatch]:
    """Until ``wanted`` records came, whatever the source says of the brokers meanwhile."""
    seen: list[RawBatch] = []
    deadline = time.monotonic() + DEADLINE_S
    while sum(map(len, seen)) < wanted:
        assert time.monotonic() < deadline, {number: len(found) for number, found in offsets_of(seen).items()}
        try:
            seen += read(source, records(1), positions=positions)
        except SourceUnreachable as error:
            assert error.retryable
    return seen


def test_after_a_kill_records_flow_again_soon_and_those_that_the_broker_lost_are_a_gap(
    own_kafka: KafkaServer, make, capsys
) -> None:
    name = own_kafka.create_topic("killed", partitions=2)
    positions = Positions()
    source = make(own_kafka, name, on_gap="skip", unreachable_after_s=1)
    source.open(positions)
    for first in (0, 10):
        for partition in (0, 1):
            produce(own_kafka.brokers, name, numbered(10, first=first), partition=partition)
    seen = read(source, records(40), positions=positions)
    own_kafka.kill()
    with pytest.raises(SourceUnreachable):
        read(source, records(1))
    # As after a loss of power, without a replica: the end of one log is gone, and new records take its offsets.
    log = log_of(own_kafka, name, 0).read_bytes()
    log_of(own_kafka, name, 0).write_bytes(log[: batch_starts(log)[1]])
    kept = struct.unpack_from(">i", log, 23)[0] + 1
    own_kafka.start()
    produce(own_kafka.brokers, name, numbered(25, first=100))
    produce(own_kafka.brokers, name, numbered(1, first=20), partition=1)
    began = time.monotonic()
    batches = read_through(source, 1, positions)
    wait = time.monotonic() - began
    with capsys.disabled():
        print(f"\nrecords again {wait:.2f} s after a killed broker was back")  # noqa: T201 - a measurement
    assert wait < 5
    batches += read_through(source, 26 - sum(map(len, batches)), positions)
    assert offsets_of([*seen, *batches]) == {0: [*range(20), *range(kept, kept + 25)], 1: [*range(21)]}
    assert spans(gaps_of([*seen, *batches])) == [(0, 20, kept, "truncated")]
    assert source.rebuilt == 0


# The last that uses the broker: topics without a leader of their own may lie on the other one, which is gone then.
def test_reading_follows_a_leader_that_moves_to_another_broker(own_kafka: KafkaServer, make, tmp_path) -> None:
    other = KafkaServer(tmp_path / "other", joins=own_kafka)
    try:
        other.start()
        name = own_kafka.create_topic("moved", replicas={0: [2, 1]})
        both = f"{own_kafka.brokers},{other.brokers}"
        positions = Positions()
        source = make(own_kafka, name, brokers=both)
        source.open(positions)
        produce(both, name, numbered(50))
        seen = read(source, records(50), positions=positions)
        other.kill()
        produce(own_kafka.brokers, name, numbered(50, first=50))
        seen += read_through(source, 50, positions)
        assert offsets_of(seen) == {0: list(range(100))}
        assert values_of(seen) == numbered(100)
        assert gaps_of(seen) == []
    finally:
        other.kill()


# What healthy brokers do, and clients stumble over


def test_a_record_larger_than_every_limit_of_a_fetch_is_delivered(kafka, topic, make, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._FETCH_MAX_BYTES", 1 << 20)
    name = topic(partitions=2, config={"max.message.bytes": "8000000"})
    large = np.random.default_rng(5).bytes(3 << 20)
    produce(kafka.brokers, name, [b"before", large, b"after"], max_request_size=8_000_000)
    produce(kafka.brokers, name, numbered(3), partition=1)
    source = make(kafka, name, max_partition_fetch_bytes=1024)
    source.open(Positions())
    batches = read(source, records(6))
    assert [value for batch in batches if batch.partition.number == 0 for value in batch.values] == [
        b"before",
        large,
        b"after",
    ]


def test_an_empty_partition_is_placed_and_neither_behind_nor_silent(kafka, topic, make, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._SILENCE_S", 0.2)
    monkeypatch.setattr("connectors.kafka._LOOK_EVERY_S", 0.2)
    name = topic(partitions=2)
    produce(kafka.brokers, name, numbered(5))
    source = make(kafka, name)
    source.open(Positions())
    batches = read(source, lambda batches: records(5)(batches) and placed(2)(batches))
    assert {batch.partition.number: batch.next_offset for batch in batches} == {0: 5, 1: 0}
    for _ in range(4):
        assert source.poll(100, 0.2) == []
    assert source.lag() == {Partition(name, 0): 0, Partition(name, 1): 0}
    assert source.state().silent == {}


def test_the_lag_of_a_held_partition_grows_with_its_topic(kafka, topic, make, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("connectors.kafka._SILENCE_S", 0.1)
    name = topic()
    partition = Partition(name, 0)
    produce(kafka.brokers, name, numbered(2))
    source = make(kafka, name)
    source.open(Positions())
    read(source, records(2))
    source.hold(frozenset({partition}))
    produce(kafka.brokers, name, numbered(5))  # no fetch tells of them
    deadline = time.monotonic() + DEADLINE_S
    while source.lag() != {partition: 5}:
        assert source.poll(100, 0.1) == []
        assert time.monotonic() < deadline, source.lag()
    assert source.state().silent == {}  # it is we who do not ask


def test_an_open_transaction_is_lag_and_silence_until_it_ends(kafka, topic, make, monkeypatch) -> None:
    from kafka import KafkaProducer

    monkeypatch.setattr("connectors.kafka._SILENCE_S", 0.3)
    monkeypatch.setattr("connectors.kafka._LOOK_EVERY_S", 0.2)
    name = topic()
    partition = Partition(name, 0)
    source = make(kafka, name)
    positions = Positions()
    source.open(positions)
    producer = KafkaProducer(bootstrap_servers=kafka.brokers, transactional_id=f"tx-{name}")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for value in numbered(3):
            producer.send(name, value)
        producer.flush()
        deadline = time.monotonic() + DEADLINE_S
        while not source.state().silent:
            assert values_of(source.poll(100, 0.1)) == []
            assert time.monotonic() < deadline, source.lag()
        assert source.lag() == {partition: 3}
        producer.abort_transaction()
        # Nothing of it is ever delivered; the position past it is told, so that it is stored.
        batches = read(source, lambda batches: any(b.next_offset == 4 for b in batches), positions=positions)
        assert values_of(batches) == []
        assert source.lag() == {partition: 0}
        assert source.state().silent == {}
        producer.begin_transaction()
        producer.send(name, b"kept")
        producer.flush()
        producer.commit_transaction()
        batches = read(source, records(1), positions=positions)
        assert (values_of(batches), offsets_of(batches)) == ([b"kept"], {0: [4]})
    finally:
        producer.close()


def test_aborted_records_that_are_deleted_before_the_next_start_are_no_gap(kafka, topic, make, monkeypatch) -> None:
    from kafka import KafkaProducer, TopicPartition

    monkeypatch.setattr("connectors.kafka._LOOK_EVERY_S", 0.1)
    name = topic()
    produce(kafka.brokers, name, numbered(2))
    positions = Positions()
    source = make(kafka, name)
    source.open(positions)
    read(source, records(2), positions=positions)
    producer = KafkaProducer(bootstrap_servers=kafka.brokers, transactional_id=f"tx-{name}")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(name, b"aborted")
        producer.flush()
        producer.abort_transaction()
    finally:
        producer.close()
    read(source, lambda _: positions.stored.get(Partition(name, 0)) == 4, positions=positions)
    source.close()
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(name, 0): 4})
    produce(kafka.brokers, name, [b"next"])
    again = make(kafka, name)
    again.open(positions)
    assert values_of(read(again, records(1))) == [b"next"]


def test_partitions_added_while_running_are_read_from_their_first_record(kafka, topic, make, monkeypatch) -> None:
    monkeypatch.setattr("connectors.kafka._METADATA_AGE_MS", 2000)  # 10 s: measured 9.9
    name = topic(partitions=1)
    source = make(kafka, name)
    source.open(Positions())
    read(source, placed(1))
    with kafka.admin() as admin:
        admin.create_partitions({name: 3})
    for partition in (1, 2):
        produce(kafka.brokers, name, numbered(3), partition=partition)
    batches = read(source, records(6))
    assert offsets_of(batches) == {1: [0, 1, 2], 2: [0, 1, 2]}
    assert source.partitions() == {Partition(name, number) for number in range(3)}


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_jumps_changes_nothing(kafka, topic, make, monkeypatch, jump_s) -> None:
    name = topic()
    source = make(kafka, name)
    positions = Positions()
    source.open(positions)
    produce(kafka.brokers, name, numbered(5))
    seen = read(source, records(5), positions=positions)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    for _ in range(3):
        assert source.poll(100, 0.2) == []
    produce(kafka.brokers, name, numbered(5, first=5))
    seen += read(source, records(5), positions=positions)
    assert offsets_of(seen) == {0: list(range(10))}
    state = source.state()
    assert (state.member, state.connected, state.rebalances, state.rebuilt) == ("stable", True, 1, 0)
    assert source.last_contact_age_s < 5


def test_a_password_that_is_replaced_is_told_and_reading_goes_on_with_the_new_one(
    kafka, topic, make, monkeypatch, tmp_path
) -> None:
    from kafka.admin import UserScramCredentialUpsertion

    def set_password(password: str) -> None:
        with kafka.admin() as admin:
            admin.alter_user_scram_credentials([UserScramCredentialUpsertion("expiring", "SCRAM-SHA-512", password)])

    monkeypatch.setattr("connectors.kafka._PROBE_EVERY_S", 0.5)
    set_password("first")
    name = topic()
    file = tmp_path / "password"
    file.write_text("first\n")
    security = {"protocol": "SASL_PLAINTEXT", "username": "expiring", "password_file": str(file)}
    source = make(kafka, name, brokers=kafka.sasl_brokers, security=security, unreachable_after_s=1)
    positions = Positions()
    source.open(positions)
    produce(kafka.brokers, name, numbered(3))
    seen = read(source, records(3), positions=positions)
    set_password("second")
    for connection in list(source._consumer._client._manager._conns.values()):
        connection.transport.abort()
    with pytest.raises(AccessRefused, match='refuses user "expiring"'):
        read(source, records(1))
    file.write_text("second\n")
    produce(kafka.brokers, name, numbered(3, first=3))
    deadline = time.monotonic() + 10  # by itself, the client would try the old one for half a minute
    while sum(map(len, seen)) < 6:
        assert time.monotonic() < deadline
        try:
            seen += source.poll(100, 0.2)
        except AccessRefused:
            continue
    assert offsets_of(seen) == {0: list(range(6))}


def test_a_fast_partition_neither_starves_the_slow_ones_nor_fills_the_memory(kafka, topic, make) -> None:
    piece = 64 << 10
    name = topic(partitions=8)
    payload = b"x" * 1000
    produce(kafka.brokers, name, [payload] * 1500, batch_size=32 << 10)
    for partition in range(1, 8):
        produce(kafka.brokers, name, numbered(3), partition=partition)
    source = make(kafka, name, max_partition_fetch_bytes=piece)
    source.open(Positions())
    most, fast_before_slow = 0, {}
    fast = 0
    deadline = time.monotonic() + DEADLINE_S
    while fast < 1500:
        assert time.monotonic() < deadline, fast
        for batch in source.poll(50, 0.2):
            if batch.partition.number == 0:
                fast += len(batch)
            elif len(batch):
                fast_before_slow.setdefault(batch.partition.number, fast)
        most = max(most, held_bytes(source))
    assert sorted(fast_before_slow) == list(range(1, 8))
    # A slow partition waits for one piece of each other at most; and what is kept is one piece for each, at most.
    assert max(fast_before_slow.values()) * 1000 <= 2 * piece
    assert 0 < most <= 8 * piece


def held_bytes(source: KafkaSource) -> int:
    """Bytes of answers that the client keeps for later polls."""
    fetcher = source._consumer._fetcher
    waiting = [*fetcher._completed_fetches.copy(), *fetcher._paused_completed_fetches.values()]
    begun = [fetcher._next_partition_records, *fetcher._paused_partition_records.values()]
    return sum(len(fetch.partition_data.records or b"") for fetch in waiting) + sum(
        len(records._batches._buffer) for records in begun if records
    )
