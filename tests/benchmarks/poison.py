"""Records per second with 1 % of records that cannot be used, of every reason there is, beside the same stream clean.

Decode, embed, score, summarise and the checkpoints on SQLite; 384-dimensional vectors, polls of 1,000 records, a
checkpoint after every 20,000. One line for JSON records, one for raw vectors. The ten bad records of a poll have ten
reasons, which is the worst case: a column is looked at closely once for each reason. In seconds of processor time.
"""

from __future__ import annotations

import base64
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from detectors.reference import Reference
from monitor.decode import Decoder, RecordSettings
from monitor.embedders.vector import VectorSettings
from monitor.pipeline import Pipeline, Space

RECORDS, POLL, CHECKPOINT = 40_000, 1_000, 20_000
ROUNDS = 5
EVERY = 100
DIMENSION = 384
START_MS = 1_772_438_400_000
ORDERS = Partition("orders", 0)

Message = tuple[bytes | None, tuple[tuple[str, bytes], ...]]


def json_message(number: int, vector: np.ndarray) -> Message:
    return json.dumps(fields(number, vector)).encode(), ()


def fields(number: int, vector: np.ndarray) -> dict[str, Any]:
    encoded = base64.b64encode(vector.tobytes()).decode()
    return {"id": f"r{number:08d}", "ts": START_MS + 10 * number, "label": "refund", "score": 0.9, "v": encoded}


def json_poison(number: int, vector: np.ndarray) -> Message:
    """A record that cannot be used; the next number has another reason."""
    good = fields(number, vector)
    nan = np.full(DIMENSION, np.nan, dtype=np.float32)
    bad: list[Any] = [
        None,
        good | {"note": "x" * 70_000},
        "{broken",
        good | {"id": None},
        good | {"score": "high"},
        good | {"ts": "soon"},
        good | {"ts": 5},
        good | {"ts": START_MS * 2},
        good | {"v": "?"},
        good | {"v": base64.b64encode(vector[:7].tobytes()).decode()},
        good | {"v": base64.b64encode(nan.tobytes()).decode()},
        good | {"v": base64.b64encode(np.zeros_like(vector).tobytes()).decode()},
    ]
    chosen = bad[number // EVERY % len(bad)]
    if chosen is None or isinstance(chosen, str):
        return None if chosen is None else chosen.encode(), ()
    return json.dumps(chosen).encode(), ()


def raw_message(number: int, vector: np.ndarray) -> Message:
    return vector.tobytes(), (("id", b"r%08d" % number), ("ts", b"%d" % (START_MS + 10 * number)))


def raw_poison(number: int, vector: np.ndarray) -> Message:
    value, headers = raw_message(number, vector)
    assert value is not None
    bad: list[Message] = [
        (None, headers),
        (value * 60, headers),
        (value, headers[1:]),
        (value, (headers[0], ("ts", b"soon"))),
        (value, (headers[0], ("ts", b"5"))),
        (value[:-1], headers),
        (value[:28], headers),
        (np.full(DIMENSION, np.nan, dtype=np.float32).tobytes(), headers),
        (np.zeros_like(vector).tobytes(), headers),
    ]
    return bad[number // EVERY % len(bad)]


def batches(messages: Sequence[Message]) -> list[RawBatch]:
    found = []
    for start in range(0, len(messages), POLL):
        some = messages[start : start + POLL]
        offsets = np.arange(start, start + len(some), dtype=np.int64)
        found.append(
            RawBatch(
                partition=ORDERS,
                offsets=offsets,
                timestamps_ms=START_MS + 10 * offsets,
                keys=[None] * len(some),
                values=[value for value, _ in some],
                headers=[headers for _, headers in some],
                next_offset=start + len(some),
            )
        )
    return found


def seconds(stream: Sequence[RawBatch], settings: RecordSettings, reference: Reference, *, bad: int) -> float:
    """How long the stream takes through the pipeline and into a fresh database."""
    embedder = VectorSettings.model_validate(
        {
            "field": "body" if settings.codec == "raw" else "/v",
            "encoding": "bytes" if settings.codec == "raw" else "base64",
        }
        | {"dtype": "f4", "dimension": DIMENSION}
    ).build()
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/driftd.db") as store:
        store.migrate()
        pipeline = Pipeline(
            "orders",
            decoder=Decoder(settings, list(embedder.fields)),
            spaces=[Space("input", embedder, reference, 1, {})],
            block_ms=10_000,
            lateness_ms=60_000,
            alpha=0.001,
            sample=0.001,
            stored=lambda partitions: {},
        )
        began = time.process_time()
        for batch in stream:
            pipeline.process(batch, None)
            if pipeline.records >= CHECKPOINT:
                store.commit(pipeline.checkpoint())
                pipeline.written()
        took = time.process_time() - began
        assert (store.totals("orders").records, store.totals("orders").dead) == (RECORDS, bad)
        reasons = Counter(store.dead_letter_counts("orders"))
        assert len(reasons) >= (8 if bad else 0), reasons
    return took


def main() -> None:
    random = np.random.default_rng(7)
    reference = Reference.build(random.normal(size=(10_000, DIMENSION)).astype(np.float32))
    vectors = random.normal(size=(RECORDS, DIMENSION)).astype(np.float32)
    mapped = {"max_bytes": 65_536}
    kinds = {
        "json": (
            json_message,
            json_poison,
            mapped | {"id": "/id", "time": "/ts", "prediction": "/label"} | {"confidence": "/score"},
        ),
        "raw": (raw_message, raw_poison, mapped | {"codec": "raw", "id": "header:id", "time": "header:ts"}),
    }
    for kind, (good, poison, record) in kinds.items():
        settings = RecordSettings.model_validate(record)
        clean = batches([good(number, vector) for number, vector in enumerate(vectors)])
        dirty = batches(
            [(poison if number % EVERY == 0 else good)(number, vector) for number, vector in enumerate(vectors)]
        )
        gc.collect()
        gc.freeze()  # as the daemon does: what is there now is not to be looked at again and again
        took: dict[str, list[float]] = {"clean": [], "dirty": []}
        for _ in range(ROUNDS):  # in turns, so that a busy machine slows both
            took["clean"].append(seconds(clean, settings, reference, bad=0))
            took["dirty"].append(seconds(dirty, settings, reference, bad=RECORDS // EVERY))
        best = {name: min(values) for name, values in took.items()}
        print(
            json.dumps(
                {
                    "benchmark": f"poison_{kind}",
                    "value": round(RECORDS / best["dirty"]),
                    "unit": "records/s",
                    "ratio": round(best["clean"] / best["dirty"], 3),
                    "against": f"the same stream without them: {RECORDS / best['clean']:.0f} records/s",
                    "bad": f"1 in {EVERY}",
                }
            )
        )


if __name__ == "__main__":
    main()
