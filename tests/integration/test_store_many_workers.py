"""Many workers at once on one database: checkpoints, folds, idle marks, incidents, senders and retention together."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.database.rows import Advance, Checkpoint, FoldResult, HalfRow, Retention, SummaryDelta, ThinnedKeys
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import DeadLetter, Partition
from detectors.errors import OwnershipLost, StoreError
from monitor.operations import resolved, source_incident
from tests.servers.postgres import PostgresServer

WORKERS, PARTITIONS, CHECKPOINTS = 4, 3, 30


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/driftd.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


def step(partition: Partition, expected: int | None) -> Checkpoint:
    """Ten records, in a block that other workers may be folding at this moment."""
    at = expected or 0
    block = at // 50
    return Checkpoint(
        "m",
        [Advance(partition, expected, at + 10, at, 10, 1, 0)],
        [SummaryDelta("", "", block, 0, partition, at, b"10")],
        dead_letters=[DeadLetter(partition, at, -1, "bad_json", "", b"", 0)],
        thinned_keys=[ThinnedKeys(partition, block, at, b"")],
        halves=[HalfRow(partition, at, b"")],
        joined=[(partition, at - 10)] if at else [],
    )


class Workers:
    """Threads with a store each, as processes have; every call of the database is counted by how it ended."""

    def __init__(self, url: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.folded: Counter[Partition] = Counter()
        self.late: Counter[Partition] = Counter()
        self.sent: list[str] = []
        self.problems: list[BaseException] = []
        self._url = url
        self._lock = threading.Lock()

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert self.problems == []

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        partitions = [Partition("orders", index) for index in range(PARTITIONS)]
        try:
            with Store.open(self._url) as store:
                for _ in range(CHECKPOINTS):
                    chance.shuffle(partitions)
                    owned = partitions[: 1 + number % PARTITIONS]
                    positions = store.positions("m", owned)
                    steps = [step(partition, positions.get(partition)) for partition in owned]
                    self._try("checkpoint", store.commit, together(steps))
                    self._try("fold", self._fold, store)
                    self._try("idle", store.mark_idle, "m", store.positions("m", partitions))
                    now_ms = chance.getrandbits(40)
                    row, told = source_incident("m", problem="p", lasting=False, since_ms=0, now_ms=now_ms)
                    self._try("open", store.open_incident, row, [("pager", told)])
                    for row in store.incidents("m", "open"):
                        over, end = resolved(row, row.opened_ms)
                        self._try("resolve", store.resolve_incident, over, [("pager", end)])
                    self._try("send", self._send, store)
                    self._try("prune", store.prune, 0, Retention(dead_letter_rows=10, outbox_rows=0))
        except BaseException as error:
            self.problems.append(error)

    def _try(self, name: str, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
            outcome = "done"
        except OwnershipLost:
            outcome = "lost"
        except StoreError as error:
            outcome = f"{type(error).__name__}: {error}"
        with self._lock:
            self.outcomes[f"{name} {outcome}"] += 1

    def _fold(self, store: Store) -> None:
        with store.begin_fold("m") as fold:
            passed = min((state.next_offset // 50 for state in fold.partitions), default=0)
            below = max(passed if len(fold.partitions) == PARTITIONS else 0, fold.next_block or 0)
            late: Counter[Partition] = Counter()
            for row in fold.late_deltas():
                late[row.partition] += 10
            folded = Counter(row.partition for row in fold.deltas(below))
            about = ("drift", "g", "firing", "page", "m", "drift", "", "", "", "", 0, None, {})
            told = Notification(f"step {fold.version}", *about)
            fold.commit(FoldResult(below, [], [], [], [], [("pager", told)], closed_late=late))
            with self._lock:
                self.folded.update(folded)
                self.late.update(late)

    def _send(self, store: Store) -> None:
        for row in store.outbox_claim("pager", 0, 60_000, 3):
            with self._lock:
                self.sent.append(row.notification.id)
            store.outbox_sent("pager", [row.notification.id], 0)


def together(steps: list[Checkpoint]) -> Checkpoint:
    """One checkpoint of several partitions."""
    first = steps[0]
    for other in steps[1:]:
        first = replace(
            first,
            advances=first.advances + other.advances,
            summaries=first.summaries + other.summaries,
            dead_letters=first.dead_letters + other.dead_letters,
            thinned_keys=first.thinned_keys + other.thinned_keys,
            halves=first.halves + other.halves,
            joined=first.joined + other.joined,
        )
    return first


def test_workers_that_get_in_each_others_way_lose_races_and_nothing_else(url: str) -> None:
    with Store.open(url) as store:
        store.migrate()
        workers = Workers(url)
        workers.run()
        assert {name.partition(" ")[2] for name in workers.outcomes} == {"done", "lost"}, workers.outcomes
        assert workers.outcomes["checkpoint lost"] and workers.outcomes["fold lost"]
        states = {state.partition: state for state in store.partition_states("m")}
        assert sum(state.records for state in states.values()) == sum(state.next_offset for state in states.values())
        with store.begin_fold("m") as fold:
            left = Counter(row.partition for row in [*fold.late_deltas(), *fold.deltas(10**9)])
        for partition, state in states.items():
            assert 10 * (workers.folded[partition] + left[partition]) + workers.late[partition] == state.records
            assert state.closed_late == workers.late[partition]
            assert [half.offset for half in store.halves("m", partition)] == [state.next_offset - 10]
        assert store.dead_letter_counts("m") == {"bad_json": sum(state.records for state in states.values()) // 10}
        assert len(workers.sent) == len(set(workers.sent))
