"""What /readyz says of a model: which check fails, when, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from connectors.records import Partition, SourceState
from monitor.canaries import CanaryCheck
from monitor.health import DATABASE_S, JOINING_S, SILENT_S, Health
from monitor.troubles import GROWTH_S
from monitor.web import Check
from monitor.worker import Step, Worker

P = [Partition("orders", number) for number in range(4)]
QUIET = Step(0, finished=False)


@dataclass
class FakeSource:
    member: str = "stable"
    connected: bool = True
    silent: dict[Partition, float] = field(default_factory=dict)
    known: frozenset[Partition] = frozenset(P)
    behind: dict[Partition, int] = field(default_factory=dict)

    def state(self) -> SourceState:
        return SourceState(self.member, self.connected, 3, 0, 0, self.silent)

    def partitions(self) -> frozenset[Partition]:
        return self.known

    def lag(self) -> dict[Partition, int]:
        return self.behind


@dataclass
class FakeWorker:
    name: str = "orders"
    source: FakeSource = field(default_factory=FakeSource)
    assigned: frozenset[Partition] = frozenset(P[:2])
    held: frozenset[Partition] = frozenset()
    ages: dict[Partition, float] = field(default_factory=dict)
    halted: str = ""
    encoder_changed: str = ""
    canaries: dict[str, CanaryCheck] = field(default_factory=dict)
    waits_outside: bool = False
    failure: str = ""
    dead: int = 3
    records: int = 1000

    def lag_seconds(self, now_ms: int) -> dict[Partition, float]:
        return self.ages

    longest_lag_s = Worker.longest_lag_s


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def health(worker: FakeWorker) -> Health:
    return Health(cast(Worker, worker), lag_limit_s=600.0)


def look(health: Health, clock_s: float = 0.0, step: Step = QUIET) -> dict[str, Check]:
    return {check.name.removeprefix("orders: "): check for check in health.checks(step, 0, clock_s)}


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.ok}


def test_all_is_well(health: Health) -> None:
    checks = look(health)
    assert list(checks) == ["database", "group", "assignment", "lag", "encoder", "dead letters"]
    assert failing(checks) == set()
    assert checks["assignment"].detail == "2 of 4 partitions"


def test_a_rebalance_is_no_failure_until_it_does_not_end(worker: FakeWorker, health: Health) -> None:
    worker.source.member, worker.assigned = "joining", frozenset()
    assert failing(look(health, 0.0)) == failing(look(health, JOINING_S - 1)) == set()
    assert failing(look(health, JOINING_S)) == {"group"}
    worker.source.member = "stable"
    assert failing(look(health, JOINING_S + 1)) == set()


def test_brokers_that_are_silent_fail_the_group_with_what_the_source_said(worker: FakeWorker, health: Health) -> None:
    worker.source.connected, worker.failure = False, "Kafka does not answer at localhost:9092."
    checks = look(health)
    assert failing(checks) == {"group"}
    assert checks["group"].detail == worker.failure


def test_more_workers_than_partitions_is_no_failure(worker: FakeWorker, health: Health) -> None:
    worker.assigned = frozenset()
    checks = look(health)
    assert failing(checks) == set()
    assert "no partition is left" in checks["assignment"].detail


def test_a_partition_that_brings_nothing_though_records_wait_is_named(worker: FakeWorker, health: Health) -> None:
    worker.source.silent = {P[1]: SILENT_S}
    assert failing(look(health)) == set()
    worker.source.silent = {P[1]: SILENT_S + 1}
    checks = look(health)
    assert failing(checks) == {"assignment"}
    assert "orders/1" in checks["assignment"].detail


def test_lag_fails_when_it_is_long_and_has_grown(worker: FakeWorker, health: Health) -> None:
    worker.ages = {P[0]: 700.0}
    assert failing(look(health, 0.0)) == set(), "a worker that has just started catches up"
    worker.ages = {P[0]: 650.0}
    assert failing(look(health, GROWTH_S)) == set(), "it catches up"
    worker.ages = {P[0]: 720.0}
    checks = look(health, 2 * GROWTH_S)
    assert failing(checks) == {"lag"}
    assert "--workers" in checks["lag"].detail
    worker.held = frozenset(P[:1])
    assert failing(look(health, 2 * GROWTH_S)) == set(), "a partition that is held back waits on purpose"


def test_a_refused_transaction_fails_the_database_and_a_lost_race_does_not(worker: FakeWorker, health: Health) -> None:
    refused = Step(0, finished=False, failure="the disk is full", refused=True)
    lost = Step(0, finished=False, failure="another worker owns it", refused=True, ownership_lost=True)
    assert failing(look(health, 0.0)) == set()
    assert failing(look(health, 1.0, lost)) == set()
    assert failing(look(health, DATABASE_S, lost)) == {"database"}, "but not for ever"
    checks = look(health, 5.0, refused)
    assert failing(checks) == {"database"}
    assert checks["database"].detail == "no transaction for 5 s: the disk is full"
    assert failing(look(health, 6.0)) == set()


def test_a_model_that_stopped_reading_says_why(worker: FakeWorker, health: Health) -> None:
    worker.halted = "reading stopped: 600 of 1,000 records cannot be used"
    checks = look(health)
    assert failing(checks) == {"dead letters"}
    assert checks["dead letters"].detail == worker.halted


def test_a_model_whose_encoder_changed_says_what_about_it(worker: FakeWorker, health: Health) -> None:
    assert look(health)["encoder"].detail == "no canaries"
    worker.canaries = {"input": CanaryCheck(64, 0, 2e-7, 1e-4, "", None)}
    assert look(health)["encoder"].detail == "input: 64 canaries, largest change 2e-07"
    worker.encoder_changed = "reading waits: its vectors have 384 dimensions; they had 512"
    checks = look(health)
    assert failing(checks) == {"encoder"} and checks["encoder"].detail == worker.encoder_changed


def test_files_have_no_group(worker: FakeWorker, health: Health) -> None:
    worker.source.member = "none"
    assert "group" not in look(health)


def test_a_worker_that_waits_for_the_first_reference_needs_the_database_only(
    worker: FakeWorker, health: Health
) -> None:
    worker.waits_outside, worker.source.member = True, "joining"
    assert list(look(health)) == ["database"]
