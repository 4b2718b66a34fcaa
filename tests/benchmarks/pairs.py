"""Records per second from CloudEvents of a model server to columns, paired, beside the same records each by itself."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.records import Partition, RawBatch
from monitor.decode import Decoder, RecordSettings
from monitor.pairing import Pairing

CALLS = 20_000
POLL = 1000
ROUNDS = 3
START_MS = 1_772_438_400_000
CALLS_P = Partition("calls", 0)


def main() -> None:
    batches = list(stream())
    single = Decoder(RecordSettings.model_validate({"format": "cloudevents"}), ["/instances"])
    paired = Decoder(RecordSettings.model_validate({"format": "cloudevents", "pair": {}}), ["/request/instances"])
    best_single = best_paired = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        assert sum(len(single.decode(batch, None)) for batch in batches) == 2 * CALLS
        best_single = min(best_single, time.perf_counter() - began)
        pairing, found = Pairing(60_000), 0
        began = time.perf_counter()
        for batch in batches:
            found += len(paired.decode(batch, None, pairing))
            pairing.unwritten(CALLS_P)  # what a checkpoint after each poll has to write
            pairing.written()
        best_paired = min(best_paired, time.perf_counter() - began)
        assert found == CALLS
    print(
        json.dumps(
            {
                "benchmark": "decode_pairs",
                "value": round(2 * CALLS / best_paired),
                "unit": "records/s",
                "ratio": round(best_single / best_paired, 3),
                "against": "the same CloudEvents, each by itself",
                "poll": POLL,
            }
        )
    )


def stream() -> list[RawBatch]:
    """Requests of 64 numbers 1 ms apart, each answered 50 ms later."""
    vectors = np.random.default_rng(0).normal(size=(CALLS, 64)).round(4).tolist()
    records = []
    for call, vector in enumerate(vectors):
        records.append((START_MS + call, call, "request", {"instances": [vector]}))
        records.append((START_MS + call + 50, call, "response", {"predictions": ["yes"]}))
    records.sort(key=lambda record: record[0])
    found = []
    for first in range(0, len(records), POLL):
        chosen = records[first : first + POLL]
        found.append(
            RawBatch(
                partition=CALLS_P,
                offsets=np.arange(first, first + len(chosen), dtype=np.int64),
                timestamps_ms=np.array([time_ms for time_ms, *_ in chosen], dtype=np.int64),
                keys=[b"%d" % call for _, call, *_ in chosen],
                values=[json.dumps(body).encode() for *_, body in chosen],
                headers=[attributes(call, role) for _, call, role, _ in chosen],
                next_offset=first + len(chosen),
            )
        )
    return found


def attributes(call: int, role: str) -> list[tuple[str, bytes]]:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"call-%d" % call),
        ("ce_type", f"org.kubeflow.serving.inference.{role}".encode()),
        ("ce_source", b"http://localhost:9081/"),
        ("ce_time", b"2026-03-02T08:00:00Z"),
        ("content-type", b"application/json"),
    ]


if __name__ == "__main__":
    main()
