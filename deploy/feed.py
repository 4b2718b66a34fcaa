"""Writes the stream of `driftd demo` into a topic, dated now: what a newcomer needs to see something happen.

    python feed.py --brokers kafka:9092 --topic digits

First, if the topic is empty, a baseline of the last hour at once; then 26 records a second for as long as it runs, in
rounds of half an hour: ten minutes as usual, five in which one scanner brings in a digit that the model never learned,
fifteen as usual.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from monitor.demo_stream import make_demo

log = logging.getLogger("feed")

BASELINE_RECORDS = 112_000
BLOCK_MS = 10_000
CLEAN_BLOCKS, DRIFT_BLOCKS, RECOVERY_BLOCKS = 60, 30, 90


class Line(msgspec.Struct):
    """A line of the demo's files."""

    value: bytes  # JSON; a few are broken on purpose
    time_ms: int


def lines_of(file: Path) -> Iterator[Line]:
    """The lines of a file of the demo; one that cannot be read has the time of the one before it."""
    time_ms = 0
    with file.open("rb") as lines:
        for value in lines:
            try:
                time_ms = int(msgspec.json.decode(value)["ts"])
            except (msgspec.DecodeError, KeyError, TypeError, ValueError):
                pass
            yield Line(value.rstrip(b"\n"), time_ms)


def moved(line: Line, by_ms: int, *, round_number: int) -> Line:
    """The same record so much later, under an id of its own."""
    time_ms = line.time_ms + by_ms
    value = line.value.replace(b'"ts":%d' % line.time_ms, b'"ts":%d' % time_ms)
    return Line(value.replace(b'"id":"', b'"id":"%d-' % round_number, 1), time_ms)


def is_empty(brokers: str, topic: str) -> bool:
    """Whether nothing was ever written into the topic."""
    consumer = KafkaConsumer(bootstrap_servers=brokers)
    try:
        numbers = consumer.partitions_for_topic(topic) or set()
        ends = consumer.end_offsets([TopicPartition(topic, number) for number in numbers])
        return not any(ends.values())
    finally:
        consumer.close()


def feed(
    brokers: str,
    topic: str,
    folder: Path,
    *,
    baseline_records: int = BASELINE_RECORDS,
    rounds: int | None = None,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the baseline, where there is none, and then the stream; ``rounds``: None for ever."""
    first = is_empty(brokers, topic)
    start_ms = (int(now() * 1000) // BLOCK_MS + 1) * BLOCK_MS
    truth = make_demo(
        folder,
        baseline_records=baseline_records if first else 1_000,
        clean_blocks=CLEAN_BLOCKS,
        drift_blocks=DRIFT_BLOCKS,
        recovery_blocks=RECOVERY_BLOCKS,
        block_ms=BLOCK_MS,
        start_ms=start_ms,
    )
    with KafkaProducer(bootstrap_servers=brokers, linger_ms=20, acks="all", compression_type="gzip") as producer:
        if first:
            for line in lines_of(truth.baseline):
                producer.send(topic, line.value, timestamp_ms=line.time_ms)
            producer.flush()
            log.info("baseline written: %d records", truth.baseline_records)
        round_number = 0
        while rounds is None or round_number < rounds:
            log.info("round %d: a strange digit comes in %d minutes", round_number, CLEAN_BLOCKS * BLOCK_MS // 60_000)
            by_ms = round_number * (truth.end_ms - truth.start_ms)
            for line in lines_of(truth.stream):
                record = moved(line, by_ms, round_number=round_number)
                wait_s = record.time_ms / 1000 - now()
                if wait_s > 0:
                    sleep(wait_s)
                producer.send(topic, record.value, timestamp_ms=record.time_ms)
            round_number += 1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        feed(words.brokers, words.topic, Path(folder))


if __name__ == "__main__":
    main()
