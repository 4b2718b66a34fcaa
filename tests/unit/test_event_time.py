"""When blocks close: partitions of different owners, idle, slow, empty and stalled ones, and what comes too late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import Advance, Checkpoint, PartitionState, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.reference import STANDARD, Reference
from detectors.summary import summarise
from monitor.embedders.number import NumberEmbedder, NumberSettings
from monitor.folding import Folder, Outcome
from monitor.pipeline import Space
from monitor.record_counts import RecordCounts
from monitor.settings import Settings

P = [Partition("orders", number) for number in range(3)]
ALL = frozenset(P)
BLOCK_MS = 10_000
NOW_MS = 1_800_000_000_000
WAIT_S = 600.0


def settings() -> Settings:
    model: dict[str, Any] = {
        "source": {"kind": "kafka", "brokers": "localhost:1", "topic": "orders"},
        "spaces": {"confidence": {"embedder": {"kind": "number", "field": "/score"}}},
        "drift": {"block": "10s", "lateness": "5s", "wait": WAIT_S},
    }
    return Settings.model_validate({"models": {"m": model}})


@pytest.fixture(scope="module")
def space() -> Space:
    embedder: NumberEmbedder = NumberSettings(field="/score").build()
    baseline = np.random.default_rng(0).normal(size=2_000).tolist()
    embedder.fit([baseline])
    vectors = embedder.embed([baseline]).vectors
    return Space("confidence", embedder, Reference.build(vectors, geometry=STANDARD, block=100), 1, {})


class Workers:
    """Writes checkpoints as the owners of partitions do, and folds as any of them does."""

    def __init__(self, store: Store, space: Space) -> None:
        self.store = store
        self.space = space
        self.next: dict[Partition, int] = {}
        self.newest: dict[Partition, int] = {}

    def reads(self, partition: Partition, *blocks: int, records: int = 5) -> None:
        """Records of these blocks, in their middle."""
        for block in blocks:
            expected = self.next.get(partition)
            offset = expected or 0
            self.next[partition] = offset + records
            self.newest[partition] = max(self.newest.get(partition, -1), block * BLOCK_MS + 5_000)
            values = np.random.default_rng([partition.number, offset]).normal(size=records)
            scored = self.space.reference.score(self.space.embedder.embed([values.tolist()]).vectors)
            summary = summarise(np.zeros(records, np.int64), scored)[0].to_bytes()
            counts = RecordCounts(records, 0, {}).to_bytes()
            advance = Advance(partition, expected, self.next[partition], self.newest[partition], records, 0, 0)
            deltas = [
                SummaryDelta("confidence", "", block, 1, partition, offset, summary),
                SummaryDelta("", "", block, 0, partition, offset, counts),
            ]
            self.store.commit(Checkpoint("m", [advance], deltas))

    def begins(self, partition: Partition) -> None:
        """An owner says where it begins, and has read nothing yet."""
        self.next[partition] = 0
        self.store.commit(Checkpoint("m", [Advance(partition, None, 0, -1, 0, 0, 0)]))

    def rests(self, partition: Partition) -> None:
        """Its owner finds it silent, and read to its end."""
        self.store.mark_idle("m", {partition: self.next[partition]})

    def folder(self) -> Folder:
        return Folder("m", settings(), spaces=[self.space])

    def fold(self, clock_s: float = 0.0, folder: Folder | None = None) -> Outcome:
        return (folder or self.folder()).step(self.store, NOW_MS, clock_s, partitions=ALL)

    def late(self) -> dict[int, int]:
        return {state.partition.number: state.closed_late for state in self.states() if state.closed_late}

    def states(self) -> list[PartitionState]:
        return self.store.partition_states("m")


@pytest.fixture
def workers(tmp_path: Path, space: Space) -> Iterator[Workers]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        yield Workers(store, space)


def test_a_block_waits_for_the_partitions_of_other_workers(workers: Workers) -> None:
    workers.reads(P[0], 1, 2, 9)
    workers.reads(P[1], 1, 9)
    assert workers.fold().next_block is None, "nobody has said yet where the third partition begins"
    workers.begins(P[2])
    assert workers.fold().next_block is None, "it may hold records of any time"
    workers.reads(P[2], 1, 4)
    assert workers.fold().next_block == 4
    assert workers.store.closures("m") == []


def test_an_empty_partition_holds_nothing_once_its_owner_says_so(workers: Workers) -> None:
    workers.reads(P[0], 1, 9)
    workers.reads(P[1], 1, 7)
    workers.begins(P[2])
    workers.rests(P[2])
    outcome = workers.fold()
    assert outcome.next_block == 7
    assert workers.late() == {}


def test_partitions_that_two_owners_find_idle_are_passed_by_whoever_folds(workers: Workers) -> None:
    workers.reads(P[0], 1)
    workers.reads(P[1], 2)
    workers.reads(P[2], 1, 19, 20)
    workers.rests(P[0])
    assert workers.fold().next_block == 2
    workers.rests(P[1])
    assert workers.fold().next_block == 20
    closures = [(closure.reason, closure.block, closure.next_offsets) for closure in workers.store.closures("m")]
    assert closures == [
        ("idle", 2, {P[0]: 5, P[1]: 5, P[2]: 15}),
        ("idle", 20, {P[0]: 5, P[1]: 5, P[2]: 15}),
    ]


def test_a_mark_is_void_when_records_come_again(workers: Workers) -> None:
    for partition in P:
        workers.reads(partition, 1)
    workers.rests(P[0])
    workers.reads(P[0], 2)
    workers.reads(P[1], 20)
    workers.reads(P[2], 20)
    assert workers.fold().next_block == 2, "the first partition holds them open again"


def test_what_comes_after_its_block_was_closed_is_counted_by_partition(workers: Workers) -> None:
    for partition in P:
        workers.reads(partition, 1)
        workers.rests(partition)
    assert workers.fold().next_block == 2
    workers.reads(P[1], 1, records=3)
    workers.reads(P[2], 1, 3, records=2)
    outcome = workers.fold()
    assert (outcome.late, workers.late()) == (5, {1: 3, 2: 2})
    assert workers.fold().late == 0
    assert workers.late() == {1: 3, 2: 2}


def test_a_partition_that_stands_still_is_waited_for_so_long_and_no_longer(workers: Workers) -> None:
    workers.reads(P[0], 0, 1)
    folder = workers.folder()
    for clock_s in np.arange(0.0, WAIT_S, 100.0):
        workers.reads(P[1], 10 + int(clock_s))
        workers.reads(P[2], 10 + int(clock_s))
        assert workers.fold(clock_s, folder).next_block == 1
    workers.reads(P[1], 999, 1000)
    workers.reads(P[2], 1000)
    outcome = workers.fold(WAIT_S, folder)
    assert (outcome.next_block, outcome.stalled) == (1000, {P[0]})
    assert workers.store.closures("m")[-1].reason == "stalled"
    workers.reads(P[0], 5, 1001)
    outcome = workers.fold(WAIT_S + 1, folder)
    assert (outcome.stalled, workers.late()) == (frozenset(), {0: 5})


def test_a_worker_that_has_just_started_knows_of_no_stalled_partition(workers: Workers) -> None:
    workers.reads(P[0], 0, 1)
    workers.reads(P[1], 90)
    workers.reads(P[2], 90)
    assert workers.fold(1_000_000.0).next_block == 1


def test_a_topic_that_the_model_read_before_holds_nothing_and_is_not_stalled(workers: Workers) -> None:
    workers.reads(Partition("orders-2019", 0), 1)
    folder = workers.folder()
    for clock_s in (0.0, WAIT_S, 2 * WAIT_S):
        for partition in P:
            workers.reads(partition, 1 + int(clock_s))
        outcome = workers.fold(clock_s, folder)
    assert outcome.stalled == frozenset()
    assert [state.partition for state in outcome.partitions] == P
    assert outcome.next_block is not None and outcome.next_block > int(WAIT_S)


def test_where_all_partitions_stand_still_nothing_is_closed(workers: Workers) -> None:
    folder = workers.folder()
    for partition in P:
        workers.reads(partition, 1, 5)
    assert workers.fold(0.0, folder).next_block == 5
    outcome = workers.fold(10 * WAIT_S, folder)
    assert (outcome.next_block, outcome.stalled) == (5, ALL)


def test_the_order_in_which_owners_write_changes_no_reading(tmp_path: Path, space: Space) -> None:
    found = []
    for seed in range(3):
        with Store.open(f"sqlite:///{tmp_path}/{seed}.db") as store:
            store.migrate()
            workers = Workers(store, space)
            left = [list(range(40)) for _ in P]
            random = np.random.default_rng(seed)
            while any(left):
                number = int(random.choice([number for number in range(3) if left[number]]))
                workers.reads(P[number], left[number].pop(0))
                if random.random() < 0.3:
                    workers.fold()
            for partition in P:
                workers.rests(partition)
            workers.fold()
            found.append((store.readings("m"), workers.late(), workers.folder().close_all(store, NOW_MS).blocks))
    assert found[0] == found[1] == found[2]
    assert len({reading.block for reading in found[0][0]}) == 40
