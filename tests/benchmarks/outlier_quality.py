"""Outlier quality on every ADBench set against kNN: one JSON line a set, then one a group. 6 minutes at most on one
core.

    python tests/benchmarks/outlier_quality.py

Protocol and peer: tests/quality/adbench.py. The geometry goes by the kind of vector: ANGULAR for image vectors,
STANDARD for tables; nothing is set by name of a set.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.outlier import OutlierScorer
from detectors.reference import ANGULAR, STANDARD, Geometry, Reference
from tests.quality import adbench

GROUPS = {"mvtec_resnet18": ANGULAR, "classical": STANDARD}
TARGETS = {"mvtec_resnet18": 4.5, "classical": 0.7}  # points of AUROC above the peer


def measure(group: str, name: str, geometry: Geometry) -> dict[str, object]:
    """Mean AUROC x 100 over the two seeds, of driftd and of the peer."""
    ours, peer, basis = [], [], ""
    for data in adbench.splits(group, name):
        scorer = OutlierScorer(Reference.build(data.train, geometry=geometry))
        basis = scorer.basis
        ours.append(adbench.auroc(data.anomalous, scorer.score(data.test)))
        peer.append(adbench.auroc(data.anomalous, adbench.peer_scores(data)))
    return {
        "benchmark": f"outlier_auroc/{group}/{name}",
        "value": round(float(np.mean(ours)), 2),
        "unit": "AUROC x 100",
        "difference": round(float(np.mean(ours) - np.mean(peer)), 2),
        "against": "kNN, k = 5, k-th distance, standard-scaled",
        "peer": round(float(np.mean(peer)), 2),
        "basis": basis,
    }


def main() -> int:
    if not adbench.DATA.is_dir():
        print(f"outlier_quality: skipped: {adbench.NO_DATA}", file=sys.stderr)
        return 0
    for group, geometry in GROUPS.items():
        results = []
        for name in adbench.names(group):
            results.append(measure(group, name, geometry))
            print(json.dumps(results[-1]), flush=True)
        means = {key: float(np.mean([result[key] for result in results])) for key in ("value", "difference", "peer")}
        print(
            json.dumps(
                {
                    "benchmark": f"outlier_auroc/{group}",
                    "value": round(means["value"], 2),
                    "unit": "AUROC x 100",
                    "difference": round(means["difference"], 2),
                    "ratio": round(means["value"] / means["peer"], 4),
                    "against": f"kNN, k = 5, k-th distance, standard-scaled, mean of {len(results)} sets",
                    "peer": round(means["peer"], 2),
                    "target_difference": TARGETS[group],
                }
            ),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
