"""Mutes and acknowledgements when it comes to sending, with a real SQLite database."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.database.rows import IncidentRow, MuteRow, Retention
from connectors.database.store import Store
from connectors.prometheus import Metrics
from detectors.errors import SinkError
from monitor.incidents import EventName
from monitor.outbox import RetryPolicy, SinkQueue
from tests.senders import AT_ONCE, START_MS, Clock, ScriptedGroupSink, ScriptedSink, incident, outbox, put, told

HOUR_MS = 3_600_000
NEVER = threading.Event()


class Desk:
    """A plain sink and one that people read, behind one outbox."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.database = folder / "driftd.db"
        self.store = Store.open(f"sqlite:///{self.database}", now_ms=self.clock)
        self.store.migrate()
        self.metrics = Metrics()
        self.sinks: dict[str, ScriptedSink] = {"file": ScriptedSink(), "chat": ScriptedGroupSink()}
        self.restart()

    def restart(self) -> None:
        self.queues = [
            SinkQueue(name, sink, self.store, policy=RetryPolicy(), pace=AT_ONCE, metrics=self.metrics)
            for name, sink in self.sinks.items()
        ]

    def happens(self, row: IncidentRow, event: EventName) -> None:
        put(self.store, *[(name, told(row, event)) for name in self.sinks], incidents=[row])

    def after(self, ms: int = 0) -> list[list[str]]:
        """What each of the two sinks was told by then that it had not been told before."""
        self.clock.now_ms += ms
        before = [len(sink.taken) for sink in self.sinks.values()]
        for queue in self.queues:
            queue.pump(self.clock, NEVER)
        return [sink.taken[count:] for sink, count in zip(self.sinks.values(), before, strict=True)]

    def muted(self) -> list[float | None]:
        value = self.metrics.registry.get_sample_value
        return [value("driftd_notifications_muted_total", {"sink": name}) for name in self.sinks]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def mute(**about: str) -> MuteRow:
    row = MuteRow("0badcafe", "", "", "", "", START_MS, START_MS + HOUR_MS, "deploy", "ana", START_MS)
    return dataclasses.replace(row, **about)  # type: ignore[arg-type]


OPEN = incident("a", segment="country=DE")
OVER = incident("a", segment="country=DE", status="resolved", revision=2)


def test_what_a_mute_covers_is_told_when_it_ends_if_it_still_goes_on(desk: Desk) -> None:
    desk.store.add_mute(mute(segment="country=DE"))
    desk.happens(OPEN, "opened")
    desk.happens(incident("b"), "opened")
    assert desk.after() == [["b-opened"], ["b-opened"]], "what it does not cover is told"
    assert desk.after(HOUR_MS - 1) == [[], []]
    assert desk.store.outbox_waiting() == (0, None), "what is held does not look stuck"
    assert desk.after(1) == [["a-opened"], ["a-opened"]]
    assert desk.muted() == [0, 0]


def test_what_is_over_before_the_mute_ends_is_never_told(desk: Desk) -> None:
    desk.store.add_mute(mute(model="triage"))
    desk.happens(OPEN, "opened")
    assert desk.after() == [[], []]
    desk.happens(OVER, "resolved")
    assert desk.after(1000) == [[], []]
    assert desk.after(HOUR_MS) == [[], []]
    assert {row[2] for row in outbox(desk.database)} == {"muted"}
    assert desk.muted() == [2, 2]


def test_the_end_of_what_was_told_before_is_told_after_the_mute(desk: Desk) -> None:
    desk.happens(OPEN, "opened")
    assert desk.after() == [["a-opened"], ["a-opened"]]
    desk.store.add_mute(mute())
    desk.happens(OVER, "resolved")
    assert desk.after(1000) == [[], []]
    assert desk.after(HOUR_MS) == [["a-resolved"], ["a-resolved"]]


def test_what_came_back_and_went_while_muted_is_never_told(desk: Desk) -> None:
    desk.happens(OPEN, "opened")
    desk.happens(OVER, "resolved")
    desk.after()
    desk.store.add_mute(mute())
    desk.happens(OPEN, "reopened")
    desk.after(1000)
    put(desk.store, *[(name, told(OVER, "resolved", "again")) for name in desk.sinks], incidents=[OVER])
    assert desk.after(1000) == [[], []] and desk.after(HOUR_MS) == [[], []]


def test_a_mute_that_is_ended_early_lets_go_at_once(desk: Desk) -> None:
    desk.store.add_mute(mute())
    desk.happens(OPEN, "opened")
    assert desk.after() == [[], []]
    desk.store.end_mute("0badcafe", desk.clock.now_ms + 1000)
    assert desk.after(1000) == [["a-opened"], ["a-opened"]]


def test_a_mute_that_ends_while_no_process_runs_lets_go_at_the_next_start(desk: Desk) -> None:
    desk.store.add_mute(mute())
    desk.happens(OPEN, "opened")
    assert desk.after() == [[], []]
    desk.restart()
    assert desk.after(HOUR_MS) == [["a-opened"], ["a-opened"]]


def test_of_two_mutes_both_must_end(desk: Desk) -> None:
    desk.store.add_mute(mute())
    desk.store.add_mute(dataclasses.replace(mute(model="triage"), id="2", until_ms=START_MS + 2 * HOUR_MS))
    desk.happens(OPEN, "opened")
    assert desk.after() == desk.after(HOUR_MS) == [[], []]
    assert desk.after(HOUR_MS) == [["a-opened"], ["a-opened"]]


def test_a_mute_to_come_holds_nothing_yet(desk: Desk) -> None:
    desk.store.add_mute(dataclasses.replace(mute(), from_ms=START_MS + 1000))
    desk.happens(OPEN, "opened")
    assert desk.after() == [["a-opened"], ["a-opened"]]


def test_a_mute_holds_what_waits_for_another_attempt_too(desk: Desk) -> None:
    desk.sinks["file"].errors = [SinkError("down.", retryable=True)]
    desk.happens(OPEN, "opened")
    desk.after()
    desk.store.add_mute(mute())
    assert desk.after(60_000) == [[], []]
    assert desk.after(HOUR_MS) == [["a-opened"], []]


def test_what_is_held_is_not_deleted_by_retention(desk: Desk) -> None:
    desk.store.add_mute(mute())
    desk.happens(OPEN, "opened")
    desk.after()
    desk.store.prune(desk.clock.now_ms + 365 * 24 * HOUR_MS, Retention(outbox_days=1, outbox_rows=0))
    assert [row[2] for row in outbox(desk.database)] == ["held", "held"]


def test_that_an_acknowledged_incident_goes_on_is_not_told_but_its_end_is(desk: Desk) -> None:
    desk.happens(OPEN, "opened")
    desk.after()
    desk.store.acknowledge_incident("a", "ana", desk.clock.now_ms)
    (taken,) = desk.store.incidents()
    desk.happens(dataclasses.replace(taken, revision=2), "repeated")
    assert desk.after(1000) == [[], []]
    assert desk.muted() == [1, 1]
    desk.happens(dataclasses.replace(OVER, detail=taken.detail, revision=3), "resolved")
    assert desk.after(1000) == [["a-resolved"], ["a-resolved"]]


def test_an_acknowledged_warning_that_becomes_a_page_is_told(desk: Desk) -> None:
    desk.happens(incident("a", severity="warn"), "opened")
    desk.after()
    desk.store.acknowledge_incident("a", "ana", desk.clock.now_ms)
    (taken,) = desk.store.incidents()
    desk.happens(dataclasses.replace(taken, severity="page", revision=2), "raised")
    assert desk.after(1000) == [["a-raised"], ["a-raised"]]


def test_many_incidents_under_a_mute_are_held_and_let_go_together(desk: Desk) -> None:
    desk.store.add_mute(mute())
    rows = [incident(f"i{number:04}", segment=f"s={number}") for number in range(2500)]
    put(desk.store, *[("chat", told(row, "opened")) for row in rows], incidents=rows)
    assert desk.after() == [[], []]
    assert {row[2] for row in outbox(desk.database)} == {"held"}
    found = desk.after(HOUR_MS)[1] + desk.after(1000)[1]
    assert found == [f"i{number:04}-opened" for number in range(2500)]
