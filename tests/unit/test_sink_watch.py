"""A sink that takes nothing is an incident, told through the others; and sinks that are told again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from connectors.database.store import Store
from connectors.notification import Notification
from connectors.prometheus import Metrics
from detectors.errors import SinkError
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.sender import OutboxSender
from monitor.sink_watch import resolve_removed
from tests.senders import START_MS, Clock, ScriptedSink, incident, outbox, put, told

NEVER = threading.Event()
DOWN = SinkError("The pager got nothing: connection refused.", retryable=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "driftd.db"


@pytest.fixture
def store(database: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(f"sqlite:///{database}", now_ms=clock) as store:
        store.migrate()
        yield store


def queue_of(store: Store, sink: ScriptedSink, others: Sequence[str] = ("mail",)) -> SinkQueue:
    return SinkQueue("pager", sink, store, policy=RetryPolicy(), others=others)


def sink_incidents(store: Store) -> list[tuple[str, str, str]]:
    return [(row.model, row.segment, row.status) for row in store.incidents() if row.kind == "sink"]


def pump(queue: SinkQueue, clock: Clock, seconds: int) -> None:
    for _ in range(0, seconds, 5):
        clock.now_ms += 5_000
        queue.pump(clock, NEVER)


def test_a_sink_that_refuses_for_ten_minutes_is_told_of_through_the_others_until_it_works(
    store: Store, clock: Clock, database: Path
) -> None:
    put(store, ("pager", told(incident("a"), "opened")))
    queue = queue_of(store, ScriptedSink(*[DOWN] * 10))
    queue.pump(clock, NEVER)
    pump(queue, clock, 595)
    assert sink_incidents(store) == [] and queue.trouble == ""
    pump(queue, clock, 5)
    assert sink_incidents(store) == [("driftd", "sink=pager", "open")]
    (row,) = [row for row in store.incidents() if row.kind == "sink"]
    assert (row.severity, row.onset_ms) == ("page", START_MS)
    assert row.title == "driftd: alerts do not get through (sink=pager)"
    assert "connection refused" in row.text and "Next: driftd check" in row.text and queue.trouble == row.text
    pump(queue, clock, 1800)
    assert sink_incidents(store) == [("driftd", "sink=pager", "resolved")] and queue.trouble == ""
    sent = [(sink, event) for sink, event in outbox(database, "sink, event") if sink == "mail"]
    assert sent == [("mail", "opened"), ("mail", "resolved")], "and never through the sink itself"


def test_the_incident_of_a_sink_that_is_no_longer_in_the_settings_is_resolved(
    store: Store, clock: Clock, database: Path
) -> None:
    refuses = SinkError("The pager answers 401.", retryable=False)
    put(store, ("pager", told(incident("a"), "opened")))
    queue_of(store, ScriptedSink(refuses)).pump(clock, NEVER)
    assert sink_incidents(store) == [("driftd", "sink=pager", "open")]
    resolve_removed(store, ["mail", "pager"], clock())
    assert sink_incidents(store) == [("driftd", "sink=pager", "open")], "it is still there"
    sender = OutboxSender(store, {"mail": ScriptedSink()}, clock=clock, look_every_s=0.01)
    sender.start()
    sender.finish()
    assert sender.stop() == [] and sink_incidents(store) == [("driftd", "sink=pager", "resolved")]
    assert ("mail", "resolved") in outbox(database, "sink, event")


def test_an_incident_of_the_same_outage_has_the_same_id_and_another_outage_another(store: Store, clock: Clock) -> None:
    from monitor.operations import sink_incident

    ids = {sink_incident("pager", problem="x", given_up=False, since_ms=1, now_ms=now)[0].id for now in (5, 6)}
    ids |= {sink_incident(name, problem="x", given_up=False, since_ms=since, now_ms=9)[0].id for name, since in _OTHER}
    assert len(ids) == 3


_OTHER = (("pager", 2), ("mail", 1))


def test_a_notification_that_is_given_up_is_an_incident_at_once(store: Store, clock: Clock, database: Path) -> None:
    put(store, ("pager", told(incident("a"), "opened")))
    queue = queue_of(store, ScriptedSink(SinkError("answers 400.", retryable=False)))
    queue.pump(clock, NEVER)
    assert sink_incidents(store) == [("driftd", "sink=pager", "open")]
    (row,) = [row for row in store.incidents() if row.kind == "sink"]
    assert "given up" in row.text
    put(store, ("pager", told(incident("b"), "opened")))
    pump(queue, clock, 5)
    assert sink_incidents(store) == [("driftd", "sink=pager", "resolved")]


def test_what_is_given_up_is_told_even_if_the_next_one_is_taken_in_the_same_moment(
    store: Store, clock: Clock, database: Path
) -> None:
    put(store, *[("pager", told(incident(name), "opened")) for name in "ab"])
    queue_of(store, ScriptedSink(SinkError("answers 400.", retryable=False))).pump(clock, NEVER)
    assert [event for sink, event in outbox(database, "sink, event") if sink == "mail"] == ["opened", "resolved"]


def test_a_process_that_starts_later_resolves_what_another_one_opened(store: Store, clock: Clock) -> None:
    put(store, ("pager", told(incident("a"), "opened")))
    queue_of(store, ScriptedSink(SinkError("answers 400.", retryable=False))).pump(clock, NEVER)
    put(store, ("pager", told(incident("b"), "opened")))
    queue_of(store, ScriptedSink()).pump(clock, NEVER)
    assert sink_incidents(store) == [("driftd", "sink=pager", "resolved")]


def test_a_failure_that_another_process_made_good_is_no_trouble_of_the_sink(store: Store, clock: Clock) -> None:
    put(store, ("pager", told(incident("a"), "opened")))
    first = queue_of(store, ScriptedSink(DOWN))
    first.pump(clock, NEVER)
    clock.now_ms += 2_000
    assert queue_of(store, ScriptedSink()).pump(clock, NEVER) == 1
    pump(first, clock, 1200)
    assert sink_incidents(store) == []


def test_two_processes_open_one_incident(store: Store, clock: Clock, database: Path) -> None:
    put(store, *[("pager", told(incident(name), "opened")) for name in "abcd"])
    queues = [queue_of(store, ScriptedSink(*[DOWN] * 99)) for _ in range(2)]
    for _ in range(200):
        clock.now_ms += 5_000
        for queue in queues:
            queue.pump(clock, NEVER)
    assert sink_incidents(store) == [("driftd", "sink=pager", "open")]
    assert [sink for (sink,) in outbox(database, "sink")].count("mail") == 1


def test_without_another_sink_the_log_and_the_list_say_it(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, ("pager", told(incident("a"), "opened")))
    queue = queue_of(store, ScriptedSink(SinkError("answers 400.", retryable=False)), others=())
    queue.pump(clock, NEVER)
    assert sink_incidents(store) == [("driftd", "sink=pager", "open")]
    assert "sink is in trouble" in caplog.text


def test_the_sender_names_the_sinks_that_are_in_trouble(store: Store, clock: Clock) -> None:
    bad, good = ScriptedSink(SinkError("answers 400.", retryable=False)), ScriptedSink()
    sender = OutboxSender(store, {"pager": bad, "mail": good}, clock=clock, look_every_s=600)
    put(store, ("pager", told(incident("a"), "opened")))
    sender.start()
    sender.finish(timeout_s=30)
    sender.stop()
    assert sender.troubles()["mail"] == "" and "Answers 400." in sender.troubles()["pager"]


# --- sinks whose other side forgets -----------------------------------------------------------------------------------


class RefreshedSink(ScriptedSink):
    """Keeps what it is told again and again."""

    refresh_every_s: ClassVar[float] = 60.0

    def __init__(self, *errors: Exception) -> None:
        super().__init__(*errors)
        self.refreshed: list[list[str]] = []
        self.refresh_errors: list[Exception] = []

    def refresh(self, notifications: Sequence[Notification]) -> None:
        self.refreshed.append([one.id for one in notifications])
        if self.refresh_errors:
            raise self.refresh_errors.pop(0)


def test_a_refreshed_sink_is_told_what_was_sent_of_all_that_is_open(store: Store, clock: Clock) -> None:
    sink = RefreshedSink()
    queue = queue_of(store, sink)
    queue.pump(clock, NEVER)
    assert sink.refreshed == [], "there is nothing to tell"
    rows = [incident(name) for name in "ab"]
    put(store, *[("pager", told(row, "opened")) for row in rows], incidents=rows)
    pump(queue, clock, 60)
    assert sink.refreshed == [["a-opened", "b-opened"]]
    put(store, ("pager", told(incident("a"), "raised")), incidents=rows[:1])
    pump(queue, clock, 120)
    assert sink.refreshed[1:] == [["b-opened", "a-raised"]] * 2
    over = incident("a", status="resolved", revision=2)
    put(store, ("pager", told(over, "resolved")), incidents=[over])
    pump(queue, clock, 900)
    assert sink.refreshed[3:] == [["b-opened", "a-resolved"]] * 15
    sink.refreshed.clear()
    pump(queue, clock, 120)
    assert sink.refreshed == [["b-opened"]] * 2, "a quarter of an hour after it was told"


def test_what_the_sink_was_not_told_yet_is_not_refreshed(store: Store, clock: Clock) -> None:
    sink = RefreshedSink(SinkError("down.", retryable=True, retry_after_s=3000))
    queue = queue_of(store, sink)
    put(store, ("pager", told(incident("a"), "opened")), incidents=[incident("a")])
    pump(queue, clock, 120)
    assert sink.refreshed == []


def test_an_incident_whose_end_is_not_told_yet_still_fires_there(store: Store, clock: Clock) -> None:
    sink = RefreshedSink()
    queue = queue_of(store, sink)
    put(store, ("pager", told(incident("a"), "opened")), incidents=[incident("a")])
    pump(queue, clock, 60)
    sink.errors = [SinkError("slow down.", retryable=True, retry_after_s=300)]
    over = incident("a", status="resolved", revision=2)
    put(store, ("pager", told(over, "resolved")), incidents=[over])
    pump(queue, clock, 120)
    assert sink.refreshed == [["a-opened"]] * 3


def test_a_failed_refresh_is_counted_logged_once_and_holds_nothing_up(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="monitor")
    sink, metrics = RefreshedSink(), Metrics()
    queue = SinkQueue("pager", sink, store, policy=RetryPolicy(), metrics=metrics)
    put(store, ("pager", told(incident("a"), "opened")), incidents=[incident("a")])
    sink.refresh_errors = [DOWN, DOWN, ZeroDivisionError()]
    pump(queue, clock, 180)
    put(store, ("pager", told(incident("b"), "opened")), incidents=[incident("b")])
    pump(queue, clock, 5)
    assert sink.taken == ["a-opened", "b-opened"]
    assert metrics.registry.get_sample_value("driftd_sink_refresh_failures_total", {"sink": "pager"}) == 3
    assert [record.getMessage() for record in caplog.records if "cannot be refreshed" in record.getMessage()][:2] == [
        'sink cannot be refreshed reason="The pager got nothing: connection refused." count=1 sink=pager',
        "sink cannot be refreshed reason=ZeroDivisionError count=3 sink=pager",
    ]
    assert "sink cannot be refreshed: over" in caplog.text
