"""A receiver that keeps one alert for each model, behind the real outbox: what it holds in the end is the truth."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from connectors.database.rows import IncidentRow, MuteRow
from connectors.database.store import Store
from connectors.webhook import WebhookSettings
from monitor.incidents import EventName
from monitor.outbox import RetryPolicy, SinkQueue
from tests.senders import AT_ONCE, START_MS, Clock, incident, put, told
from tests.servers.receiver import Answer, Receiver


class Pager:
    """PagerDuty as far as it matters here: which alerts are open after all that came in."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.clock = Clock()
        self.store = Store.open(f"sqlite:///{folder / 'driftd.db'}", now_ms=self.clock)
        self.store.migrate()
        self.receiver = receiver
        settings = WebhookSettings(preset="pagerduty", url=SecretStr(receiver.url), secret=SecretStr("k"))
        self._queue = SinkQueue("pager", settings.build(), self.store, policy=RetryPolicy(), pace=AT_ONCE)

    def happens(self, *changes: tuple[IncidentRow, EventName]) -> set[str]:
        """The alerts that are open when these changes were told."""
        for row, event in changes:
            put(self.store, ("pager", told(row, event, f"{row.id}-{row.revision}")), incidents=[row])
        self.clock.now_ms += 1000
        self._queue.pump(self.clock, threading.Event())
        return self.open

    @property
    def open(self) -> set[str]:
        alerts: set[str] = set()
        for request in self.receiver.requests:
            change = alerts.add if request.json["event_action"] == "trigger" else alerts.discard
            change(request.json["dedup_key"])
        return alerts


@pytest.fixture
def pager(tmp_path: Path) -> Iterator[Pager]:
    with Receiver(Answer(202)) as receiver:
        pager = Pager(tmp_path, receiver)
        yield pager
        pager.store.close()


def over(row: IncidentRow) -> tuple[IncidentRow, EventName]:
    segment = row.segment
    return incident(row.id, model=row.model, segment=segment, status="resolved", revision=row.revision + 1), "resolved"


A, B = incident("a", segment="s=1"), incident("b", segment="s=2")
MUTE = MuteRow("0badcafe", "triage", "", "", "s=2", START_MS, START_MS + 3_600_000, "deploy", "ana", START_MS)


def test_an_alert_is_open_from_the_first_incident_to_the_end_of_the_last(pager: Pager) -> None:
    assert pager.happens((A, "opened")) == {"driftd:triage"}
    assert pager.happens((B, "opened")) == {"driftd:triage"}
    assert pager.happens(over(A)) == {"driftd:triage"}
    assert pager.happens(over(B)) == set()


def test_what_is_muted_keeps_no_alert_open(pager: Pager) -> None:
    pager.store.add_mute(MUTE)
    assert pager.happens((A, "opened"), (B, "opened")) == {"driftd:triage"}
    assert pager.happens(over(A)) == set(), "the receiver never heard of the other one"
    assert pager.happens(over(B)) == set() and len(pager.receiver.requests) == 2


def test_what_was_told_before_it_was_muted_keeps_it_open(pager: Pager) -> None:
    assert pager.happens((A, "opened"), (B, "opened")) == {"driftd:triage"}
    pager.store.add_mute(MUTE)
    assert pager.happens(over(A)) == {"driftd:triage"}


def test_what_comes_back_while_it_is_muted_opens_nothing(pager: Pager) -> None:
    assert pager.happens((B, "opened")) == {"driftd:triage"}
    assert pager.happens(over(B)) == set()
    pager.store.add_mute(MUTE)
    again = incident("b", segment="s=2", revision=3)
    assert pager.happens((again, "reopened"), (A, "opened")) == {"driftd:triage"}
    assert pager.happens(over(A)) == set()


def test_a_storm_over_many_models_leaves_an_alert_of_each(pager: Pager) -> None:
    rows = [incident(f"i{n}", model=f"m{n}") for n in range(12)]
    assert pager.happens(*((row, "opened") for row in rows)) == {f"driftd:m{n}" for n in range(12)}
    assert pager.happens(*(over(row) for row in rows[2:])) == {"driftd:m0", "driftd:m1"}
