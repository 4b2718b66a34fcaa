"""What stored summaries become when they are added up: the bytes of the sum, whatever the steps and the format."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.ageing import AgeRule
from detectors.summary import BlockSummary
from monitor.ageing import age_rules, sum_of_summaries
from monitor.record_counts import FraudCounts, RecordCounts
from monitor.settings import load_settings

D, K = 5, 40


def block(seed: int) -> BlockSummary:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 200))
    labels = {f"label {number}": int(random.integers(1, 9)) for number in random.integers(0, 600, 40)}
    return BlockSummary(
        n=n,
        s=random.integers(-(2**22), 2**22, D) * n,
        h=np.bincount(random.integers(0, 49, n), minlength=49),
        c=np.bincount(random.integers(0, K, n), minlength=K),
        scores=np.bincount(random.integers(0, 1024, n), minlength=1024),
        confidence=np.bincount(random.integers(0, 50, n), minlength=50) if seed % 3 else None,
        labels=labels if seed % 5 else None,
        other_labels=int(random.integers(0, 3)) if seed % 5 else 0,
    )


def counts(seed: int) -> RecordCounts:
    random = np.random.default_rng(seed)
    fraud = FraudCounts(5, 2, {3: 4, 9: 1}, {60: seed}, 2, 1, seed, {"country=de": FraudCounts(1, 1, {seed: 1})})
    return RecordCounts(
        int(random.integers(1, 999)),
        seed,
        {"bad_json": int(random.integers(-2, 3)), "missing_field": 1},
        {f"v{number}": 1 for number in random.integers(0, 90, 20)},
        fraud if seed % 4 else None,
    )


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 1000), cuts=st.sets(st.integers(1, 15)))
def test_sums_of_sums_have_the_bytes_of_the_sum(first: int, cuts: set[int]) -> None:
    for space, make in (("input", block), ("", counts)):
        blobs = [make(first + index).to_bytes() for index in range(16)]
        edges = [0, *sorted(cuts), 16]
        parts = [sum_of_summaries(space, blobs[a:b]) for a, b in itertools.pairwise(edges)]
        assert sum_of_summaries(space, parts) == sum_of_summaries(space, blobs)


def test_one_summary_alone_keeps_its_bytes() -> None:
    for space, blob in (("input", block(3).to_bytes()), ("", counts(3).to_bytes())):
        assert sum_of_summaries(space, [blob]) == blob


def test_ages_are_counted_in_blocks_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    path.write_text(
        "retention: {merge_summaries: {1d: 4, 100s: 2}}\nmodels:\n"
        "  quick:\n    source: {kind: files, path: x}\n"
        "    spaces: {a: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
        "  slow:\n    source: {kind: files, path: x}\n    drift: {block: 1h}\n"
        "    spaces: {a: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
    )
    found = load_settings(path)
    assert age_rules(found, "quick") == [AgeRule(10, 2), AgeRule(8640, 4)]
    assert age_rules(found, "slow") == [AgeRule(1, 2), AgeRule(24, 4)]


def test_settings_take_the_place_of_the_default_widths(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    text = (
        "models:\n  m:\n    source: {kind: files, path: x}\n"
        "    spaces: {a: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
    )
    for retention, widths in (
        ("", [8, 64, 128]),
        ("retention: {kept_days: 3}\n", [8, 64, 128]),
        ("retention: {merge_summaries: {}}\n", []),
        ("retention: {merge_summaries: {1h: 4}}\n", [4]),
    ):
        path.write_text(text + retention)
        assert list(load_settings(path).retention.merge_summaries.values()) == widths
