"""What stored history takes: blocks of 10 s of the whole traffic and of 20 segments, d = 384, 100 records/s in all.

Summaries of real records against a real reference (unit vectors of 1,000 topics whose shares fall as 1 / rank, segments
of unequal size) are made once, some hundred blocks of them, and then written in random order, through the store, with
the ageing that a daemon does every ten minutes done every six hours of event time. The size is that of the file, with
its indexes and what is free in it.

    python tests/benchmarks/history_size.py                           # ten days, some minutes
    python tests/benchmarks/history_size.py --days 90 --keep FOLDER   # driftd.db, references, driftd.yaml stay there
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import yaml

from connectors.database.rows import FoldResult, ReferenceRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.conformal import p_bins
from detectors.reference import Reference
from detectors.segments import thresholds_of
from detectors.summary import BlockSummary, summarise
from monitor.ageing import merge_old_summaries, sum_of_summaries
from monitor.record_counts import RecordCounts
from monitor.settings import Settings, load_settings
from tests.streams import Topics

MODEL, SPACE, FIELD = "support", "input", "country"
DIMENSION, PROTOTYPES, SEGMENTS, BLOCK_S, PER_S = 384, 1000, 20, 10, 100
BASELINE, POOL = 120_000, 240  # records; blocks
DAY = 86_400 // BLOCK_S  # blocks
HOUR = 3600 // BLOCK_S
AGE_EVERY = 6  # hours
FINE, WIDTH = 10 * 24, 8  # hours that are written block by block; blocks in a row of those before
START_MS = 1_767_225_600_000
LABELS = ("refund", "cancel", "upgrade", "login", "delivery", "other")
NOWHERE = Partition("", -1)


def main() -> None:
    """Print lines of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=float, default=10.0)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    if asked.keep is not None:
        asked.keep.mkdir(parents=True, exist_ok=True)
        measure(asked.keep, asked.days)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), asked.days)


def measure(folder: Path, days: float) -> None:
    """Write so many days of history into a folder, and say what they take."""
    settings = settings_in(folder)
    countries = [f"c{number:02}" for number in range(SEGMENTS)]
    shares = 1.0 / np.arange(1, SEGMENTS + 1)
    shares /= shares.sum()
    topics = Topics(DIMENSION, PROTOTYPES)
    reference = baseline(topics, countries, shares)
    pool = summaries(reference, topics, countries, shares)
    print_costs(pool)
    random = np.random.default_rng(9)
    first = START_MS // (BLOCK_S * 1000)
    wide = {
        segment: [sum_of_summaries(SPACE, [blobs[at] for at in random.integers(0, POOL, WIDTH)]) for _ in range(POOL)]
        for segment, blobs in pool.items()
    }
    began, merging = perf_counter(), 0.0
    with Store.open(settings.database) as store:
        store.migrate()
        path = folder / "references" / "1"
        path.parent.mkdir(exist_ok=True)
        checksum = reference.save(path)
        store.add_reference(
            ReferenceRow(MODEL, SPACE, 1, str(path), reference.n_records, DIMENSION, checksum, START_MS, active=True)
        )
        for hour in range(round(days * 24)):
            fine = hour >= round(days * 24) - FINE
            width, drawn_from = (1, pool) if fine else (WIDTH, wide)
            counts = RecordCounts(PER_S * BLOCK_S * width, 0, {}).to_bytes()
            rows = []
            for block in range(first + hour * HOUR, first + (hour + 1) * HOUR, width):
                drawn = random.integers(0, POOL, len(pool))
                rows += [
                    SummaryDelta(SPACE, segment, block, 1, NOWHERE, 0, blobs[at], width)
                    for (segment, blobs), at in zip(drawn_from.items(), drawn.tolist(), strict=True)
                ]
                rows.append(SummaryDelta("", "", block, 0, NOWHERE, 0, counts, width))
            with store.begin_fold(MODEL) as step:
                step.commit(FoldResult(first + (hour + 1) * HOUR, rows, [], [], [], []))
            if hour % AGE_EVERY == AGE_EVERY - 1:
                since = perf_counter()
                while merge_old_summaries(store, settings, MODEL).left:
                    pass
                merging += perf_counter() - since
            if hour % 240 == 239:
                print(f"{(hour + 1) // 24} days, {perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print_sizes(folder / "driftd.db", days, merging)


def settings_in(folder: Path) -> Settings:
    """Settings of the model, in a file, so that commands can be tried on what is kept."""
    content = {
        "database": f"sqlite:///{folder}/driftd.db",
        "references": str(folder / "references"),
        "models": {
            MODEL: {
                "source": {"kind": "files", "path": str(folder / "none.jsonl")},
                "record": {"segments": {FIELD: f"/{FIELD}"}},
                "spaces": {SPACE: {"embedder": {"kind": "vector", "field": "/vector", "encoding": "list"}}},
                "drift": {"block": BLOCK_S},
            }
        },
    }
    path = folder / "driftd.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_settings(path)


def baseline(topics: Topics, countries: list[str], shares: np.ndarray) -> Reference:
    """A reference of the usual traffic, with a baseline of its own for every segment."""
    random = np.random.default_rng(1)
    return Reference.build(
        topics.draw(BASELINE, random),
        prototypes=PROTOTYPES,
        block=PER_S * BLOCK_S,
        exemplars=1_000,
        model=MODEL,
        space=SPACE,
        segments={FIELD: countries},
        segment_values={FIELD: random.choice(countries, BASELINE, p=shares).tolist()},
        created_ms=START_MS,
    )


def summaries(reference: Reference, topics: Topics, countries: list[str], shares: np.ndarray) -> dict[str, list[bytes]]:
    """For the whole traffic and each segment, `POOL` blocks as bytes."""
    random = np.random.default_rng(2)
    pool: dict[str, list[bytes]] = {segment: [] for segment in ("", *(f"{FIELD}={country}" for country in countries))}
    for _ in range(POOL):
        n = int(random.poisson(PER_S * BLOCK_S))
        scored = reference.score(topics.draw(n, random))
        place = random.choice(SEGMENTS, n, p=shares)
        confidence = random.beta(8, 2, n)
        labels = random.choice(LABELS, n, p=[0.35, 0.25, 0.2, 0.1, 0.07, 0.03]).tolist()
        whole = summarise(np.zeros(n, np.int64), scored, confidence=confidence, predictions=labels)
        pool[""].append(whole[0].to_bytes())
        bins = scored.bin.copy()
        for number, country in enumerate(countries):
            thresholds = thresholds_of(reference.drift, f"{FIELD}={country}")
            if thresholds is not None:
                inside = place == number
                bins[inside] = p_bins(scored.distance[inside], thresholds)
        parts = summarise(place, replace(scored, bin=bins), confidence=confidence, predictions=labels)
        for number, country in enumerate(countries):
            part = parts.get(number)
            empty = BlockSummary.empty(reference.dimension, len(reference.prototypes))
            pool[f"{FIELD}={country}"].append((empty if part is None else part).to_bytes())
    return pool


def print_costs(pool: dict[str, list[bytes]]) -> None:
    """Microseconds that one summary takes to be written as bytes and to be read, in processor time."""
    blobs = [blob for of_segment in pool.values() for blob in of_segment]
    read = [BlockSummary.from_bytes(blob) for blob in blobs]
    decode = min(_seconds(lambda: [BlockSummary.from_bytes(blob) for blob in blobs]) for _ in range(3))
    encode = min(_seconds(lambda: [summary.to_bytes() for summary in read]) for _ in range(3))
    for what, seconds in (("encode", encode), ("decode", decode)):
        line = {"benchmark": f"summary_{what}", "value": round(seconds / len(blobs) * 1e6, 1), "unit": "us"}
        print(json.dumps(line | {"bytes": round(sum(map(len, blobs)) / len(blobs))}), flush=True)


def _seconds(work: object) -> float:
    began = process_time()
    work()  # type: ignore[operator]
    return process_time() - began


def print_sizes(path: Path, days: float, merging_s: float) -> None:
    """What lies on the disk."""
    connection = sqlite3.connect(path)
    connection.execute("pragma wal_checkpoint(truncate)")
    page, pages, free = (
        connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    query = (
        "select blocks, count(*), avg(length(blob)) from summaries where space != '' group by blocks order by blocks"
    )
    widths = {width: {"rows": rows, "bytes": round(size)} for width, rows, size in connection.execute(query)}
    blobs = connection.execute("select sum(length(blob)) from summaries").fetchone()[0]
    connection.close()
    print(
        json.dumps(
            {
                "benchmark": "history_size",
                "value": round(path.stat().st_size / 1e9, 3),
                "unit": "GB",
                "days": days,
                "segments": SEGMENTS,
                "free_gb": round(free * page / 1e9, 3),
                "blobs_gb": round(blobs / 1e9, 3),
                "pages": pages,
                "blocks_per_row": widths,
                "merging_s": round(merging_s),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
