"""Statistics of closed blocks, as dashboards draw them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detectors.conformal import N_BINS, P_EDGES
from detectors.summary import BlockSummary
from monitor.block_stats import SURPRISE_BELOW, block_stats, mean_confidence, surprise
from monitor.record_counts import RecordCounts


def test_classes_of_surprise_begin_at_edges_of_the_summaries() -> None:
    assert set(SURPRISE_BELOW) <= set(P_EDGES.tolist())


@pytest.mark.parametrize(
    ("p", "expected"), [(1.0, 0), (0.51, 0), (0.5, 1), (0.2, 2), (2.0**-10, 6), (2.0**-11, 6), (2.0**-12, 7), (0.0, 9)]
)
def test_each_record_is_in_the_class_of_its_p_value(p: float, expected: int) -> None:
    h = np.zeros(N_BINS, np.int64)
    h[np.searchsorted(P_EDGES, p)] = 3
    assert surprise(h) == tuple(3 * (number == expected) for number in range(10))


def test_no_record_is_lost_between_classes() -> None:
    h = np.arange(N_BINS, dtype=np.int64)
    assert sum(surprise(h)) == h.sum()


def test_a_row_for_each_space_and_one_for_what_came_in() -> None:
    summary = BlockSummary.empty(3, 2)
    counts = {7: RecordCounts(10, 1, {"bad_json": 2})}
    rows = list(block_stats({("input", "", 7, 1): summary, ("input", "a=b", 7, 1): summary}, counts, block_ms=1000))
    assert [(row.space, row.block, row.records, row.late, row.dead) for row in rows] == [
        ("", 7, 10, 1, 2),
        ("input", 7, 0, 0, 0),
    ]
    assert (rows[1].start_ms, rows[1].end_ms, rows[1].reference) == (7000, 8000, 1)


def test_confidence_is_the_mean_of_its_bins() -> None:
    counts = np.zeros(50, np.int64)
    assert math.isnan(mean_confidence(None)) and math.isnan(mean_confidence(counts))
    counts[[0, 49]] = 5, 5
    assert mean_confidence(counts) == pytest.approx(0.5)
