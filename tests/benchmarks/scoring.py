"""The scoring path alone: prepare, whiten, search, p-value, block sums. Prints one JSON line.

384 dimensions, 2,000 prototypes, 100,000 calibration scores, batches of 1,024 records, two processes at once with one
thread each, as two workers of driftd run. ``value`` is the records per second of both together.

``search`` compares the nearest-prototype search with a bare float32 matrix product of the same shape (1,024 x 384 times
384 x 2,000, numpy): both take turns in the same process, and the best of many is taken of each, so that a busy machine
slows both alike. ``cpu_us`` is the processor time that a record takes, which a busy machine lengthens less than the
clock's: 2e6 / cpu_us is the rate of two cores that nobody else uses.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/scoring.py [--seconds 6] [--processes 2]
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import dataclasses
import json
import multiprocessing
import resource
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.reference import ANGULAR, Reference
from detectors.summary import BlockSummary, summarise

DIMENSION, PROTOTYPES, BATCH, BATCHES = 384, 2000, 1024, 16
GOAL, SEARCH_GOAL = 100_000, 0.75


class Measured(NamedTuple):
    """What one process saw."""

    records: int
    seconds: float
    cpu_seconds: float
    batch_seconds: list[float]
    product_us: float
    search_us: float
    peak_bytes: int


def draw(n: int, seed: int) -> np.ndarray:
    """Records of 150 topics in 384 dimensions with a spectrum like a sentence encoder's."""
    random = np.random.default_rng(seed)
    spread = (np.arange(1, DIMENSION + 1) ** -0.5).astype(np.float32)
    topics = np.random.default_rng(0).standard_normal((150, DIMENSION)).astype(np.float32)
    noise = random.standard_normal((n, DIMENSION), np.float32)
    return (topics[random.integers(0, 150, n)] * 0.7 + noise) * spread


def reference() -> Reference:
    """A real reference of 2,000 prototypes; they are drawn instead of trained, which takes no time off any record."""
    built = Reference.build(draw(20_000, 1), geometry=ANGULAR, prototypes=100, exemplars=100)
    prototypes = built.search_space(built.prepare(draw(PROTOTYPES, 2)))
    drawn = dataclasses.replace(built, prototypes=prototypes)
    scores = np.sort(np.concatenate([drawn.score(draw(10_000, seed)).distance for seed in range(3, 13)]))
    return dataclasses.replace(drawn, calibration_scores=scores, n_calibration=len(scores))


def best(seconds: list[float]) -> float:
    return min(seconds) / BATCH * 1e6


def work(number: int, seconds: float, start: Barrier, results: multiprocessing.Queue[Measured]) -> None:
    scorer = reference()
    batches = draw(BATCH * BATCHES, 100 + number).reshape(BATCHES, BATCH, DIMENSION)
    y = scorer.search_space(scorer.prepare(batches[0]))
    columns = np.ascontiguousarray(scorer.prototypes.T)
    out = np.empty((BATCH, PROTOTYPES), np.float32)
    scorer.score(batches[0])

    start.wait()
    product, search = [], []
    for _ in range(60):
        began = time.perf_counter()
        np.matmul(y, columns, out=out)
        product.append(time.perf_counter() - began)
        began = time.perf_counter()
        scorer.prototype_index.search(y, 1)
        search.append(time.perf_counter() - began)

    start.wait()
    sums: dict[int, BlockSummary] = {}
    took: list[float] = []
    cpu_began = time.process_time()
    began = now = time.perf_counter()
    while now - began < seconds:
        number_of_batch = len(took)
        scored = scorer.score(batches[number_of_batch % BATCHES])
        block = number_of_batch // 32
        for key, found in summarise(np.full(BATCH, block), scored).items():
            sums[key] = sums[key].merge(found) if key in sums else found
        sums.pop(block - 2, None)
        then, now = now, time.perf_counter()
        took.append(now - then)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cpu_seconds = time.process_time() - cpu_began
    results.put(Measured(len(took) * BATCH, now - began, cpu_seconds, took, best(product), best(search), peak))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long to score (default: 6)")
    parser.add_argument("--processes", type=int, default=2, help="how many at once (default: 2)")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    start: Barrier = context.Barrier(options.processes)
    results: multiprocessing.Queue[Measured] = context.Queue()
    workers = [
        context.Process(target=work, args=(number, options.seconds, start, results))
        for number in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    rate = sum(one.records / one.seconds for one in found)
    quiet = sum(BATCH / min(one.batch_seconds) for one in found)
    product, search = (min(getattr(one, name) for one in found) for name in ("product_us", "search_us"))
    line = {
        "benchmark": "scoring",
        "value": round(rate),
        "unit": "records/s",
        "ratio": round(rate / GOAL, 3),
        "against": f"{GOAL} records/s on 2 cores",
        "processes": options.processes,
        "best_batches": round(quiet),
        "cpu_us": round(sum(one.cpu_seconds for one in found) / sum(one.records for one in found) * 1e6, 2),
        "p99_batch_ms": round(float(np.quantile(np.concatenate([one.batch_seconds for one in found]), 0.99)) * 1e3, 2),
        "search_us": round(search, 2),
        "product_us": round(product, 2),
        "search_share_of_product": round(product / search, 3),
        "search_goal": SEARCH_GOAL,
        "peak_mb": round(max(one.peak_bytes for one in found) / 2**20),
        "dimension": DIMENSION,
        "prototypes": PROTOTYPES,
        "batch": BATCH,
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
