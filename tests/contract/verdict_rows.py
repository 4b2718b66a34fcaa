"""Rows of verdicts for tests."""

from __future__ import annotations

from typing import Any

from connectors.database.rows import VerdictRow


def verdict(block: int, **more: Any) -> VerdictRow:
    """What is said of a model after a block of 10 seconds; it is fresh, unless ``more`` says otherwise."""
    values: dict[str, Any] = {
        "start_ms": block * 10_000,
        "end_ms": (block + 1) * 10_000,
        "word": "fresh",
        "since_ms": 0,
        "records": 1000,
        "confidence": 0.8125,
        "estimated": 0.953125,
        "low": 0.9375,
        "high": 0.96875,
        "atc": 0.953125,
        "novel": 0.0078125,
        "unsupported": 0.0,
        "floor": 0.9375,
        "realised": float("nan"),
        "realised_low": float("nan"),
        "realised_high": float("nan"),
        "labels": 0,
        "evidence": float("nan"),
        "truths": 0,
        "age_s": 86_400.0,
        "reasons": ("The estimate is above the floor.", "Wrong answers cannot be seen without labels."),
    }
    return VerdictRow(block=block, **(values | more))
