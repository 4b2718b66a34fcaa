"""Records per second of `driftd run` with everything on, beside a bare kafka-python loop that only polls.

A real broker, raw 384-dimensional float32 records with id and time in headers, a reference of 50,000 records, SQLite,
drift and outliers on; one process, as a user starts it. The bare loop reads the same topic before and after; both share
the machine with the broker. Resident memory is read at the end.

    python tests/benchmarks/kafka_run.py [RECORDS]
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.acceptance.command import Running
from tests.servers.kafka import KafkaServer, missing_kafka

RECORDS = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
BASELINE = 50_000
D = 384
PARTITIONS = 4
POOL = 20_000
START_MS = 1_772_438_400_000


def vectors(n: int) -> np.ndarray:
    """Unit vectors around 40 centres, as an encoder of texts makes them."""
    chance = np.random.default_rng(7)
    centres = chance.normal(size=(40, D))
    rows = centres[chance.integers(0, 40, n)] + chance.normal(size=(n, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def produce(brokers: str, topic: str, records: int) -> None:
    from kafka import KafkaProducer

    pool = [row.tobytes() for row in vectors(POOL)]
    with KafkaProducer(bootstrap_servers=brokers, batch_size=1 << 18, linger_ms=20) as producer:
        for start in range(0, records, 10_000):  # the producer's buffer has no bound of its own
            for number in range(start, min(start + 10_000, records)):
                headers = [("id", b"r%d" % number), ("ts", b"%d" % (START_MS + number // 2))]
                producer.send(topic, pool[number % POOL], headers=headers, partition=number % PARTITIONS)
            producer.flush()


def bare(brokers: str, topic: str, records: int, group: str) -> float:
    """Records per second of a loop that does nothing but poll."""
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic, bootstrap_servers=brokers, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    seen = first = 0
    began = 0.0
    while seen < records:
        for batch in consumer.poll(timeout_ms=500, max_records=4096).values():
            seen += len(batch)
        if seen and not first:
            first, began = seen, time.perf_counter()
    rate = (seen - first) / (time.perf_counter() - began)
    consumer.close(autocommit=False)
    return rate


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory now, and its peak, in MB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def through_driftd(folder: Path, brokers: str, topic: str) -> tuple[float, float, float, dict[str, float]]:
    """Records per second after the baseline, resident memory now and at its peak in MB, microseconds per phase."""
    daemon = Running(
        folder,
        {
            "models": {
                "bench": {
                    "source": {"kind": "kafka", "brokers": brokers, "topic": topic},
                    "record": {"codec": "raw", "id": "header:id", "time": {"path": "header:ts", "unit": "ms"}},
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "body", "encoding": "bytes"}}},
                    "reference": {"collect": BASELINE},
                }
            }
        },
    )
    daemon.start()
    try:
        daemon.wait_for_records(1, at_least=True)
        assert daemon.process is not None
        samples = [(time.perf_counter(), daemon.counted())]
        while samples[-1][1] < RECORDS:
            assert daemon.process.poll() is None, daemon.log()
            time.sleep(0.05)
            samples.append((time.perf_counter(), daemon.counted()))
        # From one checkpoint to another: not the second after the baseline, nor the wait for more at the end.
        grown = [now for before, now in itertools.pairwise(samples) if now[1] > before[1]]
        (began, first), (ended, last) = grown[0], grown[-2]
        rate = (last - first) / (ended - began)
        now, peak = memory_mb(daemon.process.pid)
        phases = {
            line.split('phase="')[1].split('"')[0]: round(float(line.split()[-1]) / (RECORDS - BASELINE) * 1e6, 1)
            for line in daemon.get("/metrics")[1].splitlines()
            if line.startswith("driftd_phase_seconds_total")
        }
        daemon.terminate()
    finally:
        daemon.kill()
    return rate, now, peak, phases


def main() -> None:
    if reason := missing_kafka():
        print(json.dumps({"benchmark": "kafka_run", "skipped": reason}))
        return
    with tempfile.TemporaryDirectory() as folder:
        server = KafkaServer(Path(folder) / "kafka")
        server.start()
        try:
            topic = server.create_topic("bench", partitions=PARTITIONS)
            produce(server.brokers, topic, RECORDS)
            polled = [bare(server.brokers, topic, RECORDS, "bare-1")]
            (Path(folder) / "driftd").mkdir()
            rate, now, peak, phases = through_driftd(Path(folder) / "driftd", server.brokers, topic)
            polled.append(bare(server.brokers, topic, RECORDS, "bare-2"))
        finally:
            server.stop()
    limit = sum(polled) / len(polled)
    result = {
        "benchmark": "kafka_run",
        "value": round(rate),
        "unit": "records/s",
        "ratio": round(rate / limit, 3),
        "against": "a bare kafka-python poll loop on the same topic",
        "bare": [round(value) for value in polled],
        "records": RECORDS,
        "resident_mb": round(now),
        "peak_resident_mb": round(peak),
        "phase_us": phases,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
