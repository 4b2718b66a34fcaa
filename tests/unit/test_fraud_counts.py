"""What the fraud scores say of a block adds up the same however its records were cut, and old blocks are still read."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.record_counts import FraudCounts, RecordCounts, fraud_counts_of

ALPHA, LEAST = 0.01, 3


@st.composite
def streams(draw: st.DrawFn) -> dict[str, np.ndarray]:
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    surprise = np.rint(rng.exponential(1.5, n) * 1e4).astype(np.float32) * np.float32(1e-4)
    return {
        "blocks": rng.integers(-2, 3, n),
        "surprise": surprise,
        "p_value": 10.0 ** -surprise.astype(np.float64),
        "probability": rng.random(n).astype(np.float32),
        "flood_sizes": rng.integers(1, 9, n).astype(np.int32),
        "de": rng.random(n) < 0.3,
    }


def counted(stream: dict[str, np.ndarray], rows: slice) -> dict[int, FraudCounts]:
    cut = {name: column[rows] for name, column in stream.items()}
    inside = cut.pop("de")
    return fraud_counts_of(**cut, alpha=ALPHA, segments={"country=de": inside}, flood_least=LEAST)


def merged(parts: list[dict[int, FraudCounts]]) -> dict[int, FraudCounts]:
    total: dict[int, FraudCounts] = {}
    for part in parts:
        for block, counts in part.items():
            total[block] = total[block].merge(counts) if block in total else counts
    return total


@given(streams(), st.lists(st.integers(0, 60), max_size=6), st.randoms(use_true_random=False))
def test_counts_are_the_same_for_any_cut_and_any_order(stream, cuts, random) -> None:
    n = len(stream["blocks"])
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    parts = [counted(stream, slice(a, b)) for a, b in itertools.pairwise(edges)]
    random.shuffle(parts)
    whole = counted(stream, slice(None))
    assert merged(parts) == whole
    for counts in whole.values():
        row = RecordCounts(counts.n, 0, {}, fraud=counts)
        assert RecordCounts.from_bytes(row.to_bytes()) == row
    blobs = [{b: RecordCounts(c.n, 0, {}, fraud=c).to_bytes() for b, c in merged(p).items()} for p in (parts, [whole])]
    assert blobs[0] == blobs[1]


@given(streams())
def test_counts_are_what_the_records_say(stream) -> None:
    for block, counts in counted(stream, slice(None)).items():
        rows = stream["blocks"] == block
        candidates = rows & (stream["p_value"] <= ALPHA)
        flooded = rows & (stream["flood_sizes"] >= LEAST)
        assert counts.n == rows.sum() == sum(counts.surprise.values())
        assert counts.candidates == candidates.sum() == counts.labelled
        assert (counts.flooded, counts.floods) == (flooded.sum(), (rows & (stream["flood_sizes"] == LEAST)).sum())
        assert counts.flood_largest == stream["flood_sizes"][flooded].max(initial=0)
        within = counts.segments.get("country=de", FraudCounts(0, 0))
        assert (within.n, within.candidates) == ((rows & stream["de"]).sum(), (candidates & stream["de"]).sum())


@pytest.mark.parametrize(
    ("surprise", "expected"), [(0.0, 0), (0.0624, 0), (0.0625, 1), (3.0, 48), (15.9375, 255), (16.0, 255), (400.0, 255)]
)
def test_a_bin_of_surprise_is_a_sixteenth_and_the_last_takes_all_above(surprise, expected) -> None:
    one = fraud_counts_of(np.array([5]), np.array([surprise], np.float32), np.array([0.5]), alpha=0.001)
    assert one[5].surprise == {expected: 1}


def test_without_labels_no_probability_is_counted() -> None:
    counts = fraud_counts_of(np.array([5]), np.array([9.0], np.float32), np.array([1e-9]), alpha=0.001)[5]
    assert (counts.candidates, counts.labelled) == (1, 0)


def test_blocks_without_fraud_scores_have_the_bytes_they_had() -> None:
    assert RecordCounts(7, 1, {"bad_json": 2}).to_bytes() == b'[7,1,[["bad_json",2]]]'
    assert RecordCounts.from_bytes(b'[7,1,[],[["a",7]]]').fraud is None


def test_fraud_scores_of_some_partitions_only_are_kept() -> None:
    scored = RecordCounts(5, 0, {}, {"a": 5}, FraudCounts(5, 1, {0: 4, 50: 1}))
    silent = RecordCounts(3, 0, {"bad_json": 3})
    assert reduce(RecordCounts.merge, [silent, scored, silent]).fraud == scored.fraud
    assert scored.merge(scored).fraud == FraudCounts(10, 2, {0: 8, 50: 2})
