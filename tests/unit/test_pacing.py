"""When people are told: the pace of messages, with a real SQLite database and a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from connectors.database.rows import IncidentRow, Waiting, WaitingModel
from connectors.database.store import Store
from connectors.prometheus import Metrics
from detectors.errors import SinkError
from monitor.incidents import EventName
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.pacing import Pace, due_models, due_ms
from monitor.sender import OutboxSender
from tests.senders import Clock, ScriptedGroupSink, incident, outbox, put, told

PACE = Pace(group_wait_ms=10_000, group_interval_ms=60_000, most_per_minute=10)
NEVER = threading.Event()


class Desk:
    """One sink that people read, its queue, and a clock that also stamps what is stored."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.database = folder / "driftd.db"
        self.store = Store.open(f"sqlite:///{self.database}", now_ms=self.clock)
        self.store.migrate()
        self.sink = ScriptedGroupSink()
        self.metrics = Metrics()
        self.queue = self.new_queue()

    def new_queue(self, sink: ScriptedGroupSink | None = None, pace: Pace = PACE) -> SinkQueue:
        """As a process that has just been started."""
        policy = RetryPolicy(attempts=4)
        return SinkQueue("pager", sink or self.sink, self.store, policy=policy, pace=pace, metrics=self.metrics)

    def happens(self, row: IncidentRow, event: EventName = "opened") -> None:
        put(self.store, ("pager", told(row, event)), incidents=[row])

    def after(self, seconds: float) -> list[str]:
        """Keys of the messages that went out by then; looked at every second."""
        before = len(self.sink.groups)
        for _ in range(round(seconds)):
            self.clock.now_ms += 1000
            self.queue.pump(self.clock, NEVER)
        return [group.key for group in self.sink.groups[before:]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def test_a_model_waits_for_more_of_it_and_then_tells_all_in_one_message(desk: Desk) -> None:
    desk.happens(incident("a", segment="s=1"))
    assert desk.after(6) == []
    desk.happens(incident("b", segment="s=2", severity="warn"))
    desk.happens(incident("c", segment="s=3", severity="warn"))
    assert desk.after(3) == []
    assert desk.after(1) == ["triage"], "ten seconds after the first"
    assert desk.sink.told == [("triage", ["a-opened", "b-opened", "c-opened"])]
    (group,) = desk.sink.groups
    assert (group.firing, group.pages, group.severity) == (3, 1, "page")
    assert {row[2:] for row in outbox(desk.database)} == {("sent", 1)}
    assert desk.after(100) == []
    value = desk.metrics.registry.get_sample_value
    assert value("driftd_messages_total", {"sink": "pager"}) == 1
    assert value("driftd_outbox_sent_total", {"sink": "pager"}) == 3


def test_what_comes_after_a_message_waits_for_the_interval(desk: Desk) -> None:
    desk.happens(incident("a", severity="warn"))
    assert desk.after(10) == ["triage"]
    desk.happens(incident("b", severity="warn", segment="s=1"))
    assert desk.after(59) == []
    assert desk.after(1) == ["triage"]


def test_news_of_a_page_waits_only_for_the_last_message_with_a_page(desk: Desk) -> None:
    desk.happens(incident("a", severity="warn"))
    assert desk.after(10) == ["triage"]
    desk.happens(incident("b", segment="s=1"))
    assert desk.after(9) == [] and desk.after(1) == ["triage"], "it does not wait for the interval of a warning"
    desk.happens(incident("c", segment="s=2"))
    assert desk.after(59) == [] and desk.after(1) == ["triage"]


def test_the_end_of_a_page_is_no_news_of_a_page(desk: Desk) -> None:
    desk.happens(incident("a", severity="warn"))
    assert desk.after(10) == ["triage"]
    desk.happens(incident("b", status="resolved"), "resolved")
    assert desk.after(59) == [] and desk.after(1) == ["triage"]


def test_models_wait_for_themselves_only(desk: Desk) -> None:
    desk.happens(incident("a", model="m1"))
    assert desk.after(10) == ["m1"]
    desk.happens(incident("b", model="m1"))
    desk.happens(incident("c", model="m2"))
    assert desk.after(10) == ["m2"]
    assert desk.after(50) == ["m1"]


def test_up_to_five_models_at_once_have_a_message_each_and_more_share_one(desk: Desk) -> None:
    for number in range(5):
        desk.happens(incident(f"i{number}", model=f"m{number}"))
    assert desk.after(10) == ["m0", "m1", "m2", "m3", "m4"]
    for number in range(6):
        desk.happens(incident(f"j{number}", model=f"n{number}"))
    assert desk.after(10) == ["*"]
    assert desk.sink.told[-1] == ("*", [f"j{number}-opened" for number in range(6)])


def test_no_more_than_the_most_messages_go_out_in_any_minute(desk: Desk) -> None:
    sent: list[int] = []
    for second in range(300):
        desk.happens(incident(f"i{second}", model=f"m{second}"))
        sent += [second] * len(desk.after(1))
    assert max(sum(start <= at < start + 60 for at in sent) for start in range(300)) == 10
    desk.after(120)
    assert sorted(one for _, ids in desk.sink.told for one in ids) == sorted(f"i{s}-opened" for s in range(300))


def test_the_limit_holds_for_two_processes_together(desk: Desk) -> None:
    other = desk.new_queue()
    for number in range(30):
        desk.happens(incident(f"i{number}", model=f"m{number}"))
        desk.clock.now_ms += 500
        desk.queue.pump(desk.clock, NEVER)
        other.pump(desk.clock, NEVER)
    assert len(desk.sink.groups) <= 10


def test_a_new_process_goes_on_at_the_same_pace(desk: Desk) -> None:
    desk.happens(incident("a"))
    assert desk.after(10) == ["triage"]
    desk.happens(incident("b"))
    desk.queue = desk.new_queue()
    assert desk.after(59) == [] and desk.after(1) == ["triage"]


def test_of_two_processes_that_look_at_once_one_takes_the_group(desk: Desk) -> None:
    rows = [incident(f"i{number}") for number in range(50)]
    put(desk.store, *[("pager", told(row, "opened")) for row in rows], incidents=rows)
    desk.clock.now_ms += 10_000
    ready = threading.Barrier(3)
    taken: list[int] = []

    def take() -> None:
        with Store.open(f"sqlite:///{desk.database}") as mine:
            ready.wait(timeout=10)
            now_ms = desk.clock.now_ms
            found = mine.outbox_claim_group(
                *("pager", now_ms, 60_000),
                since_ms=0,
                choose=lambda waiting: due_models(waiting, PACE, now_ms),
                limit=99,
            )
            taken.append(len(found))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(taken) == [0, 0, 50]


def test_a_failed_message_is_tried_again_with_what_came_meanwhile(desk: Desk) -> None:
    desk.sink.errors = [SinkError("down.", retryable=True)]
    desk.happens(incident("a"))
    assert desk.after(10) == []
    desk.happens(incident("a", status="resolved", revision=2), "resolved")
    assert desk.after(1) == ["triage"]
    assert desk.sink.tried == ["a-opened", "a-opened a-resolved"]
    assert outbox(desk.database, "notification_id, status, attempts") == [
        ("a-opened", "sent", 2),
        ("a-resolved", "sent", 1),
    ]


def test_nothing_of_a_model_overtakes_its_message_that_waits_for_another_attempt(desk: Desk) -> None:
    desk.sink.errors = [SinkError("slow down.", retryable=True, retry_after_s=120.0)]
    desk.happens(incident("a"))
    desk.after(10)
    desk.happens(incident("a", status="resolved", revision=2), "resolved")
    other = desk.new_queue()  # of a process that has met no failure
    for _ in range(119):
        desk.clock.now_ms += 1000
        other.pump(desk.clock, NEVER)
    assert desk.sink.tried == ["a-opened"]
    desk.clock.now_ms += 1000
    other.pump(desk.clock, NEVER)
    assert desk.sink.told == [("triage", ["a-opened", "a-resolved"])]


def test_after_the_last_attempt_all_of_the_message_is_given_up_but_what_is_younger(desk: Desk) -> None:
    desk.sink.errors = [SinkError("down.", retryable=True) for _ in range(4)]
    desk.happens(incident("a"))
    desk.happens(incident("b", segment="s=1"))
    desk.after(60)
    desk.happens(incident("c", segment="s=2"))
    desk.clock.now_ms += 3_600_000
    desk.after(120)
    status = dict(outbox(desk.database, "notification_id, status"))
    assert status == {"a-opened": "dead", "b-opened": "dead", "c-opened": "sent"}


@pytest.mark.parametrize("bad", [0, 3, 8])
def test_one_notification_that_is_refused_does_not_take_the_others_with_it(desk: Desk, bad: int) -> None:
    refusal = SinkError("answers 400.", retryable=False)
    desk.sink = ScriptedGroupSink(refuses=[f"i{bad}-opened"], refusal=refusal)
    desk.queue = desk.new_queue()
    for number in range(9):
        desk.happens(incident(f"i{number}", segment=f"s={number}"))
    desk.after(130)
    status = dict(outbox(desk.database, "notification_id, status"))
    assert status == {f"i{number}-opened": "dead" if number == bad else "sent" for number in range(9)}
    assert desk.sink.taken == sorted(desk.sink.taken), "in their order"
    assert len(desk.sink.groups) <= 4


def test_a_sink_that_refuses_everything_is_not_asked_for_each_of_a_thousand(desk: Desk) -> None:
    desk.sink = ScriptedGroupSink(*[SinkError("answers 401.", retryable=False)] * 100)
    desk.queue = desk.new_queue()
    rows = [incident(f"i{number}", segment=f"s={number}") for number in range(1000)]
    put(desk.store, *[("pager", told(row, "opened")) for row in rows], incidents=rows)
    desk.after(200)
    assert len(desk.sink.tried) < 20
    assert {row[0] for row in outbox(desk.database, "status")} == {"dead"}


def test_the_parts_of_a_refused_message_are_messages_too(desk: Desk) -> None:
    refusal = SinkError("answers 400.", retryable=False)
    desk.sink = ScriptedGroupSink(refuses=[f"i{number:02}-opened" for number in range(0, 32, 2)], refusal=refusal)
    desk.queue = desk.new_queue()
    for number in range(32):
        desk.happens(incident(f"i{number:02}", segment=f"s={number}"))
    desk.after(10)
    assert len(desk.sink.groups) <= 10
    desk.after(240)
    assert desk.sink.taken == [f"i{number:02}-opened" for number in range(1, 32, 2)]


def test_of_more_than_fit_into_a_message_the_news_of_pages_go_first_and_the_order_of_an_incident_stays(
    desk: Desk,
) -> None:
    rows = [incident(f"w{number:04}", severity="warn", segment=f"s={number}") for number in range(1200)]
    put(desk.store, *[("pager", told(row, "opened")) for row in rows], incidents=rows)
    desk.happens(incident("w0900", segment="s=900", revision=2), "raised")
    assert desk.after(10) == ["triage"]
    (ids,) = [ids for _, ids in desk.sink.told]
    assert len(ids) == 1000 and ids[-1] == "w0900-raised" and "w0900-opened" in ids
    desk.after(60)
    assert sorted(desk.sink.taken) == sorted([*(f"w{number:04}-opened" for number in range(1200)), "w0900-raised"])


def test_without_waits_each_look_tells_what_there_is(desk: Desk) -> None:
    desk.queue = desk.new_queue(pace=Pace(group_wait_ms=0, group_interval_ms=0))
    desk.happens(incident("a"))
    assert desk.queue.pump(desk.clock, NEVER) == 1
    desk.happens(incident("b"))
    assert desk.queue.pump(desk.clock, NEVER) == 1


def test_what_is_left_at_the_end_goes_out_without_waiting_for_more(desk: Desk) -> None:
    desk.happens(incident("a"))
    sender = OutboxSender(desk.store, {"pager": desk.sink}, pace=PACE, clock=desk.clock, look_every_s=600)
    sender.start()
    sender.finish(timeout_s=30)
    assert desk.sink.told == [("triage", ["a-opened"])]
    assert sender.stop() == []


def test_a_clock_that_ran_ahead_holds_no_message_back(desk: Desk) -> None:
    desk.clock.now_ms += 86_400_000
    desk.happens(incident("a"))
    desk.after(10)
    desk.happens(incident("b"))
    desk.clock.now_ms -= 86_400_000
    assert desk.after(1) == ["triage"]


def waiting(*models: WaitingModel, messages: int = 0) -> Waiting:
    return Waiting(models, messages)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (WaitingModel("m", other_ms=100_000), 110_000),
        (WaitingModel("m", other_ms=100_000, told_ms=90_000), 150_000),
        (WaitingModel("m", other_ms=100_000, told_ms=20_000), 110_000),
        (WaitingModel("m", page_ms=100_000, told_ms=90_000), 110_000),
        (WaitingModel("m", page_ms=100_000, told_ms=90_000, told_page_ms=80_000), 140_000),
        (WaitingModel("m", page_ms=100_000, other_ms=90_000), 100_000),
        (WaitingModel("m", page_ms=100_000, other_ms=90_000, told_ms=80_000), 110_000),
    ],
)
def test_a_model_is_due_by_its_page_or_by_the_rest_whichever_is_first(one: WaitingModel, expected: int) -> None:
    assert due_ms(one, PACE, 120_000) == expected


@pytest.mark.parametrize(
    ("messages", "models", "expected"),
    [(0, 3, ["m0"]), (0, 6, "all"), (8, 2, ["m0"]), (8, 3, "all"), (9, 1, ["m0"]), (9, 2, "all"), (10, 9, [])],
)
def test_models_share_a_message_where_there_is_no_room_for_one_each(
    messages: int, models: int, expected: Sequence[str] | str
) -> None:
    due = [WaitingModel(f"m{number}", other_ms=number) for number in range(models)]
    wanted = [one.model for one in due] if expected == "all" else expected
    busy = WaitingModel("busy", other_ms=0, sending=True)
    assert list(due_models(waiting(*due, busy, messages=messages), PACE, 60_000)) == wanted
