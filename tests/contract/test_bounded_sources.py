"""What every source with an end promises: exactly its offsets, from wherever it is resumed, however it is polled."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from connectors.files import FilesSettings
from connectors.kafka import KafkaSettings
from connectors.query import QuerySettings
from connectors.records import Partition, RawBatch, Source, Span
from detectors.errors import OffsetGap
from tests.servers.kafka import KafkaServer

DEADLINE_S = 30.0
RECORDS = 40  # of each of the two partitions
WAIT_S = 0.2

Records = dict[Partition, list[tuple[int, bytes | None]]]


@dataclass
class Held:
    """A source that holds two partitions of records, and how far each was stored."""

    source: Source
    stored: dict[Partition, int] = field(default_factory=dict)

    def positions(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        return {partition: self.stored[partition] for partition in partitions if partition in self.stored}


def documents(letter: str) -> list[dict[str, Any]]:
    return [{"id": f"{letter}{number}", "number": number, "word": "x" * (number % 7)} for number in range(RECORDS)]


def jsonl(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    for letter in "ab":
        lines = [json.dumps(document) for document in documents(letter)]
        lines[9] += "\n\n \r"[:2]  # a blank line inside, and some at the end: offsets without records
        (tmp_path / f"{letter}.jsonl").write_text("\n".join(lines) + "\n\n\r\n")
    return FilesSettings(path=str(tmp_path)).build(client_id="test")


def parquet(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    for letter in "ab":
        pq.write_table(pa.Table.from_pylist(documents(letter)), tmp_path / f"{letter}.parquet", row_group_size=15)
    return FilesSettings(path=str(tmp_path)).build(client_id="test")


def npy(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    for seed, letter in enumerate("ab"):
        np.save(tmp_path / f"{letter}.npy", np.random.default_rng(seed).random((RECORDS, 3), dtype=np.float32))
    return FilesSettings(path=str(tmp_path)).build(client_id="test")


def timed_jsonl(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    jsonl(tmp_path, request)
    times = {"start": "1970-01-01T00:00:01Z", "interval_ms": 1}
    return FilesSettings.model_validate({"path": str(tmp_path), "time": times}).build(client_id="test")


def put(url: str, tmp_path: Path) -> Source:
    """The files of a directory as objects."""
    files, root = fsspec.core.url_to_fs(url)
    files.pipe({f"{root}/{path.name}": path.read_bytes() for path in tmp_path.iterdir()})
    return FilesSettings(path=f"{url}/?.*").build(client_id="test")


def memory_jsonl(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    jsonl(tmp_path, request)
    return put(f"memory://{tmp_path.name}", tmp_path)


def s3_jsonl(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    jsonl(tmp_path, request)
    return put(f"{request.getfixturevalue('s3')}/logs", tmp_path)


def s3_parquet(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    parquet(tmp_path, request)
    return put(f"{request.getfixturevalue('s3')}/logs", tmp_path)


def s3_npy(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    npy(tmp_path, request)
    return put(f"{request.getfixturevalue('s3')}/logs", tmp_path)


def rows_of(url: str) -> Source:
    """A table whose keys have holes, filled in no order."""
    engine = sa.create_engine(url)
    table = sa.Table(
        "predictions",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("ms", sa.BigInteger),
        sa.Column("word", sa.Text),
    )
    table.create(engine)
    rows = [{"id": 7 + 3 * row["number"], "ms": 1_000 + row["number"], "word": row["word"]} for row in documents("a")]
    with engine.begin() as connection:
        connection.execute(table.insert(), rows[::-1])
    engine.dispose()
    return QuerySettings.model_validate(
        {"url": url, "query": "SELECT * FROM predictions -- all", "key": "id", "time": "ms", "name": "p"}
    ).build(client_id="test")


def query_sqlite(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    return rows_of(f"sqlite:///{tmp_path}/service.db")


def query_postgresql(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    return rows_of(request.getfixturevalue("postgres").new_database())


@pytest.fixture(scope="module")
def transactions(kafka: KafkaServer) -> str:
    """A topic of two partitions: each transaction of five records ends with a marker, and every third was aborted."""
    from kafka import KafkaProducer

    topic = kafka.create_topic(f"bounded-{secrets.token_hex(4)}", partitions=2)
    producer = KafkaProducer(bootstrap_servers=kafka.brokers, transactional_id=topic, linger_ms=1)
    try:
        producer.init_transactions()
        for first in range(0, RECORDS, 5):
            producer.begin_transaction()
            for number, letter in enumerate("ab"):
                for document in documents(letter)[first : first + 5]:
                    time_ms = 1_000 + document["number"]
                    producer.send(topic, json.dumps(document).encode(), partition=number, timestamp_ms=time_ms)
            producer.flush()
            producer.abort_transaction() if first % 15 == 10 else producer.commit_transaction()
    finally:
        producer.close()
    return topic


def kafka_topic(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    topic = request.getfixturevalue("transactions")
    return KafkaSettings(brokers=request.getfixturevalue("kafka").brokers, topic=topic).build(client_id="test")


KINDS = [
    jsonl,
    timed_jsonl,
    parquet,
    npy,
    memory_jsonl,
    s3_jsonl,
    s3_parquet,
    s3_npy,
    query_sqlite,
    pytest.param(query_postgresql, marks=pytest.mark.postgres),
    pytest.param(kafka_topic, marks=pytest.mark.kafka),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    made: Source = request.param(tmp_path, request)
    yield made
    made.close()


@pytest.fixture
def between(whole: Source) -> Iterator[Callable[..., Held]]:
    """``between(spans, stored={...})``: a source of these spans, opened; closed at the end."""
    made: list[Source] = []

    def make(spans: Mapping[Partition, Span], stored: Mapping[Partition, int] | None = None) -> Held:
        made.append(whole.between(spans))
        held = Held(made[-1], dict(stored or {}))
        held.source.open(held.positions)
        return held

    yield make
    for source in made:
        source.close()


def polls(source: Source, max_records: int = 1000) -> Iterator[list[RawBatch]]:
    """Polls until the source is finished."""
    deadline = time.monotonic() + DEADLINE_S
    while not source.finished:
        assert time.monotonic() < deadline, source.lag()
        came = source.poll(max_records, WAIT_S)
        assert sum(map(len, came)) <= max_records
        yield came


def records_of(batches: Sequence[RawBatch]) -> Records:
    found: Records = {}
    for batch in batches:
        assert len(batch) == 0 or batch.next_offset > batch.offsets[-1]
        rows = zip(batch.offsets.tolist(), batch.values, strict=True)
        found.setdefault(batch.partition, []).extend(rows)
    return {partition: rows for partition, rows in found.items() if rows}


def read_all(source: Source, max_records: int = 1000) -> list[RawBatch]:
    return [batch for came in polls(source, max_records) for batch in came]


def cut(records: Records, spans: Mapping[Partition, Span]) -> Records:
    inside = {
        partition: [row for row in records[partition] if span.first <= row[0] < span.after]
        for partition, span in spans.items()
    }
    return {partition: rows for partition, rows in inside.items() if rows}


def test_the_whole_is_what_the_live_source_reads(whole: Source, between: Callable[..., Held]) -> None:
    spans = whole.extents(None, None)
    source = between(spans).source
    batches = read_all(source, 7)
    assert records_of(batches) == records_of(list(whole.read_range(None, None)))
    assert source.assignment() == source.partitions() == spans.keys()
    assert set(source.lag().values()) == {0}
    assert source.poll(10, 0.0) == [], "nothing comes after the end"
    for partition, span in spans.items():
        ends = [batch.next_offset for batch in batches if batch.partition == partition]
        assert ends == sorted(ends)
        assert (ends[0] == span.first, ends[-1] == span.after) == (True, True), "what was read has no holes"


def test_a_part_holds_exactly_its_offsets_and_is_resumed_at_every_cut(
    whole: Source, between: Callable[..., Held]
) -> None:
    extents = whole.extents(None, None)
    everything = records_of(list(whole.read_range(None, None)))
    spans = {
        partition: Span(rows[len(rows) // 4][0], rows[-len(rows) // 4][0], extents[partition].topic_id)
        for partition, rows in everything.items()
    }
    wanted = cut(everything, spans)
    held = between(spans)
    came = list(polls(held.source, 6))
    assert records_of([batch for batches in came for batch in batches]) == wanted
    before: list[RawBatch] = []
    stored: dict[Partition, int] = {}
    for batches in came:
        before += batches
        stored.update({batch.partition: batch.next_offset for batch in batches})
        again = between(spans, stored)
        rest = read_all(again.source)
        assert records_of(before + rest) == wanted
        again.source.close()


def test_a_rewind_goes_back_to_what_is_stored(whole: Source, between: Callable[..., Held]) -> None:
    spans = whole.extents(None, None)
    held = between(spans)
    kept: list[RawBatch] = []
    for turn, batches in enumerate(polls(held.source, 9)):
        if turn % 3 == 2:  # refused: what came since is forgotten
            held.source.rewind()
            if turn < 12:
                continue
            break
        kept += batches
        held.stored.update({batch.partition: batch.next_offset for batch in batches})
        held.source.commit(held.stored)
    kept += read_all(held.source)
    held.source.rewind()
    assert records_of(kept) == records_of(list(whole.read_range(None, None)))


def test_a_rewind_at_the_end_reads_again_what_was_not_stored(whole: Source, between: Callable[..., Held]) -> None:
    held = between(whole.extents(None, None))
    first = read_all(held.source)
    held.source.rewind()
    assert not held.source.finished
    assert records_of(read_all(held.source)) == records_of(first)


def test_what_is_held_waits_and_comes_whole_afterwards(whole: Source, between: Callable[..., Held]) -> None:
    spans = whole.extents(None, None)
    one, *others = spans
    source = between(spans).source
    source.hold(frozenset({one}))
    batches = source.poll(50, WAIT_S)
    deadline = time.monotonic() + DEADLINE_S
    while any(source.lag()[other] > 0 for other in others):
        assert time.monotonic() < deadline
        batches += source.poll(50, WAIT_S)
    assert records_of(batches).keys() == set(others)
    assert source.lag()[one] == len(spans[one])
    assert not source.finished
    source.hold(frozenset())
    batches += read_all(source)
    assert records_of(batches) == records_of(list(whole.read_range(None, None)))


def test_a_span_that_was_read_before_is_finished_at_once(whole: Source, between: Callable[..., Held]) -> None:
    spans = whole.extents(None, None)
    source = between(spans, {partition: span.after for partition, span in spans.items()}).source
    assert records_of(read_all(source)) == {}
    assert source.finished


def test_a_position_before_the_span_would_leave_records_out(whole: Source, between: Callable[..., Held]) -> None:
    partition, rows = next(iter(records_of(list(whole.read_range(None, None))).items()))
    span = Span(rows[3][0], rows[-1][0])
    with pytest.raises(OffsetGap, match="range begins at"):
        read_all(between({partition: span}, {partition: rows[1][0]}).source)
