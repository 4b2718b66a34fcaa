"""The stale-model verdict on a real classifier, in numbers.

How right it is by estimate and in truth, how soon labels prove a change that nothing else shows, and how often a model
that did not change is called degraded.

The model and its traffic: tests/quality/intents.py. CLINC150 is the set that the method was looked at on; on Banking77
nothing was chosen. A line for each scenario (windows of 1,000 records, mean over windows and models), for each run
length of the labels, and for the clean runs: 20 windows with 100 labels each, one an hour, a page in 90 days.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/verdict.py [--full] [clinc150] [banking77]
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.risk import RiskRule, RiskState
from tests.quality.intents import DATA, FILES, NO_DATA, SCENARIOS, WINDOW, Watched

FULL = "--full" in sys.argv
MODELS, WINDOWS, RUNS = (10, 10, 20) if FULL else (2, 5, 5)
CLEAN_WINDOWS, LABELS = 20, 100
RUN_LENGTHS = (1e3, 1e4, 1e5, 216_000.0)  # the last one: 100 labels an hour, a page in 90 days


def say(**cell: object) -> None:
    """Print one cell of a table as a line of JSON."""
    print(json.dumps(cell), flush=True)


def estimates(name: str, models: list[Watched]) -> None:
    """True against estimated share of right answers; and the last verdict of a run of five windows, without labels."""
    for scenario in SCENARIOS:
        rows: list[list[float]] = []
        words: Counter[str] = Counter()
        for place, watched in enumerate(models):
            rng = np.random.default_rng([place, 1])
            watch = watched.watch()
            for _ in range(WINDOWS):
                records = watched.traffic(scenario, WINDOW, rng)
                found = watched.estimate(watched.summary(records))
                true = float(records.right.mean())
                word = watch.push(records, np.zeros(0, np.int64)).word
                shown = (found.confidence, found.estimated, found.atc, found.low, found.high, found.novel)
                rows.append([true, *shown, abs(found.estimated - true), float(found.low <= true <= found.high)])
            words[word] += 1
        mean = np.mean(rows, axis=0).round(3).tolist()
        say(
            benchmark="verdict_estimate",
            data=name,
            scenario=scenario,
            value=round(abs(mean[0] - mean[2]), 3),
            unit="estimated less true share of right answers, of the means",
            ratio=round(mean[2] / mean[0], 3),
            against="the true share",
            **dict(
                zip(
                    ("true", "confidence", "estimated", "atc", "low", "high", "novel", "off_per_window", "inside"),
                    mean,
                    strict=True,
                )
            ),
            verdicts_without_labels=dict(words),
            windows=len(rows),
        )


def delays(name: str, models: list[Watched]) -> None:
    """Labels after a swap of intents until they prove it, after 1,000 labels of before."""
    before, most = 1_000, 3_000
    for scenario in ("concept swap, 10 %", "concept swap, 30 %"):
        found: dict[float, list[float]] = {length: [] for length in RUN_LENGTHS}
        early = Counter[float]()
        onsets = []
        for place, watched in enumerate(models):
            rng = np.random.default_rng([place, 2])
            rule = RiskRule(1.0 - watched.calibration.floor(0.01), max(RUN_LENGTHS))
            for _ in range(RUNS):
                right = np.concatenate(
                    [watched.traffic("none", before, rng).right, watched.traffic(scenario, most, rng).right]
                )
                state, evidence = RiskState.start(), []
                for at in range(len(right)):
                    state = state.push(1.0 - right[at : at + 1], rule=rule)
                    evidence.append(state.evidence)
                    if at >= before and state.degraded(rule):
                        break
                onsets.append(abs((state.onset or 0) - before))
                for length in RUN_LENGTHS:
                    proven = np.flatnonzero(np.array(evidence) >= np.log10(length)) + 1 - before
                    early[length] += int((proven <= 0).any())
                    later = proven[proven > 0]
                    found[length].append(float(later[0]) if len(later) else float("inf"))
        for length, waits in found.items():
            say(
                benchmark="verdict_labels",
                data=name,
                scenario=scenario,
                run_length=length,
                value=float(np.quantile(waits, 0.5, method="lower")),
                unit="labels until proven, median",
                ratio=round(float(np.mean(np.array(waits) <= 300)), 3),
                against="runs within 300 labels",
                ninth=float(np.quantile(waits, 0.9, method="lower")),
                alarms_before=early[length],
                onset_off=float(np.median(onsets)),
                runs=len(waits),
            )


def clean_runs(name: str, models: list[Watched]) -> None:
    """Verdicts on models that did not change, and on ones whose intents were swapped, after every window."""
    for scenario in ("none", "concept swap, 10 %"):
        words: Counter[str] = Counter()
        degraded = windows = 0
        for place, watched in enumerate(models):
            rng = np.random.default_rng([place, 3])
            for _ in range(RUNS):
                watch = watched.watch()
                said = [
                    watch.push(watched.traffic(scenario, WINDOW, rng), rng.permutation(WINDOW)[:LABELS]).word
                    for _ in range(CLEAN_WINDOWS)
                ]
                words.update(said)
                windows += len(said)
                degraded += "degraded" in said
        say(
            benchmark="verdict_runs",
            data=name,
            scenario=scenario,
            value=degraded,
            unit="runs called degraded",
            ratio=round(degraded / (len(models) * RUNS), 3),
            against="all runs",
            runs=len(models) * RUNS,
            windows=windows,
            labels=windows * LABELS,
            verdicts=dict(words),
        )


def main() -> None:
    """Every table, for each set that is named; both if none is."""
    if not DATA.is_dir():
        print(NO_DATA, file=sys.stderr)
        return
    for name in [each for each in FILES if each in sys.argv] or FILES:
        models = [Watched(name, seed=seed) for seed in range(MODELS)]
        say(
            benchmark="verdict_baseline",
            data=name,
            value=round(float(np.mean([each.calibration.accuracy for each in models])), 4),
            unit="share of right answers in the baseline",
            floor=round(float(np.mean([each.calibration.floor(0.01) for each in models])), 4),
            records=models[0].calibration.n,
            models=len(models),
        )
        estimates(name, models)
        delays(name, models)
        clean_runs(name, models)


if __name__ == "__main__":
    main()
