"""Fraud scores: quality by number of labels, p-values, intervals, time to fit and cost of a record. Prints JSON lines.

* ``spam``: SMS spam at 2 % of the traffic, 2,400 normal texts as baseline, average precision by labelled cases.
* ``cards``: the Fraud-Detection-Handbook's week, with the labels of the training week.
* ``rates``: share of new normal records with p <= .01 and <= .001, before and after labels, many versions.
* ``intervals``: how often the interval of the probability holds the true one, on simulated labels.
* ``cost``: seconds to fit, and microseconds a record beyond the outlier search, at 384 dimensions; both take turns in
  one process, and the best of many is taken of each.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/fraud.py [spam cards rates intervals cost]
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.fraud import FraudScorer
from detectors.fraud_baseline import MAX_RECORDS, FraudBaseline, Signal
from detectors.outlier import evenly_spaced
from detectors.reference import STANDARD, TEXT, Reference
from tests.quality import adbench, handbook

Floats = npt.NDArray[np.float32]

SEEDS = 10
COLUMNS = (Signal("outlier", "surprise"), Signal("entity_self", "surprise"), Signal("amount", "number"))


def mean_and_spread(values: list[float]) -> list[float]:
    return [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4)]


def spam() -> dict[str, list[float]]:
    with np.load(adbench.DATA / "embeddings_minilm" / "sms_spam.npz") as stored:
        vectors, spam = stored["X"].astype(np.float32), stored["label"] == "spam"
    found: dict[int, list[float]] = {labels: [] for labels in (0, 1, 5, 20, 50)}
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        normal, strange = random.permutation(np.flatnonzero(~spam)), random.permutation(np.flatnonzero(spam))
        reference = Reference.build(vectors[normal[:2400]], geometry=TEXT)
        test = np.concatenate([normal[2400:4800], strange[200:249]])
        for labels, precisions in found.items():
            scorer = FraudScorer(reference, prevalence=0.02).fit(vectors[strange[:labels]], np.ones(labels))
            precisions.append(handbook.average_precision(spam[test], scorer.assess(vectors[test]).surprise))
    return {str(labels): mean_and_spread(precisions) for labels, precisions in found.items()}


def cards() -> dict[str, list[float]]:
    train, test = handbook.week_split()
    genuine = train.vectors[~train.fraud]
    reference = Reference.build(genuine, geometry=STANDARD)
    kept = genuine[evenly_spaced(len(genuine), MAX_RECORDS)]
    baseline = FraudBaseline(kept, np.zeros((len(kept), 0), np.float32), ())
    table = {}
    for name, rows in (("all labels", np.ones(len(train.fraud), bool)), ("confirmed cases", train.fraud)):
        scorer = FraudScorer(reference, prevalence=float(train.fraud.mean()), baseline=baseline)
        found = scorer.fit(train.vectors[rows], train.fraud[rows]).assess(test.vectors)
        genuine_p = found.p_value[~test.fraud]
        table[name] = [
            adbench.auroc(test.fraud, found.surprise),
            handbook.average_precision(test.fraud, found.surprise),
            handbook.card_precision(test, found.surprise),
            float(found.probability.sum()),
            float((genuine_p <= 0.01).mean()),
            float((genuine_p <= 0.001).mean()),
        ]
    return table


def traffic(n: int, seed: int, dimension: int) -> Floats:
    """Records of 40 topics."""
    topics = np.random.default_rng(0).normal(size=(40, dimension)).astype(np.float32)
    random = np.random.default_rng(seed)
    return (topics[random.integers(0, 40, n)] + 0.8 * random.normal(size=(n, dimension))).astype(np.float32)


def schemes(n: int, seed: int, dimension: int) -> Floats:
    """Fraud of 20 schemes, each a shift."""
    shifts = np.random.default_rng(1).normal(size=(20, dimension)).astype(np.float32)
    return traffic(n, seed, dimension) + np.float32(0.5) * shifts[np.random.default_rng(seed + 1).integers(0, 20, n)]


def signals_of(n: int, seed: int, *, fraud: bool = False) -> Floats:
    random = np.random.default_rng(seed)
    surprises = -np.log10(random.uniform(size=(n, 2)))
    return np.column_stack([surprises, np.exp(random.normal(size=n) + fraud)]).astype(np.float32)


def rates() -> dict[str, list[float]]:
    table = {}
    for cases, cleared in ((0, 0), (1, 0), (5, 0), (20, 20), (250, 500)):
        shares: list[list[float]] = [[], []]
        for seed in range(SEEDS):
            reference = Reference.build(traffic(4000, 100 * seed, 24), geometry=TEXT)
            baseline = FraudBaseline(traffic(10_000, 100 * seed + 1, 24), signals_of(10_000, seed), COLUMNS)
            vectors = np.concatenate([schemes(cases, seed, 24), traffic(cleared, seed + 50, 24)])
            signals = np.concatenate([signals_of(cases, seed + 60, fraud=True), signals_of(cleared, seed + 70)])
            scorer = FraudScorer(reference, baseline=baseline)
            scorer.fit(vectors, np.repeat([1, 0], [cases, cleared]), signals=signals)
            uniforms = np.random.default_rng(seed).uniform(size=20_000)
            new = traffic(20_000, 100 * seed + 2, 24), signals_of(20_000, seed + 80)
            p = scorer.assess(new[0], signals=new[1], uniforms=uniforms).p_value
            shares[0].append(float((p <= 0.01).mean()))
            shares[1].append(float((p <= 0.001).mean()))
        table[f"{cases} cases, {cleared} cleared"] = mean_and_spread(shares[0]) + mean_and_spread(shares[1])
    return table


def intervals() -> dict[str, list[float]]:
    """Share of probability-weighted classes of the score whose true rate of fraud lies in the mean interval."""
    table = {}
    prevalence, n_true = 0.02, 5_000
    for cases in (2, 5, 20, 100, 300):
        covered, widths = [], []
        for seed in range(SEEDS):
            reference = Reference.build(traffic(3000, 100 * seed, 8), geometry=STANDARD)
            scorer = FraudScorer(reference, prevalence=prevalence).fit(schemes(cases, seed, 8), np.ones(cases))
            normal, fraud = traffic(n_true, 7 + seed, 8), schemes(n_true, 9 + seed, 8)
            both = np.concatenate([scorer.interval(normal), scorer.interval(fraud)])
            score = np.concatenate([scorer.score(normal), scorer.score(fraud)])
            weight = np.repeat([1 - prevalence, prevalence], [len(normal), len(fraud)])
            is_fraud = np.repeat([0.0, 1.0], [len(normal), len(fraud)])
            edges = np.quantile(score[len(normal) :], np.arange(1, 10) / 10)
            group = np.searchsorted(edges, score)
            for number in range(10):
                of = group == number
                true = float((weight * is_fraud)[of].sum() / weight[of].sum())
                low, high = np.average(both[of], axis=0, weights=weight[of])
                covered.append(float(low <= true <= high))
                widths.append(float(np.log(high / (1 - high)) - np.log(low / (1 - low))))
        table[f"{cases} cases"] = [float(np.mean(covered)), round(float(np.median(widths)), 2)]
    return table


def cost() -> dict[str, float]:
    dimension, batch = 384, 1024
    reference = Reference.build(traffic(20_000, 1, dimension), geometry=TEXT, prototypes=1000)
    baseline = FraudBaseline(traffic(20_000, 2, dimension), signals_of(20_000, 3), COLUMNS)
    queries, signals = traffic(8 * batch, 4, dimension), signals_of(8 * batch, 5)
    tiles = [slice(start, start + batch) for start in range(0, len(queries), batch)]
    scored = [reference.score(queries[tile]) for tile in tiles]
    table: dict[str, float] = {"prototypes": len(reference.prototypes)}

    def timed(call: Callable[[int], object]) -> float:
        began = time.thread_time()
        for number in range(len(tiles)):
            call(number)
        return (time.thread_time() - began) / len(queries) * 1e6

    for cases, cleared in ((20, 0), (2000, 0), (2000, 2000), (10_000, 90_000)):
        vectors = np.concatenate([schemes(cases, 6, dimension), traffic(cleared, 7, dimension)])
        of_labels = np.concatenate([signals_of(cases, 8, fraud=True), signals_of(cleared, 9)])
        scorer = FraudScorer(reference, baseline=baseline)
        began = time.thread_time()
        scorer.fit(vectors, np.repeat([1, 0], [cases, cleared]), signals=of_labels)
        name = f"{cases} cases, {cleared} cleared"
        table[f"fit s, {name}"] = round(time.thread_time() - began, 2)
        calls: dict[str, Callable[[int], object]] = {
            "search": lambda number: reference.score(queries[tiles[number]]),
            "fraud": lambda number, scorer=scorer: scorer.assess(  # type: ignore[misc]
                queries[tiles[number]], signals=signals[tiles[number]], scored=scored[number]
            ),
        }
        best = {part: min(timed(call) for _ in range(5)) for part, call in calls.items()}
        table |= {f"{part} us, {name}": round(value, 2) for part, value in best.items()}
    return table


PARTS: dict[str, Callable[[], object]] = {
    "spam": spam,
    "cards": cards,
    "rates": rates,
    "intervals": intervals,
    "cost": cost,
}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        print(json.dumps({part: PARTS[part]()}), flush=True)
