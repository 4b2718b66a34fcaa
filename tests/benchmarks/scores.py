"""Records per second with every record's scores written, beside the same records without: files, messages, a topic.

Raw 384-dimensional float32 records with id and time in headers take the way of `driftd run`: decode, embed, score,
summarise, a checkpoint after each 20,000; without the database. What is written holds no vectors, unless it says so.
One process, one thread; the broker, where there is one, shares the machine.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/scores.py [ROUNDS]
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import json
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.kafka_scores import KafkaScores, messages
from connectors.parquet_scores import ParquetScores
from connectors.records import Partition, RawBatch
from connectors.scores import ScoredRecords, ScoresWriter, Vectors
from detectors.reference import Reference
from monitor.decode import Decoder, RecordSettings
from monitor.embedders.vector import VectorSettings
from monitor.pipeline import Pipeline, Space
from monitor.scores import Scores
from tests.servers.kafka import KafkaServer, missing_kafka

RECORDS = 20_000
POLL = 4096
D = 384
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
START_MS = 1_772_438_400_000


class Encoded:
    """Makes the messages, and sends them nowhere."""

    def check(self) -> str:
        return "nowhere"

    def write(self, records: Sequence[ScoredRecords], now_ms: int) -> str:
        for each in records:
            for _ in messages(each, "bench"):
                pass
        return ""

    def publish(self, receipt: str) -> None:
        pass

    def discard(self, receipt: str) -> None:
        pass

    def sweep(self, committed: Collection[str], now_ms: int) -> None:
        pass

    def close(self) -> None:
        pass


def batches() -> list[RawBatch]:
    vectors = np.random.default_rng(1).normal(size=(RECORDS, D)).astype("<f4")
    return [
        RawBatch(
            partition=Partition("bench", 0),
            offsets=np.arange(first, after, dtype=np.int64),
            timestamps_ms=np.arange(START_MS + first, START_MS + after, dtype=np.int64),
            keys=[None] * (after - first),
            values=[row.tobytes() for row in vectors[first:after]],
            headers=[
                [("id", b"request-%d" % row), ("ts", b"%d" % (START_MS + row)), ("shop", b"berlin")]
                for row in range(first, after)
            ],
            next_offset=after,
        )
        for first in range(0, RECORDS, POLL)
        for after in [min(first + POLL, RECORDS)]
    ]


def run(reference: Reference, polls: list[RawBatch], scores: Scores | None) -> tuple[float, float]:
    """Seconds for all records, by the clock and of processor time."""
    embedder = VectorSettings.model_validate({"field": "body", "encoding": "bytes"}).build()
    record = {"codec": "raw", "id": "header:id", "time": {"path": "header:ts", "unit": "ms"}}
    pipeline = Pipeline(
        "bench",
        decoder=Decoder(RecordSettings.model_validate(record | {"segments": {"shop": "header:shop"}}), ["body"]),
        spaces=[Space("input", embedder, reference, 1, {})],
        block_ms=10_000,
        lateness_ms=10_000,
        alpha=0.001,
        sample=0.0005,
        stored=lambda partitions: {},
        scores=scores,
    )
    began, cpu_began = time.perf_counter(), time.process_time()
    for poll in polls:
        pipeline.process(poll, None)
    pipeline.checkpoint()
    if scores is not None:
        scores.publish(scores.write(START_MS), START_MS)
        assert scores.written == RECORDS
    pipeline.written()
    return time.perf_counter() - began, time.process_time() - cpu_began


def main() -> None:
    reference = Reference.build(np.random.default_rng(0).normal(size=(20_000, D)).astype(np.float32), exemplars=100)
    polls = batches()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways: dict[str, tuple[ScoresWriter, Vectors]] = {
            "scores_parquet": (ParquetScores(folder / "plain", model="bench", token="t"), False),
            "scores_parquet_float16": (ParquetScores(folder / "vectors", model="bench", token="t"), "float16"),
            "scores_messages": (Encoded(), False),
            "scores_messages_float16": (Encoded(), "float16"),
        }
        server = None
        if not (reason := missing_kafka()):
            server = KafkaServer(folder / "kafka")
            server.start()
            topic = server.create_topic("scores", partitions=1)
            ways["scores_kafka"] = KafkaScores([server.brokers], topic, model="bench", client_id="bench"), False
        else:
            print(json.dumps({"benchmark": "scores_kafka", "skipped": reason}))
        try:
            # They take turns, so that a busy machine slows all alike; the best of each is taken.
            best = dict.fromkeys(["", *ways], (float("inf"), float("inf")))
            for _ in range(ROUNDS):
                for way in best:
                    scores = Scores("bench", ways[way][0], vectors=ways[way][1]) if way else None
                    took = run(reference, polls, scores)
                    best[way] = min(best[way][0], took[0]), min(best[way][1], took[1])
        finally:
            for writer, _ in ways.values():
                writer.close()
            if server is not None:
                server.stop()
    plain_s, plain_cpu_s = best[""]
    for way in ways:
        seconds, cpu_s = best[way]
        line = {
            "benchmark": way,
            "value": round(RECORDS / seconds),
            "unit": "records/s",
            "ratio": round(plain_s / seconds, 3),
            "against": "the same records without scores",
            "plain": round(RECORDS / plain_s),
            "cpu_us_of_scores": round((cpu_s - plain_cpu_s) / RECORDS * 1e6, 1),
            "cpu_us_of_all": round(cpu_s / RECORDS * 1e6, 1),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
