"""What several workers say as one, without processes."""

from __future__ import annotations

import json

import pytest

from monitor.overview import SILENT_S, Overview
from monitor.web import Check


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(*, live: bool = True, ready: bool = True) -> str:
    model = {
        "name": "orders",
        "state": "running",
        "ready": ready,
        "records": 7,
        "dead_letters": 0,
        "lag": 0,
        "open_incidents": 0,
        "watermark_ms": None,
        "reference": "",
        "finished": False,
    }
    return json.dumps(
        {
            "live": {"name": "polls", "ok": live, "detail": "the last poll"},
            "checks": [{"name": "model orders", "ok": ready, "detail": "running"}],
            "models": [model],
        }
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def overview(clock: Clock) -> Overview:
    return Overview(2, clock=clock)


def serve(overview: Overview, ordinal: int, text: str) -> None:
    overview.started(ordinal, again=False)
    overview.listens(ordinal, 4000 + ordinal)
    overview.heard(ordinal, 4000 + ordinal, text)


def test_before_they_start_they_are_live_and_not_ready(overview: Overview) -> None:
    assert [check.ok for check in overview.readiness()] == [False, False]
    assert overview.liveness().ok


def test_checks_and_models_carry_the_worker_in_their_names(overview: Overview) -> None:
    serve(overview, 0, answer())
    serve(overview, 1, answer(ready=False))
    assert overview.readiness() == [
        Check("worker 0: model orders", True, "running"),
        Check("worker 1: model orders", False, "running"),
    ]
    assert [(model.name, model.records) for model in overview.models()] == [
        ("orders (worker 0)", 7),
        ("orders (worker 1)", 7),
    ]


def test_a_worker_that_says_nothing_is_not_ready_at_once_and_not_alive_after_a_while(
    overview: Overview, clock: Clock
) -> None:
    serve(overview, 0, answer())
    serve(overview, 1, answer())
    overview.heard(1, 4001, None)
    clock.now += SILENT_S
    overview.heard(0, 4000, answer())
    assert overview.readiness()[1] == Check("worker 1", False, f"has not answered for {SILENT_S:.0f} s")
    assert overview.liveness().ok
    clock.now += 1
    assert overview.liveness() == Check("workers", False, "worker 1 has not answered for 61 s")


def test_a_worker_that_never_tells_its_port_is_not_alive_after_a_while(overview: Overview, clock: Clock) -> None:
    serve(overview, 0, answer())
    overview.started(1, again=False)
    assert overview.readiness()[1] == Check("worker 1", False, "starting")
    clock.now += SILENT_S + 1
    overview.heard(0, 4000, answer())
    assert not overview.liveness().ok


def test_a_worker_that_does_not_poll_is_not_alive(overview: Overview) -> None:
    serve(overview, 0, answer())
    serve(overview, 1, answer(live=False))
    assert overview.liveness() == Check("workers", False, "worker 1: the last poll")


def test_a_worker_that_waits_for_its_next_start_is_alive_and_not_ready(overview: Overview, clock: Clock) -> None:
    serve(overview, 0, answer())
    serve(overview, 1, answer())
    overview.down(1, "killed by SIGKILL; is started anew in 30 s", ended=False)
    clock.now += SILENT_S / 2
    assert overview.liveness() == Check("workers", True, "1 of 2 workers run")
    assert overview.readiness()[1] == Check("worker 1", False, "killed by SIGKILL; is started anew in 30 s")
    assert len(overview.models()) == 1


def test_it_is_known_whether_a_worker_has_opened_a_source(overview: Overview) -> None:
    serve(overview, 0, answer().replace('"lag": 0', '"lag": null'))
    assert not overview.reads(0)
    overview.heard(0, 4000, answer())
    assert overview.reads(0) and not overview.reads(1)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"live": 1, "checks": [], "models": []}', "<html>"])
def test_an_answer_that_is_not_of_a_worker_is_none(overview: Overview, text: str) -> None:
    serve(overview, 0, text)
    assert overview.readiness()[0].detail == "has not answered for 0 s"


def test_one_that_was_asked_to_end_is_no_failure(overview: Overview) -> None:
    serve(overview, 0, answer())
    overview.down(1, "ended, as it was asked to", ended=True)
    assert all(check.ok for check in overview.readiness())


def test_an_answer_of_a_process_that_has_ended_since_is_not_that_of_the_next(overview: Overview) -> None:
    serve(overview, 0, answer())
    overview.down(0, "killed by SIGKILL", ended=False)
    overview.started(0, again=True)
    overview.heard(0, 4000, answer())
    assert overview.readiness()[0] == Check("worker 0", False, "starting")
