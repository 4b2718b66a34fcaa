"""Numbers: references, outlier and fraud scores, drift. numpy in, numpy out.

    from detectors import Reference, OutlierScorer, FraudScorer, DriftMonitor

Names are imported on first use, so that ``import detectors`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectors.drift import DriftMonitor, Reading
    from detectors.fraud import FraudScorer
    from detectors.outlier import OutlierScorer
    from detectors.reference import ANGULAR, STANDARD, TEXT, Geometry, Reference

_HOMES = {
    "ANGULAR": "detectors.reference",
    "STANDARD": "detectors.reference",
    "TEXT": "detectors.reference",
    "DriftMonitor": "detectors.drift",
    "FraudScorer": "detectors.fraud",
    "Geometry": "detectors.reference",
    "OutlierScorer": "detectors.outlier",
    "Reading": "detectors.drift",
    "Reference": "detectors.reference",
}

KINDS = (
    (
        "neighbours",
        "Outliers: distance to the nearest prototypes or records of the reference, with a conformal p-value.",
    ),
    (
        "fraud",
        "Fraud: contrast of the distances to normal and to confirmed cases, and from five cases on models of labels.",
    ),
    ("entity", "Fraud: a card's or user's latest records against its own past, and against its peers."),
    ("relation", "Fraud: a pair, such as card and merchant, far from what the first side usually goes with."),
    ("flood", "Near-identical records in a burst, in one block and partition."),
    ("fraud_wave", "More records that look like fraud than the calibration allows for, and than there were before."),
    ("fraud_changed", "Second opinion on fraud: people's answers no longer follow from the features; ADWIN, by river."),
    ("level", "Drift: the mean of the vectors moved, over windows of every geometric length."),
    ("shape", "Drift: the distances to the prototypes have another distribution; betting on the p-values."),
    ("mix", "Drift: the shares of the groups of prototypes moved."),
    ("outlier_rate", "More candidate outliers than the calibration allows for."),
    ("performance", "Right answers estimated without labels: calibrated confidence, an interval where content is new."),
    ("risk", "Labels prove that answers are worse than the floor; betting on losses, with a stated run length."),
    ("adwin", "Second opinion: a change against the stream's own past, by river's ADWIN; no part of the budget."),
    ("page_hinkley", "Second opinion: the same by river's PageHinkley."),
)

__all__ = [
    "ANGULAR",
    "KINDS",
    "STANDARD",
    "TEXT",
    "DriftMonitor",
    "FraudScorer",
    "Geometry",
    "OutlierScorer",
    "Reading",
    "Reference",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detectors' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
