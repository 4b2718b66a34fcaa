"""Records per second out of KafkaSource.poll, beside a bare kafka-python loop that only polls the same topic.

Raw 384-dimensional float32 records (1,536 bytes) and 200-byte records, four partitions, a real broker on the same
machine. Both sides join a consumer group; the clock starts with the first record. Rounds alternate; the medians count.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.kafka import KafkaSettings
from connectors.records import Partition
from tests.servers.kafka import KafkaServer, missing_kafka

PARTITIONS = 4
ROUNDS = 3
POLL = 4096
SIZES = {200: 100_000, 1536: 50_000}  # bytes of a value: records


def produce(brokers: str, topic: str, size: int, records: int) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=brokers, batch_size=1 << 17, linger_ms=20)
    value = bytes(range(256)) * (size // 256 + 1)
    for start in range(0, records, 10_000):  # the producer's buffer has no bound of its own
        for number in range(start, min(start + 10_000, records)):
            producer.send(topic, value[:size], partition=number % PARTITIONS)
        producer.flush()
    producer.close()


def bare(brokers: str, topic: str, records: int, group: str) -> float:
    """Records per second of a loop that does nothing but poll."""
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic, bootstrap_servers=brokers, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    seen = first = 0
    began = 0.0
    while seen < records:
        for batch in consumer.poll(timeout_ms=500, max_records=POLL).values():
            seen += len(batch)
        if seen and not first:
            first, began = seen, time.perf_counter()
    rate = (seen - first) / (time.perf_counter() - began)
    consumer.close(autocommit=False)
    return rate


def through_source(brokers: str, topic: str, records: int, group: str) -> float:
    """Records per second out of the source, with the group told once in a while as a checkpoint does."""

    def nothing_stored(_: Sequence[Partition]) -> Mapping[Partition, int]:
        return {}

    settings = KafkaSettings(brokers=brokers, topic=topic, group=group, instance="none")
    source = settings.build(client_id="benchmark")
    source.open(nothing_stored)
    seen = first = 0
    began = told = 0.0
    while seen < records:
        batches = source.poll(POLL, 0.5)
        seen += sum(map(len, batches))
        if seen and not first:
            first, began = seen, time.perf_counter()
        if time.perf_counter() - told > 1:
            source.commit({batch.partition: batch.next_offset for batch in batches})
            told = time.perf_counter()
    rate = (seen - first) / (time.perf_counter() - began)
    source.close()
    return rate


def main() -> int:
    if reason := missing_kafka():
        sys.stderr.write(f"{reason}\n")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        server = KafkaServer(Path(directory))
        server.start()
        try:
            for size, records in SIZES.items():
                topic = server.create_topic(f"bytes-{size}", partitions=PARTITIONS)
                produce(server.brokers, topic, size, records)
                ours, theirs = [], []
                for number in range(ROUNDS):
                    theirs.append(bare(server.brokers, topic, records, f"bare-{size}-{number}"))
                    ours.append(through_source(server.brokers, topic, records, f"source-{size}-{number}"))
                value, against = statistics.median(ours), statistics.median(theirs)
                print(
                    json.dumps(
                        {
                            "benchmark": f"kafka_source_{size}_bytes",
                            "value": round(value),
                            "unit": "records/s",
                            "ratio": round(value / against, 3),
                            "against": f"bare kafka-python poll loop, {against:,.0f} records/s",
                            "rounds": ROUNDS,
                        }
                    )
                )
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
