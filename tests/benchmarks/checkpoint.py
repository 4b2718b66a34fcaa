"""Milliseconds of one typical checkpoint on SQLite, beside one bare sqlite3 transaction of the same bytes.

A checkpoint: 4 partitions, 20 summaries of 3.5 kB, 50 kept records, 5 dead letters. The bare transaction writes the
same values into tables without keys and indexes; both files use the write-ahead log with synchronous = NORMAL.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.database.columns import delta_columns, kept_columns, letter_columns
from connectors.database.rows import Advance, Checkpoint, KeptRecord, SummaryDelta
from connectors.database.store import Store
from connectors.records import DeadLetter, Partition

PARTITIONS = [Partition("orders", number) for number in range(4)]
RECORDS = 1_000  # per partition and checkpoint
CHECKPOINTS = 300
SUMMARY_BYTES = 3_500


def checkpoint(number: int) -> Checkpoint:
    """The ``number``th checkpoint of a stream."""
    start = number * RECORDS
    places = [(PARTITIONS[n % 4], start + n) for n in range(50)]
    return Checkpoint(
        "orders",
        [Advance(p, start or None, start + RECORDS, start, RECORDS, 2, 0) for p in PARTITIONS],
        [
            SummaryDelta(space, segment, number, 1, partition, start, bytes([number % 251]) * SUMMARY_BYTES)
            for partition in PARTITIONS
            for space, segment in [("input", ""), ("input", "NO"), ("input", "SE"), ("output", ""), ("", "")]
        ],
        [
            KeptRecord(
                *(partition, offset, offset, "input", number, f"request-{offset}", "outlier", offset * 0.001, 0.0005),
                *(1, 17, "refund", 0.93, {"country": "NO"}, {"text": "Where is my parcel? " * 5}),
            )
            for partition, offset in places
        ],
        [DeadLetter(p, start + 999, start, "bad_json", "byte 17 is no JSON", b"{" * 200, 200) for p in PARTITIONS]
        + [DeadLetter(PARTITIONS[0], start + 998, start, "missing_field", "no /text", b"{}" * 100, 200)],
    )


def through_the_store(folder: Path) -> list[float]:
    """Seconds of each checkpoint."""
    seconds = []
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        store.migrate()
        for number in range(CHECKPOINTS):
            batch = checkpoint(number)
            began = time.perf_counter()
            store.commit(batch)
            seconds.append(time.perf_counter() - began)
        assert store.totals("orders").records == CHECKPOINTS * RECORDS * len(PARTITIONS)
    return seconds


def bare(folder: Path) -> list[float]:
    """Seconds of each transaction of the same values, ready-made, into tables without keys."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    seconds = []
    for number in range(CHECKPOINTS):
        batch = checkpoint(number)
        tables = {
            "partitions": [tuple(p) + (number,) * 6 for p in PARTITIONS],
            "deltas": [tuple(delta_columns("orders", row).values()) for row in batch.summaries],
            "kept": [tuple(kept_columns("orders", row, 0).values()) for row in batch.kept],
            "letters": [tuple(letter_columns("orders", row, 0).values()) for row in batch.dead_letters],
        }
        marks = {name: ",".join("?" * len(rows[0])) for name, rows in tables.items()}
        if number == 0:
            for name, rows in tables.items():
                connection.execute(f"CREATE TABLE {name} ({','.join(f'c{n}' for n in range(len(rows[0])))})")
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for name, rows in tables.items():
            connection.executemany(f"INSERT INTO {name} VALUES ({marks[name]})", rows)
        connection.execute("COMMIT")
        seconds.append(time.perf_counter() - began)
    connection.close()
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = statistics.median(through_the_store(Path(folder))) * 1000
        theirs = statistics.median(bare(Path(folder))) * 1000
    print(
        json.dumps(
            {
                "benchmark": "checkpoint",
                "value": round(ours, 2),
                "unit": "ms",
                "ratio": round(ours / theirs, 2),
                "against": f"one bare sqlite3 transaction of the same bytes, no indexes: {theirs:.2f} ms",
            }
        )
    )


if __name__ == "__main__":
    main()
