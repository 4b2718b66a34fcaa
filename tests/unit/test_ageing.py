"""What stored summaries become when they are added up: the bytes of the sum, whatever the steps and the format."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.ageing import AgeRule
from connectors.database.lane import LaneStore, lane_name
from connectors.database.rows import BackfillRow, FoldResult, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.summary import BlockSummary
from monitor.ageing import HistoryAgeing, age_rules, sum_of_summaries
from monitor.daemon import Daemon
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


def test_a_daemon_merges_a_little_at_a_time_and_says_what_it_waits_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "driftd.yaml"
    path.write_text(
        f"database: sqlite:///{tmp_path}/driftd.db\nretention: {{merge_summaries: {{10s: 4}}}}\nmodels:\n"
        "  m:\n    source: {kind: files, path: x}\n    drift: {block: 1}\n"
        "    spaces: {a: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
    )
    chosen = load_settings(path)
    daemon = Daemon(chosen)
    with Store.open(chosen.database) as store:
        store.migrate()
        blobs = [counts(number).to_bytes() for number in range(60)]
        rows = [SummaryDelta("", "", number, 0, Partition("", -1), 0, blobs[number]) for number in range(60)]
        with store.begin_fold("m") as step:
            step.commit(FoldResult(60, rows, [], [], [], []))
        job = BackfillRow("b1", "m", lane_name("m", 1), "scoring", {}, {}, 0)
        store.plan_backfill(job, [])
        with caplog.at_level("INFO"):
            daemon._merge_summaries(store)
            assert "not merged before the backfill m~1 is finished" in caplog.text
            assert len(store.summaries("m", "", segment="")) == 60
            store.end_backfill(job, "done", 0)
            monkeypatch.setattr("monitor.daemon.MERGE_EVERY_S", 0.0)
            daemon._next_merge = 0.0
            daemon._merge_summaries(store)
        found = store.summaries("m", "", segment="")
        assert [row.blocks for row in found] == [4] * 12 + [1] * 12
        assert "old summaries merged" in caplog.text
        assert found[0].blob == sum_of_summaries("", blobs[:4])


def test_a_backfill_ages_what_it_writes_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.ageing.MOST_ROWS_OF_HISTORY", 8)
    path = tmp_path / "driftd.yaml"
    path.write_text(
        f"database: sqlite:///{tmp_path}/driftd.db\nretention: {{merge_summaries: {{10s: 4}}}}\nmodels:\n"
        "  m:\n    source: {kind: files, path: x}\n    drift: {block: 1}\n"
        "    spaces: {a: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
    )
    chosen = load_settings(path)
    with Store.open(chosen.database) as store:
        store.migrate()
        lane = LaneStore.beside(store, "m", lane_name("m", 1))
        store.plan_backfill(BackfillRow("b1", "m", lane_name("m", 1), "scoring", {}, {}, 0), [])
        blob = counts(1).to_bytes()
        with lane.begin_fold("m") as step:
            rows = [SummaryDelta("", "", number, 0, Partition("", -1), 0, blob) for number in range(60)]
            step.commit(FoldResult(60, rows, [], [], [], []))
        old = HistoryAgeing(lane, chosen, "m")
        merged = []
        for clock_s in (0.0, 1.0, 2.0, 3.0, 30.0):
            monkeypatch.setattr("connectors.database.ageing._BLOCKS", 4)
            old.step(clock_s)
            merged.append(sum(row.blocks == 4 for row in store.summaries("m", "", segment="")))
        assert merged == [2, 4, 6, 8, 10], "a little at each step, as long as more is left"
