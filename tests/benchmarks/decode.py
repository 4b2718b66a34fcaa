"""Records per second from 200-byte JSON records to columns, beside a bare msgspec decode of the same bytes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.records import Partition, RawBatch
from monitor.decode import Decoder, RecordSettings

RECORDS = 50_000
POLL = 1000
ROUNDS = 5


class Record(msgspec.Struct):
    """What the mapping below needs of a record."""

    request_id: str
    ts: int
    label: str
    score: float
    country: str
    text: str


def main() -> None:
    values = [record(number) for number in range(RECORDS)]
    settings = RecordSettings.model_validate(
        {
            "id": "/request_id",
            "time": "/ts",
            "prediction": "/label",
            "confidence": "/score",
            "segments": {"country": "/country"},
        }
    )
    decoder = Decoder(settings, ["/text"])
    batches = [batch(values, start) for start in range(0, RECORDS, POLL)]
    bare = msgspec.json.Decoder(Record).decode
    best_ours = best_bare = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        dead = sum(len(decoder.decode(each, None).dead) for each in batches)
        best_ours = min(best_ours, time.perf_counter() - began)
        assert dead == 0
        began = time.perf_counter()
        for start in range(0, RECORDS, POLL):
            [bare(value) for value in values[start : start + POLL]]
        best_bare = min(best_bare, time.perf_counter() - began)
    print(
        json.dumps(
            {
                "benchmark": "decode_json_200_bytes",
                "value": round(RECORDS / best_ours),
                "unit": "records/s",
                "ratio": round(best_bare / best_ours, 3),
                "against": "msgspec typed struct, same bytes, no columns",
                "bytes": len(values[0]),
                "poll": POLL,
            }
        )
    )


def record(number: int) -> bytes:
    fields = {
        "request_id": f"req-{number:010d}",
        "ts": 1_772_438_400_000 + number * 7,
        "model": "support-triage",
        "label": ("billing", "login", "other")[number % 3],
        "score": round(0.5 + number % 499 / 1000, 3),
        "country": ("NO", "SE", "DK", "FI")[number % 4],
        "text": "my card was refused at the till ",
    }
    return json.dumps(fields).encode().ljust(200)


def batch(values: list[bytes], start: int) -> RawBatch:
    chosen = values[start : start + POLL]
    n = len(chosen)
    return RawBatch(
        partition=Partition("records", 0),
        offsets=np.arange(start, start + n, dtype=np.int64),
        timestamps_ms=np.full(n, 1_772_438_400_000, dtype=np.int64),
        keys=[None] * n,
        values=chosen,
        headers=[()] * n,
        next_offset=start + n,
    )


if __name__ == "__main__":
    main()
