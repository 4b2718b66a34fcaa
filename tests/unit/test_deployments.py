"""Versions of the watched model: what is a deployment, and that it does not depend on how the stream was cut."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.database.rows import Advance, Checkpoint, DeploymentRow, FoldResult, IncidentRow, SummaryDelta
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Partition
from detectors.reference import STANDARD, Reference
from detectors.summary import summarise
from monitor.deployments import MOST_DEPLOYMENTS, MOST_KNOWN, as_known_at, grace_end_ms, nearest, present, take_in
from monitor.embedders.number import NumberEmbedder, NumberSettings
from monitor.folding import Folder
from monitor.pipeline import Space
from monitor.record_counts import MAX_VERSIONS, RecordCounts
from monitor.settings import Settings

P0 = Partition("orders", 0)
BLOCK_MS = 10_000


def at(start_ms: int, version: str = "2") -> DeploymentRow:
    return DeploymentRow(version, start_ms // BLOCK_MS, start_ms)


@pytest.mark.parametrize(
    ("versions", "records", "expected"),
    [
        ({"1": 9}, 9, []),
        ({"1": 10}, 10, ["1"]),
        ({"2": 990, "1": 10}, 1_000, ["1", "2"]),
        ({"2": 1_990, "1": 10}, 2_000, ["2"]),
        ({"2": 1_980, "1": 20}, 2_000, ["1", "2"]),
        ({}, 2_000, []),
    ],
)
def test_a_version_counts_once_enough_records_of_a_block_name_it(
    versions: dict[str, int], records: int, expected: list[str]
) -> None:
    assert present(versions, records) == expected


def test_the_first_versions_are_the_start_and_each_later_one_is_deployed_once() -> None:
    known, new = take_in([], ["1", "1-canary"])
    assert new == []
    known, new = take_in(known, [])
    assert (known, new) == (["1", "1-canary"], [])
    known, new = take_in(known, ["1", "2"])
    assert new == ["2"]
    assert take_in(known, ["1"]) == (known, []), "to roll back is no deployment"


def test_what_is_known_is_bounded() -> None:
    known: list[str] = []
    for number in range(1_000):
        known, _ = take_in(known, [f"v{number}"])
    assert known == [f"v{number}" for number in range(1_000 - MOST_KNOWN, 1_000)]


def test_a_grace_period_begins_with_the_deployment_and_the_last_one_counts() -> None:
    rows = [at(10_000), at(40_000, "3")]
    assert [grace_end_ms(rows, ms, 60_000) for ms in (9_999, 10_000, 39_999, 40_000, 99_999, 100_000)] == [
        None,
        70_000,
        70_000,
        100_000,
        100_000,
        None,
    ]
    assert grace_end_ms(rows, 10_000, 0) is None


def test_the_nearest_deployment_within_an_hour_is_named() -> None:
    rows = [at(10_000), at(70_000, "3")]
    assert nearest(rows, 30_000) == rows[0] and nearest(rows, 60_000) == rows[1]
    assert nearest(rows, 40_000) == rows[1], "of two alike the later one"
    assert nearest(rows, 70_000 + 3_600_001) is None and nearest(rows, 70_000 + 3_600_000) == rows[1]


# --- counts of a block ------------------------------------------------------------------------------------------------


def test_counts_that_were_stored_before_versions_were_known_are_read() -> None:
    assert RecordCounts.from_bytes(b'[7,1,[["bad_json",2]]]') == RecordCounts(7, 1, {"bad_json": 2})
    assert RecordCounts(7, 1, {"bad_json": 2}).to_bytes() == b'[7,1,[["bad_json",2]]]'
    named = RecordCounts(7, 1, {}, {"b": 2, "a": 4})
    assert RecordCounts.from_bytes(named.to_bytes()) == named


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=20), max_size=8), st.randoms())
def test_versions_are_counted_alike_in_whatever_order_parts_are_merged(
    parts: list[dict[str, int]], chance: random.Random
) -> None:
    def merged(parts: list[dict[str, int]]) -> bytes:
        total = RecordCounts(0, 0, {})
        for part in parts:
            total = total.merge(RecordCounts(sum(part.values()), 0, {}, part))
        assert len(total.versions) <= MAX_VERSIONS
        return total.to_bytes()

    assert merged(parts) == merged(chance.sample(parts, len(parts)))


# --- the fold ---------------------------------------------------------------------------------------------------------


def settings() -> Settings:
    model = {
        "source": {"kind": "kafka", "brokers": "localhost:1", "topic": "orders"},
        "record": {"version": "/version"},
        "spaces": {"confidence": {"embedder": {"kind": "number", "field": "/score"}}},
        "drift": {"block": "10s", "lateness": "5s"},
    }
    return Settings.model_validate({"models": {"m": model}})


class Stream:
    """Blocks of one partition, of which only the counts matter."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(f"sqlite:///{path}")
        self.store.migrate()
        self.offset = 0
        self.block = 100

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def reads(self, *blocks: dict[str, int]) -> None:
        for versions in blocks:
            records = max(sum(versions.values()), 20)
            counts = RecordCounts(records, 0, {}, versions).to_bytes()
            before = self.offset or None
            self.offset += records
            advance = Advance(P0, before, self.offset, self.block * BLOCK_MS + 5_000, records, 0, 0)
            delta = SummaryDelta("", "", self.block, 0, P0, self.offset - records, counts)
            self.store.commit(Checkpoint("m", [advance], [delta]))
            self.block += 1

    def fold(self) -> None:
        Folder("m", settings(), spaces=[]).step(self.store, 0, partitions=frozenset([P0]))

    def end(self) -> tuple[list[tuple[str, int, int]], list[bytes]]:
        """What was deployed, and the fold's state."""
        Folder("m", settings(), spaces=[]).close_all(self.store, 0)
        with self.store.begin_fold("m") as step:
            states = [state.blob for state in step.states()]
        rows = [(row.version, row.block, row.start_ms) for row in self.store.deployments("m")]
        return rows, states


def test_the_fold_writes_a_deployment_once_with_its_first_block(tmp_path: Path) -> None:
    with Stream(tmp_path / "driftd.db") as stream:
        stream.reads({"1": 20}, {"1": 20, "2": 3}, {"1": 20, "2": 12}, {"2": 20}, {"1": 20}, {})
        rows, _ = stream.end()
    assert rows == [("2", 102, 1_020_000)], "three records were too few to count"


@pytest.mark.parametrize("cuts", [{1, 2, 3, 5, 9, 14}, {7}, set(range(1, 30))])
def test_any_cut_of_the_stream_gives_the_same_deployments_and_state(tmp_path: Path, cuts: set[int]) -> None:
    blocks = [{f"v{number // 3}": 15, f"v{(number + 5) // 7}": 12} for number in range(30)]

    def play(name: str, cuts: set[int]) -> tuple[list[tuple[str, int, int]], list[bytes]]:
        with Stream(tmp_path / name) as stream:
            for number, versions in enumerate(blocks):
                stream.reads(versions)
                if number in cuts:
                    stream.fold()
            return stream.end()

    whole = play("whole.db", set())
    assert len(whole[0]) == 9 and play("cut.db", cuts) == whole


def test_a_state_of_before_versions_were_known_is_read(tmp_path: Path) -> None:
    with Stream(tmp_path / "driftd.db") as stream:
        stream.reads({}, {}, {})
        stream.fold()
        with stream.store.begin_fold("m") as step:
            old = step.states()[0]
            blob = msgspec.msgpack.encode({"blocks": msgspec.msgpack.decode(old.blob)["blocks"]})
            state = type(old)(old.space, old.segment, old.reference, blob)
            step.commit(FoldResult(step.next_block or 0, [], [state], [], [], []))
        stream.reads({"1": 20}, {"2": 20})
        rows, _ = stream.end()
    assert [version for version, *_ in rows] == ["2"]


def test_the_state_holds_a_bounded_number_of_deployments(tmp_path: Path) -> None:
    with Stream(tmp_path / "driftd.db") as stream:
        stream.reads(*({f"v{number}": 20} for number in range(40)))
        rows, states = stream.end()
    held = msgspec.msgpack.decode(states[0])
    assert len(rows) == 39 and held["deployments"] == [list(row[:2]) for row in rows[-MOST_DEPLOYMENTS:]]


def test_a_block_knows_the_last_deployments_up_to_itself_however_many_are_folded_with_it() -> None:
    rows = [DeploymentRow(f"v{number}", number, number * BLOCK_MS) for number in range(40)]
    assert as_known_at(rows, 30) == rows[31 - MOST_DEPLOYMENTS : 31]
    assert as_known_at(rows[31 - MOST_DEPLOYMENTS :], 30) == as_known_at(rows, 30)


# --- with drift -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space() -> Space:
    embedder: NumberEmbedder = NumberSettings(field="/score").build()
    baseline = np.random.default_rng(0).normal(size=4_000).tolist()
    embedder.fit([baseline])
    vectors = embedder.embed([baseline]).vectors
    return Space("confidence", embedder, Reference.build(vectors, geometry=STANDARD, block=100), 1, {})


def drifting(path: Path, space: Space, cuts: set[int]) -> tuple[list[IncidentRow], list[Notification]]:
    """A stream whose records change with version 2: the incident, and what a sink is told."""
    with Store.open(f"sqlite:///{path}") as store:
        store.migrate()
        folder = Folder("m", settings(), spaces=[space])
        for number in range(100):
            new = number >= 5
            values = np.random.default_rng(number).normal(4.0 if new else 0.0, size=100).tolist()
            scored = space.reference.score(space.embedder.embed([values]).vectors)
            summary = summarise(np.zeros(100, np.int64), scored)[0].to_bytes()
            counts = RecordCounts(100, 0, {}, {"2" if new else "1": 100}).to_bytes()
            block, offset = 100 + number, 100 * number
            advance = Advance(P0, offset or None, offset + 100, block * BLOCK_MS + 5_000, 100, 0, 0)
            deltas = [
                SummaryDelta("confidence", "", block, 1, P0, offset, summary),
                SummaryDelta("", "", block, 0, P0, offset, counts),
            ]
            store.commit(Checkpoint("m", [advance], deltas))
            if number in cuts:
                folder.step(store, 0, partitions=frozenset([P0]))
        folder.close_all(store, 0)
        told = [row.notification for row in store.outbox_due(0, 100)]
        return store.incidents(), told


def test_drift_that_comes_with_a_version_is_told_after_its_grace_period_for_any_cut(
    tmp_path: Path, space: Space
) -> None:
    whole = drifting(tmp_path / "whole.db", space, set())
    rows, told = whole
    drift = next(row for row in rows if row.kind == "drift" and row.space == "confidence")
    grace_end_ms = 105 * BLOCK_MS + 900_000
    assert drift.opened_ms < 115 * BLOCK_MS and drift.detail["deployment"] == {"version": "2", "start_ms": 1_050_000}
    first = next(note for note in told if note.incident == drift.id)
    assert first.values["event"] == "opened" and drift.detail["last_told_ms"] == grace_end_ms
    assert "version 2 was deployed" in first.text
    assert drifting(tmp_path / "cut.db", space, set(range(0, 100, 7))) == whole
