"""Seconds to build a reference of 200,000 records of 384 dimensions, one thread. Prints one JSON line.

Everything that a build does: split, moments, 1,000 prototypes, calibration, block sums, drift constants, exemplars.
Saving and loading are timed beside it. ``cpu_s`` is the processor time, which a busy machine lengthens less than the
clock's.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/reference_build.py
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.reference import Reference

RECORDS, DIMENSION, GOAL_S = 200_000, 384, 15.0


def draw() -> np.ndarray:
    """Records of 150 topics in 384 dimensions with a spectrum like a sentence encoder's."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((RECORDS, DIMENSION), np.float32)
    vectors += random.standard_normal((150, DIMENSION), np.float32)[random.integers(0, 150, RECORDS)] * np.float32(0.7)
    vectors *= (np.arange(1, DIMENSION + 1) ** -0.5).astype(np.float32)
    return vectors


def main() -> int:
    vectors = draw()
    steps: dict[str, float] = {}
    step, since = "start", time.perf_counter()

    def progress(name: str, share: float) -> None:
        nonlocal step, since
        now = time.perf_counter()
        steps[step] = round(steps.get(step, 0.0) + now - since, 2)
        step, since = name, now

    cpu_began, began = time.process_time(), time.perf_counter()
    reference = Reference.build(vectors, progress=progress)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        reference.save(Path(directory) / "reference")
        saved = time.perf_counter()
        Reference.load(Path(directory) / "reference")
        loaded = time.perf_counter()
        size = sum(file.stat().st_size for file in (Path(directory) / "reference").iterdir())
    line = {
        "benchmark": "reference_build",
        "value": round(seconds, 2),
        "unit": "s",
        "ratio": round(seconds / GOAL_S, 3),
        "against": f"{GOAL_S:g} s",
        "cpu_s": round(cpu_seconds, 2),
        "steps_s": {name: taken for name, taken in steps.items() if name != "start"},
        "save_s": round(saved - began, 2),
        "load_s": round(loaded - saved, 2),
        "size_mb": round(size / 2**20, 1),
        "input_mb": round(vectors.nbytes / 2**20),
        "peak_mb": round(peak / 1024),
        "records": RECORDS,
        "dimension": DIMENSION,
        "prototypes": len(reference.prototypes),
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
