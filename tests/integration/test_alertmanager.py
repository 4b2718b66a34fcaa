"""The sink `alertmanager` with a real Alertmanager, and with clusters of which some are gone."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from connectors.alertmanager import ENDS_AFTER_MS, AlertmanagerSettings, AlertmanagerSink, alert_of
from connectors.http_sink import HttpClient
from connectors.notification import Notification, RefreshedSink
from detectors.errors import SinkError
from tests.senders import NOTE
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.receiver import Answer, Receiver

NewAlertmanager = Callable[..., AlertmanagerServer]


def over(note: Notification) -> Notification:
    return dataclasses.replace(note, id="note-2", status="resolved", ends_ms=1_700_000_400_000)


def sink_for(*urls: str, clock: Callable[[], float] = time.time) -> AlertmanagerSink:
    clients = [HttpClient("Alertmanager", url, timeout_s=5) for url in urls]
    return AlertmanagerSink(clients, external_url="http://driftd.example.org", clock=clock)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def dead_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.prometheus
def test_an_alert_fires_lasts_over_refreshes_and_resolves(alertmanager: NewAlertmanager) -> None:
    with Receiver() as receiver:
        server = alertmanager(webhook=receiver.url, group_by=("model",))
        sink = sink_for(server.url)
        assert isinstance(sink, RefreshedSink)
        sink.send(NOTE)
        wait_for(lambda: len(server.alerts()) == 1, "the alert is not there")
        (alert,) = server.alerts()
        assert alert["labels"] == {
            "alertname": "EmbeddingDrift",
            "model": "triage",
            "kind": "drift",
            "severity": "page",
            "space": "input",
            "segment": "country=DE",
        }
        assert alert["annotations"]["summary"] == NOTE.title and alert["annotations"]["strength"] == "6.3"
        assert (alert["startsAt"], alert["status"]["state"]) == ("2023-11-14T22:13:20.123Z", "active")
        assert alert["generatorURL"] == "http://driftd.example.org"
        sink.refresh([NOTE])
        wait_for(lambda: server.alerts()[0]["endsAt"] > alert["endsAt"], "a refresh does not move the end")
        assert server.alerts()[0]["fingerprint"] == alert["fingerprint"]
        receiver.wait_for(1)
        sink.send(over(NOTE))
        wait_for(lambda: server.alerts() == [], "the alert does not end")
        receiver.wait_for(2, timeout_s=20)
        sink.refresh([over(NOTE)])  # as it is for a while
        assert server.alerts() == []
        sink.close()
    assert [request.json["status"] for request in receiver.requests] == ["firing", "resolved"]


@pytest.mark.prometheus
def test_what_is_told_no_more_ends_by_itself(alertmanager: NewAlertmanager) -> None:
    server = alertmanager()
    long_ago = sink_for(server.url, clock=lambda: time.time() - ENDS_AFTER_MS / 1000 + 1.5)
    long_ago.send(NOTE)
    assert len(server.alerts()) == 1
    wait_for(lambda: server.alerts() == [], "an alert outlives its driftd")
    long_ago.close()


@pytest.mark.prometheus
def test_alertmanager_groups_by_our_labels_and_its_tool_shows_them(alertmanager: NewAlertmanager) -> None:
    notes = [
        NOTE,
        dataclasses.replace(NOTE, incident="b", segment="country=FR"),
        dataclasses.replace(NOTE, incident="c", model="checkout", kind="lag", space="", segment="", severity="warn"),
    ]
    with Receiver() as receiver:
        server = alertmanager(webhook=receiver.url, group_by=("model",))
        sink = sink_for(server.url)
        sink.refresh(notes)
        receiver.wait_for(2)
        sink.close()
    groups = {request.json["groupLabels"]["model"]: len(request.json["alerts"]) for request in receiver.requests}
    assert groups == {"triage": 2, "checkout": 1}
    command = [shutil.which("amtool") or "amtool", f"--alertmanager.url={server.url}", "alert", "query", "-o", "json"]
    shown = subprocess.run([*command, "severity=page"], capture_output=True, text=True, check=True).stdout
    assert sorted(alert["labels"]["segment"] for alert in json.loads(shown)) == ["country=DE", "country=FR"]


@pytest.mark.prometheus
def test_whatever_a_notification_holds_is_taken(alertmanager: NewAlertmanager) -> None:
    server = alertmanager()
    sink = sink_for(server.url)
    later_ms = int(time.time() * 1000) + 86_400_000
    shapes: list[dict[str, Any]] = [
        {"segment": "country=\x1b[31m\u202e\r\n\ud800", "text": "a\nb\x00"},
        {"space": "", "kind": "a kind of tomorrow"},
        {"model": "b", "starts_ms": later_ms},
        {"model": "c", "starts_ms": later_ms, "ends_ms": later_ms + 1, "status": "resolved"},
        {"model": "d", "ends_ms": 0, "status": "resolved"},
        {"model": "e", "starts_ms": -(10**17)},
        {"model": "f", "values": {"p-value": "1", "9 of 10": "", "größe": "x", "": "y"}},
        {"model": "g" * 2000, "text": "x" * 100_000},
    ]
    sink.refresh([dataclasses.replace(NOTE, **shape) for shape in shapes])
    states = {alert["labels"]["model"][:1]: alert["status"]["state"] for alert in server.alerts()}
    assert states.keys() == {"t", "b", "e", "f", "g"}, "the two that are over are not shown, the others are"
    assert len(server.alerts()) == 6
    (odd,) = [alert for alert in server.alerts() if alert["labels"]["model"] == "f"]
    assert {"p_value", "_9_of_10", "gr__e"} & odd["annotations"].keys() == {"p_value", "gr__e"}
    sink.close()


@pytest.mark.prometheus
def test_the_check_says_the_version(alertmanager: NewAlertmanager) -> None:
    server = alertmanager()
    sink = AlertmanagerSettings(urls=[SecretStr(server.url), SecretStr(dead_url())]).build()
    line = sink.check()
    assert line.startswith(f"alertmanager {server.url} (version 0.") and "refused" in line
    assert server.alerts() == []
    sink.close()


def test_one_of_a_cluster_is_enough_and_the_others_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Receiver(Answer(400), Answer(503), Answer(200)) as receiver:
        sink = sink_for(dead_url(), receiver.url)
        with pytest.raises(SinkError) as got:
            sink.send(NOTE)
        assert got.value.retryable, "one that is down may take it later, though the other refuses it"
        with pytest.raises(SinkError):
            sink.send(NOTE)
        sink.send(NOTE)
        sink.send(NOTE)
        sink.close()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"], "each thing once"
    assert "refused" in caplog.text and "answers 400" in caplog.text and "again" in caplog.records[2].getMessage()


def test_two_at_one_address_that_both_fail_are_a_failure() -> None:
    with Receiver(Answer(503)) as receiver:
        sink = sink_for(f"{receiver.url}/a", f"{receiver.url}/b")
        with pytest.raises(SinkError, match="503"):
            sink.send(NOTE)


def test_many_alerts_go_in_several_requests() -> None:
    with Receiver() as receiver:
        sink_for(receiver.url).refresh([dataclasses.replace(NOTE, incident=str(n)) for n in range(1201)])
    assert [len(request.json) for request in receiver.requests] == [500, 500, 201]
    assert {request.path for request in receiver.requests} == {"/hook/api/v2/alerts"}


def test_no_alert_begins_in_the_future_or_ends_before_it_begins() -> None:
    now_ms = 1_700_000_500_000
    firing = alert_of(dataclasses.replace(NOTE, starts_ms=now_ms + 5_000), now_ms)
    assert firing["startsAt"] == "2023-11-14T22:21:40.000Z" and firing["endsAt"] == "2023-11-14T22:25:40.000Z"
    backwards = alert_of(dataclasses.replace(over(NOTE), ends_ms=NOTE.starts_ms - 1_000), now_ms)
    assert backwards["startsAt"] == backwards["endsAt"] == "2023-11-14T22:13:19.123Z"


def test_what_is_no_alertmanager_is_named() -> None:
    with Receiver(Answer(200, body=b"<html>"), Answer(404)) as receiver:
        sink = sink_for(receiver.url)
        for words in ("not as Alertmanager", "404.*route-prefix"):
            with pytest.raises(SinkError, match=words):
                sink.check()


def test_addresses_that_cannot_work_are_refused() -> None:
    for wrong in ([], ["localhost:9093"], ["http://"]):
        with pytest.raises(ValidationError):
            AlertmanagerSettings.model_validate({"urls": wrong})
    with pytest.raises(ValidationError, match="external_url"):
        AlertmanagerSettings.model_validate({"urls": ["http://a"], "external_url": "status page"})


def test_the_alert_in_the_document_is_what_is_sent() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "sinks.md").read_text()
    ((shown,),) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if block[0] == "["]
    words = dict(shown["annotations"])
    words.pop("runbook_url")
    note = dataclasses.replace(
        NOTE,
        id=words.pop("notification_id"),
        incident=words.pop("incident"),
        model=shown["labels"]["model"],
        title=words.pop("summary"),
        text=words.pop("description"),
        starts_ms=1_699_999_970_000,
        values=words,
    )
    assert alert_of(note, 1_700_000_400_000, external_url="https://driftd.example.org") == shown
