"""Cost of one step of the drift rule: d = 384, 256 groups of 1,000 prototypes, 42 experts, windows at their steady
number; for one segment alone, and for 1,000 segments at once, with the memory that their states take.

The limit it is held against is the memory traffic and arithmetic that no step can avoid: one product of a 384-vector
with the 384 x 384 whitening map, and one addition to every window's running sum. Time is processor time.

    python tests/benchmarks/fold.py
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import process_time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from detectors.baseline import measure
from detectors.conformal import N_BINS, P_EDGES
from detectors.fold import FoldSettings, FoldState, Rule, fold, fold_many
from detectors.summary import BlockSummary

DIMENSION, PROTOTYPES, BLOCK, BLOCKS, SEGMENTS = 384, 1000, 256, 2000, 1000


def main() -> None:
    """Print two lines of JSON."""
    random = np.random.default_rng(0)
    spectrum = 1.0 / np.arange(1, DIMENSION + 1)
    spectrum /= spectrum.sum()
    centroids = random.standard_normal((PROTOTYPES, DIMENSION)) * np.sqrt(spectrum)
    constants = measure(
        n0=10**7,
        mean=np.zeros(DIMENSION),
        covariance=np.diag(spectrum),
        sample=random.standard_normal((5_000, DIMENSION)) * np.sqrt(spectrum),
        sample_held_out=True,
        centroids=centroids,
        counts=np.full(PROTOTYPES, 100),
        calibration_scores=np.arange(100_000.0),
        block_n=np.zeros(0, dtype=np.int64),
        block_s=np.zeros((0, DIMENSION), dtype=np.int64),
        block_h=np.zeros((0, N_BINS), dtype=np.int64),
        block_c=np.zeros((0, PROTOTYPES), dtype=np.int64),
    )
    rule = Rule(constants, FoldSettings(1e9, 1e9, max_blocks=4096))
    state = FoldState.start(rule)
    for block in _blocks(BLOCKS, random):  # fills the windows
        state, _ = fold(state, block, rule)
    step_us = min(_step_us(state, _blocks(400, random), rule) for _ in range(5))
    floor_us = _floor_us(rule, len(state.windows))
    print(
        json.dumps(
            {
                "benchmark": "fold",
                "value": round(step_us, 1),
                "unit": "us/block",
                "ratio": round(step_us / floor_us, 2),
                "against": "one 384 x 384 product and one addition to every window",
                "against_us": round(floor_us, 1),
                "windows": len(state.windows),
                "state_kb": round(len(state.to_bytes()) / 1000),
                "us_per_record": round(step_us / BLOCK, 3),
            }
        )
    )
    each_us, states = _many_us(state, rule, random)
    print(
        json.dumps(
            {
                "benchmark": "fold_many",
                "value": round(each_us, 1),
                "unit": "us/block and segment",
                "ratio": round(each_us / step_us, 2),
                "against": "one segment alone",
                "segments": SEGMENTS,
                "states_mb": round(sum(_bytes(one) for one in states) / 1e6),
            }
        )
    )


def _blocks(count: int, random: np.random.Generator) -> list[BlockSummary]:
    """Blocks of an unchanged stream, new ones: the same block twice would look like a change."""
    spectrum = 1.0 / np.arange(1, DIMENSION + 1)
    sums = random.standard_normal((count, DIMENSION)) * np.sqrt(spectrum / spectrum.sum() * BLOCK)
    widths, shares = np.diff(np.append(0.0, P_EDGES)), np.full(PROTOTYPES, 1.0 / PROTOTYPES)
    return [
        BlockSummary(
            BLOCK,
            np.rint(row * 2**20).astype(np.int64),
            random.multinomial(BLOCK, widths),
            random.multinomial(BLOCK, shares),
        )
        for row in sums
    ]


def _many_us(state: FoldState, rule: Rule, random: np.random.Generator) -> tuple[float, list[FoldState]]:
    """Time of one segment's step among many, each with windows of its own, and their states."""
    states, rules, best = [state] * SEGMENTS, [rule] * SEGMENTS, np.inf
    for _ in range(8):
        summaries = _blocks(SEGMENTS, random)
        start = process_time()
        states = [following for following, _ in fold_many(states, summaries, rules)]
        best = min(best, (process_time() - start) / SEGMENTS * 1e6)
    return float(best), states


def _bytes(state: FoldState) -> int:
    """Memory of the arrays of a state; each is its own."""
    windows = (state.windows.sums, state.windows.records, state.windows.first_block, state.windows.size_class)
    experts = (state.page_wealth, state.warn_wealth, state.excursion, state.excursion_start, state.alarm_records)
    return sum(array.nbytes for array in windows + experts)


def _step_us(state: FoldState, blocks: list[BlockSummary], rule: Rule) -> float:
    start = process_time()
    for block in blocks:
        state, _ = fold(state, block, rule)
    return (process_time() - start) / len(blocks) * 1e6


def _floor_us(rule: Rule, windows: int) -> float:
    vector, sums, values = np.ones(rule.dimension), np.zeros((windows, rule.width)), np.ones(rule.width)
    best = np.inf
    for _ in range(20):
        start = process_time()
        for _ in range(50):
            vector @ rule.map
            sums += values
        best = min(best, (process_time() - start) / 50 * 1e6)
    return float(best)


if __name__ == "__main__":
    main()
