"""False alarms of the alarm of waves of fraud, on streams in which nothing changes; and how soon a wave is seen.

Each stream has a calibration set of its own, drawn anew, so that its true rate of candidates lies where chance puts it;
in half of the streams fraud is always there, and makes five times as many candidates. Alarms are counted against the
run length that was asked for: at most one in so many blocks is allowed on average.

    python -m tests.benchmarks.fraud_alerts
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from detectors.rate import RateRule
from monitor.fraud_alerts import FraudAlerts
from monitor.fraud_settings import FraudAlertSettings, FraudSettings
from monitor.record_counts import FraudCounts

ALPHA, CALIBRATION, PER_BLOCK, PERIOD = 0.001, 10_000, 2_000, 500


def alerts_of(*, run_length: float, tolerance: float) -> FraudAlerts:
    rule = RateRule(
        calibration=CALIBRATION,
        alpha=ALPHA,
        page_run_length_blocks=run_length,
        warn_run_length_blocks=run_length,
        tolerance=tolerance,
    )
    settings = FraudSettings(alpha=ALPHA, alerts=FraudAlertSettings(every=PERIOD * 10.0))
    return FraudAlerts(settings, rule, version=1, block_ms=10_000, stored=None, first_block=0)


def true_rate(rng: np.random.Generator) -> float:
    """P(p <= alpha) given a calibration set: the k-th of n + 1 spacings of uniforms, k = floor(alpha (n + 1))."""
    k = int(ALPHA * (CALIBRATION + 1))
    return float(rng.beta(k, CALIBRATION + 1 - k))


def alarms(rng: np.random.Generator, rate: float, blocks: int, *, run_length: float, tolerance: float) -> list[int]:
    alerts = alerts_of(run_length=run_length, tolerance=tolerance)
    counts = rng.binomial(PER_BLOCK, rate, blocks).tolist()
    found = []
    for block, count in enumerate(counts):
        reading = alerts.push(block, FraudCounts(PER_BLOCK, count), lambda at_least, most: [])
        if reading.rate.page:
            found.append(block)
    return found


def delay(rng: np.random.Generator, more: float, *, tolerance: float) -> int | None:
    """Blocks until a wave that makes ``1 + more`` times as many candidates is a page at the default run length."""
    alerts = alerts_of(run_length=777_600 / 0.1, tolerance=tolerance)
    rate, begins = true_rate(rng), 2 * PERIOD
    for block in range(begins + 400):
        share = rate * (1.0 + more * (block >= begins))
        reading = alerts.push(block, FraudCounts(PER_BLOCK, int(rng.binomial(PER_BLOCK, share))), lambda a, m: [])
        if reading.rate.page and block >= begins:
            return block - begins + 1
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=5_000)
    chosen = parser.parse_args()
    for tolerance in (0.0, 0.5):
        for factor in (1.0, 5.0):
            # Fraud that was always there is news to the calibration: what is alarmed in the first period is no error.
            counted = blocks = 0
            for seed in range(chosen.streams):
                rng = np.random.default_rng([seed, int(factor), int(2 * tolerance)])
                found = alarms(rng, factor * true_rate(rng), chosen.blocks, run_length=1_000.0, tolerance=tolerance)
                counted += sum(block >= PERIOD * (factor > 1) for block in found)
                blocks += chosen.blocks - PERIOD * (factor > 1)
            print(
                json.dumps(
                    {
                        "benchmark": "false alarms of waves of fraud",
                        "tolerance": tolerance,
                        "rate": factor,
                        "value": counted / blocks * 1_000,
                        "unit": "alarms per run length of 1,000 blocks (1 allowed)",
                        "alarms": counted,
                        "blocks": blocks,
                    }
                ),
                flush=True,
            )
        for more in (2.0, 4.0, 9.0):
            delays = [delay(np.random.default_rng(100 + seed), more, tolerance=tolerance) for seed in range(20)]
            known = sorted(found for found in delays if found is not None)
            print(
                json.dumps(
                    {
                        "benchmark": "delay of a page about a wave",
                        "tolerance": tolerance,
                        "times as many": 1 + more,
                        "value": known[len(known) // 2] if known else None,
                        "unit": f"blocks of {PER_BLOCK} records (median of those seen)",
                        "seen": len(known),
                        "of": len(delays),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
