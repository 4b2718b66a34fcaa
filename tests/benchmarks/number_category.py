"""Spaces of one number or one category: how soon a shift is paged, and how often an unchanged stream is.

For each shift, streams of 12,800 unchanged records and then up to 16,384 shifted ones, against a baseline of 50,000
independent ones, in blocks of 64, at a run length of 1e7 records. Beside the rule, on the same blocks, river's ADWIN
and PageHinkley as second opinions on the mean normal score and, for numbers, on the mean number. A stream in which
nothing is found counts as 16,384.

For each unchanged stream, records for one page at a nominal 20,000, and for one warning at 2,000. The seeds are others
than those on which the vectors were chosen.

    python tests/benchmarks/number_category.py [--runs 10] [--null-records 600000]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from detectors.drift import DriftMonitor
from detectors.feedback import OpinionName, SecondOpinion
from detectors.fold import FoldSettings, Rule
from detectors.reference import Reference
from detectors.summary import summarise
from monitor.embedders.category import CategorySettings
from monitor.embedders.number import NumberSettings
from monitor.opinions import opinion_streams
from monitor.pipeline import Space

Draw = Callable[[np.random.Generator, int], list[Any]]
BASELINE, BEFORE, AFTER, BLOCK = 50_000, 12_800, 16_384, 64
RUN_LENGTH, NULL_PAGE, NULL_WARN = 1e7, 20_000, 2_000
OPINIONS: tuple[OpinionName, ...] = ("adwin", "page_hinkley")
TEN = (0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01)


def normal(mean: float = 0.0, spread: float = 1.0) -> Draw:
    return lambda random, n: random.normal(mean, spread, size=n).tolist()


def mixed(share: float, value: Callable[[np.random.Generator, int], Any]) -> Draw:
    return lambda random, n: np.where(random.random(n) < share, value(random, n), random.normal(size=n)).tolist()


def confidence(a: float, b: float) -> Draw:
    return lambda random, n: random.beta(a, b, size=n).round(2).tolist()


def cauchy(shift: float = 0.0) -> Draw:
    return lambda random, n: (random.standard_cauchy(size=n) + shift).tolist()


def gaps(share: float) -> Draw:
    return lambda random, n: [
        None if gap else value
        for gap, value in zip((random.random(n) < share).tolist(), random.normal(size=n).tolist(), strict=True)
    ]


def labels(*shares: float) -> Draw:
    return lambda random, n: [f"label {k}" for k in random.choice(len(shares), size=n, p=shares).tolist()]


def ranks(exponent: float) -> Draw:
    return lambda random, n: [str(rank) for rank in random.zipf(exponent, size=n).tolist()]


SHIFTS: dict[str, tuple[str, Draw, Draw]] = {
    "mean + 0.1 sigma": ("number", normal(), normal(0.1)),
    "mean + 0.3 sigma": ("number", normal(), normal(0.3)),
    "spread x 1.1": ("number", normal(), normal(0.0, 1.1)),
    "spread x 0.9": ("number", normal(), normal(0.0, 0.9)),
    "5 % at one value": ("number", normal(), mixed(0.05, lambda random, n: 0.3)),
    "1 % at 4 to 5 sigma": ("number", normal(), mixed(0.01, lambda random, n: 4.0 + random.random(n))),
    "confidence 0.80 to 0.75": ("number", confidence(8, 2), confidence(7.5, 2.5)),
    "Cauchy + 0.3": ("number", cauchy(), cauchy(0.3)),
    "1 % missing, never before": ("optional", normal(), gaps(0.01)),
    "missing 10 % to 15 %": ("optional", gaps(0.1), gaps(0.15)),
    "label 2 % to 4 %": ("category", labels(*TEN), labels(0.28, *TEN[1:8], 0.04, 0.01)),
    "label 30 % to 35 %": ("category", labels(*TEN), labels(0.35, 0.18, 0.14, 0.1, 0.09, 0.04, *TEN[6:])),
    "new label, 1 %": ("category", labels(*TEN), labels(0.29, *TEN[1:], 0.01)),
    "new label, 0.2 %": ("category", labels(*TEN), labels(0.298, *TEN[1:], 0.002)),
}
NULLS: dict[str, tuple[str, Draw]] = {
    "normal": ("number", normal()),
    "confidence of two decimals": ("number", confidence(8, 2)),
    "confidence that saturates at 1": (
        "number",
        lambda random, n: np.minimum(1.0, random.beta(20, 1, size=n) * 1.05).tolist(),
    ),
    "Cauchy": ("number", cauchy()),
    "lognormal": ("number", lambda random, n: random.lognormal(0, 2, size=n).tolist()),
    "Poisson, mean 2": ("number", lambda random, n: random.poisson(2, size=n).tolist()),
    "70 % zeros": (
        "number",
        lambda random, n: np.where(random.random(n) < 0.7, 0.0, random.exponential(size=n)).tolist(),
    ),
    "one value but for 5 in 10,000": (
        "number",
        lambda random, n: np.where(random.random(n) < 5e-4, 1.0 + random.random(n), 7.0).tolist(),
    ),
    "10 % missing": ("optional", gaps(0.1)),
    "two labels": ("category", labels(0.8, 0.2)),
    "ten labels": ("category", labels(*TEN)),
    "open set, Zipf 1.3": ("category", ranks(1.3)),
    "open set, Zipf 1.8": ("category", ranks(1.8)),
}


def watch(kind: str, draw: Draw, seed: list[int]) -> Space:
    """A space with a reference of a baseline of its own."""
    baseline = draw(np.random.default_rng(seed), BASELINE)
    embedder: Any = (
        CategorySettings(field="/x") if kind == "category" else NumberSettings(field="/x", optional=kind == "optional")
    ).build()
    embedder.fit([baseline])
    vectors = embedder.embed([baseline]).vectors
    reference = Reference.build(vectors, geometry=embedder.geometry, block=BLOCK, exemplars=0)
    return Space("x", embedder, reference, 1, {})


def delays(space: Space, before: Draw, after: Draw, seed: list[int]) -> Iterator[tuple[str, int | None]]:
    """Records from the shift to the end of the block that shows it, for the rule and each second opinion."""
    random = np.random.default_rng(seed)
    vectors = space.embedder.embed([before(random, BEFORE) + after(random, AFTER)]).vectors
    monitor = DriftMonitor(space.reference, block=BLOCK, page_every=RUN_LENGTH)
    monitor.update(vectors[:BEFORE])
    pages = (reading for reading in monitor.update(vectors[BEFORE:]) if reading.page)
    first = next(pages, None)
    yield f"rule {first.channel if first else ''}", None if first is None else (first.block + 1) * BLOCK - BEFORE
    summaries = summarise(np.arange(len(vectors), dtype=np.int64) // BLOCK, space.reference.score(vectors))
    rule = Rule(space.reference.drift, FoldSettings(1e5, 1e3))
    for stream in opinion_streams(space, OPINIONS, rule):
        opinion, found = SecondOpinion(stream.name), None
        for block, summary in summaries.items():
            z = stream.scale.z(stream.sums.over(summary) / summary.n, summary.n)
            if opinion.push(z) and block * BLOCK >= BEFORE:
                found = (block + 1) * BLOCK - BEFORE
                break
        yield stream.channel, found


def shift_line(name: str, runs: int, number: int) -> dict[str, object]:
    """Mean delays over the runs."""
    kind, before, after = SHIFTS[name]
    space = watch(kind, before, [41, number])
    found: dict[str, list[int | None]] = {}
    channels: Counter[str] = Counter()
    for run in range(runs):
        for who, delay in delays(space, before, after, [42, number, run]):
            found.setdefault(who.split()[0], []).append(delay)
            if delay is not None and who.startswith("rule"):
                channels[who.removeprefix("rule ")] += 1
    means = {who: round(sum(AFTER if delay is None else delay for delay in each) / runs) for who, each in found.items()}
    best = min((who for who in means if who != "rule"), key=lambda who: means[who])
    return {
        "benchmark": f"number_category.delay: {name}",
        "value": means["rule"],
        "unit": "records",
        "ratio": round(means["rule"] / means[best], 2),
        "against": best,
        "channel": channels.most_common(1)[0][0] if channels else "",
        "detected": {who: sum(delay is not None for delay in each) for who, each in found.items()},
        "means": means,
        "runs": runs,
    }


def null_line(name: str, records: int, number: int) -> dict[str, object]:
    """False pages and warnings over three baselines, a third of the records each."""
    kind, draw = NULLS[name]
    pages, warnings = 0, 0
    for baseline in range(3):
        space = watch(kind, draw, [43, number, baseline])
        random = np.random.default_rng([44, number, baseline])
        monitor = DriftMonitor(space.reference, block=BLOCK, page_every=NULL_PAGE, warn_every=NULL_WARN)
        for _ in range(max(1, records // 3 // 20_000)):
            readings = monitor.update(space.embedder.embed([draw(random, 20_000)]).vectors)
            pages += sum(reading.page for reading in readings)
            warnings += sum(reading.warn for reading in readings)
    seen = 3 * max(1, records // 3 // 20_000) * 20_000
    return {
        "benchmark": f"number_category.null: {name}",
        "value": round(seen / max(warnings, 1)),
        "unit": "records for one warning",
        "ratio": round(seen / max(warnings, 1) / NULL_WARN, 1),
        "against": f"{NULL_WARN} nominal",
        "records": seen,
        "warnings": warnings,
        "pages": pages,
        "pages_allowed": seen / NULL_PAGE,
    }


def main() -> None:
    """Print a line of JSON for each shift and each unchanged stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="streams for each shift")
    parser.add_argument("--null-records", type=int, default=60_000, help="records of each unchanged stream")
    options = parser.parse_args()
    for number, name in enumerate(SHIFTS):
        print(json.dumps(shift_line(name, options.runs, number)), flush=True)
    for number, name in enumerate(NULLS):
        print(json.dumps(null_line(name, options.null_records, number)), flush=True)


if __name__ == "__main__":
    main()
