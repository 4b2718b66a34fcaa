"""Throughput of one and of two workers of one model: real `driftd run` processes, raw 384-dimensional vectors, Kafka.

What is asked is how much a second worker adds where the broker has a machine of its own. Here it has not: it runs on
the same two cores, and two workers leave it less of them than one. So its share is measured (CPU time of its process,
from /proc/PID/stat) and counted apart:

* A worker is one single-threaded process. Alone, it has a core for itself, the broker the other: its rate is r1.
* Two workers and the broker share two cores. While the workers are never idle, they get 2 - b cores, where b is what
  the broker used. With two cores for themselves they would read r2 * 2 / (2 - b) records a second.
* ratio = r2 * 2 / (2 - b) / r1. It cannot exceed 2 by bookkeeping: what the workers waste on each other (locks of the
  database, caches, rebalances) is CPU time or waiting of theirs, and lowers r2.

As a check, the records per second of CPU time that the workers used themselves, which holds whatever else the machine
does: `cpu_ratio` is 2 * (records per CPU second of two) / (records per CPU second of one). A reader who trusts neither
finds `wall_ratio`, r2 / r1 as it was, with everything on two cores; and `busy`, the share of the two cores that broker
and workers used with two workers: where it is far below 1, something else limits, and the first ratio says little.

Measured from when the group is complete until the first partition is read to its end, with the database in SQLite, and
nothing else on the machine.

    python tests/benchmarks/workers.py [RECORDS]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kafka.errors import KafkaError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.database.store import Store
from connectors.kafka_probe import KafkaSecurity
from connectors.kafka_scratch import ScratchTopic
from monitor.soak import MODEL, WorkerProcess, clean_environment
from tests.servers.kafka import KafkaServer, missing_kafka

RECORDS = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
BASELINE = 20_000
D = 384
PARTITIONS = 4
POOL = 20_000
START_MS = 1_772_438_400_000
CORES = 2
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """What was counted and used until one moment."""

    at: float
    records: dict[int, int]  # by partition
    workers_cpu_s: float
    broker_cpu_s: float


def rows(count: int) -> Any:
    """Unit vectors around 40 centres, as an encoder of texts makes them; 2,000 records a second of event time."""
    chance = np.random.default_rng(7)
    centres = chance.normal(size=(40, D))
    vectors = centres[chance.integers(0, 40, POOL)] + chance.normal(size=(POOL, D))
    pool = [row.tobytes() for row in (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")]
    return ((n % PARTITIONS, START_MS + n // 2, b"k", pool[n % POOL]) for n in range(count))


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def settings_of(folder: Path, brokers: str, topic: str, group: str) -> dict[str, Any]:
    return {
        "database": f"sqlite:///{folder / 'driftd.db'}",
        "references": str(folder / "references"),
        "http": {"bind": "127.0.0.1:0"},
        "checkpoint": {"every": 0.25},  # what is not committed yet is not seen: by the second it would blur the rates
        "models": {
            MODEL: {
                "source": {"kind": "kafka", "brokers": brokers, "topic": topic, "group": group},
                "record": {"codec": "raw"},
                "spaces": {"input": {"embedder": {"kind": "vector", "field": "body", "encoding": "bytes"}}},
                "reference": {"collect": BASELINE},
            }
        },
    }


def measured(folder: Path, server: KafkaServer, topic: str, workers: int) -> tuple[Sample, Sample]:
    """The first and the last checkpoint with a complete group, before any partition was read to its end."""
    folder.mkdir()
    settings = settings_of(folder, server.brokers, topic, f"bench-{workers}")
    (folder / "driftd.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "monitor", "reference", "build", "-s", str(folder / "driftd.yaml")]
    subprocess.run(command, env=clean_environment(), check=True, capture_output=True)
    fleet = [WorkerProcess(folder, f"bench-{number}") for number in range(workers)]
    broker = server._process
    assert broker is not None
    samples: list[Sample] = []
    whole = RECORDS // PARTITIONS
    try:
        for worker in fleet:
            worker.start()
        with Store.open(settings["database"]) as store, server.admin() as admin:
            done = complete = False
            while not done:
                time.sleep(0.05)
                assert all(worker.alive for worker in fleet), fleet[0].log()
                states = {state.partition.number: state.records for state in store.partition_states(MODEL)}
                done = any(count >= whole for count in states.values())
                if not complete:
                    with suppress(KafkaError):  # the broker makes the group's log when the first member asks for it
                        group = admin.describe_groups([f"bench-{workers}"])[f"bench-{workers}"]
                        complete = group["group_state"] == "Stable" and len(group["members"]) == workers
                elif not done:
                    used = sum(cpu_s(worker.process.pid) for worker in fleet if worker.process is not None)
                    now = Sample(time.perf_counter(), states, used, cpu_s(broker.pid))
                    if not samples or states != samples[-1].records:
                        samples.append(now)
    finally:
        for worker in fleet:
            worker.kill()
    assert len(samples) > 4, "too few records for a measurement"
    return samples[0], samples[-1]


def main() -> None:
    if reason := missing_kafka():
        print(json.dumps({"benchmark": "workers", "skipped": reason}))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = KafkaServer(folder / "kafka")
        server.start()
        try:
            open_to_all = KafkaSecurity.model_validate({})
            topic = ScratchTopic([server.brokers], "bench", security=open_to_all, client_id="bench")
            topic.create(PARTITIONS)
            topic.fill(rows(RECORDS), lambda sent: None)
            found = {workers: measured(folder / str(workers), server, "bench", workers) for workers in (1, 2)}
        finally:
            server.stop()
    rate, own, broker = {}, {}, {}
    for workers, (first, last) in found.items():
        wall, read = last.at - first.at, sum(last.records.values()) - sum(first.records.values())
        rate[workers] = read / wall
        own[workers] = (last.workers_cpu_s - first.workers_cpu_s) / read
        broker[workers] = (last.broker_cpu_s - first.broker_cpu_s) / wall
    apart = rate[2] * CORES / (CORES - broker[2])
    result = {
        "benchmark": "workers",
        "value": round(rate[2]),
        "unit": "records/s",
        "ratio": round(apart / rate[1], 3),
        "against": "one worker, the broker's CPU time counted apart: see the top of the file",
        "cpu_ratio": round(2 * own[1] / own[2], 3),
        "wall_ratio": round(rate[2] / rate[1], 3),
        "busy": round((own[2] * rate[2] + broker[2]) / CORES, 3),
        "rates": {workers: round(value) for workers, value in rate.items()},
        "worker_cpu_us_per_record": {workers: round(value * 1e6, 1) for workers, value in own.items()},
        "broker_cores": {workers: round(value, 3) for workers, value in broker.items()},
        "records": RECORDS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
