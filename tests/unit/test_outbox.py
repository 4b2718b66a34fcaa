"""The senders, with a real SQLite database, real sinks and a real HTTP receiver."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from connectors.database.store import Store
from connectors.jsonl import JsonlSink
from connectors.notification import Notification, Sink
from connectors.prometheus import Metrics
from connectors.webhook import WebhookSettings
from detectors.errors import SinkError, StoreError
from monitor.checks import outbox_finding
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.sender import OutboxSender
from tests.senders import AT_ONCE, NOTE, Clock, ScriptedSink, outbox, put
from tests.servers.receiver import Answer, Receiver

QUICK = RetryPolicy(first_s=0.01, longest_s=0.05)


def note(identity: str, *, incident: str = "abc123") -> Notification:
    return dataclasses.replace(NOTE, id=identity, incident=incident)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "driftd.db"


@pytest.fixture
def store(database: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{database}") as store:
        store.migrate()
        yield store


def webhook(receiver: Receiver, timeout_s: float = 5.0) -> Sink:
    return WebhookSettings(url=SecretStr(receiver.url), timeout_s=timeout_s).build()


def queue(store: Store, sink: ScriptedSink, *, name: str = "pager", metrics: Metrics | None = None) -> SinkQueue:
    return SinkQueue(name, sink, store, policy=RetryPolicy(), metrics=metrics)


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while not true():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        tick.wait(0.005)


def metric(metrics: Metrics, name: str, sink: str = "pager") -> float | None:
    return metrics.registry.get_sample_value(name, {"sink": sink})


def test_notifications_are_sent_once_in_order_and_marked(store: Store, database: Path) -> None:
    put(store, *[("pager", note(f"n{index}", incident=f"i{index % 2}")) for index in range(6)])
    sink, clock = ScriptedSink(), Clock()
    assert queue(store, sink).pump(clock, threading.Event()) == 6
    assert [name for name in sink.taken if name in ("n0", "n2", "n4")] == ["n0", "n2", "n4"]
    assert sorted(sink.taken) == [f"n{index}" for index in range(6)]
    assert {row[2:] for row in outbox(database)} == {("sent", 1)}
    assert queue(store, sink).pump(clock, threading.Event()) == 0


def test_a_failure_is_tried_again_later_and_holds_back_the_later_ones_of_its_incident(
    store: Store, database: Path
) -> None:
    put(store, ("pager", note("firing")), ("pager", note("resolved")))
    sink, clock = ScriptedSink(SinkError("down.", retryable=True)), Clock()
    sending = queue(store, sink)
    assert sending.pump(clock, threading.Event()) == 0
    assert sink.tried == ["firing"] and outbox(database)[0] == ("pager", "firing", "pending", 1)
    # A new process must wait just as long: what is known is in the database.
    assert queue(store, sink).pump(clock, threading.Event()) == 0
    clock.now_ms += 1000
    assert sending.pump(clock, threading.Event()) == 2
    assert sink.taken == ["firing", "resolved"]


def test_waits_double_up_to_a_quarter_of_an_hour_and_last_about_a_day() -> None:
    policy = RetryPolicy()
    waits = [policy.wait_s("pager n1", attempt) for attempt in range(1, policy.attempts)]
    assert waits == [policy.wait_s("pager n1", attempt) for attempt in range(1, policy.attempts)]
    assert waits[0] != policy.wait_s("pager n2", 1)
    for attempt, wait in enumerate(waits):
        whole = min(2.0**attempt, 900.0)
        assert whole / 2 <= wait <= whole
    assert 0.5 < sum(waits) / 86_400 < 1.0
    assert policy.wait_s("x", 10**6) <= 900.0


def test_retry_after_is_honoured_for_the_whole_sink(store: Store) -> None:
    put(store, ("pager", note("a", incident="1")), ("pager", note("b", incident="2")))
    sink, clock = ScriptedSink(SinkError("slow down.", retryable=True, retry_after_s=120.0)), Clock()
    sending = queue(store, sink)
    sending.pump(clock, threading.Event())
    assert sink.tried == ["a"]
    clock.now_ms += 119_999
    assert sending.pump(clock, threading.Event()) == 0 and sink.tried == ["a"]
    clock.now_ms += 1
    assert sending.pump(clock, threading.Event()) == 2


def test_an_outage_uses_up_no_attempts_of_those_who_wait(store: Store, database: Path) -> None:
    put(store, *[("pager", note(f"n{index}", incident=f"i{index}")) for index in range(20)])
    sink, clock = ScriptedSink(*[SinkError("down.", retryable=True) for _ in range(8)]), Clock()
    sending = queue(store, sink)
    for _ in range(8):
        sending.pump(clock, threading.Event())
        clock.now_ms = sending.paused_until_ms
    assert len(sink.tried) == 8
    assert sum(int(str(row[3])) for row in outbox(database)) == 8


def test_what_will_never_be_taken_is_given_up_at_once_and_frees_the_next(store: Store, database: Path) -> None:
    put(store, ("pager", note("bad")), ("pager", note("good")))
    sink, metrics = ScriptedSink(SinkError("answers 400.", retryable=False)), Metrics()
    assert queue(store, sink, metrics=metrics).pump(Clock(), threading.Event()) == 1
    assert outbox(database) == [("pager", "bad", "dead", 1), ("pager", "good", "sent", 1)]
    assert outbox(database, "error")[0] == ("answers 400.",)
    assert metric(metrics, "driftd_outbox_dead_total") == 1 and metric(metrics, "driftd_outbox_sent_total") == 1


def test_after_the_last_attempt_it_is_given_up(store: Store, database: Path) -> None:
    put(store, ("pager", note("n")))
    sink, clock = ScriptedSink(*[SinkError("down.", retryable=True) for _ in range(10)]), Clock()
    sending = SinkQueue("pager", sink, store, policy=RetryPolicy(attempts=3))
    for _ in range(5):
        sending.pump(clock, threading.Event())
        clock.now_ms += 3_600_000
    assert len(sink.tried) == 3
    assert outbox(database) == [("pager", "n", "dead", 3)]


def test_a_defect_in_a_sink_is_logged_and_tried_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store, ("pager", note("n")))
    sink, clock = ScriptedSink(ZeroDivisionError("customer 4711")), Clock()
    sending = queue(store, sink)
    sending.pump(clock, threading.Event())
    assert "unexpected error" in caplog.text
    clock.now_ms += 1000
    assert sending.pump(clock, threading.Event()) == 1


def test_a_notification_is_not_sent_again_because_the_database_cannot_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    put(store, ("pager", note("n")))
    sink, clock = ScriptedSink(), Clock()
    sending = queue(store, sink)

    def refuse(sink: str, ids: list[str], now_ms: int | None) -> None:
        raise StoreError("no space left.")

    with monkeypatch.context() as patched:
        patched.setattr(store, "outbox_sent", refuse)
        for _ in range(5):
            with pytest.raises(StoreError):
                sending.pump(clock, threading.Event())
    sending.pump(clock, threading.Event())
    assert sink.taken == ["n"]
    assert outbox(database) == [("pager", "n", "sent", 1)]


def test_a_clock_that_is_set_back_prolongs_no_pause(store: Store) -> None:
    put(store, ("pager", note("n")))
    sink, clock = ScriptedSink(SinkError("slow down.", retryable=True, retry_after_s=10**9)), Clock()
    sending = queue(store, sink, metrics=(metrics := Metrics()))
    sending.pump(clock, threading.Event())
    assert sink.tried == ["n"] and sending.paused_until_ms - clock.now_ms < 3_600_000
    clock.now_ms -= 86_400_000
    assert sending.pump(clock, threading.Event()) == 1
    assert metric(metrics, "driftd_outbox_age_seconds") == 0


def test_two_processes_send_each_notification_once_and_each_incident_in_order(store: Store, database: Path) -> None:
    put(
        store,
        *[("pager", note(f"{step}-{number}", incident=f"i{number}")) for step in range(3) for number in range(20)],
    )
    arrived: list[str] = []

    def take(sink: ScriptedSink) -> None:
        with Store.open(f"sqlite:///{database}") as mine:
            sender = OutboxSender(mine, {"pager": sink}, look_every_s=0.01)
            sender.start()
            wait_until(lambda: mine.outbox_waiting()[0] == 0, timeout_s=30)
            assert sender.stop() == []

    class Shared(ScriptedSink):
        def send(self, notification: Notification) -> None:
            super().send(notification)
            arrived.append(notification.id)

    sinks = [Shared(), Shared()]
    threads = [threading.Thread(target=take, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(arrived) == sorted(f"{step}-{number}" for step in range(3) for number in range(20))
    for number in range(20):
        assert [name for name in arrived if name.endswith(f"-{number}")] == [f"{step}-{number}" for step in range(3)]


def test_what_a_killed_process_had_claimed_is_sent_when_its_lease_is_over(store: Store) -> None:
    put(store, ("pager", note("firing")), ("pager", note("resolved")))
    sink, clock = ScriptedSink(), Clock()
    assert store.outbox_claim("pager", clock(), 60_000, 1)  # and nothing more is heard of it
    sending = queue(store, sink)
    assert sending.pump(clock, threading.Event()) == 0
    clock.now_ms += 60_000
    assert sending.pump(clock, threading.Event()) == 2
    assert sink.taken == ["firing", "resolved"]


def test_a_stop_ends_a_long_queue_between_two_notifications(store: Store) -> None:
    put(store, *[("pager", note(f"n{index}", incident=f"i{index}")) for index in range(50)])
    stopping = threading.Event()

    class Stopping(ScriptedSink):
        def send(self, notification: Notification) -> None:
            super().send(notification)
            if len(self.taken) == 3:
                stopping.set()

    assert queue(store, Stopping()).pump(Clock(), stopping) == 3


def test_a_sink_that_is_down_with_many_rows_hides_no_rows_of_another(store: Store) -> None:
    put(store, *[("dead", note(f"n{index}", incident=f"i{index}")) for index in range(450)], ("pager", note("mine")))
    sink = ScriptedSink()
    assert queue(store, sink).pump(Clock(), threading.Event()) == 1
    assert sink.taken == ["mine"]


def test_a_sink_that_hangs_delays_no_other_and_no_stop(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    with Receiver(Answer(hang=True)) as receiver:
        sender = OutboxSender(
            store,
            {"slow": webhook(receiver, timeout_s=25), "file": JsonlSink(path)},
            pace=AT_ONCE,
            look_every_s=0.02,
        )
        put(store, *[(sink, note(f"n{index}")) for index in range(3) for sink in ("slow", "file")])
        sender.start()
        receiver.wait_for(1)
        wait_until(lambda: path.exists() and len(path.read_text().splitlines()) == 3)
        began = time.monotonic()
        assert sender.stop(timeout_s=0.3) == ["slow"]
        assert time.monotonic() - began < 2
        assert len(receiver.requests) == 1


def test_a_sender_that_waits_for_its_next_look_stops_at_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    sender = OutboxSender(store, {"file": JsonlSink(path)}, look_every_s=600)
    put(store, ("file", note("n")))
    sender.start()
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    began = time.monotonic()
    assert sender.stop() == []
    assert time.monotonic() - began < 2


def test_a_receiver_that_comes_back_gets_everything_in_order_and_the_metrics_say_so(store: Store) -> None:
    metrics = Metrics()
    with Receiver(Answer(503), Answer(429, {"Retry-After": "0"}), Answer(500), Answer(200)) as receiver:
        sender = OutboxSender(
            store, {"pager": webhook(receiver)}, metrics=metrics, policy=QUICK, pace=AT_ONCE, look_every_s=0.01
        )
        put(store, *[("pager", note(f"n{index}", incident=f"i{index}")) for index in range(3)])
        sender.start()
        receiver.wait_for(4)
        wait_until(lambda: store.outbox_waiting()[0] == 0)
        assert sender.stop() == []
    arrived = [[alert["annotations"]["notification_id"] for alert in got.json["alerts"]] for got in receiver.requests]
    assert arrived == [["n0", "n1", "n2"]] * 4
    assert metric(metrics, "driftd_outbox_sent_total") == 3 and metric(metrics, "driftd_outbox_failed_total") == 3
    assert metric(metrics, "driftd_messages_total") == 1
    assert metrics.registry.get_sample_value("driftd_outbox_depth") is not None


def test_the_age_metric_grows_while_a_sink_refuses(store: Store) -> None:
    put(store, ("pager", note("n")))
    metrics, clock = Metrics(), Clock()
    sending = queue(store, ScriptedSink(*[SinkError("down.", retryable=True)] * 2), metrics=metrics)
    for wait_ms in (0, 700_000, 700_000):
        clock.now_ms += wait_ms
        sending.pump(clock, threading.Event())
    assert metric(metrics, "driftd_outbox_age_seconds") == 0
    put(store, ("pager", note("m")))
    sending = queue(store, ScriptedSink(*[SinkError("down.", retryable=True)] * 2), metrics=metrics)
    for wait_ms in (0, 700_000):
        clock.now_ms += wait_ms
        sending.pump(clock, threading.Event())
    assert metric(metrics, "driftd_outbox_age_seconds") == 700


def test_the_doctor_tells_notifications_that_wait_for_long(store: Store, database: Path) -> None:
    clock = Clock()
    assert outbox_finding(store, clock.now_ms).ok
    with Store.open(f"sqlite:///{database}", now_ms=clock) as stamped:
        put(stamped, ("pager", note("n")))
    found = outbox_finding(store, clock.now_ms + 599_000)
    assert found.ok and found.detail == "1 notification waits to be sent, the oldest for 10 minutes"
    assert not outbox_finding(store, clock.now_ms + 600_000).ok
    assert outbox_finding(store, clock.now_ms - 600_000).ok, "the clock was set back"
    put(store, *[("pager", note(f"n{index}", incident=f"i{index}")) for index in range(100)])
    assert not outbox_finding(store, clock.now_ms).ok


class FlakyStore:
    """The real store, with an outage that can be switched on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down = False

    def __getattr__(self, name: str) -> Callable[..., object]:
        if self.down:
            raise StoreError("The database does not answer.")
        return getattr(self._store, name)  # type: ignore[no-any-return]


def test_senders_outlive_a_database_outage_and_log_it_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="monitor")
    path, flaky = tmp_path / "alerts.jsonl", FlakyStore(store)
    flaky.down = True
    sinks = {"file": JsonlSink(path), "other": JsonlSink(tmp_path / "other.jsonl")}
    sender = OutboxSender(flaky, sinks, look_every_s=0.01)  # type: ignore[arg-type]
    put(store, ("file", note("n")))
    sender.start()
    wait_until(lambda: "outbox cannot be read" in caplog.text)
    flaky.down = False
    wait_until(lambda: path.exists() and store.outbox_waiting()[0] == 0)
    wait_until(lambda: "outbox cannot be read or written: over" in caplog.text)
    assert sender.stop() == []
    lines: Sequence[str] = [line for line in caplog.text.splitlines() if "outbox cannot" in line]
    assert len(lines) == 2
