"""Does e-BH over segments gain over fixed shares of the alarm budget? Simulated at the level of strengths.

S segments watch a stream in which some of them change at block 0. The evidence of each is a Shiryaev-Roberts sum M of
likelihood ratios (log-normal, 0.05 nats per block where something changed, as for a shift that a single alarm finds in
about 200 blocks). Fixed shares alarm at M >= S T. e-BH (Wang and Ramdas, 2022), as a detector, names the k segments
with the greatest M, for the largest k with M >= S T / k. Both have the same run length T while nothing changes at all.

Printed: mean blocks until the first segment is named, until half of the changed ones are, and the false names of
unchanged segments per T blocks while the other half has changed (at a T of 1,000, where there are some).

    python tests/benchmarks/segments_ebh.py --runs 60
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
GAIN = 0.05  # nats per block


def strengths(segments: int, blocks: int, random: np.random.Generator, *, changed: bool) -> Floats:
    """Log of the Shiryaev-Roberts sums, (segments, blocks)."""
    gain = GAIN if changed else -GAIN
    steps = random.normal(gain, np.sqrt(2.0 * GAIN), size=(segments, blocks))
    total, sums = np.full(segments, -np.inf), np.empty((segments, blocks))
    for block in range(blocks):
        total = np.logaddexp(total, 0.0) + steps[:, block]
        sums[:, block] = total
    return sums


def named_by_ebh(sums: Floats, threshold: float) -> npt.NDArray[np.int64]:
    """How many segments e-BH names at each block; ``threshold`` is log(S T)."""
    ranked = -np.sort(-sums, axis=0)
    k = np.arange(1, len(sums) + 1)[:, None]
    return np.asarray(((ranked >= threshold - np.log(k)) * k).max(axis=0))


def first(hit: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(hit)) + 1 if hit.any() else len(hit)


def delays(segments: int, changed: int, *, run_length: float, runs: int, random: np.random.Generator) -> Floats:
    """Mean blocks until the first is named and until half are: with fixed shares, then with e-BH, (2, 2)."""
    threshold, found = np.log(segments * run_length), []
    for _ in range(runs):
        sums = strengths(changed, 900, random, changed=True)
        fixed = np.maximum.accumulate(sums >= threshold, axis=1).sum(axis=0)
        ebh = np.maximum.accumulate(named_by_ebh(sums, threshold))
        half = max(1, changed // 2)
        found.append([[first(named >= least) for least in (1, half)] for named in (fixed, ebh)])
    return np.asarray(np.mean(found, axis=0))


def false_names(segments: int, *, run_length: float, runs: int, random: np.random.Generator) -> tuple[float, float]:
    """Unchanged segments named per ``run_length`` blocks, while the other half of the segments have changed."""
    threshold, blocks, fixed, ebh = np.log(segments * run_length), 1_000, 0, 0
    quiet = segments // 2
    for _ in range(runs):
        null = strengths(quiet, blocks, random, changed=False)
        # The changed ones are all named after a while: k is at least their number.
        ebh_threshold = threshold - np.log(segments - quiet)
        fixed += _names(null >= threshold)
        ebh += _names(null >= ebh_threshold)
    return fixed / runs / blocks * run_length, ebh / runs / blocks * run_length


def _names(over: npt.NDArray[np.bool_]) -> int:
    """How often a segment comes to be named."""
    return int(np.count_nonzero(over[:, 1:] & ~over[:, :-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    random = np.random.default_rng(20261121)
    run_length = 90 * 8640.0  # 90 days of 10 s blocks
    for segments in (50, 200, 1000):
        for changed in sorted({1, 5, segments // 10, segments // 2, segments}):
            (fixed_first, fixed_half), (ebh_first, ebh_half) = delays(
                segments, changed, run_length=run_length, runs=runs, random=random
            )
            for what, fixed, ebh in (("first", fixed_first, ebh_first), ("half", fixed_half, ebh_half)):
                _put(f"{what} of {changed} in {segments} segments", ebh, "blocks", ebh / fixed)
        alone, together = false_names(segments, run_length=1_000.0, runs=runs, random=random)
        _put(f"false names, half of {segments} changed", together, "per run length", together / max(alone, 1e-9))


def _put(name: str, value: float, unit: str, ratio: float) -> None:
    line = {
        "benchmark": f"e-BH, {name}",
        "value": round(float(value), 2),
        "unit": unit,
        "ratio": round(float(ratio), 3),
    }
    print(json.dumps(line | {"against": "fixed shares"}), flush=True)


if __name__ == "__main__":
    main()
