"""Fraud scores on the Fraud-Detection-Handbook's card transactions, in stream order, with entities.

Run: python -m tests.benchmarks.fraud_handbook

The stream begins on 11 July 2018. Without labels, reference and entity model are of 11 to 17 July, unlabelled, and the
score is the product of the p-values. With labels, those of 25 to 31 July are known, all of them by 8 August (7 days of
delay). Tested are 8 to 14 August, without cards known to be compromised: 58,264 transactions, 385 frauds. How entities
are scored was chosen on the tests of 25 to 31 July and 1 to 7 August, which the first two blocks show.

Prints one JSON line for each row, and the rate of the whole: signals and score, on one core.
"""

from __future__ import annotations

import json
import time

import numpy as np

from detectors.fraud import FraudScorer
from detectors.fraud_baseline import FraudBaseline, Signal
from detectors.fraud_ranks import Ranks
from detectors.index import NearestIndex
from detectors.outlier import evenly_spaced
from detectors.reference import STANDARD, Reference
from tests.quality import handbook
from tests.quality.adbench import auroc

WEEKS = (  # the first two for choosing, the last to report
    (("2018-07-11", "2018-07-18"), ("2018-07-25", "2018-08-01")),
    (("2018-07-18", "2018-07-25"), ("2018-08-01", "2018-08-08")),
    (handbook.TRAINED, handbook.TESTED),
)
SHARE = 0.007  # of fraud, about
OFFICIAL = "8 to 14 August"
PUBLISHED = {"unlabelled": (0.846, 0.249, 0.230), "labelled": (0.871, 0.658, 0.291)}


def _judged(stream: handbook.Transactions, test: handbook.Bools, scores: handbook.Floats) -> dict[str, float]:
    tested = stream[test]
    return {
        "auroc": round(auroc(tested.fraud, scores[test]) / 100, 3),
        "average_precision": round(handbook.average_precision(tested.fraud, scores[test]), 3),
        "card_precision_100": round(handbook.card_precision(tested, scores[test]), 3),
    }


def _said(week: str, scorer: str, found: dict[str, float], **more: object) -> None:
    print(json.dumps({"benchmark": "fraud_handbook", "tested": week, "scorer": scorer, **found, **more}), flush=True)


def _nearest_five(stream: handbook.Transactions, baseline: handbook.Bools, test: handbook.Bools) -> handbook.Floats:
    """What is to be beaten without labels: the mean distance to 5 records of the baseline, standardised columns."""
    centre, spread = stream.vectors[baseline].mean(axis=0), stream.vectors[baseline].std(axis=0)
    scaled = ((stream.vectors - centre) / spread).astype(np.float32)
    scores = np.zeros(len(scaled), np.float32)
    scores[test] = NearestIndex(scaled[baseline]).search(scaled[test], 5)[0].mean(axis=1)
    return scores


def main() -> None:
    stream = handbook.everything()
    first_week = stream.between(handbook.FIRST_WEEK)
    reference = Reference.build(stream.vectors[first_week], geometry=STANDARD)
    begun = time.perf_counter()
    outlier = Ranks(reference.calibration_scores).surprise(reference.score(stream.vectors).distance)
    seconds = time.perf_counter() - begun
    of_entity = {}
    for name, of in (("card", stream.card), ("terminal", stream.terminal)):
        begun = time.perf_counter()
        of_entity[name] = handbook.entity_surprise(stream, of, reference, first_week)
        seconds += time.perf_counter() - begun
    columns = {
        "outlier": outlier,
        **{f"{name}_self": surprise[:, 0] for name, surprise in of_entity.items()},
        **{f"{name}_peers": surprise[:, 1] for name, surprise in of_entity.items()},
    }
    for trained, tested in WEEKS:
        train, test = handbook.split(stream, trained=trained, tested=tested)
        week = OFFICIAL if tested == handbook.TESTED else f"{tested[0]} to {tested[1]}"
        _said(week, "5 nearest of the first week", _judged(stream, test, _nearest_five(stream, first_week, test)))
        for names in (("outlier",), ("card_self",), ("outlier", "card_self"), ("outlier", "card_self", "card_peers")):
            total = np.sum([columns[name] for name in names], axis=0)
            _said(week, "unlabelled: " + " + ".join(names), _judged(stream, test, total))
        normal = np.flatnonzero(train & ~stream.fraud)
        normal = normal[evenly_spaced(len(normal), 20_000)]
        for names in (("outlier",), ("outlier", "card_self", "card_peers"), tuple(columns)):
            signals = np.column_stack([columns[name] for name in names]).astype(np.float32)
            kinds = tuple(Signal(name, "surprise") for name in names)
            baseline = FraudBaseline(stream.vectors[normal], signals[normal], kinds)
            scorer = FraudScorer(reference, prevalence=SHARE, baseline=baseline)
            begun = time.perf_counter()
            scorer.fit(stream.vectors[train], stream.fraud[train], signals=signals[train])
            fitted = time.perf_counter()
            scores = np.zeros(len(test), np.float32)
            scores[test] = scorer.assess(stream.vectors[test], signals=signals[test]).surprise
            scored = time.perf_counter()
            per_record = seconds / len(test) + (scored - fitted) / int(test.sum())
            _said(
                week,
                "labelled: " + " + ".join(names),
                _judged(stream, test, scores),
                fit_s=round(fitted - begun, 1),
                records_per_second=round(1.0 / per_record),
            )
    for name, (area, precision, cards) in PUBLISHED.items():
        found = {"auroc": area, "average_precision": precision, "card_precision_100": cards}
        _said(OFFICIAL, f"best published, {name}, column by column", found)


if __name__ == "__main__":
    main()
